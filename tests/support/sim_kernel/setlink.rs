//! Changing links, and what a change takes along.

use vtepd::engine::{Event, Failure, FdbRow, Link, LinkChange, LinkKind, Of, Place, Port, Setting};

use super::{SimKernel, exists, links::IPV6_MTU, refused};

impl SimKernel {
    /// A change is several messages, and none is sent after one that failed: what came before it stays done.
    pub(super) fn set_link(&mut self, place: &Place, ifindex: u32, change: &LinkChange) -> Result<(), Failure> {
        self.netns_at(place)?;
        if *change == LinkChange::default() {
            return Ok(());
        }
        let before = self.at(place, ifindex)?.link.clone();
        let result = self.change_link(place, ifindex, change);
        let after = self.at(place, ifindex)?.link.clone();
        // Of a link that is down the kernel tells only this much: not its group, nor what its driver, its bridge or IPv6 was
        // told of it.
        let told = |link: &Link| (link.name.clone(), link.mtu, link.up, link.master);
        let was_up = before.up && change.up != Some(false);
        if before != after && (was_up || told(&before) != told(&after)) {
            self.emit_link(place, ifindex);
        }
        result
    }

    fn change_link(&mut self, place: &Place, ifindex: u32, change: &LinkChange) -> Result<(), Failure> {
        if change.up == Some(false) {
            self.set_down(place, ifindex)?;
        }
        if let Some(name) = &change.name {
            let mut others = self.netns_at(place)?.links.values();
            if others.any(|other| other.link.ifindex != ifindex && other.link.name == *name) {
                return Err(exists("name"));
            }
            self.at(place, ifindex)?.link.name.clone_from(name);
        }
        self.set_device(place, ifindex, change)?;
        if let Some(mac) = change.mac {
            self.at(place, ifindex)?.link.mac = mac;
            // The neighbours go even where the address is the one that it was, and it is told.
            self.flush_neighbours_at(place, ifindex, false);
            self.emit_link(place, ifindex);
        }
        if let Some(mtu) = change.mtu {
            self.set_mtu(place, ifindex, mtu, true)?;
        }
        if let Some(group) = change.group {
            self.at(place, ifindex)?.link.group = group;
        }
        if let Some(master) = change.master {
            self.set_master(ifindex, master)?;
        }
        if change.addr_gen_none {
            let link = self.at(place, ifindex)?;
            if !link.ipv6 {
                return Err(refused("no IPv6 on the link"));
            }
            link.link.addr_gen_none = true;
        }
        if let Some(port) = change.port {
            let link = self.at(place, ifindex)?;
            if link.link.master.is_none() {
                return Err(refused("not a port"));
            }
            // What is not said stays.
            let locked = port.locked.or(link.link.port.and_then(|port| port.locked));
            link.link.port = Some(Port { locked, ..port });
        }
        self.put_right(place, ifindex, change)?;
        if change.up == Some(true) {
            if *place == Place::Overlay && !self.by_others {
                self.look_for_guard(ifindex)?;
            }
            self.at(place, ifindex)?.link.up = true;
        }
        Ok(())
    }

    /// Puts settings as the kernel makes them, each where there is such a thing.
    fn put_right(&mut self, place: &Place, ifindex: u32, change: &LinkChange) -> Result<(), Failure> {
        let link = &mut self.at(place, ifindex)?.link;
        // Whether the link has neighbours at all: it loses those that it had.
        let mut decided = false;
        for setting in &change.settings {
            let there = match setting.of() {
                Of::Link | Of::OwnLink => true,
                Of::OverlayLink => *place == Place::Overlay,
                Of::Bridge | Of::OverlayBridge | Of::HostBridge => matches!(link.kind, LinkKind::Bridge { .. }),
                Of::Vxlan => matches!(link.kind, LinkKind::Vxlan(_)),
                Of::Port => link.master.is_some(),
                Of::VxlanForGood => false,
            };
            if !there {
                return Err(refused("no such setting"));
            }
            if link.off.remove(setting) && *setting == Setting::Arp {
                decided = true;
            }
        }
        if decided {
            self.flush_neighbours_at(place, ifindex, false);
        }
        Ok(())
    }

    /// Somebody else changes a setting.
    pub fn set_off(&mut self, place: &Place, ifindex: u32, setting: Setting) {
        self.at(place, ifindex).unwrap().link.off.insert(setting);
        if setting == Setting::Arp {
            self.flush_neighbours_at(place, ifindex, false);
        }
        self.emit_link(place, ifindex);
    }

    /// And back.
    pub fn set_on(&mut self, place: &Place, ifindex: u32, setting: Setting) {
        self.at(place, ifindex).unwrap().link.off.remove(&setting);
        self.emit_link(place, ifindex);
    }

