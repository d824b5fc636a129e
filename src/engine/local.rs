//! The endpoints of this host, and whether their namespaces are there to be wired.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use super::{
    interface::Place,
    key::{Family, LinkId},
    object::NetnsId,
};
use crate::{
    desired::LocalEndpoint,
    model::{EndpointId, Netns},
};

/// Whether a local endpoint's namespace is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum InnerStatus {
    Unknown,
    NoNetns,
    Refused(String),
    Present { id: NetnsId, nsid: Option<i32> },
}

/// A local endpoint.
#[derive(Clone, Debug)]
pub(super) struct Local {
    pub(super) spec: LocalEndpoint,
    pub(super) status: InnerStatus,
    /// How often it was looked for since its path showed up: the file shows before the namespace is mounted on it.
    pub(super) looks: u32,
    /// The last attempt to read it failed.
    pub(super) unreadable: bool,
    /// Another endpoint, by another path, has this namespace already: on the host it gets one interface of ours.
    pub(super) shadowed: bool,
    /// The families of which its namespace has a default route out of another link.
    pub(super) defaults_elsewhere: BTreeSet<Family>,
}

impl Local {
    pub(super) fn new(spec: LocalEndpoint) -> Self {
        Self {
            spec,
            status: InnerStatus::Unknown,
            looks: 1,
            unreadable: false,
            shadowed: false,
            defaults_elsewhere: BTreeSet::new(),
        }
    }

    /// Whether what stands at its path, if anything does, is known and may be used.
    pub(super) fn known(&self) -> bool {
        !self.unreadable && !matches!(self.status, InnerStatus::Refused(_) | InnerStatus::Unknown)
    }

    pub(super) fn wired(&self) -> bool {
        matches!(self.status, InnerStatus::Present { .. }) && !self.shadowed
    }
}

/// The local endpoints of a network, and how they are found.
#[derive(Debug, Default)]
pub(super) struct Locals {
    pub(super) by_id: BTreeMap<EndpointId, Local>,
    /// By the path of their namespace, which several may share.
    pub(super) by_path: BTreeMap<PathBuf, BTreeSet<EndpointId>>,
    /// By the names of their overlay ends, by which an agent without memory knows them.
    pub(super) by_outer_name: BTreeMap<String, EndpointId>,
}

impl Locals {
    /// Those that live in the namespace with this identifier.
    pub(super) fn at(&self, nsid: i32) -> Vec<EndpointId> {
        let there = |local: &Local| matches!(local.status, InnerStatus::Present { nsid: Some(n), .. } if n == nsid);
        self.by_id.iter().filter(|(_, local)| there(local)).map(|(id, _)| id.clone()).collect()
    }

    /// Those whose namespace is this one.
    pub(super) fn in_netns(&self, netns: &Netns) -> Vec<EndpointId> {
        match netns.path() {
            Some(path) => self.by_path.get(path).into_iter().flatten().cloned().collect(),
            None => self.by_id.iter().filter(|(_, l)| l.spec.netns == *netns).map(|(id, _)| id.clone()).collect(),
        }
    }

    /// Where a link of the network is.
    pub(super) fn place_of(&self, link: &LinkId) -> Option<Place> {
        match link {
            LinkId::Inner(endpoint) => self.by_id.get(endpoint).map(|local| Place::Inner(local.spec.netns.clone())),
            _ => Some(Place::Overlay),
        }
    }

    /// Takes an endpoint out.
    pub(super) fn remove(&mut self, id: &EndpointId, outer_name: &str) -> Option<Local> {
        let local = self.by_id.remove(id)?;
        if let Some(path) = local.spec.netns.path()
            && let Some(at_path) = self.by_path.get_mut(path)
        {
            at_path.remove(id);
            if at_path.is_empty() {
                self.by_path.remove(path);
            }
        }
        self.by_outer_name.remove(outer_name);
        Some(local)
    }

    /// Puts an endpoint in of which nothing is known yet.
    pub(super) fn insert(&mut self, id: &EndpointId, outer_name: String, spec: LocalEndpoint) {
        self.by_outer_name.insert(outer_name, id.clone());
        if let Some(path) = spec.netns.path() {
            self.by_path.entry(path.to_owned()).or_default().insert(id.clone());
        }
        self.by_id.insert(id.clone(), Local::new(spec));
    }
}
