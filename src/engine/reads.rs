//! What has to be read before anything can be decided, and in which order.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{
    interface::{Failure, FailureKind, FdbPoint, LinkRef, Query},
    key::{Key, Kind, LinkId, NeighbourKey, TunnelKey},
    local::Local,
    network::Network,
    object::{InnerAt, LinkKind},
    report::Blocked,
    tables::Netns,
    time::Time,
    walks::Walks,
};
use crate::{
    model::{EndpointId, nft::TableId, stable_hash},
    retry::Retry,
};

/// The first and the longest pause after reads of one kind that failed.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LAST_PAUSE: Duration = Duration::from_secs(1);

/// So many times somebody else's chains are read because of changes …
const BARRIER_READS: u32 = 10;
/// … within this time; it costs all rules of their tables, which may change all the time.
const BARRIER_WINDOW: Duration = Duration::from_secs(10);

/// How many rows one query looks up: replies of so many fit a socket's receive buffer.
pub(super) const POINTS: usize = 256;

/// So many hints of changes in endpoints' namespaces are followed before what is known is acted on.
const INNER_RUN: u32 = 4;

/// Why something is read, which decides whether a difference that shows is somebody else's doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ReadCause {
    /// An operation of ours.
    Own,
    /// A sign of foreign change, or a resync. It beats the echo of our own operation.
    Foreign,
    /// It was never read, or not since it was forgotten: what it is like is history, not drift.
    First,
}

/// What is to be read.
#[derive(Debug, Default)]
pub(super) struct Reads {
    pub(super) netns: Option<ReadCause>,
    pub(super) links: Option<ReadCause>,
    pub(super) link: BTreeMap<LinkRef, ReadCause>,
    pub(super) inner: BTreeMap<EndpointId, ReadCause>,
    pub(super) forwarding: Option<ReadCause>,
    /// When to look again at what no event tells of.
    pub(super) poll_at: Option<Time>,
    /// Somebody else's chains at the forward hook.
    pub(super) barriers: bool,
    /// How often they were to be read since when.
    barrier_reads: (Time, u32),
    /// They changed meanwhile, and are to be read then.
    barriers_at: Option<Time>,
    fdb_dumps: BTreeMap<u32, ReadCause>,
    neighbour_dumps: BTreeMap<u32, ReadCause>,
    rules: BTreeMap<TableId, ReadCause>,
    /// Rows to look up again. Their links are looked at after them, before a difference is judged.
    pub(super) fdb: BTreeSet<FdbPoint>,
    pub(super) neighbours: BTreeSet<(u32, std::net::IpAddr)>,
    /// Rows of flood lists that the last dump did not show.
    pub(super) doubted: BTreeSet<TunnelKey>,
    /// Namespaces whose path shows but that are not mounted yet, and when to look again.
    pub(super) looks: BTreeMap<EndpointId, Time>,
    /// How many hints of changes in endpoints' namespaces were followed in a row.
    inner_run: u32,
    /// A full reading of all rows follows the links.
    pub(super) all_rows: Option<ReadCause>,
    /// It has no other reason than that its time has come.
    pub(super) at_leisure: bool,
    /// Large tables, which are read row by row.
    pub(super) walks: Walks,
    /// Reads that failed, each resting by itself.
    deferred: Vec<Deferred>,
    retries: BTreeMap<&'static str, Retry>,
    /// What was asked last, and is not answered yet.
    pub(super) asked: Option<(Query, ReadCause)>,
    /// Whose end that is.
    pub(super) asked_inner: Option<EndpointId>,
    /// The tables of nftables that were read since the namespace was found: nothing is changed in others.
    pub(super) rules_read: BTreeSet<TableId>,
    pub(super) resync_at: Option<Time>,
    pub(super) resync_started: Option<Time>,
}

/// A read that failed.
#[derive(Debug)]
struct Deferred {
    query: Query,
    cause: ReadCause,
    at: Time,
    failure: Failure,
}

impl Reads {
    /// Of a network of which nothing was read yet.
    pub(super) fn of_the_unknown() -> Self {
        Self { netns: Some(ReadCause::First), ..Self::default() }
    }

