//! All nodes as etcd knows them: what `vtepd status`, `wait` and `apply` look at.

mod shown;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::options::Records;
use crate::{
    agent::NodeStatus,
    etcd::{self, Etcd},
    schema::Kv,
};

pub(super) use shown::{complaints, table};

/// A look at all nodes.
#[derive(Debug, Serialize)]
pub(super) struct Nodes {
    /// The store's revision.
    pub(super) revision: i64,
    /// That of the newest record.
    pub(super) newest: i64,
    /// By name.
    pub(super) nodes: Vec<Node>,
}

/// What is known of a node.
#[derive(Debug, Serialize)]
pub(super) struct Node {
    pub(super) node: String,
    /// Its VTEP address as its record has it; none where it has no record.
    pub(super) vtep: Option<String>,
    pub(super) alive: bool,
    /// Since when its agent runs.
    pub(super) since: Option<String>,
    /// What its agent last said; none where none ever said anything.
    pub(super) status: Option<NodeStatus>,
}

impl Node {
    /// Whether an agent is or was there: not with a VTEP that somebody wrote down by hand.
    pub(super) const fn has_agent(&self) -> bool {
        self.alive || self.status.is_some()
    }

    /// The newest revision that it has applied.
    pub(super) fn applied(&self) -> i64 {
        self.status.as_ref().map_or(0, |status| status.revision)
    }

    /// Whether its agent lives and all is as etcd says.
    pub(super) fn is_right(&self) -> bool {
        self.alive && self.status.as_ref().is_some_and(|status| status.in_sync)
    }

    /// Why it is not right, in words.
    pub(super) fn because(&self) -> String {
        let Some(status) = &self.status else {
            return if self.alive { "has said nothing yet".to_owned() } else { "no agent".to_owned() };
        };
        let lagging = || {
            let first = status.lagging.first.first();
            first.map_or_else(|| "not in sync".to_owned(), |first| format!("{}: {}", first.network, first.reason))
        };
        match (self.alive, status.in_sync) {
            (false, _) => format!("agent not alive; this is of {}", status.time),
            (true, false) => lagging(),
            (true, true) => String::new(),
        }
    }
}

/// What an agent says of its life.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Alive {
    since: Option<String>,
}

/// The VTEP address of a node's record.
#[derive(Debug, Deserialize)]
struct Record {
    vtep: String,
}

/// What looks, over one connection.
pub(super) struct Watcher {
    etcd: Etcd,
    docker_prefix: Option<String>,
    /// Revisions after which nothing was written or deleted up to a revision, and those after which something was.
    asked: BTreeMap<(i64, i64), bool>,
}

impl Watcher {
    pub(super) fn new(records: &Records) -> Result<Self, String> {
        let (config, docker_prefix) = (records.etcd()?, records.docker_prefix.clone());
        Ok(Self { etcd: Etcd::new(config), docker_prefix, asked: BTreeMap::new() })
    }

    /// Looks at all nodes.
    pub(super) async fn look(&mut self) -> Result<Nodes, etcd::Error> {
        let fleet = self.etcd.fleet(self.docker_prefix.as_deref()).await;
        let etcd::Fleet { revision, newest, nodes, statuses, alive } = fleet?;
        let by_name = |records: Vec<Kv>| -> BTreeMap<String, Vec<u8>> {
            let name = |key: &[u8]| String::from_utf8_lossy(key).rsplit('/').next().unwrap_or_default().to_owned();
            records.into_iter().map(|kv| (name(&kv.key), kv.value)).collect()
        };
        let (nodes, statuses, alive) = (by_name(nodes), by_name(statuses), by_name(alive));
        // A status alone is what is left of a node that was taken out of the fleet.
        let names: BTreeSet<&String> = nodes.keys().chain(alive.keys()).collect();
        let node = |name: &String| {
            let lives = alive.get(name).map(|value| serde_json::from_slice::<Alive>(value).unwrap_or_default());
            Node {
                node: name.clone(),
                vtep: nodes.get(name).and_then(|value| serde_json::from_slice(value).ok()).map(|r: Record| r.vtep),
                alive: lives.is_some(),
                since: lives.and_then(|alive| alive.since),
                status: statuses.get(name).and_then(|value| serde_json::from_slice(value).ok()),
            }
        };
        Ok(Nodes { revision, newest, nodes: names.into_iter().map(node).collect() })
    }

    /// Whether a node has applied a revision: the one that it tells, or one after which nothing happened that concerns it.
    pub(super) async fn has_applied(&mut self, node: &Node, revision: i64) -> Result<bool, etcd::Error> {
        let Some(status) = &node.status else { return Ok(false) };
        if status.revision >= revision {
            return Ok(true);
        }
        let between = (status.revision, revision);
        if let Some(changed) = self.asked.get(&between) {
            return Ok(!changed);
        }
        let etcd = self.etcd.clone();
        let changed = etcd.changed_between(self.docker_prefix.as_deref(), between.0, between.1).await?;
        self.asked.insert(between, changed);
        Ok(!changed)
    }
}
