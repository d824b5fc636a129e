//! `vtepd cleanup`

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use clap::Args;

use super::{
    log::Log,
    options::{DEFAULT_SUBNET, Instance},
};
use crate::agent;

/// The options of the clean-up.
#[derive(Args, Debug)]
pub(super) struct Arguments {
    #[command(flatten)]
    instance: Instance,
    #[command(flatten)]
    log: Log,
}

/// Takes down what this instance owns, and says what.
pub(super) fn run(arguments: &Arguments) -> ExitCode {
    let outcome = arguments.log.start().and_then(|()| {
        let (gone, left) =
            agent::cleanup(&arguments.instance.owner(DEFAULT_SUBNET, None)).map_err(|error| error.to_string())?;
        for network in &gone {
            let _ = writeln!(io::stdout(), "removed {network}");
        }
        let left: Vec<String> = left.iter().map(ToString::to_string).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("could not remove all of {}", left.join(", "))) }
    });
    super::exit_code(outcome)
}
