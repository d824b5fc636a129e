//! The way outside, against the plainest computation.

use proptest::prelude::*;

use super::*;
use crate::model::{Route, nft::Family};

const A: &str = "/run/netns/a";
const B: &str = "/run/netns/b";

/// What the gateway bridge was told, added up.
#[derive(Default)]
struct Told {
    exists: bool,
    interfaces: BTreeMap<PathBuf, String>,
    ids: BTreeMap<EndpointId, PathBuf>,
}

impl Told {
    fn take(&mut self, update: Update) {
        match &update.spec {
            Some(None) => *self = Self::default(),
            Some(Some(_)) => self.exists = true,
            None => {}
        }
        assert!(self.exists || update.endpoints.is_empty(), "told of parts of what is not there");
        for (id, spec) in update.endpoints {
            let gone = self.ids.remove(&id);
            gone.and_then(|netns| self.interfaces.remove(&netns));
            let Some(spec) = spec else { continue };
            let EndpointSpec::Outside(OutsideEndpoint { netns, ifname }) = spec else { panic!("{spec:?}") };
            self.ids.insert(id, netns.clone());
            self.interfaces.insert(netns, ifname);
        }
    }
}

fn stage() -> Outside {
    Outside::new(Some(OutsideConfig {
        bridge: "gw".into(),
        subnet: "172.18.0.0/16".parse().unwrap(),
        subnet6: None,
        table: TableId::new(Family::Inet, "t"),
    }))
}

fn local(netns: &str, ifname: &str) -> LocalEndpoint {
    LocalEndpoint {
        vni: 1.try_into().unwrap(),
        mac: Mac::ZERO,
        addresses: Vec::new(),
        netns: if netns == "host" { Netns::Host } else { netns.into() },
        ifname: ifname.into(),
        routes: Vec::new(),
        outside: true,
    }
}

fn id(endpoint: &str) -> EndpointId {
    EndpointId { node: "n1".parse().unwrap(), endpoint: endpoint.parse().unwrap() }
}

fn update(endpoints: &[(&str, Option<LocalEndpoint>)]) -> Update {
    let spec = |local: &LocalEndpoint| EndpointSpec::Local(local.clone());
    let endpoints = endpoints.iter().map(|(name, local)| (id(name), local.as_ref().map(spec))).collect();
    Update { revision: 7, spec: None, endpoints }
}

fn follow(stage: &mut Outside, network: &str, update: Update) -> Option<Update> {
    stage.follow(&BTreeMap::from([(network.parse().unwrap(), update)]), &BTreeSet::from([4789]))
}

/// What the stage says of a namespace's interface, when these endpoints come to it at once.
fn interface(endpoints: &[(&str, Option<LocalEndpoint>)]) -> Option<String> {
    let (mut stage, mut told) = (stage(), Told::default());
    follow(&mut stage, "red", update(endpoints)).into_iter().for_each(|update| told.take(update));
    told.interfaces.remove(Path::new(A))
}

#[test]
fn a_namespace_gets_one_interface_however_many_networks_it_is_in() {
    let (mut stage, mut told) = (stage(), Told::default());
    told.take(follow(&mut stage, "red", update(&[("e", Some(local(A, "eth0")))])).unwrap());
    assert_eq!(follow(&mut stage, "green", update(&[("e", Some(local(A, "eth5")))])), None);
    assert_eq!(told.interfaces, BTreeMap::from([(A.into(), "eth1".into())]));
    assert_eq!(follow(&mut stage, "red", update(&[("e", None)])), None, "it is in another one still");
    let gone = follow(&mut stage, "green", update(&[("e", None)])).unwrap();
    assert_eq!((gone.spec, gone.endpoints), (Some(None), Vec::new()));
}

#[test]
fn the_interface_has_the_first_name_that_no_endpoint_has() {
    assert_eq!(interface(&[("x", Some(local(A, "eth0")))]).as_deref(), Some("eth1"));
    assert_eq!(interface(&[("x", Some(local(A, "eth1")))]).as_deref(), Some("eth2"));
    assert_eq!(interface(&[("x", Some(local(A, "eth2"))), ("y", Some(local(A, "eth1")))]).as_deref(), Some("eth3"));
    let (mut stage, mut told) = (stage(), Told::default());
    told.take(follow(&mut stage, "red", update(&[("x", Some(local(A, "eth0")))])).unwrap());
    let moved = follow(&mut stage, "green", update(&[("y", Some(local(A, "eth1")))])).unwrap();
    assert_eq!((moved.endpoints.len(), moved.spec.is_none()), (1, true), "the interface is renamed, not made anew");
    told.take(moved);
    assert_eq!(told.interfaces, BTreeMap::from([(A.into(), "eth2".into())]));
}

#[test]
fn who_does_not_ask_or_is_outside_already_or_has_a_default_route_gets_none() {
    let internal = || LocalEndpoint { outside: false, ..local(A, "eth0") };
    let route = Route { dst: "0.0.0.0/0".parse().unwrap(), via: None };
    let routed = || LocalEndpoint { routes: vec![route], ..local(A, "eth0") };
    assert_eq!(interface(&[("x", Some(internal()))]), None);
    assert_eq!(interface(&[("x", Some(local("host", "ov0")))]), None);
    assert_eq!(interface(&[("x", Some(routed()))]), None);
    assert_eq!(interface(&[("x", Some(routed())), ("y", Some(local(A, "eth3")))]), None);
    assert_eq!(interface(&[("x", Some(internal())), ("y", Some(local(A, "eth3")))]).as_deref(), Some("eth1"));
}

