//! The delta table: one keyed map that holds both sides, and the set of keys where they differ.
//!
//! **Invariant:** the set of differing keys is exactly what a full pass would find
//! (`the_differing_set_and_the_counts_are_what_a_full_pass_would_find`).

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeBounds,
};

/// Whether what is observed is as desired. For most objects both sides have one type and this is equality.
pub trait Fits<O> {
    /// True when nothing is left to do.
    fn fits(&self, observed: &O) -> bool;
}

impl<T: PartialEq> Fits<T> for T {
    fn fits(&self, observed: &T) -> bool {
        self == observed
    }
}

/// What made the sides differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// Desired moved.
    Change,
    /// Observed left desired.
    Repair,
}

impl Cause {
    /// The metric label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Change => "change",
            Self::Repair => "repair",
        }
    }
}

/// Both sides of one object.
#[derive(Clone, Debug)]
pub struct Sides<D, O> {
    /// What should be there.
    pub desired: Option<D>,
    /// What was read or acknowledged, never assumed.
    pub observed: Option<O>,
    /// Why they differ.
    pub cause: Cause,
}

impl<D: Fits<O>, O> Sides<D, O> {
    /// Whether they agree.
    pub fn agree(&self) -> bool {
        match (&self.desired, &self.observed) {
            (Some(desired), Some(observed)) => desired.fits(observed),
            (None, None) => true,
            _ => false,
        }
    }
}

/// What can be said of a table whatever its objects are.
pub trait Differences {
    /// How many are desired.
    fn desired_len(&self) -> usize;

    /// How many are observed.
    fn observed_len(&self) -> usize;

    /// How many are observed and not desired.
    fn leftovers(&self) -> usize;

    /// Whether no sides differ.
    fn in_sync(&self) -> bool;
}

/// Objects of one kind. A change of either side of one object costs O(log n), never a pass over the others.
#[derive(Clone, Debug)]
pub struct Table<K, D, O = D> {
    rows: BTreeMap<K, Sides<D, O>>,
    differing: BTreeSet<K>,
    /// Those that came to agree since [`Self::take_agreed`], while somebody asks.
    agreed: Option<Vec<K>>,
    desired: usize,
    observed: usize,
}

impl<K, D, O> Default for Table<K, D, O> {
    fn default() -> Self {
        Self { rows: BTreeMap::new(), differing: BTreeSet::new(), agreed: None, desired: 0, observed: 0 }
    }
}

impl<K: Ord + Clone, D: Fits<O> + PartialEq, O: PartialEq> Table<K, D, O> {
    /// Sets the desired side; `None` when it should not be there. True when that is news.
    pub fn set_desired(&mut self, key: &K, desired: Option<D>) -> bool {
        let had = self.desired_of(key);
        if had == desired.as_ref() {
            return false;
        }
        self.desired = self.desired + usize::from(desired.is_some()) - usize::from(had.is_some());
        self.update(key, |sides| {
            sides.desired = desired;
            sides.cause = Cause::Change;
        });
        true
    }

    /// Sets the observed side to what was read or acknowledged; `None` when it is not there. True when the sides agreed
    /// before and do so no longer: observed left desired.
    pub fn set_observed(&mut self, key: &K, observed: Option<O>, cause: Cause) -> bool {
        let had = self.observed_of(key);
        if had == observed.as_ref() {
            return false;
        }
        let agreed = !self.differs(key);
        self.observed = self.observed + usize::from(observed.is_some()) - usize::from(had.is_some());
        self.update(key, |sides| {
            sides.observed = observed;
            // What differed before still does for its first reason.
            if agreed {
                sides.cause = cause;
            }
        });
        agreed && self.differs(key)
    }

    fn update(&mut self, key: &K, change: impl FnOnce(&mut Sides<D, O>)) {
        let sides =
            self.rows.entry(key.clone()).or_insert(Sides { desired: None, observed: None, cause: Cause::Change });
        change(sides);
        if sides.agree() {
            if self.differing.remove(key)
                && let Some(agreed) = &mut self.agreed
            {
                agreed.push(key.clone());
            }
        } else if !self.differing.contains(key) {
            self.differing.insert(key.clone());
        }
        if sides.desired.is_none() && sides.observed.is_none() {
            self.rows.remove(key);
        }
    }

