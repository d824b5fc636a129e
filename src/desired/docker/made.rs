//! From Docker's records to networks and endpoints.

use std::{collections::BTreeSet, mem, sync::Arc};

use super::{Docker, decode};
use crate::{
    desired::{
        claims::{Inner, Rank},
        records::{EndpointValue, Held, Join},
        store::Store,
    },
    model::{EndpointId, Mac, Name, Netns},
    schema::{Key, Kv, docker},
};

/// So many interfaces of one sandbox are told apart by number; a kernel's name has room for no more digits.
const MOST_INTERFACES: u32 = 10_000;

impl Store {
    /// Takes a version of one of Docker's records. Returns whether anything changed.
    pub(in crate::desired) fn put_docker(&mut self, kv: Kv) -> bool {
        let Kv { key: whole, value, create_revision, mod_revision } = kv;
        let Some(prefix) = &self.config.docker_prefix else { return false };
        let key = match docker::Key::parse(prefix, &whole) {
            Ok(Some(key)) => key,
            Ok(None) => return false,
            Err(rejected) => return self.reject(whole, create_revision, mod_revision, rejected),
        };
        match decode(&key, &whole, &value) {
            Ok(value) => {
                let was_bad = self.forget_bad(&whole);
                self.docker.put(&key, create_revision, mod_revision, value) || was_bad
            }
            Err(rejected) => {
                // Another create revision says that the key was deleted and made anew: the version before is no predecessor.
                if self.docker.held(&key).is_some_and(|(created, _)| created != create_revision)
                    && self.doubt().is_none()
                {
                    self.docker.delete(&key);
                }
                self.reject(whole, create_revision, mod_revision, rejected)
            }
        }
    }

    /// Makes networks and endpoints of the records that changed.
    pub(in crate::desired) fn make_of_docker(&mut self) {
        for (network, id) in mem::take(&mut self.docker.gone) {
            self.remove_endpoint(&network, &id);
        }
        self.docker.number_interfaces();
        for network in mem::take(&mut self.docker.changed_networks) {
            self.make_network(&network);
        }
        for (network, endpoint) in mem::take(&mut self.docker.changed_endpoints) {
            self.make_endpoint(&network, &endpoint);
        }
    }

    fn make_network(&mut self, network: &Name) {
        self.reportable = true;
        let Some(docs) = self.docker.networks.get(network) else { return };
        let held = docs.made().map(|(create_revision, modified, value)| {
            let key = Arc::new(Key::Network(network.clone()));
            Held { rank: Rank { create_revision, key }, modified, value: Arc::new(value) }
        });
        if docs.network.is_none() && docs.overlay.is_none() && docs.endpoints.is_empty() {
            self.docker.networks.remove(network);
        }
        if held.is_some() || self.networks.contains_key(network) {
            self.set_network(network, held);
        }
    }

    fn make_endpoint(&mut self, network: &Name, endpoint: &Name) {
        let Some(docs) = self.docker.networks.get_mut(network) else { return };
        let means_nothing = docs.means_nothing();
        let Some(found) = docs.endpoints.get_mut(endpoint) else { return };
        let node = found.doc.value.locator.and_then(docker::node_of);
        let value = value_of(&found.doc.value, found.number);
        let whole = node.map(|node| EndpointId { node, endpoint: endpoint.clone() }).zip(value);
        let waits = whole.is_none() && !means_nothing;
        let (id, value) = whole.filter(|_| !means_nothing).unzip();
        let (create_revision, modified) = (found.doc.created, found.doc.modified);
        let before = mem::replace(&mut found.made, id.clone());
        self.docker.waiting =
            self.docker.waiting + usize::from(waits) - usize::from(mem::replace(&mut found.waits, waits));
        if let Some(before) = before.filter(|before| Some(before) != id.as_ref()) {
            self.remove_endpoint(network, &before);
        }
        if let (Some(id), Some(value)) = (id, value) {
            let key = Arc::new(Key::Endpoint { network: network.clone(), id: id.clone() });
            self.set_endpoint(network, &id, Held { rank: Rank { create_revision, key }, modified, value });
        }
    }
}

/// The endpoint that a record comes to, if it has an address.
fn value_of(record: &docker::Endpoint, number: u32) -> Option<EndpointValue> {
    let mac = record.mac.or_else(|| record.ip.first().map(|ip| Mac::from_ip(*ip)))?;
    let netns = record.netns.clone().filter(|_| number < MOST_INTERFACES);
    let inner = netns.map(|netns| {
        let ifname = format!("{}{number}", record.prefix);
        Box::new(Inner { netns: Netns::Path(netns), ifname })
    });
    let join = Join { routes: record.routes.clone().into(), no_gateway: record.no_gateway };
    let join = (join != Join::default()).then(|| Box::new(join));
    let ip = record.ip.clone().into();
    (!record.ip.is_empty()).then_some(EndpointValue { ip, mac, shares_mac: true, inner, join })
}

impl Docker {
    /// Gives the interfaces of changed sandboxes their numbers: the lowest goes to who was created first.
    fn number_interfaces(&mut self) {
        for sandbox in mem::take(&mut self.changed_sandboxes) {
            let none = BTreeSet::new();
            let members = self.sandboxes.get(&sandbox).unwrap_or(&none);
            for (number, (_, network, endpoint)) in (0_u32..).zip(members) {
                let docs = self.networks.get_mut(network);
                let Some(found) = docs.and_then(|docs| docs.endpoints.get_mut(endpoint)) else { continue };
                if found.number != number {
                    found.number = number;
                    self.changed_endpoints.insert((network.clone(), endpoint.clone()));
                }
            }
        }
    }
}
