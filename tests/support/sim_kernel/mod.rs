//! A kernel in memory with the facts that the engine relies on, for one network. `tests/conformance.rs` holds it against the
//! real one.

#![allow(dead_code, clippy::panic, clippy::unwrap_used, reason = "not every test needs all of it")]

mod addresses;
mod chance;
mod links;
mod reads;
mod routes;
mod rows;
mod rules;
mod setlink;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
};

use ipnet::IpNet;
use vtepd::{
    engine::{Answer, Event, Failure, FailureKind, Family, Forwarding, Kernel, Link, Op, Place, Query},
    model::{
        Mac, Netns,
        nft::{Ruleset, TableId},
    },
};

pub use chance::{Chance, Faults};

/// The inode of the host's own namespace.
const HOST: u64 = 1;

/// A link with all that hangs on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SimLink {
    pub link: Link,
    pub addresses: BTreeMap<IpNet, bool>,
    /// Those whose routes somebody took away.
    pub unrouted: BTreeSet<IpNet>,
    /// Rows of a VXLAN device with one destination: MAC to (destination, plain form).
    pub fdb: BTreeMap<Mac, (Option<IpAddr>, bool)>,
    /// The destinations of the all-zero and of multicast addresses, in the order in which they were appended.
    pub flood: BTreeMap<Mac, Vec<IpAddr>>,
    /// Rows of a bridge: MAC to (port, plain form).
    pub rows: BTreeMap<Mac, (u32, bool)>,
    pub neighbours: BTreeMap<IpAddr, (Option<Mac>, bool, bool)>,
    /// Routes by destination: next hop, whether it carries the agent's number, exactly its form.
    pub routes: BTreeMap<IpNet, (Option<IpAddr>, bool, bool)>,
    /// IPv4 addresses in the order in which they were added.
    order: Vec<IpNet>,
    /// Below an MTU of 1280 there is no IPv6 on a link.
    ipv6: bool,
    /// Somebody set the bridge's MTU, which its ports then no longer do.
    mtu_by_hand: bool,
}

/// A namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SimNetns {
    pub inode: u64,
    pub links: BTreeMap<u32, SimLink>,
    pub forwarding: BTreeMap<Family, Forwarding>,
    pub tables: BTreeMap<TableId, Ruleset>,
    next_index: u32,
    /// Whether links start without IPv6 address generation.
    quiet: bool,
    /// The containers (by inode) that have an identifier here: from the first veth pair on that connects the two.
    known: BTreeSet<u64>,
}

/// The simulated kernel of one network.
#[derive(Clone, Debug)]
pub struct SimKernel {
    pub overlay: Option<SimNetns>,
    /// The endpoints' namespaces, the host's own among them.
    pub containers: BTreeMap<Netns, SimNetns>,
    /// Other paths to them.
    aliases: BTreeMap<Netns, Netns>,
    pub faults: Faults,
    pub chance: Chance,
    /// Every operation that was tried, newest last.
    pub log: Vec<Op>,
    pub capacity: usize,
    /// Somebody else's tables whose chains at the forward hook drop.
    pub barriers: Vec<vtepd::model::nft::Ruleset>,
    /// The sysctl: with the first IPv4 address of a subnet the others of that subnet go, unless it is set.
    pub promote_secondaries: bool,
    /// Locked ports that the agent brought up while there was no chain of their name that would drop anything.
    pub unguarded: Vec<String>,
    /// What stands at the path is open: only then do operations and reads reach it, and events come.
    open: bool,
    /// A namespace that was deleted while it was open lives on until it is closed, and takes all operations until then.
    held: Option<SimNetns>,
    queue: VecDeque<Event>,
    late: VecDeque<Event>,
    overrun: bool,
    inodes: u64,
    /// The overlay namespace is the host's own.
    of_the_host: bool,
    /// The operation under way is not the agent's.
    by_others: bool,
}

