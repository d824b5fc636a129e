//! One network on the real kernel: the engine against the netlink edge, with `ip` and `bridge` as foreign writers and
//! independent witnesses.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    missing_docs,
    reason = "a test ends where something is not as it should be"
)]

#[path = "datapath/routes.rs"]
mod routes;
mod support;

use std::{
    collections::BTreeMap,
    net::IpAddr,
    os::fd::AsFd,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use support::{ip, json, kernel_of, private_host, run};
use vtepd::{
    desired::{EndpointSpec, LocalEndpoint, NetworkSpec, RemoteEndpoint, Segment, Tunnel, Update},
    engine::{Config, DriftReason, Event, Home, Kind, Network, Note, Time, Turn, outer_name, turn},
    kernel::{NetworkKernel, nft::Tables},
    model::{
        EndpointId, Mac, Name, guard, guard_table,
        nft::{Change, Ruleset},
    },
};

const MISSING: DriftReason = DriftReason::Missing;
const CHANGED: DriftReason = DriftReason::Changed;
const UNEXPECTED: DriftReason = DriftReason::Unexpected;

struct Datapath {
    network: Network,
    kernel: NetworkKernel,
    origin: Instant,
    notes: Vec<Note>,
}

fn id(node: &str, endpoint: &str) -> EndpointId {
    EndpointId { node: node.parse().unwrap(), endpoint: endpoint.parse().unwrap() }
}

fn remote(number: u32) -> EndpointSpec {
    let v4 = IpAddr::from((0x0a00_0000 + number).to_be_bytes());
    let v6 = IpAddr::from((0xfd00_u128 << 112 | u128::from(number)).to_be_bytes());
    let vni = 256.try_into().unwrap();
    EndpointSpec::Remote(RemoteEndpoint { vni, mac: Mac::from_ip(v4), ips: vec![v4, v6], vtep: ip("192.168.205.11") })
}

fn spec() -> NetworkSpec {
    let segment = Segment {
        vni: 256.try_into().unwrap(),
        tunnel: Some(Tunnel { port: 4789, local: ip("192.168.205.10"), flood: false }),
        mtu: 1450,
        gateways: vec!["10.0.0.1/16".parse().unwrap(), "fd00::1/64".parse().unwrap()],
        gateway_mac: Mac::from_ip(ip("10.0.0.1")),
    };
    let name = "overlay-demo".parse().unwrap();
    NetworkSpec { name, segments: vec![segment], spoof_guard: true, chains: BTreeMap::new() }
}

fn desired(remotes: u32) -> Update {
    let local = LocalEndpoint {
        vni: 256.try_into().unwrap(),
        mac: Mac::from_ip(ip("10.0.0.2")),
        addresses: vec!["10.0.0.2/16".parse().unwrap(), "fd00::2/64".parse().unwrap()],
        netns: "/run/netns/test1".into(),
        ifname: "eth0".into(),
        routes: Vec::new(),
        outside: true,
    };
    let mut endpoints = vec![(id("n1", "test1"), Some(EndpointSpec::Local(local)))];
    endpoints.extend((3..3 + remotes).map(|n| (id("n2", &format!("e{n}")), Some(remote(n)))));
    Update { revision: 1, spec: Some(Some(Arc::new(spec()))), endpoints }
}

fn agent() -> (Network, NetworkKernel) {
    let name: Name = "overlay-demo".parse().unwrap();
    let kernel = kernel_of("overlay-demo");
    let config = Config {
        name,
        home: Home::Overlay("/run/netns/vtepd-overlay-demo".into()),
        group: 0x76,
        resync: Duration::from_secs(3600),
        dump_at_most: Config::DUMP_AT_MOST,
        guards: guard_table(),
        tables: Vec::new(),
    };
    (Network::new(config), kernel)
}

impl Datapath {
    fn new() -> Self {
        let (network, kernel) = agent();
        Self { network, kernel, origin: Instant::now(), notes: Vec::new() }
    }

    fn now(&self) -> Time {
        Time::from_origin(self.origin.elapsed())
    }

    /// A private host with one container and a converged network.
    fn converged(remotes: u32) -> Self {
        private_host();
        run("ip link add under type veth peer name underpeer");
        run("ip addr add 192.168.205.10/24 dev under");
        run("ip link set under up");
        run("ip netns add test1");
        let mut this = Self::new();
        let now = this.now();
        this.network.update(desired(remotes), now);
        this.until("in sync", |this| this.network.in_sync());
        this.notes.clear();
        this
    }

    /// One turn, and the notes of it.
    fn turn(&mut self) -> Turn {
        let origin = self.origin;
        let turn = turn(&mut self.network, &mut self.kernel, || Time::from_origin(origin.elapsed()), 1000);
        self.notes.extend(self.network.take_notes());
        turn
    }

    /// Turns, and waits for events in between, until it is so.
    fn until(&mut self, what: &str, so: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let turned = self.turn();
            if turned != Turn::More && so(self) {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "never {what}: {:?} {:#?}",
                self.network.summary(),
                self.notes.iter().rev().take(12).collect::<Vec<_>>()
            );
            let fds = self.kernel.event_fds();
            let mut fds: Vec<_> = fds.iter().map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)).collect();
            poll(&mut fds, PollTimeout::from(20_u8)).unwrap();
        }
    }

    fn drift(&self) -> Vec<(Kind, DriftReason)> {
        let drift = self.notes.iter().filter_map(|note| match note {
            Note::Drift { kind, reason, .. } => Some((*kind, *reason)),
            _ => None,
        });
        drift.collect()
    }

    fn repairs(&self) -> Vec<Kind> {
        let repairs = self.notes.iter().filter_map(|note| match note {
            Note::Repaired { kind, .. } => Some(*kind),
            _ => None,
        });
        repairs.collect()
    }

    fn ops(&self) -> usize {
        let counts = self.notes.iter().map(|note| match note {
            Note::Ops { count, .. } => usize::try_from(*count).unwrap(),
            Note::OpFailed { .. } => 1,
            _ => 0,
        });
        counts.sum()
    }

    /// Runs a foreign command, and expects exactly this drift, each repaired, and afterwards nothing left to do.
    fn breaks(&mut self, command: &str, drift: &[(Kind, DriftReason)]) {
        let before = picture();
        run(command);
        self.until("drifted", |this| this.drift().len() >= drift.len());
        self.until("repaired", |this| this.network.in_sync());
        // Late events may still tell of it: they must not count again.
        std::thread::sleep(Duration::from_millis(30));
        self.until("quiet", |this| this.network.in_sync());
        assert_eq!(self.drift(), drift, "{command}: {:#?}", self.notes);
        assert_eq!(self.repairs(), drift.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(), "{command}");
        assert_same_picture(&before, command);
        self.resyncs_without_an_operation();
    }

    fn resyncs_without_an_operation(&mut self) {
        self.notes.clear();
        let now = self.now();
        self.network.resync("test", now);
        self.until("in sync", |this| this.network.in_sync());
        assert_eq!(self.ops(), 0, "a correct kernel gets no operation: {:#?}", self.notes);
        assert_eq!(self.drift(), []);
    }
}

