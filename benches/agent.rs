//! How fast the agent is, always beside something that is run at the same time on the same machine:
//! `cargo bench --bench agent [NAME…]`, all groups of measurements without a name.
//!
//! Everything runs in private namespaces, with a real etcd; the host's network is not touched. Repairs are timed from just
//! before a foreign write is sent to the kernel until a listener of the bench's own hears the right row: an upper bound.
//!
//! `BENCH_SCALE=full` measures a million endpoints as well, `BENCH_SCALE=small` ten thousand only. What was printed stands as
//! JSON in `target/bench.json`.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a benchmark ends where something is not as it should be"
)]

#[path = "agent/bare.rs"]
mod bare;
#[path = "agent/bench.rs"]
mod bench;
#[path = "agent/burst.rs"]
mod burst;
#[path = "agent/cold.rs"]
mod cold;
#[path = "agent/figures.rs"]
mod figures;
#[path = "agent/many.rs"]
mod many;
#[path = "agent/repair.rs"]
mod repair;
#[path = "agent/rows.rs"]
mod rows;
#[path = "agent/watch.rs"]
mod watch;

use std::{
    env, fs,
    io::{self, Read as _},
    path::Path,
    process::{self, Stdio},
    thread,
};

use vtepd::lab::{is_private, private_command};

/// A group of measurements, in a file of its own.
type Group = (&'static str, fn(Scale));

const GROUPS: &[Group] =
    &[("repair", repair::repair), ("burst", burst::burst), ("cold", cold::cold), ("many", many::many)];

/// How much is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scale {
    /// A tenth: to see whether the benches work.
    Small,
    /// What takes a few minutes.
    Usual,
    /// A million endpoints as well.
    Full,
}

impl Scale {
    /// As `BENCH_SCALE` has it.
    fn of_environment() -> Self {
        match env::var("BENCH_SCALE").as_deref() {
            Err(_) | Ok("" | "usual") => Self::Usual,
            Ok("small") => Self::Small,
            Ok("full") => Self::Full,
            Ok(other) => panic!("BENCH_SCALE is small, usual or full, not {other:?}"),
        }
    }

    /// A tenth of it where little is to be measured.
    pub(crate) fn of(self, usual: u32) -> u32 {
        if self == Self::Small { usual / 10 } else { usual }
    }
}

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if !arguments.iter().any(|argument| argument == "--bench") {
        println!("nothing is measured: run it by `cargo bench --bench agent`");
        return;
    }
    if !is_private() {
        process::exit(in_private(&arguments));
    }
    // The outer process holds the other end: whatever ends it ends all this.
    thread::spawn(|| {
        let _ = io::stdin().read_to_end(&mut Vec::new());
        process::exit(125);
    });
    let scale = Scale::of_environment();
    let chosen: Vec<&str> = arguments.iter().map(String::as_str).filter(|a| !a.starts_with('-')).collect();
    // Where others run as well, the slowest of many samples say more about them.
    let load = fs::read_to_string("/proc/loadavg").unwrap();
    let processors = thread::available_parallelism().unwrap();
    let machine = format!("{processors} processors, load {}", load.split(' ').next().unwrap_or_default());
    println!("{machine}");
    let names: Vec<&str> = GROUPS.iter().map(|(name, _)| *name).collect();
    assert!(chosen.iter().all(|name| names.contains(name)), "the groups are {names:?}, not {chosen:?}");
    for (name, group) in GROUPS {
        if chosen.is_empty() || chosen.contains(name) {
            group(scale);
        }
    }
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("target");
    fs::create_dir_all(&target).unwrap();
    figures::write(&target.join("bench.json"), &machine);
}

/// Runs this program again in private namespaces.
fn in_private(arguments: &[String]) -> i32 {
    let mut command = private_command(&env::current_exe().unwrap()).unwrap();
    let mut child = command.args(arguments).stdin(Stdio::piped()).spawn().unwrap();
    let lifeline = child.stdin.take();
    let status = child.wait().unwrap();
    drop(lifeline);
    status.code().unwrap_or(1)
}
