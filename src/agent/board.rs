//! Where every network stands, as its thread last said: what the pages show.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{
    engine::{Kind, Summary},
    metrics::{Metrics, as_gauge},
    model::Name,
};

/// A turn that takes longer than this does not turn.
const STUCK: Duration = Duration::from_secs(120);

/// One network's state.
#[derive(Debug, Default)]
struct Entry {
    summary: Summary,
    /// It has come to rest at least once.
    settled: bool,
    posted: u64,
    handled: u64,
    busy_since: Option<Instant>,
    /// What it is called, where that is not what it goes by.
    shown: Option<Name>,
}

/// The board.
#[derive(Debug, Default)]
pub(super) struct Board {
    entries: Mutex<BTreeMap<Name, Entry>>,
    /// All that is desired is known. Until then nothing is in sync with it, whatever was told so far.
    known: AtomicBool,
}

/// All networks together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    /// Networks on this node, besides what the host itself has for them.
    pub(super) networks: usize,
    /// Those that are in sync.
    pub(super) in_sync: usize,
    /// How many, the host's own counted, are not in sync.
    pub(super) lagging: usize,
    /// The same by name, each with the reason in words.
    pub(super) lagging_networks: Vec<(Name, String)>,
    /// How many, the host's own counted, have never come to rest.
    pub(super) unsettled: usize,
    /// The lowest revision that a network has applied which was told of newer ones; `None` when none was.
    pub(super) behind: Option<i64>,
    /// Objects that cannot be made, with their network.
    pub(super) blocked: Vec<(Name, crate::engine::Blocked)>,
    /// How many there are by kind and reason; of many in one network only the first are named.
    pub(super) blocked_counts: BTreeMap<(Kind, &'static str), u64>,
    /// Observed objects by kind.
    pub(super) observed: BTreeMap<Kind, u64>,
    /// Objects whose removal is held.
    pub(super) held: u64,
}

impl Entry {
    /// It has applied all that was put in, and the kernel is so.
    const fn in_sync(&self) -> bool {
        self.summary.in_sync && self.handled >= self.posted
    }

    fn shown<'a>(&'a self, name: &'a Name) -> &'a Name {
        self.shown.as_ref().unwrap_or(name)
    }

    /// Why it is not in sync, in words.
    fn lags_because(&self) -> String {
        let summary = &self.summary;
        let drifted: u64 = summary.drifting.values().sum();
        if self.handled < self.posted {
            "has changes to take in".to_owned()
        } else if let Some(first) = summary.blocked.first() {
            let others = match summary.blocked_counts.values().sum::<u64>() {
                0 | 1 => String::new(),
                all => format!(", and {} more", all - 1),
            };
            format!("blocked: {}: {}{others}", first.object, first.reason)
        } else if drifted > 0 {
            format!("{drifted} drifted objects are being repaired")
        } else {
            "is being read or written".to_owned()
        }
    }
}

impl Board {
    fn entries(&self) -> MutexGuard<'_, BTreeMap<Name, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All that is desired was put in.
    pub(super) fn known(&self) {
        self.known.store(true, Ordering::Release);
    }

    /// The network is here from now on.
    pub(super) fn add(&self, name: &Name) {
        self.entries().insert(name.clone(), Entry::default());
    }

    /// Something was put in the network's mailbox.
    pub(super) fn posted(&self, name: &Name, posted: u64) {
        if let Some(entry) = self.entries().get_mut(name) {
            entry.posted = posted;
        }
    }

    /// What the network is called, if it is here.
    pub(super) fn named(&self, name: &Name, shown: Name) {
        if let Some(entry) = self.entries().get_mut(name) {
            entry.shown = (shown != *name).then_some(shown);
        }
    }

    /// The network's thread begins a turn. Returns what the network is called.
    pub(super) fn begin(&self, name: &Name) -> Name {
        let mut entries = self.entries();
        let Some(entry) = entries.get_mut(name) else { return name.clone() };
        entry.busy_since = Some(Instant::now());
        entry.shown(name).clone()
    }

    /// The network's thread ends a turn in which it had taken what was put in up to `handled`, and has come to rest with it
    /// or not.
    pub(super) fn end(&self, name: &Name, summary: Summary, rests: bool, handled: u64) {
        let mut entries = self.entries();
        let Some(entry) = entries.get_mut(name) else { return };
        entry.busy_since = None;
        entry.settled |= rests;
        entry.handled = handled;
        entry.summary = summary;
    }

    /// The network is not here any more.
    pub(super) fn remove(&self, name: &Name) {
        self.entries().remove(name);
    }

    /// A network whose thread does not turn.
    pub(super) fn stuck(&self) -> Option<Name> {
        let entries = self.entries();
        let stuck = |entry: &Entry| entry.busy_since.is_some_and(|since| since.elapsed() > STUCK);
        entries.iter().find(|(_, entry)| stuck(entry)).map(|(name, entry)| entry.shown(name).clone())
    }

    /// Sums up.
    pub(super) fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        let known = self.known.load(Ordering::Acquire);
        for (name, entry) in self.entries().iter() {
            let in_sync = known && entry.in_sync();
            let network = *name != Name::host();
            totals.networks += usize::from(network);
            totals.in_sync += usize::from(network && in_sync);
            totals.lagging += usize::from(!in_sync);
            if !in_sync {
                totals.lagging_networks.push((entry.shown(name).clone(), entry.lags_because()));
            }
            totals.unsettled += usize::from(!entry.settled);
            let (applied, told) = (entry.summary.applied_revision, entry.summary.revision);
            // One that has applied all that it was told is not behind, whatever somebody else does to it.
            if applied < told || entry.handled < entry.posted {
                totals.behind = Some(totals.behind.map_or(applied, |behind| behind.min(applied)));
            }
            totals.held += entry.summary.held;
            let shown = entry.shown(name);
            totals.blocked.extend(entry.summary.blocked.iter().map(|blocked| (shown.clone(), blocked.clone())));
            for (of, count) in &entry.summary.blocked_counts {
                *totals.blocked_counts.entry(*of).or_default() += count;
            }
            for (kind, (_, observed)) in &entry.summary.objects {
                *totals.observed.entry(*kind).or_default() += observed;
            }
        }
        totals
    }

    /// Sets the gauges that tell where the networks stand.
    pub(super) fn show(&self, metrics: &Metrics) {
        let known = self.known.load(Ordering::Acquire);
        let entries = self.entries();
        for gauges in [&metrics.in_sync, &metrics.desired, &metrics.observed] {
            gauges.reset();
        }
        let (mut drifting, mut damped) = (BTreeMap::new(), BTreeMap::new());
        for (name, entry) in entries.iter() {
            let name = entry.shown(name);
            let in_sync = known && entry.in_sync();
            metrics.in_sync.with_label_values(&[name.as_str()]).set(i64::from(in_sync));
            for (kind, (desired, observed)) in &entry.summary.objects {
                let labels = [name.as_str(), kind.as_str()];
                metrics.desired.with_label_values(&labels).set(as_gauge(*desired));
                metrics.observed.with_label_values(&labels).set(as_gauge(*observed));
            }
            add(&mut drifting, &entry.summary.drifting);
            add(&mut damped, &entry.summary.damped);
        }
        Metrics::set_by_kind(&metrics.drifting, &drifting);
        Metrics::set_by_kind(&metrics.damped, &damped);
    }
}

fn add(sums: &mut BTreeMap<Kind, u64>, counts: &BTreeMap<Kind, u64>) {
    for (kind, count) in counts {
        *sums.entry(*kind).or_default() += count;
    }
}
