//! The store-wide stage: takes records in and keeps their last good versions.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use super::{
    Update,
    batch::Batch,
    claims::{Claims, NetworkNumber, Rank},
    docker::{self, Docker},
    listing::Listing,
    quota::{Limits, Quota},
    records::{EndpointValue, Held, NetworkState, NodeState},
    removal::Guard,
    source::Source,
};
use crate::{
    model::{Endpoint, Name, Network},
    schema::{self, Change, Key, Kv, Rejected},
};

/// What the stage must know besides the records.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// The prefix of all keys.
    pub prefix: String,
    /// The prefix of Docker's layout, where that is read as well.
    pub docker_prefix: Option<String>,
    /// This node.
    pub node: Name,
    /// This node's VTEP address; `None` takes it from the node's record.
    pub vtep: Option<IpAddr>,
    /// Whether endpoints of this node may be in the host's own namespace.
    pub host_endpoints: bool,
    /// MTU of the underlay link in bytes, until [`Store::set_underlay_mtu`] says otherwise.
    pub underlay_mtu: u32,
    /// Deletes in one revision of more than so many percent of a network's endpoints, or of everything, are held; 100 holds none.
    pub max_removal: u8,
}

/// All records, and what they mean on this node.
///
/// Decisions are incremental: a change costs what depends on it, and their outcome does not depend on the order in which
/// the records were heard.
#[derive(Debug)]
pub struct Store {
    pub(super) config: StoreConfig,
    pub(super) revision: i64,
    /// The last revision that was heard from each layout.
    pub(super) heard: BTreeMap<Source, i64>,
    /// The revision of the newest record of each layout that means something, or of the listing that told of it.
    pub(super) newest: BTreeMap<Source, i64>,
    /// The layouts of which a complete snapshot was heard.
    pub(super) listed: BTreeSet<Source>,
    pub(super) listings: BTreeMap<Source, Listing>,
    /// This node's VTEP address while it has neither a configured one nor a record.
    pub(super) supposed_vtep: Option<IpAddr>,
    /// This node's VTEP address as it was when endpoints were last told apart by it.
    pub(super) own_vtep: Option<IpAddr>,
    pub(super) networks: BTreeMap<Name, NetworkState>,
    /// How many networks got a number, ever.
    pub(super) networks_numbered: NetworkNumber,
    pub(super) nodes: BTreeMap<Name, NodeState>,
    /// Claims of networks and nodes: decided first, for endpoints depend on both.
    pub(super) heads: Claims,
    /// Claims of endpoints.
    pub(super) ends: Claims,
    /// Records whose last version is bad, by their whole key.
    pub(super) bad: BTreeMap<Vec<u8>, Bad>,
    /// Endpoints that do not fit their network.
    pub(super) misfits: BTreeMap<Arc<Key>, Rejected>,
    /// Records that lost a claim.
    pub(super) losers: BTreeSet<Rank>,
    pub(super) pending: usize,
    pub(super) endpoints: usize,
    pub(super) limits: Limits,
    /// Which nodes and networks count.
    pub(super) node_quota: Quota,
    pub(super) network_quota: Quota,
    pub(super) identity: Option<Held<String>>,
    pub(super) approvals: BTreeMap<Name, Held<i64>>,
    pub(super) docker: Docker,
    /// How many networks each UDP port is given by.
    pub(super) ports: BTreeMap<u16, usize>,
    /// How many of the bad records are [`Bad::lost`].
    pub(super) lost: usize,
    /// There may be something else to report than at the last look.
    pub(super) reportable: bool,
    /// What was counted at the last look: pending, lost, refused.
    pub(super) reported: (usize, usize, usize),
    /// What changes since the last update.
    pub(super) batch: Batch,
    /// A sum over all nodes and their addresses.
    pub(super) node_sum: u64,
    pub(super) guard: Guard,
}

/// The last version of a record, where it is bad.
#[derive(Debug)]
pub(super) struct Bad {
    pub(super) created: i64,
    pub(super) modified: i64,
    pub(super) rejected: Rejected,
    /// It may have had a good version before, which cannot be found.
    pub(super) lost: bool,
}

/// What an audit found.
#[derive(Debug, Default)]
pub struct Audited {
    /// Records that were not as the store has them: events were lost.
    pub differences: usize,
    /// What follows for the networks.
    pub updates: BTreeMap<Name, Update>,
}

