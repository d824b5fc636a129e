//! The gateway bridge: an engine whose home is the host, behind a stage that gives each interface its address.
//!
//! No file remembers addresses; the kernel is the state. A port of the bridge carries its interface's address in its own MAC
//! address, set by the one message that makes the pair, so that a first reading of the host's links tells which are taken, and by
//! whom.
//!
//! **Invariant:** the gateway bridge is told what the endpoints say
//! (`after_every_update_the_gateway_bridge_was_told_what_the_endpoints_say`); an address outside stays as long as its interface does, also
//! over a crash (`an_agent_without_memory_gives_everyone_the_address_that_its_port_says`, and the simulation after every crash); what
//! others have on the host stays as it is (`what_an_earlier_agent_left_behind_goes_and_what_only_looks_like_it_stays`,
//! `a_bridge_of_somebody_else_is_left_alone_and_ours_blocked_until_it_goes`,
//! `a_bridge_that_is_adopted_gets_address_and_ports_and_stays_as_it_was_when_the_last_one_leaves`).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{
    Reconciler,
    config::{Config, Home},
    device::{address_of_gateway_port, gateway_port_name},
    interface::{Answer, Failure, FailureKind, Query},
    key::Kind,
    links::is_gateway_port,
    network::{Effect, Network},
    object::{Address, Link, LinkKind},
    report::{Blocked, Note, Summary},
    time::Time,
};
use crate::{
    desired::{EndpointSpec, LocalEndpoint, OutsideConfig, OutsideEndpoint, Update},
    model::{EndpointId, Mac, Netns, Route, Vni, stable_hash},
    retry::Retry,
};

const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(10);

/// What is not known yet, and what is to be read for it.
#[derive(Debug)]
struct Learning {
    query: Query,
    asked: bool,
    retry: Retry,
    at: Option<Time>,
    failure: Option<Blocked>,
    /// What came meanwhile, all in one, and when the first of it did.
    update: Option<(Update, Time)>,
}

/// The engine of the gateway bridge.
#[derive(Debug)]
pub struct Gateway {
    network: Network,
    outside: OutsideConfig,
    learning: Option<Learning>,
    /// Addresses of ports that were found at the start and that nobody asked for yet, by the ports' names.
    found: BTreeMap<String, Ipv4Addr>,
    given: BTreeMap<EndpointId, (Ipv4Addr, OutsideEndpoint)>,
    taken: BTreeSet<Ipv4Addr>,
    /// Below this none is free.
    least: Ipv4Addr,
    /// Those for whom there is no address left.
    without: BTreeMap<EndpointId, OutsideEndpoint>,
    /// Somebody else's link that has addresses of our subnet, as the last reading of all links showed it. Where the bridge does not
    /// stand yet, nothing is made; where it does, it is kept right.
    overlap: Option<Blocked>,
    notes: Vec<Note>,
}

impl Gateway {
    /// An engine that knows nothing yet. The configuration's home is the host.
    pub fn new(config: Config, outside: OutsideConfig) -> Self {
        debug_assert!(config.home.is_host(), "the gateway bridge is on the host");
        let retry = Retry::new(FIRST_RETRY, LAST_RETRY, stable_hash(outside.bridge.as_bytes()));
        let learning = Learning { query: Query::Netns, asked: false, retry, at: None, failure: None, update: None };
        Self {
            network: Network::new(config),
            outside,
            learning: Some(learning),
            found: BTreeMap::new(),
            given: BTreeMap::new(),
            taken: BTreeSet::new(),
            least: Ipv4Addr::UNSPECIFIED,
            without: BTreeMap::new(),
            overlap: None,
            notes: Vec::new(),
        }
    }

    /// Gives every interface of a change its address, and tells the engine.
    fn tell(&mut self, mut update: Update, now: Time) {
        if update.spec == Some(None) {
            self.given.clear();
            self.taken.clear();
            self.least = Ipv4Addr::UNSPECIFIED;
            self.without.clear();
        }
        // What was found and nobody wants is taken down as what was left behind, unless it may be wanted after all.
        let kept = self.learning.is_some() || self.network.desired.removals_held;
        if !kept && !self.found.is_empty() {
            self.found.clear();
            self.least = Ipv4Addr::UNSPECIFIED;
        }
        let changes = std::mem::take(&mut update.endpoints);
        // Those that go make room for those that come.
        for (id, change) in &changes {
            if !matches!(change, Some(EndpointSpec::Outside(_))) {
                self.without.remove(id);
                if let Some((address, _)) = self.given.remove(id) {
                    self.taken.remove(&address);
                    self.least = self.least.min(address);
                }
                update.endpoints.push((id.clone(), None));
            }
        }
        for (id, change) in changes {
            if let Some(EndpointSpec::Outside(endpoint)) = change {
                let spec = self.give(&id, endpoint);
                update.endpoints.push((id, spec));
            }
        }
        while let Some((id, endpoint)) = self.without.pop_first() {
            let spec = self.give(&id, endpoint);
            if spec.is_none() {
                break;
            }
            update.endpoints.push((id, spec));
        }
        self.network.update(update, now);
    }

