use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use nix::sys::signal::Signal;
use serde_json::Value;

use super::{LabError, host::run_with_input, http, namespace::Namespace, process::Process, programs, wait_for};

const START_TIMEOUT: Duration = Duration::from_secs(20);
const CLIENT_PORT: u16 = 2379;

/// One write of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Writes the value to the key.
    Put(String, String),
    /// Deletes the key.
    Delete(String),
}

/// A real etcd of one member, in the underlay namespace.
#[derive(Debug)]
pub struct Etcd {
    process: Option<Process>,
    namespace: Arc<Namespace>,
    address: Ipv4Addr,
    directory: PathBuf,
}

impl Etcd {
    pub(super) fn start_in(namespace: Arc<Namespace>, address: Ipv4Addr, directory: PathBuf) -> Result<Self, LabError> {
        let mut etcd = Self { process: None, namespace, address, directory };
        etcd.start()?;
        Ok(etcd)
    }

    /// Where clients reach it, from every host.
    pub fn url(&self) -> String {
        format!("http://{}:{CLIENT_PORT}", self.address)
    }

    /// Its process, where it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    /// Starts it with the data that it had, and waits until it answers. Does nothing where it runs.
    pub fn start(&mut self) -> Result<(), LabError> {
        if self.process.is_some() {
            return Ok(());
        }
        let data = self.directory.join("etcd").to_string_lossy().into_owned();
        let url = self.url();
        let local = format!("http://127.0.0.1:{CLIENT_PORT}");
        let peer = "http://127.0.0.1:2380";
        let cluster = format!("lab={peer}");
        let clients = format!("{url},{local}");
        let command = self.namespace.command(&[
            "etcd",
            "--name=lab",
            "--data-dir",
            &data,
            "--listen-client-urls",
            &clients,
            "--advertise-client-urls",
            &url,
            "--listen-peer-urls",
            peer,
            "--initial-advertise-peer-urls",
            peer,
            "--initial-cluster",
            &cluster,
        ]);
        let mut process = Process::start("etcd", command, &self.directory.join("etcd.log"))?;
        wait_for("etcd's first answer", START_TIMEOUT, || {
            process.check_running()?;
            match http::get(&self.namespace, (self.address, CLIENT_PORT).into(), "/health")? {
                (200, body) if body.contains("true") => Ok(()),
                (status, body) => Err(LabError::not_so(format!("/health answers {status}: {}", body.trim()))),
            }
        })?;
        self.process = Some(process);
        Ok(())
    }

    /// Kills it (SIGKILL). Its data stays.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Kills it, deletes its data and starts an empty one in its place.
    pub fn wipe(&mut self) -> Result<(), LabError> {
        self.kill();
        let data = self.directory.join("etcd");
        fs::remove_dir_all(&data).map_err(LabError::io(format!("deleting {}", data.display())))?;
        self.start()
    }

    /// Writes a snapshot of all it has to a file, for [`Etcd::restore`].
    pub fn backup(&self, name: &str) -> Result<PathBuf, LabError> {
        let file = self.directory.join(name);
        self.etcdctl(&["snapshot", "save", &file.to_string_lossy()])?;
        Ok(file)
    }

    /// Kills it, and starts it in its place with what a snapshot has.
    pub fn restore(&mut self, backup: &Path) -> Result<(), LabError> {
        self.kill();
        let data = self.directory.join("etcd");
        fs::remove_dir_all(&data).map_err(LabError::io(format!("deleting {}", data.display())))?;
        let (file, data) = (backup.to_string_lossy(), data.to_string_lossy());
        let peer = "http://127.0.0.1:2380";
        let cluster = format!("lab={peer}");
        let member = ["--name=lab", "--initial-cluster", &cluster, "--initial-advertise-peer-urls", peer];
        self.etcdctl(&[&["snapshot", "restore", &file, "--data-dir", &data], &member[..]].concat())?;
        self.start()
    }

    /// Stops it (SIGSTOP): connections stay open, and nothing answers.
    pub fn freeze(&mut self) -> Result<(), LabError> {
        self.signal(Signal::SIGSTOP)
    }

    /// Lets it go on after [`Etcd::freeze`].
    pub fn thaw(&mut self) -> Result<(), LabError> {
        self.signal(Signal::SIGCONT)
    }

    fn signal(&mut self, signal: Signal) -> Result<(), LabError> {
        self.process.as_mut().ok_or_else(|| LabError::not_so("etcd does not run"))?.signal(signal)
    }

    /// Runs `etcdctl` with these arguments, and returns its standard output.
    pub fn etcdctl(&self, arguments: &[&str]) -> Result<String, LabError> {
        let typed = format!("etcdctl {}", arguments.join(" "));
        let output = self.command(arguments).stdin(Stdio::null()).output().map_err(LabError::io(typed.clone()))?;
        programs::checked(&typed, output)
    }

    fn command(&self, arguments: &[&str]) -> std::process::Command {
        let mut command = self.namespace.command(&[&["etcdctl", "--endpoints", &self.url()], arguments].concat());
        command.env("ETCDCTL_API", "3");
        command
    }

    /// Writes one key, and returns the revision that did.
    pub fn put(&self, key: &str, value: &str) -> Result<u64, LabError> {
        revision_in(&self.etcdctl(&["put", "-w", "json", "--", key, value])?)
    }

    /// Deletes one key.
    pub fn delete(&self, key: &str) -> Result<(), LabError> {
        self.etcdctl(&["del", "--", key]).map(drop)
    }

    /// The value of a key, where it exists.
    pub fn get(&self, key: &str) -> Result<Option<String>, LabError> {
        let found = self.etcdctl(&["get", "--print-value-only", "--", key])?;
        Ok(found.strip_suffix('\n').map(str::to_owned))
    }

    /// Makes all writes in one revision.
    pub fn transaction(&self, writes: &[Write]) -> Result<(), LabError> {
        // No comparisons, the requests of success, none of failure: each part ends with an empty line.
        let mut input = "\n".to_owned();
        for write in writes {
            let line = match write {
                Write::Put(key, value) => format!("put -- {} {}\n", quoted(key), quoted(value)),
                Write::Delete(key) => format!("del -- {}\n", quoted(key)),
            };
            input.push_str(&line);
        }
        input.push_str("\n\n");
        let said = run_with_input("etcdctl txn", self.command(&["txn"]), &input)?;
        if said.starts_with("SUCCESS") { Ok(()) } else { Err(LabError::not_so(format!("etcdctl txn: {said}"))) }
    }

    /// The store's revision.
    pub fn revision(&self) -> Result<u64, LabError> {
        revision_in(&self.etcdctl(&["get", "-w", "json", "--", "revision-of-the-store"])?)
    }

    /// Forgets the history before the store's present revision, which is returned.
    pub fn compact(&self) -> Result<u64, LabError> {
        let revision = self.revision()?;
        self.etcdctl(&["compact", &revision.to_string()])?;
        Ok(revision)
    }
}

/// The revision in an answer of etcdctl's in JSON.
fn revision_in(said: &str) -> Result<u64, LabError> {
    let reply: Value = serde_json::from_str(said).map_err(|error| LabError::not_so(format!("etcdctl: {error}")))?;
    let revision = reply.pointer("/header/revision").and_then(Value::as_u64);
    revision.ok_or_else(|| LabError::not_so(format!("etcdctl names no revision: {said}")))
}

/// A word of etcdctl's transaction language, whose quoting is Go's; what JSON escapes, Go reads.
fn quoted(word: &str) -> String {
    Value::from(word).to_string()
}
