//! Drift: observed left desired although desired did not move. Each is counted once per object and episode, and judged only
//! when all that is suspected was read, so that what was lost with its device does not count by itself.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use super::{
    delta::{Fits, Sides, Table},
    device::LinkWant,
    key::{BridgeRowKey, Key, Kind, LinkId},
    network::{Netns, Network},
    report::{DriftReason, Note},
    time::Time,
    trouble::{FIRST_RETRY, LAST_RETRY},
};
use crate::{engine::object::Link, model::Vni, retry::Retry};

/// More foreign rewrites of one object than this …
const FIGHT_REWRITES: usize = 10;
/// … within this time are a fight, which is damped.
const FIGHT_WINDOW: Duration = Duration::from_secs(10);

/// Foreign rewrites of one object.
#[derive(Debug, Default)]
struct Rewrites {
    times: VecDeque<Time>,
    retry: Option<Retry>,
    held_until: Time,
}

impl Rewrites {
    fn over(&self, now: Time) -> bool {
        let quiet = |at: Time| now >= at + FIGHT_WINDOW;
        self.times.back().is_none_or(|last| quiet(*last)) && (self.retry.is_none() || quiet(self.held_until))
    }
}

/// The drift of one network.
#[derive(Debug, Default)]
pub(super) struct Drift {
    suspects: BTreeSet<Key>,
    /// Drift that is not repaired yet, each with its first sign.
    open: BTreeMap<Key, Time>,
    rewrites: BTreeMap<Key, Rewrites>,
    /// Written by us, with an outcome that is known only when it is read: what shows there is not somebody else's doing.
    written: BTreeSet<Key>,
    /// The first sign since the last judgement.
    first_sign: Option<Time>,
}

impl Drift {
    /// Somebody else changed this object; whether it drifted is judged later.
    pub(super) fn suspect(&mut self, key: Key) {
        if !self.written.contains(&key) {
            self.suspects.insert(key);
        }
    }

    /// An operation of ours went to this object, and it has to be read to know what came of it.
    pub(super) fn wrote(&mut self, key: Key) {
        self.written.insert(key);
    }

    /// What happened to these objects has another reason than a foreign hand on them.
    pub(super) fn absolve(&mut self, of: impl Fn(&Key) -> bool) {
        self.suspects.retain(|key| !of(key));
    }

    pub(super) fn has_suspects(&self) -> bool {
        !self.suspects.is_empty()
    }

    /// A sign of foreign change came.
    pub(super) fn signed(&mut self, now: Time) {
        self.first_sign.get_or_insert(now);
    }

    /// Ends an object's episode; the time of its first sign, when there was one.
    pub(super) fn close(&mut self, key: &Key) -> Option<Time> {
        self.open.remove(key)
    }

    pub(super) fn is_open(&self, key: &Key) -> bool {
        self.open.contains_key(key)
    }

    /// What is desired of the object changed: whatever it was fought over before is moot, and so is what it lost before.
    pub(super) fn release(&mut self, key: &Key) {
        self.rewrites.remove(key);
        self.suspects.remove(key);
    }

    /// Whether repairs of this object are spaced out and its time has not come.
    pub(super) fn holds(&self, key: &Key, now: Time) -> bool {
        self.rewrites.get(key).is_some_and(|rewrites| rewrites.held_until > now)
    }

    pub(super) fn next_at(&self, now: Time) -> Option<Time> {
        self.rewrites.values().map(|rewrites| rewrites.held_until).filter(|at| *at > now).min()
    }

    pub(super) fn open_by_kind(&self) -> BTreeMap<Kind, u64> {
        count_kinds(self.open.keys())
    }

    pub(super) fn damped_by_kind(&self) -> BTreeMap<Kind, u64> {
        count_kinds(self.rewrites.iter().filter(|(_, rewrites)| rewrites.retry.is_some()).map(|(key, _)| key))
    }

