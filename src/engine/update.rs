//! Desired: from a network's desired spec and endpoints to the desired side of the tables.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;

use super::{
    config::Home,
    delta::Cause,
    device::LinkWant,
    endpoints::Endpoints,
    interface::LinkRef,
    key::{BridgeRowKey, Key, LinkId, NeighbourKey, TunnelKey},
    local::{InnerStatus, Local},
    network::Network,
    reads::ReadCause,
    tables::Netns,
    time::Time,
};
use crate::{
    desired::{EndpointSpec, LocalEndpoint, NetworkSpec, RemoteEndpoint, Segment, Update},
    model::{EndpointId, Mac, Vni},
};

/// The new one of two remote endpoints that differ in nothing but their VTEP.
fn with_same_rows<'n>(old: &EndpointSpec, new: &'n EndpointSpec) -> Option<&'n RemoteEndpoint> {
    match (old, new) {
        (EndpointSpec::Remote(old), EndpointSpec::Remote(new)) => {
            ((old.vni, old.mac, &old.ips) == (new.vni, new.mac, &new.ips)).then_some(new)
        }
        _ => None,
    }
}

/// The row that leads to a remote endpoint.
fn tunnel_of(remote: &RemoteEndpoint) -> TunnelKey {
    TunnelKey { vni: remote.vni, mac: remote.mac, dst: None }
}

/// What should be here.
#[derive(Debug, Default)]
pub(super) struct Desired {
    /// Nothing is touched before it is known.
    pub(super) known: bool,
    /// What nothing desires stays where it is.
    pub(super) removals_held: bool,
    pub(super) spec: Option<Arc<NetworkSpec>>,
    pub(super) endpoints: Endpoints,
    /// How many more endpoints than one a row of a VXLAN device leads to.
    pub(super) sharers: BTreeMap<TunnelKey, usize>,
    /// The VTEPs that endpoints of the network are behind, each with how many.
    pub(super) vteps: BTreeMap<IpAddr, usize>,
    /// `i` of `br<i>` and `vxlan<i+1>`.
    pub(super) numbers: BTreeMap<Vni, u32>,
}

impl Network {
    /// Takes a change of what is desired; `now` is when its watch event was received.
    pub fn update(&mut self, update: Update, now: Time) {
        self.desired.known = true;
        self.report.revision = update.revision;
        self.report.waiting_since.get_or_insert(now);
        let mut moved = BTreeSet::new();
        // All removals come first: an endpoint that moves has the same rows under another identity, and stays in place.
        for (id, new) in &update.endpoints {
            if let Some(old) = self.desired.endpoints.remove(id) {
                moved.extend(self.count_vtep(&old, false));
                // The rows of an endpoint that is merely behind another VTEP are set where they stand.
                if let Some(new) = new.as_ref().and_then(|new| with_same_rows(&old, new)) {
                    self.want_tunnel(tunnel_of(new), Some(new.vtep));
                    let new = EndpointSpec::Remote(new.clone());
                    moved.extend(self.count_vtep(&new, true));
                    self.desired.endpoints.insert(id.clone(), new);
                    continue;
                }
                self.set_rows(id, &old, false);
                if !matches!(new, Some(EndpointSpec::Local(_))) {
                    self.forget_local(id);
                }
            }
        }
        let spec_changed = update.spec.is_some();
        if let Some(spec) = update.spec {
            self.set_spec(spec);
        }
        for (id, new) in update.endpoints {
            if let Some(new) = new.filter(|_| !self.desired.endpoints.contains(&id)) {
                if let EndpointSpec::Local(local) = &new {
                    self.remember_local(&id, local);
                }
                moved.extend(self.count_vtep(&new, true));
                self.set_rows(&id, &new, true);
                self.desired.endpoints.insert(id, new);
            }
        }
        self.refresh_flood(&moved);
        if spec_changed && self.desired.spec.is_none() {
            let gone = std::mem::take(&mut self.desired.endpoints);
            for (id, old) in gone.iter() {
                self.count_vtep(&old, false);
                self.set_rows(&id, &old, false);
                self.forget_local(&id);
            }
        }
    }

