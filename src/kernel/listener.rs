//! Notifications of endpoints' namespaces, heard once for the whole host.
//!
//! One socket in the host's namespace hears, through `NETLINK_LISTEN_ALL_NSID`, every namespace that has an identifier there; an
//! endpoint's gets one when it is first read. Neither the socket nor the identifier pins a namespace. A socket in each overlay
//! namespace would hear the whole host as well, since a VXLAN device gives the host's namespace an identifier there: with a thousand
//! networks each event would be heard a thousand times.
//!
//! Who changes something in a namespace again and again is told of at a pace: what it costs to read it is then bounded, and its
//! network and all others go on as usual.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    io::IoSliceMut,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};

use netlink_sys::{Socket, protocols::NETLINK_ROUTE};
use nix::{
    errno::Errno,
    libc,
    sys::socket::{ControlMessageOwned, MsgFlags, NetlinkAddr, recvmsg},
};

use super::{
    decode, encode,
    error::{Because as _, Error},
    monitor::{IPV4_IFADDR, IPV4_ROUTE, IPV6_IFADDR, IPV6_ROUTE, LINK, subscribe},
    netns::Held,
    socket::RouteSocket,
    wire::{self, Message},
};
use crate::engine::{Event, Failure};

/// Receive buffer: at 832 bytes for each notification, some 40,000 of them.
const BUFFER: usize = 32 << 20;
/// The most datagrams read before what they say is passed on.
const MOST: usize = 4 << 10;
/// So often in a row a namespace's changes are passed on at once …
const AT_ONCE: u32 = 32;
/// … and then, and to fill that up again, so often.
const PACE: Duration = Duration::from_millis(20);
/// With more namespaces than this that change all the time each is told of less often.
const NOISY: u32 = 4;
/// Losses concern all namespaces, and are told so often at most.
const LOSSES: Duration = Duration::from_secs(2);
/// After a reading that took long a namespace rests so many times as long.
const REST: u32 = 16;
/// More links of one namespace than this are not told apart.
const MOST_LINKS: usize = 16;

/// Which links of a namespace changed; `None` when that was not told, or there were many.
type Links = Option<BTreeSet<u32>>;

fn merge(links: &mut Links, more: Links) {
    match (links.as_mut(), more) {
        (Some(links), Some(more)) => links.extend(more),
        _ => *links = None,
    }
    if links.as_ref().is_some_and(|links| links.len() > MOST_LINKS) {
        *links = None;
    }
}

/// What one network was told and has not taken yet.
#[derive(Debug, Default)]
struct Told {
    /// By the namespace's identifier in the overlay namespace.
    changed: BTreeMap<i32, Links>,
    lost: bool,
}

/// What a network hears of its endpoints' namespaces.
pub(super) struct Inbox {
    told: Mutex<Told>,
    wake: Box<dyn Fn() + Send + Sync>,
}

impl fmt::Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Inbox").field(&self.told).finish()
    }
}

impl Inbox {
    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was heard since the last call.
    pub(super) fn take(&self) -> Vec<Event> {
        let Told { changed, lost } = std::mem::take(&mut *self.told());
        let events = changed.into_iter().flat_map(|(nsid, links)| match links {
            Some(links) => links.into_iter().map(|link| Event::Inner { nsid, ifindex: Some(link) }).collect(),
            None => vec![Event::Inner { nsid, ifindex: None }],
        });
        events.chain(lost.then_some(Event::InnerOverrun)).collect()
    }
}

/// One network's interest in one namespace.
#[derive(Debug)]
struct Follower {
    inbox: Weak<Inbox>,
    /// The namespace's identifier in the overlay namespace.
    nsid: i32,
    pace: Pace,
    /// What waits for its time.
    waits: Option<(Instant, Links)>,
}

/// How often a namespace's changes may be passed on.
#[derive(Debug)]
struct Pace {
    at_once: u32,
    filled: Instant,
    not_before: Instant,
}