    /// Nothing is left to read.
    pub(super) fn is_empty(&self) -> bool {
        self.all_asked_but_inner() && self.inner.is_empty() && self.walks.are_done() && self.deferred.is_empty()
    }

    /// Whether the namespace that an object is in, or on whose account it stands, is to be read.
    pub(super) fn inner_unread(&self, key: &Key) -> bool {
        endpoint_of(key).is_some_and(|id| self.inner.contains_key(id))
    }

    /// The same, or it has to be looked at once more in a moment: a container that ended is no drift.
    pub(super) fn awaits_netns_of(&self, key: &Key) -> bool {
        endpoint_of(key).is_some_and(|id| self.inner.contains_key(id) || self.looks.contains_key(id))
    }

    /// Nothing is left to read but rows that could not be read, and endpoints' ends, of which each is judged by itself: what is known
    /// of all else can be judged.
    pub(super) fn only_rows_left(&self) -> bool {
        let structure =
            |query: &Query| matches!(query, Query::Netns | Query::Links | Query::Link(_) | Query::Forwarding);
        self.all_asked_but_inner() && !self.deferred.iter().any(|deferred| structure(&deferred.query))
    }

    fn all_asked_but_inner(&self) -> bool {
        self.netns.is_none()
            && self.links.is_none()
            && self.link.is_empty()
            && self.forwarding.is_none()
            && !self.barriers
            && self.fdb_dumps.is_empty()
            && self.neighbour_dumps.is_empty()
            && self.rules.is_empty()
            && self.fdb.is_empty()
            && self.neighbours.is_empty()
            && self.all_rows.is_none()
    }

    /// Whether something that every decision rests on was never read (of tables only their chains' do): what is not known to be there must not be made again,
    /// nor what is not known to be desired be taken away.
    pub(super) fn first_outstanding(&self) -> bool {
        let dumps = self.fdb_dumps.values().chain(self.neighbour_dumps.values()).copied();
        let rules = |deferred: &&Deferred| matches!(deferred.query, Query::Rules(_));
        let deferred = self.deferred.iter().filter(|deferred| !rules(deferred)).map(|deferred| deferred.cause);
        let mut causes =
            [self.netns, self.links, self.forwarding, self.all_rows].into_iter().flatten().chain(dumps).chain(deferred);
        self.walks.first_outstanding() || causes.any(|cause| cause == ReadCause::First)
    }

    /// Puts a read off; the delay, which is none for the first failure in a row where that may have been a race.
    pub(super) fn defer(&mut self, query: Query, cause: ReadCause, failure: Failure, now: Time) -> Duration {
        let kind = kind_of(&query);
        let salt = stable_hash(kind.as_bytes());
        let retry = self.retries.entry(kind).or_insert_with(|| Retry::new(FIRST_PAUSE, LAST_PAUSE, salt));
        let raced = failure.kind == FailureKind::NotFound && retry.attempts() == 0;
        let delay = retry.delay();
        let delay = if raced { Duration::ZERO } else { delay };
        self.deferred.push(Deferred { query, cause, at: now + delay, failure });
        delay
    }

    /// A read of this kind was answered.
    pub(super) fn answered(&mut self, query: &Query) {
        self.retries.remove(kind_of(query));
    }

    /// Queues the deferred reads whose time has come.
    fn take_up_deferred(&mut self, now: Time) {
        if self.barriers_at.take_if(|at| *at <= now).is_some() {
            self.barriers_changed(now);
        }
        let (due, rest): (Vec<_>, _) =
            std::mem::take(&mut self.deferred).into_iter().partition(|deferred| deferred.at <= now);
        self.deferred = rest;
        for Deferred { query, cause, .. } in due {
            match query {
                Query::Netns => self.netns = self.netns.max(Some(cause)),
                Query::Links => self.links = self.links.max(Some(cause)),
                Query::Link(link) => self.link(link, cause),
                Query::Barriers => self.barriers = true,
                Query::Forwarding => self.forwarding = self.forwarding.max(Some(cause)),
                Query::FdbDump(ifindex) => self.fdb_dump(ifindex, cause),
                Query::NeighbourDump(ifindex) => self.neighbour_dump(ifindex, cause),
                Query::FdbNewest { ifindex, most } => self.walks.read_newest(ifindex, cause, most),
                Query::FdbRows(points) => self.fdb.extend(points),
                Query::NeighbourRows(points) => self.neighbours.extend(points),
                Query::Rules(table) => self.rules(table, cause),
                // An endpoint's reads are deferred by endpoint, in `looks`.
                Query::Inner(_) => {}
            }
        }
    }

