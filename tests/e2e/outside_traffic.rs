//! What the way outside lets through, and what it does not: seen by those who send, and by those who would be reached.

use std::{
    io::{BufRead, BufReader},
    process::{Child, ChildStdout, Stdio},
};

use vtepd::lab::{Agent, Host, Lab, LabError};

use crate::{
    hosts::{applied, count, in_private, options, ping, put, restart_without_an_operation, run, start, until, words},
    outside::{INTERNET, add_internet, outer_address, ports, started, world},
    repair::drifted,
};

/// What a container, the host or anyone else runs to be heard or to send.
const HEAR: &str = r#"
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("", 9999))
s.settimeout(60)
print("ready", flush=True)
while True:
    data, peer = s.recvfrom(2000)
    print(data.decode(), "from", peer[0], flush=True)
"#;
const SEND: &str = r#"
import socket, sys
to, text = sys.argv[1:]
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.sendto(text.encode(), (to, 9999))
"#;
/// A datagram within an Ethernet frame within VXLAN (RFC 7348), sent as a plain datagram to whoever ends the tunnel.
const INJECT: &str = r#"
import socket, struct, sys
vtep, port, vni, to_mac, from_mac, to, source, text = sys.argv[1:]
mac = lambda text: bytes.fromhex(text.replace(":", ""))
udp = struct.pack("!HHHH", 9, 9999, 8 + len(text), 0) + text.encode()
head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0, socket.inet_aton(source), socket.inet_aton(to))
total = sum(struct.unpack("!10H", head))
total = (total >> 16) + (total & 0xffff)
head = head[:10] + struct.pack("!H", ~(total + (total >> 16)) & 0xffff) + head[12:]
frame = mac(to_mac) + mac(from_mac) + b"\x08\x00" + head + udp
vxlan = struct.pack("!II", 0x08000000, int(vni) << 8)
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.sendto(vxlan + frame, (vtep, int(port)))
"#;
/// Tells whoever connects from which address that is seen to be.
const MIRROR: &str = r#"
import socket
s = socket.create_server(("", 9000))
while True:
    c, peer = s.accept()
    c.sendall(peer[0].encode())
    c.close()
"#;
const LOOK: &str = r#"
import socket, sys
print(socket.create_connection((sys.argv[1], 9000), 2).recv(100).decode())
"#;

/// A program in Python in a namespace of the host, or on the host itself where that is empty.
fn python(netns: &str, program: &str, arguments: &[&str]) -> Vec<String> {
    let line: Vec<&str> = ["python3", "-c", program].into_iter().chain(arguments.iter().copied()).collect();
    if netns.is_empty() { line.into_iter().map(str::to_owned).collect() } else { Host::netns_arguments(netns, &line) }
}

fn run_python(host: &Host, netns: &str, program: &str, arguments: &[&str]) -> Result<String, LabError> {
    let line = python(netns, program, arguments);
    host.run(&line.iter().map(String::as_str).collect::<Vec<_>>())
}

/// A program that runs on until it is dropped.
struct Running {
    child: Child,
    said: BufReader<ChildStdout>,
}

impl Running {
    fn new(host: &Host, netns: &str, program: &str) -> Self {
        let line = python(netns, program, &[]);
        let mut command = host.command(&line.iter().map(String::as_str).collect::<Vec<_>>());
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let said = BufReader::new(child.stdout.take().unwrap());
        Self { child, said }
    }

    /// Whoever listens for datagrams, once it does.
    fn hearing(host: &Host, netns: &str) -> Self {
        let mut hearing = Self::new(host, netns, HEAR);
        assert_eq!(hearing.line(), "ready");
        hearing
    }

