//! What stands in `status/<node>`, as it is written and as it is read back.

use serde::{Deserialize, Serialize};

/// So many entries stand in each list; beside it stands how many there are.
pub(super) const ENTRIES: usize = 100;

/// The record's value. What an older or newer agent does not say is left at its default, and what it says besides is ignored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeStatus {
    /// Since when it has been so, RFC 3339, UTC, by the node's own clock.
    pub time: String,
    /// The agent's version.
    pub version: String,
    /// The newest revision that is wholly applied here.
    pub revision: i64,
    /// All networks here are as etcd says.
    pub in_sync: bool,
    /// How many networks are here.
    pub networks: Networks,
    /// Networks that are not in sync, and why.
    pub lagging: Listed<Lagging>,
    /// Records that wait for another record.
    pub pending: usize,
    /// Records that the store lacks and objects that nothing desires, and whose removal is held.
    pub removals_held: u64,
    /// Networks of which removals of records are held.
    pub held: Listed<HeldNetwork>,
    /// Records that were refused.
    pub rejected: Listed<Rejection>,
    /// Records that lost a claim.
    pub conflicts: Listed<Conflict>,
    /// What cannot be made here.
    pub blocked: Listed<Blocked>,
}

impl NodeStatus {
    /// Whether both say the same, whenever it came to be so.
    pub(super) fn says_what(&self, other: &Self) -> bool {
        let undated = |status: &Self| Self { time: String::new(), ..status.clone() };
        undated(self) == undated(other)
    }
}

/// Networks by how they stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Networks {
    /// Networks with an endpoint on the node.
    pub here: usize,
    /// Those that are in sync.
    pub in_sync: usize,
}

/// The first entries of a list, and how many there are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed<T> {
    /// How many there are.
    pub count: usize,
    /// The first of them.
    pub first: Vec<T>,
}

impl<T> Listed<T> {
    pub(super) fn new(count: usize, all: impl Iterator<Item = T>) -> Self {
        Self { count, first: all.take(ENTRIES).collect() }
    }
}

impl<T> Default for Listed<T> {
    fn default() -> Self {
        Self { count: 0, first: Vec::new() }
    }
}

/// A network that is not in sync.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lagging {
    /// Its name; `(host)` is what the host itself has for the way outside.
    pub network: String,
    /// Why, in words.
    pub reason: String,
}

/// A network of which removals of records are held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldNetwork {
    /// Its name.
    pub network: String,
    /// How many records; 0 where that is not known.
    pub records: usize,
    /// An approval must name at least this revision.
    pub since: i64,
    /// Why.
    pub reason: String,
}

/// A record that was refused.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Rejection {
    /// The whole key.
    pub key: String,
    /// The field, if it is one field's fault.
    pub field: String,
    /// Why: the label of `vtepd_rejected_records`.
    pub reason: String,
}

/// A record that lost a claim.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Conflict {
    /// The loser's whole key.
    pub key: String,
    /// Its field that asks for what another record holds.
    pub field: String,
    /// The whole key of the record that holds it.
    pub holder: String,
}

/// Something that cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocked {
    /// A record's whole key, or a network and one of its objects.
    pub object: String,
    /// Why: the label of `vtepd_blocked_objects`.
    pub reason: String,
}
