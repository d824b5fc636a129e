//! The value of `endpoint/<nid>/<eid>`.

use std::{net::IpAddr, path::PathBuf};

use super::{MAX_VALUE, flag, route::static_route, text};
use crate::{
    model::{Mac, Route},
    schema::{
        Reason, Rejected,
        json::{Field, Fields},
        native::{bounded, checked_unicast, endpoint_mac},
    },
};

/// Where Docker binds its sandboxes, and how many characters of their identifiers it takes for it.
const NETNS_DIR: &str = "/var/run/docker/netns";
const SHORT_ID: usize = 12;
/// What an interface's name begins with where the record does not say.
const DEFAULT_PREFIX: &str = "eth";
/// With its number the name must fit into the kernel's 15 characters.
const MAX_PREFIX: usize = 10;
/// The most static routes of an endpoint: one to each other subnet of the largest network, and some more.
const MAX_ROUTES: usize = 256;

/// What the record of an endpoint says. Docker writes it early and completes it later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The IPv4 address, then the IPv6 one; empty without the first, which says on which VNI the endpoint is.
    pub ip: Vec<IpAddr>,
    /// The MAC address.
    pub mac: Option<Mac>,
    /// The address of the VTEP that it is behind.
    pub locator: Option<IpAddr>,
    /// The network namespace of its container, once it has one.
    pub netns: Option<PathBuf>,
    /// What the name of its interface begins with.
    pub prefix: String,
    /// Routes of its own, the first to each destination.
    pub routes: Vec<Route>,
    /// It asks for no interface to the outside.
    pub no_gateway: bool,
}

/// Decodes an endpoint.
///
/// # Errors
/// The value is no valid endpoint.
pub fn endpoint(key: &[u8], value: &[u8]) -> Result<Endpoint, Rejected> {
    let mut fields = bounded(key, value, MAX_VALUE)?.object()?;
    let locator = match text(&mut fields, "locator")? {
        Some((field, _)) => {
            let address = checked_unicast(&field, field.parsed("an IP address")?)?;
            if address.is_loopback() {
                return Err(field.reject(Reason::Value, "is a loopback address: no other host reaches it"));
            }
            Some(address)
        }
        None => None,
    };
    let netns = match text(&mut fields, "sandbox")? {
        Some((field, id)) => {
            let short: String = id.chars().take(SHORT_ID).collect();
            if !short.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-')) {
                return Err(field.reject(Reason::Value, "is not a sandbox's identifier"));
            }
            Some(PathBuf::from(NETNS_DIR).join(short))
        }
        None => None,
    };
    let (routes, no_gateway) = match fields.take("joinInfo") {
        Some(join) => joined(join)?,
        None => (Vec::new(), false),
    };
    let prefix = DEFAULT_PREFIX.to_owned();
    let mut endpoint = Endpoint { ip: Vec::new(), mac: None, locator, netns, prefix, routes, no_gateway };
    let Some(interface) = fields.take("ep_iface") else { return Ok(endpoint) };
    let mut interface = interface.object()?;
    if let Some(ip) = address(&mut interface, "addr")? {
        endpoint.ip.push(ip);
        endpoint.ip.extend(address(&mut interface, "addrv6")?.filter(|other| *other != ip));
    }
    endpoint.mac = text(&mut interface, "mac")?.map(|(field, _)| endpoint_mac(&field)).transpose()?;
    if let Some((field, prefix)) = text(&mut interface, "dstPrefix")? {
        if prefix.len() > MAX_PREFIX || !prefix.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-')) {
            return Err(field.reject(Reason::Value, "is not the beginning of an interface's name"));
        }
        endpoint.prefix = prefix;
    }
    Ok(endpoint)
}

/// Static routes, and whether there is to be no gateway.
fn joined(join: Field<'_>) -> Result<(Vec<Route>, bool), Rejected> {
    let mut join = join.object()?;
    let mut routes: Vec<Route> = Vec::new();
    let list = join.take("StaticRoutes").map_or(Ok(Vec::new()), |list| list.list_of(0, MAX_ROUTES))?;
    for item in list {
        let route = static_route(item)?;
        routes.extend(route.filter(|route| !routes.iter().any(|other| other.dst == route.dst)));
    }
    Ok((routes, flag(&mut join, "disableGatewayService")?))
}

/// An address that may stand with its prefix length.
fn address(fields: &mut Fields<'_>, name: &str) -> Result<Option<IpAddr>, Rejected> {
    let Some((field, text)) = text(fields, name)? else { return Ok(None) };
    let ip: Option<IpAddr> = text.split('/').next().and_then(|ip| ip.parse().ok());
    let ip = ip.ok_or_else(|| field.reject(Reason::Value, "is not an address of the form 10.0.0.2/24"))?;
    let ip = checked_unicast(&field, ip)?;
    if ip.is_loopback() {
        return Err(field.reject(Reason::Value, "is a loopback address"));
    }
    Ok(Some(ip))
}