impl Pace {
    fn new(now: Instant) -> Self {
        Self { at_once: AT_ONCE, filled: now, not_before: now }
    }

    /// When the next may be passed on; it counts as passed on.
    fn next(&mut self, now: Instant, pause: Duration) -> Instant {
        let fillings = now.saturating_duration_since(self.filled).as_nanos() / pause.as_nanos().max(1);
        if let Some(more) = u32::try_from(fillings).ok().filter(|more| *more < AT_ONCE) {
            self.at_once = self.at_once.saturating_add(more).min(AT_ONCE);
            self.filled += pause * more;
        } else {
            (self.at_once, self.filled) = (AT_ONCE, now);
        }
        if self.at_once > 0 {
            self.at_once -= 1;
            return now.max(self.not_before);
        }
        self.filled += pause;
        self.filled.max(self.not_before)
    }
}

#[derive(Debug, Default)]
struct State {
    /// By the namespace's identifier on the host; the host's own has none.
    followers: BTreeMap<Option<i32>, Vec<Follower>>,
    inboxes: Vec<Weak<Inbox>>,
    /// The namespaces of which something waits.
    waiting: BTreeSet<Option<i32>>,
    /// When a loss was last passed on, and when the next is to be.
    lost: Option<Instant>,
    loss_due: Option<Instant>,
}

/// Hears of endpoints' namespaces for all networks of a host.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    request: Mutex<RouteSocket>,
    state: Mutex<State>,
}

impl Listener {
    /// Opens the sockets in the host's namespace, which is that of the calling thread.
    ///
    /// # Errors
    /// The system gives no socket, or not to us.
    pub fn open() -> Result<Self, Failure> {
        let groups = [LINK, IPV4_IFADDR, IPV6_IFADDR, IPV4_ROUTE, IPV6_ROUTE];
        let opened: Result<_, Error> =
            subscribe(NETLINK_ROUTE, &groups, true, BUFFER).because(|| "open an event socket".to_owned());
        let (socket, _) = opened?;
        let request = Mutex::new(RouteSocket::open()?);
        Ok(Self { socket, request, state: Mutex::default() })
    }

    /// The event socket, to wait on for readability.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new network's inbox; `wake` is called when there is something in it.
    pub(super) fn inbox(&self, wake: Box<dyn Fn() + Send + Sync>) -> Arc<Inbox> {
        let inbox = Arc::new(Inbox { told: Mutex::default(), wake });
        let mut state = self.state();
        state.inboxes.retain(|inbox| inbox.strong_count() > 0);
        state.inboxes.push(Arc::downgrade(&inbox));
        inbox
    }

    /// From now on the inbox gets what changes in the namespace, under the identifier `there`. The host's own has no identifier on
    /// the host.
    pub(super) fn follow(&self, inbox: &Arc<Inbox>, held: &Held, is_host: bool, there: i32) -> Result<(), Error> {
        let nsid = if is_host { None } else { Some(self.identify(held)?) };
        let mut state = self.state();
        let followers = state.followers.entry(nsid).or_default();
        followers.retain(|follower| follower.inbox.strong_count() > 0);
        let of_inbox = followers.iter_mut().find(|follower| std::ptr::eq(follower.inbox.as_ptr(), Arc::as_ptr(inbox)));
        match of_inbox {
            Some(follower) => follower.nsid = there,
            None => {
                let pace = Pace::new(Instant::now());
                followers.push(Follower { inbox: Arc::downgrade(inbox), nsid: there, pace, waits: None });
            }
        }
        Ok(())
    }

    /// Follows nothing any more: the overlay namespace, in which the identifiers were, is another one.
    pub(super) fn forget(&self, inbox: &Arc<Inbox>) {
        let mut state = self.state();
        for followers in state.followers.values_mut() {
            followers.retain(|follower| !std::ptr::eq(follower.inbox.as_ptr(), Arc::as_ptr(inbox)));
        }
        state.followers.retain(|_, followers| !followers.is_empty());
        drop(state);
        inbox.told().changed.clear();
    }

