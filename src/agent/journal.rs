//! A network's notes as log lines, at a bounded rate: ten thousand rows that drift at once are a number, not as many lines.

use std::{collections::BTreeSet, time::Duration};

use tracing::{debug, info, warn};

use super::pace::Pace;
use crate::{
    engine::{Blocked, Note},
    model::Name,
};

/// So many lines a second.
const LINES: u32 = 50;

/// A network's journal.
#[derive(Debug)]
pub(super) struct Journal {
    network: Name,
    pace: Pace,
    /// What was said to be blocked: object and reason.
    blocked: BTreeSet<(String, String)>,
}

impl Journal {
    pub(super) fn new(network: Name) -> Self {
        Self { network, pace: Pace::new(LINES), blocked: BTreeSet::new() }
    }

    /// What the network is called from now on.
    pub(super) fn call(&mut self, network: Name) {
        self.network = network;
    }

    /// What the network is called.
    pub(super) const fn network(&self) -> &Name {
        &self.network
    }

    /// Says what cannot be made, once for each object and reason.
    pub(super) fn blocked(&mut self, now: &[Blocked]) {
        let now: BTreeSet<_> = now.iter().map(|b| (b.object.clone(), b.message.clone())).collect();
        for (object, reason) in now.difference(&std::mem::take(&mut self.blocked)) {
            if self.allowed() {
                warn!(network = %self.network, object, reason, "blocked; tried again later");
            }
        }
        self.blocked = now;
    }

    pub(super) fn write(&mut self, note: &Note) {
        // What is written for debugging, or not at all, takes no line from what people need.
        let minor =
            matches!(note, Note::RepairFailed { .. } | Note::Ops { .. } | Note::Resync { .. } | Note::Resynced { .. });
        if !minor && !self.allowed() {
            return;
        }
        let network = &self.network;
        match note {
            Note::Drift { kind, reason, object } => {
                warn!(%network, kind = kind.as_str(), reason = reason.as_str(), object, "drift");
            }
            Note::Repaired { kind, took, object } => {
                info!(%network, kind = kind.as_str(), object, micros = as_micros(*took), "repaired");
            }
            Note::RepairFailed { .. } => {}
            Note::Ops { kind, action, cause, count } => {
                debug!(%network, kind = kind.as_str(), action = action.as_str(), cause = cause.as_str(), count, "done");
            }
            Note::OpFailed { failure, action, object, .. } => {
                warn!(%network, object, action = action.as_str(), %failure, "failed; tried again later");
            }
            Note::Damped { object, pause } => {
                warn!(%network, object, pause_ms = as_millis(*pause), "somebody rewrites this again and again; repaired at intervals");
            }
            Note::Resync { reason } => debug!(%network, reason, "reading everything again"),
            Note::Resynced { took } => debug!(%network, micros = as_micros(*took), "read everything again"),
            Note::Overrun => warn!(%network, "the kernel lost events for us; reading everything again"),
            Note::ReadFailed { message } => warn!(%network, %message, "cannot read the kernel; trying again"),
            Note::Applied { revision, took } => {
                info!(%network, revision, micros = as_micros(*took), "applied");
            }
        }
    }

    fn allowed(&mut self) -> bool {
        let network = &self.network;
        self.pace.allows(|lines| info!(%network, lines, "more happened than was written here"))
    }
}

fn as_micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn as_millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
