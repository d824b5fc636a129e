//! A kernel in memory with the facts that the engine relies on, for one network. `tests/conformance.rs` holds it against the
//! real one.

#![allow(dead_code, clippy::panic, clippy::unwrap_used, reason = "not every test needs all of it")]

use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
    path::{Path, PathBuf},
};

use ipnet::IpNet;
use vtepd::{
    engine::{
        Address, Answer, Event, Failure, FailureKind, FdbPoint, FdbRow, InnerAt, InnerState, Kernel, Link, LinkChange,
        LinkKind, LinkRef, Neighbour, NetnsId, NetnsState, NewLink, Op, Place, Port, Query, VxlanAttributes,
    },
    model::Mac,
};

/// A link with all that hangs on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SimLink {
    pub link: Link,
    pub addresses: BTreeMap<IpNet, bool>,
    /// Rows of a VXLAN device: MAC to (destination, plain form). The flood list is not simulated yet.
    pub fdb: BTreeMap<Mac, (Option<IpAddr>, bool)>,
    /// Rows of a bridge: MAC to (port, plain form).
    pub rows: BTreeMap<Mac, (u32, bool)>,
    pub neighbours: BTreeMap<IpAddr, (Option<Mac>, bool, bool)>,
}

/// A namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SimNetns {
    pub inode: u64,
    pub links: BTreeMap<u32, SimLink>,
    next_index: u32,
}

/// What goes wrong, in per mille.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    pub op_fails: u32,
    pub read_fails: u32,
    pub event_lost: u32,
    pub event_late: u32,
    /// A dump leaves a row out without a word.
    pub row_skipped: u32,
}

/// A small generator: the simulation's only source of chance.
#[derive(Clone, Debug)]
pub struct Chance(u64);

impl Chance {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    pub fn per_mille(&mut self, n: u32) -> bool {
        (self.next() % 1000) < u64::from(n)
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        from.get(self.below(from.len()))
    }
}

/// The simulated kernel of one network.
#[derive(Clone, Debug)]
pub struct SimKernel {
    pub overlay: Option<SimNetns>,
    pub containers: BTreeMap<PathBuf, SimNetns>,
    pub faults: Faults,
    pub chance: Chance,
    /// Every operation that was tried, newest last.
    pub log: Vec<Op>,
    pub capacity: usize,
    queue: VecDeque<Event>,
    late: VecDeque<Event>,
    overrun: bool,
    inodes: u64,
}

fn not_found(what: &str) -> Failure {
    Failure::new(FailureKind::NotFound, format!("no such {what}"))
}

fn exists(what: &str) -> Failure {
    Failure::new(FailureKind::Exists, format!("{what} exists"))
}

impl SimKernel {
    pub fn new(seed: u64) -> Self {
        Self {
            overlay: None,
            containers: BTreeMap::new(),
            faults: Faults::default(),
            chance: Chance::new(seed),
            log: Vec::new(),
            capacity: 4096,
            queue: VecDeque::new(),
            late: VecDeque::new(),
            overrun: false,
            inodes: 100,
        }
    }

    // ----- what the test does to the world -----

    pub fn add_container(&mut self, path: &str) {
        self.inodes += 1;
        self.containers.insert(path.into(), SimNetns { inode: self.inodes, links: BTreeMap::new(), next_index: 2 });
        self.emit(Event::Path(path.into()));
    }

    pub fn remove_container(&mut self, path: &str) {
        if let Some(container) = self.containers.remove(Path::new(path)) {
            self.emit(Event::Path(path.into()));
            for link in container.links.values() {
                self.drop_peer_of(link.link.ifindex, container.inode);
            }
        }
    }

    pub fn remove_overlay(&mut self) {
        if let Some(overlay) = self.overlay.take() {
            self.drop_inner_ends(&overlay);
            self.emit(Event::Netns);
        }
    }

