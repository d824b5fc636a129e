//! Several records in one transaction.

use etcd_client::{Compare, CompareOp, GetOptions, Txn, TxnOp};

use super::{error::Error, members::Etcd};

/// A record to write, or to delete, if it is still as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// The whole key.
    pub key: String,
    /// Its last revision; 0 where it does not exist.
    pub unchanged: i64,
    /// The value; `None` deletes it.
    pub value: Option<String>,
}

/// How a transaction went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Written {
    /// All of it stands, since this revision.
    At(i64),
    /// Nothing was written: some record is not as it was any more.
    Contended,
    /// Nothing was written: the server takes no transaction of so many operations (`--max-txn-ops`, 128 by default).
    TooMany,
}

impl Etcd {
    /// Writes all of it or nothing.
    ///
    /// # Errors
    /// No answer, or not allowed. Without an answer it may stand all the same.
    pub async fn transact(&self, writes: &[Write]) -> Result<Written, Error> {
        let unchanged = |write: &Write| Compare::mod_revision(write.key.as_str(), CompareOp::Equal, write.unchanged);
        let op = |write: &Write| match &write.value {
            Some(value) => TxnOp::put(write.key.as_str(), value.as_str(), None),
            None => TxnOp::delete(write.key.as_str(), None),
        };
        let compares: Vec<Compare> = writes.iter().map(unchanged).collect();
        let ops: Vec<TxnOp> = writes.iter().map(op).collect();
        match self.txn(Txn::new().when(compares).and_then(ops)).await {
            Ok(answer) if answer.succeeded() => Ok(Written::At(answer.header().ok_or(Error::Headless)?.revision())),
            Ok(_) => Ok(Written::Contended),
            Err(error) if error.to_string().contains("too many operations") => Ok(Written::TooMany),
            Err(error) => Err(error),
        }
    }

    /// The values that stand at these whole keys, in their order.
    ///
    /// # Errors
    /// No answer, or not allowed.
    pub async fn values(&self, keys: &[String]) -> Result<Vec<Option<Vec<u8>>>, Error> {
        let mut values = Vec::with_capacity(keys.len());
        for key in keys {
            let mut answer = self.get(key.as_str(), GetOptions::new()).await?;
            values.push(answer.take_kvs().into_iter().next().map(|kv| kv.into_key_value().1));
        }
        Ok(values)
    }
}
