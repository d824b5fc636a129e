//! What an engine is told of its surroundings, once.

use std::{path::PathBuf, time::Duration};

use super::{
    device::{gateway_port_name, outer_name},
    object::{Link, LinkKind},
};
use crate::model::{
    EndpointId, Name,
    nft::{ChainId, TableId},
};

/// What an engine needs to know of its surroundings.
#[derive(Clone, Debug)]
pub struct Config {
    /// The network's name.
    pub name: Name,
    /// Where its bridges are.
    pub home: Home,
    /// The group of all links of ours.
    pub group: u32,
    /// How often everything is read again without a reason.
    pub resync: Duration,
    /// Tables of VXLAN devices with more rows are looked up row by row instead of being dumped.
    pub dump_at_most: usize,
    /// The table of nftables for the guards of endpoints' ports. It is ours wholly, whether anything is desired in it or not.
    pub guards: TableId,
    /// The other tables that are ours in this way.
    pub tables: Vec<TableId>,
}

/// Where a network's bridges and the outer ends of its veth pairs are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Home {
    /// A namespace of the network's own, bound to this path: made and removed with the network, and all on its devices is ours.
    Overlay(PathBuf),
    /// The host's own namespace: it is always there, and in it only what carries our mark is ours.
    Host {
        /// Name of the bridge; there is one, without a tunnel.
        bridge: String,
        /// Take a bridge of that name although it is somebody else's. It is used as it is, and stays when we go.
        adopt: bool,
    },
}

impl Config {
    /// So many rows a dump shows in a quarter of a second, and holds other writers for a few milliseconds at a time.
    pub const DUMP_AT_MOST: usize = 131_072;

    /// Whether the link is a bridge of somebody else's that we use.
    pub(super) fn adopts(&self, link: &Link) -> bool {
        let bridge = matches!(link.kind, LinkKind::Bridge { .. }) && link.group != self.group;
        bridge && matches!(self.home, Home::Host { adopt: true, .. })
    }

    /// The tables of nftables that are ours.
    pub(super) fn own_tables(&self) -> impl Iterator<Item = &TableId> {
        std::iter::once(&self.guards).chain(&self.tables)
    }

    pub(super) fn is_own_table(&self, table: &TableId) -> bool {
        self.own_tables().any(|own| own == table)
    }

    /// Where the guard of an endpoint's port is: it has the port's name.
    pub(super) fn guard_id(&self, endpoint: &EndpointId) -> ChainId {
        ChainId { table: self.guards.clone(), name: self.outer_name(endpoint) }
    }

    /// The name of the overlay end of an endpoint's veth pair.
    pub(super) fn outer_name(&self, id: &EndpointId) -> String {
        if self.home.is_host() { gateway_port_name(id) } else { outer_name(id) }
    }
}

impl Home {
    pub(super) const fn is_host(&self) -> bool {
        matches!(self, Self::Host { .. })
    }
}
