//! Edge: namespaces, sockets, encoding, decoding, batches and events. The only user of netlink.
//!
//! What is written here about the kernel's behaviour was tried on Linux 6.18, or read in its source (`net/core/rtnetlink.c`,
//! `net/core/neighbour.c`, `net/netlink/af_netlink.c`, `drivers/net/vxlan/`, `net/bridge/`).
//!
//! **Invariant:** what somebody else has is left alone (`what_somebody_else_has_at_the_path_is_left_alone`,
//! `a_foreign_namespace_of_that_name_is_left_alone`, `a_device_of_the_host_with_the_same_name_is_no_obstacle_and_stays`).
//!
//! **Invariant:** every operation gets its own result and a failure stops nothing
//! (`six_hundred_operations_get_a_result_each_and_failures_stop_nothing`); every wait has an end
//! (`a_kernel_that_does_not_answer_is_not_waited_for_without_end`).
//!
//! **Invariant:** no path of the store leads out of the roots (`only_plain_names_below_a_root_are_beneath_it`,
//! `paths_that_are_not_an_endpoints_namespace_are_told_apart`).
//!
//! **Invariant:** what the host has is no endpoint's (`a_link_of_that_name_that_the_host_has_already_is_never_touched`), and its other
//! links cost no look (`what_happens_to_other_links_of_the_host_costs_no_look`).
//!
//! **Invariant:** no endpoint's namespace is pinned (`foreign_changes_in_an_endpoints_namespace_are_heard_without_pinning_it`).
//!
//! **Invariant:** a dump proves presence, never absence: what it does not show is looked up point by point before it counts
//! (`observe_fdb_dump`), and a dump that was interrupted is an error (`RequestSocket::dump`).

mod decode;
mod encode;
mod error;
mod forwarding;
mod host;
mod inner;
mod listener;
mod monitor;
mod netns;
pub mod nft;
mod ops;
mod queries;
mod reclaim;
mod removal;
mod routes;
mod rules;
mod settings;
mod socket;
mod underlay;
mod wire;