fn not_found(what: &str) -> Failure {
    Failure::new(FailureKind::NotFound, format!("no such {what}"))
}

fn exists(what: &str) -> Failure {
    Failure::new(FailureKind::Exists, format!("{what} exists"))
}

fn refused(what: &str) -> Failure {
    Failure::new(FailureKind::Refused, what)
}

impl SimNetns {
    fn new(inode: u64, quiet: bool) -> Self {
        Self { inode, next_index: 2, quiet, ..Self::default() }
    }
}

impl SimKernel {
    pub fn new(seed: u64) -> Self {
        Self {
            overlay: None,
            containers: BTreeMap::from([(Netns::Host, SimNetns::new(HOST, false))]),
            aliases: BTreeMap::new(),
            faults: Faults::default(),
            chance: Chance::new(seed),
            log: Vec::new(),
            capacity: 4096,
            barriers: Vec::new(),
            promote_secondaries: true,
            unguarded: Vec::new(),
            open: false,
            held: None,
            queue: VecDeque::new(),
            late: VecDeque::new(),
            overrun: false,
            inodes: 100,
            of_the_host: false,
            by_others: false,
        }
    }

    /// The kernel under the gateway bridge, whose home is the host's own namespace: it is there and stays.
    pub fn on_host(seed: u64) -> Self {
        let home = Some(SimNetns::new(HOST, false));
        Self { overlay: home, containers: BTreeMap::new(), open: true, of_the_host: true, ..Self::new(seed) }
    }

    // ----- what the test does to the world -----

    pub fn add_container(&mut self, path: &str) {
        self.inodes += 1;
        self.containers.insert(path.into(), SimNetns::new(self.inodes, false));
        self.emit(Event::Path(path.into()));
    }

    /// Another path to the same namespace: what happens in there happens by the first.
    pub fn alias_container(&mut self, path: &str, alias: &str) {
        self.aliases.insert(alias.into(), path.into());
        self.emit(Event::Path(alias.into()));
    }

    pub fn remove_container(&mut self, path: &str) {
        if let Some(container) = self.containers.remove(&Netns::from(path)) {
            self.emit(Event::Path(path.into()));
            for ifindex in container.links.keys() {
                self.drop_peer_of(*ifindex, container.inode);
            }
        }
    }

    pub fn remove_overlay(&mut self) {
        if let Some(overlay) = self.overlay.take() {
            if self.open {
                self.held = Some(overlay);
            } else {
                self.drop_inner_ends(&overlay);
            }
            self.emit(Event::Netns);
        }
    }

    /// A foreign write: the same as an operation of the agent, but not in its log and never failing by chance.
    pub fn foreign(&mut self, op: &Op) -> Result<(), Failure> {
        self.by_others = true;
        let result = self.execute(op);
        self.by_others = false;
        result
    }

    /// Nobody hears of what has happened so far.
    pub fn events_dropped(&mut self) {
        self.queue.clear();
        self.late.clear();
        self.overrun = false;
    }

    /// Events that were held back arrive.
    pub fn flush_late(&mut self) {
        while let Some(event) = self.late.pop_front() {
            self.queue.push_back(event);
        }
    }

    pub fn link(&self, name: &str) -> Option<&SimLink> {
        self.overlay.as_ref()?.links.values().find(|link| link.link.name == name)
    }

    pub fn link_mut(&mut self, name: &str) -> Option<&mut SimLink> {
        self.overlay.as_mut()?.links.values_mut().find(|link| link.link.name == name)
    }

    // ----- events -----

    fn emit(&mut self, event: Event) {
        let of_a_path = matches!(event, Event::Netns | Event::Path(_));
        if !of_a_path && self.ns().is_none() {
            return;
        }
        if self.chance.per_mille(self.faults.event_lost) {
            self.overrun = true;
            return;
        }
        if self.chance.per_mille(self.faults.event_late) {
            self.late.push_back(event);
            return;
        }
        if self.queue.len() >= self.capacity {
            self.overrun = true;
            return;
        }
        self.queue.push_back(event);
    }

