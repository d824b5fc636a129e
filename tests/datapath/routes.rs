//! A network of two subnets: routes, and forwarding.

use std::{fs, sync::Arc};

use vtepd::{
    desired::{EndpointSpec, NetworkSpec, Segment, Update},
    engine::{DriftReason, Kind},
    model::{Mac, Route},
};

use super::{CHANGED, Datapath, MISSING, UNEXPECTED, desired, id, ip, run, spec};

const MISSING_ROUTE: [(Kind, DriftReason); 1] = [(Kind::Route, MISSING)];
const CHANGED_ROUTE: [(Kind, DriftReason); 1] = [(Kind::Route, CHANGED)];

fn two_subnets() -> Update {
    let mut update = desired(10);
    let first = spec().segments.remove(0);
    let gateways = vec!["10.1.0.1/24".parse().unwrap(), "fd00:1::1/64".parse().unwrap()];
    let gateway_mac = Mac::from_ip(ip("10.1.0.1"));
    let second = Segment { vni: 257.try_into().unwrap(), gateways, gateway_mac, ..first.clone() };
    update.spec = Some(Some(Arc::new(NetworkSpec { segments: vec![first, second], ..spec() })));
    let (_, Some(EndpointSpec::Local(endpoint))) = &mut update.endpoints[0] else { unreachable!() };
    endpoint.routes = [("10.1.0.0/24", "10.0.0.1"), ("fd00:1::/64", "fd00::1")]
        .map(|(dst, via)| Route { dst: dst.parse().unwrap(), via: Some(ip(via)) })
        .to_vec();
    update
}

fn routed() -> Datapath {
    let mut datapath = Datapath::converged(10);
    let now = datapath.now();
    datapath.network.update(two_subnets(), now);
    datapath.until("in sync", |this| this.network.in_sync());
    assert_eq!(datapath.drift(), []);
    datapath.resyncs_without_an_operation();
    datapath
}

fn sysctl(netns: &str, name: &str) -> String {
    run(&format!("ip netns exec {netns} sysctl -n {name}")).trim().to_owned()
}

#[test]
fn routes_and_forwarding_are_what_the_design_says_in_the_words_of_ip_and_sysctl() {
    let _datapath = routed();
    let route = run("ip -n test1 route show proto 118");
    assert_eq!(route.trim(), "10.1.0.0/24 via 10.0.0.1 dev eth0");
    let route = run("ip -n test1 -6 route show proto 118");
    assert_eq!(route.trim(), "fd00:1::/64 via fd00::1 dev eth0 metric 1024 pref medium");
    for name in ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding", "net.ipv4.conf.br1.forwarding"] {
        assert_eq!(sysctl("vtepd-overlay-demo", name), "1", "{name}");
    }
    for name in ["net.ipv4.conf.all.send_redirects", "net.ipv4.conf.br0.send_redirects"] {
        assert_eq!(sysctl("vtepd-overlay-demo", name), "0", "{name}");
    }
    // Of the host and of the container nobody asked anything.
    let host = fs::read_to_string("/proc/sys/net/ipv6/conf/all/forwarding").unwrap();
    assert_eq!((host.trim(), sysctl("test1", "net.ipv6.conf.all.forwarding").as_str()), ("0", "0"));
}

#[test]
fn every_foreign_change_of_a_route_is_repaired_and_counted_once() {
    let mut datapath = routed();
    let (v4, v6) = ("ip -n test1 route", "ip -n test1 -6 route");
    for (command, drift) in [
        (format!("{v4} del 10.1.0.0/24"), MISSING_ROUTE),
        (format!("{v4} replace 10.1.0.0/24 via 10.0.0.9 dev eth0"), CHANGED_ROUTE),
        (format!("{v4} replace 10.1.0.0/24 via 10.0.0.1 dev eth0"), CHANGED_ROUTE),
        (format!("{v4} replace 10.1.0.0/24 dev eth0 proto 118"), CHANGED_ROUTE),
        (format!("{v4} replace 10.1.0.0/24 via 10.0.0.1 dev eth0 mtu 1000 proto 118"), CHANGED_ROUTE),
        (format!("{v4} replace 10.1.0.0/24 proto 118 nexthop via 10.0.0.1 nexthop via 10.0.0.9"), CHANGED_ROUTE),
        (format!("{v4} prepend 10.1.0.0/24 via 10.0.0.9 dev eth0"), CHANGED_ROUTE),
        (format!("{v4} add 10.9.0.0/24 via 10.0.0.1 proto 118"), [(Kind::Route, UNEXPECTED)]),
        (format!("{v6} del fd00:1::/64"), MISSING_ROUTE),
        (format!("{v6} replace fd00:1::/64 via fd00::9 dev eth0"), CHANGED_ROUTE),
        (format!("{v6} replace fd00:1::/64 via fd00::1 dev eth0"), CHANGED_ROUTE),
        (format!("{v6} append fd00:1::/64 via fd00::9 dev eth0 proto 118"), CHANGED_ROUTE),
    ] {
        datapath.breaks(&command, &drift);
    }
    for command in
        ["add 10.8.0.0/24 via 10.0.0.1", "add 10.1.0.0/24 via 10.0.0.9 metric 50", "add blackhole 10.7.0.0/24"]
    {
        run(&format!("{v4} {command}"));
    }
    datapath.until("in sync", |this| this.network.in_sync());
    assert_eq!((datapath.drift(), datapath.ops()), (vec![], 0), "routes of the container are its own");
    assert_eq!(run(v4).lines().count(), 5);
    datapath.resyncs_without_an_operation();
}

