//! What to do about a session, decided in plain code: when to subscribe, which acknowledgements are proven, how long to
//! stay away. No clock, no I/O.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::link::LinkError;
use crate::backoff::Backoff;
use crate::record::Qos;

/// Sessions shorter than this count as short: the peer or a rival ends them.
const SHORT_SESSION: Duration = Duration::from_secs(10);
/// So many short sessions in a row are an alarm.
const SHORT_SESSIONS_ALARM: u32 = 5;
/// So many refusals of a packet of one size are an alarm.
const TOO_LARGE_ALARM: u32 = 3;
/// First pause after a connection was lost: random up to this, so that a fleet does not come back at one instant.
const AFTER_LOSS: Duration = Duration::from_secs(2);
/// Longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// What is known about the subscriptions at the broker; kept on disk between connections.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Subscriptions {
    /// Filters that the session may hold, with their quality of service.
    pub(super) filters: Vec<(String, u8)>,
    /// Whether the session is known to hold exactly these: a SUBACK said so, and no CONNECT since then is without answer.
    pub(super) certain: bool,
}

impl Subscriptions {
    /// What to store before a CONNECT leaves: the broker may lose the session and make a new, empty one, and its CONNACK
    /// may never arrive; the next one then says that a session is present.
    pub(super) fn before_connect(&self, wanted: &[(String, Qos)]) -> Self {
        let mut filters = self.filters.clone();
        for (filter, qos) in wanted {
            if !filters.iter().any(|(known, _)| known == filter) {
                filters.push((filter.clone(), *qos as u8));
            }
        }
        Self { filters, certain: false }
    }

    /// What to store once the broker granted everything.
    pub(super) fn granted(wanted: &[(String, Qos)]) -> Self {
        Self { filters: wanted.iter().map(|(filter, qos)| (filter.clone(), *qos as u8)).collect(), certain: true }
    }

    /// Whether SUBSCRIBE must be sent after this CONNACK. MQTT 5 always does: with Retain Handling 1 it costs nothing.
    /// With 3.1.1 every SUBSCRIBE replays retained messages, so it is spared where the session is known.
    pub(super) fn must_subscribe(&self, version: u8, session_present: bool, wanted: &[(String, Qos)]) -> bool {
        version != 3 || !session_present || *self != Self::granted(wanted)
    }

    /// Filters that the session may hold but nobody wants any more.
    pub(super) fn unwanted(&self, wanted: &[(String, Qos)]) -> Vec<String> {
        let gone = self.filters.iter().filter(|(known, _)| !wanted.iter().any(|(filter, _)| filter == known));
        gone.map(|(filter, _)| filter.clone()).collect()
    }
}

/// What is wrong with a SUBACK, in words for the owner; `None` if everything was granted as asked.
pub(super) fn shortfall(wanted: &[(String, Qos)], granted: &[Result<Qos, String>]) -> Option<String> {
    let mut wrong = Vec::new();
    for (number, (filter, qos)) in wanted.iter().enumerate() {
        match granted.get(number) {
            Some(Ok(given)) if given >= qos => {}
            Some(Ok(given)) => {
                wrong.push(format!("{filter}: granted QoS {} instead of {}", *given as u8, *qos as u8));
            }
            Some(Err(why)) => wrong.push(format!("{filter}: {why}")),
            None => wrong.push(format!("{filter}: no answer")),
        }
    }
    (!wrong.is_empty()).then(|| format!("the broker did not grant a subscription: {}", wrong.join("; ")))
}

/// Whether the session holds every filter, if perhaps at a lower quality.
pub(super) fn all_held(wanted: &[(String, Qos)], granted: &[Result<Qos, String>]) -> bool {
    granted.len() == wanted.len() && granted.iter().all(Result::is_ok)
}

/// Set of packet identifiers: 8 KiB whatever is in it.
#[derive(Debug)]
pub(super) struct Ids {
    words: Box<[u64; 1024]>,
    count: u32,
}

impl Ids {
    pub(super) fn new() -> Self {
        Self { words: Box::new([0; 1024]), count: 0 }
    }

    /// Says whether it is new.
    pub(super) fn insert(&mut self, id: u16) -> bool {
        let (word, bit) = (&mut self.words[usize::from(id >> 6)], 1u64 << (id & 63));
        let new = *word & bit == 0;
        self.count += u32::from(new);
        *word |= bit;
        new
    }

    pub(super) fn remove(&mut self, id: u16) {
        let (word, bit) = (&mut self.words[usize::from(id >> 6)], 1u64 << (id & 63));
        self.count -= u32::from(*word & bit != 0);
        *word &= !bit;
    }