    /// Reads that do not succeed, and will not by waiting.
    pub(super) fn blocked(&self) -> impl Iterator<Item = Blocked> {
        let lasting = |failure: &Failure| !matches!(failure.kind, FailureKind::Resources | FailureKind::Torn);
        self.deferred.iter().filter(move |deferred| lasting(&deferred.failure)).map(|deferred| Blocked {
            object: format!("reading of the {}", kind_of(&deferred.query)),
            kind: Kind::Netns,
            reason: deferred.failure.kind.as_str(),
            message: deferred.failure.message.clone(),
        })
    }

    /// All of the overlay namespace is to be read again, at leisure when there is no other reason than that its time has come.
    pub(super) fn everything(&mut self, at_leisure: bool) {
        self.at_leisure = at_leisure && (self.at_leisure || self.all_rows.is_none());
        self.links = self.links.max(Some(ReadCause::Foreign));
        self.all_rows = self.all_rows.max(Some(ReadCause::Foreign));
        self.forwarding = self.forwarding.max(Some(ReadCause::Foreign));
    }

    /// Nothing of the overlay namespace can be read: it is gone.
    pub(super) fn forget_namespace(&mut self) {
        let inner = std::mem::take(&mut self.inner);
        let looks = std::mem::take(&mut self.looks);
        self.deferred.retain(|deferred| deferred.query == Query::Netns);
        let deferred = std::mem::take(&mut self.deferred);
        *self = Self { inner, looks, deferred, netns: self.netns, ..Self::default() };
    }

    /// Nothing is to be read of any rows.
    fn forget_rows(&mut self) {
        self.all_rows = None;
        self.fdb_dumps.clear();
        self.neighbour_dumps.clear();
        self.fdb.clear();
        self.neighbours.clear();
        self.doubted.clear();
        self.walks = Walks::default();
        let rows = |query: &Query| {
            matches!(
                query,
                Query::FdbDump(_)
                    | Query::FdbNewest { .. }
                    | Query::FdbRows(_)
                    | Query::NeighbourDump(_)
                    | Query::NeighbourRows(_)
            )
        };
        self.deferred.retain(|deferred| !rows(&deferred.query));
    }

    /// A link is to be read.
    pub(super) fn link(&mut self, link: LinkRef, cause: ReadCause) {
        raise(&mut self.link, link, cause);
    }

    /// An endpoint's end is to be read.
    pub(super) fn inner(&mut self, id: EndpointId, cause: ReadCause) {
        raise(&mut self.inner, id, cause);
    }

    /// All rows of a link are to be read.
    pub(super) fn fdb_dump(&mut self, ifindex: u32, cause: ReadCause) {
        raise(&mut self.fdb_dumps, ifindex, cause);
    }

    /// All neighbour entries of a link are to be read.
    pub(super) fn neighbour_dump(&mut self, ifindex: u32, cause: ReadCause) {
        raise(&mut self.neighbour_dumps, ifindex, cause);
    }

    /// Somebody else's chains changed.
    pub(super) fn barriers_changed(&mut self, now: Time) {
        let (since, reads) = self.barrier_reads;
        if now >= since + BARRIER_WINDOW {
            self.barrier_reads = (now, 0);
        } else if reads >= BARRIER_READS {
            self.barriers_at = Some(since + BARRIER_WINDOW);
            return;
        }
        self.barrier_reads.1 += u32::from(!self.barriers);
        self.barriers = true;
    }

