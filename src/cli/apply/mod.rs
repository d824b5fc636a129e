//! `vtepd apply`: records from files, judged, shown, written in one transaction and waited for.

mod prune;

use std::{collections::BTreeMap, io::Write as _, path::PathBuf, process::ExitCode, time::Duration};

use clap::Args;

use super::{
    files::{self, Record},
    fleet::Watcher,
    log::Log,
    options::{Records, duration},
    progress::Progress,
    validate, wait,
};
use crate::{
    agent::{self, ReadStore},
    desired::StoreConfig,
    etcd::{Etcd, Write, Written},
};

/// So many operations a transaction of etcd has at most by default (`--max-txn-ops`).
const OPERATIONS: usize = 128;

/// The options of `vtepd apply`.
#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// Files with records, YAML or JSON; - is standard input
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Show what would be written, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Delete networks that have this label in etcd and do not stand in the files, and of those that do the endpoints that do not
    #[arg(long, value_name = "LABEL=VALUE", value_parser = prune::label)]
    prune: Option<prune::Label>,
    /// Do not wait until the nodes have applied it
    #[arg(long)]
    no_wait: bool,
    /// How long to wait for the nodes at most
    #[arg(long, default_value = "60s", value_parser = duration)]
    timeout: Duration,
    #[command(flatten)]
    pub(super) records: Records,
    #[command(flatten)]
    log: Log,
}

/// Applies the files.
pub(super) fn run(arguments: &Arguments) -> ExitCode {
    super::exit_code(arguments.log.start().and_then(|()| super::block_on(apply(arguments))))
}

/// What becomes of a record.
struct Change {
    write: Write,
    sign: char,
}

async fn apply(arguments: &Arguments) -> Result<(), String> {
    let etcd_config = arguments.records.etcd()?;
    let records = files::read(&arguments.records.prefix, &arguments.files)?;
    if records.is_empty() {
        return Err("the files have no record".to_owned());
    }
    validate::judge_all(&arguments.records.prefix, records.iter().map(|r| (r.key.as_str(), r.value.as_str())))?;
    let config = StoreConfig {
        prefix: arguments.records.prefix.clone(),
        docker_prefix: arguments.records.docker_prefix.clone(),
        node: "apply".parse().map_err(|error| format!("{error}"))?,
        vtep: None,
        underlay_mtu: 1500,
        max_removal: 50,
        host_endpoints: true,
    };
    let read = agent::read_store(&etcd_config, config).await.map_err(|error| error.to_string())?;
    let etcd = Etcd::connect(&etcd_config).await.map_err(|error| error.to_string())?;
    let changes = changes(&etcd, &read, records, arguments).await?;
    say(&changes)?;
    judge_together(read, &changes)?;
    let writes: Vec<Write> = changes.into_iter().filter(|c| c.sign != '=').map(|change| change.write).collect();
    if arguments.dry_run || writes.is_empty() {
        return Ok(());
    }
    let revision = write(&etcd, &writes).await?;
    println!("written at revision {revision}");
    if arguments.no_wait {
        return Ok(());
    }
    let mut watcher = Watcher::new(&arguments.records)?;
    wait::until_applied(&mut watcher, Some(revision), &[], arguments.timeout).await
}

/// What the files and `--prune` ask for, beside what stands in etcd.
async fn changes(
    etcd: &Etcd,
    read: &ReadStore,
    records: Vec<Record>,
    arguments: &Arguments,
) -> Result<Vec<Change>, String> {
    let failed = |error: crate::etcd::Error| error.to_string();
    let keys: Vec<String> = records.iter().map(|record| record.key.clone()).collect();
    let standing = etcd.values(&keys).await.map_err(failed)?;
    let unchanged = |key: &str| read.revisions.get(key.as_bytes()).map_or(0, |(_, modified)| *modified);
    let mut changes: Vec<Change> = Vec::new();
    for (Record { key, value }, stands) in records.into_iter().zip(standing) {
        let sign = match stands {
            None => '+',
            Some(stands) if same(&stands, &value) => '=',
            Some(_) => '~',
        };
        changes.push(Change { write: Write { unchanged: unchanged(&key), key, value: Some(value) }, sign });
    }
    if let Some(label) = &arguments.prune {
        let networks = prune::networks(read, &arguments.records.prefix);
        let values = etcd.values(&networks).await.map_err(failed)?;
        let labelled = networks.into_iter().zip(values).filter(|(_, value)| label.is_on(value.as_deref()));
        let labelled: Vec<String> = labelled.map(|(key, _)| key).collect();
        let gone = prune::gone(read, &arguments.records.prefix, &labelled, &keys);
        changes.extend(
            gone.into_iter()
                .map(|key| Change { write: Write { unchanged: unchanged(&key), key, value: None }, sign: '-' }),
        );
    }
    Ok(changes)
}

