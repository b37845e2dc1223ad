//! Whatever bytes are on the disk: every parser gives a value or an error, never a panic, and nothing larger than what it
//! was given. Arbitrary bytes, and valid ones changed under a good checksum, so that what is behind it is reached.

use std::fs;

use bytes::Bytes;
use proptest::prelude::*;

use super::block::{Decoder, Encoder, HEAD_BYTES, Head, RAW_BYTES_MAX};
use super::entry::{ALONE, Control as Said, Entry, Framed, Refusal, Segment, unknown_kind};
use super::note::Note;
use super::position::Position;
use super::reading::PacketMark;
use super::testing::reading_of;
use super::tests::*;
use super::wire::Cursor;
use super::*;
use crate::config::ByteSize;
use crate::config::outbox::Compression;

/// A change of some bytes.
#[derive(Debug, Clone)]
enum Change {
    Set(usize, u8),
    /// A length or count that promises much.
    Number(usize, u32),
    Cut(usize),
    Insert(usize, Vec<u8>),
    /// A piece of it, once more, somewhere else.
    Repeat(usize, usize, usize),
}

fn change() -> impl Strategy<Value = Change> {
    let at = || 0usize..4000;
    let large = prop_oneof![Just(u32::MAX), Just(1 << 31), Just(i32::MAX as u32), 0u32..200_000];
    prop_oneof![
        (at(), any::<u8>()).prop_map(|(at, byte)| Change::Set(at, byte)),
        (at(), large).prop_map(|(at, number)| Change::Number(at, number)),
        at().prop_map(Change::Cut),
        (at(), prop::collection::vec(any::<u8>(), 1..40)).prop_map(|(at, bytes)| Change::Insert(at, bytes)),
        (at(), 1usize..60, at()).prop_map(|(from, count, to)| Change::Repeat(from, count, to)),
    ]
}

fn changed(mut bytes: Vec<u8>, changes: &[Change]) -> Vec<u8> {
    for change in changes {
        let len = bytes.len().max(1);
        match change {
            Change::Set(at, byte) => {
                if let Some(old) = bytes.get_mut(at % len) {
                    *old = *byte;
                }
            }
            Change::Number(at, number) => {
                for (old, new) in bytes.iter_mut().skip(at % len).zip(number.to_le_bytes()) {
                    *old = new;
                }
            }
            Change::Cut(at) => bytes.truncate(at % len),
            Change::Insert(at, new) => {
                let at = (at % len).min(bytes.len());
                bytes.splice(at..at, new.iter().copied());
            }
            Change::Repeat(from, count, to) => {
                let from = (from % len).min(bytes.len());
                let piece = bytes[from..(from + count).min(bytes.len())].to_vec();
                let to = (to % len).min(bytes.len());
                bytes.splice(to..to, piece);
            }
        }
    }
    bytes
}

/// One of every kind of entry, as they stand in a block.
fn entries() -> Vec<u8> {
    let source = || SourceId::from("plant");
    let (incarnation, nonce) = (Incarnation([3; 16]), Nonce([4; 8]));
    let mark = |id| PacketMark { id, qos: Qos::ExactlyOnce, hash: u64::from(id) << 33 };
    let segment = Segment {
        first_index: 7,
        first_sequence: 5,
        incarnation_number: 1,
        incarnation,
        nonce,
        boot_id: "boot".into(),
    };
    let refusal = Refusal {
        why: entry::Why::ShareMax,
        total: 9,
        bytes: 900,
        told: 3,
        told_bytes: 300,
        topic: "telemetry".into(),
    };
    let note = Note {
        from: 3,
        to: 9,
        incarnation,
        segment: nonce,
        boot_id: "boot".into(),
        noted: ReceiptTime::default(),
        reason: "drop_oldest".into(),
        bytes: 7,
        sources: vec![(source(), 4), ("line".into(), 3)],
        previous: Some(incarnation),
    };
    let controls = [
        Said::SnapshotBegin,
        Said::Segment(segment),
        Said::Note(note),
        Said::Refused(source(), refusal),
        Said::Table(source(), (1..20).map(mark).collect()),
        Said::SnapshotEnd,
        Said::Mark(source(), mark(20)),
        Said::Released(source(), (1..9).collect()),
        Said::SessionCleared(source()),
    ];
    let mut packer = packer::Packer::new(Compression::None, 15_000, 1, 1);
    for control in &controls {
        packer.push_control(control, ALONE);
    }
    let packet = Packet { id: 21, qos: Qos::AtLeastOnce, dup: false, hash: 1, dedup: true };
    for seed in 0..8 {
        packer.push_arrival(&source(), &[reading_of(seed, 60, false)], Some(&packet));
    }
    packer.flush();
    let block = packer.take().expect("everything fits one block");
    assert!(packer.take().is_none());
    block.bytes[HEAD_BYTES..].to_vec()
}

