//! All that a kernel shows, in the same words for both: links by handle, without what the kernel makes by itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    net::IpAddr,
};

use vtepd::engine::{
    Address, Answer, Event, Failure, FdbPoint, FdbRow, InnerAt, InnerLink, InnerState, Kernel, Link, LinkKind, LinkRef,
    Neighbour, NetnsState, Of, Query,
};

use super::{
    acts::{CONTAINERS, INNER_NAMES, endpoint_macs, neighbour_ips, tables},
    twins::{Role, Side, Twins, at},
};

/// What is known of each object, by the key that an event of it has too.
pub type Picture = BTreeMap<String, String>;

struct View<'a> {
    kernel: &'a mut dyn Kernel,
    side: Side,
    twins: &'a Twins,
    containers: BTreeMap<i32, &'static str>,
    picture: Picture,
}

pub fn picture(kernel: &mut dyn Kernel, side: Side, twins: &Twins) -> Picture {
    let containers = containers(kernel);
    let mut view = View { kernel, side, twins, containers, picture: Picture::new() };
    view.netns();
    view.forwarding();
    view.links();
    for (handle, twin) in &twins.all {
        if twin.alive && twin.container.is_none() {
            view.rows(*handle, twin.role);
        }
    }
    view.rows(0, Role::Vxlan);
    view.rows(0, Role::Bridge);
    for container in CONTAINERS {
        view.inner(container);
    }
    view.inner("absent");
    view.rules();
    view.picture
}

fn name(twins: &Twins, ifindex: u32, container: Option<&str>, side: Side) -> String {
    twins.handle(ifindex, container, side).map_or_else(|| "?".to_owned(), |handle| format!("h{handle}"))
}

fn fdb_key(row: &FdbRow, of: &str) -> String {
    let table = if row.bridge { "row" } else { "fdb" };
    match row.dst {
        Some(dst) if row.mac.is_zero() => format!("{table} {of} {} {dst}", row.mac),
        _ => format!("{table} {of} {}", row.mac),
    }
}

fn neighbour_key(row: &Neighbour, of: &str) -> String {
    format!("neighbour {of} {}", row.ip)
}

fn link_local(address: &Address) -> bool {
    matches!(address.net.addr(), IpAddr::V6(v6) if v6.is_unicast_link_local())
}

