//! Claims: what at most one record of the store may hold, decided alike on every node.
//!
//! The rule is greedy in the order of rank (create revision, then key): a record is in force if no claim of it is held by a
//! record in force of lower rank, and then it holds all its claims. A loser holds nothing. Because a decision depends only on
//! lower ranks, deciding again in ascending order those whose claims changed hands reaches the same end as deciding all from
//! scratch, in whatever order the records were heard.
//!
//! A claim may be shared by those who agree on what it comes to (see [`Claim::shared`]). Its holders then all agree, so that the
//! oldest of them speaks for all.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    ops::Bound,
    sync::Arc,
};

use crate::{
    model::{Mac, Name, Netns, Vni},
    schema::Key,
};

/// What one record holds and no other may.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Claim {
    /// A VXLAN segment, by a network.
    Segment(u16, Vni),
    /// A VTEP address, by a node.
    Vtep(IpAddr),
    /// An address on a network's segment, by an endpoint.
    Ip(Name, Vni, IpAddr),
    /// A MAC address on a network's segment, by an endpoint.
    Mac(Name, Vni, Mac),
    /// The same in one of Docker's networks: endpoints behind one VTEP may share it, for its row leads to that VTEP.
    SharedMac(Name, Vni, Mac),
    /// An interface of a node's network namespace, by an endpoint. The namespace of one of Docker's sandboxes stands without
    /// its node: its name is random, and native endpoints know their node by another name than Docker's do.
    Interface(Option<Name>, Arc<Inner>),
}

/// An interface in a network namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Inner {
    pub(super) netns: Netns,
    pub(super) ifname: String,
}

/// The order in which records are served.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    pub(super) create_revision: i64,
    pub(super) key: Arc<Key>,
}

#[derive(Debug, Default)]
struct Slot {
    /// The oldest of those who hold it.
    holder: Option<Rank>,
    /// Nearly always nobody, which must cost nothing.
    others: Option<Box<Others>>,
}

#[derive(Debug, Default)]
struct Others {
    /// Those who hold it with the holder.
    sharing: BTreeSet<Rank>,
    /// Those who claim it and do not hold it.
    waiting: BTreeSet<Rank>,
}

/// Who claims what, who holds it, and who must be decided again.
#[derive(Debug, Default)]
pub(super) struct Claims {
    slots: BTreeMap<Claim, Slot>,
    queue: BTreeSet<Rank>,
}

impl Claims {
    /// The record begins to claim these. It is to be decided.
    pub(super) fn enter(&mut self, rank: &Rank, claims: &[Claim]) {
        for claim in claims {
            self.slots.entry(claim.clone()).or_default().line_up(rank.clone());
        }
        self.queue.insert(rank.clone());
    }

    /// The record claims these no more. Who waited behind it is to be decided.
    pub(super) fn leave(&mut self, rank: &Rank, claims: &[Claim]) {
        for claim in claims {
            let Some(slot) = self.slots.get_mut(claim) else { continue };
            slot.step_out(rank);
            // Also who did not hold it may have been called to take it.
            if slot.holder.is_none() {
                slot.call_next(rank, &mut self.queue);
            }
            if slot.holder.is_none() && slot.others.is_none() {
                self.slots.remove(claim);
            }
        }
        self.queue.remove(rank);
    }

    /// The record is to be decided anew.
    pub(super) fn again(&mut self, rank: Rank) {
        self.queue.insert(rank);
    }

    /// The record of lowest rank that is to be decided.
    pub(super) fn next(&mut self) -> Option<Rank> {
        self.queue.pop_first()
    }

    /// Whether the record is in force, which it cannot be unless it `counts`. Its claims change hands accordingly. Who holds a shared claim is called anew when the
    /// oldest of its holders goes: one who waits in between comes first.
    pub(super) fn decide(&mut self, rank: &Rank, claims: &[Claim], counts: bool) -> bool {
        let wins = counts && self.blocker(rank, claims).is_none();
        for claim in claims {
            let Some(slot) = self.slots.get_mut(claim) else { continue };
            if wins {
                slot.step_out(rank);
                slot.hold(claim, rank, &mut self.queue);
            } else {
                slot.step_out(rank);
                slot.line_up(rank.clone());
                // What nobody holds goes on down the line until somebody takes it.
                if slot.holder.is_none() {
                    slot.call_next(rank, &mut self.queue);
                }
            }
        }
        wins
    }

