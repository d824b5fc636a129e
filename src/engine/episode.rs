//! What is going on with single objects: one [`Episode`] for each that somebody else changed, that an operation of ours has not
//! yet been seen on, or whose last operation or read failed. An object that is as it should be, and was left alone, has none.
//!
//! Each step of a round takes out the keys that await it, and a retry is found by its time: no round passes over all episodes,
//! however many objects fail.
//!
//! **Invariant:** a fight slows nothing but the object of it (`a_fight_over_one_row_is_damped_and_slows_nothing_else`).

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ops::Bound,
    time::Duration,
};

use super::{
    interface::{Failure, FailureKind},
    key::{Key, Kind},
    report::Blocked,
    time::Time,
};
use crate::retry::Retry;

const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(60);

/// More foreign rewrites of one object than this …
const FIGHT_REWRITES: usize = 10;
/// … within this time are a fight, which is damped.
const FIGHT_WINDOW: Duration = Duration::from_secs(10);

/// What somebody else did to an object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Drift {
    #[default]
    None,
    /// It was changed; whether it drifted is judged when all that is suspected was read.
    Suspected,
    /// It drifted and is not repaired yet; the first sign came then.
    Open(Time),
}

/// What became of our last operation on an object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Write {
    /// It shows in the tables.
    #[default]
    Known,
    /// What shows when the object is read is not somebody else's doing.
    Doubtful,
    /// The same, and nothing more is sent before it was read.
    Unread,
}

/// An object whose last operation or read failed: it is tried again on its own, 100 ms to 60 s later, and holds up nothing else.
#[derive(Debug)]
struct Failing {
    retry: Retry,
    at: Time,
    failure: Failure,
}

/// Foreign rewrites of one object.
#[derive(Debug, Default)]
struct Fight {
    times: VecDeque<Time>,
    /// Set once it is damped.
    retry: Option<Retry>,
    damped_until: Time,
}

impl Fight {
    /// When it will be over if nothing more happens.
    fn over_at(&self) -> Time {
        let last = self.times.back().copied().unwrap_or_default();
        (if self.retry.is_some() { last.max(self.damped_until) } else { last }) + FIGHT_WINDOW
    }
}

/// What is going on with one object.
#[derive(Debug, Default)]
struct Episode {
    drift: Drift,
    write: Write,
    /// So many acknowledged operations in a row have not made it what it should be.
    idle_writes: u32,
    failing: Option<Box<Failing>>,
    fight: Option<Box<Fight>>,
}

impl Episode {
    fn is_over(&self) -> bool {
        self.drift == Drift::None
            && self.write == Write::Known
            && self.idle_writes == 0
            && self.failing.is_none()
            && self.fight.is_none()
    }

    fn lasting_failure(&self) -> Option<FailureKind> {
        let kind = self.failing.as_ref().map(|failing| failing.failure.kind);
        kind.filter(|kind| !matches!(kind, FailureKind::Resources | FailureKind::Torn))
    }

    fn is_damped(&self) -> bool {
        self.fight.as_ref().is_some_and(|fight| fight.retry.is_some())
    }

    /// Until when the object rests.
    fn rests_until(&self) -> Time {
        let failing = self.failing.as_ref().map(|failing| failing.at);
        failing.max(self.fight.as_ref().map(|fight| fight.damped_until)).unwrap_or_default()
    }
}

/// A step of a round that an episode awaits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    /// Whether what was written is as desired is to be seen.
    Confirm,
    /// Whether a suspect drifted.
    Judge,
    /// Whether what became of a write is known.
    Forget,
    /// Whether the object is right again.
    Close,
}

