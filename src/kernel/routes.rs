//! Routes of endpoints' interfaces.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{
        RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
    },
};
use nix::{errno::Errno, libc};

use super::{
    decode::ip,
    error::Error,
    socket::{Request, RouteSocket},
    wire::{attribute, attributes, u8_at, u16_at, u32_at},
};
use crate::{
    engine::{Family, ROUTE_PROTOCOL, RouteRow},
    model::Route,
};

/// More routes of a namespace's main table than this are not read: whoever is in it may make a million.
const MOST: usize = 4096;

/// `struct rtmsg` and `struct rtnexthop`: the fixed headers before the attributes.
const RTMSG: usize = 12;
const RTNEXTHOP: usize = 8;
/// `IP6_RT_PRIO_USER`, include/net/ip6_fib.h: what the kernel gives an IPv6 route that comes without a metric.
const METRIC_V6: u32 = 1024;

// include/uapi/linux/rtnetlink.h
const RT_TABLE_MAIN: u8 = 254;
const RT_TABLE_LOCAL: u8 = 255;
const RT_SCOPE_LINK: u8 = 253;
const RTN_UNICAST: u8 = 1;
const RTN_LOCAL: u8 = 2;
const RTPROT_REDIRECT: u8 = 1;
const RTPROT_KERNEL: u8 = 2;
const RTPROT_RA: u8 = 9;
const RTNH_F_ONLINK: u32 = 4;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_MULTIPATH: u16 = 9;
const RTA_CACHEINFO: u16 = 12;
const RTA_TABLE: u16 = 15;
const RTA_PREF: u16 = 20;

/// Makes a route, where none leads there with that metric.
pub(super) fn add(ifindex: u32, route: Route) -> Request {
    Request { message: RouteNetlinkMessage::NewRoute(message(ifindex, route)), flags: NLM_F_CREATE | NLM_F_EXCL }
}

/// Makes a route in place of the first one that leads there with that metric.
pub(super) fn replace(ifindex: u32, route: Route) -> Request {
    Request { message: RouteNetlinkMessage::NewRoute(message(ifindex, route)), flags: NLM_F_CREATE | NLM_F_REPLACE }
}

/// The routes that the kernel makes for an IPv4 address: to itself, to its subnet and to the broadcast address
/// (fib_add_ifaddr, net/ipv4/fib_frontend.c). What is there is left (`EEXIST`).
pub(super) fn of_address(ifindex: u32, net: IpNet) -> Vec<Request> {
    let IpNet::V4(v4) = net else { return Vec::new() };
    let host = |address: Ipv4Addr| IpNet::from(IpAddr::V4(address));
    let local = RT_TABLE_LOCAL;
    let mut routes = vec![(host(v4.addr()), local, RouteType::Local, RouteScope::Host)];
    if v4.prefix_len() < 32 {
        routes.push((net.trunc(), RouteHeader::RT_TABLE_MAIN, RouteType::Unicast, RouteScope::Link));
    }
    if v4.prefix_len() < 31 {
        routes.push((host(v4.broadcast()), local, RouteType::Broadcast, RouteScope::Link));
    }
    let request = |(dst, table, kind, scope)| {
        let mut message = message(ifindex, Route { dst, via: None });
        (message.header.table, message.header.kind, message.header.scope) = (table, kind, scope);
        message.header.protocol = RouteProtocol::Kernel;
        message.attributes.push(RouteAttribute::PrefSource(address(net.addr())));
        Request { message: RouteNetlinkMessage::NewRoute(message), flags: NLM_F_CREATE | NLM_F_APPEND }
    };
    routes.into_iter().map(request).collect()
}

/// Whether packets to an address are taken in, and packets to its subnet leave by its link, as the kernel itself decides it. Whoever
/// made a route to a part of the subnet knows why.
pub(super) fn are_routed(socket: &mut RouteSocket, ifindex: u32, net: IpNet) -> Result<bool, Error> {
    // That of an IPv6 address is made some time after it (addrconf_dad_work, net/ipv6/addrconf.c).
    if net.addr().is_ipv4() && matches(socket, net.addr())?.is_none_or(|found| found.kind != RTN_LOCAL) {
        return Ok(false);
    }
    // Every link has that subnet.
    if matches!(net.addr(), IpAddr::V6(v6) if v6.is_unicast_link_local()) {
        return Ok(true);
    }
    let Some(probe) = net.hosts().take(2).find(|host| *host != net.addr()) else { return Ok(true) };
    if !net.contains(&probe) || net.prefix_len() + 1 >= net.max_prefix_len() {
        return Ok(true);
    }
    let found = matches(socket, probe)?;
    Ok(found.is_some_and(|found| {
        let whole = found.length == net.prefix_len() && found.kind == RTN_UNICAST && found.link == Some(ifindex);
        whole || found.length > net.prefix_len()
    }))
}

