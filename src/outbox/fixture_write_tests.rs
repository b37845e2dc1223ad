//! Writes the fixtures of this version (`scripts/outbox-fixture`): two outboxes with everything that an outbox can hold,
//! and manifests that come from what was submitted, not from what is read back.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc::UnboundedReceiver;

use super::fixture_tests::{Expected, KnownPacket, MAX, Manifest, with_agent};
use super::tests::{AGENT, wait_until};
use super::*;
use crate::config::ByteSize;
use crate::config::outbox::{Compression, WhenFull};
use crate::record::{Flags, Item, Kind, MqttOrigin, Stored};

const DIRECTORY: &str = "TEST_FIXTURE_DIRECTORY";
const CLUSTER: &str = "fixture-cluster";

fn place(end: &str) -> PathBuf {
    Path::new(&std::env::var(DIRECTORY).expect("scripts/outbox-fixture sets it")).join(end)
}

/// The story so far.
struct Story {
    dir: PathBuf,
    seed: u64,
    next_sequence: u64,
    items: BTreeMap<u64, Expected>,
    known: Vec<KnownPacket>,
    forgotten: Vec<KnownPacket>,
}

/// One opening of the outbox.
struct Session<'a> {
    story: &'a mut Story,
    outbox: Outbox,
    sources: BTreeMap<&'static str, (Appender, UnboundedReceiver<Answer>)>,
}

impl Story {
    fn begin(dir: PathBuf) -> Self {
        fs::create_dir_all(&dir).unwrap();
        Self { dir, seed: 0, next_sequence: 1, items: BTreeMap::new(), known: Vec::new(), forgotten: Vec::new() }
    }

    fn open(&mut self, change: impl FnOnce(&mut config::Outbox)) -> Session<'_> {
        let mut options = with_agent(AGENT);
        change(&mut options.config);
        let outbox = Outbox::open(&self.dir, options).unwrap();
        self.next_sequence = outbox.positions().durable.0 + 1;
        Session { story: self, outbox, sources: BTreeMap::new() }
    }

    /// A reading whose optional fields come and go.
    fn reading(&mut self, bytes: usize, compressible: bool) -> Reading {
        self.seed += 1;
        let seed = self.seed;
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        };
        let text = format!("{{\"n\":{seed},\"temperature\":21.5,\"unit\":\"°C\"}}");
        let value: Vec<u8> = match compressible {
            true => text.bytes().cycle().take(bytes).collect(),
            false => (0..bytes).map(|_| random()).collect(),
        };
        let given = |every: u64, text: &'static str| if seed % every == 0 { text.into() } else { "".into() };
        Reading {
            topic: if seed % 50 == 0 { "".into() } else { "telemetry".into() },
            device: format!("gerät-{}", seed % 5).into(),
            kind: if seed % 3 == 0 { Kind::Raw } else { Kind::Reading },
            flags: Flags((seed % 16) as u8),
            received: ReceiptTime {
                wall_ns: 1_750_000_000_000_000_000 + seed as i64 * 250_000_000,
                mono_ns: seed << 28,
            },
            device_time_ns: (seed % 4 == 0).then_some(-(seed as i64)),
            content_type: given(2, "application/json"),
            quality: given(7, "bad crc"),
            mqtt: (seed % 2 == 1).then(|| MqttOrigin {
                topic: "plant/a/line 1".into(),
                qos: Qos::from_number((seed % 3) as u8).expect("0 to 2"),
                retain: seed % 5 == 0,
                dup: seed % 11 == 0,
            }),
            replay_of: given(13, "0123456789abcdef-42"),
            value: Bytes::from(value),
        }
    }
}

