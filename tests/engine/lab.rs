//! One network, its engine, and the simulated kernel under it.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use vtepd::{
    desired::{EndpointSpec, LocalEndpoint, NetworkSpec, RemoteEndpoint, Segment, Tunnel, Update},
    engine::{
        Answer, Config, DriftReason, Event, Failure, FailureKind, Home, Kernel, Kind, Network, Note, Op, Query, Time,
        Turn, turn,
    },
    model::{EndpointId, Mac, Vni, guard_table},
};

use crate::sim_kernel::{self, SimKernel};

pub const TEST1: &str = "/run/netns/test1";

pub struct Lab {
    pub network: Network,
    pub kernel: SimKernel,
    pub now: Cell<Duration>,
    pub notes: Vec<Note>,
}

pub fn vni(number: u32) -> Vni {
    number.try_into().unwrap()
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub fn id(node: &str, endpoint: &str) -> EndpointId {
    EndpointId { node: node.parse().unwrap(), endpoint: endpoint.parse().unwrap() }
}

pub fn spec() -> NetworkSpec {
    let segment = Segment {
        vni: vni(256),
        tunnel: Some(Tunnel { port: 4789, local: ip("192.168.205.10"), flood: false }),
        mtu: 1450,
        gateways: vec!["10.0.0.1/24".parse().unwrap(), "fd00::1/64".parse().unwrap()],
        gateway_mac: Mac::from_ip(ip("10.0.0.1")),
    };
    let name = "overlay-demo".parse().unwrap();
    NetworkSpec { name, segments: vec![segment], spoof_guard: true, chains: BTreeMap::new() }
}

pub fn local() -> EndpointSpec {
    EndpointSpec::Local(LocalEndpoint {
        vni: vni(256),
        mac: Mac::from_ip(ip("10.0.0.2")),
        addresses: vec!["10.0.0.2/24".parse().unwrap(), "fd00::2/64".parse().unwrap()],
        netns: TEST1.into(),
        ifname: "eth0".into(),
        routes: Vec::new(),
        outside: true,
    })
}

pub fn remote(last: u32, vtep: &str) -> EndpointSpec {
    let v4 = IpAddr::from((0x0a00_0000 + last).to_be_bytes());
    let v6 = IpAddr::from((0xfd00_u128 << 112 | u128::from(last)).to_be_bytes());
    EndpointSpec::Remote(RemoteEndpoint { vni: vni(256), mac: Mac::from_ip(v4), ips: vec![v4, v6], vtep: ip(vtep) })
}

pub fn demo() -> Update {
    let mut endpoints = vec![(id("n1", "test1"), Some(local()))];
    endpoints.extend((3..13).map(|n| (id("n2", &format!("e{n}")), Some(remote(n, "192.168.205.11")))));
    Update { revision: 5, spec: Some(Some(Arc::new(spec()))), endpoints }
}

/// An engine without memory.
pub fn engine(resync: Duration) -> Network {
    engine_of(resync, Config::DUMP_AT_MOST)
}

/// The same, to which more rows than so many are too many to be dumped.
pub fn engine_of(resync: Duration, dump_at_most: usize) -> Network {
    Network::new(Config {
        name: "overlay-demo".parse().unwrap(),
        home: Home::Overlay("/run/netns/vtepd-overlay-demo".into()),
        group: 0x76,
        resync,
        dump_at_most,
        guards: guard_table(),
        tables: Vec::new(),
    })
}

impl Lab {
    pub fn new() -> Self {
        Self {
            network: engine(Duration::from_secs(60)),
            kernel: SimKernel::new(1),
            now: Cell::default(),
            notes: Vec::new(),
        }
    }

    /// A network with one local and ten remote endpoints, converged.
    pub fn converged() -> Self {
        let mut lab = Self::new();
        lab.kernel.add_container(TEST1);
        lab.want(demo());
        lab.settle();
        lab.forget();
        lab
    }

    pub fn want(&mut self, update: Update) {
        self.network.update(update, Time::from_origin(self.now.get()));
    }

    pub fn clock(&self) -> impl Fn() -> Time + use<> {
        let now = self.now.get();
        move || Time::from_origin(now)
    }

    /// Runs until the engine rests, and checks that it then is in sync.
    pub fn settle(&mut self) {
        self.rest();
        assert!(self.network.in_sync(), "not in sync: {:?} {:#?}", self.network.summary(), self.notes);
    }

    pub fn rest(&mut self) -> Turn {
        let clock = self.clock();
        for _ in 0..1000 {
            match turn(&mut self.network, &mut self.kernel, &clock, 100) {
                Turn::More => {}
                done => {
                    self.notes.extend(self.network.take_notes());
                    return done;
                }
            }
        }
        panic!("the engine never rests: {:?}", self.kernel.log.iter().rev().take(5).collect::<Vec<_>>());
    }

    pub fn forget(&mut self) {
        self.notes.clear();
        self.kernel.log.clear();
    }

    pub fn drift(&self) -> Vec<(Kind, DriftReason)> {
        let drift = self.notes.iter().filter_map(|note| match note {
            Note::Drift { kind, reason, .. } => Some((*kind, *reason)),
            _ => None,
        });
        drift.collect()
    }

    pub fn repairs(&self) -> Vec<Kind> {
        let repairs = self.notes.iter().filter_map(|note| match note {
            Note::Repaired { kind, .. } => Some(*kind),
            _ => None,
        });
        repairs.collect()
    }

    pub fn index(&self, name: &str) -> u32 {
        self.kernel.link(name).unwrap_or_else(|| panic!("no {name}")).link.ifindex
    }

    pub fn foreign(&mut self, op: Op) {
        self.kernel.foreign(&op).unwrap();
    }

    /// Does the foreign thing, and expects exactly this drift, each repaired, and the state as before.
    pub fn expect_repair(&mut self, foreign: Op, drift: &[(Kind, DriftReason)]) {
        let fingerprint = |lab: &Self| {
            let mut links: Vec<_> = lab.kernel.overlay.iter().flat_map(|ns| ns.links.values().cloned()).collect();
            links.sort_by(|a, b| a.link.name.cmp(&b.link.name));
            let shape = |l: sim_kernel::SimLink| {
                let flood: BTreeSet<_> = l.flood.into_values().flatten().collect();
                let rows = (l.fdb, flood, l.neighbours, l.rows.len());
                (l.link.name, l.link.mac, l.link.mtu, l.link.up, rows, l.addresses)
            };
            links.into_iter().map(shape).collect::<Vec<_>>()
        };
        let before = fingerprint(self);
        self.foreign(foreign);
        self.settle();
        assert_eq!(self.drift(), drift, "{:#?}", self.notes);
        let kinds: Vec<Kind> = drift.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(self.repairs(), kinds, "{:#?}", self.notes);
        assert_eq!(fingerprint(self), before);
        self.quiet();
    }

    /// A full resync finds nothing to do.
    pub fn quiet(&mut self) {
        self.forget();
        self.network.resync("test", Time::from_origin(self.now.get()));
        self.settle();
        assert_eq!(self.kernel.log, [], "a correct kernel gets no operation");
        assert_eq!(self.drift(), []);
    }
}

/// A kernel in which some reads and operations fail.
pub struct Failing<'a, R, O> {
    pub kernel: &'a mut SimKernel,
    pub reads: R,
    pub ops: O,
    /// How many reads were made.
    pub count: usize,
}

