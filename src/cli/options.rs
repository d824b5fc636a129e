//! Options that several verbs share.

use std::{net::Ipv4Addr, path::PathBuf, time::Duration};

use clap::Args;
use ipnet::{Ipv4Net, Ipv6Net};

use super::checks::{certificates, etcd_url, prefix, private_key, readable};
use crate::{
    agent::Owner,
    desired::OutsideConfig,
    etcd::{self, Tls, User},
    model::nft::{Family, TableId},
};

/// Where the records are.
#[derive(Args, Clone, Debug)]
pub(super) struct Records {
    /// URLs of etcd's members
    #[arg(long, env = "VTEPD_ETCD", value_delimiter = ',', required = true, value_parser = etcd_url)]
    etcd: Vec<String>,
    /// Prefix of all keys
    #[arg(long, env = "VTEPD_PREFIX", default_value = "/vtepd/v1", value_parser = prefix)]
    pub(super) prefix: String,
    /// Prefix of Docker's layout of keys, such as /docker/network/v1.0, which is then read as well
    #[arg(long, env = "VTEPD_DOCKER_PREFIX", value_parser = docker_prefix)]
    pub(super) docker_prefix: Option<String>,
    /// etcd user
    #[arg(long, env = "VTEPD_ETCD_USER", requires = "etcd_password_file")]
    etcd_user: Option<String>,
    /// File with the etcd user's password
    #[arg(long, env = "VTEPD_ETCD_PASSWORD_FILE", requires = "etcd_user", value_parser = readable)]
    etcd_password_file: Option<PathBuf>,
    /// File with the certificate authority of etcd's servers (PEM)
    #[arg(long, env = "VTEPD_ETCD_CA", value_parser = certificates)]
    etcd_ca: Option<PathBuf>,
    /// File with the client's certificate (PEM)
    #[arg(long, env = "VTEPD_ETCD_CERT", requires = "etcd_key", value_parser = certificates)]
    etcd_cert: Option<PathBuf>,
    /// File with the client's key (PEM)
    #[arg(long, env = "VTEPD_ETCD_KEY", requires = "etcd_cert", value_parser = private_key)]
    etcd_key: Option<PathBuf>,
}

impl Records {
    /// Whether what is told goes together.
    pub(super) fn check(&self) -> Result<(), String> {
        prefixes_apart(&self.prefix, self.docker_prefix.as_deref())?;
        let has_tls = self.etcd_ca.is_some() || self.etcd_cert.is_some();
        for url in &self.etcd {
            if url.starts_with("https://") && self.etcd_ca.is_none() {
                return Err(format!(
                    "--etcd {url} needs --etcd-ca: the file with the authority that etcd's certificate is by"
                ));
            }
            if url.starts_with("http://") && has_tls {
                return Err(format!("--etcd {url} is not encrypted although files for TLS are given: write https://"));
            }
        }
        Ok(())
    }

    /// How to reach etcd, for the native prefix.
    pub(super) fn etcd(&self) -> Result<etcd::Config, String> {
        let user = self.etcd_user.clone().zip(self.etcd_password_file.clone());
        let user = user.map(|(name, password_file)| User { name, password_file });
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
    /// Bridge on the host that leads outside; `none` for no way outside
    #[arg(long, env = "VTEPD_GATEWAY_BRIDGE", default_value = DEFAULT_BRIDGE, value_parser = bridge)]
    gateway_bridge: String,
}

impl Instance {
    /// The owner, whose bridge on the host has these subnets.
    pub(super) fn owner(&self, subnet: Ipv4Net, subnet6: Option<Ipv6Net>) -> Owner {
        let Self { instance, run_dir, link_group, gateway_bridge } = self.clone();
        // Without a way outside what an earlier agent made for one is still to be found.
        let bridge = if self.has_outside() { gateway_bridge } else { DEFAULT_BRIDGE.to_owned() };
        let table = TableId::new(Family::Inet, format!("vtepd-{instance}"));
        Owner { instance, run_dir, link_group, outside: OutsideConfig { bridge, subnet, subnet6, table } }
    }

