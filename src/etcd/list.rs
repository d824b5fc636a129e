//! Everything below the prefix as of one revision, page by page.

use std::time::Duration;

use etcd_client::{GetOptions, KeyValue};

use super::connect::{Config, Error, Etcd, MAX_MESSAGE, within};
use crate::schema::Kv;

/// All records as of one revision.
#[derive(Debug)]
pub(super) struct Listing {
    pub(super) cluster: u64,
    pub(super) revision: i64,
    pub(super) records: Vec<Kv>,
}

pub(super) fn record(kv: KeyValue) -> Kv {
    let (create_revision, mod_revision) = (kv.create_revision(), kv.mod_revision());
    let (key, value) = kv.into_key_value();
    Kv { key, value, create_revision, mod_revision }
}

/// The first key that no longer begins with the prefix and its slash.
fn end(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    // The byte after '/'.
    end.push(b'0');
    end
}

impl Etcd {
    /// Everything below the prefix as of one revision, which is told first.
    ///
    /// # Errors
    /// No answer, or not allowed.
    pub async fn records(&self, config: &Config) -> Result<(i64, Vec<Kv>), Error> {
        let listing = self.list(config.page, config.page_timeout).await?;
        Ok((listing.revision, listing.records))
    }

    /// Lists in pages that are all pinned to the first one's revision, so that together they are one state of the store.
    pub(super) async fn list(&self, page: i64, timeout: Duration) -> Result<Listing, Error> {
        let mut kv = self.client.kv_client().max_decoding_message_size(MAX_MESSAGE);
        let mut from = format!("{}/", self.prefix).into_bytes();
        let mut listing = Listing { cluster: 0, revision: 0, records: Vec::new() };
        loop {
            let options =
                GetOptions::new().with_range(end(&self.prefix)).with_limit(page.max(1)).with_revision(listing.revision);
            let mut answer = within(timeout, kv.get(from.clone(), Some(options))).await?;
            let header = answer.header().ok_or(Error::Headless)?;
            if listing.revision == 0 {
                listing.cluster = header.cluster_id();
                listing.revision = header.revision();
            }
            let more = answer.more();
            listing.records.extend(answer.take_kvs().into_iter().map(record));
            match listing.records.last() {
                Some(last) if more => {
                    from.clone_from(&last.key);
                    from.push(0);
                }
                _ => return Ok(listing),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_range_ends_before_what_only_begins_alike() {
        let end = super::end("/vtepd/v1");
        assert!(b"/vtepd/v1/\xff\xff".as_slice() < end.as_slice());
        assert!(b"/vtepd/v10".as_slice() >= end.as_slice());
    }
}
