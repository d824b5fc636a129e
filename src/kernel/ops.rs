//! Operations. Consecutive ones on rows go in batches, links are removed and tables changed several at a time; links and addresses are made
//! one by one, since what they need is opened for them and closed again.

use std::os::fd::AsFd as _;

use ipnet::IpNet;
use nix::errno::Errno;

use super::{
    NetworkKernel, encode,
    error::Error,
    inner::{self, Opened},
    netns::Held,
    reclaim::{self, Lost},
    removal, routes, settings,
    socket::{MOST_MESSAGES, Request, RouteSocket},
};
use crate::{
    engine::{Failure, LinkChange, LinkRef, NewLink, Op, Place},
    model::{Netns, nft::Change},
};

/// So many transactions of nftables go as one, as long as none is refused.
const MOST_TRANSACTIONS: usize = 64;

/// Applies operations in their order.
pub(super) fn apply(kernel: &mut NetworkKernel, ops: &[Op]) -> Vec<Result<(), Failure>> {
    let mut run = Run { kernel, batch: Vec::new(), inner: None, results: Vec::with_capacity(ops.len()) };
    let mut rest = ops;
    while let Some(op) = rest.first() {
        let together = run.together(rest);
        rest = rest.get(together.max(1)..).unwrap_or_default();
        if together > 0 {
            continue;
        }
        match encode::row(op) {
            Some(request) => {
                run.batch.push(request);
                if run.batch.len() == MOST_MESSAGES {
                    run.flush();
                }
            }
            None => {
                run.flush();
                let result = run.one(op);
                run.results.push(result);
            }
        }
    }
    run.flush();
    run.results
}

struct Run<'a> {
    kernel: &'a mut NetworkKernel,
    batch: Vec<Request>,
    /// The endpoint's namespace that the last operation was in.
    inner: Option<(Netns, Held, RouteSocket)>,
    results: Vec<Result<(), Failure>>,
}

