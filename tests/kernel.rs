//! The kernel edge on the real kernel, each test on a host of its own, with `ip` and `bridge` as witnesses.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test ends where something is not as it should be"
)]

mod support;

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde_json::{Value, json as value};
use support::{attempt, json, private_host, run};
use vtepd::{
    engine::{
        Address, Answer, Event, FailureKind, FdbPoint, FdbRow, InnerAt, InnerState, Kernel, Link, LinkChange, LinkKind,
        LinkRef, Neighbour, NetnsState, NewLink, Op, Place, Port, Query, VxlanAttributes,
    },
    kernel::{Config, NetworkKernel, mtu_of, owned, source_towards},
    model::Mac,
};

const NETNS: &str = "vtepd-demo";
const GROUP: u32 = 7652;

fn kernel_of(network: &str) -> NetworkKernel {
    NetworkKernel::new(Config {
        instance: "default".to_owned(),
        network: network.parse().unwrap(),
        netns_dir: PathBuf::from("/run/netns"),
        netns_roots: vec![PathBuf::from("/run/netns"), PathBuf::from("/run/docker/netns")],
    })
}

fn do_all(kernel: &mut NetworkKernel, ops: &[Op]) {
    for (op, result) in ops.iter().zip(kernel.apply(ops)) {
        result.unwrap_or_else(|failure| panic!("{op:?}: {failure}"));
    }
}

fn netns(kernel: &mut NetworkKernel) -> NetnsState {
    match kernel.read(&Query::Netns).unwrap() {
        Answer::Netns(state) => state,
        other => panic!("{other:?}"),
    }
}

