//! Which networks wait for which path below the namespace roots.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use crate::{
    desired::{EndpointSpec, Update},
    model::{EndpointId, Name},
};

/// Paths of local endpoints' namespaces, and whose they are.
#[derive(Debug, Default)]
pub(super) struct Addressees {
    paths: BTreeMap<Name, BTreeMap<EndpointId, PathBuf>>,
    waiting: BTreeMap<PathBuf, BTreeMap<Name, usize>>,
    overlays: BTreeMap<PathBuf, Name>,
}

impl Addressees {
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// A network's overlay namespace is to be bound to this path.
    pub(super) fn started(&mut self, network: &Name, overlay: PathBuf) {
        self.overlays.insert(overlay, network.clone());
    }

    /// A network is not here any more.
    pub(super) fn ended(&mut self, overlay: &Path) {
        self.overlays.remove(overlay);
    }

    /// Takes in what a network is told.
    pub(super) fn follow(&mut self, network: &Name, update: &Update) {
        if update.spec == Some(None) {
            for path in self.paths.remove(network).unwrap_or_default().into_values() {
                self.leave(network, &path);
            }
        }
        for (id, endpoint) in &update.endpoints {
            let path = match endpoint {
                Some(EndpointSpec::Local(local)) => local.netns.path(),
                Some(EndpointSpec::Outside(outside)) => Some(outside.netns.as_path()),
                Some(EndpointSpec::Remote(_)) | None => None,
            };
            let before = match path {
                Some(path) => {
                    *self.waiting.entry(path.to_owned()).or_default().entry(network.clone()).or_default() += 1;
                    self.paths.entry(network.clone()).or_default().insert(id.clone(), path.to_owned())
                }
                None => self.paths.get_mut(network).and_then(|paths| paths.remove(id)),
            };
            if let Some(before) = before {
                self.leave(network, &before);
            }
        }
    }

    fn leave(&mut self, network: &Name, path: &Path) {
        let Some(networks) = self.waiting.get_mut(path) else { return };
        if let Some(endpoints) = networks.get_mut(network) {
            *endpoints = endpoints.saturating_sub(1);
            if *endpoints == 0 {
                networks.remove(network);
            }
        }
        if networks.is_empty() {
            self.waiting.remove(path);
        }
    }

    /// The networks that wait for this path.
    pub(super) fn of(&self, path: &Path) -> impl Iterator<Item = &Name> {
        self.waiting.get(path).into_iter().flat_map(BTreeMap::keys).chain(self.overlays.get(path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::OutsideEndpoint;

    fn update(endpoint: &str, path: Option<&str>) -> Update {
        let id = EndpointId { node: "n".parse().unwrap(), endpoint: endpoint.parse().unwrap() };
        let spec =
            path.map(|path| EndpointSpec::Outside(OutsideEndpoint { netns: path.into(), ifname: "eth1".to_owned() }));
        Update { revision: 1, spec: None, endpoints: vec![(id, spec)] }
    }

    fn of(addressees: &Addressees, path: &str) -> Vec<String> {
        addressees.of(Path::new(path)).map(ToString::to_string).collect()
    }

    #[test]
    fn a_path_goes_to_the_networks_with_an_endpoint_there_until_the_last_one_leaves() {
        let (mut addressees, a, b) = (Addressees::new(), "a".parse().unwrap(), "b".parse().unwrap());
        addressees.follow(&a, &update("one", Some("/run/netns/x")));
        addressees.follow(&a, &update("two", Some("/run/netns/x")));
        addressees.follow(&b, &update("one", Some("/run/netns/x")));
        assert_eq!(of(&addressees, "/run/netns/x"), ["a", "b"]);
        addressees.follow(&a, &update("one", Some("/run/netns/y")));
        assert_eq!(of(&addressees, "/run/netns/x"), ["a", "b"]);
        addressees.follow(&a, &update("two", None));
        assert_eq!(
            (of(&addressees, "/run/netns/x"), of(&addressees, "/run/netns/y")),
            (vec!["b".into()], vec!["a".into()])
        );
        addressees.follow(&a, &Update { revision: 2, spec: Some(None), endpoints: Vec::new() });
        addressees.follow(&b, &update("one", Some("/run/netns/x")));
        assert_eq!((of(&addressees, "/run/netns/x"), of(&addressees, "/run/netns/y")), (vec!["b".to_owned()], vec![]));
        addressees.follow(&b, &update("one", None));
        assert!(addressees.waiting.is_empty());
    }
}
