//! Addresses of links.

use ipnet::IpNet;
use vtepd::engine::{Failure, Place};

use super::{SimKernel, SimLink, refused};

/// Whether two addresses of a link are of the same subnet with the same prefix length: all but the first are secondary.
fn same_subnet(one: &IpNet, other: &IpNet) -> bool {
    one.prefix_len() == other.prefix_len() && one.trunc() == other.trunc()
}

impl SimKernel {
    pub(super) fn add_address(&mut self, place: &Place, ifindex: u32, net: IpNet) -> Result<(), Failure> {
        let link = self.at(place, ifindex)?;
        if net.addr().is_ipv6() {
            if !link.ipv6 {
                return Err(refused("no IPv6 on the link"));
            }
            // IPv6 has an address once per link: with another prefix length it is taken for the same, and nothing changes.
            let there = link.addresses.keys().any(|other| other.addr() == net.addr());
            if !there {
                link.addresses.insert(net, true);
                self.emit_addresses(place, ifindex);
            }
            return Ok(());
        }
        // One that is there already is written over, which is no error.
        if link.addresses.insert(net, true).is_none() {
            link.order.push(net);
        }
        self.emit_addresses(place, ifindex);
        Ok(())
    }

    /// Of IPv4 only what is missing is made; an IPv6 address is made anew.
    pub(super) fn restore_routes(&mut self, place: &Place, ifindex: u32, net: IpNet) -> Result<(), Failure> {
        let link = self.at(place, ifindex)?;
        if !link.addresses.contains_key(&net) {
            return Err(refused("no such address"));
        }
        link.unrouted.remove(&net);
        self.emit_addresses(place, ifindex);
        Ok(())
    }

    /// Somebody else takes away the routes that came with an address.
    pub fn unroute(&mut self, place: &Place, ifindex: u32, net: IpNet) {
        self.at(place, ifindex).unwrap().unrouted.insert(net);
        self.emit_addresses(place, ifindex);
    }

    /// Somebody else adds an address, which does not carry the agent's number.
    pub fn add_others_address(&mut self, place: &Place, ifindex: u32, net: IpNet) {
        self.add_address(place, ifindex, net).unwrap();
        self.at(place, ifindex).unwrap().addresses.insert(net, false);
    }

    pub(super) fn delete_address(&mut self, place: &Place, ifindex: u32, net: IpNet) -> Result<(), Failure> {
        let promote = self.promote_secondaries;
        if matches!(place, Place::Overlay) {
            self.overlay()?;
        }
        let Ok(link) = self.at(place, ifindex) else { return Ok(()) };
        if net.addr().is_ipv6() && !link.ipv6 {
            return Err(refused("no IPv6 on the link"));
        }
        link.unrouted.remove(&net);
        if link.addresses.remove(&net).is_none() {
            return Ok(());
        }
        if net.addr().is_ipv4() {
            let first = link.order.iter().find(|other| same_subnet(other, &net)) == Some(&net);
            link.order.retain(|other| *other != net);
            if first && !promote {
                let SimLink { order, addresses, .. } = link;
                order.retain(|other| !same_subnet(other, &net));
                addresses.retain(|other, _| !other.addr().is_ipv4() || !same_subnet(other, &net));
            }
            // With its last IPv4 address a link loses its IPv4 neighbours, permanent ones too (fib_disable_ip).
            if link.order.is_empty() {
                link.routes.retain(|dst, _| dst.addr().is_ipv6());
                self.flush_neighbours_of(place, ifindex, |ip| ip.is_ipv4());
            }
        }
        self.emit_addresses(place, ifindex);
        Ok(())
    }

    /// What IPv6 does when a link goes down or becomes too small for it.
    pub(super) fn drop_ipv6_addresses(&mut self, place: &Place, ifindex: u32) {
        let Ok(link) = self.at(place, ifindex) else { return };
        link.routes.retain(|dst, _| dst.addr().is_ipv4());
        let had = link.addresses.len();
        link.addresses.retain(|net, _| net.addr().is_ipv4());
        if link.addresses.len() < had {
            self.emit_addresses(place, ifindex);
        }
    }
}
