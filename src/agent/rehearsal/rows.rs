//! What operations do to FDB rows and neighbours: what was written or removed, laid over what the real kernel shows.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{IMAGINED, Rehearsal};
use crate::{
    engine::{Answer, Failure, FdbPoint, FdbRow, Kernel, Neighbour, Query},
    model::Mac,
};

/// The rows that were written, and `None` for those that were removed.
#[derive(Default)]
pub(super) struct Rows {
    /// By device, MAC address and, for the all-zero one, destination.
    fdb: BTreeMap<(u32, Mac, Option<IpAddr>), Option<IpAddr>>,
    /// By port and MAC address.
    bridge: BTreeMap<(u32, Mac), bool>,
    neighbours: BTreeMap<(u32, IpAddr), Option<Mac>>,
    /// Devices whose real neighbours are no more.
    flushed: BTreeSet<u32>,
    /// Devices that are no more.
    gone: BTreeSet<u32>,
}

impl Rows {
    /// Of the all-zero address a device has a row for each destination.
    fn place(mac: Mac, dst: Option<IpAddr>) -> Option<IpAddr> {
        dst.filter(|_| mac == Mac::ZERO)
    }

    pub(super) fn put_fdb(&mut self, device: u32, mac: Mac, dst: IpAddr) {
        self.fdb.insert((device, mac, Self::place(mac, Some(dst))), Some(dst));
    }

    pub(super) fn delete_fdb(&mut self, device: u32, mac: Mac, dst: Option<IpAddr>) {
        self.fdb.insert((device, mac, Self::place(mac, dst)), None);
    }

    pub(super) fn put_bridge_row(&mut self, port: u32, mac: Mac) {
        self.bridge.insert((port, mac), true);
    }

    pub(super) fn delete_bridge_row(&mut self, port: u32, mac: Mac) {
        self.bridge.insert((port, mac), false);
    }

    pub(super) fn put_neighbour(&mut self, device: u32, ip: IpAddr, mac: Option<Mac>) {
        self.neighbours.insert((device, ip), mac);
    }

    pub(super) fn flush_neighbours(&mut self, device: u32) {
        self.neighbours.retain(|(of, _), _| *of != device);
        self.flushed.insert(device);
    }

    /// All rows of a device that is no more.
    pub(super) fn forget(&mut self, device: u32) {
        self.gone.insert(device);
        self.flush_neighbours(device);
        self.fdb.retain(|(of, ..), _| *of != device);
        self.bridge.retain(|(of, _), _| *of != device);
    }

    /// Lays what was written over what is really there.
    fn over_fdb(&self, mut real: Vec<FdbRow>, which: impl Fn(u32, Mac, bool) -> bool) -> Vec<FdbRow> {
        real.retain(|row| {
            let written = if row.bridge {
                self.bridge.contains_key(&(row.ifindex, row.mac))
            } else {
                self.fdb.contains_key(&(row.ifindex, row.mac, Self::place(row.mac, row.dst)))
            };
            !written && !self.gone.contains(&row.ifindex)
        });
        let row = |ifindex, bridge, mac, dst| FdbRow { ifindex, bridge, mac, dst, plain: true, kernels_own: false };
        let tunnels = self.fdb.iter().filter(|((device, mac, _), dst)| dst.is_some() && which(*device, *mac, false));
        real.extend(tunnels.map(|((device, mac, _), dst)| row(*device, false, *mac, *dst)));
        let ports = self.bridge.iter().filter(|((port, mac), there)| **there && which(*port, *mac, true));
        real.extend(ports.map(|((port, mac), _)| row(*port, true, *mac, None)));
        real
    }

    fn over_neighbours(&self, mut real: Vec<Neighbour>, which: impl Fn(u32, IpAddr) -> bool) -> Vec<Neighbour> {
        real.retain(|row| {
            !self.neighbours.contains_key(&(row.ifindex, row.ip)) && !self.flushed.contains(&row.ifindex)
        });
        let written = self.neighbours.iter().filter(|((device, ip), mac)| mac.is_some() && which(*device, *ip));
        let row = |(&(ifindex, ip), &mac): (&(u32, IpAddr), &Option<Mac>)| Neighbour {
            ifindex,
            ip,
            mac,
            permanent: true,
            ours: true,
        };
        real.extend(written.map(row));
        real
    }
}

