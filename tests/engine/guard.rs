//! The guards of endpoints' ports, and chains in general.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

use vtepd::{
    desired::{EndpointSpec, NetworkSpec, Update},
    engine::{
        Config, DriftReason, FailureKind, Home, Kind, LinkChange, Network, Note, Op, Place, Time, Turn, outer_name,
        turn,
    },
    model::{
        guard_table,
        nft::{Chain, ChainId, Change, Family, Rule, Ruleset, TableId},
    },
};

use crate::lab::{Failing, Lab, TEST1, demo, engine, id, ip, local, spec};

const MISSING: DriftReason = DriftReason::Missing;
const CHANGED: DriftReason = DriftReason::Changed;
const UNEXPECTED: DriftReason = DriftReason::Unexpected;

fn outer() -> String {
    outer_name(&id("n1", "test1"))
}

fn put(name: &str, chain: Chain) -> Change {
    Change::PutChain { table: guard_table(), name: name.into(), chain }
}

fn delete(name: &str) -> Change {
    Change::DeleteChain { table: guard_table(), name: name.into() }
}

fn with_spec(change: impl FnOnce(&mut NetworkSpec)) -> Update {
    let mut spec = spec();
    change(&mut spec);
    Update { revision: 8, spec: Some(Some(Arc::new(spec))), endpoints: Vec::new() }
}

/// A second endpoint of this node.
fn second() -> (String, EndpointSpec) {
    let EndpointSpec::Local(mut second) = local() else { panic!("the lab's endpoint is local") };
    second.mac = vtepd::model::Mac::from_ip(ip("10.0.0.99"));
    second.addresses = vec!["10.0.0.99/24".parse().unwrap()];
    second.ifname = "eth1".into();
    (outer_name(&id("n1", "test2")), EndpointSpec::Local(second))
}

impl Lab {
    fn table(&self, table: &TableId) -> Option<Ruleset> {
        self.kernel.overlay.as_ref()?.tables.get(table).cloned()
    }

    fn guard(&self) -> Chain {
        self.table(&guard_table()).and_then(|mut table| table.chains.remove(&outer())).expect("a guard")
    }

    fn port(&self) -> vtepd::engine::Link {
        self.kernel.link(&outer()).expect("a port").link.clone()
    }

    /// Turns with a kernel that refuses to change tables.
    fn rest_without_rules(&mut self) -> Turn {
        let now = Time::from_origin(self.now.get());
        let ops = |op: &Op| matches!(op, Op::ChangeRules(_)).then_some(FailureKind::Refused);
        let mut failing = Failing { kernel: &mut self.kernel, reads: |_: &_| None, ops, count: 0 };
        loop {
            match turn(&mut self.network, &mut failing, || now, 100) {
                Turn::More => {}
                done => {
                    self.notes.extend(self.network.take_notes());
                    return done;
                }
            }
        }
    }
}

#[test]
fn a_port_comes_up_locked_and_only_once_its_guard_stands() {
    let mut lab = Lab::new();
    lab.kernel.add_container(TEST1);
    lab.want(demo());
    lab.settle();
    let guarded = lab.kernel.log.iter().position(|op| matches!(op, Op::ChangeRules(_))).unwrap();
    let up = |op: &Op| matches!(op, Op::SetLink { place: Place::Overlay, ifindex, change } if *ifindex == lab.index(&outer()) && change.up == Some(true));
    let came_up = lab.kernel.log.iter().position(up).unwrap();
    assert!(guarded < came_up, "{:#?}", lab.kernel.log);
    assert_eq!(lab.port().port.unwrap().locked, Some(true));
    assert_eq!(lab.kernel.link("vxlan1").unwrap().link.port.unwrap().locked, Some(false));
    assert_eq!(lab.kernel.log.iter().filter(|op| matches!(op, Op::ChangeRules(_))).count(), 1);
    lab.quiet();
}

