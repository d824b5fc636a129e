//! What the files do not have any more, within a label.

use std::collections::BTreeSet;

use serde::Deserialize;

use crate::agent::ReadStore;

/// A label of networks with its value.
#[derive(Clone, Debug)]
pub(super) struct Label {
    name: String,
    value: String,
}

/// Reads `LABEL=VALUE`.
pub(super) fn label(text: &str) -> Result<Label, String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok(Label { name: name.to_owned(), value: value.to_owned() }),
        _ => Err("is not of the form LABEL=VALUE".to_owned()),
    }
}

impl Label {
    /// Whether a network's record carries it.
    pub(super) fn is_on(&self, record: Option<&[u8]>) -> bool {
        #[derive(Deserialize)]
        struct Labels {
            #[serde(default)]
            labels: std::collections::BTreeMap<String, String>,
        }
        let labels = record.and_then(|record| serde_json::from_slice::<Labels>(record).ok());
        labels.is_some_and(|labels| labels.labels.get(&self.name) == Some(&self.value))
    }
}

/// The keys below a prefix that begin so.
fn keys<'r>(read: &'r ReadStore, begin: &'r str) -> impl Iterator<Item = &'r str> {
    read.revisions.keys().filter_map(|key| std::str::from_utf8(key).ok()).filter(move |key| key.starts_with(begin))
}

/// The keys of all networks.
pub(super) fn networks(read: &ReadStore, prefix: &str) -> Vec<String> {
    keys(read, &format!("{}/networks/", prefix.trim_end_matches('/'))).map(str::to_owned).collect()
}

/// What goes: labelled networks that the files do not have, with their endpoints; and of those that they have the endpoints that they
/// do not. A network of which the files have no endpoint at all keeps its own: somebody else writes them, a plug-in perhaps.
pub(super) fn gone(read: &ReadStore, prefix: &str, labelled: &[String], files: &[String]) -> Vec<String> {
    let files: BTreeSet<&str> = files.iter().map(String::as_str).collect();
    let prefix = prefix.trim_end_matches('/');
    let mut gone = Vec::new();
    for network in labelled {
        let name = network.rsplit('/').next().unwrap_or_default();
        let begin = format!("{prefix}/endpoints/{name}/");
        let stays = files.contains(network.as_str());
        if !stays || files.iter().any(|key| key.starts_with(&begin)) {
            gone.extend(keys(read, &begin).filter(|key| !files.contains(key)).map(str::to_owned));
        }
        if !stays {
            gone.push(network.clone());
        }
    }
    gone
}
