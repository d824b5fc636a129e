//! Situations of a network with several subnets.

use std::{sync::Arc, time::Duration};

use ipnet::IpNet;
use vtepd::{
    desired::{EndpointSpec, NetworkSpec, Segment, Update},
    engine::{DriftReason, Family, Forwarding, InnerAt, Kind, LinkChange, NewLink, Op, Place, turn},
    model::{Mac, Route},
};

use super::{
    engine,
    lab::{Lab, TEST1, Unanswered, demo, id, ip, local, spec, vni},
};

const OTHER_V4: &str = "10.0.1.0/24";
const OTHER_V6: &str = "fd00:1::/64";

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn route(dst: &str, via: &str) -> Route {
    Route { dst: net(dst), via: Some(ip(via)) }
}

/// The demo's network with a second VNI of both families.
fn two_subnets() -> Update {
    let mut update = demo();
    let first = spec().segments.remove(0);
    let gateways = vec![net("10.0.1.1/24"), net("fd00:1::1/64")];
    let second = Segment { vni: vni(257), gateways, gateway_mac: Mac::from_ip(ip("10.0.1.1")), ..first.clone() };
    update.spec = Some(Some(Arc::new(NetworkSpec { segments: vec![first, second], ..spec() })));
    let EndpointSpec::Local(mut endpoint) = local() else { unreachable!() };
    endpoint.routes = vec![route(OTHER_V4, "10.0.0.1"), route(OTHER_V6, "fd00::1")];
    update.endpoints[0] = (id("n1", "test1"), Some(EndpointSpec::Local(endpoint)));
    update
}

fn routed() -> Lab {
    let mut lab = Lab::new();
    lab.kernel.add_container(TEST1);
    lab.want(two_subnets());
    lab.settle();
    assert_eq!(lab.drift(), []);
    lab.forget();
    lab
}

fn inside() -> Place {
    Place::Inner(TEST1.into())
}

/// The endpoint's interface.
fn eth0(lab: &Lab) -> u32 {
    let mut links = lab.kernel.containers.values().next().unwrap().links.values();
    links.find(|link| link.link.name == "eth0").unwrap().link.ifindex
}

fn routes(lab: &Lab) -> Vec<Route> {
    let link = &lab.kernel.containers.values().next().unwrap().links[&eth0(lab)];
    link.routes.iter().map(|(dst, (via, ..))| Route { dst: *dst, via: *via }).collect()
}

fn forwards(lab: &Lab) -> Vec<(Family, Forwarding)> {
    lab.kernel.overlay.iter().flat_map(|ns| &ns.forwarding).map(|(family, how)| (*family, *how)).collect()
}

fn has_all(lab: &mut Lab) {
    assert_eq!(routes(lab), [route(OTHER_V4, "10.0.0.1"), route(OTHER_V6, "fd00::1")]);
    assert_eq!(forwards(lab), [Family::V4, Family::V6].map(|family| (family, Forwarding::Everywhere)));
    lab.quiet();
}

#[test]
fn only_a_network_of_several_subnets_forwards_and_gives_its_endpoints_routes() {
    let mut lab = routed();
    has_all(&mut lab);
    // Without a link-local address no neighbour would be solicited for the packets of others.
    let link_local = |lab: &Lab, bridge| {
        let addresses = &lab.kernel.link(bridge).unwrap().addresses;
        addresses.keys().map(ToString::to_string).find(|net| net.starts_with("fe80:"))
    };
    assert_eq!(link_local(&lab, "br0").as_deref(), Some("fe80::42:aff:fe00:1/64"));
    assert_eq!(link_local(&lab, "br1").as_deref(), Some("fe80::42:aff:fe00:101/64"));
    let place = Place::Overlay;
    let op = Op::DeleteAddress { place, ifindex: lab.index("br1"), net: net("fe80::42:aff:fe00:101/64") };
    lab.expect_repair(op, &[(Kind::Address, DriftReason::Missing)]);

    let lab = Lab::converged();
    assert_eq!((routes(&lab), forwards(&lab), link_local(&lab, "br0")), (vec![], vec![], None));
}