#[test]
fn whatever_becomes_of_a_guard_it_is_put_back_and_counted_once() {
    let mut lab = Lab::converged();
    let before = lab.table(&guard_table());
    let open = Chain { rules: vec![Rule::new().accept()], ..lab.guard() };
    let elsewhere = Chain { hook: None, ..lab.guard() };
    let offloaded = Chain { foreign: vec!["offload".into()], ..lab.guard() };
    let table = lab.table(&guard_table()).unwrap();
    let dormant = Ruleset { foreign: vec!["flags 1".into()], ..table };
    for (changes, reason) in [
        (vec![Change::DeleteTable(guard_table())], MISSING),
        (vec![delete(&outer())], MISSING),
        (vec![put(&outer(), Chain { rules: Vec::new(), ..lab.guard() })], CHANGED),
        (vec![put(&outer(), open)], CHANGED),
        (vec![delete(&outer()), put(&outer(), elsewhere)], CHANGED),
        (vec![Change::ReplaceTable(Ruleset::new(guard_table()).with(outer(), offloaded))], CHANGED),
        (vec![Change::ReplaceTable(dormant)], CHANGED),
        (vec![put("stranger", Chain::default())], UNEXPECTED),
    ] {
        lab.expect_repair(Op::ChangeRules(changes), &[(Kind::Nat, reason)]);
        assert_eq!(lab.table(&guard_table()), before);
    }
    let ifindex = lab.index(&outer());
    let unlock = vtepd::engine::Port { locked: Some(false), ..lab.port().port.unwrap() };
    let change = LinkChange { port: Some(unlock), ..LinkChange::default() };
    lab.expect_repair(Op::SetLink { place: Place::Overlay, ifindex, change }, &[(Kind::Link, CHANGED)]);
}

#[test]
fn a_deleted_table_is_one_drift_however_many_guards_it_had() {
    let mut lab = Lab::converged();
    let (name, second) = second();
    lab.want(Update { revision: 6, spec: None, endpoints: vec![(id("n1", "test2"), Some(second))] });
    lab.settle();
    lab.forget();
    lab.expect_repair(Op::ChangeRules(vec![Change::DeleteTable(guard_table())]), &[(Kind::Nat, MISSING)]);
    assert!(lab.table(&guard_table()).unwrap().chains.contains_key(&name));
}

#[test]
fn a_change_of_one_endpoint_touches_its_own_guard_alone() {
    let mut lab = Lab::converged();
    let (name, second) = second();
    let update = |spec: EndpointSpec| vec![(id("n1", "test2"), Some(spec))];
    lab.want(Update { revision: 6, spec: None, endpoints: update(second.clone()) });
    lab.settle();
    lab.forget();
    let EndpointSpec::Local(mut changed) = second else { panic!("it is local") };
    changed.addresses.push("fd00::99/64".parse().unwrap());
    lab.want(Update { revision: 7, spec: None, endpoints: update(EndpointSpec::Local(changed)) });
    lab.settle();
    let rules: Vec<&Op> = lab.kernel.log.iter().filter(|op| matches!(op, Op::ChangeRules(_))).collect();
    assert!(
        matches!(&rules[..], [Op::ChangeRules(changes)] if matches!(&changes[..], [Change::PutChain { name: of, .. }] if *of == name)),
        "{rules:#?}"
    );
    lab.forget();
    lab.want(Update { revision: 8, spec: None, endpoints: vec![(id("n1", "test2"), None)] });
    lab.settle();
    assert_eq!(lab.kernel.log.last(), Some(&Op::ChangeRules(vec![delete(&name)])), "after its port");
    assert_eq!(lab.drift(), []);
    lab.quiet();
}

