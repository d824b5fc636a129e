//! Situations of the gateway bridge, whose home is the host's own namespace.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use ipnet::IpNet;
use vtepd::{
    desired::{EndpointSpec, Outside, OutsideConfig, Update},
    engine::{
        Config, DriftReason, Event, FailureKind, Gateway, Home, InnerAt, Kind, LinkChange, LinkKind, NewLink, Note, Op,
        Place, Port, Query, Reconciler as _, Summary, Time, Turn, gateway_port_mac, turn,
    },
    model::{
        Mac, Name, Netns, Route,
        nft::{Change, Family, Ruleset, TableId},
    },
};

use crate::{
    lab::{Failing, id, ip, local},
    sim_kernel::{SimKernel, SimLink, SimNetns},
};

const BRIDGE: &str = "vtepd-gw";
const GROUP: u32 = 0x76;
const MINUTE: Duration = Duration::from_secs(60);

struct GatewayLab {
    config: OutsideConfig,
    adopt: bool,
    outside: Outside,
    gateway: Gateway,
    kernel: SimKernel,
    now: Cell<Duration>,
    notes: Vec<Note>,
    revision: i64,
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn path(container: &str) -> String {
    format!("/run/netns/{container}")
}

fn inside(container: &str) -> Place {
    Place::Inner(path(container).as_str().into())
}

fn bridge() -> LinkKind {
    LinkKind::Bridge { mcast_snooping: true }
}

fn other() -> LinkKind {
    LinkKind::Other("dummy".into())
}

fn veth() -> LinkKind {
    LinkKind::Veth { peer: None, peer_nsid: None }
}

fn default_via(gateway: &str) -> Route {
    Route { dst: net("0.0.0.0/0"), via: Some(ip(gateway)) }
}

impl GatewayLab {
    fn of(subnet: &str, adopt: bool) -> Self {
        let config = OutsideConfig {
            bridge: BRIDGE.into(),
            subnet: subnet.parse().unwrap(),
            subnet6: None,
            table: TableId::new(Family::Inet, "vtepd-test"),
        };
        let mut lab = Self {
            outside: Outside::new(Some(config.clone())),
            gateway: engine(&config, adopt),
            config,
            adopt,
            kernel: SimKernel::on_host(1),
            now: Cell::default(),
            notes: Vec::new(),
            revision: 0,
        };
        let uplink = lab.kernel.add_others_link(&Place::Overlay, "uplink", 0, other());
        lab.kernel.add_others_address(&Place::Overlay, uplink, net("192.168.205.10/24"));
        lab
    }

    fn new() -> Self {
        Self::of("172.18.0.0/16", false)
    }

    /// Containers with an endpoint each, all with a way outside.
    fn with(containers: &[&str]) -> Self {
        let mut lab = Self::new();
        for container in containers {
            lab.kernel.add_container(&path(container));
        }
        lab.come(containers);
        lab.settle();
        lab.forget();
        lab
    }

    fn time(&self) -> Time {
        Time::from_origin(self.now.get())
    }

    /// These endpoints of one network come, or go, with one revision.
    fn tell(&mut self, endpoints: Vec<(&str, Option<EndpointSpec>)>) {
        self.revision += 1;
        let endpoints = endpoints.into_iter().map(|(name, spec)| (id("n1", name), spec)).collect();
        let update = Update { revision: self.revision, spec: None, endpoints };
        let network: Name = "n".parse().unwrap();
        if let Some(update) = self.outside.follow(&BTreeMap::from([(network, update)]), &BTreeSet::from([4789])) {
            self.gateway.update(update, Time::from_origin(self.now.get()));
        }
    }

    fn come(&mut self, containers: &[&str]) {
        self.tell(containers.iter().map(|c| (*c, Some(in_netns(&path(c))))).collect());
    }

    fn go(&mut self, containers: &[&str]) {
        self.tell(containers.iter().map(|c| (*c, None)).collect());
    }

    /// The agent dies, and starts again when these are wanted.
    fn restart(&mut self, containers: &[&str]) {
        self.outside = Outside::new(Some(self.config.clone()));
        self.gateway = engine(&self.config, self.adopt);
        self.come(containers);
    }

