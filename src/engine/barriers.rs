//! What somebody else's firewall does to the way outside: a chain at the forward hook whose policy drops what no rule accepts, as
//! Docker makes one. Nothing of it is touched; which rule to add is said.

use super::{config::Home, key::Kind, network::Network, report::Blocked};
use crate::model::nft::{Chain, Comparison, Connection, Expression, Meta, Rule, Ruleset, Verdict};

/// Where Docker leaves room for rules of others.
const DOCKER_USER: &str = "DOCKER-USER";

impl Network {
    /// Takes the tables in which a chain at the forward hook drops by its policy.
    pub(super) fn observe_barriers(&mut self, tables: &[Ruleset]) {
        let Home::Host { bridge, .. } = &self.config.home else { return };
        let foreign = tables.iter().filter(|ruleset| !self.config.is_own_table(&ruleset.table));
        self.tables.barriers = foreign.filter_map(|ruleset| barrier(ruleset, bridge)).collect();
    }

    /// The way outside that is barred, where there is one at all.
    pub(super) fn barred(&self) -> impl Iterator<Item = Blocked> {
        self.tables.barriers.iter().filter(|_| self.desired.spec.is_some()).map(|message| Blocked {
            object: "forwarding from and to the gateway bridge".to_owned(),
            kind: Kind::Nat,
            reason: "forward_policy",
            message: message.clone(),
        })
    }
}

/// Why packets of the bridge do not pass, and what to do about it; `None` where they do.
///
/// It looks for rules that accept what comes from the bridge, and what goes to it or is part of a connection, anywhere in the table:
/// which chain jumps to which is not followed.
fn barrier(ruleset: &Ruleset, bridge: &str) -> Option<String> {
    let shut = |chain: &Chain| chain.drops_forward() && !chain.rules.iter().any(accepts_all);
    let (name, _) = ruleset.chains.iter().find(|(_, chain)| shut(chain))?;
    let rules = || ruleset.chains.values().flat_map(|chain| &chain.rules).filter(|rule| accepts(rule));
    let names = |meta: Meta| rules().any(|rule| is_of(rule, meta, bridge));
    let by_connection = || rules().any(|rule| !asks_for_a_device(rule) && asks_for_a_connection(rule));
    let into = if ruleset.chains.contains_key(DOCKER_USER) { DOCKER_USER } else { name };
    let table = ruleset.table.to_string();
    let add =
        |what: &str| format!("nft insert rule {} {} {what} accept", table.escape_default(), into.escape_default());
    let from = (!names(Meta::IifName)).then(|| add(&format!("iifname \"{bridge}\"")));
    let to = (!names(Meta::OifName) && !by_connection())
        .then(|| add(&format!("oifname \"{bridge}\" ct state established,related")));
    let missing: Vec<String> = [from, to].into_iter().flatten().collect();
    let chain = name.escape_default();
    let message =
        || format!("chain {chain} of table {table} drops what it does not accept; add: {}", missing.join("; "));
    (!missing.is_empty()).then(message)
}

fn accepts(rule: &Rule) -> bool {
    rule.expressions.last() == Some(&Expression::Verdict(Verdict::Accept))
}

fn accepts_all(rule: &Rule) -> bool {
    accepts(rule) && rule.expressions.iter().all(|step| matches!(step, Expression::Counter | Expression::Verdict(_)))
}

/// A name that is not ended by a zero stands for all that begin so (`gw*`, or `gw+` of iptables).
fn is_of(rule: &Rule, meta: Meta, bridge: &str) -> bool {
    rule.expressions.windows(2).any(|pair| match pair {
        [Expression::Meta(of), Expression::Compare(Comparison::Equal, name)] if *of == meta => {
            match name.iter().position(|byte| *byte == 0) {
                Some(end) => name.get(..end) == Some(bridge.as_bytes()),
                None => bridge.as_bytes().starts_with(name),
            }
        }
        _ => false,
    })
}