/// Reads everything there is in the raw bytes of a block.
fn read_entries(raw: &Bytes) -> usize {
    let (mut at, mut count) = (0, 0);
    while let Some(framed) = Framed::at(raw, at) {
        assert!(framed.next > at && framed.next <= raw.len());
        let body = framed.next - at;
        match framed.decode(raw) {
            Some(Entry::Control(Said::Table(_, marks))) => assert!(marks.len() <= body),
            Some(Entry::Control(Said::Released(_, ids))) => assert!(ids.len() <= body),
            Some(Entry::Control(Said::Note(note))) => assert!(note.sources.len() <= body),
            Some(Entry::Reading(entry)) => assert!(entry.reading.value.len() <= body),
            _ => {}
        }
        (at, count) = (framed.next, count + 1);
    }
    let _ = unknown_kind(raw);
    count
}

/// A block of these raw bytes, whatever its head says.
fn block(head: Head, raw: &[u8]) -> Vec<u8> {
    Encoder::new(Compression::Zstd).encode(head, raw)
}

fn seed_of_tests() -> ProptestConfig {
    ProptestConfig::with_cases(400)
}

#[test]
fn the_valid_bytes_are_valid() {
    assert_eq!(read_entries(&Bytes::from(entries())), 17);
}

proptest! {
    #![proptest_config(seed_of_tests())]

    #[test]
    fn entries_of_any_bytes_give_values_or_nothing(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        read_entries(&Bytes::from(bytes.clone()));
        let _ = reading::get(Cursor::whole(&Bytes::from(bytes)));
    }

    #[test]
    fn changed_entries_give_values_or_nothing(changes in prop::collection::vec(change(), 1..6)) {
        let raw = changed(entries(), &changes);
        read_entries(&Bytes::from(raw));
    }

    #[test]
    fn changed_readings_give_values_or_nothing(changes in prop::collection::vec(change(), 1..6), seed in any::<u64>()) {
        let mut raw = Vec::new();
        reading::put(&mut raw, &"plant".into(), None, &reading_of(seed, 100, false));
        let raw = Bytes::from(changed(raw, &changes));
        if let Some(entry) = reading::get(Cursor::whole(&raw)) {
            prop_assert!(entry.reading.record_bytes() <= 3 * raw.len() + 400);
        }
    }

    #[test]
    fn changed_blocks_unpack_within_bounds_or_not_at_all(
        changes in prop::collection::vec(change(), 1..6), codec in 0usize..3,
    ) {
        let codec = [Compression::Zstd, Compression::Lz4, Compression::None][codec];
        let head = Head { first_index: 1, first_sequence: 1, entries: 17, sequences: 8 };
        let mut bytes = changed(Encoder::new(codec).encode(head, &entries()), &changes);
        if bytes.len() > 5 {
            let mut hasher = crc32fast::Hasher::new();
            hasher.update(&bytes[..1]);
            hasher.update(&bytes[5..]);
            let sum = hasher.finalize().to_le_bytes();
            bytes[1..5].copy_from_slice(&sum);
        }
        if let Ok((_, raw)) = Decoder::default().decode(&bytes) {
            prop_assert!(raw.len() <= RAW_BYTES_MAX);
            read_entries(&raw);
        }
    }

    #[test]
    fn small_files_of_any_bytes_are_read_or_not(
        changes in prop::collection::vec(change(), 0..6), any_bytes in prop::collection::vec(any::<u8>(), 0..9000),
        which in 0usize..2,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let state = serde_json::to_vec(&state::State::new("gw-1")).unwrap();
        let summary = summary::Summary::starting_at(7, 5);
        summary.write(&path).unwrap();
        let sealed = fs::read_to_string(&path).unwrap();
        let json = unseal(&sealed).unwrap().as_bytes().to_vec();
        for valid in [state, json, vec![1; 33], format::stamp().into_bytes()] {
            let bytes = if which == 0 { changed(valid, &changes) } else { any_bytes.clone() };
            let _ = Position::decode(&bytes);
            let _ = format::of_json(&bytes);
            // Behind the checksum of a slot, of a seal, and bare.
            if bytes.len() <= slots::PAYLOAD_BYTES_MAX {
                fs::remove_file(&path).unwrap();
                let (mut slots, _) = slots::Slots::open(&path).unwrap();
                slots.write(&bytes).unwrap();
                let _ = state::read(&path).unwrap();
            }
            if let Ok(text) = String::from_utf8(bytes.clone()) {
                fs::write(&path, seal(&text)).unwrap();
                let _ = summary::Summary::read(&path);
            }
            fs::write(&path, &bytes).unwrap();
            let _ = (summary::Summary::read(&path), state::read(&path).unwrap(), slots::read(&path).unwrap());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(80))]

    /// A whole outbox whose newest blocks are strange, under good checksums: it opens or is refused, and is read.
    #[test]
    fn an_outbox_with_strange_blocks_opens_or_is_refused(
        changes in prop::collection::vec(change(), 0..4),
        first_index in prop_oneof![Just(0u64), Just(u64::MAX), Just(40), 0u64..100],
        first_sequence in prop_oneof![Just(0u64), Just(u64::MAX), Just(12), 0u64..100],
        entries_told in prop_oneof![Just(0u32), Just(u32::MAX), Just(17)],
        sequences_told in prop_oneof![Just(0u32), Just(u32::MAX), Just(8)],
        key in prop_oneof![Just(None), Just(Some(u64::MAX)), (0u64..100).prop_map(Some)],
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut rig = Rig::open_with(dir.path(), options(ByteSize::mib(8)));
        rig.append_all(&many(1, 10, 100));
        rig.close();
        let directory = directory::Directory::new(dir.path().join("outbox"));
        let id = directory.list().unwrap()[0].id;
        let generation = format_tests::open_generation(&directory, id);
        let head = Head { first_index, first_sequence, entries: entries_told, sequences: sequences_told };
        generation.insert(key.unwrap_or(first_index), &block(head, &changed(entries(), &changes))).unwrap();
        generation.sync().unwrap();
        generation.close();
        match Outbox::open(dir.path(), options(ByteSize::mib(8))) {
            Ok(outbox) => {
                let mut reader = outbox.reader();
                let mut last = 0;
                // A bound on the test only: an answer of the reader always moves on.
                for _ in 0..200 {
                    let Ok(batch) = reader.batch_after(Sequence(last), SOME) else { break };
                    let Some(item) = batch.items.last() else { break };
                    prop_assert!(item.last().0 > last);
                    last = item.last().0;
                }
                let state = outbox.status().state;
                prop_assert!(!state.contains("died"), "{state}");
                drop(reader);
                outbox.close(Duration::from_secs(30));
            }
            Err(OpenError::Foreign(why)) => prop_assert!(why.contains("later"), "{why}"),
            Err(error) => prop_assert!(false, "{error}"),
        }
    }
}
