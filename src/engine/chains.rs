//! Tables and chains of nftables: what is desired of them, what is read, and what to change.
//!
//! An engine has tables of its own ([`super::Config::guards`], [`super::Config::tables`]), which it knows by their names: all that is
//! in them is its own, and all others are somebody else's. A chain is the unit that is compared and changed. A table of its own
//! stands exactly while a chain is desired in it, and comes with the first.
//!
//! The guard of an endpoint ([`crate::model::guard`]) is a chain on the overlay end of its veth pair, of that end's name.
//! A port that somebody renamed has no guard until its name is back (since Linux 6.16, see `kernel::nft`); its lock goes with it.
//!
//! **Invariant:** with `spoof_guard`, a port that is down comes up only when its guard stands as desired, and one whose guard was taken
//! away goes down when the guard cannot be put back at once.

use std::collections::BTreeSet;

use super::{
    delta::{Cause, Fits},
    key::{Key, LinkId},
    network::Network,
    plan::{BATCH, Planned},
    seam::{Action, LinkChange, Op, Place},
    time::Time,
    unread::ReadCause,
};
use crate::{
    desired::NetworkSpec,
    model::{
        EndpointId, guard,
        nft::{Chain, ChainId, Change, Ruleset, TableId},
    },
};

/// A table that stands, apart from its chains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TableSeen {
    /// Nothing but chains, and no flags.
    pub(super) plain: bool,
}

impl Fits<TableSeen> for () {
    fn fits(&self, seen: &TableSeen) -> bool {
        seen.plain
    }
}

impl Network {
    /// Where the guard of an endpoint's port is: it has the port's name.
    pub(super) fn guard_id(&self, endpoint: &EndpointId) -> ChainId {
        ChainId { table: self.config.guards.clone(), name: self.outer_name_of(endpoint) }
    }

    /// The tables that are ours.
    fn own_tables(&self) -> impl Iterator<Item = &TableId> {
        std::iter::once(&self.config.guards).chain(&self.config.tables)
    }

    pub(super) fn is_own_table(&self, table: &TableId) -> bool {
        self.own_tables().any(|own| own == table)
    }

    // ----- desired -----

    /// Sets the desired side of the guard of a local endpoint's port: it is there while the port is.
    pub(super) fn refresh_guard(&mut self, endpoint: &EndpointId) {
        let guarded = self.spec.as_ref().is_some_and(|spec| spec.spoof_guard);
        let local = self.locals.get(endpoint).filter(|local| guarded && local.wired());
        let chain = local.map(|local| {
            let addresses = local.spec.addresses.iter().map(ipnet::IpNet::addr);
            guard(&self.outer_name_of(endpoint), local.spec.mac, addresses)
        });
        self.want_chain(&self.guard_id(endpoint), chain);
    }

    pub(super) fn want_chain(&mut self, id: &ChainId, chain: Option<Chain>) {
        if !self.chains.want(id, chain) {
            return;
        }
        self.desired_moved(&Key::Chain(id.clone()));
        let any = self.chains_of(&id.table).any(|(_, desired, _)| desired);
        if self.tables.want(&id.table, any.then_some(())) {
            self.desired_moved(&Key::Rules(id.table.clone()));
        }
    }

    /// Sets the desired side of the chains that the network itself has.
    pub(super) fn want_chains_of_spec(&mut self, before: Option<&NetworkSpec>) {
        let spec = self.spec.clone();
        let stays = |id: &ChainId| spec.as_ref().is_some_and(|spec| spec.chains.contains_key(id));
        let gone = before.into_iter().flat_map(|before| before.chains.keys()).filter(|id| !stays(id));
        for id in gone {
            self.want_chain(id, None);
        }
        for (id, chain) in spec.iter().flat_map(|spec| &spec.chains) {
            self.want_chain(id, Some(chain.clone()));
        }
    }

