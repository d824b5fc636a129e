//! What an agent tells the one after it, so that it notices what is absent then.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Doubt, HoldReason, Withheld, doubt::Listed};
use crate::{
    desired::store::Store,
    model::{EndpointId, Name, stable_hash},
    schema::Key,
};

/// A store, as far as it can be told from another one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Trusted {
    pub(super) identity: Option<String>,
    pub(super) cluster: Option<u64>,
    pub(super) revision: i64,
}

/// What an agent knew of the store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// The store's identity.
    pub store: Option<String>,
    /// The cluster that answered.
    pub cluster: Option<u64>,
    /// The last revision that was heard.
    pub revision: i64,
    /// Why the store is in doubt, if it is, and the revision from which an approval counts.
    pub doubt: Option<(Doubt, i64)>,
    /// A sum over the names and addresses of all nodes.
    pub nodes: u64,
    /// What was known of the networks of this node.
    pub networks: BTreeMap<String, Remembered>,
}

/// What an agent knew of one network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Remembered {
    /// How many endpoints it had, on all nodes.
    pub endpoints: usize,
    /// A sum over their names.
    pub digest: u64,
    /// Since which revision removals are held.
    pub held: Option<i64>,
}

/// A network of which an earlier agent knew what is absent now.
#[derive(Clone, Debug)]
pub(super) struct Unsure {
    /// `None` where nobody knew it, but it stands in the kernel.
    remembered: Option<Remembered>,
    nodes: u64,
    pub(super) since: i64,
    pub(super) reason: HoldReason,
}

