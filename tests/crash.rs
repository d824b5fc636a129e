//! An agent is killed at every send that changes the kernel, in scenario after scenario. Whatever instant it was: the next agent, without
//! memory, sends what is left of the edit and nothing else, the kernel is then as desired, and packets between others were never lost.
//!
//! The agent that is killed is this test in a process of its own, traced: it stops before each system call, and the tracer kills it at
//! the one whose turn it is.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    missing_docs,
    reason = "a test ends where something is not as it should be"
)]

#[path = "crash/flow.rs"]
mod flow;
#[path = "crash/scenarios.rs"]
mod scenarios;
mod support;
#[path = "crash/tracer.rs"]
mod tracer;

use std::{
    env, fs,
    io::Write as _,
    os::fd::AsFd as _,
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use support::{attempt, kernel_of, private_host, run};
use vtepd::{
    desired::Update,
    engine::{Answer, Config, Event, Failure, Home, Kernel, Network, Note, Op, Query, Time, Turn, turn},
    kernel::NetworkKernel,
    model::guard_table,
};

use crate::{
    flow::Flow,
    scenarios::{Scenario, base, scenarios},
    tracer::{Ended, killed_at},
};

/// Which scenario the traced process plays.
const ROLE: &str = "VTEPD_TEST_CRASH";
/// Where it writes how many operations were answered.
const ANSWERED: &str = "/run/answered";

/// An agent of one network, without memory.
struct Agent {
    network: Network,
    kernel: NetworkKernel,
    origin: Instant,
    notes: Vec<Note>,
}

impl Agent {
    fn new(network: &str) -> Self {
        let config = Config {
            name: network.parse().unwrap(),
            home: Home::Overlay(format!("/run/netns/vtepd-{network}").into()),
            group: 0x76,
            resync: Duration::from_secs(3600),
            dump_at_most: Config::DUMP_AT_MOST,
            guards: guard_table(),
            tables: Vec::new(),
        };
        let kernel = kernel_of(network);
        Self { network: Network::new(config), kernel, origin: Instant::now(), notes: Vec::new() }
    }

    /// Runs until the kernel is as the update says, and says how many operations that took.
    fn apply(&mut self, update: Update) -> usize {
        let origin = self.origin;
        let now = move || Time::from_origin(origin.elapsed());
        self.network.update(update, now());
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let mut kernel = Counted { kernel: &mut self.kernel };
            let turned = turn(&mut self.network, &mut kernel, now, 1000);
            self.notes.extend(self.network.take_notes());
            if turned == Turn::Gone || (turned != Turn::More && self.network.in_sync()) {
                let sent = |note: Note| match note {
                    Note::Ops { count, .. } => usize::try_from(count).unwrap(),
                    Note::OpFailed { .. } => 1,
                    _ => 0,
                };
                return std::mem::take(&mut self.notes).into_iter().map(sent).sum();
            }
            assert!(Instant::now() < deadline, "never in sync: {:?} {:#?}", self.network.summary(), self.notes);
            let fds = self.kernel.event_fds();
            let mut fds: Vec<_> = fds.iter().map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)).collect();
            poll(&mut fds, PollTimeout::from(20_u8)).unwrap();
        }
    }
}

/// Sends operations on links and addresses one by one, and writes down how many were answered.
struct Counted<'a> {
    kernel: &'a mut NetworkKernel,
}

impl Kernel for Counted<'_> {
    fn read(&mut self, query: &Query) -> Result<Answer, Failure> {
        self.kernel.read(query)
    }

    fn apply(&mut self, ops: &[Op]) -> Vec<Result<(), Failure>> {
        if env::var_os(ROLE).is_none() {
            return self.kernel.apply(ops);
        }
        let row = |op: &Op| {
            matches!(
                op,
                Op::PutFdb { .. }
                    | Op::DeleteFdb { .. }
                    | Op::PutBridgeRow { .. }
                    | Op::DeleteBridgeRow { .. }
                    | Op::PutNeighbour { .. }
                    | Op::DeleteNeighbour { .. }
            )
        };
        let mut results = Vec::new();
        for some in ops.chunk_by(|one, next| row(one) && row(next)) {
            let answered = self.kernel.apply(some);
            assert!(answered.iter().all(Result::is_ok), "{some:?}: {answered:?}");
            results.extend(answered);
            let mut file = fs::OpenOptions::new().create(true).append(true).open(ANSWERED).unwrap();
            file.write_all(&vec![b'.'; some.len()]).unwrap();
        }
        results
    }

    fn events(&mut self) -> Vec<Event> {
        self.kernel.events()
    }
}

