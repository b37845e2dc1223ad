//! What a single value must look like. Each function accepts, or says what was found and what is allowed.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::outbox::Sync;
use super::units::{ByteSize, Limit, Span};

type Verdict = Result<(), String>;

fn refuse(text: &str, allowed: &str) -> Verdict {
    Err(format!("found {text:?}; allowed: {allowed}"))
}

fn accept_if(good: bool, text: &str, allowed: &str) -> Verdict {
    if good { Ok(()) } else { refuse(text, allowed) }
}

pub(super) fn any(_: &str) -> Verdict {
    Ok(())
}

pub(super) fn not_empty(text: &str) -> Verdict {
    accept_if(!text.is_empty(), text, "text that is not empty")
}

pub(super) fn agent_id(text: &str) -> Verdict {
    let legal = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    accept_if(
        (1..=64).contains(&text.len()) && text.chars().all(legal),
        text,
        "[A-Za-z0-9._-]{1,64}, unique in the fleet",
    )
}

pub(super) fn source_name(text: &str) -> Verdict {
    let legal = |c: char| c.is_ascii_alphanumeric() || "_-".contains(c);
    accept_if(
        (1..=64).contains(&text.len()) && text.chars().all(legal),
        text,
        "names of sources are [A-Za-z0-9_-]{1,64}",
    )
}

/// Levels, alone or by target. Stricter than the library, which takes a misspelt level for the name of a target.
pub(super) fn log_filter(text: &str) -> Verdict {
    const ALLOWED: &str =
        "off, error, warn, info, debug, trace, also by target, as in \"info,fieldpost::delivery=debug\"";
    let level = |word: &str| word.trim().parse::<log::LevelFilter>().is_ok();
    let part = |part: &str| match part.split_once('=') {
        Some((target, word)) => !target.trim().is_empty() && level(word),
        None => level(part),
    };
    accept_if(!text.is_empty() && text.split(',').all(part), text, ALLOWED)
}

pub(super) fn listen(text: &str) -> Verdict {
    let good = text == "off" || text.parse::<SocketAddr>().is_ok();
    accept_if(good, text, "an IP address and port, as in \"127.0.0.1:9464\" or \"[::1]:9464\", or \"off\"")
}

pub(super) fn size(text: &str) -> Verdict {
    text.parse::<ByteSize>().map(drop)
}

pub(super) fn span(text: &str) -> Verdict {
    text.parse::<Span>().map(drop)
}

pub(super) fn span_or_off(text: &str) -> Verdict {
    text.parse::<Limit<Span>>().map(drop)
}

