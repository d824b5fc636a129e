//! What the agent is doing when it is killed: ten edits of a network with three containers on this host and others elsewhere.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use vtepd::{
    desired::{EndpointSpec, LocalEndpoint, NetworkSpec, RemoteEndpoint, Segment, Tunnel, Update},
    model::{EndpointId, Mac, Vni},
};

use crate::support::{ip, run};

pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    /// Which network's agent is killed.
    pub(crate) network: &'static str,
    /// How things stand before.
    pub(crate) before: fn() -> Update,
    /// What somebody else does then.
    pub(crate) damage: fn(),
    /// What the agent is told.
    pub(crate) after: fn() -> Update,
    /// The tunnel itself is what was taken away.
    pub(crate) takes_the_tunnel: bool,
}

const fn nothing() {}

/// Three containers, and a host without an agent that the fourth packets go to.
pub(crate) fn hosts() {
    for netns in ["a", "b", "c", "peer"] {
        run(&format!("ip netns add {netns}"));
        run(&format!("ip -n {netns} link set lo up"));
    }
    run("ip link add under type veth peer name under netns peer");
    run("ip addr add 192.168.205.10/24 dev under");
    run("ip link set under up");
    run("ip -n peer addr add 192.168.205.11/24 dev under");
    run("ip -n peer link set under up");
    run(
        "ip -n peer link add vxlan1 address 02:42:0a:00:00:64 type vxlan id 256 dstport 4789 local 192.168.205.11 nolearning",
    );
    run("ip -n peer link set vxlan1 mtu 1400 up");
    run("ip -n peer addr add 10.0.0.100/16 dev vxlan1");
    run("ip -n peer neigh add 10.0.0.2 lladdr 02:42:0a:00:00:02 dev vxlan1 nud permanent");
    run("bridge -n peer fdb add 02:42:0a:00:00:02 dev vxlan1 dst 192.168.205.10");
}

fn vni(number: u32) -> Vni {
    number.try_into().unwrap()
}

fn id(node: &str, endpoint: &str) -> EndpointId {
    EndpointId { node: node.parse().unwrap(), endpoint: endpoint.parse().unwrap() }
}

fn segment(number: u32, gateway: &str, mtu: u32) -> Segment {
    let gateway: ipnet::IpNet = gateway.parse().unwrap();
    Segment {
        vni: vni(number),
        tunnel: Some(Tunnel { port: 4789, local: ip("192.168.205.10"), flood: false }),
        mtu,
        gateways: vec![gateway],
        gateway_mac: Mac::from_ip(gateway.addr()),
    }
}

fn spec(name: &str, segments: Vec<Segment>) -> Arc<NetworkSpec> {
    Arc::new(NetworkSpec { name: name.parse().unwrap(), segments, spoof_guard: true, chains: BTreeMap::new() })
}

fn local(number: u32, address: &str, netns: &str, ifname: &str) -> EndpointSpec {
    let net: ipnet::IpNet = address.parse().unwrap();
    EndpointSpec::Local(LocalEndpoint {
        vni: vni(number),
        mac: Mac::from_ip(net.addr()),
        addresses: vec![net],
        netns: format!("/run/netns/{netns}").as_str().into(),
        ifname: ifname.to_owned(),
        routes: Vec::new(),
        outside: false,
    })
}

fn remote(last: u8, mac: [u8; 6], vtep: &str) -> EndpointSpec {
    let ips = vec![IpAddr::from([10, 0, 0, last])];
    EndpointSpec::Remote(RemoteEndpoint { vni: vni(256), mac: Mac::new(mac), ips, vtep: ip(vtep) })
}

fn mac(last: u8) -> [u8; 6] {
    [2, 0x42, 10, 0, 0, last]
}

type Endpoints = Vec<(EndpointId, Option<EndpointSpec>)>;

fn update(segments: Vec<Segment>, more: Endpoints) -> Update {
    let mut endpoints = vec![
        (id("n1", "a"), Some(local(256, "10.0.0.2/16", "a", "eth0"))),
        (id("n1", "b"), Some(local(256, "10.0.0.3/16", "b", "eth0"))),
        (id("n2", "peer"), Some(remote(100, mac(100), "192.168.205.11"))),
    ];
    endpoints.extend(more);
    Update { revision: 1, spec: Some(Some(spec("one", segments))), endpoints }
}

fn with(more: Endpoints) -> Update {
    update(vec![segment(256, "10.0.0.1/16", 1400)], more)
}

pub(crate) fn base() -> Update {
    with(Vec::new())
}

fn with_c() -> Update {
    with(vec![(id("n1", "c"), Some(local(256, "10.0.0.4/16", "c", "eth0")))])
}

fn with_c_elsewhere() -> Update {
    with(vec![(id("n1", "c"), Some(local(256, "10.0.0.5/16", "c", "eth0")))])
}

fn with_remote() -> Update {
    with(vec![(id("n2", "r"), Some(remote(50, mac(50), "192.168.205.11")))])
}

fn with_remote_moved() -> Update {
    with(vec![(id("n2", "r"), Some(remote(50, mac(50), "192.168.205.12")))])
}

fn with_remote_changed() -> Update {
    with(vec![(id("n2", "r"), Some(remote(50, mac(51), "192.168.205.11")))])
}

fn with_many() -> Update {
    let remotes =
        (101..201).map(|last| (id("n2", &format!("r{last}")), Some(remote(last, mac(last), "192.168.205.12"))));
    with(remotes.collect())
}

fn with_another_subnet() -> Update {
    let segments = vec![segment(256, "10.0.0.1/16", 1400), segment(257, "10.9.0.1/16", 1400)];
    update(segments, vec![(id("n1", "c"), Some(local(257, "10.9.0.4/16", "c", "eth0")))])
}

fn with_another_mtu() -> Update {
    update(vec![segment(256, "10.0.0.1/16", 1380)], Vec::new())
}

fn two() -> Update {
    let endpoints = vec![(id("n1", "c"), Some(local(300, "10.7.0.4/16", "c", "eth7")))];
    Update { revision: 1, spec: Some(Some(spec("two", vec![segment(300, "10.7.0.1/16", 1400)]))), endpoints }
}

fn no_two() -> Update {
    Update { revision: 1, spec: Some(None), endpoints: Vec::new() }
}

pub(crate) fn scenarios() -> Vec<Scenario> {
    let one = |name, before, after| Scenario {
        name,
        network: "one",
        before,
        damage: nothing,
        after,
        takes_the_tunnel: false,
    };
    vec![
        one("a container comes", base, with_c),
        one("a container goes", with_c, base),
        one("a container gets another address", with_c, with_c_elsewhere),
        one("a remote endpoint moves", with_remote, with_remote_moved),
        one("a remote endpoint gets another MAC address", with_remote, with_remote_changed),
        one("a hundred remote endpoints come", base, with_many),
        one("a subnet comes with a VNI of its own", base, with_another_subnet),
        one("the network gets another MTU", base, with_another_mtu),
        Scenario {
            damage: || drop(run("ip -n vtepd-one link del vxlan1")),
            takes_the_tunnel: true,
            ..one("somebody deletes the VXLAN device", with_many, with_many)
        },
        Scenario { network: "two", ..one("a network comes", no_two, two) },
        Scenario { network: "two", ..one("a network goes", two, no_two) },
    ]
}
