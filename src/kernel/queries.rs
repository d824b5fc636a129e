//! Reads.

use std::{collections::BTreeSet, net::IpAddr};

use nix::errno::Errno;

use super::{
    decode::{self, Row},
    encode,
    error::Error,
    routes,
    socket::{Bodies, MOST_MESSAGES, RouteSocket},
};
use crate::engine::{Address, Answer, FdbPoint, InnerAt, InnerLink, Link, LinkRef, Setting};

/// More addresses of one link than this are not read: whoever is in an endpoint's namespace may make as many as he likes.
const MOST_ADDRESSES: usize = 4096;

/// All links and addresses.
pub(super) fn links(socket: &mut RouteSocket) -> Result<Answer, Error> {
    let mut links = Vec::new();
    socket.dump(encode::dump_links(), |_, body| links.extend(decode::link(body)))?;
    let down: BTreeSet<u32> = links.iter().filter(|link: &&Link| !link.up).map(|link| link.ifindex).collect();
    for link in &mut links {
        if link.master.is_some_and(|bridge| down.contains(&bridge)) {
            link.off.remove(&Setting::State);
        }
    }
    let mut addresses = addresses(socket, None)?;
    let up: BTreeSet<u32> = links.iter().filter(|link| link.up).map(|link| link.ifindex).collect();
    look_at_routes(socket, &mut addresses, |ifindex| up.contains(&ifindex))?;
    Ok(Answer::Links(links, addresses))
}

/// One link and its addresses.
pub(super) fn link(socket: &mut RouteSocket, link: &LinkRef) -> Result<Answer, Error> {
    Ok(match one_link(socket, link)? {
        Some((link, addresses)) => Answer::Links(vec![link], addresses),
        None => Answer::Links(Vec::new(), Vec::new()),
    })
}

/// One link and its addresses, if it is there.
pub(super) fn one_link(socket: &mut RouteSocket, link: &LinkRef) -> Result<Option<(Link, Vec<Address>)>, Error> {
    let bodies = match socket.call_one(encode::get_link(link)) {
        Err(error) if error.errno == Errno::ENODEV => return Ok(None),
        other => other?,
    };
    let Some(mut link) = bodies.first().and_then(|body| decode::link(body)) else { return Ok(None) };
    if link.off.contains(&Setting::State) && !bridge_is_up(socket, link.master)? {
        link.off.remove(&Setting::State);
    }
    match addresses(socket, Some(link.ifindex)) {
        // The link went away between the two.
        Err(error) if error.errno == Errno::ENODEV => Ok(None),
        other => {
            let mut addresses = other?;
            look_at_routes(socket, &mut addresses, |_| link.up)?;
            Ok(Some((link, addresses)))
        }
    }
}

/// Says of our addresses on links that are up whether their routes stand.
fn look_at_routes(
    socket: &mut RouteSocket,
    addresses: &mut [Address],
    is_up: impl Fn(u32) -> bool,
) -> Result<(), Error> {
    for address in addresses.iter_mut().filter(|address| address.ours && is_up(address.ifindex)) {
        address.routed = routes::are_routed(socket, address.ifindex, address.net)?;
    }
    Ok(())
}

/// Whether a port's bridge is up: else the bridge itself has closed the port.
fn bridge_is_up(socket: &mut RouteSocket, master: Option<u32>) -> Result<bool, Error> {
    let Some(master) = master else { return Ok(false) };
    match socket.call_one(encode::get_link(&LinkRef::Index(master))) {
        Err(error) if error.errno == Errno::ENODEV => Ok(false),
        other => Ok(other?.first().and_then(|body| decode::link(body)).is_some_and(|bridge| bridge.up)),
    }
}

fn addresses(socket: &mut RouteSocket, ifindex: Option<u32>) -> Result<Vec<Address>, Error> {
    let mut addresses: Vec<Address> = Vec::new();
    let whole = socket.dump_while(encode::dump_addresses(ifindex), |_, body| {
        let of_link = |address: &Address| ifindex.is_none_or(|ifindex| address.ifindex == ifindex);
        addresses.extend(decode::address(body).filter(of_link));
        ifindex.is_none() || addresses.len() <= MOST_ADDRESSES
    })?;
    if !whole {
        let text = format!("the link has more than {MOST_ADDRESSES} addresses");
        return Err(Error::new(Errno::E2BIG, text));
    }
    Ok(addresses)
}

