//! A network of several subnets, some of which share a VNI, on two hosts.

use std::{
    io::Read as _,
    process::{Child, Stdio},
    thread::sleep,
    time::Duration,
};

use vtepd::lab::{Host, Lab};

use crate::{
    hosts::{applied, count, in_private, ping, put, restart_without_an_operation, run, start_all, started, words},
    repair::drifted,
};

const NETWORK: &str = r#"{"subnets":[
    {"cidr":"10.0.0.0/24","vni":256},{"cidr":"fd00:0:0:1::/64","vni":256},{"cidr":"10.0.2.0/24","vni":256},
    {"cidr":"10.0.1.0/24","vni":257},{"cidr":"fd00:0:0:2::/64","vni":257}]}"#;

/// The host, the namespace and the addresses of each endpoint.
const ENDPOINTS: [(usize, &str, &[&str]); 5] = [
    (0, "a0", &["10.0.0.2", "fd00:0:0:1::2"]),
    (0, "a1", &["10.0.1.2", "fd00:0:0:2::2"]),
    (1, "b0", &["10.0.0.3", "fd00:0:0:1::3"]),
    (1, "b1", &["10.0.1.3", "fd00:0:0:2::3"]),
    (1, "b2", &["10.0.2.3"]),
];

/// Everything that crosses the underlay from now on, in tcpdump's words.
fn capture(host: &Host) -> Child {
    let mut tcpdump = host.command(&words("tcpdump -Z root --immediate-mode -lnn -i enp0s8 udp port 4789"));
    let mut child = tcpdump.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // It says that it listens before the first packet.
    let mut said = Vec::new();
    let stderr = child.stderr.as_mut().unwrap();
    let mut byte = [0];
    while !String::from_utf8_lossy(&said).contains("listening on") && stderr.read(&mut byte).unwrap() == 1 {
        said.push(byte[0]);
    }
    child
}

fn captured(mut tcpdump: Child) -> String {
    tcpdump.kill().unwrap();
    String::from_utf8_lossy(&tcpdump.wait_with_output().unwrap().stdout).into_owned()
}

/// Each packet's VNI and what was in it.
fn packets(seen: &str) -> Vec<(u32, String)> {
    let vni = |line: &str| line.split("vni ").nth(1).and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    let pairs = seen.lines().zip(seen.lines().skip(1));
    pairs.filter_map(|(outer, inner)| vni(outer).map(|vni| (vni, inner.trim().to_owned()))).collect()
}

fn wire_up(lab: &Lab) {
    put(lab, "networks/n", NETWORK);
    for (host, name, ips) in ENDPOINTS {
        lab.hosts[host].add_netns(name).unwrap();
        let value = serde_json::json!({"ip": ips, "netns": format!("/run/netns/{name}")});
        put(lab, &format!("endpoints/n/{}/{name}", lab.hosts[host].name()), &value.to_string());
    }
}

#[test]
fn endpoints_of_all_subnets_reach_each_other_across_hosts_and_nothing_else_crosses_the_underlay() {
    in_private!();
    let lab = Lab::new().unwrap();
    let mut agents = start_all(&lab);
    let tcpdump = capture(&lab.hosts[1]);
    wire_up(&lab);
    applied(&lab, &mut agents);
    for (host, from, own) in ENDPOINTS {
        for (_, _, ips) in ENDPOINTS.iter().filter(|(_, to, _)| *to != from) {
            for ip in ips.iter().filter(|ip| own.iter().any(|own| own.contains(':') == ip.contains(':'))) {
                ping(&lab.hosts[host], from, ip);
            }
        }
    }
    // What IPv6 says unasked after a link came up, it says within these seconds.
    sleep(Duration::from_secs(2));
    let seen = captured(tcpdump);
    let packets = packets(&seen);
    assert!(packets.len() >= 2 * 18, "{seen}");
    for (vni, inner) in packets {
        assert!(inner.contains("ICMP echo re") || inner.contains("ICMP6, echo re"), "VNI {vni}: {inner}");
        let to = inner.split(" > ").nth(1).unwrap();
        let of = if to.starts_with("10.0.1.") || to.starts_with("fd00:0:0:2:") { 257 } else { 256 };
        assert_eq!(vni, of, "{inner}");
    }
}

#[test]
fn a_route_or_forwarding_that_somebody_took_away_is_back_and_counted() {
    in_private!();
    let lab = Lab::new().unwrap();
    let mut agents = start_all(&lab);
    wire_up(&lab);
    applied(&lab, &mut agents);
    let (host, agent) = (&lab.hosts[0], &mut agents[0]);
    for (n, command) in [
        "ip -n a0 route del 10.0.1.0/24",
        "ip -n a0 route replace 10.0.1.0/24 via 10.0.0.3",
        "ip -n a0 -6 route del fd00:0:0:2::/64",
        "ip netns exec vtepd-n sysctl -qw net.ipv4.ip_forward=0",
        "ip netns exec vtepd-n sysctl -qw net.ipv6.conf.all.forwarding=0",
    ]
    .into_iter()
    .enumerate()
    {
        run(host, command);
        drifted(agent, n as f64 + 1.0);
        ping(host, "a0", "10.0.1.3");
        ping(host, "a0", "fd00:0:0:2::3");
    }
    assert_eq!(count(agent, "vtepd_drift_total", &[("kind", "route")]), 5.0);
    restart_without_an_operation(agents, || started(&lab));
}
