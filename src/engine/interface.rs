//! The interface between engine and kernel: three verbs in our own nouns. The real kernel and the simulated one stand behind it.

use std::{collections::BTreeSet, fmt, net::IpAddr, path::PathBuf};

use ipnet::IpNet;
use thiserror::Error;

use super::{
    key::Family,
    object::{Address, FdbRow, Forwarding, InnerAt, InnerState, Link, Neighbour, NetnsState},
    setting::Setting,
};
use crate::model::{
    Mac, Netns, Route,
    nft::{Change, Ruleset, TableId},
};

/// A network's kernel: its overlay namespace, and through it the ends in its endpoints' namespaces.
///
/// Calls return when the kernel has answered, within a bounded time.
pub trait Kernel {
    /// Reads. A [`Query`] is answered by the [`Answer`] that it names.
    ///
    /// # Errors
    /// The kernel refused, or the answer was torn or did not come: nothing is known then.
    fn read(&mut self, query: &Query) -> Result<Answer, Failure>;

    /// Sends the operations in their order and gives one result for each, in the same order. An operation that fails does
    /// not keep the following ones from being tried.
    fn apply(&mut self, ops: &[Op]) -> Vec<Result<(), Failure>>;

    /// The events that have come since the last call, oldest first, without waiting. Events are hints: some may be missing
    /// ([`Event::Overrun`] says so when the kernel did), repeated, late, or echoes of our own operations.
    fn events(&mut self) -> Vec<Event>;
}

/// Names a link of the overlay namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LinkRef {
    /// By index.
    Index(u32),
    /// By name.
    Name(String),
}

/// One row of a forwarding database to look up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FdbPoint {
    /// The VXLAN device for its own rows; the bridge itself for rows of the bridge.
    pub ifindex: u32,
    /// Look in the bridge's table.
    pub bridge: bool,
    /// The inner destination.
    pub mac: Mac,
}

/// What the engine wants to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Query {
    /// What stands at the overlay namespace's path; opens it when it is ours. Answered by [`Answer::Netns`].
    Netns,
    /// All links of the overlay namespace and their addresses. Answered by [`Answer::Links`].
    Links,
    /// One link of the overlay namespace and its addresses; no link in the answer when it is not there. [`Answer::Links`].
    Link(LinkRef),
    /// Which families the home forwards; the host, which of them as a rule. Answered by [`Answer::Forwarding`].
    Forwarding,
    /// The container's end of an endpoint. Answered by [`Answer::Inner`].
    Inner(InnerAt),
    /// All rows of the link's own table and of its bridge's that point to it. The answer proves presence, never absence. [`Answer::Fdb`].
    FdbDump(u32),
    /// The newest rows of a VXLAN device, so many or more, without those of its bridge. They prove presence, never absence. [`Answer::Fdb`].
    FdbNewest {
        /// The VXLAN device.
        ifindex: u32,
        /// How many.
        most: usize,
    },
    /// These rows; those that are not there are missing in the answer. [`Answer::Fdb`].
    FdbRows(Vec<FdbPoint>),
    /// All neighbour entries of one link of the overlay namespace. [`Answer::Neighbours`].
    NeighbourDump(u32),
    /// These entries; those that are not there are missing in the answer. [`Answer::Neighbours`].
    NeighbourRows(Vec<(u32, IpAddr)>),
    /// The tables of nftables in the home that have a chain at the forward hook whose policy drops. Answered by [`Answer::Barriers`].
    Barriers,
    /// One table of nftables in the overlay namespace, whole. Answered by [`Answer::Rules`].
    Rules(TableId),
}

/// What the kernel said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// To [`Query::Netns`].
    Netns(NetnsState),
    /// To [`Query::Links`] and [`Query::Link`].
    Links(Vec<Link>, Vec<Address>),
    /// To [`Query::Forwarding`]; families that are not forwarded at all are missing.
    Forwarding(Vec<(Family, Forwarding)>),
    /// To [`Query::Inner`].
    Inner(InnerState),
    /// To [`Query::FdbDump`], [`Query::FdbNewest`] and [`Query::FdbRows`].
    Fdb(Vec<FdbRow>),
    /// To [`Query::NeighbourDump`] and [`Query::NeighbourRows`].
    Neighbours(Vec<Neighbour>),
    /// To [`Query::Barriers`].
    Barriers(Vec<Ruleset>),
    /// To [`Query::Rules`]; `None` when there is no such table, or nothing in the kernel that could hold one.
    Rules(Option<Ruleset>),
}

