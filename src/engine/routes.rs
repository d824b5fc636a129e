//! Routes of local endpoints, and whether the overlay namespace forwards.
//!
//! **Invariant:** a namespace has one route to a destination, the first endpoint's
//! (`of_two_endpoints_in_a_namespace_the_first_has_the_route_and_none_has_one_to_where_the_other_is`), and what somebody else leads
//! elsewhere stays (`a_destination_that_another_link_leads_to_is_left_to_it_and_blocks_that_route_alone`).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;

use super::{
    delta::{Cause, Fits},
    inner::on_link,
    interface::{Action, Op},
    key::{Family, Key, LinkId},
    local::Local,
    network::Network,
    object::{Forwarding, RouteRow},
    plan::{BATCH, Plan, Planned},
    reads::ReadCause,
};
use crate::{
    desired::NetworkSpec,
    model::{EndpointId, Mac, Netns, Route},
};

impl Fits<RouteRow> for Route {
    fn fits(&self, seen: &RouteRow) -> bool {
        seen.plain && seen.ours && seen.route == *self
    }
}

/// The families that the overlay namespace routes: those of which the network has several subnets with a gateway here.
pub(super) fn routed(spec: &NetworkSpec, family: Family) -> bool {
    let gateways = spec.segments.iter().flat_map(|segment| &segment.gateways);
    gateways.filter(|gateway| Family::of(gateway.addr()) == family).count() > 1
}

/// The link-local address that belongs to a MAC address (RFC 4291, appendix A).
fn link_local(mac: Mac) -> IpNet {
    let [a, b, c, d, e, f] = mac.octets();
    let ip = IpAddr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
    IpNet::new(ip, 64).unwrap_or_else(|_| ip.into())
}

impl Network {
    /// Sets which routes the endpoints of a namespace have in it. A namespace has one route to a destination: where several
    /// endpoints lead there it is the first one's, and where one of them is there itself it is nobody's.
    pub(super) fn refresh_routes(&mut self, netns: &Netns) {
        let wired = |id: &EndpointId| self.locals.by_id.get(id).filter(|local| local.wired()).map(|local| &local.spec);
        let here = self.locals.in_netns(netns);
        let at_home = here.iter().filter_map(wired).flat_map(|spec| &spec.addresses).map(IpNet::trunc);
        let mut taken: BTreeSet<IpNet> = at_home.collect();
        let mut wanted: BTreeMap<EndpointId, Vec<Route>> = BTreeMap::new();
        for id in here {
            let routes = wired(&id).into_iter().flat_map(|spec| &spec.routes);
            let inner = LinkId::Inner(id.clone());
            let refused = |route: &Route| route.dst.addr().is_ipv6() && self.view().refuses_ipv6(&inner);
            let routes = routes.filter(|route| !self.yields(&id, route) && !refused(route));
            let routes = routes.filter(|route| taken.insert(route.dst)).copied().collect();
            wanted.insert(id, routes);
        }
        for (id, routes) in wanted {
            self.want_routes(&id, &routes);
        }
    }

    /// The way outside is for those that have none: a default route of the gateway bridge's yields to any other.
    fn yields(&self, id: &EndpointId, route: &Route) -> bool {
        let elsewhere = |local: &Local| local.defaults_elsewhere.contains(&Family::of(route.dst.addr()));
        self.config.home.is_host() && route.dst.prefix_len() == 0 && self.locals.by_id.get(id).is_some_and(elsewhere)
    }

    /// Notes which default routes an endpoint's namespace has besides ours.
    pub(super) fn yield_defaults(&mut self, id: &EndpointId, elsewhere: BTreeSet<Family>) {
        if !self.config.home.is_host() {
            return;
        }
        let Some(local) = self.locals.by_id.get_mut(id).filter(|local| local.defaults_elsewhere != elsewhere) else {
            return;
        };
        local.defaults_elsewhere = elsewhere;
        let netns = local.spec.netns.clone();
        self.refresh_routes(&netns);
    }

