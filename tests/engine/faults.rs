//! Reads and operations that fail, and what desired does meanwhile.

use std::{cell::Cell, collections::BTreeMap, sync::Arc, time::Duration};

use vtepd::{
    desired::{EndpointSpec, RemoteEndpoint, Tunnel, Update},
    engine::{
        Cause, DriftReason, Effect, Event, FailureKind, Kernel, Kind, LinkChange, Note, Op, Place, Query, Time, Turn,
        outer_name, turn,
    },
    model::Mac,
};

use crate::lab::{Failing, Lab, TEST1, demo, engine, id, ip, local, remote, spec, vni};

const MINUTE: Duration = Duration::from_secs(60);

fn at(millis: u64) -> Time {
    Time::from_origin(Duration::from_millis(millis))
}

fn no_op_fails(_: &Op) -> Option<FailureKind> {
    None
}

#[test]
fn a_read_that_never_succeeds_is_spaced_out_said_and_holds_up_nothing_else() {
    let mut lab = Lab::converged();
    lab.kernel.add_container("/run/netns/test2");
    let EndpointSpec::Local(mut second) = local() else { unreachable!() };
    second.netns = "/run/netns/test2".into();
    second.mac = Mac::from_ip(ip("10.0.0.40"));
    second.addresses = vec!["10.0.0.40/24".parse().unwrap()];
    lab.network.resync("test", at(0));
    let endpoints = vec![(id("n1", "test2"), Some(EndpointSpec::Local(second)))];
    lab.want(Update { revision: 6, spec: None, endpoints });
    let mut reads = 0;
    for step in 0..1000 {
        let fails = |query: &Query| matches!(query, Query::FdbDump(_)).then_some(FailureKind::Permission);
        let mut kernel = Failing { kernel: &mut lab.kernel, reads: fails, ops: no_op_fails, count: 0 };
        assert_ne!(turn(&mut lab.network, &mut kernel, || at(step * 10), 1000), Turn::More);
        reads += kernel.count;
    }
    assert!(reads < 200, "{reads} reads in ten seconds");
    let notes = lab.network.take_notes();
    assert!(notes.iter().any(|note| matches!(note, Note::ReadFailed { .. })));
    assert!(!lab.network.in_sync());
    assert!(lab.network.summary().blocked.iter().any(|blocked| blocked.reason == "permission"));
    let outer = outer_name(&id("n1", "test2"));
    assert!(lab.kernel.link(&outer).is_some_and(|link| link.link.up), "the second container is wired all the same");
}

#[test]
fn an_agent_without_memory_touches_no_container_that_it_could_not_look_at() {
    for query_fails in
        [|query: &Query| matches!(query, Query::Inner(_)), |query: &Query| matches!(query, Query::FdbDump(_))]
    {
        let mut lab = Lab::converged();
        lab.network = engine(MINUTE);
        lab.want(demo());
        let mut failures = 3;
        let fails = |query: &Query| {
            let now = query_fails(query) && failures > 0;
            failures -= u32::from(now);
            now.then_some(FailureKind::Resources)
        };
        let mut kernel = Failing { kernel: &mut lab.kernel, reads: fails, ops: no_op_fails, count: 0 };
        for step in 0..100 {
            turn(&mut lab.network, &mut kernel, || at(step * 100), 1000);
        }
        assert_eq!(lab.kernel.log, [], "a correct kernel gets no operation");
        assert!(lab.network.in_sync());
    }
}

#[test]
fn an_endpoint_that_cannot_be_read_is_not_in_sync() {
    let mut lab = Lab::new();
    lab.kernel.add_container(TEST1);
    lab.want(demo());
    let mut reads = 0;
    for step in 0..2000 {
        let mut inner = 0;
        let fails = |query: &Query| {
            matches!(query, Query::Inner(_)).then(|| {
                inner += 1;
                FailureKind::Permission
            })
        };
        let mut kernel = Failing { kernel: &mut lab.kernel, reads: fails, ops: no_op_fails, count: 0 };
        turn(&mut lab.network, &mut kernel, || at(step * 100), 1000);
        reads += inner;
    }
    let summary = lab.network.summary();
    assert_eq!((summary.in_sync, summary.applied_revision, summary.blocked.len()), (false, 0, 1));
    assert!(reads < 40, "{reads} reads in 200 seconds");
}

