//! The underlay under the whole program: IPv6, mixed families, its MTU, and VTEP addresses that change.

use std::{
    process::{Child, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use vtepd::lab::{Agent, AgentOptions, Host, Lab, LabError};

use crate::hosts::{applied, count, in_private, put, record, registered, run, until, words};

const OVERLAY: &str = "vtepd-n";

/// Two hosts with agents.
struct World {
    lab: Lab,
    agents: Vec<Agent>,
}

/// The address of a host on the underlay of this family.
fn address(host: usize, v6: bool) -> String {
    if v6 { format!("fd00:205::1{host}") } else { format!("192.168.205.1{host}") }
}

fn mtu_of(host: &Host, netns: &str, link: &str) -> u64 {
    host.ip_json(&["-n", netns, "link", "show", link]).unwrap()[0]["mtu"].as_u64().unwrap()
}

impl World {
    /// An underlay of both families; the agents' VTEPs are of one, told them by flag, or found by them in the store.
    fn new(v6: bool, by_flag: bool) -> Self {
        let lab = Lab::new().unwrap();
        let mut agents = Vec::new();
        for (n, host) in lab.hosts.iter().enumerate() {
            run(host, &format!("ip addr add {}/64 dev {} nodad", address(n, true), Host::INTERFACE));
            host.add_netns("c").unwrap();
            let vtep = address(n, v6);
            if !by_flag {
                lab.etcd.put(&format!("/vtepd/v1/nodes/{}", host.name()), &format!(r#"{{"vtep":"{vtep}"}}"#)).unwrap();
            }
            agents.push(host.spawn_agent(&options(&lab, by_flag.then_some(&vtep))).unwrap());
        }
        Self { lab, agents }
    }

    fn host(&self, n: usize) -> &Host {
        &self.lab.hosts[n]
    }

    /// A network `n` with an endpoint in the namespace `c` of each host: .2, .3 and ::2, ::3.
    fn network(&mut self, subnets: &str, more: &str, prefixes: &[&str]) {
        put(&self.lab, "networks/n", &format!(r#"{{"subnets":[{subnets}]{more}}}"#));
        for (n, host) in self.lab.hosts.iter().enumerate() {
            let ips: Vec<String> = prefixes.iter().map(|prefix| format!("\"{prefix}{}\"", n + 2)).collect();
            let value = format!(r#"{{"ip":[{}],"netns":"/run/netns/c"}}"#, ips.join(","));
            put(&self.lab, &format!("endpoints/n/{}/e", host.name()), &value);
        }
        self.applied();
    }

    /// Waits until every agent has applied all that the store has.
    fn applied(&mut self) {
        registered(&self.lab, &mut self.agents);
        applied(&self.lab, &mut self.agents);
    }

    fn ping(&self, from: usize, to: &str) {
        self.host(from).in_netns("c", &["ping", "-c2", "-i0.1", "-W2", to]).unwrap();
    }

    fn mtu(&self, host: usize, netns: &str, link: &str) -> u64 {
        mtu_of(self.host(host), netns, link)
    }

    /// Waits until a device has this MTU.
    fn has_mtu(&mut self, host: usize, netns: &str, link: &str, mtu: u64) {
        let Self { lab, agents } = self;
        until(&mut agents[host], &format!("{link} has MTU {mtu}"), |_| match mtu_of(&lab.hosts[host], netns, link) {
            found if found == mtu => Ok(()),
            found => Err(LabError::not_so(format!("it is {found}"))),
        });
    }

    fn count(&mut self, agent: usize, name: &str, labels: &[(&str, &str)]) -> f64 {
        count(&mut self.agents[agent], name, labels)
    }

    fn vxlan(&self, host: usize) -> (u64, String) {
        let link = &self.host(host).ip_json(&["-d", "-n", OVERLAY, "link", "show", "vxlan1"]).unwrap()[0];
        let data = &link["linkinfo"]["info_data"];
        let local = data["local"].as_str().or_else(|| data["local6"].as_str()).unwrap_or_default();
        (link["ifindex"].as_u64().unwrap(), local.to_owned())
    }

    /// What crosses the underlay to a host, in so many packets of the tunnel.
    fn capture(&self, host: usize, packets: usize) -> Child {
        let interface = Host::INTERFACE;
        let command = format!("timeout 10 tcpdump -Z root -lnn -i {interface} -c {packets} udp port 4789");
        let mut tcpdump = self.host(host).command(&words(&command));
        let mut child = tcpdump.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // It says on standard error when it listens.
        let mut said = child.stderr.take().unwrap();
        let mut seen = String::new();
        let mut byte = [0];
        while !seen.contains("listening on") && std::io::Read::read(&mut said, &mut byte).unwrap() > 0 {
            seen.push(char::from(byte[0]));
        }
        child.stderr = Some(said);
        child
    }
}

fn options(lab: &Lab, vtep: Option<&String>) -> AgentOptions {
    let mut options = crate::hosts::options(lab);
    match vtep {
        Some(vtep) => options.arguments = vec!["--vtep".into(), vtep.clone()],
        None => options.vtep = false,
    }
    options
}

const V4: &str = r#"{"cidr":"10.0.0.0/24","vni":256}"#;
const V6: &str = r#"{"cidr":"fd00:0:0:1::/64","vni":256}"#;

#[test]
fn dual_stack_and_ipv6_only_networks_cross_an_ipv6_underlay() {
    in_private!();
    let mut world = World::new(true, true);
    world.network(&format!("{V4},{V6}"), "", &["10.0.0.", "fd00:0:0:1::"]);
    assert_eq!(world.vxlan(0).1, address(0, true));
    assert_eq!((world.mtu(0, OVERLAY, "vxlan1"), world.mtu(0, "c", "eth0")), (1430, 1430));
    let busy = world.capture(1, 2);
    world.ping(0, "10.0.0.3");
    let seen = String::from_utf8(busy.wait_with_output().unwrap().stdout).unwrap();
    assert!(seen.contains("IP6 fd00:205::10.") && seen.contains("vni 256"), "{seen}");
    let tunnels = |line: &str| line.contains("4789") && line.contains("IP 192");
    assert!(!seen.lines().any(tunnels) && !seen.contains("ARP"), "{seen}");
    world.ping(1, "10.0.0.2");
    world.ping(0, "fd00:0:0:1::3");
    // As large as the devices allow: nothing is cut on the way.
    world.host(0).in_netns("c", &["ping", "-c1", "-W2", "-Mdo", "-s1402", "10.0.0.3"]).unwrap();

    world.network(V6, "", &["fd00:0:0:1::"]);
    let addresses = world.host(0).ip_json(&["-n", "c", "addr", "show", "eth0", "scope", "global"]).unwrap();
    let list = addresses[0]["addr_info"].as_array().unwrap();
    assert_eq!(list.iter().filter(|address| address["local"].is_string()).count(), 1, "{addresses}");
    world.ping(0, "fd00:0:0:1::3");
    world.ping(1, "fd00:0:0:1::2");
    for agent in 0..2 {
        assert_eq!(world.count(agent, "vtepd_drift_total", &[]), 0.0);
    }
}

#[test]
fn a_network_of_both_families_is_blocked_on_every_node_until_the_last_odd_endpoint_goes() {
    in_private!();
    let mut world = World::new(false, true);
    world.network(V4, "", &["10.0.0."]);
    put(&world.lab, "nodes/odd", r#"{"vtep":"fd00:205::99"}"#);
    put(&world.lab, "endpoints/n/odd/vm", r#"{"ip":["10.0.0.9"]}"#);
    world.applied();
    for n in 0..2 {
        let blocked = world.count(n, "vtepd_blocked_objects", &[("kind", "netns"), ("reason", "mixed_underlay")]);
        assert_eq!(blocked, 1.0);
        assert!(!world.host(n).run(&["ip", "netns"]).unwrap().contains(OVERLAY), "never half");
        assert!(world.agents[n].log_tail(40).contains("networks/n: Blocked: mixed_underlay"));
    }
    world.lab.etcd.delete("/vtepd/v1/endpoints/n/odd/vm").unwrap();
    world.applied();
    world.ping(0, "10.0.0.3");
    assert_eq!(world.count(0, "vtepd_blocked_objects", &[]), 0.0);
}

#[test]
fn devices_follow_the_underlays_mtu_and_one_that_is_asked_for_and_does_not_fit_is_reported() {
    in_private!();
    let mut world = World::new(false, true);
    world.network(V4, "", &["10.0.0."]);
    let underlay = |world: &World, mtu: u64| {
        let command = format!("ip link set {} mtu {mtu}", Host::INTERFACE);
        run(world.host(0), &command);
    };
    let too_large = [("kind", "link"), ("reason", "mtu")];
    let before = world.vxlan(0);
    for mtu in [1400, 1500] {
        underlay(&world, mtu);
        let changed = Instant::now();
        for (netns, link) in [(OVERLAY, "vxlan1"), (OVERLAY, "br0"), ("c", "eth0")] {
            world.has_mtu(0, netns, link, mtu - 50);
        }
        assert!(changed.elapsed() < Duration::from_secs(5), "{:?}", changed.elapsed());
        world.ping(0, "10.0.0.3");
    }
    assert_eq!(world.vxlan(0), before);
    // The address goes and comes back on a link of another MTU.
    let (interface, at) = (Host::INTERFACE, address(0, false));
    underlay(&world, 1400);
    world.has_mtu(0, OVERLAY, "vxlan1", 1350);
    run(world.host(0), &format!("ip addr del {at}/24 dev {interface}"));
    world.has_mtu(0, OVERLAY, "vxlan1", 1450);
    run(world.host(0), &format!("ip addr add {at}/24 dev {interface}"));
    world.has_mtu(0, OVERLAY, "vxlan1", 1350);
    assert_eq!(world.count(0, "vtepd_blocked_objects", &too_large), 0.0);

    world.network(V4, r#","mtu":1450"#, &["10.0.0."]);
    world.has_mtu(0, "c", "eth0", 1450);
    assert_eq!(world.count(0, "vtepd_blocked_objects", &too_large), 1.0);
    let log = world.agents[0].log_tail(60);
    let said = "networks/n: mtu: 1450 and 50 bytes of VXLAN do not fit the underlay's 1400";
    assert_eq!(log.matches(said).count(), 1, "{log}");
    world.ping(0, "10.0.0.3");
    underlay(&world, 1500);
    until(&mut world.agents[0], "no excess", |agent| match count(agent, "vtepd_blocked_objects", &too_large) {
        0.0 => Ok(()),
        count => Err(LabError::not_so(format!("{count} networks do not fit"))),
    });
    assert_eq!(world.count(0, "vtepd_drift_total", &[]), 0.0, "{}", world.agents[0].log_tail(60));
}

/// A ping that runs while something changes; how many of its packets were lost.
struct Ping(Child);

impl Ping {
    fn start(world: &World, from: usize, to: &str, count: usize) -> Self {
        let count = count.to_string();
        let all = Host::netns_arguments("c", &["ping", "-i0.01", "-W2", "-c", &count, to]);
        let mut command = world.host(from).command(&all.iter().map(String::as_str).collect::<Vec<_>>());
        Self(command.stdout(Stdio::piped()).spawn().unwrap())
    }

    fn lost(self) -> usize {
        let said = String::from_utf8(self.0.wait_with_output().unwrap().stdout).unwrap();
        let line = said.lines().find(|line| line.contains("packets transmitted")).unwrap_or_else(|| panic!("{said}"));
        let numbers: Vec<usize> = words(line).iter().filter_map(|word| word.parse().ok()).collect();
        numbers[0] - numbers[1]
    }
}

#[test]
fn a_vtep_address_that_changes_under_live_agents_is_set_in_place_and_costs_no_packet() {
    in_private!();
    let mut world = World::new(false, false);
    world.network(V4, "", &["10.0.0."]);
    let new = "192.168.205.40";
    run(world.host(0), &format!("ip addr add {new}/24 dev {}", Host::INTERFACE));
    let before = world.vxlan(0);
    let ops = [world.count(0, "vtepd_ops_total", &[]), world.count(1, "vtepd_ops_total", &[])];
    let ping = Ping::start(&world, 0, "10.0.0.3", 200);
    sleep(Duration::from_millis(300));
    put(&world.lab, "nodes/docker-node1", &format!(r#"{{"vtep":"{new}"}}"#));
    world.applied();
    assert_eq!(world.vxlan(0), (before.0, new.to_owned()), "the same device");
    assert_eq!(ping.lost(), 0);
    for (n, before) in ops.into_iter().enumerate() {
        assert_eq!(world.count(n, "vtepd_ops_total", &[]) - before, 1.0, "{}", world.agents[n].log_tail(20));
        assert_eq!(world.count(n, "vtepd_drift_total", &[]), 0.0);
    }
    let busy = world.capture(1, 2);
    world.ping(0, "10.0.0.3");
    let seen = String::from_utf8(busy.wait_with_output().unwrap().stdout).unwrap();
    assert!(seen.contains(&format!("> {new}.4789")), "the other side sends to the new address: {seen}");
    // A row in use remembers the source address together with its route, until a route of the host changes.
    run(world.host(0), &format!("ip route add 198.51.100.0/24 dev {}", Host::INTERFACE));
    let busy = world.capture(1, 2);
    world.ping(0, "10.0.0.3");
    let seen = String::from_utf8(busy.wait_with_output().unwrap().stdout).unwrap();
    assert!(seen.contains(&format!("IP {new}.")), "this side sends from it: {seen}");
}

#[test]
fn an_agent_that_is_started_with_another_vtep_sets_it_in_place_and_of_the_other_family_anew() {
    in_private!();
    let mut world = World::new(false, true);
    world.network(V4, "", &["10.0.0."]);
    let new = "192.168.205.40";
    run(world.host(0), &format!("ip addr add {new}/24 dev {}", Host::INTERFACE));
    let before = world.vxlan(0);
    let ping = Ping::start(&world, 0, "10.0.0.3", 300);
    world.agents.remove(0).stop().unwrap();
    let restarted = world.host(0).spawn_agent(&options(&world.lab, Some(&new.to_owned()))).unwrap();
    world.agents.insert(0, restarted);
    world.applied();
    assert_eq!(world.vxlan(0), (before.0, new.to_owned()));
    assert_eq!(ping.lost(), 0);
    assert_eq!(world.count(0, "vtepd_ops_total", &[]), 1.0, "{}", world.agents[0].log_tail(20));

    // The flag wins over what somebody puts under it.
    put(&world.lab, "nodes/docker-node1", r#"{"vtep":"192.168.205.77"}"#);
    world.applied();
    assert_eq!(world.vxlan(0), (before.0, new.to_owned()));

    // A node alone in its network moves to IPv6, and the others follow.
    for n in 0..2 {
        world.agents.remove(0).stop().unwrap();
        let restarted = world.host(n).spawn_agent(&options(&world.lab, Some(&address(n, true)))).unwrap();
        world.agents.push(restarted);
    }
    world.applied();
    assert_eq!(world.vxlan(0).1, address(0, true));
    world.ping(0, "10.0.0.3");
    assert_eq!(world.count(0, "vtepd_drift_total", &[]), 0.0, "{}", world.agents[0].log_tail(60));
}

#[test]
fn both_nodes_move_to_the_other_family_in_one_transaction() {
    in_private!();
    let mut world = World::new(false, false);
    world.network(V4, "", &["10.0.0."]);
    let write =
        |n: usize| record(&format!("nodes/{}", world.host(n).name()), &format!(r#"{{"vtep":"{}"}}"#, address(n, true)));
    world.lab.etcd.transaction(&[write(0), write(1)]).unwrap();
    world.applied();
    assert_eq!(world.vxlan(0).1, address(0, true));
    assert_eq!(world.mtu(0, "c", "eth0"), 1430);
    world.ping(0, "10.0.0.3");
    assert_eq!(world.count(0, "vtepd_drift_total", &[]), 0.0, "{}", world.agents[0].log_tail(60));
}
