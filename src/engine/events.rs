//! Events: they only say what to read again. What they show is compared with what is known, so that the echo of our own
//! operations costs a look-up in a table and nothing else.
//!
//! **Invariant:** events are hints; observed moves only by reads and acknowledgements (`an_event_that_lies_costs_a_look_and_nothing_else`),
//! and what no event told is found all the same (`a_periodic_resync_finds_what_no_event_told`, `lost_events_are_made_up_for_by_a_resync`).

use super::{
    config::Home,
    interface::{Event, FdbPoint, LinkRef},
    key::{BridgeRowKey, LinkId, NeighbourKey},
    network::Network,
    object::{FdbRow, Forwarding, Neighbour},
    reads::ReadCause,
    report::Note,
    rows::tunnel_key,
    tables::{NeighbourSeen, TunnelSeen},
    time::Time,
};
use crate::model::{EndpointId, Mac, Netns, nft};

impl Network {
    /// Takes an event.
    pub fn event(&mut self, event: Event, now: Time) {
        match event {
            Event::Netns => {
                self.reads.netns = Some(ReadCause::Foreign);
            }
            Event::Link(link) => {
                let known = self.tables.by_index.get(&link.ifindex).and_then(|id| self.tables.links.observed_of(id));
                // On the host most links are nobody's of ours.
                let foreign = self.config.home.is_host() && known.is_none() && self.classify(&link).is_none();
                if known != Some(&link) && !foreign {
                    self.reads.link(LinkRef::Index(link.ifindex), ReadCause::Foreign);
                }
            }
            Event::LinkGone(ifindex) | Event::Addresses(ifindex) | Event::Routes(ifindex) => {
                if self.tables.by_index.contains_key(&ifindex) {
                    self.reads.link(LinkRef::Index(ifindex), ReadCause::Foreign);
                }
            }
            Event::Forwarding(family, on) => {
                let seen = self.tables.forwarding.observed_of(&family);
                let ours = !self.config.home.is_host() || self.tables.forwarding.desired_of(&family).is_some();
                if ours && seen != on.then_some(&Forwarding::Everywhere) {
                    self.reads.forwarding = self.reads.forwarding.max(Some(ReadCause::Foreign));
                }
            }
            Event::Fdb(row) => self.hear_fdb(&row, true),
            Event::FdbGone(row) => self.hear_fdb(&row, false),
            Event::Neighbour(row) => self.hear_neighbour(&row, true),
            Event::NeighbourGone(row) => self.hear_neighbour(&row, false),
            Event::Rules(table) => {
                if self.config.is_own_table(&table) {
                    self.reads.rules(table, ReadCause::Foreign);
                } else if self.config.home.is_host() && table.family != nft::Family::Netdev {
                    self.reads.barriers_changed(now);
                }
            }
            Event::Inner { nsid, ifindex } => {
                for id in self.locals.at(nsid) {
                    if self.may_concern(&id, ifindex) {
                        self.reads.inner(id, ReadCause::Foreign);
                    }
                }
            }
            Event::Path(path) => {
                if matches!(&self.config.home, Home::Overlay(netns) if *netns == path) {
                    self.reads.netns = Some(ReadCause::Foreign);
                }
                for id in self.locals.by_path.get(&path).cloned().unwrap_or_default() {
                    if let Some(local) = self.locals.by_id.get_mut(&id) {
                        local.looks = 1;
                    }
                    self.reads.inner(id, ReadCause::Foreign);
                }
            }
            Event::Overrun => {
                self.report.notes.push(Note::Overrun);
                self.resync("overrun", now);
            }
            Event::InnerOverrun => {
                self.report.notes.push(Note::Overrun);
                for id in self.locals.by_id.keys() {
                    self.reads.inner(id.clone(), ReadCause::Foreign);
                }
            }
        }
        if !self.reads.is_empty() {
            self.episodes.signed(now);
        }
    }

    /// Whether what happened to a link in an endpoint's namespace may concern its interface. The host has many other links, which
    /// may change all the time.
    fn may_concern(&self, id: &EndpointId, ifindex: Option<u32>) -> bool {
        let on_host = self.locals.by_id.get(id).is_some_and(|local| local.spec.netns == Netns::Host);
        let own = self.tables.links.observed_of(&LinkId::Inner(id.clone())).map(|link| link.ifindex);
        !on_host || own.is_none() || ifindex.is_none() || ifindex == own
    }

    fn hear_fdb(&mut self, row: &FdbRow, present: bool) {
        if row.bridge {
            let Some((key, seen)) = self.bridge_row(row) else { return };
            let observed = self.tables.bridge_rows.observed_of(&key);
            let news = if present {
                observed != Some(&seen) && (self.tables.bridge_rows.get(&key).is_some() || !row.kernels_own)
            } else {
                observed.is_some_and(|observed| observed.ifindex == row.ifindex)
            };
            if news && let Some(point) = self.bridge_point(&key) {
                self.reads.fdb.insert(point);
            }
        } else if let Some(LinkId::Vxlan(vni)) = self.tables.by_index.get(&row.ifindex) {
            let key = tunnel_key(*vni, row);
            let sides = self.tables.tunnel(&key);
            let known = sides.is_some();
            let observed = sides.and_then(|sides| sides.observed);
            let seen = TunnelSeen { dst: row.dst, plain: row.plain };
            let news = if present { observed != Some(seen) && (known || !row.kernels_own) } else { observed.is_some() };
            if news {
                self.read_tunnel_row(row.ifindex, row.mac);
            }
        }
    }

    fn hear_neighbour(&mut self, row: &Neighbour, present: bool) {
        let Some((vni, on_bridge)) = self.neighbours_at(row.ifindex) else { return };
        let key = NeighbourKey { vni, on_bridge, ip: row.ip };
        let observed = self.tables.neighbours.observed_of(&key);
        let seen = NeighbourSeen { mac: row.mac, permanent: row.permanent, ours: row.ours };
        let counts = row.permanent || self.tables.neighbours.get(&key).is_some();
        let news = if present { counts && observed != Some(seen) } else { observed.is_some() };
        if news {
            self.read_neighbour(&key);
        }
    }

    /// Queues a row of a VXLAN device to be read again. Of the all-zero address a look-up shows only the first destination
    /// (vxlan_fdb_get, drivers/net/vxlan): for the flood list it takes a dump.
    pub(super) fn read_tunnel_row(&mut self, ifindex: u32, mac: Mac) {
        if mac.is_zero() {
            self.reads.fdb_dump(ifindex, ReadCause::Foreign);
        } else {
            self.reads.fdb.insert(FdbPoint { ifindex, bridge: false, mac });
        }
    }

    /// Queues what an operation failed on to be read again.
    pub(super) fn read_bridge_row(&mut self, key: &BridgeRowKey) {
        if let Some(point) = self.bridge_point(key) {
            self.reads.fdb.insert(point);
        }
    }
}
