//! The kernel's numbers, by its own names (`include/uapi/linux/netfilter/nf_tables.h`, `nfnetlink.h`, `../netfilter.h`), and which
//! of the nouns each stands for.

use crate::model::nft::{Base, ChainKind, Comparison, Connection, Family, HookPoint, Meta, Policy, Verdict};

/// `NFNL_SUBSYS_NFTABLES`.
pub(super) const SUBSYSTEM: u16 = 10;
pub(super) const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
pub(super) const NFNL_MSG_BATCH_END: u16 = 0x11;
pub(super) const NFNLGRP_NFTABLES: u32 = 7;

pub(super) const NFT_MSG_NEWTABLE: u16 = 0;
pub(super) const NFT_MSG_GETTABLE: u16 = 1;
pub(super) const NFT_MSG_DELTABLE: u16 = 2;
pub(super) const NFT_MSG_NEWCHAIN: u16 = 3;
pub(super) const NFT_MSG_GETCHAIN: u16 = 4;
pub(super) const NFT_MSG_DELCHAIN: u16 = 5;
pub(super) const NFT_MSG_NEWRULE: u16 = 6;
pub(super) const NFT_MSG_GETRULE: u16 = 7;
pub(super) const NFT_MSG_DELRULE: u16 = 8;
pub(super) const NFT_MSG_NEWGEN: u16 = 15;
pub(super) const NFT_MSG_GETGEN: u16 = 16;

pub(super) const NFTA_TABLE_NAME: u16 = 1;
pub(super) const NFTA_TABLE_FLAGS: u16 = 2;
pub(super) const NFTA_TABLE_USE: u16 = 3;

pub(super) const NFTA_CHAIN_TABLE: u16 = 1;
pub(super) const NFTA_CHAIN_NAME: u16 = 3;
pub(super) const NFTA_CHAIN_HOOK: u16 = 4;
pub(super) const NFTA_CHAIN_POLICY: u16 = 5;
pub(super) const NFTA_CHAIN_TYPE: u16 = 7;
pub(super) const NFTA_CHAIN_FLAGS: u16 = 10;
/// A chain with a hook, which is no trait of its own.
pub(super) const NFT_CHAIN_BASE: u32 = 1;

pub(super) const NFTA_HOOK_HOOKNUM: u16 = 1;
pub(super) const NFTA_HOOK_PRIORITY: u16 = 2;
pub(super) const NFTA_HOOK_DEV: u16 = 3;
pub(super) const NFTA_HOOK_DEVS: u16 = 4;
pub(super) const NFTA_DEVICE_NAME: u16 = 1;

pub(super) const NFTA_RULE_TABLE: u16 = 1;
pub(super) const NFTA_RULE_CHAIN: u16 = 2;
pub(super) const NFTA_RULE_EXPRESSIONS: u16 = 4;
pub(super) const NFTA_RULE_COMPAT: u16 = 5;

pub(super) const NFTA_GEN_ID: u16 = 1;

/// Every kind of message but a generation's names its table first: `NFTA_TABLE_NAME`, `NFTA_CHAIN_TABLE`, `NFTA_RULE_TABLE`,
/// `NFTA_SET_TABLE`, `NFTA_SET_ELEM_LIST_TABLE`, `NFTA_OBJ_TABLE`, `NFTA_FLOWTABLE_TABLE`.
pub(super) const ANY_TABLE: u16 = 1;

pub(super) const NFTA_LIST_ELEM: u16 = 1;
pub(super) const NFTA_EXPR_NAME: u16 = 1;
pub(super) const NFTA_EXPR_DATA: u16 = 2;
pub(super) const NFTA_DATA_VALUE: u16 = 1;
pub(super) const NFTA_DATA_VERDICT: u16 = 2;
pub(super) const NFTA_VERDICT_CODE: u16 = 1;

pub(super) const NFTA_META_DREG: u16 = 1;
pub(super) const NFTA_META_KEY: u16 = 2;
pub(super) const NFTA_PAYLOAD_DREG: u16 = 1;
pub(super) const NFTA_PAYLOAD_BASE: u16 = 2;
pub(super) const NFTA_PAYLOAD_OFFSET: u16 = 3;
pub(super) const NFTA_PAYLOAD_LEN: u16 = 4;
pub(super) const NFTA_CT_DREG: u16 = 1;
pub(super) const NFTA_CT_KEY: u16 = 2;
pub(super) const NFTA_BITWISE_SREG: u16 = 1;
pub(super) const NFTA_BITWISE_DREG: u16 = 2;
pub(super) const NFTA_BITWISE_LEN: u16 = 3;
pub(super) const NFTA_BITWISE_MASK: u16 = 4;
pub(super) const NFTA_BITWISE_XOR: u16 = 5;
pub(super) const NFTA_BITWISE_OP: u16 = 6;
pub(super) const NFTA_CMP_SREG: u16 = 1;
pub(super) const NFTA_CMP_OP: u16 = 2;
pub(super) const NFTA_CMP_DATA: u16 = 3;
pub(super) const NFTA_COUNTER_BYTES: u16 = 1;
pub(super) const NFTA_COUNTER_PACKETS: u16 = 2;
pub(super) const NFTA_COUNTER_PAD: u16 = 3;
pub(super) const NFTA_IMMEDIATE_DREG: u16 = 1;
pub(super) const NFTA_IMMEDIATE_DATA: u16 = 2;

