//! The bare netlink calls that make a network, one after the other and nothing else: what the agent is measured by.

use std::{
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsRawFd as _, RawFd},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::{InfoData, InfoKind, InfoVeth, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
    neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::sched::{CloneFlags, unshare};

use super::rows::within;

/// One network: its number, and the address and the mask that its endpoints have.
pub(crate) struct Network {
    pub(crate) n: u32,
    pub(crate) subnet: Ipv4Addr,
    pub(crate) container: String,
}

struct Calls {
    socket: Socket,
    answer: Vec<u8>,
}

impl Calls {
    fn open() -> Self {
        let open = || -> io::Result<Socket> {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            Ok(socket)
        };
        Self { socket: open().unwrap(), answer: Vec::with_capacity(16 << 10) }
    }

    fn call(&mut self, message: RouteNetlinkMessage, flags: u16) {
        let mut message = NetlinkMessage::from(message);
        message.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send_to(&bytes, &SocketAddr::new(0, 0), 0).unwrap();
        self.answer.clear();
        self.socket.recv_from(&mut self.answer, 0).unwrap();
        let code = i32::from_ne_bytes(self.answer[16..20].try_into().unwrap());
        assert_eq!(code, 0, "the kernel refuses {message:?}");
    }

    fn add(&mut self, kind: InfoKind, data: Option<InfoData>, index: u32, more: Vec<LinkAttribute>) {
        let mut message = LinkMessage::default();
        message.header.index = index;
        let info = [LinkInfo::Kind(kind)].into_iter().chain(data.map(LinkInfo::Data)).collect();
        message.attributes = more;
        message.attributes.push(LinkAttribute::LinkInfo(info));
        self.call(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL);
    }

    fn up(&mut self, index: u32, more: Vec<LinkAttribute>) {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        message.attributes = more;
        self.call(RouteNetlinkMessage::SetLink(message), 0);
    }

    fn address(&mut self, index: u32, address: Ipv4Addr, prefix_len: u8) {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.prefix_len = prefix_len;
        message.header.index = index;
        message.attributes.push(AddressAttribute::Local(IpAddr::V4(address)));
        self.call(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL);
    }

    fn row(&mut self, family: AddressFamily, index: u32, flags: NeighbourFlags, attributes: Vec<NeighbourAttribute>) {
        let mut message = NeighbourMessage::default();
        message.header.family = family;
        message.header.ifindex = index;
        message.header.state = NeighbourState::Permanent;
        message.header.flags = flags;
        message.attributes = attributes;
        self.call(RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE);
    }

    fn default_route(&mut self, index: u32, gateway: Ipv4Addr) {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Boot;
        message.header.scope = RouteScope::Universe;
        message.header.kind = RouteType::Unicast;
        message.attributes = vec![RouteAttribute::Gateway(RouteAddress::Inet(gateway)), RouteAttribute::Oif(index)];
        self.call(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_EXCL);
    }
}

fn veth(peer_name: &str, peer_index: u32, netns: RawFd) -> InfoData {
    let mut peer = LinkMessage::default();
    peer.header.index = peer_index;
    peer.attributes = vec![LinkAttribute::IfName(peer_name.to_owned()), LinkAttribute::NetNsFd(netns)];
    InfoData::Veth(InfoVeth::Peer(peer))
}

const BRIDGE: u32 = 2;
const VXLAN: u32 = 3;
const PORT: u32 = 4;
const GATEWAY: u32 = 5000;

/// Makes all networks, and gives how long that took and how much of the processor it took.
pub(crate) fn build(host: &Path, networks: &[Network], internal: bool) -> (Duration, Duration) {
    within(host, || {
        let mut on_host = Calls::open();
        if !internal {
            on_host.add(InfoKind::Bridge, None, GATEWAY, vec![LinkAttribute::IfName("gw".to_owned())]);
            on_host.up(GATEWAY, Vec::new());
            on_host.address(GATEWAY, Ipv4Addr::new(172, 18, 0, 1), 16);
        }
        let (started, used) = (Instant::now(), own_cpu());
        let mut kept = Vec::new();
        for network in networks {
            kept.push(one(&mut on_host, network, internal));
        }
        let took = (started.elapsed(), own_cpu().saturating_sub(used));
        // The namespaces go with the last descriptors.
        drop(kept);
        took
    })
}

fn one(on_host: &mut Calls, network: &Network, internal: bool) -> File {
    let Network { n, subnet, container } = network;
    let [a, b, c, _] = subnet.octets();
    let address = |last| Ipv4Addr::new(a, b, c, last);
    let container = File::open(container).unwrap();
    let made = || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        (Calls::open(), File::open("/proc/thread-self/ns/net").unwrap())
    };
    let (mut overlay, netns) = thread::scope(|scope| scope.spawn(made).join().unwrap());
    overlay.add(InfoKind::Bridge, None, BRIDGE, vec![LinkAttribute::IfName("br0".to_owned())]);
    let vxlan = vec![InfoVxlan::Id(1_000_000 + n), InfoVxlan::Port(4789), InfoVxlan::Learning(false)];
    let at = vec![LinkAttribute::IfName("vxlan1".to_owned()), LinkAttribute::NetNsFd(netns.as_raw_fd())];
    on_host.add(InfoKind::Vxlan, Some(InfoData::Vxlan(vxlan)), VXLAN, at);
    let pair = veth("eth0", 100, container.as_raw_fd());
    overlay.add(InfoKind::Veth, Some(pair), PORT, vec![LinkAttribute::IfName("veth0".to_owned())]);
    overlay.up(BRIDGE, Vec::new());
    overlay.address(BRIDGE, address(1), 24);
    overlay.up(VXLAN, vec![LinkAttribute::Controller(BRIDGE)]);
    overlay.up(PORT, vec![LinkAttribute::Controller(BRIDGE)]);
    let mac = vec![2, 0x42, a, b, c, 3];
    let to = NeighbourAttribute::Destination(Ipv4Addr::new(192, 168, 205, 11).into());
    overlay.row(
        AddressFamily::Bridge,
        VXLAN,
        NeighbourFlags::Own,
        vec![NeighbourAttribute::LinkLayerAddress(mac.clone()), to],
    );
    let to = NeighbourAttribute::Destination(address(3).into());
    let attributes = vec![NeighbourAttribute::LinkLayerAddress(mac), to];
    overlay.row(AddressFamily::Inet, VXLAN, NeighbourFlags::empty(), attributes);
    let mut inside = thread::scope(|scope| {
        let enter = || {
            nix::sched::setns(&container, CloneFlags::CLONE_NEWNET).unwrap();
            Calls::open()
        };
        scope.spawn(enter).join().unwrap()
    });
    inside.up(100, Vec::new());
    inside.address(100, address(2), 24);
    if !internal {
        let pair = veth("eth1", 101, container.as_raw_fd());
        let name = vec![LinkAttribute::IfName(format!("gw{n}")), LinkAttribute::Controller(GATEWAY)];
        on_host.add(InfoKind::Veth, Some(pair), GATEWAY + 1 + n, name);
        on_host.up(GATEWAY + 1 + n, Vec::new());
        inside.up(101, Vec::new());
        inside.address(101, Ipv4Addr::from(0xac12_0002 + n), 16);
        inside.default_route(101, Ipv4Addr::new(172, 18, 0, 1));
    }
    netns
}

fn own_cpu() -> Duration {
    super::bench::cpu_of(std::process::id())
}
