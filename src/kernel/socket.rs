//! Requests to rtnetlink, or to another protocol of netlink, and their answers. The kernel works through a send before the call
//! returns, goes on after a failing message, and answers each failure with that message's sequence number, asked for an
//! acknowledgement or not.

use std::{cell::Cell, marker::PhantomData, os::fd::AsFd};

use netlink_packet_core::{Emitable as _, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkSerializable};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::{
    errno::Errno,
    libc,
    sys::{
        socket::{setsockopt, sockopt},
        time::{TimeVal, TimeValLike as _},
    },
};

use super::{
    error::{Because as _, Error},
    wire::{self, Message},
};

/// The most messages in one send: a longer one starves the worker that refills the per-CPU memory of FDB rows.
pub(super) const MOST_MESSAGES: usize = 256;
/// The most bytes in one send, for the same reason.
const MOST_BYTES: usize = 12 << 10;
/// A request socket's receive buffer: 256 answers of point reads at 832 bytes each, and links at several KiB.
const ANSWERS: usize = 1 << 20;
/// How long to wait for an answer that was not dropped. The kernel answers within the send or the receive call, so that a
/// lock held elsewhere does not count.
const PATIENCE_SECONDS: i64 = 5;

const NETLINK_HEADER_LEN: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLMSGERR_ATTR_MSG: u16 = 1;

/// No datagram of the kernel's answers is longer (`netlink_dump`, net/netlink/af_netlink.c).
const LONGEST_ANSWER: usize = 64 << 10;

