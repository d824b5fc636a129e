//! Takes the store's messages, runs them through the store-wide stage, and gives every network its share.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use tracing::{info, warn};

use super::{
    Error,
    addressees::Addressees,
    history::{History, Past},
    keeper::Keeper,
    listening::Listening,
    mailbox::Mailbox,
    network::{self, Shared},
    pace::Pace,
    pages::AgentPages,
    paths::Seen,
    pool::Pool,
    status::Reporter,
    underlay::Underlay,
};
use crate::{
    desired::{Conflict, Excess, Outside, Source, Store, Update},
    engine::Time,
    etcd::{Message, Relist},
    kernel,
    model::Name,
};

/// So many records that are left out are named in the log; the metrics count all.
const SAID: usize = 256;

/// Saying what is not as it should be passes over all of it; it takes at most this share of the time.
const SAYING_SHARE: u32 = 50;

/// So many lines a second about records.
const LINES: u32 = 200;

struct Running {
    mailbox: Arc<Mailbox>,
}

/// The director.
pub(super) struct Director {
    shared: Arc<Shared>,
    store: Store,
    outside: Outside,
    pages: Arc<AgentPages>,
    running: BTreeMap<Name, Running>,
    /// Networks whose namespaces were there before, until everything was listed.
    standing: BTreeSet<Name>,
    listening: Listening,
    /// Ends before what it runs is dropped.
    pool: Pool,
    addressees: Addressees,
    swept: bool,
    /// The layouts whose watch has no server.
    lost: BTreeSet<Source>,
    history: History,
    reporter: Reporter,
    keeper: Keeper,
    /// Records that were said to be left out.
    said: BTreeSet<String>,
    /// Networks that were said to exceed the underlay.
    exceeding: BTreeSet<String>,
    pace: Pace,
    /// Something may be to say about what is left out or exceeds the underlay, and when that was last said.
    unsaid: bool,
    said_at: Instant,
    /// How long saying it took.
    saying_took: Duration,
    /// Networks whose removals are held.
    held: BTreeSet<Name>,
}

impl Director {
    pub(super) fn new(
        shared: Arc<Shared>,
        store: Store,
        outside: Outside,
        pages: Arc<AgentPages>,
        history: History,
        reporter: Reporter,
        keeper: Keeper,
    ) -> Result<Self, Error> {
        let (pool, listening) = (Pool::start(), Listening::start()?);
        let pool = pool.map_err(|error| Error::System { what: "cannot start the networks' threads", error })?;
        Ok(Self {
            shared,
            store,
            outside,
            pages,
            running: BTreeMap::new(),
            standing: BTreeSet::new(),
            listening,
            pool,
            addressees: Addressees::new(),
            swept: false,
            lost: BTreeSet::new(),
            history,
            reporter,
            keeper,
            said: BTreeSet::new(),
            exceeding: BTreeSet::new(),
            pace: Pace::new(LINES),
            unsaid: true,
            said_at: Instant::now(),
            saying_took: Duration::ZERO,
            held: BTreeSet::new(),
        })
    }

    /// Takes a message of the etcd edge about one layout.
    pub(super) fn take(&mut self, source: Source, message: Message) -> Result<(), Error> {
        match message {
            Message::Relist(reason) => {
                if reason == Relist::Rollback {
                    warn!(?source, "the store went back in time, or another one took its place");
                }
                self.pages.relist(reason.as_str());
                if reason == Relist::Rollback {
                    self.store.went_back();
                }
                self.store.begin_listing(source, reason == Relist::Audit);
                return Ok(());
            }
            Message::Page { page, .. } => {
                let updates = self.store.list(source, page.records, page.endpoints);
                self.dispatch(updates, self.shared.now());
            }
            Message::Snapshot { revision, cluster } => {
                self.store.hear_from(cluster);
                info!(?source, revision, "listed the store");
                let updates = self.store.listed(source, revision);
                // At the start what is bad may have been good: until its past is known nothing of it is removed.
                let bad = self.store.without_predecessor().filter(|_| !self.swept);
                let bad: Vec<(Vec<u8>, i64)> = bad.map(|(key, since)| (key.to_vec(), since)).collect();
                bad.iter().for_each(|(key, _)| self.store.history_lost(key));
                self.history.ask(bad);
                self.dispatch(updates, self.shared.now());
                self.sweep();
                self.pages.listed(revision);
                self.contact(source, revision);
                self.pages.audited();
            }
            Message::Changes { revision, changes, received } => {
                let updates = self.store.changes(revision, changes);
                let received = Time::from_origin(received.saturating_duration_since(self.shared.origin));
                self.dispatch(updates, received);
                self.contact(source, revision);
            }
            Message::Audit { revision, touched } => {
                let audited = self.store.audited(source, revision, &touched);
                if audited.differences > 0 {
                    warn!(?source, revision, records = audited.differences, "the audit found what no event had told");
                }
                self.dispatch(audited.updates, self.shared.now());
                self.pages.audited();
            }
            Message::Contact(revision) => {
                self.contact(source, revision);
                return Ok(());
            }
            Message::Disconnected(error) => {
                warn!(?source, error, "etcd is out of reach; what stands in the kernel is kept right as it is");
                self.lost.insert(source);
                self.pages.disconnected();
                return Ok(());
            }
        }
        self.say();
        Ok(())
    }

