//! What operations do to links and their addresses.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::{Held, Rehearsal, gone};
use crate::{
    engine::{Address, Failure, Kernel, Link, LinkChange, LinkKind, NewLink, Place, Port, Setting, VxlanAttributes},
    model::Mac,
};

/// MTU that a new bridge has: Ethernet's.
const BRIDGE_MTU: u32 = 1500;

/// A link that was just made.
pub(super) fn new_link(ifindex: u32, name: &str, mac: Mac, mtu: u32, group: u32, kind: LinkKind) -> Link {
    let (up, master, addr_gen_none, port, off) = (false, None, false, None, BTreeSet::new());
    Link { ifindex, name: name.to_owned(), mac, mtu, up, master, group, addr_gen_none, kind, port, off }
}

/// Takes over what a change says of any link.
pub(super) fn change_link(link: &mut Link, change: &LinkChange) {
    let LinkChange {
        name,
        mac,
        mtu,
        up,
        master,
        group,
        addr_gen_none,
        mcast_snooping_off,
        port,
        local,
        learning_off,
        settings,
    } = change.clone();
    link.off.retain(|setting| !settings.contains(setting));
    if up == Some(false) {
        link.off.remove(&Setting::State);
    }
    link.name = name.unwrap_or_else(|| link.name.clone());
    link.mac = mac.unwrap_or(link.mac);
    link.mtu = mtu.unwrap_or(link.mtu);
    link.up = up.unwrap_or(link.up);
    link.group = group.unwrap_or(link.group);
    link.addr_gen_none |= addr_gen_none;
    if master.is_some() && master != link.master {
        link.master = master;
        link.port = Some(Port { learning: true, unicast_flood: true, isolated: false, locked: Some(false) });
    }
    if let Some(port) = port {
        let locked = port.locked.or(link.port.and_then(|before| before.locked));
        link.port = Some(Port { locked, ..port });
    }
    match &mut link.kind {
        LinkKind::Bridge { mcast_snooping } if mcast_snooping_off => *mcast_snooping = false,
        LinkKind::Vxlan(vxlan) => {
            vxlan.local = local.or(vxlan.local);
            vxlan.learning &= !learning_off;
        }
        _ => {}
    }
}

impl<K: Kernel> Rehearsal<K> {
    pub(super) fn add_link(&mut self, new: &NewLink) -> Result<(), Failure> {
        self.next += 1;
        let index = self.next;
        let mut link = match new {
            NewLink::Bridge { name, mac, group } => {
                new_link(index, name, *mac, BRIDGE_MTU, *group, LinkKind::Bridge { mcast_snooping: false })
            }
            NewLink::Vxlan { name, mac, mtu, group, vni, port, local, proxy } => {
                let attributes =
                    VxlanAttributes { vni: *vni, port: *port, local: Some(*local), learning: false, proxy: *proxy };
                new_link(index, name, *mac, *mtu, *group, LinkKind::Vxlan(attributes))
            }
            NewLink::Veth { name, mac, mtu, group, inner, inner_mac } => {
                self.next += 1;
                let kind = self.inners.add(inner, self.next, index, *inner_mac, *mtu, *group);
                new_link(index, name, *mac, *mtu, *group, kind)
            }
        };
        // Namespaces of ours begin without address generation.
        link.addr_gen_none = self.imagined();
        self.held()?.insert(index, Held { link, addresses: Vec::new() });
        Ok(())
    }

    pub(super) fn set_link(&mut self, place: &Place, ifindex: u32, change: &LinkChange) -> Result<(), Failure> {
        if let Place::Inner(netns) = place {
            return self.inners.change(netns, ifindex, change);
        }
        let held = self.held()?.get_mut(&ifindex).ok_or_else(|| gone("device"))?;
        change_link(&mut held.link, change);
        // Each flushes the neighbours of the link, permanent ones too.
        if change.mac.is_some() || change.up == Some(false) || change.settings.contains(&Setting::Arp) {
            self.rows.flush_neighbours(ifindex);
            self.overrun = true;
        }
        Ok(())
    }

    pub(super) fn delete_link(&mut self, place: &Place, ifindex: u32) -> Result<(), Failure> {
        self.overrun = true;
        if let Place::Inner(netns) = place {
            self.inners.delete(netns, ifindex);
            let outer = |held: &Held| {
                matches!(held.link.kind, LinkKind::Veth { peer: Some(peer), .. } if peer == ifindex)
                    && self.inners.is_peer(netns, ifindex, held.link.ifindex)
            };
            let links = self.links.iter_mut().flatten();
            let outers: Vec<u32> = links.filter(|(_, held)| outer(held)).map(|(index, _)| *index).collect();
            let links = self.held()?;
            outers.iter().for_each(|index| drop(links.remove(index)));
            return Ok(());
        }
        let links = self.held()?;
        let gone = links.remove(&ifindex);
        for held in links.values_mut().filter(|held| held.link.master == Some(ifindex)) {
            held.link.master = None;
            held.link.port = None;
        }
        self.rows.forget(ifindex);
        if let Some(LinkKind::Veth { peer: Some(peer), peer_nsid }) = gone.map(|held| held.link.kind) {
            self.inners.delete_peer(peer, peer_nsid);
        }
        Ok(())
    }

    pub(super) fn set_address(&mut self, place: &Place, ifindex: u32, net: IpNet, there: bool) -> Result<(), Failure> {
        let addresses = match place {
            Place::Overlay => self.held()?.get_mut(&ifindex).map(|held| &mut held.addresses),
            Place::Inner(netns) => self.inners.link(netns, ifindex).map(|inner| &mut inner.addresses),
        };
        let addresses = addresses.ok_or_else(|| gone("device"))?;
        addresses.retain(|address| address.net != net);
        if there {
            addresses.push(Address { ifindex, net, ours: true, routed: true });
        }
        Ok(())
    }
}