impl<R: FnMut(&Query) -> Option<FailureKind>, O: FnMut(&Op) -> Option<FailureKind>> Kernel for Failing<'_, R, O> {
    fn read(&mut self, query: &Query) -> Result<Answer, Failure> {
        self.count += 1;
        match (self.reads)(query) {
            Some(kind) => Err(Failure::new(kind, "made to fail")),
            None => self.kernel.read(query),
        }
    }

    fn apply(&mut self, ops: &[Op]) -> Vec<Result<(), Failure>> {
        let mut one = |op: &Op| match (self.ops)(op) {
            Some(kind) => Err(Failure::new(kind, "made to fail")),
            None => self.kernel.apply(std::slice::from_ref(op)).remove(0),
        };
        ops.iter().map(&mut one).collect()
    }

    fn events(&mut self) -> Vec<Event> {
        self.kernel.events()
    }
}

/// A kernel that does some operations and gives no answer to them.
pub struct Unanswered<'a, O> {
    pub kernel: &'a mut SimKernel,
    pub ops: O,
}

impl<O: FnMut(&Op) -> bool> Kernel for Unanswered<'_, O> {
    fn read(&mut self, query: &Query) -> Result<Answer, Failure> {
        self.kernel.read(query)
    }

    fn apply(&mut self, ops: &[Op]) -> Vec<Result<(), Failure>> {
        let results = self.kernel.apply(ops);
        let lost = |op: &Op| Err(Failure::new(FailureKind::Torn, format!("no answer to {op:?}")));
        ops.iter().zip(results).map(|(op, result)| if (self.ops)(op) { lost(op) } else { result }).collect()
    }

    fn events(&mut self) -> Vec<Event> {
        self.kernel.events()
    }
}
