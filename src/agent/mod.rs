//! The loop: runs the engines against the edges, one thread per network.

mod board;
mod journal;
mod mailbox;
mod network;
mod paths;
