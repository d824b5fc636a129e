//! Values of this program's own schema. What is checked here needs only the record itself.

use std::{
    net::{IpAddr, Ipv6Addr},
    path::PathBuf,
};

use super::{
    Reason, Rejected,
    json::{Field, Fields},
};
use crate::model::{Endpoint, Mac, Netns, Node};

/// The longest value, in bytes.
pub const MAX_VALUE: usize = 64 * 1024;
/// The most addresses of an endpoint.
const MAX_IPS: usize = 64;
/// The longest path of a network namespace, in bytes.
const MAX_NETNS: usize = 1024;
/// The kernel's `IFNAMSIZ` less the terminating zero.
const MAX_IFNAME: usize = 15;

/// Decodes a node.
///
/// # Errors
/// The value is no valid node.
pub fn node(key: &[u8], value: &[u8]) -> Result<Node, Rejected> {
    let mut fields = fields(key, value)?;
    let vtep = fields.require("vtep")?;
    let address = unicast(&vtep)?;
    if address.is_loopback() {
        return Err(vtep.reject(Reason::Value, "is a loopback address: no other host reaches it"));
    }
    fields.finish()?;
    Ok(Node { vtep: address })
}

/// Decodes an endpoint.
///
/// # Errors
/// The value is no valid endpoint.
pub fn endpoint(key: &[u8], value: &[u8]) -> Result<Endpoint, Rejected> {
    let mut fields = fields(key, value)?;
    let mut ip = Vec::new();
    for item in fields.require("ip")?.list(MAX_IPS)? {
        let address = unicast(&item)?;
        if address.is_loopback() {
            return Err(item.reject(Reason::Value, "is a loopback address"));
        }
        if ip.contains(&address) {
            return Err(item.reject(Reason::Value, "stands twice"));
        }
        ip.push(address);
    }
    let mac = fields.take("mac").map(|field| endpoint_mac(&field)).transpose()?;
    let netns = fields.take("netns").map(|field| netns(&field)).transpose()?;
    let ifname = match fields.take("ifname") {
        Some(field) => ifname(&field)?,
        None if netns == Some(Netns::Host) => {
            return Err(fields.reject("ifname", Reason::MissingField, "is required in the host's namespace"));
        }
        None => "eth0".to_owned(),
    };
    fields.finish()?;
    Ok(Endpoint { ip, mac, netns, ifname })
}

/// Decodes the store's identity.
///
/// # Errors
/// The value is no valid identity.
pub fn store(key: &[u8], value: &[u8]) -> Result<String, Rejected> {
    let mut fields = fields(key, value)?;
    let field = fields.require("id")?;
    let id = field.text()?.to_owned();
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
    if id.is_empty() || id.len() > 64 || !id.bytes().all(allowed) {
        return Err(field.reject(Reason::Value, "is not an identity of 1 to 64 letters, digits and hyphens"));
    }
    fields.finish()?;
    Ok(id)
}

/// Decodes an approval: held removals up to this revision may go.
///
/// # Errors
/// The value is no valid approval.
pub fn approval(key: &[u8], value: &[u8]) -> Result<i64, Rejected> {
    let mut fields = fields(key, value)?;
    let revision = fields.require("revision")?.number(1, i64::MAX.unsigned_abs())?;
    fields.finish()?;
    Ok(i64::try_from(revision).unwrap_or(i64::MAX))
}

/// The fields of a record's value, if it is an object of bearable size.
pub(super) fn fields<'k>(key: &'k [u8], value: &[u8]) -> Result<Fields<'k>, Rejected> {
    bounded(key, value, MAX_VALUE)?.object()
}

/// A record's value, if it is JSON of bearable size.
pub(super) fn bounded<'k>(key: &'k [u8], value: &[u8], most: usize) -> Result<Field<'k>, Rejected> {
    if value.len() > most {
        let message = format!("has {} bytes; {most} are allowed", value.len());
        return Err(Rejected::new(key, "", Reason::Size, &message));
    }
    Field::parse(key, value)
}

