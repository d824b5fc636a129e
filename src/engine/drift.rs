//! Drift: observed left desired although desired did not move. Each is counted once per object and episode, and judged only
//! when all that is suspected was read, so that what was lost with its device does not count by itself.
//!
//! **Invariant:** a drift counts once per object and episode, and what went with its device not singly
//! (`a_deleted_row_is_back_and_counted_once`, `a_deleted_device_comes_back_with_its_rows_which_do_not_count_singly`,
//! `a_deleted_namespace_is_built_again_and_counts_once`).

use super::{
    delta::{Fits, Sides},
    device::LinkWant,
    key::{BridgeRowKey, Family, Key, LinkId},
    network::Network,
    object::Link,
    report::Note,
    setting::Setting,
    tables::Netns,
    time::Time,
    view::View,
};
use crate::model::Vni;

impl Network {
    /// Decides which suspects drifted: all that is to be known about them has been read.
    pub(super) fn judge_drift(&mut self, now: Time) {
        let since = self.episodes.take_first_sign().unwrap_or(now);
        // What could not be read yet is still of unknown outcome.
        let all_read = self.reads.is_empty();
        let reads = &self.reads;
        self.episodes.forget_writes(|key| !all_read || reads.awaits_netns_of(key));
        for key in self.episodes.take_suspects() {
            let Some(reason) = self.view().difference(&key) else {
                self.episodes.close(&key);
                continue;
            };
            if self.reads.awaits_netns_of(&key) {
                self.episodes.stays_suspect(&key);
                continue;
            }
            if self.episodes.is_open(&key) || self.view().lost_with_another(&key) {
                continue;
            }
            self.report.notes.push(Note::Drift { kind: key.kind(), reason, object: key.to_string() });
            if let Some(pause) = self.episodes.open(&key, since, now) {
                self.tables.rest(&key);
                self.report.notes.push(Note::Damped { object: key.to_string(), pause });
            }
        }
        if self.episodes.has_suspects() {
            self.episodes.signed(since);
        }
        self.episodes.end_fights(now);
    }
}

