//! From a network's desired spec and endpoints to the desired side of the tables.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use ipnet::IpNet;

use super::{
    delta::{Cause, Fits},
    key::{BridgeRowKey, Key, LinkId, NeighbourKey, TunnelKey},
    network::{Home, InnerStatus, Local, Netns, Network},
    object::{Link, LinkKind, Port},
    seam::LinkRef,
    time::Time,
    unread::ReadCause,
};
use crate::{
    desired::{EndpointSpec, LocalEndpoint, NetworkSpec, RemoteEndpoint, Segment, Tunnel, Update},
    model::{EndpointId, Mac, Vni, stable_hash},
};

/// What a link should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkWant {
    /// Its name.
    pub name: String,
    /// Its MAC address.
    pub mac: Mac,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Its link group.
    pub group: u32,
    /// What it is.
    pub kind: KindWant,
}

/// What is particular to each kind of link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KindWant {
    /// A bridge without multicast snooping.
    Bridge {
        /// Somebody else's is used as it is.
        adopt: bool,
    },
    /// A VXLAN device without learning, with proxy unless it floods, a port of its segment's bridge.
    Vxlan {
        /// Its VNI.
        vni: Vni,
        /// Its port and source address.
        tunnel: Tunnel,
        /// The bridge's index; `None` until there is one.
        bridge: Option<u32>,
    },
    /// The overlay end of a veth pair, a port of its segment's bridge.
    Outer {
        /// The bridge's index; `None` until there is one.
        bridge: Option<u32>,
        /// It exchanges frames with the bridge alone, and not with other ports of its kind.
        isolated: bool,
        /// Frames come in from the endpoint's MAC address only.
        locked: bool,
    },
    /// The endpoint's end of a veth pair.
    Inner {
        /// The other end's index; `None` until there is one.
        outer: Option<u32>,
    },
}

impl LinkWant {
    /// The bridge that it should be a port of, and how; `None` where it is no port.
    pub fn port(&self) -> Option<(Option<u32>, Port)> {
        match &self.kind {
            KindWant::Bridge { .. } | KindWant::Inner { .. } => None,
            // The tunnel takes what no endpoint of this host has; with flood off remote endpoints would be unreachable.
            KindWant::Vxlan { bridge, .. } => {
                let port = Port { learning: false, unicast_flood: true, isolated: false, locked: Some(false) };
                Some((*bridge, port))
            }
            KindWant::Outer { bridge, isolated, locked } => {
                let (isolated, locked) = (*isolated, Some(*locked));
                Some((*bridge, Port { learning: false, unicast_flood: false, isolated, locked }))
            }
        }
    }

    /// Sets the bridge that a port should be of.
    pub(super) fn join(&mut self, ifindex: u32) {
        if let KindWant::Vxlan { bridge, .. } | KindWant::Outer { bridge, .. } = &mut self.kind {
            *bridge = Some(ifindex);
        }
    }

    /// Whether the link is what it should be in all that can only be set when it is made.
    pub fn same_device(&self, link: &Link) -> bool {
        match (&self.kind, &link.kind) {
            (KindWant::Bridge { .. }, LinkKind::Bridge { .. }) | (KindWant::Outer { .. }, LinkKind::Veth { .. }) => {
                true
            }
            (KindWant::Vxlan { vni, tunnel, .. }, LinkKind::Vxlan(vxlan)) => {
                // The family of its source address is a device's for good, and IPv4 where it has none (vxlan_nl2conf).
                let family = vxlan.local.is_none_or(|local| local.is_ipv4()) == tunnel.local.is_ipv4();
                let same = vxlan.vni == vni.get() && vxlan.port == tunnel.port && vxlan.proxy != tunnel.flood;
                same && family
            }
            (KindWant::Inner { outer }, LinkKind::Veth { peer, .. }) => outer.is_some() && outer == peer,
            _ => false,
        }
    }

    fn kind_fits(&self, link: &Link) -> bool {
        match (&self.kind, &link.kind) {
            (KindWant::Bridge { .. }, LinkKind::Bridge { mcast_snooping }) => !mcast_snooping,
            (KindWant::Vxlan { tunnel, .. }, LinkKind::Vxlan(vxlan)) => {
                vxlan.local == Some(tunnel.local) && !vxlan.learning
            }
            _ => true,
        }
    }
}

impl LinkWant {
    /// Whether the link is somebody else's bridge that is used as it is.
    pub(super) fn adopted(&self, link: &Link) -> bool {
        matches!(self.kind, KindWant::Bridge { adopt: true }) && link.group != self.group
    }
}

