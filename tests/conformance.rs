//! The simulated kernel against the real one: the same random operations on both, and a difference fails. What the engine's
//! own tests and the simulation prove, they prove of a kernel that is like this one.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    missing_docs,
    unreachable_pub,
    reason = "a test ends where something is not as it should be"
)]

#[path = "conformance/acts.rs"]
mod acts;
#[path = "conformance/picture.rs"]
mod picture;
#[path = "support/sim_kernel/mod.rs"]
mod sim_kernel;
mod support;
#[path = "conformance/twins.rs"]
mod twins;

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use acts::{Act, MORTAL, act, devices, wiring};
use picture::{Picture, heard, picture};
use sim_kernel::{Chance, SimKernel};
use support::{attempt, kernel_of, private_host, run};
use twins::{Side, Twins, path};
use vtepd::{
    engine::{Answer, Failure, Kernel, NetnsState, Op, Query},
    kernel::NetworkKernel,
};

const NETNS: &str = "vtepd-demo";

/// Both kernels, and what is known of which link of the one is which of the other.
struct Pair {
    sim: SimKernel,
    real: NetworkKernel,
    /// Somebody else in the same namespace.
    other: NetworkKernel,
    netns: Answer,
    twins: Twins,
    before: Picture,
    log: Vec<String>,
    seed: u64,
}

/// Whether a link's next IPv4 address of a subnet takes the place of the first; new namespaces have it from the host, and
/// whether they forward.
fn set_promotion(netns: &str, promote: bool) {
    let path = format!("/run/netns/{netns}");
    std::thread::spawn(move || {
        let file = std::fs::File::open(&path).unwrap();
        nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        promote_here(promote);
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").expect("a writable /proc/sys");
    })
    .join()
    .unwrap();
}

/// The same of the calling thread's namespace.
fn promote_here(promote: bool) {
    for which in ["all", "default"] {
        let path = format!("/proc/sys/net/ipv4/conf/{which}/promote_secondaries");
        std::fs::write(&path, if promote { "1" } else { "0" }).expect("a writable /proc/sys");
    }
}

/// Puts one end of a pair into a namespace, if it is there; the other end goes when the namespace does.
fn mark(netns: &str) {
    attempt(&format!("ip link add marker type veth peer name marker netns {netns}"));
}

