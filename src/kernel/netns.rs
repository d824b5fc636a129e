//! Overlay namespaces: bound under `/run/netns` as `ip netns` binds them, and ours when their `lo` carries the mark
//! `vtepd:<instance>:<network>`, which is set before the file is bound.

use std::{
    fs,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    libc,
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
    sys::statfs::{NSFS_MAGIC, fstatfs},
};

use super::{
    decode, encode,
    error::{Because as _, Error},
    socket::RouteSocket,
};
use crate::{
    engine::{Failure, LinkRef, NetnsId},
    model::Name,
};

/// Where `ip netns` keeps its namespaces.
pub const DEFAULT_DIR: &str = "/run/netns";

const PREFIX: &str = "vtepd-";
/// How many hexadecimal digits Docker's network identifiers have, and how many of them go into the name.
const DOCKER_ID: usize = 64;
const DOCKER_SHORT_ID: usize = 10;

/// The name by which `ip netns` knows a network's overlay namespace; a network that goes by Docker's identifier is cut to the
/// ten digits that Docker's own tools use. Names are short enough otherwise.
pub fn file_name(network: &Name) -> String {
    let name = network.as_str();
    let docker = name.len() == DOCKER_ID && name.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    let shown = if docker { name.get(..DOCKER_SHORT_ID).unwrap_or(name) } else { name };
    format!("{PREFIX}{shown}")
}

/// The mark that makes a namespace ours: the ifalias of its `lo`.
pub fn mark(instance: &str, network: &Name) -> String {
    format!("vtepd:{instance}:{network}")
}

/// A namespace that is held open. As long as it is, neither it nor its inode number goes away.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) id: NetnsId,
    pub(super) fd: OwnedFd,
}

impl Held {
    pub(super) fn new(fd: OwnedFd) -> Result<Self, Error> {
        let id = identity(&nix::sys::stat::fstat(&fd).because(|| "identify a namespace".to_owned())?);
        Ok(Self { id, fd })
    }

    /// Runs `work` on a short-lived thread inside the namespace: sockets that it opens stay there.
    pub(super) fn enter<T: Send>(&self, work: impl FnOnce() -> Result<T, Error> + Send) -> Result<T, Error> {
        on_thread(|| {
            setns(self.fd.as_fd(), CloneFlags::CLONE_NEWNET).because(|| "enter a network namespace".to_owned())?;
            work()
        })
    }
}

/// A thread of its own, so that no other work ever runs in a foreign namespace.
fn on_thread<T: Send>(work: impl FnOnce() -> Result<T, Error> + Send) -> Result<T, Error> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, work);
        let thread = thread.because(|| "start a thread".to_owned())?;
        thread.join().unwrap_or_else(|_| Err(Error::torn("the thread in the namespace died")))
    })
}

const fn identity(stat: &libc::stat) -> NetnsId {
    NetnsId { device: stat.st_dev, inode: stat.st_ino }
}

/// The namespace of the calling thread.
pub(super) fn own() -> Result<NetnsId, Error> {
    let path = "/proc/thread-self/ns/net";
    nix::sys::stat::stat(path).because(|| format!("stat {path}")).map(|stat| identity(&stat))
}

/// The namespace of the calling thread, held open.
pub(super) fn hold_own() -> Result<Held, Error> {
    let path = "/proc/thread-self/ns/net";
    Held::new(fs::File::open(path).because(|| format!("open {path}"))?.into())
}

/// Whether a descriptor is a namespace's.
pub(super) fn is_namespace(fd: &OwnedFd) -> Result<bool, Error> {
    Ok(fstatfs(fd).because(|| "statfs".to_owned())?.filesystem_type() == NSFS_MAGIC)
}

/// What is found at a path.
#[derive(Debug)]
pub(super) enum Found {
    Absent,
    Foreign,
    Namespace(Held),
}

/// Looks at a path without following a link.
pub(super) fn find(path: &Path) -> Result<Found, Error> {
    let metadata = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Found::Absent),
        other => other.because(|| format!("stat {}", path.display()))?,
    };
    if !metadata.is_file() || metadata.file_type().is_fifo() {
        return Ok(Found::Foreign);
    }
    let flags = libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK;
    let file = match fs::OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Found::Absent),
        other => other.because(|| format!("open {}", path.display()))?,
    };
    let size = file.metadata().map_or(1, |metadata| metadata.size());
    let fd = OwnedFd::from(file);
    match (is_namespace(&fd)?, size) {
        (true, _) => Held::new(fd).map(Found::Namespace),
        (false, 0) => Ok(Found::Absent),
        (false, _) => Ok(Found::Foreign),
    }
}

/// The ifalias of `lo`, read with a socket in the namespace. `None` when there is none.
pub(super) fn alias_of_lo(socket: &mut RouteSocket) -> Result<Option<String>, Error> {
    let bodies = socket.call_one(encode::get_link(&LinkRef::Index(1)))?;
    Ok(bodies.first().and_then(|body| decode::alias(body)))
}

