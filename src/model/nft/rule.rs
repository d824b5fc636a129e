use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::{Base, Comparison, Connection, Expression, Meta, Verdict};
use crate::model::Mac;

const ETH_P_IP: u16 = 0x0800;
const ETH_P_ARP: u16 = 0x0806;
const ETH_P_IPV6: u16 = 0x86dd;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
const ARPHRD_ETHER: u16 = 1;
const IPPROTO_UDP: u8 = 17;
const IPPROTO_ICMPV6: u8 = 58;
/// The length of a device's name in the kernel, with the zero that ends it.
const IFNAMSIZ: usize = 16;

/// A rule, made of its matches from left to right and ended by what is done:
/// `Rule::new().iifname("gw0").udp_dport(4789).drop()`.
///
/// A match brings what it depends on, once: one of an IPv4 address matches IPv4 packets only, also where it asks for another
/// address than the given one. A packet that is too short for a match does not match, in neither sense; a rule that is to keep
/// something out is better one that lets the rest in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// The steps, in their order.
    pub expressions: Vec<Expression>,
}

impl Rule {
    /// A rule that matches every packet.
    pub fn new() -> Self {
        Self::default()
    }

    /// A rule of these steps.
    pub const fn of(expressions: Vec<Expression>) -> Self {
        Self { expressions }
    }

    fn then(mut self, expression: Expression) -> Self {
        self.expressions.push(expression);
        self
    }

    fn compare(self, load: Expression, comparison: Comparison, value: &[u8]) -> Self {
        self.then(load).then(Expression::Compare(comparison, value.to_vec()))
    }

    fn has(&self, load: &Expression, value: &[u8]) -> bool {
        let compare = Expression::Compare(Comparison::Equal, value.to_vec());
        self.expressions.windows(2).any(|pair| pair.iter().eq([load, &compare]))
    }

    /// The match, unless the rule has it already.
    fn once(self, load: Expression, value: &[u8]) -> Self {
        if self.has(&load, value) { self } else { self.compare(load, Comparison::Equal, value) }
    }

    /// Came in by this device. A name of more than 15 bytes is no device's.
    #[must_use]
    pub fn iifname(self, name: &str) -> Self {
        self.compare(Expression::Meta(Meta::IifName), Comparison::Equal, &interface(name))
    }

    /// Came in by another device.
    #[must_use]
    pub fn iifname_not(self, name: &str) -> Self {
        self.compare(Expression::Meta(Meta::IifName), Comparison::NotEqual, &interface(name))
    }

    /// Leaves by this device.
    #[must_use]
    pub fn oifname(self, name: &str) -> Self {
        self.compare(Expression::Meta(Meta::OifName), Comparison::Equal, &interface(name))
    }

    /// Leaves by another device.
    #[must_use]
    pub fn oifname_not(self, name: &str) -> Self {
        self.compare(Expression::Meta(Meta::OifName), Comparison::NotEqual, &interface(name))
    }

    /// Is of this Ethernet type.
    #[must_use]
    pub fn ether_type(self, ether_type: u16) -> Self {
        self.once(Expression::Meta(Meta::Protocol), &ether_type.to_be_bytes())
    }

    /// Is IPv4.
    #[must_use]
    pub fn ipv4(self) -> Self {
        self.ip_version(ETH_P_IP, NFPROTO_IPV4)
    }

    /// Is IPv6.
    #[must_use]
    pub fn ipv6(self) -> Self {
        self.ip_version(ETH_P_IPV6, NFPROTO_IPV6)
    }

    /// Is IPv4, for tables of the family `inet`: there `nft` shows the addresses that come after it as such.
    #[must_use]
    pub fn inet_ipv4(self) -> Self {
        self.once(Expression::Meta(Meta::NfProto), &[NFPROTO_IPV4])
    }

    /// Is IPv6, for tables of the family `inet`.
    #[must_use]
    pub fn inet_ipv6(self) -> Self {
        self.once(Expression::Meta(Meta::NfProto), &[NFPROTO_IPV6])
    }

    fn ip_version(self, ether_type: u16, nfproto: u8) -> Self {
        if self.has(&Expression::Meta(Meta::NfProto), &[nfproto]) { self } else { self.ether_type(ether_type) }
    }

