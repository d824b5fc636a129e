//! What sessions decide, against a simulated etcd of three members: members that lag, fall silent or lose their quorum, a
//! store that is compacted, wiped or restored under the same cluster identity, watches that go silent, and events that are
//! lost, repeated or out of order, as servers before 3.4.26 have them. Every run follows from its seed:
//! `SEED=7 cargo test --test sessions` runs that one alone, `SEEDS=1000000` so many.
//!
//! Held here: at every step what is known is what the store was at the revision reached; when everything is well again it is
//! what the store is, without a listing where no event was lost, and after an audit in any case. The simulated etcd itself is
//! held against the real one.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test ends where something is not as it should be"
)]
#![allow(dead_code, reason = "shared by several tests")]

#[path = "support/sim_kernel/chance.rs"]
#[allow(unreachable_pub, reason = "shared by several tests")]
mod chance;
#[path = "support/etcd.rs"]
mod real;
#[path = "support/sim_cluster.rs"]
#[allow(unreachable_pub, reason = "a part of this test")]
mod sim_cluster;
#[path = "support/sim_etcd.rs"]
#[allow(unreachable_pub, reason = "shared by several tests")]
mod sim_etcd;

use std::collections::BTreeMap;

use chance::Chance;
use etcd_client::{Client, DeleteOptions, GetOptions, Txn, TxnOp};
use sim_cluster::{Faults, SimCluster, Watch};
use sim_etcd::SimEtcd;
use vtepd::{
    etcd::{Position, Relist},
    schema::{Change, Kv},
};

const RANGES: [&str; 2] = ["/p/a", "/p/s"];
const SEEDS: u64 = 2000;
const STEPS: usize = 120;

type Known = BTreeMap<Vec<u8>, (i64, Vec<u8>)>;

/// One who follows the store as a session does.
#[derive(Default)]
struct Follower {
    position: Option<Position>,
    incarnation: u64,
    watches: Vec<Watch>,
    known: Known,
    listings: usize,
    /// Whether the store may differ from what is known without anybody being able to tell before an audit.
    doubtful: bool,
}

fn known(records: &[Kv]) -> Known {
    let followed = |kv: &&Kv| RANGES.iter().any(|begins| kv.key.starts_with(begins.as_bytes()));
    records.iter().filter(followed).map(|kv| (kv.key.clone(), (kv.mod_revision, kv.value.clone()))).collect()
}

impl Follower {
    /// Connects to a member, and goes on from where it was, or lists.
    fn connect(&mut self, cluster: &mut SimCluster, member: usize) {
        self.watches.clear();
        let Some(beat) = cluster.beat(member) else { return };
        let seen = self.position.as_ref().map(Position::seen);
        if let Some(position) = &mut self.position
            && position.greet(&beat).is_err()
        {
            self.position = None;
        }
        // A restored store that was written beyond where it had been looks like one that was never away.
        self.doubtful |= self.position.is_some() && self.incarnation != cluster.incarnation;
        if self.position.is_none() {
            assert!(seen.is_none() || self.listings > 0);
            self.known = known(&cluster.store.listing());
            self.position = Some(Position::listed(&beat, beat.revision, RANGES.len()));
            self.listings += 1;
            self.doubtful = false;
        }
        self.incarnation = cluster.incarnation;
        let from = self.position.as_mut().unwrap().resume();
        let watches = RANGES.iter().zip(from).map(|(begins, from)| cluster.watch(member, begins, from));
        match watches.collect::<Option<Vec<Watch>>>() {
            Some(watches) => self.watches = watches,
            // Compacted.
            None => self.position = None,
        }
    }

