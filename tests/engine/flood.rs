//! Networks that flood.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc, time::Duration};

use vtepd::{
    desired::{NetworkSpec, Update},
    engine::{
        Answer, Cause, DriftReason, Event, Failure, Kernel, Kind, LinkKind, NewLink, Note, Op, Place, Query, Time,
        Turn, turn,
    },
    model::{EndpointId, Mac},
};

use crate::{
    lab::{Lab, TEST1, demo, engine, id, ip, remote, spec, vni},
    sim_kernel::SimKernel,
};

const MISSING: DriftReason = DriftReason::Missing;
const UNEXPECTED: DriftReason = DriftReason::Unexpected;

fn spec_with(flood: bool) -> NetworkSpec {
    let mut spec = spec();
    for segment in &mut spec.segments {
        segment.tunnel.as_mut().unwrap().flood = flood;
    }
    spec
}

/// Ten endpoints behind one VTEP and one behind another.
fn flooding() -> Update {
    let mut update = demo();
    update.spec = Some(Some(Arc::new(spec_with(true))));
    update.endpoints.push((id("n3", "lone"), Some(remote(30, "192.168.205.12"))));
    update
}

fn converged() -> Lab {
    let mut lab = Lab::new();
    lab.kernel.add_container(TEST1);
    lab.want(flooding());
    lab.settle();
    lab.forget();
    lab
}

fn change(lab: &mut Lab, endpoints: Vec<(EndpointId, Option<vtepd::desired::EndpointSpec>)>) {
    lab.want(Update { revision: 6, spec: None, endpoints });
    lab.settle();
}

/// To whom a VXLAN device floods.
fn list(lab: &Lab, device: &str) -> BTreeSet<IpAddr> {
    lab.kernel.link(device).unwrap().flood.values().flatten().copied().collect()
}

fn vteps(last: &[u8]) -> BTreeSet<IpAddr> {
    last.iter().map(|last| IpAddr::from([192, 168, 205, *last])).collect()
}

fn proxy(lab: &Lab) -> bool {
    matches!(&lab.kernel.link("vxlan1").unwrap().link.kind, LinkKind::Vxlan(vxlan) if vxlan.proxy)
}

fn flood_op(lab: &Lab, put: bool, vtep: &str) -> Op {
    let (ifindex, mac, dst) = (lab.index("vxlan1"), Mac::ZERO, ip(vtep));
    if put { Op::PutFdb { ifindex, mac, dst } } else { Op::DeleteFdb { ifindex, mac, dst: Some(dst) } }
}

#[test]
fn a_network_that_floods_has_no_proxy_and_one_row_per_vtep_with_endpoints() {
    let mut lab = converged();
    assert!(!proxy(&lab));
    assert_eq!(list(&lab, "vxlan1"), vteps(&[11, 12]));
    let vxlan = lab.kernel.link("vxlan1").unwrap();
    assert_eq!((vxlan.fdb.len(), vxlan.neighbours.len()), (11, 22), "all other rows as ever");
    assert_eq!(lab.network.summary().objects[&Kind::Flood], (2, 2));
    lab.quiet();
    lab.network = engine(Duration::from_secs(60));
    lab.want(flooding());
    lab.settle();
    assert_eq!((lab.kernel.log.len(), lab.drift().len()), (0, 0), "an agent without memory finds it right");
}