/// The register that a verdict is written to.
pub(super) const NFT_REG_VERDICT: u32 = 0;
/// The one register of data that rules here use, of 16 bytes.
pub(super) const NFT_REG_1: u32 = 1;

/// The names of expressions.
pub(super) const META: &str = "meta";
pub(super) const CT: &str = "ct";
pub(super) const PAYLOAD: &str = "payload";
pub(super) const BITWISE: &str = "bitwise";
pub(super) const CMP: &str = "cmp";
pub(super) const COUNTER: &str = "counter";
pub(super) const IMMEDIATE: &str = "immediate";
pub(super) const MASQ: &str = "masq";

/// `NFPROTO_*`.
pub(super) const fn family(family: Family) -> u8 {
    match family {
        Family::Inet => 1,
        Family::Ip => 2,
        Family::Netdev => 5,
        Family::Ip6 => 10,
    }
}

pub(super) fn family_of(number: u8) -> Option<Family> {
    [Family::Inet, Family::Ip, Family::Netdev, Family::Ip6].into_iter().find(|found| family(*found) == number)
}

/// `enum nf_inet_hooks` and `enum nf_dev_hooks`; `None` where chains of the family cannot hang.
pub(super) const fn hook(family: Family, point: HookPoint) -> Option<u32> {
    Some(match (family, point) {
        (Family::Netdev, HookPoint::Ingress) => 0,
        (Family::Netdev, HookPoint::Egress) => 1,
        (Family::Netdev, _) | (_, HookPoint::Egress) => return None,
        (_, HookPoint::Prerouting) => 0,
        (_, HookPoint::Input) => 1,
        (_, HookPoint::Forward) => 2,
        (_, HookPoint::Output) => 3,
        (_, HookPoint::Postrouting) => 4,
        (_, HookPoint::Ingress) => 5,
    })
}

pub(super) fn hook_of(family: Family, number: u32) -> Option<HookPoint> {
    use HookPoint::{Egress, Forward, Ingress, Input, Output, Postrouting, Prerouting};
    let all = [Prerouting, Input, Forward, Output, Postrouting, Ingress, Egress];
    all.into_iter().find(|point| hook(family, *point) == Some(number))
}

pub(super) const fn kind(kind: ChainKind) -> &'static str {
    match kind {
        ChainKind::Filter => "filter",
        ChainKind::Nat => "nat",
        ChainKind::Route => "route",
    }
}

pub(super) fn kind_of(name: &str) -> Option<ChainKind> {
    [ChainKind::Filter, ChainKind::Nat, ChainKind::Route].into_iter().find(|found| kind(*found) == name)
}

/// `NF_DROP`, `NF_ACCEPT`.
pub(super) const fn policy(policy: Policy) -> u32 {
    match policy {
        Policy::Drop => 0,
        Policy::Accept => 1,
    }
}

pub(super) fn policy_of(number: u32) -> Option<Policy> {
    [Policy::Drop, Policy::Accept].into_iter().find(|found| policy(*found) == number)
}

/// `NF_DROP`, `NF_ACCEPT`, `NFT_RETURN`, which is -5.
pub(super) const fn verdict(verdict: Verdict) -> u32 {
    match verdict {
        Verdict::Drop => 0,
        Verdict::Accept => 1,
        Verdict::Return => 5_u32.wrapping_neg(),
    }
}

pub(super) fn verdict_of(number: u32) -> Option<Verdict> {
    [Verdict::Drop, Verdict::Accept, Verdict::Return].into_iter().find(|found| verdict(*found) == number)
}

/// `enum nft_meta_keys`.
pub(super) const fn meta(meta: Meta) -> u32 {
    match meta {
        Meta::Protocol => 1,
        Meta::IifName => 6,
        Meta::OifName => 7,
        Meta::IifType => 8,
        Meta::NfProto => 15,
        Meta::L4Proto => 16,
    }
}

pub(super) fn meta_of(number: u32) -> Option<Meta> {
    let all = [Meta::Protocol, Meta::IifName, Meta::OifName, Meta::IifType, Meta::NfProto, Meta::L4Proto];
    all.into_iter().find(|found| meta(*found) == number)
}

/// `enum nft_ct_keys`.
pub(super) const fn connection(connection: Connection) -> u32 {
    match connection {
        Connection::State => 0,
        Connection::Status => 2,
    }
}

pub(super) fn connection_of(number: u32) -> Option<Connection> {
    [Connection::State, Connection::Status].into_iter().find(|found| connection(*found) == number)
}

/// `enum nft_payload_bases`.
pub(super) const fn base(base: Base) -> u32 {
    match base {
        Base::Link => 0,
        Base::Network => 1,
        Base::Transport => 2,
    }
}

pub(super) fn base_of(number: u32) -> Option<Base> {
    [Base::Link, Base::Network, Base::Transport].into_iter().find(|found| base(*found) == number)
}

/// `enum nft_cmp_ops`.
pub(super) const fn comparison(comparison: Comparison) -> u32 {
    match comparison {
        Comparison::Equal => 0,
        Comparison::NotEqual => 1,
    }
}

pub(super) fn comparison_of(number: u32) -> Option<Comparison> {
    [Comparison::Equal, Comparison::NotEqual].into_iter().find(|found| comparison(*found) == number)
}
