//! The nouns: names, MAC addresses, VNIs, and the records of the store. A value that exists is valid.

mod mac;
mod name;
mod record;
mod route;
mod vni;

pub use mac::{InvalidMac, Mac};
pub use name::{InvalidName, Name};
pub use record::{Endpoint, EndpointId, Netns, Network, Node, Subnet};
pub use route::Route;
pub use vni::{InvalidVni, Vni};
