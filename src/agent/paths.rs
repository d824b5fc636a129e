//! Watches the directories in which namespaces are bound: what appears in them by inotify, what is bound there by mountinfo.

use std::{
    collections::BTreeMap,
    io,
    os::fd::AsFd,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, poll},
    sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor},
};
use tokio::sync::mpsc;
use tracing::warn;

use super::mounts::{self, Mounts};

/// Readings that wait for the director; while it is busy the kernel's own queue holds what follows.
const SIGHTS: usize = 64;
/// How long the thread may outlive its receiver, in milliseconds.
const IDLE: u16 = 1000;
/// After reading what is mounted there is a rest of so many times what it took.
const MOUNTS_REST: u32 = 4;

/// What was seen in the watched directories.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// Something appeared at, or vanished from, this path.
    Path(PathBuf),
    /// Some changes were lost, or a directory is watched from now on that was not before.
    Lost,
}

#[derive(Debug)]
struct Watch {
    inotify: Inotify,
    mounts: Mounts,
    dirs: Vec<PathBuf>,
    watched: BTreeMap<PathBuf, WatchDescriptor>,
}

/// Watches the directories, and for those that do not exist the parent in which they would appear, on a thread that ends soon
/// after the receiver is dropped.
///
/// # Errors
/// There is no inotify, no `/proc` or no thread to be had.
pub(super) fn watch(dirs: Vec<PathBuf>) -> io::Result<mpsc::Receiver<Vec<Seen>>> {
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
    let mut watch = Watch { inotify, mounts: Mounts::open()?, dirs, watched: BTreeMap::new() };
    watch.refresh();
    let (sender, receiver) = mpsc::channel(SIGHTS);
    thread::Builder::new().name("paths".to_owned()).spawn(move || watch.run(&sender))?;
    Ok(receiver)
}

impl Watch {
    fn run(mut self, sender: &mpsc::Sender<Vec<Seen>>) {
        while !sender.is_closed() {
            let seen = match self.wait() {
                Ok((false, false)) => continue,
                Ok((entries, mounts)) => self.look(entries, mounts),
                Err(error) => Err(error),
            };
            let seen = seen.unwrap_or_else(|error| {
                warn!(%error, "cannot read what happens in the namespace directories");
                thread::sleep(Duration::from_secs(1));
                vec![Seen::Lost]
            });
            if !seen.is_empty() && sender.blocking_send(seen).is_err() {
                return;
            }
        }
    }

    /// Waits, but not without end, until directory entries changed or mounts did.
    fn wait(&self) -> io::Result<(bool, bool)> {
        let mut fds = [
            PollFd::new(self.inotify.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.mounts.as_fd(), PollFlags::POLLPRI),
        ];
        match poll(&mut fds, IDLE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let woken = |fd: &PollFd<'_>| fd.any().unwrap_or(false);
        let [inotify, mounts] = &fds;
        Ok((woken(inotify), woken(mounts)))
    }

    fn look(&mut self, entries: bool, mounts: bool) -> io::Result<Vec<Seen>> {
        let mut seen = if entries { self.read()? } else { Vec::new() };
        if mounts {
            let started = Instant::now();
            let changed = self.mounts.changed()?;
            seen.extend(changed.iter().flat_map(|path| mounts::below(&self.dirs, path)).map(Seen::Path));
            // Every mount on the host wakes us, and all are read: a storm of them takes no more than a fifth of our time.
            thread::sleep(started.elapsed() * MOUNTS_REST);
        }
        Ok(seen)
    }

    /// Watches what can be watched now; true when a directory is new.
    fn refresh(&mut self) -> bool {
        let flags = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        let mut new = false;
        for dir in &self.dirs {
            let there = dir.ancestors().filter(|dir| dir.is_dir()).take(1);
            for dir in there {
                match self.inotify.add_watch(dir, flags) {
                    // The same inode under two names, or watched already, has one descriptor.
                    Ok(descriptor) => new |= self.watched.insert(dir.to_owned(), descriptor) != Some(descriptor),
                    Err(error) => warn!(dir = %dir.display(), %error, "cannot watch for namespaces here"),
                }
            }
        }
        new
    }

    fn read(&mut self) -> io::Result<Vec<Seen>> {
        let mut seen = Vec::new();
        for event in self.inotify.read_events()? {
            if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                seen.push(Seen::Lost);
            }
            if event.mask.contains(AddWatchFlags::IN_IGNORED) {
                self.watched.retain(|_, descriptor| *descriptor != event.wd);
            }
            let Some(name) = event.name else { continue };
            let dirs = self.watched.iter().filter(|(_, descriptor)| **descriptor == event.wd);
            // A parent is watched only for a root to appear in it.
            let roots = dirs.filter(|(dir, _)| self.dirs.contains(dir));
            seen.extend(roots.map(|(dir, _)| Seen::Path(dir.join(&name))));
        }
        // A root that appeared, or was taken away and made again, may have namespaces in it already.
        if self.refresh() {
            seen.push(Seen::Lost);
        }
        Ok(seen)
    }
}
