//! What a simulated device says: one JSON object per reading. Device, counter, power and energy follow from the seed
//! alone; only the time is the clock's.

use serde::Deserialize;
use serde_json::value::RawValue;
use xxhash_rust::xxh3::xxh3_64;

use crate::clock;

/// One simulated device.
#[derive(Debug, Clone)]
pub struct Device {
    name: String,
    seed: u64,
}

impl Device {
    /// The device with this name; the same seed gives the same values.
    pub fn new(name: String, seed: u64) -> Self {
        let seed = mix(seed ^ xxh3_64(name.as_bytes()));
        Self { name, seed }
    }

    /// Device id.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The reading with this number, stamped with a wall time in nanoseconds since 1970.
    pub fn payload(&self, counter: u64, wall_ns: i64) -> String {
        let noise = mix(self.seed.wrapping_add(counter));
        let power_10w = 20 + noise % 780;
        let energy_wh = 1_000_000 + self.seed % 9_000_000 + counter * 5 + noise % 5;
        format!(
            r#"{{"device":"{}","counter":{counter},"time":"{}","power_kw":{}.{:02},"energy_kwh":{}.{:03}}}"#,
            self.name,
            clock::rfc3339(wall_ns / 1_000_000 * 1_000_000),
            power_10w / 100,
            power_10w % 100,
            energy_wh / 1000,
            energy_wh % 1000,
        )
    }
}

/// Who a reading is and what it says, apart from its time: the same for the payload as issued and for the canonical
/// reading that a JSON decoder made of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Device id.
    pub device: String,
    /// Its number on that device.
    pub counter: u64,
    /// Hash of device, counter and values as written, digit by digit.
    pub fingerprint: u64,
}

#[derive(Deserialize)]
struct Issued<'a> {
    device: String,
    counter: u64,
    #[serde(borrow)]
    power_kw: &'a RawValue,
    #[serde(borrow)]
    energy_kwh: &'a RawValue,
}

#[derive(Deserialize)]
struct Canonical<'a> {
    device: String,
    #[serde(borrow)]
    metrics: Vec<Metric<'a>>,
}

#[derive(Deserialize)]
struct Metric<'a> {
    name: String,
    #[serde(borrow)]
    value: &'a RawValue,
}

impl Identity {
    /// Reads a payload as [`Device::payload`] writes it, or the `reading` body made of it. `None`: neither.
    pub fn of(value: &[u8]) -> Option<Self> {
        if let Ok(issued) = serde_json::from_slice::<Issued<'_>>(value) {
            return Some(Self::new(issued.device, issued.counter, issued.power_kw.get(), issued.energy_kwh.get()));
        }
        let reading: Canonical<'_> = serde_json::from_slice(value).ok()?;
        let metric = |name: &str| reading.metrics.iter().find(|m| m.name == name).map(|m| m.value.get());
        let counter = metric("counter")?.parse().ok()?;
        let (power, energy) = (metric("power_kw")?, metric("energy_kwh")?);
        Some(Self::new(reading.device.clone(), counter, power, energy))
    }

    fn new(device: String, counter: u64, power: &str, energy: &str) -> Self {
        let fingerprint = xxh3_64(format!("{device} {counter} {power} {energy}").as_bytes());
        Self { device, counter, fingerprint }
    }
}

/// SplitMix64's finaliser (Steele, Lea, Flood 2014): spreads neighbouring numbers over all 64 bits.
fn mix(number: u64) -> u64 {
    let z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_bytes_and_another_one_others() {
        let payload = |seed| Device::new("meter-1".to_owned(), seed).payload(7, 1_795_248_000_123_456_789);
        assert_eq!(payload(1), payload(1));
        assert_ne!(payload(1), payload(2));
        assert!(payload(1).contains(r#""time":"2026-11-21T08:00:00.123Z""#), "{}", payload(1));
    }

    #[test]
    fn energy_never_falls() {
        let device = Device::new("meter-1".to_owned(), 3);
        let energy = |counter| {
            let value: serde_json::Value = serde_json::from_str(&device.payload(counter, 0)).unwrap();
            value["energy_kwh"].as_f64().unwrap()
        };
        assert!((1..500).all(|counter| energy(counter) <= energy(counter + 1)));
    }

    #[test]
    fn a_payload_and_the_canonical_reading_of_it_have_one_identity() {
        let device = Device::new("meter-1".to_owned(), 1);
        let payload = device.payload(12, 0);
        let issued = Identity::of(payload.as_bytes()).unwrap();
        assert_eq!((issued.device.as_str(), issued.counter), ("meter-1", 12));

        let fields: serde_json::Value = serde_json::from_str(&payload).unwrap();
        let token =
            |name: &str| payload.split(&format!("\"{name}\":")).nth(1).unwrap().split([',', '}']).next().unwrap();
        let canonical = format!(
            r#"{{"device":"meter-1","ts":{},"metrics":[{{"name":"counter","value":12,"type":"i64"}},
               {{"name":"power_kw","value":{},"type":"f64"}},{{"name":"energy_kwh","value":{}}}],"quality":"good"}}"#,
            fields["time"],
            token("power_kw"),
            token("energy_kwh"),
        );
        assert_eq!(Identity::of(canonical.as_bytes()), Some(issued.clone()));

        let changed = canonical.replace(token("power_kw"), "99.99");
        assert_ne!(Identity::of(changed.as_bytes()), Some(issued));
    }

    #[test]
    fn what_no_device_said_has_no_identity() {
        for value in ["", "{}", "[]", "21.5", r#"{"device":"a","counter":-1,"power_kw":1,"energy_kwh":1}"#] {
            assert_eq!(Identity::of(value.as_bytes()), None, "{value}");
        }
    }
}
