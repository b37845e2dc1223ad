//! An outbox as an earlier version, or a machine of another kind, left it: it opens, holds what its manifest says, and
//! goes on. The fixtures lie in `tests/fixtures/outbox`; `scripts/outbox-fixture` makes those of this version
//! (docs/decisions/0235).

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::tests::*;
use super::*;
use crate::config::ByteSize;
use crate::record::{Item, Stored};

/// Cap of the fixtures' outboxes.
pub(super) const MAX: ByteSize = ByteSize::mib(8);

/// What a fixture holds. Sequences are inclusive.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Manifest {
    /// Version of the program that wrote it.
    pub(super) written_by: String,
    /// `std::env::consts::ARCH` of that program.
    pub(super) architecture: String,
    pub(super) agent: String,
    /// `orderly`, or `killed` in the middle of writing.
    pub(super) end: String,
    pub(super) committed: u64,
    /// Everything up to here was answered; what comes after may be there.
    pub(super) answered: u64,
    /// First sequence still on the disk: at most `committed + 1`.
    pub(super) kept_from: u64,
    pub(super) incarnations: Vec<String>,
    pub(super) cluster: Option<String>,
    pub(super) clean: bool,
    /// Generations in `damaged/`.
    pub(super) damaged: usize,
    /// Files of delivery: path below the outbox and length.
    pub(super) files: Vec<(String, u64)>,
    /// Packets that must be recognised when they come again.
    pub(super) known_packets: Vec<KnownPacket>,
    /// Packets that were released, or whose session was cleared: they must not be recognised.
    pub(super) forgotten_packets: Vec<KnownPacket>,
    /// Readings refused and not yet told, by source.
    pub(super) untold: Vec<(String, u64)>,
    /// From `kept_from` on.
    pub(super) items: Vec<Expected>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct KnownPacket {
    pub(super) source: String,
    pub(super) id: u16,
    pub(super) qos: u8,
    pub(super) hash: u64,
}

impl KnownPacket {
    pub(super) fn packet(&self, dup: bool) -> Packet {
        let qos = Qos::from_number(self.qos).expect("a quality of service");
        Packet { id: self.id, qos, dup, hash: self.hash, dedup: true }
    }
}

/// An item, with digests in place of values.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Expected {
    Reading {
        sequence: u64,
        incarnation: String,
        segment: String,
        boot_id: String,
        source: String,
        topic: String,
        device: String,
        kind: u8,
        flags: u8,
        wall_ns: i64,
        mono_ns: u64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        device_time_ns: Option<i64>,
        #[serde(default, skip_serializing_if = "String::is_empty")]
        content_type: String,
        #[serde(default, skip_serializing_if = "String::is_empty")]
        quality: String,
        /// Topic, quality of service, retain, dup.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mqtt: Option<(String, u8, bool, bool)>,
        #[serde(default, skip_serializing_if = "String::is_empty")]
        replay_of: String,
        value_bytes: usize,
        value_xxh3: String,
    },
    Hole {
        from: u64,
        to: u64,
        incarnation: String,
        segment: String,
        boot_id: String,
        wall_ns: i64,
        reason: String,
        bytes: u64,
        sources: Vec<(String, u64)>,
        previous: Option<String>,
    },
}

impl From<&Item> for Expected {
    fn from(item: &Item) -> Self {
        match item {
            Item::Reading(stored) => Self::of_reading(stored),
            Item::Hole(hole) => Self::Hole {
                from: hole.from.0,
                to: hole.to.0,
                incarnation: hole.incarnation.to_hex(),
                segment: hole.segment.to_hex(),
                boot_id: hole.boot_id.to_string(),
                wall_ns: hole.noted.wall_ns,
                reason: hole.reason.to_string(),
                bytes: hole.bytes,
                sources: hole.sources.iter().map(|(source, count)| (source.to_string(), *count)).collect(),
                previous: hole.previous.map(Incarnation::to_hex),
            },
        }
    }
}