    fn hear(&mut self, cluster: &SimCluster, chance: &mut Chance, faults: Faults) {
        if self.incarnation != cluster.incarnation {
            return self.watches.clear();
        }
        for range in 0..self.watches.len() {
            let changes = match cluster.next(&mut self.watches[range], chance, faults) {
                Ok(Some(changes)) => changes,
                Ok(None) => continue,
                Err(()) => {
                    (self.position, self.watches) = (None, Vec::new());
                    return;
                }
            };
            let Some(position) = &mut self.position else { return };
            let revisions = match position.heard(range, changes) {
                Ok(revisions) => revisions,
                Err((reason, _)) => {
                    assert_eq!(reason, Relist::WatchError);
                    (self.position, self.watches) = (None, Vec::new());
                    return;
                }
            };
            for change in revisions.into_values().flatten() {
                match change {
                    Change::Put(kv) => drop(self.known.insert(kv.key, (kv.mod_revision, kv.value))),
                    Change::Delete { key, .. } => drop(self.known.remove(&key)),
                }
            }
        }
    }

    /// A heartbeat of the member in use.
    fn beat(&mut self, cluster: &mut SimCluster) {
        let Some(member) = self.watches.first().map(|watch| watch.member) else { return };
        let silent = self.watches.iter().any(|watch| watch.silent) || self.incarnation != cluster.incarnation;
        let Some(position) = &mut self.position else { return };
        match cluster.beat(member).filter(|_| !silent) {
            Some(beat) if position.beat(position.seen(), &beat).is_ok() => {}
            Some(_) => (self.position, self.watches) = (None, Vec::new()),
            None => self.watches.clear(),
        }
    }

    /// Everything is as the store is.
    fn is_right(&self, cluster: &SimCluster) -> bool {
        self.known == known(&cluster.store.listing())
    }
}

fn disturb(cluster: &mut SimCluster, follower: &mut Follower, chance: &mut Chance, history: &mut Vec<String>) {
    let member = chance.below(3);
    let key = format!("/p/{}{}", ["a", "s"][chance.below(2)], chance.below(4));
    match chance.below(30) {
        0..=8 => cluster.write(|store| store.put(&key, &chance.below(1000).to_string())),
        9..=11 => cluster.write(|store| store.delete(&key)),
        12 => cluster.write(|store| store.put("/q/other", "x")),
        13 => cluster.write(|store| store.delete_prefix("/p/a")),
        14 => cluster.write(|store| store.transaction(&[(key, None), ("/p/a9".into(), Some("moved".into()))])),
        15..=18 => cluster.apply(member, 2),
        19 => cluster.members[member].down ^= true,
        20 => cluster.members[member].cut ^= true,
        21 => cluster.write(SimEtcd::compact),
        22 => cluster.back_up(),
        23 if chance.below(3) == 0 => cluster.restore(),
        24 if chance.below(3) == 0 => cluster.wipe(),
        25 => follower.watches.iter_mut().for_each(|watch| watch.silent = true),
        26 => follower.connect(cluster, member),
        _ => follower.beat(cluster),
    }
    history.push(format!("{} at {}", cluster.incarnation, cluster.store.revision));
}

fn simulate(seed: u64, faults: Faults) {
    let mut chance = Chance::new(seed);
    let (mut cluster, mut follower) = (SimCluster::new(), Follower::default());
    let mut history = Vec::new();
    for _ in 0..STEPS {
        disturb(&mut cluster, &mut follower, &mut chance, &mut history);
        if follower.watches.is_empty() {
            follower.connect(&mut cluster, chance.below(3));
        }
        follower.hear(&cluster, &mut chance, faults);
    }
    // All is well again.
    for member in 0..3 {
        (cluster.members[member].down, cluster.members[member].cut) = (false, false);
    }
    for _ in 0..4 {
        follower.beat(&mut cluster);
        if follower.watches.is_empty() {
            follower.connect(&mut cluster, chance.below(3));
        }
        for _ in 0..2 * STEPS {
            follower.hear(&cluster, &mut chance, faults);
        }
    }
    // An event that is overtaken and then lost with its watch is lost like any other.
    if faults.lost + faults.reordered == 0 && !follower.doubtful {
        assert!(follower.is_right(&cluster), "seed {seed}: {:?}\n{history:?}", follower.known);
    }
    // An audit's listing beside the watch.
    let beat = cluster.beat(0).expect("a quorum");
    follower.known = known(&cluster.store.listing());
    let position = follower.position.as_mut().expect("it was listed");
    position.audited(beat.revision);
    assert_eq!(position.greet(&beat), Ok(()), "seed {seed}");
    assert!(follower.is_right(&cluster));
}

