//! Endpoints' namespaces. Their paths come from the store: nothing is opened outside the allowed roots, nothing through a
//! symbolic link, and nothing is kept open, since an open descriptor keeps a dead container's namespace alive.

use std::{
    fs,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    path::{Component, Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2},
    sys::stat::{Mode, SFlag, fstat},
};

use super::{
    encode,
    error::{Because as _, Error},
    netns::{self, Held},
    socket::RouteSocket,
};
use crate::model::Netns;

/// What an endpoint's path leads to.
#[derive(Debug)]
pub(super) enum Opened {
    /// Nothing yet, or a file to which no namespace is bound yet.
    NoNetns,
    /// What must not be touched, with the reason.
    Refused(String),
    /// A network namespace, with a socket in it.
    Netns(Held, RouteSocket),
}

/// Opens an endpoint's namespace. The host's own is that of the calling thread.
pub(super) fn open_netns(roots: &[PathBuf], netns: &Netns) -> Result<Opened, Error> {
    match netns {
        Netns::Path(path) => open_beneath(roots, path),
        Netns::Host => Ok(Opened::Netns(netns::hold_own()?, RouteSocket::open()?)),
    }
}

/// Opens the namespace at `path` if it lies beneath one of `roots`, and is neither the host's own nor an overlay namespace.
fn open_beneath(roots: &[PathBuf], path: &Path) -> Result<Opened, Error> {
    let Some((root, rest)) = roots.iter().find_map(|root| Some((root, beneath(root, path)?))) else {
        return Ok(Opened::Refused(format!("{} is not beneath an allowed root", path.display())));
    };
    // The root itself may be reached through a link (/var/run is one on most systems); it is the operator's word.
    let root = match open(root, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()) {
        Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(Opened::NoNetns),
        other => other.because(|| format!("open {}", root.display()))?,
    };
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    // O_PATH opens nothing by itself: a device or a FIFO of that name stays untouched.
    let found = match openat2(&root, rest, how) {
        Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(Opened::NoNetns),
        Err(Errno::ELOOP) => return Ok(Opened::Refused(format!("{} leads through a symbolic link", path.display()))),
        Err(Errno::EXDEV) => return Ok(Opened::Refused(format!("{} leads out of its root", path.display()))),
        other => other.because(|| format!("open {}", path.display()))?,
    };
    if !netns::is_namespace(&found)? {
        let mode = fstat(&found).because(|| format!("stat {}", path.display()))?.st_mode;
        let file = SFlag::from_bits_truncate(mode & SFlag::S_IFMT.bits()) == SFlag::S_IFREG;
        let refused = || Opened::Refused(format!("{} is not a network namespace", path.display()));
        return Ok(if file { Opened::NoNetns } else { refused() });
    }
    enter(path, &found)
}

/// The part of `path` below `root`, if it is made of plain names only.
fn beneath<'a>(root: &Path, path: &'a Path) -> Option<&'a Path> {
    let rest = path.strip_prefix(root).ok()?;
    let plain = rest.components().all(|part| matches!(part, Component::Normal(_)));
    (plain && rest.components().next().is_some()).then_some(rest)
}

fn enter(path: &Path, found: &OwnedFd) -> Result<Opened, Error> {
    let readable = fs::File::open(format!("/proc/thread-self/fd/{}", found.as_raw_fd()));
    let held = Held::new(readable.because(|| format!("open {}", path.display()))?.into())?;
    let refused = |what: &str| Ok(Opened::Refused(format!("{} is {what}", path.display())));
    if held.id == netns::own()? {
        return refused("the host's own network namespace");
    }
    let entered = held.enter(|| {
        let mut socket = RouteSocket::open()?;
        let alias = netns::alias_of_lo(&mut socket)?;
        Ok((socket, alias))
    });
    match entered {
        // setns says so of a namespace of another type.
        Err(error) if error.errno == Errno::EINVAL => refused("not a network namespace"),
        Err(error) => Err(error),
        Ok((_, Some(alias))) if alias.starts_with("vtepd:") => refused("an overlay namespace"),
        Ok((socket, _)) => Ok(Opened::Netns(held, socket)),
    }
}

/// The identifier that a namespace has in that of `overlay`'s socket, if one is assigned.
pub(super) fn nsid(overlay: &mut RouteSocket, held: &Held) -> Result<Option<i32>, Error> {
    let bodies = overlay.call_one(encode::get_nsid(held.fd.as_fd()))?;
    Ok(bodies.first().and_then(|body| super::decode::nsid(body)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_names_below_a_root_are_beneath_it() {
        let root = Path::new("/run/netns");
        assert_eq!(beneath(root, Path::new("/run/netns/a/b")), Some(Path::new("a/b")));
        for path in
            ["/run/netns", "/run/netns/", "/run/netns/../x", "/run/netns/a/../../x", "/run/netnsx", "run/netns/a"]
        {
            assert_eq!(beneath(root, Path::new(path)), None, "{path}");
        }
    }
}
