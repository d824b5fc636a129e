//! An etcd in memory: revisions, transactions, a history that can be compacted.

use std::collections::BTreeMap;

use vtepd::schema::{Change, Kv};

#[derive(Clone, Debug, Default)]
pub struct SimEtcd {
    pub revision: i64,
    /// Events of this revision and older are gone.
    pub compacted: i64,
    /// How often an older store took its place.
    pub lost: usize,
    records: BTreeMap<String, Kv>,
    history: BTreeMap<i64, Vec<Change>>,
    /// Every version of every key that is not compacted, by revision; `None` where the key was deleted.
    versions: BTreeMap<String, BTreeMap<i64, Option<Kv>>>,
}

impl SimEtcd {
    /// As a new etcd is, whose first write makes revision 2.
    pub fn new() -> Self {
        Self { revision: 1, ..Self::default() }
    }

    pub fn put(&mut self, key: &str, value: &str) {
        self.transaction(&[(key.to_owned(), Some(value.to_owned()))]);
    }

    pub fn delete(&mut self, key: &str) {
        self.transaction(&[(key.to_owned(), None)]);
    }

    pub fn get(&self, key: &str) -> Option<String> {
        self.records.get(key).map(|kv| String::from_utf8_lossy(&kv.value).into_owned())
    }

    /// Puts and deletes in one revision; deleting what is not there is no event.
    pub fn transaction(&mut self, writes: &[(String, Option<String>)]) {
        let revision = self.revision + 1;
        let mut events = Vec::new();
        let last = |key: &str| writes.iter().rev().find(|(k, _)| k == key);
        for (key, value) in writes.iter().filter(|write| last(&write.0) == Some(write)) {
            match value {
                Some(value) => {
                    let create_revision = self.records.get(key).map_or(revision, |kv| kv.create_revision);
                    let kv = Kv {
                        key: key.clone().into_bytes(),
                        value: value.clone().into_bytes(),
                        create_revision,
                        mod_revision: revision,
                    };
                    self.records.insert(key.clone(), kv.clone());
                    events.push(Change::Put(kv));
                }
                None if self.records.remove(key).is_some() => {
                    events.push(Change::Delete { key: key.clone().into_bytes(), revision });
                }
                None => {}
            }
        }
        if !events.is_empty() {
            self.revision = revision;
            for event in &events {
                let key = String::from_utf8_lossy(event.key()).into_owned();
                let version = match event {
                    Change::Put(kv) => Some(kv.clone()),
                    Change::Delete { .. } => None,
                };
                self.versions.entry(key).or_default().insert(revision, version);
            }
            self.history.insert(revision, events);
        }
    }

    /// Deletes the records whose value is no JSON.
    pub fn delete_bad(&mut self) {
        let bad = |kv: &Kv| serde_json::from_slice::<serde_json::Value>(&kv.value).is_err();
        let keys: Vec<String> = self.records.iter().filter(|(_, kv)| bad(kv)).map(|(key, _)| key.clone()).collect();
        for key in keys {
            self.delete(&key);
        }
    }

    /// An older store takes the place of this one. It has no history.
    pub fn restore(&mut self, older: &Self) {
        *self = Self { compacted: older.revision, history: BTreeMap::new(), lost: self.lost + 1, ..older.clone() };
    }

    /// Deletes all keys that begin so, in one revision.
    pub fn delete_prefix(&mut self, begins: &str) {
        let keys = self.records.keys().filter(|key| key.starts_with(begins));
        let writes: Vec<_> = keys.map(|key| (key.clone(), None)).collect();
        self.transaction(&writes);
    }

    /// A key as of a revision: nothing where that is compacted, `None` inside where the key did not exist.
    pub fn at(&self, key: &str, revision: i64) -> Option<Option<Kv>> {
        // The revision that was compacted to is still there.
        if revision < self.compacted {
            return None;
        }
        let version = self.versions.get(key).and_then(|versions| versions.range(..=revision).next_back());
        Some(version.and_then(|(_, kv)| kv.clone()))
    }

    pub fn compact(&mut self) {
        self.compact_to(self.revision);
    }

    /// Forgets what was before this revision.
    pub fn compact_to(&mut self, revision: i64) {
        self.compacted = revision;
        self.history = self.history.split_off(&(revision + 1));
        for versions in self.versions.values_mut() {
            let kept = versions.range(..=revision).next_back().map_or(revision, |(last, _)| *last);
            *versions = versions.split_off(&kept);
        }
    }

    pub fn listing(&self) -> Vec<Kv> {
        self.records.values().cloned().collect()
    }

    pub fn events_from(&self, revision: i64) -> Vec<(i64, Vec<Change>)> {
        self.history.range(revision..).map(|(revision, changes)| (*revision, changes.clone())).collect()
    }
}
