//! `vtepd plan`: what the agent of this host would do now, without doing it. The store-wide stage and the engines are the agent's
//! own; the kernel is a [`Rehearsal`].

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::Path,
    time::Duration,
};

use super::{
    Error, Settings,
    network::Shared,
    reading::{ReadStore, read_store},
    registration,
    rehearsal::Rehearsal,
};
use crate::{
    desired::{Outside, StoreConfig, Update},
    engine::{Action, Blocked, Kind, Note, Op, Time, Turn, turn},
    etcd::Etcd,
    kernel,
    model::{Mac, Name},
    schema::Key,
};

/// MTU of an underlay that no link of this host has the address of.
const DEFAULT_MTU: u32 = 1500;
/// How far ahead the engine's own pauses are followed: retries, and what it leaves alone for a moment.
const AHEAD: Duration = Duration::from_secs(5);
/// So many effects are followed at most; a network of a million rows needs some ten thousand.
const EFFECTS: usize = 1_000_000;

/// One operation that would be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedOp {
    /// The kind of object, as in metrics.
    pub kind: &'static str,
    /// `add`, `replace` or `delete`, as in metrics.
    pub action: &'static str,
    /// The command that does the same.
    pub words: String,
}

/// What would be done for one network.
#[derive(Clone, Debug)]
pub struct NetworkPlan {
    /// What the network is called.
    pub network: Name,
    /// The operations, in order.
    pub ops: Vec<PlannedOp>,
    /// What cannot be made.
    pub blocked: Vec<Blocked>,
    /// All would be as desired then.
    pub in_sync: bool,
}

/// The MTU of the link with this address, as the agent takes it.
///
/// # Errors
/// The kernel refuses to tell.
fn underlay_mtu(vtep: IpAddr) -> Result<u32, Error> {
    Ok(kernel::underlay_link(vtep)?.map_or(DEFAULT_MTU, |link| link.mtu))
}

/// Reads the store as the agent with these settings would, as if these were written too, each a whole key with its value or without
/// one to delete it. A node that has not registered is taken to do so.
///
/// # Errors
/// etcd does not answer, or no VTEP address can be found for this node.
pub async fn read_for_plan(
    settings: &Settings,
    writes: &[(String, Option<String>)],
) -> Result<ReadStore, Box<dyn std::error::Error>> {
    let etcd = settings.etcd();
    let config = |vtep| StoreConfig {
        prefix: settings.prefix.clone(),
        docker_prefix: settings.docker_prefix.clone(),
        node: settings.node.clone(),
        vtep,
        host_endpoints: settings.host_endpoints,
        underlay_mtu: DEFAULT_MTU,
        max_removal: 50,
    };
    let mut read = read_store(&etcd, config(settings.vtep)).await?;
    if read.store.vtep().is_none() {
        let found = registration::look(settings, &Etcd::new(etcd.clone())).await?;
        read = read_store(&etcd, config(Some(found.vtep))).await?;
    }
    let key = Key::Node(settings.node.clone()).under(&settings.prefix);
    let mut writes = writes.to_vec();
    if let Some(vtep) = read.store.vtep() {
        if !read.revisions.contains_key(key.as_bytes()) && !writes.iter().any(|(written, _)| *written == key) {
            writes.push((key, Some(serde_json::json!({ "vtep": vtep }).to_string())));
        }
        read.underlay_mtu(underlay_mtu(vtep)?);
    }
    if !writes.is_empty() {
        read.with(&writes);
    }
    Ok(read)
}

/// What the agent with these settings would do now, network by network; the host's own objects for the way outside are the network
/// `(host)`. Nothing is changed.
///
/// # Errors
/// The namespaces of this host cannot be listed.
pub fn plan(settings: &Settings, read: &ReadStore) -> Result<Vec<NetworkPlan>, Error> {
    let shared = settings.owner.shared(settings.netns_roots.clone(), settings.resync, settings.adopt_gateway_bridge)?;
    let (store, mut updates) = (&read.store, read.updates.clone());
    let mut outside = Outside::new(settings.with_outside.then(|| settings.owner.outside.clone()));
    let host = outside.follow(&updates, &store.vxlan_ports());
    updates.extend(host.map(|update| (Name::host(), update)));
    updates.retain(|_, update| matches!(update.spec, Some(Some(_))));
    // What earlier agents left, and nothing desires.
    let owned = kernel::owned(Path::new(&shared.netns_dir), &shared.instance)?.networks;
    let nothing = || Update { revision: store.revision(), spec: Some(None), endpoints: Vec::new() };
    for name in owned.into_iter().chain([Name::host()]) {
        updates.entry(name).or_insert_with(nothing);
    }
    let mut held: BTreeSet<Name> = store.held().into_keys().collect();
    if !held.is_empty() {
        held.insert(Name::host());
    }
    let plans = updates.into_iter().map(|(name, update)| {
        let plan = rehearse(&shared, &name, update, held.contains(&name));
        NetworkPlan { network: if name == Name::host() { name } else { store.shown_name(&name) }, ..plan }
    });
    Ok(plans.collect())
}

