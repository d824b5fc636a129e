//! What an endpoint's record and its network's say together.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;

use crate::{
    model::{Mac, Network, Route, Subnet, Vni},
    schema::{Reason, is_edge},
};

/// Why an endpoint does not fit its network: the field, the reason, and words.
pub(super) type Unfit = (String, Reason, String);

/// The one VNI that carries all these addresses; `None` while it is not allocated.
pub(super) fn fit(network: &Network, ips: &[IpAddr], mac: Mac) -> Result<Option<Vni>, Unfit> {
    let mut taken: Vec<&Subnet> = Vec::with_capacity(ips.len());
    let mut unbound: Vec<&IpNet> = Vec::new();
    for (i, ip) in ips.iter().enumerate() {
        let unfit = |reason, message: String| (format!("ip[{i}]"), reason, message);
        let second = |range: &IpNet| unfit(Reason::Misfit, format!("{ip} is the second address in {range}"));
        let subnet = subnet_of(network, *ip);
        if subnet.is_none() {
            if network.unallocated.iter().any(|range| range.contains(ip)) {
                return Ok(None);
            }
            if let Some(range) = unbound_of(network, *ip) {
                if is_edge(range, *ip) {
                    return Err(unfit(Reason::Misfit, format!("{ip} is the network address of {range}")));
                }
                if unbound.contains(&range) {
                    return Err(second(range));
                }
                unbound.push(range);
                continue;
            }
        }
        let subnet = subnet.ok_or_else(|| unfit(Reason::Misfit, format!("{ip} is in no subnet of the network")))?;
        if is_edge(&subnet.cidr, *ip) {
            return Err(unfit(Reason::Misfit, format!("{ip} is the network or broadcast address of {}", subnet.cidr)));
        }
        if subnet.gateway == *ip {
            return Err(unfit(Reason::Reserved, format!("{ip} is the gateway's")));
        }
        if taken.iter().any(|other| other.cidr == subnet.cidr) {
            return Err(second(&subnet.cidr));
        }
        if taken.iter().any(|other| other.vni != subnet.vni) {
            return Err(unfit(Reason::Misfit, format!("{ip} is on another VNI than the first address")));
        }
        taken.push(subnet);
    }
    let vni = taken.first().map(|subnet| subnet.vni);
    let vni = vni.ok_or_else(|| ("ip".to_owned(), Reason::Misfit, "has no address".to_owned()))?;
    if gateway_mac(network, vni) == Some(mac) {
        return Err(("mac".to_owned(), Reason::Reserved, format!("{mac} is the gateway's")));
    }
    Ok(Some(vni))
}

/// The bridge's MAC address on a segment, the same on every node: from the first IPv4 gateway, else from the first one.
pub(super) fn gateway_mac(network: &Network, vni: Vni) -> Option<Mac> {
    let gateways = || network.subnets.iter().filter(|subnet| subnet.vni == vni).map(|subnet| subnet.gateway);
    gateways().find(IpAddr::is_ipv4).or_else(|| gateways().next()).map(Mac::from_ip)
}

/// The address with its subnet's prefix length.
pub(super) fn with_prefix_len(network: &Network, ip: IpAddr) -> Option<IpNet> {
    let range = subnet_of(network, ip).map(|subnet| &subnet.cidr).or_else(|| unbound_of(network, ip))?;
    IpNet::new(ip, range.prefix_len()).ok()
}

/// The routes of an endpoint with these addresses: those of its own, then to each other subnet that one of its gateways leads
/// to, also one that shares its VNI. A range without a gateway on the bridge is led to from nowhere.
pub(super) fn routes(network: &Network, ips: &[IpAddr], own: &[Route]) -> Vec<Route> {
    let mut routes: BTreeMap<IpNet, Option<IpAddr>> = BTreeMap::new();
    for route in own {
        routes.entry(route.dst).or_insert(route.via);
    }
    let home: Vec<&Subnet> = ips.iter().filter_map(|ip| subnet_of(network, *ip)).collect();
    for subnet in network.subnets.iter().filter(|subnet| !home.iter().any(|home| home.cidr == subnet.cidr)) {
        let gateway = home.iter().map(|home| home.gateway).find(|via| via.is_ipv4() == subnet.gateway.is_ipv4());
        if gateway.is_some() {
            routes.entry(subnet.cidr).or_insert(gateway);
        }
    }
    routes.into_iter().map(|(dst, via)| Route { dst, via }).collect()
}

fn unbound_of(network: &Network, ip: IpAddr) -> Option<&IpNet> {
    network.unbound.iter().find(|range| range.contains(&ip))
}

fn subnet_of(network: &Network, ip: IpAddr) -> Option<&Subnet> {
    network.subnets.iter().find(|subnet| subnet.cidr.contains(&ip))
}