    /// Whether there is to be a way outside.
    pub(super) fn has_outside(&self) -> bool {
        self.gateway_bridge != NO_BRIDGE
    }
}

/// The IPv4 subnet of the bridge on the host: 172.18.0.0/16, as Docker's `docker_gwbridge` has it.
pub(super) const DEFAULT_SUBNET: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(172, 18, 0, 0), 16);
const DEFAULT_BRIDGE: &str = "vtepd-gw";
const NO_BRIDGE: &str = "none";

/// The name of a link that can be made.
fn bridge(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_graphic() && !matches!(c, '/' | ':' | '%');
    if (1..16).contains(&text.len()) && text.chars().all(plain) && !matches!(text, "." | ".." | "lo") {
        Ok(text.to_owned())
    } else {
        Err("is no name of a link: 1 to 15 characters without `/`, `:`, `%`".to_owned())
    }
}

/// The IPv4 subnet of the bridge on the host.
pub(super) fn gateway_subnet(text: &str) -> Result<Ipv4Net, String> {
    let subnet: Ipv4Net = text.parse().map_err(|_| "is not an IPv4 subnet such as 172.18.0.0/16".to_owned())?;
    match subnet {
        _ if subnet != subnet.trunc() => Err(format!("has host bits: {} is meant?", subnet.trunc())),
        _ if !(8..=29).contains(&subnet.prefix_len()) => Err("must have a prefix length of 8 to 29".to_owned()),
        _ => Ok(subnet),
    }
}

/// The IPv6 subnet of the bridge on the host; interfaces get the same numbers in it as in the IPv4 one.
pub(super) fn gateway_subnet6(text: &str) -> Result<Ipv6Net, String> {
    let subnet: Ipv6Net = text.parse().map_err(|_| "is not an IPv6 subnet such as fd00:18::/64".to_owned())?;
    match subnet {
        _ if subnet != subnet.trunc() => Err(format!("has host bits: {} is meant?", subnet.trunc())),
        _ if subnet.prefix_len() > 96 => Err("must have a prefix length of at most 96".to_owned()),
        _ => Ok(subnet),
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

/// A part of a whole, such as `50%`; the sign may be left out.
pub(super) fn percent(text: &str) -> Result<u8, String> {
    let number = text.strip_suffix('%').unwrap_or(text).parse().ok();
    number.filter(|percent| *percent <= 100).ok_or_else(|| "is not a part of a whole such as 50%".to_owned())
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
    fn gateway_subnets_are_whole_subnets_with_room() {
        assert_eq!(gateway_subnet("172.18.0.0/16"), Ok(DEFAULT_SUBNET));
        for bad in ["172.18.0.1/16", "172.18.0.0", "10.0.0.0/30", "0.0.0.0/0", "fd00::/64"] {
            assert!(gateway_subnet(bad).is_err(), "{bad}");
        }
        assert!(gateway_subnet6("fd00:18::/64").is_ok());
        for bad in ["fd00:18::1/64", "fd00::/112", "10.0.0.0/8"] {
            assert!(gateway_subnet6(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_bridge_has_the_name_of_a_link() {
        for good in ["vtepd-gw", "docker_gwbridge"] {
            assert_eq!(bridge(good), Ok(good.to_owned()));
        }
        for bad in ["", "a/b", "x%d", "0123456789abcdef", "..", "lo", "a b", "a\n"] {
            assert!(bridge(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_part_is_of_a_hundred() {
        assert_eq!((percent("50%"), percent("0"), percent("100%")), (Ok(50), Ok(0), Ok(100)));
        for bad in ["", "%", "101%", "-1", "50 %", "half"] {
            assert!(percent(bad).is_err(), "{bad}");
        }
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
