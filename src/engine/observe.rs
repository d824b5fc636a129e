//! Answers of the kernel: they move the observed side of the tables.

use std::time::Duration;

use super::{
    delta::Cause,
    key::{Key, LinkId},
    network::{Netns, Network},
    object::NetnsState,
    report::Note,
    seam::{Answer, Failure, FailureKind, LinkRef, Query},
    time::Time,
    unread::ReadCause,
};
use crate::retry::{Retry, stable_hash};

/// The first and the longest pause after reads that failed.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LAST_PAUSE: Duration = Duration::from_secs(1);

impl From<ReadCause> for Cause {
    fn from(read: ReadCause) -> Self {
        match read {
            ReadCause::Foreign => Self::Repair,
            ReadCause::Own | ReadCause::First => Self::Change,
        }
    }
}

impl Network {
    /// Takes the answer to the query of the last [`super::Effect::Read`].
    pub fn answered(&mut self, answer: Result<Answer, Failure>, now: Time) {
        let Some((query, cause)) = self.asked.take() else { return };
        match (query, answer) {
            (query, Err(failure)) => self.read_failed(query, cause, failure, now),
            (Query::Netns, Ok(Answer::Netns(state))) => self.observe_netns(&state, cause, now),
            (Query::Links, Ok(Answer::Links(links, addresses))) => self.observe_all_links(&links, &addresses, cause),
            (Query::Link(asked), Ok(Answer::Links(links, addresses))) => {
                self.observe_link(&asked, links.first(), &addresses, cause);
            }
            (Query::Inner(_), Ok(Answer::Inner(state))) => self.observe_inner(state, cause, now),
            (Query::FdbDump(ifindex), Ok(Answer::Fdb(rows))) => self.observe_fdb_dump(ifindex, &rows, cause),
            (Query::FdbRows(points), Ok(Answer::Fdb(rows))) => self.observe_fdb_rows(&points, &rows),
            (Query::NeighbourDump(ifindex), Ok(Answer::Neighbours(rows))) => {
                self.observe_neighbour_dump(ifindex, &rows, cause);
            }
            (Query::NeighbourRows(points), Ok(Answer::Neighbours(rows))) => {
                self.observe_neighbour_rows(&points, &rows);
            }
            (query, Ok(_)) => {
                let failure = Failure::new(FailureKind::Torn, "the answer does not belong to the question");
                self.read_failed(query, cause, failure, now);
            }
        }
        if self.unread.paused_until.is_none() {
            self.unread.retry = None;
        }
    }

    /// Nothing is known: the same is asked again, after a pause unless the link was merely gone.
    fn read_failed(&mut self, query: Query, cause: ReadCause, failure: Failure, now: Time) {
        let gone = failure.kind == FailureKind::NotFound;
        match query {
            Query::Netns => self.unread.netns = Some(cause),
            Query::Links => self.unread.links = self.unread.links.max(Some(cause)),
            Query::Link(link) => self.unread.link(link, cause),
            Query::Inner(_) => {
                // One endpoint's namespace that cannot be read holds up nothing else.
                if let Some(id) = self.asked_inner.take() {
                    let retry = self.troubles.failed(&Key::Link(LinkId::Inner(id.clone())), failure, now);
                    self.unread.looks.insert(id, retry);
                }
                return;
            }
            Query::FdbDump(ifindex) => {
                self.unread.fdb_dump(ifindex, cause);
                self.look_again(ifindex);
            }
            Query::NeighbourDump(ifindex) => {
                self.unread.neighbour_dump(ifindex, cause);
                self.look_again(ifindex);
            }
            // Rows of a link that is gone went with it: its absence has to be seen, and it is read first.
            Query::FdbRows(points) => {
                points.iter().for_each(|point| self.look_again(point.ifindex));
                self.unread.fdb.extend(points);
            }
            Query::NeighbourRows(points) => {
                points.iter().for_each(|(ifindex, _)| self.look_again(*ifindex));
                self.unread.neighbours.extend(points);
            }
        }
        let salt = stable_hash(self.config.name.as_str().as_bytes());
        let retry = self.unread.retry.get_or_insert_with(|| Retry::new(FIRST_PAUSE, LAST_PAUSE, salt));
        // One failure may be a race with a foreign change, and the next look tells; more are spaced out.
        let raced = gone && retry.attempts() == 0;
        let pause = retry.delay();
        if !raced {
            self.unread.paused_until = Some(now + pause);
            self.notes.push(Note::ReadFailed { message: failure.message });
            if gone {
                self.unread.netns.get_or_insert(ReadCause::Foreign);
            }
        }
    }

    pub(super) fn look_again(&mut self, ifindex: u32) {
        self.unread.link(LinkRef::Index(ifindex), ReadCause::Foreign);
    }

    fn observe_netns(&mut self, state: &NetnsState, cause: ReadCause, now: Time) {
        let new = match state {
            NetnsState::Absent => Netns::Absent,
            NetnsState::Ours(id) => Netns::Ours(*id),
            NetnsState::Foreign => Netns::Foreign,
        };
        let old = std::mem::replace(&mut self.netns, new);
        if old == new {
            if new == Netns::Foreign && self.spec.is_some() {
                self.netns_is_foreign(now);
            }
            return;
        }
        if matches!(old, Netns::Ours(_)) {
            self.lose_namespace();
            if cause == ReadCause::Foreign {
                self.drift.suspect(Key::Netns);
            }
        }
        self.unread.forget_namespace();
        match new {
            Netns::Ours(_) => {
                self.troubles.over(&Key::Netns);
                self.unread.links = Some(ReadCause::First);
                self.unread.all_rows = Some(ReadCause::First);
                for id in self.locals.keys() {
                    self.unread.inner(id.clone(), ReadCause::First);
                }
            }
            Netns::Foreign if self.spec.is_some() => self.netns_is_foreign(now),
            _ => {}
        }
    }

    fn netns_is_foreign(&mut self, now: Time) {
        let path = self.config.netns.display();
        let failure = Failure::new(FailureKind::Exists, format!("{path} is not a namespace of this instance"));
        self.troubles.failed(&Key::Netns, failure, now);
    }

    /// The namespace is gone with all that was in it, the endpoints' ends of its veth pairs included.
    pub(super) fn lose_namespace(&mut self) {
        let links: Vec<LinkId> = self.links.observed_in(..);
        for id in &links {
            self.observe_gone(id);
        }
        self.by_index.clear();
        self.refresh_links();
    }
}
