//! The loop: runs the engines against the edges, on a few threads.
//!
//! etcd's messages go through the store-wide stage to the networks' mailboxes; each network's engine runs against
//! its kernel; the pages show where all of them stand.
//!
//! **Invariant:** a status says what was applied, wakes nobody, and is written only when it changed
//! (`what_each_agent_applied_and_rejected_stands_in_the_store_and_a_quiet_system_writes_nothing_more`).
//!
//! **Invariant:** memory is bounded: changes coalesce (`changes_of_one_endpoint_coalesce_to_the_newest`,
//! `large_updates_stay_as_they_are_until_there_are_many`), and a drop does not merge with what comes after it
//! (`a_drop_is_never_merged_into_what_comes_after_it`).
//!
//! **Invariant:** removals of links and namespaces run one network at a time (`Next::Alone`,
//! `what_must_be_done_alone_is_done_one_at_a_time_and_holds_up_no_other`), and a network that never rests keeps none from its turn
//! (`a_network_that_never_rests_keeps_no_other_from_its_turn`).
//!
//! **Invariant:** leftovers of earlier agents are removed only after the first complete snapshot of every layout (`Director::sweep`). Until
//! then a network whose namespace stands is read (`Director::read_what_stands`) and told nothing
//! (`a_shut_box_gives_nothing_until_it_is_opened`), one that does not stand is built from what was listed so far, and none is in sync
//! (`Board::known`).

mod addressees;
mod board;
mod claim;
mod director;
mod history;
mod journal;
mod keeper;
mod limits;
mod listening;
mod lock;
mod mailbox;
mod mounts;
mod network;
mod pace;
mod pages;
mod paths;
mod planning;
mod pool;
mod reading;
mod recent;
mod registration;
mod rehearsal;
mod settings;
mod status;
mod takedown;
mod underlay;

use std::{future::Future, io, net::SocketAddr, sync::Arc, time::Duration};

use thiserror::Error;
use tokio::{net::TcpListener, sync::mpsc};
use tracing::info;

use self::{
    claim::Claim, director::Director, history::History, keeper::Keeper, lock::Lock, network::Shared, pages::AgentPages,
    status::Reporter, underlay::Underlay,
};
pub use self::{
    planning::{NetworkPlan, PlannedOp, plan, read_for_plan},
    reading::{ReadStore, read_store},
    recent::{Episode, Outcome},
    settings::{Owner, Settings},
    status::{Blocked, Conflict, HeldNetwork, Lagging, Listed, Networks, NodeStatus, Rejection},
    takedown::cleanup,
};
use crate::{
    desired::{Outside, Source, Store, StoreConfig},
    etcd::{self, Etcd},
    http,
};

/// Messages of the store that wait for the director; a listing is one.
const MESSAGES: usize = 1024;

