//! Reads.

use std::net::IpAddr;

use vtepd::engine::{
    Address, Answer, Failure, FdbPoint, FdbRow, InnerAt, InnerLink, InnerState, Link, LinkRef, Neighbour, NetnsId,
    NetnsState, Query,
};

use super::{SimKernel, SimLink, SimNetns, not_found};

/// Device number of the file system that namespaces are files of.
const NSFS: u64 = 4;

impl SimKernel {
    pub(super) fn answer(&mut self, query: &Query) -> Result<Answer, Failure> {
        Ok(match query {
            Query::Netns => {
                self.look();
                Answer::Netns(match &self.overlay {
                    Some(ns) => NetnsState::Ours(NetnsId { device: NSFS, inode: ns.inode }),
                    None => NetnsState::Absent,
                })
            }
            Query::Barriers => Answer::Barriers(self.barriers.clone()),
            Query::Links => self.links(|_| true)?,
            Query::Link(LinkRef::Index(index)) => self.links(|link| link.ifindex == *index)?,
            Query::Link(LinkRef::Name(name)) => self.links(|link| link.name == *name)?,
            Query::Forwarding => {
                let forwarding = &self.opened()?.forwarding;
                Answer::Forwarding(forwarding.iter().map(|(family, forwarding)| (*family, *forwarding)).collect())
            }
            Query::Inner(at) => Answer::Inner(self.inner(at)),
            Query::FdbDump(ifindex) => Answer::Fdb(self.fdb_dump(*ifindex)?),
            // All rows are at least so many of the newest.
            Query::FdbNewest { ifindex, .. } => {
                Answer::Fdb(self.fdb_dump(*ifindex)?.into_iter().filter(|row| !row.bridge).collect())
            }
            Query::FdbRows(points) => Answer::Fdb(self.fdb_points(points)?),
            // A dump of a link that is not there is an empty one.
            Query::NeighbourDump(ifindex) if !self.opened()?.links.contains_key(ifindex) => {
                Answer::Neighbours(Vec::new())
            }
            Query::NeighbourDump(ifindex) => Answer::Neighbours(self.neighbours(*ifindex, None)?),
            Query::NeighbourRows(points) => {
                let mut rows = Vec::new();
                for (ifindex, ip) in points {
                    rows.extend(self.neighbours(*ifindex, Some(*ip))?);
                }
                Answer::Neighbours(rows)
            }
            Query::Rules(table) => Answer::Rules(self.opened()?.tables.get(table).cloned()),
        })
    }

    fn opened(&self) -> Result<&SimNetns, Failure> {
        self.ns().ok_or_else(|| not_found("namespace"))
    }

    fn device(&self, ifindex: u32) -> Result<&SimLink, Failure> {
        self.opened()?.links.get(&ifindex).ok_or_else(|| not_found("device"))
    }

    fn links(&self, which: impl Fn(&Link) -> bool) -> Result<Answer, Failure> {
        let links: Vec<&SimLink> = self.opened()?.links.values().filter(|l| which(&l.link)).collect();
        let addresses = links.iter().flat_map(|l| l.all_addresses());
        Ok(Answer::Links(links.iter().map(|l| l.link.clone()).collect(), addresses.collect()))
    }

    fn inner(&self, at: &InnerAt) -> InnerState {
        let Some(ns) = self.container(&at.netns) else { return InnerState::NoNetns };
        let wanted = |link: &&SimLink| match at.ifindex {
            Some(index) => link.link.ifindex == index,
            None => link.link.name == at.ifname,
        };
        let link = ns.links.values().find(wanted).map(|l| InnerLink {
            link: l.link.clone(),
            addresses: l.all_addresses().collect(),
            routes: ns.routes_of(l.link.ifindex),
            defaults_elsewhere: ns.defaults_besides(l.link.ifindex),
        });
        let nsid = self.ns().filter(|overlay| overlay.known.contains(&ns.inode)).map(|_| ns.inode as i32);
        InnerState::Netns { id: NetnsId { device: NSFS, inode: ns.inode }, nsid, link }
    }

    fn bridge_row(bridge: &SimLink, mac: vtepd::model::Mac) -> Option<FdbRow> {
        let (port, plain) = bridge.rows.get(&mac).copied()?;
        Some(FdbRow { ifindex: port, bridge: true, mac, dst: None, plain, kernels_own: false })
    }

    fn fdb_dump(&mut self, ifindex: u32) -> Result<Vec<FdbRow>, Failure> {
        let skip = self.faults.row_skipped;
        // A dump of a link that is not there is an empty one.
        let Some(link) = self.opened()?.links.get(&ifindex) else { return Ok(Vec::new()) };
        let bridge = link.link.master.and_then(|master| self.device(master).ok());
        let rows = bridge.into_iter().flat_map(|b| b.rows.keys().filter_map(|mac| Self::bridge_row(b, *mac)));
        let all: Vec<FdbRow> = link.all_fdb_rows().chain(rows.filter(|row| row.ifindex == ifindex)).collect();
        Ok(all.into_iter().filter(|_| !self.chance.per_mille(skip)).collect())
    }

    /// Of several destinations a look-up of one row shows the first only.
    fn fdb_points(&self, points: &[FdbPoint]) -> Result<Vec<FdbRow>, Failure> {
        let mut rows = Vec::new();
        for point in points {
            let link = self.device(point.ifindex)?;
            rows.extend(if point.bridge { Self::bridge_row(link, point.mac) } else { link.fdb_rows(point.mac).next() });
        }
        Ok(rows)
    }

    fn neighbours(&self, ifindex: u32, which: Option<IpAddr>) -> Result<Vec<Neighbour>, Failure> {
        let rows = self.device(ifindex)?.neighbours.iter().filter(|(ip, _)| which.is_none_or(|which| which == **ip));
        Ok(rows
            .map(|(ip, (mac, permanent, ours))| Neighbour {
                ifindex,
                ip: *ip,
                mac: *mac,
                permanent: *permanent,
                ours: *ours,
            })
            .collect())
    }
}

impl SimLink {
    fn all_addresses(&self) -> impl Iterator<Item = Address> + '_ {
        let ifindex = self.link.ifindex;
        self.addresses.iter().map(move |(net, ours)| Address {
            ifindex,
            net: *net,
            ours: *ours,
            routed: !(self.link.up && *ours && self.unrouted.contains(net)),
        })
    }
}
