//! Rows of a VXLAN device by netlink, written and heard independently of the program: its own encoding, its own sockets.

use std::{
    fs::File,
    io,
    net::Ipv4Addr,
    os::fd::AsFd,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, channel},
    },
    thread,
    time::{Duration, Instant},
};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::{
    libc,
    sched::{CloneFlags, setns},
    sys::{
        socket::{setsockopt, sockopt},
        time::{TimeVal, TimeValLike as _},
    },
};

const HEADER: usize = 16;
const NDMSG: usize = 12;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NUD_PERMANENT: u16 = 0x80;
const NTF_SELF: u8 = 0x02;
const BUFFER: usize = 64 << 20;

/// Which table of the device a row is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Table {
    /// MAC address to the address of a VTEP.
    Fdb,
    /// IP address to MAC address.
    Neighbour,
}

/// A permanent row: of the FDB `ip` is the outer address, of the neighbours the inner one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Row {
    pub(crate) table: Table,
    pub(crate) mac: [u8; 6],
    pub(crate) ip: Ipv4Addr,
}

impl Row {
    /// The MAC address as it is written.
    pub(crate) fn mac_text(&self) -> String {
        self.mac.map(|byte| format!("{byte:02x}")).join(":")
    }

    /// The line of `bridge -batch` or `ip -batch`, or the arguments of one process.
    pub(crate) fn command(&self, verb: &str) -> String {
        let (mac, ip) = (self.mac_text(), self.ip);
        match (self.table, verb) {
            (Table::Fdb, "del") => format!("fdb del {mac} dev vxlan1"),
            (Table::Fdb, _) => format!("fdb {verb} {mac} dev vxlan1 dst {ip}"),
            (Table::Neighbour, "del") => format!("neigh del {ip} dev vxlan1"),
            (Table::Neighbour, _) => format!("neigh {verb} {ip} lladdr {mac} dev vxlan1 nud permanent"),
        }
    }

    fn attributes(&self, put: bool) -> Vec<u8> {
        let mut bytes = Vec::new();
        if put || self.table == Table::Fdb {
            bytes.extend([10, 0, NDA_LLADDR as u8, 0]);
            bytes.extend(self.mac);
            bytes.extend([0, 0]);
        }
        // A delete with a destination that is not the row's would delete nothing.
        if put || self.table == Table::Neighbour {
            bytes.extend([8, 0, NDA_DST as u8, 0]);
            bytes.extend(self.ip.octets());
        }
        bytes
    }

    /// The row that a notification shows, and whether it is there now; `None` for what is no permanent row.
    fn heard(message: &[u8]) -> Option<(Self, bool)> {
        let kind = u16::from_ne_bytes(message.get(4..6)?.try_into().ok()?);
        let body = message.get(HEADER..)?;
        let table = match i32::from(*body.first()?) {
            libc::AF_BRIDGE if body.get(10)? & NTF_SELF != 0 => Table::Fdb,
            libc::AF_INET => Table::Neighbour,
            _ => return None,
        };
        let state = u16::from_ne_bytes(body.get(8..10)?.try_into().ok()?);
        let present = kind == libc::RTM_NEWNEIGH && state & NUD_PERMANENT != 0;
        if !present && kind != libc::RTM_DELNEIGH {
            return None;
        }
        let (mut mac, mut ip) = ([0; 6], Ipv4Addr::UNSPECIFIED);
        let mut rest = body.get(NDMSG..)?;
        while let (Some(length), Some(kind)) = (rest.get(..2), rest.get(2..4)) {
            let length = usize::from(u16::from_ne_bytes(length.try_into().ok()?));
            let value = rest.get(4..length)?;
            match u16::from_ne_bytes(kind.try_into().ok()?) {
                NDA_LLADDR => mac = value.try_into().ok()?,
                NDA_DST => ip = <[u8; 4]>::try_from(value).ok()?.into(),
                _ => {}
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Some((Self { table, mac, ip }, present))
    }
}

/// Does `work` on a thread in the network namespace: what it opens or starts stays there.
pub(crate) fn within<T: Send>(netns: &Path, work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let inside = move || {
            let file = File::open(netns).unwrap_or_else(|error| panic!("{}: {error}", netns.display()));
            setns(file, CloneFlags::CLONE_NEWNET).expect("enter the namespace");
            work()
        };
        scope.spawn(inside).join().expect("the thread in the namespace")
    })
}