#[test]
fn an_endpoint_that_moves_takes_the_way_outside_along() {
    let (mut stage, mut told) = (stage(), Told::default());
    told.take(follow(&mut stage, "red", update(&[("x", Some(local(A, "eth0")))])).unwrap());
    told.take(follow(&mut stage, "red", update(&[("x", Some(local(B, "eth0")))])).unwrap());
    assert_eq!(told.interfaces, BTreeMap::from([(B.into(), "eth1".into())]));
    assert!(stage.spaces.len() == 1 && stage.told.len() == 1);
}

#[test]
fn a_network_that_is_dropped_takes_what_only_it_asked_for() {
    let (mut stage, mut told) = (stage(), Told::default());
    told.take(follow(&mut stage, "red", update(&[("x", Some(local(A, "eth0")))])).unwrap());
    told.take(follow(&mut stage, "green", update(&[("x", Some(local(B, "eth0")))])).unwrap());
    let dropped = Update { revision: 8, spec: Some(None), endpoints: Vec::new() };
    told.take(follow(&mut stage, "red", dropped.clone()).unwrap());
    assert_eq!(told.interfaces, BTreeMap::from([(B.into(), "eth1".into())]));
    told.take(follow(&mut stage, "green", dropped).unwrap());
    assert!(!told.exists && stage.spaces.is_empty() && stage.ends.is_empty());
}

#[test]
fn other_ports_are_told_with_the_newest_revision_and_only_where_there_is_a_way_outside() {
    let (mut stage, none) = (stage(), BTreeMap::new());
    assert_eq!(stage.follow(&none, &BTreeSet::from([4789, 4790])), None);
    follow(&mut stage, "red", update(&[("x", Some(local(A, "eth0")))])).unwrap();
    let told = stage.follow(&none, &BTreeSet::from([4789, 8472])).unwrap();
    assert_eq!((told.revision, told.endpoints.len(), matches!(told.spec, Some(Some(_)))), (7, 0, true));
    assert_eq!(stage.follow(&none, &BTreeSet::from([4789, 8472])), None);
}

#[test]
fn without_a_bridge_nobody_gets_outside() {
    assert_eq!(follow(&mut Outside::new(None), "red", update(&[("x", Some(local(A, "eth0")))])), None);
}

/// One word on an endpoint: gone, elsewhere, or local in some way.
fn word() -> impl Strategy<Value = (u8, Option<LocalEndpoint>)> {
    let local = (0..4_usize, 0..4_u8, 0..6_u8).prop_map(|(netns, n, shape)| {
        let netns = [A, B, "/var/run/netns/a", "host"][netns];
        let route = Route { dst: "::/0".parse().unwrap(), via: None };
        let routes = if shape == 0 { vec![route] } else { Vec::new() };
        LocalEndpoint { outside: shape != 1, routes, ..local(netns, &format!("eth{n}")) }
    });
    (0..4_u8, prop::option::weighted(0.7, local))
}

/// From nothing: which interface each namespace gets.
fn naive(world: &BTreeMap<(u8, u8), LocalEndpoint>) -> BTreeMap<PathBuf, String> {
    let paths: BTreeSet<&Path> = world.values().filter_map(|local| local.netns.path()).collect();
    let mut interfaces = BTreeMap::new();
    for path in paths {
        let here: Vec<_> = world.values().filter(|local| local.netns.path() == Some(path)).collect();
        let default = here.iter().flat_map(|local| &local.routes).any(|route| route.dst.to_string() == "0.0.0.0/0");
        let mut n = 1;
        while here.iter().any(|local| local.ifname == format!("eth{n}")) {
            n += 1;
        }
        if here.iter().any(|local| local.outside) && !default {
            interfaces.insert(path.to_owned(), format!("eth{n}"));
        }
    }
    interfaces
}

proptest! {
    #[test]
    fn after_every_update_the_gateway_bridge_was_told_what_the_endpoints_say(
        steps in prop::collection::vec(
            prop::collection::vec((0..3_u8, any::<bool>(), prop::collection::vec(word(), 0..4)), 1..3), 1..40),
    ) {
        let (mut stage, mut told, mut world) = (stage(), Told::default(), BTreeMap::new());
        for step in steps {
            let mut updates = BTreeMap::new();
            for (network, dropped, words) in step {
                let dropped = dropped && words.is_empty();
                if dropped {
                    world.retain(|(of, _), _| *of != network);
                }
                let mut update = Update { revision: 1, spec: dropped.then_some(None), endpoints: Vec::new() };
                let words: BTreeMap<u8, Option<LocalEndpoint>> = words.into_iter().collect();
                let earlier: Option<Update> = updates.remove(&network);
                for (endpoint, local) in words {
                    update.endpoints.push((id(&format!("e{endpoint}")), local.clone().map(EndpointSpec::Local)));
                    match local {
                        Some(local) => world.insert((network, endpoint), local),
                        None => world.remove(&(network, endpoint)),
                    };
                }
                let update = match earlier {
                    Some(mut earlier) => {
                        earlier.follow(update);
                        earlier
                    }
                    None => update,
                };
                updates.insert(network, update);
            }
            let updates = updates.into_iter().map(|(n, update)| (format!("w{n}").parse().unwrap(), update)).collect();
            let before = told.interfaces.clone();
            let update = stage.follow(&updates, &BTreeSet::from([4789]));
            let news = update.is_some();
            update.into_iter().for_each(|update| told.take(update));
            prop_assert_eq!(&told.interfaces, &naive(&world));
            prop_assert_eq!(told.exists, !told.interfaces.is_empty());
            prop_assert_eq!(news, told.interfaces != before);
        }
    }
}
