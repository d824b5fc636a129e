//! FDB rows, bridge rows and neighbours: put, read, deleted, many at a time.

use std::{net::IpAddr, time::Instant};

use serde_json::{Value, json as value};
use vtepd::{
    engine::{Answer, FailureKind, FdbPoint, FdbRow, Kernel, LinkChange, Neighbour, Op, Port, Query},
    kernel::NetworkKernel,
    model::Mac,
};

use crate::{
    edge::{NETNS, datapath, do_all, fdb, inner, inner_at, link, row, set, veth},
    support::{attempt, ip, json, mac, run},
};

pub(crate) fn neighbours(kernel: &mut NetworkKernel, query: &Query) -> Vec<Neighbour> {
    match kernel.read(query).unwrap() {
        Answer::Neighbours(entries) => entries,
        other => panic!("{other:?}"),
    }
}

/// What the witness shows of a MAC address in a namespace.
fn witnessed(netns: &str, dev: &str, mac: &str) -> Vec<Value> {
    let rows = json(&format!("bridge -n {netns} -j fdb show dev {dev}"));
    rows.as_array().unwrap().iter().filter(|row| row["mac"] == mac).cloned().collect()
}

#[test]
fn rows_are_put_read_one_by_one_and_as_a_whole_and_deleted() {
    let (mut kernel, br0, vxlan1) = datapath();
    let (a, b) = ("02:42:0a:00:00:03", "02:42:0a:00:00:04");
    do_all(
        &mut kernel,
        &[
            Op::PutFdb { ifindex: vxlan1, mac: mac(a), dst: ip("192.168.205.11") },
            Op::PutNeighbour { ifindex: vxlan1, ip: ip("10.0.0.3"), mac: mac(a) },
            Op::PutNeighbour { ifindex: vxlan1, ip: ip("fd00::3"), mac: mac(a) },
            Op::PutFdb { ifindex: vxlan1, mac: mac(b), dst: ip("192.168.205.11") },
            Op::PutFdb { ifindex: vxlan1, mac: mac(b), dst: ip("192.168.205.12") },
            Op::PutFdb { ifindex: vxlan1, mac: Mac::ZERO, dst: ip("192.168.205.11") },
            Op::PutFdb { ifindex: vxlan1, mac: Mac::ZERO, dst: ip("192.168.205.12") },
        ],
    );
    let shown = witnessed(NETNS, "vxlan1", a);
    assert_eq!(
        (shown.len(), &shown[0]["dst"], &shown[0]["state"]),
        (1, &value!("192.168.205.11"), &value!("permanent"))
    );
    assert_eq!(shown[0]["flags"], value!(["self"]));
    let shown = json("ip -n vtepd-demo -j -d neigh show dev vxlan1");
    let entry = shown.as_array().unwrap().iter().find(|entry| entry["dst"] == "10.0.0.3").unwrap();
    assert_eq!((&entry["lladdr"], &entry["state"]), (&value!(a), &value!(["PERMANENT"])));
    assert!(entry["protocol"] == "118" || entry["protocol"] == 118, "{entry}");

    let point = |text: &str| FdbPoint { ifindex: vxlan1, bridge: false, mac: mac(text) };
    let query = Query::FdbRows(vec![point(a), point("02:42:0a:00:00:99"), point(b)]);
    assert_eq!(fdb(&mut kernel, &query), [row(vxlan1, a, "192.168.205.11"), row(vxlan1, b, "192.168.205.12")]);
    let mut dumped = fdb(&mut kernel, &Query::FdbDump(vxlan1));
    dumped.retain(|row| !row.kernels_own);
    dumped.sort_by_key(|row| (row.mac, row.dst));
    assert_eq!(
        dumped,
        [
            row(vxlan1, "00:00:00:00:00:00", "192.168.205.11"),
            row(vxlan1, "00:00:00:00:00:00", "192.168.205.12"),
            row(vxlan1, a, "192.168.205.11"),
            row(vxlan1, b, "192.168.205.12"),
        ]
    );
    let entry =
        |text: &str| Neighbour { ifindex: vxlan1, ip: ip(text), mac: Some(mac(a)), permanent: true, ours: true };
    let query =
        Query::NeighbourRows(vec![(vxlan1, ip("fd00::3")), (vxlan1, ip("10.0.0.99")), (vxlan1, ip("10.0.0.3"))]);
    assert_eq!(neighbours(&mut kernel, &query), [entry("fd00::3"), entry("10.0.0.3")]);
    let mut dumped = neighbours(&mut kernel, &Query::NeighbourDump(vxlan1));
    dumped.retain(|entry| entry.permanent);
    dumped.sort_by_key(|entry| entry.ip);
    assert_eq!(dumped, [entry("10.0.0.3"), entry("fd00::3")]);
    assert!(neighbours(&mut kernel, &Query::NeighbourDump(br0)).iter().all(|entry| !entry.permanent));

    for query in [
        Query::FdbRows(vec![FdbPoint { ifindex: 4711, bridge: false, mac: mac(a) }]),
        Query::FdbRows(vec![FdbPoint { ifindex: 4711, bridge: true, mac: mac(a) }]),
        Query::NeighbourRows(vec![(4711, ip("10.0.0.3"))]),
    ] {
        assert_eq!(kernel.read(&query).unwrap_err().kind, FailureKind::NotFound, "{query:?}");
    }

    let deletes = [
        Op::DeleteFdb { ifindex: vxlan1, mac: mac(a), dst: None },
        Op::DeleteFdb { ifindex: vxlan1, mac: Mac::ZERO, dst: Some(ip("192.168.205.11")) },
        Op::DeleteNeighbour { ifindex: vxlan1, ip: ip("10.0.0.3") },
        Op::DeleteNeighbour { ifindex: vxlan1, ip: ip("fd00::3") },
    ];
    do_all(&mut kernel, &deletes);
    assert!(witnessed(NETNS, "vxlan1", a).is_empty());
    let left = witnessed(NETNS, "vxlan1", "00:00:00:00:00:00");
    assert_eq!((left.len(), &left[0]["dst"]), (1, &value!("192.168.205.12")));
    assert_eq!(json("ip -n vtepd-demo -j neigh show dev vxlan1 nud permanent"), value!([]));
    for (op, result) in deletes.iter().zip(kernel.apply(&deletes)) {
        // One destination among several that is not there is nothing to the driver.
        let flood = matches!(op, Op::DeleteFdb { dst: Some(_), .. });
        assert_eq!(result.map_err(|failure| failure.kind), if flood { Ok(()) } else { Err(FailureKind::NotFound) });
    }
}

