//! First contact: settings that make no sense end at once, with exit code 2 and one line that helps. And what may happen around an
//! agent that was started rightly: a second one beside it, and nobody who reads its log.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test ends where something is not as it should be")]

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

const VTEPD: &str = env!("CARGO_BIN_EXE_vtepd");
/// Nobody listens there: an agent that takes its settings goes on trying.
const ETCD: &str = "http://127.0.0.1:1";
const PATIENCE: Duration = Duration::from_secs(20);

/// A directory of its own, gone with the test.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("vtepd-settings-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str, content: &str) -> String {
        let path = self.0.join(name);
        fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// An agent's process, ended with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a command says that ends by itself.
fn ended(mut command: Command) -> Output {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let since = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if since.elapsed() > PATIENCE {
            let _ = child.kill();
            panic!("{command:?} goes on, although its settings make no sense: {:?}", child.wait_with_output());
        }
        thread::sleep(Duration::from_millis(10));
    }
    child.wait_with_output().unwrap()
}

/// Exit code 2, nothing on standard output, and one line that has these words.
fn refused(command: Command, words: &[&str]) {
    let told = format!("{command:?}");
    let output = ended(command);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{told}: {said}");
    assert_eq!(said.lines().count(), 1, "{told}: not one line: {said}");
    assert!(said.starts_with("vtepd: ") && output.stdout.is_empty(), "{told}: {said}");
    for word in words {
        assert!(said.contains(word), "{told}: nothing of {word:?} in: {said}");
    }
}

fn vtepd(arguments: &[&str]) -> Command {
    let mut command = Command::new(VTEPD);
    command.args(arguments);
    command
}

/// An agent with settings that make sense, but for what is added.
fn agent(run_dir: &Dir, arguments: &[&str]) -> Command {
    let mut command = vtepd(&["agent"]);
    for (name, value) in [("--etcd", ETCD), ("--listen", "127.0.0.1:0"), ("--node", "n1")] {
        if !arguments.contains(&name) {
            command.args([name, value]);
        }
    }
    if !arguments.contains(&"--run-dir") {
        command.arg("--run-dir").arg(&run_dir.0);
    }
    command.args(arguments);
    command
}

