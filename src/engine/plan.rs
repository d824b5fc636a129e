//! From differences to operations. The plan carries no choices: each operation says all that the kernel needs.
//!
//! Order: namespace, chains, links, addresses, rows, routes; what should not be there goes last, and rows that go with their link are not
//! removed one by one. Each phase is sent, and read where it cannot be known from the acknowledgement, before the next is
//! planned.
//!
//! **Invariant:** while removals are held nothing goes but what somebody else put there
//! (`held_removals_keep_what_stands_while_additions_and_repairs_go_on`,
//! `a_network_that_stands_on_a_lost_record_is_kept_whole_and_goes_when_the_hold_ends`).
//!
//! **Invariant:** no tenant's hints and no removals hold up rows
//! (`hints_without_end_from_one_container_hold_up_neither_changes_nor_repairs`,
//! `rows_to_other_hosts_go_between_the_removals_of_endpoints_that_stop`), and no step passes over all that fails
//! (`thousands_of_rows_that_the_kernel_refuses_are_counted_named_in_part_and_tried_again`).

use std::ops::Deref;

use super::{
    delta::{Cause, Differences},
    device::{KindWant, LinkWant},
    episode::Episodes,
    interface::{Action, FailureKind, LinkChange, NewLink, Op, Place},
    key::{Key, LinkId, TunnelKey},
    local::InnerStatus,
    object::{InnerAt, Link, LinkKind},
    reads::Reads,
    setting::Setting,
    tables::Netns,
    time::Time,
    view::View,
};

/// At most so many operations are sent before events are looked at again (also the limit of one send).
pub(super) const BATCH: usize = 256;

/// So many links are removed before the rest is looked at again.
const REMOVALS: usize = 24;

/// An operation and what it is for.
#[derive(Clone, Debug)]
pub(super) struct Planned {
    pub(super) op: Op,
    pub(super) key: Key,
    pub(super) action: Action,
    pub(super) cause: Cause,
}

/// What operations are made of: a view of the network, and what stands in the way of single objects.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan<'a> {
    pub(super) view: View<'a>,
    pub(super) reads: &'a Reads,
    pub(super) episodes: &'a Episodes,
    pub(super) now: Time,
}

impl<'a> Deref for Plan<'a> {
    type Target = View<'a>;

    fn deref(&self) -> &View<'a> {
        &self.view
    }
}

