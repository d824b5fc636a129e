//! The pure state machine of one network, sans-I/O. It is told what should be (updates), what is (answers to its own queries)
//! and what may have changed (events); it says what to read next and which operations to send. It has no clock, no
//! randomness and no hash order: the same inputs give the same outputs, which is what makes the simulation possible.

mod object;
mod seam;

pub use object::{
    ADDRESS_PROTOCOL, Address, FdbRow, InnerAt, InnerState, Link, LinkKind, NEIGHBOUR_PROTOCOL, Neighbour, NetnsId,
    NetnsState, Port, VxlanAttributes,
};
pub use seam::{
    Action, Answer, Event, Failure, FailureKind, FdbPoint, Kernel, LinkChange, LinkRef, NewLink, Op, Place, Query,
};
