//! Answers of the kernel: they move the observed side of the tables.

use super::{
    config::Home,
    delta::Cause,
    interface::{Answer, Failure, FailureKind, LinkRef, Query},
    key::{Key, LinkId},
    network::Network,
    object::NetnsState,
    reads::ReadCause,
    report::Note,
    tables::Netns,
    time::Time,
};
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
        let Some((query, cause)) = self.reads.asked.take() else { return };
        if answer.is_ok() {
            self.reads.answered(&query);
        }
        match (query, answer) {
            (query, Err(failure)) => self.read_failed(query, cause, failure, now),
            (Query::Netns, Ok(Answer::Netns(state))) => self.observe_netns(&state, cause, now),
            (Query::Links, Ok(Answer::Links(links, addresses))) => self.observe_all_links(&links, &addresses, cause),
            (Query::Link(asked), Ok(Answer::Links(links, addresses))) => {
                self.observe_link(&asked, links.first(), &addresses, cause);
            }
            (Query::Forwarding, Ok(Answer::Forwarding(seen))) => self.observe_forwarding(&seen, cause),
            (Query::Inner(_), Ok(Answer::Inner(state))) => self.observe_inner(state, cause, now),
            (Query::FdbDump(ifindex), Ok(Answer::Fdb(rows))) => self.observe_fdb_dump(ifindex, &rows, cause),
            (Query::FdbNewest { ifindex, most }, Ok(Answer::Fdb(rows))) => {
                self.observe_newest(ifindex, most, &rows, cause);
            }
            (Query::FdbRows(points), Ok(Answer::Fdb(rows))) => self.observe_fdb_rows(&points, &rows, cause),
            (Query::NeighbourDump(ifindex), Ok(Answer::Neighbours(rows))) => {
                self.observe_neighbour_dump(ifindex, &rows, cause);
            }
            (Query::NeighbourRows(points), Ok(Answer::Neighbours(rows))) => {
                self.observe_neighbour_rows(&points, &rows, cause);
            }
            (Query::Barriers, Ok(Answer::Barriers(tables))) => self.observe_barriers(&tables),
            (Query::Rules(table), Ok(Answer::Rules(ruleset))) => self.observe_rules(&table, ruleset, cause),
            (query, Ok(_)) => {
                let failure = Failure::new(FailureKind::Torn, "the answer does not belong to the question");
                self.read_failed(query, cause, failure, now);
            }
        }
    }

    /// Nothing is known: the same is asked again, after a pause, and everything else meanwhile.
    fn read_failed(&mut self, query: Query, cause: ReadCause, failure: Failure, now: Time) {
        match &query {
            Query::Inner(_) => {
                // One endpoint's namespace that cannot be read holds up nothing else.
                if let Some(id) = self.reads.asked_inner.take()
                    && let Some(local) = self.locals.by_id.get_mut(&id)
                {
                    local.unreadable = true;
                    let retry = self.fail(&Key::Link(LinkId::Inner(id.clone())), failure, now);
                    self.reads.looks.insert(id, retry);
                }
                return;
            }
            // Rows of a link that is gone went with it: its absence has to be seen, and it is read first.
            Query::FdbDump(ifindex) | Query::FdbNewest { ifindex, .. } | Query::NeighbourDump(ifindex) => {
                self.look_again(*ifindex);
            }
            Query::FdbRows(points) => points.iter().for_each(|point| self.look_again(point.ifindex)),
            Query::NeighbourRows(points) => points.iter().for_each(|(ifindex, _)| self.look_again(*ifindex)),
            Query::Netns | Query::Links | Query::Link(_) | Query::Forwarding | Query::Barriers | Query::Rules(_) => {}
        }
        let gone = failure.kind == FailureKind::NotFound;
        let message = failure.message.clone();
        if !self.reads.defer(query, cause, failure, now).is_zero() {
            self.report.notes.push(Note::ReadFailed { message });
            if gone {
                self.reads.netns.get_or_insert(ReadCause::Foreign);
            }
        }
    }

    pub(super) fn look_again(&mut self, ifindex: u32) {
        self.reads.link(LinkRef::Index(ifindex), ReadCause::Foreign);
    }

    fn observe_netns(&mut self, state: &NetnsState, cause: ReadCause, now: Time) {
        let new = match state {
            NetnsState::Absent => Netns::Absent,
            NetnsState::Ours(id) => Netns::Ours(*id),
            NetnsState::Foreign => Netns::Foreign,
        };
        let old = std::mem::replace(&mut self.tables.netns, new);
        if old == new {
            if new == Netns::Foreign && self.desired.spec.is_some() {
                self.netns_is_foreign(now);
            }
            return;
        }
        if matches!(old, Netns::Ours(_)) {
            self.lose_namespace();
            if cause == ReadCause::Foreign {
                self.episodes.suspect(Key::Netns);
            }
        }
        self.reads.forget_namespace();
        match new {
            Netns::Ours(_) => {
                self.episodes.works(&Key::Netns);
                self.reads.links = Some(ReadCause::First);
                self.reads.forwarding = Some(ReadCause::First);
                self.reads.barriers = self.config.home.is_host();
                self.reads.all_rows = Some(ReadCause::First);
                self.read_all_rules(ReadCause::First);
                for id in self.locals.by_id.keys() {
                    self.reads.inner(id.clone(), ReadCause::First);
                }
            }
            Netns::Foreign if self.desired.spec.is_some() => self.netns_is_foreign(now),
            _ => {}
        }
    }

    fn netns_is_foreign(&mut self, now: Time) {
        let Home::Overlay(path) = &self.config.home else { return };
        let message = format!("{} is not a namespace of this instance", path.display());
        let failure = Failure::new(FailureKind::Exists, message);
        self.fail(&Key::Netns, failure, now);
    }

    /// The namespace is gone with all that was in it, the endpoints' ends of its veth pairs included.
    pub(super) fn lose_namespace(&mut self) {
        let links: Vec<LinkId> = self.tables.links.observed_in(..);
        for id in &links {
            self.observe_gone(id, Cause::Repair);
        }
        self.lose_rules();
        self.tables.by_index.clear();
        self.observe_forwarding(&[], ReadCause::Own);
        self.refresh_links();
    }
}
