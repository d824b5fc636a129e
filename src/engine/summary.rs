//! Where a network stands.

use super::{
    key::{Kind, LinkId},
    local::{InnerStatus, Local},
    network::Network,
    report::{Blocked, Summary},
    tables::Netns,
};

impl Network {
    /// Whether all that was desired was read or acknowledged, and nothing waits to be read.
    pub fn in_sync(&self) -> bool {
        let netns = match self.tables.netns {
            Netns::Ours(_) => self.desired.spec.is_some() || self.config.home.is_host(),
            Netns::Absent => self.desired.spec.is_none(),
            Netns::Unknown | Netns::Foreign => false,
        };
        self.desired.known
            && netns
            && self.reads.is_empty()
            && self.tables.in_sync()
            && self.barred().next().is_none()
            && self.locals.by_id.values().all(Local::known)
    }

    /// Where the network stands, for metrics and status.
    pub fn summary(&self) -> Summary {
        let netns = |present: bool| u64::from(present && !self.config.home.is_host());
        let mut objects = self.tables.counts();
        objects.insert(
            Kind::Netns,
            (netns(self.desired.spec.is_some()), netns(matches!(self.tables.netns, Netns::Ours(_)))),
        );
        let mut summary = Summary {
            in_sync: self.in_sync(),
            revision: self.report.revision,
            applied_revision: if self.in_sync() { self.report.revision } else { self.report.applied_revision },
            objects,
            blocked: self.episodes.blocked().take(Summary::MOST_BLOCKED).collect(),
            blocked_counts: self.episodes.blocked_counts(),
            drifting: self.episodes.open_by_kind(),
            damped: self.episodes.damped_by_kind(),
            held: if self.desired.removals_held { self.leftovers() } else { 0 },
            waiting_endpoints: self.locals.by_id.values().filter(|local| !local.wired() && !local.shadowed).count()
                as u64,
        };
        self.blocked_otherwise().for_each(|blocked| summary.add_blocked(blocked));
        summary
    }

    /// How many objects stand that nothing desires.
    fn leftovers(&self) -> u64 {
        let netns = usize::from(self.desired.spec.is_none() && matches!(self.tables.netns, Netns::Ours(_)));
        (netns + self.tables.leftovers()) as u64
    }

    /// What is blocked for other reasons than a failed operation.
    fn blocked_otherwise(&self) -> impl Iterator<Item = Blocked> {
        let refused = self.locals.by_id.iter().filter_map(|(id, local)| match &local.status {
            InnerStatus::Refused(reason) => Some(Blocked {
                object: LinkId::Inner(id.clone()).to_string(),
                kind: Kind::Link,
                reason: "netns_refused",
                message: reason.clone(),
            }),
            _ => None,
        });
        self.reads.blocked().chain(refused).chain(self.barred())
    }
}
