//! `vtepd cleanup`: takes down everything that this instance owns on this host.

use std::{path::Path, time::Duration};

use tracing::warn;

use super::{Error, Owner, lock::Lock, network::Shared};
use crate::{
    desired::Update,
    engine::{Turn, turn},
    kernel,
    model::Name,
};

/// How long one network may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Takes every network of the instance down, one at a time; gives those that are gone, and those that are not.
///
/// # Errors
/// An agent of this instance runs, or the namespaces cannot be listed.
pub fn cleanup(owner: &Owner) -> Result<(Vec<Name>, Vec<Name>), Error> {
    let _lock = Lock::take(&owner.run_dir, &owner.instance)?;
    // Of somebody else's bridge only what we put on it goes, so that it may well be taken for ours.
    let shared = owner.shared(Vec::new(), PATIENCE, true)?;
    let owned = kernel::owned(Path::new(kernel::DEFAULT_NETNS_DIR), &owner.instance)?;
    for unreadable in &owned.unreadable {
        warn!("cannot tell whose this is: {unreadable:?}");
    }
    // What the host has goes first: its ports lead into the same containers.
    let all = [Name::host()].into_iter().chain(owned.networks);
    let (gone, left): (Vec<_>, Vec<_>) = all.partition(|network| take_down(network, &shared));
    // Of the host it is only worth a word what could not be removed.
    Ok((gone.into_iter().filter(|network| *network != Name::host()).collect(), left))
}

/// Runs a network's engine, with nothing desired, until nothing is left.
fn take_down(network: &Name, shared: &Shared) -> bool {
    let mut kernel = shared.kernel_of(network);
    let mut engine = shared.engine_of(network);
    let start = shared.now();
    engine.update(Update { revision: 0, spec: Some(None), endpoints: Vec::new() }, start);
    while shared.now().since(start) < PATIENCE {
        match turn(&mut *engine, &mut kernel, || shared.now(), 1000) {
            Turn::Gone => return true,
            Turn::More => {}
            Turn::Rest(until) => std::thread::sleep(until.since(shared.now()).min(Duration::from_millis(100))),
        }
    }
    for blocked in engine.summary().blocked {
        warn!(%network, object = blocked.object, reason = blocked.message, "cannot be removed");
    }
    false
}
