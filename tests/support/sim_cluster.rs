//! A simulated etcd of three members: one log, of which each member has applied a part, and what happens to members, to the
//! store as a whole, and to watches.

use std::collections::VecDeque;

use vtepd::{etcd::Beat, schema::Change};

use super::{chance::Chance, sim_etcd::SimEtcd};

/// The record of the store's identity.
pub const STORE: &str = "/p/store";

/// One member.
#[derive(Clone, Debug, Default)]
pub struct Member {
    /// It answers nothing: killed, frozen or out of reach.
    pub down: bool,
    /// Its peers do not reach it.
    pub cut: bool,
    /// How far it has applied the log.
    pub applied: i64,
}

/// A watch of one range at one member.
#[derive(Debug)]
pub struct Watch {
    pub member: usize,
    begins: &'static str,
    next: i64,
    /// Responses under way.
    queue: VecDeque<Vec<Change>>,
    /// It says nothing more, and no error either.
    pub silent: bool,
}

/// What watches of old servers do, each once in so many responses; 0 for never.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    pub lost: usize,
    pub repeated: usize,
    pub reordered: usize,
}

/// The cluster.
#[derive(Debug)]
pub struct SimCluster {
    pub store: SimEtcd,
    pub members: Vec<Member>,
    pub identity: u64,
    /// Counts wipes and restores: connections do not outlive them.
    pub incarnation: u64,
    backup: SimEtcd,
}

impl SimCluster {
    pub fn new() -> Self {
        let mut store = SimEtcd::new();
        store.put(STORE, "id-0");
        let members = vec![Member { applied: store.revision, ..Member::default() }; 3];
        Self { backup: store.clone(), store, members, identity: 7, incarnation: 0 }
    }

    /// Whether a member speaks for the cluster.
    pub fn has_quorum(&self, member: usize) -> bool {
        let together = |other: &&Member| !other.down && !other.cut;
        let this = &self.members[member];
        !this.down && !this.cut && self.members.iter().filter(together).count() >= 2
    }

    /// Somebody writes, where anybody can.
    pub fn write(&mut self, write: impl FnOnce(&mut SimEtcd)) {
        if (0..self.members.len()).any(|member| self.has_quorum(member)) {
            write(&mut self.store);
        }
    }

    /// A linearizable read: the member has then applied all that was written before.
    pub fn beat(&mut self, member: usize) -> Option<Beat> {
        if !self.has_quorum(member) {
            return None;
        }
        self.members[member].applied = self.store.revision;
        let store = self.store.get(STORE).map(String::into_bytes);
        Some(Beat { cluster: self.identity, revision: self.store.revision, store })
    }

    /// A member applies some of what it lags behind.
    pub fn apply(&mut self, member: usize, revisions: i64) {
        let reached = self.store.revision;
        let member = &mut self.members[member];
        if !member.down && !member.cut {
            member.applied = reached.min(member.applied + revisions);
        }
    }

    /// Opens a watch; `None` where its first events are compacted.
    pub fn watch(&self, member: usize, begins: &'static str, from: i64) -> Option<Watch> {
        (from > self.store.compacted).then(|| Watch {
            member,
            begins,
            next: from,
            queue: VecDeque::new(),
            silent: false,
        })
    }

    /// The next response of a watch, with the faults of old servers; `Err` where it lagged behind a compaction.
    pub fn next(&self, watch: &mut Watch, chance: &mut Chance, faults: Faults) -> Result<Option<Vec<Change>>, ()> {
        let once = |chance: &mut Chance, n: usize| n > 0 && chance.below(n) == 0;
        if self.members[watch.member].down || watch.silent {
            return Ok(None);
        }
        if watch.next <= self.store.compacted {
            return Err(());
        }
        for (revision, changes) in self.store.events_from(watch.next) {
            if revision > self.members[watch.member].applied {
                break;
            }
            watch.next = revision + 1;
            let ours = |change: &Change| change.key().starts_with(watch.begins.as_bytes());
            let ours: Vec<Change> = changes.into_iter().filter(ours).collect();
            if ours.is_empty() || once(chance, faults.lost) {
                continue;
            }
            if once(chance, faults.repeated) {
                watch.queue.push_back(ours.clone());
            }
            watch.queue.push_back(ours);
            let last = watch.queue.len() - 1;
            if last > 0 && once(chance, faults.reordered) {
                watch.queue.swap(last, last - 1);
            }
        }
        Ok(watch.queue.pop_front())
    }

    /// What a backup would have.
    pub fn back_up(&mut self) {
        self.backup = self.store.clone();
    }

    /// All members start again from the backup. The cluster's identity stays.
    pub fn restore(&mut self) {
        self.replace(self.backup.clone());
    }

    /// All members start again with nothing, and somebody gives the store an identity. The cluster's identity stays.
    pub fn wipe(&mut self) {
        let mut store = SimEtcd::new();
        store.put(STORE, &format!("id-{}", self.incarnation + 1));
        self.replace(store);
    }

    fn replace(&mut self, store: SimEtcd) {
        self.incarnation += 1;
        self.members.iter_mut().for_each(|member| *member = Member { applied: store.revision, ..Member::default() });
        (self.backup, self.store) = (store.clone(), store);
    }
}
