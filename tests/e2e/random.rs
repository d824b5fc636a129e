//! Twenty networks on three hosts, changed at random while agents and store are killed.

use std::{
    collections::{BTreeMap, BTreeSet},
    thread::sleep,
    time::Duration,
};

use vtepd::lab::{Agent, Host, Lab, LabError, Write};

use crate::hosts::{
    PREFIX, applied, count, in_private, ping, record, restart_without_an_operation, run, start, start_all, started,
    until, words,
};

/// A small generator: the run follows from its seed.
struct Chance(u64);

impl Chance {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

const NETWORKS: u64 = 20;
/// Endpoints of each network that have a namespace on every host; as many again have none anywhere.
const WIRED: u64 = 6;
const ROUNDS: u64 = 60;

/// Which endpoints there are: network and number, on which host.
type Placed = BTreeMap<(u64, u64), usize>;

#[test]
fn whatever_is_put_moved_and_killed_every_kernel_ends_as_the_store_says() {
    in_private!();
    let mut lab = Lab::with_hosts(3).unwrap();
    let mut chance = Chance(0x5eed);
    for host in &lab.hosts {
        let names: Vec<String> =
            (0..NETWORKS).flat_map(|n| (0..WIRED).map(move |e| format!("netns add c{n}-{e}"))).collect();
        host.run_with_input(&words("ip -batch -"), &names.join("\n")).unwrap();
        run(host, "ip link add mine type bridge");
        run(host, "ip netns add vtepd-foreign");
    }
    let mut agents: Vec<Option<Agent>> = start_all(&lab).into_iter().map(Some).collect();
    let mut placed = Placed::new();
    let networks: Vec<Write> = (0..NETWORKS)
        .map(|n| {
            let value = format!(
                r#"{{"subnets":[{{"cidr":"10.{n}.0.0/16","vni":{}}},{{"cidr":"fd00:{}::/64","vni":{}}}]}}"#,
                300 + n,
                n + 1,
                300 + n
            );
            record(&format!("networks/n{n}"), &value)
        })
        .collect();
    lab.etcd.transaction(&networks).unwrap();
    for round in 0..ROUNDS {
        let mut writes = BTreeMap::new();
        for _ in 0..12 {
            let (network, number) = (chance.below(NETWORKS), chance.below(2 * WIRED));
            if writes.keys().any(|(at, _): &((u64, u64), usize)| *at == (network, number)) {
                continue;
            }
            let at = (network, number);
            let old = placed.get(&at).copied();
            if let Some(old) = old {
                writes.insert((at, old), Write::Delete(format!("{PREFIX}{}", endpoint_key(&lab, at, old))));
                placed.remove(&at);
            }
            // A third goes, the others move or come.
            if old.is_none() || chance.below(3) > 0 {
                let host = chance.below(3) as usize;
                writes.insert((at, host), record(&endpoint_key(&lab, at, host), &endpoint_value(at)));
                placed.insert(at, host);
            }
        }
        lab.etcd.transaction(&writes.into_values().collect::<Vec<_>>()).unwrap();
        match round % 12 {
            3 => {
                lab.etcd.kill();
                sleep(Duration::from_millis(chance.below(300)));
                lab.etcd.start().unwrap();
            }
            6 => {
                lab.etcd.compact().unwrap();
            }
            8 => {
                let victim = chance.below(3) as usize;
                if let Some(agent) = agents[victim].take() {
                    agent.kill().unwrap();
                }
            }
            10 => {
                for (agent, host) in agents.iter_mut().zip(&lab.hosts) {
                    agent.get_or_insert_with(|| start(&lab, host));
                }
            }
            _ => {}
        }
    }
    let mut agents: Vec<Agent> =
        agents.into_iter().zip(&lab.hosts).map(|(agent, host)| agent.unwrap_or_else(|| start(&lab, host))).collect();
    applied(&lab, &mut agents);
    for (index, host) in lab.hosts.iter().enumerate() {
        until(&mut agents[index], "the kernel is as the store says", |_| {
            let (expected, found) = (expected(&lab, &placed, index), found(host));
            let wrong: Vec<_> = found.difference(&expected).take(9).collect();
            let missing: Vec<_> = expected.difference(&found).take(9).collect();
            let same = wrong.is_empty() && missing.is_empty();
            if same { Ok(()) } else { Err(LabError::not_so(format!("wrong {wrong:#?}, missing {missing:#?}"))) }
        });
        assert!(run(host, "ip link show mine").contains("mine"), "a foreign device is untouched");
        assert!(run(host, "ip netns").contains("vtepd-foreign"), "a foreign namespace is untouched");
        assert_eq!(count(&mut agents[index], "vtepd_drift_total", &[]), 0.0, "{}", agents[index].log_tail(40));
    }
    let (at, from) = placed.iter().find(|(at, _)| at.1 < WIRED).unwrap();
    let to = placed.iter().find(|(other, host)| other.0 == at.0 && other.1 < WIRED && *host != from);
    if let Some(((network, number), _)) = to {
        let address = format!("10.{network}.1.{number}");
        ping(&lab.hosts[*from], &format!("c{}-{}", at.0, at.1), &address);
    }
    restart_without_an_operation(agents, || started(&lab));
}

fn endpoint_key(lab: &Lab, (network, number): (u64, u64), host: usize) -> String {
    format!("endpoints/n{network}/{}/e{number}", lab.hosts[host].name())
}

fn endpoint_value((network, number): (u64, u64)) -> String {
    let addresses = format!(r#""10.{network}.1.{number}","fd00:{}::1:{number}""#, network + 1);
    if number < WIRED {
        format!(r#"{{"ip":[{addresses}],"netns":"/run/netns/c{network}-{number}"}}"#)
    } else {
        format!(r#"{{"ip":[{addresses}]}}"#)
    }
}

/// What the store says of a host, in lines.
fn expected(lab: &Lab, placed: &Placed, host: usize) -> BTreeSet<String> {
    let mut lines = BTreeSet::new();
    for network in 0..NETWORKS {
        let members: Vec<_> = placed.iter().filter(|((n, _), _)| *n == network).collect();
        if !members.iter().any(|(_, at)| **at == host) {
            continue;
        }
        lines.insert(format!("n{network} exists"));
        for ((_, number), at) in members {
            let mac = format!("02:42:0a:{network:02x}:01:{number:02x}");
            let (v4, v6) = (format!("10.{network}.1.{number}"), format!("fd00:{}::1:{number}", network + 1));
            if *at != host {
                lines.insert(format!("n{network} fdb {mac} {}", lab.hosts[*at].address()));
                lines.insert(format!("n{network} neigh {v4} {mac}"));
                lines.insert(format!("n{network} neigh {v6} {mac}"));
            } else if *number < WIRED {
                lines.insert(format!("c{network}-{number} {mac} {v4}/16 {v6}/64"));
            }
        }
    }
    lines
}

/// What `ip` and `bridge` say of a host, in the same lines.
fn found(host: &Host) -> BTreeSet<String> {
    let mut lines = BTreeSet::new();
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    for line in run(host, "ip netns").lines() {
        let name = words(line)[0];
        if let Some(network) = name.strip_prefix("vtepd-n") {
            lines.insert(format!("n{network} exists"));
            let rows = host.bridge_json(&["-n", name, "fdb", "show", "dev", "vxlan1", "self"]).unwrap();
            for row in rows.as_array().unwrap().iter().filter(|row| row["dst"].is_string()) {
                lines.insert(format!("n{network} fdb {} {}", text(&row["mac"]), text(&row["dst"])));
            }
            let rows = host.ip_json(&["-n", name, "neigh", "show", "dev", "vxlan1", "nud", "permanent"]).unwrap();
            for row in rows.as_array().unwrap() {
                lines.insert(format!("n{network} neigh {} {}", text(&row["dst"]), text(&row["lladdr"])));
            }
        } else if name.starts_with('c') {
            for link in host.ip_json(&["-n", name, "addr"]).unwrap().as_array().unwrap() {
                if link["ifname"] != "eth0" {
                    continue;
                }
                let global = |a: &&serde_json::Value| a["scope"] == "global";
                let addresses = link["addr_info"].as_array().unwrap().iter().filter(global);
                let nets: Vec<String> =
                    addresses.map(|a| format!("{}/{}", text(&a["local"]), a["prefixlen"])).collect();
                lines.insert(format!("{name} {} {}", text(&link["address"]), nets.join(" ")));
            }
        }
    }
    lines
}