/// Which failures are blocking, of which kinds of objects, and how many.
pub(super) type BlockedCounts = BTreeMap<(Kind, &'static str), u64>;

/// The episodes of one network, by object.
#[derive(Debug, Default)]
pub(super) struct Episodes {
    by_key: BTreeMap<Key, Episode>,
    awaiting: BTreeMap<Step, BTreeSet<Key>>,
    /// When objects that rest may be tried again.
    rests: BTreeMap<Time, BTreeSet<Key>>,
    /// When fights are over.
    fights: BTreeSet<(Time, Key)>,
    /// The first sign of foreign change since the last judgement.
    first_sign: Option<Time>,
    open: BTreeMap<Kind, u64>,
    damped: BTreeMap<Kind, u64>,
    blocked: BlockedCounts,
}

/// Counts one more, or one less.
fn count<K: Ord>(counts: &mut BTreeMap<K, u64>, key: K, there: bool) {
    let count = counts.entry(key).or_default();
    *count = if there { *count + 1 } else { count.saturating_sub(1) };
}

impl Episodes {
    /// Changes an object's episode; the only way to, so that what is counted and awaited follows.
    fn edit<T>(&mut self, key: &Key, change: impl FnOnce(&mut Episode) -> T) -> T {
        let mut episode = self.by_key.remove(key).unwrap_or_default();
        let before = (episode.drift, episode.is_damped(), episode.lasting_failure(), episode.rests_until());
        let result = change(&mut episode);
        let after = (episode.drift, episode.is_damped(), episode.lasting_failure(), episode.rests_until());
        let kind = key.kind();
        for (state, there) in [(before, false), (after, true)] {
            if matches!(state.0, Drift::Open(_)) {
                count(&mut self.open, kind, there);
            }
            if state.1 {
                count(&mut self.damped, kind, there);
            }
            if let Some(failure) = state.2 {
                count(&mut self.blocked, (kind, failure.as_str()), there);
            }
        }
        if before.3 != after.3 {
            if let Some(keys) = self.rests.get_mut(&before.3) {
                keys.remove(key);
                if keys.is_empty() {
                    self.rests.remove(&before.3);
                }
            }
            if after.3 > Time::default() {
                self.rests.entry(after.3).or_default().insert(key.clone());
            }
        }
        if !episode.is_over() {
            self.by_key.insert(key.clone(), episode);
        }
        result
    }

    /// The same, where there is an episode.
    fn edit_known<T: Default>(&mut self, key: &Key, change: impl FnOnce(&mut Episode) -> T) -> T {
        if self.by_key.contains_key(key) { self.edit(key, change) } else { T::default() }
    }

    fn awaits(&mut self, step: Step, key: &Key) {
        self.awaiting.entry(step).or_default().insert(key.clone());
    }

    fn take(&mut self, step: Step) -> BTreeSet<Key> {
        self.awaiting.remove(&step).unwrap_or_default()
    }

    /// Whether nothing is going on.
    pub(super) fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }

    // ----- drift -----

    /// Somebody else changed this object; whether it drifted is judged later.
    pub(super) fn suspect(&mut self, key: Key) {
        let new = self.edit(&key, |episode| {
            let new = episode.write == Write::Known && !matches!(episode.drift, Drift::Suspected);
            if new && episode.drift == Drift::None {
                episode.drift = Drift::Suspected;
            }
            new
        });
        if new {
            self.awaits(Step::Judge, &key);
        }
    }

    /// What happened to these objects has another reason than a foreign hand on them.
    pub(super) fn absolve(&mut self, of: impl Fn(&Key) -> bool) {
        let suspects = self.take(Step::Judge);
        let (absolved, rest) = suspects.into_iter().partition(|key| of(key));
        self.awaiting.insert(Step::Judge, rest);
        let absolved: BTreeSet<Key> = absolved;
        for key in absolved {
            self.unsuspect(&key);
        }
    }

    fn unsuspect(&mut self, key: &Key) {
        self.edit_known(key, |episode| {
            if episode.drift == Drift::Suspected {
                episode.drift = Drift::None;
            }
        });
    }

    pub(super) fn has_suspects(&self) -> bool {
        self.awaiting.get(&Step::Judge).is_some_and(|suspects| !suspects.is_empty())
    }

    /// A suspect cannot be judged yet.
    pub(super) fn stays_suspect(&mut self, key: &Key) {
        self.edit(key, |episode| {
            if episode.drift == Drift::None {
                episode.drift = Drift::Suspected;
            }
        });
        self.awaits(Step::Judge, key);
    }

    /// Takes out the suspects, to be judged.
    pub(super) fn take_suspects(&mut self) -> BTreeSet<Key> {
        let suspects = self.take(Step::Judge);
        suspects.iter().for_each(|key| self.unsuspect(key));
        suspects
    }

    /// A sign of foreign change came.
    pub(super) fn signed(&mut self, now: Time) {
        self.first_sign.get_or_insert(now);
    }

    /// When the first sign since the last judgement came.
    pub(super) fn take_first_sign(&mut self) -> Option<Time> {
        self.first_sign.take()
    }

    /// The object drifted. How long it is left alone, when it is rewritten so often that this is a fight.
    pub(super) fn open(&mut self, key: &Key, since: Time, now: Time) -> Option<Duration> {
        let (before, over_at, pause) = self.edit(key, |episode| {
            episode.drift = Drift::Open(since);
            let fight = episode.fight.get_or_insert_default();
            let before = fight.over_at();
            fight.times.push_back(now);
            while fight.times.front().is_some_and(|first| now.since(*first) > FIGHT_WINDOW)
                || fight.times.len() > FIGHT_REWRITES + 1
            {
                fight.times.pop_front();
            }
            if fight.times.len() <= FIGHT_REWRITES && fight.retry.is_none() {
                return (before, fight.over_at(), None);
            }
            let retry = fight.retry.get_or_insert_with(|| Retry::new(FIRST_RETRY, LAST_RETRY, key.salt()));
            let pause = retry.delay();
            fight.damped_until = now + pause;
            (before, fight.over_at(), Some(pause))
        });
        self.fights.remove(&(before, key.clone()));
        self.fights.insert((over_at, key.clone()));
        self.awaits(Step::Close, key);
        pause
    }

    /// Forgets the fights that are over.
    pub(super) fn end_fights(&mut self, now: Time) {
        while self.fights.first().is_some_and(|(at, _)| *at <= now) {
            let Some((at, key)) = self.fights.pop_first() else { return };
            self.edit_known(&key, |episode| {
                if episode.fight.as_ref().is_some_and(|fight| fight.over_at() <= at) {
                    episode.fight = None;
                }
            });
        }
    }

    /// Ends an object's drift; the time of its first sign, when there was one.
    pub(super) fn close(&mut self, key: &Key) -> Option<Time> {
        self.edit_known(key, |episode| match episode.drift {
            Drift::Open(since) => {
                episode.drift = Drift::None;
                Some(since)
            }
            Drift::None | Drift::Suspected => None,
        })
    }

    pub(super) fn is_open(&self, key: &Key) -> bool {
        self.by_key.get(key).is_some_and(|episode| matches!(episode.drift, Drift::Open(_)))
    }

    // ----- our own writes -----

    /// An operation of ours went to this object, and it has to be read to know what came of it.
    pub(super) fn wrote(&mut self, key: Key) {
        self.edit(&key, |episode| episode.write = episode.write.max(Write::Doubtful));
        self.awaits(Step::Forget, &key);
    }

    /// The same, of an operation that was acknowledged: nothing more is sent to the object before it was read.
    pub(super) fn await_read(&mut self, key: Key) {
        self.edit(&key, |episode| episode.write = Write::Unread);
        self.awaits(Step::Confirm, &key);
        self.awaits(Step::Forget, &key);
    }

    pub(super) fn awaits_read(&self, key: &Key) -> bool {
        self.by_key.get(key).is_some_and(|episode| episode.write == Write::Unread)
    }

    /// Takes out what was written and has been read since.
    pub(super) fn take_confirmable(&mut self, unread: impl Fn(&Key) -> bool) -> BTreeSet<Key> {
        let (rest, keys): (BTreeSet<Key>, BTreeSet<Key>) = self.take(Step::Confirm).into_iter().partition(unread);
        if !rest.is_empty() {
            self.awaiting.insert(Step::Confirm, rest);
        }
        for key in &keys {
            self.edit_known(key, |episode| episode.write = episode.write.min(Write::Doubtful));
        }
        keys
    }

    /// What was written is as desired.
    pub(super) fn confirmed(&mut self, key: &Key) {
        self.edit_known(key, |episode| episode.idle_writes = 0);
    }

    /// One more acknowledged operation has not made the object what it should be: so many in a row.
    pub(super) fn count_idle_write(&mut self, key: &Key) -> u32 {
        self.awaits(Step::Close, key);
        self.edit(key, |episode| {
            episode.idle_writes += 1;
            episode.idle_writes
        })
    }

    /// Everything was read, except what is said to be still unknown: what shows from now on is somebody else's doing.
    pub(super) fn forget_writes(&mut self, unknown: impl Fn(&Key) -> bool) {
        for key in self.take(Step::Forget) {
            if unknown(&key) || self.awaits_read(&key) {
                self.awaits(Step::Forget, &key);
            } else {
                self.edit_known(&key, |episode| {
                    if episode.write == Write::Doubtful {
                        episode.write = Write::Known;
                    }
                });
            }
        }
    }

    // ----- failures -----

    /// Notes a failure, and gives when to try again.
    pub(super) fn failed(&mut self, key: &Key, failure: Failure, now: Time) -> Time {
        self.awaits(Step::Close, key);
        self.edit(key, |episode| {
            let failing = episode.failing.get_or_insert_with(|| {
                let retry = Retry::new(FIRST_RETRY, LAST_RETRY, key.salt());
                Box::new(Failing { retry, at: now, failure: failure.clone() })
            });
            failing.at = now + failing.retry.delay();
            failing.failure = failure;
            failing.at
        })
    }

    /// An object works again.
    pub(super) fn works(&mut self, key: &Key) {
        self.edit_known(key, |episode| episode.failing = None);
    }

    /// Why an object's last operation failed.
    pub(super) fn failure_kind(&self, key: &Key) -> Option<FailureKind> {
        self.by_key.get(key)?.failing.as_ref().map(|failing| failing.failure.kind)
    }

    // ----- all of them -----

    /// What is desired of the object changed: what it was fought over, lost or failed at before is moot.
    pub(super) fn desired_moved(&mut self, key: &Key) {
        self.edit_known(key, |episode| {
            episode.failing = None;
            episode.fight = None;
            if episode.drift == Drift::Suspected {
                episode.drift = Drift::None;
            }
        });
        if let Some(suspects) = self.awaiting.get_mut(&Step::Judge) {
            suspects.remove(key);
        }
    }

    /// Whether an object must be left alone for now: it failed, it is damped, or what was written is not read again yet and may be
    /// right already.
    pub(super) fn rests(&self, key: &Key, now: Time) -> bool {
        self.by_key.get(key).is_some_and(|episode| episode.write == Write::Unread || episode.rests_until() > now)
    }

    /// Takes out the objects that have rested long enough.
    pub(super) fn take_rested(&mut self, now: Time) -> Vec<Key> {
        let mut rested = Vec::new();
        while let Some(entry) = self.rests.first_entry().filter(|entry| *entry.key() <= now) {
            rested.extend(entry.remove());
        }
        rested
    }

    /// When the next object may be tried again. Those that may be tried already are waiting for something else.
    pub(super) fn next_at(&self, now: Time) -> Option<Time> {
        self.rests.range((Bound::Excluded(now), Bound::Unbounded)).next().map(|(at, _)| *at)
    }

    /// An object came to be as desired, or may have: whether that ends its episode is seen at the end of the round.
    pub(super) fn may_be_right(&mut self, key: &Key) {
        if self.by_key.contains_key(key) {
            self.awaits(Step::Close, key);
        }
    }

    /// Ends the episodes of objects that are right again: desired moved, or somebody else put them back.
    pub(super) fn close_where(&mut self, right: impl Fn(&Key) -> bool, works: impl Fn(&Key) -> bool) {
        for key in self.take(Step::Close) {
            if !right(&key) {
                continue;
            }
            let works = works(&key);
            self.edit_known(&key, |episode| {
                if matches!(episode.drift, Drift::Open(_)) {
                    episode.drift = Drift::None;
                }
                episode.idle_writes = 0;
                if works {
                    episode.failing = None;
                }
            });
        }
    }

    // ----- what there is to say of them -----

    pub(super) fn open_by_kind(&self) -> BTreeMap<Kind, u64> {
        self.open.iter().filter(|(_, count)| **count > 0).map(|(kind, count)| (*kind, *count)).collect()
    }

    pub(super) fn damped_by_kind(&self) -> BTreeMap<Kind, u64> {
        self.damped.iter().filter(|(_, count)| **count > 0).map(|(kind, count)| (*kind, *count)).collect()
    }

    /// How many objects cannot be made, by kind and reason.
    pub(super) fn blocked_counts(&self) -> BlockedCounts {
        self.blocked.iter().filter(|(_, count)| **count > 0).map(|(of, count)| (*of, *count)).collect()
    }

    /// The objects that cannot be made; a shortage that passes by itself is not counted.
    pub(super) fn blocked(&self) -> impl Iterator<Item = Blocked> {
        let any = self.blocked.values().any(|count| *count > 0);
        let episodes = any.then_some(&self.by_key).into_iter().flatten();
        episodes.filter(|(_, episode)| episode.lasting_failure().is_some()).filter_map(|(key, episode)| {
            let failure = &episode.failing.as_ref()?.failure;
            let (object, kind, reason) = (key.to_string(), key.kind(), failure.kind.as_str());
            Some(Blocked { object, kind, reason, message: failure.message.clone() })
        })
    }
}
