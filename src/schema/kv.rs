use std::fmt;

/// A key and its value as etcd holds them.
#[derive(Clone, PartialEq, Eq)]
pub struct Kv {
    /// The whole key, prefix included.
    pub key: Vec<u8>,
    /// The value.
    pub value: Vec<u8>,
    /// The revision that made the key: claims go to the lower one.
    pub create_revision: i64,
    /// The revision that wrote this value.
    pub mod_revision: i64,
}

/// One event of a watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The key was written.
    Put(Kv),
    /// The key was deleted.
    Delete {
        /// The whole key, prefix included.
        key: Vec<u8>,
        /// The revision that deleted it.
        revision: i64,
    },
}

impl Change {
    /// The key that changed.
    pub fn key(&self) -> &[u8] {
        match self {
            Self::Put(kv) => &kv.key,
            Self::Delete { key, .. } => key,
        }
    }

    /// The revision of the change.
    pub fn revision(&self) -> i64 {
        match self {
            Self::Put(kv) => kv.mod_revision,
            Self::Delete { revision, .. } => *revision,
        }
    }
}

impl fmt::Debug for Kv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}/{}", self.key.escape_ascii(), self.create_revision, self.mod_revision)
    }
}