    /// Notes one more foreign rewrite; how long to leave the object alone when it is a fight.
    fn rewritten(&mut self, key: &Key, now: Time) -> Option<Duration> {
        let rewrites = self.rewrites.entry(key.clone()).or_default();
        rewrites.times.push_back(now);
        while rewrites.times.front().is_some_and(|first| now.since(*first) > FIGHT_WINDOW)
            || rewrites.times.len() > FIGHT_REWRITES + 1
        {
            rewrites.times.pop_front();
        }
        if rewrites.times.len() <= FIGHT_REWRITES && rewrites.retry.is_none() {
            return None;
        }
        let retry = rewrites.retry.get_or_insert_with(|| Retry::new(FIRST_RETRY, LAST_RETRY, key.salt()));
        let pause = retry.delay();
        rewrites.held_until = now + pause;
        Some(pause)
    }
}

fn count_kinds<'a>(keys: impl Iterator<Item = &'a Key>) -> BTreeMap<Kind, u64> {
    let mut counts = BTreeMap::new();
    for key in keys {
        *counts.entry(key.kind()).or_default() += 1;
    }
    counts
}

fn reason_of<D, O>(sides: &Sides<D, O>) -> Option<DriftReason> {
    match (&sides.desired, &sides.observed) {
        (Some(_), None) => Some(DriftReason::Missing),
        (Some(_), Some(_)) => Some(DriftReason::Changed),
        (None, Some(_)) => Some(DriftReason::Unexpected),
        (None, None) => None,
    }
}

impl Network {
    /// Decides which suspects drifted: all that is to be known about them has been read.
    pub(super) fn judge_drift(&mut self, now: Time) {
        let since = self.drift.first_sign.take().unwrap_or(now);
        let mut written = std::mem::take(&mut self.drift.written);
        // What could not be read yet is still of unknown outcome.
        let all_read = self.unread.is_empty();
        written.retain(|key| !all_read || self.waits_for_its_namespace(key));
        self.drift.written = written;
        for key in std::mem::take(&mut self.drift.suspects) {
            let Some(reason) = self.difference(&key) else {
                self.drift.close(&key);
                continue;
            };
            if self.waits_for_its_namespace(&key) {
                self.drift.suspects.insert(key);
                continue;
            }
            if self.drift.is_open(&key) || self.lost_with_another(&key) {
                continue;
            }
            self.notes.push(Note::Drift { kind: key.kind(), reason, object: key.to_string() });
            if let Some(pause) = self.drift.rewritten(&key, now) {
                self.notes.push(Note::Damped { object: key.to_string(), pause });
            }
            self.drift.open.insert(key, since);
        }
        self.drift.rewrites.retain(|_, rewrites| !rewrites.over(now));
    }

    /// Ends the episodes of objects that became right without an operation: desired moved, or somebody else put them back.
    pub(super) fn close_settled_drift(&mut self) {
        let settled: Vec<Key> = self.drift.open.keys().filter(|key| self.difference(key).is_none()).cloned().collect();
        for key in settled {
            self.drift.close(&key);
        }
    }

    /// How an object differs from what is desired; `None` when it does not.
    pub(super) fn difference(&self, key: &Key) -> Option<DriftReason> {
        fn of<K: Ord + Clone, D: Fits<O> + PartialEq, O: PartialEq>(
            table: &Table<K, D, O>,
            key: &K,
        ) -> Option<DriftReason> {
            table.get(key).filter(|_| table.differs(key)).and_then(reason_of)
        }
        match key {
            Key::Netns => match (&self.spec, self.netns) {
                (Some(_), Netns::Absent) => Some(DriftReason::Missing),
                (Some(_), Netns::Foreign) => Some(DriftReason::Changed),
                (None, Netns::Ours(_)) if !self.config.home.is_host() => Some(DriftReason::Unexpected),
                _ => None,
            },
            Key::Link(id) => of(&self.links, id),
            Key::Address(id, net) => of(&self.addresses, &(id.clone(), *net)),
            Key::Route(id, dst) => of(&self.routes, &(id.clone(), *dst)),
            Key::Forwarding(family) => of(&self.forwarding, family),
            Key::Tunnel(key) => of(self.tunnel_rows(key), key),
            Key::BridgeRow(key) => of(&self.bridge_rows, key),
            Key::Neighbour(key) => of(&self.neighbours, key),
            Key::Rules(table) => of(&self.tables, table),
            Key::Chain(id) => of(&self.chains, id),
        }
    }

