//! A real etcd on loopback, with a directory of its own, gone when it is dropped.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on ends")]
#![allow(dead_code, reason = "not every test needs all of it")]

use std::{
    fs,
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// One member.
pub(crate) struct Etcd {
    child: Option<Child>,
    dir: PathBuf,
    client: u16,
    peer: u16,
    arguments: Vec<String>,
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Etcd {
    /// Starts a member with nothing in it.
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// The same, with further arguments.
    pub(crate) fn start_with(arguments: &[&str]) -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("vtepd-etcd-{}-{number}", std::process::id()));
        let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let mut etcd = Self { child: None, dir, client: free_port(), peer: free_port(), arguments };
        etcd.restart();
        etcd
    }

    /// The URL for clients.
    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.client)
    }

    /// Starts the member with what it had, and waits until it answers.
    pub(crate) fn restart(&mut self) {
        assert!(self.child.is_none(), "etcd runs already");
        let peer = format!("http://127.0.0.1:{}", self.peer);
        fs::create_dir_all(&self.dir).unwrap();
        let log = fs::File::create(self.dir.join("log")).unwrap();
        let started = Command::new("etcd")
            .env("ETCD_UNSUPPORTED_ARCH", std::env::consts::ARCH)
            .args(["--name", "m", "--data-dir"])
            .arg(self.dir.join("data"))
            .args(["--listen-client-urls", &self.url(), "--advertise-client-urls", &self.url()])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("m={peer}"), "--max-txn-ops", "1000"])
            .args(&self.arguments)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        match started {
            Ok(child) => self.child = Some(child),
            Err(error) => panic!("these tests need the program etcd (Debian: etcd-server): {error}"),
        }
        let deadline = Instant::now() + Duration::from_secs(30);
        // Where there is authentication, a refusal is an answer as well.
        while !self.answers() {
            assert!(Instant::now() < deadline, "etcd did not become healthy; its log is in {}", self.dir.display());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn answers(&self) -> bool {
        let out = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &self.url(), "--command-timeout", "2s", "get", "health"])
            .output()
            .unwrap_or_else(|error| panic!("these tests need the program etcdctl (Debian: etcd-client): {error}"));
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        out.status.success() || said.contains("user name is empty") || said.contains("permission denied")
    }

    /// Runs `etcdctl`; what it said on either channel if it succeeded.
    pub(crate) fn ctl(&self, args: &[&str]) -> Option<String> {
        let out = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &self.url(), "--command-timeout", "2s"])
            .args(args)
            .output()
            .unwrap_or_else(|error| panic!("these tests need the program etcdctl (Debian: etcd-client): {error}"));
        let text = [out.stdout, out.stderr].concat();
        out.status.success().then(|| String::from_utf8_lossy(&text).into_owned())
    }

    /// Sends the process a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("etcd runs");
        kill(Pid::from_raw(child.id().try_into().unwrap()), signal).unwrap();
    }

    /// Ends the process at once, without warning.
    pub(crate) fn crash(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Ends the process and forgets everything that it had.
    pub(crate) fn wipe(&mut self) {
        self.crash();
        fs::remove_dir_all(&self.dir).unwrap();
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}
