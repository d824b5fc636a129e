//! The gateway bridge of a host: one more engine, whose home is the host's own namespace. Its kernel has twins of the containers
//! that the networks' kernels have, in which only its own interfaces are.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use ipnet::IpNet;
use vtepd::{
    desired::{Outside, OutsideConfig, Update},
    engine::{
        Config, Family, Forwarding, Gateway, Home, LinkChange, LinkKind, Note, Op, Place, Reconciler as _, Summary,
        Time, Turn, gateway_port_mac, turn,
    },
    model::{
        Mac, Name, Netns, Route,
        nft::{self, Change, TableId},
    },
};

use crate::{
    GROUP,
    sim_kernel::{Chance, Faults, SimKernel, SimLink},
};

const BRIDGE: &str = "vtepd-gw";
/// A link that somebody else may have in a container, with a default route.
const UPLINK: &str = "uplink";

/// A host's way outside.
pub struct WayOutside {
    stage: Outside,
    engine: Option<Gateway>,
    pub kernel: SimKernel,
    /// What others have on the host.
    others: Vec<SimLink>,
}

fn outside() -> OutsideConfig {
    let subnet = "172.18.0.0/24".parse().unwrap();
    let subnet6 = Some("fd00:18::/96".parse().unwrap());
    OutsideConfig { bridge: BRIDGE.into(), subnet, subnet6, table: TableId::new(nft::Family::Inet, "vtepd-test") }
}

fn engine() -> Gateway {
    let home = Home::Host { bridge: BRIDGE.into(), adopt: false };
    let (guards, tables) = (TableId::new(nft::Family::Netdev, "vtepd-test"), vec![outside().table]);
    let resync = Duration::from_secs(60);
    Gateway::new(
        Config { name: Name::host(), home, group: GROUP, resync, dump_at_most: Config::DUMP_AT_MOST, guards, tables },
        outside(),
    )
}

fn default_route() -> Route {
    Route { dst: "0.0.0.0/0".parse().unwrap(), via: Some([172, 18, 0, 1].into()) }
}

impl WayOutside {
    pub fn new(seed: u64) -> Self {
        let mut kernel = SimKernel::on_host(seed);
        let veth = || LinkKind::Veth { peer: None, peer_nsid: None };
        for (name, group, kind, net) in [
            ("eth0", 0, LinkKind::Other("dummy".into()), "192.168.205.10/24"),
            ("docker0", 0, LinkKind::Bridge { mcast_snooping: true }, "172.17.0.1/16"),
            ("vgw000000000000", 0, veth(), "10.60.0.1/24"),
            ("vgw-of-somebody", GROUP, veth(), "10.61.0.1/24"),
        ] {
            let ifindex = kernel.add_others_link(&Place::Overlay, name, group, kind);
            kernel.add_others_address(&Place::Overlay, ifindex, net.parse().unwrap());
        }
        kernel.events_dropped();
        let others = kernel.overlay.as_ref().unwrap().links.values().cloned().collect();
        Self { stage: Outside::new(Some(outside())), engine: None, kernel, others }
    }

    /// The agent dies and starts again.
    pub fn crash(&mut self) {
        self.stage = Outside::new(Some(outside()));
        self.engine = None;
    }

    pub fn follow(&mut self, updates: &BTreeMap<Name, Update>, ports: &BTreeSet<u16>, now: Time) {
        let Some(update) = self.stage.follow(updates, ports) else { return };
        if self.engine.is_some() || matches!(update.spec, Some(Some(_))) {
            self.engine.get_or_insert_with(engine).update(update, now);
        }
    }

    /// What an earlier agent left and nobody wants any more is taken down.
    pub fn sweep(&mut self, revision: i64, now: Time) {
        if self.engine.is_none() {
            let nothing = Update { revision, spec: Some(None), endpoints: Vec::new() };
            self.engine.insert(engine()).update(nothing, now);
        }
    }

    pub fn run(&mut self, rounds: usize, now: Time, drift: &mut Vec<Note>) -> bool {
        let Some(engine) = &mut self.engine else { return true };
        let done = turn(engine, &mut self.kernel, || now, rounds);
        drift.extend(engine.take_notes().into_iter().filter(|note| matches!(note, Note::Drift { .. })));
        if done == Turn::Gone {
            self.engine = None;
        }
        done != Turn::More
    }

    pub fn resync(&mut self, now: Time) {
        if let Some(engine) = &mut self.engine {
            engine.network().resync("test", now);
        }
    }

    pub fn summary(&self) -> Option<Summary> {
        self.engine.as_ref().map(Gateway::summary)
    }

    fn links(&self) -> impl Iterator<Item = &SimLink> {
        self.kernel.overlay.iter().flat_map(|home| home.links.values())
    }

