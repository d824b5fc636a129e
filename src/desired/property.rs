//! Random stores, heard in random ways, against the plainest computation.

use std::collections::{BTreeMap, BTreeSet};

use proptest::{prelude::*, sample::Index};

use super::{
    Store, StoreConfig,
    naive::{Mirror, world},
};
use crate::schema::{self, Change, Key, Kv};

fn config(vtep: bool) -> StoreConfig {
    let vtep = vtep.then(|| "192.168.0.1".parse().unwrap());
    StoreConfig { prefix: "/p".into(), docker_prefix: None, node: "n1".parse().unwrap(), vtep, underlay_mtu: 1500 }
}

/// A small world, so that everything collides with everything.
fn record() -> impl Strategy<Value = (String, String)> {
    let node =
        (1..4u8, 1..4u8).prop_map(|(n, ip)| (format!("/p/nodes/n{n}"), format!(r#"{{"vtep":"192.168.0.{ip}"}}"#)));
    let network = (1..4u8, 1..4u8, 0..3u8, 0..10u8).prop_map(|(n, vni, shape, flags)| {
        let more = match flags {
            0 => r#","flood":true"#,
            1 => r#","mtu":1400"#,
            2 => r#","port":4790"#,
            _ => "",
        };
        let second = match shape {
            0 => String::new(),
            1 => format!(r#",{{"cidr":"fd00::/64","vni":{vni}}}"#),
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
            _ => format!(r#""ip":["10.0.0.{ip}"],"netns":"/run/netns/c{e}""#),
        };
        (format!("/p/endpoints/w{w}/n{n}/e{e}"), format!("{{{fields}}}"))
    });
    let good = prop_oneof![2 => node, 2 => network, 8 => endpoint];
    (good, 0..20u8).prop_map(|((key, value), bad)| if bad == 0 { (key, "{".into()) } else { (key, value) })
}

#[derive(Clone, Debug)]
enum Write {
    Put(String, String),
    Delete(Index),
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
                    if keys.insert(key.clone()) {
                        self.kvs.remove(&key);
                        self.good.remove(&key);
                        changes.push(Change::Delete { key, revision });
                    }
                }
            }
        }
        changes
    }

    fn good(&self) -> Vec<Kv> {
        self.good.values().cloned().collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn after_every_revision_the_updates_add_up_to_what_the_records_say(history in revisions(), vtep in any::<bool>()) {
        let (mut etcd, mut store, mut mirror) = (Etcd::default(), Store::new(config(vtep)), Mirror::default());
        for (revision, writes) in (1..).zip(&history) {
            let changes = etcd.commit(revision, writes);
            mirror.apply(store.changes(revision, changes));
            prop_assert_eq!(&mirror.world, &world(&config(vtep), &etcd.good()), "revision {}", revision);
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
        let (mut store, mut mirror) = (Store::new(config(true)), Mirror::default());
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(kvs.len() + 1)).chain([0, kvs.len()]).collect();
        cuts.sort_unstable();
        for pair in cuts.windows(2) {
            let part = kvs[pair[0]..pair[1]].iter().cloned().map(Change::Put).collect();
            mirror.apply(store.changes(history.len() as i64, part));
        }
        prop_assert_eq!(&mirror.world, &world(&config(true), &kvs));
    }

    #[test]
    fn a_snapshot_leads_to_the_same_end_as_the_events_that_were_missed(
        history in revisions(), missed in any::<Index>(), vtep in any::<bool>(),
    ) {
        let (mut etcd, mut store, mut mirror) = (Etcd::default(), Store::new(config(vtep)), Mirror::default());
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
        mirror.apply(store.snapshot(last, records.clone()));
        // A bad version may have hidden a good one that was missed: then what was known before stays in force.
        if etcd.kvs.values().all(is_good) {
            prop_assert_eq!(&mirror.world, &world(&config(vtep), &etcd.good()));
        }
        prop_assert!(store.snapshot(last, records.clone()).is_empty(), "the same snapshot again changes nothing");
        let audited = store.audit(last, records, &BTreeSet::new());
        prop_assert_eq!((audited.differences, audited.updates.len()), (0, 0));
    }

    #[test]
    fn repeated_events_change_nothing(history in revisions()) {
        let (mut etcd, mut store) = (Etcd::default(), Store::new(config(true)));
        for (revision, writes) in (1..).zip(&history) {
            let changes = etcd.commit(revision, writes);
            store.changes(revision, changes.clone());
            prop_assert!(store.changes(revision, changes).is_empty());
        }
    }

    #[test]
    fn nothing_is_left_when_everything_is_deleted(history in revisions()) {
        let (mut etcd, mut store, mut mirror) = (Etcd::default(), Store::new(config(true)), Mirror::default());
        for (revision, writes) in (1..).zip(&history) {
            let changes = etcd.commit(revision, writes);
            mirror.apply(store.changes(revision, changes));
        }
        mirror.apply(store.snapshot(1000, Vec::new()));
        prop_assert!(mirror.world.is_empty());
        prop_assert_eq!(store.counts(), super::Counts::default());
        prop_assert!(store.networks.is_empty() && store.nodes.is_empty() && store.bad.is_empty());
    }
}
