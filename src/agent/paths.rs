//! Watches the directories in which namespaces are bound, by inotify.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
    path::PathBuf,
};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use tokio::io::unix::AsyncFd;
use tracing::warn;

/// What was seen in the watched directories.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// Something appeared at, or vanished from, this path.
    Path(PathBuf),
    /// Some changes were lost, or a directory is watched from now on that was not before.
    Lost,
}

/// The watch.
#[derive(Debug)]
pub(super) struct Paths {
    inotify: AsyncFd<Watch>,
}

#[derive(Debug)]
struct Watch {
    inotify: Inotify,
    dirs: Vec<PathBuf>,
    watched: BTreeMap<PathBuf, WatchDescriptor>,
}

impl AsRawFd for Watch {
    fn as_raw_fd(&self) -> RawFd {
        self.inotify.as_fd().as_raw_fd()
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

impl Paths {
    /// Watches the directories, and for those that do not exist the parent in which they would appear.
    ///
    /// # Errors
    /// There is no inotify to be had.
    pub(super) fn watch(dirs: Vec<PathBuf>) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let mut watch = Watch { inotify, dirs, watched: BTreeMap::new() };
        watch.refresh();
        Ok(Self { inotify: AsyncFd::register(watch)? })
    }

    /// What was seen since the last call; waits for at least one sight.
    ///
    /// # Errors
    /// The watch failed.
    pub(super) async fn seen(&mut self) -> io::Result<Vec<Seen>> {
        loop {
            let mut ready = self.inotify.readable_mut().await?;
            match ready.try_io(|watch| watch.get_mut().read()) {
                Ok(Ok(seen)) if seen.is_empty() => {}
                Ok(seen) => return seen,
                Err(_would_block) => {}
            }
        }
    }
}

impl Watch {
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
            seen.extend(dirs.map(|(dir, _)| Seen::Path(dir.join(&name))));
        }
        // A root that appeared, or was taken away and made again, may have namespaces in it already.
        if self.refresh() {
            seen.push(Seen::Lost);
        }
        Ok(seen)
    }
}
