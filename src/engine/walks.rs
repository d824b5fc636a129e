//! Reading of large tables. The kernel shows all rows of a VXLAN device only by a dump, whose cost grows with the square of the rows,
//! under the lock of all netlink writers (rtnl_fdb_dump, net/core/rtnetlink.c; 53 s for a million). Up to [`super::Config::dump_at_most`]
//! rows that is the cheapest way. Beyond, two things are read instead:
//!
//! - Each row that is desired or was seen is looked up by itself: a *walk*, in slices, which finds what is missing or changed in
//!   linear time. After a start, and when events were lost, slice follows slice; a periodic walk rests between them, so that it
//!   takes a hundredth of a core at most, and a table of a million rows some minutes. Slices that are not a first reading come after what is to be sent:
//!   no repair waits for a walk.
//! - What should not be there is among the *newest* rows, which a dump shows first (vxlan_fdb_dump and vxlan_fdb_insert,
//!   drivers/net/vxlan/vxlan_core.c, since Linux 6.16; older kernels are dumped whole). For whatever was added while somebody
//!   listened was heard, and removed; and what was added since, be it in a gap of the events or while no agent ran, is newer than
//!   every row that stood before. So the newest rows are read until a long run of them is as desired.
//!
//! Dumps of neighbours are linear, and miss nothing; a periodic walk looks neighbours up all the same, and ends with a dump.
//!
//! **Invariant:** a large table is never dumped, and what differs in it is found all the same
//! (`an_agent_without_memory_looks_up_the_rows_of_a_large_table_and_finds_what_is_missing_changed_and_unexpected`,
//! `what_no_event_told_of_a_large_table_is_found_by_periodic_walks`).

use std::{collections::BTreeMap, time::Duration};

use super::{
    compact::RowKey,
    interface::{FdbPoint, Query},
    key::{LinkId, NeighbourKey, TunnelKey},
    network::Network,
    object::FdbRow,
    reads::{POINTS, ReadCause},
    rows::tunnel_key,
    time::Time,
};
use crate::model::Vni;

/// So many of the newest rows are read first.
const NEWEST: usize = 4096;

/// The shortest rest between two slices of a periodic walk: 256 look-ups of some 4 microseconds each.
const LEAST_REST: Duration = Duration::from_millis(200);

/// The rows of one device, looked up slice by slice.
#[derive(Debug)]
struct Walk<K> {
    cause: ReadCause,
    /// The last key that was asked for.
    last: Option<K>,
    /// A periodic walk's next slice.
    at: Option<Time>,
}

/// The walks of a network, by the index of the device.
#[derive(Debug, Default)]
pub(super) struct Walks {
    tunnels: BTreeMap<u32, Walk<TunnelKey>>,
    neighbours: BTreeMap<u32, Walk<NeighbourKey>>,
    /// How many of the newest rows are to be read.
    newest: BTreeMap<u32, (ReadCause, usize)>,
}

impl Walks {
    /// Whether there is no walk but periodic ones.
    pub(super) fn are_done(&self) -> bool {
        self.newest.is_empty() && self.tunnels.values().all(|walk| walk.at.is_some())
    }

    /// Whether rows were never read that a walk is to show.
    pub(super) fn first_outstanding(&self) -> bool {
        let walks = self.tunnels.values().map(|walk| walk.cause);
        walks.chain(self.newest.values().map(|(cause, _)| *cause)).any(|cause| cause == ReadCause::First)
    }

    /// When the next slice of a periodic walk is due.
    pub(super) fn next_at(&self) -> Option<Time> {
        let tunnels = self.tunnels.values().filter_map(|walk| walk.at);
        tunnels.chain(self.neighbours.values().filter_map(|walk| walk.at)).min()
    }

    /// Looks up the rows of a VXLAN device, one slice after the other.
    pub(super) fn start(&mut self, ifindex: u32, cause: ReadCause) {
        let cause =
            self.tunnels.get(&ifindex).filter(|walk| walk.at.is_none()).map_or(cause, |walk| walk.cause.max(cause));
        self.tunnels.insert(ifindex, Walk { cause, last: None, at: None });
    }

    /// The newest rows of a device are to be read, so many of them.
    pub(super) fn read_newest(&mut self, ifindex: u32, cause: ReadCause, most: usize) {
        let known = self.newest.get(&ifindex).copied().unwrap_or((cause, most));
        self.newest.insert(ifindex, (known.0.max(cause), known.1.max(most)));
    }
}

impl Network {
    /// Whether a device's rows are too many to be dumped. A flood list is shown by a dump only.
    pub(super) fn is_large(&self, vni: Vni) -> bool {
        let tunnels = &self.tables.tunnels;
        let rows = tunnels.desired_count(vni).max(tunnels.observed_count(vni));
        let floods = self.tables.flood_rows.range(TunnelKey::all_of(vni)).next().is_some();
        rows > self.config.dump_at_most && !floods
    }

