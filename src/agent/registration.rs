//! This node's VTEP address, and its record in the store.
//!
//! Only what has to be known holds up the agent: a record that cannot be written is written later, beside everything else.

use std::{net::IpAddr, time::Duration};

use tracing::{info, warn};

use super::{Settings, pages::AgentPages};
use crate::{
    etcd::{self, Etcd},
    kernel,
    model::{Name, stable_hash},
    retry::Retry,
};

/// Addresses that lead nowhere (RFC 5737, RFC 3849): what the host has towards them it has towards everybody.
const ANYWHERE: [IpAddr; 2] = [
    IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)),
    IpAddr::V6(std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
];

/// This node's VTEP address as it was found, and whether the store still has to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) vtep: IpAddr,
    pub(super) unregistered: bool,
}

/// Finds this node's VTEP address: as told, as the record says, or by the routes of this host. Goes on trying for as long as
/// it takes.
pub(super) async fn find(settings: &Settings, etcd: &Etcd, pages: &AgentPages) -> Found {
    if let Some(vtep) = settings.vtep {
        return Found { vtep, unregistered: true };
    }
    let salt = stable_hash(settings.node.as_str().as_bytes());
    let mut retry = Retry::new(Duration::from_millis(100), Duration::from_secs(1), salt);
    let mut said = String::new();
    loop {
        let error = match look(settings, etcd).await {
            Ok(found) => return found,
            Err(error) => error,
        };
        if said != error {
            warn!(error, "cannot tell this node's VTEP address; trying again");
            said = error;
        }
        // It may take long, and is no sign that something hangs.
        pages.turned();
        tokio::time::sleep(retry.delay()).await;
    }
}

/// Looks once.
pub(super) async fn look(settings: &Settings, etcd: &Etcd) -> Result<Found, String> {
    let said = |error: etcd::Error| error.to_string();
    if let Some(node) = etcd.read_node(&settings.node).await.map_err(said)? {
        info!(vtep = %node.vtep, "took the VTEP address of this node's record");
        return Ok(Found { vtep: node.vtep, unregistered: false });
    }
    let peers = etcd.read_vteps().await.map_err(said)?;
    let (vtep, why) = detect(&etcd.addresses().await, &peers, |to| kernel::source_towards(to).ok())?;
    info!(%vtep, why, "found this node's VTEP address");
    Ok(Found { vtep, unregistered: true })
}

/// The address of this host towards etcd, in the family that the VTEPs of the other nodes are in.
fn detect(
    etcd: &[IpAddr],
    peers: &[IpAddr],
    source: impl Fn(IpAddr) -> Option<IpAddr>,
) -> Result<(IpAddr, String), String> {
    let first_is_v4 = etcd.iter().find(|ip| !ip.is_loopback()).or(etcd.first()).is_none_or(IpAddr::is_ipv4);
    let v4 = peers.iter().filter(|ip| ip.is_ipv4()).count();
    let is_v4 = match v4.cmp(&(peers.len() - v4)) {
        std::cmp::Ordering::Greater => true,
        std::cmp::Ordering::Less => false,
        std::cmp::Ordering::Equal => first_is_v4,
    };
    let towards = |to: &[IpAddr], what: &str| {
        let to = to.iter().filter(|to| to.is_ipv4() == is_v4 && !to.is_loopback());
        to.filter_map(|to| source(*to)).find(|from| !from.is_loopback()).map(|from| (from, what.to_owned()))
    };
    let family = if is_v4 { "IPv4" } else { "IPv6" };
    towards(etcd, &format!("the source address of the route to etcd ({family})"))
        .or_else(|| towards(peers, &format!("the source address of the route to another node's VTEP ({family})")))
        .or_else(|| towards(&ANYWHERE, &format!("the source address of the default route ({family})")))
        .ok_or_else(|| match peers {
            [] => "no route leads to etcd or anywhere else; give --vtep".to_owned(),
            _ => format!("the other nodes' VTEPs are {family}, and this host has no such address; give --vtep"),
        })
}

/// Writes this node's record until it stands. Whoever may not write is told so, and goes on working.
pub(super) async fn register(etcd: Etcd, node: Name, vtep: IpAddr, given: bool) {
    let mut retry = Retry::new(Duration::from_secs(1), Duration::from_secs(60), stable_hash(node.as_str().as_bytes()));
    let mut said = String::new();
    loop {
        match etcd.register_node(&node, vtep, given).await {
            Ok(vtep) => return info!(%vtep, "registered"),
            Err(error) => {
                let error = error.to_string();
                if said != error {
                    warn!(error, %vtep, "cannot register this node: the others do not know its VTEP; tried again, and all else goes on");
                    said = error;
                }
                tokio::time::sleep(retry.delay()).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ips(text: &str) -> Vec<IpAddr> {
        text.split_whitespace().map(|ip| ip.parse().unwrap()).collect()
    }

    /// A host with one address in each family.
    fn both(to: IpAddr) -> Option<IpAddr> {
        Some(match to {
            _ if to.is_loopback() => to,
            IpAddr::V4(_) => "10.0.0.9".parse().unwrap(),
            IpAddr::V6(_) => "fd00::9".parse().unwrap(),
        })
    }

    #[test]
    fn the_vtep_is_of_the_family_of_the_other_nodes_whatever_etcd_is() {
        for (etcd, peers, expected) in [
            ("10.0.0.1", "", "10.0.0.9"),
            ("fd00::1", "", "fd00::9"),
            ("fd00::1", "10.0.0.2 10.0.0.3 fd00::2", "10.0.0.9"),
            ("10.0.0.1", "fd00::2", "fd00::9"),
            ("fd00::1 10.0.0.1", "10.0.0.2 fd00::2", "fd00::9"),
            ("127.0.0.1", "", "10.0.0.9"),
            ("::1 127.0.0.1", "10.0.0.2", "10.0.0.9"),
            ("", "", "10.0.0.9"),
        ] {
            let (vtep, _) = detect(&ips(etcd), &ips(peers), both).unwrap();
            assert_eq!(vtep, expected.parse::<IpAddr>().unwrap(), "{etcd} {peers}");
        }
    }

    #[test]
    fn a_host_without_an_address_of_that_family_is_told_what_helps() {
        let only_v6 = |to: IpAddr| both(to).filter(IpAddr::is_ipv6);
        let error = detect(&ips("fd00::1"), &ips("10.0.0.2"), only_v6).unwrap_err();
        assert!(error.contains("IPv4") && error.contains("--vtep"), "{error}");
        assert!(detect(&[], &[], |_| None).unwrap_err().contains("--vtep"));
    }
}
