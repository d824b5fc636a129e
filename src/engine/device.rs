//! What links should be, and what they are called.

use std::net::{IpAddr, Ipv4Addr};

use super::{
    config::Home,
    delta::Fits,
    key::LinkId,
    network::Network,
    object::{Link, LinkKind, Port},
    setting::{Of, Setting},
};
use crate::{
    desired::{Segment, Tunnel},
    model::{EndpointId, Mac, Vni, stable_hash},
};

/// What a link should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkWant {
    /// Its name.
    pub name: String,
    /// Its MAC address.
    pub mac: Mac,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Its link group.
    pub group: u32,
    /// What it is.
    pub kind: KindWant,
}

/// What is particular to each kind of link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KindWant {
    /// A bridge without multicast snooping.
    Bridge {
        /// Somebody else's is used as it is.
        adopt: bool,
        /// It is the gateway bridge, from and to which the host forwards.
        on_host: bool,
    },
    /// A VXLAN device without learning, with proxy unless it floods, a port of its segment's bridge.
    Vxlan {
        /// Its VNI.
        vni: Vni,
        /// Its port and source address.
        tunnel: Tunnel,
        /// The bridge's index; `None` until there is one.
        bridge: Option<u32>,
    },
    /// The overlay end of a veth pair, a port of its segment's bridge.
    Outer {
        /// The bridge's index; `None` until there is one.
        bridge: Option<u32>,
        /// It exchanges frames with the bridge alone, and not with other ports of its kind.
        isolated: bool,
        /// Frames come in from the endpoint's MAC address only.
        locked: bool,
    },
    /// The endpoint's end of a veth pair.
    Inner {
        /// The other end's index; `None` until there is one.
        outer: Option<u32>,
    },
}

impl LinkWant {
    /// The bridge that it should be a port of, and how; `None` where it is no port.
    pub fn port(&self) -> Option<(Option<u32>, Port)> {
        match &self.kind {
            KindWant::Bridge { .. } | KindWant::Inner { .. } => None,
            // The tunnel takes what no endpoint of this host has; with flood off remote endpoints would be unreachable.
            KindWant::Vxlan { bridge, .. } => {
                let port = Port { learning: false, unicast_flood: true, isolated: false, locked: Some(false) };
                Some((*bridge, port))
            }
            KindWant::Outer { bridge, isolated, locked } => {
                let (isolated, locked) = (*isolated, Some(*locked));
                Some((*bridge, Port { learning: false, unicast_flood: false, isolated, locked }))
            }
        }
    }

    /// Sets the bridge that a port should be of.
    pub(super) fn join(&mut self, ifindex: u32) {
        if let KindWant::Vxlan { bridge, .. } | KindWant::Outer { bridge, .. } = &mut self.kind {
            *bridge = Some(ifindex);
        }
    }

    /// Whether the link is what it should be in all that can only be set when it is made.
    pub fn same_device(&self, link: &Link) -> bool {
        match (&self.kind, &link.kind) {
            (KindWant::Bridge { .. }, LinkKind::Bridge { .. }) | (KindWant::Outer { .. }, LinkKind::Veth { .. }) => {
                true
            }
            (KindWant::Vxlan { vni, tunnel, .. }, LinkKind::Vxlan(vxlan)) => {
                // The family of its source address is a device's for good, and IPv4 where it has none (vxlan_nl2conf).
                let family = vxlan.local.is_none_or(|local| local.is_ipv4()) == tunnel.local.is_ipv4();
                let same = vxlan.vni == vni.get() && vxlan.port == tunnel.port && vxlan.proxy != tunnel.flood;
                same && family && !link.off.iter().any(|setting| setting.of() == Of::VxlanForGood)
            }
            (KindWant::Inner { outer }, LinkKind::Veth { peer, .. }) => outer.is_some() && outer == peer,
            _ => false,
        }
    }

    /// Which of the link's settings are to be put right. In its own namespace an endpoint may queue and filter as it likes.
    pub fn off<'a>(&self, link: &'a Link) -> impl Iterator<Item = Setting> + 'a {
        let inner = matches!(self.kind, KindWant::Inner { .. });
        let on_host = match self.kind {
            KindWant::Bridge { on_host, .. } => on_host,
            KindWant::Outer { isolated, .. } => isolated,
            KindWant::Vxlan { .. } | KindWant::Inner { .. } => false,
        };
        link.off.iter().copied().filter(move |setting| match setting.of() {
            Of::OwnLink => !inner,
            Of::OverlayLink | Of::OverlayBridge => !inner && !on_host,
            Of::HostBridge => on_host,
            Of::Link | Of::Bridge | Of::Port | Of::Vxlan | Of::VxlanForGood => true,
        })
    }

    fn kind_fits(&self, link: &Link) -> bool {
        match (&self.kind, &link.kind) {
            (KindWant::Bridge { .. }, LinkKind::Bridge { mcast_snooping }) => !mcast_snooping,
            (KindWant::Vxlan { tunnel, .. }, LinkKind::Vxlan(vxlan)) => {
                vxlan.local == Some(tunnel.local) && !vxlan.learning
            }
            _ => true,
        }
    }
}

impl LinkWant {
    /// Whether the link is somebody else's bridge that is used as it is.
    pub(super) fn adopted(&self, link: &Link) -> bool {
        matches!(self.kind, KindWant::Bridge { adopt: true, .. }) && link.group != self.group
    }
}

