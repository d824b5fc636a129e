//! When it is not taken from a store that something is gone.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{FREE, Withheld, memory::Trusted};
use crate::{
    desired::{Source, store::Store},
    model::Name,
    schema::{self, Change, Key, Kv, docker},
};

/// Why a store is in doubt. Closed: it stands in the status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Doubt {
    /// No network stands in it, and it has no identity.
    Empty,
    /// It had an identity and has none.
    IdentityLost,
    /// It has another identity.
    IdentityChanged,
    /// It is another cluster's.
    OtherCluster,
    /// Its revision went backwards.
    WentBack,
    /// One revision deleted everything.
    DeletedWhole,
}

impl Doubt {
    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Empty => "store_empty",
            Self::IdentityLost => "identity_lost",
            Self::IdentityChanged => "identity_changed",
            Self::OtherCluster => "other_cluster",
            Self::WentBack => "revision_went_back",
            Self::DeletedWhole => "deleted_whole",
        }
    }
}

/// What a listing says of the store as a whole.
#[derive(Debug)]
pub(super) struct Listed {
    pub(super) identity: Option<String>,
    pub(super) any_network: bool,
    pub(super) cluster: Option<u64>,
    pub(super) went_back: bool,
}

impl Trusted {
    /// Why what this listing lacks may not be gone; `knew` where there were networks.
    pub(super) fn doubts(&self, listed: &Listed, knew: bool) -> Option<Doubt> {
        let other_cluster = self.cluster.zip(listed.cluster).is_some_and(|(before, now)| before != now);
        match (&self.identity, &listed.identity) {
            (Some(before), Some(now)) if before != now => Some(Doubt::IdentityChanged),
            (Some(_), None) => Some(Doubt::IdentityLost),
            _ if other_cluster => Some(Doubt::OtherCluster),
            _ if listed.went_back => Some(Doubt::WentBack),
            (None, None) if knew && !listed.any_network => Some(Doubt::Empty),
            _ => None,
        }
    }
}

impl Store {
    /// The cluster that answers from now on.
    pub const fn hear_from(&mut self, cluster: u64) {
        self.guard.cluster = Some(cluster);
    }

    /// The edge saw the store go back, or become another one: the next listing is in doubt.
    pub const fn went_back(&mut self) {
        self.guard.rolled_back = true;
    }

    /// Why the store is in doubt, if it is.
    pub fn doubt(&self) -> Option<Doubt> {
        self.guard.doubt.map(|(doubt, ..)| doubt)
    }

    /// Judges a listing of a layout before it is taken over. `last` is the last revision that was heard of the layout. Before
    /// its first listing nothing is known that could be missing.
    pub(in crate::desired) fn judge(&mut self, source: Source, revision: i64, last: Option<i64>, records: &[Kv]) {
        if !self.listed.contains(&source) {
            return;
        }
        let went_back = std::mem::take(&mut self.guard.rolled_back) || last.is_some_and(|last| revision < last);
        let mut listed = Listed { identity: None, any_network: false, cluster: self.guard.cluster, went_back };
        let mut began = revision;
        for kv in records {
            match source {
                Source::Docker => listed.any_network |= self.docker_key(&kv.key).is_some(),
                Source::Native => match self.native_key(&kv.key) {
                    Ok(Key::Network(_)) => listed.any_network = true,
                    Ok(Key::Store) => {
                        let known = self.guard.trusted.identity.as_ref();
                        // What cannot be read says nothing new.
                        listed.identity = schema::store(&kv.key, &kv.value).ok().or_else(|| known.cloned());
                        if listed.identity.as_ref() != known {
                            began = kv.create_revision.min(revision);
                        }
                    }
                    _ => {}
                },
            }
        }
        let doubt = match source {
            Source::Native => {
                let knew = self.networks.values().any(|state| state.record.is_some());
                self.guard.trusted.doubts(&listed, knew)
            }
            // The identity stands in the native layout; here the revision tells, and what is left.
            Source::Docker => went_back.then_some(Doubt::WentBack),
        };
        self.guard.emptied = source == Source::Docker && !listed.any_network;
        let Some(doubt) = doubt else { return };
        if self.guard.doubt.is_none() || went_back {
            self.guard.doubt = Some((doubt, began, revision));
            // The revisions of another time say nothing any more.
            for held in self.guard.held.values_mut() {
                (held.since, held.heard) = (began, revision);
            }
            self.guard.unsure.values_mut().for_each(|unsure| unsure.since = began);
        }
    }

