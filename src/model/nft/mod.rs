//! nftables: tables, chains and rules as values, what stands as well as what should stand, and the changes between the two.
//!
//! A rule is the list of its expressions, as the kernel keeps it. Two rules are the same if those lists are: a rule needs no stamp
//! for that, which could outlive what it was made for (`nft replace rule … comment "…"`). What is read and cannot be written here
//! is kept in words ([`Expression::Foreign`], `foreign`), so that it equals nothing that is wanted.

mod change;
mod expression;
mod rule;
mod ruleset;

pub use change::Change;
pub use expression::{Base, Comparison, Connection, Expression, Meta, Verdict};
pub use rule::Rule;
pub use ruleset::{Chain, ChainId, ChainKind, Family, Hook, HookPoint, Policy, Ruleset, TableId};