    /// A foreign write: the same as an operation of the agent, but not in its log and never failing by chance.
    pub fn foreign(&mut self, op: &Op) -> Result<(), Failure> {
        self.execute(op)
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
                if let Some(link) = self.overlay.as_ref().and_then(|ns| ns.links.get(&ifindex)) {
                    self.emit(Event::Link(link.link.clone()));
                }
            }
            Place::Inner(path) => {
                if let Some(inode) = self.containers.get(path).map(|ns| ns.inode) {
                    self.emit(Event::Inner { nsid: inode as i32 });
                }
            }
        }
    }

    // ----- helpers on the state -----

    fn overlay(&mut self) -> Result<&mut SimNetns, Failure> {
        self.overlay.as_mut().ok_or_else(|| not_found("namespace"))
    }

    fn in_overlay(&mut self, ifindex: u32) -> Result<&mut SimLink, Failure> {
        self.overlay()?.links.get_mut(&ifindex).ok_or_else(|| not_found("device"))
    }

    fn at(&mut self, place: &Place, ifindex: u32) -> Result<&mut SimLink, Failure> {
        match place {
            Place::Overlay => self.in_overlay(ifindex),
            Place::Inner(path) => {
                let ns = self.containers.get_mut(path).ok_or_else(|| not_found("namespace"))?;
                ns.links.get_mut(&ifindex).ok_or_else(|| not_found("device"))
            }
        }
    }

    fn drop_inner_ends(&mut self, overlay: &SimNetns) {
        for link in overlay.links.values() {
            if let LinkKind::Veth { peer: Some(peer), peer_nsid: Some(nsid) } = link.link.kind {
                for container in self.containers.values_mut().filter(|ns| ns.inode as i32 == nsid) {
                    container.links.remove(&peer);
                }
                self.emit(Event::Inner { nsid });
            }
        }
    }

    fn drop_peer_of(&mut self, ifindex: u32, inode: u64) {
        let Some(overlay) = &self.overlay else { return };
        let is_peer = |link: &SimLink| matches!(link.link.kind, LinkKind::Veth { peer: Some(p), peer_nsid: Some(n) } if p == ifindex && n == inode as i32);
        let outer: Vec<u32> = overlay.links.iter().filter(|(_, link)| is_peer(link)).map(|(index, _)| *index).collect();
        for index in outer {
            self.remove_overlay_link(index);
        }
    }

    fn remove_overlay_link(&mut self, ifindex: u32) {
        let Some(overlay) = self.overlay.as_mut() else { return };
        let Some(gone) = overlay.links.remove(&ifindex) else { return };
        // A bridge releases its ports, a port takes its rows along.
        let mut released = Vec::new();
        for (index, link) in &mut overlay.links {
            if link.link.master == Some(ifindex) {
                link.link.master = None;
                link.link.port = None;
                released.push(*index);
            }
            link.rows.retain(|_, (port, _)| *port != ifindex);
        }
        for (mac, (dst, plain)) in &gone.fdb {
            self.emit(Event::FdbGone(FdbRow {
                ifindex,
                bridge: false,
                mac: *mac,
                dst: *dst,
                plain: *plain,
                kernels_own: false,
            }));
        }
        for index in released {
            self.emit_link(&Place::Overlay, index);
        }
        if let LinkKind::Veth { peer: Some(peer), peer_nsid: Some(nsid) } = gone.link.kind {
            for container in self.containers.values_mut().filter(|ns| ns.inode as i32 == nsid) {
                container.links.remove(&peer);
            }
            self.emit(Event::Inner { nsid });
        }
        self.emit(Event::LinkGone(ifindex));
    }

    fn flush_neighbours(&mut self, ifindex: u32, only_v6: bool) {
        let Ok(link) = self.in_overlay(ifindex) else { return };
        let gone: Vec<_> =
            link.neighbours.iter().filter(|(ip, _)| !only_v6 || ip.is_ipv6()).map(|(ip, n)| (*ip, *n)).collect();
        for (ip, _) in &gone {
            link.neighbours.remove(ip);
        }
        for (ip, (mac, permanent, ours)) in gone {
            self.emit(Event::NeighbourGone(Neighbour { ifindex, ip, mac, permanent, ours }));
        }
    }

    fn new_link(name: &str, mac: Mac, mtu: u32, group: u32, kind: LinkKind) -> SimLink {
        let link = Link {
            ifindex: 0,
            name: name.into(),
            mac,
            mtu,
            up: false,
            master: None,
            group,
            addr_gen_none: false,
            kind,
            port: None,
        };
        SimLink {
            link,
            addresses: BTreeMap::new(),
            fdb: BTreeMap::new(),
            rows: BTreeMap::new(),
            neighbours: BTreeMap::new(),
        }
    }

    fn insert(ns: &mut SimNetns, mut link: SimLink) -> Result<u32, Failure> {
        if ns.links.values().any(|other| other.link.name == link.link.name) {
            return Err(exists("name"));
        }
        let index = ns.next_index;
        ns.next_index += 1;
        link.link.ifindex = index;
        ns.links.insert(index, link);
        Ok(index)
    }

    // ----- operations -----

    fn execute(&mut self, op: &Op) -> Result<(), Failure> {
        match op {
            Op::CreateNetns => {
                if self.overlay.is_some() {
                    return Err(exists("namespace"));
                }
                self.inodes += 1;
                self.overlay = Some(SimNetns { inode: self.inodes, links: BTreeMap::new(), next_index: 2 });
                Ok(())
            }
            Op::DeleteNetns => {
                if let Some(overlay) = self.overlay.take() {
                    self.drop_inner_ends(&overlay);
                }
                Ok(())
            }
            Op::ReclaimVni { .. } => Ok(()),
            Op::AddLink(new) => self.add_link(new),
            Op::SetLink { place, ifindex, change } => self.set_link(place, *ifindex, change),
            Op::DeleteLink { place: Place::Overlay, ifindex } => {
                self.remove_overlay_link(*ifindex);
                Ok(())
            }
            Op::DeleteLink { place: Place::Inner(path), ifindex } => {
                let Some(inode) = self.containers.get(path).map(|ns| ns.inode) else { return Ok(()) };
                self.drop_peer_of(*ifindex, inode);
                if let Some(ns) = self.containers.get_mut(path) {
                    ns.links.remove(ifindex);
                }
                self.emit(Event::Inner { nsid: inode as i32 });
                Ok(())
            }
            Op::AddAddress { place, ifindex, net } => {
                let link = self.at(place, *ifindex)?;
                if net.addr().is_ipv6() && link.link.mtu < 1280 {
                    return Err(Failure::new(FailureKind::Refused, "IPv6 is off"));
                }
                if link.addresses.insert(*net, true).is_some() {
                    return Err(exists("address"));
                }
                self.address_event(place, *ifindex);
                Ok(())
            }
            Op::DeleteAddress { place, ifindex, net } => {
                self.at(place, *ifindex)?.addresses.remove(net);
                self.address_event(place, *ifindex);
                Ok(())
            }
            Op::PutFdb { ifindex, mac, dst } => {
                let link = self.in_overlay(*ifindex)?;
                let same = link.fdb.insert(*mac, (Some(*dst), true)) == Some((Some(*dst), true));
                if !same {
                    let row = FdbRow {
                        ifindex: *ifindex,
                        bridge: false,
                        mac: *mac,
                        dst: Some(*dst),
                        plain: true,
                        kernels_own: false,
                    };
                    self.emit(Event::Fdb(row));
                }
                Ok(())
            }
            Op::DeleteFdb { ifindex, mac, .. } => {
                let gone = self.in_overlay(*ifindex)?.fdb.remove(mac).ok_or_else(|| not_found("row"))?;
                let (dst, plain) = gone;
                self.emit(Event::FdbGone(FdbRow {
                    ifindex: *ifindex,
                    bridge: false,
                    mac: *mac,
                    dst,
                    plain,
                    kernels_own: false,
                }));
                Ok(())
            }
            Op::PutBridgeRow { ifindex, mac } => {
                let bridge = self.in_overlay(*ifindex)?.link.master.ok_or_else(|| not_found("bridge"))?;
                self.in_overlay(bridge)?.rows.insert(*mac, (*ifindex, true));
                let row =
                    FdbRow { ifindex: *ifindex, bridge: true, mac: *mac, dst: None, plain: true, kernels_own: false };
                self.emit(Event::Fdb(row));
                Ok(())
            }
            Op::DeleteBridgeRow { ifindex, mac } => {
                let bridge = self.in_overlay(*ifindex)?.link.master.ok_or_else(|| not_found("bridge"))?;
                self.in_overlay(bridge)?.rows.remove(mac).ok_or_else(|| not_found("row"))?;
                let row =
                    FdbRow { ifindex: *ifindex, bridge: true, mac: *mac, dst: None, plain: true, kernels_own: false };
                self.emit(Event::FdbGone(row));
                Ok(())
            }
            Op::PutNeighbour { ifindex, ip, mac } => {
                let link = self.in_overlay(*ifindex)?;
                if ip.is_ipv6() && link.link.mtu < 1280 {
                    return Err(Failure::new(FailureKind::Refused, "IPv6 is off"));
                }
                link.neighbours.insert(*ip, (Some(*mac), true, true));
                self.emit(Event::Neighbour(Neighbour {
                    ifindex: *ifindex,
                    ip: *ip,
                    mac: Some(*mac),
                    permanent: true,
                    ours: true,
                }));
                Ok(())
            }
            Op::DeleteNeighbour { ifindex, ip } => {
                let gone = self.in_overlay(*ifindex)?.neighbours.remove(ip).ok_or_else(|| not_found("entry"))?;
                let (mac, permanent, ours) = gone;
                self.emit(Event::NeighbourGone(Neighbour { ifindex: *ifindex, ip: *ip, mac, permanent, ours }));
                Ok(())
            }
        }
    }

    fn address_event(&mut self, place: &Place, ifindex: u32) {
        match place {
            Place::Overlay => self.emit(Event::Addresses(ifindex)),
            Place::Inner(_) => self.emit_link(place, ifindex),
        }
    }

    fn add_link(&mut self, new: &NewLink) -> Result<(), Failure> {
        let index = match new {
            NewLink::Bridge { name, mac, group } => {
                let link = Self::new_link(name, *mac, 1500, *group, LinkKind::Bridge { mcast_snooping: false });
                Self::insert(self.overlay()?, link)?
            }
            NewLink::Vxlan { name, mac, mtu, group, vni, port, local, proxy } => {
                let held = |other: &SimLink| matches!(&other.link.kind, LinkKind::Vxlan(v) if v.vni == *vni && v.port == *port);
                if self.overlay()?.links.values().any(held) {
                    return Err(exists("VNI"));
                }
                let kind =
                    VxlanAttributes { vni: *vni, port: *port, local: Some(*local), learning: false, proxy: *proxy };
                Self::insert(self.overlay()?, Self::new_link(name, *mac, *mtu, *group, LinkKind::Vxlan(kind)))?
            }
            NewLink::Veth { name, mac, mtu, group, inner, inner_mac } => {
                self.overlay()?;
                let taken = |ns: &SimNetns, name: &str| ns.links.values().any(|link| link.link.name == name);
                if self.overlay.as_ref().is_some_and(|ns| taken(ns, name)) {
                    return Err(exists("name"));
                }
                let container = self.containers.get_mut(&inner.netns).ok_or_else(|| not_found("namespace"))?;
                let kind = LinkKind::Veth { peer: None, peer_nsid: None };
                let peer = Self::insert(container, Self::new_link(&inner.ifname, *inner_mac, *mtu, *group, kind))?;
                let nsid = container.inode as i32;
                let kind = LinkKind::Veth { peer: Some(peer), peer_nsid: Some(nsid) };
                let index = Self::insert(self.overlay()?, Self::new_link(name, *mac, *mtu, *group, kind))?;
                let inode = self.overlay()?.inode as i32;
                if let Some(link) = self.containers.get_mut(&inner.netns).and_then(|ns| ns.links.get_mut(&peer)) {
                    link.link.kind = LinkKind::Veth { peer: Some(index), peer_nsid: Some(inode) };
                }
                self.emit(Event::Inner { nsid });
                index
            }
        };
        self.emit_link(&Place::Overlay, index);
        Ok(())
    }

    fn set_link(&mut self, place: &Place, ifindex: u32, change: &LinkChange) -> Result<(), Failure> {
        let link = self.at(place, ifindex)?;
        let before = link.link.clone();
        let now = &mut link.link;
        if let Some(name) = &change.name {
            now.name.clone_from(name);
        }
        if let Some(mac) = change.mac {
            now.mac = mac;
        }
        if let Some(mtu) = change.mtu {
            now.mtu = mtu;
        }
        if let Some(up) = change.up {
            now.up = up;
        }
        if let Some(group) = change.group {
            now.group = group;
        }
        if change.addr_gen_none {
            now.addr_gen_none = true;
        }
        if let Some(master) = change.master {
            if now.master != Some(master) {
                now.port = Some(Port { learning: true, unicast_flood: true });
            }
            now.master = Some(master);
        }
        if let (Some(port), true) = (change.port, now.master.is_some()) {
            now.port = Some(port);
        }
        match &mut now.kind {
            LinkKind::Bridge { mcast_snooping } if change.mcast_snooping_off => *mcast_snooping = false,
            LinkKind::Vxlan(vxlan) => {
                if let Some(local) = change.local {
                    vxlan.local = Some(local);
                }
                if change.learning_off {
                    vxlan.learning = false;
                }
            }
            _ => {}
        }
        let after = now.clone();
        if before.up && !after.up || after.mtu < 1280 {
            link.addresses.retain(|net, _| net.addr().is_ipv4());
        }
        if *place == Place::Overlay {
            if before.master != after.master
                && let (Some(old), Ok(overlay)) = (before.master, self.overlay())
                && let Some(bridge) = overlay.links.get_mut(&old)
            {
                bridge.rows.retain(|_, (port, _)| *port != ifindex);
            }
            if before.mac != after.mac || (before.up && !after.up) {
                self.flush_neighbours(ifindex, false);
            } else if before.mtu >= 1280 && after.mtu < 1280 {
                self.flush_neighbours(ifindex, true);
            }
        }
        if before != after {
            self.emit_link(place, ifindex);
        }
        Ok(())
    }

    // ----- reads -----

    fn links(&self, which: impl Fn(&Link) -> bool) -> Answer {
        let links: Vec<&SimLink> =
            self.overlay.iter().flat_map(|ns| ns.links.values()).filter(|l| which(&l.link)).collect();
        let addresses = links.iter().flat_map(|l| {
            l.addresses.iter().map(|(net, ours)| Address { ifindex: l.link.ifindex, net: *net, ours: *ours })
        });
        Answer::Links(links.iter().map(|l| l.link.clone()).collect(), addresses.collect())
    }

    fn inner(&self, at: &InnerAt) -> InnerState {
        let Some(ns) = self.containers.get(&at.netns) else { return InnerState::NoNetns };
        let wanted = |link: &&SimLink| match at.ifindex {
            Some(index) => link.link.ifindex == index,
            None => link.link.name == at.ifname,
        };
        let link = ns.links.values().find(wanted).map(|l| {
            let addresses = l.addresses.iter();
            (
                l.link.clone(),
                addresses.map(|(net, ours)| Address { ifindex: l.link.ifindex, net: *net, ours: *ours }).collect(),
            )
        });
        InnerState::Netns { id: NetnsId { device: 4, inode: ns.inode }, nsid: Some(ns.inode as i32), link }
    }

    fn tunnel_row(link: &SimLink, mac: Mac) -> Option<FdbRow> {
        let (dst, plain) = link.fdb.get(&mac).copied()?;
        Some(FdbRow { ifindex: link.link.ifindex, bridge: false, mac, dst, plain, kernels_own: false })
    }

    fn bridge_row(bridge: &SimLink, mac: Mac) -> Option<FdbRow> {
        let (port, plain) = bridge.rows.get(&mac).copied()?;
        Some(FdbRow { ifindex: port, bridge: true, mac, dst: None, plain, kernels_own: false })
    }

    fn fdb_dump(&mut self, ifindex: u32) -> Result<Vec<FdbRow>, Failure> {
        let skip = self.faults.row_skipped;
        let overlay = self.overlay.as_ref().ok_or_else(|| not_found("namespace"))?;
        let link = overlay.links.get(&ifindex).ok_or_else(|| not_found("device"))?;
        let own = link.fdb.keys().filter_map(|mac| Self::tunnel_row(link, *mac));
        let bridge = link.link.master.and_then(|master| overlay.links.get(&master));
        let rows = bridge.into_iter().flat_map(|b| b.rows.keys().filter_map(|mac| Self::bridge_row(b, *mac)));
        let all: Vec<FdbRow> = own.chain(rows.filter(|row| row.ifindex == ifindex)).collect();
        Ok(all.into_iter().filter(|_| !self.chance.per_mille(skip)).collect())
    }

    fn fdb_rows(&self, points: &[FdbPoint]) -> Result<Vec<FdbRow>, Failure> {
        let overlay = self.overlay.as_ref().ok_or_else(|| not_found("namespace"))?;
        let mut rows = Vec::new();
        for point in points {
            let link = overlay.links.get(&point.ifindex).ok_or_else(|| not_found("device"))?;
            rows.extend(if point.bridge {
                Self::bridge_row(link, point.mac)
            } else {
                Self::tunnel_row(link, point.mac)
            });
        }
        Ok(rows)
    }

    fn neighbours(&self, ifindex: u32, which: Option<IpAddr>) -> Result<Vec<Neighbour>, Failure> {
        let overlay = self.overlay.as_ref().ok_or_else(|| not_found("namespace"))?;
        let link = overlay.links.get(&ifindex).ok_or_else(|| not_found("device"))?;
        let rows = link.neighbours.iter().filter(|(ip, _)| which.is_none_or(|which| which == **ip));
        Ok(rows
            .map(|(ip, (mac, permanent, ours))| Neighbour {
                ifindex,
                ip: *ip,
                mac: *mac,
                permanent: *permanent,
                ours: *ours,
            })
            .collect())
    }
}

