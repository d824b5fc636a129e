use std::{fmt, net::IpAddr};

use ipnet::IpNet;

/// A route of an endpoint: out of its interface, in the main table of its namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// Where it leads, host bits clear.
    pub dst: IpNet,
    /// The next hop, of the same family; `None` where the destinations are on the link themselves.
    pub via: Option<IpAddr>,
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.via {
            Some(via) => write!(f, "{} via {via}", self.dst),
            None => write!(f, "{}", self.dst),
        }
    }
}
