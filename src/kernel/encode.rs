//! Operations and queries as rtnetlink messages. Rows, addresses and new links are one message each.

use std::{
    net::IpAddr,
    os::fd::{AsRawFd as _, BorrowedFd},
};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressMessage, AddressProtocol, AddressScope},
    link::{
        AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData,
        InfoPortKind, InfoVeth, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
    },
    neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
    nsid::{NsidAttribute, NsidMessage},
    route::{RouteProtocol, RouteType},
};

use super::{settings, socket::Request};
use crate::{
    engine::{ADDRESS_PROTOCOL, FdbPoint, InnerAt, LinkChange, LinkRef, NEIGHBOUR_PROTOCOL, NewLink, Op, Port},
    model::Mac,
};

/// The message of an operation on a row of the overlay namespace; `None` for all other operations.
pub(super) fn row(op: &Op) -> Option<Request> {
    Some(match *op {
        Op::PutFdb { ifindex, mac, dst } => {
            // The driver refuses REPLACE for rows that may have several destinations.
            let flags = if mac.is_zero() || mac.is_multicast() { NLM_F_APPEND } else { NLM_F_REPLACE };
            let mut message = fdb(ifindex, mac, NeighbourFlags::Own, NeighbourState::Permanent);
            message.attributes.push(NeighbourAttribute::Destination(dst.into()));
            new_neighbour(message, flags)
        }
        Op::DeleteFdb { ifindex, mac, dst } => {
            let mut message = fdb(ifindex, mac, NeighbourFlags::Own, NeighbourState::Permanent);
            message.attributes.extend(dst.map(|dst| NeighbourAttribute::Destination(dst.into())));
            del_neighbour(message)
        }
        Op::PutBridgeRow { ifindex, mac } => {
            new_neighbour(fdb(ifindex, mac, NeighbourFlags::Controller, NeighbourState::Noarp), NLM_F_REPLACE)
        }
        Op::DeleteBridgeRow { ifindex, mac } => {
            del_neighbour(fdb(ifindex, mac, NeighbourFlags::Controller, NeighbourState::Noarp))
        }
        Op::PutNeighbour { ifindex, ip, mac } => {
            let mut message = neighbour(ifindex, ip);
            message.header.state = NeighbourState::Permanent;
            message.header.kind = RouteType::Unicast;
            message.attributes.extend([
                NeighbourAttribute::LinkLayerAddress(mac.octets().to_vec()),
                NeighbourAttribute::Protocol(RouteProtocol::from(NEIGHBOUR_PROTOCOL)),
            ]);
            new_neighbour(message, NLM_F_REPLACE)
        }
        Op::DeleteNeighbour { ifindex, ip } => del_neighbour(neighbour(ifindex, ip)),
        _ => return None,
    })
}

fn new_neighbour(message: NeighbourMessage, flags: u16) -> Request {
    Request { message: RouteNetlinkMessage::NewNeighbour(message), flags: NLM_F_CREATE | flags }
}

const fn del_neighbour(message: NeighbourMessage) -> Request {
    Request { message: RouteNetlinkMessage::DelNeighbour(message), flags: 0 }
}

fn fdb(ifindex: u32, mac: Mac, flags: NeighbourFlags, state: NeighbourState) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = ifindex;
    message.header.flags = flags;
    message.header.state = state;
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.octets().to_vec()));
    message
}

fn neighbour(ifindex: u32, ip: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(ip);
    message.header.ifindex = ifindex;
    message.attributes.push(NeighbourAttribute::Destination(ip.into()));
    message
}

