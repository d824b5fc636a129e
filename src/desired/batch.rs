//! The store-wide stage: from what changed to one update per network.
//!
//! Whoever changes something first touches the endpoints that depend on it, which keeps what they meant before. Settling then
//! decides networks and nodes, fits endpoints into their networks, decides their claims, and tells the difference.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    sync::Arc,
};

use super::{
    EndpointSpec, Update,
    claims::Claim,
    fit::{Unfit, fit},
    records::{Family, Standing, segment_claims},
    store::Store,
};
use crate::{
    model::{EndpointId, Name},
    schema::{Key, Reason, Rejected, docker},
};

/// What is still to be settled.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// Networks whose endpoints must be fitted anew.
    pub(super) networks: BTreeSet<Name>,
    /// Nodes whose endpoints must be fitted anew.
    pub(super) nodes: BTreeSet<Name>,
    /// Nodes that may have another VTEP address now.
    pub(super) moved: BTreeSet<Name>,
    /// Endpoints that must be fitted anew.
    pub(super) ends: BTreeSet<(Name, EndpointId)>,
    /// Networks that may be something else now.
    pub(super) specs: BTreeSet<Name>,
    /// Nodes that a record or an endpoint left.
    pub(super) left: BTreeSet<Name>,
    /// What the touched endpoints meant here before.
    pub(super) before: BTreeMap<Name, BTreeMap<EndpointId, Option<EndpointSpec>>>,
    /// Rejections that nobody has been told yet.
    pub(super) rejected: Vec<Rejected>,
}

impl Store {
    /// The endpoint may change its meaning.
    pub(super) fn touch(&mut self, network: &Name, id: &EndpointId) {
        let Some(state) = self.networks.get(network) else { return };
        // A network that does not exist here is told whole when it comes to exist.
        let kept = self.batch.before.get(network).is_some_and(|before| before.contains_key(id));
        let before = if state.told.is_some() && !kept { Some(self.endpoint_spec(network, state, id)) } else { None };
        let entry = self.batch.before.entry(network.clone()).or_default();
        if let Some(before) = before {
            entry.insert(id.clone(), before);
        }
    }

    /// Which of those who share a MAC address is wired up here may change: the oldest is, and the next one when that goes.
    fn touch_holders(&mut self, mac: &Claim) {
        if !matches!(mac, Claim::SharedMac(..)) {
            return;
        }
        let oldest: Vec<Arc<Key>> = self.ends.holders(mac).take(2).map(|rank| Arc::clone(&rank.key)).collect();
        for key in oldest {
            if let Key::Endpoint { network, id } = &*key {
                self.touch(network, id);
            }
        }
    }

    /// All endpoints of the network may change their meaning.
    pub(super) fn touch_network(&mut self, network: &Name) {
        let Some(state) = self.networks.get(network) else { return };
        let ids: Vec<EndpointId> =
            if state.told.is_some() { state.endpoints.keys().cloned().collect() } else { Vec::new() };
        self.batch.before.entry(network.clone()).or_default();
        for id in ids {
            self.touch(network, &id);
        }
    }

    /// All endpoints of the node may change their meaning.
    pub(super) fn touch_node(&mut self, node: &Name) {
        let own = *node == self.config.node;
        if own && self.config.vtep.is_some() {
            return;
        }
        let endpoints = self.nodes.get(node).map(|state| state.endpoints.clone()).unwrap_or_default();
        for key in endpoints {
            let Key::Endpoint { network, id } = &*key else { continue };
            self.touch(network, id);
            if own {
                self.batch.specs.insert(network.clone());
            }
        }
    }

    /// What the endpoints of this node mean may be told from now on.
    pub(super) fn touch_own(&mut self) {
        let nodes: Vec<Name> =
            self.own_vtep.and_then(docker::node_of).into_iter().chain([self.config.node.clone()]).collect();
        for node in nodes {
            let endpoints = self.nodes.get(&node).map(|state| state.endpoints.clone()).unwrap_or_default();
            for key in endpoints {
                if let Key::Endpoint { network, id } = &*key {
                    self.touch(network, id);
                }
            }
        }
    }

