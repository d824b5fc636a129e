use nix::errno::Errno;

use crate::engine::{Failure, FailureKind};

/// Why a request was not answered as asked, with the kernel's own words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Error {
    /// The kernel's error, or that of a system call of ours.
    pub(super) errno: Errno,
    /// What we did, or what the kernel said beyond the error (`NLMSGERR_ATTR_MSG`).
    pub(super) text: String,
    /// No answer came, or a dump was interrupted: what is true is unknown.
    pub(super) torn: bool,
}

impl Error {
    pub(super) fn new(errno: Errno, text: impl Into<String>) -> Self {
        Self { errno, text: text.into(), torn: false }
    }

    pub(super) fn torn(text: impl Into<String>) -> Self {
        Self { errno: Errno::EINTR, text: text.into(), torn: true }
    }

    /// From a system call, with what it was for.
    pub(super) fn system(error: &std::io::Error, text: impl Into<String>) -> Self {
        Self::new(error.raw_os_error().map_or(Errno::EIO, Errno::from_raw), text)
    }

    pub(super) fn kind(&self) -> FailureKind {
        if self.torn { FailureKind::Torn } else { kind_of(self.errno) }
    }
}

const fn kind_of(errno: Errno) -> FailureKind {
    match errno {
        Errno::ENOENT | Errno::ENODEV | Errno::ESRCH | Errno::EADDRNOTAVAIL => FailureKind::NotFound,
        Errno::EEXIST | Errno::EADDRINUSE | Errno::ENOTUNIQ => FailureKind::Exists,
        Errno::EPERM | Errno::EACCES => FailureKind::Permission,
        Errno::ENOMEM | Errno::ENOBUFS | Errno::EAGAIN | Errno::EBUSY | Errno::EINTR => FailureKind::Resources,
        _ => FailureKind::Refused,
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let kind = error.kind();
        let Error { errno, text, torn } = error;
        if torn {
            return Self::new(kind, text);
        }
        let words = if text.is_empty() { String::new() } else { format!(": {text}") };
        Self::new(kind, format!("{errno:?} ({}){words}", errno.desc()))
    }
}

/// Adds what a system call was for to its error.
pub(super) trait Because<T> {
    fn because(self, text: impl FnOnce() -> String) -> Result<T, Error>;
}

impl<T> Because<T> for Result<T, Errno> {
    fn because(self, text: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|errno| Error::new(errno, text()))
    }
}

impl<T> Because<T> for std::io::Result<T> {
    fn because(self, text: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|error| Error::system(&error, text()))
    }
}
