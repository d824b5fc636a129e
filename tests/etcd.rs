//! The edge to etcd against the real program.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on ends"
)]

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use etcd_client::{Client, Txn, TxnOp};
use nix::sys::signal::Signal;
use tokio::{
    sync::mpsc::{self, Receiver},
    time::timeout,
};
use vtepd::{
    desired::{Source, Store, StoreConfig},
    etcd::{Config, Etcd as Edge, Message, Relist, follow},
    schema::{Change, Kv},
};

#[path = "support/etcd.rs"]
mod support;
use support::Etcd;

const LONG: Duration = Duration::from_secs(30);

fn config(etcd: &Etcd) -> Config {
    let mut config = Config::new(vec![etcd.url()], "/p");
    config.heartbeat = Duration::from_millis(200);
    config.timeout = Duration::from_secs(1);
    config.audit = Duration::from_secs(3600);
    config.audit_settle = Duration::from_millis(50);
    config.retry = (Duration::from_millis(100), Duration::from_secs(1));
    config
}

/// What the edge said, and the records that follow from it.
struct Heard {
    receiver: Receiver<Message>,
    records: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The pages since something was last about to be listed.
    listed: Vec<Kv>,
    relists: Vec<Relist>,
    snapshots: usize,
    disconnects: usize,
}

impl Heard {
    fn follow(config: Config) -> Self {
        let (sender, receiver) = mpsc::channel(64);
        tokio::spawn(follow(Edge::new(config), sender));
        Self {
            receiver,
            records: BTreeMap::new(),
            listed: Vec::new(),
            relists: Vec::new(),
            snapshots: 0,
            disconnects: 0,
        }
    }

    /// The next message that is no sign of life.
    async fn next(&mut self) -> Message {
        loop {
            let message =
                timeout(LONG, self.receiver.recv()).await.expect("no message in time").expect("follow goes on");
            match &message {
                Message::Contact(_) => continue,
                Message::Relist(reason) => {
                    self.relists.push(*reason);
                    self.listed.clear();
                }
                Message::Page { page, .. } => {
                    self.listed.extend(page.records.iter().cloned());
                    continue;
                }
                Message::Snapshot { .. } => {
                    self.snapshots += 1;
                    self.records = self.listed.iter().map(|kv| (kv.key.clone(), kv.value.clone())).collect();
                }
                Message::Changes { changes, .. } => {
                    for change in changes {
                        match change {
                            Change::Put(kv) => self.records.insert(kv.key.clone(), kv.value.clone()),
                            Change::Delete { key, .. } => self.records.remove(key),
                        };
                    }
                }
                Message::Disconnected(_) => self.disconnects += 1,
                Message::Audit { .. } => {}
            }
            return message;
        }
    }

    async fn until(&mut self, key: &str, value: Option<&str>) {
        let value = value.map(|value| value.as_bytes().to_vec());
        while self.records.get(key.as_bytes()) != value.as_ref() {
            self.next().await;
        }
    }

    async fn snapshot(&mut self) -> (i64, Vec<Kv>) {
        loop {
            if let Message::Snapshot { revision, .. } = self.next().await {
                return (revision, self.listed.clone());
            }
        }
    }

    async fn changes(&mut self) -> (i64, Vec<Change>) {
        loop {
            if let Message::Changes { revision, changes, .. } = self.next().await {
                return (revision, changes);
            }
        }
    }
}

async fn client(etcd: &Etcd) -> Client {
    Client::connect([etcd.url()], None).await.unwrap()
}

#[tokio::test]
async fn a_snapshot_comes_first_and_then_the_changes() {
    let etcd = Etcd::start();
    let mut client = client(&etcd).await;
    client.put("/p/nodes/a", "1", None).await.unwrap();
    client.put("/p0/nodes/a", "of another prefix", None).await.unwrap();
    client.put("/px", "of another prefix", None).await.unwrap();
    let mut heard = Heard::follow(config(&etcd));
    assert!(matches!(heard.next().await, Message::Relist(Relist::Start)));
    let Message::Snapshot { revision, .. } = heard.next().await else { panic!("no snapshot") };
    let records = &heard.listed;
    assert_eq!((revision, records.len()), (4, 1));
    assert_eq!((records[0].create_revision, records[0].mod_revision), (2, 2));
    client.put("/p/nodes/a", "2", None).await.unwrap();
    client.put("/px", "of another prefix", None).await.unwrap();
    client.delete("/p/nodes/a", None).await.unwrap();
    let (revision, changes) = heard.changes().await;
    assert!(matches!(&changes[..], [Change::Put(kv)] if kv.create_revision == 2 && kv.mod_revision == 5));
    assert_eq!(revision, 5);
    let (revision, changes) = heard.changes().await;
    assert_eq!((revision, changes), (7, vec![Change::Delete { key: b"/p/nodes/a".to_vec(), revision: 7 }]));
}

