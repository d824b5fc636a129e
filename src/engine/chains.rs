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
//!
//! **Invariant:** a port that is to be guarded comes up only with its guard (`a_port_comes_up_locked_and_only_once_its_guard_stands`,
//! `where_the_kernel_cannot_guard_a_port_it_stays_down_and_says_so`; the simulation looks at every port that comes up), and goes down when
//! its guard was taken away and cannot be put back at once (`a_port_whose_guard_was_taken_away_for_good_goes_down`). A guard that is only
//! older than its endpoint still holds (`a_guard_that_cannot_follow_its_endpoint_at_once_keeps_its_port_up`). What passes is tried frame by
//! frame (`a_container_sends_what_is_its_own_and_nothing_else_on_its_host_and_across`,
//! `without_the_guard_all_of_that_arrives_and_is_believed`).
//!
//! **Invariant:** each chain is a transaction of its own: a change of one endpoint touches its own
//! (`a_change_of_one_endpoint_touches_its_own_guard_alone`), and one that the kernel refuses keeps no other from standing. A table that was
//! deleted counts once (`a_deleted_table_is_one_drift_however_many_guards_it_had`).

use std::collections::BTreeSet;

use super::{
    delta::{Cause, Differences, Fits},
    interface::{Action, LinkChange, Op, Place},
    key::{Key, LinkId},
    network::Network,
    plan::{BATCH, Plan, Planned},
    reads::ReadCause,
    view::View,
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
    // ----- desired -----

    /// Sets the desired side of the guard of a local endpoint's port: it is there while the port is.
    pub(super) fn refresh_guard(&mut self, endpoint: &EndpointId) {
        let guarded = self.desired.spec.as_ref().is_some_and(|spec| spec.spoof_guard);
        let local = self.locals.by_id.get(endpoint).filter(|local| guarded && local.wired());
        let chain = local.map(|local| {
            let addresses = local.spec.addresses.iter().map(ipnet::IpNet::addr);
            guard(&self.config.outer_name(endpoint), local.spec.mac, addresses)
        });
        self.want_chain(&self.config.guard_id(endpoint), chain);
    }

    pub(super) fn want_chain(&mut self, id: &ChainId, chain: Option<Chain>) {
        if !self.tables.chains.set_desired(id, chain) {
            return;
        }
        self.episodes.desired_moved(&Key::Chain(id.clone()));
        let any = self.tables.chains_of(&id.table).any(|(_, desired, _)| desired);
        if self.tables.nft.set_desired(&id.table, any.then_some(())) {
            self.episodes.desired_moved(&Key::Rules(id.table.clone()));
        }
    }

    /// Sets the desired side of the chains that the network itself has.
    pub(super) fn want_chains_of_spec(&mut self, before: Option<&NetworkSpec>) {
        let spec = self.desired.spec.clone();
        let stays = |id: &ChainId| spec.as_ref().is_some_and(|spec| spec.chains.contains_key(id));
        let gone = before.into_iter().flat_map(|before| before.chains.keys()).filter(|id| !stays(id));
        for id in gone {
            self.want_chain(id, None);
        }
        for (id, chain) in spec.iter().flat_map(|spec| &spec.chains) {
            self.want_chain(id, Some(chain.clone()));
        }
    }

    // ----- observed -----

    /// All tables of our own are to be read.
    pub(super) fn read_all_rules(&mut self, cause: ReadCause) {
        let tables: Vec<TableId> = self.config.own_tables().cloned().collect();
        for table in tables {
            self.reads.rules(table, cause);
        }
    }

    pub(super) fn observe_rules(&mut self, table: &TableId, ruleset: Option<Ruleset>, cause: ReadCause) {
        // What was there when it is read for the first time is history.
        let cause = if self.reads.rules_read.insert(table.clone()) { ReadCause::First } else { cause };
        let foreign = cause == ReadCause::Foreign;
        let seen = ruleset.as_ref().map(|ruleset| TableSeen { plain: ruleset.foreign.is_empty() });
        if self.tables.nft.set_observed(table, seen, cause.into()) && foreign {
            self.episodes.suspect(Key::Rules(table.clone()));
        }
        let chains = ruleset.map(|ruleset| ruleset.chains).unwrap_or_default();
        let known = self.tables.chains_of(table).filter(|(.., observed)| *observed).map(|(id, ..)| id.clone());
        let gone: Vec<ChainId> = known.filter(|id| !chains.contains_key(&id.name)).collect();
        let there = chains.into_iter().map(|(name, chain)| (ChainId { table: table.clone(), name }, Some(chain)));
        for (id, chain) in gone.into_iter().map(|id| (id, None)).chain(there) {
            if self.tables.chains.set_observed(&id, chain, cause.into()) && foreign {
                self.episodes.suspect(Key::Chain(id));
            }
        }
    }

    /// The namespace is gone, and with it its tables.
    pub(super) fn lose_rules(&mut self) {
        self.reads.rules_read.clear();
        for id in self.tables.chains.observed_in(..) {
            self.tables.chains.set_observed(&id, None, Cause::Repair);
        }
        for table in self.tables.nft.observed_in(..) {
            self.tables.nft.set_observed(&table, None, Cause::Repair);
        }
    }

    // ----- results -----

    /// What stands after changes that were acknowledged; the objects that they reached.
    pub(super) fn rules_changed(&mut self, changes: &[Change]) -> Vec<Key> {
        let mut reached = Vec::new();
        for change in changes {
            match change {
                Change::EnsureTable(table) => {
                    let seen = self.tables.nft.observed_of(table).copied().unwrap_or(TableSeen { plain: true });
                    self.tables.nft.set_observed(table, Some(seen), Cause::Change);
                    reached.push(Key::Rules(table.clone()));
                }
                Change::DeleteTable(table) => {
                    reached.extend(self.forget_chains(table));
                    self.tables.nft.set_observed(table, None, Cause::Change);
                    reached.push(Key::Rules(table.clone()));
                }
                Change::ReplaceTable(ruleset) => {
                    reached.extend(self.forget_chains(&ruleset.table));
                    self.tables.nft.set_observed(&ruleset.table, Some(TableSeen { plain: true }), Cause::Change);
                    reached.push(Key::Rules(ruleset.table.clone()));
                    for (name, chain) in &ruleset.chains {
                        let id = ChainId { table: ruleset.table.clone(), name: name.clone() };
                        self.tables.chains.set_observed(&id, Some(chain.clone()), Cause::Change);
                    }
                }
                Change::PutChain { table, name, chain } => {
                    let id = ChainId { table: table.clone(), name: name.clone() };
                    self.tables.chains.set_observed(&id, Some(chain.clone()), Cause::Change);
                    reached.push(Key::Chain(id));
                }
                Change::DeleteChain { table, name } => {
                    let id = ChainId { table: table.clone(), name: name.clone() };
                    self.tables.chains.set_observed(&id, None, Cause::Change);
                    reached.push(Key::Chain(id));
                }
            }
        }
        reached
    }

    fn forget_chains(&mut self, table: &TableId) -> Vec<Key> {
        let known: Vec<ChainId> = self.tables.chains_of(table).map(|(id, ..)| id.clone()).collect();
        for id in &known {
            self.tables.chains.set_observed(id, None, Cause::Change);
        }
        known.into_iter().map(Key::Chain).collect()
    }
}