/// Something may have changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The overlay namespace's path changed.
    Netns,
    /// A link of the overlay namespace was made or changed, and looked like this.
    Link(Link),
    /// A link of the overlay namespace went away (or into another namespace).
    LinkGone(u32),
    /// The addresses of a link of the overlay namespace changed.
    Addresses(u32),
    /// A route out of a link of the overlay namespace went away.
    Routes(u32),
    /// Forwarding of this family was turned on or off, everywhere or for one link.
    Forwarding(Family, bool),
    /// A forwarding row was written.
    Fdb(FdbRow),
    /// A forwarding row went away.
    FdbGone(FdbRow),
    /// A neighbour entry was written.
    Neighbour(Neighbour),
    /// A neighbour entry went away.
    NeighbourGone(Neighbour),
    /// This table of nftables in the overlay namespace, or something in it, changed.
    Rules(TableId),
    /// A link, address or route changed in the namespace that has this identifier in the overlay namespace.
    Inner {
        /// `NETLINK_LISTEN_ALL_NSID`'s identifier.
        nsid: i32,
        /// The link that it happened to or is of; `None` where that was not told.
        ifindex: Option<u32>,
    },
    /// Something appeared at, or vanished from, this path below a namespace root.
    Path(PathBuf),
    /// Events of the overlay namespace were lost.
    Overrun,
    /// Events of the endpoints' namespaces were lost.
    InnerOverrun,
}

/// Where a link is that an operation targets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// The overlay namespace.
    Overlay,
    /// An endpoint's namespace.
    Inner(Netns),
}

/// A link to be made, down. `name` is free in its namespace, or the operation fails with [`FailureKind::Exists`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NewLink {
    /// A bridge with multicast snooping off.
    Bridge {
        /// Its name.
        name: String,
        /// Its MAC address.
        mac: Mac,
        /// Its link group.
        group: u32,
    },
    /// A VXLAN device without learning and with proxy, its socket in the host's namespace.
    Vxlan {
        /// Its name.
        name: String,
        /// Its own MAC address.
        mac: Mac,
        /// MTU in bytes.
        mtu: u32,
        /// Its link group.
        group: u32,
        /// VNI, UDP port and source address.
        vni: u32,
        /// UDP port.
        port: u16,
        /// Source address of the tunnel.
        local: IpAddr,
        /// Answer ARP and neighbour solicitations from the neighbour table.
        proxy: bool,
    },
    /// A veth pair, both ends in their namespaces by the one message that makes it.
    Veth {
        /// Name of the end in the overlay namespace.
        name: String,
        /// MAC address of that end.
        mac: Mac,
        /// MTU of both ends in bytes.
        mtu: u32,
        /// Link group of both ends.
        group: u32,
        /// The other end's place and name (`ifindex` is ignored).
        inner: InnerAt,
        /// The other end's MAC address: the endpoint's.
        inner_mac: Mac,
    },
}

/// What to change on a link; `None` leaves an attribute alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkChange {
    /// New name. A kernel before 6.2 renames only links that are down: the link then goes down first and stays so.
    pub name: Option<String>,
    /// New MAC address.
    pub mac: Option<Mac>,
    /// New MTU in bytes.
    pub mtu: Option<u32>,
    /// Administrative state.
    pub up: Option<bool>,
    /// The bridge to be a port of.
    pub master: Option<u32>,
    /// New link group.
    pub group: Option<u32>,
    /// IPv6 address generation off.
    pub addr_gen_none: bool,
    /// Bridge: multicast snooping off.
    pub mcast_snooping_off: bool,
    /// Bridge port attributes.
    pub port: Option<super::object::Port>,
    /// VXLAN: new source address, set in place.
    pub local: Option<IpAddr>,
    /// VXLAN: learning off.
    pub learning_off: bool,
    /// Settings to be put as the kernel makes them.
    pub settings: BTreeSet<Setting>,
}

