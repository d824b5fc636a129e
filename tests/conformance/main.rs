//! The simulated kernel against the real one: the same random operations on both, and a difference fails. What the engine's
//! own tests and the simulation prove, they prove of a kernel that is like this one.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    missing_docs,
    reason = "a test ends where something is not as it should be"
)]

mod acts;
mod picture;
#[path = "../support/sim_kernel/mod.rs"]
mod sim_kernel;
#[path = "../support/mod.rs"]
mod support;
mod twins;

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use acts::{CONTAINERS, act, prelude};
use picture::{Picture, heard, picture};
use sim_kernel::{Chance, SimKernel};
use support::{attempt, private_host, run};
use twins::{Side, Twins, at};
use vtepd::{
    engine::{Failure, Kernel, Op, Query},
    kernel::{Config, NetworkKernel},
};

const NETNS: &str = "vtepd-demo";

/// Both kernels, and what is known of which link of the one is which of the other.
struct Pair {
    sim: SimKernel,
    real: NetworkKernel,
    twins: Twins,
    before: Picture,
    log: Vec<String>,
    seed: u64,
}

fn real_kernel() -> NetworkKernel {
    NetworkKernel::new(Config {
        instance: "default".into(),
        network: "demo".parse().unwrap(),
        netns_dir: "/run/netns".into(),
        netns_roots: vec!["/run/netns".into()],
    })
}

/// Whether a link's next IPv4 address of a subnet takes the place of the first; new namespaces have it from the host.
fn set_promotion(netns: &str, promote: bool) {
    let path = format!("/run/netns/{netns}");
    std::thread::spawn(move || {
        let file = std::fs::File::open(&path).unwrap();
        nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        for which in ["all", "default"] {
            let path = format!("/proc/sys/net/ipv4/conf/{which}/promote_secondaries");
            std::fs::write(&path, if promote { "1" } else { "0" }).expect("a writable /proc/sys");
        }
    })
    .join()
    .unwrap();
}

