//! One network's state machine: its parts, and what it does next.

use super::{
    config::{Config, Home},
    delta::Differences,
    episode::Episodes,
    interface::{LinkRef, Op, Query},
    key::{Key, LinkId},
    local::Locals,
    plan::{Plan, Planned},
    reads::{ReadCause, Reads},
    report::{Note, Report},
    tables::{Netns, Tables},
    time::Time,
    update::Desired,
    view::View,
};
use crate::model::stable_hash;

/// How often in the time of a resync what no event tells of is looked at: by default every second.
const POLLS: u32 = 60;

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

/// The engine of one network. See the module's documentation for the protocol; `tests/simulation.rs` for how it is driven.
///
/// Each part owns its fields. What decides without changing anything is handed a [`View`] of them, or a [`Plan`].
#[derive(Debug)]
pub struct Network {
    pub(super) config: Config,
    /// What should be here.
    pub(super) desired: Desired,
    /// The endpoints of this host.
    pub(super) locals: Locals,
    /// Both sides of every object.
    pub(super) tables: Tables,
    /// What is to be read.
    pub(super) reads: Reads,
    /// What is going on with single objects.
    pub(super) episodes: Episodes,
    /// What there is to tell.
    pub(super) report: Report,
    /// The operations whose results are awaited.
    pub(super) sent: Vec<Planned>,
}

impl Network {
    /// An engine that knows nothing yet, neither what should be nor what is.
    pub fn new(config: Config) -> Self {
        Self {
            config,
            desired: Desired::default(),
            locals: Locals::default(),
            tables: Tables::default(),
            reads: Reads::of_the_unknown(),
            episodes: Episodes::default(),
            report: Report::default(),
            sent: Vec::new(),
        }
    }