/// What `ip` and `bridge` show of the overlay namespace and the container, without what is different for each device.
fn picture() -> String {
    let outer = outer_name(&id("n1", "test1"));
    let mut shown = Vec::new();
    for command in [
        "ip -n vtepd-overlay-demo -br link",
        "ip -n vtepd-overlay-demo -br addr",
        "ip -n vtepd-overlay-demo neigh show dev vxlan1 nud permanent",
        "bridge -n vtepd-overlay-demo fdb show dev vxlan1 self",
        &format!("bridge -n vtepd-overlay-demo fdb show dev {outer} master"),
        "ip -n test1 -br link",
        "ip -n test1 -br addr",
        "ip -n test1 route",
        "ip -n test1 -6 route",
    ] {
        let output = run(command);
        let mut lines: Vec<String> = output.lines().map(without_indices).collect();
        lines.sort();
        shown.push(format!("$ {command}\n{}", lines.join("\n")));
    }
    shown.join("\n")
}

fn assert_same_picture(before: &str, after: &str) {
    let now = picture();
    let gone: Vec<_> = before.lines().filter(|line| !now.contains(line)).collect();
    let new: Vec<_> = now.lines().filter(|line| !before.contains(line)).collect();
    assert!(gone.is_empty() && new.is_empty(), "after {after}: gone {gone:#?}, new {new:#?}");
}

