//! Tables for the many: rows of VXLAN devices and neighbours. They hold what [`super::delta::Table`] holds, for a tenth of the memory: a
//! row that is as desired is its key, what is desired and one state. What is observed and differs stands in a map beside them.
//!
//! **Invariant:** compact rows say the same as the table of both sides (`compact_rows_say_what_the_table_of_both_sides_says`).

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
};

use super::delta::{Cause, Differences, Sides};

/// A desired value that only one observed value fits.
pub(super) trait Exact<O>: Copy + PartialEq {
    /// That one.
    fn exact(self) -> O;
}

/// A key that is short within a group of its kind.
pub(super) trait RowKey: Copy + Ord {
    /// The group: the device whose table it is.
    type Group: Copy + Ord;
    /// What tells it from others of its group.
    type Short: Copy + Ord;

    /// Both parts.
    fn split(&self) -> (Self::Group, Self::Short);

    /// The key of both parts.
    fn join(group: Self::Group, short: Self::Short) -> Self;
}

/// Whether a desired row stands as it should, or why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Stands,
    Differs(Cause),
}

#[derive(Clone, Copy, Debug)]
struct Row<D> {
    desired: D,
    state: State,
}

/// The rows of one device.
#[derive(Clone, Debug)]
struct Group<S, D, O> {
    rows: BTreeMap<S, Row<D>>,
    /// What is observed and not as desired, or not desired at all.
    odd: BTreeMap<S, (O, Cause)>,
    /// The keys that differ, as far as something may be done about them now.
    ready: BTreeSet<S>,
    /// Those that differ and rest.
    resting: BTreeSet<S>,
    standing: usize,
}

impl<S, D, O> Default for Group<S, D, O> {
    fn default() -> Self {
        Self {
            rows: BTreeMap::new(),
            odd: BTreeMap::new(),
            ready: BTreeSet::new(),
            resting: BTreeSet::new(),
            standing: 0,
        }
    }
}

impl<S: Copy + Ord, D: Exact<O>, O: Copy + PartialEq> Group<S, D, O> {
    fn get(&self, key: S) -> Option<Sides<D, O>> {
        match self.rows.get(&key) {
            Some(Row { desired, state: State::Stands }) => {
                Some(Sides { desired: Some(*desired), observed: Some(desired.exact()), cause: Cause::Change })
            }
            Some(Row { desired, state: State::Differs(cause) }) => {
                let observed = self.odd.get(&key).map(|(observed, _)| *observed);
                Some(Sides { desired: Some(*desired), observed, cause: *cause })
            }
            None => self.odd.get(&key).map(|(observed, cause)| Sides {
                desired: None,
                observed: Some(*observed),
                cause: *cause,
            }),
        }
    }

    /// Sets both sides; true when they agreed before or do now, and not both.
    fn put(&mut self, key: S, before: Option<&Sides<D, O>>, now: Sides<D, O>) -> bool {
        let agrees = |sides: &Sides<D, O>| match (sides.desired, sides.observed) {
            (Some(desired), Some(observed)) => desired.exact() == observed,
            (None, None) => true,
            _ => false,
        };
        let (agreed, stands) = (before.is_none_or(agrees), agrees(&now));
        let was_standing = before.is_some_and(|sides| sides.desired.is_some() && agreed);
        match now.desired {
            Some(desired) => {
                let state = if stands { State::Stands } else { State::Differs(now.cause) };
                self.rows.insert(key, Row { desired, state });
            }
            None => {
                if before.is_some_and(|sides| sides.desired.is_some()) {
                    self.rows.remove(&key);
                }
            }
        }
        match now.observed.filter(|_| !stands) {
            Some(observed) => {
                self.odd.insert(key, (observed, now.cause));
            }
            None => {
                if !agreed && before.is_some_and(|sides| sides.observed.is_some()) {
                    self.odd.remove(&key);
                }
            }
        }
        self.standing = self.standing + usize::from(stands && now.desired.is_some()) - usize::from(was_standing);
        if stands && !agreed {
            let _ = self.ready.remove(&key) || self.resting.remove(&key);
        } else if !stands && !self.resting.contains(&key) {
            self.ready.insert(key);
        }
        agreed != stands
    }

    /// The keys that are observed.
    fn observed(&self) -> impl Iterator<Item = S> {
        let standing = self.rows.iter().filter(|(_, row)| row.state == State::Stands).map(|(key, _)| *key);
        standing.chain(self.odd.keys().copied())
    }

    fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.odd.is_empty()
    }
}

/// Rows of one kind, by device. A change of either side of one row costs O(log n), never a pass over the others.
#[derive(Clone, Debug)]
pub(super) struct Rows<K: RowKey, D, O> {
    groups: BTreeMap<K::Group, Group<K::Short, D, O>>,
    /// Those that came to agree since [`Self::take_agreed`], while somebody asks.
    agreed: Option<Vec<K>>,
}

