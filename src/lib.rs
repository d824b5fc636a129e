//! `vtepd` reconciles VXLAN overlay networks on one host: what etcd says is what the kernel has, and stays.

pub mod cli;

pub mod model;

pub mod schema;

pub mod desired;

pub mod engine;

pub mod etcd;

pub mod kernel;

pub mod lab;

pub mod retry;

pub mod metrics;

pub mod http;

pub mod agent;

pub mod cli;
