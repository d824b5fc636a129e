//! Routes of links, and forwarding.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use vtepd::{
    engine::{Event, Failure, Family, Forwarding, Place, RouteRow},
    model::Route,
};

use super::{SimKernel, SimLink, SimNetns, exists, not_found, refused};

impl SimNetns {
    pub(super) fn routes_of(&self, ifindex: u32) -> Vec<RouteRow> {
        let rows = self.links.get(&ifindex).into_iter().flat_map(|link| &link.routes);
        let alone = |dst: &IpNet| {
            let leading = self
                .links
                .values()
                .map(|link| usize::from(link.routes.contains_key(dst)) + usize::from(link.has_own_route(dst)));
            leading.sum::<usize>() == 1
        };
        rows.map(|(dst, (via, ours, plain))| RouteRow {
            route: Route { dst: *dst, via: *via },
            ours: *ours,
            plain: *plain,
            alone: alone(dst),
        })
        .collect()
    }

    pub(super) fn defaults_besides(&self, ifindex: u32) -> BTreeSet<Family> {
        let others = self.links.values().filter(|link| link.link.ifindex != ifindex);
        let defaults = others.flat_map(|link| link.routes.keys()).filter(|dst| dst.prefix_len() == 0);
        defaults.map(|dst| Family::of(dst.addr())).collect()
    }
}

impl SimLink {
    /// The kernel makes routes of its own to the subnets of IPv4 addresses, with the metric that others have.
    fn has_own_route(&self, dst: &IpNet) -> bool {
        let own = |net: &IpNet| net.addr().is_ipv4() && net.trunc() == *dst && net.prefix_len() < 32;
        self.link.up && self.addresses.keys().any(own)
    }

    /// A gateway is reached by the subnet of an address, or by a route that has no gateway itself.
    fn reaches(&self, gateway: IpAddr) -> bool {
        let on_link = self.routes.iter().filter(|(_, (via, ..))| via.is_none()).map(|(dst, _)| dst);
        self.addresses.keys().chain(on_link).any(|net| net.contains(&gateway))
    }
}

impl SimKernel {
    pub(super) fn put_route(
        &mut self,
        place: &Place,
        ifindex: u32,
        route: Route,
        replace: bool,
    ) -> Result<(), Failure> {
        let netns = self.netns_at(place)?;
        // An IPv4 gateway is looked up before its link is.
        let no_device = if route.dst.addr().is_ipv4() && route.via.is_some() {
            refused("the gateway is not on the link")
        } else {
            not_found("device")
        };
        let link = netns.links.get(&ifindex).ok_or(no_device)?;
        if route.dst.addr().is_ipv6() && !link.ipv6 {
            return Err(not_found("IPv6 on the device"));
        }
        if !link.link.up || route.via.is_some_and(|via| !link.reaches(via)) {
            return Err(refused("the gateway is not on the link"));
        }
        let same = link.routes.get(&route.dst) == Some(&(route.via, true, true));
        let holder = netns
            .links
            .values()
            .find(|link| link.routes.contains_key(&route.dst) || link.has_own_route(&route.dst))
            .map(|link| link.link.ifindex);
        match holder {
            Some(_) if !replace => return Err(exists("route")),
            Some(holder) => drop(netns.links.get_mut(&holder).and_then(|link| link.routes.remove(&route.dst))),
            None => {}
        }
        self.at(place, ifindex)?.routes.insert(route.dst, (route.via, true, true));
        // An IPv4 route in place of the same one is none.
        if !(same && route.dst.addr().is_ipv4()) {
            self.emit_route(place, ifindex);
        }
        Ok(())
    }

    pub(super) fn delete_route(&mut self, place: &Place, ifindex: u32, route: Route) -> Result<(), Failure> {
        if matches!(place, Place::Overlay) {
            self.overlay()?;
        }
        let Ok(link) = self.at(place, ifindex) else { return Ok(()) };
        if link.routes.get(&route.dst).is_some_and(|(via, ..)| *via == route.via || route.via.is_none()) {
            link.routes.remove(&route.dst);
            self.emit_route(place, ifindex);
        }
        Ok(())
    }

    /// Somebody else gives a link's route another form, or makes one.
    pub fn spoil_route(&mut self, place: &Place, ifindex: u32, route: Route, ours: bool) -> Result<(), Failure> {
        self.at(place, ifindex)?.routes.insert(route.dst, (route.via, ours, true));
        self.emit_route(place, ifindex);
        Ok(())
    }

    /// Nothing is told of routes of the overlay namespace.
    fn emit_route(&mut self, place: &Place, ifindex: u32) {
        if *place != Place::Overlay {
            self.emit_link(place, ifindex);
        }
    }

    pub fn set_forwarding(&mut self, family: Family, to: Option<Forwarding>) -> Result<(), Failure> {
        let forwarding = &mut self.overlay()?.forwarding;
        let before = match to {
            Some(to) => forwarding.insert(family, to),
            None => forwarding.remove(&family),
        };
        if before != to {
            self.emit(Event::Forwarding(family, to == Some(Forwarding::Everywhere)));
        }
        Ok(())
    }
}
