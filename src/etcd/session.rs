//! One session: list, then watch from the next revision on, until something breaks.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use etcd_client::{WatchOptions, WatchResponse, WatchStream};
use tokio::{
    sync::mpsc::{self, error::TrySendError},
    task::JoinSet,
};

use super::{
    connect::{Config, Error, Etcd, MAX_MESSAGE, within},
    list::{Listing, Page, ranges, record},
};
use crate::schema::Change;

/// Why everything is listed anew. Closed: it is a metric's label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Relist {
    /// The agent starts.
    Start,
    /// The events that come next were compacted away.
    Compacted,
    /// The server ended the watch, or its events were out of order.
    WatchError,
    /// The server was lost.
    Disconnected,
    /// Nothing seems to be wrong.
    Audit,
    /// The store went back in time, or is another one.
    Rollback,
}

impl Relist {
    /// The label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Compacted => "compacted",
            Self::WatchError => "watch_error",
            Self::Disconnected => "disconnected",
            Self::Audit => "audit",
            Self::Rollback => "rollback",
        }
    }
}

/// What the edge says.
#[derive(Debug)]
pub enum Message {
    /// Everything is about to be listed.
    Relist(Relist),
    /// A part of what is listed. A listing that does not come to its end is followed by another [`Message::Relist`].
    Page {
        /// As of this revision.
        revision: i64,
        /// The part.
        page: Page,
    },
    /// The pages since the last [`Message::Relist`] were everything below the prefix.
    Snapshot {
        /// As of this revision.
        revision: i64,
        /// The cluster's identity. It survives a wipe and a restore.
        cluster: u64,
    },
    /// All events of one revision.
    Changes {
        /// The revision.
        revision: i64,
        /// The events.
        changes: Vec<Change>,
        /// When they came in.
        received: Instant,
    },
    /// The same of an audit's pages, for [`crate::desired::Store::audited`]. Its pages come among changes.
    Audit {
        /// As of this revision.
        revision: i64,
        /// Keys that have events of later revisions, all of them sent before this message.
        touched: BTreeSet<Vec<u8>>,
    },
    /// The server answered a heartbeat with this revision.
    Contact(i64),
    /// The server was lost, for this reason. What is known stays as it is.
    Disconnected(String),
}

/// Why a session ended.
#[derive(Debug)]
pub(super) enum End {
    /// Nobody listens any more.
    Closed,
    /// To be followed by another session.
    Again(Relist, String),
}

/// What must outlive a session.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// The last cluster and revision.
    pub(super) last: Option<(u64, i64)>,
    /// When the session's watch began.
    pub(super) watching: Option<Instant>,
}

/// What is done beside the watch.
enum Aside {
    /// With the last revision that was known when the heartbeat was sent.
    Beat(i64, Result<(u64, i64), Error>),
    AuditDue,
    /// The revision and the cluster that an audit listed.
    Listing(Result<(i64, u64), Error>),
}

struct Session<'s> {
    config: &'s Config,
    etcd: Etcd,
    sender: &'s mpsc::Sender<Message>,
    memory: &'s mut Memory,
    /// The revision of the listing that the session began with.
    listed: i64,
    /// The last revision that each watch delivered.
    delivered: BTreeMap<i64, i64>,
    /// Keys with events since the audit under way began, with their last revision.
    touched: Option<BTreeMap<Vec<u8>, i64>>,
}

/// More events than this during one audit, and it is given up until the next time.
const MAX_TOUCHED: usize = 100_000;

/// Runs one session to its end.
pub(super) async fn run(
    config: &Config,
    sender: &mpsc::Sender<Message>,
    memory: &mut Memory,
    reason: Relist,
) -> Result<(), End> {
    memory.watching = None;
    let etcd = Etcd::connect(config).await.map_err(|e| lost(&e))?;
    let mut session = Session { config, etcd, sender, memory, listed: 0, delivered: BTreeMap::new(), touched: None };
    session.list(reason).await?;
    let watch = session.watch().await?;
    session.memory.watching = Some(Instant::now());
    session.follow(watch).await
}