    fn set_spec(&mut self, spec: Option<Arc<NetworkSpec>>) {
        let segments = |spec: &Option<Arc<NetworkSpec>>| -> BTreeMap<Vni, Segment> {
            spec.iter().flat_map(|spec| &spec.segments).map(|segment| (segment.vni, segment.clone())).collect()
        };
        let (old, new) = (segments(&self.desired.spec), segments(&spec));
        let before = std::mem::replace(&mut self.desired.spec, spec);
        self.want_chains_of_spec(before.as_deref());
        self.want_link_locals(before.as_deref());
        self.refresh_bridges_neighbours(before.as_deref());
        for vni in old.keys().chain(new.keys()) {
            let floods = |segment: Option<&Segment>| segment?.tunnel.filter(|t| t.flood).map(|t| t.local);
            if floods(old.get(vni)) != floods(new.get(vni)) {
                self.refresh_flood_list(*vni);
            }
        }
        for (vni, segment) in &old {
            for gateway in &segment.gateways {
                if new.get(vni).is_none_or(|new| !new.gateways.contains(gateway)) {
                    self.want_address(&(LinkId::Bridge(*vni), *gateway), None);
                }
            }
            if !new.contains_key(vni) {
                self.want_link(&LinkId::Bridge(*vni), None);
                self.want_link(&LinkId::Vxlan(*vni), None);
            }
        }
        for (vni, segment) in &new {
            for gateway in &segment.gateways {
                self.want_address(&(LinkId::Bridge(*vni), *gateway), Some(()));
            }
        }
        self.want_forwarding();
        self.refresh_links();
        if before.is_none() && self.tables.ours() {
            // Of what nothing desired no rows were read.
            self.reads.all_rows = Some(ReadCause::First);
        }
        if self.unnumbered() && matches!(self.tables.netns, Netns::Ours(_)) {
            // Among leftovers that were held may be what is desired now, of whose rows nothing is known.
            let held = self.tables.by_index.values().any(|id| matches!(id, LinkId::Stray(_)));
            let cause = if held { ReadCause::First } else { ReadCause::Own };
            self.reads.links = self.reads.links.max(Some(cause));
        }
    }

    /// Sets or clears the rows that an endpoint stands for.
    fn set_rows(&mut self, id: &EndpointId, spec: &EndpointSpec, wanted: bool) {
        match spec {
            EndpointSpec::Remote(remote) => {
                self.set_tunnel(tunnel_of(remote), remote.vtep, wanted);
                for ip in &remote.ips {
                    self.want_neighbour(
                        NeighbourKey { vni: remote.vni, on_bridge: false, ip: *ip },
                        remote.mac,
                        wanted,
                    );
                    self.want_on_bridge(remote.vni, *ip, remote.mac, wanted);
                }
            }
            // It has no address yet, and so no rows.
            EndpointSpec::Outside(_) => {}
            EndpointSpec::Local(local) => {
                let wired = wanted && self.locals.by_id.get(id).is_some_and(Local::wired);
                let key = BridgeRowKey { vni: local.vni, mac: local.mac };
                if self.tables.bridge_rows.set_desired(&key, wired.then(|| id.clone())) {
                    self.episodes.desired_moved(&Key::BridgeRow(key));
                }
                for net in &local.addresses {
                    let inner = LinkId::Inner(id.clone());
                    let refused = net.addr().is_ipv6() && self.view().refuses_ipv6(&inner);
                    self.want_address(&(inner, *net), (wired && !refused).then_some(()));
                }
                if wanted {
                    self.refresh_routes(&local.netns);
                }
                if wired {
                    self.refresh_local(id);
                } else {
                    self.want_link(&LinkId::Outer(id.clone()), None);
                    self.want_link(&LinkId::Inner(id.clone()), None);
                    self.want_chain(&self.config.guard_id(id), None);
                }
            }
        }
    }

    pub(super) fn want_neighbour(&mut self, key: NeighbourKey, mac: Mac, wanted: bool) {
        if self.tables.neighbours.set_desired(&key, wanted.then_some(mac)) {
            self.episodes.desired_moved(&Key::Neighbour(key));
        }
    }

