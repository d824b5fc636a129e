//! Tables that are too large to be dumped, floods of hints, and removals that take long.

use std::time::Duration;

use vtepd::{
    desired::{EndpointSpec, Update},
    engine::{Answer, DriftReason, Event, Failure, Kernel, Kind, Network, Op, Query, Time, Turn, turn},
    model::Mac,
};

use crate::{
    lab::{Lab, TEST1, demo, engine_of, id, ip, local, remote},
    sim_kernel::SimKernel,
};

const MINUTE: Duration = Duration::from_secs(60);

/// An engine without memory, to which more than two rows are too many to be dumped.
fn engine() -> Network {
    engine_of(MINUTE, 2)
}

/// A kernel that remembers what was read, and can withhold events.
struct Watched<'a> {
    kernel: &'a mut SimKernel,
    queries: Vec<Query>,
    deaf: bool,
}

impl Kernel for Watched<'_> {
    fn read(&mut self, query: &Query) -> Result<Answer, Failure> {
        self.queries.push(query.clone());
        self.kernel.read(query)
    }

    fn apply(&mut self, ops: &[Op]) -> Vec<Result<(), Failure>> {
        self.kernel.apply(ops)
    }

    fn events(&mut self) -> Vec<Event> {
        let events = self.kernel.events();
        if self.deaf { Vec::new() } else { events }
    }
}

/// Runs for so long, and gives what was read.
fn run(lab: &mut Lab, time: Duration, deaf: bool) -> Vec<Query> {
    let start = lab.now.get();
    let mut kernel = Watched { kernel: &mut lab.kernel, queries: Vec::new(), deaf };
    loop {
        let now = Time::from_origin(lab.now.get());
        match turn(&mut lab.network, &mut kernel, || now, 1000) {
            Turn::Rest(until) => lab.now.set(lab.now.get() + until.since(now).max(Duration::from_millis(1))),
            done => panic!("{done:?}"),
        }
        lab.notes.extend(lab.network.take_notes());
        if lab.now.get() >= start + time {
            return kernel.queries;
        }
    }
}

fn vxlan_dumps(lab: &Lab, queries: &[Query]) -> usize {
    let vxlan1 = lab.index("vxlan1");
    queries.iter().filter(|query| matches!(query, Query::FdbDump(ifindex) if *ifindex == vxlan1)).count()
}

#[test]
fn an_agent_without_memory_looks_up_the_rows_of_a_large_table_and_finds_what_is_missing_changed_and_unexpected() {
    let mut lab = Lab::converged();
    let (ifindex, foreign) = (lab.index("vxlan1"), Mac::from_ip(ip("10.9.9.9")));
    lab.network = engine();
    lab.want(demo());
    let queries = run(&mut lab, Duration::from_secs(1), false);
    assert_eq!(vxlan_dumps(&lab, &queries), 0);
    assert_eq!(lab.kernel.log, [], "a correct kernel gets no operation");
    assert!(lab.network.in_sync());
    let fdb = lab.kernel.link("vxlan1").unwrap().fdb.clone();
    lab.foreign(Op::PutFdb { ifindex, mac: foreign, dst: ip("192.168.205.12") });
    lab.foreign(Op::PutFdb { ifindex, mac: *fdb.keys().next().unwrap(), dst: ip("192.168.205.99") });
    lab.foreign(Op::DeleteFdb { ifindex, mac: *fdb.keys().last().unwrap(), dst: None });
    lab.network = engine();
    lab.want(demo());
    lab.kernel.events();
    lab.settle();
    assert_eq!(lab.kernel.link("vxlan1").unwrap().fdb, fdb);
    assert_eq!(lab.kernel.log.len(), 3);
    assert_eq!(lab.drift(), [], "what it was like before is history");
}

