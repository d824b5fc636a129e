//! Reads the store once, as the agent does when it starts.

use std::collections::BTreeMap;

use super::history::History;
use crate::{
    desired::{Source, Store, StoreConfig, Update},
    etcd::{self, Etcd},
    model::Name,
    schema::{Change, Kv},
};

/// The store, and what it means on the node that it was read for.
pub struct ReadStore {
    /// The records, with what is in force decided over all of them.
    pub store: Store,
    /// What each network is told.
    pub updates: BTreeMap<Name, Update>,
    /// Create and last revision of the records that stand, by whole key.
    pub revisions: BTreeMap<Vec<u8>, (i64, i64)>,
}

impl ReadStore {
    /// What it would be if these were written in one transaction, each a whole key with its value, or without one to delete it.
    pub fn with(&mut self, writes: &[(String, Option<String>)]) {
        let revision = self.store.revision() + 1;
        let change = |(key, value): &(String, Option<String>)| {
            let key = key.clone().into_bytes();
            let created = self.revisions.get(&key).map_or(revision, |(created, _)| *created);
            match value {
                Some(value) => Change::Put(Kv {
                    key,
                    value: value.clone().into_bytes(),
                    create_revision: created,
                    mod_revision: revision,
                }),
                None => Change::Delete { key, revision },
            }
        };
        let changes = writes.iter().map(change).collect();
        for (name, update) in self.store.changes(revision, changes) {
            self.updates.entry(name).or_default().follow(update);
        }
    }
}

impl ReadStore {
    /// The underlay link has this MTU, in bytes.
    pub fn underlay_mtu(&mut self, mtu: u32) {
        for (name, update) in self.store.set_underlay_mtu(mtu) {
            self.updates.entry(name).or_default().follow(update);
        }
    }
}

/// The records of both layouts, bad ones by their last good version.
///
/// `etcd` says how to reach the store; the prefixes are those of `config`.
///
/// # Errors
/// etcd does not answer, or refuses.
pub async fn read_store(etcd: &etcd::Config, config: StoreConfig) -> Result<ReadStore, etcd::Error> {
    let etcd = Etcd::new(etcd.clone());
    let native = (Source::Native, etcd.below(&config.prefix));
    let docker = config.docker_prefix.as_deref().map(|prefix| (Source::Docker, etcd.below(prefix)));
    let prefix = config.prefix.trim_end_matches('/').to_owned();
    let mut store = Store::new(StoreConfig { prefix, ..config });
    let (mut updates, mut revisions) = (BTreeMap::<Name, Update>::new(), BTreeMap::new());
    for (source, etcd) in [native].into_iter().chain(docker) {
        let (revision, records) = etcd.records().await?;
        revisions.extend(records.iter().map(|kv| (kv.key.clone(), (kv.create_revision, kv.mod_revision))));
        updates.extend(store.snapshot_of(source, revision, records));
    }
    let bad: Vec<(Vec<u8>, i64)> = store.without_predecessor().map(|(key, since)| (key.to_vec(), since)).collect();
    // What is still not known in the end stays lost.
    bad.iter().for_each(|(key, _)| store.history_lost(key));
    let mut history = History::new(etcd);
    history.ask(bad);
    while history.is_busy() {
        let past = history.next().await;
        past.failed()?;
        for (name, update) in history.take(&mut store, past) {
            updates.entry(name).or_default().follow(update);
        }
    }
    Ok(ReadStore { store, updates, revisions })
}
