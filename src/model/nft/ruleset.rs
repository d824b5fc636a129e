use std::{collections::BTreeMap, fmt};

use super::Rule;

/// Which packets the chains of a table see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4 and IPv6.
    Inet,
    /// IPv4.
    Ip,
    /// IPv6.
    Ip6,
    /// Whatever a device receives or sends, before all else.
    Netdev,
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Inet => "inet",
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
            Self::Netdev => "netdev",
        })
    }
}

/// What tells a table from the others of a network namespace. It is shown as `nft` writes it, `netdev vtepd`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableId {
    /// The family.
    pub family: Family,
    /// The name, of at most 255 bytes.
    pub name: String,
}

impl TableId {
    /// Makes an identifier.
    pub fn new(family: Family, name: impl Into<String>) -> Self {
        Self { family, name: name.into() }
    }
}

impl fmt::Display for TableId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.family, self.name)
    }
}

/// What tells a chain from the others of a network namespace. It is shown as `nft` writes it, `netdev vtepd veth0`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChainId {
    /// Its table.
    pub table: TableId,
    /// Its name, of at most 127 bytes.
    pub name: String,
}

impl fmt::Display for ChainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.table, self.name)
    }
}

/// A table with all its chains: what should stand, or what stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruleset {
    /// Which table.
    pub table: TableId,
    /// Its chains by name.
    pub chains: BTreeMap<String, Chain>,
    /// What else was read of it: flags (a dormant table filters nothing), sets and other objects. Empty in what should stand.
    pub foreign: Vec<String>,
}

impl Ruleset {
    /// A table without chains.
    pub const fn new(table: TableId) -> Self {
        Self { table, chains: BTreeMap::new(), foreign: Vec::new() }
    }

    /// The table with a chain more.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, chain: Chain) -> Self {
        self.chains.insert(name.into(), chain);
        self
    }
}

/// A chain with its rules, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// Where packets come into it. A chain without one sees none, since no rule here jumps.
    pub hook: Option<Hook>,
    /// Its rules.
    pub rules: Vec<Rule>,
    /// What else was read of it: more than one device, hardware offload. Empty in what should stand.
    pub foreign: Vec<String>,
}

impl Chain {
    /// A chain at a hook.
    pub const fn new(hook: Hook, rules: Vec<Rule>) -> Self {
        Self { hook: Some(hook), rules, foreign: Vec::new() }
    }

    /// Whether it filters what passes through, and drops what no rule decides.
    pub fn drops_forward(&self) -> bool {
        self.hook.as_ref().is_some_and(|hook| {
            hook.kind == ChainKind::Filter && hook.point == HookPoint::Forward && hook.policy == Policy::Drop
        })
    }
}

/// Where packets come into a chain, and what becomes of those that no rule decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    /// What the chain may do.
    pub kind: ChainKind,
    /// Where it hangs.
    pub point: HookPoint,
    /// The order among the chains of one hook: lower ones come first.
    pub priority: i32,
    /// What becomes of a packet that no rule decides.
    pub policy: Policy,
    /// The device, by name, of a chain of the family `netdev`; `None` in all others. The chain outlives it and
    /// waits for another of that name.
    pub device: Option<String>,
}

impl Hook {
    /// Whether a chain can be brought from one hook to the other without deleting it: they differ in nothing but the policy.
    pub fn is_at(&self, other: &Self) -> bool {
        let Self { kind, point, priority, policy: _, device } = self;
        (*kind, *point, *priority, device) == (other.kind, other.point, other.priority, &other.device)
    }
}

/// What a chain may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChainKind {
    /// Let pass or drop.
    Filter,
    /// Translate addresses; it sees the first packet of a connection.
    Nat,
    /// Route locally made packets anew.
    Route,
}

/// Where a chain hangs (`enum nf_inet_hooks`, `enum nf_dev_hooks`, include/uapi/linux/netfilter.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookPoint {
    /// All that comes in.
    Prerouting,
    /// What comes in for this host.
    Input,
    /// What comes in and goes out again.
    Forward,
    /// What this host made.
    Output,
    /// All that goes out.
    Postrouting,
    /// What a device received, before all else.
    Ingress,
    /// What a device is about to send, after all else.
    Egress,
}

/// What becomes of a packet that no rule of a chain decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// It goes on.
    Accept,
    /// It is dropped.
    Drop,
}
