//! Kafka's error codes and what each means for the drain. Pure; the table follows runs against Apache Kafka 3.9, 4.1 and
//! 4.2 with librdkafka 2.12.1.

use std::fmt;

use rdkafka_sys::rd_kafka_resp_err_t as E;

use super::client::code_name;
use crate::delivery::sink::{RecycleReason, SinkError};

/// A code as a number: negative ones are librdkafka's own, positive ones the protocol's.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Code(pub(super) i32);

macro_rules! codes {
    ($($name:ident = $code:ident),* $(,)?) => { $(pub(super) const $name: Code = Code(E::$code as i32);)* };
}

impl Code {
    codes! {
        NO_ERROR = RD_KAFKA_RESP_ERR_NO_ERROR,
        QUEUE_FULL = RD_KAFKA_RESP_ERR__QUEUE_FULL,
        FENCED = RD_KAFKA_RESP_ERR__FENCED,
        STATE = RD_KAFKA_RESP_ERR__STATE,
        PURGE_QUEUE = RD_KAFKA_RESP_ERR__PURGE_QUEUE,
        PURGE_INFLIGHT = RD_KAFKA_RESP_ERR__PURGE_INFLIGHT,
        TIMED_OUT = RD_KAFKA_RESP_ERR__TIMED_OUT,
        TIMED_OUT_QUEUE = RD_KAFKA_RESP_ERR__TIMED_OUT_QUEUE,
        MSG_TIMED_OUT = RD_KAFKA_RESP_ERR__MSG_TIMED_OUT,
        TRANSPORT = RD_KAFKA_RESP_ERR__TRANSPORT,
        ALL_BROKERS_DOWN = RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN,
        SSL = RD_KAFKA_RESP_ERR__SSL,
        AUTHENTICATION = RD_KAFKA_RESP_ERR__AUTHENTICATION,
        UNSUPPORTED_FEATURE = RD_KAFKA_RESP_ERR__UNSUPPORTED_FEATURE,
        LOCAL_UNKNOWN_TOPIC = RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC,
        UNKNOWN_TOPIC = RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART,
        INVALID_TOPIC = RD_KAFKA_RESP_ERR_TOPIC_EXCEPTION,
        TOPIC_FORBIDDEN = RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED,
        CLUSTER_FORBIDDEN = RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED,
        GROUP_FORBIDDEN = RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED,
        TRANSACTIONAL_ID_FORBIDDEN = RD_KAFKA_RESP_ERR_TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
        SASL_FAILED = RD_KAFKA_RESP_ERR_SASL_AUTHENTICATION_FAILED,
        SASL_MECHANISM = RD_KAFKA_RESP_ERR_UNSUPPORTED_SASL_MECHANISM,
        INVALID_TRANSACTION_TIMEOUT = RD_KAFKA_RESP_ERR_INVALID_TRANSACTION_TIMEOUT,
        UNSUPPORTED_VERSION = RD_KAFKA_RESP_ERR_UNSUPPORTED_VERSION,
        INVALID_PRODUCER_EPOCH = RD_KAFKA_RESP_ERR_INVALID_PRODUCER_EPOCH,
        PRODUCER_FENCED = RD_KAFKA_RESP_ERR_PRODUCER_FENCED,
        MSG_TOO_LARGE = RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE,
        RECORD_LIST_TOO_LARGE = RD_KAFKA_RESP_ERR_RECORD_LIST_TOO_LARGE,
        INVALID_RECORD = RD_KAFKA_RESP_ERR_INVALID_RECORD,
        INVALID_TIMESTAMP = RD_KAFKA_RESP_ERR_INVALID_TIMESTAMP,
        INVALID_MSG = RD_KAFKA_RESP_ERR_INVALID_MSG,
        UNSUPPORTED_COMPRESSION = RD_KAFKA_RESP_ERR_UNSUPPORTED_COMPRESSION_TYPE,
        INVALID_REQUIRED_ACKS = RD_KAFKA_RESP_ERR_INVALID_REQUIRED_ACKS,
    }

    /// Says only that something else went wrong before.
    pub(super) fn is_follow_up(self) -> bool {
        [Self::PURGE_QUEUE, Self::PURGE_INFLIGHT, Self::STATE].contains(&self)
    }

