//! Veth pairs into endpoints' namespaces, and what is no such namespace.

use std::fs;

use serde_json::json as value;
use vtepd::{
    engine::{
        Address, Event, FailureKind, InnerAt, InnerLink, InnerState, Kernel, LinkChange, LinkKind, NewLink, Op, Place,
        Port,
    },
    kernel::NetworkKernel,
    model::Netns,
};

use crate::{
    edge::{GROUP, datapath, do_all, inner, inner_at, link, set, veth},
    support::{json, run},
};

#[test]
fn a_veth_pair_stands_in_both_namespaces_by_one_message() {
    let (mut kernel, br0, _) = datapath();
    run("ip netns add test1");
    do_all(&mut kernel, &[Op::AddLink(veth("veth2", "test1"))]);
    let outer = link(&mut kernel, "veth2");
    let port = Port { learning: false, unicast_flood: false, isolated: false, locked: Some(false) };
    let change = LinkChange {
        master: Some(br0),
        port: Some(port),
        addr_gen_none: true,
        up: Some(true),
        ..LinkChange::default()
    };
    let place = Place::Inner(inner_at("test1").netns);
    let InnerState::Netns { link: Some(InnerLink { link: eth0, .. }), .. } = inner(&mut kernel, inner_at("test1"))
    else {
        panic!()
    };
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
    let InnerState::Netns { nsid, link: Some(InnerLink { link: eth0, addresses, .. }), .. } =
        inner(&mut kernel, inner_at("test1"))
    else {
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
fn an_endpoint_in_the_hosts_own_namespace_is_made_read_heard_and_removed() {
    let (mut kernel, ..) = datapath();
    let at = InnerAt { netns: Netns::Host, ifname: "ov0".to_owned(), ifindex: None };
    assert!(matches!(inner(&mut kernel, at.clone()), InnerState::Netns { nsid: Some(_), link: None, .. }));
    let mut new = veth("veth2", "unused");
    if let NewLink::Veth { inner, .. } = &mut new {
        *inner = at.clone();
    }
    do_all(&mut kernel, &[Op::AddLink(new.clone())]);
    let InnerState::Netns { nsid: Some(nsid), link: Some(InnerLink { link: ov0, .. }), .. } = inner(&mut kernel, at)
    else {
        panic!()
    };
    assert_eq!(json("ip -j link show ov0")[0]["address"], "02:42:0a:00:00:02");
    let kind = LinkKind::Veth { peer: Some(ov0.ifindex), peer_nsid: Some(nsid) };
    assert_eq!(link(&mut kernel, "veth2").kind, kind);
    let place = Place::Inner(Netns::Host);
    let (ifindex, net) = (ov0.ifindex, "10.0.0.2/24".parse().unwrap());
    let up = LinkChange { up: Some(true), ..LinkChange::default() };
    let set_up = Op::SetLink { place: place.clone(), ifindex, change: up };
    do_all(&mut kernel, &[set_up, Op::AddAddress { place: place.clone(), ifindex, net }]);
    assert!(run("ip addr show ov0").contains("10.0.0.2/24"));
    let told = Event::Inner { nsid, ifindex: Some(ifindex) };
    for change in ["addr del 10.0.0.2/24 dev ov0", "link set ov0 down", "link del ov0"] {
        while !kernel.events().is_empty() {}
        run(&format!("ip {change}"));
        assert!(kernel.events().contains(&told), "{change}");
    }
    run("ip link add ov0 type bridge");
    let failure = kernel.apply(&[Op::AddLink(new)]).remove(0).unwrap_err();
    assert_eq!(failure.kind, FailureKind::Exists, "{failure}");
    do_all(&mut kernel, &[Op::DeleteLink { place, ifindex }]);
    assert!(run("ip -d link show ov0").contains("bridge"), "somebody else's link of that name stays");
}
