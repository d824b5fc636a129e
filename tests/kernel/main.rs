//! The kernel edge on the real kernel, each test on a host of its own, with `ip` and `bridge` as witnesses.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test ends where something is not as it should be"
)]

mod edge;
mod endpoints;
mod events;
mod host;
mod links;
mod namespaces;
mod rows;
#[path = "../support/mod.rs"]
mod support;
