//! The value of `networks/<network>`.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;

use super::{
    Reason, Rejected,
    json::{Field, Fields},
    native::{fields, unicast},
};
use crate::model::{Network, Subnet, Vni};

/// The port that IANA gave to VXLAN.
pub(crate) const DEFAULT_PORT: u16 = 4789;
/// The most subnets of a network.
pub(super) const MAX_SUBNETS: usize = 64;
/// The most labels of a network, and the longest name or value of one in bytes.
const MAX_LABELS: usize = 64;
const MAX_LABEL: usize = 1024;
/// The least MTU of IPv4 and of IPv6, and the greatest that the kernel's VXLAN device takes.
const MIN_MTU: u64 = 68;
const MIN_MTU_V6: u64 = 1280;
const MAX_MTU: u64 = 65_535;

/// Decodes a network.
///
/// # Errors
/// The value is no valid network.
pub fn network(key: &[u8], value: &[u8]) -> Result<Network, Rejected> {
    let mut fields = fields(key, value)?;
    let mut subnets: Vec<Subnet> = Vec::new();
    for (i, item) in fields.require("subnets")?.list(MAX_SUBNETS)?.into_iter().enumerate() {
        let subnet = subnet(item.object()?)?;
        let overlaps = |other: &&Subnet| overlap(&other.cidr, &subnet.cidr);
        if let Some(other) = subnets.iter().find(overlaps) {
            let message = format!("{} overlaps {}", subnet.cidr, other.cidr);
            return Err(fields.reject(&format!("subnets[{i}].cidr"), Reason::Overlap, &message));
        }
        subnets.push(subnet);
    }
    let any_v6 = subnets.iter().any(|subnet| subnet.cidr.addr().is_ipv6());
    let min_mtu = if any_v6 { MIN_MTU_V6 } else { MIN_MTU };
    let mtu = fields.take("mtu").map(|field| field.number(min_mtu, MAX_MTU)).transpose()?;
    let port = fields.take("port").map(|field| field.number(1, u16::MAX.into())).transpose()?;
    let network = Network {
        subnets,
        mtu: mtu.and_then(|mtu| mtu.try_into().ok()),
        port: port.and_then(|port| port.try_into().ok()).unwrap_or(DEFAULT_PORT),
        internal: flag(&mut fields, "internal", false)?,
        secure: flag(&mut fields, "secure", false)?,
        flood: flag(&mut fields, "flood", false)?,
        spoof_guard: flag(&mut fields, "spoof_guard", true)?,
        labels: labels(&mut fields)?,
        unbound: Vec::new(),
        unallocated: Vec::new(),
    };
    fields.finish()?;
    Ok(network)
}

fn subnet(mut fields: Fields<'_>) -> Result<Subnet, Rejected> {
    let field = fields.require("cidr")?;
    let cidr = cidr(&field)?;
    let gateway = match fields.take("gateway") {
        Some(field) => gateway(&field, &cidr)?,
        None => first_address(&cidr),
    };
    let field = fields.require("vni")?;
    let number = field.number(1, (1 << 24) - 1)?;
    let vni = u32::try_from(number).ok().and_then(|number| Vni::try_from(number).ok());
    let vni = vni.ok_or_else(|| field.reject(Reason::Value, "is not a VNI"))?;
    fields.finish()?;
    Ok(Subnet { cidr, gateway, vni })
}

fn cidr(field: &Field<'_>) -> Result<IpNet, Rejected> {
    let cidr: IpNet = field.parsed("a subnet of the form 10.0.0.0/24")?;
    let refuse = |message: &str| Err(field.reject(Reason::Value, &format!("{cidr} {message}")));
    if cidr.trunc() != cidr {
        return refuse(&format!("has host bits; the subnet is {}", cidr.trunc()));
    }
    usable(field, cidr)
}

/// A subnet that endpoints can be in.
pub(super) fn usable(field: &Field<'_>, cidr: IpNet) -> Result<IpNet, Rejected> {
    let refuse = |message: &str| Err(field.reject(Reason::Value, &format!("{cidr} {message}")));
    // Beyond these lengths there is no room for a gateway and an endpoint.
    let longest = if cidr.addr().is_ipv4() { 30 } else { 127 };
    if !(1..=longest).contains(&cidr.prefix_len()) {
        return refuse(&format!("has a prefix length outside 1 to {longest}"));
    }
    let (first, last) = (cidr.network(), cidr.broadcast());
    if first.is_unspecified() || first.is_loopback() || first.is_multicast() || last.is_multicast() {
        return refuse("is not a subnet of unicast addresses");
    }
    Ok(cidr)
}

fn gateway(field: &Field<'_>, cidr: &IpNet) -> Result<IpAddr, Rejected> {
    inside(field, cidr, unicast(field)?)
}

/// A gateway's address, if a host in the subnet can have it.
pub(super) fn inside(field: &Field<'_>, cidr: &IpNet, gateway: IpAddr) -> Result<IpAddr, Rejected> {
    if !cidr.contains(&gateway) || is_edge(cidr, gateway) {
        return Err(field.reject(Reason::Value, &format!("{gateway} is not a host's address in {cidr}")));
    }
    Ok(gateway)
}

pub(super) fn first_address(cidr: &IpNet) -> IpAddr {
    match cidr.network() {
        IpAddr::V4(v4) => IpAddr::V4(v4.to_bits().saturating_add(1).into()),
        IpAddr::V6(v6) => IpAddr::V6(v6.to_bits().saturating_add(1).into()),
    }
}

