//! What outlives this agent, and says when removals are held: the memory of the store in the run directory, and the store's
//! identity.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use tokio::{sync::watch, task::JoinHandle};
use tracing::{error, info, warn};

use crate::{
    desired::{HeldRemovals, HoldReason, Memory, Store},
    etcd::Etcd,
    model::Name,
    retry::Retry,
};

/// Held removals are named in the log again after this time.
const AGAIN: Duration = Duration::from_secs(60);
/// So many networks are named at a time.
const NAMED: usize = 32;

/// The file of an instance.
fn path(run_dir: &Path, instance: &str) -> PathBuf {
    run_dir.join(format!("{instance}.store.json"))
}

/// What the agent before this one knew of the store. The directory dies with the boot, as the kernel's state does.
pub(super) fn remembered(run_dir: &Path, instance: &str) -> Option<Memory> {
    let path = path(run_dir, instance);
    let read = fs::read(&path).and_then(|text| Ok(serde_json::from_slice(&text)?));
    match read {
        Ok(memory) => Some(memory),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            warn!(path = %path.display(), %error, "cannot read what the agent before this one knew of the store");
            None
        }
    }
}

/// Writes the whole file or nothing.
fn write(path: &Path, memory: &Memory) -> io::Result<()> {
    let beside = path.with_extension("json.new");
    fs::write(&beside, serde_json::to_vec(memory)?)?;
    fs::rename(&beside, path)
}

/// Looks after all that once a second.
pub(super) struct Keeper {
    path: PathBuf,
    written: Option<Memory>,
    failed: bool,
    said: BTreeMap<Name, HoldReason>,
    said_at: Instant,
    /// Whether the store is to have an identity and has none.
    lacks_identity: watch::Sender<bool>,
    writer: JoinHandle<()>,
}

impl Keeper {
    pub(super) fn new(run_dir: &Path, instance: &str, etcd: Etcd) -> Self {
        let (lacks_identity, lacks) = watch::channel(false);
        Self {
            path: path(run_dir, instance),
            written: None,
            failed: false,
            said: BTreeMap::new(),
            said_at: Instant::now(),
            lacks_identity,
            writer: tokio::spawn(give_identity(etcd, lacks)),
        }
    }

    /// Takes a look at the store. Returns the removals that are held.
    pub(super) fn look(&mut self, store: &Store) -> Vec<HeldRemovals> {
        let Some(memory) = store.memory() else { return Vec::new() };
        self.write(memory);
        let mut held = store.removals();
        // A store in doubt is not made to look like one that is not.
        let lacks = store.identity().is_none() && store.doubt().is_none() && held.is_empty();
        self.lacks_identity.send_if_modified(|before| std::mem::replace(before, lacks) != lacks);
        held.iter_mut().for_each(|held| held.network = store.shown_name(&held.network));
        self.say(&held);
        held
    }

    /// The agent ends.
    pub(super) fn end(&mut self, store: &Store) {
        store.memory().into_iter().for_each(|memory| self.write(memory));
    }

    fn write(&mut self, memory: Memory) {
        if self.written.as_ref() == Some(&memory) {
            return;
        }
        match write(&self.path, &memory) {
            Ok(()) => (self.written, self.failed) = (Some(memory), false),
            Err(error) => {
                if !std::mem::replace(&mut self.failed, true) {
                    warn!(path = %self.path.display(), %error, "cannot write down what is known of the store");
                }
            }
        }
    }

    fn say(&mut self, held: &[HeldRemovals]) {
        let now: BTreeMap<Name, HoldReason> = held.iter().map(|held| (held.network.clone(), held.reason)).collect();
        if now.is_empty() && !self.said.is_empty() {
            info!("no removals are held any more");
        }
        let again = self.said_at.elapsed() > AGAIN;
        let new = |held: &&HeldRemovals| again || self.said.get(&held.network) != Some(&held.reason);
        let new: Vec<&HeldRemovals> = held.iter().filter(new).collect();
        for HeldRemovals { network, records, since, reason } in new.iter().take(NAMED) {
            error!(
                %network, records, since, reason = reason.as_str(),
                "REMOVALS ARE HELD: the store lacks records that it had; what stands is kept, additions go on. \
                 Put the records back, or let them go with `vtepd approve {network}`"
            );
        }
        if new.len() > NAMED {
            error!(networks = new.len(), "removals are held of more networks than are named here");
        }
        if !new.is_empty() {
            self.said_at = Instant::now();
        }
        self.said = now;
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.writer.abort();
    }
}

/// Gives the store an identity while it lacks one, if this agent may.
async fn give_identity(etcd: Etcd, mut lacks: watch::Receiver<bool>) {
    let salt = u64::from(std::process::id());
    let mut said = false;
    while lacks.wait_for(|lacks| *lacks).await.is_ok() {
        let mut retry = Retry::new(Duration::from_secs(1), Duration::from_secs(60), salt);
        while *lacks.borrow() {
            match created(&etcd).await {
                Ok(true) => info!("gave the store an identity"),
                Ok(false) => {}
                Err(error) => {
                    if !std::mem::replace(&mut said, true) {
                        warn!(
                            %error,
                            "cannot give the store an identity: whether it was wiped or restored is told by its revision alone"
                        );
                    }
                }
            }
            tokio::select! {
                () = tokio::time::sleep(retry.delay()) => {}
                gone = lacks.changed() => if gone.is_err() { return },
            }
        }
    }
}

async fn created(etcd: &Etcd) -> Result<bool, Box<dyn std::error::Error + Send + Sync>> {
    let id = fs::read_to_string("/proc/sys/kernel/random/uuid")?;
    Ok(etcd.create_identity(id.trim()).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_down_is_read_again_and_what_cannot_be_read_is_nothing() {
        let dir = std::env::temp_dir().join(format!("vtepd-keeper-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        assert_eq!(remembered(&dir, "a"), None);
        let memory = Memory { store: Some("x".into()), cluster: Some(u64::MAX), revision: 7, ..Memory::default() };
        write(&path(&dir, "a"), &memory).unwrap();
        assert_eq!(remembered(&dir, "a"), Some(memory));
        assert_eq!(remembered(&dir, "b"), None, "each instance has its own");
        fs::write(path(&dir, "a"), "{").unwrap();
        assert_eq!(remembered(&dir, "a"), None);
        fs::remove_dir_all(dir).unwrap();
    }
}
