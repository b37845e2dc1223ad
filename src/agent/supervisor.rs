//! The two loops of the daemon: one obeys signals; the other feeds the watchdog while every stage turns, tells when one
//! stands still, and keeps the status line. They are apart so that a long reload does not starve the watchdog.

use std::time::{Duration, Instant};

use super::health::Health;
use super::signals::{Order, Signals};
use super::{Agent, systemd};
use crate::telemetry::Telemetry;

/// How often the loops are looked at.
const TICK: Duration = Duration::from_secs(1);
/// How often the status line may change.
const STATUS_EVERY: Duration = Duration::from_secs(5);

/// Returns when the daemon is to stop.
pub(super) async fn obey(agent: &mut Agent, mut signals: Signals) {
    while let Some(Order::Reload) = signals.recv().await {
        agent.reload().await;
    }
}

/// Looks at the loops for ever.
pub(super) async fn watch(health: Health, telemetry: Telemetry) {
    let watchdog = systemd::watchdog_period();
    let mut ticks = tokio::time::interval(watchdog.map_or(TICK, |period| period.min(TICK)));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut watch = Watch { watchdog, ..Watch::default() };
    loop {
        ticks.tick().await;
        telemetry.tick();
        watch.look(&health);
    }
}

#[derive(Default)]
struct Watch {
    watchdog: Option<Duration>,
    stalled: Vec<String>,
    fed: Option<Instant>,
    told: Option<Instant>,
    line: String,
}

impl Watch {
    fn look(&mut self, health: &Health) {
        let now = Instant::now();
        if self.alive(health.stalled(), now) {
            systemd::watchdog();
        }
        if due(self.told, STATUS_EVERY, now) {
            let line = health.summary();
            if line != self.line {
                systemd::status(&line);
                self.line = line;
            }
            self.told = Some(now);
        }
    }

    /// Takes note of the loops that stand still; whether the watchdog is to be fed now. It never is while one does.
    fn alive(&mut self, stalled: Vec<String>, now: Instant) -> bool {
        self.tell_changes(&stalled);
        self.stalled = stalled;
        let Some(period) = self.watchdog else { return false };
        let feed = self.stalled.is_empty() && due(self.fed, period, now);
        if feed {
            self.fed = Some(now);
        }
        feed
    }

    fn tell_changes(&self, stalled: &[String]) {
        for name in stalled.iter().filter(|name| !self.stalled.contains(name)) {
            log::error!("{name} stands still; under systemd the watchdog will restart the service");
        }
        for name in self.stalled.iter().filter(|name| !stalled.contains(name)) {
            log::info!("{name} goes on");
        }
    }
}

fn due(last: Option<Instant>, period: Duration, now: Instant) -> bool {
    last.is_none_or(|last| now.duration_since(last) >= period)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watchdog_starves_while_a_loop_stands_still() {
        let (period, start) = (Duration::from_secs(10), Instant::now());
        let mut watch = Watch { watchdog: Some(period), ..Watch::default() };
        let at = |seconds| start + Duration::from_secs(seconds);
        let stalled = || vec!["outbox-writer (sync)".to_owned()];
        assert!(watch.alive(Vec::new(), at(0)));
        assert!(!watch.alive(Vec::new(), at(9)), "not more often than its period");
        assert!(watch.alive(Vec::new(), at(10)));
        assert!(!watch.alive(stalled(), at(20)));
        assert!(!watch.alive(stalled(), at(1000)));
        assert!(watch.alive(Vec::new(), at(1001)), "it goes on");
        assert!(!Watch::default().alive(Vec::new(), at(0)), "nobody watches");
    }
}
