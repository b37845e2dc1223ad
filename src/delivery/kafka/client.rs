//! The raw transactional producer: the only file of delivery with `unsafe`.
//!
//! Why not the safe wrapper: its `commit_transaction` takes at least 100 ms, and the interceptor that counts `EndTxn`
//! requests (API key 26) can only be added inside `on_new`, on the native configuration.
//!
//! - One thread `kafka-events` serves librdkafka's main queue: delivery reports, errors, logs, statistics.
//! - The opaque value of a message is the number of its target partition, never a pointer.
//! - No callback of ours may unwind: the two that librdkafka calls only touch an atomic.
//! - Error codes are handled as numbers: a broker may answer codes that the bundled enumeration does not know.
//! - `rd_kafka_message_produce_errstr` is never called: with event delivery reports it returned garbage.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rdkafka_sys as sys;
use sys::{rd_kafka_resp_err_t as RespErr, rd_kafka_vtype_t as V};

use super::code::{ApiError, Code};
use crate::delivery::encode::HeaderList;

const ERROR_TEXT_BYTES: usize = 512;
const API_KEY_END_TXN: i16 = 26;
/// A client that is not gone after this is left to itself, and counted.
const DESTROY_WITHIN: Duration = Duration::from_secs(10);

/// What the event thread learns, for whoever wants to know: logs, statistics, errors.
pub(super) trait Events: Send + Sync + 'static {
    /// A log line of librdkafka: syslog level, facility, text.
    fn log(&self, level: i32, facility: &str, text: &str);
    /// A client-wide error.
    fn error(&self, code: Code, text: &str);
    /// Statistics, JSON.
    fn statistics(&self, json: &[u8]);
    /// A client did not end in time and was abandoned.
    fn abandoned(&self);
}

/// Delivery reports of the transaction under way.
#[derive(Debug, Default)]
pub(super) struct Reports {
    /// Messages acknowledged.
    pub(super) acknowledged: u64,
    /// Messages that failed.
    pub(super) failed: u64,
    /// The first failure that tells a cause: code and target.
    pub(super) first_error: Option<(Code, usize)>,
    /// When the first report came.
    pub(super) first_at: Option<Instant>,
    /// Last acknowledged offset by target; -1 if none.
    pub(super) offsets: Vec<i64>,
}

struct Shared {
    end_txn_sent: AtomicU64,
    stop: AtomicBool,
    reports: Mutex<Reports>,
    reported: Condvar,
    events: Arc<dyn Events>,
}

impl Shared {
    fn reports(&self) -> MutexGuard<'_, Reports> {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A native handle that may travel between threads.
struct Handle<T>(*mut T);
// SAFETY: librdkafka's client, queue and topic objects are internally locked and documented as thread-safe.
#[allow(unsafe_code)]
unsafe impl<T> Send for Handle<T> {}

/// A topic of one client; destroyed with it.
pub(super) struct Topic(Handle<sys::rd_kafka_topic_t>);

/// One message.
pub(super) struct Message<'a> {
    pub(super) topic: &'a Topic,
    pub(super) partition: i32,
    pub(super) key: &'a [u8],
    pub(super) value: Option<&'a [u8]>,
    /// `None`: now.
    pub(super) timestamp_ms: Option<i64>,
    pub(super) headers: Option<&'a HeaderList>,
    /// Given back with the delivery report.
    pub(super) target: usize,
}