#[test]
fn what_no_event_told_of_a_large_table_is_found_by_periodic_walks() {
    let mut lab = Lab::new();
    lab.network = engine();
    lab.kernel.add_container(TEST1);
    lab.want(demo());
    lab.settle();
    lab.forget();
    let (ifindex, foreign) = (lab.index("vxlan1"), Mac::from_ip(ip("10.9.9.9")));
    let before = lab.kernel.link("vxlan1").unwrap().clone();
    lab.foreign(Op::PutFdb { ifindex, mac: foreign, dst: ip("192.168.205.12") });
    lab.foreign(Op::PutFdb { ifindex, mac: *before.fdb.keys().next().unwrap(), dst: ip("192.168.205.99") });
    lab.foreign(Op::DeleteNeighbour { ifindex, ip: *before.neighbours.keys().next().unwrap() });
    lab.foreign(Op::PutNeighbour { ifindex, ip: ip("10.0.0.99"), mac: foreign });
    let queries = run(&mut lab, 3 * MINUTE, true);
    assert_eq!(vxlan_dumps(&lab, &queries), 0);
    let after = lab.kernel.link("vxlan1").unwrap();
    assert_eq!((&after.fdb, &after.neighbours), (&before.fdb, &before.neighbours));
    let mut drift = lab.drift();
    drift.sort();
    let (fdb, neighbour) = (Kind::Fdb, Kind::Neighbour);
    let expected = [
        (fdb, DriftReason::Changed),
        (fdb, DriftReason::Unexpected),
        (neighbour, DriftReason::Missing),
        (neighbour, DriftReason::Unexpected),
    ];
    assert_eq!(drift, expected);
}

/// A container that changes its own address without end: each look at the events shows one more change.
struct Stormy<'a> {
    kernel: &'a mut SimKernel,
    nsid: i32,
    reads: usize,
}

impl Kernel for Stormy<'_> {
    fn read(&mut self, query: &Query) -> Result<Answer, Failure> {
        self.reads += 1;
        self.kernel.read(query)
    }

    fn apply(&mut self, ops: &[Op]) -> Vec<Result<(), Failure>> {
        self.kernel.apply(ops)
    }

    fn events(&mut self) -> Vec<Event> {
        let mut events = self.kernel.events();
        events.push(Event::Inner { nsid: self.nsid, ifindex: None });
        events
    }
}

#[test]
fn hints_without_end_from_one_container_hold_up_neither_changes_nor_repairs() {
    let mut lab = Lab::converged();
    let nsid = i32::try_from(lab.kernel.containers.values().next().unwrap().inode).unwrap();
    let ifindex = lab.index("vxlan1");
    let row = *lab.kernel.link("vxlan1").unwrap().fdb.keys().next().unwrap();
    lab.foreign(Op::DeleteFdb { ifindex, mac: row, dst: None });
    lab.want(Update {
        revision: 6,
        spec: None,
        endpoints: vec![(id("n2", "e40"), Some(remote(40, "192.168.205.12")))],
    });
    let clock = lab.clock();
    let mut kernel = Stormy { kernel: &mut lab.kernel, nsid, reads: 0 };
    turn(&mut lab.network, &mut kernel, clock, 40);
    assert!(kernel.reads > 10, "the container is looked at all the while");
    let fdb = &lab.kernel.link("vxlan1").unwrap().fdb;
    assert!(fdb.contains_key(&row), "the repair was made");
    assert!(fdb.contains_key(&Mac::from_ip(ip("10.0.0.40"))), "and the change");
    lab.notes.extend(lab.network.take_notes());
    assert_eq!(lab.drift(), [(Kind::Fdb, DriftReason::Missing)]);
    lab.settle();
    lab.quiet();
}

