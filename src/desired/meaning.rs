//! The store-wide stage: what records in force mean on this node.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use ipnet::IpNet;

use super::{
    EndpointSpec, Excess, LocalEndpoint, NetworkSpec, RemoteEndpoint, Segment, Tunnel, Update,
    fit::{gateway_mac, routes, with_prefix_len},
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

const fn overhead(local: IpAddr) -> u32 {
    if local.is_ipv4() { OVERHEAD_V4 } else { OVERHEAD_V6 }
}

impl Store {
    /// The VTEP address of a node, if it is in force. This node's configured one needs no record.
    pub(super) fn vtep_of(&self, node: &Name) -> Option<IpAddr> {
        if *node == self.config.node && self.config.vtep.is_some() {
            return self.config.vtep;
        }
        match self.nodes.get(node).and_then(|state| Some((state.record.as_ref()?, state.in_force))) {
            Some((held, in_force)) => in_force.then_some(held.value),
            None => self.supposed_vtep.filter(|_| *node == self.config.node),
        }
    }

    /// This node's VTEP address is this one for as long as its record, which says so, was not written.
    pub fn suppose_vtep(&mut self, vtep: IpAddr) {
        self.supposed_vtep = Some(vtep);
    }

    /// This node's VTEP address, if it is in force.
    pub fn vtep(&self) -> Option<IpAddr> {
        self.vtep_of(&self.config.node)
    }

    /// MTU of the underlay link in bytes.
    pub const fn underlay_mtu(&self) -> u32 {
        self.config.underlay_mtu
    }

    /// The underlay link has another MTU now, in bytes: networks that do not say theirs follow it.
    pub fn set_underlay_mtu(&mut self, mtu: u32) -> BTreeMap<Name, Update> {
        if std::mem::replace(&mut self.config.underlay_mtu, mtu) != mtu {
            self.reportable = true;
            let following = self.networks.iter().filter(|(_, state)| state.local > 0);
            self.batch.specs.extend(following.map(|(name, _)| name.clone()));
        }
        self.settle()
    }

    /// MTU of the overlay in bytes.
    fn mtu_of(&self, network: &Network, local: IpAddr) -> u32 {
        network.mtu.unwrap_or_else(|| self.config.underlay_mtu.saturating_sub(overhead(local)))
    }

    /// How a network that asks for an MTU is too large for this node's underlay.
    pub(super) fn excess_of(&self, state: &NetworkState) -> Option<Excess> {
        let (held, local) = (state.record.as_ref().filter(|_| state.told.is_some())?, self.vtep()?);
        let (mtu, overhead, underlay) = (held.value.mtu?, overhead(local), self.config.underlay_mtu);
        let key = (*held.rank.key).clone();
        (mtu.saturating_add(overhead) > underlay).then_some(Excess { key, mtu, overhead, underlay })
    }

    /// Why the network cannot be made on this node now.
    pub(super) fn blocked_network(&self, state: &NetworkState) -> Option<BlockedReason> {
        let network = &state.record.as_ref()?.value;
        if network.secure {
            return Some(BlockedReason::Unsupported);
        }
        if state.behind.is_mixed() {
            return Some(BlockedReason::MixedUnderlay);
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
        if self.blocked_network(state).is_some() {
            return None;
        }
        let network = &state.record.as_ref()?.value;
        let local = self.vtep_of(&self.config.node)?;
        let mut gateways: BTreeMap<Vni, Vec<IpNet>> = BTreeMap::new();
        for subnet in &network.subnets {
            let gateway = IpNet::new(subnet.gateway, subnet.cidr.prefix_len()).ok();
            gateways.entry(subnet.vni).or_default().extend(gateway);
        }
        let segment = |(vni, gateways)| {
            let gateway_mac = gateway_mac(network, vni)?;
            let tunnel = Some(Tunnel { port: network.port, local, flood: network.flood });
            Some(Segment { vni, tunnel, mtu: self.mtu_of(network, local), gateways, gateway_mac })
        };
        let segments = gateways.into_iter().filter_map(segment).collect();
        let spec =
            NetworkSpec { name: name.clone(), segments, spoof_guard: network.spoof_guard, chains: BTreeMap::new() };
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
        if !self.is_complete() {
            return None;
        }
        let inner = value.inner.as_ref()?;
        let no_host = inner.netns == Netns::Host && !self.config.host_endpoints;
        if no_host || self.mac_is_taken(state, endpoint, vni) {
            return None;
        }
        let network = &state.record.as_ref()?.value;
        let addresses = value.ip.iter().filter_map(|ip| with_prefix_len(network, *ip)).collect();
        let (netns, ifname) = (inner.netns.clone(), inner.ifname.clone());
        let join = value.join.as_deref();
        let routes = routes(network, &value.ip, join.map_or(&[], |join| &join.routes));
        // The way outside is asked for by each endpoint of a namespace; Docker's `needDefaultGW` (libnetwork) leaves out these.
        let outside = !network.internal && !join.is_some_and(|join| join.no_gateway);
        Some(EndpointSpec::Local(LocalEndpoint { vni, mac, addresses, netns, ifname, routes, outside }))
    }

    /// Whether an older endpoint of this node, which the record shares its MAC address with, has it. A bridge passes frames for
    /// one MAC address to one port.
    pub(super) fn mac_is_taken(&self, network: &NetworkState, endpoint: &EndpointState, vni: Vni) -> bool {
        let value = &endpoint.held.value;
        let oldest = || self.ends.holders(&value.mac_claim(network.number, vni)).next().cloned();
        value.shares_mac && oldest().is_some_and(|oldest| oldest != endpoint.held.rank)
    }
}