/// A transactional producer. Its topics must be dropped before it; [`super::Kafka`] keeps them together.
pub(super) struct Client {
    native: Handle<sys::rd_kafka_t>,
    queue: Handle<sys::rd_kafka_queue_t>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[allow(unsafe_code)]
unsafe extern "C" fn on_request_sent(
    _rk: *mut sys::rd_kafka_t,
    _socket: c_int,
    _broker: *const c_char,
    _broker_id: i32,
    api_key: i16,
    _version: i16,
    _correlation: i32,
    _size: usize,
    opaque: *mut c_void,
) -> RespErr {
    if api_key == API_KEY_END_TXN {
        // SAFETY: `opaque` is the counter inside the `Shared` whose Arc `destroy` keeps until the client is gone.
        unsafe { (*opaque.cast::<AtomicU64>()).fetch_add(1, Ordering::SeqCst) };
    }
    RespErr::RD_KAFKA_RESP_ERR_NO_ERROR
}

#[allow(unsafe_code)]
unsafe extern "C" fn on_new(
    rk: *mut sys::rd_kafka_t,
    _conf: *const sys::rd_kafka_conf_t,
    opaque: *mut c_void,
    _error: *mut c_char,
    _error_bytes: usize,
) -> RespErr {
    // SAFETY: called by rd_kafka_new with the client that is being made, the only place where this is allowed.
    unsafe { sys::rd_kafka_interceptor_add_on_request_sent(rk, c"fieldpost".as_ptr(), Some(on_request_sent), opaque) }
}

#[allow(unsafe_code)]
fn text(pointer: *const c_char) -> String {
    if pointer.is_null() {
        return String::new();
    }
    // SAFETY: librdkafka hands out NUL-terminated strings that live at least until the call that owns them ends.
    unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned()
}

/// Takes the error object apart and frees it.
#[allow(unsafe_code)]
fn check(error: *mut sys::rd_kafka_error_t) -> Result<(), ApiError> {
    type CodeOf = unsafe extern "C" fn(*const sys::rd_kafka_error_t) -> i32;
    if error.is_null() {
        return Ok(());
    }
    // SAFETY: a non-null error is ours until destroyed. The function is called as returning i32, the ABI of a C enum, so
    // that a code unknown to the Rust enumeration is no undefined behaviour.
    unsafe {
        let code_of = std::mem::transmute::<unsafe extern "C" fn(*const sys::rd_kafka_error_t) -> RespErr, CodeOf>(
            sys::rd_kafka_error_code,
        );
        let result = ApiError {
            code: Code(code_of(error)),
            fatal: sys::rd_kafka_error_is_fatal(error) != 0,
            retriable: sys::rd_kafka_error_is_retriable(error) != 0,
            abortable: sys::rd_kafka_error_txn_requires_abort(error) != 0,
            text: text(sys::rd_kafka_error_string(error)),
        };
        sys::rd_kafka_error_destroy(error);
        Err(result)
    }
}

/// The name that librdkafka gives a code, as in `MSG_SIZE_TOO_LARGE`.
#[allow(unsafe_code)]
pub(super) fn code_name(code: Code) -> String {
    type NameOf = unsafe extern "C" fn(i32) -> *const c_char;
    // SAFETY: as in `check`; the function answers unknown numbers with a text, too.
    unsafe {
        let name_of =
            std::mem::transmute::<unsafe extern "C" fn(RespErr) -> *const c_char, NameOf>(sys::rd_kafka_err2name);
        text(name_of(code.0))
    }
}

fn millis(time: Duration) -> c_int {
    c_int::try_from(time.as_millis()).unwrap_or(c_int::MAX)
}

/// Makes a native configuration; with it the caller owns it.
#[allow(unsafe_code)]
fn configuration(settings: &[(String, String)], counter: *mut c_void) -> Result<*mut sys::rd_kafka_conf_t, String> {
    let mut error = [0 as c_char; ERROR_TEXT_BYTES];
    // SAFETY: every pointer outlives its call; the configuration is destroyed on the error path, else handed on.
    unsafe {
        let conf = sys::rd_kafka_conf_new();
        for (name, value) in settings {
            let set = match (CString::new(name.as_str()), CString::new(value.as_str())) {
                (Ok(name), Ok(value)) => {
                    sys::rd_kafka_conf_set(conf, name.as_ptr(), value.as_ptr(), error.as_mut_ptr(), error.len())
                        == sys::rd_kafka_conf_res_t::RD_KAFKA_CONF_OK
                }
                _ => false,
            };
            if !set {
                sys::rd_kafka_conf_destroy(conf);
                return Err(format!("librdkafka refuses {name}: {}", text(error.as_ptr())));
            }
        }
        let events =
            sys::RD_KAFKA_EVENT_DR | sys::RD_KAFKA_EVENT_ERROR | sys::RD_KAFKA_EVENT_LOG | sys::RD_KAFKA_EVENT_STATS;
        sys::rd_kafka_conf_set_events(conf, events);
        sys::rd_kafka_conf_interceptor_add_on_new(conf, c"fieldpost".as_ptr(), Some(on_new), counter);
        Ok(conf)
    }
}

impl Client {
    /// A client with these settings. Does not connect yet.
    #[allow(unsafe_code)]
    pub(super) fn new(settings: &[(String, String)], events: Arc<dyn Events>) -> Result<Self, String> {
        let shared = Arc::new(Shared {
            end_txn_sent: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            reports: Mutex::default(),
            reported: Condvar::new(),
            events,
        });
        let counter = std::ptr::from_ref(&shared.end_txn_sent).cast_mut().cast::<c_void>();
        let conf = configuration(settings, counter)?;
        let mut error = [0 as c_char; ERROR_TEXT_BYTES];
        // SAFETY: rd_kafka_new takes the configuration over on success and leaves it to us on failure. The main queue's
        // reference is released by `destroy`.
        let (native, queue) = unsafe {
            let native =
                sys::rd_kafka_new(sys::rd_kafka_type_t::RD_KAFKA_PRODUCER, conf, error.as_mut_ptr(), error.len());
            if native.is_null() {
                sys::rd_kafka_conf_destroy(conf);
                return Err(text(error.as_ptr()));
            }
            let queue = sys::rd_kafka_queue_get_main(native);
            sys::rd_kafka_set_log_queue(native, queue);
            (Handle(native), Handle(queue))
        };
        let mut client = Self { native, queue, shared, thread: None };
        let (queue, shared) = (Handle(client.queue.0), client.shared.clone());
        let spawned =
            std::thread::Builder::new().name("kafka-events".to_owned()).spawn(move || serve_events(&queue, &shared));
        match spawned {
            Ok(thread) => {
                client.thread = Some(thread);
                Ok(client)
            }
            Err(error) => Err(format!("cannot start the thread kafka-events: {error}")),
        }
    }