    /// A table of nftables is to be read.
    pub(super) fn rules(&mut self, table: TableId, cause: ReadCause) {
        raise(&mut self.rules, table, cause);
    }

    /// What is known was acted on: hints of changes in endpoints' namespaces may be followed again. Whether there are any.
    pub(super) fn follow_inner(&mut self) -> bool {
        self.inner_run = 0;
        !self.inner.is_empty()
    }

    pub(super) fn next_look(&self) -> Option<Time> {
        self.looks
            .values()
            .copied()
            .chain(self.walks.next_at())
            .chain(self.barriers_at)
            .chain(self.deferred.iter().map(|deferred| deferred.at))
            .min()
    }
}

impl Network {
    /// The next thing to read: the namespace before its links, links before rows.
    pub(super) fn next_query(&mut self, now: Time) -> Option<(Query, ReadCause)> {
        // Before everything was read once, what a hint leads to is as much history as the rest.
        let first = self.reads.first_outstanding();
        self.next_read(now).map(|(query, cause)| (query, if first { ReadCause::First } else { cause }))
    }

    fn next_read(&mut self, now: Time) -> Option<(Query, ReadCause)> {
        self.reads.take_up_deferred(now);
        let due: Vec<EndpointId> =
            self.reads.looks.iter().filter(|(_, at)| **at <= now).map(|(id, _)| id.clone()).collect();
        for id in due {
            self.reads.looks.remove(&id);
            self.reads.inner(id, ReadCause::Foreign);
        }
        if let Some(cause) = self.reads.netns.take() {
            return Some((Query::Netns, cause));
        }
        if matches!(self.tables.netns, Netns::Ours(_))
            && let Some(query) = self.next_in_namespace(now)
        {
            return Some(query);
        }
        while self.reads.inner_run < INNER_RUN
            && let Some((id, cause)) = self.reads.inner.pop_first()
        {
            if let Some(local) = self.locals.by_id.get(&id) {
                let query = Query::Inner(self.inner_at(&id, local));
                self.reads.asked_inner = Some(id);
                self.reads.inner_run += u32::from(cause == ReadCause::Foreign);
                return Some((query, cause));
            }
        }
        None
    }

    fn next_in_namespace(&mut self, now: Time) -> Option<(Query, ReadCause)> {
        if let Some(cause) = self.reads.links.take() {
            self.reads.link.clear();
            return Some((Query::Links, cause));
        }
        if let Some((link, cause)) = self.reads.link.pop_first() {
            return Some((Query::Link(link), cause));
        }
        if let Some(cause) = self.reads.forwarding.take() {
            return Some((Query::Forwarding, cause));
        }
        if std::mem::take(&mut self.reads.barriers) {
            return Some((Query::Barriers, ReadCause::Own));
        }
        if let Some((table, cause)) = self.reads.rules.pop_first() {
            return Some((Query::Rules(table), cause));
        }
        if self.desired.spec.is_none() && !self.desired.removals_held && !self.config.home.is_host() {
            // Whatever rows there are go with their devices.
            self.reads.forget_rows();
            return None;
        }
        if let Some(cause) = self.reads.all_rows.take() {
            self.read_rows_of_all(cause, now);
        }
        // What was to be read of a link that turned out to be gone went with it.
        let there = |ifindex: &u32| self.tables.by_index.contains_key(ifindex);
        self.reads.fdb_dumps.retain(|ifindex, _| there(ifindex));
        self.reads.neighbour_dumps.retain(|ifindex, _| there(ifindex));
        while let Some((ifindex, cause)) = self.reads.fdb_dumps.pop_first() {
            match self.tables.by_index.get(&ifindex) {
                Some(LinkId::Vxlan(vni)) if self.is_large(*vni) => self.reads.walks.start(ifindex, cause),
                _ => return Some((Query::FdbDump(ifindex), cause)),
            }
        }
        if let Some((ifindex, cause)) = self.reads.neighbour_dumps.pop_first() {
            return Some((Query::NeighbourDump(ifindex), cause));
        }
        if let Some(slice) = self.next_slice(true, now) {
            return Some(slice);
        }
        let there = |ifindex: &u32| self.tables.by_index.contains_key(ifindex);
        let points = take_some(&mut self.reads.fdb, |point| there(&point.ifindex));
        if !points.is_empty() {
            return Some((Query::FdbRows(points), ReadCause::Foreign));
        }
        let points = take_some(&mut self.reads.neighbours, |(ifindex, _)| there(ifindex));
        if !points.is_empty() {
            return Some((Query::NeighbourRows(points), ReadCause::Foreign));
        }
        None
    }