/// Interface indices (`eth0@if7`), link-local addresses, carrier states and the like come and go with the device.
fn without_indices(line: &str) -> String {
    let words = line.split_whitespace().filter(|word| !word.starts_with("fe80:"));
    let words = words.map(|word| word.split_once("@if").map_or(word, |(name, _)| name));
    let words: Vec<_> = words.filter(|word| !matches!(*word, "UP" | "LOWERLAYERDOWN" | "UNKNOWN")).collect();
    let nsid = words.iter().position(|word| *word == "link-netnsid");
    let is_nsid = |at: usize| nsid.is_some_and(|nsid| at == nsid || at == nsid + 1);
    let kept = words.iter().enumerate().filter(|(at, _)| !is_nsid(*at)).map(|(_, word)| *word);
    kept.collect::<Vec<_>>().join(" ")
}

#[test]
fn the_datapath_is_what_the_design_says_in_the_words_of_ip_and_bridge() {
    let mut datapath = Datapath::converged(10);
    let links = json("ip -d -j -n vtepd-overlay-demo link");
    let link = |name: &str| {
        links.as_array().unwrap().iter().find(|l| l["ifname"] == name).unwrap_or_else(|| panic!("no {name}")).clone()
    };
    let (bridge, vxlan, outer) = (link("br0"), link("vxlan1"), link(&outer_name(&id("n1", "test1"))));
    assert_eq!(bridge["address"], "02:42:0a:00:00:01");
    assert_eq!(bridge["mtu"], 1450);
    assert_eq!(bridge["linkinfo"]["info_data"]["mcast_snooping"], 0);
    assert_eq!(bridge["inet6_addr_gen_mode"], "none");
    let data = &vxlan["linkinfo"]["info_data"];
    assert_eq!((&data["id"], &data["port"], &data["local"]), (&256.into(), &4789.into(), &"192.168.205.10".into()));
    assert_eq!((&data["learning"], &data["proxy"]), (&false.into(), &true.into()));
    assert_eq!((&vxlan["master"], &vxlan["mtu"]), (&"br0".into(), &1450.into()));
    assert_ne!(vxlan["address"], bridge["address"]);
    assert!(vxlan["link_netnsid"].is_number(), "its socket stays in the host's namespace");
    assert_eq!(vxlan["linkinfo"]["info_slave_data"]["learning"], false);
    assert_eq!(vxlan["linkinfo"]["info_slave_data"]["flood"], true);
    assert_eq!(outer["linkinfo"]["info_slave_data"]["learning"], false);
    assert_eq!(outer["linkinfo"]["info_slave_data"]["flood"], false);
    let fdb = run("bridge -n vtepd-overlay-demo fdb show dev vxlan1 self");
    assert!(fdb.contains("02:42:0a:00:00:03 dst 192.168.205.11 link-netnsid 0 self permanent"), "{fdb}");
    let row = run(&format!("bridge -n vtepd-overlay-demo fdb show dev {} master", outer["ifname"].as_str().unwrap()));
    assert!(row.contains("02:42:0a:00:00:02 master br0 static"), "{row}");
    let neighbours = run("ip -n vtepd-overlay-demo -d neigh show dev vxlan1");
    assert!(neighbours.contains("10.0.0.3 lladdr 02:42:0a:00:00:03 PERMANENT"), "{neighbours}");
    assert!(neighbours.contains("fd00::3 lladdr 02:42:0a:00:00:03 PERMANENT"), "{neighbours}");
    let eth0 = &json("ip -j -n test1 addr show eth0")[0];
    assert_eq!(
        (&eth0["address"], &eth0["mtu"], &eth0["operstate"]),
        (&"02:42:0a:00:00:02".into(), &1450.into(), &"UP".into())
    );
    let inet = eth0["addr_info"].as_array().unwrap().iter().find(|a| a["local"] == "10.0.0.2").unwrap().clone();
    assert_eq!((&inet["prefixlen"], &inet["broadcast"]), (&16.into(), &"10.0.255.255".into()));
    assert!(!run("ip -n test1 addr show eth0 tentative").contains("fd00::2"), "no duplicate address detection");
    let alias = run("ip -n vtepd-overlay-demo link show lo");
    assert!(alias.contains("alias vtepd:default:overlay-demo"), "{alias}");
    assert!(run("ip netns").contains("vtepd-overlay-demo"));
    datapath.resyncs_without_an_operation();
}