impl View<'_> {
    fn put(&mut self, key: String, value: impl Debug) {
        self.picture.insert(key, format!("{value:?}"));
    }

    fn name(&self, ifindex: u32, container: Option<&str>) -> String {
        name(self.twins, ifindex, container, self.side)
    }

    fn failed(&mut self, query: &str, failure: &Failure) {
        self.put(query.to_owned(), failure.kind);
    }

    fn netns(&mut self) {
        let ours = matches!(self.kernel.read(&Query::Netns), Ok(Answer::Netns(NetnsState::Ours(_))));
        self.put("netns".into(), ours);
    }

    fn forwarding(&mut self) {
        match self.kernel.read(&Query::Forwarding) {
            Ok(Answer::Forwarding(seen)) => {
                for (family, forwarding) in seen {
                    self.put(format!("forwarding {family:?}"), forwarding);
                }
            }
            Ok(other) => panic!("{other:?}"),
            Err(failure) => self.failed("forwarding", &failure),
        }
    }

    /// A link in the words of both sides; its peer is in the other namespace.
    fn link(&self, link: &Link, container: Option<&str>) -> String {
        let mut link = link.clone();
        let mut more = link.master.map(|master| format!(" of {}", self.name(master, None))).unwrap_or_default();
        // What a link gets of these is the host's default.
        link.off.retain(|setting| !matches!(setting.of(), Of::OverlayLink | Of::OverlayBridge | Of::HostBridge));
        if let LinkKind::Veth { peer, peer_nsid } = &mut link.kind {
            let elsewhere = peer_nsid.and_then(|nsid| self.containers.get(&nsid)).copied();
            let other = self.name(peer.unwrap_or_default(), elsewhere.filter(|_| container.is_none()));
            more += &format!(" peer {other} elsewhere {}", peer_nsid.is_some());
            (*peer, *peer_nsid) = (None, None);
        }
        (link.ifindex, link.master) = (0, None);
        format!("{link:?}{more}")
    }

    fn addresses(&self, addresses: &[Address], ifindex: u32) -> Vec<String> {
        let own = addresses.iter().filter(|address| address.ifindex == ifindex && !link_local(address));
        let mut shown: Vec<String> = own.map(|address| format!("{} {}", address.net, address.ours)).collect();
        shown.sort();
        shown
    }

    fn links(&mut self) {
        match self.kernel.read(&Query::Links) {
            Ok(Answer::Links(links, addresses)) => {
                for link in links.iter().filter(|link| link.name != "lo") {
                    let name = self.name(link.ifindex, None);
                    self.put(format!("link {name}"), self.link(link, None));
                    self.put(format!("addresses {name}"), self.addresses(&addresses, link.ifindex));
                    let by_name = self.kernel.read(&Query::Link(LinkRef::Name(link.name.clone())));
                    let Ok(Answer::Links(found, of_it)) = by_name else { panic!("{by_name:?}") };
                    assert_eq!((&found, found.len()), (&vec![link.clone()], 1));
                    assert_eq!(self.addresses(&of_it, link.ifindex), self.addresses(&addresses, link.ifindex));
                }
            }
            Ok(other) => panic!("{other:?}"),
            Err(failure) => self.failed("links", &failure),
        }
    }

    fn rows(&mut self, handle: u32, role: Role) {
        let ifindex = self.twins.index(handle, self.side);
        match self.kernel.read(&Query::FdbDump(ifindex)) {
            Ok(Answer::Fdb(rows)) => {
                for row in rows.iter().filter(|row| !row.kernels_own) {
                    let key = fdb_key(row, &self.name(row.ifindex, None));
                    self.put(key, FdbRow { ifindex: 0, ..row.clone() });
                }
            }
            Ok(other) => panic!("{other:?}"),
            Err(failure) => self.failed(&format!("dump of h{handle}"), &failure),
        }
        if matches!(role, Role::Vxlan | Role::Bridge) {
            let point = |mac| FdbPoint { ifindex, bridge: role == Role::Bridge, mac };
            let answer = self.kernel.read(&Query::FdbRows(endpoint_macs().into_iter().map(point).collect()));
            let seen = answer.map(|answer| match answer {
                Answer::Fdb(rows) => rows.into_iter().filter(|row| !row.kernels_own).collect::<Vec<_>>(),
                other => panic!("{other:?}"),
            });
            let seen = seen.map(|rows| {
                let shown = rows.into_iter().map(|row| (self.name(row.ifindex, None), FdbRow { ifindex: 0, ..row }));
                shown.collect::<Vec<_>>()
            });
            self.put(format!("points of h{handle} {role:?}"), seen.map_err(|failure| failure.kind));
        }
        let permanent = |answer: Result<Answer, Failure>| {
            answer.map(|answer| match answer {
                Answer::Neighbours(rows) => rows.into_iter().filter(|row| row.permanent).collect::<Vec<_>>(),
                other => panic!("{other:?}"),
            })
        };
        match permanent(self.kernel.read(&Query::NeighbourDump(ifindex))) {
            Ok(rows) => {
                for row in rows {
                    self.put(neighbour_key(&row, &format!("h{handle}")), Neighbour { ifindex: 0, ..row });
                }
            }
            Err(failure) => self.failed(&format!("neighbours of h{handle}"), &failure),
        }
        let points = neighbour_ips().into_iter().map(|ip| (ifindex, ip)).collect();
        let rows = permanent(self.kernel.read(&Query::NeighbourRows(points)));
        let rows = rows.map(|rows| rows.into_iter().map(|row| Neighbour { ifindex: 0, ..row }).collect::<Vec<_>>());
        self.put(format!("entries of h{handle}"), rows.map_err(|failure| failure.kind));
    }

    fn rules(&mut self) {
        for table in tables() {
            let shown = self.kernel.read(&Query::Rules(table.clone())).map_err(|failure| failure.kind);
            self.put(format!("table {table}"), shown);
        }
    }

    fn inner(&mut self, container: &str) {
        let mut asked: Vec<(String, Option<u32>)> = INNER_NAMES.iter().map(|name| ((*name).to_owned(), None)).collect();
        let ends = self.twins.all.iter().filter(|(_, twin)| twin.alive && twin.container.as_deref() == Some(container));
        asked.extend(ends.map(|(handle, _)| (String::new(), Some(self.twins.index(*handle, self.side)))));
        let mut shown = Vec::new();
        let mut known = false;
        for (ifname, ifindex) in asked {
            let asked = if ifindex.is_some() { "by index" } else { &ifname }.to_owned();
            let at = InnerAt { netns: at(container), ifname, ifindex };
            let answer = self.kernel.read(&Query::Inner(at));
            shown.push(match answer {
                // One that has just gone, which the other queries show.
                Ok(Answer::Inner(InnerState::Netns { link: None, .. })) if ifindex.is_some() => continue,
                Ok(Answer::Inner(InnerState::Netns { nsid, link, .. })) => {
                    known = nsid.is_some();
                    let link = link.map(|InnerLink { link, addresses, mut routes, defaults_elsewhere }| {
                        routes.sort_by_key(|row| row.route);
                        let addresses = self.addresses(&addresses, link.ifindex);
                        let name = self.name(link.ifindex, Some(container));
                        (name, self.link(&link, Some(container)), addresses, routes, defaults_elsewhere)
                    });
                    format!("{asked}: {link:?}")
                }
                other => format!("{asked}: {other:?}"),
            });
        }
        self.put(format!("identifier of {container}"), known);
        self.put(format!("inner {container}"), shown);
    }
}