    /// Has this protocol above IP, of either version.
    #[must_use]
    pub fn l4proto(self, protocol: u8) -> Self {
        self.once(Expression::Meta(Meta::L4Proto), &[protocol])
    }

    /// Is UDP to this port.
    #[must_use]
    pub fn udp_dport(self, port: u16) -> Self {
        self.l4proto(IPPROTO_UDP).compare(payload(Base::Transport, 2, 2), Comparison::Equal, &port.to_be_bytes())
    }

    /// Is UDP from this port.
    #[must_use]
    pub fn udp_sport(self, port: u16) -> Self {
        self.l4proto(IPPROTO_UDP).compare(payload(Base::Transport, 0, 2), Comparison::Equal, &port.to_be_bytes())
    }

    /// Came in by an Ethernet device; all but `lo`, tunnels of IP and the like are.
    #[must_use]
    pub fn ethernet(self) -> Self {
        self.once(Expression::Meta(Meta::IifType), &ARPHRD_ETHER.to_ne_bytes())
    }

    /// Has this Ethernet source.
    #[must_use]
    pub fn ether_saddr(self, mac: Mac) -> Self {
        self.ethernet().compare(payload(Base::Link, 6, 6), Comparison::Equal, &mac.octets())
    }

    /// Has another Ethernet source.
    #[must_use]
    pub fn ether_saddr_not(self, mac: Mac) -> Self {
        self.ethernet().compare(payload(Base::Link, 6, 6), Comparison::NotEqual, &mac.octets())
    }

    /// Is ARP for IPv4 over Ethernet: hardware type 1, protocol type 0x0800, addresses of 6 and 4 bytes (RFC 826).
    #[must_use]
    pub fn arp(self) -> Self {
        self.ether_type(ETH_P_ARP).once(payload(Base::Network, 0, 6), &[0, 1, 8, 0, 6, 4])
    }

    /// Is ARP whose sender says to have this hardware address.
    #[must_use]
    pub fn arp_sender_mac(self, mac: Mac) -> Self {
        self.arp().compare(payload(Base::Network, 8, 6), Comparison::Equal, &mac.octets())
    }

    /// Is ARP whose sender says to have this address. A probe (RFC 5227) says 0.0.0.0.
    #[must_use]
    pub fn arp_sender_ip(self, ip: Ipv4Addr) -> Self {
        self.arp().compare(payload(Base::Network, 14, 4), Comparison::Equal, &ip.octets())
    }

    /// Is IP with a source in this prefix.
    #[must_use]
    pub fn saddr_in(self, prefix: IpNet) -> Self {
        self.address(Side::Source, prefix, Comparison::Equal)
    }

    /// Is IP, of the prefix's version, with a source outside it.
    #[must_use]
    pub fn saddr_not_in(self, prefix: IpNet) -> Self {
        self.address(Side::Source, prefix, Comparison::NotEqual)
    }

    /// Is IP with a destination in this prefix.
    #[must_use]
    pub fn daddr_in(self, prefix: IpNet) -> Self {
        self.address(Side::Destination, prefix, Comparison::Equal)
    }

    /// Is IP, of the prefix's version, with a destination outside it.
    #[must_use]
    pub fn daddr_not_in(self, prefix: IpNet) -> Self {
        self.address(Side::Destination, prefix, Comparison::NotEqual)
    }

    /// Is IP from this address.
    #[must_use]
    pub fn saddr(self, ip: IpAddr) -> Self {
        self.saddr_in(IpNet::from(ip))
    }

    /// Is IP to this address.
    #[must_use]
    pub fn daddr(self, ip: IpAddr) -> Self {
        self.daddr_in(IpNet::from(ip))
    }

    fn address(self, side: Side, prefix: IpNet, comparison: Comparison) -> Self {
        let (offset, address, mask) = match prefix.trunc() {
            IpNet::V4(v4) => (side.offset(12, 16), v4.addr().octets().to_vec(), v4.netmask().octets().to_vec()),
            IpNet::V6(v6) => (side.offset(8, 24), v6.addr().octets().to_vec(), v6.netmask().octets().to_vec()),
        };
        let length = if address.len() == 4 { 4 } else { 16 };
        let rule = if length == 4 { self.ipv4() } else { self.ipv6() };
        if prefix.prefix_len() == 0 && comparison == Comparison::Equal {
            return rule;
        }
        let rule = rule.then(payload(Base::Network, offset, length));
        let whole = prefix.prefix_len() == prefix.max_prefix_len();
        let rule = if whole { rule } else { rule.then(Expression::Mask(mask)) };
        rule.then(Expression::Compare(comparison, address))
    }

