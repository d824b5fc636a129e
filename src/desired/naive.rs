//! The same outcome by the plainest way: everything from scratch, pass over pass. What the real stage is held against.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;

use super::{EndpointSpec, LocalEndpoint, RemoteEndpoint, StoreConfig, Update, fit::fit};
use crate::{
    model::{Endpoint, EndpointId, Mac, Name, Netns, Network, Route, Vni},
    schema::{self, Key, Kv, docker},
};

/// What stands on this node: for each network its VNIs, ports and MTUs, and its endpoints.
pub(super) type World = BTreeMap<Name, (Vec<(u32, u16, u32, IpAddr, bool)>, BTreeMap<EndpointId, EndpointSpec>)>;

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
                    let tunnels = spec.segments.iter().filter_map(|s| Some((s, s.tunnel?)));
                    let segments = tunnels.map(|(s, t)| (s.vni.get(), t.port, s.mtu, t.local, t.flood)).collect();
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

/// In the order of rank: create revision, then key.
fn ordered<T>(records: impl IntoIterator<Item = (i64, Key, T)>) -> Vec<(Key, T)> {
    let mut records: Vec<_> = records.into_iter().collect();
    records.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
    records.into_iter().map(|(_, key, value)| (key, value)).collect()
}

/// The native records of one kind.
fn native<T>(kvs: &[Kv], decode: impl Fn(&Key, &Kv) -> Option<T>) -> Vec<(i64, Key, T)> {
    let keyed = kvs.iter().filter_map(|kv| Some((kv, Key::parse("/p", &kv.key).ok()?)));
    keyed.filter_map(|(kv, key)| decode(&key, kv).map(|value| (kv.create_revision, key, value))).collect()
}

/// Docker's records, put together.
#[derive(Default)]
struct DockerDocs {
    networks: BTreeMap<Name, Option<docker::Network>>,
    overlays: BTreeMap<Name, (i64, docker::Overlay)>,
    endpoints: Vec<(i64, Name, Name, docker::Endpoint)>,
}

impl DockerDocs {
    fn new(kvs: &[Kv]) -> Self {
        let mut docs = Self::default();
        for kv in kvs {
            match docker::Key::parse("/d", &kv.key).unwrap() {
                Some(docker::Key::Network(id)) => {
                    drop(docs.networks.insert(id, docker::network(&kv.key, &kv.value).unwrap()))
                }
                Some(docker::Key::Overlay(id)) => {
                    let overlay = docker::overlay(&kv.key, &kv.value).unwrap();
                    docs.overlays.insert(id, (kv.create_revision, overlay));
                }
                Some(docker::Key::Endpoint { network, endpoint }) => {
                    let value = docker::endpoint(&kv.key, &kv.value).unwrap();
                    docs.endpoints.push((kv.create_revision, network, endpoint, value));
                }
                None => {}
            }
        }
        docs.endpoints.sort_by(|a, b| (a.0, &a.1, &a.2).cmp(&(b.0, &b.1, &b.2)));
        docs
    }

    fn networks(&self) -> impl Iterator<Item = (i64, Key, Network)> {
        self.overlays.iter().filter_map(|(id, (created, overlay))| {
            let network = self.networks.get(id)?.as_ref()?;
            let value = Network {
                subnets: overlay.subnets.clone(),
                mtu: Some(overlay.mtu),
                port: 4789,
                internal: network.internal,
                secure: overlay.secure,
                flood: false,
                spoof_guard: true,
                labels: BTreeMap::new(),
                unbound: network.pools_v6.clone(),
                unallocated: overlay.unallocated.clone(),
            };
            (!overlay.subnets.is_empty()).then(|| (*created, Key::Network(id.clone()), value))
        })
    }

    fn endpoints(&self) -> impl Iterator<Item = (i64, Key, Endpoint)> {
        self.endpoints.iter().enumerate().filter_map(|(i, (created, network, endpoint, value))| {
            let before = self.endpoints[..i].iter().filter(|(.., other)| other.netns == value.netns).count();
            let first = *value.ip.first()?;
            let record = Endpoint {
                ip: value.ip.clone(),
                mac: value.mac.or(Some(Mac::from_ip(first))),
                netns: value.netns.clone().map(Netns::Path),
                ifname: format!("eth{before}"),
            };
            let id = EndpointId { node: docker::node_of(value.locator?)?, endpoint: endpoint.clone() };
            Some((*created, Key::Endpoint { network: network.clone(), id }, record))
        })
    }
}

/// Takes all or nothing. What stands beside a claim is what those who share it agree on.
fn claim(held: &mut BTreeMap<String, Option<Name>>, claims: Vec<(String, Option<Name>)>) -> bool {
    let free = claims.iter().all(|(claim, with)| held.get(claim).is_none_or(|held| with.is_some() && held == with));
    if free {
        held.extend(claims);
    }
    free
}

/// Every other subnet of a family that the endpoint has a gateway of, unless it has a route there of its own.
fn naive_routes(network: &Network, ips: &[IpAddr], own: &[Route]) -> Vec<Route> {
    let mut routes: Vec<Route> = Vec::new();
    let gateway_of = |ip: &IpAddr| network.subnets.iter().find(|s| s.cidr.contains(ip)).map(|s| s.gateway);
    let led = network.subnets.iter().filter(|s| !ips.iter().any(|ip| s.cidr.contains(ip))).filter_map(|s| {
        let via = ips.iter().filter(|ip| ip.is_ipv4() == s.gateway.is_ipv4()).find_map(gateway_of)?;
        Some(Route { dst: s.cidr, via: Some(via) })
    });
    for route in own.iter().copied().chain(led) {
        if !routes.iter().any(|other| other.dst == route.dst) {
            routes.push(route);
        }
    }
    routes.sort();
    routes
}

