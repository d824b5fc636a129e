use std::{
    collections::BTreeSet,
    os::fd::{AsFd as _, BorrowedFd},
};

use netlink_sys::{Socket, protocols::NETLINK_NETFILTER};

use super::{decode, numbers as n};
use crate::{
    engine::Failure,
    kernel::{
        error::Because as _,
        monitor::{BUFFER, drain, subscribe},
        wire,
    },
    model::nft::TableId,
};

/// Hears which tables of one network namespace change.
#[derive(Debug)]
pub struct Monitor {
    socket: Socket,
}

/// What was heard: hints that tables may have changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// Tables of which something was told: of themselves, or of a chain, rule, set or object in them.
    pub tables: BTreeSet<TableId>,
    /// Something was not heard: any table may have changed.
    pub overrun: bool,
}

impl Monitor {
    /// Opens the socket in the network namespace of the calling thread.
    ///
    /// # Errors
    /// No socket is to be had, or the caller may not hear of netfilter (`CAP_NET_ADMIN`).
    pub fn open() -> Result<Self, Failure> {
        let subscribed = subscribe(NETLINK_NETFILTER, &[n::NFNLGRP_NFTABLES], false, BUFFER);
        let (socket, _) = subscribed.because(|| "open an event socket".to_owned())?;
        Ok(Self { socket })
    }

    /// The socket, to wait on for readability.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Reads what has come, without waiting. What the socket of the port `own` applied ([`super::Tables::port`]) is left out. It has
    /// emptied the socket when it returns [`Heard::default`].
    pub fn drain(&self, own: u32) -> Heard {
        let mut heard = Heard::default();
        let lost = drain(&self.socket, |datagram| {
            heard.tables.extend(tables(datagram, own));
            !heard.tables.is_empty()
        });
        heard.overrun = lost;
        heard
    }
}

/// The tables that the messages of a datagram name. A generation names none.
pub(super) fn tables(datagram: &[u8], own: u32) -> impl Iterator<Item = TableId> {
    wire::messages(datagram)
        .filter(move |message| message.port != own)
        .filter(|message| decode::kind(message.kind).is_some_and(|kind| kind != n::NFT_MSG_NEWGEN))
        .filter_map(|message| decode::table_of(message.body))
}
