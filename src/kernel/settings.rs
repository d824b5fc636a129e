//! The settings of links ([`Setting`]) as attributes of rtnetlink: what each looks like when it is as the kernel makes it.

use std::{collections::BTreeSet, fs, path::Path};

use netlink_packet_core::DefaultNla;
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{
        InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVxlan, LinkAttribute,
        LinkFlags, LinkInfo, LinkMessage,
    },
    tc::{TcHandle, TcMessage},
};
use nix::libc;

use super::{
    encode::change_link,
    error::{Because as _, Error},
    socket::Request,
    wire::{attribute, attributes, i32_at, u8_at},
};
use crate::engine::{Of, Setting};

/// How a setting looks when it is right.
#[derive(Clone, Copy, Debug)]
enum Right {
    /// So, in the kernel's byte order; an older kernel that does not show it does not have it.
    Is(&'static [u8]),
    /// It is not shown; so it is put back.
    Absent(&'static [u8]),
}

use Right::{Absent, Is};

const OFF: Right = Is(&[0]);
const ON: Right = Is(&[1]);
const ZERO16: Right = Is(&[0; 2]);
const ZERO32: Right = Is(&[0; 4]);

/// The settings within the nests of bridges, ports and VXLAN devices (`IFLA_BR_*`, `IFLA_BRPORT_*`, `IFLA_VXLAN_*`,
/// include/uapi/linux/if_link.h).
const NESTED: &[(Setting, u16, Right)] = &[
    (Setting::Stp, 5, ZERO32),
    (Setting::VlanFiltering, 7, OFF),
    (Setting::GroupForwarding, 9, ZERO16),
    (Setting::Querier, 25, OFF),
    (Setting::CallIptables, 36, OFF),
    (Setting::CallIp6tables, 37, OFF),
    (Setting::CallArptables, 38, OFF),
    (Setting::State, 1, Is(&[FORWARDING])),
    (Setting::Hairpin, 4, OFF),
    (Setting::BpduGuard, 5, OFF),
    (Setting::RootBlock, 6, OFF),
    (Setting::MulticastFlood, 27, ON),
    (Setting::BroadcastFlood, 30, ON),
    (Setting::MulticastToUnicast, 28, OFF),
    (Setting::VlanTunnel, 29, OFF),
    (Setting::NeighbourSuppression, 32, OFF),
    (Setting::NeighbourSuppressionByVlan, 43, OFF),
    (Setting::ProxyArp, 10, OFF),
    (Setting::ProxyArpWifi, 12, OFF),
    (Setting::PortGroupForwarding, 31, ZERO16),
    (Setting::BackupPort, 34, Absent(&[0; 4])),
    (Setting::MacAuthentication, 40, OFF),
    (Setting::Ttl, 5, OFF),
    (Setting::Tos, 6, OFF),
    (Setting::DontFragment, 29, OFF),
    (Setting::FlowLabel, 26, ZERO32),
    (Setting::Underlay, 3, Absent(&[0; 4])),
    (Setting::Remote, 2, Absent(&[0; 4])),
    (Setting::Remote6, 16, Absent(&[0; 16])),
    (Setting::Limit, 9, ZERO32),
    (Setting::ShortCircuit, 12, OFF),
    (Setting::NoChecksum, 19, OFF),
    (Setting::RemoteChecksumSent, 21, OFF),
    (Setting::RemoteChecksumReceived, 22, OFF),
    (Setting::GroupPolicy, 23, Absent(&[])),
    (Setting::ProtocolExtension, 27, Absent(&[])),
    (Setting::Metadata, 25, OFF),
    (Setting::TtlInherit, 28, OFF),
];

/// Settings of the link's own directories below `/proc/sys/net`: their places in `IFLA_INET_CONF` and `IFLA_INET6_CONF`, counted from 0
/// (include/uapi/linux/ip.h, where the first is 1, and ipv6.h), what they should be, and their files.
const SYSCTLS: &[(Setting, i32, usize, i32, &str)] = &[
    (Setting::Forwarding, libc::AF_INET, 0, 1, "forwarding"),
    (Setting::ConfProxyArp, libc::AF_INET, 2, 0, "proxy_arp"),
    (Setting::ReversePath, libc::AF_INET, 7, 0, "rp_filter"),
    (Setting::ArpFilter, libc::AF_INET, 12, 0, "arp_filter"),
    (Setting::ArpIgnore, libc::AF_INET, 18, 0, "arp_ignore"),
    (Setting::ConfProxyArpPvlan, libc::AF_INET, 24, 0, "proxy_arp_pvlan"),
    (Setting::Ipv6Disabled, libc::AF_INET6, 26, 0, "disable_ipv6"),
];
const IFLA_INET_CONF: u16 = 1;
const IFLA_INET6_CONF: u16 = 2;

const FORWARDING: u8 = 3;
// Attributes of the link itself (`IFLA_*`), with the values of RFC 2863's states (include/uapi/linux/if.h).
const IFLA_QDISC: u16 = 6;
const IFLA_OPERSTATE: u16 = 16;
const IFLA_LINKMODE: u16 = 17;
const IFLA_PROTO_DOWN: u16 = 39;
const IFLA_XDP: u16 = 43;
const IFLA_PROTO_DOWN_REASON: u16 = 55;
const IFLA_PROTO_DOWN_REASON_MASK: u16 = 1;
const IFLA_PROTO_DOWN_REASON_VALUE: u16 = 2;
const IFLA_XDP_FD: u16 = 1;
const IFLA_XDP_ATTACHED: u16 = 2;
const NLA_F_NESTED: u16 = 0x8000;
const IF_OPER_TESTING: u8 = 4;
const IF_OPER_DORMANT: u8 = 5;
const IF_OPER_UP: u8 = 6;
const IFF_RUNNING: u32 = 0x40;
const IFF_NOARP: u32 = 0x80;
const IFF_MULTICAST: u32 = 0x1000;

/// Which settings a link message shows to be off: its flags, its attributes, and the data of its kind and of its port, by what
/// they are of.
pub(super) fn off(flags: u32, attributes: &[u8], nests: &[(Of, &[u8])]) -> BTreeSet<Setting> {
    let mut off = of_link(flags, attributes);
    for (setting, kind, right) in NESTED {
        let of = if setting.of() == Of::VxlanForGood { Of::Vxlan } else { setting.of() };
        let Some((_, data)) = nests.iter().find(|(nest, _)| *nest == of) else { continue };
        let wrong = match (attribute(data, *kind), right) {
            (Some(value), Is(right)) => value != *right,
            (Some(_), Absent(_)) => true,
            (None, _) => false,
        };
        // A port that does not run is closed by the bridge itself.
        if wrong && (*setting != Setting::State || flags & IFF_RUNNING != 0) {
            off.insert(*setting);
        }
    }
    off.extend(of_sysctls(attributes, nests));
    off
}

fn of_sysctls(list: &[u8], nests: &[(Of, &[u8])]) -> Vec<Setting> {
    let bridge = nests.iter().any(|(of, _)| *of == Of::Bridge);
    let spec = attribute(list, libc::IFLA_AF_SPEC).unwrap_or_default();
    let shown = |family: i32, place: usize| {
        let conf = if family == libc::AF_INET { IFLA_INET_CONF } else { IFLA_INET6_CONF };
        let values = attribute(attribute(spec, u16::try_from(family).ok()?)?, conf)?;
        i32_at(values, place * 4)
    };
    let wrong = SYSCTLS.iter().filter(|(setting, family, place, right, _)| {
        let here = bridge || setting.of() == Of::OverlayLink;
        here && shown(*family, *place).is_some_and(|value| value != *right)
    });
    wrong.map(|(setting, ..)| *setting).collect()
}

/// Writes those settings of a link that are files; in the namespace of the calling thread.
pub(super) fn write_sysctls(name: &str, settings: &BTreeSet<Setting>) -> Result<(), Error> {
    for (_, family, _, right, file) in SYSCTLS.iter().filter(|(setting, ..)| settings.contains(setting)) {
        let version = if *family == libc::AF_INET { "ipv4" } else { "ipv6" };
        let path = Path::new("/proc/sys/net").join(version).join("conf").join(name).join(file);
        fs::write(&path, right.to_string()).because(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

/// Whether any of the settings is a file.
pub(super) fn has_sysctls(settings: &BTreeSet<Setting>) -> bool {
    SYSCTLS.iter().any(|(setting, ..)| settings.contains(setting))
}

fn of_link(flags: u32, list: &[u8]) -> BTreeSet<Setting> {
    let mut off = BTreeSet::new();
    if flags & IFF_NOARP != 0 {
        off.insert(Setting::Arp);
    }
    if flags & IFF_MULTICAST == 0 {
        off.insert(Setting::Multicast);
    }
    for (kind, value) in attributes(list) {
        let byte = u8_at(value, 0).unwrap_or(0);
        let wrong = match kind {
            IFLA_OPERSTATE => matches!(byte, IF_OPER_TESTING | IF_OPER_DORMANT).then_some(Setting::Dormant),
            IFLA_LINKMODE => (byte != 0).then_some(Setting::Dormant),
            IFLA_PROTO_DOWN => (byte != 0).then_some(Setting::ProtoDown),
            IFLA_QDISC => (!matches!(value, b"noqueue\0" | b"noop\0")).then_some(Setting::Qdisc),
            IFLA_XDP => attribute(value, IFLA_XDP_ATTACHED)
                .is_some_and(|mode| u8_at(mode, 0) != Some(0))
                .then_some(Setting::Xdp),
            _ => None,
        };
        off.extend(wrong);
    }
    off
}

/// The messages that put settings right.
pub(super) fn put_right(ifindex: u32, settings: &BTreeSet<Setting>) -> Vec<Request> {
    let mut requests = Vec::new();
    let message = || {
        let mut message = LinkMessage::default();
        message.header.index = ifindex;
        message
    };
    let nested = |of: Of| {
        let those = NESTED.iter().filter(move |(setting, ..)| setting.of() == of && settings.contains(setting));
        those.map(|(_, kind, Is(value) | Absent(value))| DefaultNla::new(*kind, value.to_vec()))
    };
    let bridge: Vec<_> = nested(Of::Bridge).map(InfoBridge::Other).collect();
    let vxlan: Vec<_> = nested(Of::Vxlan).map(InfoVxlan::Other).collect();
    let port: Vec<_> = nested(Of::Port).map(InfoBridgePort::Other).collect();
    let infos = [
        (!bridge.is_empty()).then(|| vec![LinkInfo::Kind(InfoKind::Bridge), LinkInfo::Data(InfoData::Bridge(bridge))]),
        (!vxlan.is_empty()).then(|| vec![LinkInfo::Kind(InfoKind::Vxlan), LinkInfo::Data(InfoData::Vxlan(vxlan))]),
        (!port.is_empty()).then(|| {
            let data = LinkInfo::PortData(InfoPortData::BridgePort(port));
            vec![LinkInfo::PortKind(InfoPortKind::Bridge), data]
        }),
    ];
    for info in infos.into_iter().flatten() {
        let mut message = message();
        message.attributes.push(LinkAttribute::LinkInfo(info));
        requests.push(change_link(message));
    }
    for (setting, flag, right) in [
        (Setting::Arp, LinkFlags::Noarp, LinkFlags::empty()),
        (Setting::Multicast, LinkFlags::Multicast, LinkFlags::Multicast),
    ] {
        if settings.contains(&setting) {
            let mut message = message();
            (message.header.change_mask, message.header.flags) = (flag, right);
            requests.push(change_link(message));
        }
    }
    for (setting, attributes) in [
        // The state does not follow the mode until the carrier changes.
        (Setting::Dormant, vec![(IFLA_OPERSTATE, vec![IF_OPER_UP]), (IFLA_LINKMODE, vec![0])]),
        // As long as there is a reason, it stays (`netif_change_proto_down_reason`, net/core/dev.c).
        (Setting::ProtoDown, vec![(IFLA_PROTO_DOWN_REASON | NLA_F_NESTED, no_reason()), (IFLA_PROTO_DOWN, vec![0])]),
        (Setting::Xdp, vec![(IFLA_XDP | NLA_F_NESTED, nla(IFLA_XDP_FD, &(-1_i32).to_ne_bytes()))]),
    ] {
        if settings.contains(&setting) {
            let mut message = message();
            let attributes = attributes.into_iter().map(|(kind, value)| DefaultNla::new(kind, value));
            message.attributes.extend(attributes.map(LinkAttribute::Other));
            requests.push(change_link(message));
        }
    }
    if settings.contains(&Setting::Qdisc) {
        let mut message = TcMessage::with_index(i32::try_from(ifindex).unwrap_or_default());
        message.header.parent = TcHandle::ROOT;
        requests.push(Request { message: RouteNetlinkMessage::DelQueueDiscipline(message), flags: 0 });
    }
    requests
}

fn no_reason() -> Vec<u8> {
    let (all, none) = (u32::MAX.to_ne_bytes(), 0_u32.to_ne_bytes());
    [nla(IFLA_PROTO_DOWN_REASON_MASK, &all), nla(IFLA_PROTO_DOWN_REASON_VALUE, &none)].concat()
}

/// An attribute of four bytes.
fn nla(kind: u16, value: &[u8; 4]) -> Vec<u8> {
    let header = [8_u16.to_ne_bytes(), kind.to_ne_bytes()].concat();
    [header.as_slice(), value].concat()
}
