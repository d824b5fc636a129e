//! Pure: the records of the store and this node's name give, per network, what should stand in this node's kernel.
//!
//! The store-wide stage comes first (claims are decided over all records), then every network is on its own.

mod spec;

pub use spec::{EndpointSpec, LocalEndpoint, NetworkSpec, RemoteEndpoint, Segment, Update};
