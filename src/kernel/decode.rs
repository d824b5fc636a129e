//! What the kernel sends, as our nouns. Only the attributes that matter here are looked at: a new kernel's unknown or changed
//! attribute elsewhere in a message must not hide a link.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use nix::libc;

use super::{
    settings,
    wire::{attribute, attributes, i32_at, text, u8_at, u16_at, u32_at},
};
use crate::{
    engine::{
        ADDRESS_PROTOCOL, Address, FdbRow, Link, LinkKind, NEIGHBOUR_PROTOCOL, Neighbour, Of, Port, VxlanAttributes,
    },
    model::Mac,
};

/// `struct ifinfomsg`, `struct ifaddrmsg`, `struct ndmsg`, `struct rtmsg`, `struct rtgenmsg` (aligned): the fixed header before the attributes.
const IFINFOMSG: usize = 16;
const IFADDRMSG: usize = 8;
const NDMSG: usize = 12;
const RTMSG: usize = 12;
const RTGENMSG: usize = 4;

// include/uapi/linux/if_link.h
const IFLA_ADDRESS: u16 = libc::IFLA_ADDRESS;
const IFLA_VXLAN_ID: u16 = 1;
const IFLA_VXLAN_LOCAL: u16 = 4;
const IFLA_VXLAN_LEARNING: u16 = 7;
const IFLA_VXLAN_PROXY: u16 = 11;
const IFLA_VXLAN_PORT: u16 = 15;
const IFLA_VXLAN_LOCAL6: u16 = 17;
const IFLA_BR_MCAST_SNOOPING: u16 = 23;
const IFLA_BRPORT_LEARNING: u16 = 8;
const IFLA_BRPORT_UNICAST_FLOOD: u16 = 9;
const IFLA_BRPORT_ISOLATED: u16 = 33;
const IFLA_BRPORT_LOCKED: u16 = 39;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const IN6_ADDR_GEN_MODE_NONE: u8 = 1;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFLA_INFO_SLAVE_DATA: u16 = 5;

// include/uapi/linux/if_addr.h
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_PROTO: u16 = 11;

// include/uapi/linux/neighbour.h
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NDA_VLAN: u16 = 5;
const NDA_PORT: u16 = 6;
const NDA_VNI: u16 = 7;
const NDA_IFINDEX: u16 = 8;
const NDA_SRC_VNI: u16 = 11;
const NDA_PROTOCOL: u16 = 12;
const NDA_NH_ID: u16 = 13;
const NDA_FLAGS_EXT: u16 = 15;
const NUD_NOARP: u16 = 0x40;
const NUD_PERMANENT: u16 = 0x80;
const NTF_SELF: u8 = 0x02;
const NTF_PROXY: u8 = 0x08;
const NTF_EXT_LEARNED: u8 = 0x10;
const NTF_OFFLOADED: u8 = 0x20;

const NETNSA_NSID: u16 = 1;

/// Family and index of a link message.
pub(super) fn link_head(body: &[u8]) -> Option<(u8, u32)> {
    Some((u8_at(body, 0)?, u32_at(body, 4)?))
}

/// The index of a link, and its group.
pub(super) fn group(body: &[u8]) -> Option<(u32, u32)> {
    let (_, ifindex) = link_head(body)?;
    let group = attribute(body.get(IFINFOMSG..)?, libc::IFLA_GROUP).and_then(|value| u32_at(value, 0));
    Some((ifindex, group.unwrap_or(0)))
}

