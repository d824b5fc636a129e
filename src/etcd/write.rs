//! The few records that an agent writes, and single reads.

use std::{collections::BTreeSet, net::IpAddr};

use etcd_client::{Client, Compare, CompareOp, GetOptions, Txn, TxnOp};

use super::{error::Error, list::record, members::Etcd};
use crate::{
    model::{Name, Node},
    schema::{self, Key, Kv},
};

/// How often a write is tried that others get in the way of.
const ATTEMPTS: usize = 5;

impl Etcd {
    /// A record as of a revision, or the newest one as of revision 0.
    ///
    /// # Errors
    /// No answer, or the revision is compacted.
    pub async fn read(&self, key: &[u8], revision: i64) -> Result<Option<Kv>, Error> {
        let mut answer = self.get(key, GetOptions::new().with_revision(revision)).await?;
        Ok(answer.take_kvs().into_iter().next().map(record))
    }

    /// A node's record.
    ///
    /// # Errors
    /// No answer, or the record is bad.
    pub async fn read_node(&self, node: &Name) -> Result<Option<Node>, Error> {
        let key = Key::Node(node.clone()).under(&self.prefix).into_bytes();
        let found = self.read(&key, 0).await?;
        Ok(found.map(|kv| schema::node(&key, &kv.value)).transpose()?)
    }

    /// The VTEP addresses of all nodes; of a record that is bad, none.
    ///
    /// # Errors
    /// No answer, or not allowed.
    pub async fn read_vteps(&self) -> Result<Vec<IpAddr>, Error> {
        let answer = self.get(format!("{}/nodes/", self.prefix), GetOptions::new().with_prefix()).await?;
        Ok(answer.kvs().iter().filter_map(|kv| schema::node(kv.key(), kv.value()).ok()).map(|node| node.vtep).collect())
    }

    /// Makes sure that the node has a record, and says which VTEP stands in it. An address that was `given` is written over
    /// another one; an address that was only found does not replace what an operator wrote.
    ///
    /// # Errors
    /// No answer, not allowed, or the record that stands there is bad and no address was given.
    pub async fn register_node(&self, node: &Name, vtep: IpAddr, given: bool) -> Result<IpAddr, Error> {
        let key = Key::Node(node.clone()).under(&self.prefix).into_bytes();
        for _ in 0..ATTEMPTS {
            let found = self.read(&key, 0).await?;
            let unchanged = found.as_ref().map_or(0, |kv| kv.mod_revision);
            match found.map(|kv| schema::node(&key, &kv.value)).transpose() {
                Ok(Some(record)) if !given || record.vtep == vtep => return Ok(record.vtep),
                Err(rejected) if !given => return Err(rejected.into()),
                _ => {}
            }
            let value = serde_json::json!({ "vtep": vtep }).to_string();
            if self.put_if(&key, unchanged, value).await? {
                return Ok(vtep);
            }
        }
        Err(Error::Contended(Key::Node(node.clone()).to_string()))
    }

    /// A node's status as it stands.
    ///
    /// # Errors
    /// No answer, or not allowed.
    pub async fn read_status(&self, node: &Name) -> Result<Option<Vec<u8>>, Error> {
        let key = Key::Status(node.clone()).under(&self.prefix);
        Ok(self.read(key.as_bytes(), 0).await?.map(|kv| kv.value))
    }

    /// Writes a node's status.
    ///
    /// # Errors
    /// No answer, or not allowed.
    pub async fn write_status(&self, node: &Name, status: &str) -> Result<(), Error> {
        let key = Key::Status(node.clone()).under(&self.prefix);
        let put = |client: Client| {
            let (key, status) = (key.clone(), status.to_owned());
            async move { client.kv_client().put(key, status, None).await }
        };
        self.call(put).await.map(drop)
    }

    /// Gives the store an identity if it has none. Returns whether this one stands.
    ///
    /// # Errors
    /// No answer, or not allowed.
    pub async fn create_identity(&self, id: &str) -> Result<bool, Error> {
        let value = serde_json::json!({ "id": id }).to_string();
        self.put_if(Key::Store.under(&self.prefix).as_bytes(), 0, value).await
    }

    /// Lets removals of a network happen that are held up to now. Returns the revision up to which.
    ///
    /// # Errors
    /// No answer, or not allowed.
    pub async fn approve(&self, network: &Name) -> Result<i64, Error> {
        let key = Key::Approval(network.clone()).under(&self.prefix);
        let found = self.get(key.clone(), GetOptions::new().with_keys_only()).await?;
        let revision = found.header().ok_or(Error::Headless)?.revision();
        let value = serde_json::json!({ "revision": revision }).to_string();
        let put = |client: Client| {
            let (key, value) = (key.clone(), value.clone());
            async move { client.kv_client().put(key, value, None).await }
        };
        self.call(put).await?;
        Ok(revision)
    }

    /// The networks of which some agent's status says that it holds removals.
    ///
    /// # Errors
    /// No answer, or not allowed.
    pub async fn held_networks(&self) -> Result<BTreeSet<Name>, Error> {
        let answer = self.get(format!("{}/status/", self.prefix), GetOptions::new().with_prefix()).await?;
        let statuses =
            answer.kvs().iter().filter_map(|kv| serde_json::from_slice::<serde_json::Value>(kv.value()).ok());
        let held = statuses.flat_map(|status| match status.pointer("/held/first") {
            Some(serde_json::Value::Array(held)) => held.clone(),
            _ => Vec::new(),
        });
        Ok(held.filter_map(|held| held.get("network")?.as_str()?.parse().ok()).collect())
    }

    /// Writes only if the key's last revision is still this one (0: it does not exist).
    async fn put_if(&self, key: &[u8], mod_revision: i64, value: String) -> Result<bool, Error> {
        let unchanged = Compare::mod_revision(key, CompareOp::Equal, mod_revision);
        let txn = Txn::new().when([unchanged]).and_then([TxnOp::put(key, value, None)]);
        Ok(self.txn(txn).await?.succeeded())
    }
}