#[test]
fn the_row_of_a_vtep_comes_with_its_first_endpoint_and_goes_with_its_last() {
    let mut lab = converged();
    change(&mut lab, vec![(id("n3", "second"), Some(remote(31, "192.168.205.12")))]);
    change(&mut lab, vec![(id("n3", "lone"), None)]);
    assert_eq!(list(&lab, "vxlan1"), vteps(&[11, 12]));
    assert!(
        !lab.kernel
            .log
            .iter()
            .any(|op| matches!(op, Op::PutFdb { mac, .. } | Op::DeleteFdb { mac, .. } if mac.is_zero()))
    );
    change(&mut lab, vec![(id("n3", "second"), None)]);
    assert_eq!(list(&lab, "vxlan1"), vteps(&[11]));
    change(&mut lab, vec![(id("n4", "first"), Some(remote(40, "192.168.205.13")))]);
    assert_eq!(list(&lab, "vxlan1"), vteps(&[11, 13]));
    // What the record calls another node has this host's own address.
    change(&mut lab, vec![(id("n5", "own"), Some(remote(50, "192.168.205.10")))]);
    assert_eq!(list(&lab, "vxlan1"), vteps(&[11, 13]), "never to itself");
    lab.quiet();
}

#[test]
fn an_endpoint_that_moves_has_the_row_of_its_new_vtep_before_the_old_one_goes() {
    let mut lab = converged();
    change(&mut lab, vec![(id("n3", "lone"), None), (id("n4", "lone"), Some(remote(30, "192.168.205.9")))]);
    let put = Op::PutFdb { ifindex: lab.index("vxlan1"), mac: Mac::from_ip(ip("10.0.0.30")), dst: ip("192.168.205.9") };
    let (new, old) = (flood_op(&lab, true, "192.168.205.9"), flood_op(&lab, false, "192.168.205.12"));
    assert_eq!(lab.kernel.log, [new, put, old]);
    lab.quiet();
}

#[test]
fn hundreds_of_vteps_that_change_have_their_new_rows_before_the_old_ones_go() {
    let mut lab = converged();
    let at = |n: u32, third: u8| Some(remote(n, &format!("192.168.{third}.{}", n % 250)));
    let ids = |n: u32| id("many", &format!("e{n}"));
    change(&mut lab, (100..300).map(|n| (ids(n), at(n, 9 + (n / 250) as u8))).collect());
    assert_eq!(list(&lab, "vxlan1").len(), 202);
    lab.forget();
    change(&mut lab, (100..300).map(|n| (ids(n), at(n, 1 + (n / 250) as u8))).collect());
    assert_eq!(list(&lab, "vxlan1").len(), 202);
    let flood = |op: &&Op| matches!(op, Op::PutFdb { mac, .. } | Op::DeleteFdb { mac, .. } if mac.is_zero());
    let ops: Vec<bool> = lab.kernel.log.iter().filter(flood).map(|op| matches!(op, Op::PutFdb { .. })).collect();
    assert_eq!((ops.len(), ops.is_sorted_by(|a, b| a >= b)), (400, true), "puts first: {ops:?}");
    lab.quiet();
}

#[test]
fn flooding_that_is_asked_for_or_given_up_makes_the_device_anew_and_is_no_drift() {
    let mut lab = Lab::converged();
    for flood in [true, false, true] {
        lab.forget();
        lab.want(Update { revision: 7, spec: Some(Some(Arc::new(spec_with(flood)))), endpoints: Vec::new() });
        lab.settle();
        assert_eq!((proxy(&lab), list(&lab, "vxlan1").len()), (!flood, usize::from(flood)));
        let vxlan = lab.kernel.link("vxlan1").unwrap();
        assert_eq!((vxlan.fdb.len(), vxlan.neighbours.len()), (10, 20), "all rows are back");
        let deleted: Vec<&Op> = lab.kernel.log.iter().filter(|op| matches!(op, Op::DeleteLink { .. })).collect();
        assert_eq!(deleted.len(), 1, "{deleted:?}");
        assert!(lab.kernel.log.iter().any(|op| matches!(op, Op::AddLink(NewLink::Vxlan { .. }))));
        assert_eq!(lab.drift(), []);
        let repair = |note: &&Note| matches!(note, Note::Ops { cause: Cause::Repair, .. });
        assert_eq!(lab.notes.iter().find(repair), None, "all of it is a change");
        lab.quiet();
    }
}

