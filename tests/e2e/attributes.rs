//! Attributes of what we make, each changed by hand: back within a second, counted once, and traffic as before.
//!
//! docs/attributes.md is the table of all of them.

use std::time::{Duration, Instant};

use vtepd::lab::{Agent, Host, Lab, LabError};

use crate::{
    hosts::{
        applied, count, in_private, ping, put, registered, restart_without_an_operation, run, start_all, started, until,
    },
    seed::seed,
};

const OVERLAY: &str = "vtepd-overlay-demo";

/// The port of the first host's container.
pub(crate) fn port(host: &Host, overlay: &str) -> String {
    let links = host.ip_json(&["-n", overlay, "link"]).unwrap();
    let names = links.as_array().unwrap().iter().map(|l| l["ifname"].as_str().unwrap().to_owned());
    names.into_iter().find(|name| name.starts_with("veth")).unwrap()
}

/// How a link looks, but for what the kernel counts and times.
fn looks(host: &Host, netns: &str, link: &str) -> String {
    let mut looks = host.ip_json(&["-d", "-n", netns, "link", "show", link]).unwrap();
    // A device that cannot be changed back is made anew.
    looks[0].as_object_mut().unwrap().retain(|name, _| !matches!(&**name, "ifindex" | "link_index" | "operstate"));
    let info = &mut looks[0]["linkinfo"];
    for nest in ["info_data", "info_slave_data"] {
        if let Some(data) = info[nest].as_object_mut() {
            data.retain(|name, _| {
                !name.ends_with("timer")
                    && !matches!(&**name, "no" | "id")
                    && !name.starts_with("root_")
                    && !name.contains("designated")
            });
        }
    }
    format!("{looks:#}")
}

/// Waits a second at most until one more drift was counted and repaired.
pub(crate) fn counted_once(agent: &mut Agent, before: f64, what: &str) {
    let since = Instant::now();
    let look = |agent: &mut Agent| {
        let metrics = agent.metrics().unwrap();
        let drift = metrics.count("vtepd_drift_total", &[]);
        let repaired = metrics.count("vtepd_repairs_total", &[("result", "ok")]);
        let in_sync = metrics.series.iter().filter(|s| s.name == "vtepd_in_sync").all(|s| s.value == 1.0);
        (drift - before, repaired - before, in_sync)
    };
    while look(agent) != (1.0, 1.0, true) {
        let late = since.elapsed() > Duration::from_secs(5);
        assert!(!late, "{what}: {:?}\n{}", look(agent), agent.log_tail(30));
        std::thread::sleep(Duration::from_millis(10));
    }
    let took = since.elapsed();
    assert!(took < Duration::from_secs(2), "{what}: {took:?}");
}

#[test]
fn whatever_attribute_of_a_link_is_changed_it_is_back_counted_once_and_the_ping_works() {
    in_private!();
    let (lab, mut agents) = seed();
    let host = &lab.hosts[0];
    let port = port(host, OVERLAY);
    let in_overlay = |command: &str| format!("nsenter --net=/run/netns/{OVERLAY} -- {command}");
    let mut breakages = Vec::new();
    for link in ["vxlan1", &port] {
        for attribute in [
            "bcast_flood off",
            "mcast_flood off",
            "neigh_suppress on",
            "isolated on",
            "hairpin on",
            "guard on",
            "root_block on",
            "learning on",
            "vlan_tunnel on",
            "mcast_to_unicast on",
            "state 0",
            "flood toggled",
            "locked toggled",
        ] {
            let attribute = match (attribute, link == "vxlan1") {
                ("flood toggled", true) => "flood off",
                ("flood toggled", false) => "flood on",
                ("locked toggled", true) => "locked on",
                ("locked toggled", false) => "locked off",
                (other, _) => other,
            };
            breakages.push((OVERLAY, link, format!("bridge -n {OVERLAY} link set dev {link} {attribute}")));
        }
    }
    for attribute in ["dev lo", "remote 192.168.205.99", "ttl 1", "tos 4", "df set", "learning"] {
        breakages.push((OVERLAY, "vxlan1", in_overlay(&format!("ip link set vxlan1 type vxlan id 256 {attribute}"))));
    }
    for attribute in ["stp_state 1", "mcast_snooping 1", "group_fwd_mask 8", "mcast_querier 1", "nf_call_iptables 1"] {
        breakages.push((OVERLAY, "br0", in_overlay(&format!("ip link set br0 type bridge {attribute}"))));
    }
    for link in ["br0", "vxlan1", &port] {
        for attribute in ["arp off", "multicast off", "mode dormant", "mtu 1300", "addrgenmode eui64"] {
            breakages.push((OVERLAY, link, format!("ip -n {OVERLAY} link set {link} {attribute}")));
        }
        breakages.push((OVERLAY, link, in_overlay(&format!("tc qdisc add dev {link} root pfifo limit 1"))));
    }
    breakages.push((OVERLAY, "vxlan1", format!("ip -n {OVERLAY} link set vxlan1 protodown on")));
    for attribute in ["arp off", "multicast off", "mode dormant", "state dormant", "mtu 1300"] {
        breakages.push(("test1", "eth0", format!("ip -n test1 link set eth0 {attribute}")));
    }
    // More than ten of one object in ten seconds would be a fight: every few, an agent without memory goes on.
    for some in breakages.chunks(10) {
        for (netns, link, breakage) in some {
            let (host, agent) = (&lab.hosts[0], &mut agents[0]);
            let (before, drift) = (looks(host, netns, link), count(agent, "vtepd_drift_total", &[]));
            println!("{breakage}");
            run(host, breakage);
            counted_once(agent, drift, breakage);
            ping(host, "test1", "10.0.0.3");
            assert_eq!(looks(host, netns, link), before, "{breakage}");
        }
        agents = restart_without_an_operation(agents, || started(&lab));
    }
}