    /// One slice of `init_transactions`.
    #[allow(unsafe_code)]
    pub(super) fn init_transactions(&self, slice: Duration) -> Result<(), ApiError> {
        // SAFETY: the client lives as long as `self`.
        check(unsafe { sys::rd_kafka_init_transactions(self.native.0, millis(slice)) })
    }

    /// Begins a transaction; the reports start anew.
    #[allow(unsafe_code)]
    pub(super) fn begin(&self, targets: usize) -> Result<(), ApiError> {
        *self.shared.reports() = Reports { offsets: vec![-1; targets], ..Reports::default() };
        // SAFETY: the client lives as long as `self`.
        check(unsafe { sys::rd_kafka_begin_transaction(self.native.0) })
    }

    /// One slice of committing.
    #[allow(unsafe_code)]
    pub(super) fn commit(&self, slice: Duration) -> Result<(), ApiError> {
        // SAFETY: the client lives as long as `self`.
        check(unsafe { sys::rd_kafka_commit_transaction(self.native.0, millis(slice)) })
    }

    /// One slice of aborting.
    #[allow(unsafe_code)]
    pub(super) fn abort(&self, slice: Duration) -> Result<(), ApiError> {
        // SAFETY: the client lives as long as `self`.
        check(unsafe { sys::rd_kafka_abort_transaction(self.native.0, millis(slice)) })
    }

    /// `EndTxn` requests sent since this client was made.
    pub(super) fn end_txn_sent(&self) -> u64 {
        self.shared.end_txn_sent.load(Ordering::SeqCst)
    }