#[test]
fn the_flood_list_of_a_network_that_floods_is_what_bridge_shows_and_stays() {
    let mut datapath = Datapath::converged(10);
    let list = || {
        let shown = run("bridge -n vtepd-overlay-demo fdb show dev vxlan1 self");
        let rows = shown.lines().filter(|line| line.starts_with("00:00:00:00:00:00"));
        let mut rows: Vec<String> = rows.map(|row| row.trim().to_owned()).collect();
        rows.sort();
        rows
    };
    let row = |last: u8| format!("00:00:00:00:00:00 dst 192.168.205.{last} link-netnsid 0 self permanent");
    let proxy = || json("ip -d -j -n vtepd-overlay-demo link show vxlan1")[0]["linkinfo"]["info_data"]["proxy"] == true;
    assert_eq!((list(), proxy()), (vec![], true), "the kernel puts no default destination");

    let mut flooding = spec();
    flooding.segments[0].tunnel.as_mut().unwrap().flood = true;
    let mut elsewhere = remote(100);
    if let EndpointSpec::Remote(remote) = &mut elsewhere {
        remote.vtep = ip("192.168.205.12");
    }
    let endpoints = vec![(id("n3", "e100"), Some(elsewhere))];
    let now = datapath.now();
    datapath.network.update(Update { revision: 2, spec: Some(Some(Arc::new(flooding))), endpoints }, now);
    datapath.until("in sync", |this| this.network.in_sync());
    assert_eq!((list(), proxy()), (vec![row(11), row(12)], false));
    assert_eq!(datapath.drift(), [], "a device that is made anew for it is no drift");
    datapath.resyncs_without_an_operation();

    let on = "bridge -n vtepd-overlay-demo fdb";
    let zero = "00:00:00:00:00:00 dev vxlan1";
    datapath.breaks(&format!("{on} del {zero} dst 192.168.205.12 self"), &[(Kind::Flood, MISSING)]);
    datapath.breaks(&format!("{on} append {zero} dst 192.0.2.1 self permanent"), &[(Kind::Flood, UNEXPECTED)]);
    datapath
        .breaks(&format!("{on} append {zero} dst 192.0.2.1 port 4444 self permanent"), &[(Kind::Flood, UNEXPECTED)]);
    datapath.breaks(&format!("{on} append {zero} dst 192.168.205.11 vni 9 self permanent"), &[(Kind::Flood, CHANGED)]);
    datapath.breaks(
        &format!("{on} append {zero} dst 192.0.2.1 self dynamic"),
        &[(Kind::Flood, UNEXPECTED), (Kind::Flood, CHANGED), (Kind::Flood, CHANGED)],
    );
    datapath.breaks(&format!("{on} del {zero} self"), &[(Kind::Flood, MISSING); 2]);
    datapath.breaks("ip -n vtepd-overlay-demo link del vxlan1", &[(Kind::Link, MISSING)]);
    assert_eq!(list(), [row(11), row(12)]);

    let now = datapath.now();
    let endpoints = vec![(id("n3", "e100"), None)];
    datapath.network.update(Update { revision: 3, spec: None, endpoints }, now);
    datapath.until("in sync", |this| this.network.in_sync());
    assert_eq!(list(), [row(11)], "its last endpoint took the row with it");
    let now = datapath.now();
    datapath.network.update(Update { revision: 4, spec: Some(Some(Arc::new(spec()))), endpoints: Vec::new() }, now);
    datapath.until("in sync", |this| this.network.in_sync());
    assert_eq!((list(), proxy()), (vec![], true));
    datapath.resyncs_without_an_operation();
    datapath
        .breaks(&format!("{on} append {zero} dst 192.0.2.1 port 4444 self permanent"), &[(Kind::Flood, UNEXPECTED)]);
    assert_eq!(list(), Vec::<String>::new());
}

