//! What nf_tables tells. An expression is decoded only if every attribute of it is understood and has the value that
//! [`super::encode`] would give it; anything else is foreign.

use super::{encode::NFGENMSG, numbers as n};
use crate::{
    kernel::wire,
    model::nft::{Chain, Expression, Family, Hook, Rule, TableId},
};

/// The kind of a message of nf_tables.
pub(super) fn kind(message_type: u16) -> Option<u16> {
    (message_type >> 8 == n::SUBSYSTEM).then_some(message_type & 0xff)
}

/// The table that a message is about, if of a family that is of interest.
pub(super) fn table_of(body: &[u8]) -> Option<TableId> {
    let (family, attributes) = head(body)?;
    Some(TableId::new(family, wire::text(wire::attribute(attributes, n::ANY_TABLE)?)))
}

fn head(body: &[u8]) -> Option<(Family, &[u8])> {
    Some((n::family_of(wire::u8_at(body, 0)?)?, body.get(NFGENMSG..)?))
}

fn number(value: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(value.try_into().ok()?))
}

fn number_of(attributes: &[u8], kind: u16) -> Option<u32> {
    number(wire::attribute(attributes, kind)?)
}

fn text_of(attributes: &[u8], kind: u16) -> Option<String> {
    wire::attribute(attributes, kind).map(wire::text)
}

pub(super) fn generation(body: &[u8]) -> Option<u32> {
    number_of(body.get(NFGENMSG..)?, n::NFTA_GEN_ID)
}

/// What a table says of itself.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) flags: u32,
    /// How many chains, sets, objects and flow tables it has.
    pub(super) holds: u32,
}

pub(super) fn table(body: &[u8]) -> Option<Table> {
    let (_, attributes) = head(body)?;
    let flags = number_of(attributes, n::NFTA_TABLE_FLAGS).unwrap_or(0);
    Some(Table { flags, holds: number_of(attributes, n::NFTA_TABLE_USE)? })
}

/// A chain by name, without its rules. `None` also for one whose name is no text, so that the table holds more than it tells of.
pub(super) fn chain(body: &[u8]) -> Option<(TableId, String, Chain)> {
    let table = table_of(body)?;
    let (family, attributes) = head(body)?;
    let name = text_of(attributes, n::NFTA_CHAIN_NAME).filter(|name| !name.contains(char::REPLACEMENT_CHARACTER))?;
    let mut chain = Chain::default();
    let flags = number_of(attributes, n::NFTA_CHAIN_FLAGS).unwrap_or(0) & !n::NFT_CHAIN_BASE;
    if flags != 0 {
        chain.foreign.push(format!("chain flags {flags:#x}"));
    }
    if let Some(hook) = wire::attribute(attributes, n::NFTA_CHAIN_HOOK) {
        chain.hook = read_hook(family, attributes, hook);
        if chain.hook.is_none() {
            chain.foreign.push("another kind of hook".to_owned());
        }
        let devices = devices(hook).map_or(0, Iterator::count);
        if devices > 1 {
            chain.foreign.push(format!("{devices} devices"));
        }
    }
    Some((table, name, chain))
}

fn devices(hook: &[u8]) -> Option<impl Iterator<Item = (u16, &[u8])>> {
    wire::attribute(hook, n::NFTA_HOOK_DEVS).map(wire::attributes)
}

fn read_hook(family: Family, chain: &[u8], hook: &[u8]) -> Option<Hook> {
    let device = match devices(hook).and_then(|mut devices| devices.next()) {
        // The other kind is a prefix of names.
        Some((n::NFTA_DEVICE_NAME, name)) => Some(wire::text(name)),
        Some(_) => return None,
        None => text_of(hook, n::NFTA_HOOK_DEV),
    };
    Some(Hook {
        kind: n::kind_of(&text_of(chain, n::NFTA_CHAIN_TYPE)?)?,
        point: n::hook_of(family, number_of(hook, n::NFTA_HOOK_HOOKNUM)?)?,
        priority: number_of(hook, n::NFTA_HOOK_PRIORITY)?.cast_signed(),
        policy: n::policy_of(number_of(chain, n::NFTA_CHAIN_POLICY)?)?,
        device,
    })
}

/// A rule, with the name of its chain.
pub(super) fn rule(body: &[u8]) -> Option<(TableId, String, Rule)> {
    let table = table_of(body)?;
    let (_, attributes) = head(body)?;
    let chain = text_of(attributes, n::NFTA_RULE_CHAIN)?;
    let list = wire::attribute(attributes, n::NFTA_RULE_EXPRESSIONS).unwrap_or_default();
    let mut expressions: Vec<Expression> = wire::attributes(list).map(|(_, element)| expression(element)).collect();
    if wire::attribute(attributes, n::NFTA_RULE_COMPAT).is_some() {
        expressions.push(Expression::Foreign("compat".to_owned()));
    }
    Some((table, chain, Rule::of(expressions)))
}