impl Fits<Link> for LinkWant {
    fn fits(&self, link: &Link) -> bool {
        if self.adopted(link) {
            return self.name == link.name && link.up;
        }
        let port_fits = match self.port() {
            Some((bridge, port)) => {
                bridge.is_some() && link.master == bridge && link.port.is_some_and(|seen| port.is_met_by(seen))
            }
            None => true,
        };
        // IPv6 inside the endpoint's namespace is the endpoint's own affair.
        let quiet = link.addr_gen_none || matches!(self.kind, KindWant::Inner { .. });
        self.name == link.name
            && self.mac == link.mac
            && self.mtu == link.mtu
            && self.group == link.group
            && link.up
            && quiet
            && port_fits
            && self.same_device(link)
            && self.kind_fits(link)
    }
}

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

/// The name of the overlay end of an endpoint's veth pair: found again without any memory.
pub fn outer_name(id: &EndpointId) -> String {
    format!("veth{:011x}", stable_hash(id.to_string().as_bytes()) & 0xfff_ffff_ffff)
}

/// What the names of the gateway bridge's ports begin with.
pub(super) const GATEWAY_PORT: &str = "vgw";

/// The name of the gateway bridge's port for an endpoint.
pub fn gateway_port_name(id: &EndpointId) -> String {
    format!("{GATEWAY_PORT}{:012x}", stable_hash(id.to_string().as_bytes()) & 0xffff_ffff_ffff)
}

/// The address that a port of the gateway bridge is for, as its MAC address tells.
pub(super) fn address_of_gateway_port(mac: Mac) -> Option<Ipv4Addr> {
    match mac.octets() {
        [0x02, 0x76, a, b, c, d] => Some(Ipv4Addr::new(a, b, c, d)),
        _ => None,
    }
}

/// The MAC address of the gateway bridge's port for an address: an agent without memory reads from it which address is taken.
/// It is set by the very message that makes the pair.
pub fn gateway_port_mac(address: Ipv4Addr) -> Mac {
    let [a, b, c, d] = address.octets();
    Mac::new([0x02, 0x76, a, b, c, d])
}

/// A locally administered address for a device whose own address never shows in the overlay's traffic. It must be neither
/// the gateway's nor an endpoint's: with the bridge's address on the VXLAN device, frames of remote gateways vanish.
fn device_mac(of: &str) -> Mac {
    let [a, b, c, d, ..] = stable_hash(of.as_bytes()).to_be_bytes();
    Mac::new([0x02, 0x76, a, b, c, d])
}

