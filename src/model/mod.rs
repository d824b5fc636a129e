//! The nouns: names, MAC addresses, VNIs, and the records of the store. A value that exists is valid. [`nft`] has
//! those of nftables, [`guard`] the chain that keeps an endpoint to its own addresses.
//!
//! **Invariant:** a rule is its expressions and nothing beside them, so that it is read back as what it does, and carries no stamp.
//!
//! **Invariant:** it uses nothing else of the crate.

mod guard;
mod hash;
mod mac;
mod name;
pub mod nft;
mod record;
mod route;
mod timestamp;
mod vni;

pub use guard::{guard, guard_table};
pub use hash::stable_hash;
pub use mac::{InvalidMac, Mac};
pub use name::{InvalidName, Name};
pub use record::{Endpoint, EndpointId, Netns, Network, Node, Subnet};
pub use route::Route;
pub use timestamp::Timestamp;
pub use vni::{InvalidVni, Vni};