    /// Both sides of an object that is desired or observed.
    pub fn get(&self, key: &K) -> Option<&Sides<D, O>> {
        self.rows.get(key)
    }

    /// The desired side.
    pub fn desired_of(&self, key: &K) -> Option<&D> {
        self.rows.get(key).and_then(|sides| sides.desired.as_ref())
    }

    /// The observed side.
    pub fn observed_of(&self, key: &K) -> Option<&O> {
        self.rows.get(key).and_then(|sides| sides.observed.as_ref())
    }

    /// Whether the sides differ.
    pub fn differs(&self, key: &K) -> bool {
        self.differing.contains(key)
    }

    /// The keys where the sides differ, in order.
    pub fn differing(&self) -> impl Iterator<Item = &K> {
        self.differing.iter()
    }

    /// The objects of a range, in order.
    pub fn range(&self, range: impl RangeBounds<K>) -> impl Iterator<Item = (&K, &Sides<D, O>)> {
        self.rows.range(range)
    }

    /// The keys of a range that are observed.
    pub fn observed_in(&self, range: impl RangeBounds<K>) -> Vec<K> {
        self.rows.range(range).filter(|(_, sides)| sides.observed.is_some()).map(|(key, _)| key.clone()).collect()
    }

    /// The keys of a range that are desired.
    pub fn desired_in(&self, range: impl RangeBounds<K>) -> Vec<K> {
        self.rows.range(range).filter(|(_, sides)| sides.desired.is_some()).map(|(key, _)| key.clone()).collect()
    }

    /// All objects that are desired or observed, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &Sides<D, O>)> {
        self.rows.iter()
    }

    /// The objects that came to agree since the last call, while `asked` was true; `asked` is whether to remember them from now on.
    pub fn take_agreed(&mut self, asked: bool) -> Vec<K> {
        std::mem::replace(&mut self.agreed, asked.then(Vec::new)).unwrap_or_default()
    }
}

impl<K: Ord, D, O> Differences for Table<K, D, O> {
    fn desired_len(&self) -> usize {
        self.desired
    }

    fn observed_len(&self) -> usize {
        self.observed
    }

    fn leftovers(&self) -> usize {
        let undesired = |key: &&K| self.rows.get(*key).is_some_and(|sides| sides.desired.is_none());
        self.differing.iter().filter(undesired).count()
    }

    fn in_sync(&self) -> bool {
        self.differing.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_differing_set_and_the_counts_are_what_a_full_pass_would_find(
            steps in prop::collection::vec((0_u8..8, any::<bool>(), prop::option::of(0_u8..3)), 0..200),
        ) {
            let mut table: Table<u8, u8> = Table::default();
            let mut desired = BTreeMap::new();
            let mut observed = BTreeMap::new();
            for (key, is_desired, value) in steps {
                let side = if is_desired { &mut desired } else { &mut observed };
                match value {
                    Some(value) => { side.insert(key, value); }
                    None => { side.remove(&key); }
                }
                if is_desired {
                    table.set_desired(&key, value);
                } else {
                    table.set_observed(&key, value, Cause::Repair);
                }
                let expected: Vec<u8> = (0..8).filter(|key| desired.get(key) != observed.get(key)).collect();
                prop_assert_eq!(table.differing().copied().collect::<Vec<_>>(), expected);
                prop_assert_eq!((table.desired_len(), table.observed_len()), (desired.len(), observed.len()));
            }
        }
    }

    #[test]
    fn the_cause_is_the_side_that_moved_last() {
        let mut table: Table<u8, u8> = Table::default();
        table.set_desired(&1, Some(1));
        assert_eq!(table.get(&1).map(|sides| sides.cause), Some(Cause::Change));
        table.set_observed(&1, Some(1), Cause::Change);
        table.set_observed(&1, None, Cause::Repair);
        assert_eq!(table.get(&1).map(|sides| sides.cause), Some(Cause::Repair));
    }
}
