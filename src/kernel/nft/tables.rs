use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use nix::errno::Errno;

use super::{
    decode,
    encode::{self, Batch, Message, Part},
};
use crate::{
    engine::Failure,
    kernel::{error::Error, socket::RequestSocket},
    model::nft::{Change, Family, Ruleset, TableId},
};

/// The longest transaction in bytes, some 20,000 rules. In a user namespace `wmem_max` bounds it instead, by default to some 1,000
/// of them; a longer one is refused with EMSGSIZE.
const LONGEST: usize = 8 << 20;
/// How often a table is read when others' transactions come in between.
const ATTEMPTS: usize = 8;

/// A socket for the tables of one network namespace.
#[derive(Debug)]
pub struct Tables {
    socket: RequestSocket<Message>,
}

/// Why a transaction was not applied. Nothing of it was, unless the failure is [`crate::engine::FailureKind::Torn`]: then it is
/// not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotApplied {
    /// The index of the change that the kernel refused; `None` if it refused the whole.
    pub change: Option<usize>,
    /// The kernel's error with its own words, and the chain and the rule that it is about.
    pub failure: Failure,
}

impl fmt::Display for NotApplied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.failure.message.fmt(f)
    }
}

impl Tables {
    /// Opens the socket in the network namespace of the calling thread.
    ///
    /// # Errors
    /// No socket is to be had, or the kernel has no netfilter.
    pub fn open() -> Result<Self, Failure> {
        let socket = RequestSocket::open()?;
        socket.raise_send_buffer(LONGEST)?;
        Ok(Self { socket })
    }

    /// The port id that notifications of what this socket applied carry ([`super::Monitor::drain`]).
    pub const fn port(&self) -> u32 {
        self.socket.port()
    }

    /// Reads a table as it was at one instant. `None` if it is not there.
    ///
    /// # Errors
    /// The kernel refuses, or others change tables of this namespace so often that no reading stayed whole
    /// ([`crate::engine::FailureKind::Torn`]).
    pub fn read(&mut self, table: &TableId) -> Result<Option<Ruleset>, Failure> {
        let mut result = self.read_once(table);
        for _ in 1..ATTEMPTS {
            if !result.as_ref().is_err_and(|error| error.torn) {
                break;
            }
            result = self.read_once(table);
        }
        Ok(result?)
    }

    /// The tables for IP that have a filter chain at the forward hook whose policy drops.
    ///
    /// # Errors
    /// The kernel refuses, or the dump was torn.
    pub fn dropping_forward(&mut self) -> Result<BTreeSet<TableId>, Failure> {
        let mut tables = BTreeSet::new();
        for family in [Family::Inet, Family::Ip, Family::Ip6] {
            self.socket.dump(encode::dump_chains(family), |_, body| {
                let found = decode::chain(body).filter(|(.., chain)| chain.drops_forward());
                tables.extend(found.map(|(table, ..)| table));
            })?;
        }
        Ok(tables)
    }

    fn read_once(&mut self, id: &TableId) -> Result<Option<Ruleset>, Error> {
        let before = self.generation()?;
        // The generation rises at the start of a commit, and policies come at its end (nf_tables_commit): an empty transaction, which
        // raises nothing, waits for one that is under way.
        self.socket.tell(&Batch::of(&[]).map_err(|(_, error)| error)?.requests)?;
        let bodies = match self.socket.call_one(encode::get_table(id)) {
            Err(error) if error.errno == Errno::ENOENT => return Ok(None),
            other => other?,
        };
        let table = bodies.first().and_then(|body| decode::table(body));
        let table = table.ok_or_else(|| Error::new(Errno::EBADMSG, format!("the table {id} cannot be read")))?;
        let mut chains = BTreeMap::new();
        self.socket.dump(encode::dump_chains(id.family), |_, body| {
            let found = decode::chain(body).filter(|(table, ..)| table == id);
            chains.extend(found.map(|(_, name, chain)| (name, chain)));
        })?;
        let mut rules = Vec::new();
        self.socket.dump(encode::dump_rules(id), |_, body| {
            rules.extend(decode::rule(body).filter(|(table, ..)| table == id).map(|(_, chain, rule)| (chain, rule)));
        })?;
        if self.generation()? != before {
            return Err(Error::torn("the table changed while it was read"));
        }
        let mut ruleset = Ruleset { table: id.clone(), chains, foreign: Vec::new() };
        for (chain, rule) in rules {
            if let Some(chain) = ruleset.chains.get_mut(&chain) {
                chain.rules.push(rule);
            }
        }
        if table.flags != 0 {
            ruleset.foreign.push(format!("table flags {:#x}", table.flags));
        }
        let others = usize::try_from(table.holds).unwrap_or(usize::MAX).saturating_sub(ruleset.chains.len());
        if others > 0 {
            ruleset.foreign.push(format!("{others} sets or other objects"));
        }
        Ok(Some(ruleset))
    }

    fn generation(&mut self) -> Result<u32, Error> {
        let bodies = self.socket.call_one(encode::get_generation())?;
        let generation = bodies.first().and_then(|body| decode::generation(body));
        generation.ok_or_else(|| Error::new(Errno::EBADMSG, "the generation cannot be read"))
    }

    /// Applies all changes in one transaction: all of them, or none.
    ///
    /// # Errors
    /// See [`NotApplied`].
    pub fn apply(&mut self, changes: &[Change]) -> Result<(), NotApplied> {
        if changes.is_empty() {
            return Ok(());
        }
        let batch =
            Batch::of(changes).map_err(|(change, error)| NotApplied { change: Some(change), failure: error.into() })?;
        // The kernel works on after a failing message, to report what else fails; an error of the begin is one of the whole, and
        // the last to come is the acknowledgement of the message before the end.
        let last = batch.requests.len().saturating_sub(2);
        let mut first_failure: Option<(usize, Error)> = None;
        let whole = self.socket.send_together(&batch.requests, |index, result| {
            if let Err(error) = result
                && first_failure.as_ref().is_none_or(|(first, _)| index < *first)
            {
                first_failure = Some((index, error));
            }
            index == 0 || index == last
        });
        whole.map_err(|error| NotApplied { change: None, failure: error.into() })?;
        match first_failure {
            None => Ok(()),
            Some((index, error)) => Err(not_applied(changes, &batch, index, error)),
        }
    }
}

fn not_applied(changes: &[Change], batch: &Batch<'_>, index: usize, mut error: Error) -> NotApplied {
    let (change, part) = batch.origins.get(index).copied().unwrap_or((0, Part::Whole));
    let table = changes.get(change).map(table_of).map(ToString::to_string).unwrap_or_default();
    let place = match part {
        Part::Whole => None,
        Part::Table => Some(format!("table {table}")),
        Part::Chain(chain) => Some(format!("chain {chain} of table {table}")),
        Part::Rule(chain, rule) => Some(format!("rule {rule} of chain {chain} of table {table}")),
    };
    if let Some(place) = &place {
        let words = std::mem::take(&mut error.text);
        error.text = if words.is_empty() { place.clone() } else { format!("{place}: {words}") };
    }
    NotApplied { change: place.map(|_| change), failure: error.into() }
}

const fn table_of(change: &Change) -> &TableId {
    match change {
        Change::EnsureTable(table)
        | Change::DeleteTable(table)
        | Change::ReplaceTable(Ruleset { table, .. })
        | Change::PutChain { table, .. }
        | Change::DeleteChain { table, .. } => table,
    }
}
