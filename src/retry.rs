//! Waiting between attempts. The only user of the `backoff` crate.

use std::time::Duration;

use backoff::{ExponentialBackoff, backoff::Backoff};

/// Exponential delays between two bounds, with jitter, without an end.
#[derive(Debug)]
pub struct Retry {
    backoff: ExponentialBackoff,
    first: Duration,
    max: Duration,
}

impl Retry {
    /// Delays that start around `first` and double up to `max`.
    pub fn new(first: Duration, max: Duration) -> Self {
        let backoff = ExponentialBackoff {
            current_interval: first,
            initial_interval: first,
            randomization_factor: 0.5,
            multiplier: 2.0,
            max_interval: max,
            max_elapsed_time: None,
            ..ExponentialBackoff::default()
        };
        Self { backoff, first, max }
    }

    /// The same without jitter: the delays are always the same ones.
    #[must_use]
    pub fn without_jitter(mut self) -> Self {
        self.backoff.randomization_factor = 0.0;
        self
    }

    /// How long to wait before the next attempt: never less than half the first delay, never more than the longest.
    pub fn delay(&mut self) -> Duration {
        let delay = self.backoff.next_backoff().unwrap_or(self.max);
        delay.clamp((self.first / 2).min(self.max), self.max)
    }

    /// An attempt succeeded: the next delay is the first one again.
    pub fn reset(&mut self) {
        self.backoff.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Duration = Duration::from_millis(100);
    const MAX: Duration = Duration::from_secs(1);

    #[test]
    fn delays_double_up_to_the_longest_and_start_again_after_success() {
        let mut retry = Retry::new(FIRST, MAX).without_jitter();
        let delays: Vec<u128> = (0..6).map(|_| retry.delay().as_millis()).collect();
        assert_eq!(delays, [100, 200, 400, 800, 1000, 1000]);
        retry.reset();
        assert_eq!(retry.delay(), FIRST);
    }

    #[test]
    fn jitter_stays_within_the_bounds() {
        let mut retry = Retry::new(FIRST, MAX);
        for _ in 0..1000 {
            let delay = retry.delay();
            assert!(delay >= FIRST / 2 && delay <= MAX, "{delay:?}");
        }
    }
}
