//! What could harm a host, or what is kept there, through the gateway bridge's engine.

use std::{cell::Cell, collections::BTreeMap, sync::Arc, time::Duration};

use ipnet::IpNet;
use vtepd::{
    desired::{EndpointSpec, NetworkSpec, OutsideConfig, OutsideEndpoint, Segment, Update},
    engine::{
        Answer, Config, Event, Failure, FailureKind, Gateway, Home, Kernel, LinkKind, Op, Place, Query,
        Reconciler as _, Time, Turn, turn,
    },
    model::{
        EndpointId, Mac, Name, Vni,
        nft::{Family, TableId},
    },
};

use crate::{
    lab::{Failing, id},
    sim_kernel::SimKernel,
};

const BRIDGE: &str = "vtepd-gw";
const GROUP: u32 = 0x76;

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn config() -> OutsideConfig {
    let (subnet, table) = ("172.18.0.0/16".parse().unwrap(), TableId::new(Family::Inet, "vtepd-test"));
    OutsideConfig { bridge: BRIDGE.into(), subnet, subnet6: None, table }
}

fn engine(adopt: bool) -> Gateway {
    let home = Home::Host { bridge: BRIDGE.into(), adopt };
    let (guards, tables) = (TableId::new(Family::Netdev, "vtepd-test"), vec![config().table]);
    let resync = Duration::from_secs(60);
    Gateway::new(
        Config { name: Name::host(), home, group: GROUP, resync, dump_at_most: Config::DUMP_AT_MOST, guards, tables },
        config(),
    )
}

struct World {
    gateway: Gateway,
    kernel: SimKernel,
    now: Cell<Duration>,
}

impl World {
    fn new(adopt: bool) -> Self {
        let mut kernel = SimKernel::on_host(1);
        kernel.add_container("/run/netns/a");
        kernel.add_container("/run/netns/b");
        kernel.add_container("/run/netns/c");
        Self { gateway: engine(adopt), kernel, now: Cell::default() }
    }

    fn tell(&mut self, spec: Option<Option<NetworkSpec>>, endpoints: Vec<(EndpointId, Option<EndpointSpec>)>) {
        let update = Update { revision: 1, spec: spec.map(|spec| spec.map(Arc::new)), endpoints };
        self.gateway.update(update, Time::from_origin(self.now.get()));
    }

    fn rest(&mut self) -> Turn {
        let now = Time::from_origin(self.now.get());
        for _ in 0..1000 {
            match turn(&mut self.gateway, &mut self.kernel, || now, 100) {
                Turn::More => {}
                done => return done,
            }
        }
        panic!("the engine never rests");
    }

    fn address(&self, container: &str) -> Option<IpNet> {
        let netns = format!("/run/netns/{container}");
        let links = &self.kernel.containers[&netns.as_str().into()].links;
        let link = links.values().find(|link| link.link.name == "eth1")?;
        link.addresses.keys().next().copied()
    }
}

fn spec() -> NetworkSpec {
    let gateways = config().gateways();
    let gateway_mac = Mac::from_ip(gateways[0].addr());
    let segment = Segment { vni: Vni::GATEWAY, tunnel: None, mtu: 1500, gateways, gateway_mac };
    NetworkSpec { name: Name::host(), segments: vec![segment], spoof_guard: true, chains: BTreeMap::new() }
}

fn outside(container: &str) -> (EndpointId, Option<EndpointSpec>) {
    let netns = format!("/run/netns/{container}").into();
    (id("n1", container), Some(EndpointSpec::Outside(OutsideEndpoint { netns, ifname: "eth1".into() })))
}

#[test]
fn the_address_that_an_adopted_bridge_had_already_stays_on_it_when_we_go() {
    for memory in [true, false] {
        let mut world = World::new(true);
        let bridge = LinkKind::Bridge { mcast_snooping: true };
        let ifindex = world.kernel.add_others_link(&Place::Overlay, BRIDGE, 0, bridge);
        world.kernel.add_others_address(&Place::Overlay, ifindex, net("172.18.0.1/16"));
        let theirs = world.kernel.link(BRIDGE).unwrap().clone();
        world.tell(Some(Some(spec())), vec![outside("a")]);
        world.rest();
        assert!(world.address("a").is_some());
        if !memory {
            world.gateway = engine(true);
        }
        world.tell(Some(None), Vec::new());
        assert_eq!(world.rest(), Turn::Gone);
        assert_eq!(world.kernel.link(BRIDGE).unwrap().addresses, theirs.addresses);
        assert_eq!(world.address("a"), None);
    }
}

