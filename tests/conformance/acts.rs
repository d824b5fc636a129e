//! What is done to both kernels: a network as the engine would build it, and then anything at all, in a universe so small that
//! much collides.

use std::net::IpAddr;

use ipnet::IpNet;
use vtepd::{
    engine::{self, InnerAt, LinkChange, NewLink, Op, Place, Port},
    model::{
        Mac, Route, guard_table,
        nft::{Chain, ChainKind, Change, Family, Hook, HookPoint, Policy, Rule, Ruleset, TableId},
    },
};

use super::{
    sim_kernel::Chance,
    twins::{HOST, Role, Twin, Twins, at},
};

pub const CONTAINERS: [&str; 3] = ["a", "b", HOST];
/// Those that end and start again.
pub const MORTAL: [&str; 2] = ["a", "b"];
pub const INNER_NAMES: [&str; 3] = ["eth0", "eth1", "other"];
const NAMES: [&str; 7] = ["br0", "br1", "vxlan1", "vxlan2", "veth1", "veth2", "other"];
const ADDRESSES: [&str; 9] = [
    "10.0.0.1/24",
    "10.0.0.77/24",
    "10.0.0.78/24",
    "10.0.0.1/16",
    "10.1.0.1/32",
    "fd00::1/64",
    "fd00::1/80",
    "fd00::77/64",
    "fd01::1/128",
];
/// The last is a subnet of addresses, to which the kernel itself makes a route.
const DESTINATIONS: [&str; 4] = ["10.2.0.0/16", "fd02::/64", "0.0.0.0/0", "10.0.0.0/24"];
/// Nobody's address here, so that it can be a gateway.
const GATEWAYS: [&str; 3] = ["10.0.0.99", "10.0.0.98", "10.9.0.1"];
const GATEWAYS_V6: [&str; 3] = ["fd00::99", "fd00::98", "fd09::1"];
const GROUP: u32 = 0x76;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub fn endpoint_macs() -> Vec<Mac> {
    (3..5).map(|n| Mac::from_ip(IpAddr::from([10, 0, 0, n]))).chain([Mac::ZERO]).collect()
}

pub fn neighbour_ips() -> Vec<IpAddr> {
    ["10.0.0.3", "10.7.0.4", "fd00::3"].map(ip).to_vec()
}

/// Addresses of devices are nobody's endpoint: of such the bridge makes rows of its own.
fn device_mac(number: usize) -> Mac {
    Mac::new([0x02, 0x76, 0, 0, 0, u8::try_from(number).unwrap()])
}

fn bridge(name: &str, mac: usize) -> NewLink {
    NewLink::Bridge { name: name.into(), mac: device_mac(mac), group: GROUP }
}

fn vxlan(name: &str, vni: u32, mtu: u32, local: &str, proxy: bool) -> NewLink {
    let (mac, local) = (device_mac(2), ip(local));
    NewLink::Vxlan { name: name.into(), mac, mtu, group: GROUP, vni, port: 4789, local, proxy }
}

fn veth(name: &str, mtu: u32, container: &str, ifname: &str) -> NewLink {
    let inner = InnerAt { netns: at(container), ifname: ifname.into(), ifindex: None };
    let (mac, inner_mac) = (device_mac(3), device_mac(9));
    NewLink::Veth { name: name.into(), mac, mtu, group: GROUP, inner, inner_mac }
}

/// The devices of a network.
pub fn devices() -> Vec<Op> {
    let new = [
        bridge("br0", 1),
        vxlan("vxlan1", 256, 1450, "192.168.205.10", true),
        veth("veth1", 1450, "a", "eth0"),
        veth("veth2", 1450, "b", "eth0"),
        veth("veth3", 1450, HOST, "eth0"),
    ];
    new.into_iter().map(Op::AddLink).collect()
}

/// What makes a network of its devices.
pub fn wiring(twins: &Twins) -> Vec<Op> {
    let bridge = twins.alive(Role::Bridge).first().copied();
    let set = |(handle, twin): (&u32, &Twin)| {
        let mut change = LinkChange { up: Some(true), addr_gen_none: true, ..LinkChange::default() };
        match twin.role {
            Role::Bridge => change.mtu = Some(1450),
            Role::Vxlan | Role::Outer => {
                change.master = bridge;
                let unicast_flood = twin.role == Role::Vxlan;
                change.port = Some(Port { learning: false, unicast_flood, isolated: false, locked: Some(true) });
            }
            Role::Inner => change.addr_gen_none = false,
        }
        Op::SetLink { place: twins.place(*handle), ifindex: *handle, change }
    };
    twins.all.iter().filter(|(_, twin)| twin.alive).map(set).collect()
}

