//! `vtepd plan`: what the agent of this host would do now, without doing it.

use std::{io::Write as _, path::PathBuf, process::ExitCode};

use clap::Args;
use serde_json::json;

use super::{agent::Arguments as AgentArguments, files};
use crate::agent::{self, NetworkPlan, ReadStore};

/// Exit code where there is something to do, or something that cannot be done.
const DRIFT: u8 = 2;

/// The options of `vtepd plan`: the agent's, for it is its doing that is told.
#[derive(Args, Debug)]
#[group(id = "plan")]
pub(super) struct Arguments {
    /// Plan as if the records of this file, YAML or JSON, were in etcd already; may be given several times
    #[arg(long, value_name = "FILE")]
    against: Vec<PathBuf>,
    /// As JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    agent: AgentArguments,
}

impl Arguments {
    /// Whether what is told goes together, and this process may look.
    pub(super) fn check(&self) -> Result<(), String> {
        self.agent.check()
    }
}

/// Prints the plan. Exit code 0 when everything is as it should be, 2 when not, 1 when that cannot be told.
pub(super) fn run(arguments: Arguments) -> ExitCode {
    let Arguments { against, json, agent } = arguments;
    let planned = agent.start_log().and_then(|()| {
        let settings = agent.settings()?;
        let writes = files::read(&settings.prefix, &against)?;
        let writes: Vec<_> = writes.into_iter().map(|record| (record.key, Some(record.value))).collect();
        super::block_on(async {
            let read = agent::read_for_plan(&settings, &writes).await.map_err(|error| error.to_string())?;
            let plans = agent::plan(&settings, &read).map_err(|error| error.to_string())?;
            Ok((read, plans))
        })
    });
    let printed = planned.and_then(|(read, plans)| {
        let in_sync = plans.iter().all(|plan| plan.in_sync && plan.ops.is_empty() && plan.blocked.is_empty());
        let text = if json { as_json(&read, &plans, in_sync) } else { as_text(&read, &plans, in_sync) };
        let written = std::io::stdout().lock().write_all(text.as_bytes());
        written.map(|()| in_sync).map_err(|error| format!("standard output: {error}"))
    });
    match printed {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(DRIFT),
        Err(error) => super::exit_code(Err(error)),
    }
}

fn as_json(read: &ReadStore, plans: &[NetworkPlan], in_sync: bool) -> String {
    let networks: Vec<_> = plans
        .iter()
        .map(|plan| {
            let op = |op: &agent::PlannedOp| json!({"kind": op.kind, "action": op.action, "op": op.words});
            let blocked = plan.blocked.iter();
            let blocked = blocked.map(|b| json!({"object": b.object, "reason": b.reason, "message": b.message}));
            json!({
                "network": plan.network.as_str(),
                "in_sync": plan.in_sync && plan.ops.is_empty(),
                "ops": plan.ops.iter().map(op).collect::<Vec<_>>(),
                "blocked": blocked.collect::<Vec<_>>(),
            })
        })
        .collect();
    let text = json!({
        "revision": read.store.revision(),
        "in_sync": in_sync,
        "networks": networks,
        "left_out": left_out(read),
    });
    format!("{text}\n")
}

fn as_text(read: &ReadStore, plans: &[NetworkPlan], in_sync: bool) -> String {
    let mut text: String = left_out(read).iter().map(|record| format!("left out: {record}\n")).collect();
    for plan in plans.iter().filter(|plan| !plan.in_sync || !plan.ops.is_empty() || !plan.blocked.is_empty()) {
        text.push_str(&format!("network {}:\n", plan.network));
        for op in &plan.ops {
            text.push_str(&format!("  {:<7} {:<9} {}\n", op.action, op.kind, op.words));
        }
        for blocked in &plan.blocked {
            text.push_str(&format!("  blocked: {}: {}: {}\n", blocked.object, blocked.reason, blocked.message));
        }
        if !plan.in_sync && plan.blocked.is_empty() {
            text.push_str("  is not in sync after that: somebody else changes it, or the kernel cannot be read\n");
        }
    }
    let count = |action: &str| plans.iter().flat_map(|plan| &plan.ops).filter(|op| op.action == action).count();
    text.push_str(&if in_sync {
        format!("In sync with revision {}: nothing to do in {} networks.\n", read.store.revision(), plans.len())
    } else {
        let (add, replace, delete) = (count("add"), count("replace"), count("delete"));
        format!("Plan: {add} to add, {replace} to replace, {delete} to delete.\n")
    });
    text
}

/// Records without effect on this host, one line each.
fn left_out(read: &ReadStore) -> Vec<String> {
    let store = &read.store;
    let rejected = store.rejections().map(ToString::to_string);
    let conflicts = store.conflicts().map(|conflict| {
        let (key, holder) = (store.whole_key(&conflict.key), store.whole_key(&conflict.holder));
        format!("{key}: {}: {} is held by {holder}", conflict.field, conflict.claim)
    });
    let blocked = store.blocked().map(|b| format!("{}: Blocked: {}", store.whole_key(&b.key), b.reason.as_str()));
    rejected.chain(conflicts).chain(blocked).collect()
}
