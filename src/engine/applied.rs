//! Results of operations: acknowledgements move the observed side, failures end in reading again and in a retry.

use super::{
    delta::Cause,
    key::{Key, LinkId},
    network::{BridgeRowSeen, NeighbourSeen, Network, TunnelSeen},
    object::{Forwarding, RouteRow},
    plan::Planned,
    report::Note,
    seam::{Action, Failure, FailureKind, LinkRef, Op, Place},
    time::Time,
    unread::ReadCause,
};

use crate::model::nft::ChainId;

/// So many acknowledged operations may pass before an object is as desired.
const NORMAL_ROUNDS: u32 = 4;

impl Network {
    /// Takes the results of the last [`super::Effect::Apply`], one for each operation, in order.
    pub fn applied(&mut self, results: Vec<Result<(), Failure>>, now: Time) {
        let unanswered = || Err(Failure::new(FailureKind::Torn, "the kernel gave no answer to this operation"));
        let results = results.into_iter().chain(std::iter::repeat_with(unanswered));
        for (planned, result) in std::mem::take(&mut self.sent).into_iter().zip(results) {
            let gone = matches!(&result, Err(failure) if failure.kind == FailureKind::NotFound);
            let result = if gone && planned.action == Action::Delete { Ok(()) } else { result };
            self.notes.push(Note::Op {
                kind: planned.key.kind(),
                action: planned.action,
                cause: planned.cause,
                failure: result.as_ref().err().map(|failure| failure.message.clone()),
                object: result.is_err().then(|| planned.key.to_string()),
            });
            self.may_move_its_bridge(&planned.op);
            match result {
                Ok(()) => self.acknowledged(&planned, now),
                Err(failure) => self.failed(&planned, failure, now),
            }
        }
    }

    /// A bridge may follow the MTU of a port that we set, join or remove (br_mtu_auto_adjust, net/bridge/br_if.c), also where the
    /// operation failed half-way. That is our doing, even when desired is by now what the bridge had before.
    fn may_move_its_bridge(&mut self, op: &Op) {
        let (ifindex, joined) = match op {
            Op::SetLink { place: Place::Overlay, ifindex, change } => (ifindex, change.master),
            Op::DeleteLink { place: Place::Overlay, ifindex } => (ifindex, None),
            _ => return,
        };
        let port = self.by_index.get(ifindex).and_then(|id| self.links.observed_of(id));
        let bridge = joined.or_else(|| port?.master).and_then(|master| self.by_index.get(&master));
        if let Some(bridge) = bridge.cloned() {
            self.drift.wrote(Key::Link(bridge));
        }
    }

