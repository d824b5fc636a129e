use std::{
    collections::BTreeMap,
    fmt,
    net::IpAddr,
    path::{Path, PathBuf},
};

use ipnet::IpNet;

use super::{Mac, Name, Vni};

/// A host that takes part: the record `nodes/<node>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// The underlay address of its VTEP.
    pub vtep: IpAddr,
}

/// One subnet of a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subnet {
    /// The network address and prefix length, host bits clear.
    pub cidr: IpNet,
    /// The address that the bridge holds on every node.
    pub gateway: IpAddr,
    /// The VXLAN segment that carries it; several subnets may share one.
    pub vni: Vni,
}

/// A network: the record `networks/<network>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// At least one.
    pub subnets: Vec<Subnet>,
    /// MTU of the overlay in bytes; `None` follows the underlay link.
    pub mtu: Option<u32>,
    /// UDP port of the VXLAN tunnel.
    pub port: u16,
    /// No way outside: endpoints get no second interface.
    pub internal: bool,
    /// Encryption is asked for.
    pub secure: bool,
    /// Broadcast and unknown traffic is replicated to all VTEPs.
    pub flood: bool,
    /// Ports accept only their endpoint's addresses.
    pub spoof_guard: bool,
    /// The operator's own words; nothing reads them.
    pub labels: BTreeMap<String, String>,
    /// Ranges without a segment or gateway of their own: an address goes with the endpoint's others. Only Docker's layout has
    /// them, for IPv6.
    pub unbound: Vec<IpNet>,
    /// Ranges whose VNI is not allocated yet: endpoints in them wait. Only Docker's layout has them.
    pub unallocated: Vec<IpNet>,
}

/// Where an endpoint's interface goes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Netns {
    /// The network namespace at this path.
    Path(PathBuf),
    /// The host's own.
    Host,
}

impl Netns {
    /// The path, where it is one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Path(path) => Some(path),
            Self::Host => None,
        }
    }
}

impl fmt::Display for Netns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::Host => f.write_str("host"),
        }
    }
}

/// Any text is a path: the host's own namespace is never meant.
impl<'p> From<&'p str> for Netns {
    fn from(path: &'p str) -> Self {
        Self::Path(path.into())
    }
}

impl From<PathBuf> for Netns {
    fn from(path: PathBuf) -> Self {
        Self::Path(path)
    }
}

/// An endpoint: the record `endpoints/<network>/<node>/<endpoint>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its addresses, at least one, at most one per subnet.
    pub ip: Vec<IpAddr>,
    /// Its MAC address; `None` derives it from the first IPv4 address, else the first IPv6 one.
    pub mac: Option<Mac>,
    /// The network namespace to wire it into; `None` leaves it to somebody else (a VM, an appliance).
    pub netns: Option<Netns>,
    /// Name of the interface in that namespace.
    pub ifname: String,
}

impl Endpoint {
    /// The MAC address that is in force: the given one, or the one derived from the addresses.
    pub fn effective_mac(&self) -> Option<Mac> {
        let first_v4 = self.ip.iter().find(|ip| ip.is_ipv4());
        self.mac.or_else(|| first_v4.or(self.ip.first()).map(|ip| Mac::from_ip(*ip)))
    }
}

/// An endpoint's identity within its network.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointId {
    /// The node that it lives on.
    pub node: Name,
    /// Its name there.
    pub endpoint: Name,
}

impl fmt::Display for EndpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.node, self.endpoint)
    }
}

impl fmt::Debug for EndpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
