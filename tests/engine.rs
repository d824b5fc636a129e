//! Situations of one network, the engine against the simulated kernel.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    missing_docs,
    reason = "a test ends where something is not as it should be"
)]

#[path = "support/sim_kernel/mod.rs"]
#[allow(unreachable_pub, reason = "shared by several tests")]
mod sim_kernel;

use std::{cell::Cell, net::IpAddr, sync::Arc, time::Duration};

use sim_kernel::SimKernel;
use vtepd::{
    desired::{EndpointSpec, LocalEndpoint, NetworkSpec, RemoteEndpoint, Segment, Update},
    engine::{Config, DriftReason, Event, Kind, LinkChange, Network, Note, Op, Place, Time, Turn, outer_name, turn},
    model::{EndpointId, Mac, Vni},
};

const TEST1: &str = "/run/netns/test1";

struct Lab {
    network: Network,
    kernel: SimKernel,
    now: Cell<Duration>,
    notes: Vec<Note>,
}

fn vni(number: u32) -> Vni {
    number.try_into().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn id(node: &str, endpoint: &str) -> EndpointId {
    EndpointId { node: node.parse().unwrap(), endpoint: endpoint.parse().unwrap() }
}

fn spec() -> NetworkSpec {
    let segment = Segment {
        vni: vni(256),
        port: 4789,
        local: ip("192.168.205.10"),
        mtu: 1450,
        gateways: vec!["10.0.0.1/24".parse().unwrap(), "fd00::1/64".parse().unwrap()],
        gateway_mac: Mac::from_ip(ip("10.0.0.1")),
    };
    NetworkSpec { name: "overlay-demo".parse().unwrap(), segments: vec![segment] }
}

fn local() -> EndpointSpec {
    EndpointSpec::Local(LocalEndpoint {
        vni: vni(256),
        mac: Mac::from_ip(ip("10.0.0.2")),
        addresses: vec!["10.0.0.2/24".parse().unwrap(), "fd00::2/64".parse().unwrap()],
        netns: TEST1.into(),
        ifname: "eth0".into(),
    })
}

fn remote(last: u32, vtep: &str) -> EndpointSpec {
    let v4 = IpAddr::from((0x0a00_0000 + last).to_be_bytes());
    let v6 = IpAddr::from((0xfd00_u128 << 112 | u128::from(last)).to_be_bytes());
    EndpointSpec::Remote(RemoteEndpoint { vni: vni(256), mac: Mac::from_ip(v4), ips: vec![v4, v6], vtep: ip(vtep) })
}

fn demo() -> Update {
    let mut endpoints = vec![(id("n1", "test1"), Some(local()))];
    endpoints.extend((3..13).map(|n| (id("n2", &format!("e{n}")), Some(remote(n, "192.168.205.11")))));
    Update { revision: 5, spec: Some(Some(Arc::new(spec()))), endpoints }
}

impl Lab {
    fn new() -> Self {
        let config = Config {
            name: "overlay-demo".parse().unwrap(),
            netns: "/run/netns/vtepd-overlay-demo".into(),
            group: 0x76,
            resync: Duration::from_secs(60),
        };
        Self { network: Network::new(config), kernel: SimKernel::new(1), now: Cell::default(), notes: Vec::new() }
    }

    /// A network with one local and ten remote endpoints, converged.
    fn converged() -> Self {
        let mut lab = Self::new();
        lab.kernel.add_container(TEST1);
        lab.want(demo());
        lab.settle();
        lab.forget();
        lab
    }

    fn want(&mut self, update: Update) {
        self.network.want(update, Time::from_origin(self.now.get()));
    }

    fn clock(&self) -> impl Fn() -> Time + use<> {
        let now = self.now.get();
        move || Time::from_origin(now)
    }

    /// Runs until the engine rests, and checks that it then is in sync.
    fn settle(&mut self) {
        self.rest();
        assert!(self.network.in_sync(), "not in sync: {:?} {:#?}", self.network.summary(), self.notes);
    }

    fn rest(&mut self) -> Turn {
        let clock = self.clock();
        for _ in 0..1000 {
            match turn(&mut self.network, &mut self.kernel, &clock, 100) {
                Turn::More => {}
                done => {
                    self.notes.extend(self.network.take_notes());
                    return done;
                }
            }
        }
        panic!("the engine never rests: {:?}", self.kernel.log.iter().rev().take(5).collect::<Vec<_>>());
    }

    fn forget(&mut self) {
        self.notes.clear();
        self.kernel.log.clear();
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

    fn index(&self, name: &str) -> u32 {
        self.kernel.link(name).unwrap_or_else(|| panic!("no {name}")).link.ifindex
    }

    fn foreign(&mut self, op: Op) {
        self.kernel.foreign(&op).unwrap();
    }

    /// Does the foreign thing, and expects exactly this drift, each repaired, and the state as before.
    fn expect_repair(&mut self, foreign: Op, drift: &[(Kind, DriftReason)]) {
        let fingerprint = |lab: &Self| {
            let mut links: Vec<_> = lab.kernel.overlay.iter().flat_map(|ns| ns.links.values().cloned()).collect();
            links.sort_by(|a, b| a.link.name.cmp(&b.link.name));
            let shape = |l: sim_kernel::SimLink| {
                (l.link.name, l.link.mac, l.link.mtu, l.link.up, l.fdb, l.neighbours, l.rows.len(), l.addresses)
            };
            links.into_iter().map(shape).collect::<Vec<_>>()
        };
        let before = fingerprint(self);
        self.foreign(foreign);
        self.settle();
        assert_eq!(self.drift(), drift, "{:#?}", self.notes);
        let kinds: Vec<Kind> = drift.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(self.repairs(), kinds, "{:#?}", self.notes);
        assert_eq!(fingerprint(self), before);
        self.quiet();
    }

    /// A full resync finds nothing to do.
    fn quiet(&mut self) {
        self.forget();
        self.network.resync("test", Time::from_origin(self.now.get()));
        self.settle();
        assert_eq!(self.kernel.log, [], "a correct kernel gets no operation");
        assert_eq!(self.drift(), []);
    }
}

#[test]
fn a_network_is_built_as_the_design_says_and_then_left_alone() {
    let mut lab = Lab::converged();
    let (bridge, vxlan) = (lab.kernel.link("br0").unwrap(), lab.kernel.link("vxlan1").unwrap());
    assert_eq!(bridge.link.mac.to_string(), "02:42:0a:00:00:01");
    assert_eq!((bridge.link.mtu, bridge.link.up, bridge.addresses.len()), (1450, true, 2));
    assert_eq!(vxlan.link.master, Some(bridge.link.ifindex));
    assert_eq!((vxlan.fdb.len(), vxlan.neighbours.len()), (10, 20));
    let container = lab.kernel.containers.values().next().unwrap().links.values().next().unwrap();
    assert_eq!((container.link.name.as_str(), container.link.mac.to_string().as_str()), ("eth0", "02:42:0a:00:00:02"));
    assert_eq!((container.link.up, container.addresses.len()), (true, 2));
    assert_eq!(bridge.rows.len(), 1);
    lab.quiet();
}

#[test]
fn an_agent_without_memory_sends_nothing_to_a_correct_kernel() {
    let mut lab = Lab::converged();
    lab.network = Lab::new().network;
    lab.want(demo());
    lab.settle();
    assert_eq!(lab.kernel.log, []);
    assert_eq!(lab.drift(), []);
}

#[test]
fn a_deleted_row_is_back_and_counted_once() {
    let mut lab = Lab::converged();
    let (ifindex, mac) = (lab.index("vxlan1"), Mac::from_ip(ip("10.0.0.3")));
    lab.expect_repair(Op::DeleteFdb { ifindex, mac, dst: None }, &[(Kind::Fdb, DriftReason::Missing)]);
    lab.expect_repair(Op::PutFdb { ifindex, mac, dst: ip("192.0.2.1") }, &[(Kind::Fdb, DriftReason::Changed)]);
    let foreign = Mac::from_ip(ip("10.9.9.9"));
    let add = Op::PutFdb { ifindex, mac: foreign, dst: ip("192.0.2.1") };
    lab.expect_repair(add, &[(Kind::Fdb, DriftReason::Unexpected)]);
}

#[test]
fn a_deleted_or_overwritten_neighbour_is_back() {
    let mut lab = Lab::converged();
    let ifindex = lab.index("vxlan1");
    let missing = [(Kind::Neighbour, DriftReason::Missing)];
    lab.expect_repair(Op::DeleteNeighbour { ifindex, ip: ip("10.0.0.3") }, &missing);
    lab.expect_repair(Op::DeleteNeighbour { ifindex, ip: ip("fd00::3") }, &missing);
    let put = Op::PutNeighbour { ifindex, ip: ip("10.0.0.3"), mac: Mac::from_ip(ip("10.0.0.4")) };
    lab.expect_repair(put, &[(Kind::Neighbour, DriftReason::Changed)]);
}

#[test]
fn a_deleted_device_comes_back_with_its_rows_which_do_not_count_singly() {
    let mut lab = Lab::converged();
    for name in ["vxlan1".to_owned(), "br0".to_owned(), outer_name(&id("n1", "test1"))] {
        let op = Op::DeleteLink { place: Place::Overlay, ifindex: lab.index(&name) };
        lab.expect_repair(op, &[(Kind::Link, DriftReason::Missing)]);
    }
    let container = lab.kernel.containers.values().next().unwrap();
    let ifindex = *container.links.keys().next().unwrap();
    let op = Op::DeleteLink { place: Place::Inner(TEST1.into()), ifindex };
    lab.expect_repair(op, &[(Kind::Link, DriftReason::Missing)]);
}

#[test]
fn a_changed_link_is_set_back_and_what_it_lost_is_restored_without_counting() {
    let mut lab = Lab::converged();
    let changed = [(Kind::Link, DriftReason::Changed)];
    for name in ["vxlan1", "br0"] {
        for change in [
            LinkChange { up: Some(false), ..LinkChange::default() },
            LinkChange { mtu: Some(1000), ..LinkChange::default() },
            LinkChange { mac: Some(Mac::from_ip(ip("10.8.8.8"))), ..LinkChange::default() },
            LinkChange { name: Some("other".into()), ..LinkChange::default() },
            LinkChange { group: Some(9), ..LinkChange::default() },
        ] {
            let op = Op::SetLink { place: Place::Overlay, ifindex: lab.index(name), change };
            lab.expect_repair(op, &changed);
        }
    }
    let container = lab.kernel.containers.values().next().unwrap();
    let ifindex = *container.links.keys().next().unwrap();
    for change in [
        LinkChange { up: Some(false), ..LinkChange::default() },
        LinkChange { name: Some("other".into()), ..LinkChange::default() },
        LinkChange { mac: Some(Mac::from_ip(ip("10.8.8.8"))), ..LinkChange::default() },
    ] {
        lab.expect_repair(Op::SetLink { place: Place::Inner(TEST1.into()), ifindex, change }, &changed);
    }
}

#[test]
fn flushed_addresses_are_back_in_the_container_and_on_the_bridge() {
    let mut lab = Lab::converged();
    let ifindex = *lab.kernel.containers.values().next().unwrap().links.keys().next().unwrap();
    let missing = [(Kind::Address, DriftReason::Missing)];
    for net in ["10.0.0.2/24", "fd00::2/64"] {
        let net = net.parse().unwrap();
        lab.expect_repair(Op::DeleteAddress { place: Place::Inner(TEST1.into()), ifindex, net }, &missing);
    }
    let net = "10.0.0.1/24".parse().unwrap();
    lab.expect_repair(Op::DeleteAddress { place: Place::Overlay, ifindex: lab.index("br0"), net }, &missing);
    let net = "10.0.0.77/24".parse().unwrap();
    let unexpected = [(Kind::Address, DriftReason::Unexpected)];
    lab.expect_repair(Op::AddAddress { place: Place::Overlay, ifindex: lab.index("br0"), net }, &unexpected);
}

#[test]
fn a_deleted_namespace_is_built_again_and_counts_once() {
    let mut lab = Lab::converged();
    lab.kernel.remove_overlay();
    lab.settle();
    assert_eq!(lab.drift(), [(Kind::Netns, DriftReason::Missing)], "{:#?}", lab.notes);
    assert_eq!(lab.repairs(), [Kind::Netns]);
    assert_eq!(lab.kernel.link("vxlan1").unwrap().fdb.len(), 10);
    lab.quiet();
}

#[test]
fn an_endpoint_waits_for_its_namespace_and_goes_with_it() {
    let mut lab = Lab::new();
    lab.want(demo());
    lab.settle();
    assert!(lab.kernel.link(&outer_name(&id("n1", "test1"))).is_none());
    assert_eq!(lab.network.summary().waiting_endpoints, 1);
    lab.kernel.add_container(TEST1);
    lab.settle();
    assert!(lab.kernel.link(&outer_name(&id("n1", "test1"))).is_some_and(|outer| outer.link.up));
    lab.kernel.remove_container(TEST1);
    lab.settle();
    assert!(lab.kernel.link(&outer_name(&id("n1", "test1"))).is_none());
    assert_eq!(lab.drift(), [], "a container that ends is no drift");
    assert_eq!(lab.kernel.link("br0").unwrap().rows.len(), 0);
    lab.quiet();
}

#[test]
fn an_endpoint_that_moves_is_one_replace_of_its_row() {
    let mut lab = Lab::converged();
    let endpoints = vec![(id("n2", "e3"), None), (id("n3", "e3"), Some(remote(3, "192.168.205.12")))];
    lab.want(Update { revision: 6, spec: None, endpoints });
    lab.settle();
    let mac = Mac::from_ip(ip("10.0.0.3"));
    let put = Op::PutFdb { ifindex: lab.index("vxlan1"), mac, dst: ip("192.168.205.12") };
    assert_eq!(lab.kernel.log, [put]);
    lab.quiet();
}

#[test]
fn a_network_that_is_no_longer_wanted_is_taken_down_also_without_memory() {
    for memory in [true, false] {
        let mut lab = Lab::converged();
        if !memory {
            lab.network = Lab::new().network;
        }
        lab.want(Update { revision: 7, spec: Some(None), endpoints: Vec::new() });
        assert_eq!(lab.rest(), Turn::Gone);
        assert_eq!(lab.kernel.overlay, None);
        assert!(lab.kernel.containers.values().all(|ns| ns.links.is_empty()));
        assert_eq!(lab.drift(), []);
    }
}

#[test]
fn leftovers_of_earlier_times_are_removed_by_an_agent_without_memory() {
    let mut lab = Lab::converged();
    lab.network = Lab::new().network;
    let ifindex = lab.index("vxlan1");
    lab.foreign(Op::PutFdb { ifindex, mac: Mac::from_ip(ip("10.7.7.7")), dst: ip("192.0.2.9") });
    lab.foreign(Op::PutNeighbour { ifindex, ip: ip("10.0.0.200"), mac: Mac::from_ip(ip("10.0.0.200")) });
    lab.kernel.events_dropped();
    lab.want(demo());
    lab.settle();
    assert_eq!(lab.kernel.log.len(), 2);
    assert_eq!(lab.drift(), [], "what happened before the first look is history");
    lab.quiet();
}

#[test]
fn a_fight_over_one_row_is_damped_and_slows_nothing_else() {
    let mut lab = Lab::converged();
    let (ifindex, mac) = (lab.index("vxlan1"), Mac::from_ip(ip("10.0.0.3")));
    for _ in 0..40 {
        let _ = lab.kernel.foreign(&Op::DeleteFdb { ifindex, mac, dst: None });
        lab.rest();
        lab.now.set(lab.now.get() + Duration::from_millis(20));
    }
    let puts = lab.kernel.log.len();
    assert!((10..20).contains(&puts), "{puts} repairs");
    assert!(lab.notes.iter().any(|note| matches!(note, Note::Damped { .. })));
    assert_eq!(lab.network.summary().damped[&Kind::Fdb], 1);
    lab.forget();
    lab.foreign(Op::DeleteFdb { ifindex, mac: Mac::from_ip(ip("10.0.0.4")), dst: None });
    lab.rest();
    assert_eq!(lab.repairs(), [Kind::Fdb], "another row is repaired at once");
    lab.now.set(lab.now.get() + Duration::from_secs(61));
    lab.settle();
    assert!(lab.kernel.link("vxlan1").unwrap().fdb.contains_key(&mac));
    lab.now.set(lab.now.get() + Duration::from_secs(30));
    lab.quiet();
    assert_eq!(lab.network.summary().damped.len(), 0);
}

#[test]
fn lost_events_are_made_up_for_by_a_resync() {
    let mut lab = Lab::converged();
    let ifindex = lab.index("vxlan1");
    lab.kernel.faults.event_lost = 1000;
    for n in 3..8 {
        let mac = Mac::from_ip(IpAddr::from([10, 0, 0, n]));
        lab.foreign(Op::DeleteFdb { ifindex, mac, dst: None });
    }
    lab.kernel.faults.event_lost = 0;
    lab.settle();
    assert_eq!(lab.drift().len(), 5);
    assert!(lab.notes.contains(&Note::Overrun));
    lab.quiet();
}

#[test]
fn a_periodic_resync_finds_what_no_event_told() {
    let mut lab = Lab::converged();
    lab.foreign(Op::DeleteFdb { ifindex: lab.index("vxlan1"), mac: Mac::from_ip(ip("10.0.0.3")), dst: None });
    lab.kernel.events_dropped();
    lab.rest();
    assert_eq!(lab.drift(), []);
    lab.now.set(lab.now.get() + Duration::from_secs(61));
    lab.settle();
    assert_eq!(lab.drift(), [(Kind::Fdb, DriftReason::Missing)]);
    assert_eq!(lab.repairs(), [Kind::Fdb]);
}

#[test]
fn an_event_that_lies_costs_a_look_and_nothing_else() {
    let mut lab = Lab::converged();
    let row = vtepd::engine::FdbRow {
        ifindex: lab.index("vxlan1"),
        bridge: false,
        mac: Mac::from_ip(ip("10.0.0.3")),
        dst: Some(ip("192.168.205.11")),
        plain: true,
        kernels_own: false,
    };
    lab.network.hear(Event::FdbGone(row), Time::default());
    lab.settle();
    assert_eq!((lab.kernel.log.len(), lab.drift()), (0, vec![]));
}
