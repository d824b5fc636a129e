//! Results of operations: acknowledgements move the observed side, failures end in reading again and in a retry.

use std::collections::BTreeMap;

use super::{
    delta::Cause,
    interface::{Action, Failure, FailureKind, LinkRef, NewLink, Op, Place},
    key::{Key, Kind, LinkId},
    network::Network,
    object::{Forwarding, RouteRow},
    plan::Planned,
    reads::ReadCause,
    report::Note,
    tables::{AddressSeen, BridgeRowSeen, NeighbourSeen, TunnelSeen},
    time::Time,
};

use crate::model::nft::ChainId;

/// So many acknowledged operations may pass before an object is as desired.
const NORMAL_ROUNDS: u32 = 4;

impl Network {
    /// Takes the results of the last [`super::Effect::Apply`], one for each operation, in order.
    pub fn applied(&mut self, results: Vec<Result<(), Failure>>, now: Time) {
        let unanswered = || Err(Failure::new(FailureKind::Torn, "the kernel gave no answer to this operation"));
        let results = results.into_iter().chain(std::iter::repeat_with(unanswered));
        let mut acknowledged: BTreeMap<(Kind, Action, Cause), u64> = BTreeMap::new();
        for (planned, result) in std::mem::take(&mut self.sent).into_iter().zip(results) {
            let gone = matches!(&result, Err(failure) if failure.kind == FailureKind::NotFound);
            let result = if gone && planned.action == Action::Delete { Ok(()) } else { result };
            let (kind, action, cause) = (planned.key.kind(), planned.action, planned.cause);
            match &result {
                Ok(()) => *acknowledged.entry((kind, action, cause)).or_default() += 1,
                Err(failure) => {
                    let (failure, object) = (failure.message.clone(), planned.key.to_string());
                    self.report.notes.push(Note::OpFailed { kind, action, cause, failure, object });
                }
            }
            self.may_move_its_bridge(&planned.op);
            match result {
                Ok(()) => self.acknowledged(&planned, now),
                Err(failure) => self.failed(&planned, failure, now),
            }
        }
        let counted = acknowledged.into_iter();
        let notes = counted.map(|((kind, action, cause), count)| Note::Ops { kind, action, cause, count });
        self.report.notes.extend(notes);
    }

    /// A bridge may follow the MTU of a port that we set, join or remove (br_mtu_auto_adjust, net/bridge/br_if.c), also where the
    /// operation failed half-way. That is our doing, even when desired is by now what the bridge had before.
    fn may_move_its_bridge(&mut self, op: &Op) {
        let (ifindex, joined) = match op {
            Op::SetLink { place: Place::Overlay, ifindex, change } => (ifindex, change.master),
            Op::DeleteLink { place: Place::Overlay, ifindex } => (ifindex, None),
            _ => return,
        };
        let port = self.tables.by_index.get(ifindex).and_then(|id| self.tables.links.observed_of(id));
        let bridge = joined.or_else(|| port?.master).and_then(|master| self.tables.by_index.get(&master));
        if let Some(bridge) = bridge.cloned() {
            self.episodes.wrote(Key::Link(bridge));
        }
    }

