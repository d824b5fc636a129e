//! Both sides of everything that a network has: what should be there beside what was read or acknowledged.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;

use super::{
    chains::TableSeen,
    compact::{Exact, Rows},
    delta::{Cause, Differences, Fits, Sides, Table},
    device::LinkWant,
    inner::on_link,
    key::{BridgeRowKey, Family, Key, Kind, LinkId, NeighbourKey, TunnelKey},
    object::{Forwarding, Link, NetnsId, RouteRow},
    report::DriftReason,
};
use crate::model::{
    EndpointId, Mac, Route, Vni,
    nft::{Chain, ChainId, TableId},
};

/// The overlay namespace as observed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Netns {
    Unknown,
    Absent,
    Ours(NetnsId),
    Foreign,
}

/// Exactly what a row of a VXLAN device leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TunnelSeen {
    pub(super) dst: Option<IpAddr>,
    pub(super) plain: bool,
}

/// What a bridge's row points to; `None` is a port that is no local endpoint's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BridgeRowSeen {
    pub(super) port: Option<EndpointId>,
    pub(super) ifindex: u32,
    pub(super) plain: bool,
}

/// A neighbour entry's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NeighbourSeen {
    pub(super) mac: Option<Mac>,
    pub(super) permanent: bool,
    pub(super) ours: bool,
}

impl Exact<TunnelSeen> for IpAddr {
    fn exact(self) -> TunnelSeen {
        TunnelSeen { dst: Some(self), plain: true }
    }
}

impl Exact<NeighbourSeen> for Mac {
    fn exact(self) -> NeighbourSeen {
        NeighbourSeen { mac: Some(self), permanent: true, ours: true }
    }
}

impl Fits<TunnelSeen> for IpAddr {
    fn fits(&self, seen: &TunnelSeen) -> bool {
        *seen == self.exact()
    }
}

impl Fits<BridgeRowSeen> for EndpointId {
    fn fits(&self, seen: &BridgeRowSeen) -> bool {
        seen.plain && seen.port.as_ref() == Some(self)
    }
}

impl Fits<NeighbourSeen> for Mac {
    fn fits(&self, seen: &NeighbourSeen) -> bool {
        *seen == self.exact()
    }
}

/// An address as it was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AddressSeen {
    pub(super) ours: bool,
    pub(super) routed: bool,
}

/// An address is right when it is there with its routes; whether it carries our number only says whose it is.
impl Fits<AddressSeen> for () {
    fn fits(&self, seen: &AddressSeen) -> bool {
        seen.routed
    }
}

/// The tables of a network, and what the links in them are by index.
#[derive(Debug)]
pub(super) struct Tables {
    pub(super) netns: Netns,
    /// What the links of the overlay namespace are, by index.
    pub(super) by_index: BTreeMap<u32, LinkId>,
    pub(super) links: Table<LinkId, LinkWant, Link>,
    pub(super) addresses: Table<(LinkId, IpNet), (), AddressSeen>,
    /// By link and destination.
    pub(super) routes: Table<(LinkId, IpNet), Route, RouteRow>,
    pub(super) forwarding: Table<Family, Forwarding>,
    /// Rows of VXLAN devices with one destination.
    pub(super) tunnels: Rows<TunnelKey, IpAddr, TunnelSeen>,
    /// Rows of their flood lists.
    pub(super) flood_rows: Table<TunnelKey, IpAddr, TunnelSeen>,
    pub(super) bridge_rows: Table<BridgeRowKey, EndpointId, BridgeRowSeen>,
    pub(super) neighbours: Rows<NeighbourKey, Mac, NeighbourSeen>,
    /// Tables of nftables, apart from their chains.
    pub(super) nft: Table<TableId, (), TableSeen>,
    pub(super) chains: Table<ChainId, Chain>,
    /// Why packets of the gateway bridge do not pass somebody else's chains.
    pub(super) barriers: Vec<String>,
}

