//! The same outcome by the plainest way: everything from scratch, pass over pass. What the real stage is held against.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;

use super::{EndpointSpec, LocalEndpoint, RemoteEndpoint, StoreConfig, Update, fit::fit};
use crate::{
    model::{Endpoint, EndpointId, Name, Netns, Network},
    schema::{self, Key, Kv},
};

/// What stands on this node: for each network its VNIs, ports and MTUs, and its endpoints.
pub(super) type World = BTreeMap<Name, (Vec<(u32, u16, u32, IpAddr)>, BTreeMap<EndpointId, EndpointSpec>)>;

/// What updates made of nothing.
#[derive(Debug, Default)]
pub(super) struct Mirror {
    pub(super) world: World,
}

impl Mirror {
    pub(super) fn apply(&mut self, updates: BTreeMap<Name, Update>) {
        for (name, update) in updates {
            match update.spec {
                Some(None) => {
                    assert!(self.world.remove(&name).is_some(), "{name} ceased to exist without having existed");
                    assert!(update.endpoints.is_empty());
                    continue;
                }
                Some(Some(spec)) => {
                    let segments = spec.segments.iter().map(|s| (s.vni.get(), s.port, s.mtu, s.local)).collect();
                    self.world.entry(name.clone()).or_default().0 = segments;
                }
                None => assert!(self.world.contains_key(&name), "{name} changed without existing"),
            }
            let (_, endpoints) = self.world.get_mut(&name).unwrap();
            for (id, spec) in update.endpoints {
                let changed = match spec {
                    Some(spec) => endpoints.insert(id.clone(), spec.clone()) != Some(spec),
                    None => endpoints.remove(&id).is_some(),
                };
                assert!(changed, "{name}: {id} was told without having changed");
            }
        }
    }
}

fn ordered<T>(kvs: &[Kv], decode: impl Fn(&Key, &Kv) -> Option<T>) -> Vec<(Key, T)> {
    let keyed = kvs.iter().filter_map(|kv| Some((kv.create_revision, Key::parse("/p", &kv.key).ok()?, kv)));
    let mut keyed: Vec<_> = keyed.collect();
    keyed.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
    keyed.into_iter().filter_map(|(_, key, kv)| decode(&key, kv).map(|value| (key, value))).collect()
}

/// Takes all or nothing.
fn claim(held: &mut BTreeSet<String>, claims: &[String]) -> bool {
    let free = claims.iter().all(|claim| !held.contains(claim));
    if free {
        held.extend(claims.iter().cloned());
    }
    free
}

/// What should stand on this node, given the last good version of every record.
pub(super) fn world(config: &StoreConfig, kvs: &[Kv]) -> World {
    let mut held = BTreeSet::new();
    let mut vteps: BTreeMap<Name, IpAddr> = BTreeMap::new();
    for (key, node) in ordered(kvs, |_, kv| schema::node(&kv.key, &kv.value).ok()) {
        let Key::Node(name) = key else { continue };
        if claim(&mut held, &[node.vtep.to_string()]) {
            vteps.insert(name, node.vtep);
        }
    }
    if let Some(vtep) = config.vtep {
        vteps.insert(config.node.clone(), vtep);
    }
    let mut networks: BTreeMap<Name, Network> = BTreeMap::new();
    for (key, network) in ordered(kvs, |_, kv| schema::network(&kv.key, &kv.value).ok()) {
        let Key::Network(name) = key else { continue };
        let claims: BTreeSet<String> =
            network.subnets.iter().map(|s| format!("segment {} {}", network.port, s.vni)).collect();
        if claim(&mut held, &claims.into_iter().collect::<Vec<_>>()) {
            networks.insert(name, network);
        }
    }
    let mut endpoints: BTreeMap<Name, BTreeMap<EndpointId, Endpoint>> = BTreeMap::new();
    for (key, endpoint) in ordered(kvs, |_, kv| schema::endpoint(&kv.key, &kv.value).ok()) {
        let Key::Endpoint { network, id } = key else { continue };
        let Some(of) = networks.get(&network).filter(|_| vteps.contains_key(&id.node)) else { continue };
        let mac = endpoint.effective_mac().unwrap();
        let Ok(Some(vni)) = fit(of, &endpoint.ip, mac) else { continue };
        let mut claims: Vec<String> = endpoint.ip.iter().map(|ip| format!("{network} {vni} {ip}")).collect();
        claims.push(format!("{network} {vni} {mac}"));
        claims.extend(endpoint.netns.iter().map(|netns| format!("{} {netns:?} {}", id.node, endpoint.ifname)));
        if claim(&mut held, &claims) {
            endpoints.entry(network).or_default().insert(id, endpoint);
        }
    }
    let mut world = World::new();
    for (name, endpoints) in endpoints {
        let network = &networks[&name];
        let here = endpoints.keys().any(|id| id.node == config.node);
        if !here || network.secure || network.flood {
            continue;
        }
        let local = vteps[&config.node];
        let mtu = network.mtu.unwrap_or(config.underlay_mtu - if local.is_ipv4() { 50 } else { 70 });
        let vnis: BTreeSet<u32> = network.subnets.iter().map(|s| s.vni.get()).collect();
        let segments = vnis.into_iter().map(|vni| (vni, network.port, mtu, local)).collect();
        let mut specs = BTreeMap::new();
        for (id, endpoint) in endpoints {
            let mac = endpoint.effective_mac().unwrap();
            let vni = fit(network, &endpoint.ip, mac).unwrap().unwrap();
            if id.node != config.node {
                let remote = RemoteEndpoint { vni, mac, ips: endpoint.ip, vtep: vteps[&id.node] };
                specs.insert(id, EndpointSpec::Remote(remote));
            } else if let Some(Netns::Path(netns)) = endpoint.netns {
                let len = |ip: &IpAddr| network.subnets.iter().find(|s| s.cidr.contains(ip)).unwrap().cidr.prefix_len();
                let addresses = endpoint.ip.iter().map(|ip| IpNet::new(*ip, len(ip)).unwrap()).collect();
                let local = LocalEndpoint { vni, mac, addresses, netns, ifname: endpoint.ifname };
                specs.insert(id, EndpointSpec::Local(local));
            }
        }
        world.insert(name, (segments, specs));
    }
    world
}