/// One mutating operation. It carries everything: there is nothing left to decide when it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Make the overlay namespace: marked, then bound to its path, and opened.
    CreateNetns,
    /// Unbind and remove the overlay namespace's path, if what stands there carries our mark, and close it.
    DeleteNetns,
    /// Remove the VXLAN device of ours that holds this VNI and port somewhere else on the host, moved there by somebody. One
    /// that is not found is no error.
    ReclaimVni {
        /// Its VNI.
        vni: u32,
        /// Its UDP port.
        port: u16,
        /// Its link group.
        group: u32,
    },
    /// Make a link.
    AddLink(NewLink),
    /// Change a link.
    SetLink {
        /// Where it is.
        place: Place,
        /// Its index there.
        ifindex: u32,
        /// What to change.
        change: LinkChange,
    },
    /// Remove a link. One that is not there is no error.
    DeleteLink {
        /// Where it is.
        place: Place,
        /// Its index there.
        ifindex: u32,
    },
    /// Add an address without duplicate address detection, with its broadcast address and our `IFA_PROTO`.
    AddAddress {
        /// Where the link is.
        place: Place,
        /// The link's index there.
        ifindex: u32,
        /// Address and prefix length.
        net: IpNet,
    },
    /// Make the routes again that the kernel made with an address.
    RestoreRoutes {
        /// Where the link is.
        place: Place,
        /// The link's index there.
        ifindex: u32,
        /// Address and prefix length.
        net: IpNet,
    },
    /// Remove an address. One that is not there is no error.
    DeleteAddress {
        /// Where the link is.
        place: Place,
        /// The link's index there.
        ifindex: u32,
        /// Address and prefix length.
        net: IpNet,
    },
    /// Turn forwarding of a family on or off in the overlay namespace, for all links and those to come.
    SetForwarding {
        /// The family.
        family: Family,
        /// On or off.
        on: bool,
    },
    /// Add a route to the main table, with our `rtm_protocol` and the family's own metric. [`FailureKind::Exists`] where a route
    /// leads there with that metric.
    AddRoute {
        /// Where the link is.
        place: Place,
        /// The link's index there.
        ifindex: u32,
        /// The route.
        route: Route,
    },
    /// The same in place of the first route that leads there with that metric, out of whatever link.
    ReplaceRoute {
        /// Where the link is.
        place: Place,
        /// The link's index there.
        ifindex: u32,
        /// The route.
        route: Route,
    },
    /// Remove the route out of this link that leads there in this way, with that metric. One that is not there is no error.
    DeleteRoute {
        /// Where the link is.
        place: Place,
        /// The link's index there.
        ifindex: u32,
        /// The route.
        route: Route,
    },
    /// Add or overwrite a VXLAN device's row for one MAC address.
    PutFdb {
        /// The VXLAN device.
        ifindex: u32,
        /// The inner destination.
        mac: Mac,
        /// The outer destination.
        dst: IpAddr,
    },
    /// Remove a row of a VXLAN device: all destinations, or for the all-zero address the one given.
    DeleteFdb {
        /// The VXLAN device.
        ifindex: u32,
        /// The inner destination.
        mac: Mac,
        /// Which destination; only for the all-zero and multicast addresses.
        dst: Option<IpAddr>,
    },
    /// Add or overwrite the bridge's row for one MAC address: `static`, to this port.
    PutBridgeRow {
        /// The port.
        ifindex: u32,
        /// The endpoint's MAC address.
        mac: Mac,
    },
    /// Remove the bridge's row for one MAC address that points to this port.
    DeleteBridgeRow {
        /// The port.
        ifindex: u32,
        /// The MAC address.
        mac: Mac,
    },
    /// Add or overwrite a permanent neighbour entry, with our `NDA_PROTOCOL`.
    PutNeighbour {
        /// The link.
        ifindex: u32,
        /// The inner address.
        ip: IpAddr,
        /// Its MAC address.
        mac: Mac,
    },
    /// Remove a neighbour entry.
    DeleteNeighbour {
        /// The link.
        ifindex: u32,
        /// The inner address.
        ip: IpAddr,
    },
    /// Change tables of nftables in the overlay namespace, all of it in one instant or none.
    ChangeRules(Vec<Change>),
}

/// What an operation did to its object, as the metrics say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// It was not there.
    Add,
    /// It was there and different.
    Replace,
    /// It was to go.
    Delete,
}

impl Action {
    /// The metric label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Replace => "replace",
            Self::Delete => "delete",
        }
    }
}

/// What the caller should make of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FailureKind {
    /// The object, or its link or namespace, is not there (ENOENT, ENODEV, ESRCH, EADDRNOTAVAIL).
    NotFound,
    /// Something else holds the name, the VNI or the address (EEXIST, EADDRINUSE, ENOTUNIQ).
    Exists,
    /// The agent lacks the right (EPERM, EACCES).
    Permission,
    /// Short of memory or buffers now; trying again may succeed (ENOMEM, ENOBUFS, EAGAIN, EBUSY, EINTR).
    Resources,
    /// A dump was torn by a concurrent change, or no answer came in time: read again.
    Torn,
    /// Anything else: the kernel does not accept it.
    Refused,
}

impl FailureKind {
    /// The metric label of an object that is blocked by it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::Exists => "exists",
            Self::Permission => "permission",
            Self::Resources => "resources",
            Self::Torn => "torn",
            Self::Refused => "refused",
        }
    }
}

/// A read or operation that failed, with the kernel's own words.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{message}")]
pub struct Failure {
    /// What to make of it.
    pub kind: FailureKind,
    /// The error and, where the kernel gave one, its extended message.
    pub message: String,
}

impl Failure {
    /// Makes a failure.
    pub fn new(kind: FailureKind, message: impl fmt::Display) -> Self {
        Self { kind, message: message.to_string() }
    }
}
