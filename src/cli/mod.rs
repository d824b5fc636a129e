//! What the verbs of the command line do.

pub mod demo;
