//! Serial sources on pseudo terminals, into a real outbox.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use tokio::io::AsyncWriteExt;
use tokio_serial::{SerialPort, SerialStream};

use super::Reader;
use super::icount::Counters;
use crate::config::intake::{Body, Decode, JsonDecode, Serial};
use crate::config::{ByteSize, Limit, Source, Span};
use crate::intake::losses::Reason;
use crate::intake::source::Input;
use crate::intake::testing::Bench;
use crate::record::{Flags, Kind};

/// A device on a pseudo terminal, under a name that stays when it is plugged in again.
struct Device {
    directory: tempfile::TempDir,
    /// The device's end, and ours kept open so that what is sent early is not lost.
    plugged: Option<(SerialStream, SerialStream)>,
}

impl Device {
    fn new() -> Self {
        let mut device = Self { directory: tempfile::tempdir().unwrap(), plugged: None };
        device.plug();
        device
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("meter")
    }

    fn plug(&mut self) {
        let (device, ours) = SerialStream::pair().unwrap();
        symlink(Path::new(&ours.name().unwrap()), self.path()).unwrap();
        self.plugged = Some((device, ours));
    }

    fn unplug(&mut self) {
        std::fs::remove_file(self.path()).unwrap();
        self.plugged = None;
    }

    async fn send(&mut self, bytes: &[u8]) {
        let (device, _) = self.plugged.as_mut().unwrap();
        device.write_all(bytes).await.unwrap();
        device.flush().await.unwrap();
    }

    fn settings(&self) -> Serial {
        let mut config = Serial { path: self.path(), keep_first_partial: true, ..Serial::default() };
        config.mapping.device = "meter-1".to_owned();
        config
    }
}

fn bench(config: Serial) -> Bench {
    Bench::new(Source::Serial(config), |_| {})
}

async fn up(bench: &Bench) {
    bench.status("up", |status| status.state == "up").await;
}

