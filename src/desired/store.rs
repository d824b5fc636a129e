//! The store-wide stage: takes records in and keeps their last good versions.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use super::{
    Update,
    batch::Batch,
    claims::{Claim, Claims, Rank},
    records::{EndpointState, EndpointValue, Held, NetworkState, NodeState, Standing, segment_claims},
};
use crate::{
    model::{Endpoint, EndpointId, Name, Network},
    schema::{self, Change, Key, Kv, Rejected},
};

/// What the stage must know besides the records.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// The prefix of all keys.
    pub prefix: String,
    /// This node.
    pub node: Name,
    /// This node's VTEP address; `None` takes it from the node's record.
    pub vtep: Option<IpAddr>,
    /// MTU of the underlay link in bytes.
    pub underlay_mtu: u32,
}

/// All records, and what they mean on this node.
///
/// Decisions are incremental: a change costs what depends on it, and their outcome does not depend on the order in which
/// the records were heard.
#[derive(Debug)]
pub struct Store {
    pub(super) config: StoreConfig,
    pub(super) revision: i64,
    pub(super) complete: bool,
    pub(super) networks: BTreeMap<Name, NetworkState>,
    pub(super) nodes: BTreeMap<Name, NodeState>,
    /// Claims of networks and nodes: decided first, for endpoints depend on both.
    pub(super) heads: Claims,
    /// Claims of endpoints.
    pub(super) ends: Claims,
    /// Records whose last version is bad, by their whole key; with the revision of that version.
    pub(super) bad: BTreeMap<Vec<u8>, (i64, Rejected)>,
    /// Endpoints that do not fit their network.
    pub(super) misfits: BTreeMap<Arc<Key>, Rejected>,
    /// Records that lost a claim.
    pub(super) losers: BTreeSet<Rank>,
    pub(super) pending: usize,
    pub(super) endpoints: usize,
    pub(super) identity: Option<Held<String>>,
    pub(super) approvals: BTreeMap<Name, Held<i64>>,
    /// What changes since the last update.
    pub(super) batch: Batch,
}

/// What an audit found.
#[derive(Debug, Default)]
pub struct Audited {
    /// Records that were not as the store has them: events were lost.
    pub differences: usize,
    /// What follows for the networks.
    pub updates: BTreeMap<Name, Update>,
}

enum Value {
    Node(IpAddr),
    Network(Network),
    Endpoint(Endpoint),
    Identity(String),
    Approval(i64),
    Ignored,
}

impl Store {
    /// A store of which nothing is known yet.
    pub fn new(config: StoreConfig) -> Self {
        Self {
            config,
            revision: 0,
            complete: false,
            networks: BTreeMap::new(),
            nodes: BTreeMap::new(),
            heads: Claims::default(),
            ends: Claims::default(),
            bad: BTreeMap::new(),
            misfits: BTreeMap::new(),
            losers: BTreeSet::new(),
            pending: 0,
            endpoints: 0,
            identity: None,
            approvals: BTreeMap::new(),
            batch: Batch::default(),
        }
    }

    /// Everything that stands below the prefix at this revision. What it omits is deleted.
    pub fn snapshot(&mut self, revision: i64, records: Vec<Kv>) -> BTreeMap<Name, Update> {
        self.revision = revision;
        self.complete = true;
        self.replace(records, &BTreeSet::new(), i64::MAX);
        self.settle()
    }

    /// All events of one revision. An event that is older than what is known of its key (repeated, or overtaken by a
    /// snapshot) changes nothing.
    pub fn changes(&mut self, revision: i64, changes: Vec<Change>) -> BTreeMap<Name, Update> {
        self.revision = self.revision.max(revision);
        for change in changes {
            let known = self.known(change.key());
            match change {
                Change::Put(kv) if known.is_none_or(|known| known < kv.mod_revision) => self.put(kv),
                Change::Delete { key, revision } if known.is_none_or(|known| known < revision) => self.delete(&key),
                Change::Put(_) | Change::Delete { .. } => false,
            };
        }
        self.settle()
    }