#[test]
fn a_deleted_or_overwritten_route_is_back_and_counted_once() {
    let mut lab = routed();
    for route in [route(OTHER_V4, "10.0.0.1"), route(OTHER_V6, "fd00::1")] {
        let ifindex = eth0(&lab);
        lab.expect_repair(Op::DeleteRoute { place: inside(), ifindex, route }, &[(Kind::Route, DriftReason::Missing)]);
        for (via, ours) in [(Some(ip("10.0.0.9")), true), (route.via, false)] {
            lab.kernel.spoil_route(&inside(), ifindex, Route { via, ..route }, ours).unwrap();
            lab.settle();
            assert_eq!(lab.drift(), [(Kind::Route, DriftReason::Changed)]);
            assert_eq!(lab.repairs(), [Kind::Route]);
            has_all(&mut lab);
        }
    }
}

#[test]
fn of_routes_that_nobody_wants_only_those_with_our_number_go() {
    let mut lab = routed();
    let (ifindex, unwanted) = (eth0(&lab), route("10.7.0.0/16", "10.0.0.1"));
    let unexpected = [(Kind::Route, DriftReason::Unexpected)];
    lab.expect_repair(Op::AddRoute { place: inside(), ifindex, route: unwanted }, &unexpected);
    lab.kernel.spoil_route(&inside(), ifindex, unwanted, false).unwrap();
    lab.settle();
    assert_eq!((lab.drift(), lab.kernel.log.len()), (vec![], 0));
    assert!(routes(&lab).contains(&unwanted));
    lab.quiet();
}

#[test]
fn routes_that_go_with_their_link_or_its_address_come_back_without_counting() {
    let mut lab = routed();
    let ifindex = eth0(&lab);
    let down = LinkChange { up: Some(false), ..LinkChange::default() };
    let small = LinkChange { mtu: Some(1000), ..LinkChange::default() };
    let link = [(Kind::Link, DriftReason::Changed)];
    for change in [down, small] {
        lab.expect_repair(Op::SetLink { place: inside(), ifindex, change }, &link);
        has_all(&mut lab);
    }
    let address = [(Kind::Address, DriftReason::Missing)];
    for address_of_it in ["10.0.0.2/24", "fd00::2/64"] {
        let op = Op::DeleteAddress { place: inside(), ifindex, net: net(address_of_it) };
        lab.expect_repair(op, &address);
        has_all(&mut lab);
    }
    lab.expect_repair(Op::DeleteLink { place: inside(), ifindex }, &[(Kind::Link, DriftReason::Missing)]);
    has_all(&mut lab);
}

#[test]
fn an_address_of_ours_that_takes_routes_along_is_no_drift() {
    let mut lab = routed();
    let mut update = two_subnets();
    let (_, Some(EndpointSpec::Local(endpoint))) = &mut update.endpoints[0] else { unreachable!() };
    endpoint.addresses[0] = net("10.0.0.22/24");
    endpoint.mac = Mac::from_ip(ip("10.0.0.22"));
    lab.want(Update { spec: None, ..update });
    lab.settle();
    assert_eq!(lab.drift(), []);
    has_all(&mut lab);
}

#[test]
fn an_address_whose_removal_was_not_answered_takes_routes_along_and_that_is_no_drift() {
    let mut lab = routed();
    let mut update = two_subnets();
    let (_, Some(EndpointSpec::Local(endpoint))) = &mut update.endpoints[0] else { unreachable!() };
    endpoint.addresses[0] = net("10.0.0.22/24");
    lab.want(Update { spec: None, ..update });
    let mut lost = 0;
    let ops = |op: &Op| {
        let now = matches!(op, Op::DeleteAddress { .. }) && lost == 0;
        lost += usize::from(now);
        now
    };
    let clock = lab.clock();
    turn(&mut lab.network, &mut Unanswered { kernel: &mut lab.kernel, ops }, clock, 1000);
    lab.settle();
    assert_eq!((lost, lab.drift()), (1, vec![]));
    has_all(&mut lab);
}

