//! How many lines are written to the log: ten thousand of a kind at once are a number, not as many lines.

use std::time::{Duration, Instant};

/// A writer may write as many lines as it is given in this time.
const WINDOW: Duration = Duration::from_secs(1);

/// The pace of one writer.
#[derive(Debug)]
pub(super) struct Pace {
    lines: u32,
    since: Instant,
    written: u32,
    suppressed: u64,
}

impl Pace {
    /// So many lines a second.
    pub(super) fn new(lines: u32) -> Self {
        Self { lines, since: Instant::now(), written: 0, suppressed: 0 }
    }

    /// Whether one more line may be written; it counts as suppressed if not. `say` is told how many were, once their time is
    /// over.
    pub(super) fn allows(&mut self, say: impl FnOnce(u64)) -> bool {
        self.turn(say);
        let allowed = self.written < self.lines;
        self.written += u32::from(allowed);
        self.suppressed += u64::from(!allowed);
        allowed
    }

    /// Tells how many lines were suppressed, once their time is over.
    pub(super) fn turn(&mut self, say: impl FnOnce(u64)) {
        if self.since.elapsed() > WINDOW {
            if self.suppressed > 0 {
                say(self.suppressed);
            }
            *self = Self::new(self.lines);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_thousand_lines_at_once_are_fifty_and_a_number() {
        let mut pace = Pace::new(50);
        let written = (0..10_000).filter(|_| pace.allows(|_| ())).count();
        // A slow machine may take more than one window for it.
        assert!((50..1000).contains(&written), "{written}");
        let mut told = None;
        pace.since = pace.since.checked_sub(2 * WINDOW).unwrap();
        pace.turn(|lines| told = Some(lines));
        assert!(told.is_some());
        assert!(pace.allows(|lines| panic!("{lines} are told twice")));
    }
}