/// The containers by their identifier in the overlay namespace.
fn containers(kernel: &mut dyn Kernel) -> BTreeMap<i32, &'static str> {
    let identified = CONTAINERS.into_iter().filter_map(|container| {
        let at = InnerAt { netns: at(container), ifname: "x".into(), ifindex: None };
        match kernel.read(&Query::Inner(at)) {
            Ok(Answer::Inner(InnerState::Netns { nsid: Some(nsid), .. })) => Some((nsid, container)),
            _ => None,
        }
    });
    identified.collect()
}

/// The keys of what events tell of, as far as they can be ours.
pub fn heard(kernel: &mut dyn Kernel, side: Side, twins: &Twins) -> BTreeSet<String> {
    let containers = containers(kernel);
    let of = |ifindex: u32| name(twins, ifindex, None, side);
    let keys = kernel.events().into_iter().filter_map(|event| match event {
        // It follows what else is told, at moments of its own.
        Event::Routes(_) => None,
        Event::Link(link) => Some(format!("link {}", of(link.ifindex))),
        Event::LinkGone(ifindex) => Some(format!("link {}", of(ifindex))),
        Event::Addresses(ifindex) => Some(format!("addresses {}", of(ifindex))),
        Event::Fdb(row) | Event::FdbGone(row) if !row.kernels_own => Some(fdb_key(&row, &of(row.ifindex))),
        Event::Fdb(_) | Event::FdbGone(_) => None,
        Event::Neighbour(row) | Event::NeighbourGone(row) => Some(neighbour_key(&row, &of(row.ifindex))),
        Event::Inner { nsid, .. } => containers.get(&nsid).map(|container| format!("inner {container}")),
        Event::Forwarding(family, _) => Some(format!("forwarding {family:?}")),
        Event::Rules(table) => Some(format!("table {table}")),
        // Paths are not this kernel's to watch.
        Event::Netns | Event::Path(_) => None,
        Event::Overrun | Event::InnerOverrun => panic!("an overrun"),
    });
    keys.filter(|key| !key.contains('?')).collect()
}