fn gaps(bench: &Bench) -> Vec<serde_json::Value> {
    let gaps = bench.stored().into_iter().filter(|stored| stored.reading.kind == Kind::Gap);
    gaps.map(|stored| serde_json::from_slice(&stored.reading.value).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lines_become_readings_whatever_bytes_they_hold() {
    let mut device = Device::new();
    let bench = bench(Serial { keep_first_partial: false, ..device.settings() });
    up(&bench).await;
    device.send(b"artial\none\nt").await;
    device.send(b"wo\0\xff\n").await;
    let stored = bench.stored_at_least(2).await;
    assert_eq!(stored[0].reading.value, "one");
    assert_eq!(&stored[1].reading.value[..], b"two\0\xff");
    assert_eq!((&*stored[0].reading.device, stored[0].reading.kind), ("meter-1", Kind::Raw));
    assert!(stored[0].reading.received.wall_ns > 0 && stored[0].reading.mqtt.is_none());
    assert_eq!(bench.source.status().received, 2);
    bench.source.stop().await;
    assert_eq!(bench.source.status().state, "stopped");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn json_lines_become_canonical_readings_and_bad_ones_are_kept() {
    let mut device = Device::new();
    let mut config = device.settings();
    config.mapping.body = Body::Reading;
    config.mapping.decode = Decode::Json(JsonDecode { device: Some("id".to_owned()), ..JsonDecode::default() });
    let bench = bench(config);
    up(&bench).await;
    device.send(b"{\"id\":\"m7\",\"power\":21.50}\r\n{\"id\":\n").await;
    let stored = bench.stored_at_least(2).await;
    assert_eq!(
        stored[0].reading.value,
        r#"{"device":"m7","metrics":[{"name":"power","value":21.50,"type":"f64"}],"quality":"good"}"#
    );
    assert_eq!((&*stored[0].reading.device, stored[0].reading.kind), ("m7", Kind::Reading));
    assert_eq!(stored[1].reading.value, "{\"id\":");
    assert!(stored[1].reading.flags.contains(Flags::BAD) && &*stored[1].reading.quality == "bad json");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unplugged_device_is_opened_again_and_a_gap_record_stands_between() {
    let mut device = Device::new();
    let bench = bench(device.settings());
    up(&bench).await;
    device.send(b"before\nunfin").await;
    bench.stored_at_least(1).await;
    device.unplug();
    let status = bench.status("down", |status| status.state == "down").await;
    assert!(status.last_error.is_some());
    device.plug();
    up(&bench).await;
    device.send(b"after\n").await;
    let stored = bench.stored_at_least(3).await;
    let kinds: Vec<_> = stored.iter().map(|stored| stored.reading.kind).collect();
    assert_eq!(kinds, [Kind::Raw, Kind::Gap, Kind::Raw]);
    assert_eq!(stored[2].reading.value, "after");
    assert_eq!((&*stored[1].reading.device, &*stored[1].reading.topic), ("meter-1", "telemetry"));
    let gap = &gaps(&bench)[0];
    assert_eq!((&gap["reason"], &gap["count"], &gap["source"]), (&"unplugged".into(), &1.into(), &"plant".into()));
    assert!(gap["since"].as_str() < gap["until"].as_str(), "{gap}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_device_is_no_failure_and_is_taken_when_it_comes() {
    let mut device = Device::new();
    device.unplug();
    let bench = bench(device.settings());
    let status = bench.status("down", |status| status.state == "down").await;
    assert!(status.last_error.unwrap().contains("No such file"));
    device.plug();
    up(&bench).await;
    device.send(b"here\n").await;
    bench.stored_at_least(1).await;
    assert_eq!(gaps(&bench), Vec::<serde_json::Value>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frame_that_is_too_long_becomes_a_gap_record() {
    let mut device = Device::new();
    let bench = bench(Serial { frame_bytes_max: ByteSize(16), ..device.settings() });
    up(&bench).await;
    device.send(b"short\n").await;
    device.send(&[b'x'; 100]).await;
    device.send(b"\nnext\n").await;
    let stored = bench.stored_at_least(3).await;
    let kinds: Vec<_> = stored.iter().map(|stored| stored.reading.kind).collect();
    assert_eq!(kinds, [Kind::Raw, Kind::Gap, Kind::Raw]);
    let gap = &gaps(&bench)[0];
    assert_eq!((&gap["reason"], &gap["bytes"]), (&"oversize".into(), &100.into()));
    assert_eq!(bench.source.status().rejected, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frame_above_a_quarter_of_the_outbox_becomes_a_gap_record_and_the_next_ones_flow() {
    let mut device = Device::new();
    let settings = Serial { frame_bytes_max: ByteSize::mib(4), ..device.settings() };
    let bench = Bench::new(Source::Serial(settings), |outbox| outbox.max_bytes = ByteSize::mib(8));
    up(&bench).await;
    device.send(b"first\n").await;
    let beside_value = bench.stored_at_least(1).await[0].reading.record_bytes() - 5;
    let most = (2 << 20) - beside_value;
    for bytes in [most, most + 1, 9] {
        device.send(&vec![b'x'; bytes]).await;
        device.send(b"\n").await;
    }
    let stored = bench.stored_at_least(4).await;
    let found: Vec<_> = stored.iter().map(|stored| (stored.reading.kind, stored.reading.value.len())).collect();
    assert_eq!((found[0], found[1], found[3]), ((Kind::Raw, 5), (Kind::Raw, most), (Kind::Raw, 9)));
    assert!(stored[1].reading.flags.contains(Flags::DEAD), "it waits to be a dead letter, whole");
    assert!(stored[1].reading.value.iter().all(|byte| *byte == b'x'));
    let gap = &gaps(&bench)[0];
    assert_eq!((&gap["reason"], &gap["bytes"]), (&"oversize".into(), &((2 << 20) + 1).into()));
    let status = bench.source.status();
    assert_eq!(status.rejected, 1);
    assert!(status.last_error.unwrap().contains("above a quarter of outbox.max_bytes"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_without_room_are_counted_and_told() {
    let mut device = Device::new();
    let bench = Bench::new(Source::Serial(device.settings()), |outbox| {
        outbox.held_bytes_max = ByteSize::kib(16);
        outbox.gather = Span::millis(300);
    });
    up(&bench).await;
    for number in 0..100u32 {
        device.send(format!("{number:03}{}\n", "x".repeat(500)).as_bytes()).await;
    }
    bench.status("all frames", |status| status.received == 100).await;
    bench.until("the gap record", |bench| !gaps(bench).is_empty()).await;
    let lost: u64 = gaps(&bench).iter().map(|gap| gap["count"].as_u64().unwrap()).sum();
    assert!(gaps(&bench).iter().all(|gap| gap["reason"] == "held_dropped"));
    let kept = bench.stored().iter().filter(|stored| stored.reading.kind == Kind::Raw).count() as u64;
    assert_eq!((kept + lost, bench.source.status().rejected), (100, lost));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_driver_ignores_and_who_holds_the_port_is_told() {
    let mut device = Device::new();
    // A pseudo terminal stays at 8N1 without an error.
    let bench = bench(Serial { line: "7E1".to_owned(), ..device.settings() });
    let status = bench.status("the alarm", |status| !status.alarms.is_empty()).await;
    assert!(status.alarms[0].contains("Seven") || status.alarms[0].contains("parity"), "{:?}", status.alarms);
    device.send(b"still read\n").await;
    bench.stored_at_least(1).await;
    let second = Bench::new(Source::Serial(device.settings()), |_| {});
    let busy = |status: &crate::status::SourceStatus| status.last_error.as_ref().is_some_and(|e| e.contains("in use"));
    second.status("the port is busy", busy).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silence_is_an_alarm_until_something_comes() {
    let mut device = Device::new();
    let bench = bench(Serial { silent_after: Limit::At(Span::millis(200)), ..device.settings() });
    let silent = |alarm: &String| alarm.contains("nothing was received");
    bench.status("the alarm", |status| status.alarms.iter().any(silent)).await;
    // A meter that speaks often enough.
    let mut ended = false;
    for _ in 0..100 {
        device.send(b"x\n").await;
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        ended = bench.source.status().alarms.is_empty();
        if ended {
            break;
        }
    }
    assert!(ended, "{:?}", bench.source.status());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_kernel_counted_becomes_a_gap_record() {
    let device = Device::new();
    let bench = bench(device.settings());
    let metrics = crate::metrics::IntakeMetrics::default().source("meter");
    let board = crate::intake::source::Board::new("meter", "serial", metrics);
    #[allow(clippy::disallowed_methods)]
    let (inputs, mut received) = tokio::sync::mpsc::unbounded_channel();
    let (_stop, stop) = tokio::sync::watch::channel(false);
    let mut reader = Reader::new(device.settings(), board.clone(), inputs, bench.outbox.held(), stop).unwrap();
    reader.count_errors(Counters { parity: 2, ..Counters::default() });
    reader.tell_losses();
    reader.count_errors(Counters { overrun: 3, frame: 1, ..Counters::default() });
    reader.tell_losses();
    for expected in [Reason::LineErrors, Reason::Overrun] {
        let Some(Input::Lost { reason, loss, .. }) = received.recv().await else { panic!("a loss expected") };
        assert_eq!(reason, expected);
        assert!(loss.count > 0 && !loss.counters.is_empty());
    }
    assert_eq!(board.metrics.line_errors.get(), 6);
    assert!(board.status().last_error.unwrap().contains("overrun"));
}
