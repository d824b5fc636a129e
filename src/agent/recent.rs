//! The last drifts of this host and what became of them, in memory: what `vtepd journal` shows.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use crate::{
    engine::Note,
    model::{Name, Timestamp},
};

/// So many are kept; the oldest go first.
const KEPT: usize = 1000;

/// One episode: somebody else changed an object, and what came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Episode {
    /// When it was noticed, RFC 3339, UTC.
    pub time: String,
    /// The network's name; `(host)` is what the host itself has for the way outside.
    pub network: String,
    /// The kind of object, as in metrics.
    pub kind: String,
    /// Which object.
    pub object: String,
    /// How it differed: `missing`, `changed` or `unexpected`.
    pub reason: String,
    /// What has become of it.
    pub outcome: Outcome,
    /// From the first sign to the repair, in microseconds; only where it was repaired.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub micros: Option<u64>,
}

/// What became of a drift.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Nothing yet; or it came right without an operation of ours.
    Open,
    /// An operation of ours ended it.
    Repaired,
    /// Somebody rewrites it again and again: its repairs are spaced out.
    Damped,
}

impl Outcome {
    /// Its name, as in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Repaired => "repaired",
            Self::Damped => "damped",
        }
    }
}

/// The last episodes.
#[derive(Debug, Default)]
pub(super) struct Recent {
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    episodes: VecDeque<Episode>,
    /// How many went to make room.
    gone: usize,
    /// The number of the last open episode of an object, by network and object.
    open: BTreeMap<(String, String), usize>,
}

impl Recent {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what a network's engine tells.
    pub(super) fn note(&self, network: &Name, note: &Note) {
        match note {
            Note::Drift { kind, reason, object } => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
                self.kept().add(Episode {
                    time: Timestamp::since_epoch(now).to_string(),
                    network: network.to_string(),
                    kind: kind.as_str().to_owned(),
                    object: object.clone(),
                    reason: reason.as_str().to_owned(),
                    outcome: Outcome::Open,
                    micros: None,
                });
            }
            Note::Repaired { took, object, .. } => {
                let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
                self.kept().end(network, object, Outcome::Repaired, Some(micros));
            }
            Note::Damped { object, .. } => self.kept().end(network, object, Outcome::Damped, None),
            _ => {}
        }
    }

    /// The episodes that are kept, oldest first.
    pub(super) fn episodes(&self) -> Vec<Episode> {
        self.kept().episodes.iter().cloned().collect()
    }
}

impl Kept {
    fn add(&mut self, episode: Episode) {
        if self.episodes.len() == KEPT {
            let number = self.gone;
            self.gone += 1;
            if let Some(first) = self.episodes.pop_front()
                && let key = (first.network, first.object)
                && self.open.get(&key) == Some(&number)
            {
                self.open.remove(&key);
            }
        }
        self.open.insert((episode.network.clone(), episode.object.clone()), self.gone + self.episodes.len());
        self.episodes.push_back(episode);
    }

    fn end(&mut self, network: &Name, object: &str, outcome: Outcome, micros: Option<u64>) {
        let key = (network.to_string(), object.to_owned());
        let Some(number) = self.open.get(&key).copied() else { return };
        if outcome == Outcome::Repaired {
            self.open.remove(&key);
        }
        if let Some(episode) = number.checked_sub(self.gone).and_then(|at| self.episodes.get_mut(at)) {
            episode.outcome = outcome;
            episode.micros = micros;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{DriftReason, Kind};

    fn drift(object: &str) -> Note {
        Note::Drift { kind: Kind::Fdb, reason: DriftReason::Missing, object: object.to_owned() }
    }

    fn repaired(object: &str) -> Note {
        Note::Repaired { kind: Kind::Fdb, took: Duration::from_micros(7), object: object.to_owned() }
    }

    #[test]
    fn a_repair_belongs_to_the_last_drift_of_its_object_in_its_network() {
        let (recent, n, m) = (Recent::default(), "n".parse().unwrap(), "m".parse().unwrap());
        recent.note(&n, &drift("a"));
        recent.note(&m, &drift("a"));
        recent.note(&n, &repaired("a"));
        recent.note(&n, &drift("a"));
        recent.note(&n, &repaired("never seen"));
        let seen: Vec<_> = recent.episodes().into_iter().map(|e| (e.network, e.outcome, e.micros)).collect();
        let open = |network: &str| (network.to_owned(), Outcome::Open, None);
        assert_eq!(seen, [("n".to_owned(), Outcome::Repaired, Some(7)), open("m"), open("n")]);
    }

    #[test]
    fn the_oldest_go_and_their_repairs_are_nobodys() {
        let (recent, n) = (Recent::default(), "n".parse().unwrap());
        for object in 0..KEPT + 10 {
            recent.note(&n, &drift(&object.to_string()));
        }
        recent.note(&n, &repaired("3"));
        recent.note(&n, &repaired("10"));
        let episodes = recent.episodes();
        assert_eq!((episodes.len(), episodes[0].object.as_str()), (KEPT, "10"));
        let done: Vec<_> = episodes.iter().filter(|e| e.outcome == Outcome::Repaired).collect();
        assert_eq!(done.len(), 1);
        let kept = recent.kept();
        assert_eq!(kept.open.len(), KEPT - 1);
    }
}
