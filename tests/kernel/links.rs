//! Bridge and VXLAN device.

use std::collections::BTreeSet;

use serde_json::json as value;
use vtepd::engine::{
    Answer, FailureKind, Kernel, Link, LinkChange, LinkKind, LinkRef, NewLink, Op, Port, Query, VxlanAttributes,
};

use crate::{
    edge::{GROUP, bridge, datapath, do_all, fdb, link, set, vxlan},
    rows::neighbours,
    support::{ip, json, kernel_of, mac, private_host, run},
};

#[test]
fn bridge_and_vxlan_device_stand_as_the_witness_shows() {
    let (mut kernel, br0, vxlan1) = datapath();
    let links = json("ip -n vtepd-demo -j -d link show type bridge");
    let br = &links[0];
    assert_eq!(br["linkinfo"]["info_data"]["mcast_snooping"], 0);
    assert_eq!((&br["address"], &br["mtu"]), (&value!("02:42:0a:00:00:01"), &value!(1450)));
    assert_eq!(br["inet6_addr_gen_mode"], "none");
    assert_eq!(br["group"], GROUP.to_string());
    let links = json("ip -n vtepd-demo -j -d link show type vxlan");
    let vx = &links[0];
    let data = &vx["linkinfo"]["info_data"];
    assert_eq!((&data["id"], &data["port"], &data["local"]), (&value!(256), &value!(4789), &value!("192.168.205.10")));
    assert_eq!((&data["learning"], &data["proxy"]), (&value!(false), &value!(true)), "{data}");
    assert_eq!(
        (&vx["address"], &vx["mtu"], &vx["master"]),
        (&value!("02:00:00:00:00:01"), &value!(1450), &value!("br0"))
    );
    let port = &vx["linkinfo"]["info_slave_data"];
    assert_eq!((&port["learning"], &port["flood"]), (&value!(false), &value!(true)));
    assert_eq!(vx["inet6_addr_gen_mode"], "none");
    assert!(vx["link_netnsid"].is_number(), "its socket is in the host's namespace: {vx}");
    assert!(run("ss -uln").contains(":4789"), "the host's UDP port is taken");
    assert_eq!(json("ip -n vtepd-demo -6 -j addr show scope link"), value!([]), "IPv6 addresses itself nowhere");

    let Answer::Links(links, addresses) = kernel.read(&Query::Links).unwrap() else { panic!() };
    assert_eq!(links.iter().map(|link| &*link.name).collect::<Vec<_>>(), ["lo", "br0", "vxlan1"]);
    assert!(addresses.iter().all(|address| address.ifindex == 1 && !address.ours));
    let expected =
        VxlanAttributes { vni: 256, port: 4789, local: Some(ip("192.168.205.10")), learning: false, proxy: true };
    let shown = links[2].clone();
    assert_eq!(
        shown,
        Link {
            ifindex: vxlan1,
            name: "vxlan1".to_owned(),
            mac: mac("02:00:00:00:00:01"),
            mtu: 1450,
            up: true,
            master: Some(br0),
            group: GROUP,
            addr_gen_none: true,
            kind: LinkKind::Vxlan(expected),
            port: Some(Port { learning: false, unicast_flood: true, isolated: false, locked: Some(false) }),
            off: BTreeSet::new(),
        }
    );
    assert_eq!((&links[1].kind, links[1].up), (&LinkKind::Bridge { mcast_snooping: false }, true));
    let gone = kernel.read(&Query::Link(LinkRef::Index(4711))).unwrap();
    assert_eq!(gone, Answer::Links(vec![], vec![]));
}

#[test]
fn a_vxlan_device_over_ipv6_keeps_its_local_address_and_flood_networks_do_not_proxy() {
    private_host();
    let mut kernel = kernel_of("demo");
    let mut new = vxlan(7, "fd00::10");
    if let NewLink::Vxlan { proxy, .. } = &mut new {
        *proxy = false;
    }
    do_all(&mut kernel, &[Op::CreateNetns, Op::AddLink(new)]);
    let LinkKind::Vxlan(shown) = link(&mut kernel, "vxlan1").kind else { panic!() };
    assert_eq!((shown.local, shown.proxy), (Some(ip("fd00::10")), false));
}

#[test]
fn a_device_of_the_host_with_the_same_name_is_no_obstacle_and_stays() {
    private_host();
    run("ip link add vxlan1 type veth peer name br0");
    let mut kernel = kernel_of("demo");
    do_all(&mut kernel, &[Op::CreateNetns, Op::AddLink(bridge()), Op::AddLink(vxlan(7, "192.168.205.10"))]);
    assert_eq!(json("ip -j -d link show vxlan1")[0]["linkinfo"]["info_kind"], "veth");
    assert!(matches!(link(&mut kernel, "vxlan1").kind, LinkKind::Vxlan(_)));
    let again = kernel.apply(&[Op::AddLink(bridge()), Op::AddLink(vxlan(7, "192.168.205.10"))]);
    assert!(again.iter().all(|result| result.as_ref().unwrap_err().kind == FailureKind::Exists), "{again:?}");
}

