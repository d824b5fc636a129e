//! Decoders and store fed with what a mutator makes of the documents in `fuzz/corpus`. The run follows from its seed.
//!
//! `FUZZ_EXECUTIONS` says how many records are tried, `FUZZ_SEED` where to begin; a failure says which record it was.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test ends where something is not as it should be"
)]

#[path = "fuzz/mutator.rs"]
mod mutator;

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    fmt::Debug,
    fs,
    io::{self, Write as _},
    net::IpAddr,
    path::Path,
    thread,
};

use mutator::{Document, Mutator};
use serde_json::{Value, json};
use vtepd::{
    desired::{EndpointSpec, Source, Store, StoreConfig, Update},
    model::{Endpoint, Name, Netns, Network, Route, Subnet},
    schema::{self, Change, Key, Kv, Rejected, docker},
};

const PREFIX: &str = "/vtepd/v1";
const DOCKER: &str = "/docker/network/v1.0";
/// How many records are tried where nothing else is said.
const EXECUTIONS: u64 = 25_000;
/// So many records make a store.
const SET: usize = 40;
/// The longest text in a rejection: 256 bytes and the dots.
const LONGEST: usize = 256 + '…'.len_utf8();

fn corpus() -> Vec<Document> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let mut paths = Vec::new();
    for layout in ["native", "docker"] {
        paths.extend(fs::read_dir(root.join(layout)).unwrap().map(|entry| entry.unwrap().path()));
    }
    paths.sort();
    let read = |path| {
        let document: BTreeMap<String, String> = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        Document { key: document["key"].clone().into(), value: document["value"].clone().into() }
    };
    paths.into_iter().map(read).collect()
}

/// Says what was tried last, where that ends in a panic.
struct Tried<'d>(&'d [Document], u64);

impl Drop for Tried<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            let shown =
                self.0.iter().map(|tried| format!("{}\n  {}\n", tried.key.escape_ascii(), tried.value.escape_ascii()));
            let _ = writeln!(io::stderr(), "record {}:\n{}", self.1, shown.collect::<String>());
        }
    }
}

fn assert_bounded(rejected: &Rejected) {
    for text in [&rejected.key, &rejected.field, &rejected.message] {
        assert!(text.len() <= LONGEST, "{} bytes: {text}", text.len());
        assert!(!text.chars().any(char::is_control), "{text:?}");
    }
}

/// Decodes twice, which must come to the same; `None` is a rejection, which must be fit to be shown.
fn decoded<T: PartialEq + Debug>(decode: impl Fn(&[u8], &[u8]) -> Result<T, Rejected>, tried: &Document) -> Option<T> {
    let once = decode(&tried.key, &tried.value);
    assert_eq!(once, decode(&tried.key, &tried.value));
    once.inspect_err(assert_bounded).ok()
}

/// What was decoded, written out again, is the same record.
fn assert_lasting<T: PartialEq + Debug>(
    decode: impl Fn(&[u8], &[u8]) -> Result<T, Rejected>,
    tried: &Document,
    write: impl Fn(&T) -> Value,
) -> Option<T> {
    let record = decoded(&decode, tried)?;
    let written = write(&record).to_string();
    assert_eq!(decode(&tried.key, written.as_bytes()).as_ref(), Ok(&record), "{written}");
    Some(record)
}

fn is_unicast(ip: &IpAddr) -> bool {
    !(ip.is_unspecified() || ip.is_multicast() || matches!(ip, IpAddr::V4(v4) if v4.is_broadcast()))
}

fn assert_sane_subnets(subnets: &[Subnet]) {
    for (i, subnet) in subnets.iter().enumerate() {
        assert!((1..1 << 24).contains(&subnet.vni.get()));
        assert!(subnet.cidr.contains(&subnet.gateway) && subnet.gateway != subnet.cidr.network());
        assert!(is_unicast(&subnet.gateway) && subnet.cidr == subnet.cidr.trunc());
        let overlaps = |other: &Subnet| other.cidr.contains(&subnet.cidr) || subnet.cidr.contains(&other.cidr);
        assert!(!subnets[..i].iter().any(overlaps));
    }
}

fn assert_sane_interface(netns: &Path, ifname: &str) {
    assert!(netns.is_absolute() && !netns.to_str().unwrap().split('/').any(|part| part == ".." || part == "."));
    assert!((1..=15).contains(&ifname.len()) && !ifname.contains(['/', '%', ':', ' ']), "{ifname}");
    assert!(ifname.is_ascii() && ifname != "." && ifname != "..");
}