    /// A handle of a topic.
    #[allow(unsafe_code)]
    pub(super) fn topic(&self, name: &str) -> Result<Topic, String> {
        let name = CString::new(name).map_err(|_| "a topic name with a NUL".to_owned())?;
        // SAFETY: the client lives; a null configuration means the defaults.
        let topic = unsafe { sys::rd_kafka_topic_new(self.native.0, name.as_ptr(), std::ptr::null_mut()) };
        if topic.is_null() { Err("librdkafka refuses the topic".to_owned()) } else { Ok(Topic(Handle(topic))) }
    }

    /// Frees a topic handle.
    #[allow(unsafe_code)]
    pub(super) fn release(&self, topic: Topic) {
        // SAFETY: made by `topic`, released once; librdkafka keeps its own references.
        unsafe { sys::rd_kafka_topic_destroy(topic.0.0) };
    }

    /// Partitions of a topic, asked of the cluster.
    #[allow(unsafe_code)]
    pub(super) fn partitions(&self, topic: &Topic, within: Duration) -> Result<u32, Code> {
        let mut metadata: *const sys::rd_kafka_metadata_t = std::ptr::null();
        // SAFETY: on success `metadata` is ours until destroyed; its arrays have the lengths it names. Errors are read as
        // numbers through pointers, never as the enumeration.
        unsafe {
            let asked = sys::rd_kafka_metadata(self.native.0, 0, topic.0.0, &mut metadata, millis(within));
            if asked != RespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
                return Err(Code(asked as i32));
            }
            let result = if (*metadata).topic_cnt < 1 {
                Err(Code::UNKNOWN_TOPIC)
            } else {
                let topic = (*metadata).topics;
                match (&raw const (*topic).err).cast::<i32>().read() {
                    0 if (*topic).partition_cnt > 0 => Ok((*topic).partition_cnt.unsigned_abs()),
                    0 => Err(Code::UNKNOWN_TOPIC),
                    code => Err(Code(code)),
                }
            };
            sys::rd_kafka_metadata_destroy(metadata);
            result
        }
    }

    /// Low and high watermark of a partition, asked of its leader. The high one is the last stable offset.
    #[allow(unsafe_code)]
    pub(super) fn watermarks(&self, topic: &str, partition: i32, within: Duration) -> Result<(i64, i64), Code> {
        let name = CString::new(topic).map_err(|_| Code::UNKNOWN_TOPIC)?;
        let (mut low, mut high) = (0, 0);
        // SAFETY: all pointers outlive the call.
        let asked = unsafe {
            sys::rd_kafka_query_watermark_offsets(
                self.native.0,
                name.as_ptr(),
                partition,
                &mut low,
                &mut high,
                millis(within),
            )
        };
        if asked == RespErr::RD_KAFKA_RESP_ERR_NO_ERROR { Ok((low, high)) } else { Err(Code(asked as i32)) }
    }

    /// The cluster's id, if it has one and answers in time.
    #[allow(unsafe_code)]
    pub(super) fn cluster_id(&self, within: Duration) -> Option<String> {
        // SAFETY: the returned string is ours and freed with librdkafka's allocator.
        unsafe {
            let id = sys::rd_kafka_clusterid(self.native.0, millis(within));
            if id.is_null() {
                return None;
            }
            let result = text(id);
            sys::rd_kafka_mem_free(self.native.0, id.cast());
            Some(result)
        }
    }