/// An address that one host can have.
pub(super) fn unicast(field: &Field<'_>) -> Result<IpAddr, Rejected> {
    let ip: IpAddr = field.parsed("an IP address")?;
    checked_unicast(field, ip)
}

/// The address, if one host can have it.
pub(super) fn checked_unicast(field: &Field<'_>, ip: IpAddr) -> Result<IpAddr, Rejected> {
    let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    let mapped = matches!(ip, IpAddr::V6(v6) if Ipv6Addr::to_ipv4_mapped(&v6).is_some());
    if ip.is_unspecified() || ip.is_multicast() || broadcast || mapped {
        return Err(field.reject(Reason::Value, &format!("{ip} is not a unicast address")));
    }
    Ok(ip)
}

pub(super) fn endpoint_mac(field: &Field<'_>) -> Result<Mac, Rejected> {
    let mac: Mac = field.parsed("a MAC address of the form 02:42:0a:00:00:02")?;
    if mac.is_zero() || mac.is_multicast() {
        return Err(field.reject(Reason::Value, &format!("{mac} is not a unicast MAC address")));
    }
    Ok(mac)
}

fn netns(field: &Field<'_>) -> Result<Netns, Rejected> {
    let text = field.text()?;
    if text == "host" {
        return Ok(Netns::Host);
    }
    let plain = |part: &str| !part.is_empty() && part != "." && part != "..";
    let valid = text.len() <= MAX_NETNS
        && !text.chars().any(char::is_control)
        && text.strip_prefix('/').is_some_and(|path| path.split('/').all(plain));
    if !valid {
        return Err(field.reject(Reason::Value, "is neither 'host' nor an absolute path without '.' and '..'"));
    }
    Ok(Netns::Path(PathBuf::from(text)))
}