fn subnet(subnet: &Subnet) -> Value {
    json!({"cidr": subnet.cidr, "gateway": subnet.gateway, "vni": subnet.vni.get()})
}

fn network(network: &Network) -> Value {
    let subnets: Vec<Value> = network.subnets.iter().map(subnet).collect();
    json!({
        "subnets": subnets, "mtu": network.mtu, "port": network.port, "internal": network.internal,
        "secure": network.secure, "flood": network.flood, "spoof_guard": network.spoof_guard, "labels": network.labels,
    })
}

fn endpoint(endpoint: &Endpoint) -> Value {
    let netns = endpoint.netns.as_ref().map(|netns| match netns {
        Netns::Host => "host",
        Netns::Path(path) => path.to_str().unwrap(),
    });
    let mac = endpoint.mac.map(|mac| mac.to_string());
    json!({"ip": endpoint.ip, "mac": mac, "netns": netns, "ifname": endpoint.ifname})
}

fn overlay(overlay: &docker::Overlay) -> Value {
    let with = |s: &Subnet| json!({"SubnetIP": s.cidr, "GwIP": s.gateway, "Vni": s.vni.get()});
    let without = overlay.unallocated.iter().map(|cidr| json!({"SubnetIP": cidr}));
    let subnets: Vec<Value> = overlay.subnets.iter().map(with).chain(without).collect();
    json!({"mtu": overlay.mtu + 50, "secure": overlay.secure, "subnets": subnets})
}

fn docker_network(network: Option<&docker::Network>) -> Value {
    let Some(network) = network else { return json!({}) };
    let pool = |pool: &ipnet::IpNet| json!({"IPAMData": json!({"Pool": pool}).to_string()});
    let pools = Value::Array(network.pools_v6.iter().map(pool).collect()).to_string();
    let name = network.name.as_ref().map(Name::as_str);
    json!({"networkType": "overlay", "name": name, "internal": network.internal, "ipamV6Info": pools})
}

fn docker_endpoint(endpoint: &docker::Endpoint) -> Value {
    let sandbox = endpoint.netns.as_ref().map(|path| path.file_name().unwrap().to_str().unwrap());
    let interface = json!({
        "addr": endpoint.ip.first(), "addrv6": endpoint.ip.get(1), "mac": endpoint.mac.map(|mac| mac.to_string()),
        "dstPrefix": endpoint.prefix,
    });
    let route = |route: &Route| json!({"Destination": route.dst, "RouteType": u8::from(route.via.is_none()), "NextHop": route.via});
    let routes: Vec<Value> = endpoint.routes.iter().map(route).collect();
    let join = json!({"StaticRoutes": routes, "disableGatewayService": endpoint.no_gateway});
    json!({"locator": endpoint.locator, "sandbox": sandbox, "ep_iface": interface, "joinInfo": join})
}

/// Returns whether it was taken.
fn try_native(tried: &Document) -> bool {
    let key = match Key::parse(PREFIX, &tried.key) {
        Ok(key) => key,
        Err(rejected) => {
            assert_bounded(&rejected);
            return false;
        }
    };
    assert_eq!(key.under(PREFIX).as_bytes(), tried.key);
    match key {
        Key::Node(_) => {
            let node = assert_lasting(schema::node, tried, |node| json!({"vtep": node.vtep}));
            node.inspect(|node| assert!(is_unicast(&node.vtep) && !node.vtep.is_loopback())).is_some()
        }
        Key::Network(_) => {
            let network = assert_lasting(schema::network, tried, network);
            network.inspect(|network| assert_sane_subnets(&network.subnets)).is_some()
        }
        Key::Endpoint { .. } => {
            let endpoint = assert_lasting(schema::endpoint, tried, endpoint);
            endpoint
                .inspect(|endpoint| {
                    assert!(!endpoint.ip.is_empty() && endpoint.ip.iter().all(is_unicast));
                    let netns = endpoint.netns.as_ref();
                    let path = netns.map_or(Path::new("/"), |netns| match netns {
                        Netns::Path(path) => path,
                        Netns::Host => Path::new("/"),
                    });
                    assert_sane_interface(path, &endpoint.ifname);
                })
                .is_some()
        }
        Key::Store => assert_lasting(schema::store, tried, |id| json!({"id": id})).is_some(),
        Key::Approval(_) => assert_lasting(schema::approval, tried, |revision| json!({"revision": revision})).is_some(),
        Key::Status(_) => true,
    }
}

