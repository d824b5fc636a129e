//! Samples, and how they are printed.

use std::{fmt, time::Duration};

/// Durations of one kind.
#[derive(Clone, Debug, Default)]
pub(crate) struct Samples(Vec<Duration>);

impl Samples {
    pub(crate) fn push(&mut self, sample: Duration) {
        let at = self.0.partition_point(|other| *other <= sample);
        self.0.insert(at, sample);
    }

    /// The value that `share` of all samples do not exceed.
    pub(crate) fn quantile(&self, share: f64) -> Duration {
        let rank = (share * self.0.len() as f64).ceil() as usize;
        self.0[rank.clamp(1, self.0.len()) - 1]
    }

    pub(crate) fn median(&self) -> Duration {
        self.quantile(0.5)
    }
}

impl fmt::Display for Samples {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [p50, p90, p99, most] = [0.5, 0.9, 0.99, 1.0].map(|share| short(self.quantile(share)));
        write!(f, "p50 {p50:>7}  p90 {p90:>7}  p99 {p99:>7}  max {most:>7}")
    }
}

/// With three figures, in the unit that suits it.
pub(crate) fn short(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    let (value, unit) = match seconds {
        s if s < 1e-3 => (s * 1e6, "us"),
        s if s < 1.0 => (s * 1e3, "ms"),
        s => (s, "s"),
    };
    let digits = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    format!("{value:.digits$} {unit}")
}

/// `= 0.4x of one bridge process (1.5 ms)`.
pub(crate) fn ratio(value: Duration, base: Duration, of: &str) -> String {
    let times = value.as_secs_f64() / base.as_secs_f64();
    let digits = if times < 10.0 { 2 } else { 0 };
    format!("= {times:.digits$}x of {of} ({})", short(base))
}

/// One line of the table.
pub(crate) fn line(what: &str, figures: impl fmt::Display, ratios: &[String]) {
    println!("{what:<34} {figures}   {}", ratios.join(", "));
}