    /// Hands a message over; librdkafka copies it.
    #[allow(unsafe_code)]
    pub(super) fn produce(&self, message: &Message<'_>) -> Result<(), Code> {
        let (value, value_bytes) = message.value.map_or((std::ptr::null(), 0), |v| (v.as_ptr(), v.len()));
        // SAFETY: the types of the variadic arguments are those that rdkafka.h names for each tag; all slices outlive
        // the call, which copies them. The headers belong to librdkafka after success, to us after failure.
        unsafe {
            let headers = message.headers.map_or(std::ptr::null_mut(), native_headers);
            let sent = sys::rd_kafka_producev(
                self.native.0,
                V::RD_KAFKA_VTYPE_RKT,
                message.topic.0.0,
                V::RD_KAFKA_VTYPE_PARTITION,
                message.partition as c_int,
                V::RD_KAFKA_VTYPE_MSGFLAGS,
                sys::RD_KAFKA_MSG_F_COPY as c_int,
                V::RD_KAFKA_VTYPE_KEY,
                message.key.as_ptr().cast::<c_void>(),
                message.key.len(),
                V::RD_KAFKA_VTYPE_VALUE,
                value.cast::<c_void>(),
                value_bytes,
                V::RD_KAFKA_VTYPE_TIMESTAMP,
                message.timestamp_ms.unwrap_or(0),
                V::RD_KAFKA_VTYPE_HEADERS,
                headers,
                V::RD_KAFKA_VTYPE_OPAQUE,
                std::ptr::without_provenance_mut::<c_void>(message.target),
                V::RD_KAFKA_VTYPE_END,
            );
            if sent == RespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
                return Ok(());
            }
            if !headers.is_null() {
                sys::rd_kafka_headers_destroy(headers);
            }
            Err(Code(sent as i32))
        }
    }

    /// Looks at the reports of the transaction under way.
    pub(super) fn with_reports<T>(&self, look: impl FnOnce(&Reports) -> T) -> T {
        look(&self.shared.reports())
    }

    /// Waits until the reports are as wanted; whether they are.
    pub(super) fn wait_reports(&self, until: Instant, done: impl Fn(&Reports) -> bool) -> bool {
        let left = until.saturating_duration_since(Instant::now());
        let waited = self.shared.reported.wait_timeout_while(self.shared.reports(), left, |reports| !done(reports));
        done(&waited.unwrap_or_else(PoisonError::into_inner).0)
    }

    /// Waits until a report comes or the time is over.
    pub(super) fn wait_report(&self, within: Duration) {
        let reports = self.shared.reports();
        // A missed or a spurious wake-up costs one more turn of the caller's loop.
        drop(self.shared.reported.wait_timeout(reports, within));
    }

    /// The fatal error of this client, if it has one.
    #[allow(unsafe_code)]
    pub(super) fn fatal_error(&self) -> Option<(Code, String)> {
        let mut buffer = [0 as c_char; ERROR_TEXT_BYTES];
        // SAFETY: the buffer has the length that is told.
        let code = unsafe { sys::rd_kafka_fatal_error(self.native.0, buffer.as_mut_ptr(), buffer.len()) };
        (code != RespErr::RD_KAFKA_RESP_ERR_NO_ERROR).then(|| (Code(code as i32), text(buffer.as_ptr())))
    }
}

/// Headers in librdkafka's form, ours until handed over.
#[allow(unsafe_code)]
fn native_headers(list: &HeaderList) -> *mut sys::rd_kafka_headers_t {
    let headers = list.iter();
    // SAFETY: name and value are copied by the call; lengths are told, so no NUL is needed.
    unsafe {
        let native = sys::rd_kafka_headers_new(headers.len());
        for (name, value) in headers {
            sys::rd_kafka_header_add(
                native,
                name.as_ptr().cast::<c_char>(),
                name.len() as isize,
                value.as_ptr().cast::<c_void>(),
                value.len() as isize,
            );
        }
        native
    }
}

/// The loop of the thread `kafka-events`.
#[allow(unsafe_code)]
fn serve_events(queue: &Handle<sys::rd_kafka_queue_t>, shared: &Shared) {
    while !shared.stop.load(Ordering::Acquire) {
        // SAFETY: `destroy` releases the queue only after it joined this thread; an event is ours until destroyed.
        unsafe {
            let event = sys::rd_kafka_queue_poll(queue.0, 500);
            if event.is_null() {
                continue;
            }
            match sys::rd_kafka_event_type(event) {
                sys::RD_KAFKA_EVENT_DR => take_reports(event, shared),
                sys::RD_KAFKA_EVENT_ERROR => {
                    let code = Code(sys::rd_kafka_event_error(event) as i32);
                    shared.events.error(code, &text(sys::rd_kafka_event_error_string(event)));
                }
                sys::RD_KAFKA_EVENT_LOG => {
                    let (mut facility, mut line, mut level) = (std::ptr::null(), std::ptr::null(), 0);
                    if sys::rd_kafka_event_log(event, &mut facility, &mut line, &mut level) == 0 {
                        shared.events.log(level, &text(facility), &text(line));
                    }
                }
                sys::RD_KAFKA_EVENT_STATS => {
                    let json = sys::rd_kafka_event_stats(event);
                    if !json.is_null() {
                        shared.events.statistics(CStr::from_ptr(json).to_bytes());
                    }
                }
                _ => {}
            }
            sys::rd_kafka_event_destroy(event);
        }
    }
}