use std::{
    os::fd::BorrowedFd,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use error::Error;
use inner::Opened;
use listener::Inbox;
use monitor::Monitor;
use netns::{Found, Held};
use rules::Rules;
use socket::RouteSocket;

use crate::{
    engine::{Answer, Event, Failure, Family, InnerAt, InnerState, Kernel, LinkRef, NetnsId, NetnsState, Op, Query},
    model::{Name, Netns},
};

/// A reading of an endpoint's namespace that takes longer than this is made less often.
const SLOW_READ: Duration = Duration::from_millis(2);

pub use host::{HostEvent, HostMonitor};
pub use listener::Listener;
pub use netns::{DEFAULT_DIR as DEFAULT_NETNS_DIR, Owned, file_name as netns_file_name, mark as netns_mark, owned};
pub use underlay::{UnderlayLink, source_towards, underlay_link};

/// Which network's kernel, and where its namespaces may be.
#[derive(Clone, Debug)]
pub struct Config {
    /// The instance of the agent that owns the namespace.
    pub instance: String,
    /// The network.
    pub network: Name,
    /// Where overlay namespaces are bound ([`DEFAULT_NETNS_DIR`]).
    pub netns_dir: PathBuf,
    /// Beneath which directories an endpoint's namespace may be.
    pub netns_roots: Vec<PathBuf>,
}

/// The real kernel of one network. Its callers' thread must be in the host's network namespace.
///
/// While the overlay namespace stands, sockets in it are held open; a namespace that is gone stays in the kernel,
/// with its VNIs, until they are closed, which [`Query::Netns`] does when it finds the path empty or bound to another one.
#[derive(Debug)]
pub struct NetworkKernel {
    config: Config,
    home: Home,
    overlay: Option<Overlay>,
    generation: u64,
    endpoints: Option<Endpoints>,
}

/// How a network hears of its endpoints' namespaces.
#[derive(Debug)]
struct Endpoints {
    listener: Arc<Listener>,
    inbox: Arc<Inbox>,
    /// Nobody else empties the listener.
    own: bool,
}

impl Endpoints {
    fn new(listener: Arc<Listener>, own: bool, wake: impl Fn() + Send + Sync + 'static) -> Self {
        let inbox = listener.inbox(Box::new(wake));
        Self { listener, inbox, own }
    }
}

/// Where the network's bridges are.
#[derive(Debug)]
enum Home {
    /// In a namespace of their own, bound to the path, with the mark.
    Overlay { path: PathBuf, mark: String },
    /// In the host's own.
    Host,
}

/// The namespace of the network's bridges, open.
#[derive(Debug)]
struct Overlay {
    id: NetnsId,
    socket: RouteSocket,
    monitor: Monitor,
    rules: Rules,
}

impl Overlay {
    /// Opens the sockets, which keep the namespace and its inode number.
    fn open(netns: &Held, on_host: bool) -> Result<Self, Error> {
        let open = || Ok((RouteSocket::open()?, Monitor::open(on_host)?, Rules::open()));
        let (socket, monitor, rules) = netns.enter(open)?;
        Ok(Self { id: netns.id, socket, monitor, rules })
    }
}

impl NetworkKernel {
    /// Makes the edge. Nothing is opened before the first [`Query::Netns`] or [`Op::CreateNetns`]. It hears of its endpoints'
    /// namespaces by a listener of its own, unless [`Self::hears_by`] gives it one.
    pub fn new(config: Config) -> Self {
        let path = config.netns_dir.join(netns::file_name(&config.network));
        let mark = netns::mark(&config.instance, &config.network);
        Self { config, home: Home::Overlay { path, mark }, overlay: None, generation: 0, endpoints: None }
    }

    /// Makes the edge of a network whose home is the host's own namespace.
    pub const fn of_the_host(config: Config) -> Self {
        Self { config, home: Home::Host, overlay: None, generation: 0, endpoints: None }
    }

    /// Hears of its endpoints' namespaces by a listener that the networks of the host share, and that somebody else empties;
    /// `wake` is called when [`Kernel::events`] has something of it.
    pub fn hears_by(mut self, listener: Arc<Listener>, wake: impl Fn() + Send + Sync + 'static) -> Self {
        self.endpoints = Some(Endpoints::new(listener, false, wake));
        self
    }

    fn endpoints(&mut self) -> Result<&Endpoints, Error> {
        if self.endpoints.is_none() {
            let listener =
                Listener::open().map_err(|failure| Error::new(nix::errno::Errno::EMFILE, failure.message))?;
            self.endpoints = Some(Endpoints::new(Arc::new(listener), true, || ()));
        }
        self.endpoints.as_ref().ok_or_else(|| Error::torn("no listener"))
    }

    /// The event sockets, to wait on for readability; none while the overlay namespace is not open. They are others whenever
    /// [`Self::generation`] has changed: a duplicate must be closed then at once, since it pins the namespace as the socket did.
    /// [`Kernel::events`] has emptied them when it returns nothing.
    pub fn event_fds(&self) -> Vec<BorrowedFd<'_>> {
        let own = self.endpoints.iter().filter(|endpoints| endpoints.own && self.overlay.is_some());
        let own = own.map(|endpoints| endpoints.listener.fd());
        self.overlay
            .iter()
            .flat_map(|overlay| [overlay.monitor.fd()].into_iter().chain(overlay.rules.fd()))
            .chain(own)
            .collect()
    }

    /// Changes whenever the event sockets were opened or closed.
    pub const fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether the event sockets have the receive buffer that was asked for. In a user namespace `rmem_max` bounds it, and
    /// overruns come sooner.
    pub fn full_event_buffer(&self) -> Option<bool> {
        self.overlay.as_ref().map(|overlay| overlay.monitor.full_buffer())
    }

    fn overlay(&mut self) -> Result<&mut Overlay, Error> {
        self.overlay.as_mut().ok_or_else(|| Error::new(nix::errno::Errno::ENOENT, "the overlay namespace is not open"))
    }

    fn set_overlay(&mut self, overlay: Option<Overlay>) {
        if self.overlay.is_some() || overlay.is_some() {
            self.generation = self.generation.wrapping_add(1);
            if let Some(Endpoints { listener, inbox, .. }) = &self.endpoints {
                listener.forget(inbox);
            }
        }
        self.overlay = overlay;
    }

    /// What stands at the path; what is open follows it.
    fn look(&mut self) -> Result<NetnsState, Error> {
        let (path, mark) = match &self.home {
            Home::Overlay { path, mark } => (path.clone(), mark.clone()),
            Home::Host => return self.look_at_home().map(NetnsState::Ours),
        };
        let held = match netns::find(&path)? {
            Found::Namespace(held) => held,
            Found::Absent => {
                self.set_overlay(None);
                return Ok(NetnsState::Absent);
            }
            Found::Foreign => {
                self.set_overlay(None);
                return Ok(NetnsState::Foreign);
            }
        };
        let id = held.id;
        if self.open_is(id) {
            let alias = netns::alias_of_lo(&mut self.overlay()?.socket)?;
            return if alias.as_deref() == Some(&mark) {
                Ok(NetnsState::Ours(id))
            } else {
                self.set_overlay(None);
                Ok(NetnsState::Foreign)
            };
        }
        self.set_overlay(None);
        if held.alias()?.as_deref() != Some(&mark) {
            return Ok(NetnsState::Foreign);
        }
        self.set_overlay(Some(Overlay::open(&held, false)?));
        Ok(NetnsState::Ours(id))
    }

    fn open_is(&self, id: NetnsId) -> bool {
        self.overlay.as_ref().is_some_and(|overlay| overlay.id == id)
    }

    fn set_forwarding(&mut self, family: Family, on: bool) -> Result<(), Error> {
        self.hold_home()?.enter(|| forwarding::set(family, on))?;
        if matches!(self.home, Home::Host) {
            tracing::warn!(
                ?family,
                on,
                "the host forwards from now on, between all its links: the way outside needs it"
            );
        }
        Ok(())
    }

    /// The host's own namespace is always there, and no other comes in its place.
    fn look_at_home(&mut self) -> Result<NetnsId, Error> {
        if let Some(overlay) = &self.overlay {
            return Ok(overlay.id);
        }
        let held = netns::hold_own()?;
        let id = held.id;
        self.set_overlay(Some(Overlay::open(&held, true)?));
        Ok(id)
    }

    /// The namespace that is open, by its path: a descriptor of it is not kept.
    fn hold_home(&mut self) -> Result<Held, Error> {
        let id = self.overlay()?.id;
        let held = match &self.home {
            Home::Host => Some(netns::hold_own()?),
            Home::Overlay { path, .. } => match netns::find(path)? {
                Found::Namespace(held) => Some(held),
                Found::Absent | Found::Foreign => None,
            },
        };
        let gone = || Error::new(nix::errno::Errno::ENOENT, "the overlay namespace is not at its path any more");
        held.filter(|held| held.id == id).ok_or_else(gone)
    }

    /// Path and mark of the overlay namespace; the host's own is neither made nor removed.
    fn removable(&self) -> Result<(PathBuf, String), Error> {
        match &self.home {
            Home::Overlay { path, mark } => Ok((path.clone(), mark.clone())),
            Home::Host => {
                Err(Error::new(nix::errno::Errno::EINVAL, "the host's namespace is neither made nor removed"))
            }
        }
    }

    /// The container's end of an endpoint. What happens there is heard before it is read.
    fn inner(&mut self, at: &InnerAt) -> Result<Answer, Error> {
        let (held, mut socket) = match inner::open_netns(&self.config.netns_roots, &at.netns)? {
            Opened::NoNetns => return Ok(Answer::Inner(InnerState::NoNetns)),
            Opened::Refused(reason) => return Ok(Answer::Inner(InnerState::Refused(reason))),
            Opened::Netns(held, socket) => (held, socket),
        };
        let nsid = match &mut self.overlay {
            Some(overlay) => inner::nsid(&mut overlay.socket, &held)?,
            None => None,
        };
        let is_host = at.netns == Netns::Host;
        if let Some(nsid) = nsid {
            let Endpoints { listener, inbox, own } = self.endpoints()?;
            // What happened before is in what is read now.
            while *own && listener.drain().0 {}
            listener.follow(inbox, &held, is_host, nsid)?;
        }
        let started = Instant::now();
        let link = queries::inner_link(&mut socket, at)?;
        let took = started.elapsed();
        if let (Some(nsid), true) = (nsid, took > SLOW_READ) {
            let Endpoints { listener, inbox, .. } = self.endpoints()?;
            listener.took(inbox, nsid, took);
        }
        Ok(Answer::Inner(InnerState::Netns { id: held.id, nsid, link }))
    }

    fn create_netns(&mut self) -> Result<(), Error> {
        let (path, mark) = self.removable()?;
        self.set_overlay(None);
        let held = netns::create(&path, &mark)?;
        self.set_overlay(Some(Overlay::open(&held, false)?));
        Ok(())
    }

    fn delete_netns(&mut self) -> Result<(), Error> {
        let (path, _) = self.removable()?;
        let state = self.look()?;
        self.set_overlay(None);
        match state {
            NetnsState::Ours(_) => netns::delete(&path),
            NetnsState::Absent => netns::remove_file(&path),
            NetnsState::Foreign => {
                Err(Error::new(nix::errno::Errno::EEXIST, format!("{} is not ours", path.display())))
            }
        }
    }
}

