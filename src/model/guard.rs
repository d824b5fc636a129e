use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{
    Mac,
    nft::{Base, Chain, ChainKind, Comparison, Expression, Family, Hook, HookPoint, Meta, Policy, Rule, TableId},
};

const ETH_P_8021Q: u16 = 0x8100;
const ETH_P_8021AD: u16 = 0x88a8;
const IPPROTO_FRAGMENT: u8 = 44;
const IPPROTO_ICMPV6: u8 = 58;
/// Reserved by IANA: no packet has it.
const IPPROTO_RAW: u8 = 255;
/// `fe80::/10`.
const LINK_LOCAL: [u8; 16] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const LINK_LOCAL_MASK: [u8; 16] = [0xff, 0xc0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

// RFC 4861, 4.
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const ROUTER_ADVERTISEMENT: u8 = 134;
const REDIRECT: u8 = 137;

/// The table of the guards in an overlay namespace, where nothing but ours is.
pub fn guard_table() -> TableId {
    TableId::new(Family::Netdev, "vtepd")
}

/// The chain that lets in by a device what an endpoint with this MAC address and these addresses may send, and drops all else.
///
/// What may come in is from its MAC address, without a VLAN tag (which would hide the rest), and one of:
///
/// - ARP that tells of no other hardware address than its own, and of none but its addresses, or of none at all (a probe, RFC 5227);
/// - IPv4 from one of its addresses;
/// - IPv6 from one of its addresses, from a link-local one, or, as far as ICMPv6 needs it, from the unspecified one. No router
///   advertisement and no redirect; neighbour advertisements, and solicitations from the unspecified address (duplicate address
///   detection, RFC 4862), for its addresses and link-local ones only.
///
/// Where it goes to makes no difference. Link-local addresses are nobody's in particular: the kernel of an endpoint makes them up as
/// it likes, from its MAC address or not. Behind IPv6's extension headers `meta l4proto` finds ICMPv6 as a receiver does; ICMPv6 whose
/// type cannot be read is dropped, and so is an advertisement whose target cannot (first fragments that end before). Later fragments
/// pass: what they are part of is judged by the first.
///
/// The number of rules does not grow with that of addresses.
pub fn guard(device: &str, mac: Mac, addresses: impl IntoIterator<Item = IpAddr>) -> Chain {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for address in addresses {
        match address {
            IpAddr::V4(ip) => v4.push(ip.octets().to_vec()),
            IpAddr::V6(ip) => v6.push(ip.octets().to_vec()),
        }
    }
    let mut rules = vec![
        Rule::new().ether_saddr_not(mac).drop(),
        equal(Rule::new(), Base::Link, 12, &ETH_P_8021Q.to_be_bytes()).drop(),
        equal(Rule::new(), Base::Link, 12, &ETH_P_8021AD.to_be_bytes()).drop(),
    ];
    if !v4.is_empty() {
        let unspecified = Ipv4Addr::UNSPECIFIED.octets().to_vec();
        let or_none: Vec<_> = v4.iter().cloned().chain([unspecified]).collect();
        rules.push(none_of(Rule::new().arp(), Base::Network, 14, &or_none).drop());
        rules.push(has(Rule::new().arp_sender_mac(mac), Base::Network, 24, 4).accept());
        rules.push(none_of(Rule::new().ipv4(), Base::Network, 12, &v4).drop());
        rules.push(judged(Rule::new().ipv4()).accept());
    }
    let advertisement = || Rule::new().icmpv6_type(NEIGHBOUR_ADVERTISEMENT);
    let unspecified = || Rule::new().saddr(Ipv6Addr::UNSPECIFIED.into());
    let solicitation = unspecified().icmpv6_type(NEIGHBOUR_SOLICITATION);
    let or_none: Vec<_> = v6.iter().cloned().chain([Ipv6Addr::UNSPECIFIED.octets().to_vec()]).collect();
    rules.extend([
        nor_link_local(none_of(Rule::new().ipv6(), Base::Network, 8, &or_none)).drop(),
        Rule::new().icmpv6_type(ROUTER_ADVERTISEMENT).drop(),
        Rule::new().icmpv6_type(REDIRECT).drop(),
        nor_link_local(none_of(advertisement(), Base::Transport, 8, &v6)).drop(),
        has(advertisement(), Base::Transport, 8, 16).accept(),
        advertisement().drop(),
        compare(unspecified(), Expression::Meta(Meta::L4Proto), Comparison::NotEqual, &[IPPROTO_ICMPV6]).drop(),
        nor_link_local(none_of(solicitation, Base::Transport, 8, &v6)).drop(),
        judged(later_fragment()).accept(),
        has(Rule::new().ipv6().l4proto(IPPROTO_ICMPV6), Base::Transport, 0, 1).accept(),
        then(judged(Rule::new().ipv6()), [Expression::Compare(Comparison::NotEqual, vec![IPPROTO_ICMPV6])]).accept(),
        // The policy of a chain comes into force a moment after its rules.
        Rule::new().drop(),
    ]);
    let hook = Hook {
        kind: ChainKind::Filter,
        point: HookPoint::Ingress,
        priority: 0,
        policy: Policy::Drop,
        device: Some(device.to_owned()),
    };
    Chain::new(hook, rules)
}

fn then(mut rule: Rule, steps: impl IntoIterator<Item = Expression>) -> Rule {
    rule.expressions.extend(steps);
    rule
}

fn compare(rule: Rule, load: Expression, comparison: Comparison, value: &[u8]) -> Rule {
    then(rule, [load, Expression::Compare(comparison, value.to_vec())])
}

fn equal(rule: Rule, base: Base, offset: u32, value: &[u8]) -> Rule {
    let length = u32::try_from(value.len()).unwrap_or(u32::MAX);
    compare(rule, Expression::Payload { base, offset, length }, Comparison::Equal, value)
}

/// What is there is none of these values, which are of one length.
fn none_of(rule: Rule, base: Base, offset: u32, values: &[Vec<u8>]) -> Rule {
    let length = values.first().map_or(16, Vec::len);
    let length = u32::try_from(length).unwrap_or(u32::MAX);
    let rule = then(rule, [Expression::Payload { base, offset, length }]);
    then(rule, values.iter().map(|value| Expression::Compare(Comparison::NotEqual, value.clone())))
}

/// Nor is the IPv6 address that was loaded last a link-local one.
fn nor_link_local(rule: Rule) -> Rule {
    let mask = Expression::Mask(LINK_LOCAL_MASK.to_vec());
    then(rule, [mask, Expression::Compare(Comparison::NotEqual, LINK_LOCAL.to_vec())])
}

/// The packet is long enough for this.
fn has(rule: Rule, base: Base, offset: u32, length: u32) -> Rule {
    let zeros = vec![0; usize::try_from(length).unwrap_or_default()];
    let (mask, all) = (Expression::Mask(zeros.clone()), Expression::Compare(Comparison::Equal, zeros));
    then(rule, [Expression::Payload { base, offset, length }, mask, all])
}

/// IPv6 that begins with a fragment header (RFC 8200, 4.5) of another offset than 0.
fn later_fragment() -> Rule {
    let rule = equal(Rule::new().ipv6(), Base::Network, 6, &[IPPROTO_FRAGMENT]);
    let offset = Expression::Payload { base: Base::Network, offset: 42, length: 2 };
    let mask = Expression::Mask(vec![0xff, 0xf8]);
    then(rule, [offset, mask, Expression::Compare(Comparison::NotEqual, vec![0, 0])])
}

/// The IP header is whole, and what is above it is known: else there is no such protocol to load.
fn judged(rule: Rule) -> Rule {
    compare(rule, Expression::Meta(Meta::L4Proto), Comparison::NotEqual, &[IPPROTO_RAW])
}
