//! What waits for a network. Changes of one object coalesce, so that the box never holds more than the network has.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{
    desired::{EndpointSpec, NetworkSpec, Update},
    engine::Time,
    model::EndpointId,
};

/// More paths than this are not remembered one by one.
const MOST_PATHS: usize = 1024;

/// An update of so many endpoints stays as it is, …
const LARGE: usize = 1024;
/// … as long as there are no more updates than this.
const MOST_UPDATES: usize = 32;

/// Changes of one network's desired side, newest state of each object.
#[derive(Debug)]
struct Pending {
    revision: i64,
    received: Time,
    spec: Option<Option<Arc<NetworkSpec>>>,
    endpoints: Endpoints,
}

/// Endpoints that changed.
#[derive(Debug)]
enum Endpoints {
    /// Of one update, each once.
    Listed(Vec<(EndpointId, Option<EndpointSpec>)>),
    /// Of several updates.
    Merged(BTreeMap<EndpointId, Option<EndpointSpec>>),
}

impl Pending {
    fn new(update: Update, received: Time) -> Self {
        let Update { revision, spec, endpoints } = update;
        Self { revision, received, spec, endpoints: Endpoints::Listed(endpoints) }
    }

    fn into_update(self) -> (Update, Time) {
        let endpoints = self.endpoints.into_vec();
        (Update { revision: self.revision, spec: self.spec, endpoints }, self.received)
    }

    fn stays(&self) -> bool {
        !matches!(self.spec, Some(None))
    }

    /// Whether a change after this one can become a part of it.
    fn takes(&self, spec: &Option<Option<Arc<NetworkSpec>>>) -> bool {
        spec.is_none() || (self.stays() && matches!(spec, Some(Some(_))))
    }

    fn is_large(&self) -> bool {
        matches!(&self.endpoints, Endpoints::Listed(list) if list.len() >= LARGE)
    }

    /// Takes in a later change: what is newer replaces what is older, object by object.
    fn merge(&mut self, later: Self) {
        self.revision = later.revision;
        self.spec = later.spec.or(self.spec.take());
        let before = std::mem::replace(&mut self.endpoints, Endpoints::Listed(Vec::new()));
        let mut merged = match before {
            Endpoints::Merged(merged) => merged,
            Endpoints::Listed(list) => list.into_iter().collect(),
        };
        merged.extend(later.endpoints.into_vec());
        self.endpoints = Endpoints::Merged(merged);
    }
}

impl Endpoints {
    fn into_vec(self) -> Vec<(EndpointId, Option<EndpointSpec>)> {
        match self {
            Self::Listed(list) => list,
            Self::Merged(merged) => merged.into_iter().collect(),
        }
    }
}

/// All that a network takes out at once.
#[derive(Debug, Default)]
pub(super) struct Work {
    /// In order, each with when its first watch event was received.
    pub(super) updates: Vec<(Update, Time)>,
    /// Paths below the namespace roots that changed; `None` when there were too many to tell.
    pub(super) paths: Option<BTreeSet<PathBuf>>,
    pub(super) stop: bool,
    /// Removals are held.
    pub(super) hold: bool,
    /// How many times something was put in, ever.
    pub(super) posted: u64,
}

#[derive(Debug, Default)]
struct State {
    // A network that is dropped and comes back starts anew: what comes after a drop does not merge with what was before.
    pending: Vec<Pending>,
    paths: Option<BTreeSet<PathBuf>>,
    stop: bool,
    hold: bool,
    /// Updates stay in the box.
    shut: bool,
    closed: bool,
    posted: u64,
}

