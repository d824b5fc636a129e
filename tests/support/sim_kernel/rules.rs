//! Tables of nftables.

use std::collections::BTreeMap;

use vtepd::{
    engine::{Event, Failure},
    model::nft::{Change, Hook, Ruleset, TableId},
};

use super::{SimKernel, not_found, refused};

impl SimKernel {
    /// All changes, or none.
    pub(super) fn change_rules(&mut self, changes: &[Change]) -> Result<(), Failure> {
        let before = self.overlay()?.tables.clone();
        let mut after = before.clone();
        for change in changes {
            apply(&mut after, change)?;
        }
        self.overlay()?.tables.clone_from(&after);
        // Of what the agent itself wrote the acknowledgement tells.
        if self.by_others {
            let tables = before.keys().chain(after.keys());
            let mut changed: Vec<&TableId> = tables.filter(|table| before.get(table) != after.get(table)).collect();
            changed.dedup();
            for table in changed {
                self.emit(Event::Rules(table.clone()));
            }
        }
        Ok(())
    }

    /// Notes a port that is to have a guard and has none.
    pub(super) fn look_for_guard(&mut self, ifindex: u32) -> Result<(), Failure> {
        let link = self.in_overlay(ifindex)?.link.clone();
        let chains = self.overlay()?.tables.values().flat_map(|table| &table.chains);
        let guarded = chains.into_iter().any(|(name, chain)| *name == link.name && !chain.rules.is_empty());
        if !guarded && link.port.is_some_and(|port| port.locked == Some(true)) {
            self.unguarded.push(link.name);
        }
        Ok(())
    }
}

fn apply(tables: &mut BTreeMap<TableId, Ruleset>, change: &Change) -> Result<(), Failure> {
    match change {
        Change::EnsureTable(table) => {
            tables.entry(table.clone()).or_insert_with(|| Ruleset::new(table.clone()));
        }
        Change::ReplaceTable(ruleset) => {
            tables.insert(ruleset.table.clone(), ruleset.clone());
        }
        Change::DeleteTable(table) => {
            tables.remove(table);
        }
        Change::PutChain { table, name, chain } => {
            let chains = &mut tables.get_mut(table).ok_or_else(|| not_found("table"))?.chains;
            if let Some(standing) = chains.get(name) {
                let same = match (&standing.hook, &chain.hook) {
                    (Some(one), Some(other)) => Hook::is_at(one, other),
                    (None, None) => true,
                    _ => false,
                };
                if !same {
                    return Err(refused("a chain of that name at another hook"));
                }
            }
            let foreign = chains.get(name).map(|chain| chain.foreign.clone()).unwrap_or_default();
            let mut chain = chain.clone();
            chain.foreign = foreign;
            chains.insert(name.clone(), chain);
        }
        Change::DeleteChain { table, name } => {
            let chains = &mut tables.get_mut(table).ok_or_else(|| not_found("table"))?.chains;
            chains.remove(name).ok_or_else(|| not_found("chain"))?;
        }
    }
    Ok(())
}