impl View<'_> {
    /// Whether the object is not as desired only because another one, which counts, is not.
    pub(super) fn lost_with_another(&self, key: &Key) -> bool {
        if !matches!(self.tables.netns, Netns::Ours(_)) && *key != Key::Netns {
            return true;
        }
        match key {
            Key::Netns | Key::Forwarding(_) | Key::Rules(_) => false,
            Key::Chain(id) => self.chain_lost(id),
            Key::Link(LinkId::Inner(id)) => self.link_missing(&LinkId::Outer(id.clone())),
            Key::Link(LinkId::Bridge(vni)) => self.followed_a_port(*vni) || self.followed_the_host(*vni),
            Key::Link(id) => self.tables.links.get(id).is_some_and(|sides| self.only_lost_its_bridge(id, sides)),
            Key::Address(id, net) => {
                let v6 = net.addr().is_ipv6();
                self.link_missing(id)
                    || self.link_has(id, |link| {
                        v6 && (!link.up || link.mtu < 1280 || link.off.contains(&Setting::Ipv6Disabled))
                    })
            }
            // Those of a link that is down go without a word, and IPv4's with the link's last address.
            Key::Route(id, dst) => {
                let v4 = dst.addr().is_ipv4();
                self.link_missing(id)
                    || self.link_has(id, |link| !link.up || (!v4 && link.mtu < 1280))
                    || (v4 && !self.tables.has_v4_address(id))
            }
            // A device that was given a destination of its own has a row for it in the flood list.
            Key::Tunnel(key) => {
                let id = LinkId::Vxlan(key.vni);
                let own = |link: &Link| [Setting::Remote, Setting::Remote6].iter().any(|own| link.off.contains(own));
                self.link_missing(&id) || (key.dst.is_some() && self.link_has(&id, own))
            }
            Key::BridgeRow(key) => self.port_lost(key),
            Key::Neighbour(key) => {
                let id = key.link();
                let mac = self.tables.links.desired_of(&id).map(|want| want.mac);
                self.link_missing(&id)
                    || self.link_has(&id, |link| !link.up || Some(link.mac) != mac || link.off.contains(&Setting::Arp))
                    || (key.ip.is_ipv6()
                        && self.link_has(&id, |link| link.mtu < 1280 || link.off.contains(&Setting::Ipv6Disabled)))
            }
        }
    }

    fn link_missing(&self, id: &LinkId) -> bool {
        self.tables.links.observed_of(id).is_none()
    }

    fn link_has(&self, id: &LinkId, property: impl Fn(&Link) -> bool) -> bool {
        self.tables.links.observed_of(id).is_some_and(property)
    }

    /// Who stops the host from forwarding stops each of its links.
    fn followed_the_host(&self, vni: Vni) -> bool {
        let id = LinkId::Bridge(vni);
        let (Some(want), Some(link)) = (self.tables.links.desired_of(&id), self.tables.links.observed_of(&id)) else {
            return false;
        };
        let only = link.off.contains(&Setting::Forwarding) && {
            let mut healed = link.clone();
            healed.off.remove(&Setting::Forwarding);
            Fits::fits(want, &healed)
        };
        only && self.tables.forwarding.differs(&Family::V4)
    }

    /// A bridge whose MTU was never set to another value than the kernel's own takes its ports' least (br_mtu_auto_adjust,
    /// net/bridge/br_if.c), or the kernel's own when it has none: it is the port that was changed, or went.
    fn followed_a_port(&self, vni: Vni) -> bool {
        let id = LinkId::Bridge(vni);
        let (Some(want), Some(link)) = (self.tables.links.desired_of(&id), self.tables.links.observed_of(&id)) else {
            return false;
        };
        let healed = Fits::fits(want, &Link { mtu: want.mtu, ..link.clone() });
        let ports = self.tables.by_index.values().filter(|port| matches!(port, LinkId::Vxlan(_) | LinkId::Outer(_)));
        let changed = |port: &LinkId| {
            self.tables.links.differs(port)
                && self.link_has(port, |p| p.master == Some(link.ifindex) && p.mtu == link.mtu)
        };
        let vxlan = LinkId::Vxlan(vni);
        let left = self.tables.links.desired_of(&vxlan).is_some()
            && (self.link_missing(&vxlan) || self.link_has(&vxlan, |p| p.master != Some(link.ifindex)));
        healed && link.mtu != want.mtu && (left || ports.into_iter().any(changed))
    }

    /// A bridge that goes takes its ports' membership with it.
    fn only_lost_its_bridge(&self, id: &LinkId, sides: &Sides<LinkWant, Link>) -> bool {
        let vni = match id {
            LinkId::Vxlan(vni) => Some(*vni),
            LinkId::Outer(id) => self.locals.by_id.get(id).map(|local| local.spec.vni),
            _ => None,
        };
        let (Some(vni), Some(want), Some(link)) = (vni, &sides.desired, &sides.observed) else { return false };
        // With a bridge that is where it is and a port as it should be, would anything be wrong?
        let healed = want.port().map(|(_, port)| {
            let mut want = want.clone();
            want.join(u32::MAX);
            Fits::fits(&want, &Link { master: Some(u32::MAX), port: Some(port), ..link.clone() })
        });
        self.link_missing(&LinkId::Bridge(vni)) && link.master.is_none() && healed == Some(true)
    }

    fn port_lost(&self, key: &BridgeRowKey) -> bool {
        let port = self.tables.bridge_rows.desired_of(key).map(|id| LinkId::Outer(id.clone()));
        self.link_missing(&LinkId::Bridge(key.vni))
            || port.is_some_and(|port| {
                self.link_missing(&port)
                    || self.link_has(&port, |link| link.master != self.tables.bridge_index(key.vni))
            })
    }
}