    /// The first of these claims that a record of lower rank holds, and that record.
    pub(super) fn blocker<'c>(&self, rank: &Rank, claims: &'c [Claim]) -> Option<(&'c Claim, &Rank)> {
        claims.iter().find_map(|claim| {
            let holder = self.slots.get(claim)?.holder.as_ref()?;
            (holder < rank && !claim.shared(holder, rank)).then_some((claim, holder))
        })
    }

    /// Those who hold the claim, oldest first.
    pub(super) fn holders(&self, claim: &Claim) -> impl Iterator<Item = &Rank> {
        let slot = self.slots.get(claim);
        let sharing = slot.and_then(|slot| slot.others.as_ref()).into_iter().flat_map(|others| &others.sharing);
        slot.and_then(|slot| slot.holder.as_ref()).into_iter().chain(sharing)
    }
}

impl Slot {
    fn line_up(&mut self, rank: Rank) {
        self.others.get_or_insert_default().waiting.insert(rank);
    }

    fn step_out(&mut self, rank: &Rank) {
        self.holder.take_if(|holder| holder == rank);
        let Some(others) = &mut self.others else { return };
        others.sharing.remove(rank);
        others.waiting.remove(rank);
        // An emptied set keeps a node.
        if others.sharing.is_empty() && others.waiting.is_empty() {
            self.others = None;
        }
    }

    /// Takes in a holder. Those who held it and do not agree are to be decided again; so are those who waited and do.
    fn hold(&mut self, claim: &Claim, rank: &Rank, queue: &mut BTreeSet<Rank>) {
        let before = self.holder.replace(rank.clone());
        if before.is_none() && self.others.is_none() {
            return;
        }
        let others = self.others.get_or_insert_default();
        others.sharing.extend(before);
        if others.sharing.first().is_some_and(|holder| claim.shared(holder, rank)) {
            others.sharing.insert(rank.clone());
            self.holder = others.sharing.pop_first();
            return;
        }
        queue.extend(others.sharing.iter().cloned());
        if matches!(claim, Claim::SharedMac(..)) {
            queue.extend(others.waiting.range(rank..).filter(|waiting| claim.shared(waiting, rank)).cloned());
        }
        others.waiting.append(&mut others.sharing);
    }

    fn call_next(&self, rank: &Rank, queue: &mut BTreeSet<Rank>) {
        let Some(others) = &self.others else { return };
        let behind = |set: &BTreeSet<Rank>| set.range((Bound::Excluded(rank), Bound::Unbounded)).next().cloned();
        queue.extend(behind(&others.sharing).into_iter().chain(behind(&others.waiting)).min());
    }
}

impl Claim {
    /// Whether these two may hold it together.
    fn shared(&self, one: &Rank, other: &Rank) -> bool {
        // Docker's endpoints have their VTEP's address for a node.
        let node = |rank: &Rank| match &*rank.key {
            Key::Endpoint { id, .. } => Some(id.node.clone()),
            _ => None,
        };
        matches!(self, Self::SharedMac(..)) && node(one) == node(other)
    }

    /// The field of the losing record that asks for it.
    pub(super) const fn field(&self) -> &'static str {
        match self {
            Self::Segment(..) => "subnets",
            Self::Vtep(_) => "vtep",
            Self::Ip(..) => "ip",
            Self::Mac(..) | Self::SharedMac(..) => "mac",
            Self::Interface(..) => "ifname",
        }
    }

    /// The same of a record of Docker's.
    pub(super) const fn docker_field(&self) -> &'static str {
        match self {
            Self::Segment(..) => "subnets",
            Self::Vtep(_) => "locator",
            Self::Ip(_, _, IpAddr::V4(_)) => "ep_iface.addr",
            Self::Ip(..) => "ep_iface.addrv6",
            Self::Mac(..) | Self::SharedMac(..) => "ep_iface.mac",
            Self::Interface(..) => "sandbox",
        }
    }
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Segment(port, vni) => write!(f, "VNI {vni} on port {port}"),
            Self::Vtep(ip) => write!(f, "VTEP {ip}"),
            Self::Ip(_, vni, ip) => write!(f, "{ip} on VNI {vni}"),
            Self::Mac(_, vni, mac) | Self::SharedMac(_, vni, mac) => write!(f, "{mac} on VNI {vni}"),
            Self::Interface(node, inner) => match &inner.netns {
                Netns::Path(path) => {
                    write!(f, "{} in {}", inner.ifname, path.display())?;
                    node.iter().try_for_each(|node| write!(f, " on {node}"))
                }
                Netns::Host => {
                    write!(f, "{} of the host", inner.ifname)?;
                    node.iter().try_for_each(|node| write!(f, " {node}"))
                }
            },
        }
    }
}
