//! `vtepd validate`: judges records before they are put.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, BufRead, Read, Write},
    net::{IpAddr, Ipv6Addr},
    path::PathBuf,
    process::ExitCode,
};

use clap::Args;
use serde::Deserialize;

use super::{
    checks,
    options::{docker_prefix, prefixes_apart},
};
use crate::{
    desired::{Store, StoreConfig},
    model::Name,
    schema::{self, Change, Key, Kv, Reason, Rejected, docker},
};

/// The longest line that is read: the longest value with its quotes escaped, and its key.
const MAX_LINE: usize = 2 * docker::MAX_VALUE;

/// The options of `vtepd validate`.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Prefix of all keys
    #[arg(long, env = "VTEPD_PREFIX", default_value = "/vtepd/v1", value_parser = checks::prefix)]
    prefix: String,
    /// Prefix of Docker's layout of keys, whose records are judged as well
    #[arg(long, env = "VTEPD_DOCKER_PREFIX", value_parser = docker_prefix)]
    docker_prefix: Option<String>,
    /// Files with one JSON object {"key":…,"value":…} a line; - is standard input
    #[arg(required = true)]
    files: Vec<PathBuf>,
}

impl Arguments {
    /// Whether what is told goes together.
    pub(super) fn check(&self) -> Result<(), String> {
        prefixes_apart(&self.prefix, self.docker_prefix.as_deref())
    }
}

