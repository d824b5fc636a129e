//! When to try again: the only place that knows the `backoff` crate.
//!
//! **Invariant:** the only place that knows `backoff` (`only_our_own_retry_mentions_the_unmaintained_backoff`).

use std::time::Duration;

use backoff::{ExponentialBackoff, ExponentialBackoffBuilder, backoff::Backoff};

/// Doubling delays with jitter. The jitter follows from `salt` and the attempt alone, so that a simulation repeats itself
/// while many objects (or hosts) with different salts do not try again all at once.
#[derive(Debug)]
pub struct Retry {
    backoff: ExponentialBackoff,
    salt: u64,
    attempts: u32,
}

impl Retry {
    /// The first delay is about `first`, each further one twice as long, none longer than `max`.
    pub fn new(first: Duration, max: Duration, salt: u64) -> Self {
        let backoff = ExponentialBackoffBuilder::new()
            .with_initial_interval(first)
            .with_max_interval(max)
            .with_multiplier(2.0)
            .with_randomization_factor(0.0)
            .with_max_elapsed_time(None)
            .build();
        Self { backoff, salt, attempts: 0 }
    }

    /// How long to wait before the next attempt: the nominal delay less up to a quarter of it.
    pub fn delay(&mut self) -> Duration {
        self.attempts = self.attempts.saturating_add(1);
        let nominal = self.backoff.next_backoff().unwrap_or(self.backoff.max_interval);
        let quarter = u64::try_from(nominal.as_nanos() / 4).unwrap_or(u64::MAX).max(1);
        nominal - Duration::from_nanos(mix(self.salt ^ u64::from(self.attempts)) % quarter)
    }

    /// How many delays were given since the last reset.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Starts again at the first delay.
    pub fn reset(&mut self) {
        self.backoff.reset();
        self.attempts = 0;
    }
}

/// The finaliser of splitmix64: neighbouring inputs give unrelated outputs.
fn mix(input: u64) -> u64 {
    let mut z = input.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_longest_and_start_again_after_a_reset() {
        let (first, max) = (Duration::from_millis(100), Duration::from_secs(60));
        let mut retry = Retry::new(first, max, 7);
        let delays: Vec<_> = (0..14).map(|_| retry.delay()).collect();
        for (attempt, delay) in delays.iter().enumerate() {
            let nominal = (first * (1 << attempt)).min(max);
            assert!(*delay <= nominal && *delay >= nominal * 3 / 4, "attempt {attempt}: {delay:?}");
        }
        retry.reset();
        assert_eq!(retry.delay(), delays[0]);
    }

    #[test]
    fn different_salts_do_not_try_again_together() {
        let delay = |salt| Retry::new(Duration::from_secs(1), Duration::from_secs(60), salt).delay();
        assert_ne!(delay(1), delay(2));
        assert_eq!(delay(1), delay(1));
    }
}
