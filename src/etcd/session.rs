//! One session with one member: list where that is needed, then watch from the next revision on, until something breaks.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use etcd_client::{Client, WatchOptions, WatchRequestSender, WatchResponse, WatchResponseStream};
use futures::{
    FutureExt, StreamExt,
    stream::{self, BoxStream, SelectAll},
};
use tokio::sync::mpsc::{self, error::TrySendError};
use tracing::{info, warn};

use super::{
    config::{Config, MAX_MESSAGE},
    error::{Error, Fault, is_about_token},
    list::{Listing, Page, ranges, record},
    member::Member,
    position::{Beat, Position},
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
    /// More was missed while no server was there than is worth replaying.
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
    /// The member is of no use any more, or does not let us in. Another session goes on from where this one was.
    Lost(Error),
    /// Another session is to list everything.
    Relist(Relist, String),
}

/// What outlives a session.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// How far the store was heard; `None` asks for a listing.
    pub(super) position: Option<Position>,
    /// The highest revision that was ever told.
    told: Option<(u64, i64)>,
    /// When everything is to be listed although nothing seems to be wrong.
    audit: Option<Instant>,
    /// The session had a watch and an answered heartbeat: it was worth having.
    pub(super) proved: bool,
}

/// What a session waits for.
enum Input {
    Watch(Result<WatchResponse, etcd_client::Error>),
    WatchEnded,
    /// With the last revision that was known when the heartbeat was sent.
    Beat(i64, Result<Beat, Error>),
    AuditDue,
    /// The revision and the cluster that an audit listed.
    Listing(Result<(i64, u64), Error>),
    Closed,
}

type Inputs = SelectAll<BoxStream<'static, Input>>;

struct Session<'s> {
    config: &'s Config,
    member: Member,
    sender: &'s mpsc::Sender<Message>,
    memory: &'s mut Memory,
    position: Position,
    /// The identifiers of the watches, in the order of their ranges.
    watches: Vec<i64>,
    /// Asks the watch for signs of life.
    asking: WatchRequestSender,
    /// When the watch last said anything at all, and whether it was ever asked with success. Old servers do not answer.
    heard: (Instant, bool),
    beats: u32,
    /// Keys with events since the audit under way began, with their last revision.
    touched: Option<BTreeMap<Vec<u8>, i64>>,
}

/// More events than this during one audit, and it is given up until the next time.
const MAX_TOUCHED: usize = 100_000;

/// Every so many heartbeats a user's rights are looked at.
const RIGHTS: u32 = 5;

/// Runs one session to its end.
pub(super) async fn run(
    config: &Config,
    member: Member,
    sender: &mpsc::Sender<Message>,
    memory: &mut Memory,
    reason: Relist,
) -> End {
    memory.proved = false;
    match start(config, member, sender, memory, reason).await {
        Ok((session, watch)) => session.follow(watch).await.err().unwrap_or(End::Closed),
        Err(end) => end,
    }
}

async fn send(sender: &mpsc::Sender<Message>, message: Message) -> Result<(), End> {
    sender.send(message).await.map_err(|_| End::Closed)
}

/// Lists everything, or finds that the watch may go on from where it was, and opens it.
async fn start<'s>(
    config: &'s Config,
    member: Member,
    sender: &'s mpsc::Sender<Message>,
    memory: &'s mut Memory,
    mut reason: Relist,
) -> Result<(Session<'s>, WatchResponseStream), End> {
    let beat = member.beat().await.map_err(End::Lost)?;
    let mut position = memory.position.take();
    if let Some(known) = &mut position {
        if let Err((why, text)) = known.greet(&beat) {
            warn!(reason = why.as_str(), text, "everything is listed anew");
            (reason, position) = (why, None);
        } else {
            info!(url = member.place.url, revision = known.seen(), "the watch goes on at this member");
            send(sender, Message::Contact(known.seen())).await?;
        }
    }
    let mut position = match position {
        Some(position) => position,
        None => list(config, &member, sender, memory, &beat, reason).await?,
    };
    memory.position = Some(position.clone());
    let (asking, watch) = watch(&member, &position.resume()).await.map_err(End::Lost)?;
    let heard = (Instant::now(), false);
    let watches = Vec::new();
    let session = Session { config, member, sender, memory, position, watches, asking, heard, beats: 0, touched: None };
    Ok((session, watch))
}

