//! Answers of the kernel: they move the observed side of the tables.

use std::{collections::BTreeSet, net::Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{
    delta::Cause,
    key::{BridgeRowKey, Key, LinkId, NeighbourKey, TunnelKey},
    network::{BridgeRowSeen, InnerStatus, Local, NeighbourSeen, Netns, Network, TunnelSeen},
    object::{Address, FdbRow, InnerState, Link, LinkKind, Neighbour, NetnsState},
    report::Note,
    seam::{Answer, Failure, FailureKind, FdbPoint, LinkRef, Query},
    time::Time,
    trouble::{FIRST_RETRY, LAST_RETRY},
    unread::ReadCause,
    want::outer_name,
};
use crate::{
    model::{EndpointId, Vni},
    retry::Retry,
};

/// A file at a path may be a namespace that is not mounted yet: it is looked at again after 1, 2, 4 … 512 ms.
const LOOKS: u32 = 10;

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
            self.unread.failures = 0;
        }
    }

    /// Nothing is known: the same is asked again, after a pause unless the link was merely gone.
    fn read_failed(&mut self, query: Query, cause: ReadCause, failure: Failure, now: Time) {
        let gone = failure.kind == FailureKind::NotFound;
        match query {
            Query::Netns => self.unread.netns = Some(cause),
            Query::Links => self.unread.links = Some(cause),
            Query::Link(link) => self.unread.link(link, cause),
            Query::Inner(_) => {
                // One endpoint's namespace that cannot be read holds up nothing else.
                if let Some(id) = self.asked_inner.take() {
                    let retry = self.troubles.failed(&Key::Link(LinkId::Inner(id.clone())), failure, now);
                    self.unread.looks.insert(id, retry);
                }
                return;
            }
            // Rows of a link that is gone went with it: the link's absence is what has to be seen.
            Query::FdbDump(ifindex) | Query::NeighbourDump(ifindex) if gone => self.look_again(ifindex),
            Query::FdbDump(ifindex) => {
                self.unread.fdb_dumps.insert(ifindex, cause);
            }
            Query::NeighbourDump(ifindex) => {
                self.unread.neighbour_dumps.insert(ifindex, cause);
            }
            Query::FdbRows(points) if gone => points.iter().for_each(|point| self.look_again(point.ifindex)),
            Query::FdbRows(points) => self.unread.fdb.extend(points),
            Query::NeighbourRows(points) if gone => points.iter().for_each(|(ifindex, _)| self.look_again(*ifindex)),
            Query::NeighbourRows(points) => self.unread.neighbours.extend(points),
        }
        self.unread.failures = self.unread.failures.saturating_add(1);
        // One failure in a row may be a race with a foreign change; more are spaced out.
        if self.unread.failures > 1 {
            let mut retry = Retry::new(FIRST_RETRY / 10, LAST_RETRY / 60, u64::from(self.unread.failures));
            let pause = (1..self.unread.failures.min(12)).fold(FIRST_RETRY / 10, |_, _| retry.delay());
            self.unread.paused_until = Some(now + pause);
            self.notes.push(Note::ReadFailed { message: failure.message });
            if gone {
                self.unread.netns.get_or_insert(ReadCause::Foreign);
            }
        }
    }

    fn look_again(&mut self, ifindex: u32) {
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

    fn observe_all_links(&mut self, links: &[Link], addresses: &[Address], cause: ReadCause) {
        self.number_segments(links);
        let present: BTreeSet<u32> = links.iter().map(|link| link.ifindex).collect();
        let gone: Vec<u32> = self.by_index.keys().filter(|ifindex| !present.contains(ifindex)).copied().collect();
        for ifindex in gone {
            self.observe_link(&LinkRef::Index(ifindex), None, &[], cause);
        }
        for link in links {
            let of_link: Vec<Address> =
                addresses.iter().filter(|address| address.ifindex == link.ifindex).copied().collect();
            self.observe_link(&LinkRef::Index(link.ifindex), Some(link), &of_link, cause);
        }
    }

    /// Gives each segment the number in its devices' names: the one that its VXLAN device has, else the lowest free one.
    fn number_segments(&mut self, links: &[Link]) {
        let Some(spec) = self.spec.clone() else { return };
        self.numbers.retain(|vni, _| spec.segment(*vni).is_some());
        for segment in &spec.segments {
            let vxlan = links.iter().find(|link| is_vxlan_of(link, segment.vni));
            let number = vxlan.and_then(|vxlan| {
                let bridge = links.iter().find(|link| Some(link.ifindex) == vxlan.master);
                let from_vxlan = vxlan.name.strip_prefix("vxlan").and_then(|n| n.parse::<u32>().ok()?.checked_sub(1));
                from_vxlan.or_else(|| bridge?.name.strip_prefix("br")?.parse().ok())
            });
            if let Some(number) = number
                && !self.numbers.values().any(|taken| *taken == number)
            {
                self.numbers.entry(segment.vni).or_insert(number);
            }
        }
        for segment in &spec.segments {
            if !self.numbers.contains_key(&segment.vni) {
                let free = (0..).find(|number| !self.numbers.values().any(|taken| taken == number));
                self.numbers.insert(segment.vni, free.unwrap_or_default());
            }
        }
        self.refresh_links();
    }

    /// Whether there is a segment without a number: the links must be read to give it one.
    pub(super) fn unnumbered(&self) -> bool {
        self.spec.iter().flat_map(|spec| &spec.segments).any(|segment| !self.numbers.contains_key(&segment.vni))
    }

    fn observe_link(&mut self, asked: &LinkRef, link: Option<&Link>, addresses: &[Address], cause: ReadCause) {
        let known = match asked {
            LinkRef::Index(ifindex) => self.by_index.get(ifindex).cloned(),
            LinkRef::Name(_) => None,
        };
        let Some(link) = link else {
            if let Some(id) = known {
                self.suspect_link(&id, cause);
                self.observe_gone(&id);
                self.link_moved(&id);
            }
            return;
        };
        let Some(id) = self.by_index.get(&link.ifindex).cloned().or_else(|| self.classify(link)) else { return };
        let before = self.links.observed_of(&id).cloned();
        // A second device that answers to the same name or VNI is the newer one; the older one has been replaced.
        if before.as_ref().is_some_and(|before| before.ifindex != link.ifindex) {
            self.observe_gone(&id);
        }
        self.by_index.insert(link.ifindex, id.clone());
        let left = self.links.saw(&id, Some(link.clone()), cause.into());
        // A stray with our mark is something that we left behind, not somebody else's doing.
        if left && cause == ReadCause::Foreign && !matches!(id, LinkId::Stray(_)) {
            self.drift.suspect(Key::Link(id.clone()));
        }
        self.lost_rows(&id, before.as_ref(), link);
        self.observe_addresses(&id, addresses, cause);
        let new = before.as_ref().is_none_or(|before| before.ifindex != link.ifindex);
        if new && cause == ReadCause::Foreign {
            // Somebody else made it: nothing is known of its rows.
            self.unread.fdb_dumps.insert(link.ifindex, ReadCause::First);
            self.unread.neighbour_dumps.insert(link.ifindex, ReadCause::First);
        }
        if new || before.is_some_and(|before| before.kind != link.kind) {
            self.link_moved(&id);
        }
    }

    /// A link that was as it should be is about to be found gone.
    fn suspect_link(&mut self, id: &LinkId, cause: ReadCause) {
        if cause == ReadCause::Foreign && !self.links.differs(id) && self.links.observed_of(id).is_some() {
            self.drift.suspect(Key::Link(id.clone()));
        }
    }

    /// Which of our links this is, for an agent that has not seen it before.
    fn classify(&self, link: &Link) -> Option<LinkId> {
        let spec = self.spec.as_ref();
        let id = match &link.kind {
            LinkKind::Vxlan(vxlan) => spec
                .and_then(|spec| spec.segments.iter().find(|segment| segment.vni.get() == vxlan.vni))
                .map(|segment| LinkId::Vxlan(segment.vni)),
            LinkKind::Bridge { .. } => {
                self.numbers.iter().find(|(_, n)| link.name == format!("br{n}")).map(|(vni, _)| LinkId::Bridge(*vni))
            }
            LinkKind::Veth { .. } => {
                self.locals.keys().find(|id| link.name == outer_name(id)).map(|id| LinkId::Outer(id.clone()))
            }
            LinkKind::Other(_) => None,
        };
        let taken =
            |id: &LinkId| self.links.observed_of(id).is_some_and(|seen| self.by_index.contains_key(&seen.ifindex));
        let stray = !matches!(link.kind, LinkKind::Other(_)) && (link.group == self.config.group || has_our_name(link));
        id.filter(|id| !taken(id)).or_else(|| stray.then_some(LinkId::Stray(link.ifindex)))
    }

    /// A link has another index, or is gone: what is desired of others depends on it.
    pub(super) fn link_moved(&mut self, id: &LinkId) {
        match id {
            LinkId::Bridge(_) => self.refresh_links(),
            LinkId::Outer(endpoint) => {
                self.refresh_local(endpoint);
                self.unread.inner(endpoint.clone(), ReadCause::Own);
            }
            LinkId::Vxlan(_) | LinkId::Inner(_) | LinkId::Stray(_) => {}
        }
    }

    /// The rows that the kernel drops when a link changes in certain ways. They are lost with it, not drifted by themselves.
    fn lost_rows(&mut self, id: &LinkId, before: Option<&Link>, now: &Link) {
        let Some(before) = before else { return };
        let flushed = before.mac != now.mac || (before.up && !now.up);
        let no_ipv6 = before.mtu >= 1280 && now.mtu < 1280;
        let (vni, on_bridge) = match id {
            LinkId::Vxlan(vni) => (*vni, false),
            LinkId::Bridge(vni) => (*vni, true),
            LinkId::Outer(_) => {
                if before.master != now.master {
                    self.lose_bridge_rows(now.ifindex);
                }
                return;
            }
            LinkId::Inner(_) | LinkId::Stray(_) => return,
        };
        if flushed || no_ipv6 {
            for key in self.neighbours.observed_in(NeighbourKey::all_of(vni, on_bridge)) {
                if flushed || key.ip.is_ipv6() {
                    self.neighbours.saw(&key, None, Cause::Repair);
                }
            }
        }
    }

    /// The bridge drops the rows of a port that leaves it.
    fn lose_bridge_rows(&mut self, port: u32) {
        let on_port = |seen: &BridgeRowSeen| seen.ifindex == port;
        let rows = self.bridge_rows.iter().filter(|(_, sides)| sides.observed.as_ref().is_some_and(on_port));
        let keys: Vec<BridgeRowKey> = rows.map(|(key, _)| *key).collect();
        for key in keys {
            self.bridge_rows.saw(&key, None, Cause::Repair);
        }
    }

    /// A link is not there (any more), and all that it held went with it.
    pub(super) fn observe_gone(&mut self, id: &LinkId) {
        let Some(ifindex) = self.links.observed_of(id).map(|link| link.ifindex) else { return };
        self.links.saw(id, None, Cause::Repair);
        if !matches!(id, LinkId::Inner(_)) {
            self.by_index.remove(&ifindex);
        }
        self.observe_addresses(id, &[], ReadCause::Own);
        match id {
            LinkId::Vxlan(vni) => {
                for key in self.tunnels.observed_in(TunnelKey::all_of(*vni)) {
                    self.tunnels.saw(&key, None, Cause::Repair);
                }
                self.lose_neighbours(*vni, false);
            }
            LinkId::Bridge(vni) => {
                for key in self.bridge_rows.observed_in(BridgeRowKey::all_of(*vni)) {
                    self.bridge_rows.saw(&key, None, Cause::Repair);
                }
                self.lose_neighbours(*vni, true);
            }
            LinkId::Outer(endpoint) => {
                self.lose_bridge_rows(ifindex);
                self.observe_gone(&LinkId::Inner(endpoint.clone()));
            }
            LinkId::Inner(_) | LinkId::Stray(_) => {}
        }
    }

    fn lose_neighbours(&mut self, vni: Vni, on_bridge: bool) {
        for key in self.neighbours.observed_in(NeighbourKey::all_of(vni, on_bridge)) {
            self.neighbours.saw(&key, None, Cause::Repair);
        }
    }

    /// The addresses of a link, all of them.
    fn observe_addresses(&mut self, id: &LinkId, addresses: &[Address], cause: ReadCause) {
        let known = self.addresses.observed_in(addresses_of(id));
        let mut seen = BTreeSet::new();
        for address in addresses {
            let key = (id.clone(), address.net);
            if self.address_is_ours(id, address) {
                seen.insert(key.clone());
                self.saw_address(&key, Some(address.ours), cause);
            }
        }
        for key in known.iter().filter(|key| !seen.contains(key)) {
            self.saw_address(key, None, cause);
        }
    }

    pub(super) fn saw_address(&mut self, key: &(LinkId, IpNet), observed: Option<bool>, cause: ReadCause) {
        let had_v4 = self.has_v4_address(&key.0);
        if self.addresses.saw(key, observed, cause.into()) && cause == ReadCause::Foreign {
            self.drift.suspect(Key::Address(key.0.clone(), key.1));
        }
        // With its last IPv4 address a link loses its IPv4 neighbours, permanent ones too (fib_disable_ip, fib_frontend.c).
        if let LinkId::Vxlan(vni) | LinkId::Bridge(vni) = &key.0
            && had_v4
            && !self.has_v4_address(&key.0)
        {
            let all = NeighbourKey::all_of(*vni, matches!(key.0, LinkId::Bridge(_)));
            for key in self.neighbours.observed_in(all).iter().filter(|key| key.ip.is_ipv4()) {
                self.neighbours.saw(key, None, Cause::Repair);
            }
        }
    }

    fn has_v4_address(&self, id: &LinkId) -> bool {
        self.addresses.observed_in(addresses_of(id)).iter().any(|(_, net)| net.addr().is_ipv4())
    }

    /// In the overlay namespace every address is ours but link-local ones. In an endpoint's namespace others may add theirs:
    /// ours are those with our number, and the endpoint's own whatever their prefix length.
    fn address_is_ours(&self, id: &LinkId, address: &Address) -> bool {
        let ip = address.net.addr();
        if matches!(ip, std::net::IpAddr::V6(v6) if v6.is_unicast_link_local()) {
            return false;
        }
        match id {
            LinkId::Inner(endpoint) => {
                let own =
                    self.locals.get(endpoint).is_some_and(|l| l.spec.addresses.iter().any(|net| net.addr() == ip));
                own || address.ours
            }
            _ => true,
        }
    }

    fn observe_inner(&mut self, state: InnerState, cause: ReadCause, now: Time) {
        let Some(id) = self.asked_inner.take() else { return };
        let inner = LinkId::Inner(id.clone());
        match state {
            InnerState::NoNetns => {
                self.observe_gone(&inner);
                self.set_inner_status(&id, InnerStatus::NoNetns);
                if let Some(local) = self.locals.get_mut(&id)
                    && (1..LOOKS).contains(&local.looks)
                {
                    let pause = std::time::Duration::from_millis(1 << (local.looks - 1));
                    local.looks += 1;
                    self.unread.looks.insert(id, now + pause);
                }
            }
            InnerState::Refused(reason) => {
                self.observe_gone(&inner);
                self.set_inner_status(&id, InnerStatus::Refused(reason));
            }
            InnerState::Netns { id: netns, nsid, link } => {
                let Some(local) = self.locals.get_mut(&id) else { return };
                local.looks = 0;
                let another = matches!(local.status, InnerStatus::Present { id, .. } if id != netns);
                self.set_inner_status(&id, InnerStatus::Present { id: netns, nsid });
                self.observe_inner_link(&id, nsid, link, if another { ReadCause::First } else { cause });
                if another {
                    // The container was replaced by another one: what went with the old one is no drift.
                    self.drift.absolve(&id);
                }
            }
        }
    }

    fn observe_inner_link(
        &mut self,
        id: &EndpointId,
        nsid: Option<i32>,
        link: Option<(Link, Vec<Address>)>,
        cause: ReadCause,
    ) {
        let inner = LinkId::Inner(id.clone());
        let outer = self.links.observed_of(&LinkId::Outer(id.clone()));
        // With the other end in sight, the pair itself says which link it is; without it, only our mark does.
        let is_ours = |link: &Link| match (&link.kind, outer.map(|outer| (outer.ifindex, &outer.kind))) {
            (LinkKind::Veth { peer, .. }, Some((outer, LinkKind::Veth { peer: back, peer_nsid }))) => {
                *peer == Some(outer) && *back == Some(link.ifindex) && *peer_nsid == nsid
            }
            (LinkKind::Veth { .. }, None) => link.group == self.config.group,
            _ => false,
        };
        match link.filter(|(link, _)| is_ours(link)) {
            Some((link, addresses)) => {
                if self.links.saw(&inner, Some(link), cause.into()) && cause == ReadCause::Foreign {
                    self.drift.suspect(Key::Link(inner.clone()));
                }
                self.observe_addresses(&inner, &addresses, cause);
            }
            None => {
                self.suspect_link(&inner, cause);
                self.observe_gone(&inner);
            }
        }
    }

    fn observe_fdb_dump(&mut self, ifindex: u32, rows: &[FdbRow], cause: ReadCause) {
        for row in rows {
            self.saw_fdb_row(row, cause);
        }
        // What the dump does not show may have been skipped: it is looked up before it counts as missing.
        let Some(LinkId::Vxlan(vni)) = self.by_index.get(&ifindex).cloned() else {
            let unseen: Vec<FdbPoint> = self
                .bridge_rows
                .iter()
                .filter(|(_, sides)| sides.observed.as_ref().is_some_and(|seen| seen.ifindex == ifindex))
                .filter(|(key, _)| !rows.iter().any(|row| row.bridge && row.mac == key.mac))
                .filter_map(|(key, _)| self.bridge_point(key))
                .collect();
            self.unread.fdb.extend(unseen);
            return;
        };
        let shown: BTreeSet<TunnelKey> =
            rows.iter().filter(|row| !row.bridge).map(|row| tunnel_key(vni, row)).collect();
        let known = self.tunnels.observed_in(TunnelKey::all_of(vni));
        let unseen = known.into_iter().filter(|key| !shown.contains(key));
        self.unread.fdb.extend(unseen.map(|key| FdbPoint { ifindex, bridge: false, mac: key.mac }));
    }

    fn observe_fdb_rows(&mut self, points: &[FdbPoint], rows: &[FdbRow]) {
        for row in rows {
            self.saw_fdb_row(row, ReadCause::Foreign);
        }
        let mut links = BTreeSet::new();
        for point in points {
            let found = |bridge: bool| rows.iter().any(|row| row.bridge == bridge && row.mac == point.mac);
            match self.by_index.get(&point.ifindex) {
                Some(LinkId::Vxlan(vni)) if !point.bridge && !found(false) => {
                    let (from, to) = (TunnelKey { vni: *vni, mac: point.mac, dst: None }, TunnelKey::all_of(*vni));
                    let gone: Vec<_> = self
                        .tunnels
                        .observed_in(from..=*to.end())
                        .into_iter()
                        .take_while(|k| k.mac == point.mac)
                        .collect();
                    for key in gone {
                        if self.tunnels.saw(&key, None, Cause::Repair) {
                            self.drift.suspect(Key::Tunnel(key));
                        }
                    }
                }
                Some(LinkId::Bridge(vni)) if point.bridge && !found(true) => {
                    let key = BridgeRowKey { vni: *vni, mac: point.mac };
                    if self.bridge_rows.saw(&key, None, Cause::Repair) {
                        self.drift.suspect(Key::BridgeRow(key));
                    }
                }
                _ => {}
            }
            links.insert(point.ifindex);
        }
        self.look_at_links_of_suspects(links);
    }

    /// A row that is not as it was may have been lost with its link, whose own event may still be on its way.
    fn look_at_links_of_suspects(&mut self, links: BTreeSet<u32>) {
        if self.drift.has_suspects() {
            for ifindex in links {
                self.look_again(ifindex);
            }
        }
    }

    fn saw_fdb_row(&mut self, row: &FdbRow, cause: ReadCause) {
        let foreign = cause == ReadCause::Foreign;
        if row.bridge {
            let Some((key, seen)) = self.bridge_row(row) else { return };
            let known = self.bridge_rows.get(&key).is_some();
            if (known || !row.kernels_own) && self.bridge_rows.saw(&key, Some(seen), cause.into()) && foreign {
                self.drift.suspect(Key::BridgeRow(key));
            }
        } else if let Some(LinkId::Vxlan(vni)) = self.by_index.get(&row.ifindex)
            && !row.kernels_own
        {
            let key = tunnel_key(*vni, row);
            let seen = TunnelSeen { dst: row.dst, plain: row.plain };
            if self.tunnels.saw(&key, Some(seen), cause.into()) && foreign {
                self.drift.suspect(Key::Tunnel(key));
            }
        }
    }

    /// Key and content of a bridge's row, when it points to a port of ours.
    pub(super) fn bridge_row(&self, row: &FdbRow) -> Option<(BridgeRowKey, BridgeRowSeen)> {
        let (vni, port) = match self.by_index.get(&row.ifindex)? {
            LinkId::Outer(id) => {
                let bridge = self.links.observed_of(&LinkId::Outer(id.clone()))?.master?;
                let Some(LinkId::Bridge(vni)) = self.by_index.get(&bridge) else { return None };
                (*vni, Some(id.clone()))
            }
            LinkId::Vxlan(vni) | LinkId::Bridge(vni) => (*vni, None),
            LinkId::Inner(_) | LinkId::Stray(_) => return None,
        };
        let key = BridgeRowKey { vni, mac: row.mac };
        Some((key, BridgeRowSeen { port, ifindex: row.ifindex, plain: row.plain }))
    }

    /// How to look up a bridge's row.
    pub(super) fn bridge_point(&self, key: &BridgeRowKey) -> Option<FdbPoint> {
        self.bridge_index(key.vni).map(|ifindex| FdbPoint { ifindex, bridge: true, mac: key.mac })
    }

    fn observe_neighbour_dump(&mut self, ifindex: u32, rows: &[Neighbour], cause: ReadCause) {
        for row in rows {
            self.saw_neighbour(row, cause);
        }
        let Some((vni, on_bridge)) = self.neighbours_at(ifindex) else { return };
        let shown: BTreeSet<_> = rows.iter().map(|row| row.ip).collect();
        let known = self.neighbours.observed_in(NeighbourKey::all_of(vni, on_bridge));
        let unseen = known.into_iter().filter(|key| !shown.contains(&key.ip));
        self.unread.neighbours.extend(unseen.map(|key| (ifindex, key.ip)));
    }

    fn observe_neighbour_rows(&mut self, points: &[(u32, std::net::IpAddr)], rows: &[Neighbour]) {
        for row in rows {
            self.saw_neighbour(row, ReadCause::Foreign);
        }
        let mut links = BTreeSet::new();
        for (ifindex, ip) in points {
            let found = rows.iter().any(|row| row.ifindex == *ifindex && row.ip == *ip);
            if !found && let Some((vni, on_bridge)) = self.neighbours_at(*ifindex) {
                let key = NeighbourKey { vni, on_bridge, ip: *ip };
                if self.neighbours.saw(&key, None, Cause::Repair) {
                    self.drift.suspect(Key::Neighbour(key));
                }
            }
            links.insert(*ifindex);
        }
        self.look_at_links_of_suspects(links);
    }

    /// Which neighbour table of ours a link has.
    pub(super) fn neighbours_at(&self, ifindex: u32) -> Option<(Vni, bool)> {
        match self.by_index.get(&ifindex)? {
            LinkId::Vxlan(vni) => Some((*vni, false)),
            LinkId::Bridge(vni) => Some((*vni, true)),
            _ => None,
        }
    }

    fn saw_neighbour(&mut self, row: &Neighbour, cause: ReadCause) {
        let Some((vni, on_bridge)) = self.neighbours_at(row.ifindex) else { return };
        let key = NeighbourKey { vni, on_bridge, ip: row.ip };
        // What the kernel resolves by itself is its own; only permanent entries, and what stands where ours should, count.
        let counts = row.permanent || self.neighbours.get(&key).is_some();
        let seen = NeighbourSeen { mac: row.mac, permanent: row.permanent, ours: row.ours };
        if counts && self.neighbours.saw(&key, Some(seen), cause.into()) && cause == ReadCause::Foreign {
            self.drift.suspect(Key::Neighbour(key));
        }
    }

    /// The local endpoints that live in the namespace with this identifier.
    pub(super) fn locals_at(&self, nsid: i32) -> Vec<EndpointId> {
        let there = |local: &Local| matches!(local.status, InnerStatus::Present { nsid: Some(n), .. } if n == nsid);
        self.locals.iter().filter(|(_, local)| there(local)).map(|(id, _)| id.clone()).collect()
    }
}

