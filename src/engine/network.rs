//! One network's state machine.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;

use super::{
    chains::TableSeen,
    delta::{Fits, Table},
    device::LinkWant,
    drift::Drift,
    key::{BridgeRowKey, Family, Key, LinkId, NeighbourKey, TunnelKey},
    object::{Forwarding, Link, LinkKind, NetnsId, RouteRow},
    plan::Planned,
    report::Note,
    seam::{Op, Query},
    time::Time,
    trouble::Troubles,
    unread::{ReadCause, Unread},
};
use crate::{
    desired::{EndpointSpec, LocalEndpoint, NetworkSpec},
    model::{
        EndpointId, Mac, Name, Route, Vni,
        nft::{Chain, ChainId, TableId},
    },
};

/// What an engine needs to know of its surroundings.
#[derive(Clone, Debug)]
pub struct Config {
    /// The network's name.
    pub name: Name,
    /// Where its bridges are.
    pub home: Home,
    /// The group of all links of ours.
    pub group: u32,
    /// How often everything is read again without a reason.
    pub resync: Duration,
    /// The table of nftables for the guards of endpoints' ports. It is ours wholly, whether anything is desired in it or not.
    pub guards: TableId,
    /// The other tables that are ours in this way.
    pub tables: Vec<TableId>,
}

/// Where a network's bridges and the outer ends of its veth pairs are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Home {
    /// A namespace of the network's own, bound to this path: made and removed with the network, and all on its devices is ours.
    Overlay(PathBuf),
    /// The host's own namespace: it is always there, and in it only what carries our mark is ours.
    Host {
        /// Name of the bridge; there is one, without a tunnel.
        bridge: String,
        /// Take a bridge of that name although it is somebody else's. It is used as it is, and stays when we go.
        adopt: bool,
    },
}

impl Home {
    pub(super) const fn is_host(&self) -> bool {
        matches!(self, Self::Host { .. })
    }
}

/// What the engine wants done next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Read this and give the answer to [`Network::answered`].
    Read(Query),
    /// Send these, in order, and give the results to [`Network::applied`].
    Apply(Vec<Op>),
    /// Nothing until an event, a change, or this moment.
    Rest(Time),
    /// The network is not desired here and nothing of it is left.
    Gone,
}

/// The overlay namespace as observed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Netns {
    Unknown,
    Absent,
    Ours(NetnsId),
    Foreign,
}

/// Whether a local endpoint's namespace is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum InnerStatus {
    Unknown,
    NoNetns,
    Refused(String),
    Present { id: NetnsId, nsid: Option<i32> },
}

/// A local endpoint.
#[derive(Clone, Debug)]
pub(super) struct Local {
    pub(super) spec: LocalEndpoint,
    pub(super) status: InnerStatus,
    /// How often it was looked for since its path showed up: the file shows before the namespace is mounted on it.
    pub(super) looks: u32,
    /// The last attempt to read it failed.
    pub(super) unreadable: bool,
    /// Another endpoint, by another path, has this namespace already: on the host it gets one interface of ours.
    pub(super) shadowed: bool,
    /// The families of which its namespace has a default route out of another link.
    pub(super) defaults_elsewhere: BTreeSet<Family>,
}

impl Fits<TunnelSeen> for IpAddr {
    fn fits(&self, seen: &TunnelSeen) -> bool {
        seen.plain && seen.dst == Some(*self)
    }
}

impl Fits<BridgeRowSeen> for EndpointId {
    fn fits(&self, seen: &BridgeRowSeen) -> bool {
        seen.plain && seen.port.as_ref() == Some(self)
    }
}

impl Fits<NeighbourSeen> for Mac {
    fn fits(&self, seen: &NeighbourSeen) -> bool {
        seen.permanent && seen.ours && seen.mac == Some(*self)
    }
}

/// An address is right when it is there; whether it carries our number only says whose it is.
impl Fits<bool> for () {
    fn fits(&self, _: &bool) -> bool {
        true
    }
}

impl Local {
    pub(super) fn new(spec: LocalEndpoint) -> Self {
        Self {
            spec,
            status: InnerStatus::Unknown,
            looks: 1,
            unreadable: false,
            shadowed: false,
            defaults_elsewhere: BTreeSet::new(),
        }
    }

    /// Whether what stands at its path, if anything does, is known and may be used.
    pub(super) fn known(&self) -> bool {
        !self.unreadable && !matches!(self.status, InnerStatus::Refused(_) | InnerStatus::Unknown)
    }

