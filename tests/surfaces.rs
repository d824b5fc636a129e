//! What people lean on is written down as it is: the series in README, dashboard and alerts, and the flags in README.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test ends where something is not as it should be")]

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use vtepd::metrics::Metrics;

fn file(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The names of series that stand in a text.
fn names(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("vtepd_")).map(str::to_owned).collect()
}

/// The series of a fresh agent once every gauge has a value, with the names under which Prometheus stores histograms.
fn exposed() -> (BTreeSet<String>, BTreeSet<String>) {
    let metrics = Metrics::new().unwrap();
    for gauges in [&metrics.desired, &metrics.observed] {
        gauges.with_label_values(&["n", "fdb"]).set(1);
    }
    metrics.in_sync.with_label_values(&["n"]).set(1);
    metrics.blocked.with_label_values(&["fdb", "exists"]).set(1);
    metrics.rejected.with_label_values(&["json"]).set(1);
    metrics.relists.with_label_values(&["start"]).inc();
    for gauges in [&metrics.drifting, &metrics.damped] {
        gauges.with_label_values(&["fdb"]).set(1);
    }
    let text = metrics.expose().unwrap();
    let families = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let families: BTreeSet<String> = families
        .filter_map(|line| line.split(' ').next())
        .filter(|name| name.starts_with("vtepd_"))
        .map(str::to_owned)
        .collect();
    let stored = names(&text);
    (families, stored)
}

#[test]
fn every_series_that_the_code_names_is_exposed() {
    let code = file("src/metrics.rs");
    let named: BTreeSet<String> = code
        .split('"')
        .filter(|text| text.starts_with("vtepd_") && text.chars().all(|c| c.is_ascii_lowercase() || c == '_'))
        .map(str::to_owned)
        .collect();
    let (families, _) = exposed();
    assert_eq!(named, families, "a new series: give it a value in this test, and a line in README.md");
}

#[test]
fn the_table_in_the_readme_has_every_series_and_no_other() {
    let readme = file("README.md");
    let table: BTreeSet<String> = readme
        .lines()
        .filter_map(|line| line.strip_prefix("| `vtepd_"))
        .filter_map(|rest| rest.split('`').next())
        .map(|name| format!("vtepd_{name}"))
        .collect();
    let (families, _) = exposed();
    assert_eq!(table, families);
}

#[test]
fn dashboard_alerts_and_readme_name_only_series_that_exist() {
    let (families, stored) = exposed();
    for path in ["README.md", "dashboards/vtepd.json", "deploy/alerts.yaml"] {
        let unknown: Vec<String> = names(&file(path)).into_iter().filter(|name| !stored.contains(name)).collect();
        assert!(unknown.is_empty(), "{path} names {unknown:?}; there are {families:?}");
    }
}

#[test]
fn the_dashboard_is_json_with_a_query_in_every_panel() {
    let dashboard: serde_json::Value = serde_json::from_str(&file("dashboards/vtepd.json")).unwrap();
    let panels = dashboard.get("panels").and_then(serde_json::Value::as_array).unwrap();
    let shown = panels.iter().filter(|panel| panel.get("type").is_some_and(|kind| kind != "row"));
    for panel in shown {
        let targets = panel.get("targets").and_then(serde_json::Value::as_array).unwrap();
        let queries = targets.iter().filter(|target| target.get("expr").is_some_and(|expr| expr != ""));
        assert!(queries.count() > 0, "{}", panel.get("title").unwrap());
    }
}

fn help(verb: &str) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_vtepd")).args([verb, "--help"]).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn flags(help: &str) -> BTreeSet<&str> {
    let words = help.split(|c: char| !c.is_ascii_alphanumeric() && c != '-');
    words.filter(|word| word.len() > 2 && word.starts_with("--")).collect()
}

#[test]
fn every_flag_and_variable_of_the_agent_stands_in_the_readme() {
    let (readme, help) = (file("README.md"), help("agent"));
    let flags = flags(&help);
    assert!(flags.contains("--vtep"), "{help}");
    let missing: Vec<_> = flags.iter().filter(|flag| !readme.contains(&format!("`{flag}"))).collect();
    assert!(missing.is_empty(), "{missing:?}");
    let variables = help.split("[env: ").skip(1).filter_map(|rest| rest.split(['=', ']']).next());
    let missing: Vec<_> = variables.filter(|name| !readme.contains(&format!("`{name}`"))).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn every_flag_of_the_readmes_table_is_one_of_the_agent() {
    let (readme, help) = (file("README.md"), help("agent"));
    let flags = flags(&help);
    let table =
        readme.lines().filter_map(|line| line.strip_prefix("| `--")).filter_map(|rest| rest.split([' ', '`']).next());
    let unknown: Vec<_> = table.filter(|flag| !flags.contains(format!("--{flag}").as_str())).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}

#[test]
fn the_example_of_settings_names_only_variables_of_the_agent() {
    let (example, help) = (file("deploy/vtepd.env.example"), help("agent"));
    let variables = example.lines().filter_map(|line| line.trim_start_matches('#').split_once('='));
    let unknown: Vec<_> = variables
        .map(|(name, _)| name)
        .filter(|name| name.starts_with("VTEPD_") && !help.contains(&format!("[env: {name}=")))
        .collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}

#[test]
fn every_verb_stands_in_the_readme() {
    let readme = file("README.md");
    let output = Command::new(env!("CARGO_BIN_EXE_vtepd")).arg("--help").output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    let verbs = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    for verb in verbs.filter_map(|line| line.split_whitespace().next()).filter(|verb| *verb != "help") {
        assert!(readme.contains(&format!("`vtepd {verb}")), "{verb}");
    }
}
