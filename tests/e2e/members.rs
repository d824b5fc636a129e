//! An etcd of three members, of which one fails: changes go on reaching the kernel.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use vtepd::lab::{Agent, Host, Lab, wait_for};

use crate::{
    cluster::Cluster,
    hosts::{VTEPD, in_private},
};

/// A fault of a member is noticed by a heartbeat, which is due every second and may take one and a half.
const NOTICED: Duration = Duration::from_millis(2500);

const LONG: Duration = Duration::from_secs(60);

struct Changes {
    agent: Agent,
    number: usize,
    late: Vec<Duration>,
}

impl Changes {
    /// An agent on this host, and a network with an endpoint there.
    fn start(lab: &Lab, host: &Host, cluster: &Cluster<'_>, urls: &str) -> Self {
        for (key, value) in [
            ("nodes/far", r#"{"vtep":"192.168.205.99"}"#),
            ("networks/n", r#"{"subnets":[{"cidr":"10.0.0.0/16","vni":256}],"internal":true}"#),
            (&*format!("endpoints/n/{}/own", host.name()), r#"{"ip":["10.0.0.2"],"netns":"/run/netns/test1"}"#),
        ] {
            cluster.put(0, &format!("/vtepd/v1/{key}"), value);
        }
        host.add_netns("test1").unwrap();
        let mut options = lab.agent_options(VTEPD);
        options.etcd = urls.to_owned();
        let mut agent = host.spawn_agent(&options).unwrap();
        wait_for("the first apply", LONG, || match agent.metrics()?.sum("vtepd_applied_revision", &[]) {
            Some(revision) if revision > 2.0 && agent.http_status("/readyz")? == 200 => Ok(()),
            other => Err(vtepd::lab::LabError::not_so(format!("{other:?}"))),
        })
        .unwrap();
        Self { agent, number: 0, late: Vec::new() }
    }

    /// One more endpoint elsewhere, written by way of a member: how long after it was written it is in the kernel.
    fn change(&mut self, cluster: &Cluster<'_>, by: usize) {
        self.number += 1;
        let (high, low) = (self.number / 200 + 1, self.number % 200 + 1);
        let (key, value) =
            (format!("/vtepd/v1/endpoints/n/far/e{}", self.number), format!(r#"{{"ip":["10.0.{high}.{low}"]}}"#));
        let revision = cluster.put(by, &key, &value);
        let written = Instant::now();
        wait_for("the change in the kernel", LONG, || {
            let applied = self.agent.metrics()?.sum("vtepd_applied_revision", &[]);
            if applied.is_some_and(|applied| applied >= revision) {
                Ok(())
            } else {
                Err(vtepd::lab::LabError::not_so(format!("{applied:?} of {revision}")))
            }
        })
        .unwrap();
        self.late.push(written.elapsed());
    }

    fn changes(&mut self, cluster: &Cluster<'_>, by: usize) {
        for _ in 0..6 {
            self.change(cluster, by);
            sleep(Duration::from_millis(500));
        }
    }

    /// What was asked for: half of the changes at once, all soon, nothing listed anew, and every row there.
    fn end(mut self, host: &Host) {
        self.late.sort();
        let (median, worst) = (self.late[self.late.len() / 2], self.late[self.late.len() - 1]);
        println!("{} changes: median {median:?}, worst {worst:?}", self.late.len());
        assert!(median < Duration::from_millis(100), "median {median:?}");
        assert!(worst < 2 * NOTICED, "worst {worst:?}");
        let metrics = self.agent.metrics().unwrap();
        let relists = metrics.count("vtepd_etcd_relists_total", &[]);
        assert_eq!(relists, 1.0, "one listing, at the start:\n{}", self.agent.log_tail(40));
        let rows = host.in_netns("vtepd-n", &["bridge", "fdb", "show", "dev", "vxlan1"]).unwrap();
        assert_eq!(rows.matches("dst 192.168.205.99").count(), self.number);
    }
}

/// The member after this one, which is healthy while this one is not.
const fn next(member: usize) -> usize {
    (member + 1) % 3
}

#[test]
fn changes_go_on_while_each_member_in_turn_is_frozen() {
    in_private!();
    let lab = Lab::with_hosts(4).unwrap();
    let cluster = Cluster::start(&lab, &lab.hosts[1..]);
    let mut changes = Changes::start(&lab, &lab.hosts[0], &cluster, &cluster.urls());
    for member in 0..3 {
        cluster.freeze(member);
        changes.changes(&cluster, next(member));
        cluster.thaw(member);
        cluster.wait(member);
    }
    changes.end(&lab.hosts[0]);
}

#[test]
fn changes_go_on_while_each_member_in_turn_is_killed() {
    in_private!();
    let lab = Lab::with_hosts(4).unwrap();
    let mut cluster = Cluster::start(&lab, &lab.hosts[1..]);
    let mut changes = Changes::start(&lab, &lab.hosts[0], &cluster, &cluster.urls());
    for member in 0..3 {
        cluster.kill(member);
        changes.changes(&cluster, next(member));
        cluster.restart(member);
        cluster.wait(member);
    }
    changes.end(&lab.hosts[0]);
}

#[test]
fn changes_go_on_while_each_member_in_turn_is_cut_off_from_its_peers() {
    in_private!();
    let lab = Lab::with_hosts(4).unwrap();
    let cluster = Cluster::start(&lab, &lab.hosts[1..]);
    let mut changes = Changes::start(&lab, &lab.hosts[0], &cluster, &cluster.urls());
    for member in 0..3 {
        cluster.cut(member);
        changes.changes(&cluster, next(member));
        cluster.mend(member);
        cluster.wait(member);
    }
    changes.end(&lab.hosts[0]);
}

#[test]
fn changes_go_on_when_members_are_removed_and_a_start_with_a_dead_first_member_is_quick() {
    in_private!();
    let lab = Lab::with_hosts(4).unwrap();
    let cluster = Cluster::start(&lab, &lab.hosts[1..]);
    // The first URL leads to a machine that does not answer at all.
    let urls = format!("http://192.168.205.77:2379,{}", cluster.urls());
    let since = Instant::now();
    let mut changes = Changes::start(&lab, &lab.hosts[0], &cluster, &urls);
    let started = since.elapsed();
    assert!(started < Duration::from_secs(5), "{started:?}");
    for member in 0..2 {
        cluster.remove(member, 2);
        changes.changes(&cluster, 2);
    }
    changes.end(&lab.hosts[0]);
}
