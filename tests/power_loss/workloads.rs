//! What is written while it is recorded. An arrival's contents follow from the workload and its number.

use bytes::Bytes;
use fieldpost::config::outbox::{Compression, Sync, WhenFull};
use fieldpost::config::units::Span;
use fieldpost::config::{ByteSize, Outbox};
use fieldpost::outbox::Packet;
use fieldpost::record::{Flags, Kind, MqttOrigin, Qos, Reading, ReceiptTime};

use super::dice::Dice;

/// How the drain behaves beside the appending.
#[derive(Debug, Clone, Copy)]
pub struct Drain {
    /// After so many groups in a hundred it reads a batch, and trims.
    pub percent: u64,
    /// Of these, so many in a hundred sync the position.
    pub synced_percent: u64,
    /// Most records of a batch.
    pub records: usize,
}

/// Where the directory stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Anywhere,
    /// On a file system of its own, of this size.
    Tmpfs(u64),
}

/// One way of using an outbox.
#[derive(Debug, Clone)]
pub struct Workload {
    pub name: &'static str,
    pub config: Outbox,
    /// Arrivals of the first session, and of one after a cut.
    pub arrivals: u64,
    pub later: u64,
    pub group_max: u64,
    /// Readings of an arrival, at most; at least one.
    pub readings_max: u64,
    pub bytes: (u64, u64),
    pub incompressible: bool,
    /// Packet identifiers in use.
    pub packets: Option<u16>,
    /// Identifiers are released now and then.
    pub releases: bool,
    pub drain: Drain,
    /// Ranges are given up, and copied again, now and then.
    pub changes: bool,
    /// The cluster's name changes now and then.
    pub names: bool,
    pub place: Place,
    /// `TEST_SHIM_FULL` of the first session.
    pub full: Option<&'static str>,
    /// An older generation is damaged before a second session, which is the one that is cut.
    pub damages: Option<Damage>,
}

/// What is damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    /// A generation that is neither the oldest nor the newest.
    Middle,
    /// The newest: the outbox goes on as a new incarnation.
    Newest,
}

const NO_DRAIN: Drain = Drain { percent: 0, synced_percent: 0, records: 0 };
const TRAILING: Drain = Drain { percent: 30, synced_percent: 20, records: 40 };

fn config(max_mib: u64) -> Outbox {
    Outbox { max_bytes: ByteSize::mib(max_mib), free_space_floor: ByteSize(0), ..Outbox::default() }
}

fn plain(name: &'static str) -> Workload {
    Workload {
        name,
        config: config(64),
        arrivals: 300,
        later: 60,
        group_max: 1,
        readings_max: 1,
        bytes: (50, 300),
        incompressible: false,
        packets: None,
        releases: false,
        drain: NO_DRAIN,
        changes: false,
        names: false,
        place: Place::Anywhere,
        full: None,
        damages: None,
    }
}