    /// The next line; empty when there is none for a minute.
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.said.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    /// What was heard up to the first datagram with this text.
    fn heard_before(&mut self, text: &str) -> Vec<String> {
        let mut heard = Vec::new();
        loop {
            let line = self.line();
            assert!(!line.is_empty(), "{text} was not heard, only {heard:?}");
            if line.starts_with(text) {
                return heard;
            }
            heard.push(line);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The MAC address of an interface of a namespace.
fn mac(host: &Host, netns: &str, interface: &str) -> String {
    let shown = &host.ip_json(&["-n", netns, "link", "show", interface]).unwrap()[0];
    shown["address"].as_str().unwrap().to_owned()
}

/// Waits until a connection from this namespace to the rest of the world is answered; says from where it seemed to come.
fn seen_outside(host: &Host, agent: &mut Agent, netns: &str) -> String {
    until(agent, "an answer from outside", |_| run_python(host, netns, LOOK, &[INTERNET])).trim().to_owned()
}

#[test]
fn the_outside_sees_the_host_and_other_endpoints_see_nothing_of_who_comes_by_this_way() {
    in_private!();
    let (lab, mut agents) = world();
    let (host, other) = (&lab.hosts[0], &lab.hosts[1]);
    let _mirror = Running::new(host, "internet", MIRROR);
    for name in ["a", "b", "c"] {
        assert_eq!(seen_outside(host, &mut agents[0], name), "203.0.113.1", "the host's address, not {name}'s");
        // The underlay is outside as well.
        ping(host, name, "192.168.205.1");
    }
    run_python(host, "i", LOOK, &[INTERNET]).unwrap_err();
    let nothing = Vec::<String>::new();
    let b = outer_address(host, "b");
    let (mut at_b, mut at_r) = (Running::hearing(host, "b"), Running::hearing(other, "r"));
    // To another endpoint on its own bridge, by the shortest way, then around by the bridge's address.
    run(host, &format!("ip -n a neigh replace {b} lladdr {} dev eth1", mac(host, "b", "eth1")));
    run_python(host, "a", SEND, &[&b, "direct"]).unwrap();
    run(host, &format!("ip -n a neigh del {b} dev eth1"));
    run(host, &format!("ip -n a route add {b}/32 via 172.18.0.1 dev eth1"));
    run_python(host, "a", SEND, &[&b, "routed"]).unwrap();
    run_python(host, "", SEND, &[&b, "from-the-host"]).unwrap();
    assert_eq!(at_b.heard_before("from-the-host"), nothing);

    // Frames of the overlay's own, as datagrams to the VTEP of another host, of this one, and to the bridge's address.
    let (own, remote) = (host.address().to_string(), other.address().to_string());
    let from = mac(host, "a", "eth0");
    let inject = |netns: &str, vtep: &str, to_mac: &str, to: &str, text: &str| {
        run_python(host, netns, INJECT, &[vtep, "4789", "301", to_mac, &from, to, "10.1.0.2", text]).unwrap();
    };
    let to = mac(other, "r", "eth0");
    inject("a", &remote, &to, "10.1.0.7", "injected");
    inject("", &remote, &to, "10.1.0.7", "by-the-host");
    assert_eq!(at_r.heard_before("by-the-host"), nothing);
    // A network that this host has no part in, at a port of its own.
    put(&lab, "networks/far", r#"{"subnets":[{"cidr":"10.4.0.0/24","vni":304}],"port":4790}"#);
    put(&lab, "endpoints/far/docker-node2/r", r#"{"ip":["10.4.0.7"],"netns":"/run/netns/r","ifname":"far0"}"#);
    put(&lab, "endpoints/far/appliance/x", r#"{"ip":["10.4.0.8"]}"#);
    put(&lab, "nodes/appliance", r#"{"vtep":"192.168.205.77"}"#);
    applied(&lab, &mut agents);
    let far = |netns: &str, text: &str| {
        let frame = ["02:42:0a:04:00:07", "02:42:0a:04:00:08", "10.4.0.7", "10.4.0.8", text];
        run_python(host, netns, INJECT, &[&[remote.as_str(), "4790", "304"], &frame[..]].concat()).unwrap();
    };
    far("a", "injected-far");
    far("", "by-the-host-far");
    assert_eq!(at_r.heard_before("by-the-host-far"), nothing);
    let to = mac(host, "b", "eth0");
    inject("a", &own, &to, "10.1.0.3", "injected-at-home");
    inject("a", "172.18.0.1", &to, "10.1.0.3", "injected-at-the-bridge");
    inject("", &own, &to, "10.1.0.3", "by-the-host");
    assert_eq!(at_b.heard_before("by-the-host"), nothing);

    // It all stays so when the rules are taken away, and counts.
    let tables = run(host, "nft list tables");
    for (table, n) in tables.lines().zip(1..) {
        run(host, &format!("nft delete {table}"));
        drifted(&mut agents[0], f64::from(n));
        assert_eq!(count(&mut agents[0], "vtepd_drift_total", &[("kind", "nat")]), f64::from(n));
    }
    assert!(!tables.is_empty());
    assert_eq!(run(host, "nft list tables"), tables);
    assert_eq!(seen_outside(host, &mut agents[0], "a"), "203.0.113.1");
    inject("a", &own, &to, "10.1.0.3", "injected-at-home");
    inject("", &own, &to, "10.1.0.3", "last");
    assert_eq!(at_b.heard_before("last"), nothing);
    for agent in &mut agents {
        assert_eq!(count(agent, "vtepd_blocked_objects", &[]), 0.0, "{}", agent.log_tail(20));
    }
    let agents = restart_without_an_operation(agents, || started(&lab));

    // Without agents, and without what they have put in the way, all of this arrives: it is they who keep it off.
    agents.into_iter().for_each(|agent| assert!(agent.stop().unwrap().success()));
    for chain in ["input", "forward"] {
        run(host, &format!("nft flush chain inet vtepd-default {chain}"));
    }
    inject("a", &own, &to, "10.1.0.3", "injected-at-home");
    inject("a", "172.18.0.1", &to, "10.1.0.3", "injected-at-the-bridge");
    run_python(host, "a", SEND, &[&b, "routed"]).unwrap();
    run(host, &format!("ip -n a route del {b}/32"));
    for port in ports(host) {
        run(host, &format!("bridge link set dev {port} isolated off"));
    }
    run(host, &format!("ip -n a neigh replace {b} lladdr {} dev eth1", mac(host, "b", "eth1")));
    run_python(host, "a", SEND, &[&b, "direct"]).unwrap();
    let heard = at_b.heard_before("direct").join("\n");
    for text in ["injected-at-home", "injected-at-the-bridge", "routed"] {
        assert!(heard.contains(text), "{text} is not in {heard}");
    }
    inject("a", &remote, &mac(other, "r", "eth0"), "10.1.0.7", "injected");
    at_r.heard_before("injected");
}

/// One host with an endpoint in `a` and the rest of the world behind it.
fn small_world(rules: &str) -> (Lab, Running) {
    let lab = Lab::with_hosts(1).unwrap();
    let host = &lab.hosts[0];
    host.add_netns("a").unwrap();
    add_internet(host);
    host.run_with_input(&["nft", "-f", "-"], rules).unwrap();
    put(&lab, "networks/n", r#"{"subnets":[{"cidr":"10.1.0.0/24","vni":301}]}"#);
    put(&lab, "endpoints/n/docker-node1/a", r#"{"ip":["10.1.0.2"],"netns":"/run/netns/a"}"#);
    let mirror = Running::new(host, "internet", MIRROR);
    (lab, mirror)
}

/// Waits until as many objects are Blocked by somebody else's firewall.
fn blocked_by_policy(agent: &mut Agent, wanted: f64) {
    until(agent, "as many are Blocked by the policy", |agent| {
        match agent.metrics()?.count("vtepd_blocked_objects", &[("reason", "forward_policy")]) {
            count if count == wanted => Ok(()),
            count => Err(LabError::not_so(format!("{count} are"))),
        }
    });
}

/// What the log advised last, as a line for a shell.
fn advice(agent: &Agent) -> String {
    let log = agent.log_tail(1000);
    let (_, advice) = log.rsplit_once("; add: ").unwrap_or_else(|| panic!("{log}"));
    advice.lines().next().unwrap().replace('\\', "").trim_end_matches('"').to_owned()
}

#[test]
fn a_host_that_drops_what_it_forwards_is_blocked_with_the_rule_that_it_lacks_until_it_has_it() {
    in_private!();
    let rules = "add table ip filter\n\
                 add chain ip filter FORWARD { type filter hook forward priority filter; policy drop; }\n";
    let (lab, _mirror) = small_world(rules);
    let host = &lab.hosts[0];
    let theirs = run(host, "nft list table ip filter");
    let mut agent = start(&lab, host);
    blocked_by_policy(&mut agent, 1.0);
    until(&mut agent, "the network itself stands", |_| host.in_netns("a", &words("ping -c1 -W1 10.1.0.1")));
    run_python(host, "a", LOOK, &[INTERNET]).unwrap_err();
    assert_eq!(run(host, "nft list table ip filter"), theirs, "what is somebody else's stays as it is");
    // What the log advises is what helps, as it stands there.
    let advice = advice(&agent);
    assert!(advice.starts_with("nft insert rule ip filter FORWARD "), "{advice}");
    host.run(&["sh", "-c", &advice]).unwrap();
    blocked_by_policy(&mut agent, 0.0);
    assert_eq!(seen_outside(host, &mut agent, "a"), "203.0.113.1");
    run(host, "nft flush chain ip filter FORWARD");
    blocked_by_policy(&mut agent, 1.0);
    run(host, "nft delete table ip filter");
    blocked_by_policy(&mut agent, 0.0);
    assert_eq!(count(&mut agent, "vtepd_drift_total", &[]), 0.0, "nothing of ours was touched: {}", agent.log_tail(20));
}

/// What Docker 20.10 has in the table `filter` for its gateway bridge, as `nft` writes it.
const DOCKERS_RULES: &str = r#"
table ip filter {
    chain DOCKER {
    }
    chain DOCKER-ISOLATION-STAGE-1 {
        iifname "docker_gwbridge" oifname != "docker_gwbridge" jump DOCKER-ISOLATION-STAGE-2
        return
    }
    chain DOCKER-ISOLATION-STAGE-2 {
        oifname "docker_gwbridge" drop
        return
    }
    chain DOCKER-USER {
        return
    }
    chain FORWARD {
        type filter hook forward priority filter; policy drop;
        jump DOCKER-USER
        jump DOCKER-ISOLATION-STAGE-1
        oifname "docker_gwbridge" ct state established,related accept
        oifname "docker_gwbridge" jump DOCKER
        iifname "docker_gwbridge" oifname != "docker_gwbridge" accept
        iifname "docker_gwbridge" oifname "docker_gwbridge" drop
    }
}
"#;

#[test]
fn dockers_own_rules_are_enough_for_a_bridge_of_dockers_name_and_for_another_name_the_log_says_what_is_lacking() {
    in_private!();
    let (lab, _mirror) = small_world(DOCKERS_RULES);
    let host = &lab.hosts[0];
    let named = |name: &str| {
        let mut options = options(&lab);
        options.arguments = ["--gateway-bridge", name].map(str::to_owned).into();
        host.spawn_agent(&options).unwrap()
    };
    let mut agent = named("docker_gwbridge");
    applied(&lab, [&mut agent]);
    assert_eq!(count(&mut agent, "vtepd_blocked_objects", &[]), 0.0, "{}", agent.log_tail(20));
    assert_eq!(seen_outside(host, &mut agent, "a"), "203.0.113.1");
    agent.stop().unwrap();
    let mut agent = named("vtepd-gw");
    blocked_by_policy(&mut agent, 1.0);
    let advice = advice(&agent);
    assert!(advice.starts_with("nft insert rule ip filter DOCKER-USER "), "where Docker leaves rules alone: {advice}");
    host.run(&["sh", "-c", &advice]).unwrap();
    blocked_by_policy(&mut agent, 0.0);
    assert_eq!(seen_outside(host, &mut agent, "a"), "203.0.113.1");
    assert_eq!(count(&mut agent, "vtepd_drift_total", &[]), 0.0, "{}", agent.log_tail(20));
}
