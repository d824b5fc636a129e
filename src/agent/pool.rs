//! A few threads that run all networks: as many as there are processors, one that removes, one network at a time, and one that
//! hears what happens in endpoints' namespaces.
//!
//! A network is run when its event sockets are readable, when it was woken, or when its time has come, and for a short while only:
//! one that has more to do goes to the back of the queue, so that what takes long in one network holds up no other. Networks that
//! were at rest go before those that are being built. Whoever is free waits for the events of all.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::sys::{
    epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
    eventfd::{EfdFlags, EventFd},
};
use tracing::error;

use crate::model::Name;

/// The token of what interrupts the waiting.
const INTERRUPT: u64 = u64::MAX;
/// Events taken at once.
const EVENTS: usize = 64;
/// One of so many turns is given to those at the back, however many wait in front.
const BACK: u32 = 4;

/// How a turn ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// There is more to do.
    More,
    /// There is more to do, and it must be done while nobody else does such a thing.
    Alone,
    /// Nothing until an event, a waking, or this moment.
    Rest(Instant),
    /// It is done for good.
    Over,
}

/// What the pool runs.
pub(super) trait Work: Send {
    /// Works for a short while; `alone` when nobody else is in such a turn.
    fn turn(&mut self, alone: bool) -> Next;

    /// Changes when [`Self::events`] are others.
    fn generation(&self) -> u64;

    /// What is readable when there is something to do.
    fn events(&self) -> Vec<BorrowedFd<'_>>;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// At rest; with its events armed, or after they fired.
    Rests,
    /// In a queue.
    Queued,
    /// On a thread, and woken since it began.
    Runs { woken: bool },
}

struct Task {
    name: Name,
    /// `None` while it runs.
    work: Option<Box<dyn Work>>,
    place: Place,
    until: Option<Instant>,
    /// The generation of the events that are registered.
    registered: Option<u64>,
    /// All registered events would be told.
    armed: bool,
    /// It has been at rest before.
    settled: bool,
}

#[derive(Default)]
struct State {
    tasks: BTreeMap<u64, Task>,
    last: u64,
    front: VecDeque<u64>,
    back: VecDeque<u64>,
    alone: VecDeque<u64>,
    timers: BTreeSet<(Instant, u64)>,
    /// Turns since one was given to the back.
    given: u32,
    /// A thread waits for events.
    polling: bool,
    /// So many threads wait for something to do.
    idle: usize,
    stop: bool,
    /// Whose turn panicked.
    died: Option<Name>,
}

struct Inner {
    state: Mutex<State>,
    changed: Condvar,
    alone: Condvar,
    epoll: Epoll,
    interrupt: EventFd,
}

/// The threads, and what they run.
pub(super) struct Pool {
    inner: Arc<Inner>,
    threads: Vec<JoinHandle<()>>,
}

/// Wakes one task.
#[derive(Clone)]
pub(super) struct Waker {
    inner: Weak<Inner>,
    id: u64,
}

impl Waker {
    /// Its turn comes soon. One that is over is left alone.
    pub(super) fn wake(&self) {
        if let Some(inner) = self.inner.upgrade() {
            inner.wake(self.id);
        }
    }
}

