//! Attributes of what we make, each changed by hand: back within a second, counted once, and traffic as before.
//!
//! docs/attributes.md is the table of all of them.

use std::time::{Duration, Instant};

use vtepd::lab::{Agent, Host};

use crate::{
    hosts::{count, in_private, ping, restart_without_an_operation, run, started},
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
    let started = Instant::now();
    let look = |agent: &mut Agent| {
        let metrics = agent.metrics().unwrap();
        let drift = metrics.count("vtepd_drift_total", &[]);
        let repaired = metrics.count("vtepd_repairs_total", &[("result", "ok")]);
        let in_sync = metrics.series.iter().filter(|s| s.name == "vtepd_in_sync").all(|s| s.value == 1.0);
        (drift - before, repaired - before, in_sync)
    };
    while look(agent) != (1.0, 1.0, true) {
        let late = started.elapsed() > Duration::from_secs(5);
        assert!(!late, "{what}: {:?}\n{}", look(agent), agent.log_tail(30));
        std::thread::sleep(Duration::from_millis(10));
    }
    let took = started.elapsed();
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
