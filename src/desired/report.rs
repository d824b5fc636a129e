//! The store-wide stage: what there is to say about it.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    claims::{Claim, Claims, Rank},
    records::{Standing, segment_claims},
    store::Store,
};
use crate::{
    model::{Name, Netns},
    schema::{Key, Reason, Rejected, docker},
};

/// Why a record that is in force cannot be made on this node now. Closed: it is a metric's label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BlockedReason {
    /// It asks for something that this version does not do.
    Unsupported,
    /// The underlay leaves it less than the least MTU.
    Mtu,
    /// Its endpoints are behind VTEPs of both families, and a VXLAN device is of one.
    MixedUnderlay,
    /// An older endpoint of this node has its MAC address.
    Mac,
}

impl BlockedReason {
    /// The label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unsupported => "unsupported",
            Self::Mtu => "mtu",
            Self::MixedUnderlay => "mixed_underlay",
            Self::Mac => "mac",
        }
    }
}

/// A record that lost a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The loser.
    pub key: Key,
    /// Its field that asks for what another record holds.
    pub field: &'static str,
    /// What it asks for, in words.
    pub claim: String,
    /// The record that holds it.
    pub holder: Key,
}

/// A record that is in force and cannot be made on this node now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocked {
    /// The record.
    pub key: Key,
    /// Why.
    pub reason: BlockedReason,
}

/// A network on this node whose own `mtu` and the encapsulation are more than the underlay carries. It is made as asked: the
/// kernel sends its largest frames in fragments, which are slow and may be dropped on the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Excess {
    /// The network.
    pub key: Key,
    /// What it asks for, in bytes.
    pub mtu: u32,
    /// What VXLAN adds.
    pub overhead: u32,
    /// The underlay link's MTU.
    pub underlay: u32,
}

/// How many records stand how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Nodes with a record.
    pub nodes: usize,
    /// Networks with a record.
    pub networks: usize,
    /// Endpoints with a good record.
    pub endpoints: usize,
    /// Endpoints that wait for their network or their node, and records of Docker's that are not complete yet.
    pub pending: usize,
    /// Records that lost a claim.
    pub conflicts: usize,
    /// Rejected records by reason.
    pub rejected: BTreeMap<Reason, usize>,
    /// Blocked networks, and blocked endpoints of this node, by reason.
    pub blocked: BTreeMap<BlockedReason, usize>,
    /// Networks on this node whose `mtu` does not fit the underlay.
    pub excesses: usize,
}

impl Store {
    /// Whether a network was told that it exists on this node.
    pub fn is_told(&self, network: &Name) -> bool {
        self.networks.get(network).is_some_and(|state| state.told.is_some())
    }

    /// The last revision that was heard.
    pub const fn revision(&self) -> i64 {
        self.revision
    }

    /// The store's own identity, if it has one.
    pub fn identity(&self) -> Option<&str> {
        self.identity.as_ref().map(|held| held.value.as_str())
    }

    /// Up to which revision held removals of a network may go.
    pub fn approval(&self, network: &Name) -> Option<i64> {
        self.approvals.get(network).map(|held| held.value)
    }

    /// Whether [`Store::counts`], [`Store::conflicts`], [`Store::blocked`] or [`Store::excesses`], which pass over all that is not
    /// as it should be, may say something else than at the last call of this.
    pub fn take_reportable(&mut self) -> bool {
        let counts = (self.pending + self.docker.waiting(), self.losers.len(), self.misfits.len());
        std::mem::take(&mut self.reportable) | (std::mem::replace(&mut self.reported, counts) != counts)
    }

