//! Wire records: pure decoding of keys and values; each error names key, field and reason.

pub mod docker;
mod json;
mod key;
mod kv;
mod native;
mod network;
mod rejected;

pub use key::Key;
pub use kv::{Change, Kv};
pub use native::{MAX_VALUE, approval, endpoint, node, store};
pub use network::network;
pub(crate) use network::{DEFAULT_PORT, is_edge};
pub use rejected::{Reason, Rejected};
