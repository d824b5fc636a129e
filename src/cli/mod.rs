//! The command line: one file per verb.
//!
//! **Invariant:** every flag and variable stands in `docs/` (`every_flag_and_variable_of_the_agent_stands_in_the_settings`,
//! `every_verb_stands_in_the_documents_with_each_flag_of_its_own`).
//!
//! **Invariant:** settings that make no sense end at once, with exit code 2 and one line
//! (`every_setting_that_makes_no_sense_ends_at_once_with_one_line_that_helps`).

mod agent;
mod apply;
mod approve;
mod checks;
mod cleanup;
pub mod demo;
mod export_neighbours;
mod files;
mod fleet;
mod journal;
mod local;
mod log;
mod options;
mod plan;
mod progress;
mod rights;
mod status;
mod table;
mod usage;
pub mod validate;
mod wait;

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use self::usage::Failure;

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
    /// Write records from files: judged, shown, in one transaction, waited for
    Apply(Box<apply::Arguments>),
    /// Let removals happen that agents hold because the store seems to have forgotten
    Approve(Box<approve::Arguments>),
    /// Remove everything that this instance owns on this host
    Cleanup(cleanup::Arguments),
    /// Show it all on two private hosts: a ping across, a break and its repair
    Demo(DemoArguments),
    /// Print what a host without an agent needs to take part in a network
    ExportNeighbours(Box<export_neighbours::Arguments>),
    /// Show the last drifts of this host and what became of them
    Journal(journal::Arguments),
    /// Show what the agent of this host would do now, without doing it
    Plan(Box<plan::Arguments>),
    /// Show how all nodes stand, as they said last
    Status(Box<status::Arguments>),
    /// Judge records before they are put
    Validate(validate::Arguments),
    /// Wait until the nodes have applied what stands in etcd
    Wait(Box<wait::Arguments>),
}

#[derive(Debug, Args)]
struct DemoArguments {
    /// Leave the hosts up, and say how to look around
    #[arg(long)]
    keep: bool,
}

impl Verb {
    /// Whether what is told goes together.
    fn check(&self) -> Result<(), String> {
        match self {
            Self::Agent(arguments) => arguments.check(),
            Self::Apply(arguments) => arguments.records.check(),
            Self::Plan(arguments) => arguments.check(),
            Self::Approve(arguments) => arguments.records.check(),
            Self::Cleanup(_) => rights::check().map_err(|error| format!("cleanup {error}")),
            Self::ExportNeighbours(arguments) => arguments.records.check(),
            Self::Validate(arguments) => arguments.check(),
            Self::Status(arguments) => arguments.records.check(),
            Self::Wait(arguments) => arguments.records.check(),
            Self::Demo(_) | Self::Journal(_) => Ok(()),
        }
    }
}

/// Runs the program.
pub fn main() -> ExitCode {
    let verb = match Cli::try_parse() {
        Ok(cli) => cli.verb,
        Err(error) => return usage::answer(&error),
    };
    if let Err(error) = verb.check() {
        return Failure::Settings(error).exit();
    }
    match verb {
        Verb::Agent(arguments) => agent::run(*arguments),
        Verb::Apply(arguments) => apply::run(&arguments),
        Verb::Approve(arguments) => approve::run(&arguments),
        Verb::Cleanup(arguments) => cleanup::run(&arguments),
        Verb::Demo(DemoArguments { keep }) => match std::env::current_exe() {
            Ok(vtepd) => demo::run(&demo::DemoOptions { keep, vtepd }),
            Err(error) => exit_code(Err(format!("cannot find this program: {error}"))),
        },
        Verb::ExportNeighbours(arguments) => export_neighbours::run(&arguments),
        Verb::Journal(arguments) => journal::run(&arguments),
        Verb::Plan(arguments) => plan::run(*arguments),
        Verb::Status(arguments) => status::run(&arguments),
        Verb::Wait(arguments) => wait::run(&arguments),
        Verb::Validate(arguments) => validate::run(&arguments),
    }
}

/// Runs to its end what waits for answers.
fn block_on<T>(work: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| format!("cannot start: {error}"))?.block_on(work)
}

/// Says what went wrong, if anything did.
fn exit_code(outcome: Result<(), String>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => Failure::Failed(error).exit(),
    }
}