    /// A reading of this namespace took so long; the more it takes, the longer it rests.
    pub(super) fn took(&self, inbox: &Arc<Inbox>, there: i32, took: Duration) {
        let not_before = Instant::now() + took * REST;
        for follower in self.state().followers.values_mut().flatten() {
            if follower.nsid == there && std::ptr::eq(follower.inbox.as_ptr(), Arc::as_ptr(inbox)) {
                follower.pace.not_before = not_before;
            }
        }
    }

    /// The namespace's identifier on the host, which it gets if it has none.
    fn identify(&self, held: &Held) -> Result<i32, Error> {
        let mut request = self.request.lock().unwrap_or_else(PoisonError::into_inner);
        let mut ask = || -> Result<Option<i32>, Error> {
            let bodies = request.call_one(encode::get_nsid(held.fd.as_fd()))?;
            Ok(bodies.first().and_then(|body| decode::nsid(body)))
        };
        if let Some(nsid) = ask()? {
            return Ok(nsid);
        }
        match request.call_one(encode::assign_nsid(held.fd.as_fd())) {
            // It got one meanwhile.
            Err(error) if error.errno == Errno::EEXIST => {}
            other => drop(other?),
        }
        let bodies = request.call_one(encode::get_nsid(held.fd.as_fd()))?;
        let nsid = bodies.first().and_then(|body| decode::nsid(body));
        nsid.ok_or_else(|| Error::torn("the namespace got no identifier"))
    }

    /// Reads what has come, without waiting, and passes it on as far as its time has come. Returns whether more may have come
    /// already, and when something that waits is due.
    pub fn drain(&self) -> (bool, Option<Instant>) {
        let (changed, lost, more) = self.receive();
        let now = Instant::now();
        let mut wake = Vec::new();
        let mut state = self.state();
        for (nsid, links) in changed {
            state.changed(nsid, &links, now, &mut wake);
        }
        if lost {
            let due = state.lost.map_or(now, |last| (last + LOSSES).max(now));
            state.loss_due.get_or_insert(due);
        }
        let due = state.pass_on(now, &mut wake);
        drop(state);
        for inbox in wake {
            (inbox.wake)();
        }
        (more, due)
    }

    fn receive(&self) -> (BTreeMap<Option<i32>, Links>, bool, bool) {
        let mut buffer = vec![0; 32 << 10];
        let mut control = [0_u8; 64];
        let mut changed: BTreeMap<Option<i32>, Links> = BTreeMap::new();
        let mut lost = false;
        for _ in 0..MOST {
            let mut parts = [IoSliceMut::new(&mut buffer)];
            match recvmsg::<NetlinkAddr>(
                self.socket.as_raw_fd(),
                &mut parts,
                Some(&mut control),
                MsgFlags::MSG_DONTWAIT,
            ) {
                Ok(received) => {
                    let from_kernel = received.address.is_none_or(|sender| sender.pid() == 0);
                    // The host's own notifications come without an identifier.
                    let nsid = received.cmsgs().ok().and_then(|mut list| list.find_map(|one| nsid_of(&one)));
                    let length = received.bytes;
                    if from_kernel {
                        for message in wire::messages(buffer.get(..length).unwrap_or_default()) {
                            let link = link_of(&message).map(|link| BTreeSet::from([link]));
                            match changed.get_mut(&nsid) {
                                Some(links) => merge(links, link),
                                None => drop(changed.insert(nsid, link)),
                            }
                        }
                    }
                }
                Err(Errno::EINTR) => {}
                Err(Errno::ENOBUFS) => lost = true,
                Err(_) => return (changed, lost, false),
            }
        }
        (changed, lost, true)
    }
}

