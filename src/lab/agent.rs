use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::ExitStatus,
    sync::Arc,
    time::Duration,
};

use nix::sys::signal::Signal;

use super::{
    Host, LabError, Metrics, http,
    namespace::Namespace,
    process::{Process, log_tail},
};

/// How an agent is started. What is not said here is as its command line says.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    /// The `vtepd` program.
    pub vtepd: PathBuf,
    /// The store, as in `--etcd`.
    pub etcd: String,
    /// Tells several agents on one host apart.
    pub instance: String,
    /// The port of `--listen`, on 127.0.0.1 of the host.
    pub port: u16,
    /// Between two full read-backs.
    pub resync: Duration,
    /// The level of its log.
    pub log_level: String,
    /// Whether it is told its VTEP address, the host's; else it finds it in the store, or by the route to it.
    pub vtep: bool,
    /// Further arguments.
    pub arguments: Vec<String>,
}

impl AgentOptions {
    /// What the lab's own agents are started with.
    pub fn new(vtepd: impl Into<PathBuf>, etcd: impl Into<String>) -> Self {
        Self {
            vtepd: vtepd.into(),
            etcd: etcd.into(),
            instance: "default".to_owned(),
            port: 9474,
            resync: Duration::from_secs(60),
            log_level: "info,vtepd=debug".to_owned(),
            vtep: true,
            arguments: Vec::new(),
        }
    }

    /// The command line on this host, the program first.
    pub fn command_line(&self, host: &Host) -> Vec<String> {
        let mut line = vec![self.vtepd.to_string_lossy().into_owned(), "agent".to_owned()];
        let run_dir = match self.instance.as_str() {
            "default" => "/run/vtepd".to_owned(),
            instance => format!("/run/vtepd-{instance}"),
        };
        let options = [
            ("--node", host.name().to_owned()),
            ("--vtep", host.address().to_string()),
            ("--etcd", self.etcd.clone()),
            ("--prefix", "/vtepd/v1".to_owned()),
            ("--listen", self.listen().to_string()),
            ("--run-dir", run_dir),
            ("--resync", duration(self.resync)),
            ("--log-format", "text".to_owned()),
            ("--log-level", self.log_level.clone()),
        ];
        // What is said twice would be refused: an argument of the caller's own replaces ours.
        for (name, value) in options
            .into_iter()
            .filter(|(name, _)| !self.arguments.iter().any(|a| a == name) && (self.vtep || *name != "--vtep"))
        {
            line.extend([name.to_owned(), value]);
        }
        if self.instance != "default" {
            line.extend(["--instance".to_owned(), self.instance.clone()]);
        }
        line.extend(self.arguments.iter().cloned());
        line
    }

    fn listen(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))
    }
}

/// As the command line takes it: whole seconds where it is whole seconds.
fn duration(duration: Duration) -> String {
    match duration.subsec_millis() {
        0 => format!("{}s", duration.as_secs()),
        _ => format!("{}ms", duration.as_millis()),
    }
}

/// An agent that runs on a host of the lab. Dropping it kills it.
#[derive(Debug)]
pub struct Agent {
    node: String,
    namespace: Arc<Namespace>,
    process: Process,
    listen: SocketAddr,
}

impl Agent {
    pub(super) fn start(host: &Host, options: &AgentOptions) -> Result<Self, LabError> {
        let line = options.command_line(host);
        let command = host.command(&line.iter().map(String::as_str).collect::<Vec<_>>());
        let what = format!("the agent on {}", host.name());
        let process = Process::start(&what, command, &host.log_path(&options.instance))?;
        Ok(Self { node: host.name().to_owned(), namespace: host.namespace(), process, listen: options.listen() })
    }

    /// The node that it is the agent of.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Its log, to which every agent of this host and instance appends.
    pub fn log_path(&self) -> &Path {
        self.process.log_path()
    }

    /// The last lines of its log.
    pub fn log_tail(&self, lines: usize) -> String {
        log_tail(self.process.log_path(), lines)
    }

    /// Fails, with the end of its log, where it has ended.
    pub fn check_running(&mut self) -> Result<(), LabError> {
        self.process.check_running()
    }

    /// Asks it to end (SIGTERM) and waits until it has.
    pub fn stop(mut self) -> Result<ExitStatus, LabError> {
        self.process.signal(Signal::SIGTERM)?;
        self.process.wait(Duration::from_secs(10))
    }

    /// Ends it in the middle of whatever it does (SIGKILL).
    pub fn kill(mut self) -> Result<ExitStatus, LabError> {
        self.process.signal(Signal::SIGKILL)?;
        self.process.wait(Duration::from_secs(10))
    }

    /// Sends it a signal, such as SIGSTOP.
    pub fn signal(&mut self, signal: Signal) -> Result<(), LabError> {
        self.process.signal(signal)
    }

    /// What its metrics page says. Fails where it has ended.
    pub fn metrics(&mut self) -> Result<Metrics, LabError> {
        self.check_running()?;
        match http::get(&self.namespace, self.listen, "/metrics")? {
            (200, page) => Ok(Metrics::parse(&page)),
            (status, _) => Err(LabError::not_so(format!("/metrics answers {status}"))),
        }
    }

    /// The HTTP status of `/readyz`, `/healthz` or another page. Fails where the agent has ended.
    pub fn http_status(&mut self, path: &str) -> Result<u16, LabError> {
        self.check_running()?;
        Ok(http::get(&self.namespace, self.listen, path)?.0)
    }
}