#[test]
fn an_agent_without_memory_keeps_right_routes_and_puts_wrong_ones_right() {
    let mut lab = routed();
    lab.network = engine(Duration::from_secs(60));
    lab.want(two_subnets());
    lab.settle();
    assert_eq!((lab.kernel.log.len(), lab.drift()), (0, vec![]));

    let ifindex = eth0(&lab);
    let leftover = route("10.7.0.0/16", "10.0.0.1");
    lab.foreign(Op::AddRoute { place: inside(), ifindex, route: leftover });
    lab.kernel.spoil_route(&inside(), ifindex, route(OTHER_V4, "10.0.0.9"), false).unwrap();
    lab.kernel.set_forwarding(Family::V6, None).unwrap();
    lab.kernel.events_dropped();
    lab.network = engine(Duration::from_secs(60));
    lab.want(two_subnets());
    lab.settle();
    let expected = [
        Op::SetForwarding { family: Family::V6, on: true },
        Op::DeleteRoute { place: inside(), ifindex, route: leftover },
        Op::ReplaceRoute { place: inside(), ifindex, route: route(OTHER_V4, "10.0.0.1") },
    ];
    assert_eq!(lab.kernel.log, expected);
    assert_eq!(lab.drift(), [], "what happened before the first look is history");
    has_all(&mut lab);
}

#[test]
fn a_destination_that_another_link_leads_to_is_left_to_it_and_blocks_that_route_alone() {
    let mut lab = Lab::new();
    lab.kernel.add_container(TEST1);
    let name = "other".to_owned();
    let inner = InnerAt { netns: TEST1.into(), ifname: "eth9".into(), ifindex: None };
    lab.kernel.foreign(&Op::CreateNetns).unwrap();
    let (mac, inner_mac) = (Mac::from_ip(ip("10.3.3.3")), Mac::from_ip(ip("10.3.3.4")));
    lab.foreign(Op::AddLink(NewLink::Veth { name, mac, mtu: 1500, group: 0, inner, inner_mac }));
    let ifindex = *lab.kernel.containers.values().next().unwrap().links.keys().next().unwrap();
    let up = LinkChange { up: Some(true), ..LinkChange::default() };
    lab.foreign(Op::SetLink { place: inside(), ifindex, change: up });
    lab.foreign(Op::AddAddress { place: inside(), ifindex, net: net("10.0.1.77/24") });

    lab.want(two_subnets());
    lab.rest();
    let summary = lab.network.summary();
    let blocked: Vec<_> = summary.blocked.iter().map(|blocked| (blocked.kind, blocked.reason)).collect();
    assert_eq!(blocked, [(Kind::Route, "exists")]);
    assert_eq!((routes(&lab), lab.drift()), (vec![route(OTHER_V6, "fd00::1")], vec![]));

    lab.foreign(Op::DeleteAddress { place: inside(), ifindex, net: net("10.0.1.77/24") });
    lab.now.set(lab.now.get() + Duration::from_secs(61));
    lab.settle();
    assert_eq!(lab.network.summary().blocked, []);
    has_all(&mut lab);
}

#[test]
fn forwarding_that_somebody_turned_off_or_on_is_set_back_and_counted() {
    let mut lab = routed();
    for (to, reason) in [(None, DriftReason::Missing), (Some(Forwarding::Partly), DriftReason::Changed)] {
        lab.kernel.set_forwarding(Family::V4, to).unwrap();
        lab.settle();
        assert_eq!(lab.drift(), [(Kind::Route, reason)]);
        assert_eq!(lab.repairs(), [Kind::Route]);
        has_all(&mut lab);
    }
    let mut lab = Lab::converged();
    lab.kernel.set_forwarding(Family::V6, Some(Forwarding::Everywhere)).unwrap();
    lab.settle();
    assert_eq!(lab.drift(), [(Kind::Route, DriftReason::Unexpected)]);
    assert_eq!(forwards(&lab), []);
    lab.quiet();
}