impl Fits<Link> for LinkWant {
    fn fits(&self, link: &Link) -> bool {
        if self.adopted(link) {
            return self.name == link.name && link.up;
        }
        let port_fits = match self.port() {
            Some((bridge, port)) => {
                bridge.is_some() && link.master == bridge && link.port.is_some_and(|seen| port.is_met_by(seen))
            }
            None => true,
        };
        // IPv6 inside the endpoint's namespace is the endpoint's own affair.
        let quiet = link.addr_gen_none || matches!(self.kind, KindWant::Inner { .. });
        self.name == link.name
            && self.mac == link.mac
            && self.mtu == link.mtu
            && self.group == link.group
            && link.up
            && quiet
            && port_fits
            && self.off(link).next().is_none()
            && self.same_device(link)
            && self.kind_fits(link)
    }
}

/// The name of the overlay end of an endpoint's veth pair: found again without any memory.
pub fn outer_name(id: &EndpointId) -> String {
    format!("veth{:011x}", stable_hash(id.to_string().as_bytes()) & 0xfff_ffff_ffff)
}

/// What the names of the gateway bridge's ports begin with.
pub(super) const GATEWAY_PORT: &str = "vgw";

/// The name of the gateway bridge's port for an endpoint.
pub fn gateway_port_name(id: &EndpointId) -> String {
    format!("{GATEWAY_PORT}{:012x}", stable_hash(id.to_string().as_bytes()) & 0xffff_ffff_ffff)
}

/// The address that a port of the gateway bridge is for, as its MAC address tells.
pub(super) fn address_of_gateway_port(mac: Mac) -> Option<Ipv4Addr> {
    match mac.octets() {
        [0x02, 0x76, a, b, c, d] => Some(Ipv4Addr::new(a, b, c, d)),
        _ => None,
    }
}

/// The group of those links of ours that are just being removed: a crash leaves them in it.
pub const fn doomed_group(group: u32) -> u32 {
    group ^ 0x5644_4f4f
}

/// The MAC address of the gateway bridge's port for an address: an agent without memory reads from it which address is taken.
/// It is set by the very message that makes the pair.
pub fn gateway_port_mac(address: Ipv4Addr) -> Mac {
    let [a, b, c, d] = address.octets();
    Mac::new([0x02, 0x76, a, b, c, d])
}

/// A locally administered address for a device whose own address never shows in the overlay's traffic. It must be neither
/// the gateway's nor an endpoint's: with the bridge's address on the VXLAN device, frames of remote gateways vanish.
fn device_mac(of: &str) -> Mac {
    let [a, b, c, d, ..] = stable_hash(of.as_bytes()).to_be_bytes();
    Mac::new([0x02, 0x76, a, b, c, d])
}

impl Network {
    /// Sets the desired side of all links, where it depends on what was found: numbers in names, indices of bridges.
    pub(super) fn refresh_links(&mut self) {
        let Some(spec) = self.desired.spec.clone() else { return };
        for segment in &spec.segments {
            self.refresh_segment(segment);
        }
        let ids: Vec<EndpointId> = self.locals.by_id.keys().cloned().collect();
        for id in ids {
            self.refresh_local(&id);
        }
    }

    fn refresh_segment(&mut self, segment: &Segment) {
        let Some(number) = self.desired.numbers.get(&segment.vni).copied() else { return };
        let (name, adopt) = match &self.config.home {
            Home::Overlay(_) => (format!("br{number}"), false),
            Home::Host { bridge, adopt } => (bridge.clone(), *adopt),
        };
        let bridge = LinkWant {
            name,
            mac: segment.gateway_mac,
            mtu: segment.mtu,
            group: self.config.group,
            kind: KindWant::Bridge { adopt, on_host: self.config.home.is_host() },
        };
        self.want_link(&LinkId::Bridge(segment.vni), Some(bridge));
        let Some(tunnel) = segment.tunnel else { return };
        let vxlan = LinkWant {
            name: format!("vxlan{}", number + 1),
            mac: device_mac(&format!("{} {}", self.config.name, segment.vni)),
            mtu: segment.mtu,
            group: self.config.group,
            kind: KindWant::Vxlan { vni: segment.vni, tunnel, bridge: self.tables.bridge_index(segment.vni) },
        };
        self.want_link(&LinkId::Vxlan(segment.vni), Some(vxlan));
    }

    /// Sets the desired side of a wired endpoint's two ends.
    pub(super) fn refresh_local(&mut self, id: &EndpointId) {
        let Some(local) = self.locals.by_id.get(id).filter(|local| local.wired()) else { return };
        let local = &local.spec;
        let Some(spec) = &self.desired.spec else { return };
        let Some(segment) = spec.segment(local.vni) else { return };
        let own_address = local.addresses.iter().find_map(|net| match net.addr() {
            IpAddr::V4(address) if self.config.home.is_host() => Some(address),
            _ => None,
        });
        let outer = LinkWant {
            name: self.config.outer_name(id),
            mac: own_address.map_or_else(|| device_mac(&format!("{} {id}", self.config.name)), gateway_port_mac),
            mtu: segment.mtu,
            group: self.config.group,
            kind: KindWant::Outer {
                bridge: self.tables.bridge_index(local.vni),
                isolated: self.config.home.is_host(),
                locked: spec.spoof_guard,
            },
        };
        let inner = LinkWant {
            name: local.ifname.clone(),
            mac: local.mac,
            mtu: segment.mtu,
            group: self.config.group,
            kind: KindWant::Inner {
                outer: self.tables.links.observed_of(&LinkId::Outer(id.clone())).map(|link| link.ifindex),
            },
        };
        self.want_link(&LinkId::Outer(id.clone()), Some(outer));
        self.want_link(&LinkId::Inner(id.clone()), Some(inner));
        self.refresh_guard(id);
    }
}