impl Session<'_> {
    async fn send(&self, message: Message) -> Result<(), End> {
        self.sender.send(message).await.map_err(|_| End::Closed)
    }

    async fn list(&mut self, reason: Relist) -> Result<(), End> {
        self.send(Message::Relist(reason)).await?;
        let mut listing = Listing::new(&self.etcd, self.config);
        let mut next = listing.next().await.map_err(|e| lost(&e))?;
        let Some((revision, cluster)) = listing.pinned else { return Err(lost(&Error::Headless)) };
        if reason != Relist::Rollback && self.went_back(cluster, revision) {
            self.send(Message::Relist(Relist::Rollback)).await?;
        }
        // The next page comes in while this one is taken.
        while let Some(page) = next {
            let (sent, after) = tokio::join!(self.send(Message::Page { revision, page }), listing.next());
            sent?;
            next = after.map_err(|e| lost(&e))?;
        }
        self.memory.last = Some((cluster, revision));
        self.listed = revision;
        self.send(Message::Snapshot { revision, cluster }).await
    }

    fn went_back(&self, cluster: u64, revision: i64) -> bool {
        self.memory.last.is_some_and(|(before, last)| before != cluster || revision < last)
    }

    async fn watch(&mut self) -> Result<WatchStream, End> {
        let [first, second] = ranges(&self.config.prefix);
        let options = |end: String| Some(WatchOptions::new().with_range(end).with_start_revision(self.listed + 1));
        let mut client = self.etcd.client.watch_client().max_decoding_message_size(MAX_MESSAGE);
        let both = async {
            let mut watch = client.watch(first.0, options(first.1)).await?;
            watch.watch(second.0, options(second.1)).await?;
            Ok(watch)
        };
        within(self.config.timeout, both).await.map_err(|e| lost(&e))
    }

    async fn follow(mut self, mut watch: WatchStream) -> Result<(), End> {
        // Tasks in the set end with it.
        let mut asides = JoinSet::new();
        self.beat(&mut asides);
        self.await_audit(&mut asides);
        loop {
            tokio::select! {
                // Cancel-safe: a stream's next message stays in the stream.
                message = watch.message() => match message {
                    Ok(Some(response)) => self.heard(&response).await?,
                    Ok(None) => return Err(End::Again(Relist::Disconnected, "the watch's stream ended".into())),
                    Err(error) => return Err(lost(&error.into())),
                },
                // Cancel-safe per its documentation.
                Some(aside) = asides.join_next() => match aside {
                    Ok(Aside::Beat(floor, beat)) => {
                        self.contact(floor, beat.map_err(|e| lost(&e))?)?;
                        self.beat(&mut asides);
                    }
                    Ok(Aside::AuditDue) => self.audit(&mut asides).await?,
                    Ok(Aside::Listing(listing)) => {
                        self.audited(listing).await?;
                        self.await_audit(&mut asides);
                    }
                    Err(error) => return Err(End::Again(Relist::Disconnected, error.to_string())),
                },
                () = self.sender.closed() => return Err(End::Closed),
            }
        }
    }

    fn beat(&self, asides: &mut JoinSet<Aside>) {
        let (etcd, pause) = (self.etcd.clone(), self.config.heartbeat);
        // Events that arrive while the heartbeat is under way may be newer than its answer.
        let floor = self.memory.last.map_or(0, |(_, revision)| revision);
        asides.spawn(async move {
            tokio::time::sleep(pause).await;
            Aside::Beat(floor, etcd.beat().await)
        });
    }

    fn contact(&mut self, floor: i64, (cluster, revision): (u64, i64)) -> Result<(), End> {
        let (before, last) = self.memory.last.unwrap_or((cluster, revision));
        if cluster != before || revision < floor {
            let message = format!("the store went back from revision {floor} to {revision}, or is another one");
            return Err(End::Again(Relist::Rollback, message));
        }
        self.memory.last = Some((cluster, revision.max(last)));
        // A sign of life is worth nothing when it is late.
        match self.sender.try_send(Message::Contact(revision)) {
            Err(TrySendError::Closed(_)) => Err(End::Closed),
            Ok(()) | Err(TrySendError::Full(_)) => Ok(()),
        }
    }

    fn await_audit(&self, asides: &mut JoinSet<Aside>) {
        let pause = self.config.audit;
        asides.spawn(async move {
            tokio::time::sleep(pause).await;
            Aside::AuditDue
        });
    }

    /// Begins an audit. Its listing is taken beside the watch, whose events go on. A key that has an event above the
    /// listing's revision is newer in the store than in the listing and is left out of the comparison. Events up to the
    /// listing's revision that are still on their way are waited for a moment; one that comes later still does no harm, for
    /// the listing has anticipated it, and the store ignores an event that is not newer than what it knows.
    async fn audit(&mut self, asides: &mut JoinSet<Aside>) -> Result<(), End> {
        self.send(Message::Relist(Relist::Audit)).await?;
        self.touched = Some(BTreeMap::new());
        let (listing, sender) = (Listing::new(&self.etcd, self.config), self.sender.clone());
        let settle = self.config.audit_settle;
        asides.spawn(async move {
            let listed = list_all(listing, &sender).await;
            tokio::time::sleep(settle).await;
            Aside::Listing(listed)
        });
        Ok(())
    }

    async fn audited(&mut self, listed: Result<(i64, u64), Error>) -> Result<(), End> {
        let (revision, cluster) = match listed {
            Ok(listed) => listed,
            // The heartbeat judges the server; an audit that fails is due again after the next pause.
            Err(error) => {
                tracing::warn!(%error, "an audit could not list the records");
                return Ok(());
            }
        };
        let Some(touched) = self.touched.take() else { return Ok(()) };
        if cluster != self.memory.last.map_or(cluster, |(cluster, _)| cluster) {
            return Err(End::Again(Relist::Rollback, "another cluster answered".into()));
        }
        let touched = touched.into_iter().filter(|(_, last)| *last > revision).map(|(key, _)| key).collect();
        self.send(Message::Audit { revision, touched }).await
    }

    async fn heard(&mut self, response: &WatchResponse) -> Result<(), End> {
        let received = Instant::now();
        if response.compact_revision() > 0 {
            let message = format!("compacted up to revision {}", response.compact_revision());
            return Err(End::Again(Relist::Compacted, message));
        }
        if response.canceled() {
            return Err(End::Again(Relist::WatchError, response.cancel_reason().to_owned()));
        }
        // Without fragments, which are not asked for, all events of a revision in one range come in one response, in the order
        // of revisions. Networks, nodes and endpoints are in one. Known faults of old servers break that order; what was missed then, only a listing tells.
        let mut revisions: BTreeMap<i64, Vec<Change>> = BTreeMap::new();
        for event in response.events() {
            let Some(kv) = event.kv() else { continue };
            // Only a deleted key has version 0. The client's own accessor panics on kinds of events that it does not know.
            let change = if kv.version() == 0 {
                Change::Delete { key: kv.key().to_vec(), revision: kv.mod_revision() }
            } else {
                Change::Put(record(kv.clone()))
            };
            revisions.entry(change.revision()).or_default().push(change);
        }
        for (revision, changes) in revisions {
            let delivered = self.delivered.entry(response.watch_id()).or_insert(self.listed);
            if revision <= *delivered {
                let message = format!("revision {revision} came after revision {delivered}");
                return Err(End::Again(Relist::WatchError, message));
            }
            *delivered = revision;
            if let Some((_, last)) = &mut self.memory.last {
                *last = revision.max(*last);
            }
            self.note(&changes);
            self.send(Message::Changes { revision, changes, received }).await?;
        }
        Ok(())
    }

    fn note(&mut self, changes: &[Change]) {
        let Some(touched) = &mut self.touched else { return };
        touched.extend(changes.iter().map(|change| (change.key().to_vec(), change.revision())));
        if touched.len() > MAX_TOUCHED {
            self.touched = None;
        }
    }
}

/// Sends all pages. Returns the revision and the cluster.
async fn list_all(mut listing: Listing, sender: &mpsc::Sender<Message>) -> Result<(i64, u64), Error> {
    while let Some(page) = listing.next().await? {
        let (revision, _) = listing.pinned.unwrap_or_default();
        // Where nobody listens any more the session ends by itself.
        let _ = sender.send(Message::Page { revision, page }).await;
    }
    listing.pinned.ok_or(Error::Headless)
}

/// The server was lost, unless it said that the revision is gone.
fn lost(error: &Error) -> End {
    let text = error.to_string();
    let reason = if text.contains("compacted") { Relist::Compacted } else { Relist::Disconnected };
    End::Again(reason, text)
}
