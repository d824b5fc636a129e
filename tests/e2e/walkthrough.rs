//! The walkthrough beside Docker's own: what `ip` and `bridge` show of host, overlay and container on both nodes, line by line.
//!
//! `tests/fixtures/docker/reference/` has what they showed on two hosts with Docker 20.10 and etcd, after one ping across, reduced to
//! what is compared. Left out are IPv6 link-local addresses, the local routing table, which follows from the addresses, the rows that
//! the kernel makes for every device by itself, random MAC addresses, and `docker0`, which has nothing to do with the overlay.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use vtepd::lab::Host;

use crate::{
    docker::{OVERLAY, SANDBOXES, add_sandbox, applied, documents},
    hosts::{count, in_private, options, ping, registered, restart_without_an_operation, run, words},
};

const REFERENCE: [[&str; 3]; 2] = [
    [
        include_str!("../fixtures/docker/reference/node1-host.json"),
        include_str!("../fixtures/docker/reference/node1-overlay.json"),
        include_str!("../fixtures/docker/reference/node1-container.json"),
    ],
    [
        include_str!("../fixtures/docker/reference/node2-host.json"),
        include_str!("../fixtures/docker/reference/node2-overlay.json"),
        include_str!("../fixtures/docker/reference/node2-container.json"),
    ],
];
const PLACES: [&str; 3] = ["host", "overlay", "container"];

/// A name of Docker's, and ours: DESIGN 4 numbers VXLAN devices like the walkthrough's text, from 1.
const NAMES: [(&str, &str); 1] = [("vxlan0", "vxlan1")];

/// What is meant to be otherwise than with Docker.
struct Difference {
    place: &'static str,
    /// The line of Docker's that is not ours; empty where only we have one.
    theirs: &'static str,
    /// The line of ours in its place; empty where only Docker has one.
    ours: &'static str,
    why: &'static str,
}

const fn differs(place: &'static str, theirs: &'static str, ours: &'static str, why: &'static str) -> Difference {
    Difference { place, theirs, ours, why }
}

/// In the lines, `{own}` and `{remote}` are the last digits of the containers' addresses here and there, `{vtep}` is this host's.
const DIFFERENCES: &[Difference] = &[
    differs("host", "link docker_gwbridge mcast_snooping 1", "link docker_gwbridge mcast_snooping 0", AS_IN_OVERLAY),
    differs("host", "link port as a port: isolated false", "link port as a port: isolated true", ISOLATED),
    differs("host", "link port as a port: learning true", "link port as a port: learning false", AS_IN_OVERLAY),
    differs("host", "link port as a port: flood true", "link port as a port: flood false", AS_IN_OVERLAY),
    differs("host", "link port as a port: locked false", "link port as a port: locked true", AS_IN_OVERLAY),
    differs("overlay", "link br0 mcast_snooping 1", "link br0 mcast_snooping 0", QUIET),
    differs("overlay", "", "link vxlan1 local \"{vtep}\"", "DESIGN 4: `local` is its own VTEP"),
    differs("overlay", "link vxlan1 learning true", "link vxlan1 learning false", NO_LEARNING),
    differs("overlay", "link vxlan1 l2miss true", "", NO_MISSES),
    differs("overlay", "link vxlan1 l3miss true", "", NO_MISSES),
    differs("overlay", "link vxlan1 as a port: learning true", "link vxlan1 as a port: learning false", NO_LEARNING),
    differs("overlay", "link port as a port: learning true", "link port as a port: learning false", NO_LEARNING),
    differs("overlay", "link port as a port: flood true", "link port as a port: flood false", NO_FLOOD),
    differs("overlay", "link port as a port: locked false", "link port as a port: locked true", LOCKED),
    differs("overlay", "fdb 02:42:0a:00:00:0{remote} dev vxlan1 of br0 learned", "", NO_LEARNING),
    differs(
        "overlay",
        "fdb 02:42:0a:00:00:0{own} dev port of br0 learned",
        "fdb 02:42:0a:00:00:0{own} dev port of br0 static",
        "DESIGN 4: the endpoint's MAC as bridge row, since nothing is learned",
    ),
    differs(
        "container",
        "route default gateway 172.18.0.1 dev eth1",
        "route default gateway 172.18.0.1 dev eth1 protocol 118",
        "DESIGN 4: what is ours must be readable from the kernel alone; routes carry RTPROT (6)",
    ),
];
const AS_IN_OVERLAY: &str =
    "DESIGN 4, of the overlay's bridge and its ports: here too what is there is known and nothing learns";
const QUIET: &str = "DESIGN 4: `mcast_snooping` 0, so that what is for a group needs no querier";
const ISOLATED: &str = "DESIGN 4: isolated ports, so that containers do not reach each other around the overlay";
const NO_LEARNING: &str = "DESIGN 4: nothing learns, so that etcd alone says where a MAC is";
const NO_FLOOD: &str = "DESIGN 4: unicast flood off, since every MAC behind a port is known";
const NO_MISSES: &str = "DESIGN 4: every row is there beforehand, so nobody waits to hear of misses";
const LOCKED: &str = "DESIGN 4: locked where the kernel can, so that an endpoint sends from its own MAC only";

