//! Agents that end, however they do, and begin again without memory.

use std::{collections::BTreeSet, process::Stdio};

use nix::sys::signal::Signal;
use vtepd::lab::{Agent, Lab, LabError};

use crate::{
    hosts::{
        VTEPD, applied, assert_no_operation, gone, in_private, options, ping, put, restart_without_an_operation, run,
        start, started, until, words,
    },
    seed::seed,
};

#[test]
fn a_restarted_agent_sends_no_message_to_a_correct_kernel_and_no_ping_is_lost() {
    in_private!();
    let (lab, mut agents) = seed();
    let host = &lab.hosts[0];
    let mut ping = host.command(&words("ip netns exec test1 ping -i0.02 -W2 -c150 10.0.0.3"));
    let ping = ping.stdout(Stdio::piped()).spawn().unwrap();
    let mut monitor = host.command(&words("ip -n vtepd-overlay-demo monitor link address neigh route"));
    let mut monitor = monitor.stdout(Stdio::piped()).spawn().unwrap();
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let agent = agents.remove(0);
        let status = if signal == Signal::SIGTERM { agent.stop().unwrap() } else { agent.kill().unwrap() };
        assert_eq!(status.success(), signal == Signal::SIGTERM, "{status}");
        agents.insert(0, start(&lab, host));
        applied(&lab, [&mut agents[0]]);
        assert_no_operation(&mut agents[0]);
    }
    let output = ping.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("150 packets transmitted, 150 received"), "{said}");
    monitor.kill().unwrap();
    let heard = monitor.wait_with_output().unwrap();
    // The kernel's own neighbour states (of the ping's ARP) are no doing of ours.
    let heard = String::from_utf8_lossy(&heard.stdout).into_owned();
    let ours: Vec<_> = heard.lines().filter(|line| !line.contains("REACHABLE") && !line.contains("STALE")).collect();
    assert!(ours.iter().all(|line| line.contains("DELAY") || line.contains("PROBE")), "{ours:#?}");
    restart_without_an_operation(agents, || started(&lab));
}

#[test]
fn an_agent_without_memory_takes_down_what_is_no_longer_desired_and_cleanup_the_rest() {
    in_private!();
    let (lab, mut agents) = seed();
    let host = &lab.hosts[0];
    run(host, "ip netns add mine");
    run(host, "ip netns add vtepd-not-ours");
    put(&lab, "networks/second", r#"{"subnets":[{"cidr":"10.5.0.0/24","vni":300},{"cidr":"fd05::/64","vni":300}]}"#);
    put(
        &lab,
        "endpoints/second/docker-node1/t",
        r#"{"ip":["10.5.0.2","fd05::2"],"netns":"/run/netns/test1","ifname":"eth5"}"#,
    );
    applied(&lab, [&mut agents[0]]);
    agents.remove(0).kill().unwrap();
    lab.etcd.delete("/vtepd/v1/networks/overlay-demo").unwrap();
    let mut agent = start(&lab, host);
    applied(&lab, [&mut agent]);
    gone(host, "vtepd-overlay-demo");
    let links = run(host, "ip -n test1 -br addr");
    assert!(!links.contains("eth0") && links.contains("10.5.0.2/24") && links.contains("fd05::2/64"), "{links}");

    let refused = host.output(&[VTEPD, "cleanup"]).unwrap();
    assert!(!refused.status.success(), "an agent runs");
    agent.stop().unwrap();
    let output = host.run(&[VTEPD, "cleanup"]).unwrap();
    assert!(output.contains("second"), "{output}");
    let names: BTreeSet<String> = run(host, "ip netns").lines().map(|l| words(l)[0].to_owned()).collect();
    assert_eq!(names, ["mine", "test1", "vtepd-not-ours"].map(str::to_owned).into());
    assert!(!run(host, "ip -n test1 -br link").contains("eth"), "the container has no interface of ours");
}

/// Waits until so many records count as rejected: what is said of records follows their change a moment later.
fn rejected(agent: &mut Agent, records: f64) {
    until(agent, "rejected records", |agent| {
        let now = agent.metrics()?.count("vtepd_rejected_records", &[]);
        if now == records { Ok(()) } else { Err(LabError::not_so(format!("{now}"))) }
    });
}

#[test]
fn a_record_that_went_bad_while_no_agent_ran_keeps_its_last_good_version_in_force() {
    in_private!();
    let (lab, mut agents) = seed();
    agents.remove(0).kill().unwrap();
    put(&lab, "endpoints/overlay-demo/docker-node2/test2", r#"{"ip":["10.0.0.3"],"netns":7}"#);
    put(&lab, "endpoints/overlay-demo/docker-node2/test2", r#"{"ip":"10.0.0.4"}"#);
    let mut agent = start(&lab, &lab.hosts[0]);
    applied(&lab, [&mut agent]);
    assert_no_operation(&mut agent);
    rejected(&mut agent, 1.0);
    ping(&lab.hosts[0], "test1", "10.0.0.3");
    put(&lab, "endpoints/overlay-demo/docker-node2/test2", r#"{"ip":["10.0.0.4"]}"#);
    applied(&lab, agents.iter_mut().chain([&mut agent]));
    rejected(&mut agent, 0.0);
    let fdb = run(&lab.hosts[0], "bridge -n vtepd-overlay-demo fdb show dev vxlan1 self");
    assert!(fdb.contains("02:42:0a:00:00:04") && !fdb.contains("02:42:0a:00:00:03"), "{fdb}");
    agents.push(agent);
    restart_without_an_operation(agents, || started(&lab));
}

#[test]
fn two_agents_of_one_instance_do_not_run_on_one_host() {
    in_private!();
    let lab = Lab::with_hosts(1).unwrap();
    let host = &lab.hosts[0];
    let mut first = start(&lab, host);
    applied(&lab, [&mut first]);
    let mut options = options(&lab);
    options.port += 1;
    let second = host.output(&options.command_line(host).iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
    assert!(!second.status.success());
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(said.contains("another agent of instance"), "{said}");
}
