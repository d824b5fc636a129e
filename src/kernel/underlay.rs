//! The underlay, as the agent's own namespace knows it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

use super::{
    decode, encode,
    error::{Because as _, Error},
    socket::RouteSocket,
};
use crate::engine::{Failure, LinkRef};

/// The MTU of the link of the agent's own namespace that holds this address; `None` when no link does.
///
/// # Errors
/// The kernel refused, or its answer was torn.
pub fn mtu_of(address: IpAddr) -> Result<Option<u32>, Failure> {
    let mut socket = RouteSocket::open()?;
    let mut holder = None;
    socket.dump(encode::dump_addresses(None), |_, body| {
        holder = holder.or(decode::address(body).filter(|held| held.net.addr() == address).map(|held| held.ifindex));
    })?;
    let Some(ifindex) = holder else { return Ok(None) };
    let bodies = socket.call_one(encode::get_link(&LinkRef::Index(ifindex)))?;
    Ok(bodies.first().and_then(|body| decode::link(body)).map(|link| link.mtu))
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
