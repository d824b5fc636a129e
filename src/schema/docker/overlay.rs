//! The value of `overlay/network/<nid>`.

use ipnet::IpNet;

use super::{MAX_VALUE, flag, text};
use crate::{
    model::{Subnet, Vni},
    schema::{
        Reason, Rejected,
        json::Field,
        native::{bounded, checked_unicast},
        network::{MAX_SUBNETS, first_address, inside, overlap, usable},
    },
};

/// The underlay's MTU where the record gives none, and what VXLAN takes of it, as Docker reckons on any underlay.
const DEFAULT_MTU: u32 = 1500;
const OVERHEAD: u32 = 50;
/// The greatest MTU of a link.
const MAX_MTU: u64 = 65_535;

/// What the overlay driver's own record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlay {
    /// The subnets that have a VNI.
    pub subnets: Vec<Subnet>,
    /// Those that have none yet.
    pub unallocated: Vec<IpNet>,
    /// MTU of the overlay in bytes.
    pub mtu: u32,
    /// Encryption is asked for.
    pub secure: bool,
}

/// Decodes the overlay driver's record: an object, or the bare list of subnets of old versions.
///
/// # Errors
/// The value is no valid record.
pub fn overlay(key: &[u8], value: &[u8]) -> Result<Overlay, Rejected> {
    let whole = bounded(key, value, MAX_VALUE)?;
    if whole.is_list() {
        return of_subnets(Some(whole), DEFAULT_MTU, false);
    }
    let mut fields = whole.object()?;
    let mtu = fields.take("mtu").map(|field| field.number(0, MAX_MTU)).transpose()?;
    let underlay = mtu.and_then(|mtu| u32::try_from(mtu).ok()).filter(|mtu| *mtu > 0).unwrap_or(DEFAULT_MTU);
    let secure = flag(&mut fields, "secure")?;
    of_subnets(fields.take("subnets"), underlay, secure)
}

fn of_subnets(list: Option<Field<'_>>, underlay: u32, secure: bool) -> Result<Overlay, Rejected> {
    let mut overlay =
        Overlay { subnets: Vec::new(), unallocated: Vec::new(), mtu: underlay.saturating_sub(OVERHEAD), secure };
    for item in list.map_or(Ok(Vec::new()), |list| list.list_of(0, MAX_SUBNETS))? {
        let mut fields = item.object()?;
        let Some((field, range)) = text(&mut fields, "SubnetIP")? else { continue };
        let range: Result<IpNet, _> = range.parse();
        let range = range.map_err(|_| field.reject(Reason::Value, "is not a subnet of the form 10.0.0.0/24"))?;
        let cidr = usable(&field, range.trunc())?;
        let mut others = overlay.subnets.iter().map(|subnet| &subnet.cidr).chain(&overlay.unallocated);
        if let Some(other) = others.find(|other| overlap(other, &cidr)) {
            return Err(field.reject(Reason::Overlap, &format!("{cidr} overlaps {other}")));
        }
        let gateway = match text(&mut fields, "GwIP")? {
            Some((field, gateway)) => {
                let address = gateway.split('/').next().and_then(|address| address.parse().ok());
                let address = address.ok_or_else(|| field.reject(Reason::Value, "is not an address like 10.0.0.1/24"));
                inside(&field, &cidr, checked_unicast(&field, address?)?)?
            }
            None => first_address(&cidr),
        };
        let vni = fields.take("Vni").map(|field| field.number(0, (1 << 24) - 1)).transpose()?;
        match vni.and_then(|vni| u32::try_from(vni).ok()).and_then(|vni| Vni::try_from(vni).ok()) {
            Some(vni) => overlay.subnets.push(Subnet { cidr, gateway, vni }),
            None => overlay.unallocated.push(cidr),
        }
    }
    Ok(overlay)
}