impl Expected {
    pub(super) fn of_reading(stored: &Stored) -> Self {
        let reading = &stored.reading;
        Self::Reading {
            sequence: stored.sequence.0,
            incarnation: stored.incarnation.to_hex(),
            segment: stored.segment.to_hex(),
            boot_id: stored.boot_id.to_string(),
            source: stored.source.to_string(),
            topic: reading.topic.to_string(),
            device: reading.device.to_string(),
            kind: reading.kind as u8,
            flags: reading.flags.0,
            wall_ns: reading.received.wall_ns,
            mono_ns: reading.received.mono_ns,
            device_time_ns: reading.device_time_ns,
            content_type: reading.content_type.to_string(),
            quality: reading.quality.to_string(),
            mqtt: reading.mqtt.as_ref().map(|mqtt| (mqtt.topic.to_string(), mqtt.qos as u8, mqtt.retain, mqtt.dup)),
            replay_of: reading.replay_of.to_string(),
            value_bytes: reading.value.len(),
            value_xxh3: format!("{:016x}", xxhash_rust::xxh3::xxh3_64(&reading.value)),
        }
    }

    pub(super) fn last(&self) -> u64 {
        match self {
            Self::Reading { sequence, .. } => *sequence,
            Self::Hole { to, .. } => *to,
        }
    }
}

/// The fixtures in the checkout, without `.tar.zst`.
fn fixtures() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/outbox");
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<_> = entries
        .filter(|path| path.extension().is_some_and(|end| end == "json"))
        .map(|path| path.with_extension(""))
        .collect();
    found.sort();
    found
}

fn manifest_of(fixture: &Path) -> Manifest {
    serde_json::from_slice(&fs::read(fixture.with_extension("json")).unwrap()).unwrap()
}

/// A copy of the fixture's state directory.
fn unpack(fixture: &Path) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let packed = fs::File::open(fixture.with_extension("tar.zst")).unwrap();
    tar::Archive::new(zstd::Decoder::new(packed).unwrap()).unpack(dir.path()).unwrap();
    dir
}

pub(super) fn with_agent(agent: &str) -> OpenOptions {
    let mut options = options(MAX);
    options.agent_id = agent.to_owned();
    options.config.retain = MAX;
    options
}

#[test]
fn there_is_a_fixture_of_every_version_and_architecture_that_ever_was() {
    let names: Vec<_> =
        fixtures().iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect();
    // Only ever added to.
    for name in ["0_1_0_early-x86_64-killed", "0_1_0_early-x86_64-orderly", "0_1_0-arm-killed", "0_1_0-arm-orderly"] {
        assert!(names.iter().any(|known| known == name), "{name} is missing in {names:?}");
    }
}

#[test]
fn an_outbox_of_an_earlier_version_or_another_machine_opens_whole_and_goes_on() {
    for fixture in fixtures() {
        println!("{}", fixture.display());
        let manifest = manifest_of(&fixture);
        let dir = unpack(&fixture);
        let tail = holds_what_it_says(dir.path(), &manifest);
        let tail = knows_its_packets(dir.path(), &manifest, tail);
        goes_on(dir.path(), &manifest, tail);
    }
}