#[test]
fn rows_to_other_hosts_go_between_the_removals_of_endpoints_that_stop() {
    let mut lab = Lab::converged();
    let endpoints: Vec<_> = (100..150_u8)
        .map(|n| {
            let path = format!("/run/netns/c{n}");
            lab.kernel.add_container(&path);
            let EndpointSpec::Local(mut endpoint) = local() else { unreachable!() };
            endpoint.netns = path.as_str().into();
            endpoint.mac = Mac::from_ip(ip(&format!("10.0.0.{n}")));
            endpoint.addresses = vec![format!("10.0.0.{n}/24").parse().unwrap()];
            (id("n1", &format!("c{n}")), Some(EndpointSpec::Local(endpoint)))
        })
        .collect();
    lab.want(Update { revision: 6, spec: None, endpoints: endpoints.clone() });
    lab.settle();
    lab.forget();
    let gone = endpoints.into_iter().map(|(id, _)| (id, None)).collect();
    lab.want(Update { revision: 7, spec: None, endpoints: gone });
    let clock = lab.clock();
    // Until the first removals are under way.
    while !lab.kernel.log.iter().any(|op| matches!(op, Op::DeleteLink { .. })) {
        turn(&mut lab.network, &mut lab.kernel, &clock, 1);
    }
    lab.want(Update {
        revision: 8,
        spec: None,
        endpoints: vec![(id("n2", "e40"), Some(remote(40, "192.168.205.12")))],
    });
    lab.settle();
    let removals = |op: &&Op| matches!(op, Op::DeleteLink { .. });
    let row = lab.kernel.log.iter().position(|op| matches!(op, Op::PutFdb { .. })).unwrap();
    let before = lab.kernel.log[..row].iter().filter(removals).count();
    let after = lab.kernel.log[row..].iter().filter(removals).count();
    // As many as are sent together.
    assert!(before <= 24 && after >= 26, "{before} removals went before the row, {after} after it");
    lab.quiet();
}

#[test]
fn of_what_is_taken_down_no_row_is_read() {
    let mut lab = Lab::converged();
    lab.network = engine_of(MINUTE, usize::MAX);
    lab.want(Update { revision: 6, spec: Some(None), endpoints: Vec::new() });
    let clock = lab.clock();
    let mut kernel = Watched { kernel: &mut lab.kernel, queries: Vec::new(), deaf: false };
    assert_eq!(turn(&mut lab.network, &mut kernel, clock, 1000), Turn::Gone);
    let rows = |query: &&Query| matches!(query, Query::FdbDump(_) | Query::NeighbourDump(_) | Query::FdbRows(_));
    assert_eq!(kernel.queries.iter().find(rows), None);
    assert!(lab.kernel.overlay.is_none());
}

#[test]
fn thousands_of_rows_that_the_kernel_refuses_are_counted_named_in_part_and_tried_again() {
    let mut lab = Lab::converged();
    let remotes = (1..=20_u8).flat_map(|a| (1..=250_u8).map(move |b| (a, b)));
    let endpoints = remotes.map(|(a, b)| {
        let EndpointSpec::Remote(mut endpoint) = remote(40, "192.168.205.12") else { unreachable!() };
        endpoint.ips = vec![ip(&format!("10.1.{a}.{b}"))];
        endpoint.mac = Mac::from_ip(endpoint.ips[0]);
        (id("n2", &format!("r{a}.{b}")), Some(EndpointSpec::Remote(endpoint)))
    });
    lab.want(Update { revision: 6, spec: None, endpoints: endpoints.collect() });
    let refuse = |op: &Op| matches!(op, Op::PutFdb { .. }).then_some(vtepd::engine::FailureKind::Refused);
    let clock = lab.clock();
    let mut kernel = crate::lab::Failing { kernel: &mut lab.kernel, reads: |_: &Query| None, ops: refuse, count: 0 };
    while turn(&mut lab.network, &mut kernel, &clock, 100) == Turn::More {}
    let summary = lab.network.summary();
    assert_eq!(summary.blocked_counts[&(Kind::Fdb, "refused")], 5000);
    assert_eq!(summary.blocked.len(), vtepd::engine::Summary::MOST_BLOCKED);
    lab.now.set(MINUTE);
    lab.settle();
    assert_eq!(lab.network.summary().blocked_counts, std::collections::BTreeMap::new());
    assert_eq!(lab.kernel.link("vxlan1").unwrap().fdb.len(), 5010);
}