pub(super) fn sync(text: &str) -> Verdict {
    let sync: Result<Sync, serde::de::value::Error> =
        serde::Deserialize::deserialize(serde::de::value::StrDeserializer::new(text));
    match sync {
        Ok(Sync::Interval(span)) if span.0.is_zero() || span.0 > Duration::from_secs(60) => {
            refuse(text, "an interval up to 1m")
        }
        Ok(_) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

fn size_in(text: &str, range: RangeInclusive<ByteSize>) -> Verdict {
    let size = text.parse::<ByteSize>()?;
    accept_if(range.contains(&size), text, &format!("{} to {}", range.start(), range.end()))
}

fn span_in(text: &str, range: RangeInclusive<Span>) -> Verdict {
    let span = text.parse::<Span>()?;
    accept_if(range.contains(&span), text, &format!("{} to {}", range.start(), range.end()))
}

pub(super) fn outbox_max_bytes(text: &str) -> Verdict {
    let size = text.parse::<ByteSize>()?;
    accept_if(size >= ByteSize::mib(8), text, "8MiB and up")
}

pub(super) fn record_bytes_max(text: &str) -> Verdict {
    size_in(text, ByteSize::kib(1)..=ByteSize::mib(64))
}

pub(super) fn held_bytes_max(text: &str) -> Verdict {
    size_in(text, ByteSize::mib(1)..=ByteSize::mib(4096))
}

pub(super) fn batch_bytes_max(text: &str) -> Verdict {
    size_in(text, ByteSize::kib(1)..=ByteSize::mib(64))
}

pub(super) fn packet_bytes_max(text: &str) -> Verdict {
    size_in(text, ByteSize::kib(1)..=ByteSize::mib(255))
}

pub(super) fn frame_bytes_max(text: &str) -> Verdict {
    size_in(text, ByteSize(1)..=ByteSize::mib(64))
}

pub(super) fn gather(text: &str) -> Verdict {
    span_in(text, Span::millis(0)..=Span::secs(10))
}

pub(super) fn transaction_timeout(text: &str) -> Verdict {
    span_in(text, Span::secs(1)..=Span::secs(900))
}

pub(super) fn message_timeout(text: &str) -> Verdict {
    span_in(text, Span::millis(500)..=Span::secs(900))
}

pub(super) fn max_wait(text: &str) -> Verdict {
    span_in(text, Span::millis(0)..=Span::secs(60))
}

/// MQTT counts the keep-alive in seconds, 16 bits.
pub(super) fn keep_alive(text: &str) -> Verdict {
    span_in(text, Span::secs(5)..=Span::secs(18 * 3600))
}

/// MQTT 5 counts the expiry in seconds, 32 bits.
pub(super) fn session_expiry(text: &str) -> Verdict {
    span_in(text, Span::millis(0)..=Span::secs(49_710 * 86_400))
}

/// Kafka's rule: 1 to 249 characters, `[A-Za-z0-9._-]`, not `.` or `..`.
pub(super) fn kafka_topic(text: &str) -> Verdict {
    let legal = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let good = (1..=249).contains(&text.len()) && text.chars().all(legal) && text != "." && text != "..";
    accept_if(good, text, "the name of a Kafka topic, [A-Za-z0-9._-]{1,249}")
}

pub(super) fn host_port(text: &str) -> Verdict {
    let good = text.rsplit_once(':').is_some_and(|(host, port)| {
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let host_good = match bare {
            Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
            None => !host.is_empty() && !host.contains([':', '/', ' ', ',']),
        };
        host_good && port.parse::<u16>().is_ok_and(|port| port > 0)
    });
    accept_if(good, text, "host:port, as in \"kafka-1:9093\"")
}

pub(super) fn rate(text: &str) -> Verdict {
    let good = text == "off"
        || text.strip_suffix("/s").is_some_and(|amount| {
            amount.parse::<u64>().is_ok_and(|records| records > 0) || amount.parse::<ByteSize>().is_ok_and(|b| b.0 > 0)
        });
    accept_if(good, text, "\"off\", or as in \"2MiB/s\" or \"5000/s\"")
}

pub(super) fn window(text: &str) -> Verdict {
    const DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
    let day = |word: &str| DAYS.contains(&word);
    let time = |word: &str| {
        word.split_once(':').is_some_and(|(hour, minute)| {
            let two = |part: &str, max: u8| part.len() == 2 && part.parse::<u8>().is_ok_and(|number| number <= max);
            two(hour, 23) && two(minute, 59)
        })
    };
    let good = text.split_once(' ').is_some_and(|(days, times)| {
        let days = days.split_once('-').map_or_else(|| day(days), |(from, to)| day(from) && day(to));
        days && times.split_once('-').is_some_and(|(from, to)| time(from) && time(to))
    });
    accept_if(good, text, "days and times, as in \"Mon-Fri 22:00-06:00\"")
}

pub(super) fn percent(text: &str) -> Verdict {
    let good =
        text.strip_suffix('%').and_then(|number| number.parse::<u8>().ok()).is_some_and(|n| (1..=100).contains(&n));
    accept_if(good, text, "1% to 100%, as in \"25%\"")
}

/// Never shows what stands before an `@`: it may hold a password.
pub(super) fn mqtt_url(text: &str) -> Verdict {
    const ALLOWED: &str = "mqtt, mqtts, ws, wss with host and port, as in \"mqtts://broker:8883\", or unix with a path";
    let shown = text.rsplit_once('@').map_or_else(|| text.to_owned(), |(_, host)| format!("...@{host}"));
    let good = url::Url::parse(text).is_ok_and(|url| match url.scheme() {
        "mqtt" | "mqtts" | "ws" | "wss" => url.host_str().is_some_and(|host| !host.is_empty()),
        "unix" => !url.path().is_empty(),
        _ => false,
    });
    accept_if(good, &shown, ALLOWED)
}

/// MQTT 5, section 4.7: `#` alone at the end, `+` alone in its level.
pub(super) fn topic_filter(text: &str) -> Verdict {
    let levels: Vec<_> = text.split('/').collect();
    let last = levels.len() - 1;
    let level = |(at, level): (usize, &&str)| match *level {
        "#" => at == last,
        "+" => true,
        name => !name.contains(['#', '+', '\0']),
    };
    let good = !text.is_empty() && text.len() <= 65_535 && levels.iter().enumerate().all(level);
    accept_if(good, text, "an MQTT topic filter: '+' for one level, '#' as the last level")
}

pub(super) fn serial_line(text: &str) -> Verdict {
    let good = matches!(text.as_bytes(), [b'5'..=b'8', b'N' | b'E' | b'O', b'1' | b'2']);
    accept_if(good, text, "data bits 5-8, parity N, E or O, stop bits 1 or 2, as in \"8N1\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_values_pass_and_bad_ones_are_named() {
        type Case = (fn(&str) -> Verdict, &'static [&'static str], &'static [&'static str]);
        let cases: &[Case] = &[
            (agent_id, &["gw-0017", "a.b_C-9"], &["", "a b", "gw/1", "\u{e9}"]),
            (source_name, &["plant", "line-3_b"], &["", "a.b", "a b"]),
            (log_filter, &["info", "warn,fieldpost::kafka=off", "off"], &["", "inof", "info,fieldpost=loud", "=info"]),
            (listen, &["127.0.0.1:9464", "[::1]:1", "off"], &["localhost:9464", "9464", ""]),
            (outbox_max_bytes, &["8MiB", "1GiB"], &["7MiB", "8MB", "8"]),
            (sync, &["batch", "interval:500ms"], &["always", "interval:", "interval:0ms", "interval:2h"]),
            (rate, &["off", "2MiB/s", "5000/s"], &["2MiB", "0/s", "fast", "/s"]),
            (
                window,
                &["Mon-Fri 22:00-06:00", "Sun 00:00-23:59"],
                &["Mon", "mon 22:00-06:00", "Mon 24:00-06:00", "Mon 9:00-10:00"],
            ),
            (percent, &["1%", "100%"], &["0%", "101%", "50", "half"]),
            (
                host_port,
                &["kafka:9092", "10.0.0.1:1", "[::1]:9092"],
                &["kafka", "kafka:0", ":9092", "a,b:1", "::1:9092"],
            ),
            (
                mqtt_url,
                &["mqtt://b:1883", "wss://b/mqtt", "unix:///run/m.sock"],
                &["http://b", "b:1883", "mqtt://", ""],
            ),
            (topic_filter, &["#", "a/+/b/#", "+", "/"], &["", "a#", "a/#/b", "a+/b"]),
            (serial_line, &["8N1", "7E1", "5O2"], &["8N", "9N1", "8n1", "8N3"]),
            (kafka_topic, &["a.b-c_9"], &["", ".", "a/b"]),
            (keep_alive, &["30s"], &["1s", "2d"]),
        ];
        for (accepts, good, bad) in cases {
            for text in *good {
                assert_eq!(accepts(text), Ok(()), "{text:?}");
            }
            for text in *bad {
                assert!(accepts(text).is_err(), "{text:?} passed");
            }
        }
    }

    #[test]
    fn a_password_in_an_address_is_never_shown() {
        let text = mqtt_url("htp://user:secret@host").unwrap_err();
        assert!(!text.contains("secret") && text.contains("host"), "{text}");
    }
}
