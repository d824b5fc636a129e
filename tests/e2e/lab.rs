//! The lab itself: hosts that reach each other and the store, and nothing left behind.

use std::{panic, path::Path, time::Duration};

use vtepd::lab::{Lab, Write, wait_for};

use crate::hosts::in_private;

fn is_alive(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

#[test]
fn three_hosts_reach_each_other_and_the_store_over_the_underlay() {
    in_private!();
    let lab = Lab::with_hosts(3).unwrap();
    for from in &lab.hosts {
        for to in &lab.hosts {
            from.run(&["ping", "-c1", "-W2", &to.address().to_string()]).unwrap();
        }
        let (status, body) = from.http_get("192.168.205.1:2379".parse().unwrap(), "/health").unwrap();
        assert_eq!((status, body.contains("true")), (200, true), "{}: {body}", from.name());
    }
}

#[test]
fn hosts_do_not_see_each_others_namespaces() {
    in_private!();
    let lab = Lab::new().unwrap();
    lab.hosts[0].add_netns("test1").unwrap();
    assert!(lab.hosts[0].run(&["ip", "netns", "list"]).unwrap().contains("test1"));
    assert_eq!(lab.hosts[1].run(&["ip", "netns", "list"]).unwrap(), "");
    let links = lab.hosts[0].ip_json(&["-n", "test1", "link"]).unwrap();
    assert_eq!(links.as_array().unwrap().len(), 1);
    assert!(lab.hosts[0].in_netns("test1", &["ip", "route"]).unwrap().is_empty());
    lab.hosts[0].delete_netns("test1").unwrap();
}

#[test]
fn a_host_that_is_cut_off_comes_back() {
    in_private!();
    let lab = Lab::new().unwrap();
    let ping = || lab.hosts[0].run(&["ping", "-c1", "-W1", "192.168.205.11"]);
    ping().unwrap();
    lab.set_connected(&lab.hosts[1], false).unwrap();
    ping().unwrap_err();
    lab.set_connected(&lab.hosts[1], true).unwrap();
    ping().unwrap();
}

#[test]
fn the_store_keeps_its_data_over_a_kill_and_loses_it_with_a_wipe() {
    in_private!();
    let mut lab = Lab::with_hosts(1).unwrap();
    let value = r#"{"text":"a \"b\" 'c' \\ \n é"}"#;
    lab.etcd.put("/a", value).unwrap();
    let before = lab.etcd.revision().unwrap();
    let writes =
        [Write::Put("/b".into(), value.into()), Write::Put("/c".into(), "-x".into()), Write::Delete("/a".into())];
    lab.etcd.transaction(&writes).unwrap();
    assert_eq!(lab.etcd.revision().unwrap(), before + 1, "one transaction is one revision");

    lab.etcd.kill();
    lab.etcd.etcdctl(&["--command-timeout=1s", "get", "/b"]).unwrap_err();
    lab.etcd.start().unwrap();
    assert_eq!(lab.etcd.get("/a").unwrap(), None);
    assert_eq!(lab.etcd.get("/b").unwrap().unwrap(), value);
    assert_eq!(lab.etcd.get("/c").unwrap().unwrap(), "-x");

    let compacted = lab.etcd.compact().unwrap();
    let old = lab.etcd.etcdctl(&["get", "/b", "--rev", &(compacted - 1).to_string()]).unwrap_err().to_string();
    assert!(old.contains("compacted"), "{old}");

    lab.etcd.freeze().unwrap();
    lab.etcd.etcdctl(&["--command-timeout=500ms", "get", "/b"]).unwrap_err();
    lab.etcd.thaw().unwrap();
    assert!(lab.etcd.get("/b").unwrap().is_some());

    lab.etcd.wipe().unwrap();
    assert_eq!(lab.etcd.get("/b").unwrap(), None);
}

#[test]
fn a_failing_command_is_an_error_with_its_words() {
    in_private!();
    let lab = Lab::with_hosts(1).unwrap();
    let error = lab.hosts[0].run(&["ip", "link", "show", "dev", "absent0"]).unwrap_err().to_string();
    assert!(error.contains("docker-node1$ ip link show dev absent0"), "{error}");
    assert!(error.contains("does not exist"), "{error}");
}

#[test]
fn an_agent_that_ends_at_once_is_reported_with_its_log() {
    in_private!();
    let lab = Lab::with_hosts(1).unwrap();
    let mut agent = lab.hosts[0].spawn_agent(&lab.agent_options("ip")).unwrap();
    let error = wait_for("metrics", Duration::from_secs(5), || agent.metrics()).unwrap_err();
    assert!(error.to_string().contains("the agent on docker-node1 has ended"), "{error}");
    assert!(error.to_string().contains("Object \"agent\" is unknown"), "{error}");
}

#[test]
fn nothing_is_left_of_a_lab_that_is_dropped() {
    in_private!();
    let lab = Lab::new().unwrap();
    let (pids, directory) = (lab.pids(), lab.directory().to_owned());
    assert_eq!(pids.len(), 4);
    assert!(pids.iter().all(|pid| is_alive(*pid)) && directory.exists());
    drop(lab);
    assert!(!pids.iter().any(|pid| is_alive(*pid)));
    assert!(!directory.exists());
}

#[test]
fn nothing_is_left_of_a_lab_whose_test_panics() {
    in_private!();
    let mut left = (Vec::new(), Default::default());
    let outcome = panic::catch_unwind(panic::AssertUnwindSafe(|| {
        let lab = Lab::new().unwrap();
        left = (lab.pids(), lab.directory().to_owned());
        panic!("a test fails");
    }));
    outcome.unwrap_err();
    assert_eq!(left.0.len(), 4);
    assert!(!left.0.iter().any(|pid| is_alive(*pid)));
    assert!(!left.1.exists());
}