/// What the programs show in one namespace, in the shape of the reference.
fn shown(host: &Host, netns: Option<&str>) -> Value {
    let ask = |program: &str, question: &str| {
        let place = netns.map(|name| format!("-n {name} ")).unwrap_or_default();
        let line = format!("{place}{question}");
        let answer = if program == "ip" { host.ip_json(&words(&line)) } else { host.bridge_json(&words(&line)) };
        answer.unwrap()
    };
    json!({
        "link": ask("ip", "-d link"),
        "addr": ask("ip", "addr"),
        "route": ask("ip", "-4 route"),
        "neigh": ask("ip", "-4 neigh"),
        "fdb": if netns == Some(OVERLAY) { ask("bridge", "fdb") } else { json!([]) },
    })
}

fn text<'a>(of: &'a Value, field: &str) -> &'a str {
    of[field].as_str().unwrap_or_default()
}

fn rows<'a>(of: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> {
    of[field].as_array().unwrap().iter()
}

/// One line for each attribute that is compared.
fn lines(shown: &Value) -> BTreeSet<String> {
    // Names of bridge ports are arbitrary on both sides.
    let is_port = |name: &str| {
        rows(shown, "link")
            .any(|l| l["ifname"] == name && l["master"].is_string() && l["linkinfo"]["info_kind"] == "veth")
    };
    let name = |name: &str| if is_port(name) { "port".to_owned() } else { name.to_owned() };
    let mut lines = Vec::new();
    for link in rows(shown, "link") {
        let own = name(text(link, "ifname"));
        let flags: Vec<&str> = rows(link, "flags").filter_map(Value::as_str).collect();
        let mut say = |what: String| lines.push(format!("link {own} {what}"));
        say(flags.join(","));
        say(format!("mtu {} qdisc {} state {}", link["mtu"], text(link, "qdisc"), text(link, "operstate")));
        let info = &link["linkinfo"];
        say(format!("kind {}", text(info, "info_kind")));
        say(format!("master {}", text(link, "master")));
        if ["eth0", "eth1"].contains(&own.as_str()) {
            say(format!("address {}", text(link, "address")));
        }
        for field in ["stp_state", "vlan_filtering", "mcast_snooping"] {
            say(format!("{field} {}", info["info_data"][field]));
        }
        for field in ["id", "port", "local", "proxy", "learning", "l2miss", "l3miss"] {
            say(format!("{field} {}", info["info_data"][field]));
        }
        for field in ["learning", "flood", "isolated", "locked", "hairpin"] {
            say(format!("as a port: {field} {}", info["info_slave_data"][field]));
        }
    }
    for bridge in rows(shown, "link").filter(|link| link["linkinfo"]["info_kind"] == "bridge") {
        let ports = rows(shown, "link").filter(|link| link["master"] == bridge["ifname"]).count();
        lines.push(format!("link {} has {ports} ports", text(bridge, "ifname")));
    }
    for link in rows(shown, "addr") {
        for address in rows(link, "addr_info").filter(|address| address["family"] == "inet") {
            let (local, length, scope) = (text(address, "local"), &address["prefixlen"], text(address, "scope"));
            let broadcast = text(address, "broadcast");
            lines.push(format!(
                "addr {local}/{length} brd {broadcast} scope {scope} dev {}",
                name(text(link, "ifname"))
            ));
        }
    }
    for route in rows(shown, "route") {
        let fields = ["gateway", "dev", "protocol", "scope", "prefsrc"].map(|field| match text(route, field) {
            "" => String::new(),
            value => format!(" {field} {value}"),
        });
        lines.push(format!("route {}{}", text(route, "dst"), fields.concat()));
    }
    for row in rows(shown, "neigh") {
        // Where ARP has found it, how fresh that is says nothing.
        let state = if row["state"][0] == "PERMANENT" { "permanent" } else { "found" };
        let mac = if text(row, "dev") == Host::INTERFACE { "" } else { text(row, "lladdr") };
        lines.push(format!("neigh {} dev {} lladdr {mac} {state}", text(row, "dst"), text(row, "dev")));
    }
    let own_macs: Vec<&str> = rows(shown, "link").map(|link| text(link, "address")).collect();
    let group = |mac: &str| u8::from_str_radix(&mac[..2], 16).unwrap() & 1 == 1;
    for row in rows(shown, "fdb").filter(|row| !group(text(row, "mac")) && !own_macs.contains(&text(row, "mac"))) {
        let (mac, dev) = (text(row, "mac"), name(text(row, "ifname")));
        let dst = row["dst"].as_str().map(|dst| format!(" dst {dst}")).unwrap_or_default();
        let of = if row["flags"][0] == "self" { "self" } else { text(row, "master") };
        let state = if text(row, "state").is_empty() { "learned" } else { text(row, "state") };
        lines.push(format!("fdb {mac} dev {dev}{dst} of {of} {state}"));
    }
    lines.into_iter().filter(|line| !line.ends_with(" null")).collect()
}

