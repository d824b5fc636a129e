//! Edge: members, sessions, listings, watches, heartbeats and single records. The only user of `etcd_client`.

mod config;
mod error;
mod fleet;
mod follow;
mod list;
mod member;
mod members;
mod position;
mod session;
mod transact;
mod write;

pub use config::{Config, Tls, User};
pub use error::{Error, Fault};
pub use fleet::Fleet;
pub use follow::follow;
pub use list::Page;
pub use members::Etcd;
pub use position::{Beat, Position};
pub use session::{Message, Relist};
pub use transact::{Write, Written};
