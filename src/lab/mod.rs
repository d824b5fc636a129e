//! Hosts in private namespaces with an etcd of their own: what the demo and the end-to-end tests run on.
//!
//! ```text
//!   docker-node1                      docker-node2            each: a network and a mount namespace, its own /run
//!   enp0s8 192.168.205.10             enp0s8 192.168.205.11
//!        |                                 |
//!   -----+------------- underlay ----------+-----             a namespace with a bridge: 192.168.205.1, etcd on 2379
//! ```
//!
//! A [`Lab`] makes every namespace itself and touches no other: its caller needs root, or to be in a user namespace
//! ([`private_command`], [`in_private_namespaces`]). Dropping it ends every process and deletes every file.

mod agent;
mod error;
mod etcd;
mod host;
mod http;
mod isolation;
mod metrics;
mod namespace;
mod process;
mod programs;
mod wait;

use std::{
    env, fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use nix::unistd::mkdtemp;

pub use agent::{Agent, AgentOptions};
pub use error::LabError;
pub use etcd::{Etcd, Write};
pub use host::Host;
pub use isolation::{in_private_namespaces, is_private, private_command};
pub use metrics::{Metrics, Series};
pub use programs::require_programs;
pub use wait::wait_for;

use namespace::Namespace;

const UNDERLAY: [u8; 3] = [192, 168, 205];
const FIRST_HOST: u8 = 10;
const MOST_HOSTS: usize = 100;
/// Of the first hosts, as in the walkthrough; the others follow the address.
const HARDWARE_ADDRESSES: [&str; 2] = ["08:00:27:76:c9:85", "08:00:27:7c:fe:ad"];

/// Hosts on one underlay, and an etcd that they all reach.
#[derive(Debug)]
pub struct Lab {
    /// docker-node1, docker-node2, …
    pub hosts: Vec<Host>,
    /// The store.
    pub etcd: Etcd,
    underlay: Arc<Namespace>,
    directory: Directory,
}

impl Lab {
    /// Two hosts.
    pub fn new() -> Result<Self, LabError> {
        Self::with_hosts(2)
    }

    /// As many hosts as said: docker-node1 at 192.168.205.10, docker-node2 at .11, and so on.
    pub fn with_hosts(count: usize) -> Result<Self, LabError> {
        if count > MOST_HOSTS {
            return Err(LabError::not_so(format!("a lab has at most {MOST_HOSTS} hosts")));
        }
        require_programs()?;
        let directory = Directory::new()?;
        let underlay = Arc::new(Namespace::new()?);
        let address = |last| Ipv4Addr::from([UNDERLAY[0], UNDERLAY[1], UNDERLAY[2], last]);
        let mut batch = format!(
            "link add underlay type bridge stp_state 0 mcast_snooping 0\n\
             link set underlay addrgenmode none up\naddress add {}/24 dev underlay\n",
            address(1)
        );
        let mut hosts = Vec::with_capacity(count);
        for (number, last) in (1..=count).zip(FIRST_HOST..) {
            let host = Host::new(format!("docker-node{number}"), address(last), directory.path.clone())?;
            let derived = format!("08:00:27:00:00:{last:02x}");
            let mac = HARDWARE_ADDRESSES.get(number - 1).copied().unwrap_or(&derived);
            batch.push_str(&format!(
                "link add node{number} type veth peer name {} address {mac} netns {}\n\
                 link set node{number} master underlay addrgenmode none up\n",
                Host::INTERFACE,
                host.pid(),
            ));
            hosts.push(host);
        }
        host::run_with_input("ip -batch -", underlay.command(&["ip", "-batch", "-"]), &batch)?;
        for host in &hosts {
            let interface = Host::INTERFACE;
            let batch = format!(
                "link set {interface} addrgenmode none up\naddress add {}/24 dev {interface}\n",
                host.address()
            );
            host.run_with_input(&["ip", "-batch", "-"], &batch)?;
        }
        let etcd = Etcd::start_in(Arc::clone(&underlay), address(1), directory.path.clone())?;
        Ok(Self { hosts, etcd, underlay, directory })
    }

    /// Where logs and data are. It is deleted on drop.
    pub fn directory(&self) -> &Path {
        &self.directory.path
    }

    /// Every process that the lab itself runs: what holds namespaces, and etcd.
    pub fn pids(&self) -> Vec<u32> {
        self.hosts.iter().map(Host::pid).chain([self.underlay.pid()]).chain(self.etcd.pid()).collect()
    }

    /// What an agent of this lab is started with.
    pub fn agent_options(&self, vtepd: impl Into<PathBuf>) -> AgentOptions {
        AgentOptions::new(vtepd, self.etcd.url())
    }

    /// Runs a command in the underlay namespace, as the outside world sees the hosts.
    pub fn run_on_underlay(&self, arguments: &[&str]) -> Result<String, LabError> {
        host::run_with_input(&arguments.join(" "), self.underlay.command(arguments), "")
    }

    /// Cuts a host off the underlay, or connects it again. Returns once both ends of its cable have noticed.
    pub fn set_connected(&self, host: &Host, connected: bool) -> Result<(), LabError> {
        let port = format!("node{}", host.name().trim_start_matches("docker-node"));
        let state = if connected { "up" } else { "down" };
        self.run_on_underlay(&["ip", "link", "set", &port, state])?;
        // The kernel tells carriers with a delay of up to a second, each end on its own; until then the port forwards nothing.
        wait_for("both ends of the cable", Duration::from_secs(10), || {
            let carrier = host.run(&["ip", "link", "show", "dev", Host::INTERFACE])?.contains("LOWER_UP");
            let routed = !host.run(&["ip", "route", "show", "dev", Host::INTERFACE])?.contains("linkdown");
            let ports = self.run_on_underlay(&["bridge", "link", "show", "dev", &port])?;
            let forwarding = ports.contains("state forwarding");
            if [carrier, routed, forwarding] == [connected; 3] {
                Ok(())
            } else {
                let said = format!("carrier: {carrier}, route alive: {routed}, port forwarding: {forwarding}");
                Err(LabError::not_so(said))
            }
        })
    }
}

/// A directory of our own under the system's temporary one, deleted on drop.
#[derive(Debug)]
struct Directory {
    path: PathBuf,
}

impl Directory {
    fn new() -> Result<Self, LabError> {
        let template = env::temp_dir().join("vtepd-lab-XXXXXX");
        let path = mkdtemp(&template).map_err(LabError::errno(format!("making {}", template.display())))?;
        Ok(Self { path })
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // What cannot be deleted is only temporary files.
        let _ = fs::remove_dir_all(&self.path);
    }
}