    fn is_time(self) -> bool {
        [Self::TIMED_OUT, Self::TIMED_OUT_QUEUE, Self::MSG_TIMED_OUT].contains(&self)
    }

    fn is_fencing(self) -> bool {
        [Self::FENCED, Self::INVALID_PRODUCER_EPOCH, Self::PRODUCER_FENCED].contains(&self)
    }

    fn is_too_large(self) -> bool {
        [Self::MSG_TOO_LARGE, Self::RECORD_LIST_TOO_LARGE].contains(&self)
    }

    /// The broker will refuse the same record again, whoever sends it.
    fn is_permanent_for_a_record(self) -> bool {
        self.is_too_large() || [Self::INVALID_RECORD, Self::INVALID_TIMESTAMP, Self::INVALID_MSG].contains(&self)
    }

    /// The broker answered, and no repetition will change its mind.
    pub(super) fn is_refusal(self) -> bool {
        self.is_permanent_for_a_record() || self == Self::TOPIC_FORBIDDEN
    }

    fn is_configuration(self) -> bool {
        [
            Self::CLUSTER_FORBIDDEN,
            Self::GROUP_FORBIDDEN,
            Self::TRANSACTIONAL_ID_FORBIDDEN,
            Self::SASL_FAILED,
            Self::SASL_MECHANISM,
            Self::AUTHENTICATION,
            Self::SSL,
            Self::INVALID_TRANSACTION_TIMEOUT,
            Self::UNSUPPORTED_VERSION,
            Self::UNSUPPORTED_FEATURE,
            Self::UNSUPPORTED_COMPRESSION,
            Self::INVALID_REQUIRED_ACKS,
        ]
        .contains(&self)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&code_name(*self))
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", code_name(*self), self.0)
    }
}

/// An error of a transactional call, as librdkafka classes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ApiError {
    pub(super) code: Code,
    pub(super) fatal: bool,
    pub(super) retriable: bool,
    pub(super) abortable: bool,
    pub(super) text: String,
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.text)
    }
}

/// What a failed `init_transactions` asks of us. Anything but the owner's business is tried again for ever.
pub(super) fn on_init(error: &ApiError) -> SinkError {
    let text = format!("init_transactions: {error}");
    if error.code.is_configuration() {
        SinkError::Configuration(text)
    } else if error.retriable && !error.fatal {
        SinkError::Retry(text)
    } else {
        SinkError::Recycle { reason: recycle_reason(error.code), text }
    }
}

/// What a failed `begin`, `produce` or `commit` asks of us. `cause` is the first delivery report that failed: it tells
/// more than the call, which often knows only the consequence.
pub(super) fn on_transaction(call: &str, error: &ApiError, cause: Option<(Code, &str)>) -> SinkError {
    if error.retriable && !error.fatal && !error.abortable {
        return SinkError::Retry(format!("{call}: {error}"));
    }
    let (code, text) = match cause {
        Some((cause, topic)) => (cause, format!("{call}: {error}; first refused with {cause} in topic {topic}")),
        None => (error.code, format!("{call}: {error}")),
    };
    if code.is_permanent_for_a_record() {
        return SinkError::Poison { code: code.to_string(), text, too_large: code.is_too_large() };
    }
    if code == Code::TOPIC_FORBIDDEN {
        return SinkError::Configuration(format!("{text}. Readings are kept. Allow this gateway to write there"));
    }
    if code.is_configuration() {
        return SinkError::Configuration(text);
    }
    SinkError::Recycle { reason: recycle_reason(code), text }
}