    fn emit_link(&mut self, place: &Place, ifindex: u32) {
        match place {
            Place::Overlay => {
                if let Some(link) = self.ns().and_then(|ns| ns.links.get(&ifindex)) {
                    self.emit(Event::Link(link.link.clone()));
                }
            }
            Place::Inner(path) => {
                if let Some(inode) = self.container(path).map(|ns| ns.inode) {
                    self.emit_inner(inode, ifindex);
                }
            }
        }
    }

    /// Of a container without an identifier nothing is heard.
    fn emit_inner(&mut self, inode: u64, ifindex: u32) {
        if self.ns().is_some_and(|ns| ns.known.contains(&inode)) {
            self.emit(Event::Inner { nsid: inode as i32, ifindex: Some(ifindex) });
        }
    }

    fn emit_addresses(&mut self, place: &Place, ifindex: u32) {
        match place {
            Place::Overlay => self.emit(Event::Addresses(ifindex)),
            Place::Inner(_) => self.emit_link(place, ifindex),
        }
    }

    // ----- namespaces -----

    /// The namespace that is open.
    fn ns(&self) -> Option<&SimNetns> {
        self.held.as_ref().or_else(|| self.overlay.as_ref().filter(|_| self.open))
    }

    /// The namespace, open or not.
    fn overlay(&mut self) -> Result<&mut SimNetns, Failure> {
        self.held.as_mut().or(self.overlay.as_mut()).ok_or_else(|| not_found("namespace"))
    }

    fn in_overlay(&mut self, ifindex: u32) -> Result<&mut SimLink, Failure> {
        self.overlay()?.links.get_mut(&ifindex).ok_or_else(|| not_found("device"))
    }

    fn container(&self, netns: &Netns) -> Option<&SimNetns> {
        self.containers.get(self.aliases.get(netns).unwrap_or(netns))
    }

    fn container_mut(&mut self, netns: &Netns) -> Option<&mut SimNetns> {
        self.containers.get_mut(self.aliases.get(netns).unwrap_or(netns))
    }

    fn netns_at(&mut self, place: &Place) -> Result<&mut SimNetns, Failure> {
        match place {
            Place::Overlay => self.overlay(),
            Place::Inner(path) => self.container_mut(path).ok_or_else(|| not_found("namespace")),
        }
    }

    fn at(&mut self, place: &Place, ifindex: u32) -> Result<&mut SimLink, Failure> {
        self.netns_at(place)?.links.get_mut(&ifindex).ok_or_else(|| not_found("device"))
    }

    /// With its sockets what they had heard goes, and a namespace that nobody else holds any longer.
    fn close(&mut self) {
        if let Some(gone) = self.held.take() {
            self.drop_inner_ends(&gone);
        }
        self.open = false;
        let of_a_path = |event: &Event| matches!(event, Event::Netns | Event::Path(_));
        self.queue.retain(of_a_path);
        self.late.retain(of_a_path);
        self.overrun = false;
    }

    /// What stands at the path is opened; what was open and no longer stands there is closed.
    fn look(&mut self) {
        if self.held.is_some() {
            self.close();
        }
        self.open = self.overlay.is_some();
    }

    // ----- operations -----

