//! `vtepd` reconciles VXLAN overlay networks on one host: what etcd says is what the kernel has, and stays.
//!
//! ```text
//! etcd --list at R, watch from R+1--> records --decode--> claims (store-wide) --> desired, per network --+
//!                                                                                                        +--> delta tables --> ops --> netlink
//! kernel --notifications mark keys dirty; reads and acks are the truth--> observed ----------------------+         |            batches
//!                                                                                                                  +--> status, metrics, journal
//! ```
//!
//! # Layout
//!
//! In reading order: [`model`] has the nouns; [`schema`] decodes the store's records into them; [`desired`] decides, over all
//! records, what each network should be on this node; [`engine`] is one network's state machine, which turns that and what
//! the kernel shows into operations. These are pure: no I/O, no clock, no chance.
//!
//! The edges are thin: [`etcd`], [`kernel`] and [`http`]. [`agent`] runs the engines against them, one thread per network.
//! [`cli`] has one file per verb, and [`lab`] the private hosts that the demo and the end-to-end tests run on.

pub mod model;

pub mod schema;

pub mod desired;

pub mod engine;

pub mod retry;

pub mod etcd;

pub mod kernel;

pub mod http;

pub mod metrics;

pub mod agent;

pub mod cli;

pub mod lab;
