//! The walkthrough's diagram of one host, filled with what stands in its kernel.

use serde_json::Value;

use crate::lab::{Host, LabError};

const LEFT: usize = 66;
const RIGHT: usize = 68;
const NOTHING: &str = "-";

/// Which container and which network of the host are drawn.
#[derive(Debug)]
pub(super) struct Subject<'a> {
    pub(super) container: &'a str,
    pub(super) overlay: &'a str,
    pub(super) gateway_bridge: &'a str,
}

/// Draws the host.
pub(super) fn draw(host: &Host, subject: &Subject<'_>) -> Result<String, LabError> {
    let own = Links(host.ip_json(&["-d", "address"])?);
    let overlay = Links(host.ip_json(&["-n", subject.overlay, "-d", "address"])?);
    let container = Links(host.ip_json(&["-n", subject.container, "-d", "address"])?);
    let overlay_routes = host.ip_json(&["-n", subject.overlay, "route"])?;
    let neighbours = host.ip_json(&["-n", subject.overlay, "neigh", "show", "dev", "vxlan1"])?;
    let rows = host.bridge_json(&["-n", subject.overlay, "fdb", "show", "dev", "vxlan1"])?;
    let rows = elements(&rows).filter(|row| row.get("dst").is_some());

    let mut left = Vec::new();
    let mut right = labelled_box("eth0 (veth)", &container.ip_and_mac("eth0"));
    right.push("           |   |".to_owned());
    let has_outside = container.link("eth1").is_some();
    if has_outside {
        left = labelled_box("eth1 (veth)", &container.ip_and_mac("eth1"));
        left.push("           |   |".to_owned());
    }
    let mut lines = vec![rule('-'), String::from("|") + &" ".repeat(LEFT + RIGHT + 1) + "|"];
    let heading = format!("{} - {} namespace", host.name(), subject.container);
    lines.push(format!("|{heading:^width$}|", width = LEFT + RIGHT + 1));
    lines.extend(join(&left, &right, ' '));
    lines.push(rule('-'));

    left = vec!["      host namespace".to_owned(), String::new()];
    right = vec![format!("      overlay namespace {}", subject.overlay), String::new()];
    right.extend(wire(overlay.port_of("br0")));
    right.extend(labelled_box("br0", &overlay.ip_and_mac("br0")));
    right.push("           |   |".to_owned());
    let tunnel = lines.len() + right.len();
    right.extend(labelled_box("vxlan1", &[overlay.tunnel("vxlan1"), overlay.mac("vxlan1")]));
    if own.link(subject.gateway_bridge).is_some() {
        if has_outside {
            left.extend(wire(own.port_of(subject.gateway_bridge)));
        }
        left.extend(labelled_box(subject.gateway_bridge, &own.ip_and_mac(subject.gateway_bridge)));
        left.push(String::new());
    }
    left.extend(labelled_box(Host::INTERFACE, &own.ip_and_mac(Host::INTERFACE)));
    left.push(String::new());
    left.extend(table("IP table:", "->", elements(&host.ip_json(&["route"])?), ["dst", "dev"]));
    left.extend(table("ARP table:", "<->", elements(&host.ip_json(&["-4", "neigh"])?), ["dst", "lladdr"]));
    right.push(String::new());
    right.extend(table("IP table:", "->", elements(&overlay_routes), ["dst", "dev"]));
    right.extend(table("ARP table:", "<->", elements(&neighbours), ["dst", "lladdr"]));
    right.extend(table("FDB of vxlan1:", "->", rows, ["mac", "dst"]));
    lines.extend(join(&left, &right, '|'));
    lines.push(rule('-'));

    for (at, sleeve) in [(tunnel, "___|_________________"), (tunnel + 1, "(___vxlan__tunnel___()")] {
        if let Some(line) = lines.get_mut(at) {
            line.truncate(LEFT + RIGHT + 2 - sleeve.find('|').unwrap_or(4));
            line.push_str(sleeve);
        }
    }
    Ok(lines.join("\n"))
}

fn rule(of: char) -> String {
    format!("|{}|", of.to_string().repeat(LEFT + RIGHT + 1))
}

/// Sets two columns side by side.
fn join(left: &[String], right: &[String], between: char) -> Vec<String> {
    let cell = |column: &[String], row, width: usize| {
        let text = column.get(row).map_or("", String::as_str);
        let text: String = text.chars().take(width).collect();
        format!("{text:width$}")
    };
    let rows = left.len().max(right.len());
    (0..rows).map(|row| format!("|{}{between}{}|", cell(left, row, LEFT), cell(right, row, RIGHT))).collect()
}

fn labelled_box(name: &str, labels: &[String; 2]) -> Vec<String> {
    let width = name.len().max(11) + 2;
    let edge = format!("      |{}|", "-".repeat(width));
    let [first, second] = labels;
    vec![format!("{edge}  {first}"), format!("      |{name:^width$}|  {second}"), edge]
}

/// The veth pair that leads from a container down to a bridge, with the name and the MAC of the end on the bridge.
fn wire(port: Option<&Value>) -> Vec<String> {
    let name = port.map_or(NOTHING, |port| text(port, "ifname"));
    let mac = port.map_or(NOTHING, |port| text(port, "address"));
    vec![format!("           |   |       {name}"), format!("           |   |       MAC: {mac}")]
}

fn table<'a>(title: &str, arrow: &str, rows: impl Iterator<Item = &'a Value>, keys: [&str; 2]) -> Vec<String> {
    let [from, to] = keys;
    let line = |row| format!("      {} {arrow} {}", text(row, from), text(row, to));
    std::iter::once(format!("      {title}")).chain(rows.map(line)).chain([String::new()]).collect()
}

fn elements(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

fn text<'a>(object: &'a Value, key: &str) -> &'a str {
    object.get(key).and_then(Value::as_str).unwrap_or(NOTHING)
}

/// What `ip -j -d address` says.
struct Links(Value);

impl Links {
    fn link(&self, name: &str) -> Option<&Value> {
        elements(&self.0).find(|link| text(link, "ifname") == name)
    }

    /// The first port of a bridge that is a veth.
    fn port_of(&self, bridge: &str) -> Option<&Value> {
        elements(&self.0).find(|link| {
            let kind = link.pointer("/linkinfo/info_kind").and_then(Value::as_str);
            kind == Some("veth") && text(link, "master") == bridge
        })
    }

    fn mac(&self, name: &str) -> String {
        format!("MAC: {}", self.link(name).map_or(NOTHING, |link| text(link, "address")))
    }

    fn ip_and_mac(&self, name: &str) -> [String; 2] {
        let addresses = self.link(name).and_then(|link| link.get("addr_info"));
        let found: Vec<_> = addresses.into_iter().flat_map(elements).map(|address| text(address, "local")).collect();
        let ip = if found.is_empty() { NOTHING.to_owned() } else { found.join(", ") };
        [format!("IP:  {ip}"), self.mac(name)]
    }

    fn tunnel(&self, name: &str) -> String {
        let vni = self.link(name).and_then(|link| link.pointer("/linkinfo/info_data/id")).and_then(Value::as_u64);
        format!("VNI: {}", vni.map_or_else(|| NOTHING.to_owned(), |vni| vni.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_keep_their_width_whatever_stands_in_them() {
        let left = labelled_box("enp0s8", &["IP:  192.168.205.10".to_owned(), "MAC: é".repeat(40)]);
        for line in join(&left, &["x".repeat(500)], '|') {
            assert_eq!(line.chars().count(), LEFT + RIGHT + 3, "{line}");
        }
    }
}