impl Network {
    /// Takes a change of what is desired; `now` is when its watch event was received.
    pub fn want(&mut self, update: Update, now: Time) {
        self.told = true;
        self.revision = update.revision;
        self.waiting_since.get_or_insert(now);
        let mut moved = BTreeSet::new();
        // All removals come first: an endpoint that moves has the same rows under another identity, and stays in place.
        for (id, new) in &update.endpoints {
            if let Some(old) = self.endpoints.remove(id) {
                moved.extend(self.count_vtep(&old, false));
                // The rows of an endpoint that is merely behind another VTEP are set where they stand.
                if let Some(new) = new.as_ref().and_then(|new| with_same_rows(&old, new)) {
                    self.want_tunnel(tunnel_of(new), Some(new.vtep));
                    let new = EndpointSpec::Remote(new.clone());
                    moved.extend(self.count_vtep(&new, true));
                    self.endpoints.insert(id.clone(), new);
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
            if let Some(new) = new.filter(|_| !self.endpoints.contains_key(&id)) {
                if let EndpointSpec::Local(local) = &new {
                    self.remember_local(&id, local);
                }
                moved.extend(self.count_vtep(&new, true));
                self.set_rows(&id, &new, true);
                self.endpoints.insert(id, new);
            }
        }
        self.refresh_flood(&moved);
        if spec_changed && self.spec.is_none() {
            let gone = std::mem::take(&mut self.endpoints);
            for (id, old) in &gone {
                self.count_vtep(old, false);
                self.set_rows(id, old, false);
                self.forget_local(id);
            }
        }
    }

    fn set_spec(&mut self, spec: Option<Arc<NetworkSpec>>) {
        let segments = |spec: &Option<Arc<NetworkSpec>>| -> BTreeMap<Vni, Segment> {
            spec.iter().flat_map(|spec| &spec.segments).map(|segment| (segment.vni, segment.clone())).collect()
        };
        let (old, new) = (segments(&self.spec), segments(&spec));
        let before = std::mem::replace(&mut self.spec, spec);
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
        if self.unnumbered() && matches!(self.netns, Netns::Ours(_)) {
            // Among leftovers that were held may be what is desired now, of whose rows nothing is known.
            let held = self.by_index.values().any(|id| matches!(id, LinkId::Stray(_)));
            let cause = if held { ReadCause::First } else { ReadCause::Own };
            self.unread.links = self.unread.links.max(Some(cause));
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
                let wired = wanted && self.locals.get(id).is_some_and(Local::wired);
                let key = BridgeRowKey { vni: local.vni, mac: local.mac };
                if self.bridge_rows.want(&key, wired.then(|| id.clone())) {
                    self.desired_moved(&Key::BridgeRow(key));
                }
                for net in &local.addresses {
                    self.want_address(&(LinkId::Inner(id.clone()), *net), wired.then_some(()));
                }
                if wanted {
                    self.refresh_routes(&local.netns);
                }
                if wired {
                    self.refresh_local(id);
                } else {
                    self.want_link(&LinkId::Outer(id.clone()), None);
                    self.want_link(&LinkId::Inner(id.clone()), None);
                    self.want_chain(&self.guard_id(id), None);
                }
            }
        }
    }

    pub(super) fn want_neighbour(&mut self, key: NeighbourKey, mac: Mac, wanted: bool) {
        if self.neighbours.want(&key, wanted.then_some(mac)) {
            self.desired_moved(&Key::Neighbour(key));
        }
    }

    /// Adds or takes away one of the endpoints that a row leads to. It stays while there is any.
    fn set_tunnel(&mut self, key: TunnelKey, vtep: IpAddr, wanted: bool) {
        let more = self.sharers.remove(&key).unwrap_or_default();
        let more = match (wanted, self.tunnels.desired_of(&key)) {
            (true, Some(_)) => more + 1,
            (false, Some(_)) if more > 0 => more - 1,
            _ => {
                return self.want_tunnel(key, wanted.then_some(vtep));
            }
        };
        if more > 0 {
            self.sharers.insert(key, more);
        }
        if wanted {
            self.want_tunnel(key, Some(vtep));
        }
    }

    fn want_tunnel(&mut self, key: TunnelKey, want: Option<IpAddr>) {
        if self.tunnels.want(&key, want) {
            self.desired_moved(&Key::Tunnel(key));
        }
    }

    fn want_link(&mut self, id: &LinkId, want: Option<LinkWant>) {
        if self.links.want(id, want) {
            self.desired_moved(&Key::Link(id.clone()));
        }
    }

    pub(super) fn want_address(&mut self, key: &(LinkId, IpNet), want: Option<()>) {
        if self.addresses.want(key, want) {
            self.desired_moved(&Key::Address(key.0.clone(), key.1));
        }
        // The host's bridge may be somebody else's, and have had the address before us.
        let on_hosts_bridge = self.config.home.is_host() && matches!(key.0, LinkId::Bridge(_));
        if on_hosts_bridge && want.is_none() && self.addresses.observed_of(key) == Some(&false) {
            self.addresses.saw(key, None, Cause::Change);
        }
    }

    /// Retries and damping of what was desired before do not hold up what is desired now.
    pub(super) fn desired_moved(&mut self, key: &Key) {
        self.troubles.over(key);
        self.drift.release(key);
    }

    fn remember_local(&mut self, id: &EndpointId, spec: &LocalEndpoint) {
        match self.locals.get_mut(id) {
            Some(local) if local.spec.netns == spec.netns => local.spec = spec.clone(),
            _ => {
                self.forget_local(id);
                let name = self.outer_name_of(id);
                if self.by_index.values().any(|id| matches!(id, LinkId::Stray(_))) {
                    self.unread.link(LinkRef::Name(name.clone()), ReadCause::First);
                }
                self.by_outer_name.insert(name, id.clone());
                if let Some(path) = spec.netns.path() {
                    self.by_path.entry(path.to_owned()).or_default().insert(id.clone());
                }
                self.locals.insert(id.clone(), Local::new(spec.clone()));
            }
        }
        self.unread.inner(id.clone(), ReadCause::First);
    }

    fn forget_local(&mut self, id: &EndpointId) {
        if let Some(local) = self.locals.remove(id) {
            if let Some(path) = local.spec.netns.path()
                && let Some(at_path) = self.by_path.get_mut(path)
            {
                at_path.remove(id);
                if at_path.is_empty() {
                    self.by_path.remove(path);
                }
            }
            self.want_routes(id, &[]);
            self.refresh_routes(&local.spec.netns);
            self.unread.inner.remove(id);
            self.unread.looks.remove(id);
            self.by_outer_name.remove(&self.outer_name_of(id));
            self.reshadow(&local.status);
            // What is left of it in a namespace that is still there goes with the other end of the pair.
            self.observe_gone(&LinkId::Inner(id.clone()), Cause::Change);
        }
    }

    /// Sets whether a local endpoint's namespace is there to be wired.
    pub(super) fn set_inner_status(&mut self, id: &EndpointId, status: InnerStatus) {
        let Some(local) = self.locals.get_mut(id) else { return };
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
        let here = self.locals.iter().filter(|(_, local)| there(local)).map(|(id, _)| id.clone());
        let changed = here.enumerate().filter(|(n, id)| self.locals.get(id).is_some_and(|l| l.shadowed != (*n > 0)));
        for (n, id) in changed.collect::<Vec<_>>() {
            let Some(local) = self.locals.get_mut(&id) else { continue };
            local.shadowed = n > 0;
            let spec = EndpointSpec::Local(local.spec.clone());
            self.set_rows(&id, &spec, true);
        }
    }

    pub(super) fn outer_name_of(&self, id: &EndpointId) -> String {
        if self.config.home.is_host() { gateway_port_name(id) } else { outer_name(id) }
    }

    /// Sets the desired side of all links, where it depends on what was found: numbers in names, indices of bridges.
    pub(super) fn refresh_links(&mut self) {
        let Some(spec) = self.spec.clone() else { return };
        for segment in &spec.segments {
            self.refresh_segment(segment);
        }
        let ids: Vec<EndpointId> = self.locals.keys().cloned().collect();
        for id in ids {
            self.refresh_local(&id);
        }
    }

    fn refresh_segment(&mut self, segment: &Segment) {
        let Some(number) = self.numbers.get(&segment.vni).copied() else { return };
        let (name, adopt) = match &self.config.home {
            Home::Overlay(_) => (format!("br{number}"), false),
            Home::Host { bridge, adopt } => (bridge.clone(), *adopt),
        };
        let bridge = LinkWant {
            name,
            mac: segment.gateway_mac,
            mtu: segment.mtu,
            group: self.config.group,
            kind: KindWant::Bridge { adopt },
        };
        self.want_link(&LinkId::Bridge(segment.vni), Some(bridge));
        let Some(tunnel) = segment.tunnel else { return };
        let vxlan = LinkWant {
            name: format!("vxlan{}", number + 1),
            mac: device_mac(&format!("{} {}", self.config.name, segment.vni)),
            mtu: segment.mtu,
            group: self.config.group,
            kind: KindWant::Vxlan { vni: segment.vni, tunnel, bridge: self.bridge_index(segment.vni) },
        };
        self.want_link(&LinkId::Vxlan(segment.vni), Some(vxlan));
    }

    /// Sets the desired side of a wired endpoint's two ends.
    pub(super) fn refresh_local(&mut self, id: &EndpointId) {
        let Some(local) = self.locals.get(id).filter(|local| local.wired()) else { return };
        let local = &local.spec;
        let Some(spec) = &self.spec else { return };
        let Some(segment) = spec.segment(local.vni) else { return };
        let own_address = local.addresses.iter().find_map(|net| match net.addr() {
            IpAddr::V4(address) if self.config.home.is_host() => Some(address),
            _ => None,
        });
        let outer = LinkWant {
            name: self.outer_name_of(id),
            mac: own_address.map_or_else(|| device_mac(&format!("{} {id}", self.config.name)), gateway_port_mac),
            mtu: segment.mtu,
            group: self.config.group,
            kind: KindWant::Outer {
                bridge: self.bridge_index(local.vni),
                isolated: self.config.home.is_host(),
                locked: spec.spoof_guard,
            },
        };
        let inner = LinkWant {
            name: local.ifname.clone(),
            mac: local.mac,
            mtu: segment.mtu,
            group: self.config.group,
            kind: KindWant::Inner {
                outer: self.links.observed_of(&LinkId::Outer(id.clone())).map(|link| link.ifindex),
            },
        };
        self.want_link(&LinkId::Outer(id.clone()), Some(outer));
        self.want_link(&LinkId::Inner(id.clone()), Some(inner));
        self.refresh_guard(id);
    }

    pub(super) fn bridge_index(&self, vni: Vni) -> Option<u32> {
        self.links.observed_of(&LinkId::Bridge(vni)).map(|link| link.ifindex)
    }
}