impl View<'_> {
    /// Whether a chain differs only because its table, which counts, does, or its device is not there. (Before Linux 6.16 a chain of
    /// the family `netdev` went with its device.)
    pub(super) fn chain_lost(&self, id: &ChainId) -> bool {
        let Some(sides) = self.tables.chains.get(id) else { return false };
        let (wanted, stands) = (self.tables.nft.desired_of(&id.table), self.tables.nft.observed_of(&id.table));
        let with_its_table = wanted.is_some() != stands.is_some();
        let without_device = sides.observed.is_none() && self.port_missing(id);
        with_its_table || without_device
    }

    /// Whether the port that the chain is to guard is not there.
    fn port_missing(&self, id: &ChainId) -> bool {
        let endpoint = self.locals.by_outer_name.get(&id.name).filter(|_| id.table == self.config.guards);
        endpoint.is_some_and(|endpoint| self.tables.links.observed_of(&LinkId::Outer(endpoint.clone())).is_none())
    }
}

impl Plan<'_> {
    /// Chains that should be there, each in a transaction of its own: one that the kernel refuses keeps no other from standing. They
    /// come before the links are set, since a port comes up only with its guard.
    pub(super) fn plan_chains(&self) -> Vec<Planned> {
        if !self.tables.ours() {
            return Vec::new();
        }
        let mut planned = self.plan_tables_anew();
        for id in self.tables.chains.differing() {
            let Some(sides) = self.tables.chains.get(id) else { continue };
            let Some(chain) = &sides.desired else { continue };
            let plain = self.tables.nft.observed_of(&id.table).is_none_or(|seen| seen.plain);
            // Before Linux 6.16 there is no chain on a device that is not there.
            if !plain || self.port_missing(id) || !self.reads.rules_read.contains(&id.table) {
                continue;
            }
            let mut changes = Vec::new();
            if self.tables.nft.observed_of(&id.table).is_none() {
                changes.push(Change::EnsureTable(id.table.clone()));
            }
            if sides.observed.as_ref().is_some_and(|seen| !seen.can_become(chain)) {
                changes.push(Change::DeleteChain { table: id.table.clone(), name: id.name.clone() });
            }
            let (table, name, chain) = (id.table.clone(), id.name.clone(), chain.clone());
            changes.push(Change::PutChain { table, name, chain });
            let action = if sides.observed.is_some() { Action::Replace } else { Action::Add };
            planned.extend(self.planned(Key::Chain(id.clone()), action, sides.cause, Op::ChangeRules(changes)));
            if planned.len() >= BATCH {
                break;
            }
        }
        if planned.is_empty() { self.plan_ports_without_guard() } else { planned }
    }

    /// Tables with something foreign in them, which may be why their chains filter nothing (a dormant table): made anew in one
    /// instant, with the chains that stood.
    fn plan_tables_anew(&self) -> Vec<Planned> {
        let tables = self.tables.nft.differing().filter_map(|table| {
            let sides = self.tables.nft.get(table).filter(|sides| sides.desired.is_some())?;
            sides.observed?;
            let mut ruleset = Ruleset::new(table.clone());
            for (id, desired, observed) in self.tables.chains_of(table) {
                let chain = self.tables.chains.desired_of(id).filter(|_| desired && observed);
                ruleset.chains.extend(chain.map(|chain| (id.name.clone(), chain.clone())));
            }
            let op = Op::ChangeRules(vec![Change::ReplaceTable(ruleset)]);
            self.planned(Key::Rules(table.clone()), Action::Replace, sides.cause, op)
        });
        tables.collect()
    }

    /// Ports that are up while their guard is not what it was and cannot be put back now.
    fn plan_ports_without_guard(&self) -> Vec<Planned> {
        let table = self.tables.nft.observed_of(&self.config.guards);
        let all = self.locals.by_id.keys().filter(|_| table.is_some_and(|table| !table.plain));
        let differing = self.tables.chains.differing().filter_map(|id| self.locals.by_outer_name.get(&id.name));
        let endpoints: BTreeSet<&EndpointId> = all.chain(differing).collect();
        let ports = endpoints.into_iter().filter(|endpoint| self.guard_is_void(endpoint));
        let down = ports.filter_map(|endpoint| {
            let id = LinkId::Outer(endpoint.clone());
            let link = self.tables.links.observed_of(&id).filter(|link| link.up)?;
            let change = LinkChange { up: Some(false), ..LinkChange::default() };
            let op = Op::SetLink { place: Place::Overlay, ifindex: link.ifindex, change };
            self.planned(Key::Link(id), Action::Replace, Cause::Repair, op)
        });
        down.collect()
    }

    /// Whether a port may come up as far as its guard goes: it stands as desired, or there is to be none.
    pub(super) fn guard_stands(&self, endpoint: &EndpointId) -> bool {
        let id = self.config.guard_id(endpoint);
        let table = self.tables.nft.observed_of(&id.table);
        let guarded = self.tables.chains.desired_of(&id).is_none()
            || (!self.tables.chains.differs(&id) && table.is_some_and(|table| table.plain));
        // What the network itself has guards all of them.
        let mut own = self.desired.spec.iter().flat_map(|spec| spec.chains.keys());
        guarded && own.all(|id| !self.tables.chains.differs(id))
    }

    /// Whether a guard is gone or no longer does what it did, and what would put it right has to wait. One that is only older than what
    /// is desired still keeps the endpoint to addresses that were its own.
    fn guard_is_void(&self, endpoint: &EndpointId) -> bool {
        let id = self.config.guard_id(endpoint);
        let Some(sides) = self.tables.chains.get(&id).filter(|sides| sides.desired.is_some()) else { return false };
        let table = Key::Rules(id.table.clone());
        if self.tables.nft.observed_of(&id.table).is_some_and(|table| !table.plain) {
            return self.rests(&table);
        }
        let older = sides.observed.is_some() && sides.cause == Cause::Change;
        self.tables.chains.differs(&id) && !older && self.rests(&Key::Chain(id))
    }

    /// Chains and tables that should not be there. They go when the ports that they guarded are gone.
    pub(super) fn plan_chain_removals(&self) -> Vec<Planned> {
        if !self.tables.ours() || (self.tables.nft.in_sync() && self.tables.chains.in_sync()) {
            return Vec::new();
        }
        let undesired = self.tables.links.iter().filter(|(_, sides)| sides.desired.is_none());
        let leaving: BTreeSet<&str> =
            undesired.filter_map(|(_, sides)| sides.observed.as_ref()).map(|link| link.name.as_str()).collect();
        let needed = |id: &ChainId| {
            let hook = self.tables.chains.observed_of(id).and_then(|chain| chain.hook.as_ref());
            hook.and_then(|hook| hook.device.as_deref()).is_some_and(|device| leaving.contains(device))
        };
        let mut planned = Vec::new();
        for table in self.tables.nft.differing() {
            let Some(sides) = self.tables.nft.get(table).filter(|sides| sides.desired.is_none()) else { continue };
            if !self.tables.chains_of(table).any(|(id, ..)| needed(id)) {
                let op = Op::ChangeRules(vec![Change::DeleteTable(table.clone())]);
                planned.extend(self.planned(Key::Rules(table.clone()), Action::Delete, sides.cause, op));
            }
        }
        for id in self.tables.chains.differing() {
            let Some(sides) = self.tables.chains.get(id).filter(|sides| sides.desired.is_none()) else { continue };
            if self.tables.nft.desired_of(&id.table).is_some() && !needed(id) {
                let change = Change::DeleteChain { table: id.table.clone(), name: id.name.clone() };
                let op = Op::ChangeRules(vec![change]);
                planned.extend(self.planned(Key::Chain(id.clone()), Action::Delete, sides.cause, op));
            }
        }
        planned.truncate(BATCH);
        planned
    }
}
