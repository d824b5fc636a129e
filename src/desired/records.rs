//! What the store-wide stage remembers of each record.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::Path,
    sync::Arc,
};

use super::{
    NetworkSpec,
    claims::{Claim, Inner, NetworkNumber, Rank},
    quota::Quota,
};
use crate::{
    model::{Endpoint, EndpointId, Mac, Name, Netns, Network, Route, Vni},
    schema::Key,
};

/// The last good version of a record.
#[derive(Debug)]
pub(super) struct Held<T> {
    pub(super) rank: Rank,
    /// The revision that was last heard of it, good or bad; negative while its removal is held.
    pub(super) modified: i64,
    pub(super) value: T,
}

/// A network that has a record, or endpoints that wait for one.
#[derive(Debug, Default)]
pub(super) struct NetworkState {
    /// What its endpoints' claims call it.
    pub(super) number: NetworkNumber,
    pub(super) record: Option<Held<Arc<Network>>>,
    pub(super) in_force: bool,
    pub(super) endpoints: BTreeMap<EndpointId, EndpointState>,
    /// A sum over their names.
    pub(super) digest: u64,
    /// Which of them count, where there are too many.
    pub(super) quota: Quota,
    /// How many of them are in force on this node.
    pub(super) local: usize,
    /// How many of them are in force behind VTEPs of each family.
    pub(super) behind: Behind,
    /// What this node was told that the network is.
    pub(super) told: Option<Arc<NetworkSpec>>,
}

/// The families of the VTEPs that a network's endpoints in force are behind.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Behind {
    v4: usize,
    v6: usize,
}

impl Behind {
    /// The endpoint that was counted as `before` is to be counted as `now`.
    pub(super) fn count(&mut self, before: Option<Family>, now: Option<Family>) {
        if let Some(family) = before {
            *self.of(family) -= 1;
        }
        if let Some(family) = now {
            *self.of(family) += 1;
        }
    }

    const fn of(&mut self, family: Family) -> &mut usize {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }

    /// How many there are.
    pub(super) const fn total(self) -> usize {
        self.v4 + self.v6
    }

    /// Whether they are of both families: no one VXLAN device reaches them all.
    pub(super) const fn is_mixed(self) -> bool {
        self.v4 > 0 && self.v6 > 0
    }
}

/// The family of a VTEP address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

impl From<IpAddr> for Family {
    fn from(vtep: IpAddr) -> Self {
        if vtep.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// A node that has a record, or endpoints that wait for one.
#[derive(Debug, Default)]
pub(super) struct NodeState {
    pub(super) record: Option<Held<IpAddr>>,
    pub(super) in_force: bool,
    /// The keys of the endpoints that live there, shared with their ranks.
    pub(super) endpoints: BTreeSet<Arc<Key>>,
}

/// An endpoint's record, in the form that costs least.
#[derive(Debug)]
pub(super) struct EndpointState {
    pub(super) held: Held<EndpointValue>,
    pub(super) standing: Standing,
    /// As what its network counts it in [`NetworkState::behind`].
    pub(super) behind: Option<Family>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct EndpointValue {
    pub(super) ip: Box<[IpAddr]>,
    pub(super) mac: Mac,
    /// Others behind the same VTEP may have the MAC address as well: an endpoint of Docker's.
    pub(super) shares_mac: bool,
    pub(super) inner: Option<Box<Inner>>,
    /// What only few say, and only in Docker's layout.
    pub(super) join: Option<Box<Join>>,
}

/// What Docker's record says of how the endpoint joins its sandbox.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Join {
    pub(super) routes: Box<[Route]>,
    pub(super) no_gateway: bool,
}

/// How an endpoint stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Its network or its node is not in force.
    Pending,
    /// It does not fit its network.
    Misfit,
    /// It fits, and lost a claim.
    Lost(Vni),
    /// It is in force.
    InForce(Vni),
}

impl Standing {
    /// The segment on which it claims.
    pub(super) const fn vni(self) -> Option<Vni> {
        match self {
            Self::Pending | Self::Misfit => None,
            Self::Lost(vni) | Self::InForce(vni) => Some(vni),
        }
    }

    pub(super) const fn is_in_force(self) -> bool {
        matches!(self, Self::InForce(_))
    }
}

impl EndpointValue {
    pub(super) fn new(record: Endpoint) -> Self {
        let mac = record.effective_mac().unwrap_or(Mac::ZERO);
        let ifname = record.ifname;
        let inner = record.netns.map(|netns| Box::new(Inner { netns, ifname }));
        Self { ip: record.ip.into(), mac, shares_mac: false, inner, join: None }
    }

    /// What it claims as an endpoint on this segment.
    pub(super) fn claims(&self, network: NetworkNumber, node: &Name, vni: Vni) -> Vec<Claim> {
        let ips = self.ip.iter().map(|ip| Claim::Ip(network, vni, *ip));
        let mac = self.mac_claim(network, vni);
        let inner = self.inner.as_ref().map(|inner| {
            let inner = one_name(inner);
            let node = if is_sandbox(&inner.netns) { None } else { Some(node.clone()) };
            Claim::Interface(Arc::new((node, inner)))
        });
        ips.chain([mac]).chain(inner).collect()
    }

    /// What it claims of its MAC address.
    pub(super) fn mac_claim(&self, network: NetworkNumber, vni: Vni) -> Claim {
        let claim = if self.shares_mac { Claim::SharedMac } else { Claim::Mac };
        claim(network, vni, self.mac)
    }
}

/// `/var/run` is a link to `/run`: both names of a namespace are one claim.
fn one_name(inner: &Inner) -> Inner {
    let mut one = inner.clone();
    if let Netns::Path(path) = &mut one.netns
        && let Ok(rest) = path.strip_prefix("/var/run")
    {
        *path = Path::new("/run").join(rest);
    }
    one
}

/// Whether the namespace is one of those that Docker names by the first twelve digits of a random identifier.
pub(super) fn is_sandbox(netns: &Netns) -> bool {
    let Netns::Path(path) = netns else { return false };
    let name = path.strip_prefix("/run/docker/netns").ok().and_then(Path::to_str);
    let digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    name.is_some_and(|name| name.len() == 12 && name.bytes().all(digit))
}

/// The segments that a network claims.
pub(super) fn segment_claims(network: &Network) -> Vec<Claim> {
    let vnis: BTreeSet<Vni> = network.subnets.iter().map(|subnet| subnet.vni).collect();
    vnis.into_iter().map(|vni| Claim::Segment(network.port, vni)).collect()
}
