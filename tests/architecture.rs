//! The layering that ARCHITECTURE.md describes, held against the text of `src/`.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test ends where something is not as it should be"
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

/// What a part of the crate may use of the others. `lab`, on which the demo and the tests run, and `cli` may use everything.
const MAY_USE: [(&str, &[&str]); 10] = [
    ("model", &[]),
    ("schema", &["model"]),
    ("retry", &[]),
    ("desired", &["model", "schema"]),
    ("engine", &["desired", "model", "retry"]),
    ("etcd", &["desired", "model", "retry", "schema"]),
    ("kernel", &["engine", "model"]),
    ("metrics", &["engine"]),
    ("http", &[]),
    ("agent", &["desired", "engine", "etcd", "http", "kernel", "metrics", "model", "retry", "schema"]),
];

/// What is pure: no clock, no I/O, no order that differs from run to run.
const PURE: [&str; 4] = ["model", "schema", "desired", "engine"];

/// Words that have no place in what is pure.
const IMPURE: [&str; 20] = [
    "tokio",
    "nix",
    "libc",
    "Instant",
    "SystemTime",
    "fs",
    "env",
    "process",
    "thread",
    "File",
    "UdpSocket",
    "TcpStream",
    "TcpListener",
    "UnixStream",
    "Mutex",
    "RwLock",
    "HashMap",
    "HashSet",
    "RandomState",
    "rand",
];

/// The code of `src/` by path below it: without comments, and without what is compiled for tests only.
fn sources() -> BTreeMap<String, String> {
    let mut sources = BTreeMap::new();
    read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), "", &mut sources);
    assert!(sources.len() > 40, "src/ was not found");
    let tests: Vec<String> = sources.iter().flat_map(|(path, code)| test_files(path, code)).collect();
    sources.retain(|path, _| !tests.contains(path));
    sources.values_mut().for_each(|code| {
        let end = code.find("#[cfg(test)]\nmod tests {").unwrap_or(code.len());
        code.truncate(end);
    });
    sources
}

fn read(dir: &Path, prefix: &str, sources: &mut BTreeMap<String, String>) {
    read_whole(dir, prefix, sources);
    for text in sources.values_mut() {
        let code: Vec<&str> = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
        *text = code.join("\n");
    }
}

fn read_whole(dir: &Path, prefix: &str, sources: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if entry.file_type().unwrap().is_dir() {
            read_whole(&entry.path(), &format!("{prefix}{name}/"), sources);
        } else if name.ends_with(".rs") {
            sources.insert(format!("{prefix}{name}"), fs::read_to_string(entry.path()).unwrap());
        }
    }
}

/// The files of modules that a file declares for tests only.
fn test_files(path: &str, code: &str) -> Vec<String> {
    let dir = path.trim_end_matches("mod.rs");
    let declared = code.split("#[cfg(test)]\nmod ").skip(1);
    let names = declared.filter_map(|rest| rest.split_once(';')).map(|(name, _)| name);
    names.filter(|name| !name.contains(char::is_whitespace)).map(|name| format!("{dir}{name}.rs")).collect()
}

/// The part of the crate that a file belongs to.
fn part(path: &str) -> &str {
    path.split('/').next().unwrap().trim_end_matches(".rs")
}

fn words(code: &str) -> BTreeSet<&str> {
    code.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty()).collect()
}

/// The parts of the crate that code names by `crate::part` or in `use crate::{…}`.
fn parts_used(code: &str) -> BTreeSet<String> {
    let mut used = BTreeSet::new();
    for rest in code.split("crate::").skip(1) {
        let Some(group) = rest.strip_prefix('{') else {
            used.extend(first_word(rest));
            continue;
        };
        let (mut depth, mut item) = (0, true);
        for (at, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => item = true,
                c if item && !c.is_whitespace() => {
                    used.extend(first_word(&group[at..]));
                    item = false;
                }
                _ => {}
            }
        }
    }
    used
}

fn first_word(text: &str) -> Option<String> {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    (end > 0).then(|| text[..end].to_owned())
}

/// The files in which `mentions` finds something, with what it found.
fn files(mentions: impl Fn(&str) -> bool) -> Vec<String> {
    sources().into_iter().filter(|(_, code)| mentions(code)).map(|(path, _)| path).collect()
}

#[test]
fn only_the_etcd_edge_mentions_the_etcd_client() {
    let files = files(|code| code.contains("etcd_client"));
    assert!(files.contains(&"etcd/session.rs".to_owned()), "this test looks in the wrong place");
    assert!(files.iter().all(|file| part(file) == "etcd"), "{files:?}");
}