#[test]
fn every_foreign_change_of_a_row_is_repaired_and_counted_once() {
    let mut datapath = Datapath::converged(50);
    let on = "bridge -n vtepd-overlay-demo fdb";
    datapath.breaks(&format!("{on} del 02:42:0a:00:00:03 dev vxlan1 self"), &[(Kind::Fdb, MISSING)]);
    datapath.breaks(
        &format!("{on} replace 02:42:0a:00:00:04 dev vxlan1 dst 192.0.2.1 self permanent"),
        &[(Kind::Fdb, CHANGED)],
    );
    datapath.breaks(
        &format!("{on} replace 02:42:0a:00:00:04 dev vxlan1 dst 192.168.205.11 port 4444 self permanent"),
        &[(Kind::Fdb, CHANGED)],
    );
    datapath.breaks(
        &format!("{on} replace 02:42:0a:00:00:04 dev vxlan1 dst 192.0.2.1 self dynamic"),
        &[(Kind::Fdb, CHANGED)],
    );
    datapath.breaks(
        &format!("{on} add 02:42:0a:63:63:63 dev vxlan1 dst 192.0.2.1 self permanent"),
        &[(Kind::Fdb, UNEXPECTED)],
    );
    datapath.breaks(
        &format!("{on} append 00:00:00:00:00:00 dev vxlan1 dst 192.0.2.1 self permanent"),
        &[(Kind::Flood, UNEXPECTED)],
    );
    for n in 1..4 {
        run(&format!("{on} append 00:00:00:00:00:00 dev vxlan1 dst 192.0.2.{n} self permanent"));
    }
    datapath.until("drifted", |this| this.drift().len() == 3);
    datapath.until("repaired", |this| this.network.in_sync());
    assert_eq!(datapath.drift(), [(Kind::Flood, UNEXPECTED); 3]);
    let left = run("bridge -n vtepd-overlay-demo fdb show dev vxlan1");
    assert!(!left.contains("00:00:00:00:00:00"), "{left}");
    datapath.resyncs_without_an_operation();
    let outer = outer_name(&id("n1", "test1"));
    datapath.breaks(&format!("{on} del 02:42:0a:00:00:02 dev {outer} master"), &[(Kind::Fdb, MISSING)]);
    datapath.breaks(&format!("{on} replace 02:42:0a:00:00:02 dev {outer} master permanent"), &[(Kind::Fdb, CHANGED)]);
    datapath.breaks(&format!("{on} replace 02:42:0a:00:00:02 dev vxlan1 master static"), &[(Kind::Fdb, CHANGED)]);
    datapath.breaks(&format!("{on} add 02:42:0a:63:63:63 dev {outer} master static"), &[(Kind::Fdb, UNEXPECTED)]);
    let neigh = "ip -n vtepd-overlay-demo neigh";
    datapath.breaks(&format!("{neigh} del 10.0.0.3 dev vxlan1"), &[(Kind::Neighbour, MISSING)]);
    datapath.breaks(&format!("{neigh} del fd00::3 dev vxlan1"), &[(Kind::Neighbour, MISSING)]);
    datapath.breaks(
        &format!("{neigh} replace 10.0.0.3 lladdr 02:42:0a:00:00:09 dev vxlan1 nud permanent"),
        &[(Kind::Neighbour, CHANGED)],
    );
    datapath.breaks(
        &format!("{neigh} replace 10.0.0.3 lladdr 02:42:0a:00:00:03 dev vxlan1 nud reachable"),
        &[(Kind::Neighbour, CHANGED)],
    );
    datapath.breaks(
        &format!("{neigh} add 10.0.99.99 lladdr 02:42:0a:00:00:09 dev vxlan1 nud permanent"),
        &[(Kind::Neighbour, UNEXPECTED)],
    );
    datapath.breaks(
        &format!("{neigh} add 10.0.0.2 lladdr 02:42:0a:00:00:09 dev br0 nud permanent"),
        &[(Kind::Neighbour, UNEXPECTED)],
    );
}

