use std::{fmt, net::IpAddr, str::FromStr};

use thiserror::Error;

/// An Ethernet address (EUI-48).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac([u8; 6]);

/// Why a text is not a MAC address.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("is not a MAC address of the form 02:42:0a:00:00:02")]
pub struct InvalidMac;

impl Mac {
    /// The all-zero address: the VXLAN driver's key for its flood list.
    pub const ZERO: Self = Self([0; 6]);

    /// Makes an address of its six octets.
    pub const fn new(octets: [u8; 6]) -> Self {
        Self(octets)
    }

    /// The six octets.
    pub const fn octets(self) -> [u8; 6] {
        self.0
    }

    /// The address that Docker derives from an IPv4 address, `02:42:` and its four bytes; for IPv6 the last four bytes.
    pub fn from_ip(ip: IpAddr) -> Self {
        let [a, b, c, d] = match ip {
            IpAddr::V4(v4) => v4.octets(),
            IpAddr::V6(v6) => {
                let [.., a, b, c, d] = v6.octets();
                [a, b, c, d]
            }
        };
        Self([0x02, 0x42, a, b, c, d])
    }

    /// Whether the group bit is set (multicast and broadcast addresses).
    pub const fn is_multicast(self) -> bool {
        let [first, ..] = self.0;
        first & 1 == 1
    }

    /// Whether this is the all-zero address.
    pub fn is_zero(self) -> bool {
        self == Self::ZERO
    }
}

impl TryFrom<&[u8]> for Mac {
    type Error = InvalidMac;

    fn try_from(bytes: &[u8]) -> Result<Self, InvalidMac> {
        bytes.try_into().map(Self).map_err(|_| InvalidMac)
    }
}

impl FromStr for Mac {
    type Err = InvalidMac;

    fn from_str(text: &str) -> Result<Self, InvalidMac> {
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().ok_or(InvalidMac)?;
            if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(InvalidMac);
            }
            *octet = u8::from_str_radix(part, 16).map_err(|_| InvalidMac)?;
        }
        if parts.next().is_some() { Err(InvalidMac) } else { Ok(Self(octets)) }
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_octets_are_the_same_address() {
        let mac: Mac = "02:42:0A:00:00:02".parse().unwrap();
        assert_eq!(mac, Mac::from_ip("10.0.0.2".parse().unwrap()));
        assert_eq!(mac.to_string(), "02:42:0a:00:00:02");
    }

    #[test]
    fn what_only_looks_like_an_address_is_refused() {
        for text in
            ["", "02:42:0a:00:00", "02:42:0a:00:00:02:03", "2:42:a:0:0:2", "02-42-0a-00-00-02", "02:42:0a:00:00:+2"]
        {
            assert_eq!(text.parse::<Mac>(), Err(InvalidMac), "{text}");
        }
    }

    #[test]
    fn an_ipv6_address_gives_its_last_four_bytes() {
        assert_eq!(Mac::from_ip("fd00::1:2".parse().unwrap()).to_string(), "02:42:00:01:00:02");
    }
}
