//! Situations of local endpoints that share a namespace, or move to another one.

use std::time::Duration;

use vtepd::{
    desired::{EndpointSpec, Update},
    engine::{Op, outer_name, turn},
    model::{EndpointId, Mac},
};

use crate::lab::{Lab, TEST1, id, ip, local};

const TEST2: &str = "/run/netns/test2";

/// An endpoint of this node.
fn endpoint(last: u8, netns: &str, ifname: &str) -> Option<EndpointSpec> {
    let EndpointSpec::Local(mut spec) = local() else { unreachable!() };
    spec.mac = Mac::from_ip(ip(&format!("10.0.0.{last}")));
    spec.addresses = vec![format!("10.0.0.{last}/24").parse().unwrap()];
    (spec.netns, spec.ifname) = (netns.into(), ifname.into());
    Some(EndpointSpec::Local(spec))
}

fn change(revision: i64, endpoints: Vec<(EndpointId, Option<EndpointSpec>)>) -> Update {
    Update { revision, spec: None, endpoints }
}

/// The interfaces in a namespace: name, index, last byte of the MAC address.
fn interfaces(lab: &Lab, netns: &str) -> Vec<(String, u32, u8)> {
    let links = lab.kernel.containers[&netns.into()].links.values();
    links.map(|l| (l.link.name.clone(), l.link.ifindex, l.link.mac.octets()[5])).collect()
}

#[test]
fn an_endpoint_that_takes_the_name_of_another_in_its_namespace_takes_nothing_else_of_it() {
    let mut lab = Lab::converged();
    let (_, first, _) = interfaces(&lab, TEST1)[0];
    let endpoints = vec![(id("n1", "a"), endpoint(40, TEST1, "eth0")), (id("n1", "test1"), endpoint(2, TEST1, "eth1"))];
    lab.want(change(6, endpoints));
    lab.rest();
    lab.now.set(Duration::from_secs(1));
    lab.settle();
    let now = interfaces(&lab, TEST1);
    assert_eq!(now, [("eth1".to_owned(), first, 2), ("eth0".to_owned(), now[1].1, 40)]);
    assert!(!lab.kernel.log.iter().any(|op| matches!(op, Op::DeleteLink { .. })), "{:#?}", lab.kernel.log);
    assert_eq!(lab.drift(), []);
    lab.quiet();
}

#[test]
fn an_interface_of_another_engine_of_ours_in_the_namespace_is_left_alone() {
    let mut lab = Lab::converged();
    // As the gateway bridge's: of our group, and its other end is not in sight from here.
    let mut other = Lab::new();
    other.kernel.add_container(TEST1);
    other.want(crate::lab::demo());
    other.settle();
    let mut theirs = other.kernel.containers[&TEST1.into()].links.values().next().unwrap().clone();
    (theirs.link.name, theirs.link.ifindex) = ("eth1".into(), 77);
    theirs.link.mac = Mac::from_ip(ip("172.18.0.2"));
    lab.kernel.containers.get_mut(&TEST1.into()).unwrap().links.insert(77, theirs.clone());
    lab.want(change(6, vec![(id("n1", "a"), endpoint(40, TEST1, "eth1"))]));
    lab.rest();
    assert_eq!(lab.kernel.containers[&TEST1.into()].links.get(&77), Some(&theirs));
    assert_eq!(lab.network.summary().blocked.iter().map(|b| b.reason).collect::<Vec<_>>(), ["exists"]);
    lab.kernel.containers.get_mut(&TEST1.into()).unwrap().links.remove(&77);
    lab.now.set(Duration::from_secs(1));
    lab.settle();
    assert_eq!(lab.drift(), []);
}

#[test]
fn what_an_endpoint_loses_with_its_namespace_while_it_moves_to_another_is_no_drift() {
    // Whatever was read of it when the word comes.
    for rounds in 0..20 {
        let mut lab = Lab::converged();
        lab.kernel.add_container(TEST2);
        lab.settle();
        lab.kernel.remove_container(TEST1);
        lab.network.resync("test", lab.clock()());
        let clock = lab.clock();
        turn(&mut lab.network, &mut lab.kernel, clock, rounds);
        lab.want(change(6, vec![(id("n1", "test1"), endpoint(2, TEST2, "eth0"))]));
        lab.settle();
        assert_eq!(lab.drift(), [], "after {rounds} rounds");
        assert!(lab.kernel.link(&outer_name(&id("n1", "test1"))).is_some());
        lab.quiet();
    }
}

#[test]
fn endpoints_of_a_namespace_that_exchange_their_names_are_renamed_and_nothing_else() {
    for cycle in [["eth1", "eth0", "eth2"], ["eth1", "eth2", "eth0"], ["eth3", "eth0", "eth1"]] {
        let mut lab = Lab::converged();
        let names = ["test1", "y", "z"];
        let all = |ifnames: [&str; 3]| {
            let ends = names.iter().zip([2, 40, 41]).zip(ifnames);
            ends.map(|((name, last), ifname)| (id("n1", name), endpoint(last, TEST1, ifname))).collect()
        };
        lab.want(change(6, all(["eth0", "eth1", "eth2"])));
        lab.settle();
        let before = interfaces(&lab, TEST1);
        lab.forget();
        lab.want(change(7, all(cycle)));
        lab.rest();
        lab.now.set(Duration::from_secs(300));
        lab.settle();
        let after = interfaces(&lab, TEST1);
        assert_eq!(after.iter().map(|(name, ..)| name.as_str()).collect::<Vec<_>>(), cycle);
        let rest = |all: &[(String, u32, u8)]| all.iter().map(|(_, at, mac)| (*at, *mac)).collect::<Vec<_>>();
        assert_eq!(rest(&after), rest(&before));
        assert!(lab.kernel.log.iter().all(|op| matches!(op, Op::SetLink { .. })), "{:#?}", lab.kernel.log);
        assert_eq!(lab.drift(), []);
        lab.quiet();
    }
}
