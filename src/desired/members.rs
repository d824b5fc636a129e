//! What a host that runs no agent has to know of a network: who is in it, and behind which VTEP.

use super::{RemoteEndpoint, records::Standing, store::Store};
use crate::model::{EndpointId, Name, Vni};

/// A network in force, as one whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Members {
    /// UDP port of the tunnel.
    pub port: u16,
    /// Frames to everyone are flooded: hosts need no entries for each endpoint.
    pub flood: bool,
    /// MTU in bytes; `None` where it follows from each host's underlay.
    pub mtu: Option<u32>,
    /// Its segments in order.
    pub vnis: Vec<Vni>,
    /// Its endpoints in force whose VTEP is known, in order.
    pub endpoints: Vec<(EndpointId, RemoteEndpoint)>,
}

impl Store {
    /// The network of this name: Docker's by the one that it is shown by, or by its identifier.
    pub fn network_shown_as(&self, shown: &Name) -> Option<&Name> {
        let there = |name: &&Name| self.networks.get(*name).is_some_and(|state| state.record.is_some());
        self.networks.keys().filter(there).find(|name| *name == shown || self.shown_name(name) == *shown)
    }

    /// The members of a network; `None` where it is not in force, or must not be made in clear.
    pub fn members(&self, network: &Name) -> Option<Members> {
        let state = self.networks.get(network).filter(|state| state.in_force)?;
        let record = state.record.as_ref().map(|held| &held.value).filter(|record| !record.secure)?;
        let mut vnis: Vec<Vni> = record.subnets.iter().map(|subnet| subnet.vni).collect();
        vnis.sort_unstable();
        vnis.dedup();
        let endpoints = state.endpoints.iter().filter_map(|(id, endpoint)| {
            let Standing::InForce(vni) = endpoint.standing else { return None };
            let value = &endpoint.held.value;
            let vtep = self.vtep_behind(network, &id.node)?;
            Some((id.clone(), RemoteEndpoint { vni, mac: value.mac, ips: value.ip.to_vec(), vtep }))
        });
        let (port, flood, mtu) = (record.port, record.flood, record.mtu);
        Some(Members { port, flood, mtu, vnis, endpoints: endpoints.collect() })
    }
}
