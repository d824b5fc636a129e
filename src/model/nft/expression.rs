/// One step of a rule. Loads fill the one register in use here, [`Expression::Mask`] changes it, and a comparison that fails ends
/// the rule, as does a load of bytes that the packet does not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expression {
    /// Loads what is known of a packet beside its bytes.
    Meta(Meta),
    /// Loads what connection tracking knows of a packet, four bytes in the host's order.
    Connection(Connection),
    /// Loads bytes of a packet.
    Payload {
        /// From where the offset counts.
        base: Base,
        /// Bytes from there.
        offset: u32,
        /// How many bytes, 16 at most.
        length: u32,
    },
    /// Keeps of the loaded bytes the bits of the mask, which is as long as they are.
    Mask(Vec<u8>),
    /// Goes on if the loaded bytes compare so to these.
    Compare(Comparison, Vec<u8>),
    /// Counts the packets that come so far. What it has counted is no part of the rule.
    Counter,
    /// Ends the chain.
    Verdict(Verdict),
    /// Gives the packet, and its connection, the source address of the device that it leaves by.
    Masquerade,
    /// What the kernel has and this module does not write, by its name. A rule with it cannot be applied.
    Foreign(String),
}

/// What is known of a packet beside its bytes (`enum nft_meta_keys`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meta {
    /// The Ethernet type that the packet is taken for, in network order: without a VLAN tag that came before it.
    Protocol,
    /// The device that it came in by, 16 bytes filled with zeros.
    IifName,
    /// The device that it leaves by, 16 bytes filled with zeros.
    OifName,
    /// The kind of device that it came in by (`ARPHRD_*`), two bytes in the host's order.
    IifType,
    /// `NFPROTO_IPV4` or `NFPROTO_IPV6`, one byte.
    NfProto,
    /// The protocol above IP, one byte, past IPv6's extension headers.
    L4Proto,
}

/// What connection tracking knows of a packet (`enum nft_ct_keys`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connection {
    /// How it belongs to a connection: a bit of `NF_CT_STATE_BIT`.
    State,
    /// What was done to the connection: bits of `enum ip_conntrack_status`.
    Status,
}

/// From where the offset of a load counts (`enum nft_payload_bases`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// The Ethernet header.
    Link,
    /// The header after that: IP's, ARP's.
    Network,
    /// The header above IP; a fragment other than the first has none.
    Transport,
}

/// How loaded bytes compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// They are the same.
    Equal,
    /// They differ.
    NotEqual,
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on to the next chain of the hook.
    Accept,
    /// It is dropped.
    Drop,
    /// The chain's policy decides.
    Return,
}