fn asks_for_a_device(rule: &Rule) -> bool {
    rule.expressions.iter().any(|step| matches!(step, Expression::Meta(Meta::IifName | Meta::OifName)))
}

/// By connection tracking, as `nft` or as `iptables` writes it.
fn asks_for_a_connection(rule: &Rule) -> bool {
    rule.expressions.iter().any(|step| match step {
        Expression::Connection(Connection::State) => true,
        Expression::Foreign(name) => name == "ct" || name == "match",
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::nft::{ChainKind, Family, Hook, HookPoint, Policy, TableId};

    fn docker(rules: Vec<Rule>) -> Ruleset {
        let hook = Hook {
            kind: ChainKind::Filter,
            point: HookPoint::Forward,
            priority: 0,
            policy: Policy::Drop,
            device: None,
        };
        Ruleset::new(TableId::new(Family::Ip, "filter")).with("FORWARD", Chain::new(hook, rules))
    }

    fn replies() -> Rule {
        Rule::of(vec![Expression::Foreign("ct".to_owned()), Expression::Verdict(Verdict::Accept)])
    }

    #[test]
    fn a_policy_that_drops_is_a_barrier_until_both_directions_are_accepted() {
        let both = barrier(&docker(Vec::new()), "gw0").unwrap();
        assert!(both.contains(r#"nft insert rule ip filter FORWARD iifname "gw0" accept"#), "{both}");
        assert!(both.contains(r#"oifname "gw0" ct state established,related accept"#), "{both}");
        let out = Rule::new().iifname("gw0").counter().accept();
        let one = barrier(&docker(vec![out.clone()]), "gw0").unwrap();
        assert!(!one.contains("iifname") && one.contains("oifname"), "{one}");
        assert_eq!(barrier(&docker(vec![out.clone(), replies()]), "gw0"), None);
        assert_eq!(barrier(&docker(vec![out, Rule::new().oifname("gw0").accept()]), "gw0"), None);
    }

    #[test]
    fn what_is_accepted_of_another_bridge_is_no_help() {
        let other = vec![Rule::new().iifname("gw01").accept(), Rule::new().oifname("docker0").accept()];
        assert!(barrier(&docker(other), "gw0").is_some());
        let dropped = vec![Rule::new().iifname("gw0").drop(), replies()];
        assert!(barrier(&docker(dropped), "gw0").is_some());
    }

    #[test]
    fn what_is_accepted_of_all_bridges_that_are_called_so_or_of_everything_is_accepted_of_ours() {
        let called = |meta| {
            let steps = [Expression::Meta(meta), Expression::Compare(Comparison::Equal, b"gw".to_vec())];
            Rule::of(steps.into()).accept()
        };
        assert_eq!(barrier(&docker(vec![called(Meta::IifName), called(Meta::OifName)]), "gw0"), None);
        assert!(barrier(&docker(vec![called(Meta::IifName), called(Meta::OifName)]), "g").is_some());
        assert_eq!(barrier(&docker(vec![Rule::new().counter().accept()]), "gw0"), None);
        let elsewhere =
            docker(Vec::new()).with("INPUT", Chain { rules: vec![Rule::new().accept()], ..Chain::default() });
        assert!(barrier(&elsewhere, "gw0").is_some());
    }

    #[test]
    fn where_docker_leaves_room_for_rules_the_rule_goes_there() {
        let message = barrier(&docker(Vec::new()).with(DOCKER_USER, Chain::default()), "gw0").unwrap();
        assert!(message.contains("nft insert rule ip filter DOCKER-USER iifname"), "{message}");
    }

    #[test]
    fn a_policy_that_accepts_bars_nothing() {
        let mut open = docker(Vec::new());
        open.chains.values_mut().filter_map(|chain| chain.hook.as_mut()).for_each(|hook| hook.policy = Policy::Accept);
        assert_eq!(barrier(&open, "gw0"), None);
    }
}