    /// Adds or takes away one of the endpoints that a row leads to. It stays while there is any.
    fn set_tunnel(&mut self, key: TunnelKey, vtep: IpAddr, wanted: bool) {
        let more = self.desired.sharers.remove(&key).unwrap_or_default();
        let more = match (wanted, self.tables.tunnels.desired_of(&key)) {
            (true, Some(_)) => more + 1,
            (false, Some(_)) if more > 0 => more - 1,
            _ => {
                return self.want_tunnel(key, wanted.then_some(vtep));
            }
        };
        if more > 0 {
            self.desired.sharers.insert(key, more);
        }
        if wanted {
            self.want_tunnel(key, Some(vtep));
        }
    }

    fn want_tunnel(&mut self, key: TunnelKey, want: Option<IpAddr>) {
        if self.tables.tunnels.set_desired(&key, want) {
            self.episodes.desired_moved(&Key::Tunnel(key));
        }
    }

    pub(super) fn want_link(&mut self, id: &LinkId, want: Option<LinkWant>) {
        if self.tables.links.set_desired(id, want) {
            self.episodes.desired_moved(&Key::Link(id.clone()));
        }
    }

    pub(super) fn want_address(&mut self, key: &(LinkId, IpNet), want: Option<()>) {
        if self.tables.addresses.set_desired(key, want) {
            self.episodes.desired_moved(&Key::Address(key.0.clone(), key.1));
        }
        // The host's bridge may be somebody else's, and have had the address before us.
        let on_hosts_bridge = self.config.home.is_host() && matches!(key.0, LinkId::Bridge(_));
        if on_hosts_bridge && want.is_none() && self.tables.addresses.observed_of(key).is_some_and(|seen| !seen.ours) {
            self.tables.addresses.set_observed(key, None, Cause::Change);
        }
    }

    fn remember_local(&mut self, id: &EndpointId, spec: &LocalEndpoint) {
        match self.locals.by_id.get_mut(id) {
            Some(local) if local.spec.netns == spec.netns => local.spec = spec.clone(),
            _ => {
                self.forget_local(id);
                let name = self.config.outer_name(id);
                if self.tables.by_index.values().any(|id| matches!(id, LinkId::Stray(_))) {
                    self.reads.link(LinkRef::Name(name.clone()), ReadCause::First);
                }
                self.locals.insert(id, name, spec.clone());
            }
        }
        self.reads.inner(id.clone(), ReadCause::First);
    }

    fn forget_local(&mut self, id: &EndpointId) {
        if let Some(local) = self.locals.remove(id, &self.config.outer_name(id)) {
            self.want_routes(id, &[]);
            self.refresh_routes(&local.spec.netns);
            self.reads.inner.remove(id);
            self.reads.looks.remove(id);
            self.reshadow(&local.status);
            // What is left of it in a namespace that is still there goes with the other end of the pair.
            self.observe_gone(&LinkId::Inner(id.clone()), Cause::Change);
        }
    }

    /// Sets whether a local endpoint's namespace is there to be wired.
    pub(super) fn set_inner_status(&mut self, id: &EndpointId, status: InnerStatus) {
        let Some(local) = self.locals.by_id.get_mut(id) else { return };
        let was_wired = local.wired();
        let before = std::mem::replace(&mut local.status, status.clone());
        if local.wired() != was_wired {
            let spec = EndpointSpec::Local(local.spec.clone());
            self.set_rows(id, &spec, true);
        }
        if before != status {
            self.reshadow(&before);
            self.reshadow(&status);
        }
    }

    /// On the host a namespace gets one interface, however many paths lead to it: that of the first endpoint.
    fn reshadow(&mut self, status: &InnerStatus) {
        let (Home::Host { .. }, InnerStatus::Present { id: netns, .. }) = (&self.config.home, status) else { return };
        let there = |local: &Local| matches!(&local.status, InnerStatus::Present { id, .. } if id == netns);
        let here = self.locals.by_id.iter().filter(|(_, local)| there(local)).map(|(id, _)| id.clone());
        let changed =
            here.enumerate().filter(|(n, id)| self.locals.by_id.get(id).is_some_and(|l| l.shadowed != (*n > 0)));
        for (n, id) in changed.collect::<Vec<_>>() {
            let Some(local) = self.locals.by_id.get_mut(&id) else { continue };
            local.shadowed = n > 0;
            let spec = EndpointSpec::Local(local.spec.clone());
            self.set_rows(&id, &spec, true);
        }
    }
}
