//! The store-wide stage: Docker's records, and what they come to in the nouns of the native ones.
//!
//! A network is two records, an endpoint waits until Docker has completed it, and the name of its interface depends on what
//! else its sandbox has. So records are only kept at first; before everything is settled, those that changed are made into
//! networks and endpoints like any other, and decided with them.

mod made;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use crate::{
    model::{EndpointId, Name, Network},
    schema::{DEFAULT_PORT, Rejected, docker},
};

/// A record's last good version.
#[derive(Debug)]
struct Doc<T> {
    created: i64,
    modified: i64,
    value: T,
}

/// An endpoint's record, and what was made of it.
#[derive(Debug)]
struct EndpointDoc {
    doc: Doc<docker::Endpoint>,
    /// The number of its interface in its sandbox.
    number: u32,
    /// Who it is among all endpoints, since it is one.
    made: Option<EndpointId>,
    /// It lacks what Docker has yet to write.
    waits: bool,
}

/// All records of one identifier.
#[derive(Debug, Default)]
struct NetworkDocs {
    /// `None` in it is a network that is none of ours.
    network: Option<Doc<Option<docker::Network>>>,
    overlay: Option<Doc<docker::Overlay>>,
    endpoints: BTreeMap<Name, EndpointDoc>,
}

/// What a record says.
#[derive(Debug)]
pub(super) enum Value {
    Network(Option<docker::Network>),
    Overlay(docker::Overlay),
    Endpoint(docker::Endpoint),
}

/// A sandbox, and what the names of interfaces in it begin with.
type Sandbox = (PathBuf, String);

/// Docker's records.
#[derive(Debug, Default)]
pub(super) struct Docker {
    networks: BTreeMap<Name, NetworkDocs>,
    /// Endpoints of each sandbox in the order in which they get numbers: create revision, network, endpoint.
    sandboxes: BTreeMap<Sandbox, BTreeSet<(i64, Name, Name)>>,
    /// Networks by what people call them.
    names: BTreeMap<Name, BTreeSet<Name>>,
    /// A network of either layout came to its name, or left it.
    pub(super) renamed: bool,
    /// How many endpoints wait to be completed.
    waiting: usize,
    changed_networks: BTreeSet<Name>,
    changed_sandboxes: BTreeSet<Sandbox>,
    changed_endpoints: BTreeSet<(Name, Name)>,
    /// What was made of records that are no more.
    gone: Vec<(Name, EndpointId)>,
}

/// Decodes a record.
pub(super) fn decode(key: &docker::Key, whole: &[u8], value: &[u8]) -> Result<Value, Rejected> {
    Ok(match key {
        docker::Key::Network(_) => Value::Network(docker::network(whole, value)?),
        docker::Key::Overlay(_) => Value::Overlay(docker::overlay(whole, value)?),
        docker::Key::Endpoint { .. } => Value::Endpoint(docker::endpoint(whole, value)?),
    })
}

/// Sets a record. Returns whether that changed anything.
fn set<T: PartialEq>(held: &mut Option<Doc<T>>, new: Doc<T>) -> bool {
    let changed = held.as_ref().is_none_or(|held| held.created != new.created || held.value != new.value);
    *held = Some(new);
    changed
}

impl NetworkDocs {
    fn means_nothing(&self) -> bool {
        self.network.as_ref().is_some_and(|doc| doc.value.is_none())
    }

    /// It is to be a network, and something of it is not there yet.
    fn waits(&self) -> bool {
        let allocated = self.overlay.as_ref().is_some_and(|doc| !doc.value.subnets.is_empty());
        let any = self.network.is_some() || self.overlay.is_some();
        any && !self.means_nothing() && (self.network.is_none() || !allocated)
    }

    fn name(&self) -> Option<&Name> {
        self.network.as_ref()?.value.as_ref()?.name.as_ref()
    }

    /// The network that the records come to, with the create and the last revision of the one that asks for VNIs.
    fn made(&self) -> Option<(i64, i64, Network)> {
        let (network, overlay) = (self.network.as_ref()?.value.as_ref()?, self.overlay.as_ref()?);
        let record = &overlay.value;
        let made = Network {
            subnets: record.subnets.clone(),
            mtu: Some(record.mtu),
            port: DEFAULT_PORT,
            internal: network.internal,
            secure: record.secure,
            flood: false,
            spoof_guard: true,
            labels: BTreeMap::new(),
            unbound: network.pools_v6.clone(),
            unallocated: record.unallocated.clone(),
        };
        (!record.subnets.is_empty()).then_some((overlay.created, overlay.modified, made))
    }
}

