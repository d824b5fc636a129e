//! How many records of a kind count, decided alike on every node: the oldest, whatever the order in which they are heard.

use std::collections::BTreeSet;

use super::claims::Rank;

/// How many records count. What is beyond is refused, and taken when an older one goes.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Nodes of a store.
    pub nodes: usize,
    /// Networks of a store, of both layouts.
    pub networks: usize,
    /// Endpoints of one network.
    pub endpoints: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { nodes: 1 << 16, networks: 1 << 16, endpoints: 1 << 20 }
    }
}

/// The records of one kind, as many as count and those beyond.
#[derive(Debug, Default)]
pub(super) struct Quota {
    within: BTreeSet<Rank>,
    beyond: BTreeSet<Rank>,
}

impl Quota {
    /// One more. Returns which no longer counts because of it, perhaps itself.
    pub(super) fn enter(&mut self, rank: &Rank, limit: usize) -> Option<Rank> {
        self.within.insert(rank.clone());
        let over = if self.within.len() > limit { self.within.pop_last() } else { None }?;
        self.beyond.insert(over.clone());
        Some(over)
    }

    /// Whether it counts at all. Where there is room for all, nobody needs to know who is the oldest.
    pub(super) fn is_idle(&self) -> bool {
        self.within.is_empty() && self.beyond.is_empty()
    }

    /// Counts no more where all that are left do.
    pub(super) fn rest(&mut self) {
        if self.beyond.is_empty() {
            self.within.clear();
        }
    }

    /// One less. Returns which counts from now on because of it.
    pub(super) fn leave(&mut self, rank: &Rank) -> Option<Rank> {
        if !self.within.remove(rank) {
            self.beyond.remove(rank);
            return None;
        }
        let next = self.beyond.pop_first()?;
        self.within.insert(next.clone());
        Some(next)
    }

    /// Whether the record is beyond what counts.
    pub(super) fn is_beyond(&self, rank: &Rank) -> bool {
        self.beyond.contains(rank)
    }
}
