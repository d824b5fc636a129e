//! Held records: how they stay, what they give way to, and when they go.

use std::collections::{BTreeMap, BTreeSet};

use super::{Doubt, HeldRemovals, HoldReason, Withheld};
use crate::{
    desired::{
        claims::Rank,
        docker, records,
        store::{Store, decode},
    },
    model::Name,
    schema::{Key, Kv, docker as docker_schema},
};

/// The create revision of a record that gives way to all others is above this. etcd's own stay far below.
const LAST: i64 = 1 << 61;
/// What a doubtful listing has that was not known before comes even after those.
const AFTER: i64 = 1 << 62;
/// The last revision of a held record that no record stands in the place of: below that of all that can be written.
const ABSENT: i64 = -1;

/// The held records of one network.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    pub(super) records: usize,
    /// An approval must name at least this revision.
    pub(super) since: i64,
    /// What was written after this revision does not give way.
    pub(super) heard: i64,
    pub(super) reason: HoldReason,
}

impl Withheld {
    /// Why the removal of such a record is held.
    fn reason(&self, network: Option<&(Name, bool)>) -> Option<HoldReason> {
        match (self, network) {
            (Self::Everything(doubt), Some(_)) => Some(HoldReason::Doubt(*doubt)),
            (Self::Endpoints(networks), Some((network, true))) if networks.contains(network) => {
                Some(HoldReason::MaxRemoval)
            }
            _ => None,
        }
    }
}

impl Store {
    /// The network that a record belongs to, and whether it is an endpoint of it; nodes belong to the host.
    pub(super) fn network_of(&self, whole: &[u8]) -> Option<(Name, bool)> {
        if let Some(key) = self.docker_key(whole) {
            return Some((key.network().clone(), matches!(key, docker_schema::Key::Endpoint { .. })));
        }
        match self.native_key(whole).ok()? {
            Key::Network(network) => Some((network, false)),
            Key::Endpoint { network, .. } => Some((network, true)),
            Key::Node(_) => Some((Name::host(), false)),
            Key::Status(_) | Key::Store | Key::Approval(_) => None,
        }
    }

    /// Whether a record is in force. Of Docker's endpoints, which are known here by their address, all count.
    pub(super) fn in_force(&self, whole: &[u8]) -> bool {
        match self.native_key(whole) {
            Ok(Key::Endpoint { network, id }) => {
                let endpoint = self.networks.get(&network).and_then(|state| state.endpoints.get(&id));
                endpoint.is_some_and(|endpoint| endpoint.standing.is_in_force())
            }
            Ok(Key::Network(network)) => self.networks.get(&network).is_some_and(|state| state.in_force),
            Ok(Key::Node(node)) => self.nodes.get(&node).is_some_and(|state| state.in_force),
            _ => self.docker_key(whole).is_some(),
        }
    }

    /// Whether a record is held.
    fn is_held(&self, whole: &[u8]) -> bool {
        self.held_at(whole).is_some_and(|(_, modified)| modified < 0)
    }

    /// Whether nothing stands in the place of a held record.
    fn is_absent(&self, whole: &[u8]) -> bool {
        self.held_at(whole).is_some_and(|(_, modified)| modified == ABSENT)
    }

    /// Takes it that a record is deleted as of a revision, or holds that. Returns whether anything changed.
    pub(in crate::desired) fn remove(&mut self, whole: &[u8], revision: i64, withheld: &Withheld) -> bool {
        if self.guard.held.is_empty() && *withheld == Withheld::Nothing {
            return self.delete(whole);
        }
        let network = self.network_of(whole);
        if self.is_held(whole) {
            // It was absent already, unless a doubtful listing had another version, which goes now.
            let stood = self.guard.put_off.remove(whole).is_some();
            if stood && withheld.reason(network.as_ref()).is_some() {
                self.set_modified(whole, ABSENT);
            }
            return stood && !self.is_absent(whole) && self.drop_held(whole);
        }
        self.guard.put_off.remove(whole);
        match withheld.reason(network.as_ref()) {
            // What is not in force has nothing that could be taken from it.
            Some(reason) if self.held_at(whole).is_some() && self.in_force(whole) => {
                self.hold(whole, ABSENT, revision, reason)
            }
            _ => self.delete(whole),
        }
    }

    /// Takes it that a listing of a revision lacks these records. Returns how many changed.
    pub(in crate::desired) fn remove_absent(&mut self, absent: &[Vec<u8>], revision: i64) -> usize {
        let emptied = std::mem::take(&mut self.guard.emptied).then_some(Doubt::Empty);
        let withheld = match self.doubt().or(emptied) {
            Some(doubt) => Withheld::Everything(doubt),
            None => {
                let mut gone: BTreeMap<Name, usize> = BTreeMap::new();
                let mut dropped = BTreeSet::new();
                for key in absent.iter().filter(|key| !self.is_held(key)) {
                    match self.network_of(key) {
                        Some((network, true)) if self.in_force(key) => *gone.entry(network).or_default() += 1,
                        Some((network, false)) => drop(dropped.insert(network)),
                        _ => {}
                    }
                }
                gone.retain(|network, _| !dropped.contains(network));
                self.beyond(&gone)
            }
        };
        absent.iter().filter(|key| self.remove(key, revision, &withheld)).count()
    }