#[test]
fn every_setting_that_makes_no_sense_ends_at_once_with_one_line_that_helps() {
    let dir = Dir::new("bad");
    let text = dir.file("text", "no certificate");
    let empty = dir.file("empty", "");
    let broken = dir.file("broken.pem", "-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n");
    let missing = dir.0.join("missing").to_str().unwrap().to_owned();
    let below_a_file = format!("{text}/x");
    let cases: &[(&[&str], &[&str])] = &[
        (&["--log-level", "inof"], &["--log-level", "inof", "info", "debug"]),
        (&["--log-level", "vtepd=inof"], &["--log-level", "inof", "info"]),
        (&["--log-level", ""], &["--log-level", "info"]),
        (&["--log-format", "xml"], &["--log-format", "text", "json"]),
        (&["--vtep", "127.0.0.1"], &["--vtep", "loopback"]),
        (&["--vtep", "::1"], &["--vtep", "loopback"]),
        (&["--vtep", "0.0.0.0"], &["--vtep", "unspecified"]),
        (&["--vtep", "224.0.0.1"], &["--vtep", "multicast"]),
        (&["--vtep", "255.255.255.255"], &["--vtep", "broadcast"]),
        (&["--vtep", "fe80::1"], &["--vtep", "link-local"]),
        (&["--vtep", "192.168.0.1/24"], &["--vtep", "not an IP address"]),
        (&["--vtep", "host1"], &["--vtep", "not an IP address"]),
        (&["--node", "a b"], &["--node"]),
        (&["--node", ""], &["--node"]),
        (&["--prefix", ""], &["--prefix", "empty"]),
        (&["--prefix", "/vtepd /v1"], &["--prefix", "space"]),
        (&["--docker-prefix", "/vtepd/v1/x"], &["--docker-prefix", "--prefix"]),
        (&["--listen", "9474"], &["--listen"]),
        (&["--netns-root", "netns"], &["--netns-root", "absolute"]),
        (&["--resync", "60"], &["--resync", "60s"]),
        (&["--resync", "0s"], &["--resync", "100ms"]),
        (&["--link-group", "0"], &["--link-group"]),
        (&["--gateway-bridge", "much-too-long-a-name"], &["--gateway-bridge", "15"]),
        (&["--gateway-subnet", "172.18.0.1/16"], &["--gateway-subnet", "172.18.0.0/16"]),
        (&["--gateway-subnet", "172.18.0.0/30"], &["--gateway-subnet", "29"]),
        (&["--gateway-subnet6", "fd00::/112"], &["--gateway-subnet6", "96"]),
        (&["--adopt-gateway-bridge=maybe"], &["maybe"]),
        (&["--instance", "a/b"], &["--instance"]),
        (&["--run-dir", &below_a_file], &[below_a_file.as_str()]),
        (&["--etcd", "foo://x"], &["--etcd", "foo", "http://"]),
        (&["--etcd", "http://10.0.0.1:2379, http://10.0.0.2:2379"], &["--etcd", "space", "comma"]),
        (&["--etcd", "http://10.0.0.1:2379,"], &["--etcd", "comma"]),
        (&["--etcd", ""], &["--etcd"]),
        (&["--etcd", "http://"], &["--etcd", "http://10.0.0.1:2379"]),
        (&["--etcd", "http://10.0.0.1:99999"], &["--etcd", "65535"]),
        (&["--etcd", "http://10.0.0.1:2379/v3"], &["--etcd", "path"]),
        (&["--etcd", "http://root:secret@10.0.0.1:2379"], &["--etcd", "--etcd-user"]),
        (&["--etcd", "https://10.0.0.1:2379"], &["--etcd-ca"]),
        (&["--etcd-ca", "/nonexistent"], &["--etcd-ca", "/nonexistent", "no such file"]),
        (&["--etcd-ca", "/"], &["--etcd-ca", "cannot be read"]),
        (&["--etcd-ca", &text], &["--etcd-ca", "no certificate"]),
        (&["--etcd-ca", &broken], &["--etcd-ca", "no PEM"]),
        (&["--etcd-cert", &text, "--etcd-key", &text], &["--etcd-cert", "no certificate"]),
        (&["--etcd-user", "node1"], &["--etcd-password-file"]),
        (&["--etcd-user", "node1", "--etcd-password-file", &missing], &["--etcd-password-file", "no such file"]),
        (&["--etcd-user", "node1", "--etcd-password-file", &empty], &["--etcd-password-file", "empty"]),
        (&["--etdc", "http://10.0.0.1:2379"], &["--etdc", "--etcd"]),
        (&["extra"], &["extra"]),
    ];
    for (arguments, words) in cases {
        refused(agent(&dir, arguments), words);
    }
}

#[test]
fn what_a_variable_says_is_refused_like_what_a_flag_says() {
    let dir = Dir::new("variables");
    for (name, value, flag) in [
        ("VTEPD_LOG_LEVEL", "inof", "--log-level"),
        ("VTEPD_VTEP", "127.0.0.1", "--vtep"),
        ("VTEPD_ETCD_CA", "/nonexistent", "--etcd-ca"),
        ("VTEPD_VTEP", "", "--vtep"),
    ] {
        let mut command = agent(&dir, &[]);
        command.env(name, value);
        refused(command, &[flag]);
    }
    let mut command = vtepd(&["agent"]);
    command.env("VTEPD_ETCD", "http://10.0.0.1:2379, http://10.0.0.2:2379");
    refused(command, &["--etcd", "space"]);
}

#[test]
fn other_verbs_refuse_alike_and_an_etcd_must_be_named() {
    refused(vtepd(&["agent"]), &["--etcd"]);
    refused(vtepd(&["export-neighbours", "n", "--etcd", "foo://x"]), &["--etcd", "foo"]);
    refused(vtepd(&["cleanup", "--log-level", "inof"]), &["--log-level"]);
    refused(vtepd(&["validate", "--prefix", "", "-"]), &["--prefix"]);
    refused(vtepd(&["validate"]), &["FILE"]);
    refused(vtepd(&["agnet"]), &["agnet", "agent"]);
}