    fn acknowledged(&mut self, planned: &Planned, now: Time) {
        match (&planned.op, &planned.key) {
            (Op::CreateNetns | Op::DeleteNetns, _) => self.reads.netns = Some(ReadCause::Own),
            (Op::AddLink(_) | Op::SetLink { .. } | Op::DeleteLink { .. }, Key::Link(id)) => {
                self.link_written(id, &planned.op, planned.cause)
            }
            (Op::AddAddress { .. }, Key::Address(id, net)) => {
                self.saw_address(&(id.clone(), *net), Some(AddressSeen { ours: true, routed: true }), ReadCause::Own);
            }
            (Op::DeleteAddress { .. }, Key::Address(id, net)) => {
                self.saw_address(&(id.clone(), *net), None, ReadCause::Own);
                self.address_taken(id);
            }
            (Op::AddRoute { route, .. } | Op::ReplaceRoute { route, .. }, Key::Route(id, dst)) => {
                let seen = RouteRow { route: *route, ours: true, plain: true, alone: true };
                self.tables.routes.set_observed(&(id.clone(), *dst), Some(seen), Cause::Change);
            }
            (Op::DeleteRoute { .. }, Key::Route(id, dst)) => {
                self.tables.routes.set_observed(&(id.clone(), *dst), None, Cause::Change);
            }
            (Op::SetForwarding { on, .. }, Key::Forwarding(family)) => {
                self.tables.forwarding.set_observed(family, on.then_some(Forwarding::Everywhere), Cause::Change);
            }
            (Op::PutFdb { dst, .. }, Key::Tunnel(key)) => {
                let seen = TunnelSeen { dst: Some(*dst), plain: true };
                self.tables.set_tunnel_observed(key, Some(seen), Cause::Change);
            }
            (Op::DeleteFdb { dst: None, .. }, Key::Tunnel(key)) if key.dst.is_some() => {
                for lost in self.lose_flood_list(key.vni, planned.cause) {
                    self.repaired(&Key::Tunnel(lost), now);
                }
            }
            (Op::DeleteFdb { .. }, Key::Tunnel(key)) => {
                self.tables.set_tunnel_observed(key, None, Cause::Change);
            }
            (Op::PutBridgeRow { ifindex, .. }, Key::BridgeRow(key)) => {
                let port = match self.tables.by_index.get(ifindex) {
                    Some(LinkId::Outer(id)) => Some(id.clone()),
                    _ => None,
                };
                self.tables.bridge_rows.set_observed(
                    key,
                    Some(BridgeRowSeen { port, ifindex: *ifindex, plain: true }),
                    Cause::Change,
                );
            }
            (Op::DeleteBridgeRow { .. }, Key::BridgeRow(key)) => {
                self.tables.bridge_rows.set_observed(key, None, Cause::Change);
            }
            (Op::PutNeighbour { mac, .. }, Key::Neighbour(key)) => {
                let seen = NeighbourSeen { mac: Some(*mac), permanent: true, ours: true };
                self.tables.neighbours.set_observed(key, Some(seen), Cause::Change);
            }
            (Op::DeleteNeighbour { .. }, Key::Neighbour(key)) => {
                self.tables.neighbours.set_observed(key, None, Cause::Change);
            }
            _ => {}
        }
        if let Op::ChangeRules(changes) = &planned.op {
            for key in self.rules_changed(changes) {
                self.repaired(&key, now);
            }
            return;
        }
        if matches!(planned.op, Op::ReclaimVni { .. }) {
            return;
        }
        // Whether packets find their way shows when it is read.
        if let (Op::RestoreRoutes { ifindex, .. }, Key::Address(id, _)) = (&planned.op, &planned.key) {
            match id {
                LinkId::Inner(endpoint) => self.reads.inner(endpoint.clone(), ReadCause::Own),
                _ => self.reads.link(LinkRef::Index(*ifindex), ReadCause::Own),
            }
            self.episodes.await_read(planned.key.clone());
            return;
        }
        // What is left to the destination shows when it is read.
        if let (Action::Replace, Op::DeleteRoute { .. }, Key::Route(LinkId::Inner(endpoint), _)) =
            (planned.action, &planned.op, &planned.key)
        {
            self.reads.inner(endpoint.clone(), ReadCause::Own);
            self.episodes.await_read(planned.key.clone());
            return;
        }
        // Links and the namespace are known only when they are read; what was not done at once is then tried after a pause.
        if matches!(planned.key, Key::Link(_) | Key::Netns) {
            self.episodes.await_read(planned.key.clone());
        } else {
            self.repaired(&planned.key, now);
        }
    }

    /// An object that an operation of ours was for: as desired now, or not yet.
    fn repaired(&mut self, key: &Key, now: Time) {
        if self.view().difference(key).is_some() {
            return;
        }
        self.episodes.works(key);
        if let Some(since) = self.episodes.close(key) {
            self.report.notes.push(Note::Repaired {
                kind: key.kind(),
                took: now.since(since),
                object: key.to_string(),
            });
        }
    }

    /// Confirms what operations of ours did to links and the namespace, once they were read.
    pub(super) fn confirm_writes(&mut self, now: Time) {
        let reads = &self.reads;
        for key in self.episodes.take_confirmable(|key| reads.inner_unread(key)) {
            if self.view().difference(&key).is_none() {
                self.episodes.confirmed(&key);
                self.repaired(&key, now);
                continue;
            }
            // A link is made, then set: a few rounds are normal, more are a kernel that says yes and does nothing.
            if self.episodes.count_idle_write(&key) > NORMAL_ROUNDS {
                let failure =
                    Failure::new(FailureKind::Refused, "the kernel acknowledged, and it is still not as asked");
                self.fail(&key, failure, now);
            }
        }
    }

