//! The way outside as it stands in the kernel: who has one, and what becomes of it when it is broken, taken down, or in the way.

use std::collections::BTreeMap;

use vtepd::lab::{Agent, Host, Lab, LabError};

use crate::{
    hosts::{
        VTEPD, applied, count, in_private, options, ping, put, registered, restart_without_an_operation, run, start,
        start_all, until, words,
    },
    repair::drifted,
};

/// The rest of the world.
pub(crate) const INTERNET: &str = "203.0.113.9";

/// A namespace behind the host that stands for the rest of the world, with no route to anything behind the host.
pub(crate) fn add_internet(host: &Host) {
    host.add_netns("internet").unwrap();
    run(host, "ip link add wan0 type veth peer name eth0 netns internet");
    run(host, "ip addr add 203.0.113.1/24 dev wan0");
    run(host, "ip link set wan0 up");
    run(host, &format!("ip -n internet addr add {INTERNET}/24 dev eth0"));
    run(host, "ip -n internet link set eth0 up");
}

/// Two hosts with an agent each. On the first `a` and `b` are in the network `n`, `c` in `n` and `m`, `i` in an internal one, `d` in `n`
/// with a default route of its own; on the second `r` is in `n`.
pub(crate) fn world() -> (Lab, Vec<Agent>) {
    let lab = Lab::new().unwrap();
    let (host, other) = (&lab.hosts[0], &lab.hosts[1]);
    for name in ["a", "b", "c", "d", "i"] {
        host.add_netns(name).unwrap();
    }
    other.add_netns("r").unwrap();
    run(host, "ip -n d link add own type bridge");
    run(host, "ip -n d addr add 192.0.2.2/24 dev own");
    run(host, "ip -n d link set own up");
    run(host, "ip -n d route add default via 192.0.2.1");
    add_internet(host);
    put(&lab, "networks/n", r#"{"subnets":[{"cidr":"10.1.0.0/24","vni":301}]}"#);
    put(&lab, "networks/m", r#"{"subnets":[{"cidr":"10.2.0.0/24","vni":302}]}"#);
    put(&lab, "networks/inner", r#"{"subnets":[{"cidr":"10.3.0.0/24","vni":303}],"internal":true}"#);
    // One after the other, so that the addresses of the gateway bridge are given in this order.
    for (key, ip, more) in [
        ("n/docker-node1/a", "10.1.0.2", ""),
        ("n/docker-node1/b", "10.1.0.3", ""),
        ("n/docker-node1/c", "10.1.0.4", ""),
        ("m/docker-node1/c", "10.2.0.4", r#","ifname":"net1""#),
        ("n/docker-node1/d", "10.1.0.5", ""),
        ("inner/docker-node1/i", "10.3.0.6", ""),
        ("n/docker-node2/r", "10.1.0.7", ""),
    ] {
        let name = key.rsplit('/').next().unwrap();
        put(&lab, &format!("endpoints/{key}"), &format!(r#"{{"ip":["{ip}"],"netns":"/run/netns/{name}"{more}}}"#));
    }
    let agents = started(&lab);
    (lab, agents)
}

pub(crate) fn started(lab: &Lab) -> Vec<Agent> {
    let mut agents = start_all(lab);
    registered(lab, &mut agents);
    applied(lab, &mut agents);
    agents
}

/// The IPv4 addresses of every interface of a namespace, with their prefix lengths.
fn addresses(host: &Host, netns: &str) -> BTreeMap<String, Vec<String>> {
    let shown = host.ip_json(&["-n", netns, "-4", "addr"]).unwrap();
    let links = shown.as_array().unwrap().iter().filter(|link| link["ifname"] != "lo");
    let of = |link: &serde_json::Value| {
        let text = |a: &serde_json::Value| format!("{}/{}", a["local"].as_str().unwrap(), a["prefixlen"]);
        (link["ifname"].as_str().unwrap().to_owned(), link["addr_info"].as_array().unwrap().iter().map(text).collect())
    };
    links.map(of).collect()
}

/// The address of a namespace on the gateway bridge, without its prefix length.
pub(crate) fn outer_address(host: &Host, netns: &str) -> String {
    let address = addresses(host, netns)["eth1"][0].clone();
    address.strip_suffix("/16").unwrap().to_owned()
}

pub(crate) fn ports(host: &Host) -> Vec<String> {
    let shown = host.ip_json(&words("link show master vtepd-gw")).unwrap();
    shown.as_array().unwrap().iter().map(|link| link["ifname"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn every_namespace_gets_one_way_outside_unless_its_network_is_internal_and_none_takes_away_a_default_route() {
    in_private!();
    let (lab, mut agents) = world();
    let host = &lab.hosts[0];
    for name in ["a", "b", "c"] {
        let address = outer_address(host, name);
        assert!(address.starts_with("172.18.0."), "{name}: {address}");
        let shown = &host.ip_json(&["-n", name, "link", "show", "eth1"]).unwrap()[0];
        let hexadecimal: Vec<String> =
            address.split('.').map(|byte| format!("{:02x}", byte.parse::<u8>().unwrap())).collect();
        assert_eq!(shown["address"], format!("02:42:{}", hexadecimal.join(":")), "{name}");
        assert_eq!((&shown["mtu"], &shown["operstate"]), (&1500.into(), &"UP".into()), "{name}");
        let routes = run(host, &format!("ip -n {name} route show default"));
        assert_eq!(words(&routes)[..5], ["default", "via", "172.18.0.1", "dev", "eth1"], "{name}: {routes}");
        ping(host, name, "172.18.0.1");
        ping(host, name, "10.1.0.7");
    }
    let names: Vec<String> = addresses(host, "c").into_keys().collect();
    assert_eq!(names, ["eth0", "eth1", "net1"], "one way outside for two networks");
    let names: Vec<String> = addresses(host, "i").into_keys().collect();
    assert_eq!(names, ["eth0"], "an internal network has no way outside");
    assert_eq!(run(host, "ip -n i route show default"), "");
    let routes = run(host, "ip -n d route show default");
    assert_eq!(routes.trim(), "default via 192.0.2.1 dev own", "a default route of its own stays the only one");
    let others = ["a", "b", "c", "d"].iter().filter(|name| addresses(host, name).contains_key("eth1")).count();
    assert_eq!(ports(host).len(), others);
    let before: Vec<_> = ["a", "b", "c", "d", "i"].map(|name| addresses(host, name)).into();
    for agent in &mut agents {
        assert_eq!(count(agent, "vtepd_drift_total", &[]), 0.0, "{}", agent.log_tail(40));
    }
    // Ours comes when its own goes, and goes when its own comes back; neither is a drift.
    let default_of = |agent: &mut Agent, wanted: &str| {
        until(agent, wanted, |_| match host.run(&words("ip -n d route show default"))? {
            routes if routes.lines().count() == 1 && routes.contains(wanted) => Ok(()),
            routes => Err(LabError::not_so(routes)),
        });
    };
    run(host, "ip -n d route del default");
    default_of(&mut agents[0], "default via 172.18.0.1 dev eth1 proto 118");
    run(host, "ip -n d route replace default via 192.0.2.1");
    default_of(&mut agents[0], "default via 192.0.2.1 dev own");
    restart_without_an_operation(agents, || started(&lab));
    let after: Vec<_> = ["a", "b", "c", "d", "i"].map(|name| addresses(host, name)).into();
    assert_eq!(before, after);
}

#[test]
fn whoever_breaks_the_way_outside_it_is_back_with_the_same_address_and_counted_once() {
    in_private!();
    let (lab, mut agents) = world();
    let (host, agent) = (&lab.hosts[0], &mut agents[0]);
    let address = outer_address(host, "a");
    let all: Vec<_> = ["a", "b", "c"].map(|name| outer_address(host, name)).into();
    // The port of `a`: the one that the interface's other end is.
    let port = || {
        let peer = host.ip_json(&words("-n a link show eth1")).unwrap()[0]["link_index"].clone();
        let links = host.ip_json(&["link"]).unwrap();
        let port = links.as_array().unwrap().iter().find(|link| link["ifindex"] == peer).unwrap();
        port["ifname"].as_str().unwrap().to_owned()
    };
    let breakages = [
        ("link", "ip link set vtepd-gw mtu 1400".to_owned()),
        ("link", "ip -n a link del eth1".to_owned()),
        ("link", "ip -n a link set eth1 down".to_owned()),
        ("link", "ip -n a link set eth1 name other".to_owned()),
        ("link", "ip -n a link set eth1 mtu 1400".to_owned()),
        ("link", format!("ip link del {}", port())),
        ("link", format!("ip link set {} nomaster", port())),
        ("link", format!("ip link set {} down", port())),
        ("link", format!("bridge link set dev {} isolated off", port())),
        ("link", "ip link set vtepd-gw mtu 9000".to_owned()),
        ("link", "ip link set vtepd-gw down".to_owned()),
        ("link", "ip link set vtepd-gw name theirs".to_owned()),
        ("link", "ip link set vtepd-gw address 02:00:00:00:00:99".to_owned()),
        ("link", "ip link del vtepd-gw".to_owned()),
        ("address", "ip addr del 172.18.0.1/16 dev vtepd-gw".to_owned()),
        ("address", format!("ip -n a addr del {address}/16 dev eth1")),
        ("route", "ip -n a route del default".to_owned()),
        ("nat", "nft delete table inet vtepd-default".to_owned()),
        ("nat", "nft delete table netdev vtepd-default".to_owned()),
        ("nat", "nft flush chain inet vtepd-default forward".to_owned()),
        ("nat", "nft insert rule inet vtepd-default forward accept".to_owned()),
        ("nat", "nft add chain inet vtepd-default theirs".to_owned()),
        ("route", "sysctl -qw net.ipv4.ip_forward=0".to_owned()),
        ("route", "ip -n a route replace default via 172.18.0.99 dev eth1 proto 118".to_owned()),
    ];
    for ((kind, breakage), n) in breakages.iter().zip(1..) {
        let before = count(agent, "vtepd_drift_total", &[("kind", kind)]);
        println!("{breakage}");
        run(host, breakage);
        drifted(agent, f64::from(n));
        assert_eq!(count(agent, "vtepd_drift_total", &[("kind", kind)]), before + 1.0, "{}", agent.log_tail(20));
        ping(host, "a", INTERNET);
        assert_eq!(["a", "b", "c"].map(|name| outer_address(host, name)).to_vec(), all, "{breakage}");
    }
    restart_without_an_operation(agents, || started(&lab));
}

#[test]
fn cleanup_takes_the_way_outside_down_and_leaves_what_is_somebody_elses() {
    in_private!();
    let (lab, mut agents) = world();
    let host = &lab.hosts[0];
    run(host, "nft add table ip theirs");
    run(host, "ip link add br-theirs type bridge");
    run(host, "ip link add vgw-theirs type bridge");
    assert!(!ports(host).is_empty());
    agents.remove(0).stop().unwrap();
    assert!(!ports(host).is_empty(), "an agent that ends leaves everything");
    run(host, &format!("{VTEPD} cleanup"));
    let links = host.ip_json(&["link"]).unwrap();
    let links: Vec<&str> = links.as_array().unwrap().iter().map(|link| link["ifname"].as_str().unwrap()).collect();
    assert_eq!(links, ["lo", Host::INTERFACE, "wan0", "br-theirs", "vgw-theirs"]);
    assert_eq!(run(host, "nft list tables").trim(), "table ip theirs");
    for name in ["a", "b", "c", "i"] {
        assert!(addresses(host, name).is_empty(), "{name}: {:?}", addresses(host, name));
    }
    assert_eq!(run(host, "ip -n d route show default").trim(), "default via 192.0.2.1 dev own");
    agents.push(start(&lab, host));
    applied(&lab, agents.iter_mut());
    ping(host, "a", "172.18.0.1");
    ping(host, "a", "10.1.0.7");
    restart_without_an_operation(agents, || started(&lab));
}

#[test]
fn a_bridge_of_that_name_that_somebody_else_made_is_left_alone_until_leave_is_given_to_use_it() {
    in_private!();
    let lab = Lab::with_hosts(1).unwrap();
    let host = &lab.hosts[0];
    host.add_netns("a").unwrap();
    run(host, "ip link add vtepd-gw type bridge ageing_time 12300");
    run(host, "ip addr add 172.18.0.1/16 dev vtepd-gw");
    run(host, "ip link set vtepd-gw up");
    let look = || {
        let show = |line: &str| host.ip_json(&words(line)).unwrap()[0].clone();
        let (link, address) = (show("-d link show vtepd-gw"), show("-4 addr show vtepd-gw"));
        let data = &link["linkinfo"]["info_data"];
        let fields =
            [&link["group"], &link["mtu"], &data["ageing_time"], &data["mcast_snooping"], &address["addr_info"]];
        fields.map(ToString::to_string)
    };
    let before = look();
    put(&lab, "networks/n", r#"{"subnets":[{"cidr":"10.1.0.0/24","vni":301}]}"#);
    put(&lab, "endpoints/n/docker-node1/a", r#"{"ip":["10.1.0.2"],"netns":"/run/netns/a"}"#);
    let mut agent = start(&lab, host);
    until(&mut agent, "the bridge is Blocked", |agent| {
        let blocked = agent.metrics()?.count("vtepd_blocked_objects", &[("kind", "link"), ("reason", "exists")]);
        if blocked >= 1.0 { Ok(()) } else { Err(LabError::not_so(format!("{blocked} are"))) }
    });
    until(&mut agent, "the network itself stands", |_| host.in_netns("a", &words("ping -c1 -W1 10.1.0.1")));
    assert_eq!((look(), ports(host)), (before.clone(), Vec::new()), "{}", agent.log_tail(20));
    assert!(!addresses(host, "a").contains_key("eth1"));
    agent.stop().unwrap();

    let adopt = || {
        let mut options = options(&lab);
        options.arguments = vec!["--adopt-gateway-bridge".to_owned()];
        let mut agents = vec![host.spawn_agent(&options).unwrap()];
        applied(&lab, &mut agents);
        agents
    };
    let mut agents = adopt();
    assert_eq!(count(&mut agents[0], "vtepd_blocked_objects", &[]), 0.0, "{}", agents[0].log_tail(20));
    assert_eq!((look(), ports(host).len()), (before.clone(), 1));
    ping(host, "a", "172.18.0.1");
    let agents = restart_without_an_operation(agents, adopt);
    agents.into_iter().for_each(|agent| assert!(agent.stop().unwrap().success()));
    run(host, &format!("{VTEPD} cleanup"));
    assert_eq!((look(), ports(host)), (before, Vec::new()), "what we put on it is gone, and it is not");
}
