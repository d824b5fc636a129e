//! Pure: the records of the store and this node's name give, per network, what should stand in this node's kernel.
//!
//! The store-wide stage comes first (claims are decided over all records), then every network is on its own.

mod batch;
mod claims;
mod docker;
mod fit;
mod keep;
mod listing;
mod meaning;
mod members;
mod outside;
mod quota;
mod records;
mod removal;
mod report;
mod source;
mod spec;
mod store;

#[cfg(test)]
mod naive;
#[cfg(test)]
mod property;
#[cfg(test)]
mod tests;

pub use members::Members;
pub use outside::{Outside, OutsideConfig};
pub use quota::Limits;
pub use removal::{Doubt, HeldRemovals, HoldReason, Memory, Remembered};
pub use report::{Blocked, BlockedReason, Conflict, Counts, Excess};
pub use source::Source;
pub use spec::{EndpointSpec, LocalEndpoint, NetworkSpec, OutsideEndpoint, RemoteEndpoint, Segment, Tunnel, Update};
pub use store::{Audited, Store, StoreConfig};