fn mac(text: &str) -> Mac {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn vxlan(vni: u32, local: &str) -> NewLink {
    NewLink::Vxlan {
        name: "vxlan1".to_owned(),
        mac: mac("02:00:00:00:00:01"),
        mtu: 1450,
        group: GROUP,
        vni,
        port: 4789,
        local: ip(local),
        proxy: true,
    }
}

fn bridge() -> NewLink {
    NewLink::Bridge { name: "br0".to_owned(), mac: mac("02:42:0a:00:00:01"), group: GROUP }
}

fn veth(name: &str, netns: &str) -> NewLink {
    NewLink::Veth {
        name: name.to_owned(),
        mac: mac("02:00:00:00:00:02"),
        mtu: 1450,
        group: GROUP,
        inner: inner_at(netns),
        inner_mac: mac("02:42:0a:00:00:02"),
    }
}

fn inner_at(netns: &str) -> InnerAt {
    InnerAt { netns: Path::new("/run/netns").join(netns), ifname: "eth0".to_owned(), ifindex: None }
}

fn link(kernel: &mut NetworkKernel, name: &str) -> Link {
    match kernel.read(&Query::Link(LinkRef::Name(name.to_owned()))).unwrap() {
        Answer::Links(links, _) => links.into_iter().next().unwrap_or_else(|| panic!("{name} is not there")),
        other => panic!("{other:?}"),
    }
}

fn inner(kernel: &mut NetworkKernel, at: InnerAt) -> InnerState {
    match kernel.read(&Query::Inner(at)).unwrap() {
        Answer::Inner(state) => state,
        other => panic!("{other:?}"),
    }
}

fn fdb(kernel: &mut NetworkKernel, query: &Query) -> Vec<FdbRow> {
    match kernel.read(query).unwrap() {
        Answer::Fdb(rows) => rows,
        other => panic!("{other:?}"),
    }
}

fn neighbours(kernel: &mut NetworkKernel, query: &Query) -> Vec<Neighbour> {
    match kernel.read(query).unwrap() {
        Answer::Neighbours(entries) => entries,
        other => panic!("{other:?}"),
    }
}

fn set(ifindex: u32, change: LinkChange) -> Op {
    Op::SetLink { place: Place::Overlay, ifindex, change }
}

/// A private host with an overlay namespace, a bridge and a VXLAN device in it; their indexes.
fn datapath() -> (NetworkKernel, u32, u32) {
    private_host();
    let mut kernel = kernel_of("demo");
    do_all(&mut kernel, &[Op::CreateNetns, Op::AddLink(bridge()), Op::AddLink(vxlan(256, "192.168.205.10"))]);
    let (br0, vxlan1) = (link(&mut kernel, "br0").ifindex, link(&mut kernel, "vxlan1").ifindex);
    let change = LinkChange {
        master: Some(br0),
        port: Some(Port { learning: false, unicast_flood: true }),
        addr_gen_none: true,
        up: Some(true),
        ..LinkChange::default()
    };
    let up = LinkChange { mtu: Some(1450), addr_gen_none: true, up: Some(true), ..LinkChange::default() };
    do_all(&mut kernel, &[set(vxlan1, change), set(br0, up)]);
    (kernel, br0, vxlan1)
}

fn row(ifindex: u32, text: &str, dst: &str) -> FdbRow {
    FdbRow { ifindex, bridge: false, mac: mac(text), dst: Some(ip(dst)), plain: true, kernels_own: false }
}

/// What the witness shows of a MAC address in a namespace.
fn witnessed(netns: &str, dev: &str, mac: &str) -> Vec<Value> {
    let rows = json(&format!("bridge -n {netns} -j fdb show dev {dev}"));
    rows.as_array().unwrap().iter().filter(|row| row["mac"] == mac).cloned().collect()
}

/// Drains events until one passes, or fails after a second.
fn wait_for(kernel: &mut NetworkKernel, what: &str, mut wanted: impl FnMut(&Event) -> bool) {
    let end = Instant::now() + Duration::from_secs(1);
    let mut seen = Vec::new();
    while Instant::now() < end {
        seen.extend(kernel.events());
        if seen.iter().any(&mut wanted) {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("no event for {what}: {seen:?}");
}

#[test]
fn the_overlay_namespace_is_made_found_and_deleted() {
    private_host();
    let mut kernel = kernel_of("demo");
    assert_eq!(netns(&mut kernel), NetnsState::Absent);
    do_all(&mut kernel, &[Op::CreateNetns]);
    let NetnsState::Ours(id) = netns(&mut kernel) else { panic!("not ours") };
    assert_eq!(json("ip -j netns")[0]["name"], NETNS);
    let lo = json("ip -n vtepd-demo -j link show lo");
    assert_eq!(lo[0]["ifalias"], "vtepd:default:demo");
    assert!(lo[0]["flags"].as_array().unwrap().contains(&value!("UP")));
    let generation = kernel.generation();
    assert_eq!(kernel.event_fds().len(), 2);
    assert_eq!(netns(&mut kernel), NetnsState::Ours(id), "found again");
    assert_eq!(kernel.generation(), generation, "the sockets are kept");
    assert_eq!(kernel.apply(&[Op::CreateNetns])[0].as_ref().unwrap_err().kind, FailureKind::Exists);
    assert_eq!(netns(&mut kernel_of("demo")), NetnsState::Ours(id), "found by another agent of the instance");
    netns(&mut kernel);
    do_all(&mut kernel, &[Op::DeleteNetns]);
    assert!(!Path::new("/run/netns/vtepd-demo").exists());
    assert_eq!(netns(&mut kernel), NetnsState::Absent);
    assert!(kernel.event_fds().is_empty());
    do_all(&mut kernel, &[Op::DeleteNetns]);
}

#[test]
fn what_somebody_else_has_at_the_path_is_left_alone() {
    private_host();
    run("ip netns add vtepd-demo");
    let mut kernel = kernel_of("demo");
    let refused = |kernel: &mut NetworkKernel| {
        assert_eq!(netns(kernel), NetnsState::Foreign);
        for op in [Op::CreateNetns, Op::DeleteNetns] {
            assert_eq!(kernel.apply(&[op])[0].as_ref().unwrap_err().kind, FailureKind::Exists);
        }
    };
    refused(&mut kernel);
    run("ip -n vtepd-demo link set lo alias vtepd:other:demo");
    refused(&mut kernel);
    run("ip -n vtepd-demo link show lo");
    run("ip netns del vtepd-demo");
    fs::write("/run/netns/vtepd-demo", "somebody's").unwrap();
    refused(&mut kernel);
    assert_eq!(fs::read_to_string("/run/netns/vtepd-demo").unwrap(), "somebody's");
    fs::remove_file("/run/netns/vtepd-demo").unwrap();
    std::os::unix::fs::symlink("/run/netns/elsewhere", "/run/netns/vtepd-demo").unwrap();
    refused(&mut kernel);
    fs::remove_file("/run/netns/vtepd-demo").unwrap();
    fs::write("/run/netns/vtepd-demo", "").unwrap();
    run("mount --bind /proc/self/ns/uts /run/netns/vtepd-demo");
    refused(&mut kernel);
    assert!(owned(Path::new("/run/netns"), "default").unwrap().unreadable.is_empty());
}

#[test]
fn an_empty_file_left_by_a_crash_is_bound_over() {
    private_host();
    fs::create_dir("/run/netns").unwrap();
    fs::write("/run/netns/vtepd-demo", "").unwrap();
    let mut kernel = kernel_of("demo");
    assert_eq!(netns(&mut kernel), NetnsState::Absent);
    do_all(&mut kernel, &[Op::CreateNetns]);
    assert!(matches!(netns(&mut kernel), NetnsState::Ours(_)));
}

#[test]
fn an_agent_without_memory_finds_its_own_namespaces_only() {
    private_host();
    assert!(owned(Path::new("/run/netns"), "default").unwrap().networks.is_empty());
    let id = "cafe".repeat(16);
    let mut kernels: Vec<_> = ["beta", "alpha", &id].map(kernel_of).into_iter().collect();
    kernels.iter_mut().for_each(|kernel| do_all(kernel, &[Op::CreateNetns]));
    assert!(Path::new("/run/netns/vtepd-cafecafeca").exists());
    run("ip netns add vtepd-other");
    run("ip -n vtepd-other link set lo alias vtepd:second:other");
    fs::write("/run/netns/vtepd-file", "").unwrap();
    let found = owned(Path::new("/run/netns"), "default").unwrap();
    assert_eq!(found.networks, ["alpha", "beta", &id].map(|name| name.parse().unwrap()));
    assert!(found.unreadable.is_empty());
    assert_eq!(owned(Path::new("/run/netns"), "second").unwrap().networks, ["other".parse().unwrap()]);
}

#[test]
fn a_namespace_that_was_deleted_by_hand_frees_its_vni_and_can_be_made_again() {
    let (mut kernel, ..) = datapath();
    let generation = kernel.generation();
    run("ip netns del vtepd-demo");
    assert_eq!(netns(&mut kernel), NetnsState::Absent);
    assert_ne!(kernel.generation(), generation);
    // The kernel takes a namespace down in its own time once nothing holds it.
    let end = Instant::now() + Duration::from_secs(5);
    do_all(&mut kernel, &[Op::CreateNetns]);
    while let Err(failure) = &kernel.apply(&[Op::AddLink(vxlan(256, "192.168.205.10"))])[0] {
        assert_eq!(failure.kind, FailureKind::Exists, "{failure}");
        assert!(Instant::now() < end, "{failure}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

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
            port: Some(Port { learning: false, unicast_flood: true }),
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
fn a_veth_pair_stands_in_both_namespaces_by_one_message() {
    let (mut kernel, br0, _) = datapath();
    run("ip netns add test1");
    do_all(&mut kernel, &[Op::AddLink(veth("veth2", "test1"))]);
    let outer = link(&mut kernel, "veth2");
    let port = Port { learning: false, unicast_flood: false };
    let change = LinkChange {
        master: Some(br0),
        port: Some(port),
        addr_gen_none: true,
        up: Some(true),
        ..LinkChange::default()
    };
    let place = Place::Inner(inner_at("test1").netns);
    let InnerState::Netns { link: Some((eth0, _)), .. } = inner(&mut kernel, inner_at("test1")) else { panic!() };
    let net = "10.0.0.2/24".parse().unwrap();
    let net6 = "fd00::2/64".parse().unwrap();
    let up = LinkChange { up: Some(true), ..LinkChange::default() };
    do_all(
        &mut kernel,
        &[
            set(outer.ifindex, change),
            Op::SetLink { place: place.clone(), ifindex: eth0.ifindex, change: up },
            Op::AddAddress { place: place.clone(), ifindex: eth0.ifindex, net },
            Op::AddAddress { place: place.clone(), ifindex: eth0.ifindex, net: net6 },
        ],
    );
    let shown = json("ip -n test1 -j -d addr show eth0");
    assert_eq!((&shown[0]["address"], &shown[0]["mtu"]), (&value!("02:42:0a:00:00:02"), &value!(1450)));
    assert_eq!(shown[0]["group"], GROUP.to_string());
    let v4 = &shown[0]["addr_info"][0];
    assert_eq!(
        (&v4["local"], &v4["broadcast"], &v4["scope"]),
        (&value!("10.0.0.2"), &value!("10.0.0.255"), &value!("global"))
    );
    let v6 = &shown[0]["addr_info"][1];
    assert_eq!((&v6["local"], &v6["nodad"]), (&value!("fd00::2"), &value!(true)));

    let outer = link(&mut kernel, "veth2");
    assert_eq!((outer.port, outer.master, outer.mtu, outer.group), (Some(port), Some(br0), 1450, GROUP));
    let InnerState::Netns { nsid, link: Some((eth0, addresses)), .. } = inner(&mut kernel, inner_at("test1")) else {
        panic!()
    };
    assert_eq!(outer.kind, LinkKind::Veth { peer: Some(eth0.ifindex), peer_nsid: nsid });
    assert!(nsid.is_some());
    let at_index = InnerAt { ifindex: Some(eth0.ifindex), ifname: "renamed".to_owned(), ..inner_at("test1") };
    assert!(matches!(inner(&mut kernel, at_index), InnerState::Netns { link: Some(_), .. }), "found by index");
    let ours: Vec<_> = addresses.iter().filter(|address| address.ours).map(|address| address.net).collect();
    assert_eq!(ours, [net, net6]);
    assert!(addresses.iter().all(|Address { ifindex, .. }| *ifindex == eth0.ifindex));

    let delete = Op::DeleteAddress { place: place.clone(), ifindex: eth0.ifindex, net };
    do_all(&mut kernel, &[delete.clone(), delete]);
    let delete = Op::DeleteLink { place, ifindex: eth0.ifindex };
    do_all(&mut kernel, &[delete.clone(), delete.clone()]);
    assert_eq!(json("ip -n vtepd-demo -j link show type veth"), value!([]), "the other end went with it");
    run("ip netns del test1");
    do_all(&mut kernel, &[delete]);
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
fn rows_are_put_read_one_by_one_and_as_a_whole_and_deleted() {
    let (mut kernel, br0, vxlan1) = datapath();
    let (a, b) = ("02:42:0a:00:00:03", "02:42:0a:00:00:04");
    do_all(
        &mut kernel,
        &[
            Op::PutFdb { ifindex: vxlan1, mac: mac(a), dst: ip("192.168.205.11") },
            Op::PutNeighbour { ifindex: vxlan1, ip: ip("10.0.0.3"), mac: mac(a) },
            Op::PutNeighbour { ifindex: vxlan1, ip: ip("fd00::3"), mac: mac(a) },
            Op::PutFdb { ifindex: vxlan1, mac: mac(b), dst: ip("192.168.205.11") },
            Op::PutFdb { ifindex: vxlan1, mac: mac(b), dst: ip("192.168.205.12") },
            Op::PutFdb { ifindex: vxlan1, mac: Mac::ZERO, dst: ip("192.168.205.11") },
            Op::PutFdb { ifindex: vxlan1, mac: Mac::ZERO, dst: ip("192.168.205.12") },
        ],
    );
    let shown = witnessed(NETNS, "vxlan1", a);
    assert_eq!(
        (shown.len(), &shown[0]["dst"], &shown[0]["state"]),
        (1, &value!("192.168.205.11"), &value!("permanent"))
    );
    assert_eq!(shown[0]["flags"], value!(["self"]));
    let shown = json("ip -n vtepd-demo -j -d neigh show dev vxlan1");
    let entry = shown.as_array().unwrap().iter().find(|entry| entry["dst"] == "10.0.0.3").unwrap();
    assert_eq!((&entry["lladdr"], &entry["state"]), (&value!(a), &value!(["PERMANENT"])));
    assert!(entry["protocol"] == "118" || entry["protocol"] == 118, "{entry}");

    let point = |text: &str| FdbPoint { ifindex: vxlan1, bridge: false, mac: mac(text) };
    let query = Query::FdbRows(vec![point(a), point("02:42:0a:00:00:99"), point(b)]);
    assert_eq!(fdb(&mut kernel, &query), [row(vxlan1, a, "192.168.205.11"), row(vxlan1, b, "192.168.205.12")]);
    let mut dumped = fdb(&mut kernel, &Query::FdbDump(vxlan1));
    dumped.retain(|row| !row.kernels_own);
    dumped.sort_by_key(|row| (row.mac, row.dst));
    assert_eq!(
        dumped,
        [
            row(vxlan1, "00:00:00:00:00:00", "192.168.205.11"),
            row(vxlan1, "00:00:00:00:00:00", "192.168.205.12"),
            row(vxlan1, a, "192.168.205.11"),
            row(vxlan1, b, "192.168.205.12"),
        ]
    );
    let entry =
        |text: &str| Neighbour { ifindex: vxlan1, ip: ip(text), mac: Some(mac(a)), permanent: true, ours: true };
    let query =
        Query::NeighbourRows(vec![(vxlan1, ip("fd00::3")), (vxlan1, ip("10.0.0.99")), (vxlan1, ip("10.0.0.3"))]);
    assert_eq!(neighbours(&mut kernel, &query), [entry("fd00::3"), entry("10.0.0.3")]);
    let mut dumped = neighbours(&mut kernel, &Query::NeighbourDump(vxlan1));
    dumped.retain(|entry| entry.permanent);
    dumped.sort_by_key(|entry| entry.ip);
    assert_eq!(dumped, [entry("10.0.0.3"), entry("fd00::3")]);
    assert!(neighbours(&mut kernel, &Query::NeighbourDump(br0)).iter().all(|entry| !entry.permanent));

    for query in [
        Query::FdbRows(vec![FdbPoint { ifindex: 4711, bridge: false, mac: mac(a) }]),
        Query::FdbRows(vec![FdbPoint { ifindex: 4711, bridge: true, mac: mac(a) }]),
        Query::NeighbourRows(vec![(4711, ip("10.0.0.3"))]),
    ] {
        assert_eq!(kernel.read(&query).unwrap_err().kind, FailureKind::NotFound, "{query:?}");
    }

    let deletes = [
        Op::DeleteFdb { ifindex: vxlan1, mac: mac(a), dst: None },
        Op::DeleteFdb { ifindex: vxlan1, mac: Mac::ZERO, dst: Some(ip("192.168.205.11")) },
        Op::DeleteNeighbour { ifindex: vxlan1, ip: ip("10.0.0.3") },
        Op::DeleteNeighbour { ifindex: vxlan1, ip: ip("fd00::3") },
    ];
    do_all(&mut kernel, &deletes);
    assert!(witnessed(NETNS, "vxlan1", a).is_empty());
    let left = witnessed(NETNS, "vxlan1", "00:00:00:00:00:00");
    assert_eq!((left.len(), &left[0]["dst"]), (1, &value!("192.168.205.12")));
    assert_eq!(json("ip -n vtepd-demo -j neigh show dev vxlan1 nud permanent"), value!([]));
    for (op, result) in deletes.iter().zip(kernel.apply(&deletes)) {
        // One destination among several that is not there is nothing to the driver.
        let flood = matches!(op, Op::DeleteFdb { dst: Some(_), .. });
        assert_eq!(result.map_err(|failure| failure.kind), if flood { Ok(()) } else { Err(FailureKind::NotFound) });
    }
}

#[test]
fn rows_that_somebody_else_wrote_differently_are_not_plain() {
    let (mut kernel, _, vxlan1) = datapath();
    for (n, more) in ["port 4790", "vni 9", "extern_learn", "via lo", "router"].iter().enumerate() {
        let text = format!("02:42:0a:00:01:{n:02x}");
        let (done, why) = attempt(&format!(
            "bridge -n vtepd-demo fdb add {text} dev vxlan1 dst 192.168.205.11 self permanent {more}"
        ));
        if !done {
            println!("not tried: {more}: {why}");
            continue;
        }
        let rows =
            fdb(&mut kernel, &Query::FdbRows(vec![FdbPoint { ifindex: vxlan1, bridge: false, mac: mac(&text) }]));
        assert_eq!(rows.len(), 1, "{more}");
        assert_eq!((rows[0].plain, rows[0].kernels_own), (false, false), "{more}: {rows:?}");
    }
    run("bridge -n vtepd-demo fdb add 02:42:0a:00:01:f0 dev vxlan1 dst 192.168.205.11 self static");
    run("bridge -n vtepd-demo fdb add 01:00:5e:00:00:fb dev vxlan1 dst 192.168.205.11 self permanent");
    let rows = fdb(&mut kernel, &Query::FdbDump(vxlan1));
    let find = |text: &str| rows.iter().find(|row| row.mac == mac(text)).unwrap();
    assert_eq!((find("02:42:0a:00:01:f0").plain, find("02:42:0a:00:01:f0").kernels_own), (false, false));
    assert!(find("01:00:5e:00:00:fb").kernels_own);
}

#[test]
fn a_bridge_row_is_static_and_is_found_by_its_bridge_wherever_it_points() {
    let (mut kernel, br0, _) = datapath();
    run("ip netns add test1");
    run("ip netns add test2");
    do_all(&mut kernel, &[Op::AddLink(veth("veth2", "test1")), Op::AddLink(veth("veth3", "test2"))]);
    let (one, two) = (link(&mut kernel, "veth2").ifindex, link(&mut kernel, "veth3").ifindex);
    let port = LinkChange {
        master: Some(br0),
        port: Some(Port { learning: false, unicast_flood: false }),
        up: Some(true),
        ..LinkChange::default()
    };
    do_all(&mut kernel, &[set(one, port.clone()), set(two, port)]);
    let text = "02:42:0a:00:00:02";
    do_all(&mut kernel, &[Op::PutBridgeRow { ifindex: one, mac: mac(text) }]);
    let shown = witnessed(NETNS, "veth2", text);
    assert_eq!((&shown[0]["state"], &shown[0]["master"]), (&value!("static"), &value!("br0")));
    let query = Query::FdbRows(vec![FdbPoint { ifindex: br0, bridge: true, mac: mac(text) }]);
    let mut expected =
        FdbRow { ifindex: one, bridge: true, mac: mac(text), dst: None, plain: true, kernels_own: false };
    assert_eq!(fdb(&mut kernel, &query), [expected.clone()]);
    assert!(fdb(&mut kernel, &Query::FdbDump(one)).contains(&expected));
    run("bridge -n vtepd-demo fdb replace 02:42:0a:00:00:02 dev veth3 master static");
    expected.ifindex = two;
    assert_eq!(fdb(&mut kernel, &query), [expected.clone()]);
    let missed = kernel.apply(&[Op::DeleteBridgeRow { ifindex: one, mac: mac(text) }]);
    assert_eq!(missed[0].as_ref().unwrap_err().kind, FailureKind::NotFound, "it points elsewhere");
    do_all(&mut kernel, &[Op::PutBridgeRow { ifindex: one, mac: mac(text) }]);
    expected.ifindex = one;
    assert_eq!(fdb(&mut kernel, &query), [expected]);
    run("bridge -n vtepd-demo fdb replace 02:42:0a:00:00:02 dev veth2 master permanent");
    let changed = fdb(&mut kernel, &query);
    assert_eq!((changed[0].plain, changed[0].kernels_own), (false, true));
    do_all(
        &mut kernel,
        &[Op::PutBridgeRow { ifindex: one, mac: mac(text) }, Op::DeleteBridgeRow { ifindex: one, mac: mac(text) }],
    );
    assert_eq!(fdb(&mut kernel, &query), []);
    let own = fdb(&mut kernel, &Query::FdbDump(one));
    assert!(own.iter().all(|row| row.kernels_own), "{own:?}");
}

#[test]
fn six_hundred_operations_get_a_result_each_and_failures_stop_nothing() {
    let (mut kernel, _, vxlan1) = datapath();
    let nth = |n: u16| Mac::new([2, 0x42, 10, 0, n.to_be_bytes()[0], n.to_be_bytes()[1]]);
    let fails = |n: u16| n % 97 == 5 || (300..560).contains(&n) || n == 599;
    let ops: Vec<Op> = (0..600)
        .map(|n| Op::PutFdb { ifindex: if fails(n) { 4711 } else { vxlan1 }, mac: nth(n), dst: ip("192.168.205.11") })
        .collect();
    let results = kernel.apply(&ops);
    assert_eq!(results.len(), 600);
    for (n, result) in (0..).zip(&results) {
        match result {
            Ok(()) => assert!(!fails(n), "{n}"),
            Err(failure) => {
                assert!(fails(n), "{n}: {failure}");
                assert_eq!(failure.kind, FailureKind::NotFound);
            }
        }
    }
    let failure = results[599].as_ref().unwrap_err();
    assert!(failure.message.contains("ENODEV"), "{failure}");
    let points = (0..600).map(|n| FdbPoint { ifindex: vxlan1, bridge: false, mac: nth(n) }).collect();
    let rows = fdb(&mut kernel, &Query::FdbRows(points));
    assert_eq!(rows.len(), (0..600).filter(|n| !fails(*n)).count());
    let shown = json("bridge -n vtepd-demo -j fdb show dev vxlan1");
    let written = shown.as_array().unwrap().iter().filter(|row| row["dst"] == "192.168.205.11").count();
    assert_eq!(written, rows.len());
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
fn foreign_changes_in_the_overlay_are_heard() {
    let (mut kernel, br0, vxlan1) = datapath();
    let text = "02:42:0a:00:00:03";
    do_all(
        &mut kernel,
        &[
            Op::PutFdb { ifindex: vxlan1, mac: mac(text), dst: ip("192.168.205.11") },
            Op::PutNeighbour { ifindex: vxlan1, ip: ip("10.0.0.3"), mac: mac(text) },
        ],
    );
    let own = kernel.events();
    assert!(own.contains(&Event::Fdb(row(vxlan1, text, "192.168.205.11"))), "{own:?}");
    assert!(!own.iter().any(|event| matches!(event, Event::Neighbour(_))), "our own neighbours are known: {own:?}");
    assert!(kernel.events().is_empty());

    run("bridge -n vtepd-demo fdb replace 02:42:0a:00:00:03 dev vxlan1 dst 192.168.205.66 self");
    wait_for(
        &mut kernel,
        "an overwritten row",
        |event| matches!(event, Event::Fdb(row) if row.mac == mac(text) && row.dst == Some(ip("192.168.205.66"))),
    );
    run("bridge -n vtepd-demo fdb del 02:42:0a:00:00:03 dev vxlan1 self");
    wait_for(&mut kernel, "a deleted row", |event| matches!(event, Event::FdbGone(row) if row.mac == mac(text)));
    run("ip -n vtepd-demo neigh replace 10.0.0.3 lladdr 02:42:0a:00:00:66 dev vxlan1 nud permanent");
    wait_for(
        &mut kernel,
        "an overwritten neighbour",
        |event| matches!(event, Event::Neighbour(entry) if entry.mac == Some(mac("02:42:0a:00:00:66"))),
    );
    run("ip -n vtepd-demo neigh del 10.0.0.3 dev vxlan1");
    wait_for(
        &mut kernel,
        "a deleted neighbour",
        |event| matches!(event, Event::NeighbourGone(entry) if entry.ip == ip("10.0.0.3")),
    );
    run("bridge -n vtepd-demo link set dev vxlan1 learning on");
    wait_for(
        &mut kernel,
        "a port attribute",
        |event| matches!(event, Event::Link(link) if link.ifindex == vxlan1 && link.port.is_some_and(|port| port.learning)),
    );
    run("ip -n vtepd-demo addr add 10.0.0.1/24 dev br0");
    wait_for(&mut kernel, "an address", |event| *event == Event::Addresses(br0));
    run("ip -n vtepd-demo link set vxlan1 down");
    wait_for(
        &mut kernel,
        "a link that is down",
        |event| matches!(event, Event::Link(link) if link.ifindex == vxlan1 && !link.up),
    );
    run("ip -n vtepd-demo link set vxlan1 nomaster");
    wait_for(
        &mut kernel,
        "a port that left",
        |event| matches!(event, Event::Link(link) if link.ifindex == vxlan1 && link.master.is_none() && link.port.is_none()),
    );
    run("ip -n vtepd-demo link del vxlan1");
    wait_for(&mut kernel, "a deleted link", |event| *event == Event::LinkGone(vxlan1));
}

#[test]
fn a_port_that_leaves_its_bridge_is_not_taken_for_a_link_that_went_away() {
    let (mut kernel, _, vxlan1) = datapath();
    kernel.events();
    run("ip -n vtepd-demo link set vxlan1 nomaster");
    std::thread::sleep(Duration::from_millis(50));
    let events = kernel.events();
    assert!(!events.contains(&Event::LinkGone(vxlan1)), "{events:?}");
}

#[test]
fn foreign_changes_in_an_endpoints_namespace_are_heard_without_pinning_it() {
    let (mut kernel, ..) = datapath();
    run("ip netns add test1");
    do_all(&mut kernel, &[Op::AddLink(veth("veth2", "test1"))]);
    run("ip -n test1 addr add 10.0.0.2/24 dev eth0");
    run("ip -n test1 link set eth0 up");
    run("ip -n vtepd-demo link set veth2 up");
    let InnerState::Netns { nsid: Some(nsid), .. } = inner(&mut kernel, inner_at("test1")) else { panic!() };
    while !kernel.events().is_empty() {}
    for change in [
        "addr del 10.0.0.2/24 dev eth0",
        "addr add 10.0.0.2/24 dev eth0",
        "route add default via 10.0.0.1",
        "route del default",
        "link set eth0 down",
    ] {
        run(&format!("ip -n test1 {change}"));
        wait_for(&mut kernel, change, |event| *event == Event::Inner { nsid });
    }
    run("ip -n test1 link set eth0 up");
    run("ip -n test1 addr flush dev eth0");
    std::thread::sleep(Duration::from_millis(50));
    let events = kernel.events();
    let heard = events.iter().filter(|event| **event == Event::Inner { nsid }).count();
    assert_eq!(heard, 1, "told once in one drain: {events:?}");
    let veth2 = link(&mut kernel, "veth2").ifindex;
    run("ip netns del test1");
    wait_for(&mut kernel, "the namespace's end", |event| *event == Event::LinkGone(veth2));
}

#[test]
fn more_events_than_the_buffer_holds_are_one_overrun() {
    let (mut kernel, _, vxlan1) = datapath();
    while !kernel.events().is_empty() {}
    let nth = |n: u32| Mac::new([2, 0x42, 1, n.to_be_bytes()[1], n.to_be_bytes()[2], n.to_be_bytes()[3]]);
    let ops: Vec<Op> =
        (0..40_000).map(|n| Op::PutFdb { ifindex: vxlan1, mac: nth(n), dst: ip("192.168.205.11") }).collect();
    do_all(&mut kernel, &ops);
    let mut events = Vec::new();
    loop {
        let some = kernel.events();
        if some.is_empty() {
            break;
        }
        events.extend(some);
    }
    let overruns = events.iter().filter(|event| **event == Event::Overrun).count();
    println!("{} events, full buffer: {:?}", events.len(), kernel.full_event_buffer());
    assert_eq!(overruns, 1);
    assert!(events.len() < ops.len());
    run("ip -n vtepd-demo link set br0 down");
    wait_for(&mut kernel, "something after the overrun", |event| matches!(event, Event::Link(link) if !link.up));
}

#[test]
fn ten_thousand_rows_are_timed() {
    let (mut kernel, _, vxlan1) = datapath();
    let nth = |n: u32| Mac::new([2, 0x42, 1, n.to_be_bytes()[1], n.to_be_bytes()[2], n.to_be_bytes()[3]]);
    let put: Vec<Op> =
        (0..10_000).map(|n| Op::PutFdb { ifindex: vxlan1, mac: nth(n), dst: ip("192.168.205.11") }).collect();
    let neighbours: Vec<Op> = (0..10_000_u32)
        .map(|n| Op::PutNeighbour { ifindex: vxlan1, ip: IpAddr::from((0x0a00_0000 | n).to_be_bytes()), mac: nth(n) })
        .collect();
    let delete: Vec<Op> = (0..10_000).map(|n| Op::DeleteFdb { ifindex: vxlan1, mac: nth(n), dst: None }).collect();
    let timed = |what: &str, work: &mut dyn FnMut()| {
        let start = Instant::now();
        work();
        println!("{what}: {:.2} us each", start.elapsed().as_secs_f64() * 1e6 / 1e4);
    };
    timed("FDB add", &mut || do_all(&mut kernel, &put));
    timed("identical FDB replace", &mut || do_all(&mut kernel, &put));
    let points: Vec<_> = (0..10_000).map(|n| FdbPoint { ifindex: vxlan1, bridge: false, mac: nth(n) }).collect();
    timed("FDB point read", &mut || {
        assert_eq!(fdb(&mut kernel, &Query::FdbRows(points.clone())).len(), 10_000);
    });
    timed("FDB dump", &mut || assert!(fdb(&mut kernel, &Query::FdbDump(vxlan1)).len() >= 10_000));
    timed("neighbour add", &mut || do_all(&mut kernel, &neighbours));
    timed("FDB delete", &mut || do_all(&mut kernel, &delete));
    timed("events", &mut || while !kernel.events().is_empty() {});
    let netlink = Instant::now();
    kernel.read(&Query::Netns).unwrap();
    println!("look at the namespace again: {:?}", netlink.elapsed());
    run("ip netns add test1");
    do_all(&mut kernel, &[Op::AddLink(veth("veth2", "test1"))]);
    let look = Instant::now();
    inner(&mut kernel, inner_at("test1"));
    println!("look at an endpoint: {:?}", look.elapsed());
}

#[test]
fn paths_that_are_not_an_endpoints_namespace_are_told_apart() {
    let (mut kernel, ..) = datapath();
    run("ip netns add test1");
    let state = |kernel: &mut NetworkKernel, path: &str| inner(kernel, InnerAt { netns: path.into(), ..inner_at("") });
    fs::write("/run/netns/file", "").unwrap();
    fs::create_dir("/run/netns/dir").unwrap();
    nix::unistd::mkfifo("/run/netns/fifo", nix::sys::stat::Mode::S_IRUSR).unwrap();
    std::os::unix::fs::symlink("/run/netns/test1", "/run/netns/link").unwrap();
    std::os::unix::fs::symlink("/proc/self/ns", "/run/netns/dir/ns").unwrap();
    run("touch /run/netns/host /run/netns/uts");
    run("mount --bind /proc/self/ns/net /run/netns/host");
    run("mount --bind /proc/self/ns/uts /run/netns/uts");
    for path in ["/run/netns/none", "/run/netns/none/x", "/run/netns/file", "/run/docker/netns/x"] {
        assert_eq!(state(&mut kernel, path), InnerState::NoNetns, "{path}");
    }
    for (path, reason) in [
        ("/run/other/test1", "allowed root"),
        ("/run/netns", "allowed root"),
        ("/run/netns/../netns/test1", "allowed root"),
        ("/run/netns/dir", "not a network namespace"),
        ("/run/netns/fifo", "not a network namespace"),
        ("/run/netns/uts", "not a network namespace"),
        ("/run/netns/link", "symbolic link"),
        ("/run/netns/dir/ns/net", "symbolic link"),
        ("/run/netns/host", "the host's own"),
        ("/run/netns/vtepd-demo", "an overlay namespace"),
    ] {
        let InnerState::Refused(said) = state(&mut kernel, path) else { panic!("{path}") };
        assert!(said.contains(reason), "{path}: {said}");
    }
    let InnerState::Netns { nsid: None, link: None, .. } = state(&mut kernel, "/run/netns/test1") else { panic!() };
    let mut new = veth("veth2", "host");
    assert_eq!(kernel.apply(&[Op::AddLink(new)])[0].as_ref().unwrap_err().kind, FailureKind::Refused);
    new = veth("veth2", "none");
    assert_eq!(kernel.apply(&[Op::AddLink(new)])[0].as_ref().unwrap_err().kind, FailureKind::NotFound);
}

#[test]
fn without_its_namespace_every_operation_and_read_says_so() {
    private_host();
    let mut kernel = kernel_of("demo");
    let ops = [
        Op::PutFdb { ifindex: 2, mac: mac("02:42:0a:00:00:03"), dst: ip("192.168.205.11") },
        Op::AddLink(bridge()),
        Op::DeleteNeighbour { ifindex: 2, ip: ip("10.0.0.3") },
    ];
    let results = kernel.apply(&ops);
    assert_eq!(results.len(), 3);
    assert!(results.iter().all(|result| result.as_ref().unwrap_err().kind == FailureKind::NotFound));
    assert_eq!(kernel.read(&Query::Links).unwrap_err().kind, FailureKind::NotFound);
    assert!(kernel.events().is_empty());
}

#[test]
fn the_underlays_mtu_and_source_address_are_those_of_the_host() {
    private_host();
    run("ip link add eth9 mtu 1400 type veth peer name eth10");
    run("ip link set eth10 up");
    run("ip addr add 192.168.205.10/24 dev eth9");
    run("ip addr add fd00::10/64 dev eth9 nodad");
    run("ip link set eth9 up");
    assert_eq!(mtu_of(ip("192.168.205.10")).unwrap(), Some(1400));
    assert_eq!(mtu_of(ip("fd00::10")).unwrap(), Some(1400));
    assert_eq!(mtu_of(ip("192.168.205.11")).unwrap(), None);
    assert_eq!(source_towards(ip("192.168.205.77")).unwrap(), ip("192.168.205.10"));
    assert_eq!(source_towards(ip("fd00::77")).unwrap(), ip("fd00::10"));
    assert!(source_towards(ip("8.8.8.8")).is_err());
}
