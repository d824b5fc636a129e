//! The store-wide stage: what records in force mean on this node.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use ipnet::IpNet;

use super::{
    EndpointSpec, LocalEndpoint, NetworkSpec, RemoteEndpoint, Segment,
    fit::{gateway_mac, with_prefix_len},
    records::{EndpointState, NetworkState, Standing},
    report::BlockedReason,
    store::Store,
};
use crate::model::{EndpointId, Name, Netns, Network, Vni};

/// What VXLAN adds to a frame on an underlay of each family, the outer Ethernet header left out.
const OVERHEAD_V4: u32 = 50;
const OVERHEAD_V6: u32 = 70;
/// The least MTU that IPv4 and IPv6 work with.
const MIN_MTU: u32 = 68;
const MIN_MTU_V6: u32 = 1280;

impl Store {
    /// The VTEP address of a node, if it is in force. This node's configured one needs no record.
    pub(super) fn vtep_of(&self, node: &Name) -> Option<IpAddr> {
        if *node == self.config.node && self.config.vtep.is_some() {
            return self.config.vtep;
        }
        let state = self.nodes.get(node).filter(|state| state.in_force)?;
        state.record.as_ref().map(|held| held.value)
    }

    /// MTU of the overlay in bytes.
    fn mtu_of(&self, network: &Network, local: IpAddr) -> u32 {
        let overhead = if local.is_ipv4() { OVERHEAD_V4 } else { OVERHEAD_V6 };
        network.mtu.unwrap_or_else(|| self.config.underlay_mtu.saturating_sub(overhead))
    }

    /// Why the network cannot be made on this node now.
    pub(super) fn blocked_network(&self, network: &Network) -> Option<BlockedReason> {
        if network.secure || network.flood {
            return Some(BlockedReason::Unsupported);
        }
        let local = self.vtep_of(&self.config.node)?;
        let mut ranges = network.subnets.iter().map(|subnet| &subnet.cidr).chain(&network.unbound);
        let any_v6 = ranges.any(|range| range.addr().is_ipv6());
        let least = if any_v6 { MIN_MTU_V6 } else { MIN_MTU };
        (self.mtu_of(network, local) < least).then_some(BlockedReason::Mtu)
    }

    /// What the network is on this node; `None` where it does not exist.
    pub(super) fn network_spec(&self, name: &Name, state: &NetworkState) -> Option<Arc<NetworkSpec>> {
        if !state.in_force || state.local == 0 {
            return None;
        }
        let told = state.told.as_ref();
        if let Some(told) = told.filter(|_| !self.batch.specs.contains(name)) {
            return Some(Arc::clone(told));
        }
        let network = &state.record.as_ref()?.value;
        if self.blocked_network(network).is_some() {
            return None;
        }
        let local = self.vtep_of(&self.config.node)?;
        let mut gateways: BTreeMap<Vni, Vec<IpNet>> = BTreeMap::new();
        for subnet in &network.subnets {
            let gateway = IpNet::new(subnet.gateway, subnet.cidr.prefix_len()).ok();
            gateways.entry(subnet.vni).or_default().extend(gateway);
        }
        let segment = |(vni, gateways)| {
            let gateway_mac = gateway_mac(network, vni)?;
            Some(Segment { vni, port: network.port, local, mtu: self.mtu_of(network, local), gateways, gateway_mac })
        };
        let segments = gateways.into_iter().filter_map(segment).collect();
        let spec = NetworkSpec { name: name.clone(), segments };
        Some(told.filter(|told| ***told == spec).map_or_else(|| Arc::new(spec), Arc::clone))
    }

    /// What the endpoint is on this node; `None` where it means nothing here.
    pub(super) fn endpoint_spec(&self, name: &Name, state: &NetworkState, id: &EndpointId) -> Option<EndpointSpec> {
        let endpoint = state.endpoints.get(id)?;
        let Standing::InForce(vni) = endpoint.standing else { return None };
        let value = &endpoint.held.value;
        let mac = value.mac;
        if !self.is_here(name, &id.node) {
            let (ips, vtep) = (value.ip.to_vec(), self.vtep_behind(name, &id.node)?);
            return Some(EndpointSpec::Remote(RemoteEndpoint { vni, mac, ips, vtep }));
        }
        let inner = value.inner.as_ref()?;
        if self.mac_is_taken(name, endpoint, vni) {
            return None;
        }
        let Netns::Path(path) = &inner.netns else { return None };
        let network = &state.record.as_ref()?.value;
        let addresses = value.ip.iter().filter_map(|ip| with_prefix_len(network, *ip)).collect();
        let (netns, ifname) = (path.clone(), inner.ifname.clone());
        Some(EndpointSpec::Local(LocalEndpoint { vni, mac, addresses, netns, ifname }))
    }

    /// Whether an older endpoint of this node, which the record shares its MAC address with, has it. A bridge passes frames for
    /// one MAC address to one port.
    pub(super) fn mac_is_taken(&self, network: &Name, endpoint: &EndpointState, vni: Vni) -> bool {
        let value = &endpoint.held.value;
        let oldest = || self.ends.holders(&value.mac_claim(network, vni)).next().cloned();
        value.shares_mac && oldest().is_some_and(|oldest| oldest != endpoint.held.rank)
    }
}