#[test]
fn every_segment_has_the_rows_and_loses_them_with_itself() {
    let mut lab = converged();
    let mut two = spec_with(true);
    let second = vtepd::desired::Segment {
        vni: vni(257),
        gateways: vec!["10.1.0.1/24".parse().unwrap()],
        gateway_mac: Mac::from_ip(ip("10.1.0.1")),
        ..two.segments[0].clone()
    };
    two.segments.push(second);
    lab.want(Update { revision: 7, spec: Some(Some(Arc::new(two))), endpoints: Vec::new() });
    lab.settle();
    assert_eq!((list(&lab, "vxlan1"), list(&lab, "vxlan2")), (vteps(&[11, 12]), vteps(&[11, 12])));
    lab.quiet();
    let endpoints = vec![(id("n3", "lone"), None)];
    lab.want(Update { revision: 8, spec: Some(Some(Arc::new(spec_with(true)))), endpoints });
    lab.settle();
    assert!(lab.kernel.link("vxlan2").is_none());
    assert_eq!(list(&lab, "vxlan1"), vteps(&[11]));
    assert_eq!(lab.network.summary().objects[&Kind::Flood], (1, 1));
    lab.quiet();
    lab.want(Update { revision: 9, spec: Some(None), endpoints: Vec::new() });
    lab.rest();
    assert_eq!(lab.network.summary().objects[&Kind::Flood], (0, 0));
}

#[test]
fn foreign_changes_of_the_flood_list_are_repaired_and_counted_once() {
    let mut lab = converged();
    lab.expect_repair(flood_op(&lab, false, "192.168.205.12"), &[(Kind::Flood, MISSING)]);
    lab.expect_repair(flood_op(&lab, true, "192.0.2.1"), &[(Kind::Flood, UNEXPECTED)]);
    let (ifindex, mac) = (lab.index("vxlan1"), Mac::ZERO);
    lab.expect_repair(Op::DeleteFdb { ifindex, mac, dst: None }, &[(Kind::Flood, MISSING); 2]);
    lab.expect_repair(Op::DeleteLink { place: Place::Overlay, ifindex }, &[(Kind::Link, MISSING)]);
}

#[test]
fn what_somebody_adds_to_the_flood_list_of_a_network_that_does_not_flood_goes() {
    let mut lab = Lab::converged();
    assert_eq!(list(&lab, "vxlan1"), vteps(&[]));
    lab.expect_repair(flood_op(&lab, true, "192.168.205.11"), &[(Kind::Flood, UNEXPECTED)]);
    assert_eq!(list(&lab, "vxlan1"), vteps(&[]));
}

/// A kernel whose next dumps of forwarding rows show none of the flood list.
struct Skipping<'a>(&'a mut SimKernel, usize);

impl Kernel for Skipping<'_> {
    fn read(&mut self, query: &Query) -> Result<Answer, Failure> {
        match (self.0.read(query), query) {
            (Ok(Answer::Fdb(mut rows)), Query::FdbDump(_)) if self.1 > 0 => {
                let all = rows.len();
                rows.retain(|row| !row.mac.is_zero());
                self.1 -= usize::from(rows.len() < all);
                Ok(Answer::Fdb(rows))
            }
            (answer, _) => answer,
        }
    }

    fn apply(&mut self, ops: &[Op]) -> Vec<Result<(), Failure>> {
        self.0.apply(ops)
    }

    fn events(&mut self) -> Vec<Event> {
        self.0.events()
    }
}

#[test]
fn a_dump_that_skips_the_flood_list_is_neither_drift_nor_reason_to_write() {
    let mut lab = converged();
    lab.network.resync("test", Time::default());
    let mut kernel = Skipping(&mut lab.kernel, 1);
    assert!(matches!(turn(&mut lab.network, &mut kernel, Time::default, 1000), Turn::Rest(_)));
    assert_eq!(kernel.1, 0, "one dump was torn");
    assert!(lab.network.in_sync());
    lab.notes = lab.network.take_notes();
    assert_eq!((lab.drift(), lab.kernel.log.len()), (vec![], 0));
}