/// Judges all files as one set of records.
pub(super) fn run(arguments: &Arguments) -> ExitCode {
    let mut input: Box<dyn Read> = Box::new(io::empty());
    for file in &arguments.files {
        let next: Box<dyn Read> = if file.as_os_str() == "-" {
            Box::new(io::stdin())
        } else {
            match File::open(file) {
                Ok(file) => Box::new(file),
                Err(error) => return super::exit_code(Err(format!("{}: {error}", file.display()))),
            }
        };
        // A file without a newline at its end must not run into the next one.
        input = Box::new(input.chain(next).chain(&b"\n"[..]));
    }
    let docker = arguments.docker_prefix.as_deref();
    match validate(&arguments.prefix, docker, io::BufReader::new(input), &mut io::stdout().lock()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => super::exit_code(Err(error.to_string())),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    key: String,
    value: serde_json::Value,
}

/// Reads records, one JSON object `{"key":…,"value":…}` a line, the value as a string or as it is, and writes what is wrong
/// with them: each by itself, then with each other, as if they had been put in this order. Returns whether all are good.
///
/// # Errors
/// Reading or writing fails.
pub fn validate(
    prefix: &str,
    docker: Option<&str>,
    mut input: impl BufRead,
    out: &mut impl Write,
) -> Result<bool, io::Error> {
    let Ok(node) = "validate".parse() else { return Ok(false) };
    let mut good = true;
    let mut created = BTreeMap::new();
    let mut records = Vec::new();
    let mut nodes = Nodes::default();
    for number in 1_i64.. {
        let mut line = Vec::new();
        if input.by_ref().take(MAX_LINE as u64).read_until(b'\n', &mut line)? == 0 {
            break;
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        let too_long = line.len() == MAX_LINE && !line.ends_with(b"\n");
        if too_long {
            writeln!(out, "line {number}: {}: is longer than {MAX_LINE} bytes", Reason::Size)?;
            return Ok(false);
        }
        let (whole, value) = match serde_json::from_slice::<Line>(&line) {
            Ok(Line { key, value: serde_json::Value::String(value) }) => (key.into_bytes(), value.into_bytes()),
            Ok(Line { key, value }) => (key.into_bytes(), value.to_string().into_bytes()),
            Err(error) => {
                good = false;
                writeln!(out, "line {number}: {}: {error}", Reason::Json)?;
                continue;
            }
        };
        let judged = match docker.filter(|prefix| lies_below(prefix, &whole)) {
            Some(prefix) => judge_docker(prefix, &whole, &value),
            None => judge(prefix, &whole, &value, &mut nodes),
        };
        if let Err(rejected) = judged {
            good = false;
            writeln!(out, "{rejected}")?;
            continue;
        }
        let create_revision = *created.entry(whole.clone()).or_insert(number);
        records.push(Change::Put(Kv { key: whole, value, create_revision, mod_revision: number }));
    }
    let mut store = Store::new(StoreConfig {
        prefix: prefix.to_owned(),
        docker_prefix: docker.map(str::to_owned),
        node,
        vtep: None,
        host_endpoints: true,
        underlay_mtu: 1500,
        max_removal: 50,
    });
    store.changes(0, nodes.stand_ins(prefix));
    for change in records {
        store.changes(change.revision(), vec![change]);
    }
    for rejected in store.rejections() {
        good = false;
        writeln!(out, "{rejected}")?;
    }
    for conflict in store.conflicts() {
        good = false;
        let (key, holder) = (store.whole_key(&conflict.key), store.whole_key(&conflict.holder));
        writeln!(out, "{key}: {}: conflict: {} is held by {holder}", conflict.field, conflict.claim)?;
    }
    Ok(good)
}

/// Judges records by themselves, before they are put; each a whole key with its value.
///
/// # Errors
/// All that is wrong with them, a line each.
pub(super) fn judge_all<'r>(prefix: &str, records: impl Iterator<Item = (&'r str, &'r str)>) -> Result<(), String> {
    let mut nodes = Nodes::default();
    let judged = records.map(|(key, value)| judge(prefix, key.as_bytes(), value.as_bytes(), &mut nodes));
    let wrong: Vec<String> = judged.filter_map(Result::err).map(|rejected| rejected.to_string()).collect();
    if wrong.is_empty() { Ok(()) } else { Err(format!("nothing was written:\n  {}", wrong.join("\n  "))) }
}

fn unsupported(whole: &[u8], field: &str) -> Result<(), Rejected> {
    let message = "is not supported yet: the record would be blocked";
    Err(Rejected::new(whole, field, Reason::Unsupported, message))
}

fn lies_below(prefix: &str, whole: &[u8]) -> bool {
    whole.strip_prefix(prefix.as_bytes()).is_some_and(|rest| rest.starts_with(b"/"))
}

/// The same of a record in Docker's layout, where most keys mean nothing.
fn judge_docker(prefix: &str, whole: &[u8], value: &[u8]) -> Result<(), Rejected> {
    match docker::Key::parse(prefix, whole)? {
        Some(docker::Key::Network(_)) => drop(docker::network(whole, value)?),
        Some(docker::Key::Overlay(_)) if docker::overlay(whole, value)?.secure => return unsupported(whole, "secure"),
        Some(docker::Key::Overlay(_)) | None => {}
        Some(docker::Key::Endpoint { .. }) => drop(docker::endpoint(whole, value)?),
    }
    Ok(())
}

/// What is wrong with a record by itself, or cannot be honoured by this version.
fn judge(prefix: &str, whole: &[u8], value: &[u8], nodes: &mut Nodes) -> Result<(), Rejected> {
    let unsupported = |field: &str| unsupported(whole, field);
    match Key::parse(prefix, whole)? {
        Key::Node(node) => {
            schema::node(whole, value)?;
            nodes.given.insert(node);
        }
        Key::Network(_) => {
            let network = schema::network(whole, value)?;
            if network.secure {
                return unsupported("secure");
            }
        }
        Key::Endpoint { id, .. } => {
            nodes.named.insert(id.node);
            schema::endpoint(whole, value)?;
        }
        Key::Store => drop(schema::store(whole, value)?),
        Key::Approval(_) => {
            schema::approval(whole, value)?;
        }
        Key::Status(_) => {}
    }
    Ok(())
}

/// Nodes register themselves, and endpoints are often put before: a node that is only named is taken to exist.
#[derive(Default)]
struct Nodes {
    named: BTreeSet<Name>,
    given: BTreeSet<Name>,
}

impl Nodes {
    /// Records for nodes that are only named, each with an address of its own out of the discard prefix (RFC 6666).
    fn stand_ins(&self, prefix: &str) -> Vec<Change> {
        let record = |(number, node): (u128, &Name)| {
            let vtep = IpAddr::V6(Ipv6Addr::from_bits((0x0100_u128 << 112) + number));
            let key = Key::Node(node.clone()).under(prefix).into_bytes();
            let value = serde_json::json!({ "vtep": vtep }).to_string().into_bytes();
            Change::Put(Kv { key, value, create_revision: 0, mod_revision: 0 })
        };
        (1..).zip(self.named.difference(&self.given)).map(record).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn validated(lines: &str) -> (bool, String) {
        let mut out = Vec::new();
        let good = validate("/vtepd/v1", Some("/docker/network/v1.0"), lines.as_bytes(), &mut out).unwrap();
        (good, String::from_utf8(out).unwrap())
    }

    const NETWORK: &str = r#"{"key":"/vtepd/v1/networks/n","value":{"subnets":[{"cidr":"10.0.0.0/24","vni":256}]}}"#;

    #[test]
    fn good_records_say_nothing_with_their_values_as_text_or_as_they_are() {
        let lines = [
            NETWORK,
            "",
            r#"{"key":"/vtepd/v1/nodes/a","value":"{\"vtep\":\"192.168.0.1\"}"}"#,
            r#"{"key":"/vtepd/v1/endpoints/n/a/e1","value":{"ip":["10.0.0.2"],"netns":"/run/netns/x"}}"#,
            r#"{"key":"/vtepd/v1/endpoints/n/b/e2","value":{"ip":["10.0.0.3"]}}"#,
        ];
        assert_eq!(validated(&lines.join("\n")), (true, String::new()));
    }

    #[test]
    fn each_bad_record_is_named_with_field_and_reason() {
        let lines = [
            r#"{"key":"/vtepd/v1/nodes/a","value":{"vtpe":"192.168.0.1"}}"#,
            "not json",
            r#"{"key":"/vtepd/v1/networks/n","value":{"subnets":[{"cidr":"10.0.0.1/24","vni":256}]}}"#,
            r#"{"key":"/vtepd/v1/networks/s","value":{"subnets":[{"cidr":"10.0.0.0/24","vni":2}],"secure":true}}"#,
            r#"{"key":"/elsewhere/a","value":{}}"#,
            r#"{"key":"/vtepd/v1/approvals/n","value":{"revision":0}}"#,
        ];
        let (good, out) = validated(&lines.join("\n"));
        let starts = [
            "/vtepd/v1/nodes/a: vtep: missing_field: ",
            "line 2: json: ",
            "/vtepd/v1/networks/n: subnets[0].cidr: value: 10.0.0.1/24 has host bits",
            "/vtepd/v1/networks/s: secure: unsupported: ",
            "/elsewhere/a: key: ",
            "/vtepd/v1/approvals/n: revision: value: ",
        ];
        assert!(!good);
        let lines: Vec<&str> = out.lines().collect();
        assert_eq!(lines.len(), starts.len(), "{out}");
        for (line, start) in lines.iter().zip(starts) {
            assert!(line.starts_with(start), "{line}");
        }
    }

    #[test]
    fn records_that_do_not_go_together_are_named_although_no_node_is_given() {
        let lines = [
            NETWORK,
            r#"{"key":"/vtepd/v1/networks/m","value":{"subnets":[{"cidr":"10.9.0.0/24","vni":256}]}}"#,
            r#"{"key":"/vtepd/v1/endpoints/n/a/e1","value":{"ip":["10.0.0.2"]}}"#,
            r#"{"key":"/vtepd/v1/endpoints/n/b/e2","value":{"ip":["10.0.0.2"]}}"#,
            r#"{"key":"/vtepd/v1/endpoints/n/b/e3","value":{"ip":["10.0.1.2"]}}"#,
        ];
        let (good, out) = validated(&lines.join("\n"));
        assert!(!good);
        let expected = "/vtepd/v1/endpoints/n/b/e3: ip[0]: misfit: 10.0.1.2 is in no subnet of the network\n\
            /vtepd/v1/networks/m: subnets: conflict: VNI 256 on port 4789 is held by /vtepd/v1/networks/n\n\
            /vtepd/v1/endpoints/n/b/e2: ip: conflict: 10.0.0.2 on VNI 256 is held by /vtepd/v1/endpoints/n/a/e1\n";
        assert_eq!(out, expected);
    }

    #[test]
    fn dockers_records_are_judged_with_the_native_ones() {
        let demo = include_str!("../../tests/fixtures/docker/demo.jsonl");
        let below: Vec<&str> = demo.lines().filter(|line| line.contains("/docker/network/v1.0/")).collect();
        assert_eq!(validated(&below.join("\n")), (true, String::new()));
        let nid = "d6c35f4f5a6969dd5907c7049e56ae746d1ba947f478129cfbada23e558082eb";
        let third = "3".repeat(64);
        let endpoint = format!(
            r#"{{"key":"/docker/network/v1.0/endpoint/{nid}/{third}","value":{{"ep_iface":{{"addr":"10.0.0.3/24","mac":"02:42:0a:00:00:09"}},"locator":"192.168.205.10"}}}}"#
        );
        let secure = format!(r#"{{"key":"/docker/network/v1.0/overlay/network/{third}","value":{{"secure":true}}}}"#);
        let lines = [&below.join("\n"), NETWORK, &endpoint, &secure].map(|line| format!("{line}\n")).concat();
        let (good, out) = validated(&lines);
        assert!(!good);
        let second = "fc8bd3d7e7cd9e8ad07463566bcb877783eb1adc5b019346f92a72e04837bd3f";
        let prefix = "/docker/network/v1.0";
        let expected = format!(
            "{prefix}/overlay/network/{third}: secure: unsupported: is not supported yet: the record would be blocked\n\
            /vtepd/v1/networks/n: subnets: conflict: VNI 256 on port 4789 is held by {prefix}/overlay/network/{nid}\n\
            {prefix}/endpoint/{nid}/{third}: ep_iface.addr: conflict: 10.0.0.3 on VNI 256 is held by \
            {prefix}/endpoint/{nid}/{second}\n"
        );
        assert_eq!(out, expected);
    }
}
