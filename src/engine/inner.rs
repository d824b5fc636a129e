//! Addresses, and the ends of veth pairs in the endpoints' namespaces, as they are read.
//!
//! **Invariant:** nothing is taken for a leftover that is in use: an end in a container is a lone one of ours only when nothing else says
//! otherwise (`an_endpoint_that_takes_the_name_of_another_in_its_namespace_takes_nothing_else_of_it`,
//! `an_interface_of_another_engine_of_ours_in_the_namespace_is_left_alone`), and endpoints that exchange their names keep all else
//! (`endpoints_of_a_namespace_that_exchange_their_names_are_renamed_and_nothing_else`).

use std::{collections::BTreeSet, net::Ipv6Addr, ops::RangeInclusive, time::Duration};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{
    delta::Cause,
    key::{Key, LinkId},
    local::InnerStatus,
    network::Network,
    object::{Address, InnerLink, InnerState, LinkKind},
    reads::ReadCause,
    setting::Setting,
    tables::AddressSeen,
    time::Time,
};
use crate::model::{EndpointId, Netns};

/// A file at a path may be a namespace that is not mounted yet: it is looked at again after 1, 2, 4 … 256 ms.
const LOOKS: u32 = 10;

impl Network {
    /// The addresses of a link, all of them.
    pub(super) fn observe_addresses(&mut self, id: &LinkId, addresses: &[Address], cause: ReadCause) {
        let known = self.tables.addresses.observed_in(on_link(id));
        let mut seen = BTreeSet::new();
        for address in addresses {
            let key = (id.clone(), address.net);
            if self.address_is_ours(id, address) {
                seen.insert(key.clone());
                let seen = AddressSeen { ours: address.ours, routed: address.routed };
                self.saw_address(&key, Some(seen), cause);
            }
        }
        for key in known.iter().filter(|key| !seen.contains(key)) {
            self.saw_address(key, None, cause);
        }
    }

    pub(super) fn saw_address(&mut self, key: &(LinkId, IpNet), observed: Option<AddressSeen>, cause: ReadCause) {
        let had_v4 = self.tables.has_v4_address(&key.0);
        if self.tables.addresses.set_observed(key, observed, cause.into()) && cause == ReadCause::Foreign {
            self.episodes.suspect(Key::Address(key.0.clone(), key.1));
        }
        // With its last IPv4 address a link loses its IPv4 neighbours, permanent ones too (fib_disable_ip, fib_frontend.c).
        if let LinkId::Vxlan(vni) | LinkId::Bridge(vni) = &key.0
            && had_v4
            && !self.tables.has_v4_address(&key.0)
        {
            let on_bridge = matches!(key.0, LinkId::Bridge(_));
            self.tables.neighbours.lose((*vni, on_bridge), Cause::Repair, |key| key.ip.is_ipv4());
        }
    }

    /// In the overlay namespace every address is ours, of link-local ones only those that we make. In an endpoint's namespace others may add theirs:
    /// ours are those with our number, and the endpoint's own whatever their prefix length.
    pub(super) fn address_is_ours(&self, id: &LinkId, address: &Address) -> bool {
        let ip = address.net.addr();
        if matches!(ip, std::net::IpAddr::V6(v6) if v6.is_unicast_link_local()) {
            return !matches!(id, LinkId::Inner(_))
                && (address.ours || self.tables.addresses.get(&(id.clone(), address.net)).is_some());
        }
        match id {
            LinkId::Inner(endpoint) => {
                let own = self
                    .locals
                    .by_id
                    .get(endpoint)
                    .is_some_and(|l| l.spec.addresses.iter().any(|net| net.addr() == ip));
                // What was ours stays ours until it is gone, also where the kernel keeps no number (before 5.18).
                own || address.ours || self.tables.addresses.observed_of(&(id.clone(), address.net)).is_some()
            }
            // Of the host's addresses only those with our number, and what the bridge should have.
            _ if self.config.home.is_host() => {
                address.ours || self.tables.addresses.get(&(id.clone(), address.net)).is_some()
            }
            _ => true,
        }
    }

    pub(super) fn observe_inner(&mut self, state: InnerState, cause: ReadCause, now: Time) {
        let Some(id) = self.reads.asked_inner.take() else { return };
        let inner = LinkId::Inner(id.clone());
        if let Some(local) = self.locals.by_id.get_mut(&id) {
            local.unreadable = false;
        }
        match state {
            InnerState::NoNetns => {
                self.observe_gone(&inner, cause.into());
                self.set_inner_status(&id, InnerStatus::NoNetns);
                if let Some(local) = self.locals.by_id.get_mut(&id)
                    && (1..LOOKS).contains(&local.looks)
                {
                    let pause = Duration::from_millis(1 << (local.looks - 1));
                    local.looks += 1;
                    self.reads.looks.insert(id, now + pause);
                }
            }
            InnerState::Refused(reason) => {
                self.observe_gone(&inner, cause.into());
                // The network that the endpoint is of says so; there is no way outside for it either.
                let refused =
                    if self.config.home.is_host() { InnerStatus::NoNetns } else { InnerStatus::Refused(reason) };
                self.set_inner_status(&id, refused);
            }
            InnerState::Netns { id: netns, nsid, link } => {
                let Some(local) = self.locals.by_id.get_mut(&id) else { return };
                local.looks = 0;
                let another = matches!(local.status, InnerStatus::Present { id, .. } if id != netns);
                self.set_inner_status(&id, InnerStatus::Present { id: netns, nsid });
                // What stands in a namespace that another endpoint has is that one's.
                let link = link.filter(|_| self.locals.by_id.get(&id).is_some_and(|local| !local.shadowed));
                self.observe_inner_link(&id, nsid, link, if another { ReadCause::First } else { cause });
                if another {
                    // The container was replaced by another one: what went with the old one is no drift.
                    self.episodes.absolve(|key| match key {
                        Key::Link(LinkId::Outer(of) | LinkId::Inner(of))
                        | Key::Address(LinkId::Inner(of), _)
                        | Key::Route(LinkId::Inner(of), _) => *of == id,
                        _ => false,
                    });
                    for end in [LinkId::Outer(id.clone()), LinkId::Inner(id.clone())] {
                        self.episodes.wrote(Key::Link(end.clone()));
                        self.episodes.desired_moved(&Key::Link(end));
                    }
                }
            }
        }
    }