#[test]
fn routes_that_came_with_an_address_are_back_and_no_packet_takes_another_way() {
    in_private!();
    let (lab, mut agents) = seed();
    let (host, agent) = (&lab.hosts[0], &mut agents[0]);
    let in_test1 = |command: &str| format!("nsenter --net=/run/netns/test1 -- {command}");
    let in_overlay = |command: &str| format!("nsenter --net=/run/netns/{OVERLAY} -- {command}");
    for (breakage, to) in [
        (in_test1("ip route flush dev eth0"), "10.0.0.3"),
        (in_test1("ip route del local 10.0.0.2 dev eth0 table local"), "10.0.0.3"),
        (in_test1("ip route flush dev eth1"), "172.18.0.1"),
        (in_overlay("ip route flush dev br0"), "10.0.0.1"),
        (in_overlay("ip route del local 10.0.0.1 dev br0 table local"), "10.0.0.1"),
        ("ip route flush dev vtepd-gw".to_owned(), "172.18.0.1"),
    ] {
        let drift = count(agent, "vtepd_drift_total", &[]);
        println!("{breakage}");
        run(host, &breakage);
        let since = Instant::now();
        while host.in_netns("test1", &["ping", "-c1", "-W1", to]).is_err() {
            assert!(since.elapsed() < Duration::from_secs(5), "{breakage}\n{}", agent.log_tail(30));
        }
        assert!(since.elapsed() < Duration::from_secs(3), "{breakage}: {:?}", since.elapsed());
        assert!(count(agent, "vtepd_drift_total", &[]) > drift, "{breakage}");
    }
    restart_without_an_operation(agents, || started(&lab));
}

#[test]
fn settings_below_proc_sys_of_our_devices_are_put_back() {
    in_private!();
    let (lab, mut agents) = seed();
    let (host, agent) = (&lab.hosts[0], &mut agents[0]);
    let in_overlay = |setting: &str| format!("nsenter --net=/run/netns/{OVERLAY} -- sysctl -qw net.{setting}");
    for breakage in [
        in_overlay("ipv4.conf.br0.arp_ignore=8"),
        in_overlay("ipv4.conf.br0.proxy_arp=1"),
        in_overlay("ipv4.conf.br0.proxy_arp_pvlan=1"),
        in_overlay("ipv4.conf.br0.rp_filter=1"),
        in_overlay("ipv4.conf.br0.arp_filter=1"),
        in_overlay("ipv6.conf.vxlan1.disable_ipv6=1"),
        "sysctl -qw net.ipv4.conf.vtepd-gw.forwarding=0".to_owned(),
    ] {
        let drift = count(agent, "vtepd_drift_total", &[]);
        println!("{breakage}");
        run(host, &breakage);
        counted_once(agent, drift, &breakage);
        ping(host, "test1", "10.0.0.3");
        ping(host, "test1", "10.0.0.1");
    }
    // A bridge that is made while the host's default is not to forward forwards all the same.
    run(host, "sysctl -qw net.ipv4.conf.default.forwarding=0");
    let drift = count(agent, "vtepd_drift_total", &[]);
    run(host, "ip link del vtepd-gw");
    let since = Instant::now();
    let forwards = |host: &Host| run(host, "sysctl -n net.ipv4.conf.all.forwarding net.ipv4.conf.vtepd-gw.forwarding");
    while count(agent, "vtepd_drift_total", &[]) == drift || forwards(host) != "1\n1\n" {
        assert!(since.elapsed() < Duration::from_secs(5), "{}\n{}", forwards(host), agent.log_tail(30));
    }
    run(host, "sysctl -qw net.ipv4.conf.default.forwarding=1");
    restart_without_an_operation(agents, || started(&lab));
}

#[test]
fn a_container_that_refuses_ipv6_gets_its_ipv4_addresses_and_routes_and_nothing_is_wrong() {
    in_private!();
    let lab = Lab::new().unwrap();
    let host = &lab.hosts[0];
    host.add_netns("test1").unwrap();
    run(
        host,
        "nsenter --net=/run/netns/test1 -- sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1",
    );
    let mut agents = start_all(&lab);
    let subnets = r#"{"subnets":[{"cidr":"10.0.0.0/24","vni":256},{"cidr":"fd00::/64","vni":256},{"cidr":"10.1.0.0/24","vni":257}]}"#;
    put(&lab, "networks/both", subnets);
    put(&lab, "endpoints/both/docker-node1/test1", r#"{"ip":["10.0.0.2","fd00::2"],"netns":"/run/netns/test1"}"#);
    registered(&lab, &mut agents);
    applied(&lab, &mut agents);
    let routes = run(host, "ip -n test1 route");
    assert!(routes.contains("10.1.0.0/24 via 10.0.0.1 dev eth0"), "{routes}");
    ping(host, "test1", "10.0.0.1");
    let failed = count(&mut agents[0], "vtepd_ops_total", &[("result", "error")]);
    assert_eq!(failed, 0.0, "{}", agents[0].log_tail(30));
    // When it takes IPv6 after all it gets that too.
    run(host, "nsenter --net=/run/netns/test1 -- sysctl -qw net.ipv6.conf.all.disable_ipv6=0");
    until(&mut agents[0], "the IPv6 address", |_| {
        let shown = host.run(&["ip", "-n", "test1", "-6", "addr", "show", "eth0"])?;
        if shown.contains("fd00::2/64") { Ok(()) } else { Err(LabError::not_so(shown)) }
    });
    restart_without_an_operation(agents, || started(&lab));
}