impl Plan<'_> {
    /// The operations to send now; none when nothing can be done now.
    pub(super) fn next(&self) -> Vec<Planned> {
        let phases = [
            Self::plan_netns,
            Self::plan_forwarding,
            Self::plan_rows_of_standing_devices,
            Self::plan_link_removals,
            Self::plan_chains,
            Self::plan_links,
            Self::plan_addresses,
            Self::plan_rows,
            Self::plan_routes,
            Self::plan_chain_removals,
            Self::plan_netns_removal,
        ];
        phases.iter().map(|phase| phase(self)).find(|planned| !planned.is_empty()).unwrap_or_default()
    }

    pub(super) fn rests(&self, key: &Key) -> bool {
        self.episodes.rests(key, self.now)
    }

    /// Whether an object that nothing desires stays because removals are held. Somebody else's doing is undone all the same,
    /// and so is what is in the way of something that is desired.
    fn stays(&self, key: &Key, op: &Op) -> bool {
        let in_the_way = match key {
            Key::BridgeRow(row) => {
                let tunnel = TunnelKey { vni: row.vni, mac: row.mac, dst: None };
                self.tables.tunnels.desired_of(&tunnel).is_some()
            }
            _ => matches!(op, Op::ReclaimVni { .. }),
        };
        self.desired.removals_held && !in_the_way && !self.episodes.is_open(key)
    }

    /// The operation with its cause, unless the object rests.
    pub(super) fn planned(&self, key: Key, action: Action, cause: Cause, op: Op) -> Option<Planned> {
        let cause = if self.episodes.is_open(&key) { Cause::Repair } else { cause };
        let stays = action == Action::Delete && self.stays(&key, &op);
        (!stays && !self.rests(&key) && !self.reads.inner_unread(&key)).then_some(Planned { op, key, action, cause })
    }

    fn plan_netns(&self) -> Vec<Planned> {
        let missing = self.desired.spec.is_some() && self.tables.netns == Netns::Absent && !self.config.home.is_host();
        let plan = missing.then(|| self.planned(Key::Netns, Action::Add, Cause::Change, Op::CreateNetns));
        plan.flatten().into_iter().collect()
    }

    /// The namespace goes when nothing of ours is left in it: a bridge is cheaper to delete before its namespace.
    fn plan_netns_removal(&self) -> Vec<Planned> {
        let done = self.desired.spec.is_none()
            && self.tables.ours()
            && self.tables.links.observed_len() == 0
            && !self.config.home.is_host();
        let plan = done.then(|| self.planned(Key::Netns, Action::Delete, Cause::Change, Op::DeleteNetns));
        plan.flatten().into_iter().collect()
    }

    /// Links that should not be there, or are not what can be changed into what should be. Ports go before their bridge.
    fn plan_link_removals(&self) -> Vec<Planned> {
        if !self.tables.ours() {
            return Vec::new();
        }
        let mut removals: Vec<Planned> = Vec::new();
        let mut bridges = Vec::new();
        for id in self.tables.links.differing() {
            let Some(sides) = self.tables.links.get(id) else { continue };
            let Some(link) = &sides.observed else { continue };
            let removal = match &sides.desired {
                None => self.removal_of(id, link),
                Some(want) => self.replacement_of(id, want, link),
            };
            let Some(op) = removal else { continue };
            let action = if sides.desired.is_some() { Action::Replace } else { Action::Delete };
            let planned = self.planned(Key::Link(id.clone()), action, sides.cause, op);
            if matches!(id, LinkId::Bridge(_)) {
                bridges.extend(planned);
            } else {
                removals.extend(planned);
            }
        }
        // A pair whose other end is not where it should be is made anew.
        for id in self.tables.links.differing() {
            if let LinkId::Inner(endpoint) = id
                && let Some(sides) = self.tables.links.get(id)
                && sides.desired.is_some()
                && sides.observed.is_none()
                && let Some(outer) = self.tables.links.observed_of(&LinkId::Outer(endpoint.clone()))
                && !self.reads.inner.contains_key(endpoint)
            {
                let op = Op::DeleteLink { place: Place::Overlay, ifindex: outer.ifindex };
                removals.extend(self.planned(Key::Link(id.clone()), Action::Replace, sides.cause, op));
            }
        }
        removals.append(&mut bridges);
        // Together they wait out grace periods of the kernel's, some 20 ms: rows that come meanwhile go between them.
        removals.truncate(REMOVALS);
        removals
    }

    fn removal_of(&self, id: &LinkId, link: &Link) -> Option<Op> {
        match id {
            // The other end goes with the one in the overlay namespace.
            LinkId::Inner(_) => None,
            // Of somebody else's bridge only what we put on it goes.
            LinkId::Bridge(_) if self.config.adopts(link) => None,
            // Whether its namespace is there is not known yet.
            LinkId::Outer(id)
                if self.locals.by_id.get(id).is_some_and(|local| local.status == InnerStatus::Unknown) =>
            {
                None
            }
            _ => Some(Op::DeleteLink { place: Place::Overlay, ifindex: link.ifindex }),
        }
    }

    fn replacement_of(&self, id: &LinkId, want: &LinkWant, link: &Link) -> Option<Op> {
        match id {
            LinkId::Inner(endpoint) => {
                let lone = self.tables.links.observed_of(&LinkId::Outer(endpoint.clone())).is_none();
                // An end of ours whose other end was taken away holds the name that the new pair needs.
                let place = self.locals.place_of(id).filter(|_| lone)?;
                Some(Op::DeleteLink { place, ifindex: link.ifindex })
            }
            _ => (!want.same_device(link)).then_some(Op::DeleteLink { place: Place::Overlay, ifindex: link.ifindex }),
        }
    }

    fn plan_links(&self) -> Vec<Planned> {
        if !self.tables.ours() {
            return Vec::new();
        }
        let mut planned = Vec::new();
        for id in self.tables.links.differing() {
            let Some(sides) = self.tables.links.get(id) else { continue };
            let Some(want) = &sides.desired else { continue };
            let (action, op) = match &sides.observed {
                None => (Action::Add, self.add_link(id, want)),
                Some(link) => (Action::Replace, self.set_link(id, want, link)),
            };
            let key = Key::Link(id.clone());
            if let (LinkId::Vxlan(_), KindWant::Vxlan { vni, tunnel, .. }) = (id, &want.kind)
                && sides.observed.is_none()
                && self.episodes.failure_kind(&key) == Some(FailureKind::Exists)
            {
                let (vni, port, group) = (vni.get(), tunnel.port, want.group);
                let op = Op::ReclaimVni { vni, port, group };
                planned.extend(self.planned(key.clone(), Action::Delete, sides.cause, op));
            }
            if let Some(op) = op {
                planned.extend(self.planned(key, action, sides.cause, op));
            }
            if planned.len() >= BATCH {
                break;
            }
        }
        planned
    }

    fn add_link(&self, id: &LinkId, want: &LinkWant) -> Option<Op> {
        let LinkWant { name, mac, mtu, group, kind } = want.clone();
        let link = match (id, kind) {
            (LinkId::Bridge(_), KindWant::Bridge { .. }) => NewLink::Bridge { name, mac, group },
            (LinkId::Vxlan(_), KindWant::Vxlan { vni, tunnel, .. }) => NewLink::Vxlan {
                name,
                mac,
                mtu,
                group,
                vni: vni.get(),
                port: tunnel.port,
                local: tunnel.local,
                proxy: !tunnel.flood,
            },
            (LinkId::Outer(endpoint), KindWant::Outer { bridge, .. }) => {
                // An interface to the outside that leads nowhere is worse than none.
                if self.config.home.is_host() && bridge.is_none() {
                    return None;
                }
                // A lone end of ours in the endpoint's namespace has to go first.
                if self.tables.links.observed_of(&LinkId::Inner(endpoint.clone())).is_some() {
                    return None;
                }
                let local = &self.locals.by_id.get(endpoint)?.spec;
                self.name_for_now(endpoint, &local.ifname)?;
                let inner = InnerAt { netns: local.netns.clone(), ifname: local.ifname.clone(), ifindex: None };
                NewLink::Veth { name, mac, mtu, group, inner, inner_mac: local.mac }
            }
            _ => return None,
        };
        Some(Op::AddLink(link))
    }

    /// What to set so that the link fits, or as much of it as can be set yet.
    fn set_link(&self, id: &LinkId, want: &LinkWant, link: &Link) -> Option<Op> {
        if !want.same_device(link) {
            return None;
        }
        if want.adopted(link) {
            let change = LinkChange { up: (!link.up).then_some(true), ..LinkChange::default() };
            return Some(Op::SetLink { place: Place::Overlay, ifindex: link.ifindex, change });
        }
        let may_come_up = !matches!(id, LinkId::Outer(endpoint) if !self.guard_stands(endpoint));
        let mut change = LinkChange {
            name: (want.name != link.name).then(|| self.name_on_the_way(id, &want.name)).flatten(),
            mac: (want.mac != link.mac).then_some(want.mac),
            mtu: (want.mtu != link.mtu).then_some(want.mtu),
            group: (want.group != link.group).then_some(want.group),
            up: (!link.up && may_come_up).then_some(true),
            addr_gen_none: !link.addr_gen_none && !matches!(id, LinkId::Inner(_)),
            settings: want.off(link).collect(),
            ..LinkChange::default()
        };
        if let Some((bridge, port)) = want.port() {
            // A port comes up only on its bridge.
            let bridge = bridge?;
            change.master = (link.master != Some(bridge)).then_some(bridge);
            change.port =
                (change.master.is_some() || !link.port.is_some_and(|seen| port.is_met_by(seen))).then_some(port);
        }
        match (&want.kind, &link.kind) {
            (KindWant::Vxlan { tunnel, .. }, LinkKind::Vxlan(vxlan)) => {
                change.local = (vxlan.local != Some(tunnel.local)).then_some(tunnel.local);
                change.learning_off = vxlan.learning;
            }
            (KindWant::Bridge { .. }, LinkKind::Bridge { mcast_snooping }) => {
                change.mcast_snooping_off = *mcast_snooping
            }
            _ => {}
        }
        let place = self.locals.place_of(id)?;
        (change != LinkChange::default()).then_some(Op::SetLink { place, ifindex: link.ifindex, change })
    }

    fn name_on_the_way(&self, id: &LinkId, name: &str) -> Option<String> {
        match id {
            LinkId::Inner(endpoint) => self.name_for_now(endpoint, name),
            _ => Some(name.to_owned()),
        }
    }

    fn plan_addresses(&self) -> Vec<Planned> {
        if !self.tables.ours() {
            return Vec::new();
        }
        let mut removals = Vec::new();
        let mut planned = Vec::new();
        for key in self.tables.addresses.differing() {
            let (id, net) = key;
            let Some(link) = self.tables.links.observed_of(id) else { continue };
            let Some(sides) = self.tables.addresses.get(key) else { continue };
            let Some(place) = self.locals.place_of(id) else { continue };
            let (ifindex, net) = (link.ifindex, *net);
            let key = Key::Address(id.clone(), net);
            if sides.desired.is_some() && sides.observed.is_some() {
                // Those of a link that is down stand again when it comes up.
                let op = Op::RestoreRoutes { place, ifindex, net };
                planned.extend(self.planned(key, Action::Replace, sides.cause, op).filter(|_| link.up));
            } else if sides.desired.is_some() {
                let op = Op::AddAddress { place, ifindex, net };
                planned.extend(self.planned(key, Action::Add, sides.cause, op));
            } else if self.tables.links.desired_of(id).is_some() || self.config.adopts(link) {
                let op = Op::DeleteAddress { place, ifindex, net };
                removals.extend(self.planned(key, Action::Delete, sides.cause, op));
            }
        }
        // An address with another prefix length is in the way of the right one (IPv6 allows an address once per link).
        removals.append(&mut planned);
        removals.truncate(BATCH);
        removals
    }

    /// The same of VXLAN devices that are as they should be: no removal of a link holds up what leads to other hosts.
    fn plan_rows_of_standing_devices(&self) -> Vec<Planned> {
        let half = BATCH / 2;
        let stands = |id: &LinkId| !self.tables.links.differs(id);
        if !self.tables.ours() {
            return Vec::new();
        }
        let fdb = self.flood_ops(stands).chain(self.tunnel_ops(stands));
        in_order(fdb.take(half), self.neighbour_ops(stands).take(half))
    }

    /// FDB rows and neighbours, interleaved: rows allocate memory in a way that a long run of them starves. What is missing
    /// is made before what is too much goes.
    fn plan_rows(&self) -> Vec<Planned> {
        if !self.tables.ours() {
            return Vec::new();
        }
        let half = BATCH / 2;
        let any = |_: &LinkId| true;
        let fdb = self.flood_ops(any).chain(self.tunnel_ops(any)).chain(self.bridge_row_ops());
        in_order(fdb.take(half), self.neighbour_ops(any).take(half))
    }

    fn tunnel_ops(&self, of: impl Fn(&LinkId) -> bool) -> impl Iterator<Item = Planned> {
        let devices = self.tables.tunnels.ready().filter_map(move |(vni, keys)| {
            let id = Some(LinkId::Vxlan(vni)).filter(&of)?;
            self.tables.links.desired_of(&id)?;
            Some((self.tables.links.observed_of(&id)?.ifindex, keys))
        });
        let keys = devices.flat_map(|(ifindex, keys)| keys.map(move |key| (ifindex, key)));
        keys.filter_map(|(ifindex, key)| {
            let sides = self.tables.tunnels.get(&key)?;
            let (action, op) = match (sides.desired, sides.observed) {
                (Some(dst), None) => (Action::Add, Op::PutFdb { ifindex, mac: key.mac, dst }),
                (Some(dst), Some(_)) => (Action::Replace, Op::PutFdb { ifindex, mac: key.mac, dst }),
                (None, _) => (Action::Delete, Op::DeleteFdb { ifindex, mac: key.mac, dst: None }),
            };
            self.planned(Key::Tunnel(key), action, sides.cause, op)
        })
    }

    fn bridge_row_ops(&self) -> impl Iterator<Item = Planned> {
        self.tables.bridge_rows.differing().filter_map(move |key| {
            let sides = self.tables.bridge_rows.get(key)?;
            let planned = |action, op| self.planned(Key::BridgeRow(*key), action, sides.cause, op);
            match (&sides.desired, &sides.observed) {
                (Some(endpoint), observed) => {
                    let port = self.tables.links.observed_of(&LinkId::Outer(endpoint.clone()))?;
                    // A row can be set only on a port of the bridge.
                    let joined = port.master.is_some() && port.master == self.tables.bridge_index(key.vni);
                    let action = if observed.is_some() { Action::Replace } else { Action::Add };
                    joined.then(|| planned(action, Op::PutBridgeRow { ifindex: port.ifindex, mac: key.mac })).flatten()
                }
                (None, Some(seen)) => {
                    // The row of a link that is on its way out goes with it.
                    let id = self.tables.by_index.get(&seen.ifindex)?;
                    self.tables.links.desired_of(id)?;
                    planned(Action::Delete, Op::DeleteBridgeRow { ifindex: seen.ifindex, mac: key.mac })
                }
                (None, None) => None,
            }
        })
    }

    fn neighbour_ops(&self, of: impl Fn(&LinkId) -> bool) -> impl Iterator<Item = Planned> {
        let devices = self.tables.neighbours.ready().filter_map(move |((vni, on_bridge), keys)| {
            let id = Some(if on_bridge { LinkId::Bridge(vni) } else { LinkId::Vxlan(vni) }).filter(&of)?;
            let mac = self.tables.links.desired_of(&id)?.mac;
            // Bringing the link up, or giving it its address, would flush what is set before.
            let right = |link: &&Link| link.up && link.mac == mac && !link.off.contains(&Setting::Arp);
            let link = self.tables.links.observed_of(&id).filter(right)?;
            Some((link.ifindex, keys))
        });
        let keys = devices.flat_map(|(ifindex, keys)| keys.map(move |key| (ifindex, key)));
        keys.filter_map(|(ifindex, key)| {
            let sides = self.tables.neighbours.get(&key)?;
            let ip = key.ip;
            let (action, op) = match (sides.desired, sides.observed) {
                (Some(mac), None) => (Action::Add, Op::PutNeighbour { ifindex, ip, mac }),
                (Some(mac), Some(_)) => (Action::Replace, Op::PutNeighbour { ifindex, ip, mac }),
                (None, _) => (Action::Delete, Op::DeleteNeighbour { ifindex, ip }),
            };
            self.planned(Key::Neighbour(key), action, sides.cause, op)
        })
    }
}

/// Rows and neighbours by turns, what is missing before what is too much.
fn in_order(fdb: impl Iterator<Item = Planned>, neighbours: impl Iterator<Item = Planned>) -> Vec<Planned> {
    let (puts, deletes) =
        interleave(fdb.collect(), neighbours.collect()).partition::<Vec<_>, _>(|p| p.action != Action::Delete);
    if puts.is_empty() { deletes } else { puts.into_iter().chain(deletes).collect() }
}

fn interleave(a: Vec<Planned>, b: Vec<Planned>) -> impl Iterator<Item = Planned> {
    let (mut a, mut b) = (a.into_iter(), b.into_iter());
    let mut from_a = false;
    std::iter::from_fn(move || {
        from_a = !from_a;
        if from_a { a.next().or_else(|| b.next()) } else { b.next().or_else(|| a.next()) }
    })
}