    /// Begins the periodic walks of a device that is too large to be dumped; false when it is not.
    pub(super) fn walk_at_leisure(&mut self, ifindex: u32, vni: Vni, now: Time) -> bool {
        if !self.is_large(vni) {
            return false;
        }
        let walks = &mut self.reads.walks;
        let (cause, at) = (ReadCause::Foreign, Some(now));
        walks.tunnels.entry(ifindex).or_insert(Walk { cause, last: None, at });
        walks.neighbours.entry(ifindex).or_insert(Walk { cause, last: None, at });
        walks.read_newest(ifindex, cause, NEWEST);
        true
    }

    /// The next slice of a walk that is a first reading, or of any other.
    pub(super) fn next_slice(&mut self, first: bool, now: Time) -> Option<(Query, ReadCause)> {
        let mine = |cause: ReadCause| (cause == ReadCause::First) == first;
        let newest = &mut self.reads.walks.newest;
        while let Some(ifindex) = newest.iter().find(|(_, (cause, _))| mine(*cause)).map(|(ifindex, _)| *ifindex) {
            let Some((cause, most)) = newest.remove(&ifindex) else { break };
            if self.tables.by_index.contains_key(&ifindex) {
                return Some((Query::FdbNewest { ifindex, most }, cause));
            }
        }
        while let Some(ifindex) = due(&self.reads.walks.tunnels, mine, now) {
            let Some(walk) = self.reads.walks.tunnels.remove(&ifindex) else { break };
            let Some(LinkId::Vxlan(vni)) = self.tables.by_index.get(&ifindex) else { continue };
            let keys = self.tables.tunnels.after(*vni, walk.last, POINTS);
            let Some(last) = keys.last().copied() else {
                self.reads.walks.read_newest(ifindex, walk.cause, NEWEST);
                return self.next_slice(first, now);
            };
            let at = walk.at.map(|_| now + self.rest_between(self.tables.tunnels.desired_count(*vni)));
            self.reads.walks.tunnels.insert(ifindex, Walk { cause: walk.cause, last: Some(last), at });
            let points = keys.into_iter().map(|key| FdbPoint { ifindex, bridge: false, mac: key.mac }).collect();
            return Some((Query::FdbRows(points), walk.cause));
        }
        while let Some(ifindex) = due(&self.reads.walks.neighbours, mine, now) {
            let Some(walk) = self.reads.walks.neighbours.remove(&ifindex) else { break };
            let Some((vni, on_bridge)) = self.neighbours_at(ifindex) else { continue };
            let keys = self.tables.neighbours.after((vni, on_bridge), walk.last, POINTS);
            let Some(last) = keys.last().copied() else {
                return Some((Query::NeighbourDump(ifindex), walk.cause));
            };
            let at = walk.at.map(|_| now + self.rest_between(self.tables.neighbours.desired_count((vni, on_bridge))));
            self.reads.walks.neighbours.insert(ifindex, Walk { cause: walk.cause, last: Some(last), at });
            let points = keys.into_iter().map(|key| (ifindex, key.split().1)).collect();
            return Some((Query::NeighbourRows(points), walk.cause));
        }
        None
    }

    /// How long a periodic walk rests between two slices: it takes one period, or longer when the rows are many.
    fn rest_between(&self, rows: usize) -> Duration {
        let slices = u32::try_from(rows.div_ceil(POINTS)).unwrap_or(u32::MAX).max(1);
        (self.config.resync / slices).max(LEAST_REST)
    }

    /// The newest rows of a device were read; more of them are where the oldest of these are not all as desired.
    pub(super) fn observe_newest(&mut self, ifindex: u32, most: usize, rows: &[FdbRow], cause: ReadCause) {
        let Some(LinkId::Vxlan(vni)) = self.tables.by_index.get(&ifindex).cloned() else { return };
        for row in rows {
            self.saw_fdb_row(row, cause);
        }
        let desired = |row: &FdbRow| row.bridge || self.tables.tunnels.desired_of(&tunnel_key(vni, row)).is_some();
        let run = rows.iter().rev().take(most / 2).all(|row| row.mac.is_zero() || desired(row));
        if rows.len() >= most && !run {
            self.reads.walks.read_newest(ifindex, cause, most.saturating_mul(4));
        }
    }
}

/// A device whose next slice may be read.
fn due<K>(walks: &BTreeMap<u32, Walk<K>>, mine: impl Fn(ReadCause) -> bool, now: Time) -> Option<u32> {
    let due = |walk: &Walk<K>| mine(walk.cause) && walk.at.is_none_or(|at| at <= now);
    walks.iter().find(|(_, walk)| due(walk)).map(|(ifindex, _)| *ifindex)
}