impl Pool {
    /// Starts as many threads as the machine has processors.
    ///
    /// # Errors
    /// The system has no thread or descriptor left.
    pub(super) fn start() -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let interrupt = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        epoll.add(&interrupt, EpollEvent::new(EpollFlags::EPOLLIN, INTERRUPT))?;
        let inner = Inner { state: Mutex::default(), changed: Condvar::new(), alone: Condvar::new(), epoll, interrupt };
        let mut pool = Self { inner: Arc::new(inner), threads: Vec::new() };
        let workers = thread::available_parallelism().map_or(2, usize::from).max(2);
        for _ in 0..workers {
            pool.spawn("networks", Inner::work)?;
        }
        pool.spawn("removals", Inner::work_alone)?;
        Ok(pool)
    }

    fn spawn(&mut self, name: &str, run: fn(&Inner)) -> io::Result<()> {
        let inner = Arc::clone(&self.inner);
        self.threads.push(thread::Builder::new().name(name.to_owned()).spawn(move || run(&inner))?);
        Ok(())
    }

    /// Makes room for a task, which [`Self::add`] fills.
    pub(super) fn waker(&self) -> Waker {
        let mut state = self.inner.state();
        state.last += 1;
        Waker { inner: Arc::downgrade(&self.inner), id: state.last }
    }

    /// Adds a task; its first turn comes soon.
    pub(super) fn add(&self, waker: &Waker, name: Name, work: Box<dyn Work>) {
        let task = Task {
            name,
            work: Some(work),
            place: Place::Rests,
            until: None,
            registered: None,
            armed: false,
            settled: false,
        };
        self.inner.state().tasks.insert(waker.id, task);
        waker.wake();
    }

    /// The task whose turn panicked.
    pub(super) fn died(&self) -> Option<Name> {
        self.inner.state().died.clone()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.inner.state().stop = true;
        self.inner.changed.notify_all();
        self.inner.alone.notify_all();
        let _ = self.inner.interrupt.write(1);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        // What the tasks hold may hold the pool's wakers.
        self.inner.state().tasks.clear();
    }
}

/// Tells of a panic while it unwinds.
struct OnPanic<'a> {
    inner: &'a Inner,
    name: Option<Name>,
}

