//! One network's thread: its engine against its kernel. Netlink answers while the request is being sent, so there is nothing
//! to await; a thread of its own keeps what blocks in one network from all others.

use std::{
    io,
    os::fd::AsFd,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tracing::{debug, error, info, warn};

use super::{board::Board, journal::Journal, mailbox::Mailbox, recent::Recent};
use crate::{
    desired::OutsideConfig,
    engine::{Answer, Config, Event, Failure, Gateway, Home, Kernel, Network, Op, Query, Reconciler, Time, Turn, turn},
    kernel::{self, NetworkKernel},
    metrics::Metrics,
    model::{
        Name, guard_table,
        nft::{Family, TableId},
    },
};

/// Effects between two looks at the mailbox.
const ROUNDS: usize = 64;

/// What all networks of an agent share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) instance: String,
    pub(super) netns_dir: std::path::PathBuf,
    pub(super) netns_roots: Vec<std::path::PathBuf>,
    pub(super) group: u32,
    /// The way outside, or what is to be taken down of it.
    pub(super) outside: OutsideConfig,
    /// Somebody else's bridge of that name is taken.
    pub(super) adopt: bool,
    pub(super) resync: Duration,
    pub(super) metrics: Metrics,
    pub(super) board: Board,
    /// The last drifts and what became of them.
    pub(super) recent: Recent,
    pub(super) origin: Instant,
    /// Removing a bridge holds the lock of all netlink writers for milliseconds: networks are taken down one at a time.
    pub(super) removal: Mutex<()>,
}

impl Shared {
    pub(super) fn now(&self) -> Time {
        Time::from_origin(self.origin.elapsed())
    }

    pub(super) fn kernel_of(&self, network: &Name) -> NetworkKernel {
        let config = crate::kernel::Config {
            instance: self.instance.clone(),
            network: network.clone(),
            netns_dir: self.netns_dir.clone(),
            netns_roots: self.netns_roots.clone(),
        };
        if *network == Name::host() { NetworkKernel::of_the_host(config) } else { NetworkKernel::new(config) }
    }

    pub(super) fn engine_of(&self, network: &Name) -> Box<dyn Reconciler> {
        let config = |home, guards, tables| {
            let (name, group, resync) = (network.clone(), self.group, self.resync);
            Config { name, home, group, resync, dump_at_most: Config::DUMP_AT_MOST, guards, tables }
        };
        if *network == Name::host() {
            let home = Home::Host { bridge: self.outside.bridge.clone(), adopt: self.adopt };
            // Other instances on the host have theirs.
            let guards = TableId::new(Family::Netdev, format!("vtepd-{}", self.instance));
            return Box::new(Gateway::new(
                config(home, guards, vec![self.outside.table.clone()]),
                self.outside.clone(),
            ));
        }
        let path = self.netns_dir.join(kernel::netns_file_name(network));
        Box::new(Network::new(config(Home::Overlay(path), guard_table(), Vec::new())))
    }
}

/// A kernel that removes links only while no other network does.
pub(super) struct OneRemovalAtATime<'a> {
    pub(super) kernel: &'a mut NetworkKernel,
    pub(super) removal: &'a Mutex<()>,
}

impl Kernel for OneRemovalAtATime<'_> {
    fn read(&mut self, query: &Query) -> Result<Answer, Failure> {
        self.kernel.read(query)
    }

    fn apply(&mut self, ops: &[Op]) -> Vec<Result<(), Failure>> {
        let removes = ops.iter().any(|op| matches!(op, Op::DeleteLink { .. } | Op::DeleteNetns));
        let _turn = removes.then(|| self.removal.lock().unwrap_or_else(PoisonError::into_inner));
        self.kernel.apply(ops)
    }

    fn events(&mut self) -> Vec<Event> {
        self.kernel.events()
    }
}

/// Starts a network's thread. It ends when it is asked to stop, or when the network is neither desired nor there. `shut`, it reads
/// what stands and is told nothing until its mailbox is opened.
///
/// # Errors
/// The thread could not be made.
pub(super) fn start(name: Name, shared: Arc<Shared>, shut: bool) -> io::Result<(Arc<Mailbox>, thread::JoinHandle<()>)> {
    let mailbox = Arc::new(Mailbox::new(shut)?);
    shared.board.add(&name);
    let for_thread = Arc::clone(&mailbox);
    let thread = thread::Builder::new().name(format!("net {name}")).spawn(move || run(&name, &shared, &for_thread))?;
    Ok((mailbox, thread))
}

fn run(name: &Name, shared: &Shared, mailbox: &Mailbox) {
    let mut kernel = shared.kernel_of(name);
    let mut engine = shared.engine_of(name);
    let mut journal = Journal::new(name.clone());
    let mut generation = kernel.generation();
    let mut told = false;
    loop {
        let work = mailbox.take();
        if work.stop {
            return;
        }
        journal.call(shared.board.begin(name));
        told |= !work.updates.is_empty();
        engine.network().hold_removals(work.hold);
        for (update, received) in work.updates {
            engine.update(update, received);
        }
        match work.paths {
            Some(paths) => paths.into_iter().for_each(|path| engine.network().event(Event::Path(path), shared.now())),
            None => engine.network().resync("overrun", shared.now()),
        }
        let mut paced = OneRemovalAtATime { kernel: &mut kernel, removal: &shared.removal };
        let turn = turn(&mut *engine, &mut paced, || shared.now(), ROUNDS);
        // Whoever sees a repair counted must not see how things stood before it.
        let summary = engine.summary();
        journal.blocked(&summary.blocked);
        shared.board.end(name, summary, told && turn != Turn::More, work.posted);
        for note in engine.take_notes() {
            shared.metrics.count(&note);
            shared.recent.note(journal.network(), &note);
            journal.write(&note);
        }
        if kernel.generation() != generation {
            generation = kernel.generation();
            if kernel.full_event_buffer() == Some(false) {
                warn!(network = %name, "no right to a large event buffer: overruns, each a full resync, come sooner");
            }
        }
        match turn {
            Turn::More => {}
            Turn::Gone => {
                if mailbox.close_if_empty(|| shared.board.remove(name)) {
                    info!(network = %name, "is not on this node any more");
                    return;
                }
            }
            Turn::Rest(until) => {
                if let Err(error) = wait(mailbox, &kernel, until.since(shared.now())) {
                    error!(network = %name, %error, "cannot wait for events; looking again in a second");
                    thread::sleep(Duration::from_secs(1));
                }
            }
        }
        debug!(network = %name, ?turn, "turn");
    }
}

/// Waits until something was put in the mailbox, an event came, or the time is over.
fn wait(mailbox: &Mailbox, kernel: &NetworkKernel, most: Duration) -> Result<(), nix::errno::Errno> {
    let events = kernel.event_fds();
    let mailbox = mailbox.readable();
    let mut fds: Vec<PollFd<'_>> =
        events.iter().map(AsFd::as_fd).chain([mailbox]).map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
    // Rounded up: a wait that ends before its time would turn for nothing.
    let millis = most.as_millis().saturating_add(1);
    let timeout = PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX);
    match poll(&mut fds, timeout) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
        Err(error) => Err(error),
    }
}
