use super::{Chain, Hook, Ruleset, TableId};

/// A step of a transaction. All steps take effect together, or none does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Makes the table unless it stands; what it holds stays.
    EnsureTable(TableId),
    /// Makes the table hold this and nothing else, whatever stands.
    ReplaceTable(Ruleset),
    /// Deletes the table with all that it holds, if it stands.
    DeleteTable(TableId),
    /// Makes the chain hold these rules and no other, with this policy. The table stands. The chain does not, or it stands at the
    /// same hook ([`Hook::is_at`]); at another one, this fails, and deleting it first in the same transaction does not.
    PutChain {
        /// The table.
        table: TableId,
        /// The chain's name.
        name: String,
        /// What it should be.
        chain: Chain,
    },
    /// Deletes a chain that stands, with its rules.
    DeleteChain {
        /// The table.
        table: TableId,
        /// The chain's name.
        name: String,
    },
}

impl Ruleset {
    /// The changes that make of what stands this ruleset; none if it stands already.
    pub fn changes_from(&self, standing: Option<&Self>) -> Vec<Change> {
        let Some(standing) = standing.filter(|standing| self.can_follow(standing)) else {
            return vec![Change::ReplaceTable(self.clone())];
        };
        let delete = |name: &String| Change::DeleteChain { table: self.table.clone(), name: name.clone() };
        let unexpected = standing.chains.keys().filter(|name| !self.chains.contains_key(*name));
        let mut changes: Vec<Change> = unexpected.map(delete).collect();
        for (name, chain) in &self.chains {
            let found = standing.chains.get(name);
            if found == Some(chain) {
                continue;
            }
            changes.extend(found.filter(|found| !found.can_become(chain)).map(|_| delete(name)));
            changes.push(Change::PutChain { table: self.table.clone(), name: name.clone(), chain: chain.clone() });
        }
        changes
    }

    /// Whether chains can be changed one by one. A chain without a hook may be the target of a foreign rule's jump, and cannot be
    /// deleted before that rule.
    fn can_follow(&self, standing: &Self) -> bool {
        let stays = |(name, chain): (&String, &Chain)| chain.hook.is_some() || self.chains.get(name) == Some(chain);
        standing.foreign.is_empty() && standing.chains.iter().all(stays)
    }
}

impl Chain {
    /// Whether a chain can be changed to the other without deleting it.
    pub fn can_become(&self, other: &Self) -> bool {
        let same_hook = match (&self.hook, &other.hook) {
            (None, None) => true,
            (Some(hook), Some(other)) => Hook::is_at(hook, other),
            _ => false,
        };
        same_hook && self.foreign.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{ChainKind, Family, HookPoint, Policy, Rule},
        *,
    };

    fn chain(priority: i32, policy: Policy) -> Chain {
        let device = Some("veth0".to_owned());
        let hook = Hook { kind: ChainKind::Filter, point: HookPoint::Ingress, priority, policy, device };
        Chain::new(hook, vec![Rule::new().drop()])
    }

    fn table() -> TableId {
        TableId::new(Family::Netdev, "t")
    }

    fn kinds(changes: &[Change]) -> Vec<(&'static str, &str)> {
        let kinds = changes.iter().map(|change| match change {
            Change::PutChain { name, .. } => ("put", name.as_str()),
            Change::DeleteChain { name, .. } => ("delete", name.as_str()),
            _ => ("table", ""),
        });
        kinds.collect()
    }

    #[test]
    fn a_ruleset_that_stands_needs_no_change() {
        let wanted = Ruleset::new(table()).with("a", chain(0, Policy::Drop));
        assert_eq!(wanted.changes_from(Some(&wanted)), []);
    }

    #[test]
    fn a_table_that_is_missing_or_not_only_ours_is_replaced_whole() {
        let wanted = Ruleset::new(table()).with("a", chain(0, Policy::Drop));
        let jumped_to = wanted.clone().with("b", Chain::default());
        let dormant = Ruleset { foreign: vec!["flags 1".to_owned()], ..wanted.clone() };
        for standing in [None, Some(&dormant), Some(&jumped_to)] {
            assert_eq!(wanted.changes_from(standing), [Change::ReplaceTable(wanted.clone())]);
        }
    }

    #[test]
    fn only_chains_that_differ_are_touched_and_those_at_another_hook_are_deleted_first() {
        let drop = |priority| chain(priority, Policy::Drop);
        let wanted = Ruleset::new(table())
            .with("hook", drop(1))
            .with("new", drop(2))
            .with("policy", drop(3))
            .with("same", drop(4));
        let standing = Ruleset::new(table())
            .with("foreign", drop(0))
            .with("hook", drop(7))
            .with("policy", chain(3, Policy::Accept))
            .with("same", drop(4));
        let changes = wanted.changes_from(Some(&standing));
        assert_eq!(
            kinds(&changes),
            [("delete", "foreign"), ("delete", "hook"), ("put", "hook"), ("put", "new"), ("put", "policy")]
        );
    }
}