    fn rest(&mut self) -> Turn {
        let now = self.time();
        for _ in 0..1000 {
            match turn(&mut self.gateway, &mut self.kernel, || now, 100) {
                Turn::More => {}
                done => {
                    self.notes.extend(self.gateway.take_notes());
                    return done;
                }
            }
        }
        panic!("the engine never rests: {:?}", self.kernel.log.iter().rev().take(5).collect::<Vec<_>>());
    }

    fn settle(&mut self) {
        self.rest();
        assert!(self.summary().in_sync, "not in sync: {:#?} {:#?}", self.summary(), self.notes);
    }

    fn later(&mut self, by: Duration) {
        self.now.set(self.now.get() + by);
    }

    fn summary(&self) -> Summary {
        self.gateway.summary()
    }

    fn blocked(&self) -> Vec<(String, &'static str)> {
        self.summary().blocked.into_iter().map(|blocked| (blocked.object, blocked.reason)).collect()
    }

    fn reasons(&self) -> Vec<&'static str> {
        self.blocked().into_iter().map(|(_, reason)| reason).collect()
    }

    fn forget(&mut self) {
        self.notes.clear();
        self.kernel.log.clear();
    }

    fn drift(&self) -> Vec<(Kind, DriftReason)> {
        let drift = self.notes.iter().filter_map(|note| match note {
            Note::Drift { kind, reason, .. } => Some((*kind, *reason)),
            _ => None,
        });
        drift.collect()
    }

    /// A full resync finds nothing to do.
    fn quiet(&mut self) {
        self.forget();
        let now = self.time();
        self.gateway.network().resync("test", now);
        self.settle();
        assert_eq!(self.kernel.log, [], "a correct kernel gets no operation");
        assert_eq!(self.drift(), []);
    }

    fn home(&self) -> &SimNetns {
        self.kernel.overlay.as_ref().unwrap()
    }

    fn index(&self, name: &str) -> u32 {
        self.kernel.link(name).unwrap_or_else(|| panic!("no {name}")).link.ifindex
    }

    fn container(&self, container: &str) -> &SimNetns {
        &self.kernel.containers[&Netns::from(path(container).as_str())]
    }

    fn eth1(&self, container: &str) -> Option<&SimLink> {
        self.container(container).links.values().find(|link| link.link.name == "eth1")
    }

    /// The other end of a container's interface.
    fn port(&self, container: &str) -> &SimLink {
        let LinkKind::Veth { peer: Some(peer), .. } = self.eth1(container).unwrap().link.kind else { panic!() };
        &self.home().links[&peer]
    }

    /// The address that a container has outside, when all of it is as it should be.
    fn address(&self, container: &str) -> Option<Ipv4Addr> {
        let eth1 = self.eth1(container)?;
        let address = eth1.addresses.keys().find_map(|net| match net.addr() {
            IpAddr::V4(ip) if self.config.subnet.contains(&ip) => Some(ip),
            _ => None,
        })?;
        let port = self.port(container);
        let gateway = self.config.gateways()[0].addr();
        let right = (eth1.link.mac, eth1.link.up, eth1.link.mtu) == (Mac::from_ip(address.into()), true, 1500)
            && (port.link.mac, port.link.up, port.link.mtu) == (gateway_port_mac(address), true, 1500)
            && port.link.port
                == Some(Port { learning: false, unicast_flood: false, isolated: true, locked: Some(true) })
            && eth1.routes.get(&net("0.0.0.0/0")) == Some(&(Some(gateway), true, true));
        right.then_some(address)
    }

    fn last_bytes(&self, containers: &[&str]) -> Vec<Option<u8>> {
        containers.iter().map(|c| self.address(c).map(|address| address.octets()[3])).collect()
    }

    /// Everything on the host that is not ours.
    fn others(&self) -> Vec<SimLink> {
        self.home().links.values().filter(|l| l.link.group != GROUP).cloned().collect()
    }