    /// Waits until something is known of the past of a bad record.
    pub(super) async fn looked_back(&mut self) -> Past {
        self.history.next().await
    }

    /// Takes what is known of the past of a bad record.
    pub(super) fn found(&mut self, past: Past) {
        let updates = self.history.take(&mut self.store, past);
        self.dispatch(updates, self.shared.now());
        self.say();
    }

    /// Says where the store-wide stage stands.
    fn say(&mut self) {
        for rejected in self.store.take_new_rejections() {
            if self.pace.allows(say_suppressed) {
                warn!(%rejected, "rejected a record; its last good version stays in force");
            }
        }
        self.name();
        self.unsaid |= self.store.take_reportable();
        if self.said_at.elapsed() >= self.saying_took * SAYING_SHARE {
            self.say_what_stands();
        }
        self.pages.heard(self.store.is_complete(), self.store.revision());
    }

    /// Says what is not as it should be, if that may have changed. It passes over all of that, and so is not done for each of many changes.
    fn say_what_stands(&mut self) {
        if !std::mem::take(&mut self.unsaid) {
            return;
        }
        let began = Instant::now();
        self.say_what_is_left_out();
        self.say_what_exceeds();
        self.pages.counted(&self.store.counts());
        self.said_at = Instant::now();
        self.saying_took = began.elapsed();
    }

    /// The underlay link and this node's VTEP address follow each other.
    pub(super) fn on_underlay(&mut self, underlay: &mut Underlay) -> Result<(), Error> {
        if let Some(vtep) = self.store.vtep() {
            underlay.follow(vtep);
        }
        let mtu = underlay.mtu();
        if self.store.underlay_mtu() != mtu {
            let updates = self.store.set_underlay_mtu(mtu);
            self.dispatch(updates, self.shared.now());
            self.say();
        }
        Ok(())
    }

    /// Says, once each, which networks ask for an MTU that the underlay does not carry.
    fn say_what_exceeds(&mut self) {
        let said = self.store.excesses().map(|Excess { key, mtu, overhead, underlay }| {
            format!("{key}: mtu: {mtu} and {overhead} bytes of VXLAN do not fit the underlay's {underlay}")
        });
        let now: BTreeSet<String> = said.take(SAID).collect();
        for record in now.difference(&self.exceeding) {
            warn!(record, "made as asked, but its full-sized frames cross the underlay in fragments, if at all");
        }
        self.exceeding = now;
    }

    /// Says, once each, which records lost a claim and which cannot be made here.
    fn say_what_is_left_out(&mut self) {
        let lost = self.store.conflicts().map(|conflict| {
            let Conflict { key, field, claim, holder } = conflict;
            format!("{key}: {field}: {claim} belongs to {holder}, which is older; taken when that goes")
        });
        let blocked =
            self.store.blocked().map(|blocked| format!("{}: Blocked: {}", blocked.key, blocked.reason.as_str()));
        let now: BTreeSet<String> = lost.chain(blocked).take(SAID).collect();
        for record in now.difference(&self.said) {
            if self.pace.allows(say_suppressed) {
                warn!(record, "left out a record");
            }
        }
        self.said = now;
    }

    /// The server answered one of the watches; it is there when it answers all of them.
    fn contact(&mut self, source: Source, revision: i64) {
        self.lost.remove(&source);
        self.pages.contact(revision, self.lost.is_empty());
    }

    /// What the networks are called may change with the records of others.
    fn name(&mut self) {
        if !self.store.take_renamed() {
            return;
        }
        for name in self.running.keys() {
            self.shared.board.named(name, self.store.shown_name(name));
        }
    }

    /// Gives the networks their shares. Removals are held before anything could be removed, and let go only when what may
    /// desire it was told.
    fn dispatch(&mut self, updates: BTreeMap<Name, Update>, received: Time) {
        let bad = self.store.held().into_iter().map(|(name, bad)| (name, bad.to_string()));
        let absent = self.store.unsure().map(|(name, reason)| (name.clone(), reason.as_str().to_owned()));
        let mut held: BTreeMap<Name, String> = bad.chain(absent).collect();
        // What leads outside from that network's endpoints stays as well.
        if let Some(because_of) = held.values().next().cloned() {
            held.insert(Name::host(), because_of);
        }
        for (name, because_of) in held.iter().filter(|(name, _)| !self.held.contains(*name)) {
            if *name != Name::host() {
                warn!(network = %name, because_of, "nothing of the network is removed from the kernel while this is so");
            }
            self.running.get(name).into_iter().for_each(|running| running.mailbox.hold(true));
        }
        let released = std::mem::replace(&mut self.held, held.into_keys().collect());
        let outside = self.outside.follow(&updates, &self.store.vxlan_ports()).map(|update| (Name::host(), update));
        for (name, update) in updates.into_iter().chain(outside) {
            self.give(&name, update, received);
        }
        for name in released.difference(&self.held) {
            if *name != Name::host() {
                info!(network = %name, "removals go on");
            }
            self.running.get(name).into_iter().for_each(|running| running.mailbox.hold(false));
        }
    }