/// What the kernel's `dev_valid_name` allows, less `%` (the kernel expands it) and what is not ASCII.
fn ifname(field: &Field<'_>) -> Result<String, Rejected> {
    let text = field.text()?;
    let allowed = |b: u8| b.is_ascii_graphic() && !matches!(b, b'/' | b':' | b'%');
    let length = (1..=MAX_IFNAME).contains(&text.len());
    if !length || text == "." || text == ".." || !text.bytes().all(allowed) {
        return Err(
            field.reject(Reason::Value, "is not an interface name of 1 to 15 characters without '/', ':' and '%'")
        );
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused<T: std::fmt::Debug>(
        decode: fn(&[u8], &[u8]) -> Result<T, Rejected>,
        value: &str,
        field: &str,
        reason: Reason,
    ) {
        let rejected = decode(b"/p/k", value.as_bytes()).expect_err(value);
        assert_eq!((rejected.field.as_str(), rejected.reason), (field, reason), "{value}: {rejected}");
        assert_eq!(rejected.key, "/p/k");
    }

    #[test]
    fn an_endpoint_needs_only_its_addresses() {
        let endpoint = endpoint(b"/p/k", br#"{"ip":["10.0.0.2"]}"#).unwrap();
        assert_eq!(endpoint.ifname, "eth0");
        assert_eq!((endpoint.netns.clone(), endpoint.mac), (None, None));
        assert_eq!(endpoint.effective_mac().unwrap().to_string(), "02:42:0a:00:00:02");
    }

    #[test]
    fn the_host_is_a_namespace_whose_interface_must_be_named() {
        let decoded = endpoint(b"/p/k", br#"{"ip":["10.0.0.2"],"netns":"host","ifname":"ov0"}"#).unwrap();
        assert_eq!(decoded.netns, Some(Netns::Host));
        refused(endpoint, r#"{"ip":["10.0.0.2"],"netns":"host"}"#, "ifname", Reason::MissingField);
    }

    #[test]
    fn a_bad_endpoint_names_field_and_reason() {
        refused(endpoint, "", "", Reason::Json);
        refused(endpoint, "[]", "", Reason::Json);
        refused(endpoint, r#"{"ip":["10.0.0.2"]} x"#, "", Reason::Json);
        refused(endpoint, r#"{"ip":["10.0.0.2"],"ip":["10.0.0.3"]}"#, "", Reason::Json);
        refused(endpoint, "{}", "ip", Reason::MissingField);
        refused(endpoint, r#"{"ip":[]}"#, "ip", Reason::Value);
        refused(endpoint, r#"{"ip":"10.0.0.2"}"#, "ip", Reason::Value);
        refused(endpoint, r#"{"ip":["10.0.0.2"],"macc":1}"#, "macc", Reason::UnknownField);
        for ip in
            ["10.0.0", "10.0.0.2/24", "0.0.0.0", "224.0.0.1", "127.0.0.1", "::", "::1", "ff02::1", "255.255.255.255"]
        {
            refused(endpoint, &format!(r#"{{"ip":["10.0.0.2","{ip}"]}}"#), "ip[1]", Reason::Value);
        }
        refused(endpoint, r#"{"ip":["10.0.0.2","10.0.0.2"]}"#, "ip[1]", Reason::Value);
        for mac in ["00:00:00:00:00:00", "01:00:5e:00:00:01", "ff:ff:ff:ff:ff:ff", "x"] {
            refused(endpoint, &format!(r#"{{"ip":["10.0.0.2"],"mac":"{mac}"}}"#), "mac", Reason::Value);
        }
        for path in
            ["netns/a", "", "/", "/run/../etc", "/run/netns/..", "/run//x", "/run/netns/", "/run/./x", "/a\\u0000b"]
        {
            refused(endpoint, &format!(r#"{{"ip":["10.0.0.2"],"netns":"{path}"}}"#), "netns", Reason::Value);
        }
        for name in ["", ".", "..", "a/b", "a b", "a:b", "x%d", "abcdefghijklmnop", "a\\u0007", "é"] {
            refused(endpoint, &format!(r#"{{"ip":["10.0.0.2"],"ifname":"{name}"}}"#), "ifname", Reason::Value);
        }
        let many: Vec<String> = (0..65).map(|i| format!("\"10.0.1.{i}\"")).collect();
        refused(endpoint, &format!(r#"{{"ip":[{}]}}"#, many.join(",")), "ip", Reason::Value);
    }

    #[test]
    fn a_value_of_more_than_64_kib_is_not_even_parsed() {
        refused(node, &format!(r#"{{"vtep":"{}"}}"#, "1".repeat(MAX_VALUE)), "", Reason::Size);
    }

    #[test]
    fn a_deeply_nested_value_is_refused_without_harm() {
        refused(node, &"[".repeat(60_000), "", Reason::Json);
    }

    #[test]
    fn a_vtep_is_an_address_that_others_reach() {
        assert_eq!(node(b"/p/k", br#"{"vtep":"fd00::1"}"#).unwrap().vtep.to_string(), "fd00::1");
        for ip in ["127.0.0.1", "::1", "0.0.0.0", "239.1.1.1", "ff02::1", "host", "::ffff:10.0.0.1"] {
            refused(node, &format!(r#"{{"vtep":"{ip}"}}"#), "vtep", Reason::Value);
        }
        refused(node, r#"["192.168.0.1"]"#, "", Reason::Json);
        refused(node, r#"{"vtep":null}"#, "vtep", Reason::MissingField);
    }

    #[test]
    fn identity_and_approval_are_read() {
        assert_eq!(store(b"/p/store", br#"{"id":"3e7f-1"}"#).unwrap(), "3e7f-1");
        refused(store, r#"{"id":"a b"}"#, "id", Reason::Value);
        assert_eq!(approval(b"/p/k", br#"{"revision":12}"#).unwrap(), 12);
        refused(approval, r#"{"revision":-1}"#, "revision", Reason::Value);
    }
}