/// Whether the address is the subnet's own, or its broadcast address, which only IPv4 has.
pub(crate) fn is_edge(cidr: &IpNet, ip: IpAddr) -> bool {
    ip == cidr.network() || (ip.is_ipv4() && ip == cidr.broadcast())
}

pub(super) fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

fn flag(fields: &mut Fields<'_>, name: &str, default: bool) -> Result<bool, Rejected> {
    fields.take(name).map_or(Ok(default), |field| field.bool())
}

fn labels(fields: &mut Fields<'_>) -> Result<BTreeMap<String, String>, Rejected> {
    let mut labels = BTreeMap::new();
    let Some(field) = fields.take("labels") else { return Ok(labels) };
    for (name, field) in field.object()?.rest() {
        let text = field.text()?;
        if labels.len() == MAX_LABELS || name.len() > MAX_LABEL || text.len() > MAX_LABEL {
            return Err(field.reject(Reason::Value, "is one label too many, or too long"));
        }
        labels.insert(name, text.to_owned());
    }
    Ok(labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(value: &str, field: &str, reason: Reason) {
        let rejected = network(b"/p/k", value.as_bytes()).expect_err(value);
        assert_eq!((rejected.field.as_str(), rejected.reason), (field, reason), "{value}: {rejected}");
    }

    #[test]
    fn a_network_needs_only_cidr_and_vni() {
        let network = network(b"/p/k", br#"{"subnets":[{"cidr":"10.0.0.0/24","vni":256}]}"#).unwrap();
        assert_eq!(network.subnets[0].gateway.to_string(), "10.0.0.1");
        assert_eq!((network.port, network.mtu), (4789, None));
        assert!(network.spoof_guard && !network.internal && !network.secure && !network.flood);
    }

    #[test]
    fn the_schemas_own_example_is_valid() {
        let value = br#"{"subnets":[{"cidr":"10.0.0.0/24","gateway":"10.0.0.1","vni":256}],"mtu":1450,"port":4789,
            "internal":false,"secure":false,"flood":false,"spoof_guard":true,"labels":{}}"#;
        assert_eq!(network(b"/p/k", value).unwrap().mtu, Some(1450));
    }

    #[test]
    fn subnets_of_both_families_may_share_a_vni() {
        let value =
            br#"{"subnets":[{"cidr":"10.0.0.0/24","vni":7},{"cidr":"fd00::/64","vni":7,"gateway":"fd00::ff"}]}"#;
        assert_eq!(network(b"/p/k", value).unwrap().subnets[1].gateway.to_string(), "fd00::ff");
    }

    #[test]
    fn a_bad_subnet_names_field_and_reason() {
        for cidr in [
            "10.0.0.1/24",
            "10.0.0.0/31",
            "10.0.0.0/32",
            "0.0.0.0/0",
            "10.0.0.0",
            "fd00::/128",
            "224.0.0.0/8",
            "::/64",
            "127.0.0.0/8",
            "x",
        ] {
            refused(&format!(r#"{{"subnets":[{{"cidr":"{cidr}","vni":1}}]}}"#), "subnets[0].cidr", Reason::Value);
        }
        for gateway in ["10.0.0.0", "10.0.0.255", "10.0.1.1", "fd00::1", ""] {
            let value = format!(r#"{{"subnets":[{{"cidr":"10.0.0.0/24","gateway":"{gateway}","vni":1}}]}}"#);
            refused(&value, "subnets[0].gateway", Reason::Value);
        }
        for vni in ["0", "16777216", "-1", "1.5", "\"1\""] {
            let value = format!(r#"{{"subnets":[{{"cidr":"10.0.0.0/24","vni":{vni}}}]}}"#);
            refused(&value, "subnets[0].vni", Reason::Value);
        }
        let two = r#"{"subnets":[{"cidr":"10.0.0.0/16","vni":1},{"cidr":"10.0.3.0/24","vni":2}]}"#;
        refused(two, "subnets[1].cidr", Reason::Overlap);
        refused(r#"{"subnets":[]}"#, "subnets", Reason::Value);
        refused(r#"{"subnets":[{"vni":1}]}"#, "subnets[0].cidr", Reason::MissingField);
        refused(r#"{"subnets":[{"cidr":"10.0.0.0/24","vni":1,"gw":1}]}"#, "subnets[0].gw", Reason::UnknownField);
    }

    #[test]
    fn a_bad_number_or_flag_names_its_field() {
        let with = |more: &str| format!(r#"{{"subnets":[{{"cidr":"10.0.0.0/24","vni":1}}],{more}}}"#);
        let with_v6 = |more: &str| format!(r#"{{"subnets":[{{"cidr":"fd00::/64","vni":1}}],{more}}}"#);
        refused(&with(r#""mtu":67"#), "mtu", Reason::Value);
        refused(&with(r#""mtu":65536"#), "mtu", Reason::Value);
        refused(&with_v6(r#""mtu":1279"#), "mtu", Reason::Value);
        refused(&with(r#""port":0"#), "port", Reason::Value);
        refused(&with(r#""port":65536"#), "port", Reason::Value);
        refused(&with(r#""flood":"yes""#), "flood", Reason::Value);
        refused(&with(r#""labels":{"a":1}"#), "labels.a", Reason::Value);
        refused(&with(r#""Internal":true"#), "Internal", Reason::UnknownField);
    }
}
