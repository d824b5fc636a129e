//! A kernel that is only read. Operations are noted and not sent: they are taken as done, and from then on what is read is what the
//! real kernel shows with their effects on top of it. So the engine itself says what it would do, to the end.

mod inner;
mod links;
mod rows;
mod rules;
mod words;

use std::collections::BTreeMap;

use crate::engine::{
    Address, Answer, Event, Failure, FailureKind, Family, Forwarding, Kernel, Link, LinkRef, NetnsId, NetnsState, Op,
    Query,
};
use crate::model::Netns;
use inner::Inners;
use rows::Rows;
use rules::Tables;

pub(super) use words::Names;

/// Indices of links that are only imagined: beyond what a kernel gives to the first million links.
const IMAGINED: u32 = 1 << 20;

/// The rehearsal of one network.
pub(super) struct Rehearsal<K> {
    real: K,
    /// What was to be sent, in order.
    ops: Vec<Op>,
    /// What stands at the namespace's path by now, where an operation changed it.
    netns: Option<NetnsState>,
    /// The links of the overlay namespace, since the first operation.
    links: Option<BTreeMap<u32, Held>>,
    forwarding: BTreeMap<Family, Option<Forwarding>>,
    rows: Rows,
    inners: Inners,
    tables: Tables,
    next: u32,
    /// Something changed of which the kernel would tell much: everything is read again.
    overrun: bool,
}

/// A link with its addresses.
#[derive(Debug, Clone)]
struct Held {
    link: Link,
    addresses: Vec<Address>,
}

fn gone(what: &str) -> Failure {
    Failure::new(FailureKind::NotFound, format!("no such {what}"))
}

impl<K: Kernel> Rehearsal<K> {
    pub(super) fn new(real: K) -> Self {
        Self {
            real,
            ops: Vec::new(),
            netns: None,
            links: None,
            forwarding: BTreeMap::new(),
            rows: Rows::default(),
            inners: Inners::default(),
            tables: Tables::default(),
            next: IMAGINED,
            overrun: false,
        }
    }

    /// What was to be sent since the last call.
    pub(super) fn take_ops(&mut self) -> Vec<Op> {
        std::mem::take(&mut self.ops)
    }

    /// The names of links by index, as they are by now.
    pub(super) fn link_names(&mut self) -> BTreeMap<u32, String> {
        let links =
            self.held().map(|links| links.iter().map(|(index, held)| (*index, held.link.name.clone())).collect());
        links.unwrap_or_default()
    }

    /// The names of the ends in endpoints' namespaces.
    pub(super) fn inner_names(&self) -> BTreeMap<(Netns, u32), String> {
        self.inners.names()
    }

    /// The namespace is one that was made here: the real kernel knows nothing of it.
    fn imagined(&self) -> bool {
        self.netns.is_some()
    }

    /// The links of the overlay namespace as they are by now.
    fn held(&mut self) -> Result<&mut BTreeMap<u32, Held>, Failure> {
        if self.links.is_none() {
            let Answer::Links(links, addresses) = self.real.read(&Query::Links)? else { return Err(gone("answer")) };
            let held = links.into_iter().map(|link| {
                let own = addresses.iter().filter(|address| address.ifindex == link.ifindex).copied().collect();
                (link.ifindex, Held { link, addresses: own })
            });
            self.links = Some(held.collect());
        }
        self.links.as_mut().ok_or_else(|| gone("namespace"))
    }

    fn answer_links(&mut self, which: impl Fn(&Link) -> bool) -> Result<Answer, Failure> {
        let links: Vec<&Held> = self.held()?.values().filter(|held| which(&held.link)).collect();
        let addresses = links.iter().flat_map(|held| held.addresses.iter().copied()).collect();
        Ok(Answer::Links(links.iter().map(|held| held.link.clone()).collect(), addresses))
    }

    fn answer_forwarding(&mut self) -> Result<Answer, Failure> {
        let mut forwarding: BTreeMap<Family, Forwarding> = BTreeMap::new();
        if !self.imagined()
            && let Answer::Forwarding(real) = self.real.read(&Query::Forwarding)?
        {
            forwarding.extend(real);
        }
        for (family, to) in &self.forwarding {
            match to {
                Some(to) => drop(forwarding.insert(*family, *to)),
                None => drop(forwarding.remove(family)),
            }
        }
        Ok(Answer::Forwarding(forwarding.into_iter().collect()))
    }