impl Docker {
    /// Create and last revision of a record that is held.
    pub(super) fn held(&self, key: &docker::Key) -> Option<(i64, i64)> {
        const fn revisions<T>(doc: &Doc<T>) -> (i64, i64) {
            (doc.created, doc.modified)
        }
        let docs = self.networks.get(key.network())?;
        match key {
            docker::Key::Network(_) => docs.network.as_ref().map(revisions),
            docker::Key::Overlay(_) => docs.overlay.as_ref().map(revisions),
            docker::Key::Endpoint { endpoint, .. } => docs.endpoints.get(endpoint).map(|found| revisions(&found.doc)),
        }
    }

    /// The keys of all records that are held.
    pub(super) fn keys(&self) -> impl Iterator<Item = docker::Key> {
        self.networks.iter().flat_map(|(network, docs)| {
            let first = docs.network.iter().map(|_| docker::Key::Network(network.clone()));
            let second = docs.overlay.iter().map(|_| docker::Key::Overlay(network.clone()));
            let endpoints = docs.endpoints.keys().map(|endpoint| {
                let (network, endpoint) = (network.clone(), endpoint.clone());
                docker::Key::Endpoint { network, endpoint }
            });
            first.chain(second).chain(endpoints)
        })
    }

    /// How many endpoints wait to be completed.
    pub(super) const fn waiting(&self) -> usize {
        self.waiting
    }

    /// How many records wait for others, or to be completed.
    pub(super) fn pending(&self) -> usize {
        self.waiting + self.networks.values().filter(|docs| docs.waits()).count()
    }

    /// What people call a network.
    pub(super) fn name_of(&self, network: &Name) -> Option<&Name> {
        self.networks.get(network)?.name()
    }

    /// The networks that people call so.
    pub(super) fn named(&self, name: &Name) -> impl Iterator<Item = &Name> {
        self.names.get(name).into_iter().flatten()
    }

    /// Takes a version of a record. Returns whether anything changed.
    pub(super) fn put(&mut self, key: &docker::Key, created: i64, modified: i64, value: Value) -> bool {
        match (key, value) {
            (docker::Key::Network(network), Value::Network(value)) => {
                self.change_network(network, |docs| set(&mut docs.network, Doc { created, modified, value }))
            }
            (docker::Key::Overlay(network), Value::Overlay(value)) => {
                self.change_network(network, |docs| set(&mut docs.overlay, Doc { created, modified, value }))
            }
            (docker::Key::Endpoint { network, endpoint }, Value::Endpoint(value)) => {
                self.put_endpoint(network, endpoint, Doc { created, modified, value })
            }
            _ => false,
        }
    }

    /// Sets the last revision of a record that is held.
    pub(super) fn set_modified(&mut self, key: &docker::Key, modified: i64) {
        let Some(docs) = self.networks.get_mut(key.network()) else { return };
        let of = match key {
            docker::Key::Network(_) => docs.network.as_mut().map(|doc| &mut doc.modified),
            docker::Key::Overlay(_) => docs.overlay.as_mut().map(|doc| &mut doc.modified),
            docker::Key::Endpoint { endpoint, .. } => {
                docs.endpoints.get_mut(endpoint).map(|found| &mut found.doc.modified)
            }
        };
        of.into_iter().for_each(|of| *of = modified);
    }

    /// Whether the record that is held says this.
    pub(super) fn says(&self, key: &docker::Key, value: &Value) -> bool {
        let Some(docs) = self.networks.get(key.network()) else { return false };
        match (key, value) {
            (docker::Key::Network(_), Value::Network(value)) => {
                docs.network.as_ref().is_some_and(|doc| doc.value == *value)
            }
            (docker::Key::Overlay(_), Value::Overlay(value)) => {
                docs.overlay.as_ref().is_some_and(|doc| doc.value == *value)
            }
            (docker::Key::Endpoint { endpoint, .. }, Value::Endpoint(value)) => {
                docs.endpoints.get(endpoint).is_some_and(|found| found.doc.value == *value)
            }
            _ => false,
        }
    }