/// Why the agent cannot run, or cannot go on.
#[derive(Debug, Error)]
pub enum Error {
    /// Another agent of this instance runs on this host.
    #[error("another agent of instance {instance:?} holds {path}")]
    AlreadyRuns {
        /// The instance.
        instance: String,
        /// The lock file.
        path: String,
    },
    /// An agent of another instance, which runs on this host, holds what this one is told to use.
    #[error(
        "{setting} is what the agent of instance {instance:?} uses, which runs on this host: give each instance a --link-group, \
         --gateway-bridge, --gateway-subnet, --run-dir and --listen of its own"
    )]
    Rival {
        /// The setting that both have.
        setting: String,
        /// The other's instance.
        instance: String,
    },
    /// The run directory or the lock in it cannot be made.
    #[error("cannot use the run directory {path}: {error}")]
    RunDir {
        /// The directory.
        path: String,
        /// Why.
        error: io::Error,
    },
    /// The listen address cannot be bound.
    #[error("cannot listen on {address}: {error}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        error: io::Error,
    },
    /// The socket in the run directory cannot be made.
    #[error("cannot listen on {path}: {error}")]
    Socket {
        /// The socket.
        path: String,
        /// Why.
        error: io::Error,
    },
    /// Something that every system has is not to be had.
    #[error("{what}: {error}")]
    System {
        /// What.
        what: &'static str,
        /// Why.
        error: io::Error,
    },
    /// The series could not be registered.
    #[error("metrics: {0}")]
    Metrics(#[from] crate::metrics::Error),
    /// The kernel refused a read that nothing can be done without.
    #[error("{0}")]
    Kernel(#[from] crate::engine::Failure),
    /// The task or thread that listens to something ended although nobody asked it to.
    #[error("what listens to {0} died")]
    Deaf(&'static str),
    /// The thread that ran a network ended in the middle of it.
    #[error("the thread of network {0} died")]
    ThreadDied(crate::model::Name),
}

impl Error {
    /// Whether the settings make no sense here, so that starting again with the same helps nobody.
    pub fn is_about_settings(&self) -> bool {
        matches!(self, Self::Rival { .. } | Self::RunDir { .. })
    }
}

/// Runs until `shutdown` is there, then ends and leaves the datapath in place.
///
/// # Errors
/// It cannot start, or cannot go on. What etcd or the kernel refuses for now is no reason to end.
pub async fn run(settings: Settings, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
    let _lock = Lock::take(&settings.owner.run_dir, &settings.owner.instance)?;
    let _claim = Claim::take(&settings.owner, settings.with_outside)?;
    limits::raise_descriptors();
    let shared = Arc::new(settings.owner.shared(
        settings.netns_roots.clone(),
        settings.resync,
        settings.adopt_gateway_bridge,
    )?);
    let pages = Arc::new(AgentPages::new(Arc::clone(&shared)));
    let listen = |error| Error::Listen { address: settings.listen, error };
    let listener = TcpListener::bind(settings.listen).await.map_err(listen)?;
    let path = settings.socket();
    let local = http::bind_locally(&path).map_err(|error| Error::Socket { path: path.display().to_string(), error })?;
    info!(node = %settings.node, listen = %settings.listen, "starting");
    let served = AbortOnDrop(tokio::spawn(http::serve(listener, Arc::clone(&pages))));
    let served_locally = AbortOnDrop(tokio::spawn(http::serve_locally(local, Arc::clone(&pages))));
    tokio::pin!(shutdown);
    let outcome = tokio::select! {
        outcome = follow(&settings, shared, pages) => outcome,
        () = &mut shutdown => Ok(()),
    };
    drop((served, served_locally));
    info!("ended; the datapath stays in place");
    outcome
}

/// Registers the node, then follows the store.
async fn follow(settings: &Settings, shared: Arc<Shared>, pages: Arc<AgentPages>) -> Result<(), Error> {
    let etcd = Etcd::new(settings.etcd());
    let registration::Found { vtep, unregistered } = registration::find(settings, &etcd, &pages).await;
    let mut underlay = Underlay::new(vtep)?;
    let mut store = Store::new(StoreConfig {
        prefix: settings.prefix.trim_end_matches('/').to_owned(),
        docker_prefix: settings.docker_prefix.clone(),
        node: settings.node.clone(),
        vtep: settings.vtep,
        host_endpoints: settings.host_endpoints,
        underlay_mtu: underlay.mtu(),
        max_removal: settings.max_removal,
    });
    if unregistered {
        store.suppose_vtep(vtep);
    }
    let (given, node) = (settings.vtep.is_some(), settings.node.clone());
    let registering = registration::register(etcd.clone(), node, vtep, given);
    let registering = unregistered.then(|| AbortOnDrop(tokio::spawn(registering)));
    let watch = |error| Error::System { what: "cannot watch the namespace directories", error };
    let Owner { run_dir, instance, .. } = &settings.owner;
    keeper::remembered(run_dir, instance).into_iter().for_each(|memory| store.remember(memory));
    let mut paths = paths::watch(settings.watched_dirs()).map_err(watch)?;
    let (sender, mut native) = mpsc::channel(MESSAGES);
    let followed = AbortOnDrop(tokio::spawn(etcd::follow(etcd.clone(), sender)));
    // Without Docker's layout this channel is closed from the start, and never heard.
    let (sender, mut docker) = mpsc::channel(MESSAGES);
    let docker_etcd = settings.docker_prefix.as_deref().map(|prefix| etcd.below(prefix));
    let also_followed = docker_etcd.map(|etcd| AbortOnDrop(tokio::spawn(etcd::follow(etcd, sender))));
    let history = History::new(etcd.clone());
    let outside = Outside::new(settings.with_outside.then(|| settings.owner.outside.clone()));
    let keeper = Keeper::new(run_dir, instance, etcd.clone());
    let reporter = Reporter::new(etcd, settings.node.clone());
    let mut director = Director::new(Arc::clone(&shared), store, outside, pages, history, reporter, keeper)?;
    director.read_what_stands()?;
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    loop {
        tokio::select! {
            message = native.recv() => director.take(Source::Native, message.ok_or(Error::Deaf("etcd"))?)?,
            // Closed from the start where Docker's layout is not read.
            Some(message) = docker.recv() => director.take(Source::Docker, message)?,
            past = director.looked_back() => director.found(past),
            seen = paths.recv() => director.tell(&seen.ok_or(Error::Deaf("the namespace directories"))?),
            changed = underlay.changed() => changed?,
            _ = tick.tick() => director.tick()?,
        }
        director.on_underlay(&mut underlay)?;
        let _ = (&followed, &also_followed, &registering);
    }
}

/// A task that ends with its owner.
struct AbortOnDrop<T>(tokio::task::JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