    /// The chains of a table: which are desired, which observed.
    fn chains_of(&self, table: &TableId) -> impl Iterator<Item = (&ChainId, bool, bool)> {
        let first = ChainId { table: table.clone(), name: String::new() };
        let all = self.chains.range(first..).take_while(move |(id, _)| id.table == *table);
        all.map(|(id, sides)| (id, sides.desired.is_some(), sides.observed.is_some()))
    }

    // ----- observed -----

    /// All tables of our own are to be read.
    pub(super) fn read_all_rules(&mut self, cause: ReadCause) {
        let tables: Vec<TableId> = self.own_tables().cloned().collect();
        for table in tables {
            self.unread.rules(table, cause);
        }
    }

    pub(super) fn observe_rules(&mut self, table: &TableId, ruleset: Option<Ruleset>, cause: ReadCause) {
        // What was there when it is read for the first time is history.
        let cause = if self.rules_read.insert(table.clone()) { ReadCause::First } else { cause };
        let foreign = cause == ReadCause::Foreign;
        let seen = ruleset.as_ref().map(|ruleset| TableSeen { plain: ruleset.foreign.is_empty() });
        if self.tables.saw(table, seen, cause.into()) && foreign {
            self.drift.suspect(Key::Rules(table.clone()));
        }
        let chains = ruleset.map(|ruleset| ruleset.chains).unwrap_or_default();
        let known = self.chains_of(table).filter(|(.., observed)| *observed).map(|(id, ..)| id.clone());
        let gone: Vec<ChainId> = known.filter(|id| !chains.contains_key(&id.name)).collect();
        let there = chains.into_iter().map(|(name, chain)| (ChainId { table: table.clone(), name }, Some(chain)));
        for (id, chain) in gone.into_iter().map(|id| (id, None)).chain(there) {
            if self.chains.saw(&id, chain, cause.into()) && foreign {
                self.drift.suspect(Key::Chain(id));
            }
        }
    }

    /// The namespace is gone, and with it its tables.
    pub(super) fn lose_rules(&mut self) {
        self.rules_read.clear();
        for id in self.chains.observed_in(..) {
            self.chains.saw(&id, None, Cause::Repair);
        }
        for table in self.tables.observed_in(..) {
            self.tables.saw(&table, None, Cause::Repair);
        }
    }

    /// Whether a chain differs only because its table, which counts, does, or its device is not there. (Before Linux 6.16 a chain of
    /// the family `netdev` went with its device.)
    pub(super) fn chain_lost(&self, id: &ChainId) -> bool {
        let Some(sides) = self.chains.get(id) else { return false };
        let (wanted, stands) = (self.tables.desired_of(&id.table), self.tables.observed_of(&id.table));
        let with_its_table = wanted.is_some() != stands.is_some();
        let without_device = sides.observed.is_none() && self.port_missing(id);
        with_its_table || without_device
    }

    /// Whether the port that the chain is to guard is not there.
    fn port_missing(&self, id: &ChainId) -> bool {
        let endpoint = self.by_outer_name.get(&id.name).filter(|_| id.table == self.config.guards);
        endpoint.is_some_and(|endpoint| self.links.observed_of(&LinkId::Outer(endpoint.clone())).is_none())
    }

    // ----- changes -----

    /// Chains that should be there, each in a transaction of its own: one that the kernel refuses keeps no other from standing. They
    /// come before the links are set, since a port comes up only with its guard.
    pub(super) fn plan_chains(&self, now: Time) -> Vec<Planned> {
        if !self.ours() {
            return Vec::new();
        }
        let mut planned = self.plan_tables_anew(now);
        for id in self.chains.differing() {
            let Some(sides) = self.chains.get(id) else { continue };
            let Some(chain) = &sides.desired else { continue };
            let plain = self.tables.observed_of(&id.table).is_none_or(|seen| seen.plain);
            // Before Linux 6.16 there is no chain on a device that is not there.
            if !plain || self.port_missing(id) || !self.rules_read.contains(&id.table) {
                continue;
            }
            let mut changes = Vec::new();
            if self.tables.observed_of(&id.table).is_none() {
                changes.push(Change::EnsureTable(id.table.clone()));
            }
            if sides.observed.as_ref().is_some_and(|seen| !seen.can_become(chain)) {
                changes.push(Change::DeleteChain { table: id.table.clone(), name: id.name.clone() });
            }
            let (table, name, chain) = (id.table.clone(), id.name.clone(), chain.clone());
            changes.push(Change::PutChain { table, name, chain });
            let action = if sides.observed.is_some() { Action::Replace } else { Action::Add };
            planned.extend(self.planned(Key::Chain(id.clone()), action, sides.cause, Op::ChangeRules(changes), now));
            if planned.len() >= BATCH {
                break;
            }
        }
        if planned.is_empty() { self.plan_ports_without_guard(now) } else { planned }
    }

