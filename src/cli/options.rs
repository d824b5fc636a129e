//! Options that several verbs share.

use std::{fs, path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

use crate::{
    agent::Owner,
    etcd::{self, Tls},
};

/// How log lines look.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum LogFormat {
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
    #[arg(long, env = "VTEPD_LOG_LEVEL", default_value = "info")]
    log_level: String,
}

impl Log {
    /// Starts logging.
    pub(super) fn start(&self) -> Result<(), String> {
        let filter = EnvFilter::try_new(&self.log_level).map_err(|error| format!("--log-level: {error}"))?;
        let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
        let started = match self.log_format {
            LogFormat::Text => subscriber.with_ansi(false).try_init(),
            LogFormat::Json => subscriber.json().try_init(),
        };
        started.map_err(|error| error.to_string())
    }
}

/// Where the records are.
#[derive(Args, Clone, Debug)]
pub(super) struct Records {
    /// URLs of etcd's members
    #[arg(long, env = "VTEPD_ETCD", value_delimiter = ',', required = true)]
    etcd: Vec<String>,
    /// Prefix of all keys
    #[arg(long, env = "VTEPD_PREFIX", default_value = "/vtepd/v1")]
    pub(super) prefix: String,
    /// Prefix of Docker's layout of keys, such as /docker/network/v1.0, which is then read as well
    #[arg(long, env = "VTEPD_DOCKER_PREFIX", value_parser = docker_prefix)]
    pub(super) docker_prefix: Option<String>,
    /// etcd user
    #[arg(long, env = "VTEPD_ETCD_USER", requires = "etcd_password_file")]
    etcd_user: Option<String>,
    /// File with the etcd user's password
    #[arg(long, env = "VTEPD_ETCD_PASSWORD_FILE", requires = "etcd_user")]
    etcd_password_file: Option<PathBuf>,
    /// File with the certificate authority of etcd's servers (PEM)
    #[arg(long, env = "VTEPD_ETCD_CA")]
    etcd_ca: Option<PathBuf>,
    /// File with the client's certificate (PEM)
    #[arg(long, env = "VTEPD_ETCD_CERT", requires = "etcd_key")]
    etcd_cert: Option<PathBuf>,
    /// File with the client's key (PEM)
    #[arg(long, env = "VTEPD_ETCD_KEY", requires = "etcd_cert")]
    etcd_key: Option<PathBuf>,
}

impl Records {
    /// How to reach etcd, for the native prefix.
    pub(super) fn etcd(&self) -> Result<etcd::Config, String> {
        prefixes_apart(&self.prefix, self.docker_prefix.as_deref())?;
        let user = match (&self.etcd_user, &self.etcd_password_file) {
            (Some(user), Some(file)) => {
                let password = fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
                Some((user.clone(), password.trim_end_matches(['\r', '\n']).to_owned()))
            }
            _ => None,
        };
        let identity = self.etcd_cert.clone().zip(self.etcd_key.clone());
        let ca = self.etcd_ca.clone();
        let tls = (ca.is_some() || identity.is_some()).then_some(Tls { ca, identity });
        Ok(etcd::Config { user, tls, ..etcd::Config::new(self.etcd.clone(), &self.prefix) })
    }
}

/// Which of several agents on one host is meant.
#[derive(Args, Clone, Debug)]
pub(super) struct Instance {
    /// Which of several agents on this host this is
    #[arg(long, env = "VTEPD_INSTANCE", default_value = "default", value_parser = instance)]
    pub(super) instance: String,
    /// Where the lock is
    #[arg(long, env = "VTEPD_RUN_DIR", default_value = "/run/vtepd")]
    pub(super) run_dir: PathBuf,
    /// Link group of all devices of this instance
    #[arg(long, env = "VTEPD_LINK_GROUP", default_value_t = 0x7674, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) link_group: u32,
}

impl Instance {
    pub(super) fn owner(&self) -> Owner {
        let Self { instance, run_dir, link_group } = self.clone();
        Owner { instance, run_dir, link_group }
    }
}

fn instance(text: &str) -> Result<String, String> {
    text.parse::<crate::model::Name>().map(|name| name.to_string()).map_err(|error| error.to_string())
}

/// The prefix of Docker's layout, without a slash at its end.
pub(super) fn docker_prefix(text: &str) -> Result<String, String> {
    let prefix = text.trim_end_matches('/');
    if prefix.is_empty() { Err("must not be empty".to_owned()) } else { Ok(prefix.to_owned()) }
}

/// Both layouts stand apart: a key belongs to one of them.
pub(super) fn prefixes_apart(native: &str, docker: Option<&str>) -> Result<(), String> {
    let Some(docker) = docker else { return Ok(()) };
    let (native, docker) = (format!("{}/", native.trim_end_matches('/')), format!("{docker}/"));
    if native.starts_with(&docker) || docker.starts_with(&native) {
        return Err("--prefix and --docker-prefix must not lie within each other".to_owned());
    }
    Ok(())
}

/// A time span: a number with `ms`, `s`, `m` or `h`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let millis_per_unit = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err("is not a time span such as 500ms, 60s, 5m or 1h".to_owned()),
    };
    let number: u64 = number.parse().map_err(|_| "is not a time span such as 500ms, 60s, 5m or 1h".to_owned())?;
    let millis = number.checked_mul(millis_per_unit).filter(|millis| (100..=86_400_000).contains(millis));
    millis.map(Duration::from_millis).ok_or_else(|| "must be between 100ms and 24h".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prefixes_of_both_layouts_lie_apart() {
        assert_eq!(prefixes_apart("/vtepd/v1", None), Ok(()));
        assert_eq!(prefixes_apart("/docker/network/v1.01", Some("/docker/network/v1.0")), Ok(()));
        for native in ["/docker", "/docker/network/v1.0/", "/docker/network/v1.0/x", "/", ""] {
            assert!(prefixes_apart(native, Some("/docker/network/v1.0")).is_err(), "{native}");
        }
        assert_eq!(docker_prefix("/docker/network/v1.0/"), Ok("/docker/network/v1.0".to_owned()));
        assert!(docker_prefix("/").is_err());
    }

    #[test]
    fn time_spans_have_a_unit_and_bounds() {
        assert_eq!(duration("60s"), Ok(Duration::from_secs(60)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        for bad in ["", "60", "s", "-1s", "1d", "0s", "10ms", "25h", "99999999999999999999s"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