    fn acknowledged(&mut self, planned: &Planned, now: Time) {
        match (&planned.op, &planned.key) {
            (Op::CreateNetns | Op::DeleteNetns, _) => self.unread.netns = Some(ReadCause::Own),
            (Op::AddLink(_) | Op::SetLink { .. } | Op::DeleteLink { .. }, Key::Link(id)) => {
                self.link_written(id, &planned.op, planned.cause)
            }
            (Op::AddAddress { .. }, Key::Address(id, net)) => {
                self.saw_address(&(id.clone(), *net), Some(true), ReadCause::Own);
            }
            (Op::DeleteAddress { .. }, Key::Address(id, net)) => {
                self.saw_address(&(id.clone(), *net), None, ReadCause::Own);
                self.address_taken(id);
            }
            (Op::AddRoute { route, .. } | Op::ReplaceRoute { route, .. }, Key::Route(id, dst)) => {
                let seen = RouteRow { route: *route, ours: true, plain: true, alone: true };
                self.routes.saw(&(id.clone(), *dst), Some(seen), Cause::Change);
            }
            (Op::DeleteRoute { .. }, Key::Route(id, dst)) => {
                self.routes.saw(&(id.clone(), *dst), None, Cause::Change);
            }
            (Op::SetForwarding { on, .. }, Key::Forwarding(family)) => {
                self.forwarding.saw(family, on.then_some(Forwarding::Everywhere), Cause::Change);
            }
            (Op::PutFdb { dst, .. }, Key::Tunnel(key)) => {
                let seen = TunnelSeen { dst: Some(*dst), plain: true };
                self.tunnel_rows_mut(key).saw(key, Some(seen), Cause::Change);
            }
            (Op::DeleteFdb { dst: None, .. }, Key::Tunnel(key)) if key.dst.is_some() => {
                for lost in self.lose_flood_list(key.vni, planned.cause) {
                    self.settled(&Key::Tunnel(lost), now);
                }
            }
            (Op::DeleteFdb { .. }, Key::Tunnel(key)) => {
                self.tunnel_rows_mut(key).saw(key, None, Cause::Change);
            }
            (Op::PutBridgeRow { ifindex, .. }, Key::BridgeRow(key)) => {
                let port = match self.by_index.get(ifindex) {
                    Some(LinkId::Outer(id)) => Some(id.clone()),
                    _ => None,
                };
                self.bridge_rows.saw(key, Some(BridgeRowSeen { port, ifindex: *ifindex, plain: true }), Cause::Change);
            }
            (Op::DeleteBridgeRow { .. }, Key::BridgeRow(key)) => {
                self.bridge_rows.saw(key, None, Cause::Change);
            }
            (Op::PutNeighbour { mac, .. }, Key::Neighbour(key)) => {
                let seen = NeighbourSeen { mac: Some(*mac), permanent: true, ours: true };
                self.neighbours.saw(key, Some(seen), Cause::Change);
            }
            (Op::DeleteNeighbour { .. }, Key::Neighbour(key)) => {
                self.neighbours.saw(key, None, Cause::Change);
            }
            _ => {}
        }
        if let Op::ChangeRules(changes) = &planned.op {
            for key in self.rules_changed(changes) {
                self.settled(&key, now);
            }
            return;
        }
        if matches!(planned.op, Op::ReclaimVni { .. }) {
            return;
        }
        // What is left to the destination shows when it is read.
        if let (Action::Replace, Op::DeleteRoute { .. }, Key::Route(LinkId::Inner(endpoint), _)) =
            (planned.action, &planned.op, &planned.key)
        {
            self.unread.inner(endpoint.clone(), ReadCause::Own);
            self.settling.insert(planned.key.clone());
            self.drift.wrote(planned.key.clone());
            return;
        }
        // Links and the namespace are known only when they are read; what was not done at once is then tried after a pause.
        if matches!(planned.key, Key::Link(_) | Key::Netns) {
            self.settling.insert(planned.key.clone());
            self.drift.wrote(planned.key.clone());
        } else {
            self.settled(&planned.key, now);
        }
    }

    /// An object that an operation of ours was for: as desired now, or not yet.
    fn settled(&mut self, key: &Key, now: Time) {
        if self.difference(key).is_some() {
            return;
        }
        self.troubles.over(key);
        if let Some(since) = self.drift.close(key) {
            self.notes.push(Note::Repaired { kind: key.kind(), took: now.since(since), object: key.to_string() });
        }
    }

    /// Settles the links that operations of ours were for, once they were read.
    pub(super) fn settle_links(&mut self, now: Time) {
        for key in std::mem::take(&mut self.settling) {
            if self.difference(&key).is_none() {
                self.unsettled.remove(&key);
                self.settled(&key, now);
                continue;
            }
            // A link is made, then set: a few rounds are normal, more are a kernel that says yes and does nothing.
            let rounds = self.unsettled.entry(key.clone()).or_default();
            *rounds += 1;
            if *rounds > NORMAL_ROUNDS {
                let failure =
                    Failure::new(FailureKind::Refused, "the kernel acknowledged, and it is still not as asked");
                self.troubles.failed(&key, failure, now);
            }
        }
    }