    /// Brings everything to rest, and says what changed per network.
    pub(super) fn settle(&mut self) -> BTreeMap<Name, Update> {
        loop {
            self.make_of_docker();
            self.decide_heads();
            self.follow_own_vtep();
            self.fit_endpoints();
            self.decide_endpoints();
            if !self.give_way() && !self.trust() {
                break;
            }
        }
        self.count_moved();
        let updates = if self.knows_heads() { self.tell() } else { BTreeMap::new() };
        for node in mem::take(&mut self.batch.left) {
            if self.nodes.get(&node).is_some_and(|state| state.record.is_none() && state.endpoints.is_empty()) {
                self.nodes.remove(&node);
            }
        }
        updates
    }

    fn decide_heads(&mut self) {
        while let Some(rank) = self.heads.next() {
            let key = Arc::clone(&rank.key);
            let claims = match &*key {
                Key::Node(node) => {
                    let record = self.nodes.get(node).and_then(|state| state.record.as_ref());
                    record.map(|held| vec![Claim::Vtep(held.value)])
                }
                Key::Network(network) => {
                    let record = self.networks.get(network).and_then(|state| state.record.as_ref());
                    record.map(|held| segment_claims(&held.value))
                }
                _ => None,
            };
            let Some(claims) = claims else { continue };
            let (quota, limit) = match &*key {
                Key::Node(_) => (&self.node_quota, self.limits.nodes),
                _ => (&self.network_quota, self.limits.networks),
            };
            let beyond = quota.is_beyond(&rank);
            let wins = self.heads.decide(&rank, &claims, !beyond);
            if beyond {
                let rejected = Rejected::new(b"", "", Reason::Count, &format!("{limit} of its kind are older"));
                self.refuse(&key, rejected);
            } else {
                self.misfits.remove(&key);
            }
            if wins || beyond {
                self.losers.remove(&rank);
            } else {
                self.reportable = true;
                self.losers.insert(rank);
            }
            match &*key {
                Key::Node(node) if self.nodes.get(node).is_some_and(|state| state.in_force != wins) => {
                    self.touch_node(node);
                    if let Some(state) = self.nodes.get_mut(node) {
                        state.in_force = wins;
                    }
                    self.batch.nodes.insert(node.clone());
                }
                Key::Network(network) if self.networks.get(network).is_some_and(|state| state.in_force != wins) => {
                    self.touch_network(network);
                    if let Some(state) = self.networks.get_mut(network) {
                        state.in_force = wins;
                    }
                    self.batch.specs.insert(network.clone());
                    self.batch.networks.insert(network.clone());
                }
                _ => {}
            }
        }
    }

    /// Endpoints of Docker's live where their locator says. Those at this node's old and new address change sides.
    fn follow_own_vtep(&mut self) {
        let now = self.vtep_of(&self.config.node);
        if now == self.own_vtep {
            return;
        }
        let nodes = [self.own_vtep, now].into_iter().flatten().filter_map(docker::node_of);
        for node in nodes.collect::<Vec<_>>() {
            let keys = self.nodes.get(&node).map(|state| state.endpoints.clone()).unwrap_or_default();
            for key in keys {
                let Key::Endpoint { network, id } = &*key else { continue };
                if self.is_docker(network) {
                    self.set_standing(network, id, Standing::Pending);
                    self.batch.ends.insert((network.clone(), id.clone()));
                    self.batch.specs.insert(network.clone());
                }
            }
        }
        self.own_vtep = now;
    }

    fn fit_endpoints(&mut self) {
        let mut ends = mem::take(&mut self.batch.ends);
        for network in mem::take(&mut self.batch.networks) {
            let state = self.networks.get(&network);
            let ids = state.into_iter().flat_map(|state| state.endpoints.keys());
            ends.extend(ids.map(|id| (network.clone(), id.clone())));
        }
        for node in mem::take(&mut self.batch.nodes) {
            let state = self.nodes.get(&node);
            let keys = state.into_iter().flat_map(|state| &state.endpoints);
            ends.extend(keys.filter_map(|key| match &**key {
                Key::Endpoint { network, id } => Some((network.clone(), id.clone())),
                _ => None,
            }));
        }
        for (network, id) in ends {
            let Some((now, unfit)) = self.fitted(&network, &id) else { continue };
            self.set_standing(&network, &id, now);
            if let Some((field, reason, message)) = unfit {
                self.reject_misfit(&network, &id, Rejected::new(b"", &field, reason, &message));
            }
        }
    }

