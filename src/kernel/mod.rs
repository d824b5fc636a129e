//! Edge: namespaces, sockets, encoding, decoding, batches and events. The only user of netlink.
//!
//! What is written here about the kernel's behaviour was tried on Linux 6.18, or read in its source (`net/core/rtnetlink.c`,
//! `net/core/neighbour.c`, `net/netlink/af_netlink.c`, `drivers/net/vxlan/`, `net/bridge/`).

mod decode;
mod encode;
mod error;
mod forwarding;
mod host;
mod inner;
mod monitor;
mod netns;
pub mod nft;
mod ops;
mod queries;
mod reclaim;
mod routes;
mod rules;
mod settings;
mod socket;
mod underlay;
mod wire;

use std::{os::fd::BorrowedFd, path::PathBuf};

use error::Error;
use monitor::Monitor;
use netns::{Found, Held};
use rules::Rules;
use socket::RouteSocket;

use crate::{
    engine::{Answer, Event, Failure, Family, Kernel, LinkRef, NetnsId, NetnsState, Op, Query},
    model::Name,
};

pub use host::{HostEvent, HostMonitor};
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
/// While the overlay namespace stands, its descriptor and sockets are held open; a namespace that is gone stays in the kernel,
/// with its VNIs, until they are closed, which [`Query::Netns`] does when it finds the path empty or bound to another one.
#[derive(Debug)]
pub struct NetworkKernel {
    config: Config,
    home: Home,
    overlay: Option<Overlay>,
    generation: u64,
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
    netns: Held,
    socket: RouteSocket,
    monitor: Monitor,
    rules: Rules,
}

impl Overlay {
    fn open(netns: Held, on_host: bool) -> Result<Self, Error> {
        let open = || Ok((RouteSocket::open()?, Monitor::open(on_host)?, Rules::open()));
        let (socket, monitor, rules) = netns.enter(open)?;
        Ok(Self { netns, socket, monitor, rules })
    }
}

impl NetworkKernel {
    /// Makes the edge. Nothing is opened before the first [`Query::Netns`] or [`Op::CreateNetns`].
    pub fn new(config: Config) -> Self {
        let path = config.netns_dir.join(netns::file_name(&config.network));
        let mark = netns::mark(&config.instance, &config.network);
        Self { config, home: Home::Overlay { path, mark }, overlay: None, generation: 0 }
    }

    /// Makes the edge of a network whose home is the host's own namespace.
    pub const fn of_the_host(config: Config) -> Self {
        Self { config, home: Home::Host, overlay: None, generation: 0 }
    }

    /// The event sockets, to wait on for readability; none while the overlay namespace is not open. They are others whenever
    /// [`Self::generation`] has changed: a duplicate must be closed then at once, since it pins the namespace as the socket did.
    /// [`Kernel::events`] has emptied them when it returns nothing.
    pub fn event_fds(&self) -> Vec<BorrowedFd<'_>> {
        self.overlay.iter().flat_map(|overlay| overlay.monitor.fds().into_iter().chain(overlay.rules.fd())).collect()
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
        self.set_overlay(Some(Overlay::open(held, false)?));
        Ok(NetnsState::Ours(id))
    }

    fn open_is(&self, id: NetnsId) -> bool {
        self.overlay.as_ref().is_some_and(|overlay| overlay.netns.id == id)
    }

    fn set_forwarding(&mut self, family: Family, on: bool) -> Result<(), Error> {
        self.overlay()?.netns.enter(|| forwarding::set(family, on))?;
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
            return Ok(overlay.netns.id);
        }
        let held = netns::hold_own()?;
        let id = held.id;
        self.set_overlay(Some(Overlay::open(held, true)?));
        Ok(id)
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

    fn create_netns(&mut self) -> Result<(), Error> {
        let (path, mark) = self.removable()?;
        self.set_overlay(None);
        let held = netns::create(&path, &mark)?;
        self.set_overlay(Some(Overlay::open(held, false)?));
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
            Query::Inner(at) => queries::inner(self.overlay.as_mut(), &self.config.netns_roots, at),
            Query::FdbDump(ifindex) => self.overlay().and_then(|overlay| queries::fdb(&mut overlay.socket, *ifindex)),
            Query::FdbNewest { ifindex, most } => self
                .overlay()
                .and_then(|overlay| queries::newest_fdb(overlay.netns.enter(RouteSocket::open)?, *ifindex, *most)),
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