    fn link_written(&mut self, id: &LinkId, op: &Op, cause: Cause) {
        match op {
            Op::DeleteLink { place: Place::Overlay, ifindex } => {
                if let Some(gone) = self.by_index.get(ifindex).cloned() {
                    self.observe_gone(&gone, cause);
                    self.link_moved(&gone);
                }
            }
            Op::SetLink { place: Place::Overlay, ifindex, .. } => {
                self.unread.link(LinkRef::Index(*ifindex), ReadCause::Own);
            }
            op => {
                if let Some(name) = Self::new_link_name(op) {
                    self.unread.link(name, ReadCause::Own);
                }
            }
        }
        if let LinkId::Inner(endpoint) | LinkId::Outer(endpoint) = id {
            self.unread.inner(endpoint.clone(), ReadCause::Own);
        }
    }

    /// Nothing is assumed about an object whose operation failed: it is read again, and tried again later.
    fn failed(&mut self, planned: &Planned, failure: Failure, now: Time) {
        if self.drift.is_open(&planned.key) {
            self.notes.push(Note::RepairFailed { kind: planned.key.kind() });
        }
        self.troubles.failed(&planned.key, failure, now);
        self.drift.wrote(planned.key.clone());
        match &planned.op {
            Op::CreateNetns | Op::DeleteNetns => self.unread.netns = Some(ReadCause::Own),
            Op::DeleteLink { place: Place::Overlay, ifindex } => {
                // The pair may be gone all the same, by the end that the operation was not for.
                if let Some(id) = self.by_index.get(ifindex) {
                    self.drift.wrote(Key::Link(id.clone()));
                }
                self.unread.link(LinkRef::Index(*ifindex), ReadCause::Own);
            }
            Op::ReclaimVni { .. } => {}
            Op::ChangeRules(_) => {
                if let Key::Rules(table) | Key::Chain(ChainId { table, .. }) = &planned.key {
                    self.drift.wrote(Key::Rules(table.clone()));
                    self.unread.rules(table.clone(), ReadCause::Foreign);
                }
            }
            Op::AddLink(_) | Op::SetLink { .. } | Op::DeleteLink { .. } => {
                if let Key::Link(id) = &planned.key {
                    self.link_written(id, &planned.op, planned.cause);
                }
            }
            Op::SetForwarding { .. } => {
                self.unread.forwarding = self.unread.forwarding.max(Some(ReadCause::Foreign));
            }
            Op::AddRoute { .. } | Op::ReplaceRoute { .. } | Op::DeleteRoute { .. } => {
                if let Key::Route(LinkId::Inner(endpoint), _) = &planned.key {
                    self.unread.inner(endpoint.clone(), ReadCause::Foreign);
                }
            }
            Op::AddAddress { place, ifindex, .. } | Op::DeleteAddress { place, ifindex, .. } => match &planned.key {
                Key::Address(id @ LinkId::Inner(endpoint), _) => {
                    if matches!(planned.op, Op::DeleteAddress { .. }) {
                        self.address_taken(id);
                    }
                    self.unread.inner(endpoint.clone(), ReadCause::Foreign);
                }
                _ if *place == Place::Overlay => self.unread.link(LinkRef::Index(*ifindex), ReadCause::Foreign),
                _ => {}
            },
            Op::PutFdb { ifindex, mac, .. } | Op::DeleteFdb { ifindex, mac, .. } => {
                self.read_tunnel_row(*ifindex, *mac);
            }
            Op::PutBridgeRow { ifindex, .. } | Op::DeleteBridgeRow { ifindex, .. } => {
                self.unread.link(LinkRef::Index(*ifindex), ReadCause::Foreign);
                if let Key::BridgeRow(key) = &planned.key {
                    self.read_bridge_row(key);
                }
            }
            Op::PutNeighbour { ifindex, ip, .. } | Op::DeleteNeighbour { ifindex, ip } => {
                self.unread.neighbours.insert((*ifindex, *ip));
            }
        }
    }
}
