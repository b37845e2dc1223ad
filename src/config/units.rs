//! Values with a unit: sizes (`64MiB`), durations (`250ms`), and both with `off`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A size in bytes, written with one of the units B, KiB, MiB, GiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct ByteSize(pub u64);

/// A duration, written with one of the units ms, s, m, h, d.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Span(pub Duration);

/// A value, or `off`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Limit<T> {
    /// No limit.
    #[default]
    Off,
    /// This limit.
    At(T),
}

const SIZE_UNITS: [(&str, u64); 4] = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("B", 1)];
const SPAN_UNITS: [(&str, u64); 5] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

impl ByteSize {
    /// `n` MiB.
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }

    /// `n` KiB.
    pub const fn kib(n: u64) -> Self {
        Self(n << 10)
    }

    /// The number of bytes as `usize`.
    pub fn bytes(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl Span {
    /// `n` milliseconds.
    pub const fn millis(n: u64) -> Self {
        Self(Duration::from_millis(n))
    }

    /// `n` seconds.
    pub const fn secs(n: u64) -> Self {
        Self(Duration::from_secs(n))
    }
}

/// Splits `12.5MiB` into its number and its unit's factor.
fn parse_with_unit(text: &str, units: &[(&str, u64)]) -> Option<f64> {
    let text = text.trim();
    let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.'))?;
    let (number, unit) = (text[..split].parse::<f64>().ok()?, text[split..].trim_start());
    let factor = units.iter().find(|(name, _)| *name == unit)?.1;
    let value = number * factor as f64;
    (value.is_finite() && value <= (1u64 << 53) as f64).then_some(value)
}

/// The largest unit that divides the value.
fn format_with_unit(value: u64, units: &[(&str, u64)], smallest: &str) -> String {
    let mut best = (smallest, 1);
    for (name, factor) in units {
        if value > 0 && value % factor == 0 && *factor > best.1 {
            best = (name, *factor);
        }
    }
    format!("{}{}", value / best.1, best.0)
}

impl FromStr for ByteSize {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        parse_with_unit(text, &SIZE_UNITS).map(|bytes| Self(bytes as u64)).ok_or_else(|| {
            format!("{text:?} is not a size: write a number and one of B, KiB, MiB, GiB, as in \"64MiB\"")
        })
    }
}

impl FromStr for Span {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        parse_with_unit(text, &SPAN_UNITS).map(|ms| Self(Duration::from_nanos((ms * 1e6) as u64))).ok_or_else(|| {
            format!("{text:?} is not a duration: write a number and one of ms, s, m, h, d, as in \"250ms\"")
        })
    }
}

impl<T: FromStr<Err = String>> FromStr for Limit<T> {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text.trim() == "off" {
            return Ok(Self::Off);
        }
        text.parse().map(Self::At).map_err(|error| format!("{error}; or \"off\""))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&format_with_unit(self.0, &SIZE_UNITS, "B"))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&format_with_unit(self.0.as_millis() as u64, &SPAN_UNITS, "ms"))
    }
}

impl<T: fmt::Display> fmt::Display for Limit<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::At(value) => value.fmt(f),
        }
    }
}

macro_rules! serde_as_text {
    ($($type:ty),*) => {$(
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }
    )*};
}
serde_as_text!(ByteSize, Span, Limit<ByteSize>, Limit<Span>);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_durations_read_back_as_written() {
        for text in ["0B", "17B", "960KiB", "64MiB", "1GiB"] {
            assert_eq!(text.parse::<ByteSize>().unwrap().to_string(), text);
        }
        for text in ["0ms", "250ms", "30s", "5m", "12h", "7d"] {
            assert_eq!(text.parse::<Span>().unwrap().to_string(), text);
        }
        assert_eq!("off".parse::<Limit<Span>>().unwrap(), Limit::Off);
        assert_eq!("1.5KiB".parse::<ByteSize>().unwrap().0, 1536);
    }

    #[test]
    fn values_without_unit_or_with_a_foreign_one_are_refused() {
        for text in ["64", "64MB", "", "MiB", "-1MiB", "1e9GiB", "99999999999GiB"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
        assert!("5min".parse::<Span>().is_err());
    }
}