    /// Does the foreign thing, and expects exactly this drift, repaired, and all as before.
    fn expect_repair(&mut self, foreign: &Op, drift: &[(Kind, DriftReason)]) {
        let (others, address) = (self.others(), self.last_bytes(&["a", "b"]));
        self.kernel.foreign(foreign).unwrap();
        self.settle();
        assert_eq!(self.drift(), drift, "{foreign:?}: {:#?}", self.notes);
        assert_eq!(self.last_bytes(&["a", "b"]), address, "{foreign:?}");
        assert_eq!(self.others(), others);
        self.quiet();
    }
}

fn engine(outside: &OutsideConfig, adopt: bool) -> Gateway {
    let home = Home::Host { bridge: outside.bridge.clone(), adopt };
    let (guards, tables) = (TableId::new(Family::Netdev, "vtepd-test"), vec![outside.table.clone()]);
    Gateway::new(
        Config {
            name: Name::host(),
            home,
            group: GROUP,
            resync: MINUTE,
            dump_at_most: Config::DUMP_AT_MOST,
            guards,
            tables,
        },
        outside.clone(),
    )
}

fn in_netns(netns: &str) -> EndpointSpec {
    let EndpointSpec::Local(spec) = local() else { unreachable!() };
    EndpointSpec::Local(vtepd::desired::LocalEndpoint { netns: netns.into(), ..spec })
}

#[test]
fn the_bridge_is_built_as_it_is_said_left_alone_then_and_goes_with_the_last() {
    let mut lab = GatewayLab::with(&["a"]);
    let bridge = lab.kernel.link(BRIDGE).unwrap();
    assert_eq!(
        (bridge.link.mac.to_string().as_str(), bridge.link.mtu, bridge.link.up),
        ("02:42:ac:12:00:01", 1500, true)
    );
    assert_eq!(bridge.link.kind, LinkKind::Bridge { mcast_snooping: false });
    assert_eq!(bridge.addresses.keys().collect::<Vec<_>>(), [&net("172.18.0.1/16")]);
    assert_eq!(lab.address("a"), Some(Ipv4Addr::new(172, 18, 0, 2)));
    let port = lab.port("a");
    assert!(port.link.name.starts_with("vgw") && port.link.name.len() == 15);
    assert_eq!(bridge.rows.iter().next(), Some((&Mac::from_ip(ip("172.18.0.2")), &(port.link.ifindex, true))));
    lab.quiet();
    let others = lab.others();
    lab.go(&["a"]);
    assert_eq!(lab.rest(), Turn::Gone);
    assert!(lab.kernel.link(BRIDGE).is_none() && lab.container("a").links.is_empty());
    assert_eq!((lab.others(), lab.home().links.len()), (others, 1));
    assert_eq!(lab.drift(), []);
}

#[test]
fn addresses_are_given_from_the_lowest_on_freed_by_those_who_leave_and_given_again() {
    let mut lab = GatewayLab::with(&["a", "b", "c"]);
    assert_eq!(lab.last_bytes(&["a", "b", "c"]), [Some(2), Some(3), Some(4)]);
    lab.go(&["b"]);
    lab.settle();
    lab.kernel.add_container(&path("d"));
    lab.kernel.add_container(&path("e"));
    lab.come(&["d", "e"]);
    lab.settle();
    assert_eq!(lab.last_bytes(&["a", "b", "c", "d", "e"]), [Some(2), None, Some(4), Some(3), Some(5)]);
    assert_eq!(lab.drift(), []);
    lab.quiet();
}

#[test]
fn an_agent_without_memory_gives_everyone_the_address_that_its_port_says() {
    let mut lab = GatewayLab::with(&["a", "b", "c"]);
    lab.go(&["a"]);
    lab.settle();
    lab.forget();
    lab.restart(&["b", "c"]);
    lab.settle();
    assert_eq!((lab.kernel.log.as_slice(), lab.drift()), (&[][..], vec![]));
    assert_eq!(lab.last_bytes(&["b", "c"]), [Some(3), Some(4)]);
    // Those without a port come behind those with one, whatever their names; one that has not come yet keeps its place too.
    for late in [false, true] {
        lab.kernel.add_container(&path("0"));
        if late {
            lab.kernel.remove_container(&path("c"));
        }
        lab.restart(&["0", "a", "b", "c"]);
        lab.settle();
        assert_eq!(lab.last_bytes(&["b"]), [Some(3)]);
        if late {
            lab.kernel.add_container(&path("c"));
            lab.settle();
        }
        let mut all = lab.last_bytes(&["0", "a", "b", "c"]);
        all.sort_unstable();
        assert_eq!(all, [Some(2), Some(3), Some(4), Some(5)]);
        assert_eq!(lab.drift(), []);
        lab.quiet();
    }
}

