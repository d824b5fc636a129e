//! The benches' ground: one host with an agent and a network, and what they all measure with.

use std::{
    fs,
    net::Ipv4Addr,
    path::PathBuf,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use vtepd::lab::{Agent, Host, Lab, LabError, Metrics, Write, wait_for};

use super::rows::{Listener, Row, Table, Writer, within};

pub(crate) const VTEPD: &str = env!("CARGO_BIN_EXE_vtepd");
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
/// The overlay namespace of the agent's network, and one beside it in which nothing is repaired.
pub(crate) const OVERLAY: &str = "vtepd-bench";
pub(crate) const REFERENCE: &str = "reference";
/// Writes that etcd takes in one transaction.
pub(crate) const TRANSACTION: usize = 128;

pub(crate) const REMOTE: Ipv4Addr = Ipv4Addr::new(192, 168, 205, 11);
pub(crate) const MOVED: Ipv4Addr = Ipv4Addr::new(192, 168, 205, 12);
pub(crate) const WRONG: Ipv4Addr = Ipv4Addr::new(192, 168, 205, 99);
pub(crate) const WRONG_MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

/// One host with an agent, a network with a local endpoint, and remote ones on a node of which there is only the record.
pub(crate) struct Bench {
    pub(crate) lab: Lab,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let bench = Self { lab: Lab::with_hosts(1).unwrap() };
        bench.host().add_netns("local").unwrap();
        bench.host().add_netns(REFERENCE).unwrap();
        bench.fresh_reference();
        bench.put_vtep("remote", REMOTE);
        bench.put("networks/bench", r#"{"subnets":[{"cidr":"10.0.0.0/8","gateway":"10.0.0.1","vni":256}]}"#);
        bench.put("endpoints/bench/docker-node1/local", r#"{"ip":["10.0.0.2"],"netns":"/run/netns/local"}"#);
        bench
    }

    pub(crate) fn host(&self) -> &Host {
        &self.lab.hosts[0]
    }

    pub(crate) fn netns(&self, name: &str) -> PathBuf {
        format!("/proc/{}/root/run/netns/{name}", self.host().pid()).into()
    }

    /// A VXLAN device without rows in the namespace beside the agent's.
    pub(crate) fn fresh_reference(&self) {
        let address = self.host().address();
        let vxlan = format!("type vxlan id 256 dstport 4789 local {address} nolearning proxy");
        // There is none to delete the first time.
        let _ = self.host().run(&words("ip -n reference link del vxlan1"));
        self.host().run(&words(&format!("ip -n reference link add vxlan1 {vxlan}"))).unwrap();
        self.host().run(&words("ip -n reference link set vxlan1 up")).unwrap();
    }

    pub(crate) fn writer(&self, netns: &str) -> Writer {
        let link = self.host().ip_json(&["-n", netns, "link", "show", "vxlan1"]).unwrap();
        let ifindex = link[0]["ifindex"].as_u64().unwrap().try_into().unwrap();
        Writer::open(&self.netns(netns), ifindex)
    }

    pub(crate) fn listener(&self) -> Listener {
        Listener::open(&self.netns(OVERLAY))
    }

    pub(crate) fn put(&self, key: &str, value: &str) {
        self.lab.etcd.put(&format!("/vtepd/v1/{key}"), value).unwrap();
    }

    pub(crate) fn put_vtep(&self, node: &str, vtep: Ipv4Addr) {
        self.put(&format!("nodes/{node}"), &format!(r#"{{"vtep":"{vtep}"}}"#));
    }

    /// Writes endpoints of remote nodes; `node` says whose each is.
    pub(crate) fn put_endpoints(&self, count: u32, node: impl Fn(u32) -> &'static str) {
        let writes: Vec<Write> = (0..count)
            .map(|n| {
                let (key, value) = endpoint(node(n), n);
                Write::Put(format!("/vtepd/v1/{key}"), value)
            })
            .collect();
        let transactions: Vec<&[Write]> = writes.chunks(TRANSACTION).collect();
        thread::scope(|scope| {
            for some in transactions.chunks(transactions.len().div_ceil(4)) {
                scope.spawn(move || some.iter().for_each(|writes| self.lab.etcd.transaction(writes).unwrap()));
            }
        });
    }

    pub(crate) fn start(&self) -> Agent {
        let mut options = self.lab.agent_options(VTEPD);
        options.log_level = "info".to_owned();
        self.host().spawn_agent(&options).unwrap()
    }

    /// Waits until so many remote rows of each kind stand and the network is in sync at the store's revision.
    pub(crate) fn in_sync(&self, agent: &mut Agent, remote: u32) -> Metrics {
        // Agents write their status besides: the store's own revision is no measure.
        let marker = self.lab.etcd.put("/vtepd/v1/approvals/heard", r#"{"revision":1}"#);
        let revision = marker.unwrap() as f64;
        // The local endpoint has a row of the bridge.
        let rows = [("fdb", f64::from(remote) + 1.0), ("neighbour", f64::from(remote))];
        let waited = wait_for("all rows", PATIENCE, || {
            let metrics = agent.metrics()?;
            let synced = metrics.count("vtepd_in_sync", &[("network", "bench")]);
            let applied = metrics.count("vtepd_applied_revision", &[]);
            let observed =
                rows.map(|(kind, _)| metrics.count("vtepd_observed_objects", &[("network", "bench"), ("kind", kind)]));
            if synced == 1.0 && applied >= revision && observed == rows.map(|(_, count)| count) {
                return Ok(metrics);
            }
            Err(LabError::not_so(format!("in sync {synced}, applied {applied}, rows {observed:?}")))
        });
        waited.unwrap_or_else(|error| panic!("{error}\n{}", agent.log_tail(40)))
    }

    /// Runs `bridge -batch` or `ip -batch` in a namespace.
    pub(crate) fn batch(&self, program: &str, netns: &str, lines: &[String]) -> Duration {
        let started = Instant::now();
        self.host().run_with_input(&[program, "-n", netns, "-batch", "-"], &lines.join("\n")).unwrap();
        started.elapsed()
    }

    /// How long one process takes for one command in a namespace.
    pub(crate) fn one_process(&self, netns: &str, row: Row) -> Duration {
        let program = if row.table == Table::Fdb { "bridge" } else { "ip" };
        within(&self.netns(netns), || {
            let mut command = Command::new(program);
            command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
            command.args(words(&row.command("replace")));
            let started = Instant::now();
            assert!(command.status().unwrap().success(), "{command:?}");
            started.elapsed()
        })
    }
}

pub(crate) fn words(text: &str) -> Vec<&str> {
    text.split_whitespace().collect()
}

/// The `n`th remote endpoint's inner address.
pub(crate) fn address(n: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a01_0000 + n)
}

pub(crate) fn mac(n: u32) -> [u8; 6] {
    let [a, b, c, d] = address(n).octets();
    [0x02, 0x42, a, b, c, d]
}

pub(crate) fn endpoint(node: &str, n: u32) -> (String, String) {
    (format!("endpoints/bench/{node}/e{n}"), format!(r#"{{"ip":["{}"]}}"#, address(n)))
}

pub(crate) fn row(table: Table, n: u32) -> Row {
    match table {
        Table::Fdb => Row { table, mac: mac(n), ip: REMOTE },
        Table::Neighbour => Row { table, mac: mac(n), ip: address(n) },
    }
}

pub(crate) fn rows(table: Table, count: u32) -> Vec<Row> {
    (0..count).map(|n| row(table, n)).collect()
}

pub(crate) fn commands(rows: &[Row], verb: &str) -> Vec<String> {
    rows.iter().map(|row| row.command(verb)).collect()
}

/// A foreign change of a row: deleted, or overwritten.
pub(crate) fn break_row(writer: &Writer, row: Row, delete: bool) {
    match (delete, row.table) {
        (true, _) => writer.delete(row),
        (false, Table::Fdb) => writer.put(Row { ip: WRONG, ..row }),
        (false, Table::Neighbour) => writer.put(Row { mac: WRONG_MAC, ..row }),
    }
}

/// Memory of a process in MiB: resident now, resident at most.
pub(crate) fn memory(agent: &Agent) -> (f64, f64) {
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    let of = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        words(line)[1].parse::<f64>().unwrap() / 1024.0
    };
    (of("VmRSS:"), of("VmHWM:"))
}

/// Processor time that a process has used, all threads: in its own code, and in the kernel.
pub(crate) fn cpu(agent: &Agent) -> (Duration, Duration) {
    cpu_by(agent.pid())
}

/// The same of both together, by process identifier.
pub(crate) fn cpu_of(pid: u32) -> Duration {
    let (own, kernel) = cpu_by(pid);
    own + kernel
}

fn cpu_by(pid: u32) -> (Duration, Duration) {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields = words(stat.rsplit_once(')').unwrap().1);
    let ticks = |field: usize| Duration::from_millis(fields[field].parse::<u64>().unwrap() * 10);
    (ticks(11), ticks(12))
}
