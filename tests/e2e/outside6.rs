//! IPv6 on the way outside, which the operator asks for.

use vtepd::lab::{Agent, Host, Lab};

use crate::hosts::{applied, count, in_private, options, ping, put, registered, restart_without_an_operation, run};

fn start(lab: &Lab, host: &Host) -> Agent {
    let mut options = options(lab);
    options.arguments = ["--gateway-subnet6", "fd00:18::/64"].map(str::to_owned).to_vec();
    host.spawn_agent(&options).unwrap()
}

#[test]
fn with_an_ipv6_subnet_containers_reach_the_outside_by_the_hosts_address() {
    in_private!();
    let lab = Lab::with_hosts(2).unwrap();
    let (host, outside) = (&lab.hosts[0], &lab.hosts[1]);
    for (host, number) in lab.hosts.iter().zip(10..) {
        run(host, &format!("ip addr add fd0e::{number}/64 dev enp0s8 nodad"));
    }
    for name in ["test1", "test2"] {
        host.add_netns(name).unwrap();
    }
    let mut agent = start(&lab, host);
    registered(&lab, [&mut agent]);
    put(&lab, "networks/demo", r#"{"subnets":[{"cidr":"10.0.0.0/24","vni":256}]}"#);
    for (name, last) in [("test1", 2), ("test2", 3)] {
        let value = format!(r#"{{"ip":["10.0.0.{last}"],"netns":"/run/netns/{name}"}}"#);
        put(&lab, &format!("endpoints/demo/{}/{name}", host.name()), &value);
    }
    applied(&lab, [&mut agent]);
    let routes = run(host, "ip -n test1 -6 route show default");
    assert!(routes.starts_with("default via fd00:18::1 dev eth1 proto 118"), "{routes}");
    assert!(run(host, "ip -n test1 -6 addr show dev eth1").contains("fd00:18::2/64"));
    // The other host has no route back to the subnet: what it answers came from the host's own address.
    ping(host, "test1", "fd0e::11");
    ping(host, "test1", &outside.address().to_string());
    // A neighbour on the bridge is out of reach, directly and by way of the host.
    let reach = |how: &str| host.in_netns("test1", &["sh", "-c", how]);
    assert!(reach("ping -c1 -W1 fd00:18::3").is_err() && reach("ping -c1 -W1 172.18.0.3").is_err());
    run(host, "ip -n test1 -6 route add fd00:18::3/128 via fd00:18::1 dev eth1");
    run(host, "ip -n test1 route add 172.18.0.3/32 via 172.18.0.1 dev eth1");
    assert!(reach("ping -c1 -W1 fd00:18::3").is_err() && reach("ping -c1 -W1 172.18.0.3").is_err());
    assert_eq!(count(&mut agent, "vtepd_drift_total", &[]), 0.0, "{}", agent.log_tail(40));
    restart_without_an_operation(vec![agent], || {
        let mut agent = start(&lab, host);
        applied(&lab, [&mut agent]);
        vec![agent]
    });
}
