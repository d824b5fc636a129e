//! What an operator asks, as one would ask it: `vtepd status`, `wait`, `journal`, on real hosts with a real etcd.

use std::{
    process::{Child, Output, Stdio},
    time::Duration,
};

use nix::sys::signal::Signal;
use serde_json::Value;
use vtepd::lab::{Host, Lab, LabError, wait_for};

use crate::hosts::{VTEPD, in_private, put, registered, run, start_all, started, until};

const NETWORK: &str = r#"{"subnets":[{"cidr":"10.0.0.0/24","vni":256}]}"#;

/// A verb with its arguments, on a host, with the lab's etcd in the environment.
fn command(lab: &Lab, host: &Host, arguments: &[&str]) -> std::process::Command {
    let mut command = host.command(&[&[VTEPD], arguments].concat());
    command.env("VTEPD_ETCD", lab.etcd.url()).stdin(Stdio::null());
    command
}

pub(crate) fn output(lab: &Lab, host: &Host, arguments: &[&str]) -> Output {
    command(lab, host, arguments).output().unwrap()
}

/// The standard output of a verb that succeeds.
pub(crate) fn said(lab: &Lab, host: &Host, arguments: &[&str]) -> String {
    let output = output(lab, host, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn json(lab: &Lab, host: &Host, arguments: &[&str]) -> Value {
    serde_json::from_str(&said(lab, host, arguments)).unwrap()
}

fn spawn(lab: &Lab, host: &Host, arguments: &[&str]) -> Child {
    command(lab, host, arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// How a verb that was started ended, once it has.
fn ended(mut child: Child) -> Output {
    let waited = wait_for("the end of a verb", Duration::from_secs(30), || match child.try_wait() {
        Ok(Some(_)) => Ok(()),
        _ => Err(LabError::not_so("it still runs")),
    });
    waited.unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn wait_returns_when_the_last_host_has_applied_and_not_before() {
    in_private!();
    let lab = Lab::with_hosts(3).unwrap();
    let mut agents = start_all(&lab);
    registered(&lab, &mut agents);
    for host in &lab.hosts {
        put(
            &lab,
            &format!("endpoints/n/{}/e", host.name()),
            &format!(r#"{{"ip":["10.0.0.{}"]}}"#, host.address().octets()[3]),
        );
    }
    let nodes: Vec<&str> = lab.hosts.iter().flat_map(|host| ["--node", host.name()]).collect();
    said(&lab, &lab.hosts[0], &[&["wait"], nodes.as_slice()].concat());
    agents[2].signal(Signal::SIGSTOP).unwrap();
    let revision = lab.etcd.put("/vtepd/v1/networks/n", NETWORK).unwrap().to_string();
    let one = said(&lab, &lab.hosts[0], &["wait", "--revision", &revision, "--node", "docker-node1"]);
    assert_eq!(one, "", "nothing to say when it went well");
    let mut all = spawn(&lab, &lab.hosts[0], &["wait", "--revision", &revision]);
    std::thread::sleep(Duration::from_secs(2));
    assert!(all.try_wait().unwrap().is_none(), "one host has not heard of it");
    let late = output(&lab, &lab.hosts[0], &["wait", "--revision", &revision, "--timeout", "1s"]);
    let error = String::from_utf8(late.stderr).unwrap();
    assert_eq!(late.status.code(), Some(1));
    assert!(error.contains("docker-node3: ") && !error.contains("docker-node1"), "{error}");
    assert!(!error.contains('\r'), "no progress where there is no terminal: {error:?}");
    agents[2].signal(Signal::SIGCONT).unwrap();
    assert!(ended(all).status.success());
    run(&lab.hosts[2], "ip -n vtepd-n link show vxlan1");

    // What is written elsewhere, and what agents write of themselves, is nothing to wait for; a deletion is.
    lab.etcd.put("/elsewhere", "x").unwrap();
    said(&lab, &lab.hosts[0], &["wait"]);
    agents[1].signal(Signal::SIGSTOP).unwrap();
    lab.etcd.delete("/vtepd/v1/endpoints/n/docker-node1/e").unwrap();
    let late = output(&lab, &lab.hosts[0], &["wait", "--timeout", "1s"]);
    assert_eq!(late.status.code(), Some(1), "one host has not heard that it was deleted");
    agents[1].signal(Signal::SIGCONT).unwrap();
    said(&lab, &lab.hosts[0], &["wait"]);
    let never = output(&lab, &lab.hosts[0], &["wait", "--revision", "1000000"]);
    assert!(String::from_utf8(never.stderr).unwrap().contains("no revision 1000000"));
}

#[test]
fn status_says_which_node_is_not_right_and_why_and_a_record_that_all_refuse_once() {
    in_private!();
    let lab = Lab::with_hosts(3).unwrap();
    put(&lab, "networks/n", NETWORK);
    put(&lab, "nodes/appliance", r#"{"vtep":"192.168.205.200"}"#);
    put(&lab, "endpoints/n/docker-node1/a", r#"{"ip":["10.0.0.2"]}"#);
    put(&lab, "endpoints/n/docker-node2/b", r#"{"ip":["10.0.0.3"],"netns":"/etc"}"#);
    let mut agents = start_all(&lab);
    registered(&lab, &mut agents);
    put(&lab, "networks/bad", r#"{"subnets":[]}"#);
    let host = &lab.hosts[0];
    said(&lab, host, &["wait", "--node", "docker-node1", "--node", "docker-node3"]);
    let status = until(&mut agents[1], "the refusal", |_| {
        let status = json(&lab, host, &["status", "--json"]);
        let refused = &status["nodes"][2]["status"]["blocked"]["first"][0]["reason"];
        if refused == "netns_refused" { Ok(status) } else { Err(LabError::not_so(status.to_string())) }
    });
    let nodes = status["nodes"].as_array().unwrap();
    let names: Vec<_> = nodes.iter().map(|node| node["node"].as_str().unwrap()).collect();
    assert_eq!(names, ["appliance", "docker-node1", "docker-node2", "docker-node3"]);
    assert_eq!(nodes[0]["status"], Value::Null, "nobody is there who could say anything");
    assert_eq!(nodes[1]["status"]["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(nodes[1]["status"]["networks"]["here"], 1);
    let text = said(&lab, host, &["status"]);
    assert!(text.starts_with("4 nodes, 3 with an agent: "), "{text}");
    assert_eq!(text.matches("/vtepd/v1/networks/bad").count(), 1, "{text}");
    assert!(text.contains("(on 3 nodes)") && text.contains("docker-node2: blocked: n: "), "{text}");
    let one = said(&lab, host, &["status", "docker-node2"]);
    assert!(!one.contains("docker-node1") && one.contains("netns_refused"), "{one}");
    let none = output(&lab, host, &["status", "docker-node9"]);
    assert_eq!(none.status.code(), Some(1));
}

#[test]
fn the_journal_has_each_drift_of_this_host_with_its_repair_and_nobody_but_root_may_ask() {
    in_private!();
    let lab = Lab::new().unwrap();
    put(&lab, "networks/n", NETWORK);
    put(&lab, "endpoints/n/docker-node1/a", r#"{"ip":["10.0.0.2"]}"#);
    put(&lab, "endpoints/n/docker-node2/b", r#"{"ip":["10.0.0.3"]}"#);
    let mut agents = started(&lab);
    let host = &lab.hosts[0];
    let empty = said(&lab, host, &["journal"]);
    assert_eq!(empty, "nothing has drifted since the agent started\n");
    run(host, "bridge -n vtepd-n fdb del 02:42:0a:00:00:03 dev vxlan1");
    let journal = until(&mut agents[0], "the repair", |_| {
        let journal = json(&lab, host, &["journal", "--json"]);
        if journal[0]["outcome"] == "repaired" { Ok(journal) } else { Err(LabError::not_so(journal.to_string())) }
    });
    let entry = &journal[0];
    assert_eq!((&entry["network"], &entry["kind"], &entry["reason"]), (&"n".into(), &"fdb".into(), &"missing".into()));
    assert!(entry["micros"].as_u64().unwrap() > 0);
    assert!(said(&lab, host, &["journal", "n"]).contains("repaired in "));
    assert_eq!(run(host, "stat -c %a /run/vtepd/default.sock"), "600\n");
    let other = output(&lab, host, &["journal", "--instance", "other"]);
    assert!(String::from_utf8(other.stderr).unwrap().contains("no agent of this instance runs"));
    // A new agent takes over the socket of one that was killed.
    agents.remove(0).kill().unwrap();
    let _agent = started_again(&lab, host);
    assert_eq!(json(&lab, host, &["journal", "--json"]), Value::Array(Vec::new()));
}

fn started_again(lab: &Lab, host: &Host) -> vtepd::lab::Agent {
    let mut agent = crate::hosts::start(lab, host);
    crate::hosts::applied(lab, [&mut agent]);
    agent
}
