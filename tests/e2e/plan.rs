//! `vtepd plan` says what the agent then does, and does nothing; `vtepd apply` writes what it showed.

use std::{collections::BTreeMap, fs};

use nix::sys::signal::Signal;
use serde_json::Value;
use vtepd::lab::{Agent, Host, Lab};

use crate::{
    ask::{json, output, said},
    hosts::{PREFIX, VTEPD, in_private, put, registered, run, start_all, started, until},
};

const NETWORK: &str = r#"{"subnets":[{"cidr":"10.0.0.0/24","vni":256}]}"#;

/// The agent's flags by which a plan is made, as the lab starts its agents.
fn plan_of<'a>(host: &'a Host, address: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["plan", "--node", host.name(), "--vtep", address], more].concat()
}

/// How many operations there are by network, kind and action.
type Ops = BTreeMap<(String, String, String), usize>;

/// How many operations of each network, kind and action a plan has, and its exit code.
fn planned(lab: &Lab, host: &Host) -> (Ops, Option<i32>) {
    let address = host.address().to_string();
    let output = output(lab, host, &plan_of(host, &address, &["--json"]));
    let plan: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("{error}: {} {}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    });
    let mut ops = BTreeMap::new();
    for network in plan["networks"].as_array().unwrap() {
        for op in network["ops"].as_array().unwrap() {
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            *ops.entry((text(&network["network"]), text(&op["kind"]), text(&op["action"]))).or_default() += 1;
        }
    }
    (ops, output.status.code())
}

/// How many operations of each network, kind and action an agent has logged behind this many bytes.
fn logged(agent: &Agent, from: usize) -> Ops {
    let log = fs::read_to_string(agent.log_path()).unwrap();
    let mut ops = BTreeMap::new();
    for line in log.get(from..).unwrap_or_default().lines().filter(|line| line.contains(": done ")) {
        let field = |name: &str| {
            let rest = line.split(&format!(" {name}=")).nth(1).unwrap();
            rest.split(' ').next().unwrap().trim_matches('"').to_owned()
        };
        *ops.entry((field("network"), field("kind"), field("action"))).or_default() +=
            field("count").parse::<usize>().unwrap();
    }
    ops
}

#[test]
fn what_is_planned_after_each_breakage_is_exactly_what_the_agent_then_sends() {
    in_private!();
    let lab = Lab::new().unwrap();
    let host = &lab.hosts[0];
    host.add_netns("test1").unwrap();
    put(&lab, "networks/n", NETWORK);
    put(&lab, "endpoints/n/docker-node1/a", r#"{"ip":["10.0.0.2"],"netns":"/run/netns/test1"}"#);
    put(&lab, "endpoints/n/docker-node2/b", r#"{"ip":["10.0.0.3"]}"#);
    let mut agents = started(&lab);
    assert_eq!(planned(&lab, host), (BTreeMap::new(), Some(0)), "all is as it should be");
    for breakage in [
        "bridge -n vtepd-n fdb del 02:42:0a:00:00:03 dev vxlan1",
        "ip -n vtepd-n neigh del 10.0.0.3 dev vxlan1",
        "bridge -n vtepd-n fdb replace 02:42:0a:00:00:03 dev vxlan1 dst 192.168.205.99 self permanent",
        "bridge -n vtepd-n fdb add 02:42:0a:00:00:77 dev vxlan1 dst 192.168.205.11 self permanent",
        "ip -n vtepd-n link del vxlan1",
        "ip -n vtepd-n link set vxlan1 down",
        "ip -n vtepd-n addr flush dev br0",
        "ip -n vtepd-n link set br0 mtu 1400",
        "ip -n test1 addr flush dev eth0",
        "ip -n test1 link del eth0",
        "ip -n test1 route del default",
        "nft delete table inet vtepd-default",
    ] {
        agents[0].signal(Signal::SIGSTOP).unwrap();
        let from = fs::metadata(agents[0].log_path()).unwrap().len() as usize;
        run(host, breakage);
        let (plan, code) = planned(&lab, host);
        assert_eq!(code, Some(2), "{breakage}");
        assert!(!plan.is_empty(), "{breakage}");
        assert_eq!(planned(&lab, host).0, plan, "{breakage}: nothing was done by planning");
        agents[0].signal(Signal::SIGCONT).unwrap();
        until(&mut agents[0], breakage, |_| match planned(&lab, host) {
            (rest, Some(0)) if rest.is_empty() => Ok(()),
            rest => Err(vtepd::lab::LabError::not_so(format!("{rest:?}"))),
        });
        assert_eq!(logged(&agents[0], from), plan, "{breakage}");
    }
}

#[test]
fn a_plan_tells_what_records_would_do_before_they_are_in_etcd_and_without_any_agent() {
    in_private!();
    let lab = Lab::with_hosts(1).unwrap();
    let host = &lab.hosts[0];
    host.add_netns("test1").unwrap();
    let file = lab.directory().join("records.yaml");
    let records = "networks:\n  n:\n    subnets:\n    - {cidr: 10.0.0.0/24, vni: 256}\nendpoints:\n  n:\n    docker-node1:\n      a: {ip: [10.0.0.2], netns: /run/netns/test1}\n";
    fs::write(&file, records).unwrap();
    let (file, address) = (file.to_string_lossy().into_owned(), host.address().to_string());
    let plan = output(&lab, host, &plan_of(host, &address, &["--against", &file]));
    let text = String::from_utf8(plan.stdout).unwrap();
    assert_eq!(plan.status.code(), Some(2), "{text}{}", String::from_utf8_lossy(&plan.stderr));
    for line in [
        "network n:",
        "ip netns add vtepd-n",
        "ip -n vtepd-n link add vxlan1 ",
        "type vxlan id 256 dstport 4789 local 192.168.205.10 nolearning proxy",
        "ip -n vtepd-n address add 10.0.0.1/24 dev br0 nodad",
        "ip -n test1 address add 10.0.0.2/24 dev eth0 nodad",
        "network (host):",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    assert_eq!(run(host, "ip netns list"), "test1\n", "nothing was made");
    assert_eq!(lab.etcd.get(&format!("{PREFIX}networks/n")).unwrap(), None, "nothing was written");

    // What is planned for a host without anything is what its agent then sends.
    let plan = output(&lab, host, &plan_of(host, &address, &["--against", &file, "--json"]));
    let plan: Value = serde_json::from_slice(&plan.stdout).unwrap();
    let ops: usize = plan["networks"].as_array().unwrap().iter().map(|n| n["ops"].as_array().unwrap().len()).sum();
    said(&lab, host, &["apply", "--no-wait", &file]);
    let agents = started(&lab);
    let sent: usize = logged(&agents[0], 0).values().sum();
    assert_eq!(sent, ops);
}

#[test]
fn apply_shows_writes_once_and_waits_and_refuses_all_where_one_record_is_bad() {
    in_private!();
    let lab = Lab::new().unwrap();
    let mut agents = start_all(&lab);
    registered(&lab, &mut agents);
    let host = &lab.hosts[0];
    said(&lab, host, &["wait", "--node", "docker-node1", "--node", "docker-node2"]);
    let write = |name: &str, text: &str| {
        let file = lab.directory().join(name);
        fs::write(&file, text).unwrap();
        file.to_string_lossy().into_owned()
    };
    let good = write(
        "good.yaml",
        "networks:\n  n:\n    subnets: [{cidr: 10.0.0.0/24, vni: 256}]\n    labels: {team: a}\nendpoints:\n  n:\n    docker-node1:\n      a: {ip: [10.0.0.2]}\n    docker-node2:\n      b: {ip: [10.0.0.3]}\n",
    );
    let before = lab.etcd.revision().unwrap();
    let dry = said(&lab, host, &["apply", "--dry-run", &good]);
    assert!(
        dry.contains("+ /vtepd/v1/networks/n ")
            && dry.ends_with("3 to add, 0 to change, 0 to delete, 0 as they should be\n"),
        "{dry}"
    );
    assert_eq!(lab.etcd.revision().unwrap(), before);
    let text = said(&lab, host, &["apply", &good]);
    let revision = text.rsplit(' ').next().unwrap().trim();
    // It was waited for.
    run(&lab.hosts[1], "ip -n vtepd-n link show vxlan1");
    for key in ["networks/n", "endpoints/n/docker-node1/a", "endpoints/n/docker-node2/b"] {
        let found = lab.etcd.etcdctl(&["get", "-w", "json", &format!("{PREFIX}{key}")]).unwrap();
        assert!(found.contains(&format!("\"mod_revision\":{revision}")), "one transaction: {found}");
    }
    let again = said(&lab, host, &["apply", &good]);
    assert_eq!(again, "0 to add, 0 to change, 0 to delete, 3 as they should be\n");

    // One bad record, by itself or beside what is in etcd, and nothing is written.
    let before = lab.etcd.revision().unwrap();
    for (bad, said) in [
        (
            "networks:\n  m:\n    subnets: [{cidr: 10.1.0.0/24, vni: 0}]\n  o:\n    subnets: [{cidr: 10.2.0.0/24, vni: 9}]\n",
            "networks/m: subnets[0].vni",
        ),
        (
            "networks:\n  m:\n    subnets: [{cidr: 10.1.0.0/24, vni: 256}]\n",
            "VNI 256 on port 4789 is held by /vtepd/v1/networks/n",
        ),
        ("endpoints: {n: {docker-node1: {c: {ip: [10.0.0.3]}}}}\n", "10.0.0.3 on VNI 256 is held by"),
        ("network: {}\n", "`network` is neither"),
    ] {
        let refused = output(&lab, host, &["apply", &write("bad.yaml", bad)]);
        let error = String::from_utf8(refused.stderr).unwrap();
        assert_eq!(refused.status.code(), Some(1), "{bad}");
        assert!(error.contains(said), "{bad}: {error}");
    }
    assert_eq!(lab.etcd.revision().unwrap(), before);

    // What the files do not have any more goes, within the label and nowhere else.
    put(&lab, "networks/other", r#"{"subnets":[{"cidr":"10.9.0.0/24","vni":900}],"labels":{"team":"b"}}"#);
    let fewer = write(
        "fewer.yaml",
        "networks:\n  n:\n    subnets: [{cidr: 10.0.0.0/24, vni: 256}]\n    labels: {team: a}\nendpoints:\n  n:\n    docker-node2:\n      b: {ip: [10.0.0.3]}\n",
    );
    let text = said(&lab, host, &["apply", "--prune", "team=a", &fewer]);
    assert!(
        text.starts_with("- /vtepd/v1/endpoints/n/docker-node1/a\n0 to add, 0 to change, 1 to delete, 2 as"),
        "{text}"
    );
    assert!(lab.etcd.get(&format!("{PREFIX}networks/other")).unwrap().is_some());
    assert_eq!(lab.etcd.get(&format!("{PREFIX}endpoints/n/docker-node1/a")).unwrap(), None);
}

#[test]
fn more_records_than_etcd_takes_at_once_are_written_in_several_transactions_and_that_is_said() {
    in_private!();
    let lab = Lab::with_hosts(1).unwrap();
    let host = &lab.hosts[0];
    let endpoints: String = (2..202).map(|n| format!("      e{n}: {{ip: [10.0.0.{n}]}}\n")).collect();
    let text = format!(
        "networks:\n  n:\n    subnets: [{{cidr: 10.0.0.0/24, vni: 256}}]\nendpoints:\n  n:\n    docker-node1:\n{endpoints}"
    );
    let file = lab.directory().join("many.yaml");
    fs::write(&file, text).unwrap();
    let applied = output(&lab, host, &["apply", "--no-wait", &file.to_string_lossy()]);
    let error = String::from_utf8(applied.stderr).unwrap();
    assert!(applied.status.success() && error.contains("written in 2"), "{error}");
    let keys = lab.etcd.etcdctl(&["get", "--prefix", "--keys-only", PREFIX]).unwrap();
    assert_eq!(keys.lines().filter(|line| !line.is_empty()).count(), 201);
    assert!(
        fs::metadata(VTEPD).is_ok() && json(&lab, host, &["status", "--json"])["nodes"] == Value::Array(Vec::new())
    );
}
