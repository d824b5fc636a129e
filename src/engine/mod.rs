//! The pure state machine of one network, sans-I/O. It is told what should be (updates), what is (answers to its own queries)
//! and what may have changed (events); it says what to read next and which operations to send. It has no clock, no
//! randomness and no hash order: the same inputs give the same outputs, which is what makes the simulation possible.
//!
//! A round: events mark what to read ([`Network::event`]); everything marked is read ([`Network::answered`]); what then differs
//! without a change of desired is judged as drift; the differences become operations; acknowledgements move the observed
//! side ([`Network::applied`]). [`turn`] runs rounds against a [`Kernel`] until there is nothing left to do.
//!
//! **Invariant:** whatever happens, at rest the kernel is what the store says, nothing foreign was touched, and then no operation is sent
//! (`whatever_happens_every_kernel_ends_as_the_store_says_and_is_then_left_alone`); no drift is counted where nobody else wrote
//! (`without_foreign_writers_no_drift_is_ever_counted`).
//!
//! **Invariant:** a correct kernel gets no operation (`an_agent_without_memory_sends_nothing_to_a_correct_kernel`,
//! `a_network_is_built_as_the_design_says_and_then_left_alone`).
//!
//! **Invariant:** nothing is planned on what was never read (`an_agent_without_memory_touches_no_container_that_it_could_not_look_at`), and
//! a read that fails holds up nothing else (`a_read_that_never_succeeds_is_spaced_out_said_and_holds_up_nothing_else`).
//!
//! **Invariant:** nothing is touched before the desired side is known (`Network::next` rests until `update` was called).

mod barriers;
mod chains;
mod compact;
mod config;
mod delta;
mod device;
mod drift;
mod endpoints;
mod episode;
mod events;
mod flood;
mod gateway;
mod inner;
mod interface;
mod key;
mod links;
mod local;
mod network;
mod object;
mod observe;
mod plan;
mod reads;
mod renames;
mod report;
mod results;
mod routes;
mod rows;
mod setting;
mod summary;
mod tables;
mod time;
mod update;
mod view;
mod walks;

use crate::desired::Update;

pub use config::{Config, Home};
pub use delta::{Cause, Differences, Fits, Sides, Table};
pub use device::{KindWant, LinkWant, doomed_group, gateway_port_mac, gateway_port_name, outer_name};
pub use gateway::Gateway;
pub use interface::{
    Action, Answer, Event, Failure, FailureKind, FdbPoint, Kernel, LinkChange, LinkRef, NewLink, Op, Place, Query,
};
pub use key::{BridgeRowKey, Family, Key, Kind, LinkId, NeighbourKey, TunnelKey};
pub use network::{Effect, Network};
pub use object::{
    ADDRESS_PROTOCOL, Address, FdbRow, Forwarding, InnerAt, InnerLink, InnerState, Link, LinkKind, NEIGHBOUR_PROTOCOL,
    Neighbour, NetnsId, NetnsState, Port, ROUTE_PROTOCOL, RouteRow, VxlanAttributes,
};
pub use report::{Blocked, DriftReason, Note, Summary};
pub use setting::{Of, Setting};
pub use time::Time;

/// What is left when a turn ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Nothing to do until an event, a change, or this moment.
    Rest(Time),
    /// The network is not desired here and nothing of it is left.
    Gone,
    /// There is more to do; the caller had other things to look at first.
    More,
}

/// An engine: that of a network, or one that has a stage before it.
pub trait Reconciler: Send {
    /// The engine proper.
    fn network(&mut self) -> &mut Network;

    /// See [`Network::update`].
    fn update(&mut self, update: Update, now: Time);

    /// See [`Network::next`].
    fn next(&mut self, now: Time) -> Effect;

    /// See [`Network::answered`].
    fn answered(&mut self, answer: Result<Answer, Failure>, now: Time);

    /// See [`Network::summary`].
    fn summary(&self) -> Summary;

    /// See [`Network::take_notes`].
    fn take_notes(&mut self) -> Vec<Note>;
}

impl Reconciler for Network {
    fn network(&mut self) -> &mut Network {
        self
    }

    fn update(&mut self, update: Update, now: Time) {
        Self::update(self, update, now);
    }

    fn next(&mut self, now: Time) -> Effect {
        Self::next(self, now)
    }

    fn answered(&mut self, answer: Result<Answer, Failure>, now: Time) {
        Self::answered(self, answer, now);
    }

    fn summary(&self) -> Summary {
        Self::summary(self)
    }

    fn take_notes(&mut self) -> Vec<Note> {
        Self::take_notes(self)
    }
}

/// Runs at most `rounds` effects of an engine against a kernel. Events are taken in before each decision.
pub fn turn(engine: &mut dyn Reconciler, kernel: &mut impl Kernel, now: impl Fn() -> Time, rounds: usize) -> Turn {
    for _ in 0..rounds {
        match step(engine, kernel, &now, |_| true) {
            Step::Done | Step::Withheld => {}
            Step::Rest(until) => return Turn::Rest(until),
            Step::Gone => return Turn::Gone,
        }
    }
    Turn::More
}

/// What came of one effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It was run; there may be more to do.
    Done,
    /// It was to apply operations that may not be applied now, and was not run. The next step decides anew.
    Withheld,
    /// Nothing to do until an event, a change, or this moment.
    Rest(Time),
    /// The network is not desired here and nothing of it is left.
    Gone,
}

/// Runs one effect of an engine against a kernel, after taking in the events. `may` says whether operations may be applied now.
pub fn step(
    engine: &mut dyn Reconciler,
    kernel: &mut impl Kernel,
    now: impl Fn() -> Time,
    may: impl FnOnce(&[Op]) -> bool,
) -> Step {
    for event in kernel.events() {
        engine.network().event(event, now());
    }
    match engine.next(now()) {
        Effect::Read(query) => {
            let answer = kernel.read(&query);
            engine.answered(answer, now());
        }
        Effect::Apply(ops) if !may(&ops) => return Step::Withheld,
        Effect::Apply(ops) => {
            let results = kernel.apply(&ops);
            engine.network().applied(results, now());
        }
        Effect::Rest(until) => return Step::Rest(until),
        Effect::Gone => return Step::Gone,
    }
    Step::Done
}