#[test]
fn what_is_held_keeps_its_address_from_others_and_has_it_again_when_it_is_known() {
    let mut world = World::new(false);
    world.tell(Some(Some(spec())), vec![outside("a")]);
    world.rest();
    assert_eq!(world.address("a"), Some(net("172.18.0.2/16")));
    // An agent without memory, to which nobody says what the first is.
    world.gateway = engine(false);
    world.gateway.network().hold_removals(true);
    world.tell(Some(Some(spec())), vec![outside("b")]);
    world.rest();
    assert_eq!(world.address("b"), Some(net("172.18.0.3/16")));
    world.kernel.log.clear();
    world.tell(None, vec![outside("c")]);
    world.rest();
    assert_eq!(world.address("c"), Some(net("172.18.0.4/16")));
    world.kernel.log.clear();
    world.tell(None, vec![outside("a")]);
    world.rest();
    assert_eq!(world.address("a"), Some(net("172.18.0.2/16")));
    assert_eq!(world.kernel.log, []);
    world.gateway.network().hold_removals(false);
    assert!(world.gateway.summary().in_sync);
}

#[test]
fn what_could_not_be_read_is_not_said_to_be_gone() {
    for unread in [|query: &Query| matches!(query, Query::Links), |query: &Query| matches!(query, Query::Rules(_))] {
        let mut world = World::new(false);
        world.tell(Some(Some(spec())), vec![outside("a")]);
        world.rest();
        world.gateway = engine(false);
        world.tell(Some(None), Vec::new());
        let mut links = 0;
        // The gateway's own first look succeeds, and then the dump is torn for a while.
        let reads = |query: &Query| {
            links += usize::from(matches!(query, Query::Links));
            (unread(query) && (links > 1 || !matches!(query, Query::Links))).then_some(FailureKind::Torn)
        };
        let mut failing = Failing { kernel: &mut world.kernel, reads, ops: |_: &Op| None, count: 0 };
        let ended = turn(&mut world.gateway, &mut failing, || Time::from_origin(Duration::ZERO), 1000);
        assert!(matches!(ended, Turn::Rest(_)), "{ended:?}");
        world.now.set(Duration::from_secs(10));
        assert_eq!(world.rest(), Turn::Gone);
        assert!(world.kernel.link(BRIDGE).is_none() && world.kernel.overlay.as_ref().unwrap().tables.is_empty());
    }
}

#[test]
fn what_overlaps_is_nobodys_trouble_once_nothing_is_wanted() {
    let mut world = World::new(false);
    let ifindex = world.kernel.add_others_link(&Place::Overlay, "docker0", 0, LinkKind::Other("dummy".into()));
    world.kernel.add_others_address(&Place::Overlay, ifindex, net("172.18.0.1/16"));
    world.tell(Some(Some(spec())), vec![outside("a")]);
    world.rest();
    assert_eq!(world.gateway.summary().blocked.len(), 1);
    world.tell(Some(None), Vec::new());
    world.now.set(Duration::from_secs(60));
    assert_eq!(world.rest(), Turn::Gone);
    assert_eq!(world.gateway.summary().blocked.len(), 0);
}

#[test]
fn a_subnet_that_is_full_costs_no_search_for_each_that_has_to_wait() {
    let mut world = World::new(false);
    let many = |range: std::ops::Range<u32>| range.map(|n| outside(&format!("n{n}"))).collect::<Vec<_>>();
    world.tell(Some(Some(spec())), Vec::new());
    world.rest();
    let start = std::time::Instant::now();
    world.tell(None, many(0..80_000));
    for n in 80_000..80_010 {
        world.tell(None, many(n..n + 1));
    }
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
}

/// A kernel in which somebody changes a table of theirs all the time.
struct Chatty<'a> {
    kernel: &'a mut SimKernel,
    barriers_read: usize,
}

impl Kernel for Chatty<'_> {
    fn read(&mut self, query: &Query) -> Result<Answer, Failure> {
        self.barriers_read += usize::from(*query == Query::Barriers);
        self.kernel.read(query)
    }

    fn apply(&mut self, ops: &[Op]) -> Vec<Result<(), Failure>> {
        self.kernel.apply(ops)
    }

    fn events(&mut self) -> Vec<Event> {
        let theirs = Event::Rules(TableId::new(Family::Ip, "filter"));
        self.kernel.events().into_iter().chain([theirs]).collect()
    }
}

#[test]
fn rules_of_others_that_change_all_the_time_hold_up_nothing_and_are_looked_at_now_and_then() {
    let mut world = World::new(false);
    world.tell(Some(Some(spec())), vec![outside("a")]);
    for seconds in [0, 20, 40] {
        let mut chatty = Chatty { kernel: &mut world.kernel, barriers_read: 0 };
        let ended = turn(&mut world.gateway, &mut chatty, || Time::from_origin(Duration::from_secs(seconds)), 1000);
        assert!(matches!(ended, Turn::Rest(_)), "{ended:?}");
        assert!((1..20).contains(&chatty.barriers_read), "{}", chatty.barriers_read);
    }
    assert_eq!(world.address("a"), Some(net("172.18.0.2/16")));
    assert!(world.gateway.summary().in_sync);
}