impl Kernel for NetworkKernel {
    fn read(&mut self, query: &Query) -> Result<Answer, Failure> {
        let answer = match query {
            Query::Netns => self.look().map(Answer::Netns),
            Query::Links => self.overlay().and_then(|overlay| queries::links(&mut overlay.socket)),
            Query::Link(link) => self.overlay().and_then(|overlay| queries::link(&mut overlay.socket, link)),
            Query::Forwarding => {
                let read = match self.home {
                    Home::Overlay { .. } => forwarding::read,
                    Home::Host => forwarding::as_a_rule,
                };
                self.overlay().and_then(|overlay| read(&mut overlay.socket)).map(Answer::Forwarding)
            }
            Query::Inner(at) => self.inner(at),
            Query::FdbDump(ifindex) => self.overlay().and_then(|overlay| queries::fdb(&mut overlay.socket, *ifindex)),
            Query::FdbNewest { ifindex, most } => {
                self.hold_home().and_then(|home| queries::newest_fdb(home.enter(RouteSocket::open)?, *ifindex, *most))
            }
            Query::FdbRows(points) => self.overlay().and_then(|overlay| queries::fdb_rows(&mut overlay.socket, points)),
            Query::NeighbourDump(ifindex) => {
                self.overlay().and_then(|overlay| queries::neighbours(&mut overlay.socket, *ifindex))
            }
            Query::NeighbourRows(points) => {
                self.overlay().and_then(|overlay| queries::neighbour_rows(&mut overlay.socket, points))
            }
            Query::Rules(table) => return self.overlay()?.rules.read(table),
            Query::Barriers => return self.overlay()?.rules.barriers(),
        };
        answer.map_err(Failure::from)
    }

    fn apply(&mut self, ops: &[Op]) -> Vec<Result<(), Failure>> {
        ops::apply(self, ops)
    }

    fn events(&mut self) -> Vec<Event> {
        let Some(overlay) = &mut self.overlay else { return Vec::new() };
        let drained = overlay.monitor.drain(overlay.socket.port());
        let mut events = drained.events;
        events.extend(overlay.rules.events());
        if let Some(Endpoints { listener, inbox, own }) = &self.endpoints {
            while *own && listener.drain().0 {}
            events.extend(inbox.take());
        }
        for ifindex in drained.ports {
            match queries::one_link(&mut overlay.socket, &LinkRef::Index(ifindex)) {
                Ok(Some((link, _))) => events.push(Event::Link(link)),
                Ok(None) => events.push(Event::LinkGone(ifindex)),
                // What changed is not known then, which is what an overrun says.
                Err(_) => events.push(Event::Overrun),
            }
        }
        events
    }
}
