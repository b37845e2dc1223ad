//! What the tests of this stage have in common.

use std::path::Path;

use bytes::Bytes;

use crate::record::{Flags, Kind, MqttOrigin, Qos, Reading, ReceiptTime};

/// A reading whose contents follow from `seed`.
pub(super) fn reading_of(seed: u64, value_bytes: usize, incompressible: bool) -> Reading {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let value: Vec<u8> = if incompressible {
        (0..value_bytes).map(|_| random() as u8).collect()
    } else {
        let text = format!("{{\"n\":{seed},\"power\":{},\"voltage\":230.1}}", random() % 10_000);
        text.bytes().cycle().take(value_bytes).collect()
    };
    let bare = random() % 4 == 0;
    let text = |text: &str| if bare { "".into() } else { text.into() };
    Reading {
        topic: "telemetry".into(),
        device: format!("line-{}", seed % 7).into(),
        kind: if bare { Kind::Raw } else { Kind::Reading },
        flags: Flags((seed % 8) as u8),
        received: ReceiptTime { wall_ns: 1_700_000_000_000_000_000 + (seed % 1_000_000) as i64, mono_ns: seed },
        device_time_ns: (!bare).then_some(seed as i64),
        content_type: text("application/json"),
        quality: text("bad crc"),
        mqtt: (!bare).then(|| MqttOrigin {
            topic: "plant/a/line".into(),
            qos: Qos::ExactlyOnce,
            retain: seed % 2 == 0,
            dup: seed % 3 == 0,
        }),
        replay_of: text(""),
        value: Bytes::from(value),
    }
}

/// Numbers that follow from a seed.
#[derive(Debug)]
pub(super) struct Dice(pub(super) u64);

impl Dice {
    /// A number below `below`.
    pub(super) fn roll(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }

    /// One of these.
    pub(super) fn pick<'a, T>(&mut self, among: &'a [T]) -> &'a T {
        &among[self.roll(among.len() as u64) as usize]
    }
}

/// The seed of a run: `TEST_SEED`, or a new one; printed.
pub(super) fn seed() -> u64 {
    let given = std::env::var("TEST_SEED").ok().map(|text| text.parse().expect("TEST_SEED is a number"));
    let seed = given.unwrap_or_else(|| u64::from(getrandom::u32().expect("random numbers")));
    println!("TEST_SEED={seed}");
    seed
}

/// Copies a directory with everything below it.
pub(super) fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a directory for the copy");
    for entry in std::fs::read_dir(from).expect("a directory to copy") {
        let entry = entry.expect("an entry");
        let to = to.join(entry.file_name());
        if entry.file_type().expect("its type").is_dir() {
            copy_tree(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).expect("a copy");
        }
    }
}