    fn link_written(&mut self, id: &LinkId, op: &Op, cause: Cause) {
        match op {
            Op::DeleteLink { place: Place::Overlay, ifindex } => {
                if let Some(gone) = self.tables.by_index.get(ifindex).cloned() {
                    self.observe_gone(&gone, cause);
                    self.link_moved(&gone);
                }
            }
            Op::SetLink { place: Place::Overlay, ifindex, .. } => {
                self.reads.link(LinkRef::Index(*ifindex), ReadCause::Own);
            }
            op => {
                if let Some(name) = name_of_new(op) {
                    self.reads.link(name, ReadCause::Own);
                }
            }
        }
        if let LinkId::Inner(endpoint) | LinkId::Outer(endpoint) = id {
            self.reads.inner(endpoint.clone(), ReadCause::Own);
        }
    }

    /// Notes that an operation on an object, or a read of it, failed; when to try again.
    pub(super) fn fail(&mut self, key: &Key, failure: Failure, now: Time) -> Time {
        self.tables.rest(key);
        self.episodes.failed(key, failure, now)
    }

    /// Nothing is assumed about an object whose operation failed: it is read again, and tried again later.
    fn failed(&mut self, planned: &Planned, failure: Failure, now: Time) {
        if self.episodes.is_open(&planned.key) {
            self.report.notes.push(Note::RepairFailed { kind: planned.key.kind() });
        }
        self.fail(&planned.key, failure, now);
        self.episodes.wrote(planned.key.clone());
        match &planned.op {
            Op::CreateNetns | Op::DeleteNetns => self.reads.netns = Some(ReadCause::Own),
            Op::DeleteLink { place: Place::Overlay, ifindex } => {
                // The pair may be gone all the same, by the end that the operation was not for.
                if let Some(id) = self.tables.by_index.get(ifindex) {
                    self.episodes.wrote(Key::Link(id.clone()));
                }
                self.reads.link(LinkRef::Index(*ifindex), ReadCause::Own);
            }
            Op::ReclaimVni { .. } => {}
            Op::ChangeRules(_) => {
                if let Key::Rules(table) | Key::Chain(ChainId { table, .. }) = &planned.key {
                    self.episodes.wrote(Key::Rules(table.clone()));
                    self.reads.rules(table.clone(), ReadCause::Foreign);
                }
            }
            Op::AddLink(_) | Op::SetLink { .. } | Op::DeleteLink { .. } => {
                if let Key::Link(id) = &planned.key {
                    self.link_written(id, &planned.op, planned.cause);
                }
            }
            Op::SetForwarding { .. } => {
                self.reads.forwarding = self.reads.forwarding.max(Some(ReadCause::Foreign));
            }
            Op::AddRoute { .. } | Op::ReplaceRoute { .. } | Op::DeleteRoute { .. } => {
                if let Key::Route(LinkId::Inner(endpoint), _) = &planned.key {
                    self.reads.inner(endpoint.clone(), ReadCause::Foreign);
                }
            }
            Op::AddAddress { place, ifindex, .. }
            | Op::RestoreRoutes { place, ifindex, .. }
            | Op::DeleteAddress { place, ifindex, .. } => match &planned.key {
                Key::Address(id @ LinkId::Inner(endpoint), _) => {
                    if matches!(planned.op, Op::DeleteAddress { .. }) {
                        self.address_taken(id);
                    }
                    self.reads.inner(endpoint.clone(), ReadCause::Foreign);
                }
                _ if *place == Place::Overlay => self.reads.link(LinkRef::Index(*ifindex), ReadCause::Foreign),
                _ => {}
            },
            Op::PutFdb { ifindex, mac, .. } | Op::DeleteFdb { ifindex, mac, .. } => {
                self.read_tunnel_row(*ifindex, *mac);
            }
            Op::PutBridgeRow { ifindex, .. } | Op::DeleteBridgeRow { ifindex, .. } => {
                self.reads.link(LinkRef::Index(*ifindex), ReadCause::Foreign);
                if let Key::BridgeRow(key) = &planned.key {
                    self.read_bridge_row(key);
                }
            }
            Op::PutNeighbour { ifindex, ip, .. } | Op::DeleteNeighbour { ifindex, ip } => {
                self.reads.neighbours.insert((*ifindex, *ip));
            }
        }
    }
}

/// Where to read a link that was just made.
fn name_of_new(op: &Op) -> Option<LinkRef> {
    match op {
        Op::AddLink(NewLink::Bridge { name, .. } | NewLink::Vxlan { name, .. } | NewLink::Veth { name, .. }) => {
            Some(LinkRef::Name(name.clone()))
        }
        _ => None,
    }
}
