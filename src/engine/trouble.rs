//! Objects whose last operation or read failed: each is tried again on its own, 100 ms to 60 s later, and holds up nothing else.

use std::{collections::BTreeMap, time::Duration};

use super::{
    key::Key,
    report::Blocked,
    seam::{Failure, FailureKind},
    time::Time,
};
use crate::retry::Retry;

pub(super) const FIRST_RETRY: Duration = Duration::from_millis(100);
pub(super) const LAST_RETRY: Duration = Duration::from_secs(60);

#[derive(Debug)]
struct Trouble {
    retry: Retry,
    at: Time,
    failure: Failure,
}

/// The troubles by object.
#[derive(Debug, Default)]
pub(super) struct Troubles {
    by_key: BTreeMap<Key, Trouble>,
}

impl Troubles {
    /// Notes a failure, and gives when to try again.
    pub(super) fn failed(&mut self, key: &Key, failure: Failure, now: Time) -> Time {
        let trouble = self.by_key.entry(key.clone()).or_insert_with(|| Trouble {
            retry: Retry::new(FIRST_RETRY, LAST_RETRY, key.salt()),
            at: now,
            failure: failure.clone(),
        });
        trouble.at = now + trouble.retry.delay();
        trouble.failure = failure;
        trouble.at
    }

    /// An object works again.
    pub(super) fn over(&mut self, key: &Key) {
        self.by_key.remove(key);
    }

    /// Whether an object must be left alone for now.
    pub(super) fn holds(&self, key: &Key, now: Time) -> bool {
        self.by_key.get(key).is_some_and(|trouble| trouble.at > now)
    }

    /// Why an object's last operation failed.
    pub(super) fn reason(&self, key: &Key) -> Option<FailureKind> {
        self.by_key.get(key).map(|trouble| trouble.failure.kind)
    }

    /// Forgets the troubles of objects that no longer differ.
    pub(super) fn retain(&mut self, still: impl Fn(&Key) -> bool) {
        self.by_key.retain(|key, _| still(key));
    }

    /// When the next object may be tried again. Those that may be tried already are waiting for something else.
    pub(super) fn next_at(&self, now: Time) -> Option<Time> {
        self.by_key.values().map(|trouble| trouble.at).filter(|at| *at > now).min()
    }

    /// The objects that cannot be made; a shortage that passes by itself is not counted.
    pub(super) fn blocked(&self) -> impl Iterator<Item = Blocked> {
        let lasting = |trouble: &Trouble| !matches!(trouble.failure.kind, FailureKind::Resources | FailureKind::Torn);
        self.by_key.iter().filter(move |(_, trouble)| lasting(trouble)).map(|(key, trouble)| Blocked {
            object: key.to_string(),
            kind: key.kind(),
            reason: trouble.failure.kind.as_str(),
            message: trouble.failure.message.clone(),
        })
    }
}
