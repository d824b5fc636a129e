//! Samples, and the table that they are printed in: as text while it is measured, and at the end as JSON.

use std::{
    fmt, fs,
    path::Path,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use serde_json::{Value, json};

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

/// One row of the table. It is printed, and kept for the JSON, when it is [`Figure::done`].
pub(crate) struct Figure {
    what: String,
    text: String,
    seconds: Option<f64>,
    json: Value,
    beside: Vec<String>,
}

impl Figure {
    fn new(what: impl Into<String>, text: String, seconds: Option<f64>, mut json: Value) -> Self {
        let what = what.into();
        json["what"] = json!(what);
        json["beside"] = json!([]);
        Self { what, text, seconds, json, beside: Vec::new() }
    }

    /// What took so long, once.
    pub(crate) fn time(what: impl Into<String>, took: Duration) -> Self {
        let seconds = took.as_secs_f64();
        Self::new(what, short(took), Some(seconds), json!({ "seconds": seconds }))
    }

    /// What was measured many times; the median is what the ratios are of.
    pub(crate) fn samples(what: impl Into<String>, samples: &Samples) -> Self {
        let [p50, p90, p99, most] = [0.5, 0.9, 0.99, 1.0].map(|share| samples.quantile(share).as_secs_f64());
        let json = json!({ "seconds": p50, "p90": p90, "p99": p99, "max": most, "samples": samples.0.len() });
        Self::new(what, samples.to_string(), Some(p50), json)
    }

    /// Some other quantity.
    pub(crate) fn quantity(what: impl Into<String>, value: f64, unit: &str) -> Self {
        let digits = if value < 10.0 { 2 } else { 0 };
        let (text, json) = (format!("{value:.digits$} {unit}"), json!({ "value": value, "unit": unit }));
        Self::new(what, text, None, json)
    }

    /// What took so long beside it in the same run, and the ratio to that.
    pub(crate) fn against(mut self, of: &str, base: Duration) -> Self {
        let base_seconds = base.as_secs_f64();
        if let Some(seconds) = self.seconds {
            self.beside.push(ratio_text(seconds / base_seconds, base, of));
            let entry = json!({ "of": of, "seconds": base_seconds, "ratio": seconds / base_seconds });
            self.json["beside"].as_array_mut().unwrap().push(entry);
        }
        self
    }

    /// What it is meant to be.
    pub(crate) fn goal(mut self, goal: &str) -> Self {
        self.beside.push(format!("goal {goal}"));
        self.json["goal"] = json!(goal);
        self
    }

    /// What else there is to say about it.
    pub(crate) fn note(mut self, note: impl Into<String>) -> Self {
        let note = note.into();
        self.json["note"] = json!(note);
        self.beside.push(note);
        self
    }

    /// Prints it.
    pub(crate) fn done(self) {
        println!("{:<38} {}   {}", self.what, self.text, self.beside.join(", "));
        table().figures.push(self.json);
    }
}

/// `= 0.4x of one bridge process (1.5 ms)`.
pub(crate) fn ratio(value: Duration, base: Duration, of: &str) -> String {
    ratio_text(value.as_secs_f64() / base.as_secs_f64(), base, of)
}

fn ratio_text(times: f64, base: Duration, of: &str) -> String {
    let digits = if times < 10.0 { 2 } else { 0 };
    format!("= {times:.digits$}x of {of} ({})", short(base))
}

/// One line of the table that is text alone.
pub(crate) fn line(what: &str, figures: impl fmt::Display, ratios: &[String]) {
    let (figures, ratios) = (figures.to_string(), ratios.join(", "));
    println!("{what:<38} {figures}   {ratios}");
    table().figures.push(json!({ "what": what, "text": figures, "note": ratios }));
}

#[derive(Default)]
struct Tables {
    groups: Vec<(String, Vec<Value>)>,
    figures: Vec<Value>,
    title: String,
}

static TABLES: Mutex<Tables> = Mutex::new(Tables { groups: Vec::new(), figures: Vec::new(), title: String::new() });

fn table() -> std::sync::MutexGuard<'static, Tables> {
    TABLES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What comes next is about this.
pub(crate) fn title(title: impl Into<String>) {
    let title = title.into();
    println!("\n{title}");
    next_group(title);
}

fn next_group(title: String) {
    let mut tables = table();
    let before = (std::mem::replace(&mut tables.title, title), std::mem::take(&mut tables.figures));
    if !before.1.is_empty() {
        tables.groups.push(before);
    }
}

/// Writes all that was measured.
pub(crate) fn write(path: &Path, machine: &str) {
    next_group(String::new());
    let groups: Vec<Value> =
        table().groups.iter().map(|(title, figures)| json!({ "title": title, "figures": figures })).collect();
    let all = json!({ "machine": machine, "groups": groups });
    fs::write(path, serde_json::to_string_pretty(&all).unwrap()).unwrap();
    println!("as JSON: {}", path.display());
}