#[test]
fn a_network_that_is_left_with_one_subnet_routes_no_more() {
    let mut lab = routed();
    lab.want(demo());
    lab.settle();
    assert_eq!((routes(&lab), forwards(&lab), lab.drift()), (vec![], vec![], vec![]));
    assert_eq!(lab.kernel.link("br0").unwrap().addresses.len(), 2, "the gateways and no link-local address");
    lab.quiet();
}

#[test]
fn a_gateway_that_moves_is_one_replace_of_each_route_by_it() {
    let mut lab = routed();
    let mut update = two_subnets();
    let (_, Some(EndpointSpec::Local(endpoint))) = &mut update.endpoints[0] else { unreachable!() };
    let moved = route(OTHER_V4, "10.0.0.254");
    endpoint.routes[0] = moved;
    lab.want(Update { spec: None, ..update });
    lab.settle();
    assert_eq!(lab.kernel.log, [Op::ReplaceRoute { place: inside(), ifindex: eth0(&lab), route: moved }]);
    lab.quiet();
}

/// A second endpoint in the same namespace.
fn second(vni_of_it: u32, address: &str, routes: Vec<Route>) -> EndpointSpec {
    let EndpointSpec::Local(mut endpoint) = local() else { unreachable!() };
    endpoint.vni = vni(vni_of_it);
    endpoint.addresses = vec![net(address)];
    endpoint.mac = Mac::from_ip(endpoint.addresses[0].addr());
    endpoint.ifname = "eth1".into();
    endpoint.routes = routes;
    EndpointSpec::Local(endpoint)
}

#[test]
fn of_two_endpoints_in_a_namespace_the_first_has_the_route_and_none_has_one_to_where_the_other_is() {
    let mut lab = routed();
    let update = |endpoint| Update { revision: 6, spec: None, endpoints: vec![(id("n1", "test2"), endpoint)] };
    let beside = second(256, "10.0.0.9/24", vec![route(OTHER_V4, "10.0.0.1"), route("10.5.0.0/16", "10.0.0.1")]);
    lab.want(update(Some(beside)));
    lab.settle();
    let all = |lab: &Lab| {
        let links = lab.kernel.containers.values().next().unwrap().links.values();
        let routes = links.flat_map(|link| link.routes.keys().map(|dst| (link.link.name.clone(), dst.to_string())));
        routes.collect::<Vec<_>>()
    };
    let of = |ifname: &str, dst: &str| (ifname.to_owned(), dst.to_owned());
    let both = vec![of("eth0", OTHER_V4), of("eth0", OTHER_V6), of("eth1", "10.5.0.0/16")];
    assert_eq!(all(&lab), both);
    lab.quiet();

    lab.want(update(Some(second(257, "10.0.1.9/24", vec![route("10.0.0.0/24", "10.0.1.1")]))));
    lab.settle();
    assert_eq!(all(&lab), [of("eth0", OTHER_V6)]);
    lab.quiet();

    lab.want(update(None));
    lab.settle();
    has_all(&mut lab);
    assert_eq!((lab.drift(), lab.network.summary().blocked), (vec![], vec![]));
}

#[test]
fn a_route_passes_to_the_next_endpoint_when_the_first_leaves() {
    let mut lab = routed();
    let beside = second(256, "10.0.0.9/24", vec![route(OTHER_V4, "10.0.0.1")]);
    lab.want(Update { revision: 6, spec: None, endpoints: vec![(id("n1", "test2"), Some(beside))] });
    lab.settle();
    lab.want(Update { revision: 7, spec: None, endpoints: vec![(id("n1", "test1"), None)] });
    lab.settle();
    let links: Vec<_> = lab.kernel.containers.values().next().unwrap().links.values().collect();
    let [eth1] = links.as_slice() else { panic!("{links:?}") };
    assert_eq!((eth1.link.name.as_str(), eth1.routes.len()), ("eth1", 1));
    assert_eq!((lab.drift(), lab.network.summary().blocked), (vec![], vec![]));
    lab.quiet();
}
