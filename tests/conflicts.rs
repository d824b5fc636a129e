//! Conflicts in the real etcd: agents that hear the records in different orders decide them alike.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on ends"
)]

use std::time::Duration;

use etcd_client::{Client, Txn, TxnOp};
use tokio::{
    sync::mpsc::{self, Receiver},
    time::timeout,
};
use vtepd::{
    desired::{Source, Store, StoreConfig},
    etcd::{Config, Etcd as Edge, Message, Relist, follow},
};

#[path = "support/etcd.rs"]
mod support;
use support::Etcd;

const LONG: Duration = Duration::from_secs(30);
const SOURCES: [(Source, &str); 2] = [(Source::Native, "/p"), (Source::Docker, "/d")];

/// A node's store-wide stage, fed by the two watches of its own.
struct Node {
    store: Store,
    heard: [(Receiver<Message>, i64); 2],
}

impl Node {
    fn start(etcd: &Etcd, name: &str) -> Self {
        let store = Store::new(StoreConfig {
            prefix: "/p".into(),
            docker_prefix: Some("/d".into()),
            node: name.parse().unwrap(),
            vtep: None,
            underlay_mtu: 1500,
            max_removal: 50,
            host_endpoints: false,
        });
        let heard = SOURCES.map(|(_, prefix)| {
            let (sender, receiver) = mpsc::channel(64);
            tokio::spawn(follow(Edge::new(Config::new(vec![etcd.url()], prefix)), sender));
            (receiver, 0)
        });
        Self { store, heard }
    }

    /// Takes what comes until this revision was heard of either layout.
    async fn hear(&mut self, revision: i64) {
        for ((receiver, last), (source, _)) in self.heard.iter_mut().zip(SOURCES) {
            while *last < revision {
                match timeout(LONG, receiver.recv()).await.expect("no message in time").expect("it goes on") {
                    Message::Relist(reason) => self.store.begin_listing(source, reason == Relist::Audit),
                    Message::Page { page, .. } => drop(self.store.list(source, page.records, page.endpoints)),
                    Message::Snapshot { revision, .. } => {
                        self.store.listed(source, revision);
                        *last = revision;
                    }
                    Message::Changes { revision, changes, .. } => {
                        self.store.changes(revision, changes);
                        *last = revision;
                    }
                    Message::Disconnected(error) => panic!("{error}"),
                    _ => {}
                }
            }
        }
    }

    /// Who lost what to whom, and what is rejected: the same on every node.
    fn decided(&self) -> (Vec<String>, Vec<String>) {
        let lost = |c: vtepd::desired::Conflict| format!("{} {}: {} to {}", c.key, c.field, c.claim, c.holder);
        let mut rejected: Vec<String> = self.store.rejections().map(ToString::to_string).collect();
        rejected.sort();
        (self.store.conflicts().map(lost).collect(), rejected)
    }
}

/// Numbers that follow from a seed.
struct Dice(u64);

