//! Events: they only say what to read again. What they show is compared with what is known, so that the echo of our own
//! operations costs a look-up in a table and nothing else.

use super::{
    key::{BridgeRowKey, LinkId, NeighbourKey},
    network::{Home, NeighbourSeen, Network, TunnelSeen},
    object::{FdbRow, Forwarding, Neighbour},
    report::Note,
    rows::tunnel_key,
    seam::{Event, FdbPoint, LinkRef},
    time::Time,
    unread::ReadCause,
};
use crate::model::{EndpointId, Mac, Netns, nft};

impl Network {
    /// Takes an event.
    pub fn hear(&mut self, event: Event, now: Time) {
        match event {
            Event::Netns => {
                self.unread.netns = Some(ReadCause::Foreign);
            }
            Event::Link(link) => {
                let known = self.by_index.get(&link.ifindex).and_then(|id| self.links.observed_of(id));
                // On the host most links are nobody's of ours.
                let foreign = self.config.home.is_host() && known.is_none() && self.classify(&link).is_none();
                if known != Some(&link) && !foreign {
                    self.unread.link(LinkRef::Index(link.ifindex), ReadCause::Foreign);
                }
            }
            Event::LinkGone(ifindex) | Event::Addresses(ifindex) => {
                if self.by_index.contains_key(&ifindex) {
                    self.unread.link(LinkRef::Index(ifindex), ReadCause::Foreign);
                }
            }
            Event::Forwarding(family, on) => {
                let seen = self.forwarding.observed_of(&family);
                let ours = !self.config.home.is_host() || self.forwarding.desired_of(&family).is_some();
                if ours && seen != on.then_some(&Forwarding::Everywhere) {
                    self.unread.forwarding = self.unread.forwarding.max(Some(ReadCause::Foreign));
                }
            }
            Event::Fdb(row) => self.hear_fdb(&row, true),
            Event::FdbGone(row) => self.hear_fdb(&row, false),
            Event::Neighbour(row) => self.hear_neighbour(&row, true),
            Event::NeighbourGone(row) => self.hear_neighbour(&row, false),
            Event::Rules(table) => {
                if self.is_own_table(&table) {
                    self.unread.rules(table, ReadCause::Foreign);
                } else if self.config.home.is_host() && table.family != nft::Family::Netdev {
                    self.unread.barriers_changed(now);
                }
            }
            Event::Inner { nsid, ifindex } => {
                for id in self.locals_at(nsid) {
                    if self.may_concern(&id, ifindex) {
                        self.unread.inner(id, ReadCause::Foreign);
                    }
                }
            }
            Event::Path(path) => {
                if matches!(&self.config.home, Home::Overlay(netns) if *netns == path) {
                    self.unread.netns = Some(ReadCause::Foreign);
                }
                for id in self.by_path.get(&path).cloned().unwrap_or_default() {
                    if let Some(local) = self.locals.get_mut(&id) {
                        local.looks = 1;
                    }
                    self.unread.inner(id, ReadCause::Foreign);
                }
            }
            Event::Overrun => {
                self.notes.push(Note::Overrun);
                self.resync("overrun", now);
            }
            Event::InnerOverrun => {
                self.notes.push(Note::Overrun);
                for id in self.locals.keys() {
                    self.unread.inner(id.clone(), ReadCause::Foreign);
                }
            }
        }
        if !self.unread.is_empty() {
            self.drift.signed(now);
        }
    }

    /// Whether what happened to a link in an endpoint's namespace may concern its interface. The host has many other links, which
    /// may change all the time.
    fn may_concern(&self, id: &EndpointId, ifindex: Option<u32>) -> bool {
        let on_host = self.locals.get(id).is_some_and(|local| local.spec.netns == Netns::Host);
        let own = self.links.observed_of(&LinkId::Inner(id.clone())).map(|link| link.ifindex);
        !on_host || own.is_none() || ifindex.is_none() || ifindex == own
    }

    fn hear_fdb(&mut self, row: &FdbRow, present: bool) {
        if row.bridge {
            let Some((key, seen)) = self.bridge_row(row) else { return };
            let observed = self.bridge_rows.observed_of(&key);
            let news = if present {
                observed != Some(&seen) && (self.bridge_rows.get(&key).is_some() || !row.kernels_own)
            } else {
                observed.is_some_and(|observed| observed.ifindex == row.ifindex)
            };
            if news && let Some(point) = self.bridge_point(&key) {
                self.unread.fdb.insert(point);
            }
        } else if let Some(LinkId::Vxlan(vni)) = self.by_index.get(&row.ifindex) {
            let key = tunnel_key(*vni, row);
            let known = self.tunnel_rows(&key).get(&key).is_some();
            let observed = self.tunnel_rows(&key).observed_of(&key);
            let seen = TunnelSeen { dst: row.dst, plain: row.plain };
            let news =
                if present { observed != Some(&seen) && (known || !row.kernels_own) } else { observed.is_some() };
            if news {
                self.read_tunnel_row(row.ifindex, row.mac);
            }
        }
    }

    fn hear_neighbour(&mut self, row: &Neighbour, present: bool) {
        let Some((vni, on_bridge)) = self.neighbours_at(row.ifindex) else { return };
        let key = NeighbourKey { vni, on_bridge, ip: row.ip };
        let observed = self.neighbours.observed_of(&key);
        let seen = NeighbourSeen { mac: row.mac, permanent: row.permanent, ours: row.ours };
        let counts = row.permanent || self.neighbours.get(&key).is_some();
        let news = if present { counts && observed != Some(&seen) } else { observed.is_some() };
        if news {
            self.read_neighbour(&key);
        }
    }

    /// Queues a row of a VXLAN device to be read again. Of the all-zero address a look-up shows only the first destination
    /// (vxlan_fdb_get, drivers/net/vxlan): for the flood list it takes a dump.
    pub(super) fn read_tunnel_row(&mut self, ifindex: u32, mac: Mac) {
        if mac.is_zero() {
            self.unread.fdb_dump(ifindex, ReadCause::Foreign);
        } else {
            self.unread.fdb.insert(FdbPoint { ifindex, bridge: false, mac });
        }
    }

    /// Queues what an operation failed on to be read again.
    pub(super) fn read_bridge_row(&mut self, key: &BridgeRowKey) {
        if let Some(point) = self.bridge_point(key) {
            self.unread.fdb.insert(point);
        }
    }
}