#[test]
fn one_whose_namespace_comes_and_goes_keeps_its_address() {
    let mut lab = GatewayLab::with(&["a", "b"]);
    lab.kernel.remove_container(&path("a"));
    lab.settle();
    lab.kernel.add_container(&path("c"));
    lab.come(&["c"]);
    lab.settle();
    assert_eq!(lab.last_bytes(&["b", "c"]), [Some(3), Some(4)]);
    lab.kernel.add_container(&path("a"));
    lab.settle();
    assert_eq!(lab.last_bytes(&["a"]), [Some(2)]);
    assert_eq!(lab.drift(), [], "a container that ends is no drift");
    lab.quiet();
}

#[test]
fn a_namespace_that_two_paths_lead_to_gets_one_interface_and_keeps_it_when_one_path_leaves() {
    let mut lab = GatewayLab::new();
    lab.kernel.add_container(&path("a"));
    lab.kernel.alias_container(&path("a"), "/var/run/netns/a");
    lab.tell(vec![("one", Some(in_netns(&path("a")))), ("two", Some(in_netns("/var/run/netns/a")))]);
    lab.settle();
    let ports = |lab: &GatewayLab| lab.home().links.values().filter(|l| l.link.group == GROUP).count() - 1;
    assert_eq!((ports(&lab), lab.container("a").links.len()), (1, 1));
    assert!(lab.address("a").is_some());
    lab.quiet();
    for leaves in ["one", "two"] {
        let mut lab = GatewayLab::new();
        lab.kernel.add_container(&path("a"));
        lab.kernel.alias_container(&path("a"), "/var/run/netns/a");
        lab.tell(vec![("one", Some(in_netns(&path("a")))), ("two", Some(in_netns("/var/run/netns/a")))]);
        lab.settle();
        lab.tell(vec![(leaves, None)]);
        lab.rest();
        lab.later(MINUTE);
        lab.settle();
        assert_eq!((ports(&lab), lab.container("a").links.len()), (1, 1), "{leaves} leaves");
        assert!(lab.address("a").is_some());
        assert_eq!(lab.drift(), []);
        lab.quiet();
    }
}

#[test]
fn a_link_of_that_name_in_a_container_is_left_alone_and_blocks_that_interface_alone() {
    for group in [0, GROUP] {
        let mut lab = GatewayLab::new();
        lab.kernel.add_container(&path("a"));
        lab.kernel.add_container(&path("b"));
        let theirs = lab.kernel.add_others_link(&inside("a"), "eth1", group, veth());
        let before = lab.container("a").links.clone();
        lab.come(&["a", "b"]);
        lab.rest();
        assert_eq!(lab.container("a").links, before);
        assert_eq!((lab.last_bytes(&["b"]), lab.reasons()), (vec![Some(3)], vec!["exists"]));
        lab.kernel.foreign(&Op::DeleteLink { place: inside("a"), ifindex: theirs }).unwrap();
        lab.later(MINUTE);
        lab.settle();
        assert_eq!(lab.last_bytes(&["a", "b"]), [Some(2), Some(3)]);
        assert_eq!(lab.drift(), []);
    }
}

#[test]
fn a_bridge_of_somebody_else_is_left_alone_and_ours_blocked_until_it_goes() {
    let mut lab = GatewayLab::new();
    lab.kernel.add_container(&path("a"));
    lab.kernel.add_others_link(&Place::Overlay, BRIDGE, 0, bridge());
    let others = lab.others();
    lab.come(&["a"]);
    lab.rest();
    assert_eq!((lab.others(), lab.container("a").links.len()), (others, 0));
    assert_eq!(lab.blocked(), [("gateway bridge".to_owned(), "exists")]);
    let ifindex = lab.index(BRIDGE);
    lab.kernel.foreign(&Op::DeleteLink { place: Place::Overlay, ifindex }).unwrap();
    lab.later(MINUTE);
    lab.settle();
    assert_eq!(lab.last_bytes(&["a"]), [Some(2)]);
    assert_eq!(lab.drift(), []);
}

