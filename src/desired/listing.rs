//! The store-wide stage: takes in listings, page by page.
//!
//! The first listing of a layout is taken in as it comes, so that the networks' engines can begin while it still runs. A later one
//! is kept until it is complete, for a store that is half old and half new
//! decides things that neither does: it is taken in at once, like the events that were missed.
//!
//! # What may be told before everything was listed
//!
//! What a record means can depend on any other. Nodes and networks depend on no endpoint, and are listed first: once those of
//! every layout are known, what each network is, and where its endpoints are, is final. An endpoint may still lose a claim to an
//! older one that is listed later. So before everything was listed
//!
//! - endpoints of this node are not told: one that loses in the end must not be wired up even for a moment;
//! - remote endpoints are told as if nothing else came. One that loses in the end has its rows until the older one is listed,
//!   whose rows then replace them where they stand. That is sound only where nothing stands yet, and so nothing that is right can
//!   be replaced: whoever drives the engines keeps what is told from a network whose namespace was there before
//!   ([`Store::is_complete`]), and says of none that it is in sync.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Source, Update,
    store::{Audited, Store},
};
use crate::{
    model::{Name, stable_hash},
    schema::Kv,
};

/// A listing of a layout under way.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// Nothing was known of the layout when it began: nothing can be missing from it.
    fresh: bool,
    /// It is an audit: a record that is known by the same revisions is the same. After a store was restored from a backup that
    /// need not be so, but then its watch broke, and it is listed anew.
    audit: bool,
    /// The keys that were listed, by their hashes. Two keys of one hash, one in 2^64, would hide that the other is missing.
    seen: Vec<u64>,
    /// Records that may not be as the store has them.
    records: Vec<Kv>,
    /// All but endpoints were listed.
    heads: bool,
    /// The revision of its newest record that means something.
    newest: i64,
}

impl Store {
    /// A layout is about to be listed, perhaps beside a watch that goes on (`audit`). What was listed of it before, and not to
    /// its end, is forgotten.
    pub fn begin_listing(&mut self, source: Source, audit: bool) {
        let fresh = !self.heard.contains_key(&source) && !self.listings.contains_key(&source);
        self.listings.insert(source, Listing { fresh, audit, ..Listing::default() });
    }

    /// A part of the listing that began last. All other records come before the first that are `endpoints`.
    pub fn list(&mut self, source: Source, records: Vec<Kv>, endpoints: bool) -> BTreeMap<Name, Update> {
        let mut listing = self.listings.remove(&source).unwrap_or_default();
        let first = !self.listed.contains(&source);
        listing.heads |= endpoints;
        for kv in records {
            if !listing.fresh {
                listing.seen.push(stable_hash(&kv.key));
            }
            // What agents say of themselves is not listed.
            if source == Source::Native || self.matters(&kv.key) {
                listing.newest = listing.newest.max(kv.mod_revision);
            }
            if first {
                self.put(kv);
            } else if !(listing.audit && self.known(&kv.key) == Some(kv.mod_revision)) {
                listing.records.push(kv);
            }
        }
        self.listings.insert(source, listing);
        if first { self.settle() } else { BTreeMap::new() }
    }

    /// The listing is complete, as of this revision: what it omits is deleted, unless the store may have forgotten it.
    pub fn listed(&mut self, source: Source, revision: i64) -> BTreeMap<Name, Update> {
        let listing = self.listings.remove(&source).unwrap_or_default();
        let last = self.heard.insert(source, revision);
        self.judge(source, revision, last, &listing.records);
        self.revision = self.heard.values().copied().max().unwrap_or(revision);
        let newest = listing.newest;
        let changed = self.take_over(source, revision, listing, &BTreeSet::new(), i64::MAX) > 0;
        let known = self.newest.entry(source).or_default();
        // What is missing from a listing was deleted some time before it.
        let anew = !self.listed.contains(&source) || changed || *known > revision;
        *known = if anew { revision } else { newest.max(*known) };
        if !self.is_complete() {
            self.touch_own();
        }
        self.listed.insert(source);
        self.judge_first();
        self.let_go();
        self.settle()
    }

    /// Compares with a listing of this revision that was taken while events went on. Keys in `touched` have newer events,
    /// which were applied before this call; all others must be as the listing has them, and are made so.
    pub fn audited(&mut self, source: Source, revision: i64, touched: &BTreeSet<Vec<u8>>) -> Audited {
        let listing = self.listings.remove(&source).unwrap_or_default();
        self.hear(source, revision);
        let differences = self.take_over(source, revision, listing, touched, revision);
        if differences > 0 {
            let newest = self.newest.entry(source).or_default();
            *newest = revision.max(*newest);
        }
        self.let_go();
        Audited { differences, updates: self.settle() }
    }

    /// Everything that stands below a layout's prefix at this revision, at once.
    pub fn snapshot_of(&mut self, source: Source, revision: i64, records: Vec<Kv>) -> BTreeMap<Name, Update> {
        self.begin_listing(source, false);
        let mut updates = self.list(source, records, false);
        for (name, update) in self.listed(source, revision) {
            updates.entry(name).or_default().follow(update);
        }
        updates
    }

    /// The same of the native layout.
    pub fn snapshot(&mut self, revision: i64, records: Vec<Kv>) -> BTreeMap<Name, Update> {
        self.snapshot_of(Source::Native, revision, records)
    }

    /// Whether networks may be told what they are, and of their remote endpoints: all nodes and networks of every layout are
    /// known.
    pub(super) fn knows_heads(&self) -> bool {
        let known =
            |source| self.listed.contains(&source) || self.listings.get(&source).is_some_and(|listing| listing.heads);
        known(Source::Native) && (self.config.docker_prefix.is_none() || known(Source::Docker))
    }

    /// Takes over a listing, except for keys that are `touched` or known by a revision above `limit`. Returns how many
    /// records it changed.
    fn take_over(
        &mut self,
        source: Source,
        revision: i64,
        mut listing: Listing,
        touched: &BTreeSet<Vec<u8>>,
        limit: i64,
    ) -> usize {
        let mut changed = 0;
        for kv in listing.records {
            let newer = self.known(&kv.key).is_some_and(|known| known > limit);
            if !newer && !touched.contains(&kv.key) {
                changed += usize::from(self.take_listed(kv));
            }
        }
        if listing.fresh {
            return changed;
        }
        listing.seen.sort_unstable();
        let mut absent = self.keys_but(source, |key| listing.seen.binary_search(&stable_hash(key)).is_ok());
        absent.retain(|key| {
            let newer = || self.known(key).is_some_and(|known| known > limit);
            !touched.contains(key) && !newer()
        });
        changed + self.remove_absent(&absent, revision)
    }
}