impl Default for Tables {
    fn default() -> Self {
        Self {
            netns: Netns::Unknown,
            by_index: BTreeMap::new(),
            links: Table::default(),
            addresses: Table::default(),
            routes: Table::default(),
            forwarding: Table::default(),
            tunnels: Rows::default(),
            flood_rows: Table::default(),
            bridge_rows: Table::default(),
            neighbours: Rows::default(),
            nft: Table::default(),
            chains: Table::default(),
            barriers: Vec::new(),
        }
    }
}

impl Tables {
    /// Every table with the kind that its objects are filed under. Whoever counts or compares goes over these, so that no table is
    /// forgotten.
    pub(super) fn all(&self) -> [(Kind, &dyn Differences); 10] {
        [
            (Kind::Link, &self.links),
            (Kind::Address, &self.addresses),
            (Kind::Route, &self.routes),
            (Kind::Route, &self.forwarding),
            (Kind::Fdb, &self.tunnels),
            (Kind::Flood, &self.flood_rows),
            (Kind::Fdb, &self.bridge_rows),
            (Kind::Neighbour, &self.neighbours),
            (Kind::Nat, &self.nft),
            (Kind::Nat, &self.chains),
        ]
    }

    /// Whether nothing differs.
    pub(super) fn in_sync(&self) -> bool {
        self.all().iter().all(|(_, table)| table.in_sync())
    }

    /// How many objects stand that nothing desires, the namespace apart.
    pub(super) fn leftovers(&self) -> usize {
        self.all().iter().map(|(_, table)| table.leftovers()).sum()
    }

    /// Desired and observed objects by kind, the namespace apart.
    pub(super) fn counts(&self) -> BTreeMap<Kind, (u64, u64)> {
        let mut counts: BTreeMap<Kind, (u64, u64)> = BTreeMap::new();
        for (kind, table) in self.all() {
            let (desired, observed) = counts.entry(kind).or_default();
            *desired += table.desired_len() as u64;
            *observed += table.observed_len() as u64;
        }
        counts
    }

    /// How an object differs from what is desired; `None` when it does not. Of the namespace [`super::view::View`] says so.
    pub(super) fn difference(&self, key: &Key) -> Option<DriftReason> {
        fn of<K: Ord + Clone, D: Fits<O> + PartialEq, O: PartialEq>(
            table: &Table<K, D, O>,
            key: &K,
        ) -> Option<DriftReason> {
            table.get(key).filter(|_| table.differs(key)).and_then(reason_of)
        }
        match key {
            Key::Netns => None,
            Key::Link(id) => of(&self.links, id),
            Key::Address(id, net) => of(&self.addresses, &(id.clone(), *net)),
            Key::Route(id, dst) => of(&self.routes, &(id.clone(), *dst)),
            Key::Forwarding(family) => of(&self.forwarding, family),
            Key::Tunnel(key) => self.tunnel(key).as_ref().filter(|sides| !sides.agree()).and_then(reason_of),
            Key::BridgeRow(key) => of(&self.bridge_rows, key),
            Key::Neighbour(key) => self.neighbours.get(key).as_ref().filter(|sides| !sides.agree()).and_then(reason_of),
            Key::Rules(table) => of(&self.nft, table),
            Key::Chain(id) => of(&self.chains, id),
        }
    }

    /// The objects that came to be as desired since the last call, while `asked` was true; `asked` is whether to remember them from
    /// now on.
    pub(super) fn take_agreed(&mut self, asked: bool) -> Vec<Key> {
        let mut agreed: Vec<Key> = Vec::new();
        agreed.extend(self.links.take_agreed(asked).into_iter().map(Key::Link));
        agreed.extend(self.addresses.take_agreed(asked).into_iter().map(|(id, net)| Key::Address(id, net)));
        agreed.extend(self.routes.take_agreed(asked).into_iter().map(|(id, dst)| Key::Route(id, dst)));
        agreed.extend(self.forwarding.take_agreed(asked).into_iter().map(Key::Forwarding));
        agreed.extend(self.tunnels.take_agreed(asked).into_iter().map(Key::Tunnel));
        agreed.extend(self.flood_rows.take_agreed(asked).into_iter().map(Key::Tunnel));
        agreed.extend(self.bridge_rows.take_agreed(asked).into_iter().map(Key::BridgeRow));
        agreed.extend(self.neighbours.take_agreed(asked).into_iter().map(Key::Neighbour));
        agreed.extend(self.nft.take_agreed(asked).into_iter().map(Key::Rules));
        agreed.extend(self.chains.take_agreed(asked).into_iter().map(Key::Chain));
        agreed
    }