#[test]
fn every_foreign_change_of_a_link_is_repaired_and_counted_once() {
    let mut datapath = Datapath::converged(50);
    let outer = outer_name(&id("n1", "test1"));
    let changed = [(Kind::Link, CHANGED)];
    for link in ["vxlan1", "br0", &outer] {
        let set = |change: &str| format!("ip -n vtepd-overlay-demo link set {link} {change}");
        datapath.breaks(&set("down"), &changed);
        datapath.breaks(&set("mtu 1300"), &changed);
        datapath.breaks(&set("mtu 1000"), &changed);
        datapath.breaks(&set("address 02:99:00:00:00:01"), &changed);
        datapath.breaks(&set("name other"), &changed);
        datapath.breaks(&set("group 5"), &changed);
        datapath.breaks(&set("addrgenmode eui64"), &changed);
        if link != "br0" {
            datapath.breaks(&set("nomaster"), &changed);
            datapath.breaks(&format!("bridge -n vtepd-overlay-demo link set dev {link} learning on"), &changed);
        }
    }
    datapath.breaks("ip -n vtepd-overlay-demo link set vxlan1 type vxlan learning", &changed);
    datapath.breaks("ip -n vtepd-overlay-demo link set br0 type bridge mcast_snooping 1", &changed);
    for change in ["down", "mtu 1300", "mtu 1000", "address 02:99:00:00:00:01", "name other"] {
        datapath.breaks(&format!("ip -n test1 link set eth0 {change}"), &changed);
    }
}

#[test]
fn deleted_devices_come_back_with_their_rows_and_count_once() {
    let mut datapath = Datapath::converged(50);
    let missing = [(Kind::Link, MISSING)];
    for link in ["vxlan1", "br0", &outer_name(&id("n1", "test1"))] {
        datapath.breaks(&format!("ip -n vtepd-overlay-demo link del {link}"), &missing);
    }
    datapath.breaks("ip -n test1 link del eth0", &missing);
}

#[test]
fn moved_devices_come_back() {
    let mut datapath = Datapath::converged(10);
    run("ip netns add elsewhere");
    let outer = outer_name(&id("n1", "test1"));
    datapath.breaks(&format!("ip -n vtepd-overlay-demo link set {outer} netns elsewhere"), &[(Kind::Link, MISSING)]);
    datapath.breaks("ip -n test1 link set eth0 netns elsewhere", &[(Kind::Link, MISSING)]);
    run("ip link add name vxlan1 type vxlan id 999 dstport 4789 local 192.168.205.10");
    datapath.breaks("ip -n vtepd-overlay-demo link set vxlan1 netns elsewhere", &[(Kind::Link, MISSING)]);
    assert!(run("ip link").contains("vxlan1"), "a device of the host is left alone");
}

