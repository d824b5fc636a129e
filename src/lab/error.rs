use std::{io, time::Duration};

use thiserror::Error;

/// Why the lab could not do what was asked.
#[derive(Debug, Error)]
pub enum LabError {
    /// A program that the lab runs is not installed.
    #[error("`{program}` is not installed: it is in the Debian package {package}")]
    Missing {
        /// The program.
        program: &'static str,
        /// The Debian package that has it.
        package: &'static str,
    },
    /// This system does not let the caller make private namespaces.
    #[error("private namespaces cannot be made here: {0}")]
    Forbidden(String),
    /// A command ended with an error.
    #[error("`{command}` failed ({status}): {stderr}")]
    Command {
        /// The command as it would be typed.
        command: String,
        /// Its exit status.
        status: String,
        /// What it said on standard error, or on standard output where it said nothing there.
        stderr: String,
    },
    /// The operating system refused something.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// The reason.
        source: io::Error,
    },
    /// A process that should run has ended.
    #[error("{what} has ended ({status}); the end of its log:\n{log}")]
    Ended {
        /// The process.
        what: String,
        /// Its exit status.
        status: String,
        /// The last lines of its log.
        log: String,
    },
    /// What was waited for did not come in time.
    #[error("{what}: not within {timeout:?} ({last})")]
    Timeout {
        /// What was waited for.
        what: String,
        /// How long.
        timeout: Duration,
        /// How things stood at the last look.
        last: String,
    },
    /// What was looked for is not so, or not yet.
    #[error("{0}")]
    NotSo(String),
    /// The wait was called off from outside.
    #[error("interrupted")]
    Interrupted,
}

impl LabError {
    /// An error for something that is not so, or not yet.
    pub fn not_so(what: impl Into<String>) -> Self {
        Self::NotSo(what.into())
    }

    /// Turns an I/O error into a lab error that says what was tried.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// Turns an errno into a lab error that says what was tried.
    pub(crate) fn errno(what: impl Into<String>) -> impl FnOnce(nix::errno::Errno) -> Self {
        let what = what.into();
        move |errno| Self::Io { what, source: errno.into() }
    }

    /// Whether waiting longer cannot help.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Missing { .. } | Self::Forbidden(_) | Self::Ended { .. } | Self::Interrupted)
    }
}