/// Whether a value says the same, however it is written.
fn same(stands: &[u8], value: &str) -> bool {
    let stands: Option<serde_json::Value> = serde_json::from_slice(stands).ok();
    stands.is_some() && stands == serde_json::from_str(value).ok()
}

/// Shows what is to be written.
fn say(changes: &[Change]) -> Result<(), String> {
    let mut text = String::new();
    for Change { write, sign } in changes.iter().filter(|change| change.sign != '=') {
        let value = write.value.as_ref().map(|value| format!(" {value}")).unwrap_or_default();
        text.push_str(&format!("{sign} {}{value}\n", write.key));
    }
    let count = |sign: char| changes.iter().filter(|change| change.sign == sign).count();
    let (add, change, delete, same) = (count('+'), count('~'), count('-'), count('='));
    text.push_str(&format!("{add} to add, {change} to change, {delete} to delete, {same} as they should be\n"));
    std::io::stdout().lock().write_all(text.as_bytes()).map_err(|error| format!("standard output: {error}"))
}

/// Refuses what would be refused, or lose to an older record, once it stands with all that is in etcd.
fn judge_together(mut read: ReadStore, changes: &[Change]) -> Result<(), String> {
    let found = |read: &ReadStore| -> BTreeMap<String, String> {
        let store = &read.store;
        let rejected = store.rejections().map(|rejected| (rejected.key.clone(), rejected.to_string()));
        let conflicts = store.conflicts().map(|conflict| {
            let (key, holder) = (store.whole_key(&conflict.key), store.whole_key(&conflict.holder));
            let said = format!("{key}: {}: conflict: {} is held by {holder}", conflict.field, conflict.claim);
            (key, said)
        });
        rejected.chain(conflicts).collect()
    };
    let before = found(&read);
    let writes: Vec<_> = changes.iter().map(|c| (c.write.key.clone(), c.write.value.clone())).collect();
    read.with(&writes);
    let news: Vec<String> = found(&read)
        .into_iter()
        .filter(|(key, said)| before.get(key) != Some(said) || writes.iter().any(|(written, _)| written == key))
        .map(|(_, said)| said)
        .collect();
    if news.is_empty() { Ok(()) } else { Err(format!("nothing was written:\n  {}", news.join("\n  "))) }
}

/// Writes all of it in one transaction, or where etcd takes none so large, in several. The revision of the last one.
async fn write(etcd: &Etcd, writes: &[Write]) -> Result<i64, String> {
    let contended =
        || "somebody else wrote one of these records meanwhile: nothing more was written; apply again".to_owned();
    let failed = |error: crate::etcd::Error| error.to_string();
    match etcd.transact(writes).await.map_err(failed)? {
        Written::At(revision) => return Ok(revision),
        Written::Contended => return Err(contended()),
        Written::TooMany => {}
    }
    let parts = writes.len().div_ceil(OPERATIONS);
    eprintln!("vtepd: etcd takes no transaction of {} operations (--max-txn-ops): written in {parts}", writes.len());
    // What others depend on comes first, and what goes, last.
    let mut ordered: Vec<&Write> = writes.iter().collect();
    ordered.sort_by_key(|write| (write.value.is_none(), write.key.contains("/endpoints/")));
    let (mut progress, mut revision) = (Progress::new(), 0);
    for (number, part) in ordered.chunks(OPERATIONS).enumerate() {
        progress.say(&format!("transaction {} of {parts}", number + 1));
        let part: Vec<Write> = part.iter().map(|write| (*write).clone()).collect();
        match etcd.transact(&part).await.map_err(failed)? {
            Written::At(at) => revision = at,
            Written::Contended => return Err(contended()),
            Written::TooMany => return Err(format!("etcd takes no transaction of {OPERATIONS} operations")),
        }
    }
    Ok(revision)
}