    /// Gives a network its share; a network that comes to be here is started.
    fn give(&mut self, name: &Name, update: Update, received: Time) {
        self.addressees.follow(name, &update);
        let left = match self.running.get(name) {
            Some(running) => running.mailbox.update(update, received),
            None => Some(update),
        };
        if let Some(update) = left.filter(|update| matches!(update.spec, Some(Some(_)))) {
            self.start(name).update(update, received);
        }
        if let Some(running) = self.running.get(name) {
            self.shared.board.posted(name, running.mailbox.posted());
            self.shared.board.named(name, self.store.shown_name(name));
        }
    }

    fn start(&mut self, name: &Name) -> Arc<Mailbox> {
        // It shows itself from its first turn on, and by the right name.
        self.shared.board.posted(name, 0);
        self.shared.board.named(name, self.store.shown_name(name));
        let (listener, shut) = (self.listening.listener(), self.standing.contains(name));
        let mailbox = network::start(name.clone(), Arc::clone(&self.shared), shut, &self.pool, listener);
        mailbox.hold(self.held.contains(name));
        self.addressees.started(name, self.shared.overlay_path(name));
        self.running.insert(name.clone(), Running { mailbox: Arc::clone(&mailbox) });
        mailbox
    }

    /// After the first complete snapshot of all layouts: what earlier agents of this instance left and nothing desires is taken down.
    fn sweep(&mut self) {
        if !self.store.is_complete() || std::mem::replace(&mut self.swept, true) {
            return;
        }
        self.shared.board.known();
        let unlisted: Vec<Name> = self.standing.iter().filter(|name| !self.store.is_told(name)).cloned().collect();
        self.store.find_unlisted(unlisted);
        self.dispatch(BTreeMap::new(), self.shared.now());
        let revision = self.store.revision();
        let nothing = || Update { revision, spec: Some(None), endpoints: Vec::new() };
        for name in std::mem::take(&mut self.standing) {
            if self.store.is_told(&name) {
                self.running.get(&name).into_iter().for_each(|running| running.mailbox.open());
                continue;
            }
            if !self.held.contains(&name) {
                info!(network = %name, "nothing desires it any more; taking it down");
            }
            self.give(&name, nothing(), self.shared.now());
            self.running.get(&name).into_iter().for_each(|running| running.mailbox.open());
        }
        // Of the host's own it is not known yet whether anything is left.
        if !self.running.contains_key(&Name::host()) {
            self.start(&Name::host()).update(nothing(), self.shared.now());
        }
    }

    /// Begins to read what earlier agents left, while the store is being listed. What is told of such a network waits until
    /// everything was listed: what stands may be right, and what is told before that wrong ([`Store::list`]).
    pub(super) fn read_what_stands(&mut self) -> Result<(), Error> {
        let owned = kernel::owned(Path::new(&self.shared.netns_dir), &self.shared.instance)?;
        for unreadable in &owned.unreadable {
            warn!("cannot tell whose namespace this is: {unreadable:?}");
        }
        self.standing = owned.networks.into_iter().collect();
        for name in self.standing.clone() {
            self.start(&name);
        }
        Ok(())
    }

    /// Tells those networks what was seen in the namespace directories that wait for it.
    pub(super) fn tell(&self, seen: &[Seen]) {
        for seen in seen {
            match seen {
                Seen::Path(path) => {
                    for running in self.addressees.of(path).filter_map(|name| self.running.get(name)) {
                        running.mailbox.path(path.clone());
                    }
                }
                Seen::Lost => {
                    for running in self.running.values() {
                        running.mailbox.paths_lost();
                    }
                }
            }
        }
    }

    /// Once a second: the loop turns, and so do the threads.
    pub(super) fn tick(&mut self) -> Result<(), Error> {
        self.pages.turned();
        self.say_what_stands();
        self.pace.turn(say_suppressed);
        let held = self.keeper.look(&self.store);
        self.pages.held(&held);
        self.reporter.look(&self.store, &self.shared.board.totals(), &held);
        let (addressees, shared) = (&mut self.addressees, &self.shared);
        self.running.retain(|name, running| {
            let closed = running.mailbox.is_closed();
            if closed {
                addressees.ended(&shared.overlay_path(name));
            }
            !closed
        });
        match self.pool.died() {
            Some(name) => Err(Error::ThreadDied(name)),
            None if self.listening.died() => Err(Error::Deaf("the endpoints' namespaces")),
            None => Ok(()),
        }
    }
}

fn say_suppressed(records: u64) {
    warn!(records, "more records were rejected or left out than was written here");
}

impl Drop for Director {
    fn drop(&mut self) {
        self.keeper.end(&self.store);
        for running in self.running.values() {
            running.mailbox.stop();
        }
    }
}
