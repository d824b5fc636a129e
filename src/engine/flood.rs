//! The flood list: to which VTEPs frames go that are for everyone, or for nobody known. A network that asks for it has one
//! row of the all-zero address per VTEP behind which there are endpoints; any other has none.
//!
//! **Invariant:** a unicast row moves in place (`an_endpoint_that_moves_is_one_replace_of_its_row`), also one that several endpoints share
//! (`a_row_that_two_endpoints_share_stays_while_either_does_and_moves_with_one_replace`), and a flood list has the new row before it loses
//! the old one (`hundreds_of_vteps_that_change_have_their_new_rows_before_the_old_ones_go`).
//!
//! **Invariant:** without `flood` nothing is flooded (`flooding_is_switched_on_and_off_and_without_it_nothing_leaks`), and who adds to the
//! list is undone (`what_somebody_adds_to_the_flood_list_of_a_network_that_does_not_flood_goes`).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{
    delta::Cause,
    interface::{Action, Op},
    key::{Family, Key, LinkId, NeighbourKey, TunnelKey},
    network::Network,
    plan::{Plan, Planned},
    reads::ReadCause,
    routes::routed,
    tables::TunnelSeen,
};
use crate::{
    desired::{EndpointSpec, NetworkSpec, Segment},
    model::{Mac, Vni},
};

/// Whether the bridge, which routes to the address, could not resolve it: without proxy its question goes to the other host, but all
/// bridges of a segment have one MAC address, and the one over there takes the answer.
fn cannot_resolve(spec: &NetworkSpec, vni: Vni, ip: IpAddr) -> bool {
    let floods = spec.segment(vni).and_then(|segment| segment.tunnel).is_some_and(|tunnel| tunnel.flood);
    floods && routed(spec, Family::of(ip))
}

impl Network {
    /// Counts an endpoint as behind its VTEP, or no longer; the VTEP where its row comes or goes with that.
    pub(super) fn count_vtep(&mut self, endpoint: &EndpointSpec, there: bool) -> Option<IpAddr> {
        let EndpointSpec::Remote(remote) = endpoint else { return None };
        let count = self.desired.vteps.entry(remote.vtep).or_default();
        let before = *count;
        *count = if there { before + 1 } else { before.saturating_sub(1) };
        let after = *count;
        if after == 0 {
            self.desired.vteps.remove(&remote.vtep);
        }
        ((before == 0) != (after == 0)).then_some(remote.vtep)
    }

    /// Sets what the bridge knows of a remote endpoint by itself: nothing, unless the network floods and is routed.
    pub(super) fn want_on_bridge(&mut self, vni: Vni, ip: IpAddr, mac: Mac, there: bool) {
        let wanted = there && self.desired.spec.as_ref().is_some_and(|spec| cannot_resolve(spec, vni, ip));
        self.want_neighbour(NeighbourKey { vni, on_bridge: true, ip }, mac, wanted);
    }

    /// The same for all endpoints, where the network came to flood or to be routed, or no longer does.
    pub(super) fn refresh_bridges_neighbours(&mut self, before: Option<&NetworkSpec>) {
        let how = |spec: Option<&NetworkSpec>| -> BTreeMap<Vni, [bool; 2]> {
            let of = |spec: &NetworkSpec, segment: &Segment| {
                let floods = segment.tunnel.is_some_and(|tunnel| tunnel.flood);
                (segment.vni, Family::ALL.map(|family| floods && routed(spec, family)))
            };
            spec.into_iter().flat_map(|spec| spec.segments.iter().map(move |segment| of(spec, segment))).collect()
        };
        if how(before) == how(self.desired.spec.as_deref()) {
            return;
        }
        let remotes = self.desired.endpoints.iter().filter_map(|(_, endpoint)| match endpoint {
            EndpointSpec::Remote(remote) => Some((remote.vni, remote.mac, remote.ips)),
            _ => None,
        });
        for (vni, mac, ips) in remotes.collect::<Vec<_>>() {
            ips.into_iter().for_each(|ip| self.want_on_bridge(vni, ip, mac, true));
        }
    }

    /// Sets the desired rows of these VTEPs in every segment: a host of the network has all of them.
    pub(super) fn refresh_flood(&mut self, vteps: &BTreeSet<IpAddr>) {
        let Some(spec) = self.desired.spec.clone() else { return };
        for segment in &spec.segments {
            for vtep in vteps {
                self.want_flood_row(segment.vni, *vtep);
            }
        }
    }

