use std::{
    fs::{self, File},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{LabError, programs};

/// A long-running process of the lab, with its log. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Process {
    what: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts the command with its output appended to `log`, in a process group of its own so that a Ctrl-C at the
    /// terminal does not reach it.
    pub(crate) fn start(what: &str, mut command: Command, log: &Path) -> Result<Self, LabError> {
        let opened = || File::options().create(true).append(true).open(log);
        let (stdout, stderr) = opened()
            .and_then(|first| Ok((first, opened()?)))
            .map_err(LabError::io(format!("opening {}", log.display())))?;
        let typed = programs::typed(&command);
        let child = command
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(stderr)
            .process_group(0)
            .spawn()
            .map_err(LabError::io(format!("starting `{typed}`")))?;
        Ok(Self { what: what.to_owned(), child, log: log.to_owned() })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn log_path(&self) -> &Path {
        &self.log
    }

    /// Fails where the process has ended.
    pub(crate) fn check_running(&mut self) -> Result<(), LabError> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(LabError::Ended {
                what: self.what.clone(),
                status: status.to_string(),
                log: log_tail(&self.log, 20),
            }),
            Err(error) => Err(LabError::io(format!("looking at {}", self.what))(error)),
        }
    }

    pub(crate) fn signal(&mut self, signal: Signal) -> Result<(), LabError> {
        self.check_running()?;
        let pid = i32::try_from(self.child.id()).map_err(|_| LabError::not_so("the pid is out of range"))?;
        kill(Pid::from_raw(pid), signal).map_err(LabError::errno(format!("sending {signal} to {}", self.what)))
    }

    /// Waits until the process has ended.
    pub(crate) fn wait(&mut self, timeout: Duration) -> Result<ExitStatus, LabError> {
        let started = Instant::now();
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return Ok(status),
                Ok(None) if started.elapsed() >= timeout => {
                    return Err(LabError::Timeout {
                        what: format!("the end of {}", self.what),
                        timeout,
                        last: format!("pid {} still runs", self.child.id()),
                    });
                }
                Ok(None) => sleep(Duration::from_millis(2)),
                Err(error) => return Err(LabError::io(format!("waiting for {}", self.what))(error)),
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only where the process has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The last lines of a log, as far as it can be read.
pub(crate) fn log_tail(path: &Path, lines: usize) -> String {
    let text = fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all.get(all.len().saturating_sub(lines)..).unwrap_or_default().join("\n")
}
