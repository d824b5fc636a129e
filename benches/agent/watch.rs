//! A bare client of etcd: what listing and watching cost where nothing is done with what is heard.

use std::{
    fs::File,
    sync::mpsc::{Receiver, channel},
    thread,
    time::{Duration, Instant},
};

use etcd_client::{Client, GetOptions, WatchOptions};
use nix::sched::{CloneFlags, setns};
use tokio::runtime::Builder;

use super::bench::Bench;

/// Runs this on a thread of the host's namespace.
fn on_host<T: Send + 'static>(
    bench: &Bench,
    work: impl AsyncFnOnce(Client) -> T + Send + 'static,
) -> thread::JoinHandle<T> {
    let (netns, url) = (format!("/proc/{}/ns/net", bench.host().pid()), bench.lab.etcd.url());
    thread::spawn(move || {
        setns(File::open(netns).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
        Builder::new_current_thread().enable_all().build().unwrap().block_on(async move {
            let client = Client::connect([url], None).await.unwrap();
            work(client).await
        })
    })
}

/// How long it takes to get everything below a prefix in pages.
pub(crate) fn list(bench: &Bench, prefix: &str) -> Duration {
    const PAGE: i64 = 100_000;
    let (from, to) = (prefix.as_bytes().to_vec(), format!("{}0", prefix.trim_end_matches('/')));
    let listed = on_host(bench, async move |client| {
        let mut kv = client.kv_client().max_decoding_message_size(1 << 30);
        let (started, mut from) = (Instant::now(), from);
        loop {
            let options = GetOptions::new().with_range(to.clone()).with_limit(PAGE);
            let answer = kv.get(from.clone(), Some(options)).await.unwrap();
            match answer.kvs().last().filter(|_| answer.more()) {
                Some(last) => from = [last.key(), &[0]].concat(),
                None => return started.elapsed(),
            }
        }
    });
    listed.join().unwrap()
}

/// Hears every change below a prefix.
pub(crate) struct Watcher {
    heard: Receiver<Instant>,
}

impl Watcher {
    pub(crate) fn start(bench: &Bench, prefix: &str) -> Self {
        let (sender, heard) = channel();
        let (ready, is_ready) = channel();
        let prefix = prefix.to_owned();
        on_host(bench, async move |mut client| {
            let mut watch = client.watch(prefix, Some(WatchOptions::new().with_prefix())).await.unwrap();
            ready.send(()).unwrap();
            while let Ok(Some(response)) = watch.message().await {
                let at = Instant::now();
                if response.events().iter().any(|_| sender.send(at).is_err()) {
                    return;
                }
            }
        });
        is_ready.recv().unwrap();
        Self { heard }
    }

    /// When the next change was heard.
    pub(crate) fn next(&self, patience: Duration) -> Instant {
        self.heard.recv_timeout(patience).unwrap()
    }
}