impl State {
    /// Large updates stay as they are, for the network is about to take them; small ones, and many, are merged.
    fn put(&mut self, pending: Pending) {
        let crowded = self.pending.len() >= MOST_UPDATES;
        let alone =
            |last: &Pending| !last.takes(&pending.spec) || (!crowded && (last.is_large() || pending.is_large()));
        if self.pending.last().is_none_or(alone) {
            self.pending.push(pending);
            return;
        }
        if let Some(last) = self.pending.last_mut() {
            last.merge(pending);
        }
        // Now as many as can be are one.
        if crowded {
            let mut merged: Vec<Pending> = Vec::new();
            for pending in std::mem::take(&mut self.pending) {
                match merged.last_mut() {
                    Some(last) if last.takes(&pending.spec) => last.merge(pending),
                    _ => merged.push(pending),
                }
            }
            self.pending = merged;
        }
    }
}

/// A network's mailbox.
pub(super) struct Mailbox {
    state: Mutex<State>,
    wake: Box<dyn Fn() + Send + Sync>,
}

impl fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Mailbox").field(&self.state).finish()
    }
}

impl Mailbox {
    /// A box; `wake` is called after something was put in. `shut`, updates stay in it until [`Mailbox::open`].
    pub(super) fn new(shut: bool, wake: impl Fn() + Send + Sync + 'static) -> Self {
        let state = State { paths: Some(BTreeSet::new()), shut, ..State::default() };
        Self { state: Mutex::new(state), wake: Box::new(wake) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn post(&self, put: impl FnOnce(&mut State)) -> bool {
        let mut state = self.state();
        if state.closed {
            return false;
        }
        put(&mut state);
        state.posted += 1;
        drop(state);
        (self.wake)();
        true
    }

    /// Puts a change in. Gives it back when the network has ended, because it was gone.
    pub(super) fn update(&self, update: Update, received: Time) -> Option<Update> {
        let mut update = Some(update);
        self.post(|state| {
            let Some(pending) = update.take().map(|update| Pending::new(update, received)) else { return };
            // A change of the whole that follows a drop, or replaces the same whole, makes what came before moot.
            if !pending.stays() {
                state.pending.clear();
            }
            state.put(pending);
        });
        update
    }

    /// Says that a path below a namespace root changed.
    pub(super) fn path(&self, path: PathBuf) -> bool {
        self.post(|state| {
            if let Some(paths) = &mut state.paths {
                paths.insert(path);
                if paths.len() > MOST_PATHS {
                    state.paths = None;
                }
            }
        })
    }

    /// Says that changes of paths were lost.
    pub(super) fn paths_lost(&self) -> bool {
        self.post(|state| state.paths = None)
    }

    /// Holds removals, or lets them go on.
    pub(super) fn hold(&self, hold: bool) {
        self.post(|state| state.hold = hold);
    }

    /// Updates may be taken out from now on.
    pub(super) fn open(&self) {
        self.post(|state| state.shut = false);
    }

    /// Asks the network to end and to leave everything in place.
    pub(super) fn stop(&self) {
        self.post(|state| state.stop = true);
    }

    /// How many times something was put in, ever.
    pub(super) fn posted(&self) -> u64 {
        self.state().posted
    }

    /// Takes everything out.
    pub(super) fn take(&self) -> Work {
        let mut state = self.state();
        let pending = if state.shut { Vec::new() } else { std::mem::take(&mut state.pending) };
        let updates = pending.into_iter().map(Pending::into_update);
        Work {
            updates: updates.collect(),
            paths: state.paths.replace(BTreeSet::new()),
            stop: state.stop,
            hold: state.hold,
            posted: state.posted,
        }
    }

    /// Closes the box if nothing is in it: from then on nothing can be put in. What has to be done before anybody can see it
    /// closed is done in `closing`.
    pub(super) fn close_if_empty(&self, closing: impl FnOnce()) -> bool {
        let mut state = self.state();
        state.closed = state.pending.is_empty();
        if state.closed {
            closing();
        }
        state.closed
    }

    /// Nothing can be put in any more.
    pub(super) fn is_closed(&self) -> bool {
        self.state().closed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update(revision: i64, endpoints: &[(&str, bool)], spec: Option<Option<Arc<NetworkSpec>>>) -> Update {
        let id = |name: &str| EndpointId { node: "n".parse().unwrap(), endpoint: name.parse().unwrap() };
        let remote = crate::desired::RemoteEndpoint {
            vni: 1.try_into().unwrap(),
            mac: crate::model::Mac::ZERO,
            ips: Vec::new(),
            vtep: std::net::Ipv4Addr::LOCALHOST.into(),
        };
        let state = |there: bool| there.then(|| EndpointSpec::Remote(remote.clone()));
        Update { revision, spec, endpoints: endpoints.iter().map(|(name, there)| (id(name), state(*there))).collect() }
    }

    #[test]
    fn changes_of_one_endpoint_coalesce_to_the_newest() {
        let mailbox = Mailbox::new(false, || ());
        for revision in 1..100 {
            mailbox.update(update(revision, &[("a", revision % 2 == 0)], None), Time::default());
        }
        let work = mailbox.take();
        assert_eq!(work.updates.len(), 1);
        assert_eq!(work.updates[0].0, update(99, &[("a", false)], None));
        assert_eq!(mailbox.take().updates.len(), 0);
    }

    #[test]
    fn large_updates_stay_as_they_are_until_there_are_many() {
        let mailbox = Mailbox::new(false, || ());
        let names: Vec<String> = (0..LARGE).map(|n| format!("e{n}")).collect();
        let all = |there: bool| names.iter().map(|name| (name.as_str(), there)).collect::<Vec<_>>();
        for revision in 1..=3 {
            mailbox.update(update(revision, &all(true), None), Time::default());
        }
        let revisions: Vec<i64> = mailbox.take().updates.iter().map(|(update, _)| update.revision).collect();
        assert_eq!(revisions, [1, 2, 3]);
        for revision in 1..200 {
            mailbox.update(update(revision, &all(revision % 2 == 0), None), Time::default());
        }
        let updates = mailbox.take().updates;
        assert!(updates.len() <= MOST_UPDATES, "{}", updates.len());
        let (last, _) = updates.last().unwrap();
        assert_eq!((last.revision, last.endpoints.iter().any(|(_, spec)| spec.is_some())), (199, false));
    }

    #[test]
    fn a_drop_is_never_merged_into_what_comes_after_it() {
        let mailbox = Mailbox::new(false, || ());
        let name = "n".parse().unwrap();
        let spec =
            NetworkSpec { name, segments: Vec::new(), spoof_guard: true, chains: std::collections::BTreeMap::new() };
        let spec = Arc::new(spec);
        mailbox.update(update(1, &[("a", true)], None), Time::default());
        mailbox.update(update(2, &[], Some(None)), Time::default());
        mailbox.update(update(3, &[("b", true)], Some(Some(spec.clone()))), Time::default());
        let revisions: Vec<i64> = mailbox.take().updates.iter().map(|(update, _)| update.revision).collect();
        assert_eq!(revisions, [2, 3]);
    }

    #[test]
    fn a_shut_box_gives_nothing_until_it_is_opened() {
        let mailbox = Mailbox::new(true, || ());
        mailbox.update(update(1, &[("a", true)], None), Time::default());
        assert_eq!(mailbox.take().updates.len(), 0);
        assert!(!mailbox.close_if_empty(|| ()), "what is in it is not lost");
        mailbox.update(update(2, &[("b", true)], None), Time::default());
        mailbox.open();
        assert_eq!(mailbox.take().updates[0].0, update(2, &[("a", true), ("b", true)], None));
    }

    #[test]
    fn a_closed_box_takes_nothing() {
        let mailbox = Mailbox::new(false, || ());
        mailbox.update(update(1, &[], None), Time::default());
        assert!(!mailbox.close_if_empty(|| ()));
        mailbox.take();
        assert!(mailbox.close_if_empty(|| ()));
        assert_eq!(mailbox.update(update(2, &[], None), Time::default()), Some(update(2, &[], None)));
    }
}