/// Everything the manifest names is read back; the last sequence that is there.
fn holds_what_it_says(dir: &Path, manifest: &Manifest) -> u64 {
    let rig = Rig::open_with(dir, with_agent(&manifest.agent));
    assert_eq!(rig.outbox.positions().committed.0, manifest.committed);
    let identity = rig.outbox.identity();
    assert_eq!(identity.incarnation.to_hex(), *manifest.incarnations.last().unwrap(), "its life goes on");
    let known: Vec<_> = identity.known.iter().map(|life| life.to_hex()).collect();
    assert_eq!(known, manifest.incarnations);
    assert_eq!((&identity.cluster_id, identity.clean), (&manifest.cluster, manifest.clean));
    let damaged = fs::read_dir(dir.join("outbox/damaged")).map_or(0, Iterator::count);
    assert_eq!(damaged, manifest.damaged, "what was set aside stays, and nothing is added");

    let untold: u64 = manifest.untold.len() as u64;
    wait_until("what was refused is told", || rig.outbox.positions().durable.0 >= manifest.answered + untold);
    let items = read_all(&mut rig.outbox.reader(), manifest.kept_from - 1);
    let found: Vec<_> = items.iter().map(Expected::from).collect();
    let answered = manifest.items.iter().take_while(|item| item.last() <= manifest.answered).count();
    for (want, found) in manifest.items[..answered].iter().zip(&found) {
        assert_eq!(want, found);
    }
    assert!(found.len() >= answered, "{} of {answered} items are there", found.len());
    let (told, rest) = found[answered..].split_at(found.len() - answered - untold as usize);
    let (rest, told) = (told, rest);
    // What was never answered may be there, in its order and whole.
    assert!(rest.len() <= manifest.items.len() - answered);
    for (want, found) in manifest.items[answered..].iter().zip(rest) {
        assert_eq!(want, found);
    }
    for (want, found) in manifest.untold.iter().zip(told) {
        let Expected::Reading { source, kind, .. } = found else { panic!("{found:?}") };
        assert_eq!((source, *kind), (&want.0, crate::record::Kind::Gap as u8));
    }
    for (item, want) in items.iter().rev().zip(manifest.untold.iter().rev()) {
        let Item::Reading(stored) = item else { panic!("{item:?}") };
        let value: serde_json::Value = serde_json::from_slice(&stored.reading.value).unwrap();
        assert_eq!((value["reason"].as_str(), value["count"].as_u64()), (Some("drop_newest"), Some(want.1)));
    }
    for (path, length) in &manifest.files {
        assert_eq!(fs::metadata(dir.join("outbox").join(path)).unwrap().len(), *length, "{path}");
    }
    let last = rig.outbox.positions().durable.0;
    rig.close();
    last
}

/// Redeliveries are recognised, what was released is not. Returns the last sequence.
fn knows_its_packets(dir: &Path, manifest: &Manifest, mut last: u64) -> u64 {
    let rig = Rig::open_with(dir, with_agent(&manifest.agent));
    for (packets, outcome) in
        [(&manifest.known_packets, Outcome::Duplicate), (&manifest.forgotten_packets, Outcome::Appended)]
    {
        for known in packets {
            let (appender, mut answers) = rig.outbox.appender(&known.source.as_str().into());
            let held = rig.outbox.held().try_acquire(1).unwrap();
            let readings = vec![testing::reading_of(1, 50, false)];
            let arrival = Arrival { readings, packet: Some(known.packet(true)), receipt: Receipt(1), held };
            appender.submit(vec![arrival]);
            let answer = answers.blocking_recv().unwrap();
            assert_eq!(answer.done, [(Receipt(1), outcome)], "{known:?}");
            last += u64::from(outcome == Outcome::Appended);
        }
    }
    assert_eq!(rig.outbox.positions().durable.0, last);
    rig.close();
    last
}

/// Appends, trims and opens again.
fn goes_on(dir: &Path, manifest: &Manifest, last: u64) {
    let mut rig = Rig::open_with(dir, with_agent(&manifest.agent));
    let fresh = many(1, 100, 5000);
    rig.append_all(&fresh);
    trim(&rig.outbox, last + 40);
    rig.outbox.sync_position().unwrap();
    rig.close();
    let rig = Rig::open_with(dir, with_agent(&manifest.agent));
    assert_eq!(rig.outbox.positions(), Positions { committed: Sequence(last + 40), durable: Sequence(last + 100) });
    let items = read_all(&mut rig.outbox.reader(), last);
    assert!(readings(&items) == fresh && holes(&items).is_empty());
    assert_eq!(rig.outbox.identity().incarnation.to_hex(), *manifest.incarnations.last().unwrap());
    rig.close();
}