    /// Which deletes of a revision are held.
    pub(in crate::desired) fn withheld(&mut self, revision: i64, changes: &[Change]) -> Withheld {
        let deletes = || changes.iter().filter(|change| matches!(change, Change::Delete { .. })).map(Change::key);
        if deletes().any(|key| matches!(self.native_key(key), Ok(Key::Store))) {
            self.guard.identity_deleted = revision;
        }
        // A few keys are always intent, but not as the rest of a revision that deletes all.
        let whole = deletes().next().is_some() && self.deletes_all(revision, changes);
        if whole {
            self.guard.doubt.get_or_insert((Doubt::DeletedWhole, revision, revision));
            return Withheld::Everything(Doubt::DeletedWhole);
        }
        if deletes().nth(FREE - 1).is_none() {
            return Withheld::Nothing;
        }
        // To delete a network is intent, and its endpoints go with it.
        let dropped = |network: &Name| deletes().any(|key| self.network_of(key) == Some((network.clone(), false)));
        let mut gone: BTreeMap<Name, usize> = BTreeMap::new();
        for key in deletes() {
            if let Some((network, true)) = self.network_of(key).filter(|_| self.in_force(key)) {
                *gone.entry(network).or_default() += 1;
            }
        }
        gone.retain(|network, _| !dropped(network));
        for change in changes {
            // What comes in the same revision may be what moved.
            if let Change::Put(kv) = change
                && kv.create_revision == revision
                && let Some((network, true)) = self.network_of(&kv.key)
                && let Some(gone) = gone.get_mut(&network)
            {
                *gone = gone.saturating_sub(1);
            }
        }
        self.beyond(&gone)
    }

    /// Which of these removals of endpoints, counted by network, are more than may go at once.
    pub(super) fn beyond(&self, gone: &BTreeMap<Name, usize>) -> Withheld {
        let most = usize::from(self.config.max_removal);
        let beyond = |gone: usize, of: usize| gone >= FREE && gone.saturating_mul(100) > of.saturating_mul(most);
        let size = |network: &Name| self.networks.get(network).map_or(0, |state| state.behind.total());
        let all = || self.networks.values().map(|state| state.behind.total()).sum();
        let networks = gone.iter().filter(|(_, gone)| **gone > 0);
        let held = if beyond(gone.values().sum(), all()) {
            networks.map(|(network, _)| network.clone()).collect()
        } else {
            let networks = networks.filter(|(network, gone)| beyond(**gone, size(network)));
            networks.map(|(network, _)| network.clone()).collect::<std::collections::BTreeSet<_>>()
        };
        if held.is_empty() { Withheld::Nothing } else { Withheld::Endpoints(held) }
    }

    /// Whether a revision deletes all there is: the store's identity with everything else, or all networks, all nodes, or both,
    /// unless it was the only one of its kind.
    fn deletes_all(&self, revision: i64, changes: &[Change]) -> bool {
        let (mut networks, mut nodes, mut others) = (0, 0, 0);
        let (mut kept, mut docker, mut docker_endpoints) = (false, 0, 0);
        for change in changes {
            let Change::Delete { key, .. } = change else {
                kept = true;
                continue;
            };
            match (self.source_of(key), self.native_key(key), self.docker_key(key)) {
                // What never was in force is not missed.
                _ if self.held_at(key).is_none() => {}
                (Source::Docker, _, Some(docker::Key::Endpoint { .. })) => docker_endpoints += 1,
                (Source::Docker, _, Some(_)) => docker += 1,
                (Source::Native, Ok(Key::Network(_)), _) => networks += 1,
                (Source::Native, Ok(Key::Node(_)), _) => nodes += 1,
                (Source::Native, Ok(Key::Endpoint { .. }), _) => others += 1,
                _ => {}
            }
        }
        if self.guard.identity_deleted == revision && networks + nodes + others > 0 {
            return true;
        }
        if kept || self.config.max_removal >= 100 {
            return false;
        }
        // Held ones do not stand in the store any more.
        let stands = |modified: i64| modified > 0;
        let networks_left = || {
            let records = self.networks.iter().filter(|(name, _)| !self.is_docker(name));
            records.filter(|(_, s)| s.record.as_ref().is_some_and(|held| stands(held.modified))).count() > networks
        };
        let nodes_left = || {
            let records = self.nodes.values().filter_map(|state| state.record.as_ref());
            records.filter(|held| stands(held.modified)).count() > nodes
        };
        let docker_left = || self.docker.keys().count() > docker + docker_endpoints;
        (networks + nodes > 1 && networks > 0 && !networks_left() && (networks > 1 || !nodes_left()))
            || (nodes > 1 && !nodes_left())
            || (docker > 0 && docker_endpoints > 0 && !docker_left())
    }
}