    /// Keeps a record in force as it is. `stands` is the negative of the revision of what stands in its place.
    fn hold(&mut self, whole: &[u8], stands: i64, revision: i64, reason: HoldReason) -> bool {
        let Some((network, _)) = self.network_of(whole) else { return false };
        let fresh = !self.is_held(whole);
        self.set_modified(whole, stands);
        // What it was before it went bad is what is in force.
        if stands == ABSENT {
            self.bad.remove(whole);
        }
        let since = self.guard.doubt.map_or(revision, |(_, since, _)| since);
        let held = self.guard.held.entry(network).or_insert(Held { records: 0, since, heard: revision, reason });
        held.records += usize::from(fresh);
        held.since = since.max(held.since);
        fresh
    }

    fn set_modified(&mut self, whole: &[u8], modified: i64) {
        if let Some(key) = self.docker_key(whole) {
            return self.docker.set_modified(&key, modified);
        }
        match self.native_key(whole) {
            Ok(Key::Node(node)) => {
                let record = self.nodes.get_mut(&node).and_then(|state| state.record.as_mut());
                record.into_iter().for_each(|held| held.modified = modified);
            }
            Ok(Key::Network(network)) => {
                let record = self.networks.get_mut(&network).and_then(|state| state.record.as_mut());
                record.into_iter().for_each(|held| held.modified = modified);
            }
            Ok(Key::Endpoint { network, id }) => {
                let state = self.networks.get_mut(&network).and_then(|state| state.endpoints.get_mut(&id));
                state.into_iter().for_each(|state| state.held.modified = modified);
            }
            _ => {}
        }
    }

    /// A held record goes. What stands in its place, good or bad, is another matter.
    fn drop_held(&mut self, whole: &[u8]) -> bool {
        let bad = self.bad.remove(whole);
        let network = self.network_of(whole).map(|(network, _)| network);
        let gone = self.delete(whole);
        bad.into_iter().for_each(|bad| drop(self.bad.insert(whole.to_vec(), bad)));
        network.into_iter().for_each(|network| self.count_off(&network));
        gone
    }

    fn count_off(&mut self, network: &Name) {
        if let Some(held) = self.guard.held.get_mut(network) {
            held.records = held.records.saturating_sub(1);
            if held.records == 0 {
                self.guard.held.remove(network);
            }
        }
    }

    /// Takes a version of a record that is written, or listed, after what was known. Returns whether anything changed.
    pub(in crate::desired) fn take_version(&mut self, kv: Kv) -> bool {
        if self.guard.held.is_empty() && self.guard.put_off.is_empty() {
            return self.put(kv);
        }
        let whole = kv.key.clone();
        self.guard.put_off.remove(&whole);
        let was_held = self.is_held(&whole);
        let changed = self.put(kv);
        if was_held && !self.is_held(&whole) {
            self.network_of(&whole).into_iter().for_each(|(network, _)| self.count_off(&network));
        }
        changed
    }

    /// Takes a version out of a listing. In one that is in doubt, what was in force and is different stays; what was not
    /// known comes after everything else. Returns whether anything changed.
    pub(in crate::desired) fn take_listed(&mut self, kv: Kv) -> bool {
        let Some((doubt, _, noticed)) = self.guard.doubt.filter(|(.., noticed)| kv.mod_revision <= *noticed) else {
            return self.take_version(kv);
        };
        // Of an agent without memory nothing is in force that could give way.
        let judged = self.guard.remembered.is_none() && self.network_of(&kv.key).is_some();
        let known = self.guard.put_off.get(&kv.key).is_some_and(|known| known.mod_revision == kv.mod_revision);
        if known || !judged {
            return !known && self.take_version(kv);
        }
        match self.held_at(&kv.key) {
            Some(_) if self.is_in_force_as(&kv) != Some(false) && self.in_force(&kv.key) => self.take_version(kv),
            Some(_) if self.in_force(&kv.key) => {
                let changed = self.hold(&kv.key, -kv.mod_revision, noticed, HoldReason::Doubt(doubt));
                self.guard.put_off.insert(kv.key.clone(), kv);
                changed
            }
            // What was not in force does not come to be because it is older now.
            _ => {
                if self.is_held(&kv.key) {
                    self.network_of(&kv.key).into_iter().for_each(|(network, _)| self.count_off(&network));
                }
                let after = Kv { create_revision: kv.create_revision.saturating_add(AFTER), ..kv.clone() };
                self.guard.put_off.insert(kv.key.clone(), kv);
                self.put(after)
            }
        }
    }

