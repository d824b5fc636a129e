//! How far the store was heard, and what follows from that. Without I/O, so that it can be simulated.

use std::collections::BTreeMap;

use super::session::Relist;
use crate::schema::Change;

/// Further behind than this many revisions, a listing is cheaper than the replay of events.
const REPLAY: i64 = 10_000;

/// What a member says of its cluster, agreed upon by a majority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beat {
    /// The cluster's identity. It survives a wipe and a restore.
    pub cluster: u64,
    /// The store's revision.
    pub revision: i64,
    /// The value of the record `store`, where there is one.
    pub store: Option<Vec<u8>>,
}

/// How far the store was heard.
#[derive(Clone, Debug, Default)]
pub struct Position {
    cluster: u64,
    store: Option<Vec<u8>>,
    /// The highest revision that the store was seen at.
    seen: i64,
    /// Up to which revision everything was heard, per range of keys that is watched.
    reached: Vec<i64>,
    /// Up to which revision it is known without having been heard.
    audited: i64,
}

impl Position {
    /// All `ranges` were listed as of a revision. `beat` is what the member said before that.
    pub fn listed(beat: &Beat, revision: i64, ranges: usize) -> Self {
        let Beat { cluster, store, .. } = beat.clone();
        Self { cluster, store, seen: revision, reached: vec![revision; ranges], audited: revision }
    }

    /// The highest revision that the store was seen at.
    pub const fn seen(&self) -> i64 {
        self.seen
    }

    /// From which revision on each range is to be watched. What an audit found needs no event any more.
    pub fn resume(&mut self) -> Vec<i64> {
        self.reached.iter_mut().for_each(|reached| *reached = self.audited.max(*reached));
        self.reached.iter().map(|reached| reached + 1).collect()
    }

    /// A member answers that was not followed until now: whether events follow from here.
    ///
    /// # Errors
    /// Everything is to be listed anew, for this reason.
    pub fn greet(&mut self, beat: &Beat) -> Result<(), (Relist, String)> {
        self.beat(self.seen, beat)?;
        let behind =
            self.reached.iter().map(|reached| beat.revision - self.audited.max(*reached)).max().unwrap_or_default();
        if behind > REPLAY {
            return Err((Relist::Disconnected, format!("{behind} revisions were missed")));
        }
        Ok(())
    }

    /// A heartbeat was answered that was sent when the store was seen at the revision `floor`. Events that arrive while it is
    /// under way may be newer than its answer.
    ///
    /// # Errors
    /// Everything is to be listed anew, for this reason.
    pub fn beat(&mut self, floor: i64, beat: &Beat) -> Result<(), (Relist, String)> {
        if beat.cluster != self.cluster {
            return Err((Relist::Rollback, format!("another cluster, {:x}, took the store's place", beat.cluster)));
        }
        if beat.revision < floor {
            let why = format!("the store went back from revision {floor} to {}", beat.revision);
            return Err((Relist::Rollback, why));
        }
        // A store that was wiped may have been filled beyond where it was.
        if self.store.is_some() && beat.store != self.store {
            return Err((Relist::Rollback, "the record of the store's identity changed".to_owned()));
        }
        self.store.clone_from(&beat.store);
        self.seen = self.seen.max(beat.revision);
        Ok(())
    }

    /// Events of a range came, in the order in which they came. Returns them by revision.
    ///
    /// # Errors
    /// They are out of order: what was missed then, only a listing tells.
    pub fn heard(
        &mut self,
        range: usize,
        changes: impl IntoIterator<Item = Change>,
    ) -> Result<BTreeMap<i64, Vec<Change>>, (Relist, String)> {
        // Without fragments, which are not asked for, all events of a revision in one range come in one response.
        let mut revisions: BTreeMap<i64, Vec<Change>> = BTreeMap::new();
        let Some(reached) = self.reached.get_mut(range) else { return Ok(revisions) };
        let mut last = *reached + 1;
        for change in changes {
            let revision = change.revision();
            if revision < last {
                let why = format!("an event of revision {revision} came after revision {}", last.max(*reached + 1) - 1);
                return Err((Relist::WatchError, why));
            }
            last = revision;
            revisions.entry(revision).or_default().push(change);
        }
        if let Some((newest, _)) = revisions.last_key_value() {
            *reached = *newest;
            self.seen = self.seen.max(*newest);
        }
        Ok(revisions)
    }

    /// Everything was listed beside the watch, as of a revision; its events may still be under way.
    pub fn audited(&mut self, revision: i64) {
        self.audited = revision.max(self.audited);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beat(revision: i64) -> Beat {
        Beat { cluster: 1, revision, store: Some(b"id".to_vec()) }
    }

    fn delete(revision: i64) -> Change {
        Change::Delete { key: b"k".to_vec(), revision }
    }

    #[test]
    fn a_watch_goes_on_from_where_each_range_was_heard() {
        let mut position = Position::listed(&beat(5), 5, 2);
        assert_eq!(position.heard(1, [delete(7), delete(7), delete(9)]).unwrap().len(), 2);
        assert_eq!(position.resume(), [6, 10]);
        assert_eq!(position.greet(&beat(12)), Ok(()));
        assert_eq!((position.seen(), position.resume()), (12, vec![6, 10]));
        position.audited(11);
        assert!(position.heard(0, [delete(6)]).is_ok(), "late, but in order");
        assert_eq!(position.resume(), [12, 12]);
    }

    #[test]
    fn whatever_breaks_the_order_asks_for_a_listing() {
        for changes in [vec![delete(5)], vec![delete(7), delete(6)]] {
            let mut position = Position::listed(&beat(5), 5, 1);
            assert_eq!(position.heard(0, changes).unwrap_err().0, Relist::WatchError);
        }
    }

    #[test]
    fn a_store_that_went_back_or_is_another_one_is_a_rollback() {
        let mut position = Position::listed(&beat(5), 5, 1);
        assert_eq!(position.greet(&beat(4)).unwrap_err().0, Relist::Rollback);
        assert_eq!(position.greet(&Beat { cluster: 2, ..beat(9) }).unwrap_err().0, Relist::Rollback);
        assert_eq!(position.greet(&Beat { store: None, ..beat(9) }).unwrap_err().0, Relist::Rollback);
        assert_eq!(position.beat(5, &beat(6)), Ok(()));
        assert_eq!(position.beat(5, &beat(5)), Ok(()), "sent before what was heard meanwhile");
        assert_eq!(position.greet(&beat(6 + REPLAY)).unwrap_err().0, Relist::Disconnected);
    }
}
