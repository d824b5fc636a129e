//! The fleet as text.

use std::collections::BTreeMap;

use super::{Node, Nodes};
use crate::{agent::Listed, cli::table::Table};

/// One line a node.
pub(in crate::cli) fn table(nodes: &Nodes) -> String {
    let mut table = Table::new(&["NODE", "VTEP", "ALIVE", "APPLIED", "NETWORKS", "IN SYNC", "VERSION"]);
    for node in &nodes.nodes {
        let yes = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
        let nothing = || "-".to_owned();
        let status = node.status.as_ref();
        let in_sync = match status {
            _ if node.is_right() => yes(true),
            Some(_) => format!("no: {}", node.because()),
            None => format!("-  {}", node.because()),
        };
        table.row(vec![
            node.node.clone(),
            node.vtep.clone().unwrap_or_else(nothing),
            if node.has_agent() { yes(node.alive) } else { nothing() },
            status.map_or_else(nothing, |s| s.revision.to_string()),
            status.map_or_else(nothing, |s| format!("{}/{}", s.networks.in_sync, s.networks.here)),
            in_sync,
            status.map_or_else(nothing, |s| s.version.clone()),
        ]);
    }
    table.to_string()
}

/// What is not right, one line each: what every node says of the same record stands once.
pub(in crate::cli) fn complaints(nodes: &[Node]) -> Vec<String> {
    let (mut records, mut own) = (BTreeMap::<String, usize>::new(), Vec::new());
    for node in nodes.iter().filter(|node| node.has_agent()) {
        let name = &node.node;
        if node.vtep.is_none() {
            own.push(format!("{name}: has no record in etcd: nobody else sends it anything"));
        }
        let Some(status) = &node.status else {
            own.push(format!("{name}: has said nothing yet"));
            continue;
        };
        if !node.alive {
            own.push(format!("{name}: its agent is not alive; what it last said is of {}", status.time));
        }
        for lagging in &status.lagging.first {
            own.push(format!("{name}: network {} is not in sync: {}", lagging.network, lagging.reason));
        }
        for blocked in &status.blocked.first {
            own.push(format!("{name}: blocked: {}: {}", blocked.object, blocked.reason));
        }
        if status.removals_held > 0 {
            own.push(format!("{name}: {} removals are held", status.removals_held));
        }
        if status.pending > 0 {
            *records.entry(format!("{} records wait for another record", status.pending)).or_default() += 1;
        }
        for rejected in &status.rejected.first {
            let said = format!("rejected: {}: {}: {}", rejected.key, rejected.field, rejected.reason);
            *records.entry(said).or_default() += 1;
        }
        for conflict in &status.conflicts.first {
            let said = format!("conflict: {}: {} is held by {}", conflict.key, conflict.field, conflict.holder);
            *records.entry(said).or_default() += 1;
        }
        own.extend(
            [
                more(name, "networks that are not in sync", &status.lagging),
                more(name, "blocked objects", &status.blocked),
                more(name, "rejected records", &status.rejected),
                more(name, "conflicts", &status.conflicts),
            ]
            .into_iter()
            .flatten(),
        );
    }
    let plural = |count: usize| if count == 1 { "1 node".to_owned() } else { format!("{count} nodes") };
    let records = records.into_iter().map(|(said, count)| format!("{said} (on {})", plural(count)));
    records.chain(own).collect()
}

/// How many a list leaves out.
fn more<T>(node: &str, what: &str, listed: &Listed<T>) -> Option<String> {
    let more = listed.count.saturating_sub(listed.first.len());
    (more > 0).then(|| format!("{node}: {more} more {what}"))
}
