//! Wire records: pure decoding of keys and values; each error names key, field and reason.
//!
//! **Invariant:** one bad value changes nothing but itself (`a_bad_value_changes_nothing_but_itself`), and text of outside reaches logs
//! only escaped and bounded (`text_of_outside_is_escaped_and_cut`, `a_value_of_more_than_64_kib_is_not_even_parsed`,
//! `a_deeply_nested_value_is_refused_without_harm`).

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
