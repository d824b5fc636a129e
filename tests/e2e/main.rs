//! The whole program on several hosts in private namespaces: real etcd, real `etcdctl`, real agents.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test ends where something is not as it should be"
)]

mod ask;
mod attributes;
#[path = "../support/cluster.rs"]
mod cluster;
mod docker;
mod flood;
mod frames;
mod guard;
mod hostile;
#[path = "../support/hosts.rs"]
mod hosts;
mod lab;
mod late_netns;
mod members;
mod on_host;
mod outside;
mod outside6;
mod outside_open;
mod outside_theft;
mod outside_traffic;
mod plan;
mod prometheus;
mod random;
mod removal;
mod repair;
mod restart;
mod seed;
mod status;
mod subnets;
mod underlay;
mod walkthrough;
