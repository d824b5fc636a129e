//! The underlay, as the agent's own namespace knows it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

use nix::errno::Errno;

use super::{
    decode, encode,
    error::{Because as _, Error},
    socket::RouteSocket,
};
use crate::engine::{Failure, LinkRef};

/// The link of the underlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnderlayLink {
    /// Its index in the agent's own namespace.
    pub ifindex: u32,
    /// Its MTU in bytes.
    pub mtu: u32,
}

/// The link of the agent's own namespace that holds this address; `None` when no link does.
///
/// # Errors
/// The kernel refused, or its answer was torn.
pub fn underlay_link(address: IpAddr) -> Result<Option<UnderlayLink>, Failure> {
    let mut socket = RouteSocket::open()?;
    let mut holder = None;
    socket.dump(encode::dump_addresses(None), |_, body| {
        holder = holder.or(decode::address(body).filter(|held| held.net.addr() == address).map(|held| held.ifindex));
    })?;
    let Some(ifindex) = holder else { return Ok(None) };
    let bodies = match socket.call_one(encode::get_link(&LinkRef::Index(ifindex))) {
        // The link went away between the two.
        Err(error) if error.errno == Errno::ENODEV => return Ok(None),
        other => other?,
    };
    Ok(bodies.first().and_then(|body| decode::link(body)).map(|link| UnderlayLink { ifindex, mtu: link.mtu }))
}

/// The source address that the agent's own namespace chooses for a remote one. A connected UDP socket tells it and sends nothing.
///
/// # Errors
/// There is no route to it.
pub fn source_towards(remote: IpAddr) -> Result<IpAddr, Failure> {
    let source = || -> std::io::Result<IpAddr> {
        let any: IpAddr = if remote.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((any, 0))?;
        // The discard port: any other would do.
        socket.connect((remote, 9))?;
        Ok(socket.local_addr()?.ip())
    };
    let source: Result<IpAddr, Error> = source().because(|| format!("find a route to {remote}"));
    Ok(source?)
}