    /// Is ICMPv6 of this type.
    #[must_use]
    pub fn icmpv6_type(self, icmpv6_type: u8) -> Self {
        self.ipv6().l4proto(IPPROTO_ICMPV6).once(payload(Base::Transport, 0, 1), &[icmpv6_type])
    }

    /// Asks for, or tells of, this address: to be put after [`Self::icmpv6_type`] 135 or 136, which both have it in one place
    /// (RFC 4861, 4.3 and 4.4).
    #[must_use]
    pub fn nd_target(self, target: Ipv6Addr) -> Self {
        self.compare(payload(Base::Transport, 8, 16), Comparison::Equal, &target.octets())
    }

    /// Is not of a connection that was seen before, nor related to one.
    #[must_use]
    pub fn unasked(self) -> Self {
        // NF_CT_STATE_BIT, include/uapi/linux/netfilter/nf_conntrack_common.h: established is bit 1, related bit 2.
        self.none_of(Connection::State, 0b110)
    }

    /// Is of a connection whose destination nobody translated.
    #[must_use]
    pub fn not_dnat(self) -> Self {
        // IPS_DST_NAT, include/uapi/linux/netfilter/nf_conntrack_common.h.
        self.none_of(Connection::Status, 1 << 5)
    }

    fn none_of(self, what: Connection, bits: u32) -> Self {
        self.then(Expression::Connection(what))
            .then(Expression::Mask(bits.to_ne_bytes().to_vec()))
            .then(Expression::Compare(Comparison::Equal, vec![0; 4]))
    }

    /// Counts what matches so far.
    #[must_use]
    pub fn counter(self) -> Self {
        self.then(Expression::Counter)
    }

    /// Accepts what matches.
    #[must_use]
    pub fn accept(self) -> Self {
        self.then(Expression::Verdict(Verdict::Accept))
    }

    /// Drops what matches.
    #[must_use]
    pub fn drop(self) -> Self {
        self.then(Expression::Verdict(Verdict::Drop))
    }

    /// Leaves what matches to the policy.
    #[must_use]
    pub fn leave(self) -> Self {
        self.then(Expression::Verdict(Verdict::Return))
    }

    /// Masquerades what matches.
    #[must_use]
    pub fn masquerade(self) -> Self {
        self.then(Expression::Masquerade)
    }
}

#[derive(Clone, Copy)]
enum Side {
    Source,
    Destination,
}

impl Side {
    const fn offset(self, source: u32, destination: u32) -> u32 {
        match self {
            Self::Source => source,
            Self::Destination => destination,
        }
    }
}

const fn payload(base: Base, offset: u32, length: u32) -> Expression {
    Expression::Payload { base, offset, length }
}

/// A device's name as the kernel loads it. One that is too long fills all bytes, which no device's name does.
fn interface(name: &str) -> [u8; IFNAMSIZ] {
    let mut bytes = [0; IFNAMSIZ];
    bytes.iter_mut().zip(name.bytes()).for_each(|(byte, letter)| *byte = letter);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_match_depends_on_comes_once() {
        let rule = Rule::new().ipv4().saddr("10.0.0.2".parse().unwrap()).udp_dport(1).drop();
        let types = rule.expressions.iter().filter(|step| **step == Expression::Meta(Meta::Protocol));
        assert_eq!(types.count(), 1);
    }

    #[test]
    fn a_prefix_of_all_addresses_matches_its_version_and_its_contrary_nothing() {
        let all: IpNet = "0.0.0.0/0".parse().unwrap();
        assert_eq!(Rule::new().saddr_in(all), Rule::new().ipv4());
        let none = Rule::new().saddr_not_in(all).expressions;
        assert_eq!(none[3..], [Expression::Mask(vec![0; 4]), Expression::Compare(Comparison::NotEqual, vec![0; 4])]);
    }

    #[test]
    fn a_name_that_is_too_long_is_not_cut_to_another_devices() {
        assert_ne!(interface("abcdefghijklmnopq"), interface("abcdefghijklmno"));
        assert_eq!(interface("gw")[..3], *b"gw\0");
    }
}