fn seeds() -> Vec<u64> {
    let number = |name| std::env::var(name).ok().map(|text: String| text.parse().expect("a number"));
    match number("SEED") {
        Some(seed) => vec![seed],
        None => (1..=number("SEEDS").unwrap_or(SEEDS)).collect(),
    }
}

#[test]
fn whatever_happens_to_members_and_store_what_is_known_is_what_the_store_is() {
    for seed in seeds() {
        simulate(seed, Faults::default());
    }
}

#[test]
fn events_that_are_repeated_or_out_of_order_are_noticed_and_lost_ones_found_by_an_audit() {
    for seed in seeds() {
        simulate(seed, Faults { repeated: 20, ..Faults::default() });
        simulate(seed, Faults { lost: 30, repeated: 20, reordered: 20 });
    }
}

/// The records and revisions of the real etcd and of the simulated one.
async fn compare(client: &mut Client, simulated: &SimEtcd, step: &str) {
    let options = GetOptions::new().with_prefix();
    let answer = client.get("/p/", Some(options)).await.unwrap();
    assert_eq!(answer.header().unwrap().revision(), simulated.revision, "{step}");
    let real: Vec<_> = answer
        .kvs()
        .iter()
        .map(|kv| (kv.key().to_vec(), kv.value().to_vec(), kv.create_revision(), kv.mod_revision()))
        .collect();
    let listing = simulated.listing().into_iter();
    let simulated: Vec<_> = listing.map(|kv| (kv.key, kv.value, kv.create_revision, kv.mod_revision)).collect();
    assert_eq!(real, simulated, "{step}");
}

#[tokio::test]
async fn the_simulated_etcd_is_as_the_real_one() {
    let etcd = real::Etcd::start();
    let mut client = Client::connect([etcd.url()], None).await.unwrap();
    let mut simulated = SimEtcd::new();
    let mut chance = Chance::new(1);
    for step in 0..400 {
        let key = format!("/p/{}", chance.below(12));
        let what = match chance.below(8) {
            0..=3 => {
                simulated.put(&key, &step.to_string());
                client.put(key.as_str(), step.to_string(), None).await.unwrap();
                format!("{step}: put {key}")
            }
            4 => {
                simulated.delete(&key);
                client.delete(key.as_str(), None).await.unwrap();
                format!("{step}: delete {key}")
            }
            5 => {
                simulated.delete_prefix("/p/1");
                client.delete("/p/1", Some(DeleteOptions::new().with_prefix())).await.unwrap();
                format!("{step}: delete --prefix /p/1")
            }
            6 => {
                let other = format!("/p/x{}", chance.below(3));
                simulated.transaction(&[(key.clone(), None), (other.clone(), Some("moved".into()))]);
                let ops = vec![TxnOp::delete(key.as_str(), None), TxnOp::put(other.as_str(), "moved", None)];
                client.txn(Txn::new().and_then(ops)).await.unwrap();
                format!("{step}: move {key} to {other}")
            }
            _ => {
                let revision = simulated.compacted + 1 + chance.below(8) as i64;
                if revision <= simulated.revision && revision > simulated.compacted {
                    simulated.compact_to(revision);
                    client.compact(revision, None).await.unwrap();
                }
                format!("{step}: compact {revision}")
            }
        };
        compare(&mut client, &simulated, &what).await;
        // A version of the past, as far back as history goes.
        let revision = (simulated.revision - chance.below(6) as i64).max(1);
        let past = client.get(key.as_str(), Some(GetOptions::new().with_revision(revision))).await;
        match simulated.at(&key, revision) {
            Some(expected) => {
                let past = past.unwrap();
                let found = past.kvs().first().map(|kv| (kv.value().to_vec(), kv.create_revision(), kv.mod_revision()));
                assert_eq!(
                    found,
                    expected.map(|kv| (kv.value, kv.create_revision, kv.mod_revision)),
                    "{what}, at {revision}"
                );
            }
            None => assert!(past.unwrap_err().to_string().contains("compacted"), "{what}, at {revision}"),
        }
    }
}