/// A number for an endpoint of a network. Those of all of them are added up, so that one more or less costs one addition.
pub(in crate::desired) fn digest(id: &EndpointId) -> u64 {
    let [node, endpoint] = [&id.node, &id.endpoint].map(|name| stable_hash(name.as_str().as_bytes()));
    node.rotate_left(17).wrapping_add(endpoint).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

impl Store {
    /// What an agent before this one knew. To be told before the first listing.
    pub fn remember(&mut self, memory: Memory) {
        self.guard.remembered = Some(memory);
    }

    /// What an agent after this one should know, once there was a complete snapshot.
    pub fn memory(&self) -> Option<Memory> {
        if !self.is_complete() {
            return None;
        }
        let held = |name: &Name| self.guard.held.get(name).map(|held| held.since);
        let here = self.networks.iter().filter(|(_, state)| state.told.is_some());
        let mut networks: BTreeMap<String, Remembered> = here
            .map(|(name, state)| {
                let remembered = Remembered { held: held(name).or_else(|| held(&Name::host())), ..self.now(name) };
                (name.to_string(), Remembered { endpoints: state.endpoints.len(), ..remembered })
            })
            .collect();
        for (name, unsure) in &self.guard.unsure {
            if let Some(remembered) = &unsure.remembered {
                networks.insert(name.to_string(), Remembered { held: Some(unsure.since), ..remembered.clone() });
            }
        }
        let Trusted { identity, cluster, revision } = self.guard.trusted.clone();
        let nodes = self.guard.unsure.values().next().map_or(self.node_sum, |unsure| unsure.nodes);
        let doubt = self.guard.doubt.map(|(doubt, since, _)| (doubt, since));
        Some(Memory { store: identity, cluster, revision, doubt, nodes, networks })
    }

    /// What is known of a network now.
    fn now(&self, name: &Name) -> Remembered {
        let state = self.networks.get(name);
        let endpoints = state.map_or(0, |state| state.endpoints.len());
        Remembered { endpoints, digest: state.map_or(0, |state| state.digest), held: None }
    }

    /// Compares the first complete snapshot with what an earlier agent knew. What is absent is not in force any more, but the
    /// kernel may hold it: removals of such networks are held there.
    pub(in crate::desired) fn judge_first(&mut self) {
        if !self.is_complete() {
            return;
        }
        let Some(memory) = self.guard.remembered.take() else { return };
        self.guard.trusted =
            Trusted { identity: memory.store.clone(), cluster: memory.cluster, revision: memory.revision };
        let listed = Listed {
            identity: self.identity.as_ref().map(|held| held.value.clone()),
            any_network: self.has_networks(),
            cluster: self.guard.cluster,
            went_back: self.revision < memory.revision,
        };
        let doubt = self.guard.trusted.doubts(&listed, !memory.networks.is_empty());
        // The store may have gone on since, but what it lacks it may lack still.
        let doubt = doubt.or(memory.doubt.map(|(doubt, _)| doubt));
        let since = memory.doubt.map_or_else(
            || match &self.identity {
                Some(held) if doubt == Some(Doubt::IdentityChanged) => held.rank.create_revision,
                _ => self.revision,
            },
            |(_, since)| since,
        );
        if let Some(doubt) = doubt {
            self.guard.doubt = Some((doubt, since, self.revision));
        }
        let mut fell: BTreeMap<Name, usize> = BTreeMap::new();
        let known = memory.networks.iter().filter_map(|(name, remembered)| Some((name.parse().ok()?, remembered)));
        let known: Vec<(Name, &Remembered)> = known.collect();
        for (name, remembered) in &known {
            // To delete a network is intent.
            if self.networks.get(name).is_some_and(|state| state.record.is_some()) {
                fell.insert(name.clone(), remembered.endpoints.saturating_sub(self.now(name).endpoints));
            }
        }
        let beyond = self.fell_beyond(&fell, &memory);
        for (name, remembered) in known {
            let as_ever = self.is_as(&name, remembered) && memory.nodes == self.node_sum;
            let reason = match (doubt, &beyond) {
                (Some(doubt), _) => Some(HoldReason::Doubt(doubt)),
                (None, Withheld::Endpoints(networks)) if networks.contains(&name) => Some(HoldReason::MaxRemoval),
                (None, _) => remembered.held.map(|_| HoldReason::MaxRemoval),
            };
            if let Some(reason) = reason.filter(|_| !as_ever) {
                let since = remembered.held.unwrap_or(since);
                let remembered = Some(remembered.clone());
                self.guard.unsure.insert(name, Unsure { remembered, nodes: memory.nodes, since, reason });
            }
        }
    }

    /// Which networks have lost more than may go at once, by what they had.
    fn fell_beyond(&self, fell: &BTreeMap<Name, usize>, memory: &Memory) -> Withheld {
        let most = usize::from(self.config.max_removal);
        let beyond = |name: &Name, gone: usize| {
            let had = memory.networks.get(name.as_str()).map_or(0, |remembered| remembered.endpoints);
            gone >= super::FREE && gone.saturating_mul(100) > had.saturating_mul(most)
        };
        let networks = fell.iter().filter(|(name, gone)| beyond(name, **gone)).map(|(name, _)| name.clone());
        Withheld::Endpoints(networks.collect())
    }

    /// Whether there is a record of a network, be it a bad one.
    fn has_networks(&self) -> bool {
        let is_network =
            |whole: &Vec<u8>| matches!(self.native_key(whole), Ok(Key::Network(_))) || self.docker_key(whole).is_some();
        self.networks.values().any(|state| state.record.is_some()) || self.bad.keys().any(is_network)
    }

    fn is_as(&self, name: &Name, remembered: &Remembered) -> bool {
        let now = self.now(name);
        (now.endpoints, now.digest) == (remembered.endpoints, remembered.digest)
    }

    /// An agent without memory finds these networks in the kernel, and a store that has neither networks nor an identity: they
    /// may be another store's.
    pub fn find_unlisted(&mut self, networks: impl IntoIterator<Item = Name>) {
        if self.identity.is_some() || self.has_networks() {
            return;
        }
        let (since, reason) = (self.revision, HoldReason::Doubt(Doubt::Empty));
        for name in networks {
            let unsure = || Unsure { remembered: None, nodes: self.node_sum, since, reason };
            self.guard.unsure.entry(name).or_insert_with(unsure);
        }
    }

    /// Networks of an earlier agent's of which everything is there again, or approved to go, are like any other.
    pub(super) fn recall(&mut self) {
        let as_ever = |(name, unsure): &(&Name, &Unsure)| match &unsure.remembered {
            Some(remembered) => self.is_as(name, remembered) && unsure.nodes == self.node_sum,
            None => self.networks.get(*name).is_some_and(|state| state.told.is_some()),
        };
        let over = self
            .guard
            .unsure
            .iter()
            .filter(|(name, unsure)| as_ever(&(*name, *unsure)) || self.is_approved(name, unsure.since));
        for name in over.map(|(name, _)| name.clone()).collect::<Vec<_>>() {
            self.guard.unsure.remove(&name);
        }
    }

    /// Networks that removals are held of in the kernel, and why.
    pub fn unsure(&self) -> impl Iterator<Item = (&Name, HoldReason)> {
        self.guard.unsure.iter().map(|(name, unsure)| (name, unsure.reason))
    }

    /// Takes the store for the one it is, once nothing of the one before is held, nor in the way of what it has. Returns whether
    /// there is something to be decided again.
    pub(in crate::desired) fn trust(&mut self) -> bool {
        if !self.is_complete() {
            return false;
        }
        if self.guard.doubt.is_some() {
            self.guard.contested = self.contested();
            let over = self.guard.held.is_empty() && self.guard.unsure.is_empty() && self.guard.contested.is_empty();
            if !over {
                return false;
            }
            self.guard.doubt = None;
        }
        let identity = self.identity.as_ref().map(|held| &held.value);
        let cluster = self.guard.cluster;
        if self.guard.trusted.identity.as_ref() != identity {
            self.guard.trusted.identity = identity.cloned();
        }
        (self.guard.trusted.cluster, self.guard.trusted.revision) = (cluster, self.revision);
        let any = !self.guard.put_off.is_empty();
        self.take_put_off();
        any
    }
}
