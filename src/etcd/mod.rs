//! Edge: list, watch, relist, heartbeat and registration. The only user of `etcd_client`.

mod connect;
mod fleet;
mod follow;
mod list;
mod session;
mod write;

pub use connect::{Config, Error, Etcd, Tls};
pub use fleet::Fleet;
pub use follow::follow;
pub use list::Page;
pub use session::{Message, Relist};
