//! Which link of the one kernel is which of the other. Operations are made up with a handle in place of each index.

use std::collections::BTreeMap;

use vtepd::{
    engine::{Answer, InnerAt, InnerState, Kernel, Link, LinkChange, LinkKind, LinkRef, NewLink, Op, Place, Query},
    model::Netns,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Sim,
    Real,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Bridge,
    Vxlan,
    Outer,
    Inner,
}

#[derive(Clone, Debug)]
pub struct Twin {
    pub role: Role,
    /// The namespace's name of an inner end.
    pub container: Option<String>,
    pub alive: bool,
    sim: u32,
    real: u32,
}

/// An index that no link has.
const NOBODY: u32 = 987_654;

/// All links that ever were, by handle; the handle 0 is nobody's.
#[derive(Default)]
pub struct Twins {
    pub all: BTreeMap<u32, Twin>,
}

/// What the host's own namespace goes by here.
pub const HOST: &str = "host";

pub fn at(container: &str) -> Netns {
    if container == HOST { Netns::Host } else { format!("/run/netns/{container}").as_str().into() }
}

pub fn path(container: &str) -> String {
    at(container).to_string()
}

fn link(kernel: &mut dyn Kernel, name: &str) -> Link {
    match kernel.read(&Query::Link(LinkRef::Name(name.to_owned()))) {
        Ok(Answer::Links(links, _)) => links.into_iter().next().unwrap_or_else(|| panic!("no {name}")),
        other => panic!("{other:?}"),
    }
}

impl Twins {
    fn add(&mut self, role: Role, container: Option<String>, sim: u32, real: u32) {
        let handle = u32::try_from(self.all.len()).unwrap() + 1;
        self.all.insert(handle, Twin { role, container, alive: true, sim, real });
    }

    pub fn made(&mut self, new: &NewLink, sim: &mut dyn Kernel, real: &mut dyn Kernel) {
        let (role, name) = match new {
            NewLink::Bridge { name, .. } => (Role::Bridge, name),
            NewLink::Vxlan { name, .. } => (Role::Vxlan, name),
            NewLink::Veth { name, .. } => (Role::Outer, name),
        };
        let (sim, real) = (link(sim, name), link(real, name));
        self.add(role, None, sim.ifindex, real.ifindex);
        let peer = |link: &Link| match link.kind {
            LinkKind::Veth { peer, .. } => peer.unwrap(),
            _ => panic!("not a pair: {link:?}"),
        };
        if let NewLink::Veth { inner, .. } = new {
            let container = match inner.netns.path() {
                Some(path) => path.file_name().unwrap().to_str().unwrap().to_owned(),
                None => HOST.to_owned(),
            };
            self.add(Role::Inner, Some(container), peer(&sim), peer(&real));
        }
    }

    /// Marks what neither kernel has any longer.
    pub fn forget_gone(&mut self, sim: &mut dyn Kernel, real: &mut dyn Kernel) {
        for twin in self.all.values_mut().filter(|twin| twin.alive) {
            let there = |kernel: &mut dyn Kernel, ifindex: u32| match &twin.container {
                Some(container) => {
                    let at = InnerAt { netns: at(container), ifname: String::new(), ifindex: Some(ifindex) };
                    let answer = kernel.read(&Query::Inner(at));
                    matches!(answer, Ok(Answer::Inner(InnerState::Netns { link: Some(_), .. })))
                }
                None => {
                    let answer = kernel.read(&Query::Link(LinkRef::Index(ifindex)));
                    matches!(answer, Ok(Answer::Links(links, _)) if !links.is_empty())
                }
            };
            twin.alive = there(sim, twin.sim) || there(real, twin.real);
        }
    }

    /// Indices start anew in a new namespace: those of the old one's links are nobody's until then.
    pub fn forget_namespace(&mut self) {
        for twin in self.all.values_mut().filter(|twin| twin.container.is_none()) {
            (twin.sim, twin.real) = (NOBODY, NOBODY);
        }
    }

    pub fn forget_container(&mut self, container: &str) {
        for twin in self.all.values_mut().filter(|twin| twin.container.as_deref() == Some(container)) {
            (twin.sim, twin.real) = (NOBODY, NOBODY);
        }
    }

    pub fn alive(&self, role: Role) -> Vec<u32> {
        self.all.iter().filter(|(_, twin)| twin.alive && twin.role == role).map(|(handle, _)| *handle).collect()
    }

    /// A link's index on one side; links that are gone keep theirs.
    pub fn index(&self, handle: u32, side: Side) -> u32 {
        self.all.get(&handle).map_or(NOBODY, |twin| if side == Side::Sim { twin.sim } else { twin.real })
    }

    /// The handle of a link of the overlay namespace, or of a container.
    pub fn handle(&self, ifindex: u32, container: Option<&str>, side: Side) -> Option<u32> {
        let mut found = self.all.iter().rev().filter(|(_, twin)| twin.container.as_deref() == container);
        found.find(|(handle, _)| self.index(**handle, side) == ifindex).map(|(handle, _)| *handle)
    }

    /// The operation with the indices of one side.
    pub fn translate(&self, op: &Op, side: Side) -> Op {
        let mut op = op.clone();
        match &mut op {
            Op::SetLink { ifindex, change: LinkChange { master, .. }, .. } => {
                *ifindex = self.index(*ifindex, side);
                *master = master.map(|master| self.index(master, side));
            }
            Op::DeleteLink { ifindex, .. }
            | Op::AddAddress { ifindex, .. }
            | Op::DeleteAddress { ifindex, .. }
            | Op::RestoreRoutes { ifindex, .. }
            | Op::AddRoute { ifindex, .. }
            | Op::ReplaceRoute { ifindex, .. }
            | Op::DeleteRoute { ifindex, .. }
            | Op::PutFdb { ifindex, .. }
            | Op::DeleteFdb { ifindex, .. }
            | Op::PutBridgeRow { ifindex, .. }
            | Op::DeleteBridgeRow { ifindex, .. }
            | Op::PutNeighbour { ifindex, .. }
            | Op::DeleteNeighbour { ifindex, .. } => *ifindex = self.index(*ifindex, side),
            Op::CreateNetns
            | Op::DeleteNetns
            | Op::ReclaimVni { .. }
            | Op::AddLink(_)
            | Op::SetForwarding { .. }
            | Op::ChangeRules(_) => {}
        }
        op
    }

    /// Where the link of a handle is.
    pub fn place(&self, handle: u32) -> Place {
        let container = self.all.get(&handle).and_then(|twin| twin.container.as_ref());
        container.map_or(Place::Overlay, |container| Place::Inner(at(container)))
    }
}
