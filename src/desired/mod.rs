//! Pure: the records of the store and this node's name give, per network, what should stand in this node's kernel.
//!
//! The store-wide stage comes first (claims are decided over all records), then every network is on its own.
//!
//! **Invariant:** no network is told anything before the nodes and networks of every layout were listed
//! (`nothing_is_told_before_the_networks_of_both_layouts_were_listed`), nor of an endpoint of this node before everything was; what is told
//! earlier comes to what the records say (`what_is_told_while_everything_is_listed_comes_to_what_the_records_say`). `listing.rs` says why
//! that is sound.
//!
//! **Invariant:** pure, like schema, model and engine (`the_pure_parts_have_no_clock_no_io_and_no_hash_order`).
//!
//! **Invariant:** updates add up to what the records of both layouts say
//! (`after_every_revision_the_updates_add_up_to_what_the_records_say`); neither order nor repetition of what is heard decides anything
//! (`the_order_in_which_records_are_heard_decides_nothing`, `repeated_events_change_nothing`); a snapshot leads to the same end as the
//! events that were missed (`a_snapshot_leads_to_the_same_end_as_the_events_that_were_missed`).
//!
//! **Invariant:** who shares a MAC address behind one VTEP is decided like everything else
//! (`those_who_share_a_mac_address_behind_one_vtep_are_told_as_the_records_say`).
//!
//! **Invariant:** where there are more records than count, the oldest do, on every node alike
//! (`where_there_are_too_many_the_oldest_count_whatever_the_order`), and agents that hear the records in different orders decide alike on
//! the real etcd (`nodes_that_hear_the_records_in_different_orders_decide_every_conflict_alike`).
//!
//! **Invariant:** an endpoint that moves is one update (`an_endpoint_that_moves_in_one_revision_is_one_update`,
//! `an_endpoint_that_moves_by_put_then_delete_is_one_update`).
//!
//! **Invariant:** a change costs what depends on it (`one_change_among_a_hundred_thousand_endpoints_is_told_alone`).

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
