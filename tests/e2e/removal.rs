//! Stores that forget, and what is removed on purpose: real etcd, with a flow between two containers all the while.

use std::{
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use vtepd::lab::{Agent, Lab, LabError};

use crate::{
    hosts::{
        PREFIX, VTEPD, applied, assert_no_operation, count, gone, in_private, options, put, run, start, until, words,
    },
    seed::seed,
};

/// How long an agent may take to say that it holds removals.
const SAID: Duration = Duration::from_secs(20);

/// Fifty packets a second between the two containers of the seed, until it is asked what was lost.
struct Flow(Child);

impl Flow {
    fn start(lab: &Lab) -> Self {
        let mut ping = lab.hosts[0].command(&words("ip netns exec test1 ping -q -i0.02 -W1 10.0.0.3"));
        Self(ping.stdout(Stdio::piped()).spawn().unwrap())
    }

    /// Nothing was lost; what may still be under way does not count.
    fn assert_nothing_lost(self) {
        let pid = nix::unistd::Pid::from_raw(self.0.id().try_into().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
        let said = String::from_utf8_lossy(&self.0.wait_with_output().unwrap().stdout).into_owned();
        let numbers: Vec<u64> = said
            .lines()
            .find(|line| line.contains("packets transmitted"))
            .unwrap_or_else(|| panic!("{said}"))
            .split(|c: char| !c.is_ascii_digit())
            .filter_map(|number| number.parse().ok())
            .collect();
        assert!(numbers[0] > 20 && numbers[0] <= numbers[1] + 1, "{said}");
    }
}

/// All rows of the network on both hosts.
fn rows(lab: &Lab) -> Vec<String> {
    let show = |command: &str| lab.hosts.iter().map(|host| run(host, command)).collect::<Vec<_>>();
    let fdb = show("bridge -n vtepd-overlay-demo fdb show dev vxlan1");
    let neighbours = show("ip -n vtepd-overlay-demo neigh show dev vxlan1 nud permanent");
    [fdb, neighbours].concat()
}

/// Every agent says that it holds removals of the network, for this reason, in log, metric and status.
fn held(lab: &Lab, agents: &mut [Agent], since: Instant, reasons: &[&str]) {
    for agent in agents {
        until(agent, "removals are held", |agent| {
            let log = std::fs::read_to_string(agent.log_path()).unwrap();
            let said = log.contains("REMOVALS ARE HELD") && reasons.iter().any(|reason| log.contains(reason));
            let held = agent.metrics()?.count("vtepd_removals_held", &[]);
            let status = lab.etcd.get(&format!("{PREFIX}status/{}", agent.node()))?.unwrap_or_default();
            let stands = status.contains(r#""network":"overlay-demo""#) && !status.contains(r#""removals_held":0"#);
            if said && held > 0.0 && stands { Ok(()) } else { Err(LabError::not_so(format!("{said} {held} {status}"))) }
        });
        assert!(since.elapsed() < SAID, "said after {:?}", since.elapsed());
    }
}

/// A store is lost in some way: nothing is removed, additions are applied, and after the approval all goes that is to go.
fn loses(reasons: &[&str], lose: impl FnOnce(&mut Lab)) {
    let (mut lab, mut agents) = seed();
    let before = rows(&lab);
    let flow = Flow::start(&lab);
    std::thread::sleep(Duration::from_millis(500));
    let since = Instant::now();
    lose(&mut lab);
    held(&lab, &mut agents, since, reasons);
    assert_eq!(rows(&lab), before);
    // An endpoint more, on a node more.
    put(&lab, "nodes/other", r#"{"vtep":"192.168.205.77"}"#);
    put(&lab, "endpoints/overlay-demo/other/e", r#"{"ip":["10.0.0.77"]}"#);
    for (agent, host) in agents.iter_mut().zip(&lab.hosts) {
        until(agent, "the addition", |_| {
            let fdb = run(host, "bridge -n vtepd-overlay-demo fdb show dev vxlan1");
            if fdb.contains("192.168.205.77") { Ok(()) } else { Err(LabError::not_so(fdb)) }
        });
    }
    let now = rows(&lab).concat();
    let missing: Vec<_> = before.iter().flat_map(|rows| rows.lines()).filter(|row| !now.contains(*row)).collect();
    assert!(missing.is_empty(), "{missing:#?}");
    // An agent that begins anew holds it as well.
    let agent = agents.remove(0);
    agent.kill().unwrap();
    agents.insert(0, start(&lab, &lab.hosts[0]));
    held(&lab, &mut agents[..1], Instant::now(), reasons);
    std::thread::sleep(Duration::from_secs(2));
    flow.assert_nothing_lost();
    let said = lab.hosts[0].run(&[VTEPD, "approve", "--etcd", &lab.etcd.url(), "overlay-demo"]).unwrap();
    assert!(said.contains("overlay-demo: removals held up to revision"), "{said}");
    for host in &lab.hosts {
        gone(host, "vtepd-overlay-demo");
    }
    for agent in &mut agents {
        until(agent, "nothing is held", |agent| match agent.metrics()?.count("vtepd_removals_held", &[]) {
            0.0 => Ok(()),
            held => Err(LabError::not_so(format!("{held}"))),
        });
    }
    // And the network comes back when it is recorded again.
    put(&lab, "networks/overlay-demo", r#"{"subnets":[{"cidr":"10.0.0.0/24","gateway":"10.0.0.1","vni":256}]}"#);
    for (host, (number, test)) in lab.hosts.iter().zip([(2, "test1"), (3, "test2")]) {
        put(&lab, &format!("nodes/{}", host.name()), &format!(r#"{{"vtep":"{}"}}"#, host.address()));
        let value = format!(r#"{{"ip":["10.0.0.{number}"],"netns":"/run/netns/{test}"}}"#);
        put(&lab, &format!("endpoints/overlay-demo/{}/{test}", host.name()), &value);
    }
    until(&mut agents[0], "a ping", |_| lab.hosts[0].in_netns("test1", &["ping", "-c1", "-W1", "10.0.0.3"]));
}

#[test]
fn an_etcd_that_is_restarted_empty_costs_no_row_and_no_packet_until_that_is_approved() {
    in_private!();
    loses(&["identity_lost", "revision_went_back"], |lab| lab.etcd.wipe().unwrap());
}

#[test]
fn a_store_deleted_whole_costs_no_row_and_no_packet_until_that_is_approved() {
    in_private!();
    loses(&["deleted_whole"], |lab| drop(lab.etcd.etcdctl(&["del", "--prefix", PREFIX]).unwrap()));
}

#[test]
fn an_older_snapshot_costs_no_row_and_no_packet_and_what_is_approved_is_what_it_lacks() {
    in_private!();
    let (mut lab, mut agents) = seed();
    // The snapshot has one endpoint elsewhere, and lacks another.
    put(&lab, "nodes/other", r#"{"vtep":"192.168.205.77"}"#);
    put(&lab, "endpoints/overlay-demo/other/moved", r#"{"ip":["10.0.0.50"]}"#);
    until(&mut agents[0], "an identity", |_| {
        lab.etcd.get(&format!("{PREFIX}store"))?.ok_or_else(|| LabError::not_so("the store has no identity"))
    });
    applied(&lab, &mut agents);
    let backup = lab.etcd.backup("backup").unwrap();
    lab.etcd.delete(&format!("{PREFIX}endpoints/overlay-demo/other/moved")).unwrap();
    put(&lab, "endpoints/overlay-demo/docker-node2/moved", r#"{"ip":["10.0.0.50"]}"#);
    put(&lab, "endpoints/overlay-demo/other/later", r#"{"ip":["10.0.0.51"]}"#);
    for _ in 0..20 {
        applied(&lab, &mut agents);
    }
    let before = rows(&lab);
    let (flow, since) = (Flow::start(&lab), Instant::now());
    std::thread::sleep(Duration::from_millis(500));
    lab.etcd.restore(&backup).unwrap();
    held(&lab, &mut agents, since, &["revision_went_back"]);
    assert_eq!(rows(&lab), before);
    flow.assert_nothing_lost();
    lab.hosts[0].run(&[VTEPD, "approve", "--all", "--etcd", &lab.etcd.url()]).unwrap();
    applied(&lab, &mut agents);
    let fdb = run(&lab.hosts[0], "bridge -n vtepd-overlay-demo fdb show dev vxlan1");
    assert!(fdb.contains("02:42:0a:00:00:03") && !fdb.contains("02:42:0a:00:00:33"), "{fdb}");
    let moved = fdb.lines().find(|row| row.contains("02:42:0a:00:00:32")).unwrap();
    assert!(moved.contains("192.168.205.77"), "{moved}");
    lab.hosts[0].in_netns("test1", &["ping", "-c1", "-W2", "10.0.0.3"]).unwrap();
}

#[test]
fn a_wrong_prefix_takes_nothing_down_and_with_the_right_one_again_nothing_is_sent() {
    in_private!();
    let (lab, mut agents) = seed();
    let before = rows(&lab);
    let flow = Flow::start(&lab);
    agents.remove(0).stop().unwrap();
    let mut wrong = options(&lab);
    wrong.arguments = vec!["--prefix".into(), "/wrong".into()];
    let mut agent = lab.hosts[0].spawn_agent(&wrong).unwrap();
    until(&mut agent, "removals are held", |agent| {
        let held = agent.metrics()?.count("vtepd_removals_held", &[]);
        if held > 0.0 { Ok(()) } else { Err(LabError::not_so("nothing is held")) }
    });
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(rows(&lab), before);
    assert_eq!(lab.etcd.get("/wrong/store").unwrap(), None, "a store in doubt is given no identity");
    assert!(agent.log_tail(100).contains("vtepd approve overlay-demo"));
    agent.stop().unwrap();
    let mut agent = start(&lab, &lab.hosts[0]);
    applied(&lab, [&mut agent]);
    assert_no_operation(&mut agent);
    assert_eq!(count(&mut agent, "vtepd_removals_held", &[]), 0.0);
    flow.assert_nothing_lost();
}

#[test]
fn a_network_of_three_endpoints_that_is_deleted_on_purpose_goes_at_once() {
    in_private!();
    let (lab, mut agents) = seed();
    put(&lab, "nodes/other", r#"{"vtep":"192.168.205.77"}"#);
    put(&lab, "endpoints/overlay-demo/other/e", r#"{"ip":["10.0.0.77"]}"#);
    applied(&lab, &mut agents);
    lab.etcd.etcdctl(&["del", "--prefix", &format!("{PREFIX}endpoints/overlay-demo/")]).unwrap();
    lab.etcd.delete(&format!("{PREFIX}networks/overlay-demo")).unwrap();
    for host in &lab.hosts {
        gone(host, "vtepd-overlay-demo");
    }
    for agent in &mut agents {
        assert_eq!(count(agent, "vtepd_removals_held", &[]), 0.0);
    }
}