/// Writes rows of one device.
pub(crate) struct Writer {
    socket: Socket,
    ifindex: u32,
}

impl Writer {
    pub(crate) fn open(netns: &Path, ifindex: u32) -> Self {
        let open = || -> io::Result<Socket> {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            setsockopt(&socket.as_fd(), sockopt::ReceiveTimeout, &TimeVal::seconds(5))?;
            Ok(socket)
        };
        Self { socket: within(netns, open).expect("a netlink socket"), ifindex }
    }

    /// A write that takes the lock of all netlink writers and changes nothing: the link is set as it is.
    pub(crate) fn touch(&self) {
        let mut bytes = Vec::new();
        bytes.extend(32_u32.to_ne_bytes());
        bytes.extend(libc::RTM_SETLINK.to_ne_bytes());
        bytes.extend(u16::try_from(libc::NLM_F_REQUEST | libc::NLM_F_ACK).unwrap_or_default().to_ne_bytes());
        bytes.extend([0; 12]);
        bytes.extend(self.ifindex.to_ne_bytes());
        bytes.extend([0; 8]);
        self.socket.send_to(&bytes, &SocketAddr::new(0, 0), 0).expect("send to the kernel");
        let mut answer = Vec::with_capacity(4096);
        self.socket.recv_from(&mut answer, 0).expect("the kernel's answer");
        assert_eq!(i32::from_ne_bytes(answer[HEADER..HEADER + 4].try_into().unwrap()), 0);
    }

    /// Sets the row. Returns when the kernel has.
    pub(crate) fn put(&self, row: Row) {
        let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
        self.call(libc::RTM_NEWNEIGH, flags, &row, true);
    }

    /// Deletes the row. Returns when the kernel has.
    pub(crate) fn delete(&self, row: Row) {
        self.call(libc::RTM_DELNEIGH, libc::NLM_F_REQUEST | libc::NLM_F_ACK, &row, false);
    }

    /// Sets all of them as fast as can be: the messages are made before, and sent 256 at a time. Returns how long that took.
    pub(crate) fn put_all(&self, rows: &[Row]) -> Duration {
        const SEND: usize = 256;
        let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
        let message = |row: &Row| self.message(libc::RTM_NEWNEIGH, flags, row, true);
        let sends: Vec<Vec<u8>> = rows.chunks(SEND).map(|some| some.iter().flat_map(message).collect()).collect();
        let mut answer = Vec::with_capacity(64 << 10);
        let started = Instant::now();
        for (bytes, some) in sends.iter().zip(rows.chunks(SEND)) {
            self.socket.send_to(bytes, &SocketAddr::new(0, 0), 0).expect("send to the kernel");
            for row in some {
                answer.clear();
                self.socket.recv_from(&mut answer, 0).expect("the kernel's answer");
                let code = i32::from_ne_bytes(answer[HEADER..HEADER + 4].try_into().unwrap());
                assert_eq!(code, 0, "the kernel refuses {row:?}");
            }
        }
        started.elapsed()
    }

