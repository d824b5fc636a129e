//! Situations of one network, the engine against the simulated kernel.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    missing_docs,
    reason = "a test ends where something is not as it should be"
)]

mod endpoints;
mod faults;
mod flood;
mod gateway;
mod guard;
mod host;
#[allow(unreachable_pub, reason = "shared by the parts of this test")]
mod lab;
mod large;
mod outside_hazards;
mod routes;
mod settings;
#[allow(unreachable_pub, reason = "shared by several tests")]
#[path = "../support/sim_kernel/mod.rs"]
mod sim_kernel;

use std::{net::IpAddr, time::Duration};

use lab::{Lab, TEST1, demo, engine, id, ip, remote};
use vtepd::{
    desired::{EndpointSpec, RemoteEndpoint, Update},
    engine::{DriftReason, Event, Kind, LinkChange, Note, Op, Place, Time, Turn, outer_name},
    model::{EndpointId, Mac},
};

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
    lab.network = engine(Duration::from_secs(60));
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
fn a_row_that_two_endpoints_share_stays_while_either_does_and_moves_with_one_replace() {
    let mut lab = Lab::converged();
    let mac = Mac::from_ip(ip("10.0.0.3"));
    let sharer = |last: u8, vtep: &str| {
        let EndpointSpec::Remote(remote) = remote(u32::from(last), vtep) else { unreachable!() };
        Some(EndpointSpec::Remote(RemoteEndpoint { mac, ..remote }))
    };
    let row = |lab: &Lab| lab.kernel.link("vxlan1").unwrap().fdb.get(&mac).copied();
    let fdb_ops =
        |lab: &Lab| lab.kernel.log.iter().filter(|op| matches!(op, Op::PutFdb { .. } | Op::DeleteFdb { .. })).count();
    let change = |revision, endpoints| Update { revision, spec: None, endpoints };
    let before = row(&lab);
    lab.want(change(6, vec![(id("n2", "s"), sharer(50, "192.168.205.11"))]));
    lab.settle();
    assert_eq!((row(&lab), fdb_ops(&lab)), (before, 0), "two neighbours of one row");
    lab.want(change(7, vec![(id("n2", "e3"), None)]));
    lab.settle();
    assert_eq!((row(&lab), fdb_ops(&lab)), (before, 0), "the first goes, the row stays");
    lab.want(change(8, vec![(id("n2", "t"), sharer(51, "192.168.205.11"))]));
    lab.settle();
    lab.forget();
    // Docker's endpoints that move have another node, and so another identity.
    let moved = [("n2", "s", None), ("n2", "t", None)].map(|(node, e, spec)| (id(node, e), spec));
    let to = [("n3", "s", 50), ("n3", "t", 51)].map(|(node, e, n)| (id(node, e), sharer(n, "192.168.205.12")));
    lab.want(change(9, moved.into_iter().chain(to).collect()));
    lab.settle();
    assert_eq!(lab.kernel.log, [Op::PutFdb { ifindex: lab.index("vxlan1"), mac, dst: ip("192.168.205.12") }]);
    lab.want(change(10, vec![(id("n3", "s"), None), (id("n3", "t"), None)]));
    lab.settle();
    assert_eq!(row(&lab), None);
    lab.quiet();
}

#[test]
fn held_removals_keep_what_stands_while_additions_and_repairs_go_on() {
    let mut lab = Lab::converged();
    let (ifindex, foreign) = (lab.index("vxlan1"), Mac::from_ip(ip("10.9.9.9")));
    // An agent without memory, to which nobody says what two endpoints are.
    lab.network = engine(Duration::from_secs(60));
    lab.network.hold_removals(true);
    let unknown = |of: &EndpointId| *of == id("n1", "test1") || *of == id("n2", "e3");
    let mut known = demo();
    known.endpoints.retain(|(of, _)| !unknown(of));
    known.endpoints.push((id("n2", "e40"), Some(remote(40, "192.168.205.12"))));
    lab.want(known);
    lab.rest();
    let deletes = |lab: &Lab| {
        let removes = |op: &&Op| {
            matches!(op, Op::DeleteFdb { .. } | Op::DeleteNeighbour { .. } | Op::DeleteLink { .. } | Op::DeleteNetns)
        };
        lab.kernel.log.iter().filter(removes).count()
    };
    assert_eq!((lab.kernel.log.len(), deletes(&lab)), (3, 0), "a row and two neighbours come");
    assert_eq!(lab.network.summary().held, 6, "the pair's end, a row, two neighbours, the guard and its table");
    assert!(!lab.network.in_sync());
    // What somebody else does is undone, and what is desired moves, as ever.
    lab.forget();
    lab.foreign(Op::PutFdb { ifindex, mac: foreign, dst: ip("192.0.2.1") });
    lab.want(Update { revision: 6, spec: None, endpoints: vec![(id("n2", "e4"), Some(remote(4, "192.168.205.12")))] });
    lab.rest();
    let moved = Op::PutFdb { ifindex, mac: Mac::from_ip(ip("10.0.0.4")), dst: ip("192.168.205.12") };
    assert_eq!(lab.kernel.log, [moved, Op::DeleteFdb { ifindex, mac: foreign, dst: None }]);
    // Once the records are known, what stood is right as it stands.
    lab.forget();
    let endpoints = demo().endpoints.into_iter().filter(|(of, _)| unknown(of)).collect();
    lab.want(Update { revision: 7, spec: None, endpoints });
    lab.settle();
    assert_eq!((lab.kernel.log.as_slice(), lab.network.summary().held), (&[][..], 0));
    lab.network.hold_removals(false);
    lab.quiet();
}

