//! One agent per host and instance: a lock that dies with the process.

use std::{
    fs::{self, File, OpenOptions},
    path::Path,
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

use super::Error;

/// The lock, held until it is dropped or the process ends.
#[derive(Debug)]
pub(super) struct Lock {
    _file: Flock<File>,
}

impl Lock {
    /// Takes the lock of an instance.
    pub(super) fn take(run_dir: &Path, instance: &str) -> Result<Self, Error> {
        let run_dir_error = |error| Error::RunDir { path: run_dir.display().to_string(), error };
        fs::create_dir_all(run_dir).map_err(run_dir_error)?;
        let path = run_dir.join(format!("{instance}.lock"));
        let mut options = OpenOptions::new();
        let file = options.create(true).truncate(false).write(true).open(&path).map_err(run_dir_error)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => Ok(Self { _file: file }),
            Err((_, Errno::EWOULDBLOCK)) => {
                Err(Error::AlreadyRuns { instance: instance.to_owned(), path: path.display().to_string() })
            }
            Err((_, errno)) => Err(run_dir_error(errno.into())),
        }
    }
}