/// Runs one network's engine against a kernel that is only read, until it has nothing left to do.
fn rehearse(shared: &Shared, name: &Name, update: Update, hold: bool) -> NetworkPlan {
    let mut kernel = Rehearsal::new(shared.kernel_of(name));
    let mut engine = shared.engine_of(name);
    let clock = Cell::new(Duration::ZERO);
    let now = || Time::from_origin(clock.get());
    engine.network().hold_removals(hold);
    engine.update(update, now());
    let netns = kernel::netns_file_name(name);
    let netns = (*name != Name::host()).then_some(netns.as_str());
    let (mut ops, mut links) = (Vec::new(), BTreeMap::new());
    for _ in 0..EFFECTS {
        let turned = turn(&mut *engine, &mut kernel, now, 1);
        let notes = engine.take_notes();
        let sent = kernel.take_ops();
        if !sent.is_empty() {
            links.extend(kernel.link_names());
            let inner = kernel.inner_names();
            let names = super::rehearsal::Names { netns, links: &links, inner: &inner };
            ops.extend(told(&notes, &sent, |op| names.say(op)));
        }
        match turned {
            Turn::More => {}
            Turn::Gone => break,
            Turn::Rest(until) if engine.summary().in_sync || until.since(now()) > AHEAD || clock.get() > AHEAD => break,
            Turn::Rest(until) => clock.set(clock.get() + until.since(now()).max(Duration::from_millis(1))),
        }
        // What is deleted next has its name from before.
        if links.is_empty() && turned == Turn::More {
            links.extend(kernel.link_names());
        }
    }
    let summary = engine.summary();
    NetworkPlan { network: name.clone(), ops, blocked: summary.blocked, in_sync: summary.in_sync }
}

/// Each operation with what the engine counts it as. The engine tells numbers by kind and action: they add up, and of operations of
/// one kind that are sent together each gets the action that is the likeliest among those left.
fn told(notes: &[Note], sent: &[Op], say: impl Fn(&Op) -> String) -> Vec<PlannedOp> {
    let mut left: BTreeMap<(Kind, Action), u64> = BTreeMap::new();
    for note in notes {
        if let Note::Ops { kind, action, count, .. } = note {
            *left.entry((*kind, *action)).or_default() += count;
        }
    }
    let op = |op: &Op| {
        let (kind, likely) = kind_of(op);
        let [first, ..] = likely;
        let found = likely.into_iter().find(|action| left.get(&(kind, *action)).is_some_and(|count| *count > 0));
        let action = found.unwrap_or(first);
        if let Some(count) = left.get_mut(&(kind, action)) {
            *count = count.saturating_sub(1);
        }
        PlannedOp { kind: kind.as_str(), action: action.as_str(), words: say(op) }
    };
    sent.iter().map(op).collect()
}

/// The kind of object that an operation is about, and what it may be called, the likeliest first.
fn kind_of(op: &Op) -> (Kind, [Action; 3]) {
    const ADD: [Action; 3] = [Action::Add, Action::Replace, Action::Delete];
    const REPLACE: [Action; 3] = [Action::Replace, Action::Add, Action::Delete];
    const DELETE: [Action; 3] = [Action::Delete, Action::Replace, Action::Add];
    match op {
        Op::CreateNetns => (Kind::Netns, ADD),
        Op::DeleteNetns => (Kind::Netns, DELETE),
        Op::AddLink(_) => (Kind::Link, ADD),
        Op::SetLink { .. } => (Kind::Link, REPLACE),
        Op::ReclaimVni { .. } | Op::DeleteLink { .. } => (Kind::Link, DELETE),
        Op::RestoreRoutes { .. } => (Kind::Address, REPLACE),
        Op::AddAddress { .. } => (Kind::Address, ADD),
        Op::DeleteAddress { .. } => (Kind::Address, DELETE),
        Op::SetForwarding { .. } | Op::ReplaceRoute { .. } => (Kind::Route, REPLACE),
        Op::AddRoute { .. } => (Kind::Route, ADD),
        Op::DeleteRoute { .. } => (Kind::Route, DELETE),
        Op::PutFdb { mac, .. } if *mac == Mac::ZERO => (Kind::Flood, ADD),
        Op::DeleteFdb { mac, .. } if *mac == Mac::ZERO => (Kind::Flood, DELETE),
        Op::PutFdb { .. } | Op::PutBridgeRow { .. } => (Kind::Fdb, REPLACE),
        Op::DeleteFdb { .. } | Op::DeleteBridgeRow { .. } => (Kind::Fdb, DELETE),
        Op::PutNeighbour { .. } => (Kind::Neighbour, REPLACE),
        Op::DeleteNeighbour { .. } => (Kind::Neighbour, DELETE),
        Op::ChangeRules(_) => (Kind::Nat, REPLACE),
    }
}
