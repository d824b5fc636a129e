//! Removal is a privilege: which absent records may go, and which are kept because it may be the store that forgot them.
//!
//! A record that is kept is *held*: it stays in force as it was, and its last revision is negative. A delete that is seen on an
//! unbroken watch is intent. What is merely absent from a listing may be so because the store was wiped, restored, or is another
//! one; and a revision that deletes most of a network, or everything, is more often a slip than a wish. A held record gives way
//! to records that are written after it was held, and goes when an operator approves that for its network.
//!
//! **Invariant:** no store's loss of memory removes anything before it is approved, and afterwards what stands is what is recorded
//! (`no_loss_of_memory_removes_anything_and_once_all_is_approved_what_stands_is_what_is_recorded`).

mod doubt;
mod held;
mod memory;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

pub(super) use self::memory::digest;
pub use self::{
    doubt::Doubt,
    memory::{Memory, Remembered},
};
use self::{
    held::Held,
    memory::{Trusted, Unsure},
};
use crate::{model::Name, schema::Kv};

/// Of a network, or of the store, so many endpoints less one may always go at once.
const FREE: usize = 50;

/// What is known of the store as a whole, and what is held.
#[derive(Debug, Default)]
pub(super) struct Guard {
    /// The store that what is in force comes from.
    trusted: Trusted,
    /// The cluster that answered last.
    cluster: Option<u64>,
    /// Why the store may be another one or have forgotten, the revision from which an approval counts, and the one at which it
    /// was noticed.
    doubt: Option<(Doubt, i64, i64)>,
    /// What an earlier agent knew, until a complete snapshot was compared with it.
    remembered: Option<Memory>,
    /// The edge saw the store go back.
    rolled_back: bool,
    /// The listing that is taken over has nothing of Docker's layout, where there was something.
    emptied: bool,
    /// The last revision that deleted the store's identity.
    identity_deleted: i64,
    /// Networks of which an earlier agent knew what is absent now.
    unsure: BTreeMap<Name, Unsure>,
    /// Held records by network; those of nodes under [`Name::host`].
    held: BTreeMap<Name, Held>,
    /// What a doubtful listing has in the place of a held record, and what it has that was not known before.
    put_off: BTreeMap<Vec<u8>, Kv>,
    /// Networks of which some of that would take the place of what is in force, and how many records of each.
    contested: BTreeMap<Name, usize>,
}

/// Why removals of a network are held. Closed: it stands in the status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HoldReason {
    /// The store is in doubt.
    Doubt(Doubt),
    /// One revision deletes, or a listing lacks, more than `--max-removal`.
    MaxRemoval,
}

impl HoldReason {
    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Doubt(doubt) => doubt.as_str(),
            Self::MaxRemoval => "max_removal",
        }
    }
}

/// The removals of one network that are held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldRemovals {
    /// The network.
    pub network: Name,
    /// How many records of it, or of nodes that it has endpoints on; 0 where only an earlier agent knew them.
    pub records: usize,
    /// An approval must name at least this revision.
    pub since: i64,
    /// Why.
    pub reason: HoldReason,
}

/// Which removals are held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Withheld {
    /// None.
    Nothing,
    /// Those of endpoints of these networks.
    Endpoints(BTreeSet<Name>),
    /// All.
    Everything(Doubt),
}
