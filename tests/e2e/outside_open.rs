//! The way outside: what is not as README says yet.

use vtepd::lab::{Agent, Lab, LabError};

use crate::hosts::{applied, count, in_private, options, put, run, until};

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
