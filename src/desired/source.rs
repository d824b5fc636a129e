//! The store-wide stage: two layouts of keys, each below a prefix of its own, listed and watched on its own.

use std::net::IpAddr;

use super::store::Store;
use crate::{
    model::Name,
    schema::{Key, Reason, Rejected, docker},
};

/// A layout of keys, with the prefix that it stands below.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// This program's own.
    Native,
    /// Docker's.
    Docker,
}

impl Store {
    /// The layout that a whole key belongs to.
    pub(super) fn source_of(&self, whole: &[u8]) -> Source {
        let prefix = self.config.docker_prefix.as_ref().map(|prefix| prefix.trim_end_matches('/').as_bytes());
        let below = prefix.and_then(|prefix| whole.strip_prefix(prefix)).is_some_and(|rest| rest.starts_with(b"/"));
        if below { Source::Docker } else { Source::Native }
    }

    /// Whether a network is out of Docker's layout: there it goes by its identifier.
    pub(super) fn is_docker(&self, network: &Name) -> bool {
        self.config.docker_prefix.is_some() && docker::is_id(network)
    }

    /// Reads a key of the native layout. While Docker's is read as well, names of the form of its identifiers are its own.
    pub(super) fn native_key(&self, whole: &[u8]) -> Result<Key, Rejected> {
        let key = Key::parse(&self.config.prefix, whole)?;
        if let Key::Network(network) | Key::Endpoint { network, .. } = &key
            && self.is_docker(network)
        {
            let message = format!("a network named like an identifier of Docker's is Docker's: '{network}'");
            return Err(Rejected::new(whole, "", Reason::Key, &message));
        }
        Ok(key)
    }

    /// Reads a key of Docker's layout that means something.
    pub(super) fn docker_key(&self, whole: &[u8]) -> Option<docker::Key> {
        docker::Key::parse(self.config.docker_prefix.as_deref()?, whole).ok().flatten()
    }

    /// The whole key under which a record stands in etcd.
    pub fn whole_key(&self, key: &Key) -> String {
        let docker = match key {
            Key::Network(network) if self.is_docker(network) => Some(docker::Key::Overlay(network.clone())),
            Key::Endpoint { network, id } if self.is_docker(network) => {
                Some(docker::Key::Endpoint { network: network.clone(), endpoint: id.endpoint.clone() })
            }
            _ => None,
        };
        match (docker, &self.config.docker_prefix) {
            (Some(key), Some(prefix)) => key.under(prefix),
            _ => key.under(&self.config.prefix),
        }
    }

    /// The VTEP address that an endpoint of a network is behind, if it is in force. A node of Docker's is its address.
    pub(super) fn vtep_behind(&self, network: &Name, node: &Name) -> Option<IpAddr> {
        if self.is_docker(network) { docker::locator_of(node) } else { self.vtep_of(node) }
    }

    /// Whether an endpoint of a network lives on this node.
    pub(super) fn is_here(&self, network: &Name, node: &Name) -> bool {
        if self.is_docker(network) {
            self.own_vtep.is_some() && docker::locator_of(node) == self.own_vtep
        } else {
            *node == self.config.node
        }
    }

    /// Whether every layout was listed. Before that, what is absent may only be unknown.
    pub fn is_complete(&self) -> bool {
        self.listed.contains(&Source::Native)
            && (self.config.docker_prefix.is_none() || self.listed.contains(&Source::Docker))
    }

    /// Whether a network may be called otherwise than at the last call.
    pub fn take_renamed(&mut self) -> bool {
        std::mem::take(&mut self.docker.renamed) && self.config.docker_prefix.is_some()
    }

    /// What a network is called in metrics: Docker's by their name where no other network has it, else with the beginning of
    /// the identifier, else by the identifier.
    pub fn shown_name(&self, network: &Name) -> Name {
        if !self.is_docker(network) {
            return network.clone();
        }
        let native = |name: &Name| self.networks.get(name).is_some_and(|state| state.record.is_some());
        let Some(name) = self.docker.name_of(network) else { return network.clone() };
        if !native(name) && self.docker.named(name).eq([network]) {
            return name.clone();
        }
        let longer = |id: &Name| format!("{name}-{}", id.as_str().get(..SHORT_ID).unwrap_or_default());
        let own = longer(network);
        let alone = self.docker.named(name).all(|other| other == network || longer(other) != own);
        let free = |name: &Name| !native(name) && self.docker.named(name).next().is_none();
        own.parse().ok().filter(|own| alone && free(own)).unwrap_or_else(|| network.clone())
    }
}

/// As many digits of an identifier as Docker's own tools show of a network.
const SHORT_ID: usize = 10;
