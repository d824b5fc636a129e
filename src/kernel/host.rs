//! Notifications of the host's own namespace: links and addresses. They are hints that can be lost; the loss is told once.

use std::{collections::BTreeSet, net::IpAddr, os::fd::AsFd as _, time::Duration};

use netlink_sys::{Socket, protocols::NETLINK_ROUTE};
use nix::{
    errno::Errno,
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use super::{
    decode,
    error::{Because as _, Error},
    monitor::{BUFFER, IPV4_IFADDR, IPV6_IFADDR, LINK, drain, subscribe},
    wire,
};
use crate::engine::Failure;

/// What may have changed on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HostEvent {
    /// The link with this index was made, changed or removed.
    Link(u32),
    /// This address came to a link, changed on it, or went.
    Address {
        /// The link.
        ifindex: u32,
        /// The address.
        address: IpAddr,
    },
    /// Events were lost.
    Lost,
}

/// Hears of changes in the network namespace of the thread that opens it.
#[derive(Debug)]
pub struct HostMonitor {
    socket: Socket,
}

impl HostMonitor {
    /// Opens the event socket.
    ///
    /// # Errors
    /// The system gives no socket, or not to us.
    pub fn open() -> Result<Self, Failure> {
        let opened: Result<_, Error> = subscribe(NETLINK_ROUTE, &[LINK, IPV4_IFADDR, IPV6_IFADDR], false, BUFFER)
            .because(|| "open an event socket".to_owned());
        Ok(Self { socket: opened?.0 })
    }

    /// Waits at most so long until something has come, and gives that.
    ///
    /// # Errors
    /// The system does not let us wait.
    pub fn wait(&self, most: Duration) -> Result<BTreeSet<HostEvent>, Failure> {
        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::try_from(most).unwrap_or(PollTimeout::MAX)) {
            Ok(_) | Err(Errno::EINTR) => Ok(self.events()),
            Err(errno) => Err(Error::new(errno, "wait for events").into()),
        }
    }

    /// What has come since the last call, each once, without waiting. Nothing is left in the socket.
    pub fn events(&self) -> BTreeSet<HostEvent> {
        let mut events = BTreeSet::new();
        let lost = drain(&self.socket, |datagram| {
            events.extend(wire::messages(datagram).filter_map(|message| {
                match message.kind {
                    // Of the family AF_BRIDGE they tell of a port only, which the link's own message follows.
                    libc::RTM_NEWLINK | libc::RTM_DELLINK => {
                        decode::link_head(message.body).map(|(_, ifindex)| HostEvent::Link(ifindex))
                    }
                    libc::RTM_NEWADDR | libc::RTM_DELADDR => decode::address(message.body)
                        .map(|held| HostEvent::Address { ifindex: held.ifindex, address: held.net.addr() }),
                    _ => None,
                }
            }));
            false
        });
        if lost {
            events.insert(HostEvent::Lost);
        }
        events
    }
}