/// All of them.
pub fn all() -> Vec<Workload> {
    vec![
        Workload { packets: Some(50), arrivals: 200, ..plain("small-one-by-one") },
        Workload { arrivals: 6000, later: 400, group_max: 120, readings_max: 4, ..plain("small-groups") },
        Workload {
            config: Outbox { compression: Compression::None, ..config(128) },
            arrivals: 1500,
            group_max: 60,
            bytes: (4000, 14_000),
            incompressible: true,
            ..plain("large-incompressible")
        },
        // A group takes several syncs; what comes next is packed beside them.
        Workload {
            config: config(24),
            arrivals: 9000,
            later: 3000,
            group_max: 3000,
            bytes: (200, 600),
            incompressible: true,
            drain: Drain { percent: 50, records: 2000, ..TRAILING },
            ..plain("large-groups")
        },
        Workload {
            config: Outbox { compression: Compression::Lz4, ..config(48) },
            arrivals: 70,
            later: 12,
            group_max: 6,
            readings_max: 2,
            bytes: (10_000, 250_000),
            incompressible: true,
            packets: Some(9),
            ..plain("split-records")
        },
        Workload {
            config: Outbox { when_full: WhenFull::DropOldest, ..config(8) },
            arrivals: 9000,
            later: 500,
            group_max: 60,
            bytes: (500, 2500),
            incompressible: true,
            drain: Drain { percent: 1, ..TRAILING },
            ..plain("drop-oldest")
        },
        Workload {
            config: Outbox { when_full: WhenFull::DropNewest, ..config(8) },
            arrivals: 8000,
            later: 500,
            group_max: 60,
            bytes: (500, 2500),
            incompressible: true,
            packets: Some(400),
            drain: Drain { percent: 40, records: 60, ..TRAILING },
            ..plain("drop-newest")
        },
        Workload {
            config: config(16),
            arrivals: 6000,
            later: 400,
            group_max: 50,
            bytes: (300, 2000),
            incompressible: true,
            drain: Drain { percent: 60, ..TRAILING },
            ..plain("trim-while-appending")
        },
        Workload {
            config: Outbox { retain: ByteSize::mib(4), compression: Compression::Lz4, ..config(16) },
            arrivals: 6000,
            later: 400,
            group_max: 50,
            bytes: (300, 2000),
            incompressible: true,
            drain: Drain { percent: 90, ..TRAILING },
            ..plain("retained-after-delivery")
        },
        Workload {
            config: Outbox { retain: ByteSize::mib(4), ..config(24) },
            arrivals: 4000,
            later: 400,
            group_max: 40,
            bytes: (300, 2000),
            incompressible: true,
            changes: true,
            drain: Drain { percent: 60, ..TRAILING },
            ..plain("purge-and-replay")
        },
        Workload {
            config: config(16),
            arrivals: 6000,
            later: 400,
            group_max: 40,
            bytes: (500, 2500),
            incompressible: true,
            packets: Some(200),
            place: Place::Tmpfs(9 << 20),
            drain: Drain { percent: 3, ..TRAILING },
            ..plain("disk-full")
        },
        Workload {
            config: config(16),
            arrivals: 4000,
            later: 200,
            group_max: 30,
            bytes: (100, 3000),
            incompressible: true,
            packets: Some(100),
            drain: TRAILING,
            full: Some("150:12:140"),
            ..plain("no-space-now-and-then")
        },
        Workload {
            config: config(8),
            arrivals: 5000,
            later: 300,
            group_max: 50,
            bytes: (500, 1500),
            incompressible: true,
            packets: Some(3000),
            releases: true,
            drain: Drain { percent: 70, ..TRAILING },
            ..plain("redelivery-table")
        },
        Workload {
            arrivals: 300,
            group_max: 5,
            names: true,
            drain: Drain { percent: 50, synced_percent: 60, records: 5 },
            ..plain("state-and-position")
        },
        Workload {
            config: Outbox { sync: Sync::Interval(Span::millis(5)), ..config(16) },
            arrivals: 3000,
            later: 200,
            group_max: 20,
            bytes: (100, 2000),
            packets: Some(500),
            drain: TRAILING,
            ..plain("sync-by-interval")
        },
        Workload {
            config: config(24),
            arrivals: 4500,
            later: 200,
            group_max: 60,
            bytes: (500, 2000),
            incompressible: true,
            damages: Some(Damage::Middle),
            ..plain("set-aside-older")
        },
        Workload {
            config: config(16),
            arrivals: 2500,
            later: 200,
            group_max: 60,
            bytes: (500, 2000),
            incompressible: true,
            damages: Some(Damage::Newest),
            ..plain("set-aside-newest")
        },
    ]
}

/// The one with this name.
pub fn named(name: &str) -> Workload {
    all().into_iter().find(|workload| workload.name == name).unwrap_or_else(|| panic!("no workload is named {name:?}"))
}

const READINGS_STEP: i64 = 1000;

impl Workload {
    /// The readings of an arrival.
    pub fn readings(&self, arrival: u64) -> Vec<Reading> {
        let mut dice = Dice::new(arrival).fork(77);
        let count = dice.between(1, self.readings_max);
        (0..count).map(|number| self.reading(arrival, number, &mut dice)).collect()
    }

    fn reading(&self, arrival: u64, number: u64, dice: &mut Dice) -> Reading {
        let bytes = dice.between(self.bytes.0, self.bytes.1) as usize;
        let value: Vec<u8> = if self.incompressible {
            (0..bytes.div_ceil(8)).flat_map(|_| dice.next().to_le_bytes()).take(bytes).collect()
        } else {
            let text = format!("{{\"n\":{arrival},\"power\":{},\"voltage\":230.1}}", dice.below(10_000));
            text.bytes().cycle().take(bytes).collect()
        };
        Reading {
            topic: "telemetry".into(),
            device: format!("line-{}", arrival % 7).into(),
            kind: Kind::Raw,
            flags: Flags::default(),
            received: ReceiptTime { wall_ns: 1_700_000_000_000_000_000 + arrival as i64, mono_ns: arrival },
            device_time_ns: Some(arrival as i64 * READINGS_STEP + number as i64),
            content_type: "application/octet-stream".into(),
            quality: "".into(),
            mqtt: self.packets.map(|_| MqttOrigin {
                topic: "plant/a/line".into(),
                qos: Qos::AtLeastOnce,
                retain: false,
                dup: false,
            }),
            replay_of: "".into(),
            value: Bytes::from(value),
        }
    }

    /// Arrival and place in it of a reading that was read.
    pub fn number_of(reading: &Reading) -> Option<(u64, u64)> {
        let number = reading.device_time_ns?;
        Some((u64::try_from(number / READINGS_STEP).ok()?, u64::try_from(number % READINGS_STEP).ok()?))
    }

    /// Its packet, if it comes by MQTT.
    pub fn packet(&self, arrival: u64, dup: bool) -> Option<Packet> {
        let ids = u64::from(self.packets?);
        let id = 1 + (arrival % ids) as u16;
        Some(Packet { id, qos: Qos::AtLeastOnce, dup, hash: arrival ^ 0x5bd1, dedup: true })
    }
}