    pub(super) fn wired(&self) -> bool {
        matches!(self.status, InnerStatus::Present { .. }) && !self.shadowed
    }
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

/// The engine of one network. See the module's documentation for the protocol; `tests/simulation.rs` for how it is driven.
#[derive(Debug)]
pub struct Network {
    pub(super) config: Config,
    /// Nothing is touched before the desired side is known.
    pub(super) told: bool,
    /// What nothing desires stays where it is.
    pub(super) removals_held: bool,
    pub(super) revision: i64,
    pub(super) applied_revision: i64,
    pub(super) waiting_since: Option<Time>,
    pub(super) spec: Option<Arc<NetworkSpec>>,
    pub(super) endpoints: BTreeMap<EndpointId, EndpointSpec>,
    /// How many more endpoints than one a row of a VXLAN device leads to.
    pub(super) sharers: BTreeMap<TunnelKey, usize>,
    pub(super) locals: BTreeMap<EndpointId, Local>,
    /// The VTEPs that endpoints of the network are behind, each with how many.
    pub(super) vteps: BTreeMap<IpAddr, usize>,
    pub(super) by_path: BTreeMap<PathBuf, BTreeSet<EndpointId>>,
    /// The names of the overlay ends, by which an agent without memory knows them.
    pub(super) by_outer_name: BTreeMap<String, EndpointId>,
    /// `i` of `br<i>` and `vxlan<i+1>`.
    pub(super) numbers: BTreeMap<Vni, u32>,

    pub(super) netns: Netns,
    pub(super) by_index: BTreeMap<u32, LinkId>,
    pub(super) links: Table<LinkId, LinkWant, Link>,
    /// Observed: whether the address carries our protocol number.
    pub(super) addresses: Table<(LinkId, IpNet), (), bool>,
    /// By link and destination.
    pub(super) routes: Table<(LinkId, IpNet), Route, RouteRow>,
    pub(super) forwarding: Table<Family, Forwarding>,
    /// Rows of VXLAN devices with one destination.
    pub(super) tunnels: Table<TunnelKey, IpAddr, TunnelSeen>,
    /// Rows of their flood lists.
    pub(super) flood_rows: Table<TunnelKey, IpAddr, TunnelSeen>,
    pub(super) bridge_rows: Table<BridgeRowKey, EndpointId, BridgeRowSeen>,
    pub(super) neighbours: Table<NeighbourKey, Mac, NeighbourSeen>,
    pub(super) tables: Table<TableId, (), TableSeen>,
    pub(super) chains: Table<ChainId, Chain>,
    /// Why packets of the gateway bridge do not pass somebody else's chains.
    pub(super) barriers: Vec<String>,
    /// The tables that were read since the namespace was found: nothing is changed in others.
    pub(super) rules_read: BTreeSet<TableId>,

    pub(super) unread: Unread,
    pub(super) asked: Option<(Query, ReadCause)>,
    pub(super) asked_inner: Option<EndpointId>,
    pub(super) sent: Vec<Planned>,
    /// Objects that were written and are known only when they are read again.
    pub(super) settling: BTreeSet<Key>,
    /// How often in a row an object was written without becoming what it should be.
    pub(super) unsettled: BTreeMap<Key, u32>,
    pub(super) drift: Drift,
    pub(super) troubles: Troubles,
    pub(super) resync_at: Option<Time>,
    pub(super) resync_started: Option<Time>,
    pub(super) notes: Vec<Note>,
}

impl Network {
    /// An engine that knows nothing yet, neither what should be nor what is.
    pub fn new(config: Config) -> Self {
        Self {
            config,
            told: false,
            removals_held: false,
            revision: 0,
            applied_revision: 0,
            waiting_since: None,
            spec: None,
            endpoints: BTreeMap::new(),
            sharers: BTreeMap::new(),
            locals: BTreeMap::new(),
            vteps: BTreeMap::new(),
            by_path: BTreeMap::new(),
            by_outer_name: BTreeMap::new(),
            numbers: BTreeMap::new(),
            netns: Netns::Unknown,
            by_index: BTreeMap::new(),
            links: Table::default(),
            addresses: Table::default(),
            routes: Table::default(),
            forwarding: Table::default(),
            tunnels: Table::default(),
            flood_rows: Table::default(),
            bridge_rows: Table::default(),
            neighbours: Table::default(),
            tables: Table::default(),
            chains: Table::default(),
            barriers: Vec::new(),
            rules_read: BTreeSet::new(),
            unread: Unread::of_the_unknown(),
            asked: None,
            asked_inner: None,
            sent: Vec::new(),
            settling: BTreeSet::new(),
            unsettled: BTreeMap::new(),
            drift: Drift::default(),
            troubles: Troubles::default(),
            resync_at: None,
            resync_started: None,
            notes: Vec::new(),
        }
    }

