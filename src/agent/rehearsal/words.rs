//! Operations as the commands that do the same, so that they can be read, and tried, by people who know `ip` and `bridge`.

use std::collections::BTreeMap;

use crate::{
    engine::{Family, LinkChange, NewLink, Op, Place},
    model::{Netns, nft::Change},
};

/// Where a network's bridges are, and what its links are called.
pub(in crate::agent) struct Names<'a> {
    /// Name of the overlay namespace for `ip -n`; `None` is the host's own.
    pub(in crate::agent) netns: Option<&'a str>,
    /// Names of its links.
    pub(in crate::agent) links: &'a BTreeMap<u32, String>,
    /// Names of links in endpoints' namespaces.
    pub(in crate::agent) inner: &'a BTreeMap<(Netns, u32), String>,
}

impl Names<'_> {
    /// Options that lead into the overlay namespace.
    fn here(&self) -> String {
        self.netns.map(|netns| format!(" -n {netns}")).unwrap_or_default()
    }

    fn at(&self, place: &Place) -> String {
        match place {
            Place::Overlay => self.here(),
            Place::Inner(netns) => in_netns(netns),
        }
    }

    fn link(&self, place: &Place, ifindex: u32) -> String {
        let name = match place {
            Place::Overlay => self.links.get(&ifindex),
            Place::Inner(netns) => self.inner.get(&(netns.clone(), ifindex)),
        };
        name.cloned().unwrap_or_else(|| format!("if{ifindex}"))
    }

    /// An operation in words.
    pub(in crate::agent) fn say(&self, op: &Op) -> String {
        let (here, name) = (self.here(), |ifindex: &u32| self.link(&Place::Overlay, *ifindex));
        match op {
            Op::CreateNetns => format!("ip netns add {}", self.netns.unwrap_or_default()),
            Op::DeleteNetns => format!("ip netns delete {}", self.netns.unwrap_or_default()),
            Op::ReclaimVni { vni, port, .. } => {
                format!(
                    "ip link delete the VXLAN device of VNI {vni}, port {port}, that was moved to another namespace"
                )
            }
            Op::AddLink(new) => self.say_new(new),
            Op::SetLink { place, ifindex, change } => {
                format!("ip{} link set {}{}", self.at(place), self.link(place, *ifindex), self.say_change(change))
            }
            Op::DeleteLink { place, ifindex } => {
                format!("ip{} link delete {}", self.at(place), self.link(place, *ifindex))
            }
            Op::AddAddress { place, ifindex, net } => {
                format!("ip{} address add {net} dev {} nodad", self.at(place), self.link(place, *ifindex))
            }
            Op::RestoreRoutes { place, ifindex, net } => {
                format!(
                    "ip{} address replace {net} dev {}, with its routes",
                    self.at(place),
                    self.link(place, *ifindex)
                )
            }
            Op::DeleteAddress { place, ifindex, net } => {
                format!("ip{} address delete {net} dev {}", self.at(place), self.link(place, *ifindex))
            }
            Op::SetForwarding { family, on } => {
                let family = if *family == Family::V4 { "ipv4" } else { "ipv6" };
                let netns = self.netns.map(|netns| format!("ip netns exec {netns} ")).unwrap_or_default();
                format!("{netns}sysctl net.{family}.conf.all.forwarding={}", u8::from(*on))
            }
            Op::AddRoute { place, ifindex, route } => {
                format!("ip{} route add {route} dev {}", self.at(place), self.link(place, *ifindex))
            }
            Op::ReplaceRoute { place, ifindex, route } => {
                format!("ip{} route replace {route} dev {}", self.at(place), self.link(place, *ifindex))
            }
            Op::DeleteRoute { place, ifindex, route } => {
                format!("ip{} route delete {route} dev {}", self.at(place), self.link(place, *ifindex))
            }
            Op::PutFdb { ifindex, mac, dst } => {
                format!("bridge{here} fdb replace {mac} dev {} dst {dst} self permanent", name(ifindex))
            }
            Op::DeleteFdb { ifindex, mac, dst } => {
                let dst = dst.map(|dst| format!(" dst {dst}")).unwrap_or_default();
                format!("bridge{here} fdb delete {mac} dev {}{dst} self", name(ifindex))
            }
            Op::PutBridgeRow { ifindex, mac } => {
                format!("bridge{here} fdb replace {mac} dev {} master static", name(ifindex))
            }
            Op::DeleteBridgeRow { ifindex, mac } => {
                format!("bridge{here} fdb delete {mac} dev {} master", name(ifindex))
            }
            Op::PutNeighbour { ifindex, ip, mac } => {
                format!("ip{here} neigh replace {ip} lladdr {mac} dev {} nud permanent", name(ifindex))
            }
            Op::DeleteNeighbour { ifindex, ip } => format!("ip{here} neigh delete {ip} dev {}", name(ifindex)),
            Op::ChangeRules(changes) => {
                let netns = self.netns.map(|netns| format!("ip netns exec {netns} ")).unwrap_or_default();
                let changes: Vec<String> = changes.iter().map(say_rules).collect();
                format!("{netns}nft {}", changes.join("; "))
            }
        }
    }

    fn say_new(&self, new: &NewLink) -> String {
        let here = self.here();
        match new {
            NewLink::Bridge { name, mac, .. } => {
                format!("ip{here} link add {name} address {mac} type bridge mcast_snooping 0")
            }
            NewLink::Vxlan { name, mac, mtu, vni, port, local, proxy, .. } => {
                let proxy = if *proxy { " proxy" } else { "" };
                format!(
                    "ip{here} link add {name} address {mac} mtu {mtu} type vxlan id {vni} dstport {port} local {local} \
                     nolearning{proxy}"
                )
            }
            NewLink::Veth { name, mac, mtu, inner, inner_mac, .. } => {
                let netns = inner.netns.path().map(|path| format!(" netns {}", path.display())).unwrap_or_default();
                format!(
                    "ip{here} link add {name} address {mac} mtu {mtu} type veth peer name {} address {inner_mac} mtu \
                     {mtu}{netns}",
                    inner.ifname
                )
            }
        }
    }

    fn say_change(&self, change: &LinkChange) -> String {
        let on = |on: bool| if on { "on" } else { "off" };
        let mut said = Vec::new();
        said.extend(change.name.as_ref().map(|name| format!("name {name}")));
        said.extend(change.mac.map(|mac| format!("address {mac}")));
        said.extend(change.mtu.map(|mtu| format!("mtu {mtu}")));
        said.extend(change.group.map(|group| format!("group {group}")));
        said.extend(change.master.map(|master| format!("master {}", self.link(&Place::Overlay, master))));
        said.extend(change.addr_gen_none.then(|| "addrgenmode none".to_owned()));
        said.extend(change.mcast_snooping_off.then(|| "type bridge mcast_snooping 0".to_owned()));
        said.extend(change.local.map(|local| format!("type vxlan local {local}")));
        said.extend(change.learning_off.then(|| "type vxlan nolearning".to_owned()));
        said.extend(change.port.map(|port| {
            let locked = port.locked.map(|locked| format!(" locked {}", on(locked))).unwrap_or_default();
            let (learning, flood) = (on(port.learning), on(port.unicast_flood));
            format!("type bridge_slave learning {learning} flood {flood} isolated {}{locked}", on(port.isolated))
        }));
        said.extend(change.settings.iter().map(|setting| format!("{setting:?} as the kernel makes it")));
        said.extend(change.up.map(|up| if up { "up" } else { "down" }.to_owned()));
        said.iter().map(|said| format!(" {said}")).collect()
    }
}

/// Options that lead into an endpoint's namespace.
fn in_netns(netns: &Netns) -> String {
    match netns.path() {
        Some(path) => match path.strip_prefix("/run/netns").or_else(|_| path.strip_prefix("/var/run/netns")) {
            Ok(name) => format!(" -n {}", name.display()),
            Err(_) => format!(" -n {}", path.display()),
        },
        None => String::new(),
    }
}

fn say_rules(change: &Change) -> String {
    match change {
        Change::EnsureTable(table) => format!("add table {table}"),
        Change::ReplaceTable(ruleset) => format!("replace table {} ({} chains)", ruleset.table, ruleset.chains.len()),
        Change::DeleteTable(table) => format!("delete table {table}"),
        Change::PutChain { table, name, .. } => format!("replace chain {table} {name}"),
        Change::DeleteChain { table, name } => format!("delete chain {table} {name}"),
    }
}
