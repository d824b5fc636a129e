use std::fmt;

use crate::{
    model::Name,
    schema::{Reason, Rejected},
};

/// How many hexadecimal digits Docker's identifiers have.
const ID: usize = 64;

/// A key of Docker's layout that is read, without its prefix.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// `network/<nid>`
    Network(Name),
    /// `overlay/network/<nid>`
    Overlay(Name),
    /// `endpoint/<nid>/<eid>`
    Endpoint {
        /// The network's identifier.
        network: Name,
        /// The endpoint's identifier.
        endpoint: Name,
    },
}

impl Key {
    /// Reads the key that stands below `prefix`; `None` is one of the many that mean nothing here.
    ///
    /// # Errors
    /// The key is of a kind that is read, and its identifier is none.
    pub fn parse(prefix: &str, key: &[u8]) -> Result<Option<Self>, Rejected> {
        let Ok(text) = std::str::from_utf8(key) else { return Ok(None) };
        let path = text.strip_prefix(prefix.trim_end_matches('/')).and_then(|rest| rest.strip_prefix('/'));
        let Some(path) = path else { return Ok(None) };
        let id = |part: &str| {
            let name = part.parse::<Name>().ok().filter(is_id);
            let message = || format!("'{part}' is not an identifier of {ID} hexadecimal digits");
            name.ok_or_else(|| Rejected::new(key, "", Reason::Key, &message()))
        };
        let mut parts = path.split('/');
        Ok(Some(match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some("network"), Some(network), None, _) => Self::Network(id(network)?),
            (Some("overlay"), Some("network"), Some(network), None) => Self::Overlay(id(network)?),
            (Some("endpoint"), Some(network), Some(endpoint), None) => {
                Self::Endpoint { network: id(network)?, endpoint: id(endpoint)? }
            }
            _ => return Ok(None),
        }))
    }

    /// The network that the record is of.
    pub const fn network(&self) -> &Name {
        match self {
            Self::Network(network) | Self::Overlay(network) | Self::Endpoint { network, .. } => network,
        }
    }

    /// The whole key below `prefix`.
    pub fn under(&self, prefix: &str) -> String {
        format!("{}/{self}", prefix.trim_end_matches('/'))
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(network) => write!(f, "network/{network}"),
            Self::Overlay(network) => write!(f, "overlay/network/{network}"),
            Self::Endpoint { network, endpoint } => write!(f, "endpoint/{network}/{endpoint}"),
        }
    }
}

/// Whether a name has the form of Docker's identifiers.
pub fn is_id(name: &Name) -> bool {
    let name = name.as_str();
    name.len() == ID && name.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}