#[test]
fn rows_that_somebody_else_wrote_differently_are_not_plain() {
    let (mut kernel, _, vxlan1) = datapath();
    for (n, more) in ["port 4790", "vni 9", "extern_learn", "via lo", "router"].iter().enumerate() {
        let text = format!("02:42:0a:00:01:{n:02x}");
        let (done, why) = attempt(&format!(
            "bridge -n vtepd-demo fdb add {text} dev vxlan1 dst 192.168.205.11 self permanent {more}"
        ));
        if !done {
            println!("not tried: {more}: {why}");
            continue;
        }
        let rows =
            fdb(&mut kernel, &Query::FdbRows(vec![FdbPoint { ifindex: vxlan1, bridge: false, mac: mac(&text) }]));
        assert_eq!(rows.len(), 1, "{more}");
        assert_eq!((rows[0].plain, rows[0].kernels_own), (false, false), "{more}: {rows:?}");
    }
    run("bridge -n vtepd-demo fdb add 02:42:0a:00:01:f0 dev vxlan1 dst 192.168.205.11 self static");
    run("bridge -n vtepd-demo fdb add 01:00:5e:00:00:fb dev vxlan1 dst 192.168.205.11 self permanent");
    let rows = fdb(&mut kernel, &Query::FdbDump(vxlan1));
    let find = |text: &str| rows.iter().find(|row| row.mac == mac(text)).unwrap();
    assert_eq!((find("02:42:0a:00:01:f0").plain, find("02:42:0a:00:01:f0").kernels_own), (false, false));
    assert!(find("01:00:5e:00:00:fb").kernels_own);
}

