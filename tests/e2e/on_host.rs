//! Endpoints in a host's own namespace.

use std::time::{Duration, Instant};

use vtepd::lab::{Agent, Host, Lab, LabError};

use crate::hosts::{
    VTEPD, applied, count, in_private, options, ping, put, registered, restart_without_an_operation, run, until, words,
};

fn allowed(lab: &Lab, host: &Host) -> Agent {
    let mut options = options(lab);
    options.arguments = vec!["--allow-host-endpoints".into()];
    host.spawn_agent(&options).unwrap()
}

fn started(lab: &Lab) -> Vec<Agent> {
    let mut agents: Vec<Agent> = lab.hosts.iter().map(|host| allowed(lab, host)).collect();
    registered(lab, &mut agents);
    applied(lab, &mut agents);
    agents
}

/// Two hosts: the first has the endpoint `ov0` itself, the second has one in the namespace `c`.
fn world() -> (Lab, Vec<Agent>) {
    let lab = Lab::new().unwrap();
    lab.hosts[1].add_netns("c").unwrap();
    put(&lab, "networks/n", r#"{"subnets":[{"cidr":"10.7.0.0/24","vni":256},{"cidr":"fd00:7::/64","vni":256}]}"#);
    put(&lab, "endpoints/n/docker-node1/self", r#"{"ip":["10.7.0.2","fd00:7::2"],"netns":"host","ifname":"ov0"}"#);
    put(&lab, "endpoints/n/docker-node2/c", r#"{"ip":["10.7.0.3","fd00:7::3"],"netns":"/run/netns/c"}"#);
    let agents = started(&lab);
    (lab, agents)
}

#[test]
fn a_host_has_an_interface_in_the_overlay_itself_and_whoever_breaks_it_it_is_back() {
    in_private!();
    let (lab, mut agents) = world();
    let host = &lab.hosts[0];
    let shown = &host.ip_json(&words("addr show ov0")).unwrap()[0];
    assert_eq!((&shown["address"], &shown["mtu"]), (&"02:42:0a:07:00:02".into(), &1450.into()));
    let pings = || {
        for to in ["10.7.0.3", "fd00:7::3"] {
            host.run(&["ping", "-c1", "-W2", to]).unwrap_or_else(|error| panic!("{error}"));
        }
        ping(&lab.hosts[1], "c", "10.7.0.2");
    };
    pings();
    let breakages = [
        "ip link del ov0",
        "ip link set ov0 down",
        "ip link set ov0 name ov9",
        "ip addr del 10.7.0.2/24 dev ov0",
        "ip link set ov0 mtu 1300",
    ];
    for (breakage, n) in breakages.iter().zip(1..) {
        run(host, breakage);
        let broken = Instant::now();
        until(&mut agents[0], breakage, |agent| {
            let repaired = agent.metrics()?.count("vtepd_repairs_total", &[("result", "ok")]);
            if repaired >= f64::from(n) { Ok(()) } else { Err(LabError::not_so(format!("{repaired} repairs"))) }
        });
        assert!(broken.elapsed() < Duration::from_secs(2), "heard at once: {:?}", broken.elapsed());
        assert_eq!(count(&mut agents[0], "vtepd_drift_total", &[]), f64::from(n), "{}", agents[0].log_tail(40));
        pings();
    }
    // The host has links and routes of its own, which come and go and cost nothing.
    let ops = count(&mut agents[0], "vtepd_ops_total", &[]);
    for n in 0..20 {
        run(host, &format!("ip link add b{n} type bridge"));
        run(host, &format!("ip link set b{n} up"));
        run(host, &format!("ip link del b{n}"));
    }
    assert_eq!(count(&mut agents[0], "vtepd_ops_total", &[]), ops);
    let agents = restart_without_an_operation(agents, || started(&lab));
    agents.into_iter().for_each(|agent| assert!(agent.stop().unwrap().success()));
    assert!(run(host, "ip link show ov0").contains("ov0"), "the datapath stays");
    assert!(run(host, &format!("{VTEPD} cleanup")).contains("removed n"));
    assert!(!run(host, "ip link").contains("ov0"));
}

#[test]
fn a_link_of_that_name_that_the_host_has_already_is_never_touched() {
    in_private!();
    let lab = Lab::new().unwrap();
    let host = &lab.hosts[0];
    // Even with the agent's own link group.
    run(host, "ip link add ov0 group 30324 type veth peer name other group 30324");
    let before = run(host, "ip -d link show ov0");
    put(&lab, "networks/n", r#"{"subnets":[{"cidr":"10.7.0.0/24","vni":256}]}"#);
    put(&lab, "endpoints/n/docker-node1/self", r#"{"ip":["10.7.0.2"],"netns":"host","ifname":"ov0"}"#);
    put(&lab, "endpoints/n/docker-node1/lo", r#"{"ip":["10.7.0.4"],"netns":"host","ifname":"lo"}"#);
    let mut agent = allowed(&lab, host);
    let exists = [("kind", "link"), ("reason", "exists")];
    until(&mut agent, "both are blocked", |agent| match agent.metrics()?.count("vtepd_blocked_objects", &exists) {
        2.0 => Ok(()),
        count => Err(LabError::not_so(format!("{count} are"))),
    });
    assert_eq!(run(host, "ip -d link show ov0"), before);
    assert!(!run(host, "ip addr show lo").contains("10.7.0.4"));
    run(host, "ip link del ov0");
    until(&mut agent, "ov0 is ours", |_| {
        let shown = host.run(&words("ip addr show ov0"))?;
        if shown.contains("10.7.0.2/24") { Ok(()) } else { Err(LabError::not_so(shown)) }
    });
    lab.etcd.delete("/vtepd/v1/endpoints/n/docker-node1/lo").unwrap();
    applied(&lab, [&mut agent]);
    assert_eq!(count(&mut agent, "vtepd_drift_total", &[]), 0.0, "{}", agent.log_tail(40));
}

#[test]
fn without_leave_an_endpoint_on_the_host_is_blocked() {
    in_private!();
    let lab = Lab::new().unwrap();
    put(&lab, "networks/n", r#"{"subnets":[{"cidr":"10.7.0.0/24","vni":256}]}"#);
    put(&lab, "endpoints/n/docker-node1/self", r#"{"ip":["10.7.0.2"],"netns":"host","ifname":"ov0"}"#);
    let mut agents = vec![crate::hosts::start(&lab, &lab.hosts[0])];
    registered(&lab, &mut agents);
    applied(&lab, &mut agents);
    assert_eq!(count(&mut agents[0], "vtepd_blocked_objects", &[("reason", "unsupported")]), 1.0);
    assert!(!run(&lab.hosts[0], "ip link").contains("ov0"));
}
