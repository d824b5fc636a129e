//! Looks for the last good version of records that are bad when they are first seen, in etcd's history.
//!
//! It waits for answers beside the director, which goes on with everything else: until a record's past is known, nothing is
//! removed of its network.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tracing::{debug, info, warn};

use crate::{
    desired::{Store, Update},
    etcd::{self, Etcd},
    model::Name,
    retry::Retry,
    schema::Kv,
};

/// So many versions of one record are looked at.
const VERSIONS: usize = 16;
/// So many are asked for at once.
const AT_ONCE: usize = 16;

/// What was found.
pub(super) struct Past {
    asked: Asked,
    answer: Result<Option<Kv>, etcd::Error>,
}

impl Past {
    /// Why nothing could be found out for now.
    pub(super) fn failed(&self) -> Result<(), etcd::Error> {
        match &self.answer {
            Err(error) if *error != etcd::Error::Compacted => Err(error.clone()),
            _ => Ok(()),
        }
    }
}

/// A record, and where in its past.
#[derive(Clone)]
struct Asked {
    key: Vec<u8>,
    /// Its version as of this revision is asked for.
    revision: i64,
    /// So many versions were looked at.
    versions: usize,
}

/// etcd's history.
pub(super) struct History {
    etcd: Etcd,
    waiting: VecDeque<Asked>,
    under_way: FuturesUnordered<BoxFuture<'static, Past>>,
    retry: Retry,
    /// That it cannot be read was said.
    said: bool,
}

impl History {
    pub(super) fn new(etcd: Etcd) -> Self {
        let retry = Retry::new(Duration::from_millis(500), Duration::from_secs(30), u64::from(std::process::id()));
        Self { etcd, waiting: VecDeque::new(), under_way: FuturesUnordered::new(), retry, said: false }
    }

    /// Asks for what was before these bad versions, each given with its revision.
    pub(super) fn ask(&mut self, bad: impl IntoIterator<Item = (Vec<u8>, i64)>) {
        let asked = |(key, since): (Vec<u8>, i64)| Asked { key, revision: since - 1, versions: 0 };
        self.waiting.extend(bad.into_iter().map(asked));
    }

    /// Whether something is to be found out.
    pub(super) fn is_busy(&self) -> bool {
        !(self.waiting.is_empty() && self.under_way.is_empty())
    }

    /// The next answer. Waits without end where nothing was asked. Nothing is lost where this is dropped.
    pub(super) async fn next(&mut self) -> Past {
        while self.under_way.len() < AT_ONCE
            && let Some(asked) = self.waiting.pop_front()
        {
            self.under_way.push(read(self.etcd.clone(), asked, Duration::ZERO));
        }
        match self.under_way.next().await {
            Some(past) => past,
            None => std::future::pending().await,
        }
    }

    /// Takes an answer. What cannot be read for now is asked for again later; what is compacted is lost.
    pub(super) fn take(&mut self, store: &mut Store, past: Past) -> BTreeMap<Name, Update> {
        let Past { asked, answer } = past;
        let (key, revision) = (asked.key.escape_ascii(), asked.revision);
        let answered = answer.is_ok();
        let updates = match answer {
            Ok(Some(earlier)) => {
                let updates = store.predecessor(&earlier);
                if store.has_good_version(&earlier.key) {
                    info!(%key, revision = earlier.mod_revision, "an earlier version is in force");
                } else if asked.versions + 1 < VERSIONS {
                    let (revision, versions) = (earlier.mod_revision - 1, asked.versions + 1);
                    self.waiting.push_front(Asked { revision, versions, ..asked });
                }
                updates
            }
            Ok(None) => {
                store.history_read(&asked.key);
                BTreeMap::new()
            }
            Err(etcd::Error::Compacted) => {
                debug!(%key, revision, "history does not reach back to an earlier version");
                BTreeMap::new()
            }
            Err(error) => {
                if !std::mem::replace(&mut self.said, true) {
                    warn!(%key, %error, "cannot look for good versions of bad records; trying again");
                }
                self.under_way.push(read(self.etcd.clone(), asked, self.retry.delay()));
                BTreeMap::new()
            }
        };
        if answered {
            self.retry.reset();
            self.said = false;
        }
        updates
    }
}

fn read(etcd: Etcd, asked: Asked, delay: Duration) -> BoxFuture<'static, Past> {
    async move {
        tokio::time::sleep(delay).await;
        let answer = etcd.read(&asked.key, asked.revision).await;
        Past { asked, answer }
    }
    .boxed()
}