#[test]
fn only_the_kernel_edge_and_the_lab_mention_netlink() {
    let files = files(|code| words(code).iter().any(|word| word.starts_with("netlink_") || *word == "rtnetlink"));
    assert!(files.contains(&"kernel/socket.rs".to_owned()), "this test looks in the wrong place");
    let elsewhere: Vec<_> = files.iter().filter(|file| !["kernel", "lab"].contains(&part(file))).collect();
    assert!(elsewhere.is_empty(), "{elsewhere:?}");
}

#[test]
fn only_the_http_edge_mentions_axum() {
    assert_eq!(files(|code| words(code).contains("axum")), ["http.rs"]);
}

#[test]
fn only_our_own_retry_mentions_the_unmaintained_backoff() {
    assert_eq!(files(|code| code.contains("backoff::")), ["retry.rs"]);
}

#[test]
fn only_the_metrics_mention_prometheus() {
    assert_eq!(files(|code| code.contains("prometheus::")), ["metrics.rs"]);
}

#[test]
fn the_pure_parts_have_no_clock_no_io_and_no_hash_order() {
    for (path, code) in sources().iter().filter(|(path, _)| PURE.contains(&part(path))) {
        let words = words(code);
        let found: Vec<_> = IMPURE.iter().filter(|word| words.contains(**word)).collect();
        assert!(found.is_empty(), "{path} mentions {found:?}");
    }
}

#[test]
fn edges_depend_on_the_engine_and_never_the_engine_on_an_edge() {
    let allowed = BTreeMap::from(MAY_USE);
    for (path, code) in sources() {
        let part = part(&path);
        let Some(allowed) = allowed.get(part) else {
            assert!(["lib", "main", "cli", "lab"].contains(&part), "{path}: what may {part} use?");
            continue;
        };
        let used = parts_used(&code);
        let beyond: Vec<_> = used.iter().filter(|used| *used != part && !allowed.contains(&used.as_str())).collect();
        assert!(beyond.is_empty(), "{path} uses {beyond:?}");
    }
}

#[test]
fn the_parts_in_a_grouped_use_are_all_seen() {
    let code = "use crate::{\n    desired::{A, engine_like::B},\n    model::C,\n    retry,\n};\nfn f() { crate::http::serve() }";
    let used: Vec<String> = parts_used(code).into_iter().collect();
    assert_eq!(used, ["desired", "http", "model", "retry"]);
}

#[test]
fn every_module_says_what_it_is_and_stands_in_the_map() {
    let map = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("ARCHITECTURE.md")).unwrap();
    let parts: BTreeSet<String> = sources().keys().map(|path| part(path).to_owned()).collect();
    for part in parts.iter().filter(|part| !["lib", "main"].contains(&part.as_str())) {
        let named = [format!("`src/{part}/`"), format!("`src/{part}.rs`")];
        assert!(named.iter().any(|named| map.contains(named)), "ARCHITECTURE.md says nothing about src/{part}");
    }
}

/// Invariants name the tests that hold them, in the map and in the documentation of modules; a test that was renamed or dropped must
/// not be named any more.
#[test]
fn every_test_that_an_invariant_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut named = fs::read_to_string(root.join("ARCHITECTURE.md")).unwrap();
    assert!(!named.contains("\n**Invariant:**"), "invariants stand in the documentation of the modules that they bind");
    let mut code = String::new();
    for dir in ["src", "tests"] {
        let mut files = BTreeMap::new();
        read_whole(&root.join(dir), "", &mut files);
        for text in files.into_values() {
            let docs = text.lines().map(str::trim_start).filter_map(|line| line.strip_prefix("//!"));
            let docs = docs.collect::<Vec<_>>().join("\n");
            named.extend(docs.split("**Invariant:**").skip(1).flat_map(|rest| rest.split("\n\n").take(1)));
            code.push_str(&text);
        }
    }
    // In back quotes, of four words and more: no other name is so long.
    let quoted = named.split('`').skip(1).step_by(2);
    let tests: BTreeSet<&str> = quoted
        .map(|name| name.rsplit("::").next().unwrap_or(name))
        .filter(|name| name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'))
        .filter(|name| name.matches('_').count() >= 4 && !name.starts_with("vtepd_"))
        .collect();
    assert!(tests.len() > 60, "invariants name their tests in another way now: {tests:?}");
    let missing: Vec<_> = tests.iter().filter(|name| !code.contains(&format!("fn {name}("))).collect();
    assert!(missing.is_empty(), "{missing:?}");
}
