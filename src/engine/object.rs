//! What the kernel holds, in the kernel's own terms, as the engine sees it.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;

use super::{key::Family, setting::Setting};
use crate::model::{Mac, Netns, Route};

/// `NDA_PROTOCOL` of our neighbour entries: who made them, readable with `ip -d neigh` (a number without a name in `rt_protos`).
pub const NEIGHBOUR_PROTOCOL: u8 = 0x76;

/// `IFA_PROTO` of our addresses (Linux 5.18; older kernels ignore it), readable with `ip -d addr`.
pub const ADDRESS_PROTOCOL: u8 = 0x76;

/// `rtm_protocol` of our routes: who made them, readable with `ip route` (a number without a name in `rt_protos`).
pub const ROUTE_PROTOCOL: u8 = 0x76;

/// Identity of a network namespace: an inode number is reused only after the namespace is gone, a path names whatever is bound there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetnsId {
    /// Device of the nsfs file.
    pub device: u64,
    /// Inode of the nsfs file.
    pub inode: u64,
}

/// What stands at the path of the overlay namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetnsState {
    /// Nothing, or an empty file without a namespace bound to it.
    Absent,
    /// A namespace that carries our mark.
    Ours(NetnsId),
    /// A namespace or file of somebody else.
    Foreign,
}

/// Attributes of a VXLAN device (`IFLA_VXLAN_*`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VxlanAttributes {
    /// `IFLA_VXLAN_ID`.
    pub vni: u32,
    /// `IFLA_VXLAN_PORT`.
    pub port: u16,
    /// `IFLA_VXLAN_LOCAL` or `IFLA_VXLAN_LOCAL6`.
    pub local: Option<IpAddr>,
    /// `IFLA_VXLAN_LEARNING`.
    pub learning: bool,
    /// `IFLA_VXLAN_PROXY`.
    pub proxy: bool,
}

/// What kind of device a link is (`IFLA_INFO_KIND`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// A bridge.
    Bridge {
        /// `IFLA_BR_MCAST_SNOOPING`.
        mcast_snooping: bool,
    },
    /// A VXLAN device.
    Vxlan(VxlanAttributes),
    /// One end of a veth pair.
    Veth {
        /// Index of the other end, in its own namespace (`IFLA_LINK`).
        peer: Option<u32>,
        /// Identifier of the other end's namespace in this one (`IFLA_LINK_NETNSID`); `None` when it is the same namespace.
        peer_nsid: Option<i32>,
    },
    /// Anything else, by its kind.
    Other(String),
}

/// Bridge port attributes (`IFLA_BRPORT_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    /// `IFLA_BRPORT_LEARNING`.
    pub learning: bool,
    /// `IFLA_BRPORT_UNICAST_FLOOD`.
    pub unicast_flood: bool,
    /// `IFLA_BRPORT_ISOLATED`: exchanges no frames with other isolated ports.
    pub isolated: bool,
    /// `IFLA_BRPORT_LOCKED` (Linux 5.16): a frame is dropped, before it is forwarded or given to the bridge itself, unless its source
    /// has a row to this port (`br_handle_frame_finish`, net/bridge/br_input.c). Our static row is one; none is added without
    /// learning and `mab`, which are off. `None` where the kernel does not know the attribute.
    pub locked: Option<bool>,
}

impl Port {
    /// Whether a port that looks so is as it should be, as far as its kernel can.
    pub fn is_met_by(self, seen: Self) -> bool {
        self == Self { locked: seen.locked.or(self.locked), ..seen }
    }
}

/// A link as the kernel shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its index in its namespace.
    pub ifindex: u32,
    /// `IFLA_IFNAME`.
    pub name: String,
    /// `IFLA_ADDRESS`.
    pub mac: Mac,
    /// `IFLA_MTU`.
    pub mtu: u32,
    /// `IFF_UP`, the administrative state.
    pub up: bool,
    /// Index of the bridge it is a port of (`IFLA_MASTER`).
    pub master: Option<u32>,
    /// `IFLA_GROUP`.
    pub group: u32,
    /// Whether IPv6 makes no address by itself (`IFLA_INET6_ADDR_GEN_MODE` is none).
    pub addr_gen_none: bool,
    /// What it is.
    pub kind: LinkKind,
    /// Its bridge port attributes, when it is a port.
    pub port: Option<Port>,
    /// What is not as the kernel makes it.
    pub off: BTreeSet<Setting>,
}