    /// Sets all desired rows of a segment.
    pub(super) fn refresh_flood_list(&mut self, vni: Vni) {
        let desired = self.tables.flood_rows.desired_in(TunnelKey::all_of(vni)).into_iter().filter_map(|key| key.dst);
        let vteps: BTreeSet<IpAddr> = desired.chain(self.desired.vteps.keys().copied()).collect();
        for vtep in vteps {
            self.want_flood_row(vni, vtep);
        }
    }

    fn want_flood_row(&mut self, vni: Vni, vtep: IpAddr) {
        let tunnel =
            self.desired.spec.as_ref().and_then(|spec| spec.segment(vni)?.tunnel).filter(|tunnel| tunnel.flood);
        // What this host floods it has itself.
        let wanted = tunnel.is_some_and(|tunnel| tunnel.local != vtep) && self.desired.vteps.contains_key(&vtep);
        let key = TunnelKey { vni, mac: Mac::ZERO, dst: Some(vtep) };
        if self.tables.flood_rows.set_desired(&key, wanted.then_some(vtep)) {
            self.episodes.desired_moved(&Key::Tunnel(key));
        }
    }

    /// What a dump does not show of a flood list. A look-up shows only the first destination (vxlan_fdb_get,
    /// drivers/net/vxlan), and a dump may skip rows while others are deleted: a row is gone when two dumps in a row miss it.
    pub(super) fn observe_flood_list(&mut self, ifindex: u32, vni: Vni, shown: &BTreeSet<TunnelKey>, cause: ReadCause) {
        for key in shown {
            self.reads.doubted.remove(key);
        }
        let known = self.tables.flood_rows.observed_in(TunnelKey::all_of(vni));
        for key in known.into_iter().filter(|key| !shown.contains(key)) {
            if self.reads.doubted.insert(key) {
                self.reads.fdb_dump(ifindex, cause);
                continue;
            }
            self.reads.doubted.remove(&key);
            if self.tables.flood_rows.set_observed(&key, None, cause.into()) && cause == ReadCause::Foreign {
                self.episodes.suspect(Key::Tunnel(key));
            }
        }
        self.look_at_links_of_suspects(BTreeSet::from([ifindex]));
    }

    /// All rows of a flood list are gone: these.
    pub(super) fn lose_flood_list(&mut self, vni: Vni, cause: Cause) -> Vec<TunnelKey> {
        let lost = self.tables.lose_flood_rows(vni, cause);
        for key in &lost {
            self.reads.doubted.remove(key);
        }
        lost
    }
}

impl Plan<'_> {
    /// Missing rows before those that should not be there: an endpoint that moves is at no time without one.
    pub(super) fn flood_ops(&self, of: impl Fn(&LinkId) -> bool) -> impl Iterator<Item = Planned> {
        let missing = |key: &&TunnelKey| self.tables.flood_rows.observed_of(key).is_none();
        let missing = self.tables.flood_rows.differing().filter(missing);
        let others = self.tables.flood_rows.differing().filter(|key| self.tables.flood_rows.observed_of(key).is_some());
        let mut anew = BTreeSet::new();
        missing.chain(others).filter_map(move |key| {
            let sides = self.tables.flood_rows.get(key)?;
            let id = Some(LinkId::Vxlan(key.vni)).filter(&of)?;
            self.tables.links.desired_of(&id)?;
            let ifindex = self.tables.links.observed_of(&id)?.ifindex;
            let mac = key.mac;
            let (action, op) = match (sides.desired, sides.observed) {
                (Some(dst), None) => (Action::Add, Op::PutFdb { ifindex, mac, dst }),
                (None, Some(TunnelSeen { plain: true, .. })) => {
                    (Action::Delete, Op::DeleteFdb { ifindex, mac, dst: key.dst })
                }
                // A row with a port, VNI or interface of its own is found only by these (vxlan_fdb_find_rdst): the list is
                // made anew without it, once.
                _ if anew.insert(key.vni) => (Action::Delete, Op::DeleteFdb { ifindex, mac, dst: None }),
                _ => return None,
            };
            self.planned(Key::Tunnel(*key), action, sides.cause, op)
        })
    }
}
