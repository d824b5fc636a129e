//! How the program speaks of a command line or settings that make no sense, and of what went wrong: one line that helps.
//!
//! The exit code tells the two apart. After 2 nothing was tried, and trying again helps nobody: a supervisor need not
//! (`RestartPreventExitStatus=2`).

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

/// Why a verb did not do what it was asked.
#[derive(Debug)]
pub(super) enum Failure {
    /// The settings make no sense here, whatever else happens.
    Settings(String),
    /// Something went wrong.
    Failed(String),
}

impl From<String> for Failure {
    fn from(error: String) -> Self {
        Self::Failed(error)
    }
}

impl Failure {
    /// Says it, and gives the exit code.
    pub(super) fn exit(self) -> ExitCode {
        let (code, text) = match self {
            Self::Settings(text) => (2, text),
            Self::Failed(text) => (1, text),
        };
        say(&text);
        ExitCode::from(code)
    }
}

/// Writes one line to standard error, where somebody may or may not listen.
fn say(text: &str) {
    let _ = writeln!(io::stderr(), "vtepd: {text}");
}

/// Answers a command line that could not be read, or that asks for help.
pub(super) fn answer(error: &clap::Error) -> ExitCode {
    use clap::error::ErrorKind::{DisplayHelp, DisplayHelpOnMissingArgumentOrSubcommand, DisplayVersion};
    match error.kind() {
        DisplayHelp | DisplayVersion => {
            let _ = error.print();
            ExitCode::SUCCESS
        }
        DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            ExitCode::from(2)
        }
        _ => Failure::Settings(one_line(&error.to_string())).exit(),
    }
}

/// What clap says over several lines, in one: the error and its tips, without the usage.
fn one_line(text: &str) -> String {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let told = lines.take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"));
    let mut line = String::new();
    for part in told {
        let part = part.strip_prefix("error: ").unwrap_or(part);
        let separator = if line.is_empty() {
            ""
        } else if part.starts_with("tip:") || part.starts_with('[') {
            "; "
        } else {
            " "
        };
        line.push_str(separator);
        line.push_str(part);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_clap_says_over_several_lines_becomes_one_without_the_usage() {
        let said = "error: the following required arguments were not provided:\n  --etcd <ETCD>\n\n\
            Usage: vtepd agent --etcd <ETCD>\n\nFor more information, try '--help'.\n";
        assert_eq!(one_line(said), "the following required arguments were not provided: --etcd <ETCD>");
        let said =
            "error: unexpected argument '--etdc' found\n\n  tip: a similar argument exists: '--etcd'\n\nUsage: x\n";
        assert_eq!(one_line(said), "unexpected argument '--etdc' found; tip: a similar argument exists: '--etcd'");
    }
}
