//! Reads the store once, as the agent does when it starts.

use super::history::History;
use crate::{
    desired::{Source, Store, StoreConfig},
    etcd::{self, Etcd},
};

/// The records of both layouts, with what is in force decided over all of them, bad ones by their last good version.
///
/// `etcd` says how to reach the store; the prefixes are those of `config`.
///
/// # Errors
/// etcd does not answer, or refuses.
pub async fn read_store(etcd: &etcd::Config, config: StoreConfig) -> Result<Store, etcd::Error> {
    let etcd = Etcd::new(etcd.clone());
    let native = (Source::Native, etcd.below(&config.prefix));
    let docker = config.docker_prefix.as_deref().map(|prefix| (Source::Docker, etcd.below(prefix)));
    let prefix = config.prefix.trim_end_matches('/').to_owned();
    let mut store = Store::new(StoreConfig { prefix, ..config });
    for (source, etcd) in [native].into_iter().chain(docker) {
        let (revision, records) = etcd.records().await?;
        store.snapshot_of(source, revision, records);
    }
    let bad = store.without_predecessor().map(|(key, since)| (key.to_vec(), since)).collect();
    let good = |earlier: &crate::schema::Kv| {
        store.predecessor(earlier);
        store.has_good_version(&earlier.key)
    };
    History::new(etcd).look_back(bad, good).await;
    Ok(store)
}