/// Returns whether it was taken.
fn try_docker(tried: &Document) -> bool {
    let key = match docker::Key::parse(DOCKER, &tried.key) {
        Ok(Some(key)) => key,
        Ok(None) => return false,
        Err(rejected) => {
            assert_bounded(&rejected);
            return false;
        }
    };
    match key {
        docker::Key::Network(_) => {
            assert_lasting(docker::network, tried, |network| docker_network(network.as_ref())).is_some()
        }
        docker::Key::Overlay(_) => {
            let overlay = assert_lasting(docker::overlay, tried, overlay);
            overlay.inspect(|overlay| assert_sane_subnets(&overlay.subnets)).is_some()
        }
        docker::Key::Endpoint { .. } => {
            let endpoint = assert_lasting(docker::endpoint, tried, docker_endpoint);
            let wired = endpoint.as_ref().and_then(|endpoint| Some((endpoint, endpoint.netns.as_ref()?)));
            if let Some((endpoint, netns)) = wired {
                assert_sane_interface(netns, &format!("{}0", endpoint.prefix));
            }
            endpoint.is_some()
        }
    }
}

/// All that a store says after it has heard some: what it tells the networks, counts, rejects and finds in conflict.
type Said = (Vec<BTreeMap<Name, Update>>, String);

fn store() -> Store {
    Store::new(StoreConfig {
        prefix: PREFIX.to_owned(),
        docker_prefix: Some(DOCKER.to_owned()),
        node: "node1".parse().unwrap(),
        vtep: Some("192.168.205.10".parse().unwrap()),
        host_endpoints: true,
        underlay_mtu: 1500,
        max_removal: 100,
    })
}

fn said(store: &mut Store, updates: Vec<BTreeMap<Name, Update>>) -> Said {
    store.rejections().for_each(assert_bounded);
    let conflicts: Vec<_> = store.conflicts().collect();
    let blocked: Vec<_> = store.blocked().collect();
    let rejected: BTreeSet<String> = store.rejections().map(ToString::to_string).collect();
    let without: Vec<_> = store.without_predecessor().map(|(key, _)| key.to_vec()).collect();
    (updates, format!("{:?} {conflicts:?} {blocked:?} {rejected:?} {without:?}", store.counts()))
}

/// What the networks of a store are told at first is sane, whatever stands in etcd. Returns how many endpoints that are.
fn assert_sane_updates(updates: &BTreeMap<Name, Update>) -> u64 {
    let mut endpoints = 0;
    let mut segments = BTreeSet::new();
    let mut interfaces = BTreeSet::new();
    for update in updates.values() {
        let Some(Some(spec)) = &update.spec else { continue };
        for segment in &spec.segments {
            let tunnel = segment.tunnel.expect("a segment of a network has a tunnel");
            assert!(segments.insert((tunnel.port, segment.vni)), "a VNI belongs to two networks");
            assert!(segment.mtu >= 68 && is_unicast(&tunnel.local) && !segment.gateways.is_empty());
        }
        let (mut ips, mut macs) = (BTreeSet::new(), BTreeSet::new());
        for endpoint in update.endpoints.iter().filter_map(|(_, endpoint)| endpoint.as_ref()) {
            endpoints += 1;
            let (vni, mac, addresses): (_, _, Vec<IpAddr>) = match endpoint {
                EndpointSpec::Local(local) => {
                    local.netns.path().inspect(|path| assert_sane_interface(path, &local.ifname));
                    assert!(interfaces.insert((&local.netns, &local.ifname)), "an interface belongs to two endpoints");
                    assert!(local.routes.windows(2).all(|two| two[0].dst < two[1].dst), "a route to each destination");
                    for Route { dst, via } in &local.routes {
                        let fits = |via: &IpAddr| is_unicast(via) && via.is_ipv4() == dst.addr().is_ipv4();
                        assert!(*dst == dst.trunc() && via.as_ref().is_none_or(fits), "{dst} via {via:?}");
                    }
                    (local.vni, local.mac, local.addresses.iter().map(ipnet::IpNet::addr).collect())
                }
                EndpointSpec::Remote(remote) => {
                    assert!(is_unicast(&remote.vtep));
                    (remote.vni, remote.mac, remote.ips.clone())
                }
                EndpointSpec::Outside(_) => unreachable!("the store says nothing of the way outside"),
            };
            let segment = spec.segment(vni).expect("an endpoint is on one of its network's segments");
            assert!(!mac.is_zero() && !mac.is_multicast() && mac != segment.gateway_mac);
            assert!(macs.insert((vni, mac)), "a MAC belongs to two endpoints");
            for ip in addresses {
                assert!(is_unicast(&ip) && !segment.gateways.iter().any(|gateway| gateway.addr() == ip));
                assert!(ips.insert((vni, ip)), "an address belongs to two endpoints");
            }
        }
    }
    endpoints
}