#[test]
fn a_bridge_row_is_static_and_is_found_by_its_bridge_wherever_it_points() {
    let (mut kernel, br0, _) = datapath();
    run("ip netns add test1");
    run("ip netns add test2");
    do_all(&mut kernel, &[Op::AddLink(veth("veth2", "test1")), Op::AddLink(veth("veth3", "test2"))]);
    let (one, two) = (link(&mut kernel, "veth2").ifindex, link(&mut kernel, "veth3").ifindex);
    let port = LinkChange {
        master: Some(br0),
        port: Some(Port { learning: false, unicast_flood: false, isolated: false, locked: Some(false) }),
        up: Some(true),
        ..LinkChange::default()
    };
    do_all(&mut kernel, &[set(one, port.clone()), set(two, port)]);
    let text = "02:42:0a:00:00:02";
    do_all(&mut kernel, &[Op::PutBridgeRow { ifindex: one, mac: mac(text) }]);
    let shown = witnessed(NETNS, "veth2", text);
    assert_eq!((&shown[0]["state"], &shown[0]["master"]), (&value!("static"), &value!("br0")));
    let query = Query::FdbRows(vec![FdbPoint { ifindex: br0, bridge: true, mac: mac(text) }]);
    let mut expected =
        FdbRow { ifindex: one, bridge: true, mac: mac(text), dst: None, plain: true, kernels_own: false };
    assert_eq!(fdb(&mut kernel, &query), [expected.clone()]);
    assert!(fdb(&mut kernel, &Query::FdbDump(one)).contains(&expected));
    run("bridge -n vtepd-demo fdb replace 02:42:0a:00:00:02 dev veth3 master static");
    expected.ifindex = two;
    assert_eq!(fdb(&mut kernel, &query), [expected.clone()]);
    let missed = kernel.apply(&[Op::DeleteBridgeRow { ifindex: one, mac: mac(text) }]);
    assert_eq!(missed[0].as_ref().unwrap_err().kind, FailureKind::NotFound, "it points elsewhere");
    do_all(&mut kernel, &[Op::PutBridgeRow { ifindex: one, mac: mac(text) }]);
    expected.ifindex = one;
    assert_eq!(fdb(&mut kernel, &query), [expected]);
    run("bridge -n vtepd-demo fdb replace 02:42:0a:00:00:02 dev veth2 master permanent");
    let changed = fdb(&mut kernel, &query);
    assert_eq!((changed[0].plain, changed[0].kernels_own), (false, true));
    do_all(
        &mut kernel,
        &[Op::PutBridgeRow { ifindex: one, mac: mac(text) }, Op::DeleteBridgeRow { ifindex: one, mac: mac(text) }],
    );
    assert_eq!(fdb(&mut kernel, &query), []);
    let own = fdb(&mut kernel, &Query::FdbDump(one));
    assert!(own.iter().all(|row| row.kernels_own), "{own:?}");
}

#[test]
fn six_hundred_operations_get_a_result_each_and_failures_stop_nothing() {
    let (mut kernel, _, vxlan1) = datapath();
    let nth = |n: u16| Mac::new([2, 0x42, 10, 0, n.to_be_bytes()[0], n.to_be_bytes()[1]]);
    let fails = |n: u16| n % 97 == 5 || (300..560).contains(&n) || n == 599;
    let ops: Vec<Op> = (0..600)
        .map(|n| Op::PutFdb { ifindex: if fails(n) { 4711 } else { vxlan1 }, mac: nth(n), dst: ip("192.168.205.11") })
        .collect();
    let results = kernel.apply(&ops);
    assert_eq!(results.len(), 600);
    for (n, result) in (0..).zip(&results) {
        match result {
            Ok(()) => assert!(!fails(n), "{n}"),
            Err(failure) => {
                assert!(fails(n), "{n}: {failure}");
                assert_eq!(failure.kind, FailureKind::NotFound);
            }
        }
    }
    let failure = results[599].as_ref().unwrap_err();
    assert!(failure.message.contains("ENODEV"), "{failure}");
    let points = (0..600).map(|n| FdbPoint { ifindex: vxlan1, bridge: false, mac: nth(n) }).collect();
    let rows = fdb(&mut kernel, &Query::FdbRows(points));
    assert_eq!(rows.len(), (0..600).filter(|n| !fails(*n)).count());
    let shown = json("bridge -n vtepd-demo -j fdb show dev vxlan1");
    let written = shown.as_array().unwrap().iter().filter(|row| row["dst"] == "192.168.205.11").count();
    assert_eq!(written, rows.len());
}

