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

/// The ranges of keys that are followed: from the first to before the second. All that stands below the prefix but what
/// agents say of themselves: a thousand nodes that hear of each other's status would be a million events.
pub(super) fn ranges(prefix: &str) -> [(String, String); 2] {
    // The byte after '/' is '0'.
    let [first, skipped, on, end] = ["/", "/status/", "/status0", "0"].map(|rest| format!("{prefix}{rest}"));
    [(first, skipped), (on, end)]
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
        let mut listing = Listing { cluster: 0, revision: 0, records: Vec::new() };
        let mut ranges = ranges(&self.prefix).into_iter().map(|(from, to)| (from.into_bytes(), to));
        let Some((mut from, mut to)) = ranges.next() else { return Ok(listing) };
        loop {
            let options =
                GetOptions::new().with_range(to.clone()).with_limit(page.max(1)).with_revision(listing.revision);
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
                _ => match ranges.next() {
                    Some(next) => (from, to) = next,
                    None => return Ok(listing),
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn everything_below_the_prefix_is_followed_but_what_agents_say_of_themselves() {
        let ranges = super::ranges("/vtepd/v1");
        let within = |key: &[u8]| ranges.iter().any(|(from, to)| (from.as_bytes()..to.as_bytes()).contains(&key));
        for key in [&b"/vtepd/v1/endpoints/n/a/e"[..], b"/vtepd/v1/store", b"/vtepd/v1/status", b"/vtepd/v1/\xff\xff"] {
            assert!(within(key), "{}", key.escape_ascii());
        }
        for key in ["/vtepd/v1/status/a", "/vtepd/v10", "/vtepd/v1", "/vtepd/v"] {
            assert!(!within(key.as_bytes()), "{key}");
        }
    }
}