/// A listing of both layouts, then the rest as events, some of which delete.
fn hear(listed: &[Kv], later: &[Document]) -> Said {
    let mut store = store();
    let below = |kv: &Kv| kv.key.starts_with(DOCKER.as_bytes());
    let (docker, native) = listed.iter().cloned().partition(below);
    let mut told = vec![store.snapshot_of(Source::Docker, 100, docker), store.snapshot_of(Source::Native, 100, native)];
    for (revision, record) in (101..).zip(later) {
        let (key, value) = (record.key.clone(), record.value.clone());
        let created = listed.iter().find(|kv| kv.key == key).map_or(revision, |kv| kv.create_revision);
        let change = if revision % 5 == 0 {
            Change::Delete { key, revision }
        } else {
            Change::Put(Kv { key, value, create_revision: created, mod_revision: revision })
        };
        told.push(store.changes(revision, vec![change]));
    }
    said(&mut store, told)
}

/// Mutated records beside good ones. Returns how many endpoints came through.
fn try_set(good: &[Document], set: &[Document]) -> u64 {
    let (first, later) = set.split_at(set.len() * 3 / 4);
    // Of two with one key the last one counts.
    let first = first[first.len() / 4..].iter().chain(good).chain(&first[..first.len() / 4]);
    let unique: BTreeMap<&[u8], &[u8]> = first.map(|d| (d.key.as_slice(), d.value.as_slice())).collect();
    let kv = |(revision, (key, value)): (i64, (&&[u8], &&[u8]))| Kv {
        key: key.to_vec(),
        value: value.to_vec(),
        create_revision: 1 + revision * 7 % 11,
        mod_revision: 20 + revision,
    };
    let mut listed: Vec<Kv> = (0..).zip(&unique).map(kv).collect();
    let once = hear(&listed, later);
    let endpoints = assert_sane_updates(&once.0[1]);
    listed.reverse();
    assert_eq!(hear(&listed, later), once, "the order of a listing decides something");
    endpoints
}

fn setting(name: &str, default: u64) -> u64 {
    env::var(name).map_or(default, |value| value.replace('_', "").parse().expect("a number"))
}

#[test]
fn whatever_stands_in_the_store_nothing_panics_and_only_sane_records_come_through() {
    let (executions, seed) = (setting("FUZZ_EXECUTIONS", EXECUTIONS), setting("FUZZ_SEED", 1));
    let corpus = corpus();
    let mut mutator = Mutator::new(seed, &corpus);
    let (mut taken, mut told) = (0, 0);
    let mut set: Vec<Document> = Vec::with_capacity(SET);
    for execution in 0..executions {
        set.push(mutator.next());
        {
            let tried = Tried(&set[set.len() - 1..], execution);
            taken += u64::from(try_native(&tried.0[0]) || try_docker(&tried.0[0]));
        }
        if set.len() == SET {
            let tried = Tried(&set, execution);
            told += try_set(&corpus, tried.0);
            drop(tried);
            set.clear();
        }
    }
    // Not by a macro, whose output the test's harness would keep to itself.
    let _ = writeln!(
        io::stderr(),
        "fuzz: {executions} records tried from seed {seed}, {taken} of them good, {told} endpoints told"
    );
    let tame = (executions / 20..executions * 19 / 20).contains(&taken);
    assert!(executions < 1000 || tame && told > executions / 20, "the mutator is too wild or too tame");
}

#[test]
fn every_document_of_the_corpus_is_good_or_means_nothing() {
    let corpus = corpus();
    let good = corpus.iter().filter(|document| try_native(document) || try_docker(document));
    assert_eq!((corpus.len(), good.count()), (24, 20), "the counters of Docker's mean nothing");
}
