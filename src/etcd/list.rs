//! Everything below the prefix as of one revision, page by page.
//!
//! All pages are pinned to the first one's revision, so that together they are one state of the store. Nodes and networks come
//! before the endpoints, which mean nothing without them, so that what a page of endpoints means can be told when it arrives.
//! The next page is asked for while one is taken in, and there are never more than a few at once.

use std::sync::Arc;

use etcd_client::{Client, GetOptions, KeyValue};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    config::{Config, MAX_MESSAGE},
    error::Error,
    member::Member,
    members::Etcd,
};
use crate::schema::Kv;

/// A part of a listing.
#[derive(Debug)]
pub struct Page {
    /// Its records, in the order of their keys.
    pub records: Vec<Kv>,
    /// Endpoints, and nothing else: all other records came before the first such page, of which there is always one.
    pub endpoints: bool,
    /// Room among the pages that are on their way; given back when the page is dropped.
    _room: Option<OwnedSemaphorePermit>,
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

/// The same ranges as they are listed, that of the endpoints of either layout (`endpoints/`, `endpoint/`) last.
fn listed_ranges(prefix: &str) -> [(Vec<u8>, Vec<u8>); 4] {
    let [first, second] = ranges(prefix).map(|(from, to)| (from.into_bytes(), to.into_bytes()));
    let [from, to] = ["/endpoint", "/endpoinu"].map(|rest| format!("{prefix}{rest}").into_bytes());
    [(first.0, from.clone()), (to.clone(), first.1), second, (from, to)]
}

/// So many pages are on their way at most: one that is taken in, and one that waits.
const PAGES: usize = 2;
/// The first page of endpoints is smaller by this, so that something can be done soon.
const FIRST: i64 = 8;

impl Etcd {
    /// Everything below the prefix as of one revision, which is told first.
    ///
    /// # Errors
    /// No answer, or not allowed.
    pub async fn records(&self) -> Result<(i64, Vec<Kv>), Error> {
        let all = |member: Member| async move {
            let mut listing = Listing::new(&member, self.config());
            let mut records = Vec::new();
            while let Some(page) = listing.next().await? {
                records.extend(page.records);
            }
            listing.pinned.map(|(revision, _)| (revision, records)).ok_or(Error::Headless)
        };
        self.on_a_member(all).await
    }
}

/// A listing under way, with one member.
pub(super) struct Listing {
    member: Member,
    config: Config,
    cursor: Cursor,
    rest: std::vec::IntoIter<(Vec<u8>, Vec<u8>)>,
    room: Arc<Semaphore>,
    /// The revision and the cluster, once there was an answer.
    pub(super) pinned: Option<(i64, u64)>,
}

impl Listing {
    pub(super) fn new(member: &Member, config: &Config) -> Self {
        let mut rest = Vec::from(listed_ranges(&member.prefix)).into_iter();
        let (from, to) = rest.next().unwrap_or_default();
        let room = Arc::new(Semaphore::new(PAGES));
        Self { member: member.clone(), config: config.clone(), cursor: Cursor::new(from, to), rest, room, pinned: None }
    }

    /// The next page; `None` when everything was listed. Waits until there is room for it.
    pub(super) async fn next(&mut self) -> Result<Option<Page>, Error> {
        let mut limit = self.config.page.max(1);
        if self.cursor.done {
            let Some((from, to)) = self.rest.next() else { return Ok(None) };
            self.cursor = Cursor::new(from, to);
            limit = (limit / FIRST).max(1);
        }
        let endpoints = self.rest.as_slice().is_empty();
        // The semaphore is never closed.
        let room = Arc::clone(&self.room).acquire_owned().await.ok();
        let (from, to) = (self.cursor.from.clone(), self.cursor.window_end());
        let options =
            GetOptions::new().with_range(to).with_limit(limit).with_revision(self.pinned.map_or(0, |(r, _)| r));
        let get = |client: Client| {
            let mut kv = client.kv_client().max_decoding_message_size(MAX_MESSAGE);
            let (from, options) = (from.clone(), options.clone());
            async move { kv.get(from, Some(options)).await }
        };
        let mut answer = self.member.long_call(self.config.page_timeout, get).await?;
        let header = answer.header().ok_or(Error::Headless)?;
        self.pinned.get_or_insert((header.revision(), header.cluster_id()));
        let (count, more) = (answer.count(), answer.more());
        let records: Vec<Kv> = answer.take_kvs().into_iter().map(record).collect();
        let keys = records.first().zip(records.last()).map(|(first, last)| (&*first.key, &*last.key));
        let asked = usize::try_from(limit).unwrap_or(usize::MAX);
        self.cursor.advance(keys, usize::try_from(count).unwrap_or_default(), more, asked);
        Ok(Some(Page { records, endpoints, _room: room }))
    }
}

/// Where a listing of a range has come to.
///
/// etcd (mvcc/kvstore_txn.go, `rangeKeys`) looks at all keys of a range to find the first few, so that small pages of a large
/// range are quadratic. Hence only a window of a large range is asked for, keys with as long a common beginning as leaves a few
/// pages of them; when it is done the next window is that of its siblings.
#[derive(Debug)]
struct Cursor {
    from: Vec<u8>,
    end: Vec<u8>,
    /// How many bytes the window's keys have in common; 0 for the whole range.
    depth: usize,
    done: bool,
}

/// A window of more pages than this is narrowed, …
const WIDE: usize = 4;
/// … and one of less than one in so many of a page is widened.
const NARROW: usize = 4;

impl Cursor {
    const fn new(from: Vec<u8>, end: Vec<u8>) -> Self {
        Self { from, end, depth: 0, done: false }
    }