/// A link (`AF_UNSPEC`; those of the family `AF_BRIDGE` tell of a port only).
pub(super) fn link(body: &[u8]) -> Option<Link> {
    let (_, ifindex) = link_head(body)?;
    let flags = u32_at(body, 8)?;
    let up = flags & 1 == 1;
    let mut link = Link {
        ifindex,
        name: String::new(),
        mac: Mac::ZERO,
        mtu: 0,
        up,
        master: None,
        group: 0,
        // Without IPv6 on the link there is nothing to generate.
        addr_gen_none: true,
        kind: LinkKind::Other(String::new()),
        port: None,
        off: BTreeSet::new(),
    };
    let mut info: &[u8] = &[];
    let (mut peer, mut peer_nsid) = (None, None);
    for (kind, value) in attributes(body.get(IFINFOMSG..)?) {
        match kind {
            IFLA_ADDRESS => link.mac = Mac::try_from(value).unwrap_or(Mac::ZERO),
            libc::IFLA_IFNAME => link.name = text(value),
            libc::IFLA_MTU => link.mtu = u32_at(value, 0)?,
            libc::IFLA_MASTER => link.master = u32_at(value, 0),
            libc::IFLA_GROUP => link.group = u32_at(value, 0)?,
            libc::IFLA_LINK => peer = u32_at(value, 0).filter(|index| *index != 0),
            libc::IFLA_LINK_NETNSID => peer_nsid = i32_at(value, 0).filter(|nsid| *nsid >= 0),
            libc::IFLA_LINKINFO => info = value,
            libc::IFLA_AF_SPEC => link.addr_gen_none = addr_gen_none(value),
            _ => {}
        }
    }
    let data = attribute(info, IFLA_INFO_DATA).unwrap_or_default();
    link.kind = match attribute(info, IFLA_INFO_KIND).map(text).unwrap_or_default() {
        kind if kind == "bridge" => LinkKind::Bridge { mcast_snooping: flag(data, IFLA_BR_MCAST_SNOOPING) },
        kind if kind == "vxlan" => LinkKind::Vxlan(vxlan(data)),
        kind if kind == "veth" => LinkKind::Veth { peer, peer_nsid },
        kind => LinkKind::Other(kind),
    };
    let mut nests = match link.kind {
        LinkKind::Bridge { .. } => vec![(Of::Bridge, data)],
        LinkKind::Vxlan(_) => vec![(Of::Vxlan, data)],
        LinkKind::Veth { .. } | LinkKind::Other(_) => Vec::new(),
    };
    if attribute(info, IFLA_INFO_SLAVE_KIND).map(text).as_deref() == Some("bridge") {
        let port = attribute(info, IFLA_INFO_SLAVE_DATA).unwrap_or_default();
        nests.push((Of::Port, port));
        link.port = Some(Port {
            learning: flag(port, IFLA_BRPORT_LEARNING),
            unicast_flood: flag(port, IFLA_BRPORT_UNICAST_FLOOD),
            isolated: flag(port, IFLA_BRPORT_ISOLATED),
            locked: attribute(port, IFLA_BRPORT_LOCKED).map(|_| flag(port, IFLA_BRPORT_LOCKED)),
        });
    }
    link.off = settings::off(flags, body.get(IFINFOMSG..)?, &nests);
    Some(link)
}

/// `IFLA_IFALIAS` of a link message.
pub(super) fn alias(body: &[u8]) -> Option<String> {
    attribute(body.get(IFINFOMSG..)?, libc::IFLA_IFALIAS).map(text)
}

fn flag(attributes: &[u8], kind: u16) -> bool {
    attribute(attributes, kind).and_then(|value| u8_at(value, 0)).is_some_and(|value| value != 0)
}

fn vxlan(data: &[u8]) -> VxlanAttributes {
    let local = attribute(data, IFLA_VXLAN_LOCAL).or_else(|| attribute(data, IFLA_VXLAN_LOCAL6)).and_then(ip);
    let port = attribute(data, IFLA_VXLAN_PORT).and_then(|value| value.first_chunk().copied());
    VxlanAttributes {
        vni: attribute(data, IFLA_VXLAN_ID).and_then(|value| u32_at(value, 0)).unwrap_or(0),
        port: port.map_or(0, u16::from_be_bytes),
        local: local.filter(|local| !local.is_unspecified()),
        learning: flag(data, IFLA_VXLAN_LEARNING),
        proxy: flag(data, IFLA_VXLAN_PROXY),
    }
}

fn addr_gen_none(spec: &[u8]) -> bool {
    let inet6 = attribute(spec, u16::try_from(libc::AF_INET6).unwrap_or(0));
    let mode = inet6.and_then(|inet6| attribute(inet6, IFLA_INET6_ADDR_GEN_MODE)).and_then(|value| u8_at(value, 0));
    mode.is_none_or(|mode| mode == IN6_ADDR_GEN_MODE_NONE)
}

pub(super) fn ip(value: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(value).map(IpAddr::from).or_else(|_| <[u8; 16]>::try_from(value).map(IpAddr::from)).ok()
}

/// An address.
pub(super) fn address(body: &[u8]) -> Option<Address> {
    let (prefix, ifindex) = (u8_at(body, 1)?, u32_at(body, 4)?);
    let list = body.get(IFADDRMSG..)?;
    // Of a point-to-point link IFA_ADDRESS is the other side's; IPv6 otherwise has no IFA_LOCAL.
    let ip = attribute(list, IFA_LOCAL).or_else(|| attribute(list, IFA_ADDRESS)).and_then(ip)?;
    let ours = attribute(list, IFA_PROTO).and_then(|value| u8_at(value, 0)) == Some(ADDRESS_PROTOCOL);
    Some(Address { ifindex, net: IpNet::new(ip, prefix).ok()?, ours, routed: true })
}

