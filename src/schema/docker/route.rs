//! An item of `joinInfo.StaticRoutes`, as libnetwork's `types.StaticRoute` (types/types.go) is written by Go: `net.IPNet` has no
//! text form of its own, so a destination is an object of an address and a mask in base64.

use std::net::IpAddr;

use ipnet::IpNet;

use super::text;
use crate::{
    model::Route,
    schema::{Reason, Rejected, json::Field, native::checked_unicast},
};

/// `types.CONNECTED`: the destinations are on the link. The other is `NEXTHOP`, 0.
const CONNECTED: u64 = 1;

/// Decodes a static route; `None` where there is none, or none with a destination.
pub(super) fn static_route(item: Field<'_>) -> Result<Option<Route>, Rejected> {
    let Some(item) = item.unwrapped()? else { return Ok(None) };
    let mut fields = item.object()?;
    let Some(dst) = fields.take("Destination").map(destination).transpose()?.flatten() else { return Ok(None) };
    let connected = fields.take("RouteType").map_or(Ok(0), |field| field.number(0, CONNECTED))? == CONNECTED;
    let via = match text(&mut fields, "NextHop")? {
        Some((field, via)) if !connected => {
            let via = via.parse().map_err(|_| field.reject(Reason::Value, "is not an IP address"))?;
            let via = checked_unicast(&field, via)?;
            if via.is_ipv4() != dst.addr().is_ipv4() {
                return Err(field.reject(Reason::Value, &format!("{via} is not of the family of {dst}")));
            }
            Some(via)
        }
        None if !connected => return Err(fields.reject("NextHop", Reason::MissingField, "is required")),
        _ => None,
    };
    Ok(Some(Route { dst, via }))
}

/// A prefix, as Go writes `net.IPNet` or as text.
fn destination(field: Field<'_>) -> Result<Option<IpNet>, Rejected> {
    if let Ok(text) = field.text() {
        let text = text.trim();
        let net: Option<IpNet> = text.parse().ok();
        let wrong = || field.reject(Reason::Value, "is not a prefix of the form 10.0.0.0/24");
        return if text.is_empty() || text == "<nil>" { Ok(None) } else { Ok(Some(net.ok_or_else(wrong)?.trunc())) };
    }
    let mut fields = field.object()?;
    let ip = text(&mut fields, "IP")?;
    let mask = text(&mut fields, "Mask")?;
    let ((ip_field, ip), (mask_field, mask)) = match (ip, mask) {
        (Some(ip), Some(mask)) => (ip, mask),
        (None, None) => return Ok(None),
        (None, _) => return Err(fields.reject("IP", Reason::MissingField, "is required")),
        (_, None) => return Err(fields.reject("Mask", Reason::MissingField, "is required")),
    };
    let ip: IpAddr = ip.parse().map_err(|_| ip_field.reject(Reason::Value, "is not an IP address"))?;
    let len = base64(&mask).and_then(|mask| prefix_len(ip, &mask));
    let net = len.and_then(|len| IpNet::new(ip, len).ok());
    let wrong = || mask_field.reject(Reason::Value, &format!("is not the mask of a prefix of {ip}, in base64"));
    Ok(Some(net.ok_or_else(wrong)?.trunc()))
}

/// The length of a mask of the address's family. Go keeps the mask of an IPv4 prefix in 4 bytes or in 16, as it does addresses.
fn prefix_len(ip: IpAddr, mask: &[u8]) -> Option<u8> {
    let (mask, bits) = match (ip, mask) {
        (IpAddr::V4(_), mask) if mask.len() == 16 => (mask.strip_prefix(&[0xff; 12])?, 32),
        (IpAddr::V4(_), mask) => (mask, 32),
        (IpAddr::V6(_), mask) => (mask, 128),
    };
    let bytes = || mask.iter().copied();
    let (full, all) = (bytes().take_while(|byte| *byte == 0xff).count(), bytes().map(u8::count_ones).sum::<u32>());
    let ones = u32::try_from(full).ok()? * 8 + bytes().nth(full).map_or(0, u8::leading_ones);
    (mask.len() * 8 == bits && ones == all).then(|| u8::try_from(ones).ok()).flatten()
}

