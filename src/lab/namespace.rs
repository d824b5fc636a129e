use std::{
    fs::File,
    io::{BufRead, BufReader, Read},
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
    thread,
};

use nix::sched::{CloneFlags, setns};

use super::{LabError, programs};

/// What the holder does in its namespaces before it says that they stand. The tmpfs keeps what one host binds under
/// /run/netns away from the others. `cat` ends when its standard input closes, so that a holder never outlives the lab.
const HOLD: &str =
    "mount -t tmpfs -o mode=755 tmpfs /run && mkdir -p /run/netns && ip link set lo up && echo held && exec cat";

/// A process that holds a network and a mount namespace open, with an empty /run. They end with it, on drop.
#[derive(Debug)]
pub(crate) struct Namespace {
    holder: Child,
}

impl Namespace {
    pub(crate) fn new() -> Result<Self, LabError> {
        let mut command = programs::command("unshare");
        command.args(["-n", "-m", "sh", "-c", HOLD]);
        let typed = programs::typed(&command);
        let holder = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(LabError::io(format!("starting `{typed}`")))?;
        let mut namespace = Self { holder };
        let mut said = String::new();
        if let Some(stdout) = namespace.holder.stdout.take() {
            BufReader::new(stdout).read_line(&mut said).map_err(LabError::io(format!("reading from `{typed}`")))?;
        }
        if said.trim() == "held" {
            return Ok(namespace);
        }
        let mut complaint = String::new();
        if let Some(mut stderr) = namespace.holder.stderr.take() {
            stderr.read_to_string(&mut complaint).map_err(LabError::io(format!("reading from `{typed}`")))?;
        }
        Err(LabError::Forbidden(format!(
            "{}; the lab needs root, or to be run in a user namespace (`unshare -Urnmpf --kill-child --mount-proc`)",
            complaint.trim()
        )))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.holder.id()
    }

    /// A command that runs in the namespaces; `arguments` begin with the program.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = programs::command("nsenter");
        command.args(["-t", &self.pid().to_string(), "-n", "-m", "--"]).args(arguments);
        command
    }

    /// Does `work` on a thread that is in the network namespace.
    pub(crate) fn within<T: Send>(&self, work: impl FnOnce() -> Result<T, LabError> + Send) -> Result<T, LabError> {
        let path = format!("/proc/{}/ns/net", self.pid());
        thread::scope(|scope| {
            let worker = scope.spawn(move || {
                let file = File::open(&path).map_err(LabError::io(format!("opening {path}")))?;
                setns(&file, CloneFlags::CLONE_NEWNET).map_err(LabError::errno(format!("entering {path}")))?;
                work()
            });
            worker.join().unwrap_or_else(|_| Err(LabError::not_so("the thread in the namespace has panicked")))
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Both fail only where the holder has ended already.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