thread_local! {
    /// Where answers are read into.
    static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// A message of one of netlink's protocols.
pub(super) trait Protocol: NetlinkSerializable {
    /// The protocol's number (`include/uapi/linux/netlink.h`).
    const NUMBER: isize;
}

impl Protocol for RouteNetlinkMessage {
    const NUMBER: isize = NETLINK_ROUTE;
}

/// One message to the kernel; `NLM_F_REQUEST` is understood.
#[derive(Debug)]
pub(super) struct Request<M = RouteNetlinkMessage> {
    pub(super) message: M,
    pub(super) flags: u16,
}

/// Bodies of the messages that answered a request.
pub(super) type Bodies = Vec<Vec<u8>>;

/// A socket for requests to rtnetlink.
pub(super) type RouteSocket = RequestSocket<RouteNetlinkMessage>;

/// A socket for requests, in the namespace of the thread that opened it.
#[derive(Debug)]
pub(super) struct RequestSocket<M> {
    socket: Socket,
    port: u32,
    sequence: u32,
    /// The thread's, while a request is under way: a thousand sockets hold none.
    buffer: Vec<u8>,
    /// An answer may still come for a request that was given up.
    leftovers: bool,
    speaks: PhantomData<fn(M)>,
}

impl<M: Protocol> RequestSocket<M> {
    pub(super) fn open() -> Result<Self, Error> {
        let open = || -> std::io::Result<(Socket, u32)> {
            let mut socket = Socket::new(M::NUMBER)?;
            let port = socket.bind_auto()?.port_number();
            socket.set_ext_ack(true)?;
            socket.set_cap_ack(true)?;
            socket.set_netlink_get_strict_chk(true)?;
            setsockopt(&socket.as_fd(), sockopt::ReceiveTimeout, &TimeVal::seconds(PATIENCE_SECONDS))?;
            raise_buffer(&socket, ANSWERS)?;
            Ok((socket, port))
        };
        let (socket, port) = open().because(|| "open a netlink socket".to_owned())?;
        Ok(Self { socket, port, sequence: 0, buffer: Vec::new(), leftovers: false, speaks: PhantomData })
    }

    /// The port id that the kernel puts into notifications of what this socket asked for.
    pub(super) const fn port(&self) -> u32 {
        self.port
    }

    fn with_buffer<T>(&mut self, work: impl FnOnce(&mut Self) -> T) -> T {
        self.buffer = BUFFER.take();
        self.buffer.reserve(LONGEST_ANSWER);
        let result = work(self);
        BUFFER.set(std::mem::take(&mut self.buffer));
        result
    }

    /// Sends requests that are no dumps, in as few sends as the limits allow, and gives for each what answered it.
    pub(super) fn call(&mut self, requests: &[Request<M>]) -> Vec<Result<Bodies, Error>> {
        self.with_buffer(|this| {
            let mut results = Vec::with_capacity(requests.len());
            let mut rest = requests;
            while !rest.is_empty() {
                let taken = this.exchange(rest, &mut results).max(1);
                rest = rest.get(taken..).unwrap_or_default();
            }
            results
        })
    }

    /// Sends one request that is no dump.
    pub(super) fn call_one(&mut self, request: Request<M>) -> Result<Bodies, Error> {
        self.call(&[request]).pop().unwrap_or_else(|| Err(Error::torn("no answer")))
    }

    /// Sends a dump request and hands each message's kind and body on.
    pub(super) fn dump(
        &mut self,
        message: impl NetlinkSerializable,
        mut each: impl FnMut(u16, &[u8]),
    ) -> Result<(), Error> {
        self.dump_while(message, |kind, body| {
            each(kind, body);
            true
        })
        .map(drop)
    }

    /// The same for as long as `each` wants more. False when it did not want all: the rest is not asked for, and whether it was
    /// interrupted is not known.
    pub(super) fn dump_while(
        &mut self,
        message: impl NetlinkSerializable,
        each: impl FnMut(u16, &[u8]) -> bool,
    ) -> Result<bool, Error> {
        self.with_buffer(|this| this.dump_into(message, each))
    }

    fn dump_into(
        &mut self,
        message: impl NetlinkSerializable,
        mut each: impl FnMut(u16, &[u8]) -> bool,
    ) -> Result<bool, Error> {
        self.drop_leftovers();
        let sequence = self.next_sequence();
        let mut bytes = Vec::new();
        append(&mut bytes, &message, NLM_F_DUMP, sequence);
        self.send(&bytes)?;
        let mut torn = false;
        loop {
            if let Err(error) = self.receive() {
                self.leftovers = true;
                return Err(error);
            }
            for message in wire::messages(&self.buffer).filter(|message| message.sequence == sequence) {
                torn |= message.flags & NLM_F_DUMP_INTR != 0;
                match (message.kind, outcome(&message)) {
                    (NLMSG_ERROR | NLMSG_DONE, Err(error)) => return Err(error),
                    (NLMSG_ERROR | NLMSG_DONE, Ok(())) if torn => {
                        return Err(Error::torn("the dump was interrupted by a change"));
                    }
                    (NLMSG_ERROR | NLMSG_DONE, Ok(())) => return Ok(true),
                    (kind, _) => {
                        if !each(kind, message.body) {
                            self.leftovers = true;
                            return Ok(false);
                        }
                    }
                }
            }
        }
    }

    /// Sends requests in one datagram, whatever their number, and hands on which was answered how, until `answered` says that it
    /// has heard enough.
    pub(super) fn send_together(
        &mut self,
        requests: &[Request<M>],
        mut answered: impl FnMut(usize, Result<(), Error>) -> bool,
    ) -> Result<(), Error> {
        self.with_buffer(|this| {
            this.drop_leftovers();
            let first = this.sequence.wrapping_add(1);
            this.tell(requests)?;
            loop {
                this.receive()?;
                for message in wire::messages(&this.buffer).filter(|message| message.kind == NLMSG_ERROR) {
                    let Ok(index) = usize::try_from(message.sequence.wrapping_sub(first)) else { continue };
                    if index < requests.len() && answered(index, outcome(&message)) {
                        return Ok(());
                    }
                }
            }
        })
    }

    /// Sends requests in one datagram and waits for no answer: the kernel has worked through them nevertheless.
    pub(super) fn tell(&mut self, requests: &[Request<M>]) -> Result<(), Error> {
        let mut bytes = Vec::new();
        for request in requests {
            let sequence = self.next_sequence();
            append(&mut bytes, &request.message, request.flags, sequence);
        }
        self.leftovers = true;
        self.send(&bytes)
    }

    /// Raises the send buffer, which bounds a datagram, as far as the agent may.
    pub(super) fn raise_send_buffer(&self, bytes: usize) -> Result<(), Error> {
        let socket = self.socket.as_fd();
        match setsockopt(&socket, sockopt::SndBufForce, &bytes) {
            Err(Errno::EPERM) => setsockopt(&socket, sockopt::SndBuf, &bytes),
            other => other,
        }
        .because(|| "raise the send buffer".to_owned())
    }

    /// One send of as many requests as fit; returns how many those were.
    fn exchange(&mut self, requests: &[Request<M>], results: &mut Vec<Result<Bodies, Error>>) -> usize {
        self.drop_leftovers();
        let first = self.sequence.wrapping_add(1);
        let mut bytes = Vec::with_capacity(MOST_BYTES);
        let mut count = 0;
        let mut last_at = 0;
        for request in requests.iter().take(MOST_MESSAGES) {
            let length = message_length(&request.message);
            if count > 0 && bytes.len() + length > MOST_BYTES {
                break;
            }
            last_at = bytes.len();
            let sequence = self.next_sequence();
            append(&mut bytes, &request.message, request.flags, sequence);
            count += 1;
        }
        // The acknowledgement of the last message says that all before it were worked through; errors come unasked.
        if let Some(flags) = bytes.get_mut(last_at + 6..last_at + 8) {
            let flag = NLM_F_ACK.to_ne_bytes();
            flags.iter_mut().zip(flag).for_each(|(byte, bit)| *byte |= bit);
        }
        let start = results.len();
        results.extend((0..count).map(|_| Ok(Bodies::new())));
        let ours = results.get_mut(start..).unwrap_or_default();
        let collected = self.send(&bytes).and_then(|()| self.collect(first, ours));
        if let Err(error) = collected {
            // Which of the unanswered ones took effect is unknown; those answered by an error are.
            ours.iter_mut().filter(|result| result.is_ok()).for_each(|result| *result = Err(error.clone()));
        }
        count
    }

    /// Reads answers until the last request's acknowledgement or error.
    fn collect(&mut self, first: u32, results: &mut [Result<Bodies, Error>]) -> Result<(), Error> {
        loop {
            if let Err(error) = self.receive() {
                self.leftovers = true;
                return Err(error);
            }
            for message in wire::messages(&self.buffer) {
                let Ok(index) = usize::try_from(message.sequence.wrapping_sub(first)) else { continue };
                let last = index + 1 == results.len();
                let Some(result) = results.get_mut(index) else { continue };
                if message.kind == NLMSG_ERROR {
                    if let Err(error) = outcome(&message) {
                        *result = Err(error);
                    }
                    if last {
                        return Ok(());
                    }
                } else if let Ok(bodies) = result {
                    bodies.push(message.body.to_vec());
                }
            }
        }
    }

    const fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    fn send(&self, bytes: &[u8]) -> Result<(), Error> {
        let sent = self.socket.send_to(bytes, &SocketAddr::new(0, 0), 0).because(|| "send to the kernel".to_owned())?;
        if sent == bytes.len() { Ok(()) } else { Err(Error::new(Errno::EMSGSIZE, "send to the kernel")) }
    }

    /// Reads one datagram of the kernel into the buffer.
    fn receive(&mut self) -> Result<(), Error> {
        loop {
            self.buffer.clear();
            match self.socket.recv_from(&mut self.buffer, libc::MSG_TRUNC) {
                Ok((length, sender)) if sender.port_number() == 0 => {
                    if length > self.buffer.len() {
                        return Err(Error::torn(format!("an answer of {length} bytes was cut")));
                    }
                    return Ok(());
                }
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    return Err(Error::torn("the kernel did not answer in time"));
                }
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    return Err(Error::torn("answers did not fit the receive buffer"));
                }
                Err(error) => return Err(Error::system(&error, "receive from the kernel")),
            }
        }
    }

    /// Empties the socket after a request that was given up: the rest of an abandoned dump refuses the next one with EBUSY.
    fn drop_leftovers(&mut self) {
        if !std::mem::take(&mut self.leftovers) {
            return;
        }
        loop {
            self.buffer.clear();
            match self.socket.recv_from(&mut self.buffer, libc::MSG_DONTWAIT) {
                Ok(_) => {}
                Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::ENOBUFS)) => {}
                Err(_) => return,
            }
        }
    }
}

