//! The loop of the daemon: obeys signals, feeds the watchdog while every loop turns, tells when one stands still.

use std::time::{Duration, Instant};

use super::signals::{Order, Signals};
use super::{Agent, systemd};

/// How often the loops are looked at.
const TICK: Duration = Duration::from_secs(1);
/// How often the status line may change.
const STATUS_EVERY: Duration = Duration::from_secs(5);

/// Returns when the daemon is to stop.
pub(super) async fn watch(agent: &mut Agent, mut signals: Signals) {
    let mut ticks = tokio::time::interval(TICK.min(systemd::watchdog_period().unwrap_or(TICK)));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut watch = Watch::default();
    loop {
        tokio::select! {
            order = signals.recv() => match order {
                Some(Order::Reload) => agent.reload().await,
                Some(Order::Stop) | None => return,
            },
            _ = ticks.tick() => watch.look(agent),
        }
    }
}

#[derive(Default)]
struct Watch {
    stalled: Vec<String>,
    fed: Option<Instant>,
    told: Option<Instant>,
    line: String,
}

impl Watch {
    fn look(&mut self, agent: &Agent) {
        agent.telemetry.tick();
        let stalled = agent.health.stalled();
        self.tell_changes(&stalled);
        let due = |last: Option<Instant>, period: Duration| last.is_none_or(|last| last.elapsed() >= period);
        if let Some(period) = systemd::watchdog_period() {
            if stalled.is_empty() && due(self.fed, period.saturating_sub(TICK)) {
                systemd::watchdog();
                self.fed = Some(Instant::now());
            }
        }
        if due(self.told, STATUS_EVERY) {
            let line = agent.health.summary();
            if line != self.line {
                systemd::status(&line);
                self.line = line;
            }
            self.told = Some(Instant::now());
        }
        self.stalled = stalled;
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
