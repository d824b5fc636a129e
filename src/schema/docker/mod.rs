//! Docker's layout, as its overlay driver wrote it until version 23: foreign records. Unknown fields are ignored, nearly
//! everything may be missing or `null`, and JSON stands as text in JSON.

mod endpoint;
mod key;
mod locator;
mod network;
mod overlay;
mod route;

pub use endpoint::{Endpoint, endpoint};
pub use key::{Key, is_id};
pub use locator::{locator_of, node_of};
pub use network::{Network, network};
pub use overlay::{Overlay, overlay};

use super::{
    Rejected,
    json::{Field, Fields},
};

/// The longest value, in bytes: an endpoint that exposes many ports is long, and etcd takes no more than 1.5 MiB.
pub const MAX_VALUE: usize = 2 * 1024 * 1024;

/// The field's text; missing, `null`, empty and `"<nil>"` are all unset.
fn text<'k>(fields: &mut Fields<'k>, name: &str) -> Result<Option<(Field<'k>, String)>, Rejected> {
    let Some(field) = fields.take(name) else { return Ok(None) };
    let text = field.text()?.trim().to_owned();
    Ok(if text.is_empty() || text == "<nil>" { None } else { Some((field, text)) })
}

/// The field's truth; missing and `null` are false.
fn flag(fields: &mut Fields<'_>, name: &str) -> Result<bool, Rejected> {
    fields.take(name).map_or(Ok(false), |field| field.bool())
}

#[cfg(test)]
mod tests;