    pub(super) fn observe_inner_link(
        &mut self,
        id: &EndpointId,
        nsid: Option<i32>,
        link: Option<InnerLink>,
        cause: ReadCause,
    ) {
        let inner = LinkId::Inner(id.clone());
        let outer = self.tables.links.observed_of(&LinkId::Outer(id.clone()));
        let on_host = self.locals.by_id.get(id).is_some_and(|local| local.spec.netns == Netns::Host);
        // With the other end in sight, the pair itself says which link it is; without it, only our mark does.
        let is_ours = |found: &InnerLink| match (&found.link.kind, outer.map(|outer| (outer.ifindex, &outer.kind))) {
            (LinkKind::Veth { peer, .. }, Some((outer, LinkKind::Veth { peer: back, peer_nsid }))) => {
                *peer == Some(outer) && *back == Some(found.link.ifindex) && *peer_nsid == nsid
            }
            // On the host another agent's links may carry the same group.
            (LinkKind::Veth { .. }, None) => !on_host && self.is_lone_end(id, found, nsid),
            _ => false,
        };
        match link.filter(is_ours) {
            Some(InnerLink { link, addresses, routes, defaults_elsewhere }) => {
                self.yield_defaults(id, defaults_elsewhere);
                // What a link holds that was not seen before is history.
                let known = self.tables.links.observed_of(&inner).is_some();
                let of_held = if known { cause } else { ReadCause::First };
                if self.tables.links.set_observed(&inner, Some(link), cause.into()) && cause == ReadCause::Foreign {
                    self.episodes.suspect(Key::Link(inner.clone()));
                }
                self.yield_ipv6(id);
                self.observe_addresses(&inner, &addresses, of_held);
                self.observe_routes(&inner, &routes, of_held);
            }
            None => {
                self.suspect_link(&inner, cause);
                self.observe_gone(&inner, cause.into());
            }
        }
    }

    /// An endpoint's namespace may refuse IPv6 (Docker's usual): then its IPv6 addresses are not for it.
    fn yield_ipv6(&mut self, id: &EndpointId) {
        let inner = LinkId::Inner(id.clone());
        let Some(local) = self.locals.by_id.get(id).filter(|local| local.wired()) else { return };
        let Some(link) = self.tables.links.observed_of(&inner) else { return };
        let refuses = link.off.contains(&Setting::Ipv6Disabled);
        let netns = local.spec.netns.clone();
        let v6: Vec<IpNet> = local.spec.addresses.iter().copied().filter(|net| net.addr().is_ipv6()).collect();
        let mut changed = false;
        for net in v6 {
            let key = (inner.clone(), net);
            changed |= self.tables.addresses.desired_of(&key).is_some() == refuses;
            self.want_address(&key, (!refuses).then_some(()));
        }
        if changed {
            self.refresh_routes(&netns);
        }
    }

    /// Whether a link in an endpoint's namespace is one of this network that lost its other end. Our mark alone does not say so: in the
    /// same namespace other endpoints, other networks and the gateway bridge may have their ends, which are in use.
    fn is_lone_end(&self, id: &EndpointId, found: &InnerLink, nsid: Option<i32>) -> bool {
        let InnerLink { link, addresses, .. } = found;
        let peer = match link.kind {
            LinkKind::Veth { peer: Some(peer), .. } => self.tables.by_index.get(&peer),
            _ => None,
        };
        let back = LinkKind::Veth { peer: Some(link.ifindex), peer_nsid: nsid };
        let in_use = peer.and_then(|id| self.tables.links.observed_of(id)).is_some_and(|peer| peer.kind == back);
        let own_mac = self.locals.by_id.get(id).is_some_and(|local| local.spec.mac == link.mac);
        // Which address the gateway bridge gave is forgotten with the port.
        let gateways = self.desired.spec.iter().filter(|_| self.config.home.is_host()).flat_map(|spec| spec.gateways());
        let given = |gateway: &IpNet| addresses.iter().any(|held| held.ours && gateway.contains(&held.net.addr()));
        link.group == self.config.group && !in_use && (own_mac || gateways.copied().any(|gateway| given(&gateway)))
    }
}

/// The range of what hangs on a link by its prefix: addresses, routes.
pub(super) fn on_link(id: &LinkId) -> RangeInclusive<(LinkId, IpNet)> {
    let least = IpNet::V4(Ipv4Net::default());
    let most = IpNet::V6(Ipv6Net::from(Ipv6Addr::from([0xff; 16])));
    (id.clone(), least)..=(id.clone(), most)
}