/// The lines that ours should be: Docker's, with the differences that are meant.
fn expected(node: usize, place: usize, host: &Host) -> BTreeSet<String> {
    let reference: Value = serde_json::from_str(REFERENCE[node][place]).unwrap();
    let renamed = |line: String| NAMES.iter().fold(line, |line, (theirs, ours)| line.replace(theirs, ours));
    let mut lines: BTreeSet<String> = lines(&reference).into_iter().map(renamed).collect();
    let (own, remote) = [("2", "3"), ("3", "2")][node];
    let fill = |line: &str| {
        line.replace("{own}", own).replace("{remote}", remote).replace("{vtep}", &host.address().to_string())
    };
    for Difference { theirs, ours, why, .. } in DIFFERENCES.iter().filter(|d| d.place == PLACES[place]) {
        assert!(!why.is_empty());
        assert!(
            theirs.is_empty() || lines.remove(&fill(theirs)),
            "Docker does not have `{}`: {lines:#?}",
            fill(theirs)
        );
        assert!(ours.is_empty() || lines.insert(fill(ours)), "Docker has `{}` too", fill(ours));
    }
    lines
}

#[test]
fn both_nodes_show_what_dockers_showed_line_by_line_but_for_what_is_meant_to_differ() {
    in_private!();
    let lab = vtepd::lab::Lab::new().unwrap();
    for (host, sandbox) in lab.hosts.iter().zip(SANDBOXES) {
        add_sandbox(host, sandbox);
    }
    for (key, value) in documents() {
        lab.etcd.put(&key, &value).unwrap();
    }
    let start = || {
        let mut options = options(&lab);
        let arguments = words("--docker-prefix /docker/network/v1.0 --gateway-bridge docker_gwbridge");
        options.arguments = arguments.into_iter().map(str::to_owned).collect();
        let mut agents: Vec<_> = lab.hosts.iter().map(|host| host.spawn_agent(&options).unwrap()).collect();
        registered(&lab, &mut agents);
        applied(&lab, &mut agents);
        agents
    };
    let mut agents = start();
    ping(&lab.hosts[0], SANDBOXES[0], "10.0.0.3");
    let mut otherwise = Vec::new();
    let mut gateways = BTreeSet::new();
    for (node, host) in lab.hosts.iter().enumerate() {
        for (place, netns) in [None, Some(OVERLAY), Some(SANDBOXES[node])].into_iter().enumerate() {
            let shown = shown(host, netns);
            let (ours, expected) = (lines(&shown), expected(node, place, host));
            let here = format!("{}, {}", host.name(), PLACES[place]);
            otherwise.extend(expected.difference(&ours).map(|line| format!("{here}: not there: {line}")));
            otherwise.extend(ours.difference(&expected).map(|line| format!("{here}: only here: {line}")));
            if PLACES[place] == "overlay" {
                let theirs: Value = serde_json::from_str(REFERENCE[node][place]).unwrap();
                assert_eq!(mac(&theirs, "br0"), mac(&theirs, "vxlan0"), "Docker's bridge takes the MAC of its port");
                // DESIGN 4: a VXLAN device with the bridge's MAC makes frames of remote gateways vanish.
                assert_ne!(mac(&shown, "br0"), mac(&shown, "vxlan1"));
                gateways.insert(mac(&shown, "br0"));
            }
        }
    }
    assert!(otherwise.is_empty(), "\n{}", otherwise.join("\n"));
    // DESIGN 4: the gateway has one MAC on every node, so that a container that moves needs not ask again.
    assert_eq!(gateways, [String::from("02:42:0a:00:00:01")].into());
    for (host, (sandbox, remote)) in lab.hosts.iter().zip([(SANDBOXES[0], "10.0.0.3"), (SANDBOXES[1], "10.0.0.2")]) {
        for to in [remote, "10.0.0.1", "172.18.0.1"] {
            ping(host, sandbox, to);
        }
        // The host reaches its container over the gateway bridge, as the walkthrough notes.
        run(host, "ping -c1 -W2 172.18.0.2");
    }
    for agent in &mut agents {
        assert_eq!(count(agent, "vtepd_in_sync", &[("network", "overlay-demo")]), 1.0);
        assert_eq!(count(agent, "vtepd_blocked_objects", &[]), 0.0);
        assert_eq!(count(agent, "vtepd_drift_total", &[]), 0.0);
    }
    restart_without_an_operation(agents, start);
}

fn mac(shown: &Value, link: &str) -> String {
    let link = rows(shown, "link").find(|row| row["ifname"] == link).unwrap();
    text(link, "address").to_owned()
}