/// The range of a link's addresses.
fn addresses_of(id: &LinkId) -> std::ops::RangeInclusive<(LinkId, IpNet)> {
    let least = IpNet::V4(Ipv4Net::default());
    let most = IpNet::V6(Ipv6Net::from(Ipv6Addr::from([0xff; 16])));
    (id.clone(), least)..=(id.clone(), most)
}

/// Whether a link in a namespace of ours has a name that we give to its kind: its group may have been changed.
fn has_our_name(link: &Link) -> bool {
    let numbered = |prefix: &str, digits: fn(&char) -> bool| {
        link.name.strip_prefix(prefix).is_some_and(|rest| !rest.is_empty() && rest.chars().all(|c| digits(&c)))
    };
    match link.kind {
        LinkKind::Bridge { .. } => numbered("br", char::is_ascii_digit),
        LinkKind::Vxlan(_) => numbered("vxlan", char::is_ascii_digit),
        LinkKind::Veth { .. } => link.name.len() == 15 && numbered("veth", char::is_ascii_hexdigit),
        LinkKind::Other(_) => false,
    }
}

fn is_vxlan_of(link: &Link, vni: Vni) -> bool {
    matches!(&link.kind, LinkKind::Vxlan(vxlan) if vxlan.vni == vni.get())
}

/// The key of a VXLAN device's row.
pub(super) fn tunnel_key(vni: Vni, row: &FdbRow) -> TunnelKey {
    TunnelKey { vni, mac: row.mac, dst: if row.mac.is_zero() { row.dst } else { None } }
}