#[test]
fn a_bridge_that_is_adopted_gets_address_and_ports_and_stays_as_it_was_when_the_last_one_leaves() {
    for memory in [true, false] {
        let mut lab = GatewayLab::of("172.18.0.0/16", true);
        lab.kernel.add_container(&path("a"));
        let ifindex = lab.kernel.add_others_link(&Place::Overlay, BRIDGE, 0, bridge());
        lab.kernel.add_others_address(&Place::Overlay, ifindex, net("10.99.0.1/24"));
        let others = lab.others();
        lab.come(&["a"]);
        lab.settle();
        let adopted = lab.kernel.link(BRIDGE).unwrap();
        let expected: Vec<_> =
            [("10.99.0.1/24", false), ("172.18.0.1/16", true)].map(|(n, ours)| (net(n), ours)).into();
        assert_eq!(adopted.addresses.iter().map(|(n, ours)| (*n, *ours)).collect::<Vec<_>>(), expected);
        assert_eq!(adopted.link, others.iter().find(|l| l.link.name == BRIDGE).unwrap().link);
        assert_eq!(lab.last_bytes(&["a"]), [Some(2)]);
        lab.quiet();
        if memory {
            lab.go(&["a"]);
        } else {
            lab.restart(&[]);
            let nothing = Update { revision: 9, spec: Some(None), endpoints: Vec::new() };
            let now = lab.time();
            lab.gateway.update(nothing, now);
        }
        assert_eq!(lab.rest(), Turn::Gone);
        assert_eq!(lab.home().links.values().cloned().collect::<Vec<_>>(), others, "memory: {memory}");
        assert_eq!(lab.drift(), []);
    }
}

#[test]
fn a_subnet_that_overlaps_with_another_links_blocks_before_anything_is_made_and_is_tried_again() {
    for theirs in ["172.18.5.1/24", "172.16.0.1/12"] {
        let mut lab = GatewayLab::new();
        lab.kernel.add_container(&path("a"));
        let ifindex = lab.kernel.add_others_link(&Place::Overlay, "docker_gwbridge", 0, bridge());
        lab.kernel.add_others_address(&Place::Overlay, ifindex, net(theirs));
        lab.come(&["a"]);
        lab.rest();
        assert_eq!(
            (lab.kernel.log.as_slice(), lab.reasons(), lab.summary().in_sync),
            (&[][..], vec!["overlap"], false)
        );
        lab.kernel.foreign(&Op::DeleteLink { place: Place::Overlay, ifindex }).unwrap();
        lab.later(MINUTE);
        lab.settle();
        assert_eq!((lab.last_bytes(&["a"]), lab.reasons()), (vec![Some(2)], vec![]));
    }
}

#[test]
fn those_for_whom_no_address_is_left_are_blocked_and_served_when_one_is_free() {
    let names = ["a", "b", "c", "d", "e", "f", "g"];
    let mut lab = GatewayLab::of("172.18.0.0/29", false);
    for name in names {
        lab.kernel.add_container(&path(name));
    }
    lab.come(&names);
    lab.rest();
    let served = |lab: &GatewayLab| lab.last_bytes(&names).into_iter().flatten().collect::<Vec<_>>();
    assert_eq!((served(&lab), lab.reasons()), (vec![2, 3, 4, 5, 6], vec!["exhausted", "exhausted"]));
    assert!(!lab.summary().in_sync);
    lab.go(&["b"]);
    lab.rest();
    assert_eq!((served(&lab).len(), lab.reasons()), (5, vec!["exhausted"]));
    lab.go(&["a"]);
    lab.settle();
    let mut all = served(&lab);
    all.sort_unstable();
    assert_eq!((all, lab.reasons(), lab.drift()), (vec![2, 3, 4, 5, 6], vec![], vec![]));
    lab.quiet();
    // One that waits and is then not wanted any more is not waited for.
    lab.come(&["a"]);
    lab.rest();
    lab.go(&["a"]);
    lab.settle();
    lab.quiet();
}

