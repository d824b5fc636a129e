//! Repairs of many rows that go at once.

use std::{collections::BTreeSet, time::Instant};

use super::{
    Scale,
    bench::{Bench, OVERLAY, PATIENCE, REFERENCE, commands, row, rows},
    figures::{Samples, line, ratio, short, title},
    rows::{Listener, Row, Table},
};

/// Many rows at once.
pub(crate) fn burst(_: Scale) {
    const REMOTES: u32 = 10_000;
    const BURST: u32 = 2_000;
    const ROUNDS: u32 = 5;
    title(format!("burst: {BURST} rows deleted at once by bridge -batch, among {REMOTES}; medians of {ROUNDS}"));
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