/// What should stand on this node, given the last good version of every record.
pub(super) fn world(config: &StoreConfig, kvs: &[Kv]) -> World {
    let mut held = BTreeMap::new();
    let mut vteps: BTreeMap<Name, IpAddr> = BTreeMap::new();
    let docs = DockerDocs::new(kvs);
    for (key, node) in ordered(native(kvs, |_, kv| schema::node(&kv.key, &kv.value).ok())) {
        let Key::Node(name) = key else { continue };
        if claim(&mut held, vec![(node.vtep.to_string(), None)]) {
            vteps.insert(name, node.vtep);
        }
    }
    if let Some(vtep) = config.vtep {
        vteps.insert(config.node.clone(), vtep);
    }
    let mut networks: BTreeMap<Name, Network> = BTreeMap::new();
    let records = native(kvs, |_, kv| schema::network(&kv.key, &kv.value).ok());
    for (key, network) in ordered(records.into_iter().chain(docs.networks())) {
        let Key::Network(name) = key else { continue };
        let claims = network.subnets.iter().map(|s| (format!("segment {} {}", network.port, s.vni), None)).collect();
        if claim(&mut held, claims) {
            networks.insert(name, network);
        }
    }
    let mut endpoints: BTreeMap<Name, BTreeMap<EndpointId, Endpoint>> = BTreeMap::new();
    // Of those who share a MAC address the oldest is wired up.
    let mut wired: BTreeMap<(Name, Vni, Mac), EndpointId> = BTreeMap::new();
    let records = native(kvs, |_, kv| schema::endpoint(&kv.key, &kv.value).ok());
    let vtep_of = |network: &Name, id: &EndpointId| {
        if docker::is_id(network) { docker::locator_of(&id.node) } else { vteps.get(&id.node).copied() }
    };
    let is_here = |network: &Name, id: &EndpointId| {
        let own = vteps.get(&config.node).copied();
        if docker::is_id(network) { own.is_some() && vtep_of(network, id) == own } else { id.node == config.node }
    };
    for (key, endpoint) in ordered(records.into_iter().chain(docs.endpoints())) {
        let Key::Endpoint { network, id } = key else { continue };
        let Some(of) = networks.get(&network).filter(|_| vtep_of(&network, &id).is_some()) else { continue };
        let mac = endpoint.effective_mac().unwrap();
        let Ok(Some(vni)) = fit(of, &endpoint.ip, mac) else { continue };
        let with = docker::is_id(&network).then(|| id.node.clone());
        let mut claims: Vec<_> = endpoint.ip.iter().map(|ip| (format!("{network} {vni} {ip}"), None)).collect();
        claims.push((format!("{network} {vni} {mac}"), with));
        claims.extend(endpoint.netns.iter().map(|netns| {
            let netns = format!("{netns:?}").replace("/var/run", "/run");
            let node = if netns.contains("/docker/") { "" } else { id.node.as_str() };
            (format!("{node} {netns} {}", endpoint.ifname), None)
        }));
        if claim(&mut held, claims) {
            wired.entry((network.clone(), vni, mac)).or_insert_with(|| id.clone());
            endpoints.entry(network).or_default().insert(id, endpoint);
        }
    }
    let mut world = World::new();
    for (name, endpoints) in endpoints {
        let network = &networks[&name];
        let here = endpoints.keys().any(|id| is_here(&name, id));
        let vteps_behind = || endpoints.keys().filter_map(|id| vtep_of(&name, id));
        let mixed = vteps_behind().any(|vtep| vtep.is_ipv4()) && vteps_behind().any(|vtep| vtep.is_ipv6());
        if !here || network.secure || mixed {
            continue;
        }
        let local = vteps[&config.node];
        let mtu = network.mtu.unwrap_or(config.underlay_mtu - if local.is_ipv4() { 50 } else { 70 });
        let vnis: BTreeSet<u32> = network.subnets.iter().map(|s| s.vni.get()).collect();
        let segments = vnis.into_iter().map(|vni| (vni, network.port, mtu, local, network.flood)).collect();
        let mut specs = BTreeMap::new();
        for (id, endpoint) in endpoints {
            let mac = endpoint.effective_mac().unwrap();
            let vni = fit(network, &endpoint.ip, mac).unwrap().unwrap();
            if !is_here(&name, &id) {
                let vtep = vtep_of(&name, &id).unwrap();
                let remote = RemoteEndpoint { vni, mac, ips: endpoint.ip, vtep };
                specs.insert(id, EndpointSpec::Remote(remote));
            } else if let Some(netns) = endpoint.netns.filter(|n| config.host_endpoints || *n != Netns::Host)
                && wired[&(name.clone(), vni, mac)] == id
            {
                let ranges = || network.subnets.iter().map(|s| &s.cidr).chain(&network.unbound);
                let len = |ip: &IpAddr| ranges().find(|range| range.contains(ip)).unwrap().prefix_len();
                let addresses = endpoint.ip.iter().map(|ip| IpNet::new(*ip, len(ip)).unwrap()).collect();
                let key = (name.clone(), id.endpoint.clone());
                let record = docs.endpoints.iter().find(|(_, network, id, _)| (network, id) == (&key.0, &key.1));
                let of_docker = record.filter(|_| docker::is_id(&name)).map(|(.., record)| record);
                let outside = !network.internal && !of_docker.is_some_and(|record| record.no_gateway);
                let own = of_docker.map_or(&[][..], |record| &record.routes);
                let routes = naive_routes(network, &endpoint.ip, own);
                let ifname = endpoint.ifname;
                let local = LocalEndpoint { vni, mac, addresses, netns, ifname, routes, outside };
                specs.insert(id, EndpointSpec::Local(local));
            }
        }
        world.insert(name, (segments, specs));
    }
    world
}
