//! Links of the overlay namespace as they are read: which of ours each is, and what goes when one goes or changes.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    config::Home,
    delta::Cause,
    device::{GATEWAY_PORT, doomed_group},
    interface::LinkRef,
    key::{BridgeRowKey, Key, LinkId},
    network::Network,
    object::{Address, Link, LinkKind},
    reads::ReadCause,
    setting::Setting,
};
use crate::model::Vni;

impl Network {
    pub(super) fn observe_all_links(&mut self, links: &[Link], addresses: &[Address], cause: ReadCause) {
        self.number_segments(links);
        let present: BTreeSet<u32> = links.iter().map(|link| link.ifindex).collect();
        let gone: Vec<u32> =
            self.tables.by_index.keys().filter(|ifindex| !present.contains(ifindex)).copied().collect();
        for ifindex in gone {
            self.observe_link(&LinkRef::Index(ifindex), None, &[], cause);
        }
        let mut by_link: BTreeMap<u32, Vec<Address>> = BTreeMap::new();
        for address in addresses {
            by_link.entry(address.ifindex).or_default().push(*address);
        }
        for link in links {
            let of_link = by_link.remove(&link.ifindex).unwrap_or_default();
            self.observe_link(&LinkRef::Index(link.ifindex), Some(link), &of_link, cause);
        }
    }

    /// Gives each segment the number in its devices' names: the one that its VXLAN device has, else the lowest free one.
    pub(super) fn number_segments(&mut self, links: &[Link]) {
        let Some(spec) = self.desired.spec.clone() else { return };
        self.desired.numbers.retain(|vni, _| spec.segment(*vni).is_some());
        if self.config.home.is_host() {
            // The operator named the one bridge.
            self.desired.numbers.extend(spec.segments.iter().map(|segment| (segment.vni, 0)));
            return self.refresh_links();
        }
        for segment in &spec.segments {
            let vxlan = links.iter().find(|link| is_vxlan_of(link, segment.vni));
            let number = vxlan.and_then(|vxlan| {
                let bridge = links.iter().find(|link| Some(link.ifindex) == vxlan.master);
                // The bridge has the endpoints: a VXLAN device that was renamed must not cost them theirs.
                let from_bridge = bridge.and_then(|bridge| bridge.name.strip_prefix("br")?.parse().ok());
                from_bridge.or_else(|| vxlan.name.strip_prefix("vxlan")?.parse::<u32>().ok()?.checked_sub(1))
            });
            if let Some(number) = number
                && !self.desired.numbers.values().any(|taken| *taken == number)
            {
                self.desired.numbers.entry(segment.vni).or_insert(number);
            }
        }
        for segment in &spec.segments {
            if !self.desired.numbers.contains_key(&segment.vni) {
                let free = (0..).find(|number| !self.desired.numbers.values().any(|taken| taken == number));
                self.desired.numbers.insert(segment.vni, free.unwrap_or_default());
            }
        }
        self.refresh_links();
    }

    /// Whether there is a segment without a number: the links must be read to give it one.
    pub(super) fn unnumbered(&self) -> bool {
        self.desired
            .spec
            .iter()
            .flat_map(|spec| &spec.segments)
            .any(|segment| !self.desired.numbers.contains_key(&segment.vni))
    }

    pub(super) fn observe_link(
        &mut self,
        asked: &LinkRef,
        link: Option<&Link>,
        addresses: &[Address],
        cause: ReadCause,
    ) {
        let known = match asked {
            LinkRef::Index(ifindex) => self.tables.by_index.get(ifindex).cloned(),
            LinkRef::Name(_) => None,
        };
        let Some(link) = link else {
            if let Some(id) = known {
                self.suspect_link(&id, cause);
                self.observe_gone(&id, self.cause_of_loss(&id, cause));
                self.link_moved(&id);
            }
            return;
        };
        let known = known.or_else(|| self.tables.by_index.get(&link.ifindex).cloned());
        let id = match known {
            Some(stray @ LinkId::Stray(_)) => Some(self.classify(link).unwrap_or(stray)),
            known => known.or_else(|| self.classify(link)),
        };
        let Some(id) = id else { return };
        // A leftover that turns out to be an object of ours is nobody else's doing.
        let leftover = self.tables.links.observed_of(&LinkId::Stray(link.ifindex)).is_some();
        if leftover && !matches!(id, LinkId::Stray(_)) {
            self.observe_gone(&LinkId::Stray(link.ifindex), Cause::Change);
        }
        let before = self.tables.links.observed_of(&id).cloned();
        // A second device that answers to the same name or VNI is the newer one; the older one has been replaced.
        if before.as_ref().is_some_and(|before| before.ifindex != link.ifindex) {
            self.observe_gone(&id, self.cause_of_loss(&id, cause));
        }
        self.tables.by_index.insert(link.ifindex, id.clone());
        let left = self.tables.links.set_observed(&id, Some(link.clone()), cause.into());
        // A stray with our mark is something that we left behind, not somebody else's doing.
        if left && cause == ReadCause::Foreign && !leftover && !matches!(id, LinkId::Stray(_)) {
            self.episodes.suspect(Key::Link(id.clone()));
        }
        self.lost_rows(&id, before.as_ref(), link, self.cause_of_loss(&id, cause));
        let new = before.as_ref().is_none_or(|before| before.ifindex != link.ifindex);
        self.observe_addresses(&id, addresses, if new { ReadCause::First } else { cause });
        if new && cause != ReadCause::Own && !self.episodes.awaits_read(&Key::Link(id.clone())) {
            // Not made by us just now: nothing is known of its rows.
            self.reads.fdb_dump(link.ifindex, ReadCause::First);
            if !self.config.home.is_host() {
                self.reads.neighbour_dump(link.ifindex, ReadCause::First);
            }
        }
        if new || before.is_some_and(|before| before.kind != link.kind) {
            self.link_moved(&id);
        }
    }

