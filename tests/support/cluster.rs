//! A real etcd of three members, each on a host of the lab, and what happens to members.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use vtepd::lab::{Host, Lab};

const LONG: Duration = Duration::from_secs(60);

/// The members. They end with it.
pub(crate) struct Cluster<'l> {
    members: Vec<(&'l Host, Option<Child>)>,
    directory: PathBuf,
}

impl<'l> Cluster<'l> {
    /// Starts one member on each of these hosts, and waits until all are healthy.
    pub(crate) fn start(lab: &Lab, hosts: &'l [Host]) -> Self {
        let members = hosts.iter().map(|host| (host, None)).collect();
        let mut cluster = Self { members, directory: lab.directory().join("cluster") };
        (0..hosts.len()).for_each(|member| cluster.spawn(member));
        (0..hosts.len()).for_each(|member| cluster.wait(member));
        cluster
    }

    /// Where clients reach a member.
    pub(crate) fn url(&self, member: usize) -> String {
        format!("http://{}:2379", self.members[member].0.address())
    }

    /// All of them, as `--etcd` takes them.
    pub(crate) fn urls(&self) -> String {
        (0..self.members.len()).map(|member| self.url(member)).collect::<Vec<_>>().join(",")
    }

    fn spawn(&mut self, member: usize) {
        let peer = |host: &Host| format!("http://{}:2380", host.address());
        let initial: Vec<String> = self.members.iter().map(|(h, _)| format!("{}={}", h.name(), peer(h))).collect();
        let (host, _) = &self.members[member];
        let data = self.directory.join(host.name());
        fs::create_dir_all(&self.directory).unwrap();
        let log = fs::File::options().create(true).append(true).open(data.with_extension("log")).unwrap();
        let mut command = host.command(&["env", "ETCD_UNSUPPORTED_ARCH=arm64", "etcd"]);
        let clients = format!("{},http://127.0.0.1:2379", self.url(member));
        command
            .args(["--name", host.name(), "--initial-cluster", &initial.join(","), "--data-dir"])
            .arg(data)
            .args(["--listen-peer-urls", &peer(host), "--initial-advertise-peer-urls", &peer(host)])
            .args(["--listen-client-urls", &clients, "--advertise-client-urls", &self.url(member)]);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        self.members[member].1 = Some(child);
    }

    /// Waits until a member is healthy, which it is with a quorum.
    pub(crate) fn wait(&self, member: usize) {
        let deadline = Instant::now() + LONG;
        while self.ctl(member, &["endpoint", "health"]).is_err() {
            assert!(Instant::now() < deadline, "member {member} did not become healthy: {}", self.directory.display());
        }
    }

    /// `etcdctl` at one member, not started yet.
    pub(crate) fn ctl_command(&self, member: usize, arguments: &[&str]) -> Command {
        let mut command = self.members[member].0.command(&["env", "ETCDCTL_API=3", "etcdctl"]);
        command.args(["--endpoints", &self.url(member), "--command-timeout", "3s"]).args(arguments);
        command
    }

    /// `etcdctl` at one member: what it said.
    pub(crate) fn ctl(&self, member: usize, arguments: &[&str]) -> Result<String, String> {
        let out = self.ctl_command(member, arguments).stdin(Stdio::null()).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        if out.status.success() { Ok(text(out.stdout)) } else { Err(text(out.stderr)) }
    }

    /// Writes a key by way of a member, again and again until it is taken; returns the revision.
    pub(crate) fn put(&self, member: usize, key: &str, value: &str) -> f64 {
        let deadline = Instant::now() + LONG;
        loop {
            match self.ctl(member, &["put", "-w", "json", "--", key, value]) {
                Ok(said) => {
                    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
                    return said["header"]["revision"].as_f64().unwrap();
                }
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
        }
    }

    fn signal(&self, member: usize, signal: Signal) {
        let child = self.members[member].1.as_ref().expect("the member runs");
        kill(Pid::from_raw(child.id().try_into().unwrap()), signal).unwrap();
    }

    /// Its connections stay open, and nothing answers.
    pub(crate) fn freeze(&self, member: usize) {
        self.signal(member, Signal::SIGSTOP);
    }

    pub(crate) fn thaw(&self, member: usize) {
        self.signal(member, Signal::SIGCONT);
    }

    pub(crate) fn kill(&mut self, member: usize) {
        let mut child = self.members[member].1.take().expect("the member runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub(crate) fn restart(&mut self, member: usize) {
        self.spawn(member);
    }

    /// Its clients still reach it, and its peers do not.
    pub(crate) fn cut(&self, member: usize) {
        let rules = "table inet cut {\n\
            chain in { type filter hook input priority 0; tcp dport 2380 drop; tcp sport 2380 drop; }\n\
            chain out { type filter hook output priority 0; tcp dport 2380 drop; tcp sport 2380 drop; }\n}\n";
        self.members[member].0.run_with_input(&["nft", "-f", "-"], rules).unwrap();
    }

    pub(crate) fn mend(&self, member: usize) {
        self.members[member].0.run(&["nft", "delete", "table", "inet", "cut"]).unwrap();
    }

    /// The member is none of the cluster's any more.
    pub(crate) fn remove(&self, member: usize, by: usize) {
        let name = self.members[member].0.name();
        let list = self.ctl(by, &["member", "list"]).unwrap();
        let line = list.lines().find(|line| line.contains(name)).unwrap();
        let (id, _) = line.split_once(',').unwrap();
        // etcd refuses while its members have not been connected for five seconds.
        let deadline = Instant::now() + LONG;
        while let Err(error) = self.ctl(by, &["member", "remove", id]) {
            assert!(Instant::now() < deadline, "{error}");
        }
    }
}

impl Drop for Cluster<'_> {
    fn drop(&mut self) {
        for child in self.members.iter_mut().filter_map(|(_, child)| child.as_mut()) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
