//! `vtepd` reconciles VXLAN overlay networks on one host: what etcd says is what the kernel has, and stays.
pub mod desired;
pub mod engine;
pub mod model;
