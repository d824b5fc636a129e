use std::collections::BTreeMap;

/// One series of a scrape.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// The metric's name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its value.
    pub value: f64,
    /// The line as it was served.
    pub line: String,
}

/// What a metrics page says, in its order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metrics {
    /// Every series.
    pub series: Vec<Series>,
}

impl Metrics {
    /// Reads a page in the Prometheus text format; what is not a series is left out.
    pub fn parse(page: &str) -> Self {
        Self { series: page.lines().filter(|line| !line.starts_with('#')).filter_map(parse_line).collect() }
    }

    /// The sum of the series of that name that carry these labels; `None` where there is none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let mut values = self.matching(name, labels).map(|series| series.value).peekable();
        values.peek()?;
        Some(values.sum())
    }

    /// The sum of the series of that name that carry these labels; a counter that was never touched counts as zero.
    pub fn count(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.sum(name, labels).unwrap_or(0.0)
    }

    fn matching<'a>(&'a self, name: &'a str, labels: &'a [(&'a str, &'a str)]) -> impl Iterator<Item = &'a Series> {
        self.series.iter().filter(move |series| {
            let carries = |(key, value): &(&str, &str)| series.labels.get(*key).is_some_and(|v| v == value);
            series.name == name && labels.iter().all(carries)
        })
    }
}

fn parse_line(line: &str) -> Option<Series> {
    let line = line.trim();
    let end = line.find(|c: char| c == '{' || c.is_whitespace())?;
    let (name, mut rest) = line.split_at_checked(end)?;
    let mut labels = BTreeMap::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = parse_labels(inside, &mut labels)?;
    }
    let value = rest.split_whitespace().next()?.parse().ok()?;
    Some(Series { name: name.to_owned(), labels, value, line: line.to_owned() })
}

/// Reads `key="value",…}` and returns what follows.
fn parse_labels<'a>(mut text: &'a str, labels: &mut BTreeMap<String, String>) -> Option<&'a str> {
    loop {
        text = text.trim_start_matches([',', ' ']);
        if let Some(rest) = text.strip_prefix('}') {
            return Some(rest);
        }
        let (key, quoted) = text.split_once("=\"")?;
        let mut value = String::new();
        let mut chars = quoted.char_indices();
        text = loop {
            match chars.next()? {
                (at, '"') => break quoted.get(at + 1..)?,
                (_, '\\') => match chars.next()?.1 {
                    'n' => value.push('\n'),
                    other => value.push(other),
                },
                (_, other) => value.push(other),
            }
        };
        labels.insert(key.to_owned(), value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = r#"# HELP vtepd_drift_total What was found different.
# TYPE vtepd_drift_total counter
vtepd_drift_total{kind="fdb",reason="missing"} 2
vtepd_drift_total{kind="fdb",reason="changed"} 1
vtepd_drift_total{kind="neighbour",reason="missing"} 4
vtepd_etcd_connected 1
vtepd_repair_duration_seconds_bucket{le="+Inf"} 7
odd{text="a \"b\", c}\n"} NaN 1700000000000
not a series
"#;

    #[test]
    fn series_are_found_by_name_and_labels() {
        let metrics = Metrics::parse(PAGE);
        assert_eq!(metrics.sum("vtepd_drift_total", &[("kind", "fdb")]), Some(3.0));
        assert_eq!(metrics.sum("vtepd_drift_total", &[("kind", "fdb"), ("reason", "missing")]), Some(2.0));
        assert_eq!(metrics.sum("vtepd_drift_total", &[("kind", "link")]), None);
        assert_eq!(metrics.count("vtepd_drift_total", &[("kind", "link")]), 0.0);
        assert_eq!(metrics.sum("vtepd_etcd_connected", &[]), Some(1.0));
    }

    #[test]
    fn escaped_labels_are_read_as_they_were_meant_and_text_is_left_out() {
        let metrics = Metrics::parse(PAGE);
        let odd = metrics.series.iter().find(|s| s.name == "odd").unwrap();
        assert_eq!(odd.labels["text"], "a \"b\", c}\n");
        assert!(odd.value.is_nan());
        assert!(metrics.series.iter().all(|s| s.name != "not"));
    }
}