    /// Whether the endpoint's namespace has to be looked at once more: a container that ended is no drift.
    pub(super) fn waits_for_its_namespace(&self, key: &Key) -> bool {
        match key {
            Key::Link(LinkId::Outer(id) | LinkId::Inner(id))
            | Key::Address(LinkId::Inner(id), _)
            | Key::Route(LinkId::Inner(id), _) => self.unread.looks.contains_key(id),
            _ => false,
        }
    }

    /// Whether the object is not as desired only because another one, which counts, is not.
    fn lost_with_another(&self, key: &Key) -> bool {
        if !matches!(self.netns, Netns::Ours(_)) && *key != Key::Netns {
            return true;
        }
        match key {
            Key::Netns | Key::Forwarding(_) | Key::Rules(_) => false,
            Key::Chain(id) => self.chain_lost(id),
            Key::Link(LinkId::Inner(id)) => self.link_missing(&LinkId::Outer(id.clone())),
            Key::Link(LinkId::Bridge(vni)) => self.followed_a_port(*vni),
            Key::Link(id) => self.links.get(id).is_some_and(|sides| self.only_lost_its_bridge(id, sides)),
            Key::Address(id, net) => {
                self.link_missing(id) || (net.addr().is_ipv6() && self.link_has(id, |link| !link.up || link.mtu < 1280))
            }
            // Those of a link that is down go without a word, and IPv4's with the link's last address.
            Key::Route(id, dst) => {
                let v4 = dst.addr().is_ipv4();
                self.link_missing(id)
                    || self.link_has(id, |link| !link.up || (!v4 && link.mtu < 1280))
                    || (v4 && !self.has_v4_address(id))
            }
            Key::Tunnel(key) => self.link_missing(&LinkId::Vxlan(key.vni)),
            Key::BridgeRow(key) => self.port_lost(key),
            Key::Neighbour(key) => {
                let id = key.link();
                let mac = self.links.desired_of(&id).map(|want| want.mac);
                self.link_missing(&id)
                    || self.link_has(&id, |link| !link.up || Some(link.mac) != mac)
                    || (key.ip.is_ipv6() && self.link_has(&id, |link| link.mtu < 1280))
            }
        }
    }

    fn link_missing(&self, id: &LinkId) -> bool {
        self.links.observed_of(id).is_none()
    }

    fn link_has(&self, id: &LinkId, property: impl Fn(&Link) -> bool) -> bool {
        self.links.observed_of(id).is_some_and(property)
    }

    /// A bridge whose MTU was never set to another value than the kernel's own takes its ports' least (br_mtu_auto_adjust,
    /// net/bridge/br_if.c), or the kernel's own when it has none: it is the port that was changed, or went.
    fn followed_a_port(&self, vni: Vni) -> bool {
        let id = LinkId::Bridge(vni);
        let (Some(want), Some(link)) = (self.links.desired_of(&id), self.links.observed_of(&id)) else { return false };
        let healed = Fits::fits(want, &Link { mtu: want.mtu, ..link.clone() });
        let ports = self.by_index.values().filter(|port| matches!(port, LinkId::Vxlan(_) | LinkId::Outer(_)));
        let changed = |port: &LinkId| {
            self.links.differs(port) && self.link_has(port, |p| p.master == Some(link.ifindex) && p.mtu == link.mtu)
        };
        let vxlan = LinkId::Vxlan(vni);
        let left = self.links.desired_of(&vxlan).is_some()
            && (self.link_missing(&vxlan) || self.link_has(&vxlan, |p| p.master != Some(link.ifindex)));
        healed && link.mtu != want.mtu && (left || ports.into_iter().any(changed))
    }

    /// A bridge that goes takes its ports' membership with it.
    fn only_lost_its_bridge(&self, id: &LinkId, sides: &Sides<LinkWant, Link>) -> bool {
        let vni = match id {
            LinkId::Vxlan(vni) => Some(*vni),
            LinkId::Outer(id) => self.locals.get(id).map(|local| local.spec.vni),
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
        let port = self.bridge_rows.desired_of(key).map(|id| LinkId::Outer(id.clone()));
        self.link_missing(&LinkId::Bridge(key.vni))
            || port.is_some_and(|port| {
                self.link_missing(&port) || self.link_has(&port, |link| link.master != self.bridge_index(key.vni))
            })
    }
}