impl<K: RowKey, D, O> Default for Rows<K, D, O> {
    fn default() -> Self {
        Self { groups: BTreeMap::new(), agreed: None }
    }
}

impl<K: RowKey, D: Exact<O>, O: Copy + PartialEq> Rows<K, D, O> {
    /// See [`super::delta::Table::set_desired`].
    pub(super) fn set_desired(&mut self, key: &K, desired: Option<D>) -> bool {
        let (group, short) = key.split();
        let group = self.groups.entry(group).or_default();
        let before = group.get(short);
        if before.as_ref().and_then(|sides| sides.desired) == desired {
            self.drop_if_empty(key);
            return false;
        }
        let observed = before.as_ref().and_then(|sides| sides.observed);
        let agreed = before.as_ref().is_none_or(|sides| sides.desired.map(Exact::exact) == sides.observed);
        let moved = group.put(short, before.as_ref(), Sides { desired, observed, cause: Cause::Change });
        self.wake(key);
        self.note_agreed(key, moved && !agreed);
        self.drop_if_empty(key);
        true
    }

    /// See [`super::delta::Table::set_observed`].
    pub(super) fn set_observed(&mut self, key: &K, observed: Option<O>, cause: Cause) -> bool {
        let (group, short) = key.split();
        let group = self.groups.entry(group).or_default();
        let before = group.get(short);
        if before.as_ref().and_then(|sides| sides.observed) == observed {
            self.drop_if_empty(key);
            return false;
        }
        let agreed = before.as_ref().is_none_or(|sides| sides.desired.map(Exact::exact) == sides.observed);
        let first = before.as_ref().map_or(cause, |sides| sides.cause);
        let desired = before.as_ref().and_then(|sides| sides.desired);
        let cause = if agreed { cause } else { first };
        let moved = group.put(short, before.as_ref(), Sides { desired, observed, cause });
        self.note_agreed(key, moved && !agreed);
        self.drop_if_empty(key);
        moved && agreed
    }

    fn note_agreed(&mut self, key: &K, agreed: bool) {
        if let Some(list) = self.agreed.as_mut().filter(|_| agreed) {
            list.push(*key);
        }
    }

    fn drop_if_empty(&mut self, key: &K) {
        let (group, _) = key.split();
        if self.groups.get(&group).is_some_and(Group::is_empty) {
            self.groups.remove(&group);
        }
    }

    /// Both sides of a row that is desired or observed.
    pub(super) fn get(&self, key: &K) -> Option<Sides<D, O>> {
        let (group, short) = key.split();
        self.groups.get(&group)?.get(short)
    }

    /// The desired side.
    pub(super) fn desired_of(&self, key: &K) -> Option<D> {
        self.get(key)?.desired
    }

    /// The observed side.
    pub(super) fn observed_of(&self, key: &K) -> Option<O> {
        self.get(key)?.observed
    }

    /// The devices with rows that differ and may be tried now, each with their keys in order.
    pub(super) fn ready(&self) -> impl Iterator<Item = (K::Group, impl Iterator<Item = K>)> {
        let some = self.groups.iter().filter(|(_, group)| !group.ready.is_empty());
        some.map(|(of, group)| (*of, group.ready.iter().map(|short| K::join(*of, *short))))
    }

    /// A row that differs is left alone until [`Self::wake`], or until another value is desired.
    pub(super) fn rest(&mut self, key: &K) {
        let (group, short) = key.split();
        if let Some(group) = self.groups.get_mut(&group)
            && group.ready.remove(&short)
        {
            group.resting.insert(short);
        }
    }

    /// A row may be tried again.
    pub(super) fn wake(&mut self, key: &K) {
        let (group, short) = key.split();
        if let Some(group) = self.groups.get_mut(&group)
            && group.resting.remove(&short)
        {
            group.ready.insert(short);
        }
    }

    /// The rows of a device that are observed.
    pub(super) fn observed_in(&self, group: K::Group) -> impl Iterator<Item = K> {
        let keys = self.groups.get(&group).into_iter().flat_map(Group::observed);
        keys.map(move |short| K::join(group, short))
    }

    /// How many rows of a device are observed.
    pub(super) fn observed_count(&self, group: K::Group) -> usize {
        self.groups.get(&group).map_or(0, |group| group.standing + group.odd.len())
    }

    /// How many rows of a device are desired.
    pub(super) fn desired_count(&self, group: K::Group) -> usize {
        self.groups.get(&group).map_or(0, |group| group.rows.len())
    }

    /// The next `most` rows of a device that are desired or observed, after this one, in order.
    pub(super) fn after(&self, group: K::Group, last: Option<K>, most: usize) -> Vec<K> {
        let Some(table) = self.groups.get(&group) else { return Vec::new() };
        let from = last.map_or(Bound::Unbounded, |last| Bound::Excluded(last.split().1));
        let range = (from, Bound::Unbounded);
        let desired = table.rows.range(range).map(|(short, _)| *short).take(most);
        let odd = table.odd.range(range).map(|(short, _)| *short).take(most);
        let both: BTreeSet<K::Short> = desired.chain(odd).collect();
        both.into_iter().take(most).map(|short| K::join(group, short)).collect()
    }