impl Drop for OnPanic<'_> {
    fn drop(&mut self) {
        if let Some(name) = self.name.take() {
            self.inner.state().died.get_or_insert(name);
        }
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self, id: u64) {
        let mut state = self.state();
        if state.woken(id) {
            self.call(&state);
        }
    }

    /// Gets a thread for what was queued.
    fn call(&self, state: &State) {
        if state.idle > 0 {
            self.changed.notify_one();
        } else if state.polling {
            let _ = self.interrupt.write(1);
        }
    }

    /// A worker: takes the next task, or waits for events where nobody else does.
    fn work(&self) {
        let mut state = self.state();
        while !state.stop {
            if !state.polling {
                state = self.poll(state, Some(Duration::ZERO));
            }
            if let Some(id) = state.next() {
                // Somebody has to wait for events meanwhile, and to do what is left.
                if !state.polling || !state.front.is_empty() || !state.back.is_empty() {
                    self.call(&state);
                }
                state = self.run(state, id, false);
            } else if state.polling {
                state.idle += 1;
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
            } else {
                let until = state.timers.first().map(|(at, _)| at.saturating_duration_since(Instant::now()));
                state = self.poll(state, until);
            }
        }
    }

    /// The thread on which one task at a time does what nobody else may do meanwhile.
    fn work_alone(&self) {
        let mut state = self.state();
        while !state.stop {
            match state.alone.pop_front() {
                Some(id) => state = self.run(state, id, true),
                None => state = self.alone.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    /// Waits for events, at most so long, and queues those whose turn it is.
    fn poll<'a>(&'a self, mut state: MutexGuard<'a, State>, most: Option<Duration>) -> MutexGuard<'a, State> {
        state.polling = true;
        drop(state);
        let mut events = [EpollEvent::empty(); EVENTS];
        // Rounded up: a wait that ends before its time would turn for nothing.
        let timeout = most.map(|most| if most.is_zero() { 0 } else { most.as_millis().saturating_add(1) });
        let timeout = timeout.map_or(EpollTimeout::NONE, |ms| EpollTimeout::try_from(ms).unwrap_or(EpollTimeout::MAX));
        let count = self.epoll.wait(&mut events, timeout).unwrap_or_else(|errno| {
            if errno != nix::errno::Errno::EINTR {
                error!(%errno, "cannot wait for events; looking again in a second");
                thread::sleep(Duration::from_secs(1));
            }
            0
        });
        let mut state = self.state();
        state.polling = false;
        for event in events.iter().take(count) {
            if event.data() == INTERRUPT {
                let _ = self.interrupt.read();
                continue;
            }
            if let Some(task) = state.tasks.get_mut(&event.data()) {
                task.armed = false;
            }
            state.woken(event.data());
        }
        let now = Instant::now();
        while let Some((at, id)) = state.timers.first().copied().filter(|(at, _)| *at <= now) {
            state.timers.remove(&(at, id));
            state.woken(id);
        }
        state
    }

    /// Gives a task its turn.
    fn run<'a>(&'a self, mut state: MutexGuard<'a, State>, id: u64, alone: bool) -> MutexGuard<'a, State> {
        let Some(task) = state.tasks.get_mut(&id) else { return state };
        let Some(mut work) = task.work.take() else { return state };
        task.place = Place::Runs { woken: false };
        let until = task.until.take();
        let mut on_panic = OnPanic { inner: self, name: Some(task.name.clone()) };
        if let Some(until) = until {
            state.timers.remove(&(until, id));
        }
        drop(state);
        let next = work.turn(alone);
        on_panic.name = None;
        let mut state = self.state();
        let Some(task) = state.tasks.get_mut(&id) else { return state };
        let woken = matches!(task.place, Place::Runs { woken: true });
        match next {
            Next::Over => {
                // Its sockets are closed before anybody looks for what they pinned.
                state.tasks.remove(&id);
                drop(state);
                drop(work);
                return self.state();
            }
            Next::Rest(until) => {
                let mut until = until;
                let generation = work.generation();
                if !task.armed || task.registered != Some(generation) {
                    let armed = self.arm(work.as_ref(), id, task.registered == Some(generation));
                    task.armed = armed.is_ok();
                    task.registered = armed.is_ok().then_some(generation);
                    if let Err(errno) = armed {
                        // Its events are not heard: it looks for itself.
                        error!(network = %task.name, %errno, "cannot wait for events; looking again in a second");
                        until = until.min(Instant::now() + Duration::from_secs(1));
                    }
                }
                task.settled = true;
                task.place = Place::Rests;
                task.work = Some(work);
                task.until = Some(until);
                state.timers.insert((until, id));
                // Who waits for events waits for this, too, if it is the next.
                if state.timers.first() == Some(&(until, id)) && state.polling {
                    let _ = self.interrupt.write(1);
                }
                if woken && state.woken(id) {
                    self.call(&state);
                }
            }
            Next::More | Next::Alone => {
                task.place = Place::Queued;
                task.work = Some(work);
                if next == Next::Alone {
                    state.alone.push_back(id);
                    self.alone.notify_one();
                } else {
                    state.back.push_back(id);
                    if alone {
                        self.call(&state);
                    }
                }
            }
        }
        state
    }

    /// Arms a task's events, once: what is readable already is told at once.
    fn arm(&self, work: &dyn Work, id: u64, registered: bool) -> nix::Result<()> {
        for fd in work.events() {
            let mut event = EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLONESHOT, id);
            if registered {
                self.epoll.modify(fd.as_fd(), &mut event)?;
            } else {
                match self.epoll.add(fd.as_fd(), event) {
                    Err(nix::errno::Errno::EEXIST) => self.epoll.modify(fd.as_fd(), &mut event)?,
                    other => other?,
                }
            }
        }
        Ok(())
    }
}

impl State {
    /// Queues a task that is at rest, and notes it for one that runs. True when it was queued.
    fn woken(&mut self, id: u64) -> bool {
        let Some(task) = self.tasks.get_mut(&id) else { return false };
        match &mut task.place {
            Place::Queued => false,
            Place::Runs { woken } => {
                *woken = true;
                false
            }
            Place::Rests => {
                task.place = Place::Queued;
                let queue = if task.settled { &mut self.front } else { &mut self.back };
                queue.push_back(id);
                true
            }
        }
    }

    fn next(&mut self) -> Option<u64> {
        self.given += 1;
        let back = self.given.is_multiple_of(BACK);
        let (first, second) = if back { (&mut self.back, &mut self.front) } else { (&mut self.front, &mut self.back) };
        first.pop_front().or_else(|| second.pop_front())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        atomic::{AtomicU32, Ordering},
        mpsc,
    };

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    struct Job<F>(F);

    impl<F: FnMut(bool) -> Next + Send> Work for Job<F> {
        fn turn(&mut self, alone: bool) -> Next {
            (self.0)(alone)
        }

        fn generation(&self) -> u64 {
            0
        }

        fn events(&self) -> Vec<BorrowedFd<'_>> {
            Vec::new()
        }
    }

    fn add(pool: &Pool, name: &str, job: impl FnMut(bool) -> Next + Send + 'static) -> Waker {
        let waker = pool.waker();
        pool.add(&waker, name.parse().unwrap(), Box::new(Job(job)));
        waker
    }

    fn later() -> Next {
        Next::Rest(Instant::now() + Duration::from_secs(3600))
    }

    #[test]
    fn a_network_that_never_rests_keeps_no_other_from_its_turn() {
        let pool = Pool::start().unwrap();
        for n in 0..64 {
            add(&pool, &format!("busy{n}"), |_| Next::More);
        }
        let (turned, turns) = mpsc::channel();
        let waker = add(&pool, "quiet", move |_| {
            turned.send(()).unwrap();
            later()
        });
        for _ in 0..50 {
            turns.recv_timeout(PATIENCE).unwrap();
            waker.wake();
        }
    }

    #[test]
    fn a_network_that_is_woken_while_it_runs_runs_again() {
        let pool = Pool::start().unwrap();
        let (turned, turns) = mpsc::channel();
        let own: Arc<Mutex<Option<Waker>>> = Arc::default();
        let for_job = Arc::clone(&own);
        let mut left = 3;
        *own.lock().unwrap() = Some(add(&pool, "n", move |_| {
            left -= 1;
            if left > 0 {
                // The first turn may come before its waker is known.
                loop {
                    if let Some(waker) = &*for_job.lock().unwrap() {
                        break waker.wake();
                    }
                    thread::yield_now();
                }
            }
            turned.send(left).unwrap();
            later()
        }));
        let left: Vec<u32> = (0..3).map(|_| turns.recv_timeout(PATIENCE).unwrap()).collect();
        assert_eq!(left, [2, 1, 0]);
    }

    #[test]
    fn what_must_be_done_alone_is_done_one_at_a_time_and_holds_up_no_other() {
        let pool = Pool::start().unwrap();
        let (others, most) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
        let (done, all_done) = mpsc::channel();
        let (go, gate) = mpsc::channel::<()>();
        let gate = Arc::new(Mutex::new(gate));
        for n in 0..8 {
            let (others, most, done, gate) = (others.clone(), most.clone(), done.clone(), gate.clone());
            add(&pool, &format!("going{n}"), move |alone| {
                if !alone {
                    return Next::Alone;
                }
                most.fetch_max(others.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                gate.lock().unwrap().recv_timeout(PATIENCE).unwrap();
                others.fetch_sub(1, Ordering::SeqCst);
                done.send(()).unwrap();
                Next::Over
            });
        }
        // While the first of them waits, whoever needs not be alone has its turns.
        let (turned, turns) = mpsc::channel();
        let waker = add(&pool, "quiet", move |_| {
            turned.send(()).unwrap();
            later()
        });
        for _ in 0..10 {
            turns.recv_timeout(PATIENCE).unwrap();
            waker.wake();
        }
        (0..8).for_each(|_| go.send(()).unwrap());
        (0..8).for_each(|_| all_done.recv_timeout(PATIENCE).unwrap());
        assert_eq!(most.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn a_turn_that_panics_is_told_by_its_name() {
        let pool = Pool::start().unwrap();
        add(&pool, "bad", |_| panic!("as the test wants it"));
        let end = Instant::now() + PATIENCE;
        while pool.died().is_none() {
            assert!(Instant::now() < end);
            thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(pool.died().unwrap().as_str(), "bad");
    }
}
