//! Looks for the last good version of records that are bad when the agent starts, in etcd's history.

use tracing::{debug, info};

use crate::{etcd::Etcd, schema::Kv};

/// So many versions of one record are looked at, …
const VERSIONS: usize = 16;
/// … and so many records: a store with more bad ones has other worries, and the agent has to get on.
const RECORDS: usize = 256;

/// etcd's history.
pub(super) struct History {
    etcd: Etcd,
}

impl History {
    pub(super) const fn new(etcd: Etcd) -> Self {
        Self { etcd }
    }

    /// The earlier versions of these records, each given with the revision of its bad version: newest first, as far back as
    /// `good` does not take one, or as history goes. Returns the keys of which a good version may have been, and was not found.
    pub(super) async fn look_back(&self, bad: Vec<(Vec<u8>, i64)>, mut good: impl FnMut(&Kv) -> bool) -> Vec<Vec<u8>> {
        if bad.is_empty() {
            return Vec::new();
        }
        let mut lost = Vec::new();
        for (n, (key, bad_since)) in bad.into_iter().enumerate() {
            if n >= RECORDS || !self.found(&key, bad_since, &mut good).await {
                lost.push(key);
            }
        }
        lost
    }

    /// Looks for one record. False when history, or patience, ends before the record does.
    async fn found(&self, key: &[u8], bad_since: i64, good: &mut impl FnMut(&Kv) -> bool) -> bool {
        let mut revision = bad_since - 1;
        for _ in 0..VERSIONS {
            match self.etcd.read(key, revision).await {
                Ok(Some(earlier)) if good(&earlier) => {
                    info!(key = %key.escape_ascii(), revision = earlier.mod_revision, "an earlier version is in force");
                    return true;
                }
                Ok(Some(earlier)) => revision = earlier.mod_revision - 1,
                Ok(None) => return true,
                // Compacted, most likely.
                Err(error) => {
                    debug!(key = %key.escape_ascii(), revision, %error, "cannot read an earlier version");
                    return false;
                }
            }
        }
        false
    }
}
