//! `vtepd journal`: the last drifts of this host, and what became of them.

use std::{io::Write as _, path::PathBuf, process::ExitCode};

use clap::Args;

use super::{local, table::Table};
use crate::agent::{Episode, Outcome};

/// The options of `vtepd journal`.
#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// Only this network
    network: Option<String>,
    /// The last so many
    #[arg(long, short = 'n', default_value_t = 50)]
    lines: usize,
    /// As JSON
    #[arg(long)]
    json: bool,
    /// Which of several agents on this host is asked
    #[arg(long, env = "VTEPD_INSTANCE", default_value = "default")]
    instance: String,
    /// Where its socket is
    #[arg(long, env = "VTEPD_RUN_DIR", default_value = "/run/vtepd")]
    run_dir: PathBuf,
}

/// Prints the journal, oldest first.
pub(super) fn run(arguments: &Arguments) -> ExitCode {
    let printed = text(arguments).and_then(|text| {
        std::io::stdout().lock().write_all(text.as_bytes()).map_err(|error| format!("standard output: {error}"))
    });
    super::exit_code(printed)
}

fn text(arguments: &Arguments) -> Result<String, String> {
    let socket = arguments.run_dir.join(format!("{}.sock", arguments.instance));
    let episodes: Vec<Episode> =
        serde_json::from_str(&local::get(&socket, "/journal")?).map_err(|error| format!("the journal: {error}"))?;
    let asked = |episode: &Episode| arguments.network.as_ref().is_none_or(|network| *network == episode.network);
    let mut episodes: Vec<Episode> = episodes.into_iter().filter(asked).collect();
    let episodes = episodes.split_off(episodes.len().saturating_sub(arguments.lines));
    if arguments.json {
        return serde_json::to_string(&episodes).map(|text| text + "\n").map_err(|error| error.to_string());
    }
    if episodes.is_empty() {
        return Ok("nothing has drifted since the agent started\n".to_owned());
    }
    let mut table = Table::new(&["TIME", "NETWORK", "OBJECT", "WAS", "OUTCOME"]);
    for Episode { time, network, object, reason, outcome, micros, .. } in episodes {
        let outcome = match (outcome, micros) {
            (Outcome::Repaired, Some(micros)) => format!("repaired in {}.{:03} ms", micros / 1000, micros % 1000),
            _ => outcome.as_str().to_owned(),
        };
        table.row(vec![time, network, object, reason, outcome]);
    }
    Ok(table.to_string())
}
