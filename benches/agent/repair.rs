//! Repairs of rows, one at a time.

use std::{
    net::Ipv4Addr,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use vtepd::lab::{Agent, Write};

use super::{
    Scale,
    bench::{Bench, MOVED, OVERLAY, PATIENCE, REFERENCE, TRANSACTION, break_row, commands, endpoint, row, rows},
    figures::{Figure, Samples, title},
    rows::Table,
};

/// One row at a time.
pub(crate) fn repair(_: Scale) {
    const REMOTES: u32 = 10_000;
    const SAMPLES: u32 = 300;
    title(format!("repair: one row at a time, {SAMPLES} of each kind, among {REMOTES} remote endpoints"));
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
        Figure::samples(format!("repair {name}"), &repairs)
            .against(program, processes.median())
            .against("a bare netlink write", bare.median())
            .done();
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
    Figure::samples("repair fdb, node of 10,000 moving", &repairs)
        .note(format!("beside {rate:.0} other rows a second"))
        .done();
}