fn recycle_reason(code: Code) -> RecycleReason {
    if code.is_fencing() {
        RecycleReason::Fenced
    } else if code.is_time() {
        RecycleReason::Time
    } else {
        RecycleReason::Error
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(code: E, class: &str) -> ApiError {
        ApiError {
            code: Code(code as i32),
            fatal: class == "fatal",
            retriable: class == "retriable",
            abortable: class == "abortable",
            text: "as told".to_owned(),
        }
    }

    fn duty(error: &SinkError) -> &'static str {
        match error {
            SinkError::Retry(_) => "retry",
            SinkError::Recycle { reason, .. } => reason.as_str(),
            SinkError::Poison { too_large: true, .. } => "poison, too large",
            SinkError::Poison { .. } => "poison",
            SinkError::Configuration(_) => "configuration",
            SinkError::Blocked(_) | SinkError::Fatal(_) => "other",
        }
    }

    #[test]
    fn init_is_tried_for_ever_unless_the_owner_must_act() {
        for (code, class, expected) in [
            (E::RD_KAFKA_RESP_ERR__TIMED_OUT, "retriable", "retry"),
            (E::RD_KAFKA_RESP_ERR_CONCURRENT_TRANSACTIONS, "retriable", "retry"),
            (E::RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS, "retriable", "retry"),
            (E::RD_KAFKA_RESP_ERR_NOT_COORDINATOR, "retriable", "retry"),
            (E::RD_KAFKA_RESP_ERR__TRANSPORT, "retriable", "retry"),
            (E::RD_KAFKA_RESP_ERR_TRANSACTIONAL_ID_AUTHORIZATION_FAILED, "fatal", "configuration"),
            (E::RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED, "fatal", "configuration"),
            (E::RD_KAFKA_RESP_ERR_INVALID_TRANSACTION_TIMEOUT, "fatal", "configuration"),
            (E::RD_KAFKA_RESP_ERR__UNSUPPORTED_FEATURE, "fatal", "configuration"),
            (E::RD_KAFKA_RESP_ERR__FENCED, "fatal", "fenced"),
            (E::RD_KAFKA_RESP_ERR_UNKNOWN, "", "error"),
        ] {
            assert_eq!(duty(&on_init(&error(code, class))), expected, "{code:?}");
        }
    }

    #[test]
    fn a_failed_transaction_is_never_guessed_at() {
        for (code, class, cause, expected) in [
            (E::RD_KAFKA_RESP_ERR__TIMED_OUT, "retriable", None, "retry"),
            (E::RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT, "abortable", None, "error"),
            (E::RD_KAFKA_RESP_ERR_UNKNOWN, "abortable", None, "error"),
            (E::RD_KAFKA_RESP_ERR_UNKNOWN_PRODUCER_ID, "abortable", None, "error"),
            (E::RD_KAFKA_RESP_ERR_INVALID_PRODUCER_ID_MAPPING, "abortable", None, "error"),
            (E::RD_KAFKA_RESP_ERR_INVALID_TXN_STATE, "abortable", None, "error"),
            (E::RD_KAFKA_RESP_ERR_INVALID_TXN_STATE, "fatal", None, "error"),
            (E::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER, "fatal", None, "error"),
            (E::RD_KAFKA_RESP_ERR__FENCED, "fatal", None, "fenced"),
            (E::RD_KAFKA_RESP_ERR__FENCED, "fatal", Some(Code::INVALID_PRODUCER_EPOCH), "fenced"),
            (E::RD_KAFKA_RESP_ERR__TIMED_OUT, "abortable", None, "time"),
            (E::RD_KAFKA_RESP_ERR__INCONSISTENT, "abortable", Some(Code::MSG_TIMED_OUT), "time"),
            (E::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE, "abortable", None, "poison, too large"),
            (E::RD_KAFKA_RESP_ERR__INCONSISTENT, "abortable", Some(Code::INVALID_RECORD), "poison"),
            (E::RD_KAFKA_RESP_ERR__INCONSISTENT, "abortable", Some(Code::INVALID_TIMESTAMP), "poison"),
            (E::RD_KAFKA_RESP_ERR_TRANSACTIONAL_ID_AUTHORIZATION_FAILED, "fatal", None, "configuration"),
            (E::RD_KAFKA_RESP_ERR__STATE, "", None, "error"),
            (E::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED, "abortable", None, "configuration"),
            (E::RD_KAFKA_RESP_ERR__INCONSISTENT, "abortable", Some(Code::TOPIC_FORBIDDEN), "configuration"),
        ] {
            let told = on_transaction("commit", &error(code, class), cause.map(|c| (c, "telemetry")));
            assert_eq!(duty(&told), expected, "{code:?} {class} {cause:?}");
        }
    }

    #[test]
    fn a_code_unknown_to_the_library_has_a_name_and_is_an_error() {
        let unknown = Code(31_999);
        assert!(!unknown.to_string().is_empty());
        assert_eq!(recycle_reason(unknown), RecycleReason::Error);
    }
}