    /// Whether a version says what is in force already; `None` where it cannot be read.
    fn is_in_force_as(&self, kv: &Kv) -> Option<bool> {
        if let Some(key) = self.docker_key(&kv.key) {
            return docker::decode(&key, &kv.key, &kv.value).ok().map(|value| self.docker.says(&key, &value));
        }
        let key = self.native_key(&kv.key).ok()?;
        let value = decode(&key, &kv.key, &kv.value).ok()?;
        Some(self.says(&key, value))
    }

    /// Held records give way to what was written after they were held. Returns whether any did.
    pub(in crate::desired) fn give_way(&mut self) -> bool {
        if self.guard.held.is_empty() || self.losers.is_empty() {
            return false;
        }
        let of = |key: &Key| {
            let whole = self.whole_key(key).into_bytes();
            let network = self.network_of(&whole)?.0;
            let (created, modified) = self.held_at(&whole)?;
            Some((whole, network, created, modified))
        };
        let mut last = BTreeSet::new();
        for conflict in self.conflicts() {
            let (Some((_, _, _, written)), Some((holder, network, created, held))) =
                (of(&conflict.key), of(&conflict.holder))
            else {
                continue;
            };
            let heard = self.guard.held.get(&network).map(|held| held.heard);
            if held < 0 && created < LAST && heard.is_some_and(|heard| written > heard) {
                last.insert(holder);
            }
        }
        last.iter().filter(|whole| self.rank_last(whole)).count() > 0
    }

    /// Ranks a held record behind all that stand in the store.
    fn rank_last(&mut self, whole: &[u8]) -> bool {
        if let Some(key) = self.docker_key(whole) {
            return self.docker.rank_later(&key, LAST);
        }
        let Ok(key) = self.native_key(whole) else { return false };
        let later = |rank: &Rank| Rank { create_revision: rank.create_revision + LAST, key: rank.key.clone() };
        match &key {
            Key::Node(node) => {
                let held = self.nodes.get(node).and_then(|state| state.record.as_ref());
                let held = held.map(|held| records::Held {
                    rank: later(&held.rank),
                    modified: held.modified,
                    value: held.value,
                });
                held.is_some() && self.set_node(node, held)
            }
            Key::Network(network) => {
                let held = self.networks.get(network).and_then(|state| state.record.as_ref());
                let held = held.map(|held| records::Held {
                    rank: later(&held.rank),
                    modified: held.modified,
                    value: held.value.clone(),
                });
                held.is_some() && self.set_network(network, held)
            }
            Key::Endpoint { network, id } => {
                let state = self.networks.get(network).and_then(|state| state.endpoints.get(id));
                let held = state.map(|state| records::Held {
                    rank: later(&state.held.rank),
                    modified: state.held.modified,
                    value: state.held.value.clone(),
                });
                held.is_some_and(|held| self.set_endpoint(network, id, held))
            }
            _ => false,
        }
    }

    /// Lets go what is approved, and what nothing depends on.
    pub(in crate::desired) fn let_go(&mut self) {
        if !self.guard.held.is_empty() || !self.guard.unsure.is_empty() {
            self.recall();
            let networks: Vec<(Name, i64)> =
                self.guard.held.iter().map(|(network, held)| (network.clone(), held.since)).collect();
            for (network, since) in networks {
                if network != Name::host() && self.is_approved(&network, since) {
                    self.let_network_go(&network);
                }
            }
            self.let_nodes_go();
        }
        let since = self.guard.doubt.map_or(0, |(_, since, _)| since);
        for network in self.guard.contested.keys().cloned().collect::<Vec<_>>() {
            if self.is_approved(&network, since) {
                self.guard.contested.remove(&network);
                self.take_put_off_of(&network);
            }
        }
        self.take_put_off_nodes(since);
    }

    /// Whether an operator approved removals of a network that are held since a revision.
    pub(super) fn is_approved(&self, network: &Name, since: i64) -> bool {
        let by = |name: &Name| self.approval(name).is_some_and(|approved| approved >= since);
        by(network) || by(&self.shown_name(network))
    }