#[test]
fn flushed_addresses_are_back_in_the_container_too() {
    let mut datapath = Datapath::converged(10);
    let missing = [(Kind::Address, MISSING)];
    datapath.breaks("ip -n test1 addr del 10.0.0.2/16 dev eth0", &missing);
    datapath.breaks("ip -n test1 addr del fd00::2/64 dev eth0", &missing);
    datapath.breaks("ip -n test1 addr flush dev eth0 scope global", &[missing[0], missing[0]]);
    datapath.breaks("ip -n vtepd-overlay-demo addr flush dev br0", &[missing[0], missing[0]]);
    let unexpected = [(Kind::Address, UNEXPECTED)];
    datapath.breaks("ip -n vtepd-overlay-demo addr add 10.0.0.77/24 dev br0", &unexpected);
    datapath.breaks("ip -n vtepd-overlay-demo addr add 10.0.0.78/24 dev vxlan1", &unexpected);
    run("ip -n test1 addr add 10.0.0.200/16 dev eth0");
    datapath.until("in sync", |this| this.network.in_sync());
    assert!(run("ip -n test1 addr").contains("10.0.0.200"), "an address that the container added is its own");
    datapath.resyncs_without_an_operation();
}

#[test]
fn every_foreign_change_of_a_guard_is_repaired_and_counted_once() {
    let mut datapath = Datapath::converged(5);
    let outer = outer_name(&id("n1", "test1"));
    let nft = "ip netns exec vtepd-overlay-demo nft";
    let guard = run(&format!("{nft} list ruleset"));
    for line in [
        "table netdev vtepd {",
        &format!("chain {outer} {{"),
        &format!("type filter hook ingress device \"{outer}\" priority filter; policy drop;"),
        "ether saddr != 02:42:0a:00:00:02 drop",
        "ip saddr != 10.0.0.2 drop",
        "icmpv6 type nd-router-advert drop",
    ] {
        assert!(guard.lines().any(|shown| shown.trim() == line), "{line} is not in {guard}");
    }
    let (missing, changed, unexpected) = ([(Kind::Nat, MISSING)], [(Kind::Nat, CHANGED)], [(Kind::Nat, UNEXPECTED)]);
    for (breakage, drift) in [
        ("delete table netdev vtepd".to_owned(), missing),
        ("flush ruleset".to_owned(), missing),
        (format!("flush chain netdev vtepd {outer}"), changed),
        (format!("delete chain netdev vtepd {outer}"), missing),
        (format!("insert rule netdev vtepd {outer} accept"), changed),
        (format!("chain netdev vtepd {outer} {{ policy accept; }}"), changed),
        ("add chain netdev vtepd stranger".to_owned(), unexpected),
        ("add set netdev vtepd names { type ipv4_addr; }".to_owned(), changed),
        ("add table netdev vtepd { flags dormant; }".to_owned(), changed),
        (
            format!("add chain netdev vtepd other {{ type filter hook ingress device {outer} priority -9; }}"),
            unexpected,
        ),
    ] {
        datapath.breaks(&format!("{nft} {breakage}"), &drift);
        assert_eq!(run(&format!("{nft} list ruleset")), guard, "{breakage}");
    }
    let unlocked = format!("bridge -n vtepd-overlay-demo link set dev {outer} locked off");
    datapath.breaks(&unlocked, &[(Kind::Link, CHANGED)]);
    let shown = json(&format!("bridge -n vtepd-overlay-demo -d -j link show dev {outer}"));
    assert_eq!(shown[0]["locked"], true);
    run(&format!("{nft} add table netdev others"));
    datapath.resyncs_without_an_operation();
    assert!(run(&format!("{nft} list tables")).contains("netdev others"), "a table of somebody else's is left alone");
}

#[test]
fn a_guard_of_sixty_four_addresses_has_no_more_rules_than_one_of_two_and_fits_the_kernel() {
    private_host();
    let mac = Mac::from_ip(ip("10.0.0.2"));
    let rules = guard("veth0", mac, [ip("10.0.0.2"), ip("fd00::2")]).rules.len();
    let v4 = |n: u16| IpAddr::from([10, 0, 0, n.to_be_bytes()[1]]);
    let v6 = |n: u16| IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, n]);
    let mut tables = Tables::open().unwrap();
    for addresses in [1..64_u16, 1..2, 63..64] {
        let some: Vec<IpAddr> = addresses.clone().map(v4).chain((addresses.end - 1..64).map(v6)).collect();
        let many: Vec<IpAddr> = addresses.clone().map(v6).chain((addresses.end - 1..64).map(v4)).collect();
        for addresses in [some, many] {
            let chain = guard("veth0", mac, addresses);
            assert_eq!(chain.rules.len(), rules);
            let wanted = Ruleset::new(guard_table()).with("veth0", chain);
            tables.apply(&[Change::ReplaceTable(wanted.clone())]).unwrap();
            assert_eq!(tables.read(&guard_table()).unwrap(), Some(wanted));
        }
    }
}

