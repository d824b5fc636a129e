//! Docker has no record of a node: an endpoint names its VTEP's address. Written as a name it stands where a native endpoint
//! has its node.

use std::net::{IpAddr, Ipv6Addr};

use crate::model::Name;

/// The name that stands for the node at this address.
pub fn node_of(locator: IpAddr) -> Option<Name> {
    let text = match locator {
        IpAddr::V4(v4) => v4.to_string(),
        // Colons stand in no name, and one that begins with a hyphen is none: every group is written.
        IpAddr::V6(v6) => v6.segments().map(|group| format!("{group:x}")).join("-"),
    };
    text.parse().ok()
}

/// The address of the node that goes by this name.
pub fn locator_of(node: &Name) -> Option<IpAddr> {
    let text = node.as_str();
    if text.contains('-') {
        return text.replace('-', ":").parse::<Ipv6Addr>().ok().map(IpAddr::V6);
    }
    text.parse().ok()
}
