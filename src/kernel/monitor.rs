//! Notifications: what may have changed, as the kernel tells it. They are hints that can be lost; the loss is told once.

use std::{
    collections::BTreeSet,
    os::fd::{AsFd, BorrowedFd},
};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::libc;

use super::{
    decode::{self, Row},
    error::{Because as _, Error},
    forwarding::{self, RTM_NEWNETCONF},
    socket::raise_buffer,
    wire::{self, Message},
};
use crate::engine::Event;

/// Receive buffer of an event socket: at 832 bytes for each notification, some 10,000 of them.
pub(super) const BUFFER: usize = 8 << 20;
/// The most datagrams read in one go, so that a storm elsewhere does not keep its reader from everything else.
const MOST: usize = 16 << 10;

pub(super) const LINK: u32 = libc::RTNLGRP_LINK;
const NEIGH: u32 = libc::RTNLGRP_NEIGH;
const TC: u32 = libc::RTNLGRP_TC;
pub(super) const IPV4_IFADDR: u32 = libc::RTNLGRP_IPV4_IFADDR;
pub(super) const IPV6_IFADDR: u32 = libc::RTNLGRP_IPV6_IFADDR;
pub(super) const IPV4_ROUTE: u32 = libc::RTNLGRP_IPV4_ROUTE;
pub(super) const IPV6_ROUTE: u32 = libc::RTNLGRP_IPV6_ROUTE;
const IPV4_NETCONF: u32 = libc::RTNLGRP_IPV4_NETCONF;
const IPV6_NETCONF: u32 = libc::RTNLGRP_IPV6_NETCONF;

/// The event socket of an overlay namespace.
#[derive(Debug)]
pub(super) struct Monitor {
    socket: Socket,
    /// The buffer is as large as asked for.
    full_buffer: bool,
}

/// What a drain found.
#[derive(Debug, Default)]
pub(super) struct Drained {
    pub(super) events: Vec<Event>,
    /// Links that changed as bridge ports, in their queueing or in their settings: their notification does not show the whole link.
    pub(super) ports: BTreeSet<u32>,
}

impl Monitor {
    /// Opens the socket in the namespace of the calling thread. The host's routes may be many, and change all the time.
    pub(super) fn open(on_host: bool) -> Result<Self, Error> {
        let mut groups = vec![LINK, NEIGH, TC, IPV4_IFADDR, IPV6_IFADDR, IPV4_NETCONF, IPV6_NETCONF];
        if !on_host {
            groups.extend([IPV4_ROUTE, IPV6_ROUTE]);
        }
        let opened = subscribe(NETLINK_ROUTE, &groups, false, BUFFER).because(|| "open an event socket".to_owned());
        opened.map(|(socket, full_buffer)| Self { socket, full_buffer })
    }

    /// Whether the receive buffer has the size that was asked for; not so in a user namespace, where `rmem_max` bounds it.
    pub(super) const fn full_buffer(&self) -> bool {
        self.full_buffer
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Reads what has come, without waiting. Neighbour notifications that `port` caused are left out: its acknowledgements tell
    /// more (notifications of forwarding rows name no cause).
    pub(super) fn drain(&self, port: u32) -> Drained {
        let mut drained = Drained::default();
        let overrun = drain(&self.socket, |datagram| {
            wire::messages(datagram).for_each(|message| heard(&message, port, &mut drained));
            !drained.events.is_empty() || !drained.ports.is_empty()
        });
        if overrun {
            drained.events.push(Event::Overrun);
        }
        drained
    }
}

/// Hands each of the kernel's datagrams on until there is none left, without waiting, or there were many and something came of
/// them, which `each` says. Returns whether some were lost.
pub(super) fn drain(socket: &Socket, mut each: impl FnMut(&[u8]) -> bool) -> bool {
    let mut buffer = Vec::with_capacity(64 << 10);
    let (mut lost, mut found) = (false, false);
    let mut read = 0;
    while read < MOST || !found {
        buffer.clear();
        match socket.recv_from(&mut buffer, libc::MSG_DONTWAIT | libc::MSG_TRUNC) {
            Ok((length, sender)) => {
                read += 1;
                // A notification too long for the buffer is one that was not heard.
                lost |= length > buffer.len();
                if sender.port_number() == 0 {
                    found |= each(&buffer);
                }
            }
            Err(error) => match error.raw_os_error() {
                Some(libc::EINTR) => {}
                Some(libc::ENOBUFS) => lost = true,
                _ => break,
            },
        }
    }
    lost
}

/// A socket that hears groups of a protocol, also of all namespaces that have an identifier in the one it is opened in; and whether
/// its receive buffer is as large as asked for.
pub(super) fn subscribe(
    protocol: isize,
    groups: &[u32],
    all_nsid: bool,
    buffer: usize,
) -> std::io::Result<(Socket, bool)> {
    let mut socket = Socket::new(protocol)?;
    socket.set_non_blocking(true)?;
    let full_buffer = raise_buffer(&socket, buffer)?;
    socket.bind(&SocketAddr::new(0, 0))?;
    if all_nsid {
        socket.set_listen_all_namespaces(true)?;
    }
    for group in groups {
        socket.add_membership(*group)?;
    }
    Ok((socket, full_buffer))
}

fn heard(message: &Message<'_>, port: u32, drained: &mut Drained) {
    let body = message.body;
    let event = match message.kind {
        libc::RTM_NEWLINK | libc::RTM_DELLINK => {
            let Some((family, ifindex)) = decode::link_head(body) else { return };
            match (i32::from(family), message.kind) {
                (libc::AF_UNSPEC, libc::RTM_DELLINK) => Some(Event::LinkGone(ifindex)),
                (libc::AF_UNSPEC, _) => decode::link(body).map(Event::Link),
                // Of the family AF_BRIDGE both tell of the port, which the link may outlive.
                (libc::AF_BRIDGE, _) => {
                    drained.ports.insert(ifindex);
                    None
                }
                _ => None,
            }
        }
        libc::RTM_NEWQDISC | libc::RTM_DELQDISC => {
            drained.ports.extend(decode::qdisc_ifindex(body));
            None
        }
        libc::RTM_NEWADDR | libc::RTM_DELADDR => decode::address_ifindex(body).map(Event::Addresses),
        RTM_NEWNETCONF => {
            // A link's own settings show in its own message.
            drained.ports.extend(forwarding::link_of(body));
            forwarding::decode(body).map(|(family, on)| Event::Forwarding(family, on))
        }
        libc::RTM_DELROUTE => decode::route_ifindex(body).map(Event::Routes),
        libc::RTM_NEWNEIGH | libc::RTM_DELNEIGH => {
            let gone = message.kind == libc::RTM_DELNEIGH;
            match decode::row(body) {
                Some(Row::Fdb(row)) if gone => Some(Event::FdbGone(row)),
                Some(Row::Fdb(row)) => Some(Event::Fdb(row)),
                Some(Row::Neighbour(_)) if message.port == port => None,
                Some(Row::Neighbour(entry)) if gone => Some(Event::NeighbourGone(entry)),
                Some(Row::Neighbour(entry)) => Some(Event::Neighbour(entry)),
                None => None,
            }
        }
        _ => None,
    };
    drained.events.extend(event);
}
