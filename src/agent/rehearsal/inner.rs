//! What operations do to the ends in the endpoints' namespaces.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    gone,
    links::{change_link, new_link},
};
use crate::{
    engine::{
        Answer, Failure, InnerAt, InnerLink, InnerState, Kernel, LinkChange, LinkKind, NetnsId, Place, Query, RouteRow,
    },
    model::{Mac, Netns, Route},
};

/// Identifiers of namespaces that have none in the overlay namespace yet begin here.
const IMAGINED_NSID: i32 = 1 << 20;

/// The ends that were looked at or made.
#[derive(Default)]
pub(super) struct Inners {
    /// By namespace, as endpoints name it, and index.
    links: BTreeMap<Netns, BTreeMap<u32, InnerLink>>,
    /// Those that were deleted.
    deleted: BTreeSet<(Netns, u32)>,
    /// Identity and identifier of each namespace.
    known: BTreeMap<Netns, (NetnsId, Option<i32>)>,
    nsids: i32,
}

impl Inners {
    /// What stands there by now.
    pub(super) fn answer(&mut self, at: &InnerAt, real: &mut impl Kernel) -> Result<Answer, Failure> {
        let ask =
            |at: &InnerAt, real: &mut dyn FnMut(&Query) -> Result<Answer, Failure>| real(&Query::Inner(at.clone()));
        let mut read = |query: &Query| real.read(query);
        let mut answer = ask(at, &mut read);
        // The real kernel does not know an index that is only imagined.
        if at.ifindex.is_some_and(|index| self.link(&at.netns, index).is_some()) {
            answer = ask(&InnerAt { ifindex: None, ..at.clone() }, &mut read);
        }
        let (id, nsid, link) = match answer? {
            Answer::Inner(InnerState::Netns { id, nsid, link }) => (id, nsid, link),
            other => return Ok(other),
        };
        let nsid = self.known.get(&at.netns).and_then(|(_, nsid)| *nsid).or(nsid);
        self.known.insert(at.netns.clone(), (id, nsid));
        if let Some(link) = link
            && !self.deleted.contains(&(at.netns.clone(), link.link.ifindex))
        {
            self.links.entry(at.netns.clone()).or_default().entry(link.link.ifindex).or_insert(link);
        }
        let wanted = |link: &&InnerLink| match at.ifindex {
            Some(index) => link.link.ifindex == index,
            None => link.link.name == at.ifname,
        };
        let link = self.links.get(&at.netns).and_then(|links| links.values().find(wanted)).cloned();
        Ok(Answer::Inner(InnerState::Netns { id, nsid, link }))
    }

    /// Makes the end of a pair; what the other end then is.
    pub(super) fn add(&mut self, at: &InnerAt, index: u32, outer: u32, mac: Mac, mtu: u32, group: u32) -> LinkKind {
        let nsids = &mut self.nsids;
        let nsid = self.known.get_mut(&at.netns).map(|(_, nsid)| {
            *nsid.get_or_insert_with(|| {
                *nsids += 1;
                IMAGINED_NSID + *nsids
            })
        });
        let kind = LinkKind::Veth { peer: Some(outer), peer_nsid: Some(IMAGINED_NSID) };
        let link = new_link(index, &at.ifname, mac, mtu, group, kind);
        let inner = InnerLink { link, addresses: Vec::new(), routes: Vec::new(), defaults_elsewhere: BTreeSet::new() };
        self.links.entry(at.netns.clone()).or_default().insert(index, inner);
        LinkKind::Veth { peer: Some(index), peer_nsid: nsid }
    }

    /// What they are called.
    pub(super) fn names(&self) -> BTreeMap<(Netns, u32), String> {
        let names = self.links.iter().flat_map(|(netns, links)| {
            links.iter().map(|(index, inner)| ((netns.clone(), *index), inner.link.name.clone()))
        });
        names.collect()
    }

    pub(super) fn link(&mut self, netns: &Netns, index: u32) -> Option<&mut InnerLink> {
        self.links.get_mut(netns)?.get_mut(&index)
    }

    pub(super) fn change(&mut self, netns: &Netns, index: u32, change: &LinkChange) -> Result<(), Failure> {
        let inner = self.link(netns, index).ok_or_else(|| gone("device"))?;
        change_link(&mut inner.link, change);
        if change.up == Some(false) {
            inner.routes.clear();
        }
        Ok(())
    }

    pub(super) fn delete(&mut self, netns: &Netns, index: u32) {
        self.links.get_mut(netns).map(|links| links.remove(&index));
        self.deleted.insert((netns.clone(), index));
    }

    /// With one end of a pair the other goes.
    pub(super) fn delete_peer(&mut self, peer: u32, nsid: Option<i32>) {
        let in_there = |(_, known): &(&Netns, &(NetnsId, Option<i32>))| known.1.is_some() && known.1 == nsid;
        let netns: Vec<Netns> = self.known.iter().filter(in_there).map(|(netns, _)| netns.clone()).collect();
        netns.iter().for_each(|netns| self.delete(netns, peer));
    }

    /// Whether the end in that namespace is of the pair that has its other end there.
    pub(super) fn is_peer(&self, netns: &Netns, index: u32, outer: u32) -> bool {
        let inner = self.links.get(netns).and_then(|links| links.get(&index));
        inner.is_none_or(|inner| matches!(inner.link.kind, LinkKind::Veth { peer: Some(peer), .. } if peer == outer))
    }

    pub(super) fn put_route(&mut self, place: &Place, index: u32, route: Route) {
        let Place::Inner(netns) = place else { return };
        for inner in self.links.get_mut(netns).into_iter().flat_map(BTreeMap::values_mut) {
            inner.routes.retain(|row| row.route.dst != route.dst);
        }
        if let Some(inner) = self.link(netns, index) {
            inner.routes.push(RouteRow { route, ours: true, plain: true, alone: true });
        }
    }

    pub(super) fn delete_route(&mut self, place: &Place, index: u32, route: Route) {
        let Place::Inner(netns) = place else { return };
        if let Some(inner) = self.link(netns, index) {
            inner.routes.retain(|row| row.route != route);
        }
    }
}
