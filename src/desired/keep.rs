//! The store-wide stage: sets a record's value, with all that is claimed and counted because of it.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use super::{
    claims::{Claim, Rank},
    records::{EndpointState, EndpointValue, Held, Standing, segment_claims},
    removal::digest,
    store::Store,
};
use crate::{
    model::{EndpointId, Name, Network, stable_hash},
    schema::Key,
};

impl Store {
    pub(super) fn set_node(&mut self, node: &Name, new: Option<Held<IpAddr>>) -> bool {
        let node = canonical(&mut self.nodes, node);
        let Some(state) = self.nodes.get_mut(&node) else { return false };
        if let (Some(held), Some(new)) = (&mut state.record, &new)
            && (held.rank == new.rank && held.value == new.value)
        {
            held.modified = new.modified;
            return false;
        }
        self.reportable = true;
        // Whoever lives there may have to be told anew; what it is now is kept for comparison before it changes.
        self.touch_node(&node);
        self.batch.moved.insert(node.clone());
        let Some(state) = self.nodes.get_mut(&node) else { return false };
        let before = std::mem::replace(&mut state.record, new);
        let sum = |held: &Held<IpAddr>| stable_hash(format!("{node} {}", held.value).as_bytes());
        self.node_sum = self.node_sum.wrapping_sub(before.as_ref().map_or(0, sum));
        self.node_sum = self.node_sum.wrapping_add(state.record.as_ref().map_or(0, sum));
        if let Some(held) = &before {
            self.heads.leave(&held.rank, &[Claim::Vtep(held.value)]);
            self.losers.remove(&held.rank);
            self.misfits.remove(&held.rank.key);
            let next = self.node_quota.leave(&held.rank);
            next.into_iter().for_each(|next| self.heads.again(next));
        }
        let Some(held) = &state.record else {
            state.in_force = false;
            self.batch.left.insert(node.clone());
            self.batch.nodes.insert(node);
            return before.is_some();
        };
        self.heads.enter(&held.rank, &[Claim::Vtep(held.value)]);
        let over = self.node_quota.enter(&held.rank, self.limits.nodes);
        over.into_iter().for_each(|over| self.heads.again(over));
        true
    }

    pub(super) fn set_network(&mut self, network: &Name, new: Option<Held<Arc<Network>>>) -> bool {
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
            (Some(before), Some(after)) => {
                before.subnets == after.subnets
                    && before.unbound == after.unbound
                    && before.unallocated == after.unallocated
                    && before.internal == after.internal
            }
            _ => false,
        };
        self.reportable = true;
        self.batch.specs.insert(network.clone());
        if !same {
            self.touch_network(&network);
            self.batch.networks.insert(network.clone());
        }
        let Some(state) = self.networks.get_mut(&network) else { return false };
        let before = std::mem::replace(&mut state.record, new);
        self.docker.renamed |= before.is_some() != state.record.is_some();
        if let Some(held) = &state.record {
            *self.ports.entry(held.value.port).or_default() += 1;
        }
        if let Some(held) = &before
            && let Some(count) = self.ports.get_mut(&held.value.port)
        {
            *count -= 1;
            self.ports.retain(|_, count| *count > 0);
        }
        if let Some(held) = &before {
            self.heads.leave(&held.rank, &segment_claims(&held.value));
            self.losers.remove(&held.rank);
            self.misfits.remove(&held.rank.key);
            let next = self.network_quota.leave(&held.rank);
            next.into_iter().for_each(|next| self.heads.again(next));
        }
        let Some(held) = &state.record else {
            state.in_force = false;
            return before.is_some();
        };
        self.heads.enter(&held.rank, &segment_claims(&held.value));
        let over = self.network_quota.enter(&held.rank, self.limits.networks);
        over.into_iter().for_each(|over| self.heads.again(over));
        true
    }

    pub(super) fn set_endpoint(&mut self, network: &Name, id: &EndpointId, mut new: Held<EndpointValue>) -> bool {
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
            if state.number == 0 {
                self.networks_numbered += 1;
                state.number = self.networks_numbered;
            }
            let most = self.limits.endpoints;
            if state.quota.is_idle() && state.endpoints.len() >= most {
                state.endpoints.values().for_each(|other| drop(state.quota.enter(&other.held.rank, most)));
            }
            let over = if state.endpoints.len() < most { None } else { state.quota.enter(&new.rank, most) };
            self.batch.ends.extend(over.and_then(|over| endpoint_of(&over)));
            let state_of = EndpointState { held: new, standing: Standing::Pending, behind: None };
            state.endpoints.insert(id.clone(), state_of);
            state.digest = state.digest.wrapping_add(digest(&id));
            self.pending += 1;
            self.endpoints += 1;
        }
        self.batch.ends.insert((network, id));
        true
    }

    pub(super) fn remove_endpoint(&mut self, network: &Name, id: &EndpointId) -> bool {
        let known = self.networks.get(network).is_some_and(|state| state.endpoints.contains_key(id));
        if !known {
            return false;
        }
        self.touch(network, id);
        self.set_standing(network, id, Standing::Pending);
        let network = canonical(&mut self.networks, network);
        let node = canonical(&mut self.nodes, &id.node);
        let Some(state) = self.networks.get_mut(&network) else { return false };
        if let Some(gone) = state.endpoints.remove(id) {
            state.digest = state.digest.wrapping_sub(digest(id));
            let next = state.quota.leave(&gone.held.rank);
            state.quota.rest();
            self.batch.ends.extend(next.and_then(|next| endpoint_of(&next)));
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

fn endpoint_of(rank: &Rank) -> Option<(Name, EndpointId)> {
    match &*rank.key {
        Key::Endpoint { network, id } => Some((network.clone(), id.clone())),
        _ => None,
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