#[derive(Debug)]
pub(super) enum Value {
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
        Self::with_limits(config, Limits::default())
    }

    /// The same, where other numbers of records count.
    pub fn with_limits(config: StoreConfig, limits: Limits) -> Self {
        Self {
            limits,
            node_quota: Quota::default(),
            network_quota: Quota::default(),
            revision: 0,
            heard: BTreeMap::new(),
            newest: BTreeMap::new(),
            listed: BTreeSet::new(),
            listings: BTreeMap::new(),
            supposed_vtep: None,
            own_vtep: config.vtep,
            config,
            networks: BTreeMap::new(),
            networks_numbered: 0,
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
            docker: Docker::default(),
            ports: BTreeMap::new(),
            lost: 0,
            reportable: true,
            reported: (0, 0, 0),
            batch: Batch::default(),
            node_sum: 0,
            guard: Guard::default(),
        }
    }

    /// The UDP ports that VXLAN is heard at on some node, the usual one among them.
    pub fn vxlan_ports(&self) -> BTreeSet<u16> {
        self.ports.keys().copied().chain([schema::DEFAULT_PORT]).collect()
    }

    /// The revision of the newest change that means something. Other writes to the etcd, an agent's status among them, do not
    /// move it.
    pub fn newest(&self) -> i64 {
        self.newest.values().copied().max().unwrap_or(0)
    }

    /// Whether a key means something to anybody, if only as a mistake.
    pub(super) fn matters(&self, whole: &[u8]) -> bool {
        match self.source_of(whole) {
            Source::Native => !matches!(self.native_key(whole), Ok(Key::Status(_))),
            Source::Docker => {
                let prefix = self.config.docker_prefix.as_deref().unwrap_or_default();
                !matches!(schema::docker::Key::parse(prefix, whole), Ok(None))
            }
        }
    }

    pub(super) fn hear(&mut self, source: Source, revision: i64) {
        let heard = self.heard.entry(source).or_insert(revision);
        *heard = revision.max(*heard);
        self.revision = self.revision.max(revision);
    }

    /// All events of one revision. An event that is older than what is known of its key (repeated, or overtaken by a
    /// snapshot) changes nothing.
    pub fn changes(&mut self, revision: i64, changes: Vec<Change>) -> BTreeMap<Name, Update> {
        let source = changes.first().map_or(Source::Native, |change| self.source_of(change.key()));
        self.hear(source, revision);
        if changes.iter().any(|change| self.matters(change.key())) {
            let newest = self.newest.entry(source).or_default();
            *newest = revision.max(*newest);
        }
        let withheld = self.withheld(revision, &changes);
        for change in changes {
            let known = self.known(change.key());
            match change {
                Change::Put(kv) if known.is_none_or(|known| known < kv.mod_revision) => self.take_version(kv),
                Change::Delete { key, revision } if known.is_none_or(|known| known < revision) => {
                    self.remove(&key, revision, &withheld)
                }
                Change::Put(_) | Change::Delete { .. } => false,
            };
        }
        self.let_go();
        self.settle()
    }

    /// An earlier version, out of etcd's history, of a record whose last version is bad. If it is good, and nothing better is
    /// known, it is in force while the bad one stands.
    pub fn predecessor(&mut self, earlier: &Kv) -> BTreeMap<Name, Update> {
        let Some(modified) = self.bad.get(&earlier.key).map(|bad| bad.modified) else { return BTreeMap::new() };
        if let Some(key) = self.docker_key(&earlier.key) {
            if let (None, Ok(value)) = (self.docker.held(&key), docker::decode(&key, &earlier.key, &earlier.value)) {
                self.docker.put(&key, earlier.create_revision, modified, value);
            }
            return self.settle();
        }
        let Ok(key) = self.native_key(&earlier.key) else { return BTreeMap::new() };
        if let (None, Ok(value)) = (self.revisions(&key), decode(&key, &earlier.key, &earlier.value)) {
            let rank = Rank { create_revision: earlier.create_revision, key: Arc::new(key) };
            self.take(rank, modified, value, false);
        }
        self.settle()
    }

    /// The whole past of a bad record is known, and had no good version.
    pub fn history_read(&mut self, whole: &[u8]) {
        if let Some(bad) = self.bad.get_mut(whole) {
            bad.lost = false;
        }
    }

    /// The good version that a bad record may have had before is not known: it was not read yet, or etcd's history does not
    /// reach back so far.
    pub fn history_lost(&mut self, whole: &[u8]) {
        if let Some(bad) = self.bad.get_mut(whole) {
            self.lost += usize::from(!bad.lost);
            bad.lost = true;
        }
    }

    /// The whole keys of what is known of a layout, except for the `known` ones.
    pub(super) fn keys_but(&self, source: Source, known: impl Fn(&[u8]) -> bool) -> Vec<Vec<u8>> {
        let bad = self.bad.keys().filter(|whole| self.source_of(whole) == source && !known(whole)).cloned();
        let unknown = |key: String| (!known(key.as_bytes())).then(|| key.into_bytes());
        if source == Source::Docker {
            let prefix = self.config.docker_prefix.as_deref().unwrap_or_default();
            return self.docker.keys().filter_map(|key| unknown(key.under(prefix))).chain(bad).collect();
        }
        let networks = || self.networks.iter().filter(|(name, _)| !self.is_docker(name)).map(|(_, network)| network);
        let endpoints = networks().flat_map(|n| n.endpoints.values().map(|e| &e.held.rank));
        let networks = networks().filter_map(|n| n.record.as_ref().map(|held| &held.rank));
        let nodes = self.nodes.values().filter_map(|n| n.record.as_ref().map(|held| &held.rank));
        let others = self.identity.iter().map(|held| &held.rank).chain(self.approvals.values().map(|held| &held.rank));
        let ranks = nodes.chain(networks).chain(endpoints).chain(others);
        let good = ranks.filter_map(|rank| unknown(rank.key.under(&self.config.prefix)));
        good.chain(bad).collect()
    }

    /// The last revision that was heard of a key, good or bad.
    pub(super) fn known(&self, whole: &[u8]) -> Option<i64> {
        let bad = self.bad.get(whole).map(|bad| bad.modified);
        // That of a held record is negative.
        self.held_at(whole).map(|(_, modified)| modified.abs()).max(bad)
    }

    /// Create and last revision of the record that is held of a whole key.
    pub(super) fn held_at(&self, whole: &[u8]) -> Option<(i64, i64)> {
        match self.source_of(whole) {
            Source::Native => self.native_key(whole).ok().and_then(|key| self.revisions(&key)),
            Source::Docker => self.docker_key(whole).and_then(|key| self.docker.held(&key)),
        }
    }

    /// Create and last revision of a record that is held.
    pub(super) fn revisions(&self, key: &Key) -> Option<(i64, i64)> {
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
    pub(super) fn put(&mut self, kv: Kv) -> bool {
        if self.source_of(&kv.key) == Source::Docker {
            return self.put_docker(kv);
        }
        let Kv { key: whole, value, create_revision, mod_revision } = kv;
        let key = self.native_key(&whole);
        let held = key.as_ref().ok().and_then(|key| self.revisions(key));
        // Another create revision says that the key was deleted and made anew: the version before is no predecessor.
        let fresh = held.is_some_and(|(create, _)| create != create_revision);
        match key.and_then(|key| Ok((decode(&key, &whole, &value)?, key))) {
            Ok((value, key)) => {
                let was_bad = self.forget_bad(&whole);
                let rank = Rank { create_revision, key: Arc::new(key) };
                self.take(rank, mod_revision, value, fresh) || was_bad
            }
            Err(rejected) => {
                // What is held while the store is in doubt stays in force behind a bad version as well.
                if fresh && self.doubt().is_none() {
                    self.delete(&whole);
                }
                self.reject(whole, create_revision, mod_revision, rejected)
            }
        }
    }

    /// The last version of the record is not bad any more. Returns whether it was.
    pub(super) fn forget_bad(&mut self, whole: &[u8]) -> bool {
        let Some(bad) = self.bad.remove(whole) else { return false };
        self.lost -= usize::from(bad.lost);
        self.reportable = true;
        true
    }

    /// Notes that a version is bad. Returns whether that is news.
    pub(super) fn reject(&mut self, whole: Vec<u8>, created: i64, modified: i64, rejected: Rejected) -> bool {
        let lost = self.bad.get(&whole).is_some_and(|before| before.lost && before.created == created);
        self.reportable = true;
        let before = self.bad.insert(whole, Bad { created, modified, rejected: rejected.clone(), lost });
        self.lost = self.lost + usize::from(lost) - usize::from(before.as_ref().is_some_and(|before| before.lost));
        let news = before.is_none_or(|before| before.modified != modified);
        if news {
            self.batch.rejected.push(rejected);
        }
        news
    }

    /// Whether a record that is known says this.
    pub(super) fn says(&self, key: &Key, value: Value) -> bool {
        match (key, value) {
            (Key::Node(node), Value::Node(value)) => {
                let record = self.nodes.get(node).and_then(|state| state.record.as_ref());
                record.is_some_and(|held| held.value == value)
            }
            (Key::Network(network), Value::Network(value)) => {
                let record = self.networks.get(network).and_then(|state| state.record.as_ref());
                record.is_some_and(|held| *held.value == value)
            }
            (Key::Endpoint { network, id }, Value::Endpoint(value)) => {
                let endpoint = self.networks.get(network).and_then(|state| state.endpoints.get(id));
                endpoint.is_some_and(|endpoint| endpoint.held.value == EndpointValue::new(value))
            }
            _ => false,
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
    pub(super) fn delete(&mut self, whole: &[u8]) -> bool {
        let was_bad = self.forget_bad(whole);
        if self.source_of(whole) == Source::Docker {
            return self.docker_key(whole).is_some_and(|key| self.docker.delete(&key)) || was_bad;
        }
        let Ok(key) = self.native_key(whole) else { return was_bad };
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
}

pub(super) fn decode(key: &Key, whole: &[u8], value: &[u8]) -> Result<Value, Rejected> {
    Ok(match key {
        Key::Node(_) => Value::Node(schema::node(whole, value)?.vtep),
        Key::Network(_) => Value::Network(schema::network(whole, value)?),
        Key::Endpoint { .. } => Value::Endpoint(schema::endpoint(whole, value)?),
        Key::Store => Value::Identity(schema::store(whole, value)?),
        Key::Approval(_) => Value::Approval(schema::approval(whole, value)?),
        Key::Status(_) => Value::Ignored,
    })
}
