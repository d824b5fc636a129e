//! A host of one's own: a network and a mount namespace for the calling thread, so that a test touches no network but its own.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    dead_code,
    reason = "a test ends where something is not as it should be, and not every test needs all of this"
)]

use std::{net::IpAddr, process::Command};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use serde_json::Value;
use vtepd::{
    kernel::{Config, NetworkKernel},
    model::Mac,
};

/// Puts the calling thread, and the processes that it starts from then on, on a host of their own with an empty `/run`.
///
/// # Panics
/// When the system does not allow it.
pub(crate) fn private_host() {
    let flags = CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET;
    if let Err(errno) = unshare(flags) {
        panic!("cannot unshare network and mounts ({errno}): run as root, or inside `unshare -Urnm`");
    }
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("make / private");
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), Some("mode=755")).expect("mount a tmpfs on /run");
    run("ip link set lo up");
}

/// Runs a command of plain words and gives its output.
///
/// # Panics
/// When it fails.
pub(crate) fn run(command: &str) -> String {
    let (success, output) = attempt(command);
    assert!(success, "{command}: {output}");
    output
}

/// Runs a command of plain words; says whether it succeeded, with its output or its errors.
///
/// # Panics
/// When it cannot be started.
pub(crate) fn attempt(command: &str) -> (bool, String) {
    let mut words = command.split_whitespace();
    let program = words.next().expect("a command");
    let output = Command::new(program).args(words).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    let shown = if output.status.success() { &output.stdout } else { &output.stderr };
    (output.status.success(), String::from_utf8_lossy(shown).into_owned())
}

/// What a command of `ip -j` or `bridge -j` shows; nothing at all is an empty list.
///
/// # Panics
/// When it fails or shows something else than JSON.
pub(crate) fn json(command: &str) -> Value {
    let output = run(command);
    if output.trim().is_empty() { Value::Array(Vec::new()) } else { serde_json::from_str(&output).expect(command) }
}

/// The edge of a network of the instance `default`, with two roots for endpoints.
pub(crate) fn kernel_of(network: &str) -> NetworkKernel {
    NetworkKernel::new(Config {
        instance: "default".to_owned(),
        network: network.parse().unwrap(),
        netns_dir: "/run/netns".into(),
        netns_roots: vec!["/run/netns".into(), "/run/docker/netns".into()],
    })
}

pub(crate) fn mac(text: &str) -> Mac {
    text.parse().unwrap()
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}