const fn family(ip: IpAddr) -> AddressFamily {
    match ip {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

/// Asks for one forwarding row. A bridge's is asked for by the bridge (`NDA_MASTER`), whatever port it points to.
pub(super) fn get_fdb(point: FdbPoint) -> Request {
    let mut message = fdb(point.ifindex, point.mac, NeighbourFlags::Own, NeighbourState::None);
    if point.bridge {
        message.header.ifindex = 0;
        message.header.flags = NeighbourFlags::Controller;
        message.attributes.push(NeighbourAttribute::Controller(point.ifindex));
    }
    Request { message: RouteNetlinkMessage::GetNeighbour(message), flags: 0 }
}

/// Asks for one neighbour entry.
pub(super) fn get_neighbour(ifindex: u32, ip: IpAddr) -> Request {
    Request { message: RouteNetlinkMessage::GetNeighbour(neighbour(ifindex, ip)), flags: 0 }
}

/// Asks for the rows of a link's own table and those of its bridge's that point to it.
pub(super) fn dump_fdb(ifindex: u32) -> RouteNetlinkMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = ifindex;
    RouteNetlinkMessage::GetNeighbour(message)
}

/// Asks for the neighbour entries of a link; here the kernel takes the link as an attribute only.
pub(super) fn dump_neighbours(ifindex: u32) -> RouteNetlinkMessage {
    let mut message = NeighbourMessage::default();
    message.attributes.push(NeighbourAttribute::IfIndex(ifindex));
    RouteNetlinkMessage::GetNeighbour(message)
}

/// Asks for one link.
pub(super) fn get_link(link: &LinkRef) -> Request {
    let mut message = LinkMessage::default();
    match link {
        LinkRef::Index(ifindex) => message.header.index = *ifindex,
        LinkRef::Name(name) => message.attributes.push(LinkAttribute::IfName(name.clone())),
    }
    Request { message: RouteNetlinkMessage::GetLink(message), flags: 0 }
}

/// Asks for all links.
pub(super) fn dump_links() -> RouteNetlinkMessage {
    RouteNetlinkMessage::GetLink(LinkMessage::default())
}

/// Asks for the addresses of one link, or of all.
pub(super) fn dump_addresses(ifindex: Option<u32>) -> RouteNetlinkMessage {
    let mut message = AddressMessage::default();
    message.header.index = ifindex.unwrap_or(0);
    RouteNetlinkMessage::GetAddress(message)
}

/// Asks for the identifier that a namespace has in the socket's.
pub(super) fn get_nsid(netns: BorrowedFd<'_>) -> Request {
    let mut message = NsidMessage::default();
    message.attributes.extend(u32::try_from(netns.as_raw_fd()).map(NsidAttribute::Fd));
    Request { message: RouteNetlinkMessage::GetNsId(message), flags: 0 }
}

/// Gives a namespace an identifier in the socket's, the lowest that is free.
pub(super) fn assign_nsid(netns: BorrowedFd<'_>) -> Request {
    let mut message = NsidMessage::default();
    message.attributes.extend(u32::try_from(netns.as_raw_fd()).map(NsidAttribute::Fd));
    message.attributes.push(NsidAttribute::Id(-1));
    Request { message: RouteNetlinkMessage::NewNsId(message), flags: 0 }
}

/// Marks a fresh namespace's `lo` (always index 1) and brings it up.
pub(super) fn mark_lo(mark: &str) -> Request {
    let mut message = link(1);
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message.attributes.push(LinkAttribute::IfAlias(mark.to_owned()));
    change_link(message)
}

fn link(ifindex: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = ifindex;
    message
}

pub(super) const fn change_link(message: LinkMessage) -> Request {
    Request { message: RouteNetlinkMessage::NewLink(message), flags: 0 }
}

/// Makes a link, by one message. `target` is the overlay namespace for a VXLAN device, whose message goes to the host's
/// namespace so that its UDP socket stays there, and the endpoint's namespace for a veth pair; a bridge needs none.
pub(super) fn add_link(new: &NewLink, target: Option<BorrowedFd<'_>>) -> Request {
    let mut message = LinkMessage::default();
    let target = target.map(|netns| LinkAttribute::NetNsFd(netns.as_raw_fd()));
    let (name, mac, group, kind, data) = match new {
        NewLink::Bridge { name, mac, group } => {
            // An MTU in the message that makes a bridge does not stick; it is set afterwards.
            (name, mac, group, InfoKind::Bridge, InfoData::Bridge(vec![InfoBridge::MulticastSnooping(false)]))
        }
        NewLink::Vxlan { name, mac, mtu, group, vni, port, local, proxy } => {
            message.attributes.extend(target);
            message.attributes.push(LinkAttribute::Mtu(*mtu));
            let data = vec![
                InfoVxlan::Id(*vni),
                vxlan_local(*local),
                InfoVxlan::Port(*port),
                InfoVxlan::Learning(false),
                InfoVxlan::Proxy(*proxy),
            ];
            (name, mac, group, InfoKind::Vxlan, InfoData::Vxlan(data))
        }
        NewLink::Veth { name, mac, mtu, group, inner: InnerAt { ifname, .. }, inner_mac } => {
            message.attributes.push(LinkAttribute::Mtu(*mtu));
            let mut peer = LinkMessage::default();
            peer.attributes.extend(target);
            peer.attributes.extend([
                LinkAttribute::IfName(ifname.clone()),
                LinkAttribute::Address(inner_mac.octets().to_vec()),
                LinkAttribute::Mtu(*mtu),
                LinkAttribute::Group(*group),
            ]);
            (name, mac, group, InfoKind::Veth, InfoData::Veth(InfoVeth::Peer(peer)))
        }
    };
    message.attributes.extend([
        LinkAttribute::IfName(name.clone()),
        LinkAttribute::Address(mac.octets().to_vec()),
        LinkAttribute::Group(*group),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind), LinkInfo::Data(data)]),
    ]);
    // EXCL: without it the message would change a link of that name.
    Request { message: RouteNetlinkMessage::NewLink(message), flags: NLM_F_CREATE | NLM_F_EXCL }
}

