//! `vtepd agent`

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use clap::{Args, builder::BoolishValueParser};
use ipnet::{Ipv4Net, Ipv6Net};
use tokio::signal::unix::{SignalKind, signal};

use super::{
    checks::{absolute, vtep},
    log::Log,
    options::{DEFAULT_SUBNET, Instance, Records, duration, gateway_subnet, gateway_subnet6, percent},
    rights,
    usage::Failure,
};
use crate::{
    agent::{self, Settings},
    model::Name,
};

/// The agent's options.
#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// This node's name in the store; the host's name where it is not given
    #[arg(long, env = "VTEPD_NODE")]
    node: Option<Name>,
    /// This node's VTEP address on the underlay
    #[arg(long, env = "VTEPD_VTEP", value_parser = vtep)]
    vtep: Option<IpAddr>,
    #[command(flatten)]
    records: Records,
    /// Where metrics and health are served
    #[arg(long, env = "VTEPD_LISTEN", default_value = "127.0.0.1:9474")]
    listen: SocketAddr,
    /// Beneath which directories endpoints' namespaces may be; may be given several times
    #[arg(long = "netns-root", env = "VTEPD_NETNS_ROOT", value_delimiter = ',', value_parser = absolute)]
    netns_root: Vec<PathBuf>,
    /// IPv4 subnet of the bridge on the host that leads outside; the bridge has its first address
    #[arg(long, env = "VTEPD_GATEWAY_SUBNET", default_value_t = DEFAULT_SUBNET, value_parser = gateway_subnet)]
    gateway_subnet: Ipv4Net,
    /// IPv6 subnet of that bridge; without it only IPv4 leads outside
    #[arg(long, env = "VTEPD_GATEWAY_SUBNET6", value_parser = gateway_subnet6)]
    gateway_subnet6: Option<Ipv6Net>,
    /// Use a bridge of that name although it is somebody else's
    #[arg(long, env = "VTEPD_ADOPT_GATEWAY_BRIDGE", value_parser = BoolishValueParser::new())]
    adopt_gateway_bridge: bool,
    /// Let endpoints with "netns":"host" have an interface in the host's own namespace
    #[arg(long, env = "VTEPD_ALLOW_HOST_ENDPOINTS", value_parser = BoolishValueParser::new())]
    allow_host_endpoints: bool,
    /// How often the whole kernel state is read again without a reason
    #[arg(long, env = "VTEPD_RESYNC", default_value = "60s", value_parser = duration)]
    resync: Duration,
    /// Deletes in one revision of more than this part of a network's endpoints, and of 50 or more, are held; 100% holds none
    #[arg(long, env = "VTEPD_MAX_REMOVAL", default_value = "50%", value_parser = percent)]
    max_removal: u8,
    #[command(flatten)]
    instance: Instance,
    #[command(flatten)]
    log: Log,
}

impl Arguments {
    /// Whether what is told goes together, and this process may do it.
    pub(super) fn check(&self) -> Result<(), String> {
        self.records.check()?;
        if self.node.is_none() {
            host_name()?;
        }
        rights::check().map_err(|error| format!("agent {error}"))
    }

    /// Starts logging.
    pub(super) fn start_log(&self) -> Result<(), String> {
        self.log.start()
    }

    /// What is told, in the agent's terms.
    pub(super) fn settings(self) -> Result<Settings, String> {
        let etcd = self.records.etcd()?;
        let node = match self.node {
            Some(node) => node,
            None => host_name()?,
        };
        let default_roots = || Settings::NETNS_ROOTS.map(PathBuf::from).to_vec();
        Ok(Settings {
            node,
            vtep: self.vtep,
            etcd: etcd.endpoints,
            prefix: self.records.prefix,
            docker_prefix: self.records.docker_prefix,
            listen: self.listen,
            with_outside: self.instance.has_outside(),
            owner: self.instance.owner(self.gateway_subnet, self.gateway_subnet6),
            adopt_gateway_bridge: self.adopt_gateway_bridge,
            netns_roots: if self.netns_root.is_empty() { default_roots() } else { self.netns_root },
            host_endpoints: self.allow_host_endpoints,
            resync: self.resync,
            max_removal: self.max_removal,
            user: etcd.user,
            tls: etcd.tls,
        })
    }
}

fn host_name() -> Result<Name, String> {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").map_err(|error| format!("the host's name: {error}"))?;
    let name = name.trim();
    name.parse().map_err(|error| format!("the host's name {name:?} {error}; give --node"))
}

/// Runs the agent until SIGTERM or SIGINT.
pub(super) fn run(arguments: Arguments) -> ExitCode {
    let outcome = arguments.log.start().map_err(Failure::from).and_then(|()| {
        let settings = arguments.settings()?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .map_err(|error| format!("cannot start: {error}"))?;
        runtime.block_on(async {
            let shutdown = shutdown().map_err(|error| format!("cannot listen for signals: {error}"))?;
            agent::run(settings, shutdown).await.map_err(|error| {
                let text = error.to_string();
                if error.is_about_settings() { Failure::Settings(text) } else { Failure::Failed(text) }
            })
        })
    });
    outcome.map_or_else(Failure::exit, |()| ExitCode::SUCCESS)
}

fn shutdown() -> std::io::Result<impl Future<Output = ()>> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