    /// Rows of a device, all that `which` says, are not there any more.
    pub(super) fn lose(&mut self, group: K::Group, cause: Cause, which: impl Fn(&K) -> bool) {
        let lost: Vec<K> = self.observed_in(group).filter(which).collect();
        for key in lost {
            self.set_observed(&key, None, cause);
        }
    }

    /// See [`super::delta::Table::take_agreed`].
    pub(super) fn take_agreed(&mut self, asked: bool) -> Vec<K> {
        std::mem::replace(&mut self.agreed, asked.then(Vec::new)).unwrap_or_default()
    }
}

impl<K: RowKey, D, O> Differences for Rows<K, D, O> {
    fn desired_len(&self) -> usize {
        self.groups.values().map(|group| group.rows.len()).sum()
    }

    fn observed_len(&self) -> usize {
        self.groups.values().map(|group| group.standing + group.odd.len()).sum()
    }

    fn leftovers(&self) -> usize {
        let undesired =
            |group: &Group<K::Short, D, O>| group.odd.keys().filter(|short| !group.rows.contains_key(short)).count();
        self.groups.values().map(undesired).sum()
    }

    fn in_sync(&self) -> bool {
        self.groups.values().all(|group| group.ready.is_empty() && group.resting.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::engine::delta::Table;

    impl RowKey for (u8, u8) {
        type Group = u8;
        type Short = u8;

        fn split(&self) -> (u8, u8) {
            *self
        }

        fn join(group: u8, short: u8) -> Self {
            (group, short)
        }
    }

    impl Exact<u8> for u8 {
        fn exact(self) -> u8 {
            self
        }
    }

    proptest! {
        #[test]
        fn compact_rows_say_what_the_table_of_both_sides_says(
            steps in prop::collection::vec((0_u8..2, 0_u8..4, 0_u8..4, any::<bool>(), prop::option::of(0_u8..3)), 0..200),
        ) {
            let mut table: Table<(u8, u8), u8> = Table::default();
            let mut rows: Rows<(u8, u8), u8, u8> = Rows::default();
            table.take_agreed(true);
            rows.take_agreed(true);
            for (group, short, what, repair, value) in steps {
                let key = (group, short);
                let cause = if repair { Cause::Repair } else { Cause::Change };
                match what {
                    0 => prop_assert_eq!(table.set_desired(&key, value), rows.set_desired(&key, value)),
                    1 | 2 => prop_assert_eq!(
                        table.set_observed(&key, value, cause),
                        rows.set_observed(&key, value, cause)
                    ),
                    _ if repair => rows.rest(&key),
                    _ => rows.wake(&key),
                }
                for key in (0..2).flat_map(|group| (0..4).map(move |short| (group, short))) {
                    let of = |sides: Option<Sides<u8, u8>>| sides.map(|sides| {
                        let differs = sides.desired != sides.observed;
                        (sides.desired, sides.observed, differs.then_some(sides.cause))
                    });
                    prop_assert_eq!(of(table.get(&key).cloned()), of(rows.get(&key)));
                    prop_assert_eq!(table.differs(&key), rows.get(&key).is_some_and(|sides| !sides.agree()));
                }
                prop_assert_eq!(table.desired_len(), rows.desired_len());
                prop_assert_eq!(table.observed_len(), rows.observed_len());
                prop_assert_eq!(table.leftovers(), rows.leftovers());
                prop_assert_eq!(table.in_sync(), rows.in_sync());
                prop_assert_eq!(table.take_agreed(true), rows.take_agreed(true));
                for group in 0..2 {
                    prop_assert_eq!(rows.observed_in(group).count(), rows.observed_count(group));
                    let all: Vec<_> = table.iter().map(|(key, _)| *key).filter(|key| key.0 == group).collect();
                    let mut walked = Vec::new();
                    while let [.., last] = rows.after(group, walked.last().copied(), 1).as_slice() {
                        walked.push(*last);
                    }
                    prop_assert_eq!(walked, all);
                }
            }
        }
    }

    #[test]
    fn a_row_that_rests_is_not_ready_until_it_is_woken_or_something_else_is_desired() {
        let mut rows: Rows<(u8, u8), u8, u8> = Rows::default();
        let ready = |rows: &Rows<(u8, u8), u8, u8>| rows.ready().flat_map(|(_, keys)| keys).count();
        rows.set_desired(&(0, 0), Some(1));
        rows.rest(&(0, 0));
        assert_eq!((ready(&rows), rows.in_sync()), (0, false));
        rows.wake(&(0, 0));
        assert_eq!(ready(&rows), 1);
        rows.rest(&(0, 0));
        rows.set_desired(&(0, 0), Some(2));
        assert_eq!(ready(&rows), 1);
    }
}
