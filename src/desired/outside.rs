//! The way outside: which namespaces of this node get a second interface, to the gateway bridge. A stage of its own behind the
//! networks': one namespace gets one interface, however many networks it is in.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{EndpointSpec, LocalEndpoint, NetworkSpec, OutsideEndpoint, Segment, Update};
use crate::model::{
    EndpointId, Mac, Name, Netns, Vni,
    nft::{Chain, ChainId, ChainKind, Hook, HookPoint, Policy, Rule, TableId},
    stable_hash,
};

/// `NF_IP_PRI_FILTER` and `NF_IP_PRI_NAT_SRC`, include/uapi/linux/netfilter_ipv4.h.
const FILTER: i32 = 0;
const SOURCE_NAT: i32 = 100;
/// MTU of the gateway bridge and of all that hangs on it, in bytes: Ethernet's.
const MTU: u32 = 1500;

/// What the operator says of the way outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutsideConfig {
    /// Name of the bridge.
    pub bridge: String,
    /// Its IPv4 subnet; the bridge has the first address.
    pub subnet: Ipv4Net,
    /// Its IPv6 subnet, where there is one; the bridge has the first address.
    pub subnet6: Option<Ipv6Net>,
    /// The table for masquerade and guards.
    pub table: TableId,
}

impl OutsideConfig {
    /// The bridge's addresses, with the prefix lengths of their subnets.
    pub fn gateways(&self) -> Vec<IpNet> {
        let first = |subnet: IpNet| match subnet.network() {
            IpAddr::V4(network) => IpAddr::from((u32::from(network).saturating_add(1)).to_be_bytes()),
            IpAddr::V6(network) => IpAddr::from((u128::from(network).saturating_add(1)).to_be_bytes()),
        };
        let subnets = [Some(IpNet::V4(self.subnet)), self.subnet6.map(IpNet::V6)];
        subnets.into_iter().flatten().filter_map(|net| IpNet::new(first(net), net.prefix_len()).ok()).collect()
    }

    fn spec(&self, ports: &BTreeSet<u16>) -> NetworkSpec {
        let gateways = self.gateways();
        let gateway_mac = gateways.first().map_or(Mac::ZERO, |gateway| Mac::from_ip(gateway.addr()));
        let segment = Segment { vni: Vni::GATEWAY, tunnel: None, mtu: MTU, gateways, gateway_mac };
        NetworkSpec { name: Name::host(), segments: vec![segment], spoof_guard: true, chains: self.chains(ports) }
    }
}

impl OutsideConfig {
    /// What leaves by another link gets the host's address. From the bridge nothing goes back into it, by which its ports' isolation
    /// could be bypassed; and nothing to the ports that VXLAN is heard at, or whoever is behind the bridge could send frames into any
    /// overlay, with the host's address for a source. Nor does anything from these ports leave: masqueraded it keeps its port where
    /// that is free, and what comes from another host to the VXLAN port of this one would then be taken for the answer
    /// (nf_nat_core.c), and be sent to whoever is behind the bridge. And nobody outside reaches in unasked by routing to the subnet,
    /// except where the host's operator leads a port there (DNAT).
    fn chains(&self, ports: &BTreeSet<u16>) -> BTreeMap<ChainId, Chain> {
        // Packets of others pass by the list of ports.
        let of_others = || std::iter::once(Rule::new().iifname_not(&self.bridge).leave());
        let no_tunnels = || ports.iter().map(|port| Rule::new().udp_dport(*port).drop());
        let no_theft = ports.iter().map(|port| Rule::new().udp_sport(*port).drop());
        let back = Rule::new().iifname(&self.bridge).oifname(&self.bridge).drop();
        let unasked = Rule::new().oifname(&self.bridge).unasked().not_dnat().drop();
        let v4 = Rule::new().inet_ipv4().saddr_in(self.subnet.into());
        let v6 = self.subnet6.map(|subnet| Rule::new().inet_ipv6().saddr_in(subnet.into()));
        let masquerade = [Some(v4), v6].into_iter().flatten();
        let masquerade = masquerade.map(|rule| rule.oifname_not(&self.bridge).masquerade()).collect();
        let chain = |kind, point, priority, rules| {
            Chain::new(Hook { kind, point, priority, policy: Policy::Accept, device: None }, rules)
        };
        let forward = [back, unasked].into_iter().chain(of_others()).chain(no_tunnels()).chain(no_theft).collect();
        let input = of_others().chain(no_tunnels()).collect();
        let chains = [
            ("input", chain(ChainKind::Filter, HookPoint::Input, FILTER, input)),
            ("forward", chain(ChainKind::Filter, HookPoint::Forward, FILTER, forward)),
            ("postrouting", chain(ChainKind::Nat, HookPoint::Postrouting, SOURCE_NAT, masquerade)),
        ];
        let id = |name: &str| ChainId { table: self.table.clone(), name: name.to_owned() };
        chains.into_iter().map(|(name, chain)| (id(name), chain)).collect()
    }
}

/// What a local endpoint says about its namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
struct End {
    netns: PathBuf,
    ifname: String,
    asks: bool,
    /// It brings a default route of its own.
    default: bool,
}

impl End {
    /// An endpoint in the host's own namespace is outside already.
    fn of(local: &LocalEndpoint) -> Option<Self> {
        let Netns::Path(netns) = &local.netns else { return None };
        let default = local.routes.iter().any(|route| route.dst == IpNet::V4(Ipv4Net::default()));
        Some(Self { netns: netns.clone(), ifname: local.ifname.clone(), asks: local.outside, default })
    }
}

