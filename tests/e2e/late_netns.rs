//! Namespaces that are bound late, or one over another: heard at once.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use vtepd::lab::Host;

use crate::{
    hosts::{count, in_private, ping, put, run, started},
    seed::seed,
};

/// A network namespace by another name than the one at which it is bound later.
fn container(host: &Host, name: &str) {
    host.add_netns(name).unwrap();
}

/// How long it takes from here until the namespace at the name reaches the address.
fn reaches(host: &Host, netns: &str, to: &str) -> Duration {
    let started = Instant::now();
    while host.in_netns(netns, &["ping", "-c1", "-W1", to]).is_err() {
        assert!(started.elapsed() < Duration::from_secs(10), "{netns} does not reach {to}");
        sleep(Duration::from_millis(20));
    }
    started.elapsed()
}

#[test]
fn a_namespace_that_is_bound_long_after_its_file_appeared_or_over_another_is_heard_at_once() {
    in_private!();
    let (lab, mut agents) = seed();
    let host = &lab.hosts[0];
    run(host, "touch /run/netns/late");
    put(
        &lab,
        "endpoints/overlay-demo/docker-node1/late",
        r#"{"ip":["10.0.0.9"],"netns":"/run/netns/late","ifname":"eth0"}"#,
    );
    // Longer than the agent looks by itself at a file that has just appeared.
    sleep(Duration::from_secs(2));
    container(host, "first");
    run(host, "mount --bind /run/netns/first /run/netns/late");
    let took = reaches(host, "late", "10.0.0.3");
    assert!(took < Duration::from_secs(2), "a late mount: {took:?}");

    container(host, "second");
    run(host, "mount --bind /run/netns/second /run/netns/late");
    let took = reaches(host, "late", "10.0.0.3");
    assert!(took < Duration::from_secs(2), "another namespace on the same file: {took:?}");

    run(host, "umount -l /run/netns/late");
    let took = reaches(host, "late", "10.0.0.3");
    assert!(took < Duration::from_secs(2), "the one below it again: {took:?}");

    // What is bound elsewhere is nobody's, and nothing is pinned by having been looked at.
    let drift = count(&mut agents[0], "vtepd_drift_total", &[]);
    assert_eq!(drift, 0.0, "{}", agents[0].log_tail(30));
    host.delete_netns("second").unwrap();
    ping(host, "late", "10.0.0.3");
    drop(agents);
    started(&lab);
}
