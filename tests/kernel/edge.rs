//! The kernel edge in short words, and the datapath of one network made with it.

use std::path::Path;

use vtepd::{
    engine::{
        Answer, FdbRow, InnerAt, InnerState, Kernel, Link, LinkChange, LinkRef, NetnsState, NewLink, Op, Place, Port,
        Query,
    },
    kernel::NetworkKernel,
};

use crate::support::{ip, kernel_of, mac, private_host};

pub(crate) const NETNS: &str = "vtepd-demo";
pub(crate) const GROUP: u32 = 7652;

pub(crate) fn do_all(kernel: &mut NetworkKernel, ops: &[Op]) {
    for (op, result) in ops.iter().zip(kernel.apply(ops)) {
        result.unwrap_or_else(|failure| panic!("{op:?}: {failure}"));
    }
}

pub(crate) fn netns(kernel: &mut NetworkKernel) -> NetnsState {
    match kernel.read(&Query::Netns).unwrap() {
        Answer::Netns(state) => state,
        other => panic!("{other:?}"),
    }
}

pub(crate) fn vxlan(vni: u32, local: &str) -> NewLink {
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

pub(crate) fn bridge() -> NewLink {
    NewLink::Bridge { name: "br0".to_owned(), mac: mac("02:42:0a:00:00:01"), group: GROUP }
}

pub(crate) fn veth(name: &str, netns: &str) -> NewLink {
    NewLink::Veth {
        name: name.to_owned(),
        mac: mac("02:00:00:00:00:02"),
        mtu: 1450,
        group: GROUP,
        inner: inner_at(netns),
        inner_mac: mac("02:42:0a:00:00:02"),
    }
}

pub(crate) fn inner_at(netns: &str) -> InnerAt {
    InnerAt { netns: Path::new("/run/netns").join(netns).into(), ifname: "eth0".to_owned(), ifindex: None }
}

pub(crate) fn link(kernel: &mut NetworkKernel, name: &str) -> Link {
    match kernel.read(&Query::Link(LinkRef::Name(name.to_owned()))).unwrap() {
        Answer::Links(links, _) => links.into_iter().next().unwrap_or_else(|| panic!("{name} is not there")),
        other => panic!("{other:?}"),
    }
}

pub(crate) fn inner(kernel: &mut NetworkKernel, at: InnerAt) -> InnerState {
    match kernel.read(&Query::Inner(at)).unwrap() {
        Answer::Inner(state) => state,
        other => panic!("{other:?}"),
    }
}

pub(crate) fn fdb(kernel: &mut NetworkKernel, query: &Query) -> Vec<FdbRow> {
    match kernel.read(query).unwrap() {
        Answer::Fdb(rows) => rows,
        other => panic!("{other:?}"),
    }
}

pub(crate) fn set(ifindex: u32, change: LinkChange) -> Op {
    Op::SetLink { place: Place::Overlay, ifindex, change }
}

/// A private host with an overlay namespace, a bridge and a VXLAN device in it; their indexes.
pub(crate) fn datapath() -> (NetworkKernel, u32, u32) {
    private_host();
    let mut kernel = kernel_of("demo");
    do_all(&mut kernel, &[Op::CreateNetns, Op::AddLink(bridge()), Op::AddLink(vxlan(256, "192.168.205.10"))]);
    let (br0, vxlan1) = (link(&mut kernel, "br0").ifindex, link(&mut kernel, "vxlan1").ifindex);
    let change = LinkChange {
        master: Some(br0),
        port: Some(Port { learning: false, unicast_flood: true, isolated: false, locked: Some(false) }),
        addr_gen_none: true,
        up: Some(true),
        ..LinkChange::default()
    };
    let up = LinkChange { mtu: Some(1450), addr_gen_none: true, up: Some(true), ..LinkChange::default() };
    do_all(&mut kernel, &[set(vxlan1, change), set(br0, up)]);
    (kernel, br0, vxlan1)
}

pub(crate) fn row(ifindex: u32, text: &str, dst: &str) -> FdbRow {
    FdbRow { ifindex, bridge: false, mac: mac(text), dst: Some(ip(dst)), plain: true, kernels_own: false }
}