    /// Sets the routes of an endpoint, exactly these.
    pub(super) fn want_routes(&mut self, id: &EndpointId, routes: &[Route]) {
        let link = LinkId::Inner(id.clone());
        let key = |dst: IpNet| (link.clone(), dst);
        let kept: BTreeSet<IpNet> = routes.iter().map(|route| route.dst).collect();
        for key in self.tables.routes.desired_in(on_link(&link)).iter().filter(|(_, dst)| !kept.contains(dst)) {
            self.want_route(key, None);
            // What somebody else made of it is theirs, once it is not ours to mend.
            if self.tables.routes.observed_of(key).is_some_and(|seen| !seen.ours) {
                self.tables.routes.set_observed(key, None, Cause::Change);
            }
        }
        for route in routes {
            self.want_route(&key(route.dst), Some(*route));
        }
    }

    fn want_route(&mut self, key: &(LinkId, IpNet), want: Option<Route>) {
        if self.tables.routes.set_desired(key, want) {
            self.episodes.desired_moved(&Key::Route(key.0.clone(), key.1));
        }
    }

    /// Sets whether the namespace is to forward.
    pub(super) fn want_forwarding(&mut self) {
        let on_host = self.config.home.is_host();
        for family in Family::ALL {
            let led_outside = |spec: &NetworkSpec| spec.gateways().any(|gateway| Family::of(gateway.addr()) == family);
            let on = self
                .desired
                .spec
                .as_ref()
                .is_some_and(|spec| if on_host { led_outside(spec) } else { routed(spec, family) });
            if self.tables.forwarding.set_desired(&family, on.then_some(Forwarding::Everywhere)) {
                self.episodes.desired_moved(&Key::Forwarding(family));
                // What the host did by itself was not looked at.
                if on_host && self.tables.ours() {
                    self.reads.forwarding = Some(ReadCause::First);
                }
            }
        }
    }

    /// Sets the link-local addresses of the bridges between which the namespace forwards IPv6: for a packet of somebody else a
    /// neighbour is solicited from such an address, or not at all (ndisc_solicit, net/ipv6/ndisc.c). Like the MAC address that it
    /// is made of it is the same on every node.
    pub(super) fn want_link_locals(&mut self, old: Option<&NetworkSpec>) {
        let of = |spec: Option<&NetworkSpec>| -> BTreeSet<(LinkId, IpNet)> {
            let spec = spec.filter(|spec| routed(spec, Family::V6));
            let segments = spec.into_iter().flat_map(|spec| &spec.segments);
            let v6 = segments.filter(|segment| segment.gateways.iter().any(|gateway| gateway.addr().is_ipv6()));
            v6.map(|segment| (LinkId::Bridge(segment.vni), link_local(segment.gateway_mac))).collect()
        };
        let (old, new) = (of(old), of(self.desired.spec.as_deref()));
        for key in old.difference(&new) {
            self.want_address(key, None);
        }
        for key in &new {
            self.want_address(key, Some(()));
        }
    }

    /// The routes out of an endpoint's end, all of them. Ours are those with our number; and to a destination to which a route is
    /// desired, whatever comes first on the link: it stands in the place of ours.
    pub(super) fn observe_routes(&mut self, id: &LinkId, rows: &[RouteRow], cause: ReadCause) {
        let mut seen: BTreeMap<(LinkId, IpNet), RouteRow> = BTreeMap::new();
        for row in rows {
            let key = (id.clone(), row.route.dst);
            if row.ours || self.tables.routes.desired_of(&key).is_some() {
                seen.entry(key).or_insert(*row);
            }
        }
        for key in self.tables.routes.observed_in(on_link(id)).iter().filter(|key| !seen.contains_key(key)) {
            self.saw_route(key, None, cause);
        }
        for (key, row) in seen {
            self.saw_route(&key, Some(row), cause);
        }
    }

    fn saw_route(&mut self, key: &(LinkId, IpNet), observed: Option<RouteRow>, cause: ReadCause) {
        if self.tables.routes.set_observed(key, observed, cause.into()) && cause == ReadCause::Foreign {
            self.episodes.suspect(Key::Route(key.0.clone(), key.1));
        }
    }