#[test]
fn ten_thousand_rows_are_timed() {
    let (mut kernel, _, vxlan1) = datapath();
    let nth = |n: u32| Mac::new([2, 0x42, 1, n.to_be_bytes()[1], n.to_be_bytes()[2], n.to_be_bytes()[3]]);
    let put: Vec<Op> =
        (0..10_000).map(|n| Op::PutFdb { ifindex: vxlan1, mac: nth(n), dst: ip("192.168.205.11") }).collect();
    let neighbours: Vec<Op> = (0..10_000_u32)
        .map(|n| Op::PutNeighbour { ifindex: vxlan1, ip: IpAddr::from((0x0a00_0000 | n).to_be_bytes()), mac: nth(n) })
        .collect();
    let delete: Vec<Op> = (0..10_000).map(|n| Op::DeleteFdb { ifindex: vxlan1, mac: nth(n), dst: None }).collect();
    let timed = |what: &str, work: &mut dyn FnMut()| {
        let start = Instant::now();
        work();
        println!("{what}: {:.2} us each", start.elapsed().as_secs_f64() * 1e6 / 1e4);
    };
    timed("FDB add", &mut || do_all(&mut kernel, &put));
    timed("identical FDB replace", &mut || do_all(&mut kernel, &put));
    let points: Vec<_> = (0..10_000).map(|n| FdbPoint { ifindex: vxlan1, bridge: false, mac: nth(n) }).collect();
    timed("FDB point read", &mut || {
        assert_eq!(fdb(&mut kernel, &Query::FdbRows(points.clone())).len(), 10_000);
    });
    timed("FDB dump", &mut || assert!(fdb(&mut kernel, &Query::FdbDump(vxlan1)).len() >= 10_000));
    timed("neighbour add", &mut || do_all(&mut kernel, &neighbours));
    timed("FDB delete", &mut || do_all(&mut kernel, &delete));
    timed("events", &mut || while !kernel.events().is_empty() {});
    let netlink = Instant::now();
    kernel.read(&Query::Netns).unwrap();
    println!("look at the namespace again: {:?}", netlink.elapsed());
    run("ip netns add test1");
    do_all(&mut kernel, &[Op::AddLink(veth("veth2", "test1"))]);
    let look = Instant::now();
    inner(&mut kernel, inner_at("test1"));
    println!("look at an endpoint: {:?}", look.elapsed());
}

#[test]
fn the_newest_rows_of_a_device_are_shown_first_and_the_rest_of_the_dump_is_in_nobodys_way() {
    let (mut kernel, _, vxlan1) = datapath();
    let nth = |n: u32| Mac::new([2, 0x42, 1, n.to_be_bytes()[1], n.to_be_bytes()[2], n.to_be_bytes()[3]]);
    let put: Vec<Op> =
        (0..3000).map(|n| Op::PutFdb { ifindex: vxlan1, mac: nth(n), dst: ip("192.168.205.11") }).collect();
    do_all(&mut kernel, &put);
    let newest = fdb(&mut kernel, &Query::FdbNewest { ifindex: vxlan1, most: 100 });
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split('.').map_while(|number| number.parse::<u32>().ok());
    if (numbers.next(), numbers.next()) >= (Some(6), Some(16)) {
        assert!((100..3000).contains(&newest.len()), "{}", newest.len());
        assert!(newest.iter().zip((0..3000).rev()).all(|(row, n)| row.mac == nth(n)));
    } else {
        assert_eq!(newest.len(), 3000, "all are shown where the order says nothing");
    }
    assert!(fdb(&mut kernel, &Query::FdbDump(vxlan1)).len() >= 3000);
    assert_eq!(fdb(&mut kernel, &Query::FdbNewest { ifindex: vxlan1, most: 5000 }).len(), 3000);
}
