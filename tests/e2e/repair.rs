//! What somebody else breaks is repaired, and counted once.

use std::{thread::sleep, time::Duration};

use vtepd::lab::{Agent, LabError, Write};

use crate::{
    hosts::{applied, count, in_private, ping, record, restart_without_an_operation, run, started, until, words},
    seed::seed,
};

/// Waits until as many drifts were counted, and as many repaired, as are said; then that it stays so.
pub(crate) fn drifted(agent: &mut Agent, drift: f64) {
    let look = |agent: &mut Agent| {
        let metrics = agent.metrics().unwrap();
        let counted = metrics.count("vtepd_drift_total", &[]);
        let repaired = metrics.count("vtepd_repairs_total", &[("result", "ok")]);
        let in_sync = metrics.series.iter().filter(|s| s.name == "vtepd_in_sync").all(|s| s.value == 1.0);
        (counted, repaired, in_sync)
    };
    until(agent, "drift and repairs", |agent| {
        let (counted, repaired, in_sync) = look(agent);
        let done = counted >= drift && repaired >= drift && in_sync;
        if done {
            Ok(())
        } else {
            Err(LabError::not_so(format!("drift {counted}, repairs {repaired}, in sync {in_sync}")))
        }
    });
    sleep(Duration::from_millis(100));
    let (counted, repaired, _) = look(agent);
    assert_eq!((counted, repaired), (drift, drift), "{}", agent.log_tail(60));
}

#[test]
fn whoever_breaks_something_it_is_back_counted_once_and_the_ping_works() {
    in_private!();
    let (lab, mut agents) = seed();
    let host = &lab.hosts[0];
    let agent = &mut agents[0];
    let overlay = "vtepd-overlay-demo";
    let veth = {
        let links = host.ip_json(&["-n", overlay, "link"]).unwrap();
        let names = links.as_array().unwrap().iter().map(|l| l["ifname"].as_str().unwrap().to_owned());
        names.into_iter().find(|name| name.starts_with("veth")).unwrap()
    };
    let breakages = [
        format!("bridge -n {overlay} fdb del 02:42:0a:00:00:03 dev vxlan1"),
        format!("bridge -n {overlay} fdb replace 02:42:0a:00:00:03 dev vxlan1 dst 192.168.205.99"),
        format!("bridge -n {overlay} fdb add 02:42:0a:00:00:63 dev vxlan1 dst 192.168.205.99"),
        format!("ip -n {overlay} neigh del 10.0.0.3 dev vxlan1"),
        format!("ip -n {overlay} link del vxlan1"),
        format!("ip -n {overlay} link del br0"),
        format!("ip -n {overlay} link del {veth}"),
        format!("ip -n {overlay} link set vxlan1 down"),
        format!("ip -n {overlay} link set br0 mtu 1000"),
        format!("ip -n {overlay} link set vxlan1 nomaster"),
        format!("ip -n {overlay} link set {veth} address 02:00:00:00:00:09"),
        // Not `addr flush`, which looks again and takes away what is back already.
        format!("ip -n {overlay} addr del 10.0.0.1/24 dev br0"),
        "ip -n test1 addr del 10.0.0.2/24 dev eth0".to_owned(),
        "ip -n test1 link set eth0 down".to_owned(),
        "ip -n test1 link set eth0 name eth9".to_owned(),
        "ip -n test1 link del eth0".to_owned(),
        format!("ip netns del {overlay}"),
    ];
    for (breakage, n) in breakages.iter().zip(1..) {
        println!("{breakage}");
        run(host, breakage);
        drifted(agent, f64::from(n));
        ping(host, "test1", "10.0.0.3");
    }
    let ops = count(agent, "vtepd_ops_total", &[]);
    sleep(Duration::from_millis(300));
    assert_eq!(count(agent, "vtepd_ops_total", &[]), ops, "nothing is sent at rest");
    restart_without_an_operation(agents, || started(&lab));
}

#[test]
fn among_ten_thousand_endpoints_every_broken_row_is_repaired_and_counted() {
    in_private!();
    let (lab, mut agents) = seed();
    let subnet = r#"{"subnets":[{"cidr":"10.0.0.0/8","gateway":"10.0.0.1","vni":256}]}"#;
    let mut writes: Vec<Write> = vec![record("networks/overlay-demo", subnet)];
    let mac = |n: u32| format!("02:42:0a:01:{:02x}:{:02x}", n >> 8, n & 255);
    for n in 0..10_000_u32 {
        let key = format!("endpoints/overlay-demo/docker-node2/e{n}");
        writes.push(record(&key, &format!(r#"{{"ip":["10.1.{}.{}"]}}"#, n >> 8, n & 255)));
    }
    for some in writes.chunks(100) {
        lab.etcd.transaction(some).unwrap();
    }
    let (host, agent) = (&lab.hosts[0], &mut agents[0]);
    applied(&lab, [&mut *agent]);
    assert_eq!(count(agent, "vtepd_drift_total", &[]), 0.0, "{}", agent.log_tail(20));

    let batch: Vec<String> = (0..300)
        .map(|n| match n % 2 {
            0 => format!("fdb del {} dev vxlan1", mac(n * 31)),
            _ => format!("fdb replace {} dev vxlan1 dst 192.168.205.99", mac(n * 31)),
        })
        .collect();
    let overlay = words("ip netns exec vtepd-overlay-demo bridge -batch -");
    for some in batch.chunks(3) {
        host.run_with_input(&overlay, &some.join("\n")).unwrap();
    }
    drifted(agent, 300.0);

    let burst: Vec<String> = (0..2000).map(|n| format!("fdb del {} dev vxlan1", mac(n * 5))).collect();
    host.run_with_input(&overlay, &burst.join("\n")).unwrap();
    drifted(agent, 2300.0);

    run(host, "ip -n vtepd-overlay-demo link del vxlan1");
    drifted(agent, 2301.0);
    let rows = run(host, "bridge -n vtepd-overlay-demo fdb show dev vxlan1 self");
    assert_eq!(rows.lines().filter(|line| line.contains("dst 192.168.205.11")).count(), 10_001);
    restart_without_an_operation(agents, || started(&lab));
}