    /// Adds to the create revision of the record that is held.
    pub(super) fn rank_later(&mut self, key: &docker::Key, by: i64) -> bool {
        let Some(docs) = self.networks.get(key.network()) else { return false };
        let of = |doc: (i64, i64), value| Some((doc.0.saturating_add(by), doc.1, value));
        let new = match key {
            docker::Key::Network(_) => {
                docs.network.as_ref().and_then(|d| of((d.created, d.modified), Value::Network(d.value.clone())))
            }
            docker::Key::Overlay(_) => {
                docs.overlay.as_ref().and_then(|d| of((d.created, d.modified), Value::Overlay(d.value.clone())))
            }
            docker::Key::Endpoint { endpoint, .. } => {
                let doc = docs.endpoints.get(endpoint).map(|found| &found.doc);
                doc.and_then(|d| of((d.created, d.modified), Value::Endpoint(d.value.clone())))
            }
        };
        new.is_some_and(|(created, modified, value)| self.put(key, created, modified, value))
    }

    /// The record is no more. Returns whether anything changed.
    pub(super) fn delete(&mut self, key: &docker::Key) -> bool {
        match key {
            docker::Key::Network(network) => self.change_network(network, |docs| docs.network.take().is_some()),
            docker::Key::Overlay(network) => self.change_network(network, |docs| docs.overlay.take().is_some()),
            docker::Key::Endpoint { network, endpoint } => {
                let found = self.networks.get_mut(network).and_then(|docs| docs.endpoints.remove(endpoint));
                let Some(found) = found else { return false };
                self.leave_sandbox(network, endpoint, place(&found.doc));
                self.waiting -= usize::from(found.waits);
                self.gone.extend(found.made.map(|id| (network.clone(), id)));
                self.changed_networks.insert(network.clone());
                true
            }
        }
    }

    fn change_network(&mut self, network: &Name, change: impl FnOnce(&mut NetworkDocs) -> bool) -> bool {
        let docs = self.networks.entry(network.clone()).or_default();
        let (name, meant_nothing) = (docs.name().cloned(), docs.means_nothing());
        let changed = change(docs);
        if docs.means_nothing() != meant_nothing {
            self.changed_endpoints.extend(docs.endpoints.keys().map(|endpoint| (network.clone(), endpoint.clone())));
        }
        let now = docs.name().cloned();
        if now != name {
            self.renamed = true;
            if let Some(name) = name
                && let Some(others) = self.names.get_mut(&name)
            {
                others.remove(network);
                if others.is_empty() {
                    self.names.remove(&name);
                }
            }
            if let Some(now) = now {
                self.names.entry(now).or_default().insert(network.clone());
            }
        }
        self.changed_networks.insert(network.clone());
        changed
    }

    fn put_endpoint(&mut self, network: &Name, endpoint: &Name, new: Doc<docker::Endpoint>) -> bool {
        let docs = self.networks.entry(network.clone()).or_default();
        let (before, after) = (docs.endpoints.get(endpoint).and_then(|found| place(&found.doc)), place(&new));
        let changed = match docs.endpoints.get_mut(endpoint) {
            Some(found) => {
                let changed = found.doc.created != new.created || found.doc.value != new.value;
                found.doc = new;
                changed
            }
            None => {
                let found = EndpointDoc { doc: new, number: 0, made: None, waits: false };
                docs.endpoints.insert(endpoint.clone(), found);
                true
            }
        };
        self.changed_endpoints.insert((network.clone(), endpoint.clone()));
        if before != after {
            self.leave_sandbox(network, endpoint, before);
            if let Some((sandbox, created)) = after {
                let others = self.sandboxes.entry(sandbox.clone()).or_default();
                others.insert((created, network.clone(), endpoint.clone()));
                self.changed_sandboxes.insert(sandbox);
            }
        }
        changed
    }

    fn leave_sandbox(&mut self, network: &Name, endpoint: &Name, place: Option<(Sandbox, i64)>) {
        let Some((sandbox, created)) = place else { return };
        let Some(others) = self.sandboxes.get_mut(&sandbox) else { return };
        others.remove(&(created, network.clone(), endpoint.clone()));
        if others.is_empty() {
            self.sandboxes.remove(&sandbox);
        }
        self.changed_sandboxes.insert(sandbox);
    }
}

/// Where an endpoint's interface gets its number, and in what order.
fn place(doc: &Doc<docker::Endpoint>) -> Option<(Sandbox, i64)> {
    let netns = doc.value.netns.clone()?;
    Some(((netns, doc.value.prefix.clone()), doc.created))
}