    fn give(&mut self, id: &EndpointId, endpoint: OutsideEndpoint) -> Option<EndpointSpec> {
        let had = self.given.get(id).map(|(address, _)| *address);
        let found = self.found.remove(&gateway_port_name(id)).filter(|found| !self.taken.contains(found));
        let Some(address) = had.or(found).or_else(|| self.lowest_free()) else {
            self.without.insert(id.clone(), endpoint);
            return None;
        };
        self.taken.insert(address);
        self.given.insert(id.clone(), (address, endpoint.clone()));
        Some(EndpointSpec::Local(self.local(address, endpoint)))
    }

    /// The lowest address that nobody has: neither the network's, the bridge's nor the broadcast address.
    fn lowest_free(&mut self) -> Option<Ipv4Addr> {
        let subnet = self.outside.subnet;
        let first = u32::from(subnet.network()).checked_add(2)?.max(self.least.into());
        let waiting: BTreeSet<Ipv4Addr> = if first < u32::from(subnet.broadcast()) {
            self.found.values().copied().collect()
        } else {
            BTreeSet::new()
        };
        let mut free = (first..u32::from(subnet.broadcast())).map(Ipv4Addr::from);
        let lowest = free.find(|address| !self.taken.contains(address) && !waiting.contains(address));
        self.least = lowest.unwrap_or_else(|| subnet.broadcast());
        lowest
    }

    fn local(&self, address: Ipv4Addr, endpoint: OutsideEndpoint) -> LocalEndpoint {
        let OutsideEndpoint { netns, ifname } = endpoint;
        let v4 = Ipv4Net::new(address, self.outside.subnet.prefix_len()).map(IpNet::V4);
        let v6 = self.outside.subnet6.and_then(|subnet| {
            let nth = u32::from(address).saturating_sub(u32::from(self.outside.subnet.network()));
            let address = Ipv6Addr::from(u128::from(subnet.network()).saturating_add(nth.into()));
            subnet.contains(&address).then(|| Ipv6Net::new(address, subnet.prefix_len()).ok()).flatten()
        });
        let defaults = self.outside.gateways().into_iter().map(|gateway| {
            let dst = if gateway.addr().is_ipv4() { Ipv4Net::default().into() } else { Ipv6Net::default().into() };
            Route { dst, via: Some(gateway.addr()) }
        });
        LocalEndpoint {
            vni: Vni::GATEWAY,
            mac: Mac::from_ip(address.into()),
            addresses: v4.into_iter().chain(v6.map(IpNet::V6)).collect(),
            netns: Netns::Path(netns),
            ifname,
            routes: defaults.collect(),
            outside: false,
        }
    }

    /// Takes an answer to a question of the start.
    fn learned(&mut self, answer: Result<Answer, Failure>, now: Time) {
        let Some(learning) = &mut self.learning else { return };
        learning.asked = false;
        let failure = match answer {
            Ok(Answer::Netns(_)) => {
                learning.query = Query::Links;
                return;
            }
            Ok(Answer::Links(links, addresses)) => {
                // What is to be taken down is in nobody's way.
                let wanted = learning.update.iter().any(|(update, _)| matches!(update.spec, Some(Some(_))));
                self.overlap = self.overlap(&links, &addresses).filter(|_| wanted);
                if self.overlap.is_none() || self.stands(&links) {
                    self.learn_ports(&links);
                    let learned = self.learning.as_mut().and_then(|learning| learning.update.take());
                    if let Some((update, received)) = learned {
                        self.tell(update, received);
                    }
                    self.learning = None;
                    return;
                }
                None
            }
            Ok(_) => None,
            Err(Failure { kind, message }) => {
                self.notes.push(Note::ReadFailed { message: message.clone() });
                let lasting = !matches!(kind, FailureKind::Resources | FailureKind::Torn);
                lasting.then(|| blocked("reading of the host's links", kind.as_str(), message))
            }
        };
        let Some(learning) = &mut self.learning else { return };
        learning.failure = failure;
        learning.query = Query::Netns;
        learning.at = Some(now + learning.retry.delay());
    }

