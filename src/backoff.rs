//! Delays between tries that cannot be built wrong: doubling from a floor to a ceiling, with full jitter.

use std::time::Duration;

/// A growing delay. [`Backoff::reset`] after a success.
#[derive(Debug, Clone)]
pub struct Backoff {
    floor: Duration,
    ceiling: Duration,
    attempt: u32,
}

impl Backoff {
    /// Delays between `floor` and `ceiling`. A ceiling below the floor is taken as the floor.
    pub fn new(floor: Duration, ceiling: Duration) -> Self {
        Self { floor, ceiling: ceiling.max(floor), attempt: 0 }
    }

    /// The next delay: uniformly random in the upper half of `floor * 2^attempt`, capped by the ceiling.
    pub fn next_delay(&mut self) -> Duration {
        let whole = self.floor.saturating_mul(1u32 << self.attempt.min(20)).min(self.ceiling);
        self.attempt = self.attempt.saturating_add(1);
        whole.mul_f64(0.5 + random_fraction() / 2.0).max(self.floor.min(whole))
    }

    /// Begin again at the floor.
    pub fn reset(&mut self) {
        self.attempt = 0;
    }

    /// How many delays were given since the last reset.
    pub fn attempts(&self) -> u32 {
        self.attempt
    }
}

fn random_fraction() -> f64 {
    let number = getrandom::u32().unwrap_or(u32::MAX / 2);
    f64::from(number) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_ceiling_and_begin_again_after_a_reset() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        let delays: Vec<_> = (0..8).map(|_| backoff.next_delay()).collect();
        assert!(delays.iter().all(|d| *d >= Duration::from_millis(100) && *d <= Duration::from_secs(1)));
        assert!(delays[7] >= Duration::from_millis(500));
        backoff.reset();
        assert!(backoff.next_delay() <= Duration::from_millis(100));
    }
}