/// Raises the receive buffer past `rmem_max` where the agent may, else as far as that allows. Says whether it could.
pub(super) fn raise_buffer(socket: &Socket, bytes: usize) -> std::io::Result<bool> {
    match setsockopt(&socket.as_fd(), sockopt::RcvBufForce, &bytes) {
        Ok(()) => Ok(true),
        Err(Errno::EPERM) => {
            setsockopt(&socket.as_fd(), sockopt::RcvBuf, &bytes)?;
            Ok(false)
        }
        Err(errno) => Err(errno.into()),
    }
}

/// What an `NLMSG_ERROR` or `NLMSG_DONE` says.
fn outcome(message: &Message<'_>) -> Result<(), Error> {
    if message.kind != NLMSG_ERROR && message.kind != NLMSG_DONE {
        return Ok(());
    }
    let code = wire::i32_at(message.body, 0).unwrap_or(0);
    if code == 0 {
        return Ok(());
    }
    // An error carries the header of the request, and the whole request unless that was capped; DONE only the code.
    let request = match message.kind {
        NLMSG_DONE => 0,
        _ if message.flags & NLM_F_CAPPED != 0 => 16,
        _ => wire::u32_at(message.body, 4).and_then(|length| usize::try_from(length).ok()).unwrap_or(16),
    };
    let text = message.body.get(4 + request.next_multiple_of(4)..).unwrap_or_default();
    let text = if message.flags & NLM_F_ACK_TLVS == 0 {
        None
    } else {
        wire::attribute(text, NLMSGERR_ATTR_MSG).map(wire::text)
    };
    Err(Error::new(Errno::from_raw(code.saturating_neg()), text.unwrap_or_default()))
}

