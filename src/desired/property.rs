//! Random stores, heard in random ways, against the plainest computation.

use std::collections::{BTreeMap, BTreeSet};

use proptest::{prelude::*, sample::Index};

use super::{
    EndpointSpec, Limits, Source, Store, StoreConfig, Update,
    naive::{Mirror, world},
    tests::audit,
};
use crate::{
    model::Name,
    schema::{self, Change, Key, Kv, Reason, docker},
};

fn config(vtep: bool) -> StoreConfig {
    let vtep = vtep.then(|| "192.168.0.1".parse().unwrap());
    StoreConfig {
        prefix: "/p".into(),
        docker_prefix: Some("/d".into()),
        node: "n1".parse().unwrap(),
        vtep,
        host_endpoints: vtep.is_some(),
        underlay_mtu: 1500,
        max_removal: 100,
    }
}

/// VTEP addresses of both families.
fn vtep_address(n: u8) -> String {
    if n < 4 { format!("192.168.0.{n}") } else { format!("fd00:1::{n}") }
}

/// A small world, so that everything collides with everything.
fn record() -> impl Strategy<Value = (String, String)> {
    let node = (1..4u8, 1..6u8)
        .prop_map(|(n, ip)| (format!("/p/nodes/n{n}"), format!(r#"{{"vtep":"{}"}}"#, vtep_address(ip))));
    let network = (1..4u8, 1..4u8, 0..3u8, 0..10u8).prop_map(|(n, vni, shape, flags)| {
        let more = match flags {
            0 => r#","flood":true"#,
            1 => r#","mtu":1400"#,
            2 => r#","port":4790"#,
            3 => r#","internal":true"#,
            _ => "",
        };
        let second = match shape {
            0 => String::new(),
            1 => format!(r#",{{"cidr":"fd00::/64","vni":{vni}}},{{"cidr":"fd00:1::/64","vni":{vni}}}"#),
            _ => format!(r#",{{"cidr":"10.0.1.0/24","vni":{}}}"#, vni % 3 + 1),
        };
        let value = format!(r#"{{"subnets":[{{"cidr":"10.0.0.0/24","vni":{vni}}}{second}]{more}}}"#);
        (format!("/p/networks/w{n}"), value)
    });
    let endpoint = (1..4u8, 1..4u8, 1..4u8, 1..5u8, 0..8u8).prop_map(|(w, n, e, ip, shape)| {
        let fields = match shape {
            0 => format!(r#""ip":["10.0.0.{ip}"]"#),
            1 => format!(r#""ip":["10.0.0.{ip}","fd00::{ip}"]"#),
            2 => format!(r#""ip":["10.0.1.{ip}"],"netns":"/run/netns/c{e}""#),
            3 => format!(r#""ip":["10.0.0.{ip}"],"mac":"02:00:00:00:00:0{e}""#),
            4 => format!(r#""ip":["10.0.0.{ip}"],"netns":"host","ifname":"x{ip}""#),
            5 => format!(r#""ip":["10.0.0.{ip}"],"netns":"/run/docker/netns/{}""#, e.to_string().repeat(12)),
            _ => format!(r#""ip":["10.0.0.{ip}"],"netns":"/run/netns/c{e}""#),
        };
        (format!("/p/endpoints/w{w}/n{n}/e{e}"), format!("{{{fields}}}"))
    });
    let good = prop_oneof![2 => node, 2 => network, 8 => endpoint, 8 => docker_record()];
    (good, 0..20u8).prop_map(|((key, value), bad)| if bad == 0 { (key, "{".into()) } else { (key, value) })
}

/// Docker's side of that world: three networks, which want the native ones' VNIs, and endpoints in three sandboxes.
fn docker_record() -> impl Strategy<Value = (String, String)> {
    let id = |n: u8| n.to_string().repeat(64);
    let network = (1..4u8, 0..8u8).prop_map(move |(n, shape)| {
        let pool = serde_json::json!([{"IPAMData": r#"{"Pool":"fd00::/64"}"#}]).to_string();
        let value = match shape {
            0 => r#"{"networkType":"bridge"}"#.to_owned(),
            1 => r#"{"networkType":"overlay","inDelete":true}"#.to_owned(),
            2 | 3 => serde_json::json!({"networkType": "overlay", "ipamV6Info": pool}).to_string(),
            4 => r#"{"networkType":"overlay","internal":true}"#.to_owned(),
            _ => r#"{"networkType":"overlay","name":"w1"}"#.to_owned(),
        };
        (format!("/d/network/{}", id(n)), value)
    });
    let overlay = (1..4u8, 0..5u8, 0..4u8, 0..8u8).prop_map(move |(n, vni, second, flags)| {
        let subnet = |third: u8, vni: u8| format!(r#"{{"SubnetIP":"10.0.{third}.0/24","Vni":{vni}}}"#);
        let subnets = [subnet(0, vni), subnet(1, second)].join(",");
        let value = match flags {
            0 => format!(r#"{{"subnets":[{subnets}],"secure":true}}"#),
            1 => format!(r#"{{"subnets":[{subnets}],"mtu":1400}}"#),
            _ => format!("[{subnets}]"),
        };
        (format!("/d/overlay/network/{}", id(n)), value)
    });
    let endpoint =
        (1..4u8, 1..5u8, 1..5u8, 1..6u8, 1..4u8, 0..10u8).prop_map(move |(n, e, ip, vtep, sandbox, shape)| {
            let third = u8::from(shape == 0);
            let mac = if shape < 3 { r#","mac":"02:00:00:00:00:01""# } else { "" };
            let v6 = if shape < 4 { format!(r#","addrv6":"fd00::{ip}/64""#) } else { String::new() };
            let mut fields = format!(r#""ep_iface":{{"addr":"10.0.{third}.{ip}/24"{mac}{v6}}}"#);
            if shape != 5 {
                fields.push_str(&format!(r#","locator":"{}""#, vtep_address(vtep)));
            }
            if shape != 6 {
                fields.push_str(&format!(r#","sandbox":"{}""#, id(sandbox)));
            }
            if shape == 8 {
                let route = format!(r#"{{"Destination":"10.0.1.0/24","NextHop":"10.0.0.{ip}"}}"#);
                fields.push_str(&format!(r#","joinInfo":{{"StaticRoutes":[{route}],"disableGatewayService":true}}"#));
            }
            let value = if shape == 7 { "{}".to_owned() } else { format!("{{{fields}}}") };
            (format!("/d/endpoint/{}/{}", id(n), id(e)), value)
        });
    prop_oneof![1 => network, 1 => overlay, 3 => endpoint]
}

/// Seven endpoints of one network of Docker's behind three VTEPs, with seven addresses and two MAC addresses.
fn sharer() -> impl Strategy<Value = Write> {
    let nid = "1".repeat(64);
    let key = move |e: u8| format!("/d/endpoint/{nid}/{}", e.to_string().repeat(64));
    (1..8u8, 1..8u8, 1..4u8, 1..3u8, 1..8u8, any::<bool>()).prop_map(move |(e, ip, vtep, mac, sandbox, gone)| {
        let value = format!(
            r#"{{"ep_iface":{{"addr":"10.0.0.{ip}/24","mac":"02:00:00:00:00:0{mac}"}},"locator":"192.168.0.{vtep}","sandbox":"{}"}}"#,
            sandbox.to_string().repeat(64)
        );
        if gone { Write::Remove(key(e)) } else { Write::Put(key(e), value) }
    })
}

/// The network of [`sharer`], and what becomes of its endpoints.
fn sharing() -> impl Strategy<Value = Vec<Vec<Write>>> {
    let network = format!("/d/network/{}", "1".repeat(64));
    let overlay = format!("/d/overlay/network/{}", "1".repeat(64));
    let first = vec![
        Write::Put(network, r#"{"networkType":"overlay"}"#.into()),
        Write::Put(overlay, r#"[{"SubnetIP":"10.0.0.0/24","Vni":256}]"#.into()),
    ];
    let later = prop::collection::vec(prop::collection::vec(sharer(), 1..4), 1..60);
    later.prop_map(move |later| [vec![first.clone()], later].concat())
}

#[derive(Clone, Debug)]
enum Write {
    Put(String, String),
    /// Some record that stands.
    Delete(Index),
    /// This one, if it stands.
    Remove(String),
}

fn revisions() -> impl Strategy<Value = Vec<Vec<Write>>> {
    let put = record().prop_map(|(key, value)| Write::Put(key, value));
    let write = prop_oneof![3 => put, 1 => any::<Index>().prop_map(Write::Delete)];
    prop::collection::vec(prop::collection::vec(write, 1..4), 1..40)
}

/// What etcd would hold, and the last good version of each record.
#[derive(Debug, Default)]
struct Etcd {
    kvs: BTreeMap<Vec<u8>, Kv>,
    good: BTreeMap<Vec<u8>, Kv>,
}

fn is_good(kv: &Kv) -> bool {
    if kv.key.starts_with(b"/d/") {
        return match docker::Key::parse("/d", &kv.key).unwrap().unwrap() {
            docker::Key::Network(_) => docker::network(&kv.key, &kv.value).is_ok(),
            docker::Key::Overlay(_) => docker::overlay(&kv.key, &kv.value).is_ok(),
            docker::Key::Endpoint { .. } => docker::endpoint(&kv.key, &kv.value).is_ok(),
        };
    }
    match Key::parse("/p", &kv.key).unwrap() {
        Key::Node(_) => schema::node(&kv.key, &kv.value).is_ok(),
        Key::Network(_) => schema::network(&kv.key, &kv.value).is_ok(),
        _ => schema::endpoint(&kv.key, &kv.value).is_ok(),
    }
}

impl Etcd {
    fn commit(&mut self, revision: i64, writes: &[Write]) -> Vec<Change> {
        let mut changes = Vec::new();
        let mut keys = BTreeSet::new();
        for write in writes {
            match write {
                Write::Put(key, value) => {
                    let (key, value) = (key.clone().into_bytes(), value.clone().into_bytes());
                    if !keys.insert(key.clone()) {
                        continue;
                    }
                    let create_revision = self.kvs.get(&key).map_or(revision, |kv| kv.create_revision);
                    let kv = Kv { key: key.clone(), value, create_revision, mod_revision: revision };
                    self.kvs.insert(key.clone(), kv.clone());
                    if is_good(&kv) {
                        self.good.insert(key, kv.clone());
                    }
                    changes.push(Change::Put(kv));
                }
                Write::Delete(_) if self.kvs.is_empty() => {}
                Write::Delete(index) => {
                    let at = index.index(self.kvs.len());
                    let key = self.kvs.keys().nth(at).unwrap().clone();
                    changes.extend(self.remove(key, revision, &mut keys));
                }
                Write::Remove(key) => changes.extend(self.remove(key.clone().into_bytes(), revision, &mut keys)),
            }
        }
        changes
    }

    /// Deletes a record that is not written otherwise in this revision.
    fn remove(&mut self, key: Vec<u8>, revision: i64, keys: &mut BTreeSet<Vec<u8>>) -> Option<Change> {
        if !keys.insert(key.clone()) || self.kvs.remove(&key).is_none() {
            return None;
        }
        self.good.remove(&key);
        Some(Change::Delete { key, revision })
    }

    fn good(&self) -> Vec<Kv> {
        self.good.values().cloned().collect()
    }
}

/// A store of which both layouts were listed, and are empty.
fn new_store(vtep: bool) -> Store {
    let mut store = Store::new(config(vtep));
    let told = snapshot(&mut store, 0, &[]);
    assert!(told.iter().all(BTreeMap::is_empty));
    store
}

/// A store that keeps its identity is not in doubt, whatever it lacks.
fn identity() -> Kv {
    let (key, value) = (b"/p/store".to_vec(), br#"{"id":"one"}"#.to_vec());
    Kv { key, value, create_revision: 0, mod_revision: 0 }
}

/// A listing of each layout.
fn snapshot(store: &mut Store, revision: i64, records: &[Kv]) -> [BTreeMap<Name, Update>; 2] {
    let (docker, mut native): (_, Vec<Kv>) = records.iter().cloned().partition(|kv| kv.key.starts_with(b"/d/"));
    native.push(identity());
    [store.snapshot_of(Source::Docker, revision, docker), store.snapshot_of(Source::Native, revision, native)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn after_every_revision_the_updates_add_up_to_what_the_records_say(history in revisions(), vtep in any::<bool>()) {
        let (mut etcd, mut store, mut mirror) = (Etcd::default(), new_store(vtep), Mirror::default());
        let mut config = config(vtep);
        for (revision, writes) in (1..).zip(&history) {
            let changes = etcd.commit(revision, writes);
            mirror.apply(store.changes(revision, changes));
            prop_assert_eq!(&mirror.world, &world(&config, &etcd.good()), "revision {}", revision);
            if revision % 4 == 0 {
                config.underlay_mtu = if config.underlay_mtu == 1500 { 9000 } else { 1500 };
                mirror.apply(store.set_underlay_mtu(config.underlay_mtu));
                prop_assert_eq!(&mirror.world, &world(&config, &etcd.good()), "another MTU at revision {}", revision);
            }
        }
    }

    #[test]
    fn the_order_in_which_records_are_heard_decides_nothing(
        history in revisions(), cuts in prop::collection::vec(any::<Index>(), 0..3), seed in any::<u64>(),
    ) {
        let mut etcd = Etcd::default();
        for (revision, writes) in (1..).zip(&history) {
            etcd.commit(revision, writes);
        }
        let mut kvs = etcd.good();
        // A shuffle of our own: the order is random, the run is not.
        kvs.sort_by_key(|kv| kv.key.iter().fold(seed, |hash, b| (hash ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3)));
        let (mut store, mut mirror) = (new_store(true), Mirror::default());
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(kvs.len() + 1)).chain([0, kvs.len()]).collect();
        cuts.sort_unstable();
        for pair in cuts.windows(2) {
            let part = kvs[pair[0]..pair[1]].iter().cloned().map(Change::Put).collect();
            mirror.apply(store.changes(history.len() as i64, part));
        }
        prop_assert_eq!(&mirror.world, &world(&config(true), &kvs));
    }

    #[test]
    fn what_is_told_while_everything_is_listed_comes_to_what_the_records_say(
        history in revisions(), vtep in any::<bool>(), page in 1..8usize, docker_first in any::<bool>(),
    ) {
        let mut etcd = Etcd::default();
        for (revision, writes) in (1..).zip(&history) {
            etcd.commit(revision, writes);
        }
        let (mut store, mut mirror) = (Store::new(config(vtep)), Mirror::default());
        let of_docker = |kv: &&Kv| kv.key.starts_with(b"/d/");
        let is_endpoint = |kv: &&Kv| kv.key.starts_with(b"/d/endpoint/") || kv.key.starts_with(b"/p/endpoints/");
        let kvs = etcd.good();
        let (docker, native): (Vec<&Kv>, Vec<&Kv>) = kvs.iter().partition(of_docker);
        let mut layouts = [(Source::Native, native), (Source::Docker, docker)];
        if docker_first {
            layouts.reverse();
        }
        for (source, kvs) in layouts {
            let (endpoints, heads): (Vec<&Kv>, Vec<&Kv>) = kvs.into_iter().partition(is_endpoint);
            store.begin_listing(source, false);
            let heads = heads.chunks(page).map(|some| (some, false));
            let endpoints = endpoints.chunks(page).map(|some| (some, true)).chain([(&[][..], true)]);
            for (some, endpoints) in heads.chain(endpoints) {
                let updates = store.list(source, some.iter().copied().cloned().collect(), endpoints);
                let mut told = updates.values().flat_map(|update| &update.endpoints);
                let local = told.any(|(_, spec)| matches!(spec, Some(EndpointSpec::Local(_))));
                prop_assert!(!local, "an endpoint of this node may still lose");
                mirror.apply(updates);
            }
            mirror.apply(store.listed(source, history.len() as i64));
        }
        prop_assert_eq!(&mirror.world, &world(&config(vtep), &kvs));
    }

    #[test]
    fn a_snapshot_leads_to_the_same_end_as_the_events_that_were_missed(
        history in revisions(), missed in any::<Index>(), vtep in any::<bool>(),
    ) {
        let (mut etcd, mut store, mut mirror) = (Etcd::default(), new_store(vtep), Mirror::default());
        let missed = missed.index(history.len());
        let mut last = 0;
        for (revision, writes) in (1..).zip(&history) {
            let changes = etcd.commit(revision, writes);
            if (revision as usize) <= missed {
                mirror.apply(store.changes(revision, changes));
            }
            last = revision;
        }
        let records: Vec<Kv> = etcd.kvs.values().cloned().collect();
        snapshot(&mut store, last, &records).into_iter().for_each(|updates| mirror.apply(updates));
        // A bad version may have hidden a good one that was missed: then what was known before stays in force.
        if etcd.kvs.values().all(is_good) {
            prop_assert_eq!(&mirror.world, &world(&config(vtep), &etcd.good()));
        }
        let again = snapshot(&mut store, last, &records);
        prop_assert!(again.iter().all(BTreeMap::is_empty), "the same snapshot again changes nothing");
        for source in [Source::Native, Source::Docker] {
            let all = records.iter().cloned().chain([identity()]);
            let of = all.filter(|kv| kv.key.starts_with(b"/d/") == (source == Source::Docker));
            let audited = audit(&mut store, source, last, of.collect(), &BTreeSet::new());
            prop_assert_eq!((audited.differences, audited.updates.len()), (0, 0));
        }
    }

    #[test]
    fn those_who_share_a_mac_address_behind_one_vtep_are_told_as_the_records_say(history in sharing()) {
        let (mut etcd, mut store, mut mirror) = (Etcd::default(), new_store(true), Mirror::default());
        for (revision, writes) in (1..).zip(&history) {
            let changes = etcd.commit(revision, writes);
            mirror.apply(store.changes(revision, changes));
            prop_assert_eq!(&mirror.world, &world(&config(true), &etcd.good()), "revision {}", revision);
        }
        let (mut later, mut listed) = (new_store(true), Mirror::default());
        snapshot(&mut later, 1000, &etcd.good()).into_iter().for_each(|updates| listed.apply(updates));
        prop_assert_eq!(&mirror.world, &listed.world);
        prop_assert!(store.conflicts().eq(later.conflicts()));
        prop_assert!(store.blocked().eq(later.blocked()));
    }

    #[test]
    fn where_there_are_too_many_the_oldest_count_whatever_the_order(history in revisions()) {
        let limits = Limits { nodes: 2, networks: 2, endpoints: 3 };
        let limited = || {
            let mut store = Store::with_limits(config(true), limits);
            snapshot(&mut store, 0, &[]);
            (store, Mirror::default())
        };
        let (mut etcd, (mut store, mut mirror)) = (Etcd::default(), limited());
        for (revision, writes) in (1..).zip(&history) {
            let changes = etcd.commit(revision, writes);
            mirror.apply(store.changes(revision, changes));
        }
        let (mut listed, mut seen) = limited();
        snapshot(&mut listed, 1000, &etcd.good()).into_iter().for_each(|updates| seen.apply(updates));
        prop_assert_eq!(&mirror.world, &seen.world);
        prop_assert!(store.conflicts().eq(listed.conflicts()));
        let refused = |store: &Store| {
            let all = store.rejections().filter(|rejected| rejected.reason == Reason::Count);
            all.map(|rejected| rejected.key.clone()).collect::<BTreeSet<_>>()
        };
        prop_assert_eq!(refused(&store), refused(&listed));
        for (kind, number, limit) in [
            ("nodes/", store.counts().nodes, limits.nodes),
            ("networks/", store.counts().networks, limits.networks),
        ] {
            let beyond = refused(&store).iter().filter(|key| key.contains(kind) || (kind == "networks/" && key.contains("overlay/"))).count();
            prop_assert_eq!(beyond, number.saturating_sub(limit), "{}", kind);
        }
        prop_assert!(mirror.world.len() <= limits.networks);
    }

    #[test]
    fn repeated_events_change_nothing(history in revisions()) {
        let (mut etcd, mut store) = (Etcd::default(), new_store(true));
        for (revision, writes) in (1..).zip(&history) {
            let changes = etcd.commit(revision, writes);
            store.changes(revision, changes.clone());
            prop_assert!(store.changes(revision, changes).is_empty());
        }
    }

    #[test]
    fn nothing_is_left_when_everything_is_deleted(history in revisions()) {
        let (mut etcd, mut store, mut mirror) = (Etcd::default(), new_store(true), Mirror::default());
        for (revision, writes) in (1..).zip(&history) {
            let changes = etcd.commit(revision, writes);
            mirror.apply(store.changes(revision, changes));
        }
        for key in etcd.kvs.keys().cloned() {
            mirror.apply(store.changes(1000, vec![Change::Delete { key, revision: 1000 }]));
        }
        snapshot(&mut store, 1000, &[]).into_iter().for_each(|updates| mirror.apply(updates));
        prop_assert!(mirror.world.is_empty());
        prop_assert_eq!(store.counts(), super::Counts::default());
        prop_assert!(store.networks.is_empty() && store.nodes.is_empty() && store.bad.is_empty());
    }
}