impl Session<'_> {
    fn send(&mut self, source: &'static str, readings: Vec<Reading>, packet: Option<Packet>) {
        let held = self.outbox.held().try_acquire(1).unwrap();
        let made = || self.outbox.appender(&source.into());
        let (appender, _) = self.sources.entry(source).or_insert_with(made);
        appender.submit(vec![Arrival { readings, packet, receipt: Receipt(0), held }]);
    }

    fn outcome(&mut self, source: &'static str) -> Outcome {
        self.sources.get_mut(source).unwrap().1.blocking_recv().unwrap().done[0].1
    }

    /// Where readings that are appended now will stand.
    fn expect(&mut self, source: &'static str, readings: &[Reading]) {
        let identity = self.outbox.identity();
        for reading in readings {
            let stored = Stored {
                sequence: Sequence(self.story.next_sequence),
                incarnation: identity.incarnation,
                segment: identity.segment,
                boot_id: crate::clock::boot_id().into(),
                source: source.into(),
                reading: reading.clone(),
            };
            self.story.items.insert(self.story.next_sequence, Expected::of_reading(&stored));
            self.story.next_sequence += 1;
        }
    }

    fn append(&mut self, source: &'static str, readings: Vec<Reading>, packet: Option<KnownPacket>) {
        self.send(source, readings.clone(), packet.as_ref().map(|known| known.packet(false)));
        assert_eq!(self.outcome(source), Outcome::Appended);
        self.expect(source, &readings);
        self.story.known.extend(packet);
    }

    fn append_one(&mut self, source: &'static str, bytes: usize) {
        let reading = self.story.reading(bytes, true);
        self.append(source, vec![reading], None);
    }

    fn packet(&self, source: &str, id: u16) -> Option<KnownPacket> {
        Some(KnownPacket { source: source.to_owned(), id, qos: 1 + (id % 2) as u8, hash: u64::from(id) << 40 | 7 })
    }

    /// Enough to begin the next generation, if `until` is above the number of the one at hand.
    fn fill(&mut self, until: usize) {
        while self.outbox.shared.view().generations.len() < until {
            self.append_one("line", 30_000);
        }
    }

    /// What the outbox wrote by itself: gap records.
    fn absorb(&mut self, count: u64) {
        let upto = self.story.next_sequence + count - 1;
        wait_until("gap records are written", || self.outbox.positions().durable.0 >= upto);
        let budget = Budget { records_max: 100, bytes_max: 1 << 20 };
        let batch = self.outbox.reader().batch_after(Sequence(self.story.next_sequence - 1), budget).unwrap();
        assert_eq!(batch.items.len() as u64, count);
        for item in &batch.items {
            assert!(matches!(item, Item::Reading(stored) if stored.reading.kind == Kind::Gap), "{item:?}");
            self.story.items.insert(item.last().0, Expected::from(item));
        }
        self.story.next_sequence += count;
    }

    fn last_of_generation(&self, at: usize) -> u64 {
        self.outbox.shared.view().generations[at].end_sequence() - 1
    }

    fn trim(&self, upto: u64) {
        let committed = Committed::by_kafka(self.outbox.identity().incarnation, Sequence(upto));
        self.outbox.trim_through(committed);
        self.outbox.sync_position().unwrap();
    }

    fn close(self) {
        self.outbox.close(Duration::from_secs(60));
    }
}

/// Five small sessions that leave everything an outbox can hold. Returns the last sequence of the oldest generation.
fn tell(story: &mut Story) -> u64 {
    let first_end = first_session(story);
    // Another codec; then the newest generation is damaged.
    let mut session = story.open(|config| config.compression = Compression::Lz4);
    session.fill(4);
    for _ in 0..20 {
        session.append_one("plant", 120);
    }
    session.close();
    let directory = directory::Directory::new(story.dir.join("outbox"));
    let newest = directory.list().unwrap().pop().unwrap().id;
    for entry in fs::read_dir(directory.generation(newest)).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            fs::write(&path, vec![0xee; fs::metadata(&path).unwrap().len() as usize]).unwrap();
        }
    }
    // A new incarnation.
    let mut session = story.open(|_| {});
    for _ in 0..30 {
        session.append_one("line", 200);
    }
    session.close();
    // Full: the second generation is dropped, for the first is read and the others are protected.
    let mut session = story.open(|config| {
        (config.when_full, config.free_space_floor) = (WhenFull::DropOldest, ByteSize(u64::MAX));
    });
    let budget = Budget { records_max: 1, bytes_max: 1 };
    let mut reader = session.outbox.reader();
    reader.batch_after(Sequence(0), budget).unwrap();
    let from = session.last_of_generation(1) + 1;
    session.outbox.protect(Sequence(from), Sequence(u64::MAX));
    let unstored = session.story.reading(10, true);
    session.send("line", vec![unstored], None);
    let dropped = |note: &note::Note| &*note.reason == "drop_oldest";
    wait_until("a generation is dropped", || session.outbox.shared.view().notes.iter().any(dropped));
    session.close();
    drop(reader);
    // Full: new readings are refused.
    let mut session = story.open(|config| {
        (config.when_full, config.free_space_floor) = (WhenFull::DropNewest, ByteSize(u64::MAX));
    });
    refuse(&mut session, "line", 7);
    refuse(&mut session, "plant", 3);
    session.close();
    first_end
}

