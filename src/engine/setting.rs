//! Attributes of links of which nothing is wanted but what the kernel gives a link that it makes: somebody else's change of one changes
//! whether, or where, frames go. docs/attributes.md says so of each, and of those that are not here why.

/// What kind of object a setting is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Of {
    /// Any link.
    Link,
    /// A link in a namespace of ours or of the host; in an endpoint's it is the endpoint's own affair.
    OwnLink,
    /// A link in a namespace of ours.
    OverlayLink,
    /// A bridge.
    Bridge,
    /// A bridge in a namespace of ours.
    OverlayBridge,
    /// The gateway bridge on the host.
    HostBridge,
    /// A bridge's port.
    Port,
    /// A VXLAN device.
    Vxlan,
    /// A VXLAN device, for good: the kernel refuses to change it (`vxlan_nl2conf`, drivers/net/vxlan/vxlan_core.c).
    VxlanForGood,
}

macro_rules! settings {
    ($($(#[$doc:meta])* $name:ident: $of:ident,)*) => {
        /// A setting that is not as the kernel makes it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Setting {
            $($(#[$doc])* $name,)*
        }

        impl Setting {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// What it is a setting of.
            pub const fn of(self) -> Of {
                match self {
                    $(Self::$name => Of::$of,)*
                }
            }
        }
    };
}

settings! {
    /// `IFF_NOARP`: no neighbour is asked for, or answered.
    Arp: Link,
    /// `IFF_MULTICAST` is missing: no neighbour is solicited.
    Multicast: Link,
    /// `IFLA_LINKMODE` or `IFLA_OPERSTATE` is dormant or testing: the link does not count as running.
    Dormant: Link,
    /// `IFLA_PROTO_DOWN`: held without carrier.
    ProtoDown: Link,
    /// `IFLA_QDISC`: a queueing discipline, which may delay and drop, on a device that has none.
    Qdisc: OwnLink,
    /// `IFLA_XDP`: a program that sees every frame first.
    Xdp: OwnLink,

    /// `IFLA_BR_STP_STATE`: the spanning tree protocol closes ports.
    Stp: Bridge,
    /// `IFLA_BR_VLAN_FILTERING`.
    VlanFiltering: Bridge,
    /// `IFLA_BR_GROUP_FWD_MASK`: link-local groups that are forwarded.
    GroupForwarding: Bridge,
    /// `IFLA_BR_MCAST_QUERIER`: queries of its own, into the tunnel too.
    Querier: Bridge,
    /// `IFLA_BR_NF_CALL_IPTABLES`: bridged frames pass the host's chains.
    CallIptables: Bridge,
    /// `IFLA_BR_NF_CALL_IP6TABLES`.
    CallIp6tables: Bridge,
    /// `IFLA_BR_NF_CALL_ARPTABLES`.
    CallArptables: Bridge,

    /// `net.ipv6.conf.*.disable_ipv6`: no IPv6 address or neighbour. In an endpoint's namespace it is the endpoint's own affair, and ours
    /// is to leave its IPv6 addresses away.
    Ipv6Disabled: OverlayLink,
    /// `net.ipv4.conf.*.proxy_arp`.
    ConfProxyArp: OverlayBridge,
    /// `net.ipv4.conf.*.proxy_arp_pvlan`: the gateway answers for everybody.
    ConfProxyArpPvlan: OverlayBridge,
    /// `net.ipv4.conf.*.rp_filter`.
    ReversePath: OverlayBridge,
    /// `net.ipv4.conf.*.arp_filter`.
    ArpFilter: OverlayBridge,
    /// `net.ipv4.conf.*.arp_ignore`: the gateway does not answer.
    ArpIgnore: OverlayBridge,
    /// `net.ipv4.conf.*.forwarding` is off.
    Forwarding: HostBridge,

    /// `IFLA_BRPORT_STATE` is not forwarding although the port runs on a bridge that is up.
    State: Port,
    /// `IFLA_BRPORT_MODE`: hairpin, frames go back where they came from.
    Hairpin: Port,
    /// `IFLA_BRPORT_GUARD`: a BPDU closes the port.
    BpduGuard: Port,
    /// `IFLA_BRPORT_PROTECT`: the port must not lead to the root bridge.
    RootBlock: Port,
    /// `IFLA_BRPORT_MCAST_FLOOD` is off.
    MulticastFlood: Port,
    /// `IFLA_BRPORT_BCAST_FLOOD` is off.
    BroadcastFlood: Port,
    /// `IFLA_BRPORT_MCAST_TO_UCAST`.
    MulticastToUnicast: Port,
    /// `IFLA_BRPORT_VLAN_TUNNEL`.
    VlanTunnel: Port,
    /// `IFLA_BRPORT_NEIGH_SUPPRESS`: the bridge answers, and swallows, neighbour requests.
    NeighbourSuppression: Port,
    /// `IFLA_BRPORT_NEIGH_VLAN_SUPPRESS`.
    NeighbourSuppressionByVlan: Port,
    /// `IFLA_BRPORT_PROXYARP`.
    ProxyArp: Port,
    /// `IFLA_BRPORT_PROXYARP_WIFI`.
    ProxyArpWifi: Port,
    /// `IFLA_BRPORT_GROUP_FWD_MASK`.
    PortGroupForwarding: Port,
    /// `IFLA_BRPORT_BACKUP_PORT`: where frames go while the port has no carrier.
    BackupPort: Port,
    /// `IFLA_BRPORT_MAB`: rows of its own for unknown senders.
    MacAuthentication: Port,

    /// `IFLA_VXLAN_TTL`.
    Ttl: Vxlan,
    /// `IFLA_VXLAN_TOS`.
    Tos: Vxlan,
    /// `IFLA_VXLAN_DF`: outer packets that are too large are dropped.
    DontFragment: Vxlan,
    /// `IFLA_VXLAN_LABEL`.
    FlowLabel: Vxlan,
    /// `IFLA_VXLAN_LINK`: the link that outer packets leave by, whatever routes say.
    Underlay: VxlanForGood,
    /// `IFLA_VXLAN_GROUP`: where frames go that no row knows.
    Remote: Vxlan,
    /// `IFLA_VXLAN_GROUP6`.
    Remote6: Vxlan,
    /// `IFLA_VXLAN_LIMIT`: how many rows it takes.
    Limit: VxlanForGood,
    /// `IFLA_VXLAN_RSC`: short cuts past routers.
    ShortCircuit: VxlanForGood,
    /// `IFLA_VXLAN_UDP_ZERO_CSUM6_TX`: outer IPv6 packets that receivers refuse.
    NoChecksum: VxlanForGood,
    /// `IFLA_VXLAN_REMCSUM_TX`.
    RemoteChecksumSent: VxlanForGood,
    /// `IFLA_VXLAN_REMCSUM_RX`.
    RemoteChecksumReceived: VxlanForGood,
    /// `IFLA_VXLAN_GBP`: other headers.
    GroupPolicy: VxlanForGood,
    /// `IFLA_VXLAN_GPE`: other headers.
    ProtocolExtension: VxlanForGood,
    /// `IFLA_VXLAN_COLLECT_METADATA`: no VNI of its own.
    Metadata: VxlanForGood,
    /// `IFLA_VXLAN_TTL_INHERIT`.
    TtlInherit: VxlanForGood,
}