/// One element of a rule's list.
pub(super) fn expression(element: &[u8]) -> Expression {
    let name = text_of(element, n::NFTA_EXPR_NAME).unwrap_or_default();
    let data = wire::attribute(element, n::NFTA_EXPR_DATA).unwrap_or_default();
    known(&name, data).unwrap_or(Expression::Foreign(name))
}

fn known(name: &str, data: &[u8]) -> Option<Expression> {
    match name {
        n::META => {
            let [register, key] = only(data, [n::NFTA_META_DREG, n::NFTA_META_KEY])?;
            is_data(register)?;
            n::meta_of(number(key?)?).map(Expression::Meta)
        }
        n::CT => {
            let [register, key] = only(data, [n::NFTA_CT_DREG, n::NFTA_CT_KEY])?;
            is_data(register)?;
            n::connection_of(number(key?)?).map(Expression::Connection)
        }
        n::PAYLOAD => {
            let kinds = [n::NFTA_PAYLOAD_DREG, n::NFTA_PAYLOAD_BASE, n::NFTA_PAYLOAD_OFFSET, n::NFTA_PAYLOAD_LEN];
            let [register, base, offset, length] = only(data, kinds)?;
            is_data(register)?;
            let base = n::base_of(number(base?)?)?;
            Some(Expression::Payload { base, offset: number(offset?)?, length: number(length?)? })
        }
        n::BITWISE => mask(data),
        n::CMP => {
            let [register, operator, value] = only(data, [n::NFTA_CMP_SREG, n::NFTA_CMP_OP, n::NFTA_CMP_DATA])?;
            is_data(register)?;
            let [value] = only(value?, [n::NFTA_DATA_VALUE])?;
            Some(Expression::Compare(n::comparison_of(number(operator?)?)?, value?.to_vec()))
        }
        n::COUNTER => {
            only(data, [n::NFTA_COUNTER_BYTES, n::NFTA_COUNTER_PACKETS, n::NFTA_COUNTER_PAD])?;
            Some(Expression::Counter)
        }
        n::IMMEDIATE => {
            let [register, value] = only(data, [n::NFTA_IMMEDIATE_DREG, n::NFTA_IMMEDIATE_DATA])?;
            let [verdict] = only(value?, [n::NFTA_DATA_VERDICT])?;
            let [code] = only(verdict?, [n::NFTA_VERDICT_CODE])?;
            (number(register?)? == n::NFT_REG_VERDICT).then_some(())?;
            n::verdict_of(number(code?)?).map(Expression::Verdict)
        }
        // Ports or flags are attributes; without any it is the plain one.
        n::MASQ => only(data, []).map(|[]| Expression::Masquerade),
        _ => None,
    }
}

fn mask(data: &[u8]) -> Option<Expression> {
    let kinds = [
        n::NFTA_BITWISE_SREG,
        n::NFTA_BITWISE_DREG,
        n::NFTA_BITWISE_LEN,
        n::NFTA_BITWISE_MASK,
        n::NFTA_BITWISE_XOR,
        n::NFTA_BITWISE_OP,
    ];
    let [source, destination, length, mask, xor, operator] = only(data, kinds)?;
    is_data(source)?;
    is_data(destination)?;
    let ([mask], [xor]) = (only(mask?, [n::NFTA_DATA_VALUE])?, only(xor?, [n::NFTA_DATA_VALUE])?);
    let (mask, xor) = (mask?, xor?);
    // Operator 0 is `NFT_BITWISE_MASK_XOR`, which older kernels do not name.
    let plain = operator.map_or(Some(0), number)? == 0 && xor.iter().all(|byte| *byte == 0);
    let whole = number(length?)? == u32::try_from(mask.len()).ok()? && xor.len() == mask.len();
    (plain && whole).then(|| Expression::Mask(mask.to_vec()))
}

/// Whether the register is the one that rules here use.
fn is_data(register: Option<&[u8]>) -> Option<()> {
    (number(register?)? == n::NFT_REG_1).then_some(())
}

/// The values of attributes of these kinds; `None` if there is one of another kind, or two of one.
fn only<const N: usize>(bytes: &[u8], kinds: [u16; N]) -> Option<[Option<&[u8]>; N]> {
    let mut values = [None; N];
    for (kind, value) in wire::attributes(bytes) {
        let at = kinds.iter().position(|wanted| *wanted == kind)?;
        if values.get_mut(at)?.replace(value).is_some() {
            return None;
        }
    }
    Some(values)
}