    fn let_network_go(&mut self, network: &Name) {
        let prefix = self.config.docker_prefix.as_deref().filter(|_| self.is_docker(network));
        let keys: Vec<Vec<u8>> = match (prefix, self.networks.get(network)) {
            (Some(prefix), _) => {
                let keys = self.docker.keys().filter(|key| key.network() == network);
                keys.map(|key| key.under(prefix).into_bytes()).collect()
            }
            (None, Some(state)) => {
                let endpoints = state.endpoints.values().map(|endpoint| &endpoint.held.rank);
                let ranks = state.record.iter().map(|held| &held.rank).chain(endpoints);
                ranks.map(|rank| rank.key.under(&self.config.prefix).into_bytes()).collect()
            }
            (None, None) => Vec::new(),
        };
        for whole in keys {
            match self.guard.put_off.remove(&whole) {
                Some(stands) => drop(self.take_version(stands)),
                None if self.is_held(&whole) => drop(self.drop_held(&whole)),
                None => {}
            }
        }
        self.guard.held.remove(network);
        self.take_put_off_of(network);
    }

    /// What a doubtful listing has of a network is taken as it is.
    fn take_put_off_of(&mut self, network: &Name) {
        let of = |key: &&Vec<u8>| self.network_of(key).is_some_and(|(of, _)| of == *network);
        let keys: Vec<Vec<u8>> = self.guard.put_off.keys().filter(of).cloned().collect();
        for key in keys {
            if let Some(kv) = self.guard.put_off.remove(&key) {
                self.take_version(kv);
            }
        }
    }

    /// What a doubtful listing has of nodes is taken as it is once all that has endpoints there is approved.
    fn take_put_off_nodes(&mut self, since: i64) {
        let nodes = self.guard.put_off.keys().filter(|key| match self.native_key(key) {
            Ok(Key::Node(node)) => {
                let networks = self.networks_of(&node);
                !networks.is_empty() && networks.iter().all(|network| self.is_approved(network, since))
            }
            _ => false,
        });
        for key in nodes.cloned().collect::<Vec<_>>() {
            if let Some(kv) = self.guard.put_off.remove(&key) {
                self.take_version(kv);
            }
        }
    }

    /// The networks of which a doubtful listing has what would take the place of something in force, and how many records of
    /// each.
    pub(super) fn contested(&self) -> BTreeMap<Name, usize> {
        let mut contested = BTreeMap::new();
        for (whole, kv) in &self.guard.put_off {
            let Ok(key) = self.native_key(whole) else { continue };
            let networks = match &key {
                Key::Network(network) | Key::Endpoint { network, .. } => vec![network.clone()],
                Key::Node(node) => self.networks_of(node),
                _ => Vec::new(),
            };
            let rank = Rank { create_revision: kv.create_revision.saturating_add(AFTER), key: key.into() };
            if self.losers.contains(&rank) {
                networks.into_iter().for_each(|network| *contested.entry(network).or_default() += 1);
            }
        }
        contested
    }

    /// A node goes when all that has endpoints there may go without it.
    fn let_nodes_go(&mut self) {
        let Some(since) = self.guard.held.get(&Name::host()).map(|held| held.since) else { return };
        let nodes = self.nodes.iter().filter(|(_, state)| state.record.as_ref().is_some_and(|held| held.modified < 0));
        let nodes: Vec<Name> = nodes.map(|(node, _)| node.clone()).collect();
        for node in nodes {
            if self.networks_of(&node).iter().all(|network| self.is_approved(network, since)) {
                let whole = Key::Node(node).under(&self.config.prefix).into_bytes();
                match self.guard.put_off.remove(&whole) {
                    Some(stands) => drop(self.take_version(stands)),
                    None => drop(self.drop_held(&whole)),
                }
            }
        }
    }

    /// What a doubtful listing had and was not known is a record like any other.
    pub(super) fn take_put_off(&mut self) {
        for kv in std::mem::take(&mut self.guard.put_off).into_values() {
            self.put(kv);
        }
    }

    /// The removals that are held, by network.
    pub fn removals(&self) -> Vec<HeldRemovals> {
        let mut all: BTreeMap<Name, HeldRemovals> = BTreeMap::new();
        let mut add = |network: Name, records: usize, since: i64, reason: HoldReason| {
            let entry = all.entry(network.clone());
            let held = entry.or_insert(HeldRemovals { network, records: 0, since, reason });
            held.records += records;
            held.since = held.since.max(since);
        };
        for (network, held) in &self.guard.held {
            if *network != Name::host() {
                add(network.clone(), held.records, held.since, held.reason);
                continue;
            }
            for (node, state) in &self.nodes {
                if state.record.as_ref().is_some_and(|held| held.modified < 0) {
                    self.networks_of(node).into_iter().for_each(|network| add(network, 1, held.since, held.reason));
                }
            }
        }
        if let Some((doubt, since, _)) = self.guard.doubt {
            let contested = self.guard.contested.iter();
            contested.for_each(|(network, records)| add(network.clone(), *records, since, HoldReason::Doubt(doubt)));
        }
        for (network, unsure) in &self.guard.unsure {
            add(network.clone(), 0, unsure.since, unsure.reason);
        }
        all.into_values().collect()
    }
}