fn message_length(message: &impl NetlinkSerializable) -> usize {
    NETLINK_HEADER_LEN + message.buffer_len().next_multiple_of(4)
}

fn append(bytes: &mut Vec<u8>, message: &impl NetlinkSerializable, flags: u16, sequence: u32) {
    let length = message_length(message);
    let mut header = NetlinkHeader::default();
    header.length = u32::try_from(length).unwrap_or(u32::MAX);
    header.message_type = message.message_type();
    header.flags = NLM_F_REQUEST | flags;
    header.sequence_number = sequence;
    let start = bytes.len();
    bytes.resize(start + length, 0);
    if let Some((head, body)) = bytes.get_mut(start..).and_then(|space| space.split_at_mut_checked(NETLINK_HEADER_LEN))
    {
        header.emit(head);
        if let Some(body) = body.get_mut(..message.buffer_len()) {
            message.serialize(body);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        engine::LinkRef,
        kernel::{decode, encode},
    };

    fn lo() -> Request {
        encode::get_link(&LinkRef::Index(1))
    }

    fn name(bodies: &Bodies) -> Option<String> {
        bodies.first().and_then(|body| decode::link(body)).map(|link| link.name)
    }

    #[test]
    fn answers_to_a_request_that_was_given_up_are_not_taken_for_the_next_ones() {
        let mut socket = RouteSocket::open().unwrap();
        let mut bytes = Vec::new();
        let sequence = socket.next_sequence();
        append(&mut bytes, &lo().message, NLM_F_ACK, sequence);
        socket.send(&bytes).unwrap();
        let missing = encode::get_link(&LinkRef::Index(0x7fff_ffff));
        let results = socket.call(&[missing, lo()]);
        assert_eq!(results[0].as_ref().unwrap_err().errno, Errno::ENODEV);
        let bodies = results[1].as_ref().unwrap();
        assert_eq!((bodies.len(), name(bodies).as_deref()), (1, Some("lo")));
    }

    #[test]
    fn a_dump_that_was_abandoned_does_not_refuse_the_next() {
        let mut socket = RouteSocket::open().unwrap();
        let mut bytes = Vec::new();
        let sequence = socket.next_sequence();
        append(&mut bytes, &encode::dump_links(), NLM_F_DUMP, sequence);
        socket.send(&bytes).unwrap();
        socket.leftovers = true;
        let mut names = Vec::new();
        socket.dump(encode::dump_links(), |_, body| names.extend(decode::link(body).map(|link| link.name))).unwrap();
        assert_eq!(names.iter().filter(|name| *name == "lo").count(), 1);
    }

    #[test]
    fn a_kernel_that_does_not_answer_is_not_waited_for_without_end() {
        let mut socket = RouteSocket::open().unwrap();
        setsockopt(&socket.socket.as_fd(), sockopt::ReceiveTimeout, &TimeVal::milliseconds(20)).unwrap();
        let error = socket.with_buffer(RouteSocket::receive).unwrap_err();
        assert!(error.torn, "{error:?}");
    }

    #[test]
    fn more_requests_than_one_send_takes_are_answered_in_their_order() {
        let mut socket = RouteSocket::open().unwrap();
        let requests: Vec<_> =
            (0..700).map(|n| encode::get_link(&LinkRef::Index(if n % 3 == 0 { 1 } else { 0x7fff_ffff }))).collect();
        let results = socket.call(&requests);
        assert_eq!(results.len(), 700);
        for (n, result) in results.iter().enumerate() {
            assert_eq!(result.as_ref().is_ok_and(|bodies| name(bodies).as_deref() == Some("lo")), n % 3 == 0, "{n}");
        }
    }
}