impl State {
    fn changed(&mut self, nsid: Option<i32>, links: &Links, now: Instant, wake: &mut Vec<Arc<Inbox>>) {
        let noisy = u32::try_from(self.waiting.len()).unwrap_or(u32::MAX);
        let pause = PACE * noisy.div_ceil(NOISY).max(1);
        for follower in self.followers.get_mut(&nsid).into_iter().flatten() {
            if let Some((_, waiting)) = &mut follower.waits {
                merge(waiting, links.clone());
                continue;
            }
            let at = follower.pace.next(now, pause);
            if at <= now {
                wake.extend(follower.tell(links.clone()));
            } else {
                follower.waits = Some((at, links.clone()));
                self.waiting.insert(nsid);
            }
        }
    }

    /// Passes on what was to wait until now. Returns when the next is due.
    fn pass_on(&mut self, now: Instant, wake: &mut Vec<Arc<Inbox>>) -> Option<Instant> {
        let mut next: Option<Instant> = None;
        let mut due_at = |at: Instant| next = Some(next.map_or(at, |next| next.min(at)));
        let followers = &mut self.followers;
        self.waiting.retain(|nsid| {
            let mut left = false;
            for follower in followers.get_mut(nsid).into_iter().flatten() {
                match follower.waits.take() {
                    Some((at, links)) if at > now => {
                        due_at(at);
                        left = true;
                        follower.waits = Some((at, links));
                    }
                    Some((_, links)) => wake.extend(follower.tell(links)),
                    None => {}
                }
            }
            left
        });
        if let Some(at) = self.loss_due.take_if(|at| *at <= now) {
            self.lost = Some(at);
            for inbox in self.inboxes.iter().filter_map(Weak::upgrade) {
                inbox.told().lost = true;
                wake.push(inbox);
            }
        }
        self.loss_due.into_iter().for_each(due_at);
        next
    }
}

impl Follower {
    fn tell(&self, links: Links) -> Option<Arc<Inbox>> {
        let inbox = self.inbox.upgrade()?;
        let mut told = inbox.told();
        match told.changed.get_mut(&self.nsid) {
            Some(before) => merge(before, links),
            None => drop(told.changed.insert(self.nsid, links)),
        }
        drop(told);
        Some(inbox)
    }
}

/// The link that a notification is about.
fn link_of(message: &Message<'_>) -> Option<u32> {
    match message.kind {
        libc::RTM_NEWLINK | libc::RTM_DELLINK => decode::link_head(message.body).map(|(_, ifindex)| ifindex),
        libc::RTM_NEWADDR | libc::RTM_DELADDR => decode::address_ifindex(message.body),
        libc::RTM_NEWROUTE | libc::RTM_DELROUTE => decode::route_ifindex(message.body),
        _ => None,
    }
}

/// The namespace identifier that comes beside a message.
fn nsid_of(message: &ControlMessageOwned) -> Option<i32> {
    let ControlMessageOwned::Unknown(message) = message else { return None };
    let header = (message.cmsg_header.cmsg_level, message.cmsg_header.cmsg_type);
    if header == (libc::SOL_NETLINK, libc::NETLINK_LISTEN_ALL_NSID) {
        wire::i32_at(&message.data_bytes, 0)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_that_changes_all_the_time_is_told_of_at_a_pace_and_at_once_again_after_a_rest() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let at_once = (0..100).take_while(|_| pace.next(start, PACE) <= start).count();
        assert_eq!(at_once, AT_ONCE as usize);
        let (first, second) = (pace.next(start, PACE), pace.next(start, PACE));
        assert_eq!(second - first, PACE);
        let later = second + PACE * (AT_ONCE + 1);
        assert_eq!(pace.next(later, PACE), later);
    }

    #[test]
    fn a_namespace_whose_reading_takes_long_rests() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        pace.not_before = start + Duration::from_secs(1);
        assert_eq!(pace.next(start, PACE), start + Duration::from_secs(1));
    }
}
