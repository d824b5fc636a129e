//! From the agent's start to rows for all endpoints, its restart on a correct kernel, and one endpoint more.

use std::{
    collections::BTreeSet,
    net::Ipv4Addr,
    thread,
    time::{Duration, Instant},
};

use super::{
    Scale,
    bench::{Bench, MOVED, OVERLAY, PATIENCE, REFERENCE, REMOTE, commands, cpu, endpoint, memory, row, rows, words},
    figures::{Figure, Samples, line, short, title},
    rows::{Row, Table, first_row},
    watch,
};

/// So many endpoints come one by one.
const ADDED: u32 = 300;

/// With a hundred thousand endpoints, and at full scale with a million.
pub(crate) fn cold(scale: Scale) {
    of(scale.of(100_000));
    if scale == Scale::Full {
        of(1_000_000);
    }
}

fn of(remotes: u32) {
    title(format!("cold: {remotes} remote endpoints in etcd, then the agent starts"));
    let bench = Bench::new();
    let mut agent = bench.start();
    bench.in_sync(&mut agent, 0);
    let (empty, _) = memory(&agent);
    agent.stop().unwrap();
    bench.host().run(&words(&format!("ip netns del {OVERLAY}"))).unwrap();
    let started = Instant::now();
    bench.put_endpoints(remotes, |_| "remote");
    println!("(written in {} by {} transactions of etcdctl)", short(started.elapsed()), remotes.div_ceil(128));

    let (fdb, neighbours) = (rows(Table::Fdb, remotes), rows(Table::Neighbour, remotes));
    let listing = watch::list(&bench, "/vtepd/v1/endpoints/");
    bench.fresh_reference();
    let both: Vec<Row> = fdb.iter().zip(&neighbours).flat_map(|(fdb, neighbour)| [*fdb, *neighbour]).collect();
    let floor = bench.writer(REFERENCE).put_all(&both);
    bench.fresh_reference();
    let tools = bench.batch("bridge", REFERENCE, &commands(&fdb, "add"))
        + bench.batch("ip", REFERENCE, &commands(&neighbours, "add"));
    bench.fresh_reference();

    let started = Instant::now();
    let overlay = bench.netns(OVERLAY);
    let first = thread::spawn(move || first_row(&overlay, PATIENCE));
    let mut agent = bench.start();
    bench.in_sync(&mut agent, remotes);
    let took = started.elapsed();
    let first = first.join().unwrap().duration_since(started);
    let (own, kernel) = cpu(&agent);
    let (resident, most) = memory(&agent);
    verify(&bench, remotes, REMOTE);
    Figure::time("from start to in sync", took)
        .against("a bare loop of prebuilt messages", floor)
        .against("bridge -batch and ip -batch", tools)
        .against("a bare client listing etcd", listing)
        .goal(if remotes > 100_000 { "per row <= 1.3x of 100,000" } else { "<= 0.5 s" })
        .done();
    Figure::time("  per row", took / (2 * remotes)).against("the bare loop", floor / (2 * remotes)).done();
    Figure::time("  from start to the first row", first).done();
    line("  processor time", format!("{} in its own code, {} in the kernel", short(own), short(kernel)), &[]);
    let each = (resident - empty) * 1024.0 * 1024.0 / f64::from(remotes);
    Figure::quantity("memory, per endpoint", each, "bytes")
        .note(format!("resident {resident:.1} MiB, at most {most:.1} MiB; without endpoints {empty:.1} MiB"))
        .goal("<= 12 MiB + 256 bytes per endpoint")
        .done();

    agent.stop().unwrap();
    let started = Instant::now();
    let mut agent = bench.start();
    let metrics = bench.in_sync(&mut agent, remotes);
    let took = started.elapsed();
    assert_eq!(metrics.count("vtepd_ops_total", &[]), 0.0, "a correct kernel gets no message");
    let started = Instant::now();
    let shown = show(&bench, "bridge", "fdb show dev vxlan1") + show(&bench, "ip", "neigh show dev vxlan1");
    Figure::time("restart on the correct kernel", took)
        .against("bridge and ip showing it", started.elapsed())
        .goal(if remotes > 100_000 { "linear" } else { "<= 0.8 s" })
        .done();
    assert!(shown >= 2 * remotes as usize, "{shown} rows");
    let (resident, most) = memory(&agent);
    line("memory after it", format!("resident {resident:.1} MiB, at most {most:.1} MiB"), &[]);

    one_more(&bench, remotes);
    let remotes = remotes + ADDED;
    bench.in_sync(&mut agent, remotes);

    let started = Instant::now();
    bench.put_vtep("remote", MOVED);
    bench.in_sync(&mut agent, remotes);
    let took = started.elapsed();
    verify(&bench, remotes, MOVED);
    bench.fresh_reference();
    let writer = bench.writer(REFERENCE);
    writer.put_all(&fdb);
    let moved: Vec<Row> = fdb.iter().map(|row| Row { ip: MOVED, ..*row }).collect();
    let floor = writer.put_all(&moved);
    let back = bench.batch("bridge", REFERENCE, &commands(&fdb, "replace"));
    Figure::time("their node moves", took).against("a bare loop", floor).against("bridge -batch", back).done();
    let (resident, most) = memory(&agent);
    line("memory after it", format!("resident {resident:.1} MiB, at most {most:.1} MiB"), &[]);
}

/// One endpoint more, and one more: from the moment that a bare watcher of the bench's own hears of it until both rows are
/// there. That is the agent's own share, but for what the two watches and listeners take from each other.
fn one_more(bench: &Bench, remotes: u32) {
    let listener = bench.listener();
    let watcher = watch::Watcher::start(bench, "/vtepd/v1/endpoints/");
    let (mut shares, mut whole, mut puts) = (Samples::default(), Samples::default(), Samples::default());
    for n in remotes..remotes + ADDED {
        let (key, value) = endpoint("remote", n);
        let started = Instant::now();
        bench.put(&key, &value);
        puts.push(started.elapsed());
        let told = watcher.next(PATIENCE);
        let mut missing = BTreeSet::from([row(Table::Fdb, n), row(Table::Neighbour, n)]);
        while !missing.is_empty() {
            let heard = listener.next(PATIENCE);
            if missing.remove(&heard.row) && missing.is_empty() {
                shares.push(heard.at.saturating_duration_since(told));
                whole.push(heard.at.duration_since(started));
            }
        }
        thread::sleep(Duration::from_millis(1 + u64::from(n % 5)));
    }
    Figure::samples("put to row, the agent's own share", &shares).goal("p50 100 us, p99 400 us").done();
    Figure::samples("  from etcdctl on", &whole).against("etcdctl itself", puts.median()).done();
}

fn show(bench: &Bench, program: &str, what: &str) -> usize {
    bench.host().run(&[&[program, "-n", OVERLAY], words(what).as_slice()].concat()).unwrap().lines().count()
}

/// Looks once whether all rows stand: the FDB by `bridge`, the neighbours by `ip`.
fn verify(bench: &Bench, remotes: u32, vtep: Ipv4Addr) {
    let shown = bench.host().run(&words(&format!("bridge -n {OVERLAY} fdb show dev vxlan1"))).unwrap();
    let right = |line: &&str| line.contains(&format!(" dst {vtep} ")) && line.trim_end().ends_with("self permanent");
    let right = shown.lines().filter(right).count();
    assert_eq!(right, remotes as usize, "FDB rows");
    assert_eq!(show(bench, "ip", "neigh show dev vxlan1 nud permanent"), remotes as usize, "neighbours");
}
