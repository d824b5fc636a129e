//! The way outside where others have a hand in it: their subnets, and those who come from outside.

use vtepd::lab::{Agent, Lab, LabError, wait_for};

use crate::{
    hosts::{applied, count, in_private, options, put, run, until},
    seed::seed,
};

#[test]
fn a_link_with_an_address_in_the_gateway_subnet_blocks_the_way_outside_also_when_it_comes_later() {
    in_private!();
    let lab = Lab::with_hosts(1).unwrap();
    let host = &lab.hosts[0];
    host.add_netns("a").unwrap();
    put(&lab, "networks/n", r#"{"subnets":[{"cidr":"10.1.0.0/24","vni":301}]}"#);
    put(&lab, "endpoints/n/docker-node1/a", r#"{"ip":["10.1.0.2"],"netns":"/run/netns/a"}"#);
    let overlap = |agent: &mut Agent, wanted: f64| {
        until(agent, &format!("{wanted} for overlap"), |agent| {
            match agent.metrics()?.count("vtepd_blocked_objects", &[("kind", "link"), ("reason", "overlap")]) {
                count if (count >= 1.0) == (wanted >= 1.0) => Ok(()),
                count => Err(LabError::not_so(format!("{count} are"))),
            }
        });
    };
    run(host, "ip link add theirs type bridge");
    run(host, "ip addr add 172.18.7.1/24 dev theirs");
    run(host, "ip link set theirs up");
    let mut options = options(&lab);
    options.resync = std::time::Duration::from_secs(5);
    let mut agent = host.spawn_agent(&options).unwrap();
    overlap(&mut agent, 1.0);
    run(host, "ip link del theirs");
    overlap(&mut agent, 0.0);
    applied(&lab, [&mut agent]);
    assert_eq!(count(&mut agent, "vtepd_drift_total", &[]), 0.0);
    run(host, "ip link add theirs type bridge");
    run(host, "ip addr add 172.18.7.1/24 dev theirs");
    run(host, "ip link set theirs up");
    overlap(&mut agent, 1.0);
}

#[test]
fn who_routes_to_the_gateway_subnet_from_outside_reaches_nobody_unasked() {
    in_private!();
    let (lab, mut agents) = seed();
    let (host, outsider) = (&lab.hosts[0], &lab.hosts[1]);
    // The outsider's own bridge has the same subnet.
    run(outsider, &format!("ip route add 172.18.0.2/32 via {}", host.address()));
    let reach = || outsider.run(&["ping", "-c1", "-W1", "172.18.0.2"]);
    assert!(reach().is_err());
    // Answers to what was asked from within come back.
    host.in_netns("test1", &["ping", "-c1", "-W2", &outsider.address().to_string()]).unwrap();
    assert_eq!(count(&mut agents[0], "vtepd_drift_total", &[]), 0.0, "{}", agents[0].log_tail(40));
    // It is the rule that keeps them out.
    drop(agents);
    run(host, "nft flush chain inet vtepd-default forward");
    wait_for("the way in", std::time::Duration::from_secs(10), reach).unwrap();
}
