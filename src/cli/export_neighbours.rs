//! `vtepd export-neighbours`: what a host without an agent needs to take part in a network, as commands.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    io::{self, Write as _},
    net::IpAddr,
    process::ExitCode,
};

use clap::Args;

use super::{log::Log, options::Records};
use crate::{
    agent,
    desired::{Members, StoreConfig},
    model::Name,
};

/// The longest name of an interface, in bytes (IFNAMSIZ less the zero byte).
const MAX_DEVICE: usize = 15;

/// The options of `vtepd export-neighbours`.
#[derive(Args, Debug)]
#[group(id = "own", required = true, multiple = true, args = ["vtep", "node"])]
pub(super) struct Arguments {
    /// The network, Docker's by the name that metrics show it by
    network: Name,
    /// VTEP address of the host that the commands are for
    #[arg(long, env = "VTEPD_VTEP")]
    vtep: Option<IpAddr>,
    /// The node whose record has that address, where it is not given
    #[arg(long, env = "VTEPD_NODE")]
    node: Option<Name>,
    /// The host's VXLAN device; of a network with several VNIs the first one's, the number at its end counts on
    #[arg(long, env = "VTEPD_DEVICE", default_value = "vxlan0", value_parser = device)]
    device: String,
    #[command(flatten)]
    pub(super) records: Records,
    #[command(flatten)]
    log: Log,
}

/// Prints the commands.
pub(super) fn run(arguments: &Arguments) -> ExitCode {
    let printed = arguments.log.start().and_then(|()| commands(arguments)).and_then(|text| {
        let written = io::stdout().lock().write_all(text.as_bytes());
        written.map_err(|error| format!("standard output: {error}"))
    });
    super::exit_code(printed)
}

fn commands(arguments: &Arguments) -> Result<String, String> {
    let etcd = arguments.records.etcd()?;
    let nobody = || "export-neighbours".parse().map_err(|error| format!("{error}"));
    let config = StoreConfig {
        prefix: arguments.records.prefix.clone(),
        docker_prefix: arguments.records.docker_prefix.clone(),
        node: arguments.node.clone().map_or_else(nobody, Ok)?,
        vtep: arguments.vtep,
        underlay_mtu: 0,
        max_removal: 50,
        host_endpoints: false,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("cannot start: {error}"))?;
    let store = runtime.block_on(agent::read_store(&etcd, config)).map_err(|error| error.to_string())?.store;
    let shown = &arguments.network;
    let own = store.vtep().ok_or_else(|| "the node has no record with a VTEP address that is in force".to_owned())?;
    let network = store.network_shown_as(shown).ok_or_else(|| format!("there is no network {shown}"))?;
    let members = store.members(network);
    let members = members.ok_or_else(|| format!("network {shown} is not in force, or must not be made in clear"))?;
    let mut text = format!("# network {shown} as of revision {}, for the host with VTEP {own}\n", store.revision());
    text.push_str(&text_of(&members, own, &arguments.device));
    Ok(text)
}

/// The commands for a host, one VNI after the other. What is behind the host itself it knows.
fn text_of(members: &Members, own: IpAddr, device: &str) -> String {
    let mut text = String::new();
    let stem = device.trim_end_matches(|c: char| c.is_ascii_digit());
    let first: u32 = device.get(stem.len()..).and_then(|digits| digits.parse().ok()).unwrap_or_default();
    let others: Vec<_> = members.endpoints.iter().filter(|(_, endpoint)| endpoint.vtep != own).collect();
    let vteps: BTreeSet<IpAddr> = others.iter().map(|(_, endpoint)| endpoint.vtep).collect();
    for (vni, number) in members.vnis.iter().zip(first..) {
        let device = if number == first { device.to_owned() } else { format!("{stem}{number}") };
        let proxy = if members.flood { "" } else { " proxy" };
        let mtu = members.mtu.map(|mtu| format!(" mtu {mtu}")).unwrap_or_default();
        let mut line = |command: String| {
            // Writing to a string does not fail.
            let _ = writeln!(text, "{command}");
        };
        line(format!(
            "# VNI {vni}: ip link add {device}{mtu} type vxlan id {vni} dstport {} local {own} nolearning{proxy}",
            members.port
        ));
        line(format!("# then: ip link set {device} up"));
        if members.flood {
            for vtep in &vteps {
                line(format!("bridge fdb append 00:00:00:00:00:00 dev {device} dst {vtep}"));
            }
        }
        for (id, endpoint) in others.iter().filter(|(_, endpoint)| endpoint.vni == *vni) {
            line(format!("# {id}"));
            line(format!("bridge fdb replace {} dev {device} dst {}", endpoint.mac, endpoint.vtep));
            for ip in &endpoint.ips {
                line(format!("ip neigh replace {ip} lladdr {} nud permanent dev {device}", endpoint.mac));
            }
        }
    }
    text
}

