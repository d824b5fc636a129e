//! `vtepd status`: how all nodes stand, as they said last.

use std::{io::Write as _, process::ExitCode, time::Duration};

use clap::Args;

use super::{
    fleet::{Nodes, Watcher, complaints, table},
    log::Log,
    options::Records,
};
use crate::model::Name;

/// Between two looks of `--watch`.
const PAUSE: Duration = Duration::from_secs(2);

/// The options of `vtepd status`.
#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// Only this node, in detail
    node: Option<Name>,
    /// As JSON, with all that the nodes say
    #[arg(long)]
    json: bool,
    /// Look again every two seconds
    #[arg(long)]
    watch: bool,
    #[command(flatten)]
    pub(super) records: Records,
    #[command(flatten)]
    log: Log,
}

/// Prints how the nodes stand.
pub(super) fn run(arguments: &Arguments) -> ExitCode {
    let printed = arguments.log.start().and_then(|()| super::block_on(print(arguments)));
    super::exit_code(printed)
}

async fn print(arguments: &Arguments) -> Result<(), String> {
    let mut watcher = Watcher::new(&arguments.records)?;
    loop {
        let text = match watcher.look().await {
            Ok(nodes) => text_of(nodes, arguments)?,
            // Whoever watches sees that it is back.
            Err(error) if arguments.watch => format!("{error}\n"),
            Err(error) => return Err(error.to_string()),
        };
        // From the top of an empty screen, except where the lines are for a program.
        let clear = if arguments.watch && !arguments.json { "\x1b[2J\x1b[H" } else { "" };
        let mut out = std::io::stdout().lock();
        write!(out, "{clear}{text}").and_then(|()| out.flush()).map_err(|error| format!("standard output: {error}"))?;
        drop(out);
        if !arguments.watch {
            return Ok(());
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn text_of(mut nodes: Nodes, arguments: &Arguments) -> Result<String, String> {
    if let Some(only) = &arguments.node {
        nodes.nodes.retain(|node| node.node == only.as_str());
        if nodes.nodes.is_empty() {
            return Err(format!("etcd knows no node {only}"));
        }
    }
    if arguments.json {
        let text = serde_json::to_string(&nodes).map_err(|error| error.to_string())?;
        return Ok(format!("{text}\n"));
    }
    let mut text = String::new();
    if arguments.node.is_none() {
        let with_agent = nodes.nodes.iter().filter(|node| node.has_agent()).count();
        let count = |what: fn(&super::fleet::Node) -> bool| nodes.nodes.iter().filter(|node| what(node)).count();
        text.push_str(&format!(
            "{} nodes, {with_agent} with an agent: {} alive, {} in sync; newest record of revision {}\n\n",
            nodes.nodes.len(),
            count(|node| node.alive),
            count(super::fleet::Node::is_right),
            nodes.newest
        ));
    }
    text.push_str(&table(&nodes));
    for node in nodes.nodes.iter().filter(|_| arguments.node.is_some()) {
        if let Some(status) = &node.status {
            text.push_str(&format!("\nsaid at {}", status.time));
            text.push_str(&node.since.as_ref().map(|since| format!(", runs since {since}")).unwrap_or_default());
            text.push('\n');
        }
    }
    let complaints = complaints(&nodes.nodes);
    if !complaints.is_empty() {
        text.push_str(&format!("\nNot right:\n  {}\n", complaints.join("\n  ")));
    }
    Ok(text)
}
