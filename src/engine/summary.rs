//! Where a network stands.

use std::collections::BTreeMap;

use super::{
    key::{Key, Kind, LinkId},
    network::{InnerStatus, Local, Netns, Network},
    report::{Blocked, Summary},
};

impl Network {
    /// Whether all that was desired was read or acknowledged, and nothing waits to be read.
    pub fn in_sync(&self) -> bool {
        let netns = match self.netns {
            Netns::Ours(_) => self.spec.is_some() || self.config.home.is_host(),
            Netns::Absent => self.spec.is_none(),
            Netns::Unknown | Netns::Foreign => false,
        };
        self.told
            && netns
            && self.unread.is_empty()
            && self.links.in_sync()
            && self.addresses.in_sync()
            && self.routes.in_sync()
            && self.forwarding.in_sync()
            && self.tunnels.in_sync()
            && self.flood_rows.in_sync()
            && self.bridge_rows.in_sync()
            && self.neighbours.in_sync()
            && self.tables.in_sync()
            && self.chains.in_sync()
            && self.barred().next().is_none()
            && self.locals.values().all(Local::known)
    }

    /// Where the network stands, for metrics and status.
    pub fn summary(&self) -> Summary {
        let netns = |present: bool| u64::from(present && !self.config.home.is_host());
        let mut objects = BTreeMap::new();
        let mut count = |kind, desired: usize, observed: usize| {
            let sum: &mut (u64, u64) = objects.entry(kind).or_default();
            sum.0 += desired as u64;
            sum.1 += observed as u64;
        };
        count(Kind::Link, self.links.desired_len(), self.links.observed_len());
        count(Kind::Address, self.addresses.desired_len(), self.addresses.observed_len());
        count(Kind::Route, self.routes.desired_len(), self.routes.observed_len());
        count(Kind::Route, self.forwarding.desired_len(), self.forwarding.observed_len());
        count(Kind::Fdb, self.tunnels.desired_len(), self.tunnels.observed_len());
        count(Kind::Flood, self.flood_rows.desired_len(), self.flood_rows.observed_len());
        count(Kind::Fdb, self.bridge_rows.desired_len(), self.bridge_rows.observed_len());
        count(Kind::Neighbour, self.neighbours.desired_len(), self.neighbours.observed_len());
        count(Kind::Nat, self.tables.desired_len(), self.tables.observed_len());
        count(Kind::Nat, self.chains.desired_len(), self.chains.observed_len());
        objects.insert(Kind::Netns, (netns(self.spec.is_some()), netns(matches!(self.netns, Netns::Ours(_)))));
        Summary {
            in_sync: self.in_sync(),
            revision: self.revision,
            applied_revision: if self.in_sync() { self.revision } else { self.applied_revision },
            objects,
            blocked: self.blocked(),
            drifting: self.drift.open_by_kind(),
            damped: self.drift.damped_by_kind(),
            held: if self.removals_held { self.leftovers() } else { 0 },
            waiting_endpoints: self.locals.values().filter(|local| !local.wired() && !local.shadowed).count() as u64,
        }
    }

    /// How many objects stand that nothing desires.
    fn leftovers(&self) -> u64 {
        let netns = usize::from(self.spec.is_none() && matches!(self.netns, Netns::Ours(_)));
        let links = self.links.leftovers() + self.addresses.leftovers();
        let rows = self.tunnels.leftovers() + self.bridge_rows.leftovers() + self.neighbours.leftovers();
        (netns + links + rows) as u64
    }

    /// Whether this is an endpoint's end that cannot be read: the trouble is not that it differs.
    pub(super) fn unreadable(&self, key: &Key) -> bool {
        matches!(key, Key::Link(LinkId::Inner(id)) if self.locals.get(id).is_some_and(|local| local.unreadable))
    }

    fn blocked(&self) -> Vec<Blocked> {
        let refused = self.locals.iter().filter_map(|(id, local)| match &local.status {
            InnerStatus::Refused(reason) => Some(Blocked {
                object: LinkId::Inner(id.clone()).to_string(),
                kind: Kind::Link,
                reason: "netns_refused",
                message: reason.clone(),
            }),
            _ => None,
        });
        self.troubles.blocked().chain(self.unread.blocked()).chain(refused).chain(self.barred()).collect()
    }
}
