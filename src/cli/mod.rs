//! The command line: one file per verb.

mod agent;
mod cleanup;
mod options;
pub mod validate;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Reconciles VXLAN overlay networks on this host: what etcd says is what the kernel has, and stays.
#[derive(Debug, Parser)]
#[command(name = "vtepd", version, about)]
pub struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the agent of this host
    Agent(Box<agent::Arguments>),
    /// Remove everything that this instance owns on this host
    Cleanup(cleanup::Arguments),
    /// Judge records before they are put
    Validate(validate::Arguments),
}

/// Runs the program.
pub fn main() -> ExitCode {
    match Cli::parse().verb {
        Verb::Agent(arguments) => agent::run(*arguments),
        Verb::Cleanup(arguments) => cleanup::run(&arguments),
        Verb::Validate(arguments) => validate::run(&arguments),
    }
}

/// Says what went wrong, if anything did.
fn exit_code(outcome: Result<(), String>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vtepd: {error}");
            ExitCode::FAILURE
        }
    }
}