/// A name that every kernel takes for an interface, and every shell for a word.
fn device(text: &str) -> Result<String, String> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    let first = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if text.len() > MAX_DEVICE || !text.starts_with(first) || !text.chars().all(good) {
        return Err("is no name of an interface".to_owned());
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        desired::RemoteEndpoint,
        model::{EndpointId, Mac},
    };

    fn endpoint(name: &str, vni: u32, ips: &[&str], vtep: &str) -> (EndpointId, RemoteEndpoint) {
        let ips: Vec<IpAddr> = ips.iter().map(|ip| ip.parse().unwrap()).collect();
        let id = EndpointId { node: "n".parse().unwrap(), endpoint: name.parse().unwrap() };
        let (vni, mac) = (vni.try_into().unwrap(), Mac::from_ip(ips[0]));
        (id, RemoteEndpoint { vni, mac, ips, vtep: vtep.parse().unwrap() })
    }

    fn members(flood: bool) -> Members {
        let endpoints = vec![
            endpoint("a", 256, &["10.0.0.2", "fd00::2"], "192.0.2.1"),
            endpoint("b", 257, &["10.1.0.3"], "192.0.2.2"),
            endpoint("own", 256, &["10.0.0.9"], "192.0.2.9"),
        ];
        let vnis = vec![256.try_into().unwrap(), 257.try_into().unwrap()];
        Members { port: 4790, flood, mtu: Some(1400), vnis, endpoints }
    }

    #[test]
    fn each_vni_has_a_device_and_what_is_behind_the_host_itself_is_left_out() {
        let text = text_of(&members(false), "192.0.2.9".parse().unwrap(), "vxlan9");
        let expected = "\
# VNI 256: ip link add vxlan9 mtu 1400 type vxlan id 256 dstport 4790 local 192.0.2.9 nolearning proxy
# then: ip link set vxlan9 up
# n/a
bridge fdb replace 02:42:0a:00:00:02 dev vxlan9 dst 192.0.2.1
ip neigh replace 10.0.0.2 lladdr 02:42:0a:00:00:02 nud permanent dev vxlan9
ip neigh replace fd00::2 lladdr 02:42:0a:00:00:02 nud permanent dev vxlan9
# VNI 257: ip link add vxlan10 mtu 1400 type vxlan id 257 dstport 4790 local 192.0.2.9 nolearning proxy
# then: ip link set vxlan10 up
# n/b
bridge fdb replace 02:42:0a:01:00:03 dev vxlan10 dst 192.0.2.2
ip neigh replace 10.1.0.3 lladdr 02:42:0a:01:00:03 nud permanent dev vxlan10
";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_network_that_floods_needs_no_proxy_and_a_row_to_every_vtep_on_every_vni() {
        let text = text_of(&members(true), "192.0.2.9".parse().unwrap(), "vxlan0");
        assert!(!text.contains("proxy") && !text.contains("dst 192.0.2.9"), "{text}");
        for device in ["vxlan0", "vxlan1"] {
            for vtep in ["192.0.2.1", "192.0.2.2"] {
                let row = format!("bridge fdb append 00:00:00:00:00:00 dev {device} dst {vtep}\n");
                assert!(text.contains(&row), "{row}{text}");
            }
        }
    }

    #[test]
    fn a_device_is_a_word_to_every_shell() {
        for good in ["vxlan0", "a", "_x.y-z", "123456789012345"] {
            assert_eq!(device(good).as_deref(), Ok(good));
        }
        for bad in ["", "-x", ".", "..", "1234567890123456", "a b", "a;b", "a/b", "a$b", "ä"] {
            assert!(device(bad).is_err(), "{bad}");
        }
    }
}