#[test]
fn routes_come_back_with_the_link_and_the_addresses_that_took_them_along() {
    let mut datapath = routed();
    let link = [(Kind::Link, CHANGED)];
    datapath.breaks("ip -n test1 link set eth0 down", &link);
    datapath.breaks("ip -n test1 link set eth0 mtu 1000", &link);
    datapath.breaks("ip -n test1 link set eth0 address 02:00:00:00:00:09", &link);
    datapath.breaks("ip -n test1 link del eth0", &[(Kind::Link, MISSING)]);
    let missing = (Kind::Address, MISSING);
    datapath.breaks("ip -n test1 addr del 10.0.0.2/16 dev eth0", &[missing]);
    datapath.breaks("ip -n test1 addr flush dev eth0 scope global", &[missing, missing]);
}

#[test]
fn a_destination_that_somebody_else_leads_elsewhere_is_left_to_them_until_they_are_gone() {
    let mut datapath = routed();
    run("ip -n test1 link add d0 type veth peer name d1");
    run("ip -n test1 link set d0 up");
    run("ip -n test1 route prepend 10.1.0.0/24 dev d0");
    datapath.until("in sync", |this| this.network.in_sync());
    assert_eq!((datapath.drift(), datapath.ops()), (vec![], 0));
    run("ip -n test1 route del 10.1.0.0/24 via 10.0.0.1");
    let blocked = |this: &Datapath| {
        let blocked = this.network.summary().blocked;
        blocked.iter().map(|blocked| (blocked.kind, blocked.reason)).collect::<Vec<_>>()
    };
    datapath.until("blocked", |this| blocked(this) == [(Kind::Route, "exists")]);
    assert!(run("ip -n test1 route").contains("10.1.0.0/24 dev d0"));
    run("ip -n test1 route del 10.1.0.0/24 dev d0");
    datapath.until("repaired", |this| this.network.in_sync());
    assert_eq!((datapath.drift(), datapath.repairs()), (MISSING_ROUTE.to_vec(), vec![Kind::Route]));
    datapath.resyncs_without_an_operation();
}

#[test]
fn forwarding_that_somebody_turned_off_is_on_again_and_counted_once() {
    let mut datapath = routed();
    let sysctl = "ip netns exec vtepd-overlay-demo sysctl -qw net";
    datapath.breaks(&format!("{sysctl}.ipv4.ip_forward=0"), &MISSING_ROUTE);
    datapath.breaks(&format!("{sysctl}.ipv4.conf.br1.forwarding=0"), &CHANGED_ROUTE);
    datapath.breaks(&format!("{sysctl}.ipv4.conf.default.forwarding=0"), &CHANGED_ROUTE);
    datapath.breaks(&format!("{sysctl}.ipv6.conf.all.forwarding=0"), &MISSING_ROUTE);
    datapath.breaks(&format!("{sysctl}.ipv6.conf.br0.forwarding=0"), &CHANGED_ROUTE);
    let link_local = "ip -n vtepd-overlay-demo addr del fe80::42:aff:fe00:1/64 dev br0";
    datapath.breaks(link_local, &[(Kind::Address, MISSING)]);
    datapath.breaks("ip -n vtepd-overlay-demo link del br1", &[(Kind::Link, MISSING)]);

    let now = datapath.now();
    datapath.network.update(desired(10), now);
    datapath.until("in sync", |this| this.network.in_sync());
    assert_eq!(datapath.drift(), []);
    assert_eq!(run("ip -n test1 route show proto 118"), "");
    let read = |name: &str| run(&format!("ip netns exec vtepd-overlay-demo sysctl -n net.{name}"));
    assert_eq!((read("ipv4.ip_forward").trim(), read("ipv6.conf.all.forwarding").trim()), ("0", "0"));
    datapath.breaks(&format!("{sysctl}.ipv6.conf.all.forwarding=1"), &[(Kind::Route, UNEXPECTED)]);
    let gone = id("n1", "test1");
    let now = datapath.now();
    datapath.network.update(Update { revision: 9, spec: None, endpoints: vec![(gone, None)] }, now);
    datapath.until("in sync", |this| this.network.in_sync());
}
