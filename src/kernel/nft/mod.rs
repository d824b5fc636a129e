//! nf_tables over netlink: tables are read whole and changed in transactions, without `nft`.
//!
//! What was tried on Linux 6.18, in network namespaces of root and of a user:
//!
//! * A chain of the family `netdev` belongs to its device by **name**. It may be made before there is such a device, and filters
//!   from the device's first packet on; it outlives the device, and hangs on the next one of that name. A device that is renamed
//!   leaves its chain without a word, and has it again under its old name. None of this changes what a dump shows, nor does
//!   nf_tables notify anyone of it. (Since Linux 6.16; before that such a chain went with its device and was refused without it.)
//! * A `netdev` chain that stands and is made again with another device has both from then on. It is read as foreign, and
//!   [`Ruleset::changes_from`](crate::model::nft::Ruleset::changes_from) deletes it first.
//! * A transaction takes effect in one instant, as for rules (`nf_tables_commit`, net/netfilter/nf_tables_api.c): new rules are
//!   seen when the old ones no longer are, also in a chain or a table that was deleted and made again. Policies do not take part:
//!   a new chain's `drop` comes just after that instant, a deleted chain's ends just after it. Where nothing may slip through
//!   while a chain is made, its last rule drops.
//! * The generation is the namespace's, not the table's: a transaction of anyone tears a reading apart, so that it is repeated.
//!   It rises before the policies of its transaction are set; only after the commit is the table as it will stay, and only then
//!   are notifications sent.
//! * A chain that stands at another hook is refused with EOPNOTSUPP or EEXIST when it is made again; so is deleting a chain that a
//!   rule jumps to, with EBUSY.
//!
//! **Invariant:** a table of nftables is read as it was at one instant
//! (`a_table_that_others_change_all_the_time_is_read_whole_or_reported_torn`), whatever this module does not write in it counts as a
//! difference (`whatever_is_done_to_a_table_by_hand_is_read_as_a_difference_and_repaired`,
//! `an_expression_with_anything_that_is_not_written_here_is_foreign`), and it is changed all or nothing, without a gap
//! (`a_batch_that_fails_changes_nothing_and_says_where_it_failed`, `nothing_slips_through_while_a_table_or_a_chain_is_replaced`).

mod decode;
mod encode;
mod monitor;
mod numbers;
mod tables;
#[cfg(test)]
mod tests;

pub use monitor::{Heard, Monitor};
pub use tables::{NotApplied, Tables};