impl Dice {
    /// 1 to `sides`.
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides + 1
    }

    /// A record of a world in which everything collides with everything.
    fn record(&mut self) -> (String, String) {
        let (a, b, c, d) = (self.roll(3), self.roll(3), self.roll(4), self.roll(5));
        let hex = |n: u64| n.to_string().repeat(64);
        match self.roll(12) {
            1 => (format!("/p/nodes/n{a}"), format!(r#"{{"vtep":"192.168.0.{c}"}}"#)),
            2 => {
                (format!("/p/networks/w{a}"), format!(r#"{{"subnets":[{{"cidr":"10.0.0.0/24","vni":{}}}]}}"#, 700 + c))
            }
            3 => (
                format!("/d/overlay/network/{}", hex(a)),
                format!(r#"[{{"SubnetIP":"10.0.0.0/24","Vni":{}}}]"#, 700 + c),
            ),
            4..=7 => (
                format!("/p/endpoints/w{a}/n{b}/e{d}"),
                format!(
                    r#"{{"ip":["10.0.0.{}"],"mac":"02:00:00:00:00:0{b}","netns":"/run/netns/c{c}"}}"#,
                    self.roll(6)
                ),
            ),
            _ => (
                format!("/d/endpoint/{}/{}", hex(a), hex(d)),
                format!(
                    r#"{{"ep_iface":{{"addr":"10.0.0.{}/24","mac":"02:00:00:00:00:0{b}"}},"locator":"192.168.0.{c}","sandbox":"{}"}}"#,
                    self.roll(6),
                    hex(self.roll(4))
                ),
            ),
        }
    }
}

/// Puts these in one revision, which is returned, with a key of either layout that means nothing.
async fn commit(client: &mut Client, puts: Vec<(String, String)>, deletes: Vec<String>) -> i64 {
    let mut puts: std::collections::BTreeMap<String, String> = puts.into_iter().collect();
    puts.insert("/p/approvals/heard".into(), r#"{"revision":1}"#.into());
    puts.insert("/d/idm/heard".into(), "x".into());
    let ops = puts.into_iter().map(|(key, value)| TxnOp::put(key, value, None));
    let txn =
        Txn::new().and_then(ops.chain(deletes.into_iter().map(|key| TxnOp::delete(key, None))).collect::<Vec<_>>());
    client.txn(txn).await.unwrap().header().unwrap().revision()
}

#[tokio::test]
async fn nodes_that_hear_the_records_in_different_orders_decide_every_conflict_alike() {
    let etcd = Etcd::start();
    let mut client = Client::connect([etcd.url()], None).await.unwrap();
    for seed in 1..=8 {
        client.delete("/", Some(etcd_client::DeleteOptions::new().with_prefix())).await.unwrap();
        let mut dice = Dice(0x9e37_79b9_7f4a_7c15 ^ seed);
        let networks = (1..4).map(|n: u64| {
            (format!("/d/network/{}", n.to_string().repeat(64)), r#"{"networkType":"overlay"}"#.to_owned())
        });
        let mut revision = commit(&mut client, networks.collect(), Vec::new()).await;
        // One hears every change, one starts again in between, one only lists at the end.
        let mut first = Node::start(&etcd, "n1");
        let mut again = Node::start(&etcd, "n2");
        first.hear(revision).await;
        for step in 0..40 {
            let puts = (0..dice.roll(4)).map(|_| dice.record()).collect();
            let deletes = if dice.roll(4) == 1 { vec![dice.record().0] } else { Vec::new() };
            let puts: Vec<_> = Vec::into_iter(puts).filter(|(key, _)| !deletes.contains(key)).collect();
            revision = commit(&mut client, puts, deletes).await;
            if step == 20 {
                again.hear(revision).await;
                again = Node::start(&etcd, "n2");
            }
        }
        first.hear(revision).await;
        again.hear(revision).await;
        let mut last = Node::start(&etcd, "n3");
        last.hear(revision).await;
        let mut rounds = 0;
        loop {
            let decided = last.decided();
            assert_eq!(first.decided(), decided, "seed {seed}, round {rounds}");
            assert_eq!(again.decided(), decided, "seed {seed}, round {rounds}");
            assert!(rounds > 0 || decided.0.len() > 2, "too little collides: {decided:?}");
            // When the winners go their losers are taken, or lose to another: until nobody loses.
            let winners: Vec<String> = last.store.conflicts().map(|c| last.store.whole_key(&c.holder)).collect();
            let losers: Vec<String> = last.store.conflicts().map(|c| last.store.whole_key(&c.key)).collect();
            if winners.is_empty() {
                break;
            }
            let mut winners: Vec<String> = winners.into_iter().filter(|key| !losers.contains(key)).collect();
            winners.sort();
            winners.dedup();
            revision = commit(&mut client, Vec::new(), winners).await;
            for node in [&mut first, &mut again, &mut last] {
                node.hear(revision).await;
            }
            rounds += 1;
        }
        assert!(rounds > 0);
    }
}
