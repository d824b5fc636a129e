//! What the agents of all nodes say of themselves, at one glance.

use etcd_client::{GetOptions, SortOrder, SortTarget, Txn, TxnOp, TxnOpResponse};

use super::{
    error::Error,
    list::{ranges, record},
    members::Etcd,
};
use crate::schema::Kv;

/// All nodes, as of one revision of the store.
#[derive(Debug)]
pub struct Fleet {
    /// The store's revision.
    pub revision: i64,
    /// The revision of the newest record below the prefixes; 0 where there is none. A record that was deleted since does not
    /// show: [`Etcd::changed_between`] tells.
    pub newest: i64,
    /// The records of nodes.
    pub nodes: Vec<Kv>,
    /// What their agents last said.
    pub statuses: Vec<Kv>,
    /// What stands for as long as an agent lives.
    pub alive: Vec<Kv>,
}

impl Etcd {
    /// All nodes; the records are those below the own prefix and, where Docker's layout is read, below that.
    ///
    /// # Errors
    /// No answer, or not allowed.
    pub async fn fleet(&self, docker_prefix: Option<&str>) -> Result<Fleet, Error> {
        let below = |kind: &str| TxnOp::get(format!("{}/{kind}/", self.prefix), Some(GetOptions::new().with_prefix()));
        let newest = self.records_of(docker_prefix).into_iter().map(|(from, to)| {
            let newest_first = GetOptions::new().with_sort(SortTarget::Mod, SortOrder::Descend);
            TxnOp::get(from, Some(newest_first.with_range(to).with_limit(1).with_keys_only()))
        });
        let gets: Vec<TxnOp> = ["nodes", "status", "alive"].map(below).into_iter().chain(newest).collect();
        let answer = self.txn(Txn::new().and_then(gets)).await?;
        let revision = answer.header().ok_or(Error::Headless)?.revision();
        let mut answers = answer.op_responses().into_iter().filter_map(|answer| match answer {
            TxnOpResponse::Get(mut found) => Some(found.take_kvs().into_iter().map(record).collect::<Vec<Kv>>()),
            _ => None,
        });
        let mut next = || answers.next().unwrap_or_default();
        let (nodes, statuses, alive) = (next(), next(), next());
        let newest = answers.flatten().map(|kv| kv.mod_revision).max().unwrap_or(0);
        Ok(Fleet { revision, newest, nodes, statuses, alive })
    }

    /// Whether a record was written or deleted after the first revision and up to the second one. Deletions that are compacted
    /// away do not count: they are older than what etcd remembers.
    ///
    /// # Errors
    /// No answer, or the second revision lies in the future.
    pub async fn changed_between(&self, docker_prefix: Option<&str>, after: i64, upto: i64) -> Result<bool, Error> {
        if upto <= after {
            return Ok(false);
        }
        for (from, to) in self.records_of(docker_prefix) {
            let as_of = |revision| GetOptions::new().with_range(to.clone()).with_revision(revision);
            let written = as_of(upto).with_min_mod_revision(after + 1).with_limit(1).with_keys_only();
            if !self.get(from.clone(), written).await?.kvs().is_empty() {
                return Ok(true);
            }
            // Nothing was written, so that a smaller number tells of deletions.
            let now = self.get(from.clone(), as_of(upto).with_count_only()).await?;
            match self.get(from, as_of(after).with_count_only()).await {
                Ok(before) if before.count() != now.count() => return Ok(true),
                Err(Error::Compacted) => {}
                Err(error) => return Err(error),
                Ok(_) => {}
            }
        }
        Ok(false)
    }

    fn records_of(&self, docker_prefix: Option<&str>) -> Vec<(String, String)> {
        ranges(&self.prefix).into_iter().chain(docker_prefix.into_iter().flat_map(ranges)).collect()
    }
}