impl Held {
    /// The ifalias of the namespace's `lo`. A namespace of another type has none.
    pub(super) fn alias(&self) -> Result<Option<String>, Error> {
        match self.enter(|| alias_of_lo(&mut RouteSocket::open()?)) {
            // setns says so of a namespace of another type.
            Err(error) if error.errno == Errno::EINVAL => Ok(None),
            other => other,
        }
    }
}

/// Makes a namespace with the mark and binds it to the path, where there is nothing or an empty file.
pub(super) fn create(path: &Path, mark: &str) -> Result<Held, Error> {
    let exists = || Err(Error::new(Errno::EEXIST, format!("{} is in use", path.display())));
    let Found::Absent = find(path)? else { return exists() };
    if let Some(dir) = path.parent() {
        prepare(dir)?;
    }
    on_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET).because(|| "make a network namespace".to_owned())?;
        RouteSocket::open()?.call_one(encode::mark_lo(mark))?;
        set_defaults();
        let own = Path::new("/proc/thread-self/ns/net");
        let fd = fs::File::open(own).because(|| format!("open {}", own.display()))?;
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o0).custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC);
        options.open(path).because(|| format!("create {}", path.display()))?;
        mount(Some(own), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .because(|| format!("bind a namespace to {}", path.display()))?;
        Held::new(fd.into())
    })
}

/// Turns IPv6 address generation off for devices to come. Each device has it off as well; but one whose MTU was below 1280 for
/// a while starts anew with the namespace's default (addrconf_notify, net/ipv6/addrconf.c). Where `/proc/sys` is read-only the
/// device's own setting has to do.
///
/// Where a packet leaves by the link that it came from, as between two subnets of one VNI, its sender shall not be told to go
/// another way (the greater of `all`'s and the link's own value counts, which is that of `default` when the link is made). IPv6
/// redirects come from link-local addresses, which bridges of ours do not have.
///
/// And with its first IPv4 address of a subnet a device shall not lose the others (inet_del_ifa, net/ipv4/devinet.c).
fn set_defaults() {
    for (file, value) in [
        ("ipv6/conf/default/addr_gen_mode", "1"),
        ("ipv4/conf/all/promote_secondaries", "1"),
        ("ipv4/conf/all/send_redirects", "0"),
        ("ipv4/conf/default/send_redirects", "0"),
    ] {
        if let Err(error) = fs::write(Path::new("/proc/sys/net").join(file), value) {
            tracing::debug!(%error, file, "cannot set the namespace's default");
        }
    }
}

/// Makes the directory what `ip netns add` makes of it: a shared mount of its own, so that a namespace that is bound or unbound
/// in one mount namespace is so in all.
fn prepare(dir: &Path) -> Result<(), Error> {
    fs::create_dir_all(dir).because(|| format!("make {}", dir.display()))?;
    let share = || mount(None::<&str>, dir, None::<&str>, MsFlags::MS_SHARED | MsFlags::MS_REC, None::<&str>);
    match share() {
        Err(Errno::EINVAL) => {
            let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
            mount(Some(dir), dir, None::<&str>, bind, None::<&str>).and_then(|()| share())
        }
        other => other,
    }
    .because(|| format!("share {}", dir.display()))
}

/// Unbinds the path and removes the file.
pub(super) fn delete(path: &Path) -> Result<(), Error> {
    match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
        Err(errno) => return Err(Error::new(errno, format!("unbind {}", path.display()))),
    }
    remove_file(path)
}

/// Removes the file that a crash left before a namespace was bound to it. To a file in use the kernel says EBUSY.
pub(super) fn remove_file(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.because(|| format!("remove {}", path.display())),
    }
}

/// What an agent without memory finds of its own.
#[derive(Debug, Default)]
pub struct Owned {
    /// The networks of this instance that have an overlay namespace, ordered by name.
    pub networks: Vec<Name>,
    /// Paths that look like ours and could not be read.
    pub unreadable: Vec<(PathBuf, Failure)>,
}

/// Finds the overlay namespaces of an instance. One that cannot be read is reported, and hides no other.
///
/// # Errors
/// The directory is there and cannot be read.
pub fn owned(dir: &Path, instance: &str) -> Result<Owned, Failure> {
    let mut owned = Owned::default();
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(owned),
        other => other.because(|| format!("list {}", dir.display()))?,
    };
    for entry in entries {
        let entry = entry.because(|| format!("list {}", dir.display()))?;
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|name| name.starts_with(PREFIX)) else { continue };
        match marked_network(&entry.path(), instance) {
            Ok(Some(network)) if file_name(&network) == name => owned.networks.push(network),
            Ok(_) => {}
            Err(error) => owned.unreadable.push((entry.path(), error.into())),
        }
    }
    owned.networks.sort();
    owned.unreadable.sort_by(|(left, _), (right, _)| left.cmp(right));
    Ok(owned)
}

/// The network whose mark of this instance the namespace at the path carries.
fn marked_network(path: &Path, instance: &str) -> Result<Option<Name>, Error> {
    let Found::Namespace(held) = find(path)? else { return Ok(None) };
    let alias = held.alias()?.unwrap_or_default();
    let network = alias.strip_prefix("vtepd:").and_then(|rest| rest.strip_prefix(instance)?.strip_prefix(':'));
    Ok(network.and_then(|network| network.parse().ok()))
}