    /// Compares with a listing of this revision that was taken while events went on. Keys in `touched` have newer events,
    /// which were applied before this call; all others must be as the listing has them, and are made so.
    pub fn audit(&mut self, revision: i64, records: Vec<Kv>, touched: &BTreeSet<Vec<u8>>) -> Audited {
        self.revision = self.revision.max(revision);
        let differences = self.replace(records, touched, revision);
        Audited { differences, updates: self.settle() }
    }

    /// An earlier version, out of etcd's history, of a record whose last version is bad. If it is good, and nothing better is
    /// known, it is in force while the bad one stands.
    pub fn predecessor(&mut self, earlier: &Kv) -> BTreeMap<Name, Update> {
        let Some(modified) = self.bad.get(&earlier.key).map(|(modified, _)| *modified) else { return BTreeMap::new() };
        let Ok(key) = Key::parse(&self.config.prefix, &earlier.key) else { return BTreeMap::new() };
        if let (None, Ok(value)) = (self.held(&key), decode(&key, &earlier.key, &earlier.value)) {
            let rank = Rank { create_revision: earlier.create_revision, key: Arc::new(key) };
            self.take(rank, modified, value, false);
        }
        self.settle()
    }

    /// Takes over a listing, except for keys that are `touched` or known by a revision above `limit`. Returns how many
    /// records it changed.
    fn replace(&mut self, records: Vec<Kv>, touched: &BTreeSet<Vec<u8>>, limit: i64) -> usize {
        let mut changed = 0;
        let mut listed = BTreeSet::new();
        for kv in records {
            let newer = self.known(&kv.key).is_some_and(|known| known > limit);
            listed.insert(kv.key.clone());
            if !newer && !touched.contains(&kv.key) {
                changed += usize::from(self.put(kv));
            }
        }
        for key in self.keys() {
            let newer = self.known(&key).is_some_and(|known| known > limit);
            if !newer && !touched.contains(&key) && !listed.contains(&key) {
                changed += usize::from(self.delete(&key));
            }
        }
        changed
    }

    /// The whole keys of all that is known.
    fn keys(&self) -> Vec<Vec<u8>> {
        let networks = self.networks.values();
        let endpoints = networks.flat_map(|n| n.endpoints.values().map(|e| &e.held.rank));
        let networks = self.networks.values().filter_map(|n| n.record.as_ref().map(|held| &held.rank));
        let nodes = self.nodes.values().filter_map(|n| n.record.as_ref().map(|held| &held.rank));
        let others = self.identity.iter().map(|held| &held.rank).chain(self.approvals.values().map(|held| &held.rank));
        let ranks = nodes.chain(networks).chain(endpoints).chain(others);
        let good = ranks.map(|rank| rank.key.under(&self.config.prefix).into_bytes());
        good.chain(self.bad.keys().cloned()).collect()
    }

    /// The last revision that was heard of a key, good or bad.
    fn known(&self, whole: &[u8]) -> Option<i64> {
        let good = Key::parse(&self.config.prefix, whole).ok().and_then(|key| self.held(&key));
        let bad = self.bad.get(whole).map(|(modified, _)| *modified);
        good.map(|(_, modified)| modified).max(bad)
    }

    /// Create and last revision of a record that is held.
    pub(super) fn held(&self, key: &Key) -> Option<(i64, i64)> {
        const fn revisions<T>(held: &Held<T>) -> (i64, i64) {
            (held.rank.create_revision, held.modified)
        }
        match key {
            Key::Node(node) => self.nodes.get(node)?.record.as_ref().map(revisions),
            Key::Network(network) => self.networks.get(network)?.record.as_ref().map(revisions),
            Key::Endpoint { network, id } => {
                self.networks.get(network)?.endpoints.get(id).map(|endpoint| revisions(&endpoint.held))
            }
            Key::Store => self.identity.as_ref().map(revisions),
            Key::Approval(network) => self.approvals.get(network).map(revisions),
            Key::Status(_) => None,
        }
    }