#[test]
fn where_the_kernel_cannot_guard_a_port_it_stays_down_and_says_so() {
    let mut lab = Lab::new();
    lab.kernel.add_container(TEST1);
    lab.want(demo());
    lab.rest_without_rules();
    assert!(!lab.port().up, "never half");
    assert!(!lab.network.in_sync());
    let blocked = lab.network.summary().blocked;
    assert_eq!((blocked.len(), blocked[0].kind, blocked[0].reason), (1, Kind::Nat, "refused"));
    assert_eq!(lab.kernel.link("vxlan1").unwrap().fdb.len(), 10, "it holds up nothing else");
    lab.now.set(Duration::from_secs(2));
    lab.settle();
    assert!(lab.port().up);
    lab.quiet();
}

#[test]
fn a_port_whose_guard_was_taken_away_for_good_goes_down() {
    let mut lab = Lab::converged();
    lab.foreign(Op::ChangeRules(vec![Change::DeleteTable(guard_table())]));
    lab.rest_without_rules();
    assert!(!lab.port().up);
    assert_eq!(lab.drift(), [(Kind::Nat, MISSING)], "{:#?}", lab.notes);
    lab.now.set(Duration::from_secs(2));
    lab.settle();
    assert!(lab.port().up);
    assert_eq!(lab.repairs(), [Kind::Nat]);
    lab.quiet();
}

#[test]
fn a_guard_that_cannot_follow_its_endpoint_at_once_keeps_its_port_up() {
    let mut lab = Lab::converged();
    let EndpointSpec::Local(mut changed) = local() else { panic!("the lab's endpoint is local") };
    changed.addresses.push("10.0.1.2/24".parse().unwrap());
    let endpoints = vec![(id("n1", "test1"), Some(EndpointSpec::Local(changed)))];
    lab.want(Update { revision: 6, spec: None, endpoints });
    lab.rest_without_rules();
    assert!(lab.port().up, "what it lets in was the endpoint's own");
    assert_eq!(lab.network.summary().blocked.len(), 1);
}

#[test]
fn a_network_without_the_guard_has_neither_table_nor_lock_also_without_memory() {
    for memory in [true, false] {
        let mut lab = Lab::converged();
        if !memory {
            lab.network = engine(Duration::from_secs(60));
            lab.want(demo());
        }
        lab.want(with_spec(|spec| spec.spoof_guard = false));
        lab.settle();
        assert_eq!(lab.table(&guard_table()), None);
        assert_eq!((lab.port().up, lab.port().port.unwrap().locked), (true, Some(false)));
        assert_eq!(lab.kernel.log.len(), 2, "{:#?}", lab.kernel.log);
        lab.foreign(Op::ChangeRules(vec![Change::EnsureTable(guard_table()), put("stranger", Chain::default())]));
        lab.settle();
        assert_eq!(lab.drift(), [(Kind::Nat, UNEXPECTED)], "it is our table all the same");
        assert_eq!(lab.table(&guard_table()), None);
        lab.forget();
        lab.want(with_spec(|_| ()));
        lab.settle();
        assert_eq!((lab.port().up, lab.port().port.unwrap().locked), (true, Some(true)));
        lab.quiet();
    }
}

#[test]
fn a_guard_that_went_with_its_device_is_there_before_the_next_one_comes_up() {
    let mut lab = Lab::converged();
    // As kernels before 6.16 do, which tell nobody.
    lab.kernel.overlay.as_mut().unwrap().tables.get_mut(&guard_table()).unwrap().chains.clear();
    lab.foreign(Op::DeleteLink { place: Place::Overlay, ifindex: lab.index(&outer()) });
    lab.settle();
    assert_eq!(lab.drift(), [(Kind::Link, MISSING)], "it does not count singly");
    lab.guard();
    lab.quiet();
}

