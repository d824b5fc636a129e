use std::{
    io::Write,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::{Command, Output, Stdio},
    sync::Arc,
};

use serde_json::Value;

use super::{Agent, AgentOptions, LabError, namespace::Namespace, programs};

/// A host of the lab: a network namespace on the underlay, and a mount namespace with its own /run.
#[derive(Debug)]
pub struct Host {
    name: String,
    address: Ipv4Addr,
    directory: PathBuf,
    namespace: Arc<Namespace>,
}

impl Host {
    /// The host's interface on the underlay.
    pub const INTERFACE: &'static str = "enp0s8";

    pub(super) fn new(name: String, address: Ipv4Addr, directory: PathBuf) -> Result<Self, LabError> {
        Ok(Self { name, address, directory, namespace: Arc::new(Namespace::new()?) })
    }

    /// The host's name, which is its agent's node name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address on the underlay, which is its VTEP address.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// The process that holds its namespaces: `nsenter -t PID -n -m` enters them.
    pub fn pid(&self) -> u32 {
        self.namespace.pid()
    }

    /// A command on this host, not started yet; `arguments` begin with the program.
    pub fn command(&self, arguments: &[&str]) -> Command {
        self.namespace.command(arguments)
    }

    /// Runs a command on this host, whatever its exit status.
    pub fn output(&self, arguments: &[&str]) -> Result<Output, LabError> {
        self.command(arguments).stdin(Stdio::null()).output().map_err(LabError::io(self.typed(arguments)))
    }

    /// Runs a command on this host and returns its standard output; an exit status other than 0 is an error.
    pub fn run(&self, arguments: &[&str]) -> Result<String, LabError> {
        programs::checked(&self.typed(arguments), self.output(arguments)?)
    }

    /// Runs a command on this host with `input` on its standard input.
    pub fn run_with_input(&self, arguments: &[&str], input: &str) -> Result<String, LabError> {
        run_with_input(&self.typed(arguments), self.command(arguments), input)
    }

    /// What `ip -j` with these arguments says.
    pub fn ip_json(&self, arguments: &[&str]) -> Result<Value, LabError> {
        self.json(&["ip", "-j"], arguments)
    }

    /// What `bridge -j` with these arguments says.
    pub fn bridge_json(&self, arguments: &[&str]) -> Result<Value, LabError> {
        self.json(&["bridge", "-j"], arguments)
    }

    fn json(&self, program: &[&str], arguments: &[&str]) -> Result<Value, LabError> {
        let all = [program, arguments].concat();
        let text = self.run(&all)?;
        if text.trim().is_empty() {
            return Ok(Value::Array(Vec::new()));
        }
        serde_json::from_str(&text).map_err(|error| LabError::not_so(format!("`{}`: {error}", self.typed(&all))))
    }

    /// Makes a network namespace, with its file /run/netns/NAME: the container of an endpoint.
    pub fn add_netns(&self, name: &str) -> Result<(), LabError> {
        self.run(&["ip", "netns", "add", name])?;
        self.run(&["ip", "-n", name, "link", "set", "lo", "up"]).map(drop)
    }

    /// Deletes a network namespace made by [`Host::add_netns`].
    pub fn delete_netns(&self, name: &str) -> Result<(), LabError> {
        self.run(&["ip", "netns", "delete", name]).map(drop)
    }

    /// The arguments that run a command in the network namespace /run/netns/NAME of this host. `ip netns exec` would mount
    /// a sysfs, which not every user namespace may.
    pub fn netns_arguments(name: &str, arguments: &[&str]) -> Vec<String> {
        let enter = ["nsenter".to_owned(), format!("--net=/run/netns/{name}"), "--".to_owned()];
        enter.into_iter().chain(arguments.iter().map(|a| (*a).to_owned())).collect()
    }

    /// Runs a command in the network namespace /run/netns/NAME of this host.
    pub fn in_netns(&self, name: &str, arguments: &[&str]) -> Result<String, LabError> {
        let all = Self::netns_arguments(name, arguments);
        self.run(&all.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Fetches a page from a server on this host: the HTTP status and the body.
    pub fn http_get(&self, server: SocketAddr, path: &str) -> Result<(u16, String), LabError> {
        super::http::get(&self.namespace, server, path)
    }

    /// Starts an agent on this host. It is killed when what is returned is dropped.
    pub fn spawn_agent(&self, options: &AgentOptions) -> Result<Agent, LabError> {
        Agent::start(self, options)
    }

    pub(super) fn namespace(&self) -> Arc<Namespace> {
        Arc::clone(&self.namespace)
    }

    /// Where the logs of this host's agents are.
    pub(super) fn log_path(&self, instance: &str) -> PathBuf {
        self.directory.join(format!("{}-{instance}.log", self.name))
    }

    fn typed(&self, arguments: &[&str]) -> String {
        format!("{}$ {}", self.name, arguments.join(" "))
    }
}

pub(super) fn run_with_input(typed: &str, mut command: Command, input: &str) -> Result<String, LabError> {
    let failed = |what: &str| LabError::io(format!("{what} `{typed}`"));
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed("starting"))?;
    let written = match child.stdin.take() {
        Some(mut stdin) => stdin.write_all(input.as_bytes()),
        None => Ok(()),
    };
    let output = child.wait_with_output().map_err(failed("waiting for"))?;
    let stdout = programs::checked(typed, output)?;
    // A program that fails before it has read everything is reported with its own words, not with the broken pipe.
    written.map_err(failed("writing to"))?;
    Ok(stdout)
}