    fn set_down(&mut self, place: &Place, ifindex: u32) -> Result<(), Failure> {
        // A bridge that goes down closes its ports, and opens them when it comes up.
        for port in self.netns_at(place)?.links.values_mut().filter(|port| port.link.master == Some(ifindex)) {
            port.link.off.remove(&Setting::State);
        }
        let link = self.at(place, ifindex)?;
        if std::mem::take(&mut link.link.up) {
            link.link.off.remove(&Setting::State);
            link.routes.clear();
            // They stand again when it comes up.
            link.unrouted.clear();
            self.drop_ipv6_addresses(place, ifindex);
            self.flush_neighbours_at(place, ifindex, false);
        }
        Ok(())
    }

    /// What only the device's own driver knows.
    fn set_device(&mut self, place: &Place, ifindex: u32, change: &LinkChange) -> Result<(), Failure> {
        let link = self.at(place, ifindex)?;
        let asked = change.local.is_some() || change.learning_off;
        match &mut link.link.kind {
            LinkKind::Bridge { mcast_snooping } if change.mcast_snooping_off => *mcast_snooping = false,
            LinkKind::Vxlan(vxlan) if asked && !change.mcast_snooping_off => {
                if let Some(local) = change.local {
                    // The family is that of the destinations, for good.
                    if vxlan.local.is_none_or(|old| old.is_ipv4()) != local.is_ipv4() {
                        return Err(refused("another family"));
                    }
                    vxlan.local = Some(local);
                }
                if change.learning_off {
                    vxlan.learning = false;
                }
            }
            _ if asked || change.mcast_snooping_off => return Err(refused("another kind of device")),
            _ => {}
        }
        Ok(())
    }

    /// A link whose MTU falls below 1280 loses IPv6 with all that belongs to it. When IPv6 comes back, the link's setting for
    /// address generation is the namespace's default.
    fn set_mtu(&mut self, place: &Place, ifindex: u32, mtu: u32, by_hand: bool) -> Result<(), Failure> {
        let quiet = self.netns_at(place)?.quiet;
        let link = self.at(place, ifindex)?;
        if link.link.mtu == mtu {
            return Ok(());
        }
        link.link.mtu = mtu;
        link.mtu_by_hand = by_hand;
        if mtu < IPV6_MTU {
            link.ipv6 = false;
            link.link.addr_gen_none = true;
            self.drop_ipv6_addresses(place, ifindex);
            self.flush_neighbours_at(place, ifindex, true);
        } else if !link.ipv6 {
            link.ipv6 = true;
            link.link.addr_gen_none = quiet;
        }
        if let (Place::Overlay, Some(bridge)) = (place, self.at(place, ifindex)?.link.master) {
            self.adjust_mtu(bridge);
        }
        Ok(())
    }

    /// A bridge's MTU is the least of its ports', unless somebody set it to another value than it had.
    fn adjust_mtu(&mut self, bridge: u32) {
        let Ok(overlay) = self.overlay() else { return };
        let ports = overlay.links.values().filter(|link| link.link.master == Some(bridge));
        let least = ports.map(|link| link.link.mtu).min().unwrap_or(1500);
        let Some(link) = overlay.links.get(&bridge) else { return };
        if !link.mtu_by_hand && link.link.mtu != least {
            let _ = self.set_mtu(&Place::Overlay, bridge, least, false);
            self.emit_link(&Place::Overlay, bridge);
        }
    }

    fn set_master(&mut self, ifindex: u32, master: u32) -> Result<(), Failure> {
        if self.in_overlay(ifindex)?.link.master == Some(master) {
            return Ok(());
        }
        // The link leaves its bridge before it turns out whether it can join the other one.
        self.leave_bridge(ifindex);
        let bridge = self.in_overlay(master).map_err(|_| refused("no such master"))?;
        let is_bridge = |link: &Link| matches!(link.kind, LinkKind::Bridge { .. });
        if !is_bridge(&bridge.link) || is_bridge(&self.in_overlay(ifindex)?.link) {
            return Err(refused("not a bridge, or a bridge in a bridge"));
        }
        let link = self.in_overlay(ifindex)?;
        link.link.master = Some(master);
        let port = Port { learning: true, unicast_flood: true, isolated: false, locked: Some(false) };
        link.link.port = Some(port);
        self.adjust_mtu(master);
        Ok(())
    }

    /// A port that leaves its bridge takes along the rows that point to it.
    pub(super) fn leave_bridge(&mut self, ifindex: u32) {
        let Ok(link) = self.in_overlay(ifindex) else { return };
        let Some(bridge) = link.link.master.take() else { return };
        link.link.port = None;
        link.link.off.retain(|setting| setting.of() != Of::Port);
        let Ok(bridge_link) = self.in_overlay(bridge) else { return };
        let mut gone = Vec::new();
        bridge_link.rows.retain(|mac, (port, plain)| {
            if *port == ifindex {
                gone.push(FdbRow { ifindex, bridge: true, mac: *mac, dst: None, plain: *plain, kernels_own: false });
            }
            *port != ifindex
        });
        for row in gone {
            self.emit(Event::FdbGone(row));
        }
        self.adjust_mtu(bridge);
    }
}