    /// Numbers for metrics and status.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts {
            nodes: self.nodes.values().filter(|state| state.record.is_some()).count(),
            networks: self.networks.values().filter(|state| state.record.is_some()).count(),
            endpoints: self.endpoints,
            pending: self.pending + self.docker.pending(),
            conflicts: self.losers.len(),
            excesses: self.excesses().count(),
            ..Counts::default()
        };
        for rejected in self.bad.values().map(|bad| &bad.rejected).chain(self.misfits.values()) {
            *counts.rejected.entry(rejected.reason).or_default() += 1;
        }
        for blocked in self.blocked() {
            *counts.blocked.entry(blocked.reason).or_default() += 1;
        }
        counts
    }

    /// All records that are rejected now. Of those that had a good version before, that version stays in force.
    pub fn rejections(&self) -> impl Iterator<Item = &Rejected> {
        self.bad.values().map(|bad| &bad.rejected).chain(self.misfits.values())
    }

    /// Rejections that came up since the last call.
    pub fn take_new_rejections(&mut self) -> Vec<Rejected> {
        std::mem::take(&mut self.batch.rejected)
    }

    /// Keys whose last version is bad and that had others before but no good one that is known, with the revision of the bad
    /// one: a good one may stand in etcd's history.
    pub fn without_predecessor(&self) -> impl Iterator<Item = (&[u8], i64)> {
        let record = |whole: &[u8]| self.native_key(whole).is_ok() || self.docker_key(whole).is_some();
        self.bad
            .iter()
            .filter(move |(whole, bad)| bad.created < bad.modified && record(whole) && !self.has_good_version(whole))
            .map(|(whole, bad)| (whole.as_slice(), bad.modified))
    }

    /// Whether some version of a record is in force.
    pub fn has_good_version(&self, whole: &[u8]) -> bool {
        self.held_at(whole).is_some()
    }

    /// Networks of which nothing may be removed, each with the bad record because of which it is so: what that said while it
    /// was good cannot be found, so that nobody can tell what stands on its word.
    pub fn held(&self) -> BTreeMap<Name, &Rejected> {
        let mut held = BTreeMap::new();
        if self.lost == 0 {
            return held;
        }
        for (whole, bad) in self.bad.iter().filter(|(whole, bad)| bad.lost && !self.has_good_version(whole)) {
            let networks = match self.native_key(whole) {
                Ok(Key::Network(network) | Key::Endpoint { network, .. }) => vec![network],
                Ok(Key::Node(node)) => self.networks_of(&node),
                Ok(_) => Vec::new(),
                Err(_) => self.docker_key(whole).map(|key| key.network().clone()).into_iter().collect(),
            };
            held.extend(networks.into_iter().map(|network| (network, &bad.rejected)));
        }
        held
    }

    /// The networks that have an endpoint on the node.
    pub(super) fn networks_of(&self, node: &Name) -> Vec<Name> {
        let keys = self.nodes.get(node).into_iter().flat_map(|state| &state.endpoints);
        let networks = keys.filter_map(|key| match &**key {
            Key::Endpoint { network, .. } => Some(network.clone()),
            _ => None,
        });
        networks.collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// All records that lost a claim, and to whom.
    pub fn conflicts(&self) -> impl Iterator<Item = Conflict> {
        self.losers.iter().filter_map(|rank| match &*rank.key {
            Key::Node(node) => {
                let held = self.nodes.get(node)?.record.as_ref()?;
                self.conflict(&self.heads, rank, &[Claim::Vtep(held.value)])
            }
            Key::Network(network) => {
                let held = self.networks.get(network)?.record.as_ref()?;
                self.conflict(&self.heads, rank, &segment_claims(&held.value))
            }
            Key::Endpoint { network, id } => {
                let state = self.networks.get(network)?;
                let endpoint = state.endpoints.get(id)?;
                let vni = endpoint.standing.vni()?;
                self.conflict(&self.ends, rank, &endpoint.held.value.claims(state.number, &id.node, vni))
            }
            _ => None,
        })
    }

    /// Networks in force, and endpoints of this node in force, that cannot be made here now.
    pub fn blocked(&self) -> impl Iterator<Item = Blocked> {
        let networks = self.networks.values().filter(|state| state.in_force).filter_map(|state| {
            let held = state.record.as_ref()?;
            let reason = self.blocked_network(state)?;
            Some(Blocked { key: (*held.rank.key).clone(), reason })
        });
        // Docker's endpoints know this node by its address.
        let by_address = self.own_vtep.filter(|_| self.config.docker_prefix.is_some()).and_then(docker::node_of);
        let own = [Some(self.config.node.clone()), by_address].into_iter().flatten();
        let own = own.filter_map(|node| self.nodes.get(&node)).flat_map(|state| &state.endpoints);
        let endpoints = own.filter_map(|key| {
            let Key::Endpoint { network, id } = &**key else { return None };
            let state = self.networks.get(network)?;
            let endpoint = state.endpoints.get(id)?;
            let (Standing::InForce(vni), Some(inner)) = (endpoint.standing, &endpoint.held.value.inner) else {
                return None;
            };
            let reason = if inner.netns == Netns::Host && !self.config.host_endpoints {
                BlockedReason::Unsupported
            } else if self.is_here(network, &id.node) && self.mac_is_taken(state, endpoint, vni) {
                BlockedReason::Mac
            } else {
                return None;
            };
            Some(Blocked { key: (*endpoint.held.rank.key).clone(), reason })
        });
        networks.chain(endpoints)
    }

    /// Networks on this node whose own `mtu` does not fit the underlay.
    pub fn excesses(&self) -> impl Iterator<Item = Excess> {
        self.networks.values().filter_map(|state| self.excess_of(state))
    }

    fn conflict(&self, claims: &Claims, rank: &Rank, asked: &[Claim]) -> Option<Conflict> {
        let (claim, holder) = claims.blocker(rank, asked)?;
        let (key, holder) = ((*rank.key).clone(), (*holder.key).clone());
        let docker = matches!(&key, Key::Network(of) | Key::Endpoint { network: of, .. } if self.is_docker(of));
        let field = if docker { claim.docker_field() } else { claim.field() };
        Some(Conflict { key, field, claim: claim.to_string(), holder })
    }
}