#[test]
fn a_record_that_is_corrected_is_applied_at_once_whatever_failed_before() {
    let mut lab = Lab::converged();
    let mac = Mac::from_ip(ip("10.0.0.50"));
    let put = |vtep| Update { revision: 6, spec: None, endpoints: vec![(id("n2", "new"), Some(remote(50, vtep)))] };
    lab.want(put("192.168.205.66"));
    for step in 0..200 {
        let fails = |op: &Op| matches!(op, Op::PutFdb { mac: of, .. } if *of == mac).then_some(FailureKind::Refused);
        let mut kernel = Failing { kernel: &mut lab.kernel, reads: |_: &Query| None, ops: fails, count: 0 };
        turn(&mut lab.network, &mut kernel, || at(step * 1000), 1000);
    }
    assert!(!lab.network.in_sync());
    lab.now.set(Duration::from_secs(200));
    lab.want(put("192.168.205.11"));
    lab.settle();
}

#[test]
fn a_fight_ends_when_desired_moves() {
    let mut lab = Lab::converged();
    let (ifindex, mac) = (lab.index("vxlan1"), Mac::from_ip(ip("10.0.0.5")));
    for _ in 0..60 {
        lab.foreign(Op::PutFdb { ifindex, mac, dst: ip("192.0.2.9") });
        lab.rest();
    }
    assert!(!lab.network.in_sync());
    let endpoints = vec![(id("n2", "e5"), Some(remote(5, "192.168.205.99")))];
    lab.want(Update { revision: 7, spec: None, endpoints });
    lab.settle();
}

#[test]
fn a_row_that_is_lost_together_with_a_device_of_another_table_is_not_forgotten() {
    let mut lab = Lab::converged();
    let outer = lab.index(&outer_name(&id("n1", "test1")));
    lab.foreign(Op::DeleteBridgeRow { ifindex: outer, mac: Mac::from_ip(ip("10.0.0.2")) });
    let vxlan = lab.index("vxlan1");
    lab.foreign(Op::DeleteLink { place: Place::Overlay, ifindex: vxlan });
    lab.settle();
    assert_eq!(lab.kernel.link("br0").unwrap().rows.len(), 1);
    let mut drift = lab.drift();
    drift.sort();
    assert_eq!(drift, [(Kind::Link, DriftReason::Missing), (Kind::Fdb, DriftReason::Missing)]);
    lab.quiet();
}

#[test]
fn the_same_mac_on_two_segments_is_two_rows() {
    let mut lab = Lab::new();
    let mut two = spec();
    let mut second = two.segments[0].clone();
    second.vni = vni(300);
    second.gateways = vec!["10.1.0.1/24".parse().unwrap()];
    second.gateway_mac = Mac::from_ip(ip("10.1.0.1"));
    two.segments.push(second);
    let mac = Mac::from_ip(ip("10.0.0.5"));
    let endpoint = |number, address| {
        let (vni, ips, vtep) = (vni(number), vec![ip(address)], ip("192.168.205.11"));
        Some(EndpointSpec::Remote(RemoteEndpoint { vni, mac, ips, vtep }))
    };
    let endpoints = vec![(id("n2", "a"), endpoint(256, "10.0.0.5")), (id("n2", "b"), endpoint(300, "10.1.0.5"))];
    lab.want(Update { revision: 1, spec: Some(Some(Arc::new(two))), endpoints });
    lab.settle();
    lab.forget();
    let (first, second) = (lab.index("vxlan1"), lab.index("vxlan2"));
    lab.foreign(Op::DeleteFdb { ifindex: first, mac, dst: None });
    lab.foreign(Op::PutFdb { ifindex: second, mac, dst: ip("192.168.205.77") });
    lab.settle();
    assert_eq!(lab.drift(), [(Kind::Fdb, DriftReason::Missing), (Kind::Fdb, DriftReason::Changed)]);
    lab.quiet();
}

#[test]
fn a_change_of_ours_is_no_repair() {
    let mut lab = Lab::converged();
    let mut changed = spec();
    for (port, local) in [(4790, "192.168.205.10"), (4790, "192.168.205.99")] {
        changed.segments[0].tunnel = Some(Tunnel { port, local: ip(local), flood: false });
        lab.want(Update { revision: 6, spec: Some(Some(Arc::new(changed.clone()))), endpoints: Vec::new() });
        lab.settle();
        let mut repairs: BTreeMap<Kind, usize> = BTreeMap::new();
        for note in &lab.notes {
            if let Note::Ops { kind, cause: Cause::Repair, .. } = note {
                *repairs.entry(*kind).or_default() += 1;
            }
        }
        assert_eq!((repairs, lab.drift()), (BTreeMap::new(), Vec::new()));
        lab.quiet();
    }
}

