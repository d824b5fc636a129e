//! Making and removing links.

use std::collections::{BTreeMap, BTreeSet};

use vtepd::{
    engine::{Event, Failure, Link, LinkKind, NewLink, Place, VxlanAttributes},
    model::Mac,
};

use super::{HOST, SimKernel, SimLink, SimNetns, exists, not_found};

/// Below it there is no IPv6 on a link.
pub(super) const IPV6_MTU: u32 = 1280;

impl SimKernel {
    pub(super) fn drop_inner_ends(&mut self, overlay: &SimNetns) {
        for link in overlay.links.values() {
            if let LinkKind::Veth { peer: Some(peer), peer_nsid: Some(nsid) } = link.link.kind {
                for container in self.containers.values_mut().filter(|ns| ns.inode as i32 == nsid) {
                    container.links.remove(&peer);
                }
                self.emit_inner(nsid as u64, peer);
            }
        }
    }

    pub(super) fn drop_peer_of(&mut self, ifindex: u32, inode: u64) {
        let Ok(overlay) = self.overlay() else { return };
        let is_peer = |link: &SimLink| matches!(link.link.kind, LinkKind::Veth { peer: Some(p), peer_nsid: Some(n) } if p == ifindex && n == inode as i32);
        let outer: Vec<u32> = overlay.links.iter().filter(|(_, link)| is_peer(link)).map(|(index, _)| *index).collect();
        for index in outer {
            self.remove_overlay_link(index);
        }
    }

    fn remove_overlay_link(&mut self, ifindex: u32) {
        let Ok(overlay) = self.overlay() else { return };
        let ports = overlay.links.values().filter(|link| link.link.master == Some(ifindex));
        let ports: Vec<u32> = ports.map(|link| link.link.ifindex).collect();
        for port in ports {
            self.leave_bridge(port);
            self.emit_link(&Place::Overlay, port);
        }
        self.leave_bridge(ifindex);
        self.flush_neighbours(ifindex, |_| true);
        let Ok(overlay) = self.overlay() else { return };
        let Some(gone) = overlay.links.remove(&ifindex) else { return };
        for event in gone.all_fdb_rows().map(Event::FdbGone) {
            self.emit(event);
        }
        if !gone.addresses.is_empty() {
            self.emit(Event::Addresses(ifindex));
        }
        if let LinkKind::Veth { peer: Some(peer), peer_nsid: Some(nsid) } = gone.link.kind {
            for container in self.containers.values_mut().filter(|ns| ns.inode as i32 == nsid) {
                container.links.remove(&peer);
            }
            self.emit_inner(nsid as u64, peer);
        }
        self.emit(Event::LinkGone(ifindex));
    }

    pub(super) fn delete_link(&mut self, place: &Place, ifindex: u32) -> Result<(), Failure> {
        match place {
            Place::Overlay => {
                self.overlay()?;
                self.remove_overlay_link(ifindex);
            }
            Place::Inner(path) => {
                let Some(ns) = self.container_mut(path) else { return Ok(()) };
                let inode = ns.inode;
                if ns.links.remove(&ifindex).is_some() {
                    self.drop_peer_of(ifindex, inode);
                    self.emit_inner(inode, ifindex);
                }
            }
        }
        Ok(())
    }

    fn new_link(name: &str, mac: Mac, mtu: u32, group: u32, kind: LinkKind) -> SimLink {
        let link = Link {
            ifindex: 0,
            name: name.into(),
            mac,
            mtu,
            up: false,
            master: None,
            group,
            addr_gen_none: false,
            kind,
            port: None,
            off: BTreeSet::new(),
        };
        SimLink {
            link,
            addresses: BTreeMap::new(),
            unrouted: BTreeSet::new(),
            fdb: BTreeMap::new(),
            flood: BTreeMap::new(),
            rows: BTreeMap::new(),
            neighbours: BTreeMap::new(),
            routes: BTreeMap::new(),
            order: Vec::new(),
            ipv6: mtu >= IPV6_MTU,
            mtu_by_hand: false,
        }
    }

    fn insert(ns: &mut SimNetns, mut link: SimLink) -> Result<u32, Failure> {
        if ns.links.values().any(|other| other.link.name == link.link.name) {
            return Err(exists("name"));
        }
        let index = ns.next_index;
        ns.next_index += 1;
        link.link.ifindex = index;
        // Without IPv6 on the link there is nothing that would generate an address.
        link.link.addr_gen_none = ns.quiet || !link.ipv6;
        ns.links.insert(index, link);
        Ok(index)
    }

    /// Somebody else makes a link, up; its index.
    pub fn add_others_link(&mut self, place: &Place, name: &str, group: u32, kind: LinkKind) -> u32 {
        let mut link = Self::new_link(name, Mac::new([2, 0, 0, 0, 0, 9]), 1500, group, kind);
        link.link.up = true;
        let index = Self::insert(self.netns_at(place).unwrap(), link).unwrap();
        self.emit_link(place, index);
        index
    }

    pub(super) fn add_link(&mut self, new: &NewLink) -> Result<(), Failure> {
        let index = match new {
            NewLink::Bridge { name, mac, group } => {
                let link = Self::new_link(name, *mac, 1500, *group, LinkKind::Bridge { mcast_snooping: false });
                Self::insert(self.overlay()?, link)?
            }
            NewLink::Vxlan { name, mac, mtu, group, vni, port, local, proxy } => {
                // A VNI is held by UDP port and family of the outer addresses.
                let held = |other: &SimLink| {
                    matches!(&other.link.kind, LinkKind::Vxlan(v) if v.vni == *vni && v.port == *port
                        && v.local.is_some_and(|other| other.is_ipv6()) == local.is_ipv6())
                };
                if self.overlay()?.links.values().any(held) {
                    return Err(exists("VNI"));
                }
                let kind =
                    VxlanAttributes { vni: *vni, port: *port, local: Some(*local), learning: false, proxy: *proxy };
                let overlay = self.overlay()?;
                // The device's link to the namespace of its socket gives that an identifier.
                overlay.known.insert(HOST);
                Self::insert(overlay, Self::new_link(name, *mac, *mtu, *group, LinkKind::Vxlan(kind)))?
            }
            NewLink::Veth { name, mac, mtu, group, inner, inner_mac } => {
                if self.container(&inner.netns).is_none() {
                    return Err(not_found("namespace"));
                }
                if self.overlay()?.links.values().any(|link| link.link.name == *name) {
                    return Err(exists("name"));
                }
                let container = self.container_mut(&inner.netns).ok_or_else(|| not_found("namespace"))?;
                let kind = LinkKind::Veth { peer: None, peer_nsid: None };
                let peer = Self::insert(container, Self::new_link(&inner.ifname, *inner_mac, *mtu, *group, kind))?;
                let inode = container.inode;
                // The container gets its identifier after that: of the first pair nothing is heard from there.
                self.emit_inner(inode, peer);
                let kind = LinkKind::Veth { peer: Some(peer), peer_nsid: Some(inode as i32) };
                let overlay = self.overlay()?;
                let index = Self::insert(overlay, Self::new_link(name, *mac, *mtu, *group, kind))?;
                overlay.known.insert(inode);
                let overlay = overlay.inode as i32;
                if let Some(link) = self.container_mut(&inner.netns).and_then(|ns| ns.links.get_mut(&peer)) {
                    link.link.kind = LinkKind::Veth { peer: Some(index), peer_nsid: Some(overlay) };
                }
                index
            }
        };
        self.emit_link(&Place::Overlay, index);
        Ok(())
    }
}
