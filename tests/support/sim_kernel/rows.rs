//! Forwarding rows and neighbours.

use std::net::IpAddr;

use vtepd::{
    engine::{Event, Failure, FdbRow, LinkKind, Neighbour, Place},
    model::Mac,
};

use super::{SimKernel, SimLink, not_found, refused};

const fn bridge_row(port: u32, mac: Mac) -> FdbRow {
    FdbRow { ifindex: port, bridge: true, mac, dst: None, plain: true, kernels_own: false }
}

impl SimLink {
    /// The rows of one MAC address, in the order in which the kernel shows them.
    pub(super) fn fdb_rows(&self, mac: Mac) -> impl Iterator<Item = FdbRow> + '_ {
        let one = self.fdb.get(&mac).copied();
        let flood = self.flood.get(&mac).into_iter().flatten().map(|dst| (Some(*dst), true));
        one.into_iter().chain(flood).map(move |(dst, plain)| FdbRow {
            ifindex: self.link.ifindex,
            bridge: false,
            mac,
            dst,
            plain,
            kernels_own: mac.is_multicast(),
        })
    }

    pub(super) fn all_fdb_rows(&self) -> impl Iterator<Item = FdbRow> + '_ {
        self.fdb.keys().chain(self.flood.keys()).flat_map(|mac| self.fdb_rows(*mac))
    }
}

impl SimKernel {
    pub(super) fn put_fdb(&mut self, ifindex: u32, mac: Mac, dst: IpAddr) -> Result<(), Failure> {
        let link = self.in_overlay(ifindex)?;
        let LinkKind::Vxlan(vxlan) = &link.link.kind else { return Err(refused("not a VXLAN device")) };
        if vxlan.local.is_some_and(|local| local.is_ipv4() != dst.is_ipv4()) {
            return Err(refused("a destination of another family"));
        }
        let same = if mac.is_zero() || mac.is_multicast() {
            let list = link.flood.entry(mac).or_default();
            let there = list.contains(&dst);
            if !there {
                list.push(dst);
            }
            there
        } else {
            link.fdb.insert(mac, (Some(dst), true)) == Some((Some(dst), true))
        };
        if !same {
            let kernels_own = mac.is_multicast();
            self.emit(Event::Fdb(FdbRow { ifindex, bridge: false, mac, dst: Some(dst), plain: true, kernels_own }));
        }
        Ok(())
    }

    pub(super) fn delete_fdb(&mut self, ifindex: u32, mac: Mac, dst: Option<IpAddr>) -> Result<(), Failure> {
        let link = self.in_overlay(ifindex)?;
        let mut gone: Vec<FdbRow> = link.fdb_rows(mac).collect();
        if gone.is_empty() {
            return Err(not_found("row"));
        }
        // A destination that the row does not have is no error, and removes nothing.
        gone.retain(|row| dst.is_none_or(|dst| row.dst == Some(dst)));
        if gone.is_empty() {
            return Ok(());
        }
        link.fdb.remove(&mac);
        if let Some(list) = link.flood.get_mut(&mac) {
            list.retain(|other| dst.is_some_and(|dst| *other != dst));
            if list.is_empty() {
                link.flood.remove(&mac);
            }
        }
        for row in gone {
            self.emit(Event::FdbGone(row));
        }
        Ok(())
    }

    pub(super) fn put_bridge_row(&mut self, port: u32, mac: Mac) -> Result<(), Failure> {
        let bridge = self.in_overlay(port)?.link.master.ok_or_else(|| refused("not a port"))?;
        let same = self.in_overlay(bridge)?.rows.insert(mac, (port, true)) == Some((port, true));
        if !same {
            self.emit(Event::Fdb(bridge_row(port, mac)));
        }
        Ok(())
    }

    pub(super) fn delete_bridge_row(&mut self, port: u32, mac: Mac) -> Result<(), Failure> {
        let bridge = self.in_overlay(port)?.link.master.ok_or_else(|| refused("not a port"))?;
        let rows = &mut self.in_overlay(bridge)?.rows;
        // A row that points to another port is not this one.
        if rows.get(&mac).is_none_or(|(at, _)| *at != port) {
            return Err(not_found("row"));
        }
        let plain = rows.remove(&mac).is_some_and(|(_, plain)| plain);
        self.emit(Event::FdbGone(FdbRow { plain, ..bridge_row(port, mac) }));
        Ok(())
    }

    pub(super) fn put_neighbour(&mut self, ifindex: u32, ip: IpAddr, mac: Mac) -> Result<(), Failure> {
        let link = self.in_overlay(ifindex)?;
        if ip.is_ipv6() && !link.ipv6 {
            return Err(refused("no IPv6 on the link"));
        }
        let new = (Some(mac), true, true);
        let same = link.neighbours.insert(ip, new) == Some(new);
        // Of what the agent itself wrote the acknowledgement tells.
        if self.by_others && !same {
            self.emit(Event::Neighbour(Neighbour { ifindex, ip, mac: Some(mac), permanent: true, ours: true }));
        }
        Ok(())
    }

    pub(super) fn delete_neighbour(&mut self, ifindex: u32, ip: IpAddr) -> Result<(), Failure> {
        let gone = self.in_overlay(ifindex)?.neighbours.remove(&ip).ok_or_else(|| not_found("entry"))?;
        let (mac, permanent, ours) = gone;
        self.emit(Event::NeighbourGone(Neighbour { ifindex, ip, mac, permanent, ours }));
        Ok(())
    }

    pub(super) fn flush_neighbours_at(&mut self, place: &Place, ifindex: u32, only_v6: bool) {
        self.flush_neighbours_of(place, ifindex, |ip| !only_v6 || ip.is_ipv6());
    }

    /// Nothing is known of the neighbours in a container.
    pub(super) fn flush_neighbours_of(&mut self, place: &Place, ifindex: u32, which: impl Fn(&IpAddr) -> bool) {
        if *place == Place::Overlay {
            self.flush_neighbours(ifindex, which);
        }
    }

    pub(super) fn flush_neighbours(&mut self, ifindex: u32, which: impl Fn(&IpAddr) -> bool) {
        let Ok(link) = self.in_overlay(ifindex) else { return };
        let gone: Vec<_> = link.neighbours.iter().filter(|(ip, _)| which(ip)).map(|(ip, n)| (*ip, *n)).collect();
        for (ip, _) in &gone {
            link.neighbours.remove(ip);
        }
        for (ip, (mac, permanent, ours)) in gone {
            self.emit(Event::NeighbourGone(Neighbour { ifindex, ip, mac, permanent, ours }));
        }
    }
}
