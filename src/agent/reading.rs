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
    let below = |prefix: &str| etcd::Config { prefix: prefix.trim_end_matches('/').to_owned(), ..etcd.clone() };
    let native = (Source::Native, below(&config.prefix));
    let docker = config.docker_prefix.as_deref().map(|prefix| (Source::Docker, below(prefix)));
    let mut store = Store::new(StoreConfig { prefix: native.1.prefix.clone(), ..config });
    for (source, config) in [native].into_iter().chain(docker) {
        let (revision, records) = Etcd::connect(&config).await?.records(&config).await?;
        store.snapshot_of(source, revision, records);
    }
    let bad = store.without_predecessor().map(|(key, since)| (key.to_vec(), since)).collect();
    let good = |earlier: &crate::schema::Kv| {
        store.predecessor(earlier);
        store.has_good_version(&earlier.key)
    };
    History::new(etcd.clone()).look_back(bad, good).await;
    Ok(store)
}
