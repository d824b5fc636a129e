//! Ethernet frames as nobody's kernel would send them. Each has a mark of its own in it, by which it is known where it arrives; within
//! the packet, since what is behind it may be cut off on the way (`br_netfilter` does).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub(crate) type Mac = [u8; 6];

pub(crate) const ARP: u16 = 0x0806;
pub(crate) const IPV4: u16 = 0x0800;
pub(crate) const IPV6: u16 = 0x86dd;
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMP: u8 = 1;
pub(crate) const ICMPV6: u8 = 58;
pub(crate) const HOP_BY_HOP: u8 = 0;
pub(crate) const FRAGMENT: u8 = 44;
pub(crate) const DESTINATION_OPTIONS: u8 = 60;

/// What a frame is known by.
pub(crate) fn mark(name: &str) -> [u8; 24] {
    let mut mark = [0; 24];
    let text = format!("<{name}>");
    mark[..text.len()].copy_from_slice(text.as_bytes());
    mark
}

pub(crate) fn ethernet(to: Mac, from: Mac, kind: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &from, &kind.to_be_bytes(), payload].concat()
}

/// The frame within a VLAN.
pub(crate) fn tagged(protocol: u16, frame: &[u8]) -> Vec<u8> {
    [&frame[..12], &protocol.to_be_bytes(), &[0, 7], &frame[12..]].concat()
}

pub(crate) fn arp(operation: u16, sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr)) -> Vec<u8> {
    let head = [&[0, 1, 8, 0, 6, 4][..], &operation.to_be_bytes()].concat();
    let (sender_ip, target_ip) = (sender.1.octets(), target.1.octets());
    [&head[..], &sender.0, &sender_ip, &target.0, &target_ip].concat()
}

fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let bytes: Vec<u8> = parts.concat();
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | pair.get(1).copied().map_or(0, u32::from);
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

/// An IPv4 packet; the offset is a fragment's, in bytes.
pub(crate) fn ipv4(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, offset: u16, payload: &[u8]) -> Vec<u8> {
    let length = (20 + payload.len() as u16).to_be_bytes();
    let fragment = (offset / 8).to_be_bytes();
    let head = [0x45, 0, length[0], length[1], 0, 9, fragment[0], fragment[1], 64, protocol, 0, 0];
    let (from, to) = (from.octets(), to.octets());
    let sum = checksum(&[&head, &from, &to]);
    [&head[..10], &sum, &from, &to, payload].concat()
}

pub(crate) fn ipv6(from: Ipv6Addr, to: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u16).to_be_bytes();
    let head = [0x60, 0, 0, 0, length[0], length[1], next, 255];
    [&head[..], &from.octets(), &to.octets(), payload].concat()
}

/// An extension header of eight bytes, of padding.
pub(crate) fn padding(next: u8) -> Vec<u8> {
    vec![next, 0, 1, 4, 0, 0, 0, 0]
}

/// Destination options of forty bytes, with a mark in their padding.
pub(crate) fn options(next: u8, mark: [u8; 24]) -> Vec<u8> {
    [&[next, 4, 1, 36][..], &mark, &[0; 12]].concat()
}

/// A fragment header.
pub(crate) fn fragment(next: u8, offset: u16, more: bool) -> Vec<u8> {
    let at = (offset | u16::from(more)).to_be_bytes();
    vec![next, 0, at[0], at[1], 0, 0, 0, 5]
}

/// A datagram whose checksum nobody looks at: none, or wrong.
pub(crate) fn udp(mark: [u8; 24]) -> Vec<u8> {
    [&[0x27, 0x0f, 0x27, 0x0f, 0, 32, 0, 0][..], &mark].concat()
}

/// An option of neighbour discovery that nobody knows.
pub(crate) fn option(mark: [u8; 24]) -> Vec<u8> {
    [&[253, 4, 0, 0, 0, 0, 0, 0][..], &mark].concat()
}

/// An ICMPv6 message with its checksum.
pub(crate) fn icmpv6(from: Ipv6Addr, to: Ipv6Addr, kind: u8, body: &[u8]) -> Vec<u8> {
    let length = (4 + body.len() as u32).to_be_bytes();
    let pseudo = [&from.octets()[..], &to.octets(), &length, &[0, 0, 0, ICMPV6]].concat();
    let sum = checksum(&[&pseudo, &[kind, 0, 0, 0], body]);
    [&[kind, 0][..], &sum, body].concat()
}

/// The body of a neighbour advertisement: solicited or not, it overrides what is known of the target.
pub(crate) fn advertisement(target: Ipv6Addr, mac: Mac, mark: [u8; 24]) -> Vec<u8> {
    [&[0x20, 0, 0, 0][..], &target.octets(), &[2, 1], &mac, &option(mark)[..]].concat()
}

/// The body of a neighbour solicitation.
pub(crate) fn solicitation(target: Ipv6Addr, mark: [u8; 24]) -> Vec<u8> {
    [&[0; 4][..], &target.octets(), &option(mark)].concat()
}

/// The MAC address that an endpoint with this IPv4 address has by default.
pub(crate) fn mac_of(ip: IpAddr) -> Mac {
    vtepd::model::Mac::from_ip(ip).octets()
}
