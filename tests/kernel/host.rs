//! The host's own namespace: what is heard of its links, and the underlay link among them.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use vtepd::kernel::{HostEvent, HostMonitor, source_towards, underlay_link};

use crate::support::{ip, json, private_host, run};

#[test]
fn the_host_monitor_hears_links_and_addresses_of_the_host_alone() {
    private_host();
    run("ip netns add other");
    let monitor = HostMonitor::open().unwrap();
    // The kernel tells of an IPv6 address when it comes to it.
    let hears = |event: HostEvent| {
        let until = Instant::now() + Duration::from_secs(10);
        let mut heard = BTreeSet::new();
        while !heard.contains(&event) {
            assert!(Instant::now() < until, "{event:?} is not among {heard:?}");
            heard.extend(monitor.wait(Duration::from_millis(100)).unwrap());
        }
        heard
    };
    run("ip link add eth9 type bridge");
    let ifindex = json("ip -j link show eth9")[0]["ifindex"].as_u64().unwrap() as u32;
    hears(HostEvent::Link(ifindex));
    run("ip -n other link add index 99 eth8 type bridge");
    for address in ["192.168.205.10/24", "fd00::10/64"] {
        run(&format!("ip addr add {address} dev eth9"));
        let address = ip(address.split('/').next().unwrap());
        let heard = hears(HostEvent::Address { ifindex, address });
        assert!(!heard.contains(&HostEvent::Link(99)), "another namespace is not the host's: {heard:?}");
    }
    for command in ["ip link set eth9 mtu 1400", "ip link del eth9"] {
        monitor.events();
        run(command);
        hears(HostEvent::Link(ifindex));
    }
}

#[test]
fn the_underlays_mtu_and_source_address_are_those_of_the_host() {
    private_host();
    run("ip link add eth9 mtu 1400 type veth peer name eth10");
    run("ip link set eth10 up");
    run("ip addr add 192.168.205.10/24 dev eth9");
    run("ip addr add fd00::10/64 dev eth9 nodad");
    run("ip link set eth9 up");
    for address in ["192.168.205.10", "fd00::10"] {
        assert_eq!(underlay_link(ip(address)).unwrap().unwrap().mtu, 1400, "{address}");
    }
    assert_eq!(underlay_link(ip("192.168.205.11")).unwrap(), None);
    assert_eq!(source_towards(ip("192.168.205.77")).unwrap(), ip("192.168.205.10"));
    assert_eq!(source_towards(ip("fd00::77")).unwrap(), ip("fd00::10"));
    assert!(source_towards(ip("8.8.8.8")).is_err());
}
