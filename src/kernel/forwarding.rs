//! Whether a namespace forwards packets: read and heard as `RTM_*NETCONF`, and written by sysctl, for there is no message that
//! sets it.

use std::{collections::BTreeMap, fs, path::Path};

use netlink_packet_core::NetlinkSerializable;
use nix::libc;

use super::{
    error::{Because as _, Error},
    socket::RouteSocket,
    wire::{attribute, i32_at, u8_at},
};
use crate::engine::{Family, Forwarding};

// include/uapi/linux/netconf.h and rtnetlink.h
pub(super) const RTM_NEWNETCONF: u16 = 80;
const RTM_GETNETCONF: u16 = 82;
const NETCONFA_IFINDEX: u16 = 1;
const NETCONFA_IFINDEX_ALL: i32 = -1;
const NETCONFA_FORWARDING: u16 = 2;
/// `struct netconfmsg`, aligned.
const NETCONFMSG: usize = 4;

/// Asks for the settings of all links, of `all` and of `default`.
struct Dump(Family);

impl NetlinkSerializable for Dump {
    fn message_type(&self) -> u16 {
        RTM_GETNETCONF
    }

    fn buffer_len(&self) -> usize {
        NETCONFMSG
    }

    fn serialize(&self, buffer: &mut [u8]) {
        let family = match self.0 {
            Family::V4 => libc::AF_INET,
            Family::V6 => libc::AF_INET6,
        };
        if let (Some(first), Ok(family)) = (buffer.first_mut(), u8::try_from(family)) {
            *first = family;
        }
    }
}

/// Which families the socket's namespace forwards.
pub(super) fn read(socket: &mut RouteSocket) -> Result<Vec<(Family, Forwarding)>, Error> {
    let mut settings: BTreeMap<Family, (usize, usize)> = BTreeMap::new();
    for family in Family::ALL {
        socket.dump(Dump(family), |_, body| {
            if let Some((family, on)) = decode(body) {
                let (all, forwarding) = settings.entry(family).or_default();
                *all += 1;
                *forwarding += usize::from(on);
            }
        })?;
    }
    let read = settings.into_iter().filter(|(_, (_, on))| *on > 0);
    Ok(read
        .map(|(family, (all, on))| (family, if on == all { Forwarding::Everywhere } else { Forwarding::Partly }))
        .collect())
}

/// Which families the socket's namespace forwards as a rule (`conf.all.forwarding`), whatever single links are set to.
pub(super) fn as_a_rule(socket: &mut RouteSocket) -> Result<Vec<(Family, Forwarding)>, Error> {
    let mut families = Vec::new();
    for family in Family::ALL {
        socket.dump(Dump(family), |_, body| {
            let link = body.get(NETCONFMSG..).and_then(|rest| i32_at(attribute(rest, NETCONFA_IFINDEX)?, 0));
            if link == Some(NETCONFA_IFINDEX_ALL) && decode(body) == Some((family, true)) {
                families.push((family, Forwarding::Everywhere));
            }
        })?;
    }
    Ok(families)
}

/// The link that a message is about, where it is one.
pub(super) fn link_of(body: &[u8]) -> Option<u32> {
    let ifindex = i32_at(attribute(body.get(NETCONFMSG..)?, NETCONFA_IFINDEX)?, 0)?;
    u32::try_from(ifindex).ok().filter(|ifindex| *ifindex > 0)
}

/// One link's setting, or that of `all` or `default`.
pub(super) fn decode(body: &[u8]) -> Option<(Family, bool)> {
    let family = match i32::from(u8_at(body, 0)?) {
        libc::AF_INET => Family::V4,
        libc::AF_INET6 => Family::V6,
        _ => return None,
    };
    let on = attribute(body.get(NETCONFMSG..)?, NETCONFA_FORWARDING).and_then(|value| i32_at(value, 0))?;
    Some((family, on != 0))
}

/// Sets it for all links of the calling thread's namespace and those to come. `all` first: it sets the others, but where it
/// is already as it should be it does nothing (devinet_sysctl_forward, net/ipv4/devinet.c).
pub(super) fn set(family: Family, on: bool) -> Result<(), Error> {
    let conf = Path::new(match family {
        Family::V4 => "/proc/sys/net/ipv4/conf",
        Family::V6 => "/proc/sys/net/ipv6/conf",
    });
    let value = if on { "1" } else { "0" };
    let write = |link: &Path| {
        let file = link.join("forwarding");
        fs::write(&file, value).because(|| format!("write {}", file.display()))
    };
    write(&conf.join("all"))?;
    for link in fs::read_dir(conf).because(|| format!("list {}", conf.display()))? {
        let link = link.because(|| format!("list {}", conf.display()))?.path();
        let as_it_should_be = || fs::read_to_string(link.join("forwarding")).is_ok_and(|now| now.trim() == value);
        // A link that has gone meanwhile needs nothing.
        if !as_it_should_be() && link.exists() {
            write(&link)?;
        }
    }
    Ok(())
}
