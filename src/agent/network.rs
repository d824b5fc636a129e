//! One network: its engine against its kernel, a short while at a time, on the threads of the pool.

use std::{
    os::fd::BorrowedFd,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use tracing::{debug, info, warn};

use super::{
    board::Board,
    journal::Journal,
    mailbox::Mailbox,
    pool::{Next, Pool, Work},
    recent::Recent,
};
use crate::{
    desired::OutsideConfig,
    engine::{Config, Event, Gateway, Home, Network, Op, Reconciler, Step, Time, step},
    kernel::{self, Listener, NetworkKernel},
    metrics::Metrics,
    model::{
        Name, guard_table,
        nft::{Family, TableId},
    },
};

/// How long a network works before it looks into its mailbox again, and others have their turn.
const SLICE: Duration = Duration::from_millis(4);

/// What all networks of an agent share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) instance: String,
    pub(super) netns_dir: PathBuf,
    pub(super) netns_roots: Vec<PathBuf>,
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
}

impl Shared {
    pub(super) fn now(&self) -> Time {
        Time::from_origin(self.origin.elapsed())
    }

    /// Where a network's overlay namespace is bound.
    pub(super) fn overlay_path(&self, network: &Name) -> PathBuf {
        self.netns_dir.join(kernel::netns_file_name(network))
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
        let path = self.overlay_path(network);
        Box::new(Network::new(config(Home::Overlay(path), guard_table(), Vec::new())))
    }
}

/// Whether operations are to be applied while no other network applies such: removing a bridge holds the lock of all netlink writers for
/// milliseconds, and whoever removes a link waits as long.
fn removes(ops: &[Op]) -> bool {
    ops.iter().any(|op| matches!(op, Op::DeleteLink { .. } | Op::DeleteNetns))
}

/// Starts a network. It ends when it is asked to stop, or when the network is neither desired nor there. `shut`, it reads what stands
/// and is told nothing until its mailbox is opened.
pub(super) fn start(
    name: Name,
    shared: Arc<Shared>,
    shut: bool,
    pool: &Pool,
    listener: &Arc<Listener>,
) -> Arc<Mailbox> {
    let waker = pool.waker();
    let for_mailbox = waker.clone();
    let mailbox = Arc::new(Mailbox::new(shut, move || for_mailbox.wake()));
    shared.board.add(&name);
    let for_kernel = waker.clone();
    let kernel = shared.kernel_of(&name).hears_by(Arc::clone(listener), move || for_kernel.wake());
    let running = Running {
        generation: kernel.generation(),
        kernel,
        engine: shared.engine_of(&name),
        journal: Journal::new(name.clone()),
        told: false,
        mailbox: Arc::clone(&mailbox),
        name: name.clone(),
        shared,
    };
    pool.add(&waker, name, Box::new(running));
    mailbox
}

struct Running {
    name: Name,
    shared: Arc<Shared>,
    mailbox: Arc<Mailbox>,
    kernel: NetworkKernel,
    engine: Box<dyn Reconciler>,
    journal: Journal,
    generation: u64,
    told: bool,
}

impl Work for Running {
    fn turn(&mut self, alone: bool) -> Next {
        let Self { name, shared, mailbox, kernel, engine, journal, generation, told } = self;
        let work = mailbox.take();
        if work.stop {
            return Next::Over;
        }
        journal.call(shared.board.begin(name));
        *told |= !work.updates.is_empty();
        engine.network().hold_removals(work.hold);
        for (update, received) in work.updates {
            engine.update(update, received);
        }
        match work.paths {
            Some(paths) => paths.into_iter().for_each(|path| engine.network().event(Event::Path(path), shared.now())),
            None => engine.network().resync("overrun", shared.now()),
        }
        let end = Instant::now() + SLICE;
        let mut stepped = Step::Done;
        while stepped == Step::Done && Instant::now() < end {
            stepped = step(&mut **engine, kernel, || shared.now(), |ops| alone || !removes(ops));
        }
        // Whoever sees a repair counted must not see how things stood before it.
        let summary = engine.summary();
        journal.blocked(&summary.blocked);
        let rests = matches!(stepped, Step::Rest(_) | Step::Gone);
        shared.board.end(name, summary, *told && rests, work.posted);
        for note in engine.take_notes() {
            shared.metrics.count(&note);
            shared.recent.note(journal.network(), &note);
            journal.write(&note);
        }
        if kernel.generation() != *generation {
            *generation = kernel.generation();
            if kernel.full_event_buffer() == Some(false) {
                warn!(network = %name, "no right to a large event buffer: overruns, each a full resync, come sooner");
            }
        }
        debug!(network = %name, turn = ?stepped, "turn");
        match stepped {
            Step::Done => Next::More,
            Step::Withheld => Next::Alone,
            Step::Rest(until) => Next::Rest(Instant::now() + until.since(shared.now())),
            Step::Gone if mailbox.close_if_empty(|| shared.board.remove(name)) => {
                info!(network = %name, "is not on this node any more");
                Next::Over
            }
            Step::Gone => Next::More,
        }
    }

    fn generation(&self) -> u64 {
        self.kernel.generation()
    }

    fn events(&self) -> Vec<BorrowedFd<'_>> {
        self.kernel.event_fds()
    }
}