#[test]
fn a_network_that_stands_on_a_lost_record_is_kept_whole_and_goes_when_the_hold_ends() {
    let mut lab = Lab::converged();
    lab.network = engine(Duration::from_secs(60));
    lab.network.hold_removals(true);
    let nothing = || Update { revision: 6, spec: Some(None), endpoints: Vec::new() };
    lab.want(nothing());
    assert!(matches!(lab.rest(), Turn::Rest(_)));
    assert_eq!(lab.kernel.log, []);
    // The record is good again: nothing has to be done but to know it.
    lab.want(Update { revision: 7, ..demo() });
    lab.settle();
    assert_eq!(lab.kernel.log, []);
    lab.network.hold_removals(false);
    lab.quiet();
    lab.network = engine(Duration::from_secs(60));
    lab.network.hold_removals(true);
    lab.want(nothing());
    lab.rest();
    lab.network.hold_removals(false);
    assert_eq!(lab.rest(), Turn::Gone);
    assert!(lab.kernel.overlay.is_none());
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
            lab.network = engine(Duration::from_secs(60));
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
    lab.network = engine(Duration::from_secs(60));
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
    lab.network.event(Event::FdbGone(row), Time::default());
    lab.settle();
    assert_eq!((lab.kernel.log.len(), lab.drift()), (0, vec![]));
}

/// The demo network as it is with another source address and MTU.
fn with_underlay(local: &str, mtu: u32, revision: i64) -> Update {
    let mut spec = lab::spec();
    for segment in &mut spec.segments {
        segment.tunnel.as_mut().unwrap().local = ip(local);
        segment.mtu = mtu;
    }
    Update { revision, spec: Some(Some(std::sync::Arc::new(spec))), endpoints: Vec::new() }
}

#[test]
fn another_mtu_of_the_underlay_is_set_in_place_on_every_device_and_is_no_drift() {
    let mut lab = Lab::converged();
    lab.want(with_underlay("192.168.205.10", 1350, 6));
    lab.settle();
    assert!(lab.kernel.log.iter().all(|op| matches!(op, Op::SetLink { .. })), "{:#?}", lab.kernel.log);
    assert_eq!(lab.drift(), []);
    let container = lab.kernel.containers.values().next().unwrap().links.values().next().unwrap();
    let (bridge, vxlan) = (lab.kernel.link("br0").unwrap(), lab.kernel.link("vxlan1").unwrap());
    assert_eq!([bridge.link.mtu, vxlan.link.mtu, container.link.mtu], [1350; 3]);
    lab.quiet();
}

#[test]
fn another_vtep_address_of_this_node_is_set_in_place_and_one_of_the_other_family_makes_the_device_anew() {
    let mut lab = Lab::converged();
    let vxlan = lab.index("vxlan1");
    lab.want(with_underlay("192.168.205.20", 1450, 6));
    lab.settle();
    let change = LinkChange { local: Some(ip("192.168.205.20")), ..LinkChange::default() };
    assert_eq!(lab.kernel.log, [Op::SetLink { place: Place::Overlay, ifindex: vxlan, change }]);
    lab.forget();
    let mut moved = with_underlay("fd00:1::10", 1450, 7);
    moved.endpoints = (3..13).map(|n| (id("n2", &format!("e{n}")), Some(remote(n, "fd00:1::11")))).collect();
    lab.want(moved);
    lab.settle();
    assert_ne!(lab.index("vxlan1"), vxlan);
    assert_eq!(lab.kernel.link("vxlan1").unwrap().fdb.len(), 10);
    assert_eq!(lab.drift(), []);
    lab.quiet();
}
