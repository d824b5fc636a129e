//! What operations do to tables of nftables.

use std::collections::BTreeMap;

use super::gone;
use crate::{
    engine::{Answer, Failure, Kernel, Query},
    model::nft::{Change, Ruleset, TableId},
};

/// The tables that were changed, as they are by now.
#[derive(Default)]
pub(super) struct Tables(BTreeMap<TableId, Option<Ruleset>>);

impl Tables {
    pub(super) fn answer(
        &mut self,
        table: &TableId,
        imagined: bool,
        real: &mut impl Kernel,
    ) -> Result<Answer, Failure> {
        match self.0.get(table) {
            Some(ruleset) => Ok(Answer::Rules(ruleset.clone())),
            None if imagined => Ok(Answer::Rules(None)),
            None => real.read(&Query::Rules(table.clone())),
        }
    }

    pub(super) fn change(&mut self, changes: &[Change], imagined: bool, real: &mut impl Kernel) -> Result<(), Failure> {
        for change in changes {
            let table = match change {
                Change::EnsureTable(table) | Change::DeleteTable(table) => table,
                Change::ReplaceTable(ruleset) => &ruleset.table,
                Change::PutChain { table, .. } | Change::DeleteChain { table, .. } => table,
            };
            let Answer::Rules(mut ruleset) = self.answer(table, imagined, real)? else { return Err(gone("answer")) };
            match change {
                Change::EnsureTable(table) => {
                    ruleset.get_or_insert_with(|| Ruleset::new(table.clone()));
                }
                Change::ReplaceTable(new) => ruleset = Some(new.clone()),
                Change::DeleteTable(_) => ruleset = None,
                Change::PutChain { name, chain, .. } => {
                    let chains = &mut ruleset.as_mut().ok_or_else(|| gone("table"))?.chains;
                    chains.insert(name.clone(), chain.clone());
                }
                Change::DeleteChain { name, .. } => {
                    ruleset.as_mut().ok_or_else(|| gone("table"))?.chains.remove(name);
                }
            }
            self.0.insert(table.clone(), ruleset);
        }
        Ok(())
    }
}