    /// Queues the rows of all links to be read.
    fn read_rows_of_all(&mut self, cause: ReadCause, now: Time) {
        let at_leisure = std::mem::take(&mut self.reads.at_leisure) && cause == ReadCause::Foreign;
        for (ifindex, id) in self.tables.by_index.clone() {
            match id {
                LinkId::Vxlan(vni) if at_leisure && self.walk_at_leisure(ifindex, vni, now) => {}
                LinkId::Vxlan(_) => {
                    self.reads.fdb_dump(ifindex, cause);
                    self.reads.neighbour_dump(ifindex, cause);
                }
                LinkId::Bridge(_) if self.config.home.is_host() => {}
                LinkId::Bridge(_) => self.reads.neighbour_dump(ifindex, cause),
                LinkId::Outer(_) => self.reads.fdb_dump(ifindex, cause),
                LinkId::Inner(_) | LinkId::Stray(_) => {}
            }
        }
    }

    /// Where to look for the endpoint's end: by the index that the other end tells, else by its name.
    fn inner_at(&self, id: &EndpointId, local: &Local) -> InnerAt {
        let outer = self.tables.links.observed_of(&LinkId::Outer(id.clone()));
        let ifindex = outer.and_then(|link| match link.kind {
            LinkKind::Veth { peer, .. } => peer,
            _ => None,
        });
        InnerAt { netns: local.spec.netns.clone(), ifname: local.spec.ifname.clone(), ifindex }
    }

    /// Queues a row of a neighbour table to be looked up.
    pub(super) fn read_neighbour(&mut self, key: &NeighbourKey) {
        let link = key.link();
        if let Some(ifindex) = self.tables.links.observed_of(&link).map(|link| link.ifindex) {
            self.reads.neighbours.insert((ifindex, key.ip));
        }
    }
}

/// The endpoint on whose account an object stands in its namespace, or leads there.
const fn endpoint_of(key: &Key) -> Option<&EndpointId> {
    match key {
        Key::Link(LinkId::Outer(id) | LinkId::Inner(id))
        | Key::Address(LinkId::Inner(id), _)
        | Key::Route(LinkId::Inner(id), _) => Some(id),
        _ => None,
    }
}

/// What a query reads, in words.
const fn kind_of(query: &Query) -> &'static str {
    match query {
        Query::Netns => "overlay namespace",
        Query::Links => "links",
        Query::Link(_) => "link",
        Query::Inner(_) => "endpoint's interface",
        Query::Forwarding => "forwarding",
        Query::FdbDump(_) => "FDB",
        Query::FdbNewest { .. } => "newest FDB rows",
        Query::FdbRows(_) => "FDB rows",
        Query::NeighbourDump(_) => "neighbour table",
        Query::NeighbourRows(_) => "neighbours",
        Query::Rules(_) => "table of nftables",
        Query::Barriers => "chains at the forward hook",
    }
}

/// Notes a reason to read, unless there is a stronger one already.
fn raise<K: Ord>(reads: &mut BTreeMap<K, ReadCause>, key: K, cause: ReadCause) {
    let reason = reads.entry(key).or_insert(cause);
    *reason = cause.max(*reason);
}

/// Takes out as many as one query may look up, leaving out those that are moot.
fn take_some<T: Ord>(set: &mut BTreeSet<T>, wanted: impl Fn(&T) -> bool) -> Vec<T> {
    std::iter::from_fn(|| set.pop_first()).filter(wanted).take(POINTS).collect()
}