/// The stage.
#[derive(Debug)]
pub struct Outside {
    config: Option<OutsideConfig>,
    ends: BTreeMap<Name, BTreeMap<EndpointId, End>>,
    /// The endpoints in each namespace.
    spaces: BTreeMap<PathBuf, BTreeSet<(Name, EndpointId)>>,
    /// What was told, by namespace: the interface's name.
    told: BTreeMap<PathBuf, String>,
    /// The UDP ports that VXLAN is heard at, as they were told.
    ports: BTreeSet<u16>,
    /// The newest revision that was heard of.
    revision: i64,
}

impl Outside {
    /// A stage that has heard of no endpoint; without a configuration nobody gets outside.
    pub const fn new(config: Option<OutsideConfig>) -> Self {
        let ports = BTreeSet::new();
        Self { config, ends: BTreeMap::new(), spaces: BTreeMap::new(), told: BTreeMap::new(), ports, revision: 0 }
    }

    /// Takes what the networks are told, and the UDP ports that VXLAN is heard at anywhere; gives what the gateway bridge is to be
    /// told, and nothing where that is no news.
    pub fn follow(&mut self, updates: &BTreeMap<Name, Update>, ports: &BTreeSet<u16>) -> Option<Update> {
        let config = self.config.clone()?;
        let mut touched = BTreeSet::new();
        for (network, update) in updates {
            self.revision = self.revision.max(update.revision);
            if update.spec == Some(None) {
                let gone: Vec<EndpointId> =
                    self.ends.get(network).into_iter().flat_map(BTreeMap::keys).cloned().collect();
                gone.iter().for_each(|id| self.set(network, id, None, &mut touched));
            }
            for (id, spec) in &update.endpoints {
                let end = match spec {
                    Some(EndpointSpec::Local(local)) => End::of(local),
                    _ => None,
                };
                self.set(network, id, end, &mut touched);
            }
        }
        let mut endpoints = Vec::new();
        let had_any = !self.told.is_empty();
        for netns in touched {
            let name = self.interface_in(&netns);
            if self.told.get(&netns) == name.as_ref() {
                continue;
            }
            let spec =
                name.clone().map(|ifname| EndpointSpec::Outside(OutsideEndpoint { netns: netns.clone(), ifname }));
            endpoints.push((id_of(&netns), spec));
            match name {
                Some(name) => self.told.insert(netns, name),
                None => self.told.remove(&netns),
            };
        }
        let other_ports = self.ports != *ports;
        if other_ports {
            self.ports.clone_from(ports);
        }
        let spec = match (had_any, !self.told.is_empty()) {
            (false, true) => Some(Some(Arc::new(config.spec(ports)))),
            (true, true) if other_ports => Some(Some(Arc::new(config.spec(ports)))),
            (true, false) => Some(None),
            _ => None,
        };
        if endpoints.is_empty() && spec.is_none() {
            return None;
        }
        // What is dropped as a whole needs no word on its parts.
        let endpoints = if spec == Some(None) { Vec::new() } else { endpoints };
        Some(Update { revision: self.revision, spec, endpoints })
    }

    fn set(&mut self, network: &Name, id: &EndpointId, end: Option<End>, touched: &mut BTreeSet<PathBuf>) {
        let ends = self.ends.entry(network.clone()).or_default();
        let before = match &end {
            Some(end) => ends.insert(id.clone(), end.clone()),
            None => ends.remove(id),
        };
        if ends.is_empty() {
            self.ends.remove(network);
        }
        if before == end {
            return;
        }
        let key = (network.clone(), id.clone());
        if let Some(before) = before {
            if let Some(space) = self.spaces.get_mut(&before.netns) {
                space.remove(&key);
                if space.is_empty() {
                    self.spaces.remove(&before.netns);
                }
            }
            touched.insert(before.netns);
        }
        if let Some(end) = end {
            self.spaces.entry(end.netns.clone()).or_default().insert(key);
            touched.insert(end.netns);
        }
    }

    /// The name of the namespace's interface to the outside, if it gets one: the first of `eth1`, `eth2`, … that no endpoint has.
    ///
    /// It gets none where nobody asks, and where an endpoint brings a default route of its own (`needDefaultGW`, libnetwork).
    fn interface_in(&self, netns: &Path) -> Option<String> {
        let space = self.spaces.get(netns)?;
        let ends: Vec<&End> = space.iter().filter_map(|(network, id)| self.ends.get(network)?.get(id)).collect();
        if !ends.iter().any(|end| end.asks) || ends.iter().any(|end| end.default) {
            return None;
        }
        (1..).map(|n| format!("eth{n}")).find(|name| ends.iter().all(|end| end.ifname != *name))
    }
}

/// A namespace's identity among those with a way outside: for people its file's name, and a number that tells paths apart.
fn id_of(netns: &Path) -> EndpointId {
    let hash = stable_hash(netns.as_os_str().as_encoded_bytes());
    let file = netns.file_name().and_then(|file| file.to_str()).unwrap_or_default();
    let shown: String =
        file.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-')).take(40).collect();
    let endpoint = format!("{shown}-{hash:016x}").parse().or_else(|_| format!("netns-{hash:016x}").parse());
    EndpointId { node: Name::host(), endpoint: endpoint.unwrap_or_else(|_| Name::host()) }
}

#[cfg(test)]
mod tests;
