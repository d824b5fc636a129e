//! How fast the agent is, always beside something that is run at the same time on the same machine:
//! `cargo bench --bench agent [repair|burst|converge]`, all three without an argument.
//!
//! Everything runs in private namespaces, with a real etcd; the host's network is not touched. Repairs are timed from just
//! before a foreign write is sent to the kernel until a listener of the bench's own hears the right row: an upper bound.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a benchmark ends where something is not as it should be"
)]

#[path = "agent/figures.rs"]
mod figures;
#[path = "agent/rows.rs"]
mod rows;

use std::{
    collections::BTreeSet,
    env, fs,
    io::{self, Read as _},
    net::Ipv4Addr,
    path::PathBuf,
    process::{self, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use figures::{Samples, line, ratio, short};
use rows::{Listener, Row, Table, Writer, within};
use vtepd::lab::{Agent, Host, Lab, LabError, Metrics, Write, is_private, private_command, wait_for};

const VTEPD: &str = env!("CARGO_BIN_EXE_vtepd");
const PATIENCE: Duration = Duration::from_secs(120);
/// The overlay namespace of the agent's network, and one beside it in which nothing is repaired.
const OVERLAY: &str = "vtepd-bench";
const REFERENCE: &str = "reference";
/// Writes that etcd takes in one transaction.
const TRANSACTION: usize = 128;

const REMOTE: Ipv4Addr = Ipv4Addr::new(192, 168, 205, 11);
const MOVED: Ipv4Addr = Ipv4Addr::new(192, 168, 205, 12);
const WRONG: Ipv4Addr = Ipv4Addr::new(192, 168, 205, 99);
const WRONG_MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if !arguments.iter().any(|argument| argument == "--bench") {
        println!("nothing is measured: run it by `cargo bench --bench agent`");
        return;
    }
    if !is_private() {
        process::exit(in_private(&arguments));
    }
    // The outer process holds the other end: whatever ends it ends all this.
    thread::spawn(|| {
        let _ = io::stdin().read_to_end(&mut Vec::new());
        process::exit(125);
    });
    let chosen: Vec<&str> = arguments.iter().map(String::as_str).filter(|a| !a.starts_with('-')).collect();
    let benches: [(&str, fn()); 3] = [("repair", repair), ("burst", burst), ("converge", converge)];
    // Where others run as well, the slowest of many samples say more about them.
    let load = fs::read_to_string("/proc/loadavg").unwrap();
    println!("{} processors, load {}", thread::available_parallelism().unwrap(), words(&load)[0]);
    let known = |name: &str| benches.iter().any(|(known, _)| *known == name);
    assert!(chosen.iter().all(|name| known(name)), "the benchmarks are repair, burst and converge, not {chosen:?}");
    for (name, bench) in benches {
        if chosen.is_empty() || chosen.contains(&name) {
            bench();
        }
    }
}

/// Runs this program again in private namespaces.
fn in_private(arguments: &[String]) -> i32 {
    let mut command = private_command(&env::current_exe().unwrap()).unwrap();
    let mut child = command.args(arguments).stdin(Stdio::piped()).spawn().unwrap();
    let lifeline = child.stdin.take();
    let status = child.wait().unwrap();
    drop(lifeline);
    status.code().unwrap_or(1)
}

/// One host with an agent, a network with a local endpoint, and remote ones on a node of which there is only the record.
struct Bench {
    lab: Lab,
}

impl Bench {
    fn new() -> Self {
        let bench = Self { lab: Lab::with_hosts(1).unwrap() };
        bench.host().add_netns("local").unwrap();
        bench.host().add_netns(REFERENCE).unwrap();
        bench.fresh_reference();
        bench.put_vtep("remote", REMOTE);
        bench.put("networks/bench", r#"{"subnets":[{"cidr":"10.0.0.0/8","gateway":"10.0.0.1","vni":256}]}"#);
        bench.put("endpoints/bench/docker-node1/local", r#"{"ip":["10.0.0.2"],"netns":"/run/netns/local"}"#);
        bench
    }

    fn host(&self) -> &Host {
        &self.lab.hosts[0]
    }

    fn netns(&self, name: &str) -> PathBuf {
        format!("/proc/{}/root/run/netns/{name}", self.host().pid()).into()
    }

    /// A VXLAN device without rows in the namespace beside the agent's.
    fn fresh_reference(&self) {
        let address = self.host().address();
        let vxlan = format!("type vxlan id 256 dstport 4789 local {address} nolearning proxy");
        // There is none to delete the first time.
        let _ = self.host().run(&words("ip -n reference link del vxlan1"));
        self.host().run(&words(&format!("ip -n reference link add vxlan1 {vxlan}"))).unwrap();
        self.host().run(&words("ip -n reference link set vxlan1 up")).unwrap();
    }

    fn writer(&self, netns: &str) -> Writer {
        let link = self.host().ip_json(&["-n", netns, "link", "show", "vxlan1"]).unwrap();
        let ifindex = link[0]["ifindex"].as_u64().unwrap().try_into().unwrap();
        Writer::open(&self.netns(netns), ifindex)
    }

    fn listener(&self) -> Listener {
        Listener::open(&self.netns(OVERLAY))
    }

    fn put(&self, key: &str, value: &str) {
        self.lab.etcd.put(&format!("/vtepd/v1/{key}"), value).unwrap();
    }

    fn put_vtep(&self, node: &str, vtep: Ipv4Addr) {
        self.put(&format!("nodes/{node}"), &format!(r#"{{"vtep":"{vtep}"}}"#));
    }

    /// Writes endpoints of remote nodes; `node` says whose each is.
    fn put_endpoints(&self, count: u32, node: impl Fn(u32) -> &'static str) {
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

    fn start(&self) -> Agent {
        let mut options = self.lab.agent_options(VTEPD);
        options.log_level = "info".to_owned();
        self.host().spawn_agent(&options).unwrap()
    }

    /// Waits until so many remote rows of each kind stand and the network is in sync at the store's revision.
    fn in_sync(&self, agent: &mut Agent, remote: u32) -> Metrics {
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
    fn batch(&self, program: &str, netns: &str, lines: &[String]) -> Duration {
        let started = Instant::now();
        self.host().run_with_input(&[program, "-n", netns, "-batch", "-"], &lines.join("\n")).unwrap();
        started.elapsed()
    }

    /// How long one process takes for one command in a namespace.
    fn one_process(&self, netns: &str, row: Row) -> Duration {
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

fn words(text: &str) -> Vec<&str> {
    text.split_whitespace().collect()
}

/// The `n`th remote endpoint's inner address.
fn address(n: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a01_0000 + n)
}

fn mac(n: u32) -> [u8; 6] {
    let [a, b, c, d] = address(n).octets();
    [0x02, 0x42, a, b, c, d]
}

fn endpoint(node: &str, n: u32) -> (String, String) {
    (format!("endpoints/bench/{node}/e{n}"), format!(r#"{{"ip":["{}"]}}"#, address(n)))
}

fn row(table: Table, n: u32) -> Row {
    match table {
        Table::Fdb => Row { table, mac: mac(n), ip: REMOTE },
        Table::Neighbour => Row { table, mac: mac(n), ip: address(n) },
    }
}

fn rows(table: Table, count: u32) -> Vec<Row> {
    (0..count).map(|n| row(table, n)).collect()
}

fn commands(rows: &[Row], verb: &str) -> Vec<String> {
    rows.iter().map(|row| row.command(verb)).collect()
}

/// A foreign change of a row: deleted, or overwritten.
fn break_row(writer: &Writer, row: Row, delete: bool) {
    match (delete, row.table) {
        (true, _) => writer.delete(row),
        (false, Table::Fdb) => writer.put(Row { ip: WRONG, ..row }),
        (false, Table::Neighbour) => writer.put(Row { mac: WRONG_MAC, ..row }),
    }
}

/// Memory of a process in MiB: resident now, resident at most.
fn memory(agent: &Agent) -> (f64, f64) {
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    let of = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        words(line)[1].parse::<f64>().unwrap() / 1024.0
    };
    (of("VmRSS:"), of("VmHWM:"))
}

/// Processor time that a process has used, all threads: in its own code, and in the kernel.
fn cpu(agent: &Agent) -> (Duration, Duration) {
    let stat = fs::read_to_string(format!("/proc/{}/stat", agent.pid())).unwrap();
    let fields = words(stat.rsplit_once(')').unwrap().1);
    let ticks = |field: usize| Duration::from_millis(fields[field].parse::<u64>().unwrap() * 10);
    (ticks(11), ticks(12))
}

/// When the agent's log last said this, in the day.
fn logged(agent: &Agent, what: &str) -> Duration {
    let log = fs::read_to_string(agent.log_path()).unwrap();
    let said = log.lines().rev().find(|line| line.contains(what)).unwrap_or_else(|| panic!("{log}"));
    let time = said.split(['T', 'Z']).nth(1).unwrap();
    let seconds = time.split(':').fold(0.0, |sum, part| sum * 60.0 + part.parse::<f64>().unwrap());
    Duration::from_secs_f64(seconds)
}

fn repair() {
    const REMOTES: u32 = 10_000;
    const SAMPLES: u32 = 300;
    println!("\nrepair: one row at a time, {SAMPLES} of each kind, among {REMOTES} remote endpoints");
    let bench = Bench::new();
    bench.put_vtep("other", MOVED);
    bench.put_endpoints(REMOTES, |_| "remote");
    let mut agent = bench.start();
    bench.in_sync(&mut agent, REMOTES);
    for (program, table) in [("bridge", Table::Fdb), ("ip", Table::Neighbour)] {
        bench.batch(program, REFERENCE, &commands(&rows(table, REMOTES), "replace"));
    }
    let (listener, foreign) = (bench.listener(), bench.writer(OVERLAY));
    let beside = bench.writer(REFERENCE);
    let drift = |agent: &mut Agent| agent.metrics().unwrap().count("vtepd_drift_total", &[]);
    for (table, name) in [(Table::Fdb, "fdb"), (Table::Neighbour, "neighbour")] {
        let (mut repairs, mut processes, mut bare) = (Samples::default(), Samples::default(), Samples::default());
        for n in 0..SAMPLES {
            let row = row(table, n * 31 % REMOTES);
            let delete = n % 2 == 0;
            listener.forget();
            let started = Instant::now();
            break_row(&foreign, row, delete);
            repairs.push(listener.wait_for(row, PATIENCE).duration_since(started));

            break_row(&beside, row, delete);
            processes.push(bench.one_process(REFERENCE, row));
            break_row(&beside, row, delete);
            let started = Instant::now();
            beside.put(row);
            bare.push(started.elapsed());
            thread::sleep(Duration::from_millis(2 + u64::from(n % 4)));
        }
        let program = if table == Table::Fdb { "one bridge process" } else { "one ip process" };
        let median = repairs.median();
        let floor = ratio(median, bare.median(), "a bare netlink write");
        line(&format!("repair {name}"), &repairs, &[ratio(median, processes.median(), program), floor]);
        line(&format!("  {program} meanwhile"), &processes, &[]);
    }
    assert_eq!(drift(&mut agent), f64::from(2 * SAMPLES), "every foreign change is counted once");

    repair_while_converging(&bench, &mut agent, REMOTES);
}

/// The same while 10,000 other rows of the same network change again and again, because their node moves.
fn repair_while_converging(bench: &Bench, agent: &mut Agent, remotes: u32) {
    const SAMPLES: u32 = 300;
    let writes: Vec<Write> = (0..remotes)
        .map(|n| {
            let (key, value) = endpoint("other", remotes + n);
            Write::Put(format!("/vtepd/v1/{key}"), value)
        })
        .collect();
    writes.chunks(TRANSACTION).for_each(|some| bench.lab.etcd.transaction(some).unwrap());
    bench.in_sync(agent, 2 * remotes);
    let (listener, foreign) = (bench.listener(), bench.writer(OVERLAY));
    let ops = |agent: &mut Agent| agent.metrics().unwrap().count("vtepd_ops_total", &[("cause", "change")]);
    let (before, done) = (ops(agent), AtomicBool::new(false));
    let mut repairs = Samples::default();
    let started = Instant::now();
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut moves = 0_u8;
            while !done.load(Ordering::Relaxed) {
                moves = moves.wrapping_add(1);
                bench.put_vtep("other", Ipv4Addr::new(192, 168, 206, moves));
            }
        });
        for n in 0..SAMPLES {
            let row = row(Table::Fdb, (7 + n * 31) % remotes);
            let started = Instant::now();
            break_row(&foreign, row, n % 2 == 0);
            repairs.push(listener.wait_for(row, PATIENCE).duration_since(started));
            thread::sleep(Duration::from_millis(2 + u64::from(n % 4)));
        }
        done.store(true, Ordering::Relaxed);
    });
    let rate = (ops(agent) - before) / started.elapsed().as_secs_f64();
    line("repair fdb, node of 10,000 moving", &repairs, &[format!("beside {rate:.0} other rows a second")]);
}

fn burst() {
    const REMOTES: u32 = 10_000;
    const BURST: u32 = 2_000;
    const ROUNDS: u32 = 5;
    println!("\nburst: {BURST} rows deleted at once by bridge -batch, among {REMOTES}; medians of {ROUNDS}");
    let bench = Bench::new();
    bench.put_endpoints(REMOTES, |_| "remote");
    let mut agent = bench.start();
    bench.in_sync(&mut agent, REMOTES);
    let listener = bench.listener();
    for (program, table) in [("bridge", Table::Fdb), ("ip", Table::Neighbour)] {
        bench.batch(program, REFERENCE, &commands(&rows(table, REMOTES), "replace"));
        let (mut all_back, mut after_last, mut again) = (Samples::default(), Samples::default(), Samples::default());
        for round in 0..ROUNDS {
            let some: Vec<Row> = (0..BURST).map(|n| row(table, n * 5 + round)).collect();
            listener.forget();
            bench.batch(program, OVERLAY, &commands(&some, "del"));
            let (first, last, back) = back_again(&listener, &some);
            all_back.push(back.duration_since(first));
            after_last.push(back.duration_since(last));

            bench.batch(program, REFERENCE, &commands(&some, "del"));
            again.push(bench.batch(program, REFERENCE, &commands(&some, "replace")));
        }
        let what = format!("burst {}", if table == Table::Fdb { "fdb" } else { "neighbour" });
        let figures = format!(
            "all back {} after the first delete, {} after the last",
            short(all_back.median()),
            short(after_last.median())
        );
        let of = format!("{program} -batch that adds them");
        line(&what, figures, &[ratio(all_back.median(), again.median(), &of)]);
    }
    bench.in_sync(&mut agent, REMOTES);
    let metrics = agent.metrics().unwrap();
    let (drift, overruns) =
        (metrics.count("vtepd_drift_total", &[]), metrics.count("vtepd_netlink_overruns_total", &[]));
    assert_eq!((drift, overruns), (f64::from(2 * BURST * ROUNDS), 0.0), "each row is counted once");
}

/// When the first of these rows went, when the last one, and when all were there again.
fn back_again(listener: &Listener, rows: &[Row]) -> (Instant, Instant, Instant) {
    let mut to_go: BTreeSet<Row> = rows.iter().copied().collect();
    let mut to_come: BTreeSet<Row> = to_go.clone();
    let (mut first, mut last) = (None, None);
    loop {
        let heard = listener.next(PATIENCE);
        if heard.present {
            to_come.remove(&heard.row);
        } else {
            // The last words on a neighbour show no MAC address.
            let same = |row: &&Row| match row.table {
                Table::Fdb => row.mac == heard.row.mac,
                Table::Neighbour => row.ip == heard.row.ip,
            };
            let gone = if to_go.contains(&heard.row) { Some(heard.row) } else { to_go.iter().find(same).copied() };
            if gone.is_some_and(|row| to_go.remove(&row)) {
                first = first.or(Some(heard.at));
                last = Some(heard.at);
            }
        }
        if let (true, true, Some(first), Some(last)) = (to_go.is_empty(), to_come.is_empty(), first, last) {
            return (first, last, heard.at);
        }
    }
}

fn converge() {
    const REMOTES: u32 = 100_000;
    println!("\nconverge: {REMOTES} remote endpoints in etcd, then the agent starts");
    let bench = Bench::new();
    let mut agent = bench.start();
    bench.in_sync(&mut agent, 0);
    let (empty, _) = memory(&agent);
    agent.stop().unwrap();
    let started = Instant::now();
    bench.put_endpoints(REMOTES, |_| "remote");
    println!("(written in {} by {} transactions of etcdctl)", short(started.elapsed()), REMOTES.div_ceil(128));

    let started = Instant::now();
    let mut agent = bench.start();
    bench.in_sync(&mut agent, REMOTES);
    let took = started.elapsed();
    let (own, kernel) = cpu(&agent);
    let listing = logged(&agent, "listed the store").saturating_sub(logged(&agent, "registered"));
    let (resident, most) = memory(&agent);
    verify(&bench, REMOTES, REMOTE);

    let started = Instant::now();
    bench.lab.etcd.etcdctl(&["get", "--prefix", "/vtepd/v1/"]).unwrap();
    let etcdctl = started.elapsed();
    let (fdb, neighbours) = (rows(Table::Fdb, REMOTES), rows(Table::Neighbour, REMOTES));
    let tools = bench.batch("bridge", REFERENCE, &commands(&fdb, "add"))
        + bench.batch("ip", REFERENCE, &commands(&neighbours, "add"));
    line("from start to in sync", short(took), &[ratio(took, tools, "bridge -batch and ip -batch")]);
    line("  listing etcd", short(listing), &[ratio(listing, etcdctl, "etcdctl get --prefix")]);
    let figures = format!("{} in its own code, {} in the kernel", short(own), short(kernel));
    line("  processor time", figures, &[]);
    let each = (resident - empty) * 1024.0 * 1024.0 / f64::from(REMOTES);
    line(
        "memory",
        format!("resident {resident:.0} MiB, at most {most:.0} MiB"),
        &[format!("{each:.0} bytes an endpoint above an agent without them ({empty:.0} MiB)")],
    );

    agent.stop().unwrap();
    let started = Instant::now();
    let mut agent = bench.start();
    let metrics = bench.in_sync(&mut agent, REMOTES);
    let took = started.elapsed();
    assert_eq!(metrics.count("vtepd_ops_total", &[]), 0.0, "a correct kernel gets no message");
    let started = Instant::now();
    let shown = show(&bench, "bridge", "fdb show dev vxlan1") + show(&bench, "ip", "neigh show dev vxlan1");
    line("restart on the correct kernel", short(took), &[ratio(took, started.elapsed(), "bridge and ip showing it")]);
    assert!(shown >= 2 * REMOTES as usize, "{shown} rows");
    let (resident, most) = memory(&agent);
    line("memory after it", format!("resident {resident:.0} MiB, at most {most:.0} MiB"), &[]);

    one_more(&bench, REMOTES);
    let remotes = REMOTES + ADDED;
    bench.in_sync(&mut agent, remotes);

    let started = Instant::now();
    bench.put_vtep("remote", MOVED);
    bench.in_sync(&mut agent, remotes);
    let took = started.elapsed();
    verify(&bench, remotes, MOVED);
    let moved: Vec<Row> = fdb.iter().map(|row| Row { ip: MOVED, ..*row }).collect();
    let tools = bench.batch("bridge", REFERENCE, &commands(&moved, "replace"));
    line("their node moves", short(took), &[ratio(took, tools, "bridge -batch")]);
    let (resident, most) = memory(&agent);
    line("memory after it", format!("resident {resident:.0} MiB, at most {most:.0} MiB"), &[]);
}

const ADDED: u32 = 30;

/// One endpoint more, and one more: from the start of `etcdctl put` until both rows are there.
fn one_more(bench: &Bench, remotes: u32) {
    let listener = bench.listener();
    let (mut rows, mut puts) = (Samples::default(), Samples::default());
    for n in remotes..remotes + ADDED {
        let (key, value) = endpoint("remote", n);
        let started = Instant::now();
        bench.put(&key, &value);
        puts.push(started.elapsed());
        let mut missing = BTreeSet::from([row(Table::Fdb, n), row(Table::Neighbour, n)]);
        while !missing.is_empty() {
            let heard = listener.next(PATIENCE);
            if missing.remove(&heard.row) && missing.is_empty() {
                rows.push(heard.at.duration_since(started));
            }
        }
    }
    line("one endpoint more, from etcdctl on", &rows, &[ratio(rows.median(), puts.median(), "etcdctl itself")]);
}

fn show(bench: &Bench, program: &str, what: &str) -> usize {
    bench.host().run(&[&[program, "-n", OVERLAY], words(what).as_slice()].concat()).unwrap().lines().count()
}

/// Looks once with `bridge` and `ip` whether all rows stand.
fn verify(bench: &Bench, remotes: u32, vtep: Ipv4Addr) {
    let shown = bench.host().run(&words(&format!("bridge -n {OVERLAY} fdb show dev vxlan1"))).unwrap();
    let right = |line: &&str| line.contains(&format!(" dst {vtep} ")) && line.trim_end().ends_with("self permanent");
    let right = shown.lines().filter(right).count();
    assert_eq!(right, remotes as usize, "FDB rows");
    assert_eq!(show(bench, "ip", "neigh show dev vxlan1 nud permanent"), remotes as usize, "neighbours");
}
