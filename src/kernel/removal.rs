//! Several links of one namespace removed at the price of one.
//!
//! Each removal waits until all readers of the kernel's lists have gone on (`rcu_barrier` in `netdev_run_todo`, net/core/dev.c): some 10 to
//! 20 ms, in which nothing happens. The kernel removes all links of a group at once and waits once (`rtnl_group_dellink`). So those that
//! are to go are first put into a group of their own, which an agent without memory knows as well ([`doomed_group`]).

use std::collections::BTreeSet;

use nix::errno::Errno;

use super::{
    decode, encode,
    error::Error,
    socket::{MOST_MESSAGES, RouteSocket},
};
use crate::engine::doomed_group;

/// So many links go at once: the kernel holds the lock of all netlink writers meanwhile, for up to a millisecond each.
pub(super) const MOST: usize = 24;

/// Removes these links; one that is not there is removed.
pub(super) fn delete(socket: &mut RouteSocket, ifindexes: &[u32]) -> Vec<Result<(), Error>> {
    if let Some(group) = together(socket, ifindexes)
        && socket.call_one(encode::delete_group(group)).is_ok()
    {
        return ifindexes.iter().map(|_| Ok(())).collect();
    }
    // Each has its own result; those that went after all are gone.
    ifindexes.iter().map(|ifindex| one(socket, *ifindex)).collect()
}

/// Removes one link.
fn one(socket: &mut RouteSocket, ifindex: u32) -> Result<(), Error> {
    match socket.call_one(encode::delete_link(ifindex)) {
        Err(error) if error.errno == Errno::ENODEV => Ok(()),
        other => other.map(drop),
    }
}

/// Puts the links into the group of those that are to go. `None` where that cannot be, or somebody else's link is in it.
fn together(socket: &mut RouteSocket, ifindexes: &[u32]) -> Option<u32> {
    let first = ifindexes.first().filter(|_| ifindexes.len() > 1)?;
    let wanted: BTreeSet<u32> = ifindexes.iter().copied().collect();
    let mut groups = Vec::new();
    socket.dump(encode::dump_links(), |_, body| groups.extend(decode::group(body))).ok()?;
    let group_of = |ifindex: u32| groups.iter().find(|(of, _)| *of == ifindex).map(|(_, group)| *group);
    let own = group_of(*first)?;
    let doomed = doomed_group(own);
    // Links of several groups are not ours alone.
    let alike = |(ifindex, group): &(u32, u32)| {
        if wanted.contains(ifindex) { *group == own || *group == doomed } else { *group != doomed }
    };
    if own == 0 || !groups.iter().all(alike) {
        return None;
    }
    let requests: Vec<_> = ifindexes.iter().map(|ifindex| encode::set_group(*ifindex, doomed)).collect();
    let results: Vec<_> = requests.chunks(MOST_MESSAGES).flat_map(|some| socket.call(some)).collect();
    let set = |result: &Result<_, Error>| match result {
        Ok(_) => true,
        // It is gone.
        Err(error) => error.errno == Errno::ENODEV && !error.torn,
    };
    results.iter().all(set).then_some(doomed)
}
