//! Logging, as every verb that logs does it.

use std::io::{self, Write};

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

/// How log lines look.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

/// Logging, to standard error.
#[derive(Args, Clone, Debug)]
pub(super) struct Log {
    /// How log lines look
    #[arg(long, env = "VTEPD_LOG_FORMAT", value_enum, default_value = "text")]
    log_format: LogFormat,
    /// Which log lines are written: a level, or a filter such as vtepd=debug
    #[arg(long, env = "VTEPD_LOG_LEVEL", default_value = "info", value_parser = filter)]
    log_level: String,
}

impl Log {
    /// Starts logging.
    pub(super) fn start(&self) -> Result<(), String> {
        let filter = EnvFilter::try_new(&self.log_level).map_err(|error| format!("--log-level: {error}"))?;
        // The subscriber would tell on standard error of lines that it could not write there, and panic.
        let subscriber =
            tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| Stderr).log_internal_errors(false);
        let started = match self.log_format {
            LogFormat::Text => subscriber.with_ansi(false).try_init(),
            LogFormat::Json => subscriber.json().try_init(),
        };
        started.map_err(|error| error.to_string())
    }
}

/// Standard error, to which nobody may listen any more: a line that cannot be written is lost, and nothing else.
struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = io::stderr().write_all(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// A filter that means something. A word alone is a level: as the name of a module it would ask for all lines of one that does
/// not exist, and for no others.
fn filter(text: &str) -> Result<String, String> {
    let levels = || LEVELS.join(", ");
    let is_level = |word: &str| LEVELS.iter().any(|level| level.eq_ignore_ascii_case(word));
    for part in text.split(',').map(str::trim) {
        let level = match part.rsplit_once('=') {
            Some((_, level)) => level,
            None if part.contains('[') => continue,
            None => part,
        };
        if !is_level(level) {
            return Err(format!("'{level}' is not a level: {} (or a filter such as vtepd=debug)", levels()));
        }
    }
    EnvFilter::try_new(text).map_err(|error| error.to_string())?;
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_names_levels_that_exist() {
        for good in ["info", "INFO", "vtepd=debug", "info,vtepd::agent=trace", "off"] {
            assert!(filter(good).is_ok(), "{good}");
        }
        for bad in ["", "inof", "vtepd", "vtepd=inof", "info,", "info,vtepd", "=", "vtepd=debug=x"] {
            assert!(filter(bad).is_err(), "{bad}");
        }
    }
}