    /// Holds removals, or lets them go on. While they are held, what stands and nothing desires stays where it is; what is
    /// desired is made all the same, and drift is repaired.
    pub fn hold_removals(&mut self, held: bool) {
        self.removals_held = held;
    }

    /// What to do next. The caller hands in the events that have come before each call, so that a decision rests on all that
    /// is known.
    pub fn next(&mut self, now: Time) -> Effect {
        if !self.told {
            return Effect::Rest(now + self.config.resync);
        }
        // One at a time: a period that is shorter than the reading takes must not start it over again and again.
        if self.resync_started.is_none() && self.resync_at.is_some_and(|at| at <= now) {
            self.resync("periodic", now);
        }
        if let Some((query, cause)) = self.next_query(now) {
            self.asked = Some((query.clone(), cause));
            return Effect::Read(query);
        }
        // Reads that failed rest for a moment: until they are made nothing is judged, but what is known can be acted on.
        if self.unread.only_rows_left() {
            self.settle_links(now);
            self.judge_drift(now);
        }
        self.sent = if self.unread.first_outstanding() { Vec::new() } else { self.plan(now) };
        if !self.sent.is_empty() {
            return Effect::Apply(self.sent.iter().map(|planned| planned.op.clone()).collect());
        }
        self.finish_round(now);
        if self.is_gone() {
            return Effect::Gone;
        }
        let due = [self.resync_at, self.troubles.next_at(now), self.drift.next_at(now), self.unread.next_look()];
        Effect::Rest(due.into_iter().flatten().min().unwrap_or(now + self.config.resync))
    }

    /// Nothing is desired, and nothing of ours is left.
    fn is_gone(&self) -> bool {
        let nothing_left = match self.config.home {
            Home::Overlay(_) => matches!(self.netns, Netns::Absent | Netns::Foreign),
            Home::Host { .. } => {
                let ours = self.links.iter().any(|(_, sides)| sides.observed.as_ref().is_some_and(|l| !self.adopts(l)));
                // Of what could not be read yet something may be left.
                let read = matches!(self.netns, Netns::Ours(_)) && self.unread.is_empty();
                read && !ours && self.addresses.in_sync() && self.tables.in_sync()
            }
        };
        self.spec.is_none() && nothing_left
    }

    /// Whether the link is a bridge of somebody else's that we use.
    pub(super) fn adopts(&self, link: &Link) -> bool {
        let bridge = matches!(link.kind, LinkKind::Bridge { .. }) && link.group != self.config.group;
        bridge && matches!(self.config.home, Home::Host { adopt: true, .. })
    }

    /// Whether the answer that is awaited shows all links.
    pub(super) fn asked_all_links(&self) -> bool {
        matches!(self.asked, Some((Query::Links, _)))
    }

    /// Reads everything again: the safety net, and the answer to lost events.
    pub fn resync(&mut self, reason: &'static str, now: Time) {
        self.resync_at = Some(now + self.config.resync);
        self.resync_started.get_or_insert(now);
        self.notes.push(Note::Resync { reason });
        self.unread.netns.get_or_insert(ReadCause::Foreign);
        if matches!(self.netns, Netns::Ours(_)) {
            self.unread.everything();
            self.read_all_rules(ReadCause::Foreign);
            self.unread.barriers = self.config.home.is_host();
        }
        for id in self.locals.keys() {
            self.unread.inner(id.clone(), ReadCause::Foreign);
        }
    }

    /// What there is to report since the last call, in order.
    pub fn take_notes(&mut self) -> Vec<Note> {
        std::mem::take(&mut self.notes)
    }

    /// Everything is read, nothing is left to send that could be sent now.
    fn finish_round(&mut self, now: Time) {
        self.close_settled_drift();
        let mut troubles = std::mem::take(&mut self.troubles);
        troubles.retain(|key| self.difference(key).is_some() || self.unreadable(key));
        self.troubles = troubles;
        let mut unsettled = std::mem::take(&mut self.unsettled);
        unsettled.retain(|key, _| self.difference(key).is_some());
        self.unsettled = unsettled;
        if let Some(started) = self.resync_started.take() {
            self.notes.push(Note::Resynced { took: now.since(started) });
            self.resync_at = Some(now + self.config.resync);
        }
        self.resync_at.get_or_insert(now + self.config.resync);
        if self.in_sync() {
            self.applied_revision = self.revision;
            if let Some(since) = self.waiting_since.take() {
                self.notes.push(Note::Applied { revision: self.revision, took: now.since(since) });
            }
        }
    }
}
