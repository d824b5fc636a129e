use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
};

use ipnet::IpNet;

use crate::model::{
    EndpointId, Mac, Name, Netns, Route, Vni,
    nft::{Chain, ChainId},
};

/// The VXLAN device of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// Its UDP port.
    pub port: u16,
    /// This node's VTEP address.
    pub local: IpAddr,
    /// Frames to everyone, and to nobody known, go to every VTEP of the network.
    pub flood: bool,
}

/// One segment of a network: a bridge, and a VXLAN device to other hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Its identifier.
    pub vni: Vni,
    /// Its way to other hosts; the gateway bridge has none.
    pub tunnel: Option<Tunnel>,
    /// MTU of every device of the segment, in bytes.
    pub mtu: u32,
    /// The gateway addresses with their prefix lengths, held by the bridge on every node.
    pub gateways: Vec<IpNet>,
    /// The bridge's MAC address, the same on every node.
    pub gateway_mac: Mac,
}

/// What a network is on this node, without its endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkSpec {
    /// The network's name.
    pub name: Name,
    /// Its segments, ordered by VNI.
    pub segments: Vec<Segment>,
    /// Whether each local endpoint may send with its own addresses only.
    pub spoof_guard: bool,
    /// Chains of the home's own tables that no endpoint stands for.
    pub chains: BTreeMap<ChainId, Chain>,
}

impl NetworkSpec {
    /// The gateway addresses of all segments.
    pub fn gateways(&self) -> impl Iterator<Item = &IpNet> {
        self.segments.iter().flat_map(|segment| &segment.gateways)
    }

    /// The segment with this VNI.
    pub fn segment(&self, vni: Vni) -> Option<&Segment> {
        self.segments.iter().find(|segment| segment.vni == vni)
    }
}

/// An endpoint of this node that is to be wired into a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalEndpoint {
    /// The segment that it is on.
    pub vni: Vni,
    /// Its MAC address.
    pub mac: Mac,
    /// Its addresses with the prefix lengths of their subnets.
    pub addresses: Vec<IpNet>,
    /// Its network namespace.
    pub netns: Netns,
    /// Name of the interface in there.
    pub ifname: String,
    /// Its routes, at most one to a destination, in their order.
    pub routes: Vec<Route>,
    /// It asks for an interface to the outside.
    pub outside: bool,
}

/// An interface to the outside, for a namespace of this node. Which address it gets is up to the gateway bridge's own stage
/// ([`crate::engine::Gateway`]), which knows from the kernel which ones are taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutsideEndpoint {
    /// Path of the network namespace.
    pub netns: PathBuf,
    /// Name of the interface in there.
    pub ifname: String,
}

/// An endpoint behind another VTEP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteEndpoint {
    /// The segment that it is on.
    pub vni: Vni,
    /// Its MAC address.
    pub mac: Mac,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// The VTEP that it is behind.
    pub vtep: IpAddr,
}

/// What an endpoint means on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndpointSpec {
    /// It lives here and is wired up.
    Local(LocalEndpoint),
    /// It lives elsewhere.
    Remote(RemoteEndpoint),
    /// A namespace that gets an interface to the outside.
    Outside(OutsideEndpoint),
}

impl Update {
    /// Takes in what changed after this, so that it says both: what is newer replaces what is older, object by object.
    pub fn follow(&mut self, newer: Self) {
        self.revision = newer.revision;
        if newer.spec == Some(None) {
            self.endpoints.clear();
        }
        self.spec = newer.spec.or(self.spec.take());
        let changed: BTreeSet<&EndpointId> = newer.endpoints.iter().map(|(id, _)| id).collect();
        self.endpoints.retain(|(id, _)| !changed.contains(id));
        self.endpoints.extend(newer.endpoints);
    }
}

/// What changed in one network, from the store-wide stage to that network's engine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Update {
    /// The store's revision that this brings the network to.
    pub revision: i64,
    /// `None`: unchanged. `Some(None)`: the network is not to exist on this node. `Some(Some(_))`: new or changed.
    pub spec: Option<Option<Arc<NetworkSpec>>>,
    /// Endpoints that changed; `None` is one that is gone, or means nothing here.
    pub endpoints: Vec<(EndpointId, Option<EndpointSpec>)>,
}
