//! What is desired and observed of a network, to be looked at.

use super::{
    config::Config,
    key::{Key, LinkId},
    local::Locals,
    report::DriftReason,
    setting::Setting,
    tables::{Netns, Tables},
    update::Desired,
};

/// The parts of a network on which decisions rest, read only.
#[derive(Clone, Copy, Debug)]
pub(super) struct View<'a> {
    pub(super) config: &'a Config,
    pub(super) desired: &'a Desired,
    pub(super) locals: &'a Locals,
    pub(super) tables: &'a Tables,
}

impl View<'_> {
    /// How an object differs from what is desired; `None` when it does not.
    pub(super) fn difference(&self, key: &Key) -> Option<DriftReason> {
        match (key, &self.desired.spec, self.tables.netns) {
            (Key::Netns, Some(_), Netns::Absent) => Some(DriftReason::Missing),
            (Key::Netns, Some(_), Netns::Foreign) => Some(DriftReason::Changed),
            (Key::Netns, None, Netns::Ours(_)) if !self.config.home.is_host() => Some(DriftReason::Unexpected),
            (key, ..) => self.tables.difference(key),
        }
    }

    /// Whether the namespace of an endpoint's end takes no IPv6 address.
    pub(super) fn refuses_ipv6(&self, inner: &LinkId) -> bool {
        self.tables.links.observed_of(inner).is_some_and(|link| link.off.contains(&Setting::Ipv6Disabled))
    }

    /// Whether this is an endpoint's end that cannot be read: what fails is not that it differs.
    pub(super) fn unreadable(&self, key: &Key) -> bool {
        matches!(key, Key::Link(LinkId::Inner(id)) if self.locals.by_id.get(id).is_some_and(|local| local.unreadable))
    }
}