    fn execute(&mut self, op: &Op) -> Result<(), Failure> {
        let elsewhere = match op {
            Op::CreateNetns | Op::DeleteNetns | Op::ReclaimVni { .. } => true,
            Op::SetLink { place, .. }
            | Op::DeleteLink { place, .. }
            | Op::AddAddress { place, .. }
            | Op::AddRoute { place, .. }
            | Op::ReplaceRoute { place, .. }
            | Op::DeleteRoute { place, .. }
            | Op::RestoreRoutes { place, .. }
            | Op::DeleteAddress { place, .. } => *place != Place::Overlay,
            _ => false,
        };
        if !elsewhere && !self.by_others && self.ns().is_none() {
            return Err(not_found("namespace"));
        }
        match op {
            Op::CreateNetns | Op::DeleteNetns | Op::SetForwarding { on: false, .. } if self.of_the_host => {
                panic!("not ours to do on the host: {op:?}")
            }
            Op::CreateNetns => {
                // What was open is closed even where another namespace turns out to stand at the path.
                self.close();
                if self.overlay.is_some() {
                    return Err(exists("namespace"));
                }
                self.inodes += 1;
                self.overlay = Some(SimNetns::new(self.inodes, true));
                self.open = true;
                Ok(())
            }
            Op::DeleteNetns => {
                self.close();
                if let Some(overlay) = self.overlay.take() {
                    self.drop_inner_ends(&overlay);
                }
                Ok(())
            }
            // No device leaves its namespace here.
            Op::ReclaimVni { .. } => Ok(()),
            Op::AddLink(new) => self.add_link(new),
            Op::SetLink { place, ifindex, change } => self.set_link(place, *ifindex, change),
            Op::DeleteLink { place, ifindex } => self.delete_link(place, *ifindex),
            Op::AddAddress { place, ifindex, net } => self.add_address(place, *ifindex, *net),
            Op::DeleteAddress { place, ifindex, net } => self.delete_address(place, *ifindex, *net),
            Op::RestoreRoutes { place, ifindex, net } => self.restore_routes(place, *ifindex, *net),
            Op::SetForwarding { family, on } => self.set_forwarding(*family, on.then_some(Forwarding::Everywhere)),
            Op::AddRoute { place, ifindex, route } => self.put_route(place, *ifindex, *route, false),
            Op::ReplaceRoute { place, ifindex, route } => self.put_route(place, *ifindex, *route, true),
            Op::DeleteRoute { place, ifindex, route } => self.delete_route(place, *ifindex, *route),
            Op::PutFdb { ifindex, mac, dst } => self.put_fdb(*ifindex, *mac, *dst),
            Op::DeleteFdb { ifindex, mac, dst } => self.delete_fdb(*ifindex, *mac, *dst),
            Op::PutBridgeRow { ifindex, mac } => self.put_bridge_row(*ifindex, *mac),
            Op::DeleteBridgeRow { ifindex, mac } => self.delete_bridge_row(*ifindex, *mac),
            Op::PutNeighbour { ifindex, ip, mac } => self.put_neighbour(*ifindex, *ip, *mac),
            Op::DeleteNeighbour { ifindex, ip } => self.delete_neighbour(*ifindex, *ip),
            Op::ChangeRules(changes) => self.change_rules(changes),
        }
    }
}

impl Kernel for SimKernel {
    fn read(&mut self, query: &Query) -> Result<Answer, Failure> {
        if self.chance.per_mille(self.faults.read_fails) {
            return Err(Failure::new(FailureKind::Torn, "torn by chance"));
        }
        self.answer(query)
    }

    fn apply(&mut self, ops: &[Op]) -> Vec<Result<(), Failure>> {
        ops.iter()
            .map(|op| {
                self.log.push(op.clone());
                if self.chance.per_mille(self.faults.op_fails) {
                    // Some failures come after the deed: the answer is lost, not the operation.
                    if self.chance.per_mille(300) {
                        let _ = self.execute(op);
                    }
                    return Err(Failure::new(FailureKind::Resources, "out of memory by chance"));
                }
                self.execute(op)
            })
            .collect()
    }

    fn events(&mut self) -> Vec<Event> {
        let mut events: Vec<Event> = self.queue.drain(..).collect();
        if std::mem::take(&mut self.overrun) {
            events.push(Event::Overrun);
            events.push(Event::InnerOverrun);
            // Paths are watched by other means, which say so themselves when they lost something.
            events.push(Event::Netns);
            events.extend(self.containers.keys().filter_map(|netns| Some(Event::Path(netns.path()?.to_owned()))));
        }
        events
    }
}
