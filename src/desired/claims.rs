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

/// A network's number in this process's memory, for its name would cost more in every claim.
pub(super) type NetworkNumber = u32;

/// What one record holds and no other may.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Claim {
    /// A VXLAN segment, by a network.
    Segment(u16, Vni),
    /// A VTEP address, by a node.
    Vtep(IpAddr),
    /// An address on a network's segment, by an endpoint.
    Ip(NetworkNumber, Vni, IpAddr),
    /// A MAC address on a network's segment, by an endpoint.
    Mac(NetworkNumber, Vni, Mac),
    /// The same in one of Docker's networks: endpoints behind one VTEP may share it, for its row leads to that VTEP.
    SharedMac(NetworkNumber, Vni, Mac),
    /// An interface of a node's network namespace, by an endpoint. The namespace of one of Docker's sandboxes stands without
    /// its node: its name is random, and native endpoints know their node by another name than Docker's do.
    Interface(Arc<(Option<Name>, Inner)>),
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

/// Who else than its holder claims what is contested.
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
    /// The oldest of those who hold each claim.
    holders: BTreeMap<Claim, Rank>,
    /// The claims that others make as well. Nearly all are made by one record alone, which must cost nothing more.
    contested: BTreeMap<Claim, Others>,
    queue: BTreeSet<Rank>,
}

impl Claims {
    /// The record begins to claim these, which nobody else does: it holds them, and need not be decided. False, and nothing is
    /// changed, where somebody does.
    ///
    /// An older one that comes later takes them over, as it would have from one that was decided in its turn.
    pub(super) fn hold_if_free(&mut self, rank: &Rank, claims: &[Claim]) -> bool {
        if claims.iter().any(|claim| self.holders.contains_key(claim) || self.contested.contains_key(claim)) {
            return false;
        }
        for claim in claims {
            self.holders.insert(claim.clone(), rank.clone());
        }
        true
    }

    /// The record begins to claim these. It is to be decided.
    pub(super) fn enter(&mut self, rank: &Rank, claims: &[Claim]) {
        for claim in claims {
            self.contested.entry(claim.clone()).or_default().waiting.insert(rank.clone());
        }
        self.queue.insert(rank.clone());
    }

    /// The record claims these no more. Who waited behind it is to be decided.
    pub(super) fn leave(&mut self, rank: &Rank, claims: &[Claim]) {
        for claim in claims {
            self.step_out(claim, rank);
            // Also who did not hold it may have been called to take it.
            if !self.holders.contains_key(claim) {
                self.call_next(claim, rank);
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
            self.step_out(claim, rank);
            if wins {
                self.hold(claim, rank);
            } else {
                self.contested.entry(claim.clone()).or_default().waiting.insert(rank.clone());
                // What nobody holds goes on down the line until somebody takes it.
                if !self.holders.contains_key(claim) {
                    self.call_next(claim, rank);
                }
            }
        }
        wins
    }

    /// The first of these claims that a record of lower rank holds, and that record.
    pub(super) fn blocker<'c>(&self, rank: &Rank, claims: &'c [Claim]) -> Option<(&'c Claim, &Rank)> {
        claims.iter().find_map(|claim| {
            let holder = self.holders.get(claim)?;
            (holder < rank && !claim.shared(holder, rank)).then_some((claim, holder))
        })
    }

    /// Those who hold the claim, oldest first.
    pub(super) fn holders(&self, claim: &Claim) -> impl Iterator<Item = &Rank> {
        let sharing = self.contested.get(claim).into_iter().flat_map(|others| &others.sharing);
        self.holders.get(claim).into_iter().chain(sharing)
    }

    fn step_out(&mut self, claim: &Claim, rank: &Rank) {
        if self.holders.get(claim) == Some(rank) {
            self.holders.remove(claim);
        }
        let Some(others) = self.contested.get_mut(claim) else { return };
        others.sharing.remove(rank);
        others.waiting.remove(rank);
        if others.sharing.is_empty() && others.waiting.is_empty() {
            self.contested.remove(claim);
        }
    }

    /// Takes in a holder. Those who held it and do not agree are to be decided again; so are those who waited and do.
    fn hold(&mut self, claim: &Claim, rank: &Rank) {
        let before = self.holders.insert(claim.clone(), rank.clone());
        if before.is_none() && !self.contested.contains_key(claim) {
            return;
        }
        let others = self.contested.entry(claim.clone()).or_default();
        others.sharing.extend(before);
        if others.sharing.first().is_some_and(|holder| claim.shared(holder, rank)) {
            others.sharing.insert(rank.clone());
            if let Some(oldest) = others.sharing.pop_first() {
                self.holders.insert(claim.clone(), oldest);
            }
        } else {
            self.queue.extend(others.sharing.iter().cloned());
            if matches!(claim, Claim::SharedMac(..)) {
                let agrees = |waiting: &&Rank| claim.shared(waiting, rank);
                self.queue.extend(others.waiting.range(rank..).filter(agrees).cloned());
            }
            others.waiting.append(&mut others.sharing);
        }
        if others.sharing.is_empty() && others.waiting.is_empty() {
            self.contested.remove(claim);
        }
    }

    fn call_next(&mut self, claim: &Claim, rank: &Rank) {
        let Some(others) = self.contested.get(claim) else { return };
        let behind = |set: &BTreeSet<Rank>| set.range((Bound::Excluded(rank), Bound::Unbounded)).next().cloned();
        self.queue.extend(behind(&others.sharing).into_iter().chain(behind(&others.waiting)).min());
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
            Self::Interface(at) => {
                let (node, Inner { netns, ifname }) = &**at;
                let on = match netns {
                    Netns::Path(path) => {
                        write!(f, "{ifname} in {}", path.display())?;
                        " on"
                    }
                    Netns::Host => {
                        write!(f, "{ifname} of the host")?;
                        ""
                    }
                };
                node.iter().try_for_each(|node| write!(f, "{on} {node}"))
            }
        }
    }
}