#[test]
fn a_deleted_overlay_namespace_is_built_again_and_counts_once() {
    let mut datapath = Datapath::converged(50);
    let before = picture();
    run("ip netns del vtepd-overlay-demo");
    datapath.network.event(Event::Netns, Time::default());
    datapath.until("drifted", |this| !this.drift().is_empty());
    datapath.until("repaired", |this| this.network.in_sync());
    assert_eq!(datapath.drift(), [(Kind::Netns, MISSING)], "{:#?}", datapath.notes);
    assert_eq!(datapath.repairs(), [Kind::Netns]);
    assert_same_picture(&before, "ip netns del");
    datapath.resyncs_without_an_operation();
}

#[test]
fn an_agent_without_memory_finds_everything_right_or_takes_it_down() {
    let mut datapath = Datapath::converged(50);
    (datapath.network, datapath.kernel) = agent();
    let now = datapath.now();
    datapath.network.update(desired(50), now);
    datapath.until("in sync", |this| this.network.in_sync());
    assert_eq!(datapath.ops(), 0, "{:#?}", datapath.notes);

    run("bridge -n vtepd-overlay-demo fdb add 02:42:0a:63:63:63 dev vxlan1 dst 192.0.2.1 self permanent");
    (datapath.network, datapath.kernel) = agent();
    datapath.network.update(desired(40), now);
    datapath.until("in sync", |this| this.network.in_sync());
    assert_eq!(datapath.ops(), 1 + 10 * 3, "the stray row and ten endpoints' rows and neighbours");

    (datapath.network, datapath.kernel) = agent();
    datapath.network.update(Update { revision: 2, spec: Some(None), endpoints: Vec::new() }, now);
    while datapath.turn() != Turn::Gone {}
    assert!(!run("ip netns").contains("vtepd-"));
    assert!(!run("ip -n test1 link").contains("eth0"));
}

#[test]
fn an_endpoint_is_wired_when_its_namespace_appears_and_gone_with_it() {
    let mut datapath = Datapath::converged(5);
    run("ip netns del test1");
    let path = PathBuf::from("/run/netns/test1");
    datapath.network.event(Event::Path(path.clone()), Time::default());
    let outer = outer_name(&id("n1", "test1"));
    let there = |outer: &str| run("ip -n vtepd-overlay-demo link").contains(outer);
    datapath.until("unwired", |_| !there(&outer));
    assert_eq!(datapath.drift(), [], "a container that ends is no drift");
    run("ip netns add test1");
    datapath.network.event(Event::Path(path), Time::default());
    datapath.until("wired", |this| this.network.in_sync() && there(&outer));
    assert_eq!(datapath.drift(), []);
    datapath.resyncs_without_an_operation();
}

#[test]
fn a_foreign_namespace_of_that_name_is_left_alone() {
    private_host();
    run("ip netns add vtepd-overlay-demo");
    run("ip -n vtepd-overlay-demo link add mine type bridge");
    let mut datapath = Datapath::new();
    let now = datapath.now();
    datapath.network.update(desired(1), now);
    datapath.turn();
    let blocked = datapath.network.summary().blocked;
    assert_eq!((blocked.len(), blocked[0].kind, blocked[0].reason), (1, Kind::Netns, "exists"));
    assert_eq!(datapath.ops(), 0);
    assert!(run("ip -n vtepd-overlay-demo link").contains("mine"));
}