    /// Why what hangs on a link is made again: a foreign hand on the link, or the repair of it, or a change of ours.
    fn cause_of_loss(&self, id: &LinkId, read: ReadCause) -> Cause {
        let key = Key::Link(id.clone());
        let foreign = read == ReadCause::Foreign && !self.episodes.awaits_read(&key);
        let repair = foreign || self.episodes.is_open(&key);
        if repair { Cause::Repair } else { Cause::Change }
    }

    /// A link that was as it should be is about to be found gone.
    pub(super) fn suspect_link(&mut self, id: &LinkId, cause: ReadCause) {
        if cause == ReadCause::Foreign && !self.tables.links.differs(id) && self.tables.links.observed_of(id).is_some()
        {
            self.episodes.suspect(Key::Link(id.clone()));
        }
    }

    /// Which of our links this is, for an agent that has not seen it before.
    pub(super) fn classify(&self, link: &Link) -> Option<LinkId> {
        if let Home::Host { bridge, .. } = &self.config.home {
            return self.classify_on_host(link, bridge);
        }
        let spec = self.desired.spec.as_ref();
        let id = match &link.kind {
            LinkKind::Vxlan(vxlan) => spec
                .and_then(|spec| spec.segments.iter().find(|segment| segment.vni.get() == vxlan.vni))
                .map(|segment| LinkId::Vxlan(segment.vni)),
            LinkKind::Bridge { .. } => self
                .desired
                .numbers
                .iter()
                .find(|(_, n)| link.name == format!("br{n}"))
                .map(|(vni, _)| LinkId::Bridge(*vni)),
            LinkKind::Veth { .. } => self.locals.by_outer_name.get(&link.name).map(|id| LinkId::Outer(id.clone())),
            LinkKind::Other(_) => None,
        };
        let stray = !matches!(link.kind, LinkKind::Other(_)) && (self.has_our_group(link) || has_our_name(link));
        id.filter(|id| !self.is_taken(id)).or_else(|| stray.then_some(LinkId::Stray(link.ifindex)))
    }

    /// On the host a link is ours by its group together with what it is: a bridge, or a veth by our name pattern.
    fn classify_on_host(&self, link: &Link, bridge: &str) -> Option<LinkId> {
        let ours = link.group == self.config.group;
        match &link.kind {
            LinkKind::Bridge { .. } if link.name == bridge && (ours || self.config.adopts(link)) => {
                let id = Some(LinkId::Bridge(Vni::GATEWAY));
                id.filter(|id| !self.is_taken(id)).or_else(|| ours.then_some(LinkId::Stray(link.ifindex)))
            }
            LinkKind::Bridge { .. } => ours.then_some(LinkId::Stray(link.ifindex)),
            LinkKind::Veth { .. } if self.has_our_group(link) && is_gateway_port(&link.name) => {
                let id = self.locals.by_outer_name.get(&link.name).map(|id| LinkId::Outer(id.clone()));
                id.filter(|id| !self.is_taken(id)).or(Some(LinkId::Stray(link.ifindex)))
            }
            LinkKind::Veth { .. } | LinkKind::Vxlan(_) | LinkKind::Other(_) => None,
        }
    }

    /// Whether the link is in our group, or in that of those that were being removed when an agent of ours ended.
    fn has_our_group(&self, link: &Link) -> bool {
        link.group == self.config.group || link.group == doomed_group(self.config.group)
    }

    fn is_taken(&self, id: &LinkId) -> bool {
        self.tables.links.observed_of(id).is_some_and(|seen| self.tables.by_index.contains_key(&seen.ifindex))
    }