    /// Every link in the containers, with where it is.
    fn inner(&self) -> impl Iterator<Item = (&Netns, u64, &SimLink)> {
        self.kernel.containers.iter().flat_map(|(path, ns)| ns.links.values().map(move |link| (path, ns.inode, link)))
    }

    /// The port of the bridge that an interface is the other end of.
    fn port_of(&self, inner: &SimLink, inode: u64) -> Option<&SimLink> {
        let kind = LinkKind::Veth { peer: Some(inner.link.ifindex), peer_nsid: Some(inode as i32) };
        self.links().find(|link| link.link.kind == kind)
    }

    /// The MAC addresses of the ports, which say who has which address, by the interfaces at their other ends. Without those that
    /// say nothing of it, or the same.
    pub fn standing(&self) -> BTreeMap<(u64, u32), Mac> {
        let ports: Vec<Mac> = self.links().map(|link| link.link.mac).collect();
        let known = |mac: &Mac| {
            let says = (0..=255).any(|last| *mac == gateway_port_mac(Ipv4Addr::new(172, 18, 0, last)));
            says && ports.iter().filter(|other| *other == mac).count() == 1
        };
        let ours = |port: &&SimLink| port.link.group == GROUP && port.link.name.starts_with("vgw");
        self.inner()
            .filter_map(|(_, inode, link)| {
                let port = self.port_of(link, inode).filter(ours)?;
                known(&port.link.mac).then_some(((inode, link.link.ifindex), port.link.mac))
            })
            .collect()
    }

    /// An agent that starts anew, with nothing going wrong, until it rests.
    pub fn start(&mut self, now: Time) {
        let faults = std::mem::take(&mut self.kernel.faults);
        while !self.run(1000, now, &mut Vec::new()) {}
        self.kernel.faults = faults;
    }

    /// Somebody writes; what, in words.
    pub fn foreign_write(&mut self, chance: &mut Chance) -> Option<String> {
        let ours: Vec<SimLink> = self
            .links()
            .filter(|link| !self.others.iter().any(|other| other.link.ifindex == link.link.ifindex))
            .cloned()
            .collect();
        let inner: Vec<(Netns, u32)> = self
            .inner()
            .filter(|(_, _, link)| link.link.name != UPLINK)
            .map(|(path, _, link)| (path.clone(), link.link.ifindex))
            .collect();
        let containers: Vec<Netns> = self.kernel.containers.keys().cloned().collect();
        let link = chance.pick(&ours)?.clone();
        let (ifindex, port) = (link.link.ifindex, matches!(link.link.kind, LinkKind::Veth { .. }));
        let (place, index) = match chance.pick(&inner) {
            Some((path, index)) if chance.below(2) == 0 => (Place::Inner(path.clone()), *index),
            _ => (Place::Overlay, ifindex),
        };
        let mac = Mac::from_ip(IpAddr::from([10, 0, 0, chance.below(20) as u8]));
        let change = LinkChange::default;
        let change = match chance.below(6) {
            0 => LinkChange { up: Some(false), ..change() },
            1 => LinkChange { mtu: Some(1300), ..change() },
            2 => LinkChange { mac: Some(mac), ..change() },
            // On the host a port without its name, or anything without its mark, is nobody's for an agent without memory.
            3 if !port || place != Place::Overlay => LinkChange { name: Some(format!("odd{index}")), ..change() },
            4 if place != Place::Overlay => LinkChange { group: Some(3), ..change() },
            _ => LinkChange { mtu: Some(900), ..change() },
        };
        let (overlay, kernel) = (self.kernel.overlay.as_ref()?, &self.kernel);
        let tables: Vec<TableId> = overlay.tables.keys().cloned().collect();
        let net = kernel.containers.get(match &place {
            Place::Inner(path) => path,
            Place::Overlay => &Netns::Host,
        });
        let held = match &net {
            Some(ns) => ns.links.get(&index).and_then(|link| link.addresses.keys().next().copied()),
            None => overlay.links.get(&index).and_then(|link| link.addresses.keys().next().copied()),
        };
        let op = match chance.below(12) {
            0..=1 => Op::DeleteLink { place, ifindex: index },
            2..=3 => Op::DeleteAddress { place, ifindex: index, net: held? },
            4 => Op::DeleteRoute { place, ifindex: index, route: default_route() },
            5 => Op::DeleteBridgeRow { ifindex, mac: Mac::from_ip([172, 18, 0, chance.below(16) as u8].into()) },
            6 => Op::ChangeRules(vec![Change::DeleteTable(chance.pick(&tables)?.clone())]),
            7 => {
                let to = [None, Some(Forwarding::Partly)][chance.below(2)];
                return Some(format!("forwarding {to:?}: {:?}", self.kernel.set_forwarding(Family::V4, to)));
            }
            8 => return self.foreign_default(chance.pick(&containers)?.clone()),
            _ => Op::SetLink { place, ifindex: index, change },
        };
        Some(format!("{op:?}: {:?}", self.kernel.foreign(&op)))
    }