#[test]
fn who_may_not_do_what_the_agent_does_is_told_so_at_once() {
    let dir = Dir::new("rights");
    let without = |set: &str, arguments: &[&str]| {
        let inner = agent(&dir, arguments);
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set", set, "--inh-caps", "-all"]).arg(inner.get_program()).args(inner.get_args());
        command
    };
    refused(without("-all", &[]), &["root", "CAP_NET_ADMIN", "CAP_SYS_ADMIN", "sudo"]);
    refused(without("-sys_admin", &[]), &["CAP_SYS_ADMIN"]);
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set", "-all", "--inh-caps", "-all", VTEPD, "cleanup"]);
    refused(command, &["cleanup", "root"]);
    // The settings are looked at first: they are wrong for root as well.
    refused(without("-all", &["--log-level", "inof"]), &["--log-level"]);
}

/// Waits until the agent's page answers.
fn healthy(port: u16) {
    let since = Instant::now();
    loop {
        let answer = TcpStream::connect(("127.0.0.1", port)).and_then(|mut page| {
            page.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
            let mut answer = String::new();
            page.read_to_string(&mut answer).map(|_| answer)
        });
        match answer {
            Ok(answer) if answer.starts_with("HTTP/1.1 200") => return,
            answer => assert!(since.elapsed() < PATIENCE, "{answer:?}"),
        }
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_second_instance_that_shares_bridge_subnet_or_link_group_is_refused_and_one_with_its_own_runs() {
    let (first_dir, second_dir) = (Dir::new("first"), Dir::new("second"));
    let mut first = agent(
        &first_dir,
        &[
            "--listen",
            "127.0.0.1:19501",
            "--instance",
            "one",
            "--link-group",
            "71",
            "--gateway-bridge",
            "gw71",
            "--gateway-subnet",
            "10.71.0.0/16",
        ],
    );
    let _first = Running(first.stderr(Stdio::null()).spawn().unwrap());
    healthy(19501);
    let second = |group: &str, bridge: &str, subnet: &str, instance: &str| {
        let arguments =
            ["--link-group", group, "--gateway-bridge", bridge, "--gateway-subnet", subnet, "--instance", instance];
        agent(&second_dir, &[&arguments[..], &["--listen", "127.0.0.1:19502"]].concat())
    };
    refused(second("71", "gw72", "10.72.0.0/16", "two"), &["--link-group 71", "\"one\""]);
    refused(second("72", "gw71", "10.72.0.0/16", "two"), &["--gateway-bridge gw71", "\"one\""]);
    refused(second("72", "gw72", "10.71.4.0/24", "two"), &["--gateway-subnet 10.71.4.0/24", "\"one\""]);
    // The same instance, although its lock is elsewhere.
    refused(second("72", "gw72", "10.72.0.0/16", "one"), &["--instance one"]);
    let mut second = second("72", "gw72", "10.72.0.0/16", "two");
    let _second = Running(second.stderr(Stdio::null()).spawn().unwrap());
    healthy(19502);
}

#[test]
fn an_agent_whose_log_nobody_reads_goes_on() {
    let dir = Dir::new("unread");
    let arguments =
        ["--listen", "127.0.0.1:19503", "--instance", "unread", "--link-group", "73", "--log-level", "trace"];
    let mut command = agent(&dir, &[&arguments[..], &["--gateway-bridge", "none"]].concat());
    let mut running = Running(command.stderr(Stdio::piped()).spawn().unwrap());
    // Nobody reads the pipe from here on: each line is an error for the writer.
    drop(running.0.stderr.take());
    healthy(19503);
    thread::sleep(Duration::from_secs(1));
    healthy(19503);
    assert!(running.0.try_wait().unwrap().is_none(), "it ended");

    let closed = format!(
        "exec {VTEPD} agent --etcd {ETCD} --node n1 --instance closed --link-group 74 --gateway-bridge none \
        --listen 127.0.0.1:19504 --run-dir {} 2>&- >&-",
        dir.0.display()
    );
    let mut closed = Running(Command::new("bash").args(["-c", &closed]).spawn().unwrap());
    healthy(19504);
    thread::sleep(Duration::from_secs(1));
    healthy(19504);
    assert!(closed.0.try_wait().unwrap().is_none(), "it ended");
}
