//! Every kind of fault must be seen: each test breaks one thing.

use super::super::book::Book;
use super::*;
use crate::simulate::payload::Device;
use crate::simulate::{Event, Observer};

const METER: &str = "meter-1";

fn payload(device: &str, counter: u64) -> Vec<u8> {
    Device::new(device.to_owned(), 1).payload(counter, 0).into_bytes()
}

/// Two MQTT devices with three readings each (the last of `b` not acknowledged), and a meter with four.
fn book() -> Book {
    let book = Book::new(METER);
    for device in ["a", "b"] {
        for counter in 1..=3 {
            book.on(Event::Issued { device, counter, payload: &payload(device, counter) });
            if (device, counter) != ("b", 3) {
                book.on(Event::Acknowledged { device, counter });
            }
        }
    }
    for counter in 1..=4 {
        book.on(Event::Issued { device: METER, counter, payload: &payload(METER, counter) });
        book.on(Event::Written { device: METER, counter, first: counter == 1 });
    }
    book
}

fn record(sequence: u64, device: &str, counter: u64) -> Record {
    Record {
        place: ("telemetry".to_owned(), 0, sequence as i64),
        dead_letter: false,
        fp: Some(Fp { incarnation: [7; 16], sequence, kind: Kind::Raw }),
        key: device.as_bytes().to_vec(),
        value: payload(device, counter),
    }
}

/// What a daemon without fault delivers: all that is owed.
fn delivered() -> Vec<Record> {
    let of = |device, counters: std::ops::RangeInclusive<u64>| counters.map(move |counter| (device, counter));
    let all = of("a", 1..=3).chain(of("b", 1..=2)).chain(of(METER, 2..=4));
    all.zip(1..).map(|((device, counter), sequence)| record(sequence, device, counter)).collect()
}

fn verdict(records: &[Record]) -> Verdict {
    tally(&book().snapshot(), records)
}

#[test]
fn all_that_is_owed_makes_a_clean_verdict() {
    let verdict = verdict(&delivered());
    assert!(verdict.is_clean(), "{verdict:?}");
    assert_eq!(verdict.to_string(), "result: issued=10 acknowledged=8 delivered=8 lost=0 duplicated=0 reordered=0");
    assert_eq!((verdict.unheard, verdict.parts), (1, [(6, 5, 5), (4, 3, 3)]));
}

#[test]
fn a_reading_that_is_missing_is_lost() {
    for missing in 0..delivered().len() {
        let mut records = delivered();
        records.remove(missing);
        let verdict = verdict(&records);
        assert_eq!(verdict.lost, 1, "{missing}");
        assert!(!verdict.is_clean());
    }
}

#[test]
fn a_changed_reading_is_lost_and_strange() {
    let mut records = delivered();
    records[0].value = payload("a", 1).iter().map(|byte| if *byte == b'.' { b'5' } else { *byte }).collect();
    let verdict = verdict(&records);
    assert_eq!((verdict.lost, verdict.strange), (1, 1));
}

#[test]
fn a_reading_under_a_foreign_key_is_strange() {
    let mut records = delivered();
    records[0].key = b"b".to_vec();
    assert_eq!(verdict(&records).strange, 1);
}

#[test]
fn a_second_copy_is_a_duplicate_unless_the_device_published_twice() {
    let mut records = delivered();
    records.push(record(9, "a", 3));
    assert_eq!(verdict(&records).duplicated, 1);

    let book = book();
    book.on(Event::Resent { device: "a", counter: 3 });
    let once = tally(&book.snapshot(), &records);
    assert_eq!((once.duplicated, once.published_twice), (0, 1));
    records.push(record(10, "a", 3));
    assert_eq!(tally(&book.snapshot(), &records).duplicated, 1, "a third copy is no one's excuse");
}

#[test]
fn a_reading_after_a_later_one_is_out_of_order() {
    let mut records = delivered();
    records.swap(0, 1);
    assert_eq!(verdict(&records).reordered, 1);
}

#[test]
fn a_number_that_nothing_accounts_for_is_a_fault_and_a_gap_record_accounts_for_it() {
    let mut records = delivered();
    for record in &mut records[5..] {
        record.fp.as_mut().unwrap().sequence += 10;
    }
    assert_eq!(verdict(&records).sequence_faults, 1);
    let gap = Record {
        fp: Some(Fp { incarnation: [7; 16], sequence: 15, kind: Kind::Gap }),
        key: b"gw".to_vec(),
        value: br#"{"from":6,"to":15,"reason":"drop_oldest"}"#.to_vec(),
        ..record(15, "a", 1)
    };
    records.insert(5, gap.clone());
    let plain = verdict(&records);
    assert_eq!((plain.sequence_faults, plain.gaps), (0, 1));

    // With ranges it accounts for these alone.
    records[5].value = br#"{"from":6,"to":15,"ranges":[[6,8],[10,15]],"reason":"purge"}"#.to_vec();
    assert_eq!(verdict(&records).sequence_faults, 1);
    records.insert(
        5,
        Record { fp: Some(Fp { incarnation: [7; 16], sequence: 9, kind: Kind::Gap }), value: b"{}".to_vec(), ..gap },
    );
    assert_eq!(verdict(&records).sequence_faults, 0);
}

#[test]
fn the_first_number_is_one_and_each_record_carries_one() {
    let mut records = delivered();
    for record in &mut records {
        record.fp.as_mut().unwrap().sequence += 1;
    }
    assert_eq!(verdict(&records).sequence_faults, 1);
    records[3].fp = None;
    assert!(verdict(&records).sequence_faults >= 2);
}

#[test]
fn the_header_is_read_by_its_layout() {
    let mut header = vec![3; 16];
    header.extend(184_467u64.to_be_bytes());
    header.extend([9; 8]);
    header.extend([2, 4]);
    let fp = Fp::parse(&header).unwrap();
    assert_eq!(fp, Fp { incarnation: [3; 16], sequence: 184_467, kind: Kind::Gap });
    assert_eq!(Fp::parse(&header[1..]), None);
    header[32] = 9;
    assert_eq!(Fp::parse(&header), None);
}