fn refuse(session: &mut Session<'_>, source: &'static str, count: usize) {
    for _ in 0..count {
        let reading = session.story.reading(100, true);
        session.send(source, vec![reading], None);
        assert_eq!(session.outcome(source), Outcome::Refused);
    }
}

fn first_session(story: &mut Story) -> u64 {
    let mut session = story.open(|_| {});
    let begins = IdentityChange::SessionBegins { ledger: Nonce([7; 8]), own: Nonce([9; 8]) };
    session.outbox.change_identity(begins).unwrap();
    session.outbox.change_identity(IdentityChange::Cluster(CLUSTER.to_owned())).unwrap();
    for id in 1..=60 {
        let bytes = usize::from(id) * 9;
        let reading = session.story.reading(bytes, true);
        let packet = session.packet("plant", id);
        session.append("plant", vec![reading], packet);
        session.append_one("line", 40);
    }
    for id in 61..=70 {
        let readings = (0..3).map(|_| session.story.reading(300, id % 2 == 0)).collect();
        let packet = session.packet("plant", id);
        session.append("plant", readings, packet);
    }
    // Split over several blocks, with and without a packet, and one that is a dead letter.
    let split = session.story.reading(40_000, false);
    let packet = session.packet("plant", 71);
    session.append("plant", vec![split], packet);
    let mut dead = session.story.reading(60_000, false);
    dead.flags = dead.flags.with(Flags::DEAD);
    session.append("line", vec![dead], None);
    // Only marked; released; a session that is over.
    let packet = session.packet("plant", 72);
    session.append("plant", Vec::new(), packet);
    for id in 1..=5 {
        let reading = session.story.reading(20, true);
        let packet = session.packet("annex", id);
        session.append("annex", vec![reading], packet);
    }
    session.sources["plant"].0.control(Control::Released((1..=10).collect()));
    session.sources["annex"].0.control(Control::SessionCleared);
    let gone = |known: &KnownPacket| known.source == "annex" || known.id <= 10;
    let (forgotten, known) = session.story.known.drain(..).partition(gone);
    (session.story.known, session.story.forgotten) = (known, forgotten);
    session.fill(2);
    for _ in 0..60 {
        session.append_one("plant", 150);
    }
    session.fill(3);
    for _ in 0..30 {
        session.append_one("line", 90);
    }
    let end = session.last_of_generation(0);
    session.close();
    end
}

impl Session<'_> {
    /// What is on the disk now, by the story; holes, which only the outbox knows, as it reads them.
    fn manifest(&mut self, end: &str, untold: Vec<(String, u64)>) -> Manifest {
        let (kept_from, committed) = {
            let view = self.outbox.shared.view();
            let oldest = view.generations.front().unwrap().first_sequence;
            (oldest.min(view.committed + 1), view.committed)
        };
        let answered = self.outbox.positions().durable.0;
        let found = tests::read_all(&mut self.outbox.reader(), kept_from - 1);
        let mut items = Vec::new();
        let mut holes = 0;
        for item in &found {
            match item {
                Item::Hole(_) => {
                    holes += 1;
                    items.push(Expected::from(item));
                }
                Item::Reading(stored) => {
                    let want = self.story.items.get(&stored.sequence.0).expect("it was submitted").clone();
                    assert_eq!(Expected::from(item), want);
                    items.push(want);
                }
            }
        }
        assert_eq!(holes, 3, "drop_oldest, damage, new_incarnation");
        let identity = self.outbox.identity();
        Manifest {
            written_by: env!("CARGO_PKG_VERSION").to_owned(),
            architecture: std::env::consts::ARCH.to_owned(),
            agent: AGENT.to_owned(),
            end: end.to_owned(),
            committed,
            answered,
            kept_from,
            incarnations: identity.known.iter().map(|life| life.to_hex()).collect(),
            cluster: identity.cluster_id,
            clean: identity.clean,
            damaged: fs::read_dir(self.story.dir.join("outbox/damaged")).unwrap().count(),
            files: files_of_delivery(&self.story.dir.join("outbox")),
            known_packets: self.story.known.clone(),
            forgotten_packets: self.story.forgotten.clone(),
            untold,
            items,
        }
    }
}