/// A link of one of these roles, sometimes one that is gone or never was.
fn link(chance: &mut Chance, twins: &Twins, roles: &[Role]) -> u32 {
    if chance.per_mille(60) {
        let gone: Vec<u32> = twins.all.iter().filter(|(_, twin)| !twin.alive).map(|(handle, _)| *handle).collect();
        let gone: Vec<u32> = gone.into_iter().filter(|handle| roles.contains(&twins.all[handle].role)).collect();
        return chance.pick(&gone).copied().unwrap_or(0);
    }
    let there: Vec<u32> = roles.iter().flat_map(|role| twins.alive(*role)).collect();
    chance.pick(&there).copied().unwrap_or(0)
}

fn pick<T: Clone>(chance: &mut Chance, from: &[T]) -> T {
    chance.pick(from).unwrap().clone()
}

/// What can happen.
#[derive(Clone, Debug)]
pub enum Act {
    /// An operation of the agent.
    Own(Op),
    /// The same by somebody else.
    Foreign(Op),
    /// A container ends, and another one of its name starts.
    Container(&'static str),
    /// Somebody else deletes the overlay namespace, and the agent does this before it looks.
    Deleted(Op),
}

/// What happens next; without a namespace mostly that there is one again.
pub fn act(chance: &mut Chance, twins: &Twins, absent: bool) -> Act {
    let op = if absent && chance.per_mille(400) { Op::CreateNetns } else { op(chance, twins) };
    match chance.below(1000) {
        0..4 => Act::Container(pick(chance, &MORTAL)),
        4..7 => Act::Deleted(op),
        7..250 if !matches!(op, Op::CreateNetns | Op::DeleteNetns) => Act::Foreign(op),
        _ => Act::Own(op),
    }
}

fn op(chance: &mut Chance, twins: &Twins) -> Op {
    use Role::{Bridge, Inner, Outer, Vxlan};
    let device = [Vxlan, Bridge];
    match chance.below(1000) {
        0..150 => Op::AddLink(new_link(chance)),
        150..180 => {
            let ifindex = link(chance, twins, &[Bridge, Vxlan, Outer, Inner]);
            Op::DeleteLink { place: twins.place(ifindex), ifindex }
        }
        180..440 => set_link(chance, twins),
        440..510 => route(chance, twins),
        510..516 => {
            let family = if chance.per_mille(500) { engine::Family::V4 } else { engine::Family::V6 };
            Op::SetForwarding { family, on: chance.per_mille(500) }
        }
        516..620 => {
            let ifindex = link(chance, twins, &[Bridge, Bridge, Vxlan, Inner]);
            let (place, net): (Place, IpNet) = (twins.place(ifindex), pick(chance, &ADDRESSES).parse().unwrap());
            let add = chance.per_mille(600);
            if add { Op::AddAddress { place, ifindex, net } } else { Op::DeleteAddress { place, ifindex, net } }
        }
        620..720 => {
            let (ifindex, mac) = (link(chance, twins, &[Vxlan]), pick(chance, &endpoint_macs()));
            let dst = ip(pick(chance, &["192.0.2.1", "192.0.2.2", "192.0.2.1", "192.0.2.3", "2001:db8::1"]));
            let one = (mac.is_zero() && chance.per_mille(700)).then_some(dst);
            let put = chance.per_mille(600);
            if put { Op::PutFdb { ifindex, mac, dst } } else { Op::DeleteFdb { ifindex, mac, dst: one } }
        }
        720..820 => {
            let mac = pick(chance, &endpoint_macs()[..2]);
            let ifindex = link(chance, twins, &[Outer, Outer, Outer, Outer, Outer, Outer, Vxlan, Bridge]);
            let put = chance.per_mille(600);
            if put { Op::PutBridgeRow { ifindex, mac } } else { Op::DeleteBridgeRow { ifindex, mac } }
        }
        820..910 => {
            let (ifindex, ip) = (link(chance, twins, &device), pick(chance, &neighbour_ips()));
            let mac = pick(chance, &endpoint_macs()[..2]);
            let put = chance.per_mille(700);
            if put { Op::PutNeighbour { ifindex, ip, mac } } else { Op::DeleteNeighbour { ifindex, ip } }
        }
        910..985 => Op::ChangeRules((0..=chance.below(2)).map(|_| change(chance)).collect()),
        985..990 => Op::ReclaimVni { vni: pick(chance, &[256, 257]), port: 4789, group: GROUP },
        990..995 => Op::DeleteNetns,
        _ => Op::CreateNetns,
    }
}

fn route(chance: &mut Chance, twins: &Twins) -> Op {
    let ifindex = link(chance, twins, &[Role::Inner]);
    let place = twins.place(ifindex);
    let dst: IpNet = pick(chance, &DESTINATIONS).parse().unwrap();
    let via = pick(chance, if dst.addr().is_ipv4() { &GATEWAYS } else { &GATEWAYS_V6 });
    let route = Route { dst, via: chance.per_mille(850).then(|| ip(via)) };
    // Replacing, the kernel would also take its own route, which the engine never asks for.
    let own = dst.addr().is_ipv4() && dst.prefix_len() == 24;
    match chance.below(10) {
        0..5 => Op::AddRoute { place, ifindex, route },
        5..7 if !own => Op::ReplaceRoute { place, ifindex, route },
        _ if own => Op::AddRoute { place, ifindex, route },
        _ => Op::DeleteRoute { place, ifindex, route },
    }
}

pub fn tables() -> [TableId; 2] {
    [guard_table(), TableId::new(Family::Inet, "vtepd")]
}

/// A chain that has its hook by its name: it is never put where one of that name has another. Its device is there or not.
fn chain(chance: &mut Chance, table: &TableId, name: &str) -> Chain {
    let rules = (0..chance.below(3)).map(|n| Rule::new().saddr(IpAddr::from([10, 0, 0, n as u8])).drop()).collect();
    let device = (table.family == Family::Netdev).then(|| name.to_owned());
    let point = if device.is_some() { HookPoint::Ingress } else { HookPoint::Forward };
    let policy = pick(chance, &[Policy::Accept, Policy::Drop]);
    let hook = Hook { kind: ChainKind::Filter, point, priority: 7, policy, device };
    Chain { hook: (name != "none").then_some(hook), rules, foreign: Vec::new() }
}

fn change(chance: &mut Chance) -> Change {
    let table = pick(chance, &tables());
    let name = pick(chance, &["veth1", "veth2", "none"]).to_owned();
    match chance.below(20) {
        0..6 => Change::EnsureTable(table),
        6..8 => Change::DeleteTable(table),
        8 => {
            let chain = chain(chance, &table, &name);
            Change::ReplaceTable(Ruleset::new(table).with(name, chain))
        }
        9..12 => Change::DeleteChain { table, name },
        _ => {
            let chain = chain(chance, &table, &name);
            Change::PutChain { table, name, chain }
        }
    }
}

fn new_link(chance: &mut Chance) -> NewLink {
    let mtu = pick(chance, &[1450, 1450, 1450, 1000]);
    match chance.below(6) {
        0 => bridge(pick(chance, &["br0", "br0", "br1", "other"]), 1),
        1 => bridge(pick(chance, &["br0", "br0", "br1"]), 4),
        2 | 3 => {
            let (name, vni) = pick(chance, &[("vxlan1", 256), ("vxlan1", 256), ("vxlan2", 257), ("other", 256)]);
            let local = pick(chance, &["192.168.205.10", "192.168.205.10", "2001:db8::10"]);
            vxlan(name, vni, mtu, local, pick(chance, &[true, false]))
        }
        _ => {
            let name = pick(chance, &["veth1", "veth2", "other"]);
            veth(
                name,
                mtu,
                pick(chance, &["a", "b", "a", "b", HOST, "absent"]),
                pick(chance, &["eth0", "eth0", "eth1"]),
            )
        }
    }
}

fn set_link(chance: &mut Chance, twins: &Twins) -> Op {
    use Role::{Bridge, Inner, Outer, Vxlan};
    let ifindex = link(chance, twins, &[Bridge, Vxlan, Outer, Inner]);
    let role = twins.all.get(&ifindex).map(|twin| twin.role);
    let mut change = LinkChange::default();
    for _ in 0..=chance.below(3) {
        match chance.below(16) {
            0..3 => change.up = Some(true),
            3 => change.up = Some(false),
            4..6 => change.mtu = Some(pick(chance, &[1450, 1000, 1500])),
            6 => change.mac = Some(device_mac(chance.below(6))),
            7 => change.group = Some(pick(chance, &[0, GROUP])),
            8 if role == Some(Inner) => change.name = Some(pick(chance, &INNER_NAMES).into()),
            8 => change.name = Some(pick(chance, &NAMES).into()),
            9..11 if role != Some(Inner) => {
                change.master = Some(link(chance, twins, &[Bridge, Bridge, Bridge, Bridge, Outer]));
            }
            11 | 12 if role != Some(Inner) => {
                change.port = Some(Port {
                    learning: chance.per_mille(500),
                    unicast_flood: chance.per_mille(500),
                    isolated: chance.per_mille(500),
                    locked: chance.per_mille(700).then(|| chance.per_mille(500)),
                });
            }
            13 => change.addr_gen_none = true,
            14 if matches!(role, Some(Vxlan | Outer)) => {
                change.local = Some(ip(pick(chance, &["192.168.205.10", "192.168.205.12", "2001:db8::10"])));
            }
            15 if role == Some(Vxlan) => change.learning_off = true,
            15 if role != Some(Inner) => change.mcast_snooping_off = true,
            _ => change.addr_gen_none = true,
        }
    }
    Op::SetLink { place: twins.place(ifindex), ifindex, change }
}