impl<K: Kernel> Rehearsal<K> {
    /// What the real kernel says, where it knows the device.
    fn really<T>(
        &mut self,
        device: Option<u32>,
        query: &Query,
        rows: impl FnOnce(Answer) -> Vec<T>,
    ) -> Result<Vec<T>, Failure> {
        let real =
            !self.imagined() && device.is_none_or(|device| device < IMAGINED && !self.rows.gone.contains(&device));
        if real { self.real.read(query).map(rows) } else { Ok(Vec::new()) }
    }

    pub(super) fn answer_fdb_dump(&mut self, device: u32) -> Result<Answer, Failure> {
        let real = self.really(Some(device), &Query::FdbDump(device), fdb_of)?;
        Ok(Answer::Fdb(self.rows.over_fdb(real, |of, _, _| of == device)))
    }

    /// The real ones among the newest, and all that were imagined, which are newer.
    pub(super) fn answer_fdb_newest(&mut self, device: u32, most: usize) -> Result<Answer, Failure> {
        let real = self.really(Some(device), &Query::FdbNewest { ifindex: device, most }, fdb_of)?;
        Ok(Answer::Fdb(self.rows.over_fdb(real, |of, _, bridge| of == device && !bridge)))
    }

    pub(super) fn answer_fdb_rows(&mut self, points: &[FdbPoint]) -> Result<Answer, Failure> {
        let real = points.iter().filter(|point| point.ifindex < IMAGINED && !self.rows.gone.contains(&point.ifindex));
        let real: Vec<FdbPoint> = real.copied().collect();
        let real = if real.is_empty() { Vec::new() } else { self.really(None, &Query::FdbRows(real), fdb_of)? };
        // Rows of a bridge are asked for by the bridge and told by the port.
        let masters: BTreeMap<u32, Option<u32>> =
            self.held()?.iter().map(|(index, held)| (*index, held.link.master)).collect();
        let points: BTreeSet<&FdbPoint> = points.iter().collect();
        let asked = |of: u32, mac: Mac, bridge: bool| {
            let device = if bridge { masters.get(&of).copied().flatten() } else { Some(of) };
            device.is_some_and(|ifindex| points.contains(&FdbPoint { ifindex, bridge, mac }))
        };
        Ok(Answer::Fdb(self.rows.over_fdb(real, asked)))
    }

    pub(super) fn answer_neighbour_dump(&mut self, device: u32) -> Result<Answer, Failure> {
        let real = self.really(Some(device), &Query::NeighbourDump(device), neighbours_of)?;
        Ok(Answer::Neighbours(self.rows.over_neighbours(real, |of, _| of == device)))
    }

    pub(super) fn answer_neighbour_rows(&mut self, points: &[(u32, IpAddr)]) -> Result<Answer, Failure> {
        let real = points.iter().filter(|(device, _)| *device < IMAGINED && !self.rows.gone.contains(device));
        let real: Vec<(u32, IpAddr)> = real.copied().collect();
        let real =
            if real.is_empty() { Vec::new() } else { self.really(None, &Query::NeighbourRows(real), neighbours_of)? };
        let points: BTreeSet<&(u32, IpAddr)> = points.iter().collect();
        Ok(Answer::Neighbours(self.rows.over_neighbours(real, |of, ip| points.contains(&(of, ip)))))
    }
}

fn fdb_of(answer: Answer) -> Vec<FdbRow> {
    if let Answer::Fdb(rows) = answer { rows } else { Vec::new() }
}

fn neighbours_of(answer: Answer) -> Vec<Neighbour> {
    if let Answer::Neighbours(rows) = answer { rows } else { Vec::new() }
}