    /// Tables with something foreign in them, which may be why their chains filter nothing (a dormant table): made anew in one
    /// instant, with the chains that stood.
    fn plan_tables_anew(&self, now: Time) -> Vec<Planned> {
        let tables = self.tables.differing().filter_map(|table| {
            let sides = self.tables.get(table).filter(|sides| sides.desired.is_some())?;
            sides.observed?;
            let mut ruleset = Ruleset::new(table.clone());
            for (id, desired, observed) in self.chains_of(table) {
                let chain = self.chains.desired_of(id).filter(|_| desired && observed);
                ruleset.chains.extend(chain.map(|chain| (id.name.clone(), chain.clone())));
            }
            let op = Op::ChangeRules(vec![Change::ReplaceTable(ruleset)]);
            self.planned(Key::Rules(table.clone()), Action::Replace, sides.cause, op, now)
        });
        tables.collect()
    }

    /// Ports that are up while their guard is not what it was and cannot be put back now.
    fn plan_ports_without_guard(&self, now: Time) -> Vec<Planned> {
        let table = self.tables.observed_of(&self.config.guards);
        let all = self.locals.keys().filter(|_| table.is_some_and(|table| !table.plain));
        let differing = self.chains.differing().filter_map(|id| self.by_outer_name.get(&id.name));
        let endpoints: BTreeSet<&EndpointId> = all.chain(differing).collect();
        let ports = endpoints.into_iter().filter(|endpoint| self.guard_is_void(endpoint, now));
        let down = ports.filter_map(|endpoint| {
            let id = LinkId::Outer(endpoint.clone());
            let link = self.links.observed_of(&id).filter(|link| link.up)?;
            let change = LinkChange { up: Some(false), ..LinkChange::default() };
            let op = Op::SetLink { place: Place::Overlay, ifindex: link.ifindex, change };
            self.planned(Key::Link(id), Action::Replace, Cause::Repair, op, now)
        });
        down.collect()
    }

    /// Whether a port may come up as far as its guard goes: it stands as desired, or there is to be none.
    pub(super) fn guard_stands(&self, endpoint: &EndpointId) -> bool {
        let id = self.guard_id(endpoint);
        let table = self.tables.observed_of(&id.table);
        let guarded = self.chains.desired_of(&id).is_none()
            || (!self.chains.differs(&id) && table.is_some_and(|table| table.plain));
        // What the network itself has guards all of them.
        let mut own = self.spec.iter().flat_map(|spec| spec.chains.keys());
        guarded && own.all(|id| !self.chains.differs(id))
    }

    /// Whether a guard is gone or no longer does what it did, and what would put it right has to wait. One that is only older than what
    /// is desired still keeps the endpoint to addresses that were its own.
    fn guard_is_void(&self, endpoint: &EndpointId, now: Time) -> bool {
        let id = self.guard_id(endpoint);
        let Some(sides) = self.chains.get(&id).filter(|sides| sides.desired.is_some()) else { return false };
        let table = Key::Rules(id.table.clone());
        if self.tables.observed_of(&id.table).is_some_and(|table| !table.plain) {
            return self.held(&table, now);
        }
        let older = sides.observed.is_some() && sides.cause == Cause::Change;
        self.chains.differs(&id) && !older && self.held(&Key::Chain(id), now)
    }

