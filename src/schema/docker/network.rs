//! The value of `network/<nid>`.

use ipnet::IpNet;

use super::{MAX_VALUE, flag, text};
use crate::{
    model::Name,
    schema::{Reason, Rejected, json::Field, native::bounded, network::usable},
};

/// The most pools of a network.
const MAX_POOLS: usize = 64;

/// What the record of an overlay network says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Network {
    /// What people call it; `None` where that is no name, or missing.
    pub name: Option<Name>,
    /// No way outside.
    pub internal: bool,
    /// Its IPv6 pools.
    pub pools_v6: Vec<IpNet>,
}

/// Decodes a network; `None` where it is none that is to be made: of another type, being deleted, or a mere configuration.
///
/// # Errors
/// The value is no valid network.
pub fn network(key: &[u8], value: &[u8]) -> Result<Option<Network>, Rejected> {
    let mut fields = bounded(key, value, MAX_VALUE)?.object()?;
    let overlay = text(&mut fields, "networkType")?.is_some_and(|(_, of)| of == "overlay");
    if !overlay || flag(&mut fields, "inDelete")? || flag(&mut fields, "configOnly")? {
        return Ok(None);
    }
    let name = text(&mut fields, "name")?.and_then(|(_, name)| name.parse().ok());
    let internal = flag(&mut fields, "internal")?;
    let pools = fields.take("ipamV6Info").map(Field::unwrapped).transpose()?.flatten();
    let mut pools_v6 = Vec::new();
    for pool in pools.map_or(Ok(Vec::new()), |pools| pools.list_of(0, MAX_POOLS))? {
        let Some(pool) = pool.unwrapped()? else { continue };
        let Some(data) = pool.object()?.take("IPAMData").map(Field::unwrapped).transpose()?.flatten() else { continue };
        let Some((field, range)) = text(&mut data.object()?, "Pool")? else { continue };
        let range: Result<IpNet, _> = range.parse();
        let range = range.map_err(|_| field.reject(Reason::Value, "is not a subnet of the form fd00::/64"))?;
        if range.addr().is_ipv4() {
            return Err(field.reject(Reason::Value, "is not an IPv6 subnet"));
        }
        pools_v6.push(usable(&field, range.trunc())?);
    }
    Ok(Some(Network { name, internal, pools_v6 }))
}
