//! A thousand small packets a second from one namespace to another.

use std::{
    fs::File,
    net::UdpSocket,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use nix::{
    sched::{CloneFlags, setns},
    sys::socket::{setsockopt, sockopt},
};

const PORT: u16 = 7007;
const PACE: Duration = Duration::from_millis(1);

#[derive(Debug)]
pub(crate) struct Counted {
    pub(crate) sent: u64,
    pub(crate) received: u64,
}

impl Counted {
    pub(crate) const fn lost(&self) -> u64 {
        self.sent - self.received
    }
}

pub(crate) struct Flow {
    stop: Arc<AtomicBool>,
    sender: thread::JoinHandle<u64>,
    receiver: thread::JoinHandle<u64>,
    /// No more comes.
    done: Arc<AtomicBool>,
}

fn socket_in(netns: &str) -> UdpSocket {
    let namespace = File::open(Path::new("/run/netns").join(netns)).unwrap();
    let made = thread::spawn(move || {
        setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
        UdpSocket::bind(("0.0.0.0", PORT)).unwrap()
    });
    made.join().unwrap()
}

impl Flow {
    pub(crate) fn start(from: &str, to: &str, address: &str) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let receiver = socket_in(to);
        // A receiver that does not get the processor for a while must not lose what arrived.
        setsockopt(&receiver, sockopt::RcvBufForce, &(32 << 20)).unwrap();
        receiver.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        // Many flows share the sender's namespace: each has a port of its own.
        let namespace = File::open(Path::new("/run/netns").join(from)).unwrap();
        let sender = thread::spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
            UdpSocket::bind(("0.0.0.0", 0)).unwrap()
        });
        let sender = sender.join().unwrap();
        sender.connect((address, PORT)).unwrap();
        let (stopped, finished) = (Arc::clone(&stop), Arc::clone(&done));
        let sender = thread::spawn(move || {
            let (started, mut sent) = (Instant::now(), 0_u32);
            while !stopped.load(Ordering::Relaxed) {
                sender.send(&sent.to_be_bytes()).unwrap();
                sent += 1;
                thread::sleep((started + PACE * sent).saturating_duration_since(Instant::now()));
            }
            u64::from(sent)
        });
        let receiver = thread::spawn(move || {
            let (mut received, mut buffer) = (0, [0; 64]);
            loop {
                match receiver.recv(&mut buffer) {
                    Ok(_) => received += 1,
                    Err(_) if finished.load(Ordering::Relaxed) => return received,
                    Err(_) => {}
                }
            }
        });
        Self { stop, sender, receiver, done }
    }

    pub(crate) fn stop(self) -> Counted {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.sender.join().unwrap();
        self.done.store(true, Ordering::Relaxed);
        Counted { sent, received: self.receiver.join().unwrap() }
    }
}