#[test]
fn what_happened_before_the_first_look_is_history_even_when_events_were_lost_meanwhile() {
    let mut lab = Lab::converged();
    let ifindex = lab.index("vxlan1");
    lab.foreign(Op::PutFdb { ifindex, mac: Mac::from_ip(ip("10.0.7.7")), dst: ip("192.168.205.11") });
    lab.kernel.events_dropped();
    lab.network = engine(MINUTE);
    lab.want(demo());
    match lab.network.next(at(0)) {
        Effect::Read(query) => {
            let answer = lab.kernel.read(&query);
            lab.network.answered(answer, at(0));
        }
        effect => panic!("{effect:?}"),
    }
    lab.network.event(Event::Overrun, at(0));
    lab.settle();
    assert_eq!(lab.drift(), []);
}

#[test]
fn a_vxlan_device_that_was_renamed_while_nobody_looked_costs_no_container_its_bridge() {
    let mut lab = Lab::converged();
    let change = LinkChange { name: Some("vxlan7".into()), ..LinkChange::default() };
    let ifindex = lab.index("vxlan1");
    lab.foreign(Op::SetLink { place: Place::Overlay, ifindex, change });
    lab.kernel.events_dropped();
    lab.network = engine(MINUTE);
    lab.want(demo());
    lab.forget();
    lab.settle();
    assert_eq!(lab.kernel.log.len(), 1, "{:?}", lab.kernel.log);
    assert!(lab.kernel.link("vxlan1").is_some());
}

#[test]
fn a_namespace_whose_file_showed_before_its_mount_is_found_soon() {
    let mut lab = Lab::new();
    lab.want(demo());
    lab.settle();
    // The mount itself makes no event.
    lab.kernel.add_container(TEST1);
    lab.kernel.events_dropped();
    lab.now.set(Duration::from_millis(5));
    lab.settle();
    assert!(lab.kernel.link(&outer_name(&id("n1", "test1"))).is_some());
}

#[test]
fn an_address_that_the_kernel_keeps_no_number_for_goes_when_the_endpoint_leaves_it() {
    let mut lab = Lab::converged();
    for link in lab.kernel.containers.values_mut().flat_map(|ns| ns.links.values_mut()) {
        link.addresses.values_mut().for_each(|ours| *ours = false);
    }
    lab.network.resync("test", at(0));
    lab.settle();
    let EndpointSpec::Local(mut moved) = local() else { unreachable!() };
    moved.addresses = vec!["10.0.0.60/24".parse().unwrap(), "fd00::2/64".parse().unwrap()];
    let endpoints = vec![(id("n1", "test1"), Some(EndpointSpec::Local(moved)))];
    lab.want(Update { revision: 9, spec: None, endpoints });
    lab.settle();
    let eth0 = lab.kernel.containers.values().flat_map(|ns| ns.links.values()).next().unwrap();
    let addresses: Vec<String> = eth0.addresses.keys().map(ToString::to_string).collect();
    assert_eq!(addresses, ["10.0.0.60/24", "fd00::2/64"]);
}

#[test]
fn a_resync_that_takes_longer_than_its_period_still_leads_to_repairs() {
    let mut lab = Lab::converged();
    lab.network = engine(Duration::from_millis(500));
    lab.want(demo());
    lab.settle();
    lab.forget();
    let (ifindex, mac) = (lab.index("vxlan1"), Mac::from_ip(ip("10.0.0.5")));
    lab.foreign(Op::DeleteFdb { ifindex, mac, dst: None });
    lab.kernel.events_dropped();
    let clock = Cell::new(600);
    let slow = |_: &Query| {
        clock.set(clock.get() + 100);
        None
    };
    let mut kernel = Failing { kernel: &mut lab.kernel, reads: slow, ops: no_op_fails, count: 0 };
    turn(&mut lab.network, &mut kernel, || at(clock.get()), 500);
    assert_eq!(lab.kernel.log, [Op::PutFdb { ifindex, mac, dst: ip("192.168.205.11") }]);
}

#[test]
fn ten_thousand_endpoints_that_change_their_vtep_at_once_are_one_pass() {
    let mut lab = Lab::new();
    let endpoints = |vtep: &str| (100..10_100).map(|n| (id("n2", &format!("e{n}")), Some(remote(n, vtep)))).collect();
    lab.want(Update { revision: 1, spec: Some(Some(Arc::new(spec()))), endpoints: endpoints("192.168.205.11") });
    lab.settle();
    lab.forget();
    lab.want(Update { revision: 2, spec: None, endpoints: endpoints("192.168.205.12") });
    lab.settle();
    assert_eq!(lab.kernel.log.len(), 10_000, "one replace for each row, and nothing for its neighbours");
}