/// # Safety
/// `event` must be a delivery report that is not destroyed yet.
#[allow(unsafe_code)]
unsafe fn take_reports(event: *mut sys::rd_kafka_event_t, shared: &Shared) {
    let mut reports = shared.reports();
    reports.first_at.get_or_insert_with(Instant::now);
    loop {
        // SAFETY: the messages belong to the event and live as long as it. The error is read as a number.
        let (code, target, offset) = unsafe {
            let message = sys::rd_kafka_event_message_next(event);
            if message.is_null() {
                break;
            }
            let code = (&raw const (*message).err).cast::<i32>().read();
            (Code(code), (*message)._private.addr(), (*message).offset)
        };
        if code == Code::NO_ERROR {
            reports.acknowledged += 1;
            if let Some(last) = reports.offsets.get_mut(target) {
                *last = offset.max(*last);
            }
        } else {
            reports.failed += 1;
            // Follow-ups of the real failure tell nothing; they give way to one that does.
            let replaces = reports.first_error.is_none_or(|(first, _)| first.is_follow_up() && !code.is_follow_up());
            if replaces {
                reports.first_error = Some((code, target));
            }
        }
    }
    drop(reports);
    shared.reported.notify_all();
}

impl Drop for Client {
    /// Ends the client on a thread of its own: destroying one has been reported to hang, and that must not stop the drain.
    fn drop(&mut self) {
        let (native, queue, shared) = (Handle(self.native.0), Handle(self.queue.0), self.shared.clone());
        let thread = self.thread.take();
        let (done, ended) = std::sync::mpsc::sync_channel::<()>(1);
        let spawned = std::thread::Builder::new().name("kafka-destroy".to_owned()).spawn(move || {
            destroy(&native, &queue, &shared, thread);
            // Nobody listens any more if it took too long.
            let _ = done.send(());
        });
        if spawned.is_err() {
            // The client lives on without an owner, and its threads count into `shared`.
            let _kept_for_ever = Arc::into_raw(self.shared.clone());
        }
        if spawned.is_err() || ended.recv_timeout(DESTROY_WITHIN).is_err() {
            self.shared.events.abandoned();
        }
    }
}

#[allow(unsafe_code)]
fn destroy(
    native: &Handle<sys::rd_kafka_t>,
    queue: &Handle<sys::rd_kafka_queue_t>,
    shared: &Shared,
    thread: Option<JoinHandle<()>>,
) {
    shared.stop.store(true, Ordering::Release);
    // SAFETY: the queue is released here alone, after the join: the event thread may end of itself between the store above
    // and the yield. After the join nothing else uses the client; `shared` lives until after rd_kafka_destroy, which ends
    // the threads that call the interceptor.
    unsafe {
        if let Some(thread) = thread {
            sys::rd_kafka_queue_yield(queue.0);
            // A panic of the event thread was reported by the hook; the client has to go all the same.
            let _ = thread.join();
        }
        sys::rd_kafka_queue_destroy(queue.0);
        sys::rd_kafka_purge(native.0, (sys::RD_KAFKA_PURGE_F_QUEUE | sys::RD_KAFKA_PURGE_F_INFLIGHT) as c_int);
        sys::rd_kafka_destroy(native.0);
    }
}
