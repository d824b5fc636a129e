//! Forwarding rows and neighbour entries as they are read.

use std::{collections::BTreeSet, net::IpAddr};

use super::{
    interface::FdbPoint,
    key::{BridgeRowKey, Key, LinkId, NeighbourKey, TunnelKey},
    network::Network,
    object::{FdbRow, Neighbour},
    reads::ReadCause,
    tables::{BridgeRowSeen, NeighbourSeen, TunnelSeen},
};
use crate::model::{Mac, Vni};

impl Network {
    pub(super) fn observe_fdb_dump(&mut self, ifindex: u32, rows: &[FdbRow], cause: ReadCause) {
        let odd: BTreeSet<(Mac, Option<IpAddr>)> =
            rows.iter().filter(|row| row.mac.is_zero() && !row.plain).map(|row| (row.mac, row.dst)).collect();
        for row in rows {
            // Two rows of the flood list may have one destination, of which the one that should not be there counts.
            if !(row.plain && odd.contains(&(row.mac, row.dst))) {
                self.saw_fdb_row(row, cause);
            }
        }
        // What the dump does not show may have been skipped: it is looked up before it counts as missing.
        let Some(LinkId::Vxlan(vni)) = self.tables.by_index.get(&ifindex).cloned() else {
            let unseen: Vec<FdbPoint> = self
                .tables
                .bridge_rows
                .iter()
                .filter(|(_, sides)| sides.observed.as_ref().is_some_and(|seen| seen.ifindex == ifindex))
                .filter(|(key, _)| !rows.iter().any(|row| row.bridge && row.mac == key.mac))
                .filter_map(|(key, _)| self.bridge_point(key))
                .collect();
            self.reads.fdb.extend(unseen);
            return;
        };
        let shown: BTreeSet<TunnelKey> =
            rows.iter().filter(|row| !row.bridge).map(|row| tunnel_key(vni, row)).collect();
        let known = self.tables.tunnels.observed_in(vni);
        let unseen = known.filter(|key| !shown.contains(key));
        self.reads.fdb.extend(unseen.map(|key| FdbPoint { ifindex, bridge: false, mac: key.mac }));
        self.observe_flood_list(ifindex, vni, &shown, cause);
    }

    pub(super) fn observe_fdb_rows(&mut self, points: &[FdbPoint], rows: &[FdbRow], cause: ReadCause) {
        for row in rows {
            self.saw_fdb_row(row, cause);
        }
        let mut links = BTreeSet::new();
        let own: BTreeSet<(u32, Mac)> =
            rows.iter().filter(|row| !row.bridge).map(|row| (row.ifindex, row.mac)).collect();
        let of_bridge = rows.iter().filter(|row| row.bridge).filter_map(|row| self.bridge_row(row));
        let of_bridge: BTreeSet<BridgeRowKey> = of_bridge.map(|(key, _)| key).collect();
        for point in points {
            match self.tables.by_index.get(&point.ifindex) {
                Some(LinkId::Vxlan(vni)) if !point.bridge && !own.contains(&(point.ifindex, point.mac)) => {
                    let key = TunnelKey { vni: *vni, mac: point.mac, dst: None };
                    if self.tables.tunnels.set_observed(&key, None, cause.into()) && cause == ReadCause::Foreign {
                        self.episodes.suspect(Key::Tunnel(key));
                    }
                }
                Some(LinkId::Bridge(vni)) if point.bridge => {
                    let key = BridgeRowKey { vni: *vni, mac: point.mac };
                    if of_bridge.contains(&key) {
                        continue;
                    }
                    if self.tables.bridge_rows.set_observed(&key, None, cause.into()) && cause == ReadCause::Foreign {
                        self.episodes.suspect(Key::BridgeRow(key));
                    }
                }
                _ => {}
            }
            links.insert(point.ifindex);
        }
        self.look_at_links_of_suspects(links);
    }

    /// A row that is not as it was may have been lost with its link, whose own event may still be on its way.
    pub(super) fn look_at_links_of_suspects(&mut self, links: BTreeSet<u32>) {
        if self.episodes.has_suspects() {
            for ifindex in links {
                self.look_again(ifindex);
            }
        }
    }

    pub(super) fn saw_fdb_row(&mut self, row: &FdbRow, cause: ReadCause) {
        let foreign = cause == ReadCause::Foreign;
        if row.bridge {
            let Some((key, seen)) = self.bridge_row(row) else { return };
            let known = self.tables.bridge_rows.get(&key).is_some();
            if (known || !row.kernels_own)
                && self.tables.bridge_rows.set_observed(&key, Some(seen), cause.into())
                && foreign
            {
                self.episodes.suspect(Key::BridgeRow(key));
            }
        } else if let Some(LinkId::Vxlan(vni)) = self.tables.by_index.get(&row.ifindex) {
            let key = tunnel_key(*vni, row);
            if row.kernels_own && self.tables.tunnel(&key).is_none() {
                return;
            }
            let seen = TunnelSeen { dst: row.dst, plain: row.plain };
            if self.tables.set_tunnel_observed(&key, Some(seen), cause.into()) && foreign {
                self.episodes.suspect(Key::Tunnel(key));
            }
        }
    }