/// What the kernel finds on the way to an address.
struct Match {
    kind: u8,
    length: u8,
    link: Option<u32>,
}

/// Looks up the route to an address; `None` where there is none, or one that refuses.
fn matches(socket: &mut RouteSocket, to: IpAddr) -> Result<Option<Match>, Error> {
    let net = IpNet::from(to);
    let mut message = RouteMessage::default();
    message.header.address_family = family(net);
    message.header.destination_prefix_length = net.prefix_len();
    message.header.flags = RouteFlags::FibMatch;
    message.attributes.push(RouteAttribute::Destination(address(to)));
    let request = Request { message: RouteNetlinkMessage::GetRoute(message), flags: 0 };
    let bodies = match socket.call_one(request) {
        Err(Error {
            errno: Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::EINVAL | Errno::EACCES,
            torn: false,
            ..
        }) => {
            return Ok(None);
        }
        other => other?,
    };
    let read = |body: &[u8]| {
        let link = attribute(body.get(RTMSG..)?, RTA_OIF).and_then(|value| u32_at(value, 0));
        Some(Match { kind: u8_at(body, 7)?, length: u8_at(body, 1)?, link })
    };
    Ok(bodies.first().and_then(|body| read(body)))
}

/// Removes a route, whoever made it.
pub(super) fn delete(ifindex: u32, route: Route) -> Request {
    let mut message = message(ifindex, route);
    message.header.protocol = RouteProtocol::Unspec;
    message.header.scope = RouteScope::NoWhere;
    Request { message: RouteNetlinkMessage::DelRoute(message), flags: 0 }
}

fn message(ifindex: u32, Route { dst, via }: Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(dst);
    message.header.destination_prefix_length = dst.prefix_len();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::from(ROUTE_PROTOCOL);
    message.header.kind = RouteType::Unicast;
    let on_link = via.is_none() && dst.addr().is_ipv4();
    message.header.scope = if on_link { RouteScope::Link } else { RouteScope::Universe };
    message.attributes.extend([RouteAttribute::Destination(address(dst.addr())), RouteAttribute::Oif(ifindex)]);
    message.attributes.extend(via.map(|via| RouteAttribute::Gateway(address(via))));
    if dst.addr().is_ipv6() {
        // To delete, none would mean any.
        message.attributes.push(RouteAttribute::Priority(METRIC_V6));
    }
    message
}

const fn family(net: IpNet) -> AddressFamily {
    match net {
        IpNet::V4(_) => AddressFamily::Inet,
        IpNet::V6(_) => AddressFamily::Inet6,
    }
}

const fn address(ip: IpAddr) -> RouteAddress {
    match ip {
        IpAddr::V4(v4) => RouteAddress::Inet(v4),
        IpAddr::V6(v6) => RouteAddress::Inet6(v6),
    }
}