async fn list(
    config: &Config,
    member: &Member,
    sender: &mpsc::Sender<Message>,
    memory: &mut Memory,
    beat: &Beat,
    reason: Relist,
) -> Result<Position, End> {
    send(sender, Message::Relist(reason)).await?;
    let mut listing = Listing::new(member, config);
    let mut next = listing.next().await.map_err(End::Lost)?;
    let (revision, cluster) = listing.pinned.ok_or(End::Lost(Error::Headless))?;
    let went_back = memory.told.is_some_and(|(before, last)| before != cluster || revision < last);
    if reason != Relist::Rollback && went_back {
        send(sender, Message::Relist(Relist::Rollback)).await?;
    }
    // The next page comes in while this one is taken.
    while let Some(page) = next {
        let (sent, after) = tokio::join!(send(sender, Message::Page { revision, page }), listing.next());
        sent?;
        next = after.map_err(End::Lost)?;
    }
    memory.told = Some((cluster, revision));
    let position = Position::listed(beat, revision, ranges(&config.prefix).len());
    send(sender, Message::Snapshot { revision, cluster }).await?;
    Ok(position)
}

/// One stream with a watch on each range, from these revisions on.
async fn watch(member: &Member, from: &[i64]) -> Result<(WatchRequestSender, WatchResponseStream), Error> {
    let ranges = ranges(&member.prefix);
    let wanted: Vec<_> = ranges
        .into_iter()
        .zip(from)
        .map(|((first, end), from)| (first, WatchOptions::new().with_range(end).with_start_revision(*from)))
        .collect();
    let open = |client: Client| {
        let mut client = client.watch_client().max_decoding_message_size(MAX_MESSAGE);
        let mut wanted = wanted.clone().into_iter();
        async move {
            let Some((first, options)) = wanted.next() else {
                return Err(etcd_client::Error::WatchError("nothing to watch".to_owned()));
            };
            let mut watch = client.watch(first, Some(options)).await?;
            for (first, options) in wanted {
                watch.watch(first, Some(options)).await?;
            }
            Ok(watch)
        }
    };
    Ok(member.call(member.patience, open).await?.split())
}

