//! `status/<node>`: what this agent last applied, for those who look into the store.
//!
//! It is written when it changed, at most once a second, and only after the fact: it says what was read or acknowledged. No
//! agent follows these records, so that writing one wakes nobody; and the revision in one is that of a record that matters, so
//! that it does not follow from the writing of another.

use std::time::Duration;

use serde::Serialize;
use tokio::{sync::watch, task::JoinHandle};
use tracing::{debug, warn};

use super::board::Totals;
use crate::{
    desired::Store,
    etcd::{self, Etcd},
    model::{Name, stable_hash},
    retry::Retry,
};

/// So many entries stand in each list; beside it stands how many there are.
const ENTRIES: usize = 100;
/// Between two writes, and before the first retry of one that failed.
const PAUSE: Duration = Duration::from_secs(1);
/// The longest pause between retries.
const LAST_PAUSE: Duration = Duration::from_secs(60);

/// The record's value.
#[derive(Debug, Serialize)]
struct Status {
    /// The newest revision that is wholly applied here.
    revision: i64,
    in_sync: bool,
    networks: Networks,
    pending: usize,
    removals_held: u64,
    rejected: Listed<Rejection>,
    conflicts: Listed<Conflict>,
    blocked: Listed<Blocked>,
}

#[derive(Debug, Serialize)]
struct Networks {
    here: usize,
    in_sync: usize,
}

#[derive(Debug, Serialize)]
struct Listed<T> {
    count: usize,
    first: Vec<T>,
}

#[derive(Debug, Serialize)]
struct Rejection {
    key: String,
    field: String,
    reason: &'static str,
}

#[derive(Debug, Serialize)]
struct Conflict {
    key: String,
    field: &'static str,
    holder: String,
}

#[derive(Debug, Serialize)]
struct Blocked {
    object: String,
    reason: &'static str,
}

impl<T> Listed<T> {
    fn new(count: usize, all: impl Iterator<Item = T>) -> Self {
        Self { count, first: all.take(ENTRIES).collect() }
    }
}

/// Puts the status together, and hands it to what writes it.
pub(super) struct Reporter {
    latest: watch::Sender<Option<String>>,
    writer: JoinHandle<()>,
    /// The newest revision that was wholly applied.
    applied: i64,
    /// At the last look not everything was in sync.
    unsettled: bool,
}

impl Reporter {
    /// Starts what writes.
    pub(super) fn new(config: etcd::Config, node: Name) -> Self {
        let (latest, statuses) = watch::channel(None);
        Self { latest, writer: tokio::spawn(write(config, node, statuses)), applied: 0, unsettled: false }
    }

    /// Takes a look at how things stand. A moment out of sync that is over at the next look is not worth a write.
    pub(super) fn look(&mut self, store: &Store, totals: &Totals) {
        if !store.is_complete() {
            return;
        }
        let in_sync = totals.lagging == 0;
        if std::mem::replace(&mut self.unsettled, !in_sync) || in_sync {
            let status = self.status(store, totals);
            let Ok(text) = serde_json::to_string(&status) else { return };
            self.latest.send_if_modified(|latest| latest.replace(text.clone()).is_none_or(|before| before != text));
        }
    }

    fn status(&mut self, store: &Store, totals: &Totals) -> Status {
        let (newest, counts) = (store.newest(), store.counts());
        // What was applied once stays so, whatever the networks are busy with now, unless the store itself went back.
        self.applied = totals.behind.unwrap_or(newest).max(self.applied).min(newest);
        let rejected = store.rejections().map(|rejected| Rejection {
            key: rejected.key.clone(),
            field: rejected.field.clone(),
            reason: rejected.reason.as_str(),
        });
        let conflicts = store.conflicts().map(|conflict| Conflict {
            key: store.whole_key(&conflict.key),
            field: conflict.field,
            holder: store.whole_key(&conflict.holder),
        });
        let records = store.blocked().map(|b| Blocked { object: store.whole_key(&b.key), reason: b.reason.as_str() });
        let objects = totals
            .blocked
            .iter()
            .map(|(network, b)| Blocked { object: format!("{network}: {}", b.object), reason: b.reason });
        Status {
            revision: self.applied,
            in_sync: totals.lagging == 0,
            networks: Networks { here: totals.networks, in_sync: totals.in_sync },
            pending: counts.pending,
            removals_held: totals.held,
            rejected: Listed::new(counts.rejected.values().sum(), rejected),
            conflicts: Listed::new(counts.conflicts, conflicts),
            blocked: Listed::new(counts.blocked.values().sum::<usize>() + totals.blocked.len(), records.chain(objects)),
        }
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        self.writer.abort();
    }
}

/// Writes the newest status until nobody has any more.
async fn write(config: etcd::Config, node: Name, mut statuses: watch::Receiver<Option<String>>) {
    let mut retry = Retry::new(PAUSE, LAST_PAUSE, stable_hash(node.as_str().as_bytes()));
    let (mut etcd, mut said) = (None, false);
    while statuses.changed().await.is_ok() {
        // A newer one takes the place of one that could not be written.
        loop {
            let status = statuses.borrow_and_update().clone();
            let Some(status) = status else { break };
            match put(&config, &mut etcd, &node, &status).await {
                Ok(()) => {
                    retry.reset();
                    said = false;
                    tokio::time::sleep(PAUSE).await;
                    break;
                }
                Err(error) => {
                    etcd = None;
                    if !std::mem::replace(&mut said, true) {
                        warn!(%error, "cannot write this node's status; tried again, and all else goes on");
                    }
                    tokio::time::sleep(retry.delay()).await;
                }
            }
        }
    }
}

/// Writes a status unless it stands there already.
async fn put(config: &etcd::Config, etcd: &mut Option<Etcd>, node: &Name, status: &str) -> Result<(), etcd::Error> {
    let etcd = match etcd {
        Some(etcd) => etcd,
        None => etcd.insert(Etcd::connect(config).await?),
    };
    if etcd.read_status(node).await?.is_none_or(|stands| stands != status.as_bytes()) {
        etcd.write_status(node, status).await?;
        debug!(status, "wrote this node's status");
    }
    Ok(())
}