#[tokio::test]
async fn the_events_of_one_transaction_come_together() {
    let etcd = Etcd::start();
    let mut client = client(&etcd).await;
    client.put("/p/endpoints/n/a/e", "old", None).await.unwrap();
    let mut heard = Heard::follow(config(&etcd));
    heard.snapshot().await;
    let mut ops: Vec<TxnOp> = (0..500).map(|i| TxnOp::put(format!("/p/nodes/n{i}"), "x".repeat(500), None)).collect();
    ops.push(TxnOp::delete("/p/endpoints/n/a/e", None));
    client.txn(Txn::new().and_then(ops)).await.unwrap();
    let (_, changes) = heard.changes().await;
    assert_eq!(changes.len(), 501);
}

#[tokio::test]
async fn a_large_store_is_listed_in_pages_of_one_revision() {
    let etcd = Etcd::start();
    let mut client = client(&etcd).await;
    for page in 0..11 {
        let key = |i| format!("/p/endpoints/n/a/e{page}-{i}");
        let ops: Vec<TxnOp> = (0..1000).map(|i| TxnOp::put(key(i), "{}", None)).collect();
        client.txn(Txn::new().and_then(ops)).await.unwrap();
    }
    let mut config = config(&etcd);
    config.page = 997;
    let mut heard = Heard::follow(config);
    let (revision, records) = heard.snapshot().await;
    assert_eq!((revision, records.len(), heard.records.len()), (12, 11_000, 11_000), "each once");
}

#[tokio::test]
async fn a_crash_of_the_server_loses_no_event_and_heats_nothing() {
    let mut etcd = Etcd::start();
    let mut heard = Heard::follow(config(&etcd));
    heard.snapshot().await;
    client(&etcd).await.put("/p/nodes/a", "before", None).await.unwrap();
    heard.until("/p/nodes/a", Some("before")).await;
    let since = Instant::now();
    etcd.crash();
    tokio::time::sleep(Duration::from_secs(3)).await;
    etcd.restart();
    client(&etcd).await.put("/p/nodes/a", "after", None).await.unwrap();
    heard.until("/p/nodes/a", Some("after")).await;
    assert_eq!(heard.relists, [Relist::Start], "the watch goes on from where it was");
    let most = 5 + since.elapsed().as_millis() / 500;
    assert!(heard.disconnects >= 1 && heard.disconnects as u128 <= most, "{} attempts", heard.disconnects);
}

#[tokio::test]
async fn what_was_compacted_while_the_server_was_away_is_listed() {
    let mut etcd = Etcd::start();
    client(&etcd).await.put("/p/nodes/gone", "x", None).await.unwrap();
    // Slow to come back, so that the store goes on without us.
    let mut config = config(&etcd);
    config.retry = (Duration::from_secs(2), Duration::from_secs(3));
    let mut heard = Heard::follow(config);
    heard.snapshot().await;
    etcd.crash();
    etcd.restart();
    let mut client = client(&etcd).await;
    client.delete("/p/nodes/gone", None).await.unwrap();
    for i in 0..10 {
        client.put("/p/nodes/a", format!("{i}"), None).await.unwrap();
    }
    let revision = client.get("x", None).await.unwrap().header().unwrap().revision();
    client.compact(revision, None).await.unwrap();
    heard.until("/p/nodes/a", Some("9")).await;
    assert!(!heard.records.contains_key(b"/p/nodes/gone".as_slice()));
    assert_eq!(heard.snapshots, 2);
    client.put("/p/nodes/a", "next", None).await.unwrap();
    heard.until("/p/nodes/a", Some("next")).await;
}

#[tokio::test]
async fn a_frozen_server_is_noticed_and_found_again() {
    let etcd = Etcd::start();
    let mut heard = Heard::follow(config(&etcd));
    heard.snapshot().await;
    etcd.signal(Signal::SIGSTOP);
    let since = Instant::now();
    while heard.disconnects == 0 {
        heard.next().await;
    }
    assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
    etcd.signal(Signal::SIGCONT);
    client(&etcd).await.put("/p/nodes/a", "thawed", None).await.unwrap();
    heard.until("/p/nodes/a", Some("thawed")).await;
}

