//! The tables of an overlay namespace.

use std::os::fd::BorrowedFd;

use super::nft::{Heard, Monitor, Tables};
use crate::{
    engine::{Answer, Event, Failure, FailureKind},
    model::nft::{Change, TableId},
};

/// The sockets for tables, or why there are none: a kernel without netfilter can do all else.
#[derive(Debug)]
pub(super) struct Rules(Result<(Tables, Monitor), Failure>);

impl Rules {
    /// Opens the sockets in the namespace of the calling thread.
    pub(super) fn open() -> Self {
        // What changes after the reading is heard only if the monitor is there before.
        Self(Monitor::open().and_then(|monitor| Ok((Tables::open()?, monitor))))
    }

    /// The event socket.
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.0.as_ref().ok().map(|(_, monitor)| monitor.fd())
    }

    /// A table, if it is there. In a kernel that has no tables none is: that it cannot make any is said when it is asked to.
    pub(super) fn read(&mut self, table: &TableId) -> Result<Answer, Failure> {
        let Ok((tables, _)) = &mut self.0 else { return Ok(Answer::Rules(None)) };
        match tables.read(table) {
            Err(failure) if failure.kind == FailureKind::Refused => Ok(Answer::Rules(None)),
            other => other.map(Answer::Rules),
        }
    }

    /// The tables in which a chain at the forward hook drops by its policy.
    pub(super) fn barriers(&mut self) -> Result<Answer, Failure> {
        let Ok((tables, _)) = &mut self.0 else { return Ok(Answer::Barriers(Vec::new())) };
        let mut barriers = Vec::new();
        for table in tables.dropping_forward()? {
            barriers.extend(tables.read(&table)?);
        }
        Ok(Answer::Barriers(barriers))
    }

    /// All changes, or none.
    pub(super) fn change(&mut self, changes: &[Change]) -> Result<(), Failure> {
        let (tables, _) = self.0.as_mut().map_err(|failure| failure.clone())?;
        tables.apply(changes).map_err(|refused| refused.failure)
    }

    /// What others changed since the last call.
    pub(super) fn events(&self) -> Vec<Event> {
        let Ok((tables, monitor)) = &self.0 else { return Vec::new() };
        let Heard { tables, overrun } = monitor.drain(tables.port());
        tables.into_iter().map(Event::Rules).chain(overrun.then_some(Event::Overrun)).collect()
    }
}