/// An address on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The link that holds it.
    pub ifindex: u32,
    /// Address and prefix length.
    pub net: IpNet,
    /// `IFA_PROTO` is ours.
    pub ours: bool,
    /// The routes that the kernel makes with it stand: packets to it are taken in, those to its subnet leave by the link. Only said of
    /// addresses of ours on a link that is up.
    pub routed: bool,
}

/// A row of a forwarding database: of a VXLAN device (`NTF_SELF`) or of the bridge that a port belongs to (`NTF_MASTER`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FdbRow {
    /// The VXLAN device, or the bridge's port.
    pub ifindex: u32,
    /// True for a row of the bridge, false for one of the VXLAN device itself.
    pub bridge: bool,
    /// The inner destination.
    pub mac: Mac,
    /// The outer destination; `None` for rows of the bridge.
    pub dst: Option<IpAddr>,
    /// Exactly the form that we write and nothing more: of a VXLAN device `permanent` with the device's own port, VNI and no
    /// interface or nexthop; of a bridge `static` (NUD_NOARP), not `permanent`, no VLAN.
    pub plain: bool,
    /// The kernel's own: learned, of a port's or bridge's own address (`permanent` on the bridge), multicast.
    pub kernels_own: bool,
}

/// A neighbour entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// The link it is on.
    pub ifindex: u32,
    /// The inner address.
    pub ip: IpAddr,
    /// The MAC address; `None` while it is being resolved, or has failed.
    pub mac: Option<Mac>,
    /// `NUD_PERMANENT`.
    pub permanent: bool,
    /// `NDA_PROTOCOL` is ours.
    pub ours: bool,
}

/// A unicast route of the main table out of a link, with the metric that ours have (0 for IPv4, 1024 for IPv6). Those that the
/// kernel makes by itself, to the subnets of addresses or because of what routers say, are none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteRow {
    /// Where it leads, and how.
    pub route: Route,
    /// `rtm_protocol` is ours.
    pub ours: bool,
    /// Exactly the form that we write and nothing more, the protocol aside.
    pub plain: bool,
    /// No other route leads there with this metric, out of whatever link.
    pub alone: bool,
}

/// Whether a namespace forwards packets of a family, as far as it does (`net.ipv4.conf.*.forwarding`, `net.ipv6.conf.*.forwarding`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forwarding {
    /// From and to all links, also those to come.
    Everywhere,
    /// It is on for some and off for others.
    Partly,
}

/// The container's end of a local endpoint with what hangs on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InnerLink {
    /// The link.
    pub link: Link,
    /// Its addresses.
    pub addresses: Vec<Address>,
    /// The routes out of it, in the kernel's order.
    pub routes: Vec<RouteRow>,
    /// The families of which its namespace has a default route out of another link, by whatever metric.
    pub defaults_elsewhere: BTreeSet<Family>,
}

/// Where the container's end of a local endpoint is, or is to be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct InnerAt {
    /// The endpoint's namespace.
    pub netns: Netns,
    /// Name of the interface in there.
    pub ifname: String,
    /// Its index, when the other end has told it.
    pub ifindex: Option<u32>,
}

/// What stands at an endpoint's namespace path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InnerState {
    /// Nothing there (yet), or a file without a namespace (the file shows before the mount).
    NoNetns,
    /// A path that must not be used, with the reason: outside the allowed roots, not a network namespace, the host's own.
    Refused(String),
    /// A namespace.
    Netns {
        /// Its identity.
        id: NetnsId,
        /// Its identifier as seen from the overlay namespace, when one is assigned.
        nsid: Option<i32>,
        /// The link asked for: by index where that was given, else by name.
        link: Option<InnerLink>,
    },
}