/// Waits until the kernel has done away with the link, and with it the namespace of its other end: it does so later.
fn until_gone(link: &str) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while attempt(&format!("ip link show {link}")).0 {
        assert!(Instant::now() < deadline, "the kernel does not clean up");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// An operation without what it leaves alone.
fn short(op: &Op) -> String {
    let mut text = format!("{op:?}");
    for field in ["name", "mac", "mtu", "up", "master", "group", "port", "local", "ifindex"] {
        text = text.replace(&format!(" {field}: None,"), "");
    }
    text.replace("addr_gen_none: false, ", "").replace("mcast_snooping_off: false, ", "").replace(", learning_off: false", "")
}

fn class(result: &Result<(), Failure>) -> String {
    result.as_ref().map_or_else(|failure| format!("{:?}", failure.kind), |()| "Ok".to_owned())
}

impl Pair {
    fn new(seed: u64) -> Self {
        let (sim, twins) = (SimKernel::new(seed), Twins::default());
        let mut this = Self { sim, real: real_kernel(), twins, before: Picture::new(), log: Vec::new(), seed };
        this.sim.promote_secondaries = seed % 2 == 0;
        for container in CONTAINERS {
            run(&format!("ip netns add {container}"));
            set_promotion(container, this.sim.promote_secondaries);
            this.sim.add_container(&at(container));
        }
        this
    }

    fn fail(&self, what: &str) -> ! {
        let last: Vec<_> = self.log.iter().rev().take(25).rev().map(String::as_str).collect();
        panic!("seed {}: {what}\nthe last operations (links by handle):\n{}", self.seed, last.join("\n"))
    }

    /// Does one operation on both, and compares the results, the states afterwards and what was heard of it.
    fn step(&mut self, op: &Op) {
        let result = |kernel: &mut dyn Kernel, op: Op| kernel.apply(&[op]).remove(0);
        let sim = result(&mut self.sim, self.twins.translate(op, Side::Sim));
        if *op == Op::DeleteNetns {
            attempt(&format!("ip link add marker type veth peer name marker netns {NETNS}"));
        }
        let real = result(&mut self.real, self.twins.translate(op, Side::Real));
        self.log.push(format!("{} -> {}", short(op), class(&real)));
        if class(&sim) != class(&real) {
            self.fail(&format!("{op:?}: simulated {sim:?}, real {real:?}"));
        }
        if matches!(op, Op::CreateNetns | Op::DeleteNetns) {
            self.after_netns(op);
        }
        if let (Op::AddLink(new), Ok(())) = (op, &real) {
            self.twins.made(new, &mut self.sim, &mut self.real);
        }
        self.compare();
    }

    /// As the engine does: what stands there is read after every such operation.
    fn after_netns(&mut self, op: &Op) {
        if *op == Op::DeleteNetns {
            until_gone("marker");
        }
        self.sim.read(&Query::Netns).unwrap();
        self.real.read(&Query::Netns).unwrap();
        if self.real.path().exists() && *op == Op::CreateNetns {
            set_promotion(NETNS, self.sim.promote_secondaries);
        }
    }

    fn compare(&mut self) {
        let sim = picture(&mut self.sim, Side::Sim, &self.twins);
        let real = picture(&mut self.real, Side::Real, &self.twins);
        let keys: BTreeSet<&String> = sim.keys().chain(real.keys()).collect();
        let differ = keys.iter().filter(|key| sim.get(**key) != real.get(**key));
        let shown = differ.map(|key| format!("{key}\n   sim: {:?}\n  real: {:?}", sim.get(*key), real.get(*key)));
        let shown: Vec<String> = shown.collect();
        if !shown.is_empty() {
            self.fail(&format!("the states differ:\n{}", shown.join("\n")));
        }
        let keys: BTreeSet<&String> = self.before.keys().chain(real.keys()).collect();
        let changed: BTreeSet<String> =
            keys.into_iter().filter(|key| self.before.get(*key) != real.get(*key)).cloned().collect();
        self.compare_events(&changed);
        self.before = real;
        self.twins.forget_gone(&mut self.sim, &mut self.real);
    }

    /// Whatever changed and was told by the real kernel must be told by the simulated one, and what that tells must be true.
    fn compare_events(&mut self, changed: &BTreeSet<String>) {
        let sim = heard(&mut self.sim, Side::Sim, &self.twins);
        let mut real = heard(&mut self.real, Side::Real, &self.twins);
        let deadline = Instant::now() + Duration::from_millis(200);
        while !sim.is_subset(&real) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
            real.extend(heard(&mut self.real, Side::Real, &self.twins));
        }
        let invented: Vec<_> = sim.difference(&real).collect();
        let untold: Vec<_> = real.intersection(changed).filter(|key| !sim.contains(*key)).collect();
        if !invented.is_empty() || !untold.is_empty() {
            self.fail(&format!("only the simulated kernel tells of {invented:?}; it does not tell of {untold:?}"));
        }
    }
}

fn conform(seed: u64, ops: usize) {
    private_host();
    let mut pair = Pair::new(seed);
    for op in prelude() {
        let op = op(&pair.twins);
        pair.step(&op);
    }
    let mut chance = Chance::new(seed);
    for _ in 0..ops {
        let op = act(&mut chance, &pair.twins);
        pair.step(&op);
    }
}

#[test]
fn the_simulated_kernel_answers_every_operation_as_the_real_one_does() {
    let seed = std::env::var("VTEPD_TEST_SEED").ok().map(|seed| seed.parse().expect("VTEPD_TEST_SEED is a number"));
    let seeds: Vec<u64> = seed.map_or_else(|| (1..=6).collect(), |seed| vec![seed]);
    for seed in seeds {
        let host = std::thread::Builder::new().name(format!("seed {seed}")).spawn(move || conform(seed, 300));
        host.unwrap().join().unwrap_or_else(|cause| std::panic::resume_unwind(cause));
    }
}
