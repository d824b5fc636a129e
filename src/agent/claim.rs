//! What an agent holds on its host, said so that no other agent there takes the same: instances need bridges, subnets and link
//! groups of their own.
//!
//! It is said in the names of sockets. Abstract names are those of the network namespace (unix(7)), as links are; they need no
//! directory that all agents share, and die with the process. Nobody talks over these sockets.

use std::{
    fs, io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixDatagram},
    },
    thread,
    time::Duration,
};

use ipnet::Ipv4Net;

use super::{Error, Owner};

/// All our names begin so.
const PREFIX: &str = "vtepd/";
/// Held while an agent looks and claims, so that of two that start together one sees the other.
const LOOKING: &str = "vtepd/looking";
/// How long somebody else may look.
const PATIENCE: u32 = 500;

/// What is held, until it is dropped or the process ends.
#[derive(Debug)]
pub(super) struct Claim {
    _sockets: Vec<UnixDatagram>,
}

impl Claim {
    /// Claims link group, bridge and subnet.
    pub(super) fn take(owner: &Owner, with_outside: bool) -> Result<Self, Error> {
        let system = |error| Error::System { what: "cannot see which other agents run on this host", error };
        let _looking = looking().map_err(system)?;
        let others = claims().map_err(system)?;
        let group = owner.link_group.to_string();
        let subnet = owner.outside.subnet;
        let rival = others.iter().find_map(|other| {
            let what = match other.kind.as_str() {
                _ if other.instance == owner.instance => format!("--instance {}", owner.instance),
                "group" if other.value == group => format!("--link-group {group}"),
                "bridge" if with_outside && other.value == owner.outside.bridge => {
                    format!("--gateway-bridge {}", other.value)
                }
                "subnet" if with_outside && other.overlaps(subnet) => format!("--gateway-subnet {subnet}"),
                _ => return None,
            };
            Some((what, other.instance.clone()))
        });
        if let Some((setting, instance)) = rival {
            return Err(Error::Rival { setting, instance });
        }
        let mut names = vec![name("group", &group, &owner.instance)];
        if with_outside {
            names.push(name("bridge", &owner.outside.bridge, &owner.instance));
            names.push(name("subnet", &subnet.to_string(), &owner.instance));
        }
        let sockets = names.iter().map(|name| bind(name)).collect::<Result<_, _>>().map_err(system)?;
        Ok(Self { _sockets: sockets })
    }
}

fn name(kind: &str, value: &str, instance: &str) -> String {
    format!("{PREFIX}{kind}/{value}/{instance}")
}

fn bind(name: &str) -> io::Result<UnixDatagram> {
    UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(name)?)
}

fn looking() -> io::Result<UnixDatagram> {
    let mut tries = 0;
    loop {
        match bind(LOOKING) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries < PATIENCE => tries += 1,
            bound => return bound,
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// One thing that an agent said it holds.
#[derive(Debug, PartialEq, Eq)]
struct Held {
    kind: String,
    value: String,
    instance: String,
}

impl Held {
    fn parse(line: &str) -> Option<Self> {
        let (_, name) = line.split_once(" @")?;
        let (kind, rest) = name.strip_prefix(PREFIX)?.split_once('/')?;
        let (value, instance) = rest.rsplit_once('/')?;
        Some(Self { kind: kind.to_owned(), value: value.to_owned(), instance: instance.to_owned() })
    }

    fn overlaps(&self, subnet: Ipv4Net) -> bool {
        self.value.parse::<Ipv4Net>().is_ok_and(|held| held.contains(&subnet) || subnet.contains(&held))
    }
}

/// What all agents of this network namespace hold.
fn claims() -> io::Result<Vec<Held>> {
    Ok(fs::read_to_string("/proc/thread-self/net/unix")?.lines().filter_map(Held::parse).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_hold_is_read_from_the_names_of_their_sockets() {
        let line = "0000000000000000: 00000002 00000000 00000000 0002 01 21170 @vtepd/subnet/172.18.0.0/16/default";
        let held = Held::parse(line).unwrap();
        let expected =
            Held { kind: "subnet".to_owned(), value: "172.18.0.0/16".to_owned(), instance: "default".to_owned() };
        assert_eq!(held, expected);
        assert!(held.overlaps("172.18.4.0/24".parse().unwrap()) && !held.overlaps("172.19.0.0/16".parse().unwrap()));
        for line in ["", "x @vtepd/looking", "x /run/vtepd/group/1/a", "x @elsewhere/group/1/a"] {
            assert_eq!(Held::parse(line), None, "{line}");
        }
    }
}
