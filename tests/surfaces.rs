//! What people lean on is written down as it is: series, flags, variables and verbs in README and `docs/`, series in dashboard and
//! alerts as well. `docs/` hangs together: every link leads somewhere, and README names every page.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test ends where something is not as it should be")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
};

use vtepd::metrics::Metrics;

fn file(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// README and the pages of `docs/`, by path.
fn documents() -> BTreeMap<String, String> {
    let pages = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs")).unwrap();
    let names = pages.map(|page| page.unwrap().file_name().into_string().unwrap());
    let pages = names.filter(|name| name.ends_with(".md")).map(|name| format!("docs/{name}"));
    let documents: BTreeMap<_, _> =
        pages.chain(["README.md".to_owned()]).map(|path| (path.clone(), file(&path))).collect();
    assert!(documents.len() > 10, "docs/ was not found");
    documents
}

/// The names of series that stand in a text; `vtepd_*` and the like are none.
fn names(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("vtepd_") && !word.ends_with('_')).map(str::to_owned).collect()
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
    assert_eq!(named, families, "a new series: give it a value in this test, and a line in docs/metrics.md");
}

#[test]
fn the_table_of_metrics_has_every_series_and_no_other_and_says_what_to_do() {
    let page = file("docs/metrics.md");
    let mut table = BTreeSet::new();
    for row in page.lines().filter(|line| line.starts_with("| `vtepd_")) {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        assert_eq!(cells.len(), 4, "name, type, meaning, what to do when it moves: {row}");
        assert!(cells.iter().all(|cell| cell.len() > 4), "an empty cell: {row}");
        table.insert(row.split('`').nth(1).unwrap().to_owned());
    }
    let (families, _) = exposed();
    assert_eq!(table, families);
}

#[test]
fn dashboard_alerts_and_documents_name_only_series_that_exist() {
    let (families, stored) = exposed();
    let mut texts = documents();
    for path in ["dashboards/fleet.json", "dashboards/host.json", "deploy/alerts.yaml"] {
        texts.insert(path.to_owned(), file(path));
    }
    for (path, text) in texts {
        let unknown: Vec<String> = names(&text).into_iter().filter(|name| !stored.contains(name)).collect();
        assert!(unknown.is_empty(), "{path} names {unknown:?}; there are {families:?}");
    }
}

#[test]
fn the_dashboards_are_json_with_a_query_in_every_panel_and_none_is_made_green_by_a_constant() {
    for path in ["dashboards/fleet.json", "dashboards/host.json"] {
        let text = file(path);
        assert!(!text.contains("or vector("), "{path}: where nobody answers nothing is known, and that is not 0");
        every_panel_has_a_query(&serde_json::from_str(&text).unwrap());
    }
}

fn every_panel_has_a_query(dashboard: &serde_json::Value) {
    let panels = dashboard.get("panels").and_then(serde_json::Value::as_array).unwrap();
    let shown = panels.iter().filter(|panel| panel.get("type").is_some_and(|kind| kind != "row"));
    for panel in shown {
        let targets = panel.get("targets").and_then(serde_json::Value::as_array).unwrap();
        let queries = targets.iter().filter(|target| target.get("expr").is_some_and(|expr| expr != ""));
        assert!(queries.count() > 0, "{}", panel.get("title").unwrap());
    }
}

#[test]
fn the_alerts_fire_when_and_as_often_as_they_should_by_prometheus_own_word() {
    for arguments in [["check", "rules", "deploy/alerts.yaml"], ["test", "rules", "tests/fixtures/alerts.yaml"]] {
        let promtool = Command::new("promtool").args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output();
        let output = promtool.expect("promtool is installed: make deps");
        let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
        assert!(output.status.success(), "{said}");
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

/// The verbs that `vtepd --help` lists.
fn verbs() -> Vec<String> {
    let output = Command::new(env!("CARGO_BIN_EXE_vtepd")).arg("--help").output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    let verbs = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let verbs = verbs.filter_map(|line| line.split_whitespace().next()).filter(|verb| *verb != "help");
    verbs.map(str::to_owned).collect()
}

#[test]
fn every_flag_and_variable_of_the_agent_stands_in_the_settings() {
    let (page, help) = (file("docs/settings.md"), help("agent"));
    let flags = flags(&help);
    assert!(flags.contains("--vtep"), "{help}");
    let missing: Vec<_> = flags.iter().filter(|flag| !page.contains(&format!("`{flag}"))).collect();
    assert!(missing.is_empty(), "{missing:?}");
    let variables = help.split("[env: ").skip(1).filter_map(|rest| rest.split(['=', ']']).next());
    let missing: Vec<_> = variables.filter(|name| !page.contains(&format!("`{name}`"))).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn every_flag_of_the_table_of_settings_is_one_of_the_agent() {
    let (page, help) = (file("docs/settings.md"), help("agent"));
    let flags = flags(&help);
    let table =
        page.lines().filter_map(|line| line.strip_prefix("| `--")).filter_map(|rest| rest.split([' ', '`']).next());
    let unknown: Vec<_> = table.filter(|flag| !flags.contains(format!("--{flag}").as_str())).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}

#[test]
fn every_verb_stands_in_the_documents_with_each_flag_of_its_own() {
    let (settings, verbs_page) = (file("docs/settings.md"), file("docs/verbs.md"));
    for verb in verbs() {
        assert!(verbs_page.contains(&format!("`vtepd {verb}")), "docs/verbs.md says nothing about {verb}");
        let (help, documented) = (help(&verb), format!("{settings}{verbs_page}"));
        let missing: Vec<_> = flags(&help)
            .into_iter()
            .filter(|flag| !["`", "[", " "].iter().any(|before| documented.contains(&format!("{before}{flag}"))))
            .collect();
        assert!(missing.is_empty(), "vtepd {verb}: {missing:?} stand neither in docs/settings.md nor in docs/verbs.md");
    }
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

/// The anchors of a page as GitHub makes them: its headings in lower case, spaces as hyphens, without punctuation.
fn anchors(page: &str) -> BTreeSet<String> {
    let headings = page.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    let kept = |c: char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
    headings
        .map(|text| text.to_lowercase().chars().filter(|c| kept(*c)).collect::<String>().replace(' ', "-"))
        .collect()
}

#[test]
fn every_link_of_the_documents_leads_somewhere() {
    let documents = documents();
    for (path, text) in &documents {
        let dir = Path::new(path).parent().unwrap();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if target.starts_with("http") {
                continue;
            }
            let (page, anchor) = target.split_once('#').unwrap_or((target, ""));
            let page =
                if page.is_empty() { path.clone() } else { dir.join(page).to_str().unwrap().replace("docs/../", "") };
            assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join(&page).exists(), "{path} links to {target}");
            let known = documents.get(&page).is_some_and(|page| anchors(page).contains(anchor));
            assert!(anchor.is_empty() || known, "{path} links to {target}, and there is no such heading");
        }
    }
}

#[test]
fn the_readme_is_short_and_names_every_page() {
    let readme = file("README.md");
    let lines = readme.lines().count();
    assert!(lines <= 180, "README.md has {lines} lines: what not every newcomer needs belongs in docs/");
    let pages = documents().into_keys().filter(|path| path != "README.md");
    let missing: Vec<_> = pages.filter(|page| !readme.contains(&format!("({page})"))).collect();
    assert!(missing.is_empty(), "{missing:?}");
}