#[test]
fn tables_that_cannot_be_read_hold_up_nothing_but_their_chains_and_ports() {
    let mut lab = Lab::new();
    lab.kernel.add_container(TEST1);
    lab.want(demo());
    let reads = |query: &vtepd::engine::Query| {
        matches!(query, vtepd::engine::Query::Rules(_)).then_some(FailureKind::Permission)
    };
    let mut failing = Failing { kernel: &mut lab.kernel, reads, ops: |_: &_| None, count: 0 };
    while turn(&mut lab.network, &mut failing, Time::default, 100) == Turn::More {}
    assert!(failing.count < 100);
    assert_eq!(lab.kernel.link("vxlan1").unwrap().fdb.len(), 10);
    assert!(!lab.port().up);
    assert!(lab.network.summary().blocked.iter().any(|blocked| blocked.reason == "permission"));
    lab.now.set(Duration::from_secs(5));
    lab.settle();
    assert!(lab.port().up);
}

#[test]
fn a_fight_over_a_guard_takes_its_port_down_until_it_stands() {
    let mut lab = Lab::converged();
    for _ in 0..20 {
        let _ = lab.kernel.foreign(&Op::ChangeRules(vec![delete(&outer())]));
        lab.rest();
        lab.now.set(lab.now.get() + Duration::from_millis(20));
    }
    assert!(lab.notes.iter().any(|note| matches!(note, Note::Damped { .. })));
    assert!(!lab.port().up, "a port without its guard");
    lab.now.set(lab.now.get() + Duration::from_secs(61));
    lab.settle();
    assert!(lab.port().up);
}

/// An engine whose home has a table of its own beside the guards'.
fn with_table(table: &TableId) -> Network {
    Network::new(Config {
        name: "overlay-demo".parse().unwrap(),
        home: Home::Overlay("/run/netns/vtepd-overlay-demo".into()),
        group: 0x76,
        resync: Duration::from_secs(60),
        dump_at_most: Config::DUMP_AT_MOST,
        guards: guard_table(),
        tables: vec![table.clone()],
    })
}

#[test]
fn chains_of_the_network_itself_stand_in_their_own_table_and_others_tables_are_left_alone() {
    let table = TableId::new(Family::Inet, "vtepd-gw");
    let id = |name: &str| ChainId { table: table.clone(), name: name.into() };
    let chain = |ip: IpAddr| Chain { rules: vec![Rule::new().saddr(ip).drop()], ..Chain::default() };
    let mut lab = Lab::new();
    lab.network = with_table(&table);
    lab.kernel.add_container(TEST1);
    lab.want(demo());
    lab.settle();
    let others = Ruleset::new(TableId::new(Family::Inet, "firewalld")).with("mine", chain(ip("192.0.2.1")));
    lab.foreign(Op::ChangeRules(vec![Change::ReplaceTable(others.clone())]));
    let chains = BTreeMap::from([(id("a"), chain(ip("10.0.0.1"))), (id("b"), chain(ip("10.0.0.2")))]);
    lab.want(with_spec(|spec| spec.chains.clone_from(&chains)));
    lab.settle();
    assert_eq!(lab.table(&table).unwrap().chains.len(), 2);
    lab.forget();
    lab.expect_repair(Op::ChangeRules(vec![Change::DeleteTable(table.clone())]), &[(Kind::Nat, MISSING)]);

    let chains = BTreeMap::from([(id("b"), chain(ip("10.0.0.3")))]);
    lab.want(with_spec(|spec| spec.chains.clone_from(&chains)));
    lab.settle();
    let change = |change: Change| Op::ChangeRules(vec![change]);
    let put = Change::PutChain { table: table.clone(), name: "b".into(), chain: chain(ip("10.0.0.3")) };
    let delete = Change::DeleteChain { table: table.clone(), name: "a".into() };
    assert_eq!(lab.kernel.log, [change(put), change(delete)], "make before break");

    // Without memory, and with nothing desired of it any more.
    lab.forget();
    lab.network = with_table(&table);
    lab.want(demo());
    lab.settle();
    assert_eq!(lab.kernel.log, [change(Change::DeleteTable(table.clone()))]);
    assert_eq!(lab.table(&others.table), Some(others));
    lab.quiet();
}