    fn drain(&mut self) -> Vec<u16> {
        let mut ids = Vec::with_capacity(self.count as usize);
        if self.count > 0 {
            for (number, word) in self.words.iter_mut().enumerate() {
                while *word != 0 {
                    ids.push((number * 64) as u16 + word.trailing_zeros() as u16);
                    *word &= *word - 1;
                }
            }
        }
        self.count = 0;
        ids
    }
}

/// MQTT never confirms a PUBACK. But a PINGRESP says that the broker has read everything before the PINGREQ, and so the
/// PUBACKs written before it: their identifiers are done. Lives as long as one connection.
#[derive(Debug)]
pub(super) struct AckBarrier {
    written: Ids,
    before_ping: Ids,
}

impl AckBarrier {
    pub(super) fn new() -> Self {
        Self { written: Ids::new(), before_ping: Ids::new() }
    }

    /// A PUBACK left.
    pub(super) fn ack_written(&mut self, id: u16) {
        self.written.insert(id);
    }

    /// A PUBLISH came: the identifier belongs to it now, whatever was acknowledged under it before.
    pub(super) fn publish(&mut self, id: u16) {
        self.written.remove(id);
        self.before_ping.remove(id);
    }

    /// A PINGREQ left.
    pub(super) fn ping_written(&mut self) {
        for id in self.written.drain() {
            self.before_ping.insert(id);
        }
    }

    /// A PINGRESP came: these identifiers are done.
    pub(super) fn ping_answered(&mut self) -> Vec<u16> {
        self.before_ping.drain()
    }
}

/// How one try to be connected ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    /// Orderly, because the source stops.
    Stopped,
    /// Left on purpose: no room for what the broker sends.
    Held,
    /// Lost, or never connected.
    Lost(LinkError),
}

/// What to do after a connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Verdict {
    /// How long to stay away.
    pub(super) pause: Duration,
    /// An alarm to raise, as name and text.
    pub(super) alarm: Option<(&'static str, String)>,
}

/// Decides how long to stay away, and notices what does not heal by itself.
#[derive(Debug)]
pub(super) struct Pacing {
    backoff: Backoff,
    short_sessions: u32,
    too_large: (usize, u32),
}

impl Pacing {
    pub(super) fn new() -> Self {
        let backoff = Backoff::new(Duration::from_millis(100), PAUSE_MAX);
        Self { backoff, short_sessions: 0, too_large: (0, 0) }
    }