    /// With its last IPv4 address a link loses its IPv4 routes, and nothing is told of them (fib_disable_ip, fib_frontend.c).
    /// Whether it was the last one shows when they are read.
    pub(super) fn address_taken(&mut self, id: &LinkId) {
        let LinkId::Inner(endpoint) = id else { return };
        for (link, dst) in self.tables.routes.observed_in(on_link(id)) {
            self.episodes.wrote(Key::Route(link, dst));
        }
        self.reads.inner(endpoint.clone(), ReadCause::Own);
    }

    pub(super) fn observe_forwarding(&mut self, seen: &[(Family, Forwarding)], cause: ReadCause) {
        for family in Family::ALL {
            let now = seen.iter().find(|(of, _)| *of == family).map(|(_, forwarding)| *forwarding);
            // Whether the host forwards otherwise, and from which links, is not ours to say.
            let wanted = self.tables.forwarding.desired_of(&family).is_some();
            let now =
                if self.config.home.is_host() { now.filter(|_| wanted).map(|_| Forwarding::Everywhere) } else { now };
            if self.tables.forwarding.set_observed(&family, now, cause.into()) && cause == ReadCause::Foreign {
                self.episodes.suspect(Key::Forwarding(family));
            }
        }
    }
}

impl Plan<'_> {
    /// The namespace forwards, or no longer does. Not before the desired side is known to be there at all: what is on its way
    /// out is left as it is.
    pub(super) fn plan_forwarding(&self) -> Vec<Planned> {
        if !self.tables.ours() || self.desired.spec.is_none() {
            return Vec::new();
        }
        let planned = self.tables.forwarding.differing().filter_map(|family| {
            let sides = self.tables.forwarding.get(family)?;
            let (on, action) = match (&sides.desired, &sides.observed) {
                (Some(_), None) => (true, Action::Add),
                (Some(_), Some(_)) => (true, Action::Replace),
                (None, _) => (false, Action::Delete),
            };
            let op = Op::SetForwarding { family: *family, on };
            self.planned(Key::Forwarding(*family), action, sides.cause, op)
        });
        planned.collect()
    }

    /// Routes come last: a gateway must be on the link already.
    pub(super) fn plan_routes(&self) -> Vec<Planned> {
        if !self.tables.ours() {
            return Vec::new();
        }
        let planned = self.tables.routes.differing().filter_map(|key| {
            let (id, dst) = key;
            let link = self.tables.links.observed_of(id)?;
            let sides = self.tables.routes.get(key)?;
            let (place, ifindex) = (self.locals.place_of(id)?, link.ifindex);
            let (action, op) = match (sides.desired, sides.observed) {
                (Some(route), _) if !self.can_route(id, link.up, route.dst.addr()) => return None,
                (Some(route), None) => (Action::Add, Op::AddRoute { place, ifindex, route }),
                // The kernel replaces the first of several: that must be the one that was seen, and not one on another link.
                (Some(route), Some(seen)) if seen.alone => {
                    (Action::Replace, Op::ReplaceRoute { place, ifindex, route })
                }
                (Some(_), Some(seen)) => (Action::Replace, Op::DeleteRoute { place, ifindex, route: seen.route }),
                (None, Some(seen)) => (Action::Delete, Op::DeleteRoute { place, ifindex, route: seen.route }),
                (None, None) => return None,
            };
            self.planned(Key::Route(id.clone(), *dst), action, sides.cause, op)
        });
        // Where a destination passes from one link to another, the one must go before the other can come.
        let (mut removals, others): (Vec<_>, Vec<_>) = planned.partition(|planned| planned.action == Action::Delete);
        removals.extend(others);
        removals.truncate(BATCH);
        removals
    }

    /// Whether the link is up and has the addresses by which gateways of this family are reached.
    fn can_route(&self, id: &LinkId, up: bool, to: IpAddr) -> bool {
        let LinkId::Inner(endpoint) = id else { return false };
        let Some(local) = self.locals.by_id.get(endpoint) else { return false };
        let mut family = local.spec.addresses.iter().filter(|net| net.addr().is_ipv4() == to.is_ipv4());
        up && family.all(|net| self.tables.addresses.observed_of(&(id.clone(), *net)).is_some())
    }
}
