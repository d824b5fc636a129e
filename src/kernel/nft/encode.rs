//! Messages to nf_tables: a header, and attributes whose numbers are in network order.

use netlink_packet_core::{NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NetlinkSerializable};
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::errno::Errno;

use super::{super::socket::Protocol, numbers as n};
use crate::{
    kernel::{error::Error, socket::Request},
    model::nft::{Chain, Change, Expression, Family, Hook, Rule, Ruleset, TableId},
};

/// `struct nfgenmsg`.
pub(super) const NFGENMSG: usize = 4;
const NLA_F_NESTED: u16 = 1 << 15;
/// `NFT_RULE_MAXEXPRS` (net/netfilter/nf_tables_api.c).
const MOST_EXPRESSIONS: usize = 128;
/// `NFT_REG_SIZE`.
const REGISTER: usize = 16;

/// A message to nf_tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::kernel) struct Message {
    kind: u16,
    family: u8,
    resource: u16,
    attributes: Attributes,
}

impl Protocol for Message {
    const NUMBER: isize = NETLINK_NETFILTER;
}

impl NetlinkSerializable for Message {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        NFGENMSG + self.attributes.0.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        let [high, low] = self.resource.to_be_bytes();
        // NFNETLINK_V0 is the second byte.
        let header = [self.family, 0, high, low];
        buffer.iter_mut().zip(header.iter().chain(&self.attributes.0)).for_each(|(to, from)| *to = *from);
    }
}

impl Message {
    fn new(kind: u16, family: Family, fill: impl FnOnce(&mut Attributes)) -> Self {
        let mut attributes = Attributes::default();
        fill(&mut attributes);
        Self { kind: n::SUBSYSTEM << 8 | kind, family: n::family(family), resource: 0, attributes }
    }

    fn request(self, flags: u16) -> Request<Self> {
        Request { message: self, flags }
    }
}

/// Attributes, each padded to four bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Attributes(pub(super) Vec<u8>);

impl Attributes {
    pub(super) fn put(&mut self, kind: u16, value: &[u8]) {
        self.open(kind, |bytes| bytes.extend_from_slice(value));
    }

    fn text(&mut self, kind: u16, text: &str) {
        self.open(kind, |bytes| {
            bytes.extend_from_slice(text.as_bytes());
            bytes.push(0);
        });
    }

    fn number(&mut self, kind: u16, number: u32) {
        self.put(kind, &number.to_be_bytes());
    }

    fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        self.open(kind | NLA_F_NESTED, |bytes| {
            let mut inner = Self::default();
            fill(&mut inner);
            bytes.append(&mut inner.0);
        });
    }

    fn data(&mut self, kind: u16, value: &[u8]) {
        self.nested(kind, |data| data.put(n::NFTA_DATA_VALUE, value));
    }

    fn open(&mut self, kind: u16, fill: impl FnOnce(&mut Vec<u8>)) {
        let mut value = Vec::new();
        fill(&mut value);
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.append(&mut value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}

/// Asks for the generation, which every transaction of the namespace raises.
pub(super) fn get_generation() -> Request<Message> {
    Message::new(n::NFT_MSG_GETGEN, Family::Inet, |_| {}).request(0)
}

pub(super) fn get_table(table: &TableId) -> Request<Message> {
    Message::new(n::NFT_MSG_GETTABLE, table.family, |with| with.text(n::NFTA_TABLE_NAME, &table.name)).request(0)
}

/// All chains of a family: the kernel does not pick those of a table.
pub(super) fn dump_chains(family: Family) -> Message {
    Message::new(n::NFT_MSG_GETCHAIN, family, |_| {})
}

pub(super) fn dump_rules(table: &TableId) -> Message {
    Message::new(n::NFT_MSG_GETRULE, table.family, |with| with.text(n::NFTA_RULE_TABLE, &table.name))
}

/// What a message of a transaction is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part<'a> {
    /// The transaction as a whole.
    Whole,
    Table,
    Chain(&'a str),
    /// Chain, and number of the rule in it, from 1.
    Rule(&'a str, usize),
}

/// The messages of one transaction, each with the index of its change.
#[derive(Debug)]
pub(super) struct Batch<'a> {
    pub(super) requests: Vec<Request<Message>>,
    pub(super) origins: Vec<(usize, Part<'a>)>,
}

impl<'a> Batch<'a> {
    /// Between begin and end. The last message but the end asks for an acknowledgement, which comes when all is done. On failure
    /// the index of the change that cannot be said to the kernel.
    pub(super) fn of(changes: &'a [Change]) -> Result<Self, (usize, Error)> {
        let mut batch = Self { requests: Vec::new(), origins: Vec::new() };
        batch.control(n::NFNL_MSG_BATCH_BEGIN);
        for (index, change) in changes.iter().enumerate() {
            batch.change(index, change).map_err(|error| (index, error))?;
        }
        if let Some(last) = batch.requests.last_mut().filter(|_| !changes.is_empty()) {
            last.flags |= NLM_F_ACK;
        }
        batch.control(n::NFNL_MSG_BATCH_END);
        Ok(batch)
    }

    fn control(&mut self, kind: u16) {
        let message = Message { kind, family: 0, resource: n::SUBSYSTEM, attributes: Attributes::default() };
        self.requests.push(message.request(0));
        self.origins.push((0, Part::Whole));
    }

    fn push(&mut self, change: usize, part: Part<'a>, message: Message, flags: u16) {
        self.requests.push(message.request(flags));
        self.origins.push((change, part));
    }

    fn change(&mut self, index: usize, change: &'a Change) -> Result<(), Error> {
        match change {
            Change::EnsureTable(table) => self.new_table(index, table),
            Change::DeleteTable(table) => {
                // A table that is made first, if need be, is there to be deleted.
                self.new_table(index, table);
                self.delete_table(index, table);
            }
            Change::ReplaceTable(Ruleset { table, chains, foreign }) => {
                writable(foreign)?;
                self.new_table(index, table);
                self.delete_table(index, table);
                self.new_table(index, table);
                for (name, chain) in chains {
                    self.new_chain(index, table, name, chain)?;
                    self.rules(index, table, name, chain)?;
                }
            }
            Change::PutChain { table, name, chain } => {
                self.new_chain(index, table, name, chain)?;
                let flush = Message::new(n::NFT_MSG_DELRULE, table.family, |with| {
                    with.text(n::NFTA_RULE_TABLE, &table.name);
                    with.text(n::NFTA_RULE_CHAIN, name);
                });
                self.push(index, Part::Chain(name), flush, 0);
                self.rules(index, table, name, chain)?;
            }
            Change::DeleteChain { table, name } => {
                let delete = Message::new(n::NFT_MSG_DELCHAIN, table.family, |with| {
                    with.text(n::NFTA_CHAIN_TABLE, &table.name);
                    with.text(n::NFTA_CHAIN_NAME, name);
                });
                self.push(index, Part::Chain(name), delete, 0);
            }
        }
        Ok(())
    }

    fn new_table(&mut self, change: usize, table: &TableId) {
        let message =
            Message::new(n::NFT_MSG_NEWTABLE, table.family, |with| with.text(n::NFTA_TABLE_NAME, &table.name));
        self.push(change, Part::Table, message, NLM_F_CREATE);
    }

    fn delete_table(&mut self, change: usize, table: &TableId) {
        let message =
            Message::new(n::NFT_MSG_DELTABLE, table.family, |with| with.text(n::NFTA_TABLE_NAME, &table.name));
        self.push(change, Part::Table, message, 0);
    }

    fn new_chain(&mut self, change: usize, table: &TableId, name: &'a str, chain: &Chain) -> Result<(), Error> {
        writable(&chain.foreign)?;
        let number = match &chain.hook {
            None => None,
            Some(hook) => Some((hook, hook_number(table.family, hook)?)),
        };
        let message = Message::new(n::NFT_MSG_NEWCHAIN, table.family, |with| {
            with.text(n::NFTA_CHAIN_TABLE, &table.name);
            with.text(n::NFTA_CHAIN_NAME, name);
            if let Some((hook, number)) = number {
                put_hook(with, hook, number);
            }
        });
        self.push(change, Part::Chain(name), message, NLM_F_CREATE);
        Ok(())
    }

    fn rules(&mut self, change: usize, table: &TableId, name: &'a str, chain: &Chain) -> Result<(), Error> {
        for (index, rule) in chain.rules.iter().enumerate() {
            let number = index + 1;
            check(rule).map_err(|why| refused(format!("rule {number} of chain {name}: {why}")))?;
            let message = Message::new(n::NFT_MSG_NEWRULE, table.family, |with| {
                with.text(n::NFTA_RULE_TABLE, &table.name);
                with.text(n::NFTA_RULE_CHAIN, name);
                with.nested(n::NFTA_RULE_EXPRESSIONS, |list| rule.expressions.iter().for_each(|one| put(list, one)));
            });
            self.push(change, Part::Rule(name, number), message, NLM_F_CREATE | NLM_F_APPEND);
        }
        Ok(())
    }
}

fn refused(why: String) -> Error {
    Error::new(Errno::EINVAL, why)
}

fn writable(foreign: &[String]) -> Result<(), Error> {
    match foreign.first() {
        None => Ok(()),
        Some(what) => Err(refused(format!("{what} cannot be written"))),
    }
}

fn hook_number(family: Family, hook: &Hook) -> Result<u32, Error> {
    n::hook(family, hook.point)
        .ok_or_else(|| refused(format!("a table of family {family} has no hook {:?}", hook.point)))
}

/// What would not reach the kernel as it is.
fn check(rule: &Rule) -> Result<(), String> {
    if rule.expressions.len() > MOST_EXPRESSIONS {
        return Err(format!("more than {MOST_EXPRESSIONS} expressions"));
    }
    for expression in &rule.expressions {
        match expression {
            Expression::Foreign(what) => return Err(format!("{what} cannot be written")),
            Expression::Mask(bytes) | Expression::Compare(_, bytes) if bytes.len() > REGISTER => {
                return Err(format!("{} bytes do not fit a register", bytes.len()));
            }
            _ => {}
        }
    }
    Ok(())
}

fn put_hook(with: &mut Attributes, hook: &Hook, number: u32) {
    with.nested(n::NFTA_CHAIN_HOOK, |with| {
        with.number(n::NFTA_HOOK_HOOKNUM, number);
        with.put(n::NFTA_HOOK_PRIORITY, &hook.priority.to_be_bytes());
        if let Some(device) = &hook.device {
            with.text(n::NFTA_HOOK_DEV, device);
        }
    });
    with.text(n::NFTA_CHAIN_TYPE, n::kind(hook.kind));
    with.number(n::NFTA_CHAIN_POLICY, n::policy(hook.policy));
}

/// One element of a rule's list.
pub(super) fn put(list: &mut Attributes, expression: &Expression) {
    let name = match expression {
        Expression::Meta(_) => n::META,
        Expression::Connection(_) => n::CT,
        Expression::Payload { .. } => n::PAYLOAD,
        Expression::Mask(_) => n::BITWISE,
        Expression::Compare(..) => n::CMP,
        Expression::Counter => n::COUNTER,
        Expression::Verdict(_) => n::IMMEDIATE,
        Expression::Masquerade => n::MASQ,
        Expression::Foreign(name) => name,
    };
    list.nested(n::NFTA_LIST_ELEM, |element| {
        element.text(n::NFTA_EXPR_NAME, name);
        element.nested(n::NFTA_EXPR_DATA, |data| put_data(data, expression));
    });
}

fn put_data(data: &mut Attributes, expression: &Expression) {
    match expression {
        Expression::Meta(meta) => {
            data.number(n::NFTA_META_DREG, n::NFT_REG_1);
            data.number(n::NFTA_META_KEY, n::meta(*meta));
        }
        Expression::Connection(connection) => {
            data.number(n::NFTA_CT_DREG, n::NFT_REG_1);
            data.number(n::NFTA_CT_KEY, n::connection(*connection));
        }
        Expression::Payload { base, offset, length } => {
            data.number(n::NFTA_PAYLOAD_DREG, n::NFT_REG_1);
            data.number(n::NFTA_PAYLOAD_BASE, n::base(*base));
            data.number(n::NFTA_PAYLOAD_OFFSET, *offset);
            data.number(n::NFTA_PAYLOAD_LEN, *length);
        }
        Expression::Mask(mask) => {
            data.number(n::NFTA_BITWISE_SREG, n::NFT_REG_1);
            data.number(n::NFTA_BITWISE_DREG, n::NFT_REG_1);
            data.number(n::NFTA_BITWISE_LEN, u32::try_from(mask.len()).unwrap_or(u32::MAX));
            data.data(n::NFTA_BITWISE_MASK, mask);
            data.data(n::NFTA_BITWISE_XOR, &vec![0; mask.len()]);
        }
        Expression::Compare(comparison, value) => {
            data.number(n::NFTA_CMP_SREG, n::NFT_REG_1);
            data.number(n::NFTA_CMP_OP, n::comparison(*comparison));
            data.data(n::NFTA_CMP_DATA, value);
        }
        Expression::Verdict(verdict) => {
            data.number(n::NFTA_IMMEDIATE_DREG, n::NFT_REG_VERDICT);
            data.nested(n::NFTA_IMMEDIATE_DATA, |data| {
                data.nested(n::NFTA_DATA_VERDICT, |data| data.number(n::NFTA_VERDICT_CODE, n::verdict(*verdict)));
            });
        }
        Expression::Counter | Expression::Masquerade | Expression::Foreign(_) => {}
    }
}
