//! What an engine says of itself: notes of what happened, and a summary of where it stands.

use std::{collections::BTreeMap, time::Duration};

use super::{delta::Cause, interface::Action, key::Kind, time::Time};

/// Why an object is not as desired: the `reason` label of drift.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DriftReason {
    /// It was there and is not.
    Missing,
    /// It is there, but different.
    Changed,
    /// It is there and should not be.
    Unexpected,
}

impl DriftReason {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Missing, Self::Changed, Self::Unexpected];

    /// The metric label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Changed => "changed",
            Self::Unexpected => "unexpected",
        }
    }
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Note {
    /// Somebody else changed an object.
    Drift {
        /// What kind of object.
        kind: Kind,
        /// How it differs.
        reason: DriftReason,
        /// Which one, for people.
        object: String,
    },
    /// An operation of ours ended a drift.
    Repaired {
        /// What kind of object.
        kind: Kind,
        /// From the first sign of the foreign change to the acknowledgement.
        took: Duration,
        /// Which one, for people.
        object: String,
    },
    /// A repair failed and will be tried again.
    RepairFailed {
        /// What kind of object.
        kind: Kind,
    },
    /// Operations were acknowledged, so many of a kind.
    Ops {
        /// What kind of objects.
        kind: Kind,
        /// What was done to them.
        action: Action,
        /// Why.
        cause: Cause,
        /// How many.
        count: u64,
    },
    /// An operation failed.
    OpFailed {
        /// What kind of object.
        kind: Kind,
        /// What was to be done to it.
        action: Action,
        /// Why.
        cause: Cause,
        /// The failure's words.
        failure: String,
        /// Which one, for people.
        object: String,
    },
    /// An object is rewritten again and again by somebody else: repairs of it are now spaced out.
    Damped {
        /// Which one, for people.
        object: String,
        /// Until the next repair.
        pause: Duration,
    },
    /// Everything is being read again.
    Resync {
        /// Why: `periodic`, `overrun`, `start`.
        reason: &'static str,
    },
    /// All of a resync was read and what it found was sent.
    Resynced {
        /// How long it took.
        took: Duration,
    },
    /// Events were lost.
    Overrun,
    /// A read failed and will be tried again.
    ReadFailed {
        /// What was asked, and the failure's words.
        message: String,
    },
    /// The kernel is as the store's revision says.
    Applied {
        /// The store's revision.
        revision: i64,
        /// Since the first watch event that had not been applied was received.
        took: Duration,
    },
}

/// What there is to tell.
#[derive(Debug, Default)]
pub(super) struct Report {
    /// Since they were last taken, in order.
    pub(super) notes: Vec<Note>,
    /// The newest revision that was heard of.
    pub(super) revision: i64,
    /// The newest revision that was wholly applied.
    pub(super) applied_revision: i64,
    /// When the first change that is not applied yet was received.
    pub(super) waiting_since: Option<Time>,
}

/// An object that cannot be made now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocked {
    /// Which one, for people.
    pub object: String,
    /// What kind of object.
    pub kind: Kind,
    /// The `reason` label, from a closed set.
    pub reason: &'static str,
    /// The kernel's own words.
    pub message: String,
}

/// Where a network stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Observed is desired.
    pub in_sync: bool,
    /// The newest revision that was heard of.
    pub revision: i64,
    /// The newest revision that was wholly applied.
    pub applied_revision: i64,
    /// Desired and observed objects by kind.
    pub objects: BTreeMap<Kind, (u64, u64)>,
    /// What cannot be made now: the first [`Summary::MOST_BLOCKED`] of it.
    pub blocked: Vec<Blocked>,
    /// How many objects cannot be made now, by kind and reason.
    pub blocked_counts: BTreeMap<(Kind, &'static str), u64>,
    /// Open drift by kind.
    pub drifting: BTreeMap<Kind, u64>,
    /// Damped objects by kind.
    pub damped: BTreeMap<Kind, u64>,
    /// Objects that nothing desires and that stay since removals are held.
    pub held: u64,
    /// Local endpoints whose namespace is not there.
    pub waiting_endpoints: u64,
}

impl Summary {
    /// So many blocked objects are named.
    pub const MOST_BLOCKED: usize = 100;

    /// Adds an object that cannot be made now.
    pub(super) fn add_blocked(&mut self, blocked: Blocked) {
        *self.blocked_counts.entry((blocked.kind, blocked.reason)).or_default() += 1;
        if self.blocked.len() < Self::MOST_BLOCKED {
            self.blocked.push(blocked);
        }
    }
}