const fn vxlan_local(local: IpAddr) -> InfoVxlan {
    match local {
        IpAddr::V4(v4) => InfoVxlan::Local(v4),
        IpAddr::V6(v6) => InfoVxlan::Local6(v6),
    }
}

/// Gives a link a new name.
pub(super) fn rename(ifindex: u32, name: &str) -> Request {
    let mut message = link(ifindex);
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    change_link(message)
}

/// Sets a link administratively up or down.
pub(super) fn set_up(ifindex: u32, up: bool) -> Request {
    let mut message = link(ifindex);
    message.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
    message.header.change_mask = LinkFlags::Up;
    change_link(message)
}

/// The messages of a change apart from name and state, in their order: a port's attributes need its bridge to be set.
pub(super) fn set_link(ifindex: u32, change: &LinkChange) -> Vec<Request> {
    let mut requests = Vec::new();
    // On its own: the VXLAN driver refuses what it is asked together with an MTU.
    if let Some(info) = link_info(change) {
        let mut message = link(ifindex);
        message.attributes.push(LinkAttribute::LinkInfo(info));
        requests.push(change_link(message));
    }
    let mut message = link(ifindex);
    message.attributes.extend(change.mac.map(|mac| LinkAttribute::Address(mac.octets().to_vec())));
    message.attributes.extend(change.mtu.map(LinkAttribute::Mtu));
    message.attributes.extend(change.group.map(LinkAttribute::Group));
    message.attributes.extend(change.master.map(LinkAttribute::Controller));
    if !message.attributes.is_empty() {
        requests.push(change_link(message));
    }
    if change.addr_gen_none {
        let mut message = link(ifindex);
        let none = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
        message.attributes.push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![none])]));
        requests.push(change_link(message));
    }
    if let Some(Port { learning, unicast_flood, isolated, locked }) = change.port {
        let mut message = link(ifindex);
        let mut data = vec![
            InfoBridgePort::Learning(learning),
            InfoBridgePort::UnicastFlood(unicast_flood),
            InfoBridgePort::Isolated(isolated),
        ];
        data.extend(locked.map(InfoBridgePort::Locked));
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(data)),
        ]));
        requests.push(change_link(message));
    }
    requests.extend(settings::put_right(ifindex, &change.settings));
    requests
}

/// What a change asks of the device's driver.
fn link_info(change: &LinkChange) -> Option<Vec<LinkInfo>> {
    if change.mcast_snooping_off {
        let data = InfoData::Bridge(vec![InfoBridge::MulticastSnooping(false)]);
        return Some(vec![LinkInfo::Kind(InfoKind::Bridge), LinkInfo::Data(data)]);
    }
    let mut data = Vec::new();
    data.extend(change.local.map(vxlan_local));
    if change.learning_off {
        data.push(InfoVxlan::Learning(false));
    }
    (!data.is_empty()).then(|| vec![LinkInfo::Kind(InfoKind::Vxlan), LinkInfo::Data(InfoData::Vxlan(data))])
}

/// Removes a link.
pub(super) fn delete_link(ifindex: u32) -> Request {
    Request { message: RouteNetlinkMessage::DelLink(link(ifindex)), flags: 0 }
}

/// Removes all links of a group in the socket's namespace.
pub(super) fn delete_group(group: u32) -> Request {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::Group(group));
    Request { message: RouteNetlinkMessage::DelLink(message), flags: 0 }
}

/// Puts a link into a group.
pub(super) fn set_group(ifindex: u32, group: u32) -> Request {
    let mut message = link(ifindex);
    message.attributes.push(LinkAttribute::Group(group));
    change_link(message)
}

/// Adds an address.
pub(super) fn add_address(ifindex: u32, net: IpNet) -> Request {
    let mut message = address(ifindex, net);
    match net {
        IpNet::V4(v4) if v4.prefix_len() < 31 => {
            message.attributes.push(AddressAttribute::Broadcast(v4.broadcast()));
        }
        IpNet::V4(_) => {}
        IpNet::V6(_) => message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad)),
    }
    message.attributes.push(AddressAttribute::Protocol(AddressProtocol::from(ADDRESS_PROTOCOL)));
    Request { message: RouteNetlinkMessage::NewAddress(message), flags: NLM_F_CREATE | NLM_F_REPLACE }
}

/// Removes an address.
pub(super) fn delete_address(ifindex: u32, net: IpNet) -> Request {
    Request { message: RouteNetlinkMessage::DelAddress(address(ifindex, net)), flags: 0 }
}

fn address(ifindex: u32, net: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(net.addr());
    message.header.index = ifindex;
    message.header.prefix_len = net.prefix_len();
    message.header.scope = AddressScope::Universe;
    message.attributes.extend([AddressAttribute::Local(net.addr()), AddressAttribute::Address(net.addr())]);
    message
}
