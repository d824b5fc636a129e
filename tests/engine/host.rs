//! Endpoints in the host's own namespace.

use std::time::Duration;

use vtepd::{
    desired::{EndpointSpec, Update},
    engine::{DriftReason, Event, Kind, LinkChange, NewLink, Op, Place, outer_name},
    model::{Mac, Netns},
};

use crate::{
    lab::{Lab, engine, id, ip, local},
    sim_kernel::SimLink,
};

const IFNAME: &str = "ov0";

/// The demo network with an endpoint of this node on the host.
fn update(revision: i64) -> Update {
    let EndpointSpec::Local(mut spec) = local() else { panic!() };
    spec.mac = Mac::from_ip(ip("10.0.0.40"));
    spec.addresses = vec!["10.0.0.40/24".parse().unwrap(), "fd00::40/64".parse().unwrap()];
    (spec.netns, spec.ifname) = (Netns::Host, IFNAME.into());
    Update { revision, spec: None, endpoints: vec![(id("n1", "host"), Some(EndpointSpec::Local(spec)))] }
}

fn on_host(lab: &Lab) -> Option<&SimLink> {
    lab.kernel.containers[&Netns::Host].links.values().find(|link| link.link.name == IFNAME)
}

fn wired() -> Lab {
    let mut lab = Lab::converged();
    lab.want(update(6));
    lab.settle();
    lab.forget();
    lab
}

/// Somebody else's link of that name on the host.
fn somebody_elses(lab: &mut Lab, group: u32) {
    let mut other = Lab::converged();
    let inner = vtepd::engine::InnerAt { netns: Netns::Host, ifname: IFNAME.into(), ifindex: None };
    let (mac, inner_mac) = (Mac::from_ip(ip("10.9.9.1")), Mac::from_ip(ip("10.9.9.2")));
    let new = NewLink::Veth { name: "theirs".into(), mac, mtu: 1500, group, inner, inner_mac };
    other.foreign(Op::AddLink(new));
    let theirs = other.kernel.containers.remove(&Netns::Host).unwrap();
    lab.kernel.containers.insert(Netns::Host, theirs);
}

#[test]
fn an_endpoint_on_the_host_is_wired_like_any_other_and_goes_with_its_record() {
    let mut lab = wired();
    let link = on_host(&lab).unwrap();
    assert_eq!((link.link.mac, link.link.mtu, link.link.up), (Mac::from_ip(ip("10.0.0.40")), 1450, true));
    assert_eq!(link.addresses.len(), 2);
    lab.quiet();
    lab.network = engine(Duration::from_secs(60));
    lab.want(crate::lab::demo());
    lab.want(update(6));
    lab.settle();
    assert_eq!(lab.kernel.log, [], "an agent without memory knows it");
    lab.want(Update { revision: 7, spec: None, endpoints: vec![(id("n1", "host"), None)] });
    lab.settle();
    assert!(on_host(&lab).is_none());
    assert_eq!(lab.drift(), []);
}

#[test]
fn what_is_broken_of_an_endpoint_on_the_host_is_repaired_and_counted_once() {
    let mut lab = wired();
    let place = Place::Inner(Netns::Host);
    for change in [
        LinkChange { up: Some(false), ..LinkChange::default() },
        LinkChange { name: Some("other".into()), ..LinkChange::default() },
        LinkChange { mtu: Some(1300), ..LinkChange::default() },
    ] {
        let ifindex = on_host(&lab).unwrap().link.ifindex;
        let op = Op::SetLink { place: place.clone(), ifindex, change };
        lab.expect_repair(op, &[(Kind::Link, DriftReason::Changed)]);
    }
    let ifindex = on_host(&lab).unwrap().link.ifindex;
    let op = Op::DeleteAddress { place: place.clone(), ifindex, net: "10.0.0.40/24".parse().unwrap() };
    lab.expect_repair(op, &[(Kind::Address, DriftReason::Missing)]);
    lab.expect_repair(Op::DeleteLink { place, ifindex }, &[(Kind::Link, DriftReason::Missing)]);
    let outer = lab.index(&outer_name(&id("n1", "host")));
    let op = Op::DeleteLink { place: Place::Overlay, ifindex: outer };
    lab.expect_repair(op, &[(Kind::Link, DriftReason::Missing)]);
}

#[test]
fn a_link_of_that_name_on_the_host_is_left_alone_whatever_its_group_and_the_endpoint_waits_until_it_goes() {
    for group in [0, 0x76] {
        let mut lab = Lab::converged();
        somebody_elses(&mut lab, group);
        let theirs = on_host(&lab).unwrap().clone();
        lab.want(update(6));
        lab.rest();
        assert_eq!(on_host(&lab), Some(&theirs));
        let blocked = lab.network.summary().blocked;
        assert_eq!(blocked.iter().map(|b| (b.kind, b.reason)).collect::<Vec<_>>(), [(Kind::Link, "exists")]);
        let ifindex = theirs.link.ifindex;
        lab.kernel.containers.get_mut(&Netns::Host).unwrap().links.remove(&ifindex);
        lab.now.set(lab.now.get() + Duration::from_secs(60));
        lab.settle();
        assert_eq!(on_host(&lab).unwrap().link.mac, Mac::from_ip(ip("10.0.0.40")));
        assert_eq!(lab.drift(), []);
    }
}

#[test]
fn what_happens_to_other_links_of_the_host_costs_no_look() {
    let mut lab = wired();
    let nsid = 1;
    let ifindex = on_host(&lab).unwrap().link.ifindex;
    let reads = |lab: &mut Lab, ifindex: Option<u32>| {
        lab.network.event(Event::Inner { nsid, ifindex }, vtepd::engine::Time::from_origin(lab.now.get()));
        !lab.network.in_sync()
    };
    assert!(!reads(&mut lab, Some(ifindex + 1)));
    assert!(reads(&mut lab, Some(ifindex)));
    lab.settle();
    assert!(reads(&mut lab, None), "what was not told may be anything");
    lab.settle();
    lab.quiet();
}