impl Kernel for SimKernel {
    fn read(&mut self, query: &Query) -> Result<Answer, Failure> {
        if self.chance.per_mille(self.faults.read_fails) {
            return Err(Failure::new(FailureKind::Torn, "torn by chance"));
        }
        Ok(match query {
            Query::Netns => Answer::Netns(match &self.overlay {
                Some(ns) => NetnsState::Ours(NetnsId { device: 4, inode: ns.inode }),
                None => NetnsState::Absent,
            }),
            Query::Links => self.links(|_| true),
            Query::Link(LinkRef::Index(index)) => self.links(|link| link.ifindex == *index),
            Query::Link(LinkRef::Name(name)) => self.links(|link| link.name == *name),
            Query::Inner(at) => Answer::Inner(self.inner(at)),
            Query::FdbDump(ifindex) => Answer::Fdb(self.fdb_dump(*ifindex)?),
            Query::FdbRows(points) => Answer::Fdb(self.fdb_rows(points)?),
            Query::NeighbourDump(ifindex) => Answer::Neighbours(self.neighbours(*ifindex, None)?),
            Query::NeighbourRows(points) => {
                let mut rows = Vec::new();
                for (ifindex, ip) in points {
                    rows.extend(self.neighbours(*ifindex, Some(*ip))?);
                }
                Answer::Neighbours(rows)
            }
        })
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
            events.extend(self.containers.keys().cloned().map(Event::Path));
        }
        events
    }
}