#[test]
fn the_default_route_yields_to_another_one_and_comes_back_without_counting() {
    let mut lab = GatewayLab::with(&["a", "b"]);
    let uplink = lab.kernel.add_others_link(&inside("a"), "uplink", 0, other());
    lab.kernel.add_others_address(&inside("a"), uplink, net("10.50.0.2/24"));
    lab.kernel.spoil_route(&inside("a"), uplink, default_via("10.50.0.1"), false).unwrap();
    lab.settle();
    assert!(lab.eth1("a").unwrap().routes.is_empty());
    assert_eq!((lab.last_bytes(&["b"]), lab.drift()), (vec![Some(3)], vec![]));
    lab.quiet();
    // An agent without memory finds it so, and leaves it so.
    lab.restart(&["a", "b"]);
    lab.settle();
    assert_eq!((lab.kernel.log.as_slice(), lab.drift()), (&[][..], vec![]));
    let op = Op::DeleteRoute { place: inside("a"), ifindex: uplink, route: default_via("10.50.0.1") };
    lab.kernel.foreign(&op).unwrap();
    lab.settle();
    assert_eq!((lab.last_bytes(&["a", "b"]), lab.drift()), (vec![Some(2), Some(3)], vec![]));
    lab.quiet();
}

#[test]
fn what_somebody_deletes_is_back_and_counted_once_and_nobody_elses_is_touched() {
    let mut lab = GatewayLab::with(&["a", "b"]);
    let (missing, place) = (|kind| [(kind, DriftReason::Missing)], Place::Overlay);
    let eth1 = |lab: &GatewayLab| lab.eth1("a").unwrap().link.ifindex;
    let op = Op::DeleteLink { place: inside("a"), ifindex: eth1(&lab) };
    lab.expect_repair(&op, &missing(Kind::Link));
    let op = Op::DeleteLink { place: place.clone(), ifindex: lab.port("a").link.ifindex };
    lab.expect_repair(&op, &missing(Kind::Link));
    let op = Op::DeleteLink { place: place.clone(), ifindex: lab.index(BRIDGE) };
    lab.expect_repair(&op, &missing(Kind::Link));
    let op = Op::DeleteAddress { place, ifindex: lab.index(BRIDGE), net: net("172.18.0.1/16") };
    lab.expect_repair(&op, &missing(Kind::Address));
    let op = Op::DeleteAddress { place: inside("a"), ifindex: eth1(&lab), net: net("172.18.0.2/16") };
    lab.expect_repair(&op, &missing(Kind::Address));
    let op = Op::DeleteRoute { place: inside("a"), ifindex: eth1(&lab), route: default_via("172.18.0.1") };
    lab.expect_repair(&op, &missing(Kind::Route));
    let op = Op::DeleteBridgeRow { ifindex: lab.port("a").link.ifindex, mac: Mac::from_ip(ip("172.18.0.2")) };
    lab.expect_repair(&op, &missing(Kind::Fdb));
}

#[test]
fn what_somebody_changes_is_set_back_and_counted_once() {
    let mut lab = GatewayLab::with(&["a", "b"]);
    let change = LinkChange::default;
    let others_mac = Some(Mac::from_ip(ip("10.8.8.8")));
    for change in [
        LinkChange { name: Some("other".into()), ..change() },
        LinkChange { up: Some(false), ..change() },
        LinkChange { mtu: Some(1400), ..change() },
        LinkChange { mac: others_mac, ..change() },
        LinkChange { group: Some(9), ..change() },
    ] {
        for (place, ifindex) in [
            (Place::Overlay, lab.index(BRIDGE)),
            (Place::Overlay, lab.port("a").link.ifindex),
            (inside("a"), lab.eth1("a").unwrap().link.ifindex),
        ] {
            let op = Op::SetLink { place, ifindex, change: change.clone() };
            lab.expect_repair(&op, &[(Kind::Link, DriftReason::Changed)]);
        }
    }
    let port = Some(Port { learning: true, unicast_flood: true, isolated: false, locked: Some(false) });
    let op = Op::SetLink {
        place: Place::Overlay,
        ifindex: lab.port("a").link.ifindex,
        change: LinkChange { port, ..change() },
    };
    lab.expect_repair(&op, &[(Kind::Link, DriftReason::Changed)]);
}

