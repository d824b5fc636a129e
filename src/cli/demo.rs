//! `vtepd demo`: two hosts in private namespaces, a real etcd, endpoints, a ping across, breaks and their repair.
//!
//! The program starts itself again as the first process of private namespaces ([`outside`]) and plays the [`story`] there,
//! so that the host's own network cannot be touched and everything ends with that process.

mod break_and_repair;
mod diagram;
mod interrupt;
mod outside;
mod session;
mod story;
mod witness;

use std::{path::PathBuf, process::ExitCode};

use crate::lab::is_private;

/// How the demo is played.
#[derive(Clone, Debug)]
pub struct DemoOptions {
    /// Leaves everything up at the end.
    pub keep: bool,
    /// This program: it is started again as `demo` in private namespaces, and there as `agent`.
    pub vtepd: PathBuf,
}

/// Plays the demo. Succeeds where every check held, fails where one did not, and ends with 130 where it was interrupted.
pub fn run(options: &DemoOptions) -> ExitCode {
    if is_private() { story::play(options) } else { outside::run(options) }
}
