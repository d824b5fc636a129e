//! The endpoints that a network was told of. Most are remote ones with one IPv4 address: of these only what tells their rows is kept.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
};

use crate::{
    desired::{EndpointSpec, RemoteEndpoint},
    model::{EndpointId, Mac, Name, Vni},
};

/// A node's endpoints are behind one VTEP, or a few while they move.
const VTEPS: usize = 16;

/// A remote endpoint with one IPv4 address.
#[derive(Clone, Copy, Debug)]
struct Plain {
    vni: Vni,
    mac: Mac,
    /// Place of its VTEP in the node's list.
    vtep: u16,
    ip: Ipv4Addr,
}

#[derive(Debug, Default)]
struct Node {
    vteps: Vec<IpAddr>,
    endpoints: BTreeMap<Name, Plain>,
}

impl Node {
    fn spec(&self, plain: Plain) -> Option<EndpointSpec> {
        let Plain { vni, mac, vtep, ip } = plain;
        let vtep = *self.vteps.get(usize::from(vtep))?;
        Some(EndpointSpec::Remote(RemoteEndpoint { vni, mac, ips: vec![ip.into()], vtep }))
    }

    /// The place of a VTEP in the list.
    fn place_of(&mut self, vtep: IpAddr) -> Option<u16> {
        let known = self.vteps.iter().position(|known| *known == vtep);
        let place = known.or_else(|| (self.vteps.len() < VTEPS).then_some(self.vteps.len()))?;
        if known.is_none() {
            self.vteps.push(vtep);
        }
        u16::try_from(place).ok()
    }
}

/// Endpoints by node and name.
#[derive(Debug, Default)]
pub(super) struct Endpoints {
    nodes: BTreeMap<Name, Node>,
    /// Those that are more than that.
    others: BTreeMap<EndpointId, EndpointSpec>,
}

impl Endpoints {
    /// Takes one out.
    pub(super) fn remove(&mut self, id: &EndpointId) -> Option<EndpointSpec> {
        let Some(node) = self.nodes.get_mut(&id.node) else { return self.others.remove(id) };
        let Some(plain) = node.endpoints.remove(&id.endpoint) else { return self.others.remove(id) };
        let spec = node.spec(plain);
        if node.endpoints.is_empty() {
            self.nodes.remove(&id.node);
        }
        spec
    }

    /// Puts one in that is not there.
    pub(super) fn insert(&mut self, id: EndpointId, spec: EndpointSpec) {
        if let EndpointSpec::Remote(RemoteEndpoint { vni, mac, ips, vtep }) = &spec
            && let [IpAddr::V4(ip)] = ips.as_slice()
        {
            let node = self.nodes.entry(id.node.clone()).or_default();
            if let Some(place) = node.place_of(*vtep) {
                node.endpoints.insert(id.endpoint, Plain { vni: *vni, mac: *mac, vtep: place, ip: *ip });
                return;
            }
        }
        self.others.insert(id, spec);
    }

    /// Whether it is there.
    pub(super) fn contains(&self, id: &EndpointId) -> bool {
        self.nodes.get(&id.node).is_some_and(|node| node.endpoints.contains_key(&id.endpoint))
            || self.others.contains_key(id)
    }

    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = (EndpointId, EndpointSpec)> {
        let plain = self.nodes.iter().flat_map(|(name, node)| {
            node.endpoints.iter().filter_map(|(endpoint, plain)| {
                let id = EndpointId { node: name.clone(), endpoint: endpoint.clone() };
                node.spec(*plain).map(|spec| (id, spec))
            })
        });
        plain.chain(self.others.iter().map(|(id, spec)| (id.clone(), spec.clone())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(node: &str, endpoint: &str) -> EndpointId {
        EndpointId { node: node.parse().expect("a name"), endpoint: endpoint.parse().expect("a name") }
    }

    fn remote(ips: &[&str], vtep: &str) -> EndpointSpec {
        EndpointSpec::Remote(RemoteEndpoint {
            vni: Vni::GATEWAY,
            mac: Mac::new([2, 0, 0, 0, 0, 1]),
            ips: ips.iter().map(|ip| ip.parse().expect("an address")).collect(),
            vtep: vtep.parse().expect("an address"),
        })
    }

    #[test]
    fn what_was_put_in_comes_out_however_many_vteps_its_node_had() {
        let mut endpoints = Endpoints::default();
        let mut put = BTreeMap::new();
        for n in 0..40 {
            let ips: &[&str] = if n % 3 == 0 { &["10.0.0.1", "fd00::1"] } else { &["10.0.0.1"] };
            let spec = remote(ips, &format!("192.168.0.{n}"));
            put.insert(id("n", &format!("e{n}")), spec.clone());
            endpoints.insert(id("n", &format!("e{n}")), spec);
        }
        assert_eq!(endpoints.iter().collect::<BTreeMap<_, _>>(), put);
        for (id, spec) in put {
            assert!(endpoints.contains(&id));
            assert_eq!(endpoints.remove(&id), Some(spec));
            assert!(!endpoints.contains(&id));
        }
        assert_eq!(endpoints.iter().count(), 0);
        assert!(endpoints.nodes.is_empty());
    }
}
