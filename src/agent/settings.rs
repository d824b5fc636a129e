use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::{Duration, Instant},
};

use super::{Error, board::Board, network::Shared, recent::Recent};
use crate::{
    desired::OutsideConfig,
    etcd::{self, Tls, User},
    kernel::DEFAULT_NETNS_DIR,
    metrics::Metrics,
    model::Name,
};

/// Whose objects on this host are meant: one of several agents, running or not.
#[derive(Clone, Debug)]
pub struct Owner {
    /// Which of several agents on this host.
    pub instance: String,
    /// Where its lock is.
    pub run_dir: PathBuf,
    /// Link group of all its devices.
    pub link_group: u32,
    /// Bridge and subnets of its way outside.
    pub outside: OutsideConfig,
}

impl Owner {
    /// The socket on which the agent of this instance serves its pages to root on this host.
    pub fn socket(&self) -> PathBuf {
        self.run_dir.join(format!("{}.sock", self.instance))
    }

    /// What all networks of this owner share.
    pub(super) fn shared(&self, netns_roots: Vec<PathBuf>, resync: Duration, adopt: bool) -> Result<Shared, Error> {
        Ok(Shared {
            instance: self.instance.clone(),
            netns_dir: DEFAULT_NETNS_DIR.into(),
            netns_roots,
            group: self.link_group,
            outside: self.outside.clone(),
            adopt,
            resync,
            metrics: Metrics::new()?,
            board: Board::default(),
            recent: Recent::default(),
            origin: Instant::now(),
        })
    }
}

/// What an operator tells the agent (DESIGN, section 8).
#[derive(Clone, Debug)]
pub struct Settings {
    /// This node's name in the store.
    pub node: Name,
    /// This node's VTEP address; `None` takes the record's, or the source address of the route to etcd.
    pub vtep: Option<IpAddr>,
    /// URLs of etcd's members.
    pub etcd: Vec<String>,
    /// The prefix of all keys.
    pub prefix: String,
    /// The prefix of Docker's layout, where that is read as well.
    pub docker_prefix: Option<String>,
    /// Where metrics and health are served.
    pub listen: SocketAddr,
    /// Beneath which directories an endpoint's namespace may be.
    pub netns_roots: Vec<PathBuf>,
    /// Whether endpoints of this node may be in the host's own namespace.
    pub host_endpoints: bool,
    /// Whose objects on this host are meant.
    pub owner: Owner,
    /// Whether endpoints get a way outside at all.
    pub with_outside: bool,
    /// A bridge of the gateway bridge's name is taken although it is somebody else's.
    pub adopt_gateway_bridge: bool,
    /// How often the whole kernel state is read again.
    pub resync: Duration,
    /// Deletes in one revision of more than so many percent of a network's endpoints are held.
    pub max_removal: u8,
    /// etcd user.
    pub user: Option<User>,
    /// TLS material for etcd.
    pub tls: Option<Tls>,
}

impl Settings {
    /// The namespace roots when none are given.
    pub const NETNS_ROOTS: [&str; 4] = ["/run/netns", "/var/run/netns", "/run/docker/netns", "/var/run/docker/netns"];

    /// How many kernel resyncs there are to one audit of the store, which costs all its keys.
    const RESYNCS_PER_AUDIT: u32 = 5;

    /// Where this agent's own socket is: the pages for root on this host, whatever `listen` says.
    pub(super) fn socket(&self) -> PathBuf {
        self.owner.socket()
    }

    /// How to follow the records below the native prefix.
    pub(super) fn etcd(&self) -> etcd::Config {
        etcd::Config {
            user: self.user.clone(),
            tls: self.tls.clone(),
            audit: self.resync * Self::RESYNCS_PER_AUDIT,
            ..etcd::Config::new(self.etcd.clone(), &self.prefix)
        }
    }

    /// The directories in which namespaces come and go.
    pub(super) fn watched_dirs(&self) -> Vec<PathBuf> {
        let own = PathBuf::from(DEFAULT_NETNS_DIR);
        let roots = self.netns_roots.iter().filter(|root| **root != own).cloned();
        [own.clone()].into_iter().chain(roots).collect()
    }
}