    /// Chains and tables that should not be there. They go when the ports that they guarded are gone.
    pub(super) fn plan_chain_removals(&self, now: Time) -> Vec<Planned> {
        if !self.ours() || (self.tables.in_sync() && self.chains.in_sync()) {
            return Vec::new();
        }
        let undesired = self.links.iter().filter(|(_, sides)| sides.desired.is_none());
        let leaving: BTreeSet<&str> =
            undesired.filter_map(|(_, sides)| sides.observed.as_ref()).map(|link| link.name.as_str()).collect();
        let needed = |id: &ChainId| {
            let hook = self.chains.observed_of(id).and_then(|chain| chain.hook.as_ref());
            hook.and_then(|hook| hook.device.as_deref()).is_some_and(|device| leaving.contains(device))
        };
        let mut planned = Vec::new();
        for table in self.tables.differing() {
            let Some(sides) = self.tables.get(table).filter(|sides| sides.desired.is_none()) else { continue };
            if !self.chains_of(table).any(|(id, ..)| needed(id)) {
                let op = Op::ChangeRules(vec![Change::DeleteTable(table.clone())]);
                planned.extend(self.planned(Key::Rules(table.clone()), Action::Delete, sides.cause, op, now));
            }
        }
        for id in self.chains.differing() {
            let Some(sides) = self.chains.get(id).filter(|sides| sides.desired.is_none()) else { continue };
            if self.tables.desired_of(&id.table).is_some() && !needed(id) {
                let change = Change::DeleteChain { table: id.table.clone(), name: id.name.clone() };
                let op = Op::ChangeRules(vec![change]);
                planned.extend(self.planned(Key::Chain(id.clone()), Action::Delete, sides.cause, op, now));
            }
        }
        planned.truncate(BATCH);
        planned
    }

    // ----- results -----

    /// What stands after changes that were acknowledged; the objects that they reached.
    pub(super) fn rules_changed(&mut self, changes: &[Change]) -> Vec<Key> {
        let mut reached = Vec::new();
        for change in changes {
            match change {
                Change::EnsureTable(table) => {
                    let seen = self.tables.observed_of(table).copied().unwrap_or(TableSeen { plain: true });
                    self.tables.saw(table, Some(seen), Cause::Change);
                    reached.push(Key::Rules(table.clone()));
                }
                Change::DeleteTable(table) => {
                    reached.extend(self.forget_chains(table));
                    self.tables.saw(table, None, Cause::Change);
                    reached.push(Key::Rules(table.clone()));
                }
                Change::ReplaceTable(ruleset) => {
                    reached.extend(self.forget_chains(&ruleset.table));
                    self.tables.saw(&ruleset.table, Some(TableSeen { plain: true }), Cause::Change);
                    reached.push(Key::Rules(ruleset.table.clone()));
                    for (name, chain) in &ruleset.chains {
                        let id = ChainId { table: ruleset.table.clone(), name: name.clone() };
                        self.chains.saw(&id, Some(chain.clone()), Cause::Change);
                    }
                }
                Change::PutChain { table, name, chain } => {
                    let id = ChainId { table: table.clone(), name: name.clone() };
                    self.chains.saw(&id, Some(chain.clone()), Cause::Change);
                    reached.push(Key::Chain(id));
                }
                Change::DeleteChain { table, name } => {
                    let id = ChainId { table: table.clone(), name: name.clone() };
                    self.chains.saw(&id, None, Cause::Change);
                    reached.push(Key::Chain(id));
                }
            }
        }
        reached
    }

    fn forget_chains(&mut self, table: &TableId) -> Vec<Key> {
        let known: Vec<ChainId> = self.chains_of(table).map(|(id, ..)| id.clone()).collect();
        for id in &known {
            self.chains.saw(id, None, Cause::Change);
        }
        known.into_iter().map(Key::Chain).collect()
    }
}