fn answered() -> usize {
    let count = fs::read(ANSWERED).map_or(0, |dots| dots.len());
    let _ = fs::remove_file(ANSWERED);
    count
}

/// What `ip`, `bridge` and `nft` show of the namespaces of ours, without indices and counters.
fn picture() -> String {
    let mut shown = Vec::new();
    for netns in ["a", "b", "c", "vtepd-one", "vtepd-two"] {
        // Killed between unbinding and removing, an agent leaves an empty file, which the next network of that name takes over.
        if !attempt(&format!("nsenter --net=/run/netns/{netns} -- true")).0 {
            continue;
        }
        for what in [
            "ip -br link",
            "ip -br addr",
            "ip -N neigh show nud permanent",
            "ip route",
            "ip -6 route",
            "bridge fdb",
            "nft -s list ruleset",
        ] {
            let output = run(&format!("nsenter --net=/run/netns/{netns} -- {what}"));
            let mut lines: Vec<String> = output.lines().map(plain).collect();
            lines.sort();
            shown.push(format!("{netns}$ {what}\n{}", lines.join("\n")));
        }
    }
    shown.join("\n")
}

fn plain(line: &str) -> String {
    let words = line.split_whitespace().filter(|word| !word.starts_with("fe80:") && !word.starts_with("33:33"));
    let words = words.map(|word| word.split_once("@if").map_or(word, |(name, _)| name));
    let words: Vec<_> = words.filter(|word| !matches!(*word, "UP" | "DOWN" | "LOWERLAYERDOWN" | "UNKNOWN")).collect();
    words.join(" ")
}

/// Plays the scenario in a process that is killed at its `point`th change of the kernel.
fn play(scenario: &Scenario, point: usize) -> Ended {
    killed_at(point, &[(ROLE, scenario.name)])
}

fn sweep(scenario: &Scenario) -> usize {
    let apply = |update: Update| Agent::new(scenario.network).apply(update);
    let restore = || {
        apply((scenario.before)());
        (scenario.damage)();
    };
    restore();
    let all = apply((scenario.after)());
    let desired = picture();
    let mut points = 0;
    loop {
        restore();
        answered();
        let ended = play(scenario, points + 1);
        let sent = answered();
        let what = format!("{}, killed at change {}", scenario.name, points + 1);
        let left = apply((scenario.after)());
        assert_eq!(picture(), desired, "{what}");
        assert!(left + sent <= all, "{what}: {sent} operations before and {left} after, of {all}");
        assert_eq!(apply((scenario.after)()), 0, "{what}: a correct kernel gets no operation");
        if ended == Ended::ByItself {
            assert_eq!((sent, left), (all, 0), "{what}");
            return points;
        }
        points += 1;
    }
}

#[test]
fn an_agent_that_is_killed_at_any_send_leaves_the_rest_of_the_edit_and_loses_nobodys_packets() {
    if let Ok(name) = env::var(ROLE) {
        let scenario = scenarios().into_iter().find(|scenario| scenario.name == name).unwrap();
        tracer::traced();
        Agent::new(scenario.network).apply((scenario.after)());
        return;
    }
    private_host();
    scenarios::hosts();
    Agent::new("one").apply(base());
    let mut points = 0;
    for scenario in scenarios() {
        let local = Flow::start("a", "b", "10.0.0.3");
        let across = Flow::start("a", "peer", "10.0.0.100");
        let killed = sweep(&scenario);
        let (local, across) = (local.stop(), across.stop());
        println!(
            "{}: killed at {killed} points; {} and {} packets, lost {} and {}",
            scenario.name,
            local.sent,
            across.sent,
            local.lost(),
            across.lost()
        );
        assert!(killed > 0, "{}", scenario.name);
        assert_eq!(local.lost(), 0, "{}: {local:?}", scenario.name);
        if !scenario.takes_the_tunnel {
            assert_eq!(across.lost(), 0, "{}: {across:?}", scenario.name);
        }
        points += killed;
        Agent::new(scenario.network).apply((scenario.before)());
    }
    println!("{points} points in all");
}