#[test]
fn an_address_that_somebody_adds_to_the_bridge_or_an_interface_is_theirs() {
    let mut lab = GatewayLab::with(&["a"]);
    let (bridge, eth1) = (lab.index(BRIDGE), lab.eth1("a").unwrap().link.ifindex);
    lab.kernel.add_others_address(&Place::Overlay, bridge, net("10.99.0.1/24"));
    lab.kernel.add_others_address(&inside("a"), eth1, net("10.99.0.2/24"));
    lab.settle();
    assert_eq!((lab.kernel.log.as_slice(), lab.drift()), (&[][..], vec![]));
    assert_eq!(lab.last_bytes(&["a"]), [Some(2)]);
    lab.quiet();
}

#[test]
fn what_an_earlier_agent_left_behind_goes_and_what_only_looks_like_it_stays() {
    let mut lab = GatewayLab::with(&["a", "b"]);
    let named = |name: &str| NewLink::Bridge { name: name.into(), mac: Mac::from_ip(ip("10.8.8.8")), group: 0 };
    lab.kernel.foreign(&Op::AddLink(named("br-theirs"))).unwrap();
    for (name, group, kind) in [
        ("vgw000000000000", 0, veth()),
        ("vgw0000000000zz", GROUP, veth()),
        ("veth00000000000", GROUP, veth()),
        ("dummy-of-group", GROUP, other()),
        ("vgw000000000001", GROUP, other()),
    ] {
        lab.kernel.add_others_link(&Place::Overlay, name, group, kind);
    }
    let kept: Vec<SimLink> = lab
        .home()
        .links
        .values()
        .filter(|l| !l.link.name.starts_with("vgw") || l.link.group == 0 || l.link.ifindex > lab.index("br-theirs"))
        .cloned()
        .collect();
    // Ports and a bridge of an agent that had another configuration.
    let old = lab.kernel.add_others_link(&Place::Overlay, "old-gw", GROUP, bridge());
    let inner = InnerAt { netns: path("b").as_str().into(), ifname: "eth7".into(), ifindex: None };
    let (mac, inner_mac) = (gateway_port_mac(Ipv4Addr::new(172, 18, 0, 9)), Mac::from_ip(ip("172.18.0.9")));
    let name = "vgwffffffffffff".to_owned();
    let new = NewLink::Veth { name, mac, mtu: 1500, group: GROUP, inner, inner_mac };
    lab.kernel.foreign(&Op::AddLink(new)).unwrap();
    lab.kernel.events_dropped();
    lab.restart(&["a"]);
    lab.settle();
    let gone = |name: &str| lab.kernel.link(name).is_none();
    assert!(gone("old-gw") && gone("vgwffffffffffff") && !lab.home().links.contains_key(&old));
    assert_eq!(lab.container("b").links.len(), 0, "the port of one that is not wanted any more went too");
    for link in kept.iter().filter(|l| l.link.name != BRIDGE) {
        assert_eq!(lab.home().links.get(&link.link.ifindex), Some(link));
    }
    assert_eq!((lab.last_bytes(&["a"]), lab.drift()), (vec![Some(2)], vec![]));
    lab.quiet();
}

#[test]
fn what_happens_to_other_links_of_the_host_costs_no_look() {
    let mut lab = GatewayLab::with(&["a"]);
    let uplink = lab.kernel.link("uplink").unwrap().link.clone();
    let now = lab.time();
    for event in [Event::Addresses(uplink.ifindex), Event::LinkGone(uplink.ifindex), Event::Link(uplink)] {
        lab.gateway.network().event(event, now);
        assert!(lab.summary().in_sync);
    }
}