    fn reject_misfit(&mut self, network: &Name, id: &EndpointId, mut rejected: Rejected) {
        let endpoint = self.networks.get(network).and_then(|state| state.endpoints.get(id));
        let Some(key) = endpoint.map(|endpoint| Arc::clone(&endpoint.held.rank.key)) else { return };
        if self.is_docker(network) {
            rejected.field = docker_field(&rejected.field).to_owned();
        }
        self.refuse(&key, rejected);
    }

    /// Refuses a record because of what others say.
    fn refuse(&mut self, key: &Arc<Key>, mut rejected: Rejected) {
        rejected.key = self.whole_key(key);
        self.reportable = true;
        if self.misfits.insert(Arc::clone(key), rejected.clone()).as_ref() != Some(&rejected) {
            self.batch.rejected.push(rejected);
        }
    }

    /// How the endpoint stands before its claims are decided. One that claims on the same segment as before stands as it did.
    fn fitted(&self, network: &Name, id: &EndpointId) -> Option<(Standing, Option<Unfit>)> {
        let state = self.networks.get(network)?;
        let endpoint = state.endpoints.get(id)?;
        if state.quota.is_beyond(&endpoint.held.rank) {
            let message = format!("{} endpoints of the network are older", self.limits.endpoints);
            return Some((Standing::Misfit, Some((String::new(), Reason::Count, message))));
        }
        let record = state.record.as_ref().filter(|_| state.in_force);
        let Some(record) = record.filter(|_| self.vtep_behind(network, &id.node).is_some()) else {
            return Some((Standing::Pending, None));
        };
        Some(match fit(&record.value, &endpoint.held.value.ip, endpoint.held.value.mac) {
            Ok(None) => (Standing::Pending, None),
            Ok(vni) if endpoint.standing.vni() == vni => (endpoint.standing, None),
            Ok(Some(vni)) => (Standing::Lost(vni), None),
            Err(unfit) => (Standing::Misfit, Some(unfit)),
        })
    }

    fn decide_endpoints(&mut self) {
        while let Some(rank) = self.ends.next() {
            let key = Arc::clone(&rank.key);
            let Key::Endpoint { network, id } = &*key else { continue };
            let Some(state) = self.networks.get(network) else { continue };
            let (number, endpoint) = (state.number, state.endpoints.get(id));
            let Some(endpoint) = endpoint else { continue };
            let Some(vni) = endpoint.standing.vni() else { continue };
            let claims = endpoint.held.value.claims(number, &id.node, vni);
            let mac = endpoint.held.value.mac_claim(number, vni);
            self.touch_holders(&mac);
            if self.ends.decide(&rank, &claims, true) {
                self.losers.remove(&rank);
                self.set_standing(network, id, Standing::InForce(vni));
            } else {
                self.reportable = true;
                self.losers.insert(rank);
                self.set_standing(network, id, Standing::Lost(vni));
            }
        }
    }

    /// Endpoints stay in force when their node gets another VTEP address, which may be of the other family.
    fn count_moved(&mut self) {
        for node in mem::take(&mut self.batch.moved) {
            let keys = self.nodes.get(&node).map(|state| state.endpoints.clone()).unwrap_or_default();
            for key in keys {
                let Key::Endpoint { network, id } = &*key else { continue };
                self.count_behind(network, id);
            }
        }
    }

    /// Counts the endpoint by the family of the VTEP that it is behind now.
    fn count_behind(&mut self, network: &Name, id: &EndpointId) {
        let vtep = self.vtep_behind(network, &id.node);
        let Some(state) = self.networks.get_mut(network) else { return };
        let was_mixed = state.behind.is_mixed();
        let Some(endpoint) = state.endpoints.get_mut(id) else { return };
        let now = vtep.filter(|_| endpoint.standing.is_in_force()).map(Family::from);
        let before = mem::replace(&mut endpoint.behind, now);
        state.behind.count(before, now);
        if was_mixed != state.behind.is_mixed() {
            self.batch.specs.insert(network.clone());
        }
    }

