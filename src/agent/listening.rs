//! The thread that hears what happens in endpoints' namespaces, for all networks.

use std::{
    io,
    os::fd::AsFd,
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::eventfd::{EfdFlags, EventFd},
};
use tracing::error;

use super::Error;
use crate::kernel::Listener;

/// The thread. It ends with this.
pub(super) struct Listening {
    listener: Arc<Listener>,
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Listening {
    /// Opens the listener in the host's namespace, and starts the thread.
    ///
    /// # Errors
    /// The system has no socket or no thread left.
    pub(super) fn start() -> Result<Self, Error> {
        let system = |error: io::Error| Error::System { what: "cannot listen to endpoints' namespaces", error };
        let listener = Arc::new(Listener::open()?);
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let stop = Arc::new(EventFd::from_flags(flags).map_err(|errno| system(errno.into()))?);
        let (for_thread, stopped) = (Arc::clone(&listener), Arc::clone(&stop));
        let thread = thread::Builder::new().name("endpoints".to_owned());
        let thread = thread.spawn(move || listen(&for_thread, &stopped)).map_err(system)?;
        Ok(Self { listener, stop, thread: Some(thread) })
    }

    pub(super) const fn listener(&self) -> &Arc<Listener> {
        &self.listener
    }

    /// Whether the thread ended although nobody asked it to.
    pub(super) fn died(&self) -> bool {
        self.thread.as_ref().is_some_and(JoinHandle::is_finished)
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn listen(listener: &Listener, stop: &EventFd) {
    let mut due: Option<Instant> = None;
    loop {
        let wait = due.map(|due| due.saturating_duration_since(Instant::now()).as_millis().saturating_add(1));
        let timeout = wait.map_or(PollTimeout::NONE, |ms| PollTimeout::try_from(ms).unwrap_or(PollTimeout::MAX));
        let mut fds = [PollFd::new(listener.fd(), PollFlags::POLLIN), PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => {
                error!(%errno, "cannot wait for what happens in endpoints' namespaces; looking again in a second");
                thread::sleep(Duration::from_secs(1));
            }
        }
        if stop.read().is_ok() {
            return;
        }
        due = listener.drain().1;
    }
}