impl Session<'_> {
    async fn follow(mut self, watch: WatchResponseStream) -> Result<(), End> {
        let mut inputs: Inputs = SelectAll::new();
        let sender = self.sender.clone();
        inputs.push(watch.map(Input::Watch).chain(stream::once(async { Input::WatchEnded })).boxed());
        inputs.push(stream::once(async move { sender.closed().await }).map(|()| Input::Closed).boxed());
        self.await_beat(&mut inputs);
        self.await_audit(&mut inputs);
        while let Some(input) = inputs.next().await {
            match input {
                Input::Watch(Ok(response)) => self.heard(&response).await?,
                Input::Watch(Err(error)) => return Err(self.lost(&error)),
                Input::WatchEnded => {
                    return Err(End::Lost(self.member.fault(Fault::Lost("the watch's stream ended".to_owned()))));
                }
                Input::Beat(floor, beat) => {
                    self.contact(floor, &beat.map_err(End::Lost)?)?;
                    self.await_beat(&mut inputs);
                }
                Input::AuditDue => self.audit(&mut inputs).await?,
                Input::Listing(listing) => {
                    self.audited(listing).await?;
                    self.await_audit(&mut inputs);
                }
                Input::Closed => return Err(End::Closed),
            }
        }
        Err(End::Closed)
    }

    /// What the client says of the watch.
    fn lost(&self, error: &etcd_client::Error) -> End {
        match Error::of(&self.member.place.url, error) {
            Error::Compacted => End::Relist(Relist::Compacted, Error::Compacted.to_string()),
            error => End::Lost(error),
        }
    }

    fn await_beat(&mut self, inputs: &mut Inputs) {
        let (member, floor) = (self.member.clone(), self.position.seen());
        let pause = self.config.heartbeat;
        let rights = self.config.user.is_some() && self.beats % RIGHTS == RIGHTS - 1;
        self.beats = self.beats.wrapping_add(1);
        let beat = async move {
            tokio::time::sleep(pause).await;
            let beat = match member.beat().await {
                Ok(beat) if rights => member.may_read().await.map(|()| beat),
                outcome => outcome,
            };
            Input::Beat(floor, beat)
        };
        inputs.push(stream::once(beat).boxed());
    }

    fn contact(&mut self, floor: i64, beat: &Beat) -> Result<(), End> {
        self.position.beat(floor, beat).map_err(|(reason, why)| End::Relist(reason, why))?;
        let (last, answers) = self.heard;
        if answers && last.elapsed() > self.config.heartbeat + self.member.patience {
            return Err(End::Lost(self.member.fault(Fault::SilentWatch)));
        }
        // A watch that cannot even be asked will be found silent.
        let _ = self.asking.request_progress().now_or_never();
        self.memory.proved = true;
        self.remember();
        // A sign of life is worth nothing when it is late.
        match self.sender.try_send(Message::Contact(beat.revision)) {
            Err(TrySendError::Closed(_)) => Err(End::Closed),
            Ok(()) | Err(TrySendError::Full(_)) => Ok(()),
        }
    }

    /// From here another session may go on.
    fn remember(&mut self) {
        let seen = self.position.seen();
        if let Some((_, told)) = &mut self.memory.told {
            *told = seen.max(*told);
        }
        self.memory.position = Some(self.position.clone());
    }

    fn await_audit(&mut self, inputs: &mut Inputs) {
        let pause = self.config.audit;
        let due = *self.memory.audit.get_or_insert_with(|| Instant::now() + pause);
        inputs.push(stream::once(tokio::time::sleep_until(due.into())).map(|()| Input::AuditDue).boxed());
    }

    /// Begins an audit. Its listing is taken beside the watch, whose events go on. A key that has an event above the
    /// listing's revision is newer in the store than in the listing and is left out of the comparison. Events up to the
    /// listing's revision that are still on their way are waited for a moment; one that comes later still does no harm, for
    /// the listing has anticipated it, and the store ignores an event that is not newer than what it knows.
    async fn audit(&mut self, inputs: &mut Inputs) -> Result<(), End> {
        self.memory.audit = None;
        send(self.sender, Message::Relist(Relist::Audit)).await?;
        self.touched = Some(BTreeMap::new());
        let (listing, sender) = (Listing::new(&self.member, self.config), self.sender.clone());
        let settle = self.config.audit_settle;
        let listing = async move {
            let listed = list_all(listing, &sender).await;
            tokio::time::sleep(settle).await;
            Input::Listing(listed)
        };
        inputs.push(stream::once(listing).boxed());
        Ok(())
    }

    async fn audited(&mut self, listed: Result<(i64, u64), Error>) -> Result<(), End> {
        let (revision, cluster) = match listed {
            Ok(listed) => listed,
            // The heartbeat judges the server; an audit that fails is due again after the next pause.
            Err(error) => {
                warn!(%error, "an audit could not list the records");
                return Ok(());
            }
        };
        let Some(touched) = self.touched.take() else { return Ok(()) };
        if self.memory.told.is_some_and(|(told, _)| told != cluster) {
            return Err(End::Relist(Relist::Rollback, "another cluster answered".to_owned()));
        }
        let touched = touched.into_iter().filter(|(_, last)| *last > revision).map(|(key, _)| key).collect();
        send(self.sender, Message::Audit { revision, touched }).await?;
        self.position.audited(revision);
        self.remember();
        Ok(())
    }

    async fn heard(&mut self, response: &WatchResponse) -> Result<(), End> {
        let received = Instant::now();
        let asked = response.watch_id() < 0;
        self.heard = (received, self.heard.1 || asked);
        if response.compact_revision() > 0 {
            let why = format!("compacted up to revision {}", response.compact_revision());
            return Err(End::Relist(Relist::Compacted, why));
        }
        if response.canceled() {
            return Err(match response.cancel_reason() {
                why if why.contains("permission denied") => End::Lost(Error::Denied),
                // A watch keeps the token that it was opened with, and some servers look at that again.
                why if is_about_token(why) => End::Lost(Error::Token),
                why => End::Relist(Relist::WatchError, why.to_owned()),
            });
        }
        if response.created() {
            self.watches.push(response.watch_id());
        }
        let change = |kv: &etcd_client::KeyValue| {
            // Only a deleted key has version 0. The client's own accessor panics on kinds of events that it does not know.
            match kv.version() {
                0 => Change::Delete { key: kv.key().to_vec(), revision: kv.mod_revision() },
                _ => Change::Put(record(kv.clone())),
            }
        };
        let changes = response.events().iter().filter_map(|event| event.kv().map(change));
        let Some(range) = self.watches.iter().position(|watch| *watch == response.watch_id()) else { return Ok(()) };
        let revisions = self.position.heard(range, changes).map_err(|(reason, why)| End::Relist(reason, why))?;
        for (revision, changes) in revisions {
            self.note(&changes);
            send(self.sender, Message::Changes { revision, changes, received }).await?;
        }
        self.remember();
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