    fn done(&mut self, op: &Op) -> Result<(), Failure> {
        match op {
            Op::CreateNetns => {
                // Every imagined namespace is another one, and none is real: inode numbers of namespaces have 32 bits.
                self.next += 1;
                let id = NetnsId { device: 0, inode: u64::from(self.next) << 32 };
                self.netns = Some(NetnsState::Ours(id));
                self.links = Some(BTreeMap::new());
            }
            Op::DeleteNetns => {
                self.netns = Some(NetnsState::Absent);
                self.links = Some(BTreeMap::new());
            }
            // Whether something is in the way elsewhere on the host shows only when it is tried.
            Op::ReclaimVni { .. } => {}
            Op::AddLink(new) => self.add_link(new)?,
            Op::SetLink { place, ifindex, change } => self.set_link(place, *ifindex, change)?,
            Op::DeleteLink { place, ifindex } => self.delete_link(place, *ifindex)?,
            Op::AddAddress { place, ifindex, net } | Op::RestoreRoutes { place, ifindex, net } => {
                self.set_address(place, *ifindex, *net, true)?
            }
            Op::DeleteAddress { place, ifindex, net } => self.set_address(place, *ifindex, *net, false)?,
            Op::SetForwarding { family, on } => {
                self.forwarding.insert(*family, on.then_some(Forwarding::Everywhere));
            }
            Op::AddRoute { place, ifindex, route } | Op::ReplaceRoute { place, ifindex, route } => {
                self.inners.put_route(place, *ifindex, *route);
            }
            Op::DeleteRoute { place, ifindex, route } => self.inners.delete_route(place, *ifindex, *route),
            Op::PutFdb { ifindex, mac, dst } => self.rows.put_fdb(*ifindex, *mac, *dst),
            Op::DeleteFdb { ifindex, mac, dst } => self.rows.delete_fdb(*ifindex, *mac, *dst),
            Op::PutBridgeRow { ifindex, mac } => self.rows.put_bridge_row(*ifindex, *mac),
            Op::DeleteBridgeRow { ifindex, mac } => self.rows.delete_bridge_row(*ifindex, *mac),
            Op::PutNeighbour { ifindex, ip, mac } => self.rows.put_neighbour(*ifindex, *ip, Some(*mac)),
            Op::DeleteNeighbour { ifindex, ip } => self.rows.put_neighbour(*ifindex, *ip, None),
            Op::ChangeRules(changes) => self.tables.change(changes, self.netns.is_some(), &mut self.real)?,
        }
        Ok(())
    }
}

impl<K: Kernel> Kernel for Rehearsal<K> {
    fn read(&mut self, query: &Query) -> Result<Answer, Failure> {
        match query {
            Query::Netns => match &self.netns {
                Some(state) => Ok(Answer::Netns(state.clone())),
                None => self.real.read(query),
            },
            // Before the first operation everything is as it really is.
            Query::Links | Query::Link(_) if self.links.is_none() => self.real.read(query),
            Query::Links => self.answer_links(|_| true),
            Query::Link(LinkRef::Index(index)) => self.answer_links(|link| link.ifindex == *index),
            Query::Link(LinkRef::Name(name)) => self.answer_links(|link| link.name == *name),
            Query::Forwarding => self.answer_forwarding(),
            Query::Inner(at) => self.inners.answer(at, &mut self.real),
            Query::FdbDump(index) => self.answer_fdb_dump(*index),
            Query::FdbNewest { ifindex, most } => self.answer_fdb_newest(*ifindex, *most),
            Query::FdbRows(points) => self.answer_fdb_rows(points),
            Query::NeighbourDump(index) => self.answer_neighbour_dump(*index),
            Query::NeighbourRows(points) => self.answer_neighbour_rows(points),
            Query::Rules(table) => self.tables.answer(table, self.netns.is_some(), &mut self.real),
            _ if self.imagined() => Ok(Answer::Barriers(Vec::new())),
            _ => self.real.read(query),
        }
    }

    fn apply(&mut self, ops: &[Op]) -> Vec<Result<(), Failure>> {
        // What changes nothing has to be known before anything did.
        let known = if ops.iter().all(|op| matches!(op, Op::CreateNetns)) { Ok(()) } else { self.held().map(drop) };
        if let Err(failure) = known {
            return ops.iter().map(|_| Err(failure.clone())).collect();
        }
        self.ops.extend(ops.iter().cloned());
        ops.iter().map(|op| self.done(op)).collect()
    }

    fn events(&mut self) -> Vec<Event> {
        if std::mem::take(&mut self.overrun) { vec![Event::Overrun, Event::InnerOverrun] } else { Vec::new() }
    }
}