/// The container's end of an endpoint, if there is a link.
pub(super) fn inner_link(socket: &mut RouteSocket, at: &InnerAt) -> Result<Option<InnerLink>, Error> {
    let link = at.ifindex.map_or_else(|| LinkRef::Name(at.ifname.clone()), LinkRef::Index);
    let Some((link, addresses)) = one_link(socket, &link)? else { return Ok(None) };
    let (routes, defaults_elsewhere) = routes::of_link(socket, link.ifindex)?;
    Ok(Some(InnerLink { link, addresses, routes, defaults_elsewhere }))
}

/// The rows of a link's own table and of its bridge's that point to it.
pub(super) fn fdb(socket: &mut RouteSocket, ifindex: u32) -> Result<Answer, Error> {
    let mut rows = Vec::new();
    socket.dump(encode::dump_fdb(ifindex), |_, body| match decode::row(body) {
        Some(Row::Fdb(row)) if row.ifindex == ifindex => rows.push(row),
        _ => {}
    })?;
    Ok(Answer::Fdb(rows))
}

/// The newest rows of a VXLAN device, `most` of them and what came in the same answer; all where a dump does not begin with the
/// newest. The socket is given up: the rest of the dump is never asked for.
pub(super) fn newest_fdb(mut socket: RouteSocket, ifindex: u32, most: usize) -> Result<Answer, Error> {
    let mut rows = Vec::new();
    let newest_first = dumps_newest_first();
    socket.dump_while(encode::dump_fdb(ifindex), |_, body| {
        match decode::row(body) {
            Some(Row::Fdb(row)) if row.ifindex == ifindex && !row.bridge => rows.push(row),
            _ => {}
        }
        !newest_first || rows.len() < most
    })?;
    Ok(Answer::Fdb(rows))
}

/// Whether a dump of a VXLAN device shows its newest row first: since Linux 6.16, where all rows are in one list to whose head
/// new ones are added (vxlan_fdb_insert, drivers/net/vxlan/vxlan_core.c).
fn dumps_newest_first() -> bool {
    let Ok(name) = nix::sys::utsname::uname() else { return false };
    let release = name.release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else { return false };
    (major, minor) >= (6, 16)
}

/// The neighbour entries of a link.
pub(super) fn neighbours(socket: &mut RouteSocket, ifindex: u32) -> Result<Answer, Error> {
    let mut entries = Vec::new();
    socket.dump(encode::dump_neighbours(ifindex), |_, body| match decode::row(body) {
        Some(Row::Neighbour(entry)) if entry.ifindex == ifindex => entries.push(entry),
        _ => {}
    })?;
    Ok(Answer::Neighbours(entries))
}

/// These rows, as far as they are there.
pub(super) fn fdb_rows(socket: &mut RouteSocket, points: &[FdbPoint]) -> Result<Answer, Error> {
    let mut rows = Vec::new();
    for some in points.chunks(MOST_MESSAGES) {
        let requests: Vec<_> = some.iter().map(|point| encode::get_fdb(*point)).collect();
        let results = socket.call(&requests);
        for (point, result) in some.iter().zip(&results) {
            // A bridge that is not there is an invalid master to the kernel; said as of any other link, it is ENODEV.
            if point.bridge && matches!(result, Err(error) if error.errno == Errno::EINVAL) {
                socket.call_one(encode::get_link(&LinkRef::Index(point.ifindex)))?;
            }
        }
        for found in present(results) {
            rows.extend(found?.iter().find_map(|body| match decode::row(body) {
                Some(Row::Fdb(row)) => Some(row),
                _ => None,
            }));
        }
    }
    Ok(Answer::Fdb(rows))
}

/// These entries, as far as they are there.
pub(super) fn neighbour_rows(socket: &mut RouteSocket, points: &[(u32, IpAddr)]) -> Result<Answer, Error> {
    let mut entries = Vec::new();
    for some in points.chunks(MOST_MESSAGES) {
        let requests: Vec<_> = some.iter().map(|(ifindex, ip)| encode::get_neighbour(*ifindex, *ip)).collect();
        for found in present(socket.call(&requests)) {
            entries.extend(found?.iter().find_map(|body| match decode::row(body) {
                Some(Row::Neighbour(entry)) => Some(entry),
                _ => None,
            }));
        }
    }
    Ok(Answer::Neighbours(entries))
}

/// Leaves out what the kernel says is not there. That its link is not there (ENODEV) is another matter.
fn present(results: Vec<Result<Bodies, Error>>) -> impl Iterator<Item = Result<Bodies, Error>> {
    results.into_iter().filter(|result| !matches!(result, Err(error) if error.errno == Errno::ENOENT && !error.torn))
}