/// Bytes of base64 with padding (RFC 4648, section 4), as Go's `encoding/json` writes them.
fn base64(text: &str) -> Option<Vec<u8>> {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    if !text.len().is_multiple_of(4) {
        return None;
    }
    let digits = text.strip_suffix("==").or_else(|| text.strip_suffix('=')).unwrap_or(text);
    let (mut bytes, mut bits, mut held) = (Vec::new(), 0_u32, 0_u32);
    for digit in digits.bytes() {
        let value = u32::try_from(ALPHABET.iter().position(|known| *known == digit)?).ok()?;
        (bits, held) = ((bits << 6) | value, held + 6);
        if held >= 8 {
            held -= 8;
            bytes.push(u8::try_from(bits >> held).ok()?);
            bits &= (1 << held) - 1;
        }
    }
    (bits == 0).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::docker::endpoint;

    fn routes(list: &str) -> Result<Vec<String>, Rejected> {
        let value = format!(r#"{{"joinInfo":{{"StaticRoutes":{list}}}}}"#);
        let routes = endpoint(b"/d/k", value.as_bytes())?.routes;
        Ok(routes.iter().map(Route::to_string).collect())
    }

    #[test]
    fn routes_are_read_as_go_writes_them() {
        let list = r#"[
            {"Destination":{"IP":"10.0.1.0","Mask":"////AA=="},"RouteType":0,"NextHop":"10.0.0.1"},
            {"Destination":{"IP":"10.2.0.0","Mask":"//8AAA=="},"RouteType":1,"NextHop":""},
            {"Destination":{"IP":"0.0.0.0","Mask":"AAAAAA=="},"NextHop":"10.0.0.9","InterfaceID":3},
            {"Destination":{"IP":"fd00:1::","Mask":"//////////8AAAAAAAAAAA=="},"RouteType":0,"NextHop":"fd00::1"},
            {"Destination":{"IP":"10.3.0.0","Mask":"//////////////////8AAA=="},"RouteType":0,"NextHop":"10.0.0.1"}]"#;
        let read = ["10.0.1.0/24 via 10.0.0.1", "10.2.0.0/16", "0.0.0.0/0 via 10.0.0.9", "fd00:1::/64 via fd00::1"];
        assert_eq!(routes(list).unwrap(), [&read[..], &["10.3.0.0/16 via 10.0.0.1"]].concat());
    }

    #[test]
    fn a_destination_may_be_text_and_the_first_route_to_it_counts() {
        let list = r#"[{"Destination":"10.0.1.7/24","NextHop":"10.0.0.1"},
            {"Destination":{"IP":"10.0.1.0","Mask":"////AA=="},"NextHop":"10.0.0.2"}]"#;
        assert_eq!(routes(list).unwrap(), ["10.0.1.0/24 via 10.0.0.1"]);
    }

    #[test]
    fn what_is_missing_is_no_route() {
        for list in
            ["null", "[]", "[null]", "[{}]", r#"[{"Destination":null}]"#, r#"[{"Destination":{"IP":"","Mask":null}}]"#]
        {
            assert!(routes(list).unwrap().is_empty(), "{list}");
        }
        assert!(endpoint(b"/d/k", br#"{"joinInfo":null}"#).unwrap().routes.is_empty());
        assert!(endpoint(b"/d/k", br#"{"joinInfo":{"disableGatewayService":true}}"#).unwrap().no_gateway);
    }

    #[test]
    fn a_malformed_route_names_its_field() {
        let at = "joinInfo.StaticRoutes";
        let v4 = r#""Destination":{"IP":"10.0.1.0","Mask":"////AA=="}"#;
        for (item, field, reason) in [
            ("7".to_owned(), "[0]", Reason::Value),
            (r#"{"Destination":7}"#.into(), "[0].Destination", Reason::Value),
            (r#"{"Destination":"10.0.1.0"}"#.into(), "[0].Destination", Reason::Value),
            (r#"{"Destination":{"IP":"10.0.1.0"}}"#.into(), "[0].Destination.Mask", Reason::MissingField),
            (r#"{"Destination":{"Mask":"////AA=="}}"#.into(), "[0].Destination.IP", Reason::MissingField),
            (r#"{"Destination":{"IP":"x","Mask":"////AA=="}}"#.into(), "[0].Destination.IP", Reason::Value),
            (r#"{"Destination":{"IP":"10.0.1.0","Mask":"//8A/w=="}}"#.into(), "[0].Destination.Mask", Reason::Value),
            (r#"{"Destination":{"IP":"10.0.1.0","Mask":"////"}}"#.into(), "[0].Destination.Mask", Reason::Value),
            (r#"{"Destination":{"IP":"10.0.1.0","Mask":"/24"}}"#.into(), "[0].Destination.Mask", Reason::Value),
            (r#"{"Destination":{"IP":"fd00::","Mask":"////AA=="}}"#.into(), "[0].Destination.Mask", Reason::Value),
            (format!("{{{v4}}}"), "[0].NextHop", Reason::MissingField),
            (format!(r#"{{{v4},"NextHop":"x"}}"#), "[0].NextHop", Reason::Value),
            (format!(r#"{{{v4},"NextHop":"0.0.0.0"}}"#), "[0].NextHop", Reason::Value),
            (format!(r#"{{{v4},"NextHop":"fd00::1"}}"#), "[0].NextHop", Reason::Value),
            (format!(r#"{{{v4},"RouteType":2,"NextHop":"10.0.0.1"}}"#), "[0].RouteType", Reason::Value),
        ] {
            let rejected = routes(&format!("[{item}]")).expect_err(&item);
            assert_eq!((rejected.field, rejected.reason), (format!("{at}{field}"), reason), "{item}");
        }
        let value = r#"{"joinInfo":{"disableGatewayService":"no"}}"#;
        assert_eq!(endpoint(b"/d/k", value.as_bytes()).unwrap_err().field, "joinInfo.disableGatewayService");
    }
}