#[tokio::test]
async fn a_wiped_store_is_told_as_a_rollback() {
    let mut etcd = Etcd::start();
    let mut heard = Heard::follow(config(&etcd));
    let mut writer = client(&etcd).await;
    for i in 0..5 {
        writer.put("/p/nodes/a", format!("{i}"), None).await.unwrap();
    }
    heard.until("/p/nodes/a", Some("4")).await;
    etcd.wipe();
    etcd.restart();
    heard.until("/p/nodes/a", None).await;
    assert_eq!(heard.relists.last(), Some(&Relist::Rollback));
}

#[tokio::test]
async fn an_audit_beside_a_running_watch_finds_nothing_when_all_is_right() {
    let etcd = Etcd::start();
    let mut client = client(&etcd).await;
    client.put("/p/networks/n", r#"{"subnets":[{"cidr":"10.0.0.0/16","vni":7}]}"#, None).await.unwrap();
    let mut config = config(&etcd);
    config.audit = Duration::from_millis(100);
    config.page = 10;
    let mut heard = Heard::follow(config);
    let store = StoreConfig {
        prefix: "/p".into(),
        docker_prefix: None,
        node: "a".parse().unwrap(),
        vtep: Some("192.168.0.1".parse().unwrap()),
        host_endpoints: false,
        underlay_mtu: 1500,
        max_removal: 50,
    };
    let mut store = Store::new(store);
    let writer = tokio::spawn(async move {
        for i in 0..1000_u32 {
            let key = format!("/p/endpoints/n/a/e{}", i % 50);
            if i % 3 == 2 {
                client.delete(key, None).await.unwrap();
            } else {
                let value = format!(r#"{{"ip":["10.0.{}.{}"],"netns":"/run/netns/x{i}"}}"#, i % 50, i % 200 + 2);
                client.put(key, value, None).await.unwrap();
            }
        }
    });
    let mut audits = 0;
    while audits < 5 || !writer.is_finished() {
        match heard.next().await {
            Message::Snapshot { revision, .. } => drop(store.snapshot(revision, heard.listed.clone())),
            Message::Changes { revision, changes, .. } => drop(store.changes(revision, changes)),
            Message::Audit { revision, touched } => {
                store.begin_listing(Source::Native, true);
                store.list(Source::Native, heard.listed.clone(), true);
                let audited = store.audited(Source::Native, revision, &touched);
                assert_eq!((audited.differences, audited.updates.len()), (0, 0));
                audits += 1;
            }
            Message::Relist(reason) => assert!(matches!(reason, Relist::Start | Relist::Audit), "{reason:?}"),
            Message::Disconnected(error) => panic!("{error}"),
            Message::Contact(_) | Message::Page { .. } => {}
        }
    }
    writer.await.unwrap();
    assert_eq!(heard.snapshots, 1);
}

#[tokio::test]
async fn a_node_is_registered_once_and_an_operators_word_is_kept() {
    let etcd = Etcd::start();
    let edge = Edge::connect(&config(&etcd)).await.unwrap();
    let node = "a".parse().unwrap();
    let [found, other] = ["192.168.0.1", "192.168.0.2"].map(|ip| ip.parse().unwrap());
    assert_eq!(edge.read_node(&node).await.unwrap(), None);
    assert_eq!(edge.register_node(&node, found, false).await.unwrap(), found);
    assert_eq!(edge.register_node(&node, other, false).await.unwrap(), found, "an existing record wins over detection");
    assert_eq!(edge.register_node(&node, other, true).await.unwrap(), other, "a given address wins over the record");
    assert_eq!(edge.read_node(&node).await.unwrap().unwrap().vtep, other);
    let before = edge.read(b"/p/nodes/a", 0).await.unwrap().unwrap().mod_revision;
    edge.register_node(&node, other, true).await.unwrap();
    let after = edge.read(b"/p/nodes/a", 0).await.unwrap().unwrap();
    assert_eq!(before, after.mod_revision, "nothing is written when nothing differs");
    let history = edge.read(b"/p/nodes/a", before - 1).await.unwrap().unwrap();
    assert_eq!(history.value, br#"{"vtep":"192.168.0.1"}"#);
}

#[tokio::test]
async fn follow_ends_when_nobody_listens() {
    let etcd = Etcd::start();
    let (sender, receiver) = mpsc::channel(4);
    let task = tokio::spawn(follow(Edge::new(config(&etcd)), sender));
    drop(receiver);
    timeout(Duration::from_secs(5), task).await.expect("it ends").unwrap();
}