    /// A link of somebody else's with an address that lies in our subnet, or whose subnet ours lies in: routes would be torn apart.
    fn overlap(&self, links: &[Link], addresses: &[Address]) -> Option<Blocked> {
        let config = &self.network.config;
        let Home::Host { bridge, .. } = &config.home else { return None };
        let foreign = |ifindex: u32| {
            links.iter().find(|l| l.ifindex == ifindex).filter(|l| l.name != *bridge && l.group != config.group)
        };
        let subnets = [Some(IpNet::V4(self.outside.subnet)), self.outside.subnet6.map(IpNet::V6)];
        for subnet in subnets.into_iter().flatten() {
            for address in addresses {
                let overlaps = subnet.contains(&address.net.addr()) || address.net.contains(&subnet.network());
                if let Some(link) = foreign(address.ifindex).filter(|_| overlaps) {
                    let message = format!(
                        "{subnet} overlaps with {} on {}: choose another --gateway-subnet",
                        address.net, link.name
                    );
                    return Some(blocked("gateway bridge", "overlap", message));
                }
            }
        }
        None
    }

    /// Whether the bridge is there, and ours.
    fn stands(&self, links: &[Link]) -> bool {
        let config = &self.network.config;
        let Home::Host { bridge, .. } = &config.home else { return false };
        let is_bridge = |link: &Link| matches!(link.kind, LinkKind::Bridge { .. });
        links.iter().any(|link| link.name == *bridge && link.group == config.group && is_bridge(link))
    }

    fn learn_ports(&mut self, links: &[Link]) {
        let group = self.network.config.group;
        let ports = links.iter().filter(|link| {
            link.group == group && matches!(link.kind, LinkKind::Veth { .. }) && is_gateway_port(&link.name)
        });
        let mut seen = BTreeSet::new();
        for port in ports {
            if let Some(address) = address_of_gateway_port(port.mac).filter(|address| self.is_giveable(*address))
                && seen.insert(address)
            {
                self.found.insert(port.name.clone(), address);
            }
        }
    }

    fn is_giveable(&self, address: Ipv4Addr) -> bool {
        let subnet = self.outside.subnet;
        let bridge = self.outside.gateways().iter().any(|gateway| gateway.addr() == IpAddr::V4(address));
        subnet.contains(&address) && address != subnet.network() && address != subnet.broadcast() && !bridge
    }
}

fn blocked(object: &str, reason: &'static str, message: String) -> Blocked {
    Blocked { object: object.to_owned(), kind: Kind::Link, reason, message }
}

impl Reconciler for Gateway {
    fn network(&mut self) -> &mut Network {
        &mut self.network
    }

    fn update(&mut self, update: Update, now: Time) {
        match &mut self.learning {
            Some(Learning { update: Some((before, _)), .. }) => before.follow(update),
            Some(learning) => learning.update = Some((update, now)),
            None => self.tell(update, now),
        }
    }

    fn next(&mut self, now: Time) -> Effect {
        let Some(learning) = &mut self.learning else { return self.network.next(now) };
        if let Some(at) = learning.at.filter(|at| *at > now) {
            return Effect::Rest(at);
        }
        // Addresses that are found are for those that come with the first word.
        if learning.update.is_none() {
            return Effect::Rest(now + self.network.config.resync);
        }
        learning.asked = true;
        Effect::Read(learning.query.clone())
    }

    fn answered(&mut self, answer: Result<Answer, Failure>, now: Time) {
        match &self.learning {
            Some(learning) if learning.asked => self.learned(answer, now),
            _ => {
                if let Ok(Answer::Links(links, addresses)) = &answer
                    && self.network.asked_all_links()
                {
                    let wanted = self.network.desired.spec.is_some();
                    self.overlap = self.overlap(links, addresses).filter(|_| wanted);
                }
                self.network.answered(answer, now);
            }
        }
    }

    fn summary(&self) -> Summary {
        let mut summary = self.network.summary();
        if let Some(learning) = &self.learning {
            summary.in_sync = false;
            learning.failure.clone().into_iter().for_each(|blocked| summary.add_blocked(blocked));
        }
        let full = |(id, _): (&EndpointId, _)| {
            blocked(
                &format!("interface of {id}"),
                "exhausted",
                format!("no address of {} is left", self.outside.subnet),
            )
        };
        summary.in_sync &= self.without.is_empty() && self.overlap.is_none();
        self.overlap.clone().into_iter().for_each(|blocked| summary.add_blocked(blocked));
        self.without.iter().map(full).for_each(|blocked| summary.add_blocked(blocked));
        summary
    }

    fn take_notes(&mut self) -> Vec<Note> {
        let mut notes = std::mem::take(&mut self.notes);
        notes.extend(self.network.take_notes());
        notes
    }
}