/// `hints` and `dead/`, if the tests of delivery have put them there.
fn files_of_delivery(outbox: &Path) -> Vec<(String, u64)> {
    let dead = fs::read_dir(outbox.join("dead")).into_iter().flatten();
    let dead = dead.map(|entry| format!("dead/{}", entry.unwrap().file_name().to_string_lossy()));
    let all = std::iter::once("hints".to_owned()).chain(dead);
    all.map(|name| (name.clone(), fs::metadata(outbox.join(&name)).unwrap().len())).collect()
}

fn write_manifest(end: &str, manifest: &Manifest) {
    let json = serde_json::to_string(manifest).unwrap();
    // One item a line: a change shows.
    let json = json.replace("{\"reading\":", "\n{\"reading\":").replace("{\"hole\":", "\n{\"hole\":");
    fs::write(place(end).with_extension("json"), json + "\n").unwrap();
}

#[test]
#[ignore = "writes a fixture: run by scripts/outbox-fixture"]
fn write_orderly() {
    let mut story = Story::begin(place("orderly"));
    let first_end = tell(&mut story);
    crate::delivery::write_fixture_files(&story.dir.join("outbox"));
    // Room again: what was refused is told; then full again, and not told.
    let mut session = story.open(|config| config.compression = Compression::None);
    session.absorb(2);
    for _ in 0..40 {
        session.append_one("line", 70);
    }
    session.trim(first_end / 2);
    session.close();
    let mut session = story.open(|config| {
        (config.when_full, config.free_space_floor) = (WhenFull::DropNewest, ByteSize(u64::MAX));
    });
    refuse(&mut session, "plant", 4);
    session.outbox.change_identity(IdentityChange::CleanEnd).unwrap();
    let manifest = session.manifest("orderly", vec![("plant".to_owned(), 4)]);
    session.close();
    write_manifest("orderly", &manifest);
}

#[test]
#[ignore = "writes a fixture and kills itself: run by scripts/outbox-fixture"]
fn write_killed() {
    let mut story = Story::begin(place("killed"));
    let first_end = tell(&mut story);
    crate::delivery::write_fixture_files(&story.dir.join("outbox"));
    let mut session = story.open(|config| config.retain = MAX);
    session.absorb(2);
    for _ in 0..40 {
        session.append_one("line", 70);
    }
    // The first generation is delivered and kept.
    session.trim(first_end);
    let mut manifest = session.manifest("killed", Vec::new());
    let readings: Vec<_> = (0..200).map(|_| session.story.reading(2000, false)).collect();
    session.expect("burst", &readings);
    manifest.items.extend(session.story.items.range(manifest.answered + 1..).map(|(_, item)| item.clone()));
    write_manifest("killed", &manifest);
    for reading in readings {
        session.send("burst", vec![reading], None);
    }
    // The first answer is due, the others are not awaited.
    session.outcome("burst");
    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).unwrap();
    std::thread::sleep(Duration::MAX);
}

#[test]
#[ignore = "packs what the others wrote: run by scripts/outbox-fixture"]
fn pack() {
    for end in ["orderly", "killed"] {
        let packed = fs::File::create(place(end).with_extension("tar.zst")).unwrap();
        let mut archive = tar::Builder::new(zstd::Encoder::new(packed, 19).unwrap());
        archive.mode(tar::HeaderMode::Deterministic);
        archive.append_dir_all(".", place(end)).unwrap();
        archive.into_inner().unwrap().finish().unwrap();
    }
}
