//! What is mounted where: a namespace shows at a path only once it is bound there, which inotify does not tell.
//!
//! The kernel wakes who polls its mountinfo whenever a mount comes or goes (`mounts_poll`, fs/proc_namespace.c); it does not say which, so
//! that the namespaces' lines are compared with those of before. Reading a line opens nothing: no namespace is pinned.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, Read as _, Seek as _},
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
};

const MOUNTINFO: &str = "/proc/thread-self/mountinfo";
/// The type of file system that namespaces are of, as mountinfo has it.
const NSFS: &str = "nsfs";

/// The namespaces that are bound to paths of this mount namespace.
#[derive(Debug)]
pub(super) struct Mounts {
    mountinfo: File,
    bound: BTreeMap<PathBuf, String>,
}

impl Mounts {
    /// What is bound now.
    ///
    /// # Errors
    /// `/proc` is not to be read.
    pub(super) fn open() -> io::Result<Self> {
        let mut mounts = Self { mountinfo: File::open(MOUNTINFO)?, bound: BTreeMap::new() };
        mounts.changed()?;
        Ok(mounts)
    }

    /// The paths, as the kernel writes them, at which another namespace is than at the last call, or none any more.
    ///
    /// # Errors
    /// `/proc` is not to be read.
    pub(super) fn changed(&mut self) -> io::Result<BTreeSet<PathBuf>> {
        let mut text = String::new();
        self.mountinfo.rewind()?;
        self.mountinfo.read_to_string(&mut text)?;
        let now: BTreeMap<PathBuf, String> = text.lines().filter_map(namespace).collect();
        let before = std::mem::take(&mut self.bound);
        let other = |(path, bound): (&PathBuf, &String), than: &BTreeMap<PathBuf, String>| {
            (than.get(path) != Some(bound)).then(|| path.clone())
        };
        let come = now.iter().filter_map(|line| other(line, &before));
        let gone = before.iter().filter_map(|line| other(line, &now));
        let changed = come.chain(gone).collect();
        self.bound = now;
        Ok(changed)
    }
}

/// Wakes by `POLLPRI`.
impl AsFd for Mounts {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.mountinfo.as_fd()
    }
}

/// Where a line of mountinfo (proc_pid_mountinfo(5)) says that a namespace is bound, and which by which mount. Of mounts on one another the
/// last line's is on top.
fn namespace(line: &str) -> Option<(PathBuf, String)> {
    let (mount, filesystem) = line.split_once(" - ")?;
    if filesystem.split(' ').next() != Some(NSFS) {
        return None;
    }
    let mut fields = mount.split(' ');
    let id = fields.next()?;
    let root = fields.nth(2)?;
    Some((unescaped(fields.next()?), format!("{id} {root}")))
}

/// Undoes the kernel's escaping of blanks (`mangle_path`): a backslash and three octal digits.
fn unescaped(text: &str) -> PathBuf {
    let mut path = String::with_capacity(text.len());
    let mut parts = text.split('\\');
    path.extend(parts.next());
    for part in parts {
        let digits = part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match digits {
            Some(byte) => {
                path.push(char::from(byte));
                path.extend(part.get(3..));
            }
            None => {
                path.push('\\');
                path.push_str(part);
            }
        }
    }
    PathBuf::from(path)
}

/// A path as the kernel writes it, below each of the roots that leads there: `/var/run` and `/run` may be the same directory.
pub(super) fn below<'a>(roots: &'a [PathBuf], path: &'a Path) -> impl Iterator<Item = PathBuf> + 'a {
    roots.iter().filter_map(move |root| {
        let real = root.canonicalize().ok()?;
        Some(root.join(path.strip_prefix(real).ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lines_of_namespaces_are_read_and_their_paths_unescaped() {
        let line = r"812 32 0:4 net:[4026532281] /run/netns/a\040b rw shared:5 - nsfs nsfs rw";
        let bound = (PathBuf::from("/run/netns/a b"), "812 net:[4026532281]".to_owned());
        assert_eq!(namespace(line), Some(bound));
        assert_eq!(namespace("30 1 0:26 / /run rw,nosuid shared:5 - tmpfs tmpfs rw"), None);
        assert_eq!(namespace("nonsense"), None);
    }

    #[test]
    fn a_directory_under_two_names_gives_a_path_for_each() {
        let dir = std::env::temp_dir().join(format!("vtepd-mounts-{}", std::process::id()));
        let (real, link) = (dir.join("real"), dir.join("link"));
        std::fs::create_dir_all(&real).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let roots = [real.clone(), link.clone(), dir.join("absent")];
        let found: Vec<PathBuf> = below(&roots, &real.canonicalize().unwrap().join("n")).collect();
        assert_eq!(found, [real.join("n"), link.join("n")]);
        assert_eq!(below(&roots, Path::new("/elsewhere/n")).count(), 0);
        std::fs::remove_dir_all(dir).unwrap();
    }
}