/// The routes out of a link, in the kernel's order; and the families of which other links have default routes.
pub(super) fn of_link(socket: &mut RouteSocket, ifindex: u32) -> Result<(Vec<RouteRow>, BTreeSet<Family>), Error> {
    let mut found: Vec<Found> = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut of_family = Vec::new();
        // Of a table that is longer than anybody needs only our own are looked for: it costs neither memory nor much time then, and
        // what others lead to the same destinations shows when ours cannot be made.
        if !dump(socket, whole(family), &mut of_family)? {
            of_family.clear();
            let mut ours = whole(family);
            ours.header.protocol = RouteProtocol::from(ROUTE_PROTOCOL);
            ours.attributes.push(RouteAttribute::Oif(ifindex));
            if !dump(socket, ours, &mut of_family)? {
                let text = format!("more than {MOST} routes carry our protocol number");
                return Err(Error::new(Errno::E2BIG, text));
            }
            // Whether ours is the only one that leads there is not known: it is replaced by one that goes and one that comes.
            of_family.iter_mut().for_each(|found| found.alone = false);
        }
        found.append(&mut of_family);
    }
    let mut leading: BTreeMap<IpNet, u32> = BTreeMap::new();
    for found in found.iter().filter(|found| found.usual) {
        *leading.entry(found.route.dst).or_default() += 1;
    }
    let own = found.iter().filter(|found| found.usual && !found.kernels_own && found.links == [ifindex]);
    let elsewhere = found.iter().filter(|found| found.route.dst.prefix_len() == 0 && found.links != [ifindex]);
    let elsewhere = elsewhere.map(|found| Family::of(found.route.dst.addr())).collect();
    let row = |found: &Found| RouteRow {
        route: found.route,
        ours: found.ours,
        plain: found.plain,
        alone: found.alone && leading.get(&found.route.dst) == Some(&1),
    };
    Ok((own.map(row).collect(), elsewhere))
}

/// Asks for the main table of a family.
fn whole(family: AddressFamily) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message
}

/// The routes that a dump shows; false where it would show more than [`MOST`].
fn dump(socket: &mut RouteSocket, message: RouteMessage, found: &mut Vec<Found>) -> Result<bool, Error> {
    let dumped = socket.dump_while(RouteNetlinkMessage::GetRoute(message), |_, body| {
        found.extend(decode(body));
        found.len() <= MOST
    });
    match dumped {
        // The table is made with its first route.
        Err(error) if error.errno == Errno::ENOENT && !error.torn => Ok(true),
        other => other,
    }
}

/// A route of the main table.
#[derive(Debug)]
struct Found {
    route: Route,
    /// Out of which links, each once.
    links: Vec<u32>,
    ours: bool,
    plain: bool,
    kernels_own: bool,
    /// It has the metric that ours have.
    usual: bool,
    /// What else leads there is known.
    alone: bool,
}

fn decode(body: &[u8]) -> Option<Found> {
    let (family, length, tos) = (i32::from(u8_at(body, 0)?), u8_at(body, 1)?, u8_at(body, 3)?);
    let (table, protocol, scope) = (u8_at(body, 4)?, u8_at(body, 5)?, u8_at(body, 6)?);
    let (kind, flags) = (u8_at(body, 7)?, u32_at(body, 8)?);
    let v4 = family == libc::AF_INET;
    let unspecified: IpAddr = if v4 { [0; 4].into() } else { [0; 16].into() };
    let (mut dst, mut via, mut metric, mut links) = (unspecified, None, 0, Vec::new());
    let mut plain = tos == 0 && kind == RTN_UNICAST && flags & RTNH_F_ONLINK == 0;
    for (kind, value) in attributes(body.get(RTMSG..)?) {
        match kind {
            RTA_DST => dst = ip(value)?,
            RTA_GATEWAY => via = ip(value),
            RTA_OIF => links.extend(u32_at(value, 0)),
            RTA_PRIORITY => metric = u32_at(value, 0)?,
            RTA_MULTIPATH => {
                plain = false;
                links.extend(next_hops(value));
            }
            RTA_TABLE | RTA_CACHEINFO => {}
            RTA_PREF => plain &= u8_at(value, 0) == Some(0),
            _ => plain = false,
        }
    }
    links.sort_unstable();
    links.dedup();
    plain &= !v4 || scope == if via.is_none() { RT_SCOPE_LINK } else { 0 };
    let usual = metric == if v4 { 0 } else { METRIC_V6 };
    let route = Route { dst: IpNet::new(dst, length).ok()?, via };
    let kernels_own = matches!(protocol, RTPROT_REDIRECT | RTPROT_KERNEL | RTPROT_RA);
    let ours = protocol == ROUTE_PROTOCOL;
    (table == RT_TABLE_MAIN).then_some(Found { route, links, ours, plain, kernels_own, usual, alone: true })
}

/// The links of a route that has several next hops.
fn next_hops(mut rest: &[u8]) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(rest, 0)?);
        let ifindex = u32_at(rest, 4)?;
        rest = if length < RTNEXTHOP { &[] } else { rest.get(length.next_multiple_of(4)..).unwrap_or_default() };
        Some(ifindex)
    })
}