    /// A link has another index, or is gone: what is desired of others depends on it.
    pub(super) fn link_moved(&mut self, id: &LinkId) {
        match id {
            LinkId::Bridge(_) => self.refresh_links(),
            LinkId::Outer(endpoint) => {
                self.refresh_local(endpoint);
                self.reads.inner(endpoint.clone(), ReadCause::Own);
            }
            LinkId::Vxlan(_) | LinkId::Inner(_) | LinkId::Stray(_) => {}
        }
    }

    /// The rows that the kernel drops when a link changes in certain ways. They are lost with it, not drifted by themselves.
    pub(super) fn lost_rows(&mut self, id: &LinkId, before: Option<&Link>, now: &Link, cause: Cause) {
        let Some(before) = before else { return };
        if before.master != now.master {
            self.tables.lose_bridge_rows(now.ifindex, cause);
        }
        // Neighbours go whenever it is decided anew whether the link has any (arp_netdev_event, ndisc_netdev_event).
        let decided = before.off.contains(&Setting::Arp) != now.off.contains(&Setting::Arp);
        let flushed = before.mac != now.mac || (before.up && !now.up) || decided;
        let no_ipv6 = before.mtu >= 1280 && now.mtu < 1280;
        let (vni, on_bridge) = match id {
            LinkId::Vxlan(vni) => (*vni, false),
            LinkId::Bridge(vni) => (*vni, true),
            LinkId::Outer(_) | LinkId::Inner(_) | LinkId::Stray(_) => return,
        };
        if flushed || no_ipv6 {
            // Some of them may have been looked up before the link was.
            self.episodes.absolve(|key| match key {
                Key::Neighbour(key) => key.vni == vni && key.on_bridge == on_bridge && (flushed || key.ip.is_ipv6()),
                _ => false,
            });
            self.tables.neighbours.lose((vni, on_bridge), cause, |key| flushed || key.ip.is_ipv6());
        }
    }

    /// A link is not there (any more), and all that it held went with it.
    pub(super) fn observe_gone(&mut self, id: &LinkId, cause: Cause) {
        let Some(ifindex) = self.tables.links.observed_of(id).map(|link| link.ifindex) else { return };
        self.tables.links.set_observed(id, None, cause);
        if !matches!(id, LinkId::Inner(_)) {
            self.tables.by_index.remove(&ifindex);
            self.tables.lose_bridge_rows(ifindex, cause);
        }
        self.observe_addresses(id, &[], ReadCause::Own);
        self.observe_routes(id, &[], ReadCause::Own);
        match id {
            LinkId::Vxlan(vni) => {
                self.tables.tunnels.lose(*vni, cause, |_| true);
                self.lose_flood_list(*vni, cause);
                self.tables.lose_neighbours(*vni, false, cause);
            }
            LinkId::Bridge(vni) => {
                for key in self.tables.bridge_rows.observed_in(BridgeRowKey::all_of(*vni)) {
                    self.tables.bridge_rows.set_observed(&key, None, cause);
                }
                self.tables.lose_neighbours(*vni, true, cause);
            }
            LinkId::Outer(endpoint) => {
                self.observe_gone(&LinkId::Inner(endpoint.clone()), cause);
                // Before Linux 6.16 a chain goes with its device, and nobody is told.
                if self.tables.chains.observed_of(&self.config.guard_id(endpoint)).is_some() {
                    self.reads.rules(self.config.guards.clone(), ReadCause::Own);
                }
            }
            LinkId::Inner(_) | LinkId::Stray(_) => {}
        }
    }
}

/// Whether a link in a namespace of ours has a name that we give to its kind: its group may have been changed.
fn has_our_name(link: &Link) -> bool {
    let numbered = |prefix: &str, digits: fn(&char) -> bool| {
        link.name.strip_prefix(prefix).is_some_and(|rest| !rest.is_empty() && rest.chars().all(|c| digits(&c)))
    };
    match link.kind {
        LinkKind::Bridge { .. } => numbered("br", char::is_ascii_digit),
        LinkKind::Vxlan(_) => numbered("vxlan", char::is_ascii_digit),
        LinkKind::Veth { .. } => link.name.len() == 15 && numbered("veth", char::is_ascii_hexdigit),
        LinkKind::Other(_) => false,
    }
}

/// Whether a name is of the form that the gateway bridge's ports have.
pub(super) fn is_gateway_port(name: &str) -> bool {
    let rest = name.strip_prefix(GATEWAY_PORT);
    name.len() == 15 && rest.is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_hexdigit()))
}

fn is_vxlan_of(link: &Link, vni: Vni) -> bool {
    matches!(&link.kind, LinkKind::Vxlan(vxlan) if vxlan.vni == vni.get())
}
