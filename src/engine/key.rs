//! How the engine names its objects: by what they are for, not by what the kernel numbers them.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;

use super::compact::RowKey;
use crate::model::{
    EndpointId, Mac, Vni,
    nft::{ChainId, TableId},
};

/// A link of a network.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LinkId {
    /// The bridge of a segment.
    Bridge(Vni),
    /// The VXLAN device of a segment.
    Vxlan(Vni),
    /// The end of a local endpoint's veth pair in the overlay namespace.
    Outer(EndpointId),
    /// The end in the endpoint's namespace.
    Inner(EndpointId),
    /// A link of ours in the overlay namespace that nothing desires, by its index.
    Stray(u32),
}

/// A row of a VXLAN device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TunnelKey {
    /// The segment.
    pub vni: Vni,
    /// The inner destination.
    pub mac: Mac,
    /// Part of the key only for the all-zero address, which has one row per destination.
    pub dst: Option<IpAddr>,
}

/// A row of a bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BridgeRowKey {
    /// The segment.
    pub vni: Vni,
    /// The endpoint's MAC address.
    pub mac: Mac,
}

/// A neighbour entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NeighbourKey {
    /// The segment.
    pub vni: Vni,
    /// On the bridge instead of the VXLAN device: one of ours only where the network floods and is routed.
    pub on_bridge: bool,
    /// The inner address.
    pub ip: IpAddr,
}

impl TunnelKey {
    /// The range of keys of one segment.
    pub fn all_of(vni: Vni) -> std::ops::RangeInclusive<Self> {
        let (least, most) = (IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::from([0xff; 16])));
        debug_assert!(least < most, "IpAddr orders IPv4 before IPv6");
        Self { vni, mac: Mac::ZERO, dst: None }..=Self { vni, mac: Mac::new([0xff; 6]), dst: Some(most) }
    }
}

impl RowKey for TunnelKey {
    type Group = Vni;
    type Short = Mac;

    fn split(&self) -> (Vni, Mac) {
        debug_assert!(self.dst.is_none(), "rows of flood lists are in a table of their own");
        (self.vni, self.mac)
    }

    fn join(vni: Vni, mac: Mac) -> Self {
        Self { vni, mac, dst: None }
    }
}

impl RowKey for NeighbourKey {
    type Group = (Vni, bool);
    type Short = IpAddr;

    fn split(&self) -> ((Vni, bool), IpAddr) {
        ((self.vni, self.on_bridge), self.ip)
    }

    fn join((vni, on_bridge): (Vni, bool), ip: IpAddr) -> Self {
        Self { vni, on_bridge, ip }
    }
}

impl BridgeRowKey {
    /// The range of keys of one segment.
    pub fn all_of(vni: Vni) -> std::ops::RangeInclusive<Self> {
        Self { vni, mac: Mac::ZERO }..=Self { vni, mac: Mac::new([0xff; 6]) }
    }
}

impl NeighbourKey {
    /// The link whose table it is in.
    pub const fn link(&self) -> LinkId {
        if self.on_bridge { LinkId::Bridge(self.vni) } else { LinkId::Vxlan(self.vni) }
    }
}

/// A family of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both of them.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    pub const fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// Any object of a network.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// The overlay namespace.
    Netns,
    /// A link.
    Link(LinkId),
    /// An address on a link.
    Address(LinkId, IpNet),
    /// A route out of a link, by its destination.
    Route(LinkId, IpNet),
    /// The overlay namespace forwards packets of this family.
    Forwarding(Family),
    /// A row of a VXLAN device.
    Tunnel(TunnelKey),
    /// A row of a bridge.
    BridgeRow(BridgeRowKey),
    /// A neighbour entry.
    Neighbour(NeighbourKey),
    /// A table of nftables, apart from its chains.
    Rules(TableId),
    /// A chain with its rules.
    Chain(ChainId),
}

impl Key {
    /// The kind that metrics file it under.
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Netns => Kind::Netns,
            Self::Link(_) => Kind::Link,
            Self::Address(..) => Kind::Address,
            Self::Route(..) | Self::Forwarding(_) => Kind::Route,
            Self::Tunnel(key) if key.dst.is_some() => Kind::Flood,
            Self::Tunnel(_) | Self::BridgeRow(_) => Kind::Fdb,
            Self::Neighbour(_) => Kind::Neighbour,
            Self::Rules(_) | Self::Chain(_) => Kind::Nat,
        }
    }

    /// A stable number for the jitter of its retries.
    pub(super) fn salt(&self) -> u64 {
        crate::model::stable_hash(self.to_string().as_bytes())
    }
}

impl fmt::Display for LinkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bridge(Vni::GATEWAY) => f.write_str("gateway bridge"),
            Self::Bridge(vni) => write!(f, "bridge of VNI {vni}"),
            Self::Vxlan(vni) => write!(f, "VXLAN device of VNI {vni}"),
            Self::Outer(id) => write!(f, "veth of {id}"),
            Self::Inner(id) => write!(f, "interface of {id}"),
            Self::Stray(ifindex) => write!(f, "stray link {ifindex}"),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Netns => write!(f, "overlay namespace"),
            Self::Link(link) => link.fmt(f),
            Self::Address(link, net) => write!(f, "address {net} on the {link}"),
            Self::Route(link, dst) => write!(f, "route to {dst} of the {link}"),
            Self::Forwarding(Family::V4) => write!(f, "IPv4 forwarding of the overlay namespace"),
            Self::Forwarding(Family::V6) => write!(f, "IPv6 forwarding of the overlay namespace"),
            Self::Tunnel(TunnelKey { vni, mac, dst: None }) => write!(f, "FDB row {mac} of VNI {vni}"),
            Self::Tunnel(TunnelKey { vni, mac, dst: Some(dst) }) => write!(f, "FDB row {mac} to {dst} of VNI {vni}"),
            Self::BridgeRow(BridgeRowKey { vni: Vni::GATEWAY, mac }) => write!(f, "row {mac} of the gateway bridge"),
            Self::BridgeRow(BridgeRowKey { vni, mac }) => write!(f, "bridge row {mac} of VNI {vni}"),
            Self::Neighbour(NeighbourKey { vni, ip, on_bridge: true }) => {
                write!(f, "neighbour {ip} on the bridge of VNI {vni}")
            }
            Self::Neighbour(NeighbourKey { vni, ip, .. }) => write!(f, "neighbour {ip} of VNI {vni}"),
            Self::Rules(table) => write!(f, "table {table}"),
            Self::Chain(chain) => write!(f, "chain {chain}"),
        }
    }
}

/// The kinds of objects, a closed set: the `kind` label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Overlay namespaces.
    Netns,
    /// Links.
    Link,
    /// Addresses.
    Address,
    /// Routes of endpoints, and that the overlay namespace forwards.
    Route,
    /// Forwarding rows with one destination.
    Fdb,
    /// Neighbour entries.
    Neighbour,
    /// Forwarding rows of the flood list.
    Flood,
    /// Tables and chains of nftables, whatever they are for: the guards of endpoints' ports, filters, address translation.
    Nat,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 8] =
        [Self::Netns, Self::Link, Self::Address, Self::Route, Self::Fdb, Self::Neighbour, Self::Flood, Self::Nat];

    /// The metric label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Netns => "netns",
            Self::Link => "link",
            Self::Address => "address",
            Self::Route => "route",
            Self::Fdb => "fdb",
            Self::Neighbour => "neighbour",
            Self::Flood => "flood",
            Self::Nat => "nat",
        }
    }
}