    /// Somebody's own default route comes to a container, or goes.
    fn foreign_default(&mut self, netns: Netns) -> Option<String> {
        let place = Place::Inner(netns.clone());
        let links = &self.kernel.containers.get(&netns)?.links;
        match links.values().find(|link| link.link.name == UPLINK).map(|link| link.link.ifindex) {
            Some(ifindex) => {
                self.kernel.foreign(&Op::DeleteLink { place, ifindex }).ok()?;
                Some(format!("{netns}: no other default route"))
            }
            None => {
                let kind = LinkKind::Other("dummy".into());
                let ifindex = self.kernel.add_others_link(&place, UPLINK, 0, kind);
                self.kernel.spoil_route(&place, ifindex, Route { via: None, ..default_route() }, false).ok()?;
                Some(format!("{netns}: another default route"))
            }
        }
    }

    /// The containers' own ways outside end, and all faults with them.
    pub fn end_foreign_defaults(&mut self) {
        self.kernel.faults = Faults::default();
        let has: Vec<Netns> =
            self.inner().filter(|(_, _, link)| link.link.name == UPLINK).map(|(path, ..)| path.clone()).collect();
        for netns in has {
            self.foreign_default(netns);
        }
    }

    /// What others have is as it was, and no address was given twice.
    pub fn check(&self) {
        for other in &self.others {
            let now = self.links().find(|link| link.link.ifindex == other.link.ifindex);
            assert_eq!(now, Some(other), "somebody else's link");
        }
        let macs: Vec<Mac> = self.standing().into_values().collect();
        let interfaces = self.inner().filter(|(_, _, link)| link.link.group == GROUP).count();
        let (engine, picture) = (self.summary().map(|summary| summary.blocked), self.picture());
        assert_eq!(macs.len(), interfaces, "every interface has an address of its own: {picture:#?} {engine:#?}");
    }

    /// All that is ours, in words, without what depends on history: indices, and who has which address.
    pub fn picture(&self) -> Vec<String> {
        let ours = |link: &&SimLink| !self.others.iter().any(|other| other.link.ifindex == link.link.ifindex);
        let mut lines = Vec::new();
        let describe = |link: &SimLink| {
            let l = &link.link;
            let bridge = l.master.and_then(|master| self.links().find(|link| link.link.ifindex == master));
            let bridge = bridge.map(|bridge| bridge.link.name.as_str());
            format!("{} {} up={} group={} {:?} of {bridge:?}", l.name, l.mtu, l.up, l.group, l.port)
        };
        for link in self.links().filter(ours) {
            lines.push(describe(link));
            if matches!(link.link.kind, LinkKind::Bridge { .. }) {
                lines.push(format!(
                    "{:?} {:?} {:?} {} rows",
                    link.link.kind,
                    link.link.mac,
                    link.addresses,
                    link.rows.len()
                ));
            }
        }
        for (path, inode, link) in self.inner() {
            lines.push(format!("{path} {} addresses {:?}", describe(link), link.routes));
            let Some(port) = self.port_of(link, inode) else { continue };
            let address = link.addresses.keys().find_map(|net| match net.addr() {
                IpAddr::V4(ip) => Some(ip),
                IpAddr::V6(_) => None,
            });
            let v6 =
                address.map(|v4| IpNet::new(format!("fd00:18::{:x}", v4.octets()[3]).parse().unwrap(), 96).unwrap());
            let right = address.is_some_and(|address| {
                port.link.mac == gateway_port_mac(address) && link.link.mac == Mac::from_ip(address.into())
            });
            let both = v6.is_some_and(|v6| link.addresses.contains_key(&v6)) && link.addresses.len() == 2;
            lines.push(format!("{path} by {} all of one address: {}", port.link.name, right && both));
            let row = self.links().find_map(|bridge| bridge.rows.get(&link.link.mac));
            lines.push(format!("{path} row {}", row == Some(&(port.link.ifindex, true))));
        }
        let home = self.kernel.overlay.iter();
        for (id, table) in home.clone().flat_map(|home| &home.tables) {
            let chains = table.chains.iter().map(|(name, chain)| match id.family {
                // The guards name the addresses.
                nft::Family::Netdev => format!("{name} {} rules", chain.rules.len()),
                _ => format!("{name} {chain:?}"),
            });
            lines.extend(chains.map(|chain| format!("table {id} {chain}")));
        }
        // A host that was made to forward is left so; from and to which links is not ours to say.
        if lines.iter().any(|line| line.starts_with(BRIDGE)) {
            lines.extend(home.map(|home| format!("forwards {:?}", home.forwarding.keys())));
        }
        lines.sort();
        lines
    }
}