/// Waits until the kernel has done away with the marked namespace: it does so later, and not before it is closed.
fn until_unmarked() {
    let deadline = Instant::now() + Duration::from_secs(10);
    while attempt("ip link show marker").0 {
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
    text.replace("addr_gen_none: false, ", "")
        .replace("mcast_snooping_off: false, ", "")
        .replace(", learning_off: false", "")
}

fn class(result: &Result<(), Failure>) -> String {
    result.as_ref().map_or_else(|failure| format!("{:?}", failure.kind), |()| "Ok".to_owned())
}

impl Pair {
    fn new(seed: u64) -> Self {
        let mut this = Self {
            sim: SimKernel::new(seed),
            real: kernel_of("demo"),
            other: kernel_of("demo"),
            netns: Answer::Netns(NetnsState::Absent),
            twins: Twins::default(),
            before: Picture::new(),
            log: Vec::new(),
            seed,
        };
        this.sim.promote_secondaries = seed.is_multiple_of(2);
        promote_here(this.sim.promote_secondaries);
        for container in MORTAL {
            this.add_container(container);
        }
        this
    }

    fn add_container(&mut self, name: &str) {
        run(&format!("ip netns add {name}"));
        set_promotion(name, self.sim.promote_secondaries);
        self.sim.add_container(&path(name));
    }

    fn fail(&self, what: &str) -> ! {
        let last: Vec<_> = self.log.iter().rev().take(25).rev().map(String::as_str).collect();
        panic!("seed {}: {what}\nthe last operations (links by handle):\n{}", self.seed, last.join("\n"))
    }

    /// Lets it happen to both, and compares the results, the states afterwards and what was heard of it.
    fn step(&mut self, act: &Act) {
        match act {
            Act::Own(op @ (Op::CreateNetns | Op::DeleteNetns)) => {
                if *op == Op::DeleteNetns {
                    mark(NETNS);
                }
                self.both(op, false);
                self.look();
            }
            Act::Own(op) => self.both(op, false),
            Act::Foreign(op) => self.both(op, true),
            Act::Container(container) => {
                self.log.push(format!("another container {container}"));
                mark(container);
                self.sim.remove_container(&path(container));
                run(&format!("ip netns del {container}"));
                until_unmarked();
                self.compare();
                self.twins.forget_container(container);
                self.add_container(container);
            }
            Act::Deleted(op) => {
                self.log.push("the overlay namespace is deleted".into());
                mark(NETNS);
                attempt(&format!("ip netns del {NETNS}"));
                self.sim.remove_overlay();
                self.both(op, false);
                self.look();
            }
        }
        self.compare();
    }

    fn both(&mut self, op: &Op, foreign: bool) {
        // What is still told of earlier operations (carriers that came or went) is not of this one.
        self.real.events();
        let (of_sim, of_real) = (self.twins.translate(op, Side::Sim), self.twins.translate(op, Side::Real));
        let sim = if foreign { self.sim.foreign(&of_sim) } else { self.sim.apply(&[of_sim]).remove(0) };
        let kernel = if foreign { &mut self.other } else { &mut self.real };
        let real = kernel.apply(&[of_real]).remove(0);
        let who = if foreign { " by somebody else" } else { "" };
        self.log.push(format!("{}{who} -> {}", short(op), class(&real)));
        if class(&sim) != class(&real) {
            self.fail(&format!("{op:?}: simulated {sim:?}, real {real:?}"));
        }
        if let (Op::AddLink(new), Ok(())) = (op, &real) {
            self.twins.made(new, &mut self.sim, &mut self.real);
        }
    }

    /// Makes a network as the engine would, as far as it can be made now.
    fn build(&mut self) {
        for op in devices() {
            self.step(&Act::Own(op));
        }
        for op in wiring(&self.twins) {
            self.step(&Act::Own(op));
        }
    }

    /// As the engine does when something is with the namespace: what stands there now is read.
    fn look(&mut self) {
        self.sim.read(&Query::Netns).unwrap();
        self.other.read(&Query::Netns).unwrap();
        let now = self.real.read(&Query::Netns).unwrap();
        until_unmarked();
        if now != self.netns {
            self.twins.forget_namespace();
        }
        if now != self.netns && now != Answer::Netns(NetnsState::Absent) {
            set_promotion(NETNS, self.sim.promote_secondaries);
        }
        self.netns = now;
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
        let untold: Vec<String> = real.intersection(changed).filter(|key| !sim.contains(*key)).cloned().collect();
        let deadline = Instant::now() + Duration::from_millis(200);
        while !sim.is_subset(&real) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
            real.extend(heard(&mut self.real, Side::Real, &self.twins));
        }
        let invented: Vec<_> = sim.difference(&real).collect();
        if !invented.is_empty() || !untold.is_empty() {
            self.fail(&format!("only the simulated kernel tells of {invented:?}; it does not tell of {untold:?}"));
        }
    }
}

fn conform(seed: u64) {
    private_host();
    let mut pair = Pair::new(seed);
    let mut chance = Chance::new(seed);
    let mut built = pair.netns.clone();
    for _ in 0..ACTS {
        let act = act(&mut chance, &pair.twins, pair.netns == Answer::Netns(NetnsState::Absent));
        pair.step(&act);
        if pair.netns != built {
            built = pair.netns.clone();
            pair.build();
        }
    }
}

/// As many as a debug build runs in some ten seconds; `SEEDS=100` runs more, `SEED=7` that one alone.
const SEEDS: u64 = 4;
const ACTS: usize = 250;

fn seeds() -> Vec<u64> {
    let number = |name| std::env::var(name).ok().map(|text: String| text.parse().expect("a number"));
    match number("SEED") {
        Some(seed) => vec![seed],
        None => (1..=number("SEEDS").unwrap_or(SEEDS)).collect(),
    }
}

#[test]
fn the_simulated_kernel_answers_every_operation_as_the_real_one_does() {
    for seed in seeds() {
        // A thread of its own, and with it a host of its own.
        let host = std::thread::Builder::new().name(format!("seed {seed}")).spawn(move || conform(seed));
        host.unwrap().join().unwrap_or_else(|cause| std::panic::resume_unwind(cause));
    }
}