    /// `connected`: how long the session lasted, `None` if there was no CONNACK. `fraction`: random, 0 to 1.
    pub(super) fn after(&mut self, end: &End, connected: Option<Duration>, client_id: &str, fraction: f64) -> Verdict {
        let long = connected.is_some_and(|lasted| lasted >= SHORT_SESSION);
        if long {
            self.backoff.reset();
            self.short_sessions = 0;
        }
        let error = match end {
            End::Stopped => return Verdict { pause: Duration::ZERO, alarm: None },
            End::Held => {
                self.backoff.reset();
                return Verdict { pause: self.backoff.next_delay(), alarm: None };
            }
            End::Lost(error) => error,
        };
        if let LinkError::TooLarge(size) = error {
            self.too_large = if self.too_large.0 == *size { (*size, self.too_large.1 + 1) } else { (*size, 1) };
            if self.too_large.1 >= TOO_LARGE_ALARM {
                let text = format!(
                    "the broker keeps sending a packet of {size} bytes, above packet_bytes_max, and nothing behind it arrives: raise packet_bytes_max, or remove the message at the broker"
                );
                return Verdict { pause: PAUSE_MAX, alarm: Some(("packet_too_large", text)) };
            }
        }
        if connected.is_some() && !long {
            self.short_sessions += 1;
        }
        let rival = *error == LinkError::TakenOver || self.short_sessions >= SHORT_SESSIONS_ALARM;
        let alarm = rival.then(|| {
            let seen = if *error == LinkError::TakenOver {
                "another client took the session over"
            } else {
                "one session after another is ended after seconds"
            };
            ("take_over", format!("{seen}: is a second client using the client id {client_id:?}? Last: {error}"))
        });
        let first_loss = long && self.backoff.attempts() == 0;
        let pause = if first_loss { AFTER_LOSS.mul_f64(fraction) } else { self.backoff.next_delay() };
        Verdict { pause, alarm }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted() -> Vec<(String, Qos)> {
        vec![("a/#".to_owned(), Qos::AtLeastOnce), ("b".to_owned(), Qos::ExactlyOnce)]
    }

    #[test]
    fn a_known_session_is_not_subscribed_again_with_3_1_1() {
        let stored = Subscriptions::granted(&wanted());
        assert!(!stored.must_subscribe(3, true, &wanted()));
        assert!(stored.must_subscribe(3, false, &wanted()));
        assert!(stored.must_subscribe(5, true, &wanted()));
        assert!(stored.must_subscribe(3, true, &wanted()[..1]));
        assert!(Subscriptions::default().must_subscribe(3, true, &wanted()));
    }

    #[test]
    fn after_a_connect_without_answer_a_present_session_is_not_trusted() {
        let stored = Subscriptions::granted(&wanted()).before_connect(&wanted());
        assert!(stored.must_subscribe(3, true, &wanted()));
    }

    #[test]
    fn filters_that_are_gone_are_unsubscribed_even_after_a_crash_in_between() {
        let old = vec![("old".to_owned(), Qos::AtMostOnce)];
        let stored = Subscriptions::granted(&old).before_connect(&wanted());
        assert_eq!(stored.unwanted(&wanted()), ["old"]);
        assert_eq!(stored.unwanted(&old), ["a/#", "b"]);
    }

    #[test]
    fn a_refused_or_lowered_subscription_is_told() {
        assert_eq!(shortfall(&wanted(), &[Ok(Qos::AtLeastOnce), Ok(Qos::ExactlyOnce)]), None);
        let lowered = [Ok(Qos::AtLeastOnce), Ok(Qos::AtLeastOnce)];
        assert!(shortfall(&wanted(), &lowered).unwrap().contains("b: granted QoS 1 instead of 2"));
        assert!(all_held(&wanted(), &lowered));
        let refused = [Err("NotAuthorized".to_owned()), Ok(Qos::ExactlyOnce)];
        assert!(shortfall(&wanted(), &refused).unwrap().contains("a/#: NotAuthorized"));
        assert!(!all_held(&wanted(), &refused));
        assert!(shortfall(&wanted(), &[]).unwrap().contains("no answer"));
    }

    #[test]
    fn only_acknowledgements_before_the_ping_are_proven() {
        let mut barrier = AckBarrier::new();
        barrier.ack_written(1);
        barrier.ack_written(65_535);
        barrier.ping_written();
        barrier.ack_written(3);
        assert_eq!(barrier.ping_answered(), [1, 65_535]);
        assert!(barrier.ping_answered().is_empty());
        barrier.ping_written();
        assert_eq!(barrier.ping_answered(), [3]);
    }

    #[test]
    fn an_identifier_in_use_again_is_not_released_by_an_older_acknowledgement() {
        let mut barrier = AckBarrier::new();
        barrier.ack_written(7);
        barrier.ping_written();
        barrier.publish(7);
        assert!(barrier.ping_answered().is_empty());
        barrier.ack_written(7);
        barrier.publish(7);
        barrier.ping_written();
        assert!(barrier.ping_answered().is_empty());
    }

    #[test]
    fn pauses_grow_and_a_long_session_starts_them_anew() {
        let mut pacing = Pacing::new();
        let lost = End::Lost(LinkError::Unreachable("x".to_owned()));
        let pauses: Vec<_> = (0..12).map(|_| pacing.after(&lost, None, "c", 0.5).pause).collect();
        assert!(pauses[0] <= Duration::from_millis(100) && pauses[11] >= Duration::from_secs(15), "{pauses:?}");
        let verdict = pacing.after(&lost, Some(Duration::from_secs(60)), "c", 0.25);
        assert_eq!(verdict, Verdict { pause: Duration::from_millis(500), alarm: None });
        assert!(pacing.after(&lost, None, "c", 0.5).pause <= Duration::from_millis(100));
    }

    #[test]
    fn a_rival_and_a_poisoned_queue_are_alarms() {
        let mut pacing = Pacing::new();
        let verdict = pacing.after(&End::Lost(LinkError::TakenOver), Some(Duration::from_secs(60)), "gw", 0.5);
        assert_eq!(verdict.alarm.unwrap().0, "take_over");
        let broken = End::Lost(LinkError::Broken("eof".to_owned()));
        let mut alarms = (0..5).map(|_| pacing.after(&broken, Some(Duration::from_secs(1)), "gw", 0.5).alarm);
        assert!(alarms.by_ref().take(4).all(|alarm| alarm.is_none()));
        assert!(alarms.next().unwrap().unwrap().1.contains("\"gw\""));
        let mut pacing = Pacing::new();
        let large = End::Lost(LinkError::TooLarge(2_000_000));
        assert_eq!(pacing.after(&large, Some(Duration::ZERO), "c", 0.5).alarm, None);
        assert_eq!(pacing.after(&large, Some(Duration::ZERO), "c", 0.5).alarm, None);
        let verdict = pacing.after(&large, Some(Duration::ZERO), "c", 0.5);
        assert_eq!((verdict.pause, verdict.alarm.unwrap().0), (PAUSE_MAX, "packet_too_large"));
    }
}