    /// Changes how an endpoint stands, with all that is counted by it and claimed because of it.
    pub(super) fn set_standing(&mut self, network: &Name, id: &EndpointId, mut now: Standing) {
        let before = self.networks.get(network).and_then(|state| state.endpoints.get(id));
        let Some(before) = before.map(|endpoint| endpoint.standing).filter(|before| *before != now) else { return };
        self.touch(network, id);
        let Some(state) = self.networks.get(network) else { return };
        let (number, endpoint) = (state.number, state.endpoints.get(id));
        let mac = endpoint.zip(before.vni()).map(|(endpoint, vni)| endpoint.held.value.mac_claim(number, vni));
        mac.iter().for_each(|mac| self.touch_holders(mac));
        let here = self.is_here(network, &id.node);
        let Some(state) = self.networks.get_mut(network) else { return };
        let Some(endpoint) = state.endpoints.get_mut(id) else { return };
        let rank = &endpoint.held.rank;
        if before.vni() != now.vni() {
            if let Some(vni) = before.vni() {
                self.ends.leave(rank, &endpoint.held.value.claims(number, &id.node, vni));
                self.losers.remove(rank);
            }
            if let Some(vni) = now.vni() {
                let claims = endpoint.held.value.claims(number, &id.node, vni);
                if self.ends.hold_if_free(rank, &claims) {
                    now = Standing::InForce(vni);
                } else {
                    self.ends.enter(rank, &claims);
                }
            }
        }
        endpoint.standing = now;
        if before == Standing::Misfit {
            self.misfits.remove(&rank.key);
        }
        self.pending = self.pending + usize::from(now == Standing::Pending) - usize::from(before == Standing::Pending);
        if here {
            self.reportable = true;
            state.local = state.local + usize::from(now.is_in_force()) - usize::from(before.is_in_force());
        }
        self.count_behind(network, id);
    }

    /// The difference between what every network was told to be and what it is.
    fn tell(&mut self) -> BTreeMap<Name, Update> {
        let mut touched = mem::take(&mut self.batch.before);
        for network in &self.batch.specs {
            touched.entry(network.clone()).or_default();
        }
        let mut updates = BTreeMap::new();
        for (network, before) in touched {
            let Some(state) = self.networks.get(&network) else { continue };
            let spec = self.network_spec(&network, state);
            let mut update = Update { revision: self.revision, ..Update::default() };
            match (&state.told, &spec) {
                (None, None) => {}
                (Some(_), None) => update.spec = Some(None),
                (None, Some(_)) => {
                    update.spec = Some(spec.clone());
                    let all = state.endpoints.keys().map(|id| (id.clone(), self.endpoint_spec(&network, state, id)));
                    update.endpoints = all.filter(|(_, spec)| spec.is_some()).collect();
                }
                (Some(told), Some(now)) => {
                    if told != now {
                        update.spec = Some(spec.clone());
                    }
                    let all = before.into_iter().map(|(id, was)| (self.endpoint_spec(&network, state, &id), id, was));
                    update.endpoints = all.filter(|(now, _, was)| now != was).map(|(now, id, _)| (id, now)).collect();
                }
            }
            let told = update.spec.is_some();
            self.reportable |= told;
            if told || !update.endpoints.is_empty() {
                updates.insert(network.clone(), update);
            }
            let unused = spec.is_none() && state.record.is_none() && state.endpoints.is_empty();
            if unused {
                self.networks.remove(&network);
            } else if let Some(state) = self.networks.get_mut(&network).filter(|_| told) {
                state.told = spec;
            }
        }
        self.batch.specs.clear();
        updates
    }
}

/// The field of Docker's that holds what a native endpoint has in this one.
fn docker_field(native: &str) -> &'static str {
    match native {
        "" => "",
        "mac" => "ep_iface.mac",
        "ip[1]" => "ep_iface.addrv6",
        _ => "ep_iface.addr",
    }
}
