//! etcd's users, as they come, go and change while the store is followed.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on ends"
)]

use std::{
    fs,
    io::Write,
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use tokio::{
    sync::mpsc::{self, Receiver},
    time::{sleep, timeout},
};
use vtepd::{
    etcd::{Config, Error, Etcd as Edge, Message, Relist, User, follow},
    schema::Change,
};

#[path = "support/etcd.rs"]
mod support;
use support::Etcd;

const LONG: Duration = Duration::from_secs(30);
const ROOT: [&str; 2] = ["--user", "root:pw"];

/// A user whose password is in a file, and what was heard.
struct World {
    etcd: Etcd,
    file: PathBuf,
    heard: Option<Receiver<Message>>,
    relists: Vec<Relist>,
    said: Vec<String>,
    deadline: Instant,
}

impl World {
    fn new(arguments: &[&str]) -> Self {
        let _ = tracing_subscriber::fmt().with_test_writer().try_init();
        let etcd = Etcd::start_with(arguments);
        let file = std::env::temp_dir().join(format!("vtepd-password-{}-{}", std::process::id(), etcd.url().len()));
        let file = file.with_extension(etcd.url().rsplit(':').next().unwrap());
        fs::write(&file, "first\n").unwrap();
        Self { etcd, file, heard: None, relists: Vec::new(), said: Vec::new(), deadline: Instant::now() + LONG }
    }

    fn root(&self, arguments: &[&str]) -> String {
        let said = self.etcd.ctl(&[&ROOT, arguments].concat());
        said.unwrap_or_else(|| panic!("etcdctl {arguments:?} failed"))
    }

    fn password(&self, password: &str) {
        let url = self.etcd.url();
        let mut changing = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &url, "--user", "root:pw", "user", "passwd", "vtepd", "--interactive=false"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        changing.stdin.take().unwrap().write_all(format!("{password}\n").as_bytes()).unwrap();
        assert!(changing.wait().unwrap().success());
    }

    fn enable(&self) {
        for arguments in [
            &["user", "add", "root:pw"][..],
            &["user", "grant-role", "root", "root"],
            &["role", "add", "agent"],
            &["role", "grant-permission", "agent", "--prefix=true", "readwrite", "/p/"],
            &["user", "add", "vtepd:first"],
            &["user", "grant-role", "vtepd", "agent"],
            &["auth", "enable"],
        ] {
            self.etcd.ctl(arguments).unwrap_or_else(|| panic!("etcdctl {arguments:?} failed"));
        }
    }

    fn config(&self, heartbeat: Duration) -> Config {
        let mut config = Config::new(vec![self.etcd.url()], "/p");
        config.heartbeat = heartbeat;
        config.user = Some(User { name: "vtepd".into(), password_file: self.file.clone() });
        config.retry.1 = Duration::from_secs(1);
        config
    }

    fn follow(&mut self, heartbeat: Duration) {
        let (sender, receiver) = mpsc::channel(64);
        tokio::spawn(follow(Edge::new(self.config(heartbeat)), sender));
        self.heard = Some(receiver);
    }

    async fn next(&mut self) -> Message {
        let left = self.deadline.saturating_duration_since(Instant::now());
        let message = timeout(left, self.heard.as_mut().unwrap().recv()).await;
        let message = message.unwrap_or_else(|_| panic!("no message in time; {:?}", self.said)).expect("it goes on");
        match &message {
            Message::Relist(reason) => self.relists.push(*reason),
            Message::Disconnected(why) => self.said.push(why.clone()),
            _ => {}
        }
        message
    }

    async fn snapshot(&mut self) {
        while !matches!(self.next().await, Message::Snapshot { .. }) {}
    }

    /// Waits until this value of the key is heard.
    async fn until(&mut self, value: &str) {
        let is = |change: &Change| matches!(change, Change::Put(kv) if kv.value == value.as_bytes());
        while !matches!(self.next().await, Message::Changes { changes, .. } if changes.iter().any(is)) {}
    }

    async fn until_said(&mut self, part: &str) {
        while !self.said.iter().any(|said| said.contains(part)) {
            self.next().await;
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.file);
    }
}

#[tokio::test]
async fn authentication_is_rolled_out_and_taken_back_without_an_interruption() {
    let mut world = World::new(&[]);
    world.follow(Duration::from_millis(200));
    world.snapshot().await;
    world.enable();
    sleep(Duration::from_secs(2)).await;
    world.root(&["put", "/p/nodes/a", "with"]);
    world.until("with").await;
    let edge = Edge::connect(&world.config(Duration::from_secs(1))).await.unwrap();
    edge.write_status(&"a".parse().unwrap(), "{}").await.unwrap();
    world.root(&["auth", "disable"]);
    sleep(Duration::from_secs(1)).await;
    world.etcd.ctl(&["put", "/p/nodes/a", "without"]).unwrap();
    world.until("without").await;
    edge.write_status(&"a".parse().unwrap(), "{ }").await.unwrap();
    assert_eq!((&*world.relists, &*world.said), (&[Relist::Start][..], &[][..]));
}

#[tokio::test]
async fn a_password_that_changes_in_etcd_and_in_the_file_costs_no_listing() {
    let mut world = World::new(&[]);
    world.enable();
    world.follow(Duration::from_millis(200));
    world.snapshot().await;
    world.password("second");
    world.until_said("is wrong").await;
    world.root(&["put", "/p/nodes/a", "missed"]);
    fs::write(&world.file, "second\n").unwrap();
    world.until("missed").await;
    assert_eq!(world.relists, [Relist::Start]);
}

#[tokio::test]
async fn tokens_that_live_shorter_than_a_heartbeat_or_end_with_etcd_are_renewed() {
    let mut world = World::new(&["--auth-token-ttl", "1"]);
    world.enable();
    world.follow(Duration::from_millis(2500));
    world.snapshot().await;
    for round in 0..3 {
        sleep(Duration::from_millis(2500)).await;
        world.root(&["put", "/p/nodes/a", &format!("{round}")]);
        world.until(&format!("{round}")).await;
    }
    assert_eq!((&*world.relists, &*world.said), (&[Relist::Start][..], &[][..]));
    world.etcd.crash();
    world.etcd.restart();
    world.root(&["put", "/p/nodes/a", "after"]);
    world.until("after").await;
    assert_eq!(world.relists, [Relist::Start]);
}

#[tokio::test]
async fn a_right_that_is_taken_away_is_said_and_what_was_missed_comes_when_it_is_back() {
    let mut world = World::new(&[]);
    world.enable();
    world.follow(Duration::from_millis(100));
    world.snapshot().await;
    world.root(&["user", "revoke-role", "vtepd", "agent"]);
    world.until_said("permission denied").await;
    world.root(&["put", "/p/nodes/a", "missed"]);
    world.root(&["user", "grant-role", "vtepd", "agent"]);
    world.until("missed").await;
    assert_eq!(world.relists, [Relist::Start]);
}

#[tokio::test]
async fn what_keeps_us_out_is_said_by_name() {
    let world = World::new(&[]);
    world.enable();
    let mut config = world.config(Duration::from_secs(1));
    let said = async |config: &Config| Edge::connect(config).await.err().expect("it is refused").to_string();
    fs::write(&world.file, "wrong").unwrap();
    let wrong = said(&config).await;
    assert!(wrong.contains("user \"vtepd\" or the password in") && wrong.contains("is wrong"), "{wrong}");
    fs::write(&world.file, "\n").unwrap();
    assert!(said(&config).await.contains("is empty"));
    config.user = None;
    assert!(said(&config).await.contains("--etcd-user"));
    config.endpoints = vec!["http://127.0.0.1:1".into()];
    assert_eq!(said(&config).await, "http://127.0.0.1:1: connection refused");
    config.endpoints = vec!["http://no-such-host.invalid:2379".into()];
    assert!(said(&config).await.contains("cannot resolve no-such-host.invalid"));
}

#[tokio::test]
async fn a_full_store_is_said_to_be_full_and_is_read_on() {
    let mut world = World::new(&["--quota-backend-bytes", "100000"]);
    world.follow(Duration::from_millis(200));
    world.snapshot().await;
    let big = "x".repeat(50_000);
    while world.etcd.ctl(&["put", "/q/filler", &big]).is_some() {}
    let edge = Edge::connect(&world.config(Duration::from_secs(1))).await.unwrap();
    let refused = edge.register_node(&"a".parse().unwrap(), "10.0.0.1".parse().unwrap(), true).await;
    assert_eq!(refused, Err(Error::NoSpace));
    assert_eq!(edge.read_node(&"a".parse().unwrap()).await, Ok(None));
    let since = Instant::now();
    while since.elapsed() < Duration::from_secs(2) {
        world.next().await;
    }
    assert_eq!((&*world.relists, &*world.said), (&[Relist::Start][..], &[][..]));
}

#[tokio::test]
async fn a_member_of_another_cluster_is_refused_by_name_and_never_followed() {
    let (mut world, other) = (World::new(&[]), Etcd::start());
    other.ctl(&["put", "/p/nodes/b", "of another cluster"]).unwrap();
    let mut config = world.config(Duration::from_millis(200));
    config.endpoints = vec![world.etcd.url(), other.url()];
    config.user = None;
    let (sender, receiver) = mpsc::channel(64);
    tokio::spawn(follow(Edge::new(config), sender));
    world.heard = Some(receiver);
    world.snapshot().await;
    world.etcd.signal(Signal::SIGSTOP);
    world.until_said("is a member of cluster").await;
    world.etcd.signal(Signal::SIGCONT);
    world.etcd.ctl(&["put", "/p/nodes/a", "here"]).unwrap();
    world.until("here").await;
    assert_eq!(world.relists, [Relist::Start]);
}