    /// Takes a version of a record. Returns whether anything changed.
    fn put(&mut self, kv: Kv) -> bool {
        let Kv { key: whole, value, create_revision, mod_revision } = kv;
        let key = Key::parse(&self.config.prefix, &whole);
        let held = key.as_ref().ok().and_then(|key| self.held(key));
        // Another create revision says that the key was deleted and made anew: the version before is no predecessor.
        let fresh = held.is_some_and(|(create, _)| create != create_revision);
        match key.and_then(|key| Ok((decode(&key, &whole, &value)?, key))) {
            Ok((value, key)) => {
                let was_bad = self.bad.remove(&whole).is_some();
                let rank = Rank { create_revision, key: Arc::new(key) };
                self.take(rank, mod_revision, value, fresh) || was_bad
            }
            Err(rejected) => {
                if fresh {
                    self.delete(&whole);
                }
                let before = self.bad.insert(whole, (mod_revision, rejected.clone()));
                let news = before.is_none_or(|(modified, _)| modified != mod_revision);
                if news {
                    self.batch.rejected.push(rejected);
                }
                news
            }
        }
    }

    fn take(&mut self, rank: Rank, modified: i64, value: Value, fresh: bool) -> bool {
        let key = Arc::clone(&rank.key);
        match (&*key, value) {
            (Key::Node(node), Value::Node(value)) => self.set_node(node, Some(Held { rank, modified, value })),
            (Key::Network(name), Value::Network(value)) => {
                self.set_network(name, Some(Held { rank, modified, value: Arc::new(value) }))
            }
            (Key::Endpoint { network, id }, Value::Endpoint(value)) => {
                self.set_endpoint(network, id, Held { rank, modified, value: EndpointValue::new(value) })
            }
            (Key::Store, Value::Identity(value)) => {
                let changed = fresh || self.identity.as_ref().is_none_or(|held| held.value != value);
                self.identity = Some(Held { rank, modified, value });
                changed
            }
            (Key::Approval(network), Value::Approval(value)) => {
                let before = self.approvals.insert(network.clone(), Held { rank, modified, value });
                fresh || before.is_none_or(|held| held.value != value)
            }
            _ => false,
        }
    }

    /// The record is no more. Returns whether anything changed.
    fn delete(&mut self, whole: &[u8]) -> bool {
        let was_bad = self.bad.remove(whole).is_some();
        let Ok(key) = Key::parse(&self.config.prefix, whole) else { return was_bad };
        let gone = match &key {
            Key::Node(node) => self.nodes.contains_key(node) && self.set_node(node, None),
            Key::Network(network) => self.networks.contains_key(network) && self.set_network(network, None),
            Key::Endpoint { network, id } => self.remove_endpoint(network, id),
            Key::Store => self.identity.take().is_some(),
            Key::Approval(network) => self.approvals.remove(network).is_some(),
            Key::Status(_) => false,
        };
        gone || was_bad
    }

    fn set_node(&mut self, node: &Name, new: Option<Held<IpAddr>>) -> bool {
        let node = canonical(&mut self.nodes, node);
        let Some(state) = self.nodes.get_mut(&node) else { return false };
        if let (Some(held), Some(new)) = (&mut state.record, &new)
            && (held.rank == new.rank && held.value == new.value)
        {
            held.modified = new.modified;
            return false;
        }
        // Whoever lives there may have to be told anew; what it is now is kept for comparison before it changes.
        self.touch_node(&node);
        let Some(state) = self.nodes.get_mut(&node) else { return false };
        let before = std::mem::replace(&mut state.record, new);
        if let Some(held) = &before {
            self.heads.leave(&held.rank, &[Claim::Vtep(held.value)]);
            self.losers.remove(&held.rank);
        }
        let Some(held) = &state.record else {
            state.in_force = false;
            self.batch.left.insert(node.clone());
            self.batch.nodes.insert(node);
            return before.is_some();
        };
        self.heads.enter(&held.rank, &[Claim::Vtep(held.value)]);
        true
    }