#[test]
fn an_interface_that_is_renamed_keeps_its_address_and_its_place() {
    let mut lab = GatewayLab::with(&["a"]);
    let ifindex = lab.eth1("a").unwrap().link.ifindex;
    let EndpointSpec::Local(second) = in_netns(&path("a")) else { unreachable!() };
    let second = vtepd::desired::LocalEndpoint { ifname: "eth1".into(), ..second };
    lab.tell(vec![("second", Some(EndpointSpec::Local(second)))]);
    lab.settle();
    let link = &lab.container("a").links[&ifindex];
    assert_eq!((link.link.name.as_str(), link.addresses.len(), link.routes.len()), ("eth2", 1, 1));
    assert_eq!(lab.drift(), []);
    lab.tell(vec![("second", None)]);
    lab.settle();
    assert_eq!((lab.last_bytes(&["a"]), lab.eth1("a").unwrap().link.ifindex), (vec![Some(2)], ifindex));
    lab.quiet();
}

#[test]
fn masquerade_and_forwarding_that_somebody_takes_away_are_back_and_other_tables_are_left_alone() {
    let mut lab = GatewayLab::with(&["a", "b"]);
    let theirs = TableId::new(Family::Inet, "theirs");
    let make = Op::ChangeRules(vec![Change::ReplaceTable(Ruleset::new(theirs.clone()))]);
    lab.kernel.foreign(&make).unwrap();
    let (ours, name) = (lab.config.table.clone(), "postrouting".to_owned());
    let op = Op::ChangeRules(vec![Change::DeleteChain { table: ours.clone(), name }]);
    lab.expect_repair(&op, &[(Kind::Nat, DriftReason::Missing)]);
    let op = Op::ChangeRules(vec![Change::DeleteTable(ours.clone())]);
    lab.expect_repair(&op, &[(Kind::Nat, DriftReason::Missing)]);
    assert_eq!(lab.home().tables[&ours].chains.len(), 3);
    lab.kernel.set_forwarding(vtepd::engine::Family::V4, None).unwrap();
    lab.settle();
    assert_eq!(lab.drift(), [(Kind::Route, DriftReason::Missing)]);
    lab.quiet();
    lab.go(&["a", "b"]);
    assert_eq!(lab.rest(), Turn::Gone);
    assert_eq!(lab.home().tables.keys().collect::<Vec<_>>(), [&theirs]);
    assert!(!lab.home().forwarding.is_empty(), "a host that was made to forward is left so");
}

#[test]
fn a_port_that_lost_its_name_is_nobodys_for_an_agent_without_memory_which_makes_the_pair_anew() {
    let mut lab = GatewayLab::with(&["a", "b"]);
    let ifindex = lab.port("b").link.ifindex;
    let change = LinkChange { name: Some("odd".into()), ..LinkChange::default() };
    lab.kernel.foreign(&Op::SetLink { place: Place::Overlay, ifindex, change }).unwrap();
    lab.kernel.events_dropped();
    // With another one before it that gets its address.
    lab.kernel.add_container(&path("0"));
    lab.restart(&["0", "a", "b"]);
    lab.settle();
    assert_eq!((lab.last_bytes(&["a", "b"]), lab.drift()), (vec![Some(2), Some(4)], vec![]));
    assert!(lab.kernel.link("odd").is_none());
    lab.quiet();
}

#[test]
fn an_agent_that_cannot_read_everything_yet_does_not_take_what_it_did_not_see_for_gone() {
    let mut lab = GatewayLab::with(&["a"]);
    lab.restart(&[]);
    let now = lab.time();
    lab.gateway.update(Update { revision: 9, spec: Some(None), endpoints: Vec::new() }, now);
    let mut fails = 2;
    let reads = |query: &Query| {
        let now = matches!(query, Query::Links) && fails > 0;
        fails -= u32::from(now);
        // The first reading is that of the stage before the engine.
        (now && fails == 0).then_some(FailureKind::Torn)
    };
    let mut kernel = Failing { kernel: &mut lab.kernel, reads, ops: |_: &Op| None, count: 0 };
    assert!(matches!(turn(&mut lab.gateway, &mut kernel, || now, 1000), Turn::Rest(_)));
    lab.later(MINUTE);
    assert_eq!(lab.rest(), Turn::Gone);
    assert!(lab.home().tables.is_empty() && lab.kernel.link(BRIDGE).is_none());
}
