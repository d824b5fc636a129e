//! What the HTTP pages show.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::network::Shared;
use crate::{
    desired::{Counts, HeldRemovals},
    http::Pages,
    metrics::{Metrics, as_gauge, unix_now},
};

/// A director that has not turned for so long does not turn.
const STUCK: Duration = Duration::from_secs(30);

/// The pages of an agent.
#[derive(Debug)]
pub(super) struct AgentPages {
    shared: Arc<Shared>,
    state: Mutex<State>,
    scrape: Mutex<()>,
}

#[derive(Debug)]
struct State {
    turned: Instant,
    snapshot: bool,
    revision: i64,
    /// Records whose removal is held; a network of which that is not known counts as one.
    held: u64,
    /// Blocked records of the store-wide stage by kind and reason.
    blocked: BTreeMap<(&'static str, &'static str), i64>,
}

impl AgentPages {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let state = State { turned: Instant::now(), snapshot: false, revision: 0, held: 0, blocked: BTreeMap::new() };
        Self { shared, state: Mutex::new(state), scrape: Mutex::new(()) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    /// The director turns.
    pub(super) fn turned(&self) {
        self.state().turned = Instant::now();
    }

    /// etcd answered, with this revision; and whether it answers every watch.
    pub(super) fn contact(&self, revision: i64, connected: bool) {
        self.metrics().etcd_connected.set(i64::from(connected));
        self.metrics().etcd_last_contact.set(unix_now());
        self.metrics().etcd_revision.set(revision.max(self.metrics().etcd_revision.get()));
    }

    /// The store was listed as of this revision, which is lower than before where the store went back.
    pub(super) fn listed(&self, revision: i64) {
        self.metrics().etcd_revision.set(revision);
    }

    /// etcd does not answer.
    pub(super) fn disconnected(&self) {
        self.metrics().etcd_connected.set(0);
    }

    /// The store was listed, or is about to be, for this reason.
    pub(super) fn relist(&self, reason: &str) {
        self.metrics().relists.with_label_values(&[reason]).inc();
    }

    /// The store was compared as a whole.
    pub(super) fn audited(&self) {
        self.metrics().last_audit.set(unix_now());
    }

    /// How far the store-wide stage has heard, and whether it knows all records.
    pub(super) fn heard(&self, complete: bool, revision: i64) {
        let mut state = self.state();
        state.revision = revision;
        state.snapshot = complete;
    }

    /// What the store-wide stage counts.
    pub(super) fn counted(&self, counts: &Counts) {
        let metrics = self.metrics();
        metrics.pending.set(as_gauge(counts.pending as u64));
        metrics.conflicts.set(as_gauge(counts.conflicts as u64));
        metrics.rejected.reset();
        for (reason, count) in &counts.rejected {
            metrics.rejected.with_label_values(&[reason.as_str()]).set(as_gauge(*count as u64));
        }
        let mut state = self.state();
        state.blocked.clear();
        for (reason, count) in &counts.blocked {
            // A network that is blocked as a whole would have been a namespace.
            state.blocked.insert(("netns", reason.as_str()), as_gauge(*count as u64));
        }
        // Its links are made, but what it asks of them does not get across.
        state.blocked.insert(("link", "mtu"), as_gauge(counts.excesses as u64));
    }

    /// The removals of records that are held.
    pub(super) fn held(&self, held: &[HeldRemovals]) {
        let records = |held: &HeldRemovals| held.records.max(1) as u64;
        self.state().held = held.iter().map(records).sum();
    }

    fn show(&self) {
        let (metrics, totals) = (self.metrics(), self.shared.board.totals());
        self.shared.board.show(metrics);
        let state = self.state();
        metrics.applied_revision.set(totals.behind.unwrap_or(state.revision).min(state.revision));
        metrics.removals_held.set(as_gauge(totals.held + state.held));
        metrics.blocked.reset();
        for ((kind, reason), count) in &state.blocked {
            metrics.blocked.with_label_values(&[kind, reason]).add(*count);
        }
        for ((kind, reason), count) in &totals.blocked_counts {
            metrics.blocked.with_label_values(&[kind.as_str(), reason]).add(as_gauge(*count));
        }
    }
}

impl Pages for AgentPages {
    fn metrics(&self) -> Result<String, String> {
        // Gauges are set anew for each scrape, which another one must not see half done.
        let _turn = self.scrape.lock().unwrap_or_else(PoisonError::into_inner);
        self.show();
        self.metrics().expose().map_err(|error| error.to_string())
    }

    fn journal(&self) -> Result<String, String> {
        serde_json::to_string(&self.shared.recent.episodes()).map_err(|error| error.to_string())
    }

    fn healthy(&self) -> Result<(), String> {
        let idle = self.state().turned.elapsed();
        if idle > STUCK {
            return Err(format!("the director has not turned for {idle:?}"));
        }
        match self.shared.board.stuck() {
            Some(network) => Err(format!("the thread of network {network} does not turn")),
            None => Ok(()),
        }
    }

    fn ready(&self) -> Result<(), String> {
        if !self.state().snapshot {
            return Err("no complete snapshot of etcd yet".to_owned());
        }
        let totals = self.shared.board.totals();
        if totals.unsettled > 0 {
            return Err(format!("{} of {} networks are not settled", totals.unsettled, totals.networks));
        }
        Ok(())
    }
}
