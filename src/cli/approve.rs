//! `vtepd approve`

use std::process::ExitCode;

use clap::Args;

use super::options::Records;
use crate::{etcd::Etcd, model::Name};

/// The options of `approve`.
#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// Networks whose held removals may happen, by their names in metrics and status
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    networks: Vec<Name>,
    /// All networks of which some agent's status says that it holds removals
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    pub(super) records: Records,
}

/// Approves.
pub(super) fn run(arguments: &Arguments) -> ExitCode {
    super::exit_code(approve(arguments))
}

fn approve(arguments: &Arguments) -> Result<(), String> {
    let config = arguments.records.etcd()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("cannot start: {error}"))?;
    runtime.block_on(async {
        let etcd = Etcd::connect(&config).await.map_err(|error| error.to_string())?;
        let held = etcd.held_networks().await;
        let networks = match held {
            Ok(held) if arguments.all => held.into_iter().collect(),
            Ok(held) => {
                for network in arguments.networks.iter().filter(|network| !held.contains(*network)) {
                    eprintln!(
                        "vtepd: no agent's status says that removals of {network} are held; approved all the same"
                    );
                }
                arguments.networks.clone()
            }
            Err(error) if arguments.all => return Err(format!("cannot read the agents' statuses: {error}")),
            Err(_) => arguments.networks.clone(),
        };
        if networks.is_empty() {
            println!("no agent holds removals");
        }
        for network in &networks {
            let revision = etcd.approve(network).await.map_err(|error| error.to_string())?;
            println!("{network}: removals held up to revision {revision} go");
        }
        Ok(())
    })
}