#[test]
fn a_link_is_changed_in_place_and_the_first_refusal_is_told() {
    let (mut kernel, br0, vxlan1) = datapath();
    let change = LinkChange {
        name: Some("vxlan9".to_owned()),
        mac: Some(mac("02:00:00:00:00:09")),
        mtu: Some(1400),
        group: Some(5),
        local: Some(ip("192.168.205.11")),
        ..LinkChange::default()
    };
    do_all(&mut kernel, &[set(vxlan1, change)]);
    let shown = link(&mut kernel, "vxlan9");
    assert_eq!((shown.mac, shown.mtu, shown.group), (mac("02:00:00:00:00:09"), 1400, 5));
    let LinkKind::Vxlan(attributes) = shown.kind else { panic!() };
    assert_eq!(attributes.local, Some(ip("192.168.205.11")));
    assert_eq!((attributes.vni, attributes.port, attributes.proxy, attributes.learning), (256, 4789, true, false));

    run("ip -n vtepd-demo link set br0 type bridge mcast_snooping 1");
    run("ip -n vtepd-demo link set vxlan9 type vxlan learning");
    let LinkKind::Vxlan(attributes) = link(&mut kernel, "vxlan9").kind else { panic!() };
    assert!(attributes.learning);
    do_all(
        &mut kernel,
        &[
            set(br0, LinkChange { mcast_snooping_off: true, ..LinkChange::default() }),
            set(vxlan1, LinkChange { learning_off: true, ..LinkChange::default() }),
        ],
    );
    let LinkKind::Vxlan(attributes) = link(&mut kernel, "vxlan9").kind else { panic!() };
    assert!(!attributes.learning);
    assert_eq!(link(&mut kernel, "br0").kind, LinkKind::Bridge { mcast_snooping: false });

    let wrong = LinkChange { mtu: Some(1), up: Some(false), name: Some("br0".to_owned()), ..LinkChange::default() };
    let failed = kernel.apply(&[set(vxlan1, wrong), set(4711, LinkChange { up: Some(true), ..LinkChange::default() })]);
    assert_eq!(failed[0].as_ref().unwrap_err().kind, FailureKind::Exists);
    assert_eq!(failed[1].as_ref().unwrap_err().kind, FailureKind::NotFound);
    let down = LinkChange { master: Some(4711), up: Some(true), ..LinkChange::default() };
    assert!(kernel.apply(&[set(vxlan1, down)])[0].is_err());
    assert!(!link(&mut kernel, "vxlan9").up, "it does not come up half made");
}

#[test]
fn the_kernels_own_words_are_in_the_failure() {
    let (mut kernel, ..) = datapath();
    let mut new = vxlan(256, "192.168.205.10");
    if let NewLink::Vxlan { name, .. } = &mut new {
        *name = "vxlan3".to_owned();
    }
    let failure = kernel.apply(&[Op::AddLink(new)])[0].clone().unwrap_err();
    assert_eq!(failure.kind, FailureKind::Exists);
    assert!(failure.message.contains("EEXIST") && failure.message.contains("VNI"), "{failure}");
    let failure = kernel.apply(&[Op::PutFdb { ifindex: 1, mac: mac("02:42:0a:00:00:03"), dst: ip("1.2.3.4") }]);
    println!("{}", failure[0].as_ref().unwrap_err());
}

#[test]
fn a_vxlan_devices_source_address_is_set_in_place_within_its_family_and_costs_no_row() {
    let (mut kernel, _, vxlan1) = datapath();
    let row = Op::PutFdb { ifindex: vxlan1, mac: mac("02:42:0a:00:00:03"), dst: ip("192.168.205.11") };
    let entry = Op::PutNeighbour { ifindex: vxlan1, ip: ip("10.0.0.3"), mac: mac("02:42:0a:00:00:03") };
    do_all(&mut kernel, &[row, entry]);
    let before = link(&mut kernel, "vxlan1");
    let rows = (fdb(&mut kernel, &Query::FdbDump(vxlan1)), neighbours(&mut kernel, &Query::NeighbourDump(vxlan1)));
    let local = |text: &str| set(vxlan1, LinkChange { local: Some(ip(text)), ..LinkChange::default() });
    do_all(&mut kernel, &[local("192.168.205.20")]);
    let mut after = link(&mut kernel, "vxlan1");
    let LinkKind::Vxlan(attributes) = &mut after.kind else { panic!("{after:?}") };
    assert_eq!(attributes.local.replace(ip("192.168.205.10")), Some(ip("192.168.205.20")));
    assert_eq!(after, before, "nothing else changed");
    assert_eq!(rows.0, fdb(&mut kernel, &Query::FdbDump(vxlan1)));
    assert_eq!(rows.1, neighbours(&mut kernel, &Query::NeighbourDump(vxlan1)));
    let refused = kernel.apply(&[local("fd00::20")]).remove(0).unwrap_err();
    assert_eq!(refused.kind, FailureKind::Refused, "{refused}");
}
