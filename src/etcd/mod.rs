//! Edge: members, sessions, listings, watches, heartbeats and single records. The only user of `etcd_client`.
//!
//! **Invariant:** a watch goes on from the revision reached; only compaction, a store that went back or is another one, events out of order
//! and ten thousand missed revisions ask for a listing (`a_watch_goes_on_from_where_each_range_was_heard`,
//! `whatever_breaks_the_order_asks_for_a_listing`, `a_store_that_went_back_or_is_another_one_is_a_rollback`).
//!
//! **Invariant:** every key is listed once, whatever the windows (`every_key_is_listed_once_and_in_order`,
//! `listing_many_keys_in_small_pages_is_not_quadratic`).
//!
//! **Invariant:** a snapshot comes first (`a_snapshot_comes_first_and_then_the_changes`) and all events of one revision come together
//! (`the_events_of_one_transaction_come_together`).
//!
//! **Invariant:** a compacted, crashed, frozen or wiped server is noticed and told
//! (`what_was_compacted_while_the_server_was_away_is_listed`, `a_crash_of_the_server_loses_no_event_and_heats_nothing`,
//! `a_frozen_server_is_noticed_and_found_again`, `a_wiped_store_is_told_as_a_rollback`).
//!
//! **Invariant:** an audit beside a running watch finds nothing when all is right
//! (`an_audit_beside_a_running_watch_finds_nothing_when_all_is_right`, `an_audit_leaves_alone_what_was_touched_since`).

mod config;
mod error;
mod fleet;
mod follow;
mod list;
mod member;
mod members;
mod position;
mod session;
mod transact;
mod write;

pub use config::{Config, Tls, User};
pub use error::{Error, Fault};
pub use fleet::Fleet;
pub use follow::follow;
pub use list::Page;
pub use members::Etcd;
pub use position::{Beat, Position};
pub use session::{Message, Relist};
pub use transact::{Write, Written};
