//! `status/<node>`: what this agent last applied, for those who look into the store.
//!
//! It is written when it changed, at most once a second, and only after the fact: it says what was read or acknowledged. No
//! agent follows these records, so that writing one wakes nobody; and the revision in one is that of a record that matters, so
//! that it does not follow from the writing of another.

mod record;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::{sync::watch, task::JoinHandle};
use tracing::{debug, warn};

use super::board::Totals;
use crate::{
    desired::{HeldRemovals, Store},
    etcd::{self, Etcd},
    model::{Name, Timestamp, stable_hash},
    retry::Retry,
};

pub use record::{Blocked, Conflict, HeldNetwork, Lagging, Listed, Networks, NodeStatus, Rejection};

/// Between two writes, and before the first retry of one that failed.
const PAUSE: Duration = Duration::from_secs(1);
/// The longest pause between retries.
const LAST_PAUSE: Duration = Duration::from_secs(60);

/// Puts the status together, and hands it to what writes it.
pub(super) struct Reporter {
    latest: watch::Sender<Option<NodeStatus>>,
    writer: JoinHandle<()>,
    /// The newest revision that was wholly applied.
    applied: i64,
    /// At the last look not everything was in sync.
    unsettled: bool,
}

impl Reporter {
    /// Starts what writes.
    pub(super) fn new(etcd: Etcd, node: Name) -> Self {
        let (latest, statuses) = watch::channel(None);
        Self { latest, writer: tokio::spawn(write(etcd, node, statuses)), applied: 0, unsettled: false }
    }

    /// Takes a look at how things stand. A moment out of sync that is over at the next look is not worth a write.
    pub(super) fn look(&mut self, store: &Store, totals: &Totals, held: &[HeldRemovals]) {
        if !store.is_complete() {
            return;
        }
        let in_sync = totals.lagging == 0;
        if std::mem::replace(&mut self.unsettled, !in_sync) || in_sync {
            let status = self.status(store, totals, held);
            self.latest.send_if_modified(|latest| {
                let news = latest.as_ref().is_none_or(|before| !before.says_what(&status));
                if news {
                    *latest = Some(status);
                }
                news
            });
        }
    }

    fn status(&mut self, store: &Store, totals: &Totals, held: &[HeldRemovals]) -> NodeStatus {
        let (newest, counts) = (store.newest(), store.counts());
        // What was applied once stays so, whatever the networks are busy with now, unless the store itself went back.
        self.applied = totals.behind.unwrap_or(newest).max(self.applied).min(newest);
        let rejected = store.rejections().map(|rejected| Rejection {
            key: rejected.key.clone(),
            field: rejected.field.clone(),
            reason: rejected.reason.as_str().to_owned(),
        });
        let conflicts = store.conflicts().map(|conflict| Conflict {
            key: store.whole_key(&conflict.key),
            field: conflict.field.to_owned(),
            holder: store.whole_key(&conflict.holder),
        });
        let records =
            store.blocked().map(|b| Blocked { object: store.whole_key(&b.key), reason: b.reason.as_str().to_owned() });
        let objects = totals
            .blocked
            .iter()
            .map(|(network, b)| Blocked { object: format!("{network}: {}", b.object), reason: b.reason.to_owned() });
        let lagging = totals.lagging_networks.iter();
        let lagging = lagging.map(|(network, why)| Lagging { network: network.to_string(), reason: why.clone() });
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        NodeStatus {
            time: Timestamp::since_epoch(now).to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            revision: self.applied,
            in_sync: totals.lagging == 0,
            networks: Networks { here: totals.networks, in_sync: totals.in_sync },
            lagging: Listed::new(totals.lagging, lagging),
            pending: counts.pending,
            removals_held: totals.held + held.iter().map(|held| held.records.max(1) as u64).sum::<u64>(),
            held: Listed::new(
                held.len(),
                held.iter().map(|held| HeldNetwork {
                    network: held.network.to_string(),
                    records: held.records,
                    since: held.since,
                    reason: held.reason.as_str().to_owned(),
                }),
            ),
            rejected: Listed::new(counts.rejected.values().sum(), rejected),
            conflicts: Listed::new(counts.conflicts, conflicts),
            blocked: Listed::new(
                counts.blocked.values().sum::<usize>()
                    + usize::try_from(totals.blocked_counts.values().sum::<u64>()).unwrap_or(usize::MAX),
                records.chain(objects),
            ),
        }
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        self.writer.abort();
    }
}

/// Writes the newest status until nobody has any more.
async fn write(etcd: Etcd, node: Name, mut statuses: watch::Receiver<Option<NodeStatus>>) {
    let mut retry = Retry::new(PAUSE, LAST_PAUSE, stable_hash(node.as_str().as_bytes()));
    let mut said = false;
    while statuses.changed().await.is_ok() {
        // A newer one takes the place of one that could not be written.
        loop {
            let status = statuses.borrow_and_update().clone();
            let Some(status) = status else { break };
            match put(&etcd, &node, &status).await {
                Ok(()) => {
                    retry.reset();
                    said = false;
                    tokio::time::sleep(PAUSE).await;
                    break;
                }
                Err(error) => {
                    if !std::mem::replace(&mut said, true) {
                        warn!(%error, "cannot write this node's status; tried again, and all else goes on");
                    }
                    tokio::time::sleep(retry.delay()).await;
                }
            }
        }
    }
}

/// Writes a status unless what stands there says the same.
async fn put(etcd: &Etcd, node: &Name, status: &NodeStatus) -> Result<(), etcd::Error> {
    let stands = etcd.read_status(node).await?;
    let stands = stands.and_then(|stands| serde_json::from_slice::<NodeStatus>(&stands).ok());
    let Ok(text) = serde_json::to_string(status) else { return Ok(()) };
    if stands.is_none_or(|stands| !stands.says_what(status)) {
        etcd.write_status(node, &text).await?;
        debug!(text, "wrote this node's status");
    }
    Ok(())
}