/// What a message of the neighbour family is about.
#[derive(Debug)]
pub(super) enum Row {
    Fdb(FdbRow),
    Neighbour(Neighbour),
}

/// A forwarding row or a neighbour entry. `None` for what the engine has no noun for: entries of proxies, and a bridge's rows
/// within a VLAN (on a bridge that knows VLANs each of our rows stands a second time in the port's default VLAN, made and
/// deleted by the kernel together with the first and without effect while the bridge does not filter).
pub(super) fn row(body: &[u8]) -> Option<Row> {
    let (family, ifindex) = (i32::from(u8_at(body, 0)?), u32_at(body, 4)?);
    let (state, flags) = (u16_at(body, 8)?, u8_at(body, 10)?);
    let list = body.get(NDMSG..)?;
    match family {
        libc::AF_BRIDGE => fdb_row(ifindex, state, flags, list).map(Row::Fdb),
        libc::AF_INET | libc::AF_INET6 if flags & NTF_PROXY == 0 => Some(Row::Neighbour(Neighbour {
            ifindex,
            ip: attribute(list, NDA_DST).and_then(ip)?,
            mac: attribute(list, NDA_LLADDR).and_then(|value| Mac::try_from(value).ok()),
            permanent: state & NUD_PERMANENT != 0,
            ours: attribute(list, NDA_PROTOCOL).and_then(|value| u8_at(value, 0)) == Some(NEIGHBOUR_PROTOCOL),
        })),
        _ => None,
    }
}

fn fdb_row(ifindex: u32, state: u16, flags: u8, list: &[u8]) -> Option<FdbRow> {
    let bridge = flags & NTF_SELF == 0;
    let (mut mac, mut dst, mut more) = (None, None, false);
    for (kind, value) in attributes(list) {
        match kind {
            NDA_LLADDR => mac = Mac::try_from(value).ok(),
            NDA_DST => dst = ip(value),
            NDA_VLAN if bridge => return None,
            NDA_PORT | NDA_VNI | NDA_IFINDEX | NDA_SRC_VNI | NDA_NH_ID => more = true,
            NDA_FLAGS_EXT => more |= u32_at(value, 0) != Some(0),
            _ => {}
        }
    }
    let mac = mac?;
    let learned = state & (NUD_PERMANENT | NUD_NOARP) == 0 && flags & NTF_EXT_LEARNED == 0;
    let own_flags = if bridge { 0 } else { NTF_SELF };
    let state_fits = match bridge {
        true => state == NUD_NOARP,
        // One state for all destinations, the last writer's (vxlan_fdb_update_existing, drivers/net/vxlan): another one that
        // does not age either, as `bridge` writes it, is no difference between rows.
        false if mac.is_zero() => state & NUD_PERMANENT != 0 && dst.is_some(),
        false => state == NUD_PERMANENT && dst.is_some(),
    };
    let plain = flags & !NTF_OFFLOADED == own_flags && !more && state_fits;
    // Nobody sends from the all-zero address.
    let kernels_own = mac.is_multicast() || (learned && !mac.is_zero()) || (bridge && state & NUD_PERMANENT != 0);
    Some(FdbRow { ifindex, bridge, mac, dst, plain, kernels_own })
}

/// Index of the link in a message of traffic control.
pub(super) fn qdisc_ifindex(body: &[u8]) -> Option<u32> {
    u32_at(body, 4)
}

/// Index of the link in an address message.
pub(super) fn address_ifindex(body: &[u8]) -> Option<u32> {
    u32_at(body, 4)
}

/// Index of the link that a route leads out of, where it is one (`RTA_OIF`).
pub(super) fn route_ifindex(body: &[u8]) -> Option<u32> {
    attribute(body.get(RTMSG..)?, libc::RTA_OIF).and_then(|value| u32_at(value, 0))
}

/// The namespace identifier in the answer to `RTM_GETNSID`; -1 there stands for none.
pub(super) fn nsid(body: &[u8]) -> Option<i32> {
    attribute(body.get(RTGENMSG..)?, NETNSA_NSID).and_then(|value| i32_at(value, 0)).filter(|nsid| *nsid >= 0)
}