    /// Key and content of a bridge's row, when it points to a port of ours.
    pub(super) fn bridge_row(&self, row: &FdbRow) -> Option<(BridgeRowKey, BridgeRowSeen)> {
        let (vni, port) = match self.tables.by_index.get(&row.ifindex)? {
            LinkId::Outer(id) => {
                let bridge = self.tables.links.observed_of(&LinkId::Outer(id.clone()))?.master?;
                let Some(LinkId::Bridge(vni)) = self.tables.by_index.get(&bridge) else { return None };
                (*vni, Some(id.clone()))
            }
            LinkId::Vxlan(vni) | LinkId::Bridge(vni) => (*vni, None),
            LinkId::Inner(_) | LinkId::Stray(_) => return None,
        };
        let key = BridgeRowKey { vni, mac: row.mac };
        Some((key, BridgeRowSeen { port, ifindex: row.ifindex, plain: row.plain }))
    }

    /// How to look up a bridge's row.
    pub(super) fn bridge_point(&self, key: &BridgeRowKey) -> Option<FdbPoint> {
        self.tables.bridge_index(key.vni).map(|ifindex| FdbPoint { ifindex, bridge: true, mac: key.mac })
    }

    pub(super) fn observe_neighbour_dump(&mut self, ifindex: u32, rows: &[Neighbour], cause: ReadCause) {
        for row in rows {
            self.saw_neighbour(row, cause);
        }
        let Some((vni, on_bridge)) = self.neighbours_at(ifindex) else { return };
        let shown: BTreeSet<_> = rows.iter().map(|row| row.ip).collect();
        let known = self.tables.neighbours.observed_in((vni, on_bridge));
        let unseen = known.filter(|key| !shown.contains(&key.ip));
        self.reads.neighbours.extend(unseen.map(|key| (ifindex, key.ip)));
    }

    pub(super) fn observe_neighbour_rows(&mut self, points: &[(u32, IpAddr)], rows: &[Neighbour], cause: ReadCause) {
        for row in rows {
            self.saw_neighbour(row, cause);
        }
        let mut links = BTreeSet::new();
        let found: BTreeSet<(u32, IpAddr)> = rows.iter().map(|row| (row.ifindex, row.ip)).collect();
        for (ifindex, ip) in points {
            if !found.contains(&(*ifindex, *ip))
                && let Some((vni, on_bridge)) = self.neighbours_at(*ifindex)
            {
                let key = NeighbourKey { vni, on_bridge, ip: *ip };
                if self.tables.neighbours.set_observed(&key, None, cause.into()) && cause == ReadCause::Foreign {
                    self.episodes.suspect(Key::Neighbour(key));
                }
            }
            links.insert(*ifindex);
        }
        self.look_at_links_of_suspects(links);
    }

    /// Which neighbour table of ours a link has.
    pub(super) fn neighbours_at(&self, ifindex: u32) -> Option<(Vni, bool)> {
        // The host's neighbours are resolved by its kernel, and none of our business.
        match self.tables.by_index.get(&ifindex).filter(|_| !self.config.home.is_host())? {
            LinkId::Vxlan(vni) => Some((*vni, false)),
            LinkId::Bridge(vni) => Some((*vni, true)),
            _ => None,
        }
    }

    pub(super) fn saw_neighbour(&mut self, row: &Neighbour, cause: ReadCause) {
        let Some((vni, on_bridge)) = self.neighbours_at(row.ifindex) else { return };
        let key = NeighbourKey { vni, on_bridge, ip: row.ip };
        // What the kernel resolves by itself is its own; only permanent entries, and what stands where ours should, count.
        let counts = row.permanent || self.tables.neighbours.get(&key).is_some();
        let seen = NeighbourSeen { mac: row.mac, permanent: row.permanent, ours: row.ours };
        if counts && self.tables.neighbours.set_observed(&key, Some(seen), cause.into()) && cause == ReadCause::Foreign
        {
            self.episodes.suspect(Key::Neighbour(key));
        }
    }
}

/// The key of a VXLAN device's row.
pub(super) fn tunnel_key(vni: Vni, row: &FdbRow) -> TunnelKey {
    TunnelKey { vni, mac: row.mac, dst: if row.mac.is_zero() { row.dst } else { None } }
}