    fn message(&self, kind: u16, flags: i32, row: &Row, put: bool) -> Vec<u8> {
        let attributes = row.attributes(put);
        let (family, own) = match row.table {
            Table::Fdb => (libc::AF_BRIDGE, NTF_SELF),
            Table::Neighbour => (libc::AF_INET, 0),
        };
        let mut bytes = Vec::new();
        bytes.extend(u32::try_from(HEADER + NDMSG + attributes.len()).unwrap_or_default().to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(u16::try_from(flags).unwrap_or_default().to_ne_bytes());
        bytes.extend([0; 8]);
        bytes.extend([u8::try_from(family).unwrap_or_default(), 0, 0, 0]);
        bytes.extend(self.ifindex.to_ne_bytes());
        bytes.extend(NUD_PERMANENT.to_ne_bytes());
        bytes.extend([own, 0]);
        bytes.extend(attributes);
        bytes
    }

    fn call(&self, kind: u16, flags: i32, row: &Row, put: bool) {
        let bytes = self.message(kind, flags, row, put);
        self.socket.send_to(&bytes, &SocketAddr::new(0, 0), 0).expect("send to the kernel");
        let mut answer = Vec::with_capacity(4096);
        self.socket.recv_from(&mut answer, 0).expect("the kernel's answer");
        let code = i32::from_ne_bytes(answer[HEADER..HEADER + 4].try_into().unwrap());
        assert_eq!(code, 0, "the kernel refuses {row:?}");
    }
}

/// When the first row of a namespace that is yet to be made was there.
pub(crate) fn first_row(netns: &Path, patience: Duration) -> Instant {
    let deadline = Instant::now() + patience;
    // The file is there before the namespace is.
    while within_if_there(netns).is_none() {
        assert!(Instant::now() < deadline, "{} did not come to be", netns.display());
        thread::sleep(Duration::from_micros(200));
    }
    let socket = within_if_there(netns).expect("the namespace");
    let mut buffer = Vec::with_capacity(64 << 10);
    loop {
        buffer.clear();
        match socket.recv_from(&mut buffer, 0) {
            Ok(_) if Row::heard(&buffer).is_some() => return Instant::now(),
            _ => assert!(Instant::now() < deadline, "no row came"),
        }
    }
}

/// A socket that hears of rows, if it can be opened there yet.
fn within_if_there(netns: &Path) -> Option<Socket> {
    let open = || -> io::Result<Socket> {
        setns(File::open(netns)?, CloneFlags::CLONE_NEWNET)?;
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        setsockopt(&socket.as_fd(), sockopt::ReceiveTimeout, &TimeVal::milliseconds(100))?;
        socket.bind_auto()?;
        socket.add_membership(libc::RTNLGRP_NEIGH)?;
        Ok(socket)
    };
    thread::scope(|scope| scope.spawn(open).join().expect("the thread in the namespace").ok())
}

/// A row that came or went, and when it was heard.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heard {
    pub(crate) at: Instant,
    pub(crate) row: Row,
    pub(crate) present: bool,
}

/// Hears of all rows of a namespace.
pub(crate) struct Listener {
    heard: Receiver<Heard>,
    stop: Arc<AtomicBool>,
}

impl Listener {
    pub(crate) fn open(netns: &Path) -> Self {
        let subscribe = || -> io::Result<Socket> {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            if setsockopt(&socket.as_fd(), sockopt::RcvBufForce, &BUFFER).is_err() {
                setsockopt(&socket.as_fd(), sockopt::RcvBuf, &BUFFER)?;
            }
            setsockopt(&socket.as_fd(), sockopt::ReceiveTimeout, &TimeVal::milliseconds(100))?;
            socket.bind_auto()?;
            socket.add_membership(libc::RTNLGRP_NEIGH)?;
            Ok(socket)
        };
        let socket = within(netns, subscribe).expect("a socket to listen on");
        let (sender, heard) = channel();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        thread::spawn(move || {
            let mut buffer = Vec::with_capacity(64 << 10);
            while !stopped.load(Ordering::Relaxed) {
                buffer.clear();
                match socket.recv_from(&mut buffer, 0) {
                    Ok(_) => {
                        let at = Instant::now();
                        if let Some((row, present)) = Row::heard(&buffer) {
                            let _ = sender.send(Heard { at, row, present });
                        }
                    }
                    Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) => {}
                    Err(error) => panic!("the listener lost what it should have heard: {error}"),
                }
            }
        });
        Self { heard, stop }
    }

    /// Forgets what was heard so far.
    pub(crate) fn forget(&self) {
        while self.heard.try_recv().is_ok() {}
    }

    /// The next that is heard.
    pub(crate) fn next(&self, patience: Duration) -> Heard {
        match self.heard.recv_timeout(patience) {
            Ok(heard) => heard,
            Err(RecvTimeoutError::Timeout) => panic!("nothing was heard within {patience:?}"),
            Err(RecvTimeoutError::Disconnected) => panic!("the listener died"),
        }
    }

    /// When exactly this row was there (again).
    pub(crate) fn wait_for(&self, row: Row, patience: Duration) -> Instant {
        let deadline = Instant::now() + patience;
        loop {
            let heard = self.next(deadline.saturating_duration_since(Instant::now()));
            if heard.present && heard.row == row {
                return heard.at;
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