    fn set_network(&mut self, network: &Name, new: Option<Held<Arc<Network>>>) -> bool {
        let network = canonical(&mut self.networks, network);
        let Some(state) = self.networks.get_mut(&network) else { return false };
        if let (Some(held), Some(new)) = (&mut state.record, &new)
            && (held.rank == new.rank && held.value == new.value)
        {
            held.modified = new.modified;
            return false;
        }
        let subnets = |held: &Option<Held<Arc<Network>>>| held.as_ref().map(|held| Arc::clone(&held.value));
        let same = match (subnets(&state.record), subnets(&new)) {
            (Some(before), Some(after)) => before.subnets == after.subnets,
            _ => false,
        };
        self.batch.specs.insert(network.clone());
        if !same {
            self.touch_network(&network);
            self.batch.networks.insert(network.clone());
        }
        let Some(state) = self.networks.get_mut(&network) else { return false };
        let before = std::mem::replace(&mut state.record, new);
        if let Some(held) = &before {
            self.heads.leave(&held.rank, &segment_claims(&held.value));
            self.losers.remove(&held.rank);
        }
        let Some(held) = &state.record else {
            state.in_force = false;
            return before.is_some();
        };
        self.heads.enter(&held.rank, &segment_claims(&held.value));
        true
    }

    fn set_endpoint(&mut self, network: &Name, id: &EndpointId, mut new: Held<EndpointValue>) -> bool {
        let network = canonical(&mut self.networks, network);
        let id = EndpointId { node: canonical(&mut self.nodes, &id.node), endpoint: id.endpoint.clone() };
        if let Some(state) = self.networks.get_mut(&network).and_then(|state| state.endpoints.get_mut(&id))
            && (state.held.rank == new.rank && state.held.value == new.value)
        {
            state.held.modified = new.modified;
            return false;
        }
        self.remove_endpoint(&network, &id);
        self.touch(&network, &id);
        // The parsed key's own copies of the names are given back.
        new.rank.key = Arc::new(Key::Endpoint { network: network.clone(), id: id.clone() });
        if let Some(state) = self.nodes.get_mut(&id.node) {
            state.endpoints.insert(Arc::clone(&new.rank.key));
        }
        if let Some(state) = self.networks.get_mut(&network) {
            state.endpoints.insert(id.clone(), EndpointState { held: new, standing: Standing::Pending });
            self.pending += 1;
            self.endpoints += 1;
        }
        self.batch.ends.insert((network, id));
        true
    }

    fn remove_endpoint(&mut self, network: &Name, id: &EndpointId) -> bool {
        let known = self.networks.get(network).is_some_and(|state| state.endpoints.contains_key(id));
        if !known {
            return false;
        }
        self.touch(network, id);
        self.set_standing(network, id, Standing::Pending);
        let network = canonical(&mut self.networks, network);
        let node = canonical(&mut self.nodes, &id.node);
        let gone = self.networks.get_mut(&network).and_then(|state| state.endpoints.remove(id));
        if let Some(gone) = gone {
            self.pending -= 1;
            self.endpoints -= 1;
            if let Some(state) = self.nodes.get_mut(&node) {
                state.endpoints.remove(&gone.held.rank.key);
            }
        }
        self.batch.left.insert(node);
        true
    }
}

/// The one copy of a name that all records share.
fn canonical<T: Default>(map: &mut BTreeMap<Name, T>, name: &Name) -> Name {
    match map.get_key_value(name) {
        Some((name, _)) => name.clone(),
        None => {
            map.insert(name.clone(), T::default());
            name.clone()
        }
    }
}

fn decode(key: &Key, whole: &[u8], value: &[u8]) -> Result<Value, Rejected> {
    Ok(match key {
        Key::Node(_) => Value::Node(schema::node(whole, value)?.vtep),
        Key::Network(_) => Value::Network(schema::network(whole, value)?),
        Key::Endpoint { .. } => Value::Endpoint(schema::endpoint(whole, value)?),
        Key::Store => Value::Identity(schema::store(whole, value)?),
        Key::Approval(_) => Value::Approval(schema::approval(whole, value)?),
        Key::Status(_) => Value::Ignored,
    })
}
