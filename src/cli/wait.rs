//! `vtepd wait`: until the nodes have applied what stands in etcd.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Args;

use super::{
    fleet::{Node, Watcher, complaints},
    log::Log,
    options::{Records, duration},
    progress::Progress,
};
use crate::model::Name;

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(250);

/// The options of `vtepd wait`.
#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// The revision to wait for, such as `etcdctl put -w json` says; without it, all that stands in etcd now
    #[arg(long, value_parser = clap::value_parser!(i64).range(1..))]
    revision: Option<i64>,
    /// Wait for these nodes only; may be given several times. Without it, every node that has an agent
    #[arg(long)]
    node: Vec<Name>,
    /// How long to wait at most
    #[arg(long, default_value = "60s", value_parser = duration)]
    timeout: Duration,
    #[command(flatten)]
    pub(super) records: Records,
    #[command(flatten)]
    log: Log,
}

/// Waits.
pub(super) fn run(arguments: &Arguments) -> ExitCode {
    let waited = arguments.log.start().and_then(|()| {
        super::block_on(async {
            let mut watcher = Watcher::new(&arguments.records)?;
            until_applied(&mut watcher, arguments.revision, &arguments.node, arguments.timeout).await
        })
    });
    super::exit_code(waited)
}

/// Waits until the nodes, or all that have an agent, have applied the revision, or all that stands in etcd at the first look. What
/// they say is not right is said at the end.
pub(super) async fn until_applied(
    watcher: &mut Watcher,
    revision: Option<i64>,
    only: &[Name],
    timeout: Duration,
) -> Result<(), String> {
    let (start, mut progress, mut target) = (Instant::now(), Progress::new(), revision);
    loop {
        let looked = look(watcher, &mut target, only).await;
        let missing = match looked {
            Ok((nodes, missing)) if missing.is_empty() => {
                drop(progress);
                complaints(&nodes).iter().for_each(|complaint| eprintln!("vtepd: {complaint}"));
                return Ok(());
            }
            Ok((nodes, missing)) => {
                let done = nodes.len() - missing.len().min(nodes.len());
                let named: Vec<&str> = missing.iter().take(3).map(|(name, _)| name.as_str()).collect();
                let text = format!("{done} of {} nodes have applied it; waiting for {}", nodes.len(), named.join(", "));
                progress.say(&text);
                missing
            }
            Err(Failed::Etcd(error)) => vec![("etcd".to_owned(), error)],
            Err(Failed::Wrong(error)) => return Err(error),
        };
        if start.elapsed() > timeout {
            let missing: Vec<String> = missing.into_iter().map(|(name, why)| format!("\n  {name}: {why}")).collect();
            return Err(format!("not applied after {timeout:?} by{}", missing.concat()));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

enum Failed {
    /// It may go better the next time.
    Etcd(String),
    /// It will not.
    Wrong(String),
}

/// The nodes in question, and those that have not applied it, with the reason.
async fn look(
    watcher: &mut Watcher,
    target: &mut Option<i64>,
    only: &[Name],
) -> Result<(Vec<Node>, Vec<(String, String)>), Failed> {
    let etcd = |error: crate::etcd::Error| Failed::Etcd(error.to_string());
    let looked = watcher.look().await.map_err(etcd)?;
    let revision = *target.get_or_insert(looked.revision);
    if revision > looked.revision {
        let wrong = format!("there is no revision {revision} yet: etcd is at {}", looked.revision);
        return Err(Failed::Wrong(wrong));
    }
    let asked =
        |node: &Node| if only.is_empty() { node.has_agent() } else { only.iter().any(|o| o.as_str() == node.node) };
    let nodes: Vec<Node> = looked.nodes.into_iter().filter(asked).collect();
    let mut missing: Vec<(String, String)> = only
        .iter()
        .filter(|only| !nodes.iter().any(|node| node.node == only.as_str()))
        .map(|only| (only.to_string(), "etcd knows no such node".to_owned()))
        .collect();
    if nodes.is_empty() && only.is_empty() {
        missing.push(("any node".to_owned(), "etcd knows no node with an agent".to_owned()));
    }
    for node in &nodes {
        if !watcher.has_applied(node, revision).await.map_err(etcd)? {
            let because = match node.because() {
                because if because.is_empty() => "has not heard of it".to_owned(),
                because => because,
            };
            missing.push((node.node.clone(), format!("{because} (applied {}, wanted {revision})", node.applied())));
        }
    }
    Ok((nodes, missing))
}