impl Run<'_> {
    /// Applies as many operations from the first on as cost no more together than one; none where there are no several.
    fn together(&mut self, ops: &[Op]) -> usize {
        let links = ops.iter().map_while(|op| match op {
            Op::DeleteLink { place: Place::Overlay, ifindex } => Some(*ifindex),
            _ => None,
        });
        let links: Vec<u32> = links.take(removal::MOST).collect();
        if links.len() > 1 {
            self.flush();
            match self.kernel.overlay() {
                Ok(overlay) => {
                    let results = removal::delete(&mut overlay.socket, &links).into_iter();
                    self.results.extend(results.map(|result| result.map_err(Failure::from)));
                }
                Err(error) => self.results.extend(links.iter().map(|_| Err(error.clone().into()))),
            }
            return links.len();
        }
        let changes = ops.iter().map_while(|op| match op {
            Op::ChangeRules(changes) => Some(changes.as_slice()),
            _ => None,
        });
        let changes: Vec<&[Change]> = changes.take(MOST_TRANSACTIONS).collect();
        if changes.len() > 1 {
            self.flush();
            // Where one is refused none is applied: then each is tried by itself, and has its own result.
            if self.kernel.overlay().is_ok_and(|overlay| overlay.rules.change(&changes.concat()).is_ok()) {
                self.results.extend(changes.iter().map(|_| Ok(())));
                return changes.len();
            }
        }
        0
    }

    fn flush(&mut self) {
        let batch = std::mem::take(&mut self.batch);
        if batch.is_empty() {
            return;
        }
        match self.kernel.overlay() {
            Ok(overlay) => {
                let results = overlay.socket.call(&batch).into_iter();
                self.results.extend(results.map(|result| result.map(drop).map_err(Failure::from)));
            }
            Err(error) => self.results.extend(batch.iter().map(|_| Err(error.clone().into()))),
        }
    }

    fn one(&mut self, op: &Op) -> Result<(), Failure> {
        let result = match op {
            Op::ChangeRules(changes) => return self.kernel.overlay()?.rules.change(changes),
            Op::CreateNetns => self.kernel.create_netns(),
            Op::DeleteNetns => self.kernel.delete_netns(),
            Op::AddLink(new) => self.add_link(new),
            Op::ReclaimVni { vni, port, group } => {
                reclaim::remove(&self.kernel.config, Lost { vni: *vni, port: *port, group: *group })
            }
            Op::SetLink { place, ifindex, change } => self.set_link(place, *ifindex, change),
            Op::RestoreRoutes { place, ifindex, net } => self.restore_routes(place, *ifindex, *net),
            Op::DeleteLink { place, ifindex } => self.delete(place, encode::delete_link(*ifindex)),
            Op::AddAddress { place, ifindex, net } => {
                self.socket(place)?.call_one(encode::add_address(*ifindex, *net)).map(drop)
            }
            Op::DeleteAddress { place, ifindex, net } => self.delete(place, encode::delete_address(*ifindex, *net)),
            Op::SetForwarding { family, on } => self.kernel.set_forwarding(*family, *on),
            Op::AddRoute { place, ifindex, route } => {
                self.socket(place)?.call_one(routes::add(*ifindex, *route)).map(drop)
            }
            Op::ReplaceRoute { place, ifindex, route } => {
                self.socket(place)?.call_one(routes::replace(*ifindex, *route)).map(drop)
            }
            Op::DeleteRoute { place, ifindex, route } => self.delete(place, routes::delete(*ifindex, *route)),
            Op::PutFdb { .. }
            | Op::DeleteFdb { .. }
            | Op::PutBridgeRow { .. }
            | Op::DeleteBridgeRow { .. }
            | Op::PutNeighbour { .. }
            | Op::DeleteNeighbour { .. } => Err(Error::new(Errno::EINVAL, "a row outside its batch")),
        };
        Ok(result?)
    }

    /// Removes what may be gone already.
    fn delete(&mut self, place: &Place, request: Request) -> Result<(), Error> {
        let socket = match self.socket(place) {
            // With an endpoint's namespace all that was in it is gone.
            Err(error) if error.errno == Errno::ENOENT && matches!(place, Place::Inner(_)) => return Ok(()),
            other => other?,
        };
        match socket.call_one(request) {
            Err(error) if matches!(error.errno, Errno::ENODEV | Errno::EADDRNOTAVAIL | Errno::ESRCH) => Ok(()),
            other => other.map(drop),
        }
    }

    fn set_link(&mut self, place: &Place, ifindex: u32, change: &LinkChange) -> Result<(), Error> {
        if *place == Place::Overlay && settings::has_sysctls(&change.settings) {
            let overlay = self.kernel.overlay()?;
            let bodies = overlay.socket.call_one(encode::get_link(&LinkRef::Index(ifindex)))?;
            let link = bodies.first().and_then(|body| super::decode::link(body));
            let link = link.ok_or_else(|| Error::torn("the link was not shown"))?;
            self.kernel.hold_home()?.enter(|| settings::write_sysctls(&link.name, &change.settings))?;
        }
        set_link(self.socket(place)?, ifindex, change)
    }

    /// IPv6 keeps account of the routes of an address with it: there it is made anew, with them.
    fn restore_routes(&mut self, place: &Place, ifindex: u32, net: IpNet) -> Result<(), Error> {
        let socket = self.socket(place)?;
        if net.addr().is_ipv6() {
            socket.call_one(encode::delete_address(ifindex, net))?;
            return socket.call_one(encode::add_address(ifindex, net)).map(drop);
        }
        for request in routes::of_address(ifindex, net) {
            match socket.call_one(request) {
                Err(error) if error.errno == Errno::EEXIST => {}
                other => drop(other?),
            }
        }
        Ok(())
    }

    fn socket(&mut self, place: &Place) -> Result<&mut RouteSocket, Error> {
        match place {
            Place::Overlay => Ok(&mut self.kernel.overlay()?.socket),
            Place::Inner(netns) => self.inner(netns).map(|(_, socket)| socket),
        }
    }

    fn inner(&mut self, netns: &Netns) -> Result<(&Held, &mut RouteSocket), Error> {
        if self.inner.as_ref().is_none_or(|(open, _, _)| open != netns) {
            self.inner = None;
            match inner::open_netns(&self.kernel.config.netns_roots, netns)? {
                Opened::Netns(held, socket) => self.inner = Some((netns.clone(), held, socket)),
                Opened::NoNetns => return Err(Error::new(Errno::ENOENT, format!("no network namespace at {netns}"))),
                Opened::Refused(reason) => return Err(Error::new(Errno::EINVAL, reason)),
            }
        }
        let open = self.inner.as_mut().map(|(_, held, socket)| (&*held, socket));
        open.ok_or_else(|| Error::torn("the endpoint's namespace is not open"))
    }

    fn add_link(&mut self, new: &NewLink) -> Result<(), Error> {
        match new {
            NewLink::Bridge { .. } => self.kernel.overlay()?.socket.call_one(encode::add_link(new, None)).map(drop),
            NewLink::Veth { inner, .. } => {
                let (held, _) = self.inner(&inner.netns)?;
                let request = encode::add_link(new, Some(held.fd.as_fd()));
                self.kernel.overlay()?.socket.call_one(request).map(drop)
            }
            NewLink::Vxlan { name, .. } => self.add_vxlan(new, name),
        }
    }

    /// A kernel before 6.15 looks for the new device's name in the namespace of the sender, and refuses it because of a device of
    /// the host. Then it is made under another name and gets its own in its own namespace, down all the while.
    fn add_vxlan(&mut self, new: &NewLink, name: &str) -> Result<(), Error> {
        let home = self.kernel.hold_home()?;
        let overlay = self.kernel.overlay()?;
        let mut host = RouteSocket::open()?;
        let request = encode::add_link(new, Some(home.fd.as_fd()));
        let refused = match host.call_one(request) {
            Err(error) if error.errno == Errno::EEXIST => error,
            other => return other.map(drop),
        };
        let named = LinkRef::Name(name.to_owned());
        let in_host = host.call_one(encode::get_link(&named)).is_ok();
        let free =
            matches!(overlay.socket.call_one(encode::get_link(&named)), Err(error) if error.errno == Errno::ENODEV);
        if !(in_host && free) {
            return Err(refused);
        }
        let mut other = new.clone();
        let interim = format!("vt{:x}", home.id.inode);
        if let NewLink::Vxlan { name, .. } = &mut other {
            name.clone_from(&interim);
        }
        host.call_one(encode::add_link(&other, Some(home.fd.as_fd())))?;
        let bodies = overlay.socket.call_one(encode::get_link(&LinkRef::Name(interim)))?;
        let made = bodies.first().and_then(|body| super::decode::link(body));
        let made = made.ok_or_else(|| Error::torn("the new device was not shown"))?;
        overlay.socket.call_one(encode::rename(made.ifindex, name)).map(drop)
    }
}

/// Sends the messages of a change one after the other, and none after one that failed: a link comes up only when it is right.
fn set_link(socket: &mut RouteSocket, ifindex: u32, change: &LinkChange) -> Result<(), Error> {
    if change.up == Some(false) {
        socket.call_one(encode::set_up(ifindex, false))?;
    }
    if let Some(name) = &change.name {
        match socket.call_one(encode::rename(ifindex, name)) {
            Err(error) if error.errno == Errno::EBUSY => {
                socket.call_one(encode::set_up(ifindex, false))?;
                socket.call_one(encode::rename(ifindex, name))?;
            }
            other => drop(other?),
        }
    }
    for request in encode::set_link(ifindex, change) {
        socket.call_one(request)?;
    }
    if change.up == Some(true) {
        socket.call_one(encode::set_up(ifindex, true))?;
    }
    Ok(())
}
