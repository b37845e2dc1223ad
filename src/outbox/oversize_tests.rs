//! Large readings: split, stored whole, read back whole, whatever their size; and what is too large for the disk.

use super::testing::reading_of;
use super::tests::*;
use super::*;
use crate::config::ByteSize;
use crate::record::{Flags, Item};

const MIN: ByteSize = ByteSize::mib(8);

/// A reading of so many record bytes, of random bytes, marked dead.
fn dead(seed: u64, record_bytes: u64) -> Reading {
    let mut reading = reading_of(seed, 0, true);
    let bytes = record_bytes as usize - reading.record_bytes();
    reading.value = reading_of(seed, bytes, true).value;
    reading.flags = reading.flags.with(Flags::DEAD);
    assert_eq!(reading.record_bytes() as u64, record_bytes);
    reading
}

#[test]
fn a_large_reading_is_split_and_read_back_whole_with_its_mark_and_its_packet() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::open_with(dir.path(), options(MIN));
    // Around the size of a block, of a generation (1 MiB raw here), and the most that is taken.
    let cap = generation::block_bytes_max(generation::SEGMENT_BYTES[1]) as u64;
    let most = rig.outbox.arrival_bytes_max();
    let sizes = [cap - 1, cap, cap + 1, 2 * cap, 100_000, (1 << 20) + 1, most];
    let mut wanted = Vec::new();
    for (n, size) in (1..).zip(sizes) {
        let reading = dead(n, size);
        let packet = Packet { id: n as u16, qos: Qos::AtLeastOnce, dup: false, hash: n, dedup: true };
        assert_eq!(rig.append(reading.clone(), Some(packet)), Outcome::Appended, "{size}");
        assert_eq!(rig.append(reading.clone(), Some(Packet { dup: true, ..packet })), Outcome::Duplicate, "{size}");
        let small = reading_of(n, 40, false);
        assert_eq!(rig.append(small.clone(), None), Outcome::Appended);
        wanted.extend([reading, small]);
        // Room for the next one.
        if size > 500_000 {
            let upto = rig.outbox.positions().durable;
            let items = read_all(&mut rig.outbox.reader(), rig.outbox.positions().committed.0);
            assert!(readings(&items) == wanted, "{size}");
            wanted.clear();
            trim(&rig.outbox, upto.0);
        }
        if size == 100_000 {
            rig.close();
            rig = Rig::open_with(dir.path(), options(MIN));
        }
    }
    rig.close();
}

#[test]
fn the_largest_readings_pass_one_after_the_other_through_the_smallest_outbox() {
    for when_full in [config::outbox::WhenFull::Block, config::outbox::WhenFull::DropNewest] {
        let dir = tempfile::tempdir().unwrap();
        let mut options = options(MIN);
        options.config.when_full = when_full;
        let mut rig = Rig::open_with(dir.path(), options);
        let most = rig.outbox.arrival_bytes_max();
        let mut reader = rig.outbox.reader();
        for n in 1..=8 {
            assert_eq!(rig.append(dead(n, most), None), Outcome::Appended, "{n}: {:?}", rig.outbox.status());
            let batch = reader.batch_after(Sequence(n - 1), Budget { records_max: 9, bytes_max: 1 }).unwrap();
            let [Item::Reading(stored)] = &batch.items[..] else { panic!("{n}: {:?}", batch.items.len()) };
            assert!(stored.reading == dead(n, most), "{n}");
            trim(&rig.outbox, n);
        }
        drop(reader);
        rig.close();
    }
}

#[test]
fn what_is_larger_than_the_whole_outbox_is_refused_counted_and_blocks_nobody() {
    let dir = tempfile::tempdir().unwrap();
    // Under `block`, where waiting for room would be waiting for ever.
    let mut rig = Rig::open_with(dir.path(), options(MIN));
    let packet = Packet { id: 1, qos: Qos::ExactlyOnce, dup: false, hash: 1, dedup: true };
    assert_eq!(rig.append(dead(1, 9 << 20), Some(packet)), Outcome::Refused);
    assert_eq!(rig.append(reading_of(2, 40, false), None), Outcome::Appended);
    wait_until("a gap record tells it", || rig.outbox.positions().durable.0 >= 2);
    let items = read_all(&mut rig.outbox.reader(), 0);
    let gap = readings(&items).into_iter().find(|reading| reading.kind == crate::record::Kind::Gap).unwrap();
    let value: serde_json::Value = serde_json::from_slice(&gap.value).unwrap();
    assert_eq!((value["count"].as_u64(), value["bytes"].as_u64()), (Some(1), Some(9 << 20)));
    wait_until("it is counted", || rig.outbox.status().dropped == 1);
    rig.close();
}
