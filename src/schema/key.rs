use std::fmt;

use super::{Reason, Rejected};
use crate::model::{EndpointId, Name};

/// A key of the schema, without its prefix.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// `nodes/<node>`
    Node(Name),
    /// `networks/<network>`
    Network(Name),
    /// `endpoints/<network>/<node>/<endpoint>`
    Endpoint {
        /// The network that it belongs to.
        network: Name,
        /// Who it is there.
        id: EndpointId,
    },
    /// `status/<node>`
    Status(Name),
    /// `store`
    Store,
    /// `approvals/<network>`
    Approval(Name),
}

impl Key {
    /// Reads the key that stands below `prefix`.
    ///
    /// # Errors
    /// The key lies elsewhere, has a name that is none, or is not of the schema.
    pub fn parse(prefix: &str, key: &[u8]) -> Result<Self, Rejected> {
        let no_record = |message: &str| Rejected::new(key, "", Reason::Key, message);
        let text = std::str::from_utf8(key).map_err(|_| no_record("is not UTF-8"))?;
        let path = text
            .strip_prefix(prefix.trim_end_matches('/'))
            .and_then(|rest| rest.strip_prefix('/'))
            .ok_or_else(|| no_record("does not lie under the prefix"))?;
        let name = |part: &str| part.parse::<Name>().map_err(|error| no_record(&format!("'{part}' {error}")));
        let mut parts = path.split('/');
        let key = match (parts.next(), parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some("store"), None, ..) => Self::Store,
            (Some("nodes"), Some(node), None, ..) => Self::Node(name(node)?),
            (Some("networks"), Some(network), None, ..) => Self::Network(name(network)?),
            (Some("status"), Some(node), None, ..) => Self::Status(name(node)?),
            (Some("approvals"), Some(network), None, ..) => Self::Approval(name(network)?),
            (Some("endpoints"), Some(network), Some(node), Some(endpoint), None) => Self::Endpoint {
                network: name(network)?,
                id: EndpointId { node: name(node)?, endpoint: name(endpoint)? },
            },
            _ => return Err(no_record("is no record's key")),
        };
        Ok(key)
    }

    /// The whole key below `prefix`.
    pub fn under(&self, prefix: &str) -> String {
        format!("{}/{self}", prefix.trim_end_matches('/'))
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(node) => write!(f, "nodes/{node}"),
            Self::Network(network) => write!(f, "networks/{network}"),
            Self::Endpoint { network, id } => write!(f, "endpoints/{network}/{id}"),
            Self::Status(node) => write!(f, "status/{node}"),
            Self::Store => f.write_str("store"),
            Self::Approval(network) => write!(f, "approvals/{network}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_of_the_schema_is_read_and_written_alike() {
        for key in ["nodes/a", "networks/n", "endpoints/n/a/e", "status/a", "store", "approvals/n"] {
            let whole = format!("/vtepd/v1/{key}");
            let parsed = Key::parse("/vtepd/v1", whole.as_bytes()).unwrap();
            assert_eq!(parsed.under("/vtepd/v1"), whole);
            assert_eq!(
                Key::parse("/vtepd/v1/", whole.as_bytes()).unwrap(),
                parsed,
                "a slash after the prefix is the same"
            );
        }
    }

    #[test]
    fn what_is_no_record_says_so() {
        for key in [
            "/vtepd/v1",
            "/vtepd/v1/",
            "/vtepd/v1x/nodes/a",
            "/other/nodes/a",
            "/vtepd/v1/nodes",
            "/vtepd/v1/nodes/",
            "/vtepd/v1/nodes/a/b",
            "/vtepd/v1/endpoints/n/a",
            "/vtepd/v1/endpoints/n/a/e/x",
            "/vtepd/v1/store/x",
            "/vtepd/v1/node/a",
            "/vtepd/v1/nodes/..",
            "/vtepd/v1//nodes/a",
        ] {
            let rejected = Key::parse("/vtepd/v1", key.as_bytes()).unwrap_err();
            assert_eq!((rejected.reason, rejected.key.as_str()), (Reason::Key, key));
        }
        assert_eq!(Key::parse("/p", b"/p/nodes/\xff").unwrap_err().message, "is not UTF-8");
    }
}