    /// Both sides of a row of a VXLAN device.
    pub(super) fn tunnel(&self, key: &TunnelKey) -> Option<Sides<IpAddr, TunnelSeen>> {
        if key.dst.is_some() { self.flood_rows.get(key).cloned() } else { self.tunnels.get(key) }
    }

    /// See [`Table::set_observed`].
    pub(super) fn set_tunnel_observed(&mut self, key: &TunnelKey, seen: Option<TunnelSeen>, cause: Cause) -> bool {
        if key.dst.is_some() {
            self.flood_rows.set_observed(key, seen, cause)
        } else {
            self.tunnels.set_observed(key, seen, cause)
        }
    }

    /// An object is left alone for a while: rows are not even looked at until then, since there may be many.
    pub(super) fn rest(&mut self, key: &Key) {
        match key {
            Key::Tunnel(key) if key.dst.is_none() => self.tunnels.rest(key),
            Key::Neighbour(key) => self.neighbours.rest(key),
            _ => {}
        }
    }

    /// An object may be tried again.
    pub(super) fn wake(&mut self, key: &Key) {
        match key {
            Key::Tunnel(key) if key.dst.is_none() => self.tunnels.wake(key),
            Key::Neighbour(key) => self.neighbours.wake(key),
            _ => {}
        }
    }

    /// Whether the namespace is there, and ours.
    pub(super) const fn ours(&self) -> bool {
        matches!(self.netns, Netns::Ours(_))
    }

    pub(super) fn bridge_index(&self, vni: Vni) -> Option<u32> {
        self.links.observed_of(&LinkId::Bridge(vni)).map(|link| link.ifindex)
    }

    pub(super) fn has_v4_address(&self, id: &LinkId) -> bool {
        self.addresses.observed_in(on_link(id)).iter().any(|(_, net)| net.addr().is_ipv4())
    }

    /// The chains of a table of nftables: which are desired, which observed.
    pub(super) fn chains_of(&self, table: &TableId) -> impl Iterator<Item = (&ChainId, bool, bool)> {
        let first = ChainId { table: table.clone(), name: String::new() };
        let all = self.chains.range(first..).take_while(move |(id, _)| id.table == *table);
        all.map(|(id, sides)| (id, sides.desired.is_some(), sides.observed.is_some()))
    }

    /// The rows of a VXLAN device's flood list are gone: these.
    pub(super) fn lose_flood_rows(&mut self, vni: Vni, cause: Cause) -> Vec<TunnelKey> {
        let lost = self.flood_rows.observed_in(TunnelKey::all_of(vni));
        for key in &lost {
            self.flood_rows.set_observed(key, None, cause);
        }
        lost
    }

    /// The neighbours of one of a segment's devices are gone.
    pub(super) fn lose_neighbours(&mut self, vni: Vni, on_bridge: bool, cause: Cause) {
        self.neighbours.lose((vni, on_bridge), cause, |_| true);
    }

    /// The bridge drops the rows of a port that leaves it.
    pub(super) fn lose_bridge_rows(&mut self, port: u32, cause: Cause) {
        let on_port = |seen: &BridgeRowSeen| seen.ifindex == port;
        let rows = self.bridge_rows.iter().filter(|(_, sides)| sides.observed.as_ref().is_some_and(on_port));
        let keys: Vec<BridgeRowKey> = rows.map(|(key, _)| *key).collect();
        for key in keys {
            self.bridge_rows.set_observed(&key, None, cause);
        }
    }
}

fn reason_of<D, O>(sides: &Sides<D, O>) -> Option<DriftReason> {
    match (&sides.desired, &sides.observed) {
        (Some(_), None) => Some(DriftReason::Missing),
        (Some(_), Some(_)) => Some(DriftReason::Changed),
        (None, Some(_)) => Some(DriftReason::Unexpected),
        (None, None) => None,
    }
}
