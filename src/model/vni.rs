use std::fmt;

use thiserror::Error;

/// A VXLAN network identifier, 1 to 2^24 - 1 (RFC 7348; 0 is refused, Docker uses it for "not yet allocated").
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vni(u32);

/// Why a number is not a [`Vni`].
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("is not a VNI (1 to 16777215)")]
pub struct InvalidVni;

impl Vni {
    /// Never a record's: stands for the gateway bridge, which has no tunnel, where bridges go by their VNI.
    pub const GATEWAY: Self = Self(0);

    /// The number.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl TryFrom<u32> for Vni {
    type Error = InvalidVni;

    fn try_from(number: u32) -> Result<Self, InvalidVni> {
        if (1..1 << 24).contains(&number) { Ok(Self(number)) } else { Err(InvalidVni) }
    }
}

impl fmt::Display for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