    /// What decisions rest on.
    pub(super) const fn view(&self) -> View<'_> {
        View { config: &self.config, desired: &self.desired, locals: &self.locals, tables: &self.tables }
    }

    pub(super) const fn plan(&self, now: Time) -> Plan<'_> {
        Plan { view: self.view(), reads: &self.reads, episodes: &self.episodes, now }
    }

    /// Holds removals, or lets them go on. While they are held, what stands and nothing desires stays where it is; what is
    /// desired is made all the same, and drift is repaired.
    pub fn hold_removals(&mut self, held: bool) {
        self.desired.removals_held = held;
    }

    /// What to do next. The caller hands in the events that have come before each call, so that a decision rests on all that
    /// is known.
    pub fn next(&mut self, now: Time) -> Effect {
        if !self.desired.known {
            return Effect::Rest(now + self.config.resync);
        }
        // One at a time: a period that is shorter than the reading takes must not start it over again and again.
        if self.reads.resync_started.is_none() && self.reads.resync_at.is_some_and(|at| at <= now) {
            self.resync("periodic", now);
        }
        for key in self.episodes.take_rested(now) {
            self.tables.wake(&key);
        }
        self.poll(now);
        if let Some(read) = self.next_query(now) {
            return self.read(read);
        }
        // Reads that failed rest for a moment: until they are made nothing is judged, but what is known can be acted on.
        if self.reads.only_rows_left() {
            self.confirm_writes(now);
            self.judge_drift(now);
        }
        self.sent = if self.reads.first_outstanding() { Vec::new() } else { self.plan(now).next() };
        if !self.sent.is_empty() {
            self.reads.follow_inner();
            return Effect::Apply(self.sent.iter().map(|planned| planned.op.clone()).collect());
        }
        if self.reads.follow_inner()
            && let Some(read) = self.next_query(now)
        {
            return self.read(read);
        }
        if let Some(slice) = self.next_slice(false, now) {
            return self.read(slice);
        }
        self.finish_round(now);
        if self.is_gone() {
            return Effect::Gone;
        }
        let due = [self.reads.resync_at, self.episodes.next_at(now), self.reads.next_look(), self.reads.poll_at];
        Effect::Rest(due.into_iter().flatten().min().unwrap_or(now + self.config.resync))
    }

    fn read(&mut self, (query, cause): (Query, ReadCause)) -> Effect {
        self.reads.asked = Some((query.clone(), cause));
        Effect::Read(query)
    }

    /// Looks again at devices with settings that change without a word: those below `/proc/sys/net`.
    fn poll(&mut self, now: Time) {
        // One at a time, like a resync.
        if self.reads.poll_at.take_if(|at| *at <= now).is_none() {
            return;
        }
        let polled = |id: &LinkId| matches!(id, LinkId::Bridge(_) | LinkId::Vxlan(_));
        for (ifindex, _) in self.tables.by_index.iter().filter(|(_, id)| polled(id)) {
            self.reads.link(LinkRef::Index(*ifindex), ReadCause::Foreign);
        }
    }

    /// Nothing is desired, and nothing of ours is left.
    fn is_gone(&self) -> bool {
        let nothing_left = match self.config.home {
            Home::Overlay(_) => matches!(self.tables.netns, Netns::Absent | Netns::Foreign),
            Home::Host { .. } => {
                let ours = self
                    .tables
                    .links
                    .iter()
                    .any(|(_, sides)| sides.observed.as_ref().is_some_and(|l| !self.config.adopts(l)));
                // Of what could not be read yet something may be left.
                let read = matches!(self.tables.netns, Netns::Ours(_)) && self.reads.is_empty();
                read && !ours && self.tables.addresses.in_sync() && self.tables.nft.in_sync()
            }
        };
        self.desired.spec.is_none() && nothing_left
    }

    /// Whether the answer that is awaited shows all links.
    pub(super) fn asked_all_links(&self) -> bool {
        matches!(self.reads.asked, Some((Query::Links, _)))
    }

    /// Reads everything again: the safety net, and the answer to lost events.
    pub fn resync(&mut self, reason: &'static str, now: Time) {
        self.reads.resync_at = Some(now + self.config.resync);
        self.reads.resync_started.get_or_insert(now);
        self.report.notes.push(Note::Resync { reason });
        self.reads.netns.get_or_insert(ReadCause::Foreign);
        if matches!(self.tables.netns, Netns::Ours(_)) {
            self.reads.everything(reason == "periodic");
            self.read_all_rules(ReadCause::Foreign);
            self.reads.barriers = self.config.home.is_host();
        }
        for id in self.locals.by_id.keys() {
            self.reads.inner(id.clone(), ReadCause::Foreign);
        }
    }

    /// What there is to report since the last call, in order.
    pub fn take_notes(&mut self) -> Vec<Note> {
        std::mem::take(&mut self.report.notes)
    }

    /// Everything is read, nothing is left to send that could be sent now.
    fn finish_round(&mut self, now: Time) {
        self.episodes.may_be_right(&Key::Netns);
        for key in self.tables.take_agreed(!self.episodes.is_empty()) {
            self.episodes.may_be_right(&key);
        }
        let view = View { config: &self.config, desired: &self.desired, locals: &self.locals, tables: &self.tables };
        self.episodes.close_where(|key| view.difference(key).is_none(), |key| !view.unreadable(key));
        if let Some(started) = self.reads.resync_started.take() {
            self.report.notes.push(Note::Resynced { took: now.since(started) });
            self.reads.resync_at = Some(now + self.config.resync);
        }
        // Networks that start together are read again one after the other.
        let share = u32::try_from(stable_hash(self.config.name.as_str().as_bytes()) % 256).unwrap_or_default();
        self.reads.resync_at.get_or_insert(now + self.config.resync / 4 + self.config.resync * 3 / 4 * share / 256);
        self.reads.poll_at.get_or_insert(now + self.config.resync / POLLS);
        if self.in_sync() {
            self.report.applied_revision = self.report.revision;
            if let Some(since) = self.report.waiting_since.take() {
                self.report.notes.push(Note::Applied { revision: self.report.revision, took: now.since(since) });
            }
        }
    }
}