    /// The end of the window: the first key after all that begin like `from`.
    fn window_end(&self) -> Vec<u8> {
        let mut end: Vec<u8> = self.from.iter().copied().take(self.depth).collect();
        while let Some(last) = end.pop() {
            if last < u8::MAX {
                end.push(last + 1);
                return end.min(self.end.clone());
            }
        }
        self.end.clone()
    }

    /// Goes on behind an answer of at most `limit` keys: its first and last key, how many are left in the window, these
    /// counted, and whether some of them were left out.
    fn advance(&mut self, keys: Option<(&[u8], &[u8])>, count: usize, more: bool, limit: usize) {
        if let Some((first, last)) = keys.filter(|_| more) {
            if count > limit.saturating_mul(WIDE) {
                let common = first.iter().zip(last).take_while(|(a, b)| a == b).count();
                self.depth = self.depth.max(common + 1);
            }
            self.from = last.to_vec();
            self.from.push(0);
            return;
        }
        let end = self.window_end();
        if count.saturating_mul(NARROW) < limit {
            self.depth = self.depth.saturating_sub(1);
        }
        self.done = end >= self.end;
        self.from = end;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn everything_below_the_prefix_is_followed_but_what_agents_say_of_themselves() {
        let followed = ranges("/vtepd/v1").map(|(from, to)| (from.into_bytes(), to.into_bytes()));
        let listed = listed_ranges("/vtepd/v1");
        for key in [&b"/vtepd/v1/endpoints/n/a/e"[..], b"/vtepd/v1/store", b"/vtepd/v1/status", b"/vtepd/v1/\xff\xff"] {
            for ranges in [&followed[..], &listed] {
                let times = ranges.iter().filter(|(from, to)| (&**from..&**to).contains(&key)).count();
                assert_eq!(times, 1, "{}", key.escape_ascii());
            }
        }
        for key in ["/vtepd/v1/status/a", "/vtepd/v10", "/vtepd/v1", "/vtepd/v"] {
            for ranges in [&followed[..], &listed] {
                assert!(!ranges.iter().any(|(from, to)| (&**from..&**to).contains(&key.as_bytes())), "{key}");
            }
        }
    }

    /// Lists a range as etcd answers. Returns the keys, and how many keys etcd had to look at.
    fn walk(keys: &BTreeSet<Vec<u8>>, limit: usize) -> (Vec<Vec<u8>>, usize) {
        let mut cursor = Cursor::new(b"k/".to_vec(), b"k0".to_vec());
        let (mut all, mut looked) = (Vec::new(), 0);
        for request in 0.. {
            assert!(request < 20 * keys.len() + 600, "it goes on: {cursor:?}");
            let end = cursor.window_end();
            let window: Vec<_> = keys.range(cursor.from.clone()..).take_while(|key| **key < end).collect();
            looked += window.len() + 1;
            let some = &window[..window.len().min(limit)];
            all.extend(some.iter().map(|key| (*key).clone()));
            let ends = some.first().zip(some.last()).map(|(first, last)| (&***first, &***last));
            cursor.advance(ends, window.len(), window.len() > limit, limit);
            if cursor.done {
                break;
            }
        }
        (all, looked)
    }

    proptest! {
        #[test]
        fn every_key_is_listed_once_and_in_order(
            names in prop::collection::btree_set("[/0a\u{7f}\u{ff}]{0,6}", 0..200), limit in 1..20usize,
        ) {
            let keys: BTreeSet<Vec<u8>> = names.iter().map(|name| format!("k/{name}").into_bytes()).collect();
            prop_assert!(walk(&keys, limit).0.iter().eq(&keys));
        }
    }

    #[test]
    fn listing_many_keys_in_small_pages_is_not_quadratic() {
        for name in [|n: u32| format!("k/net/node/e{n}"), |n| format!("k/n{}/a/{n:x}", n % 1000)] {
            let keys: BTreeSet<Vec<u8>> = (0..100_000).map(|n| name(n).into_bytes()).collect();
            let (all, looked) = walk(&keys, 1000);
            assert!(all.iter().eq(&keys));
            assert!(looked < 10 * keys.len(), "{looked}");
        }
    }
}
