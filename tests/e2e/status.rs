//! What agents write of themselves into the store, with the real etcd.

use std::{fs, time::Duration};

use serde_json::{Value, json};
use vtepd::lab::{Agent, Lab, LabError};

use crate::hosts::{PREFIX, in_private, options, record, until, words};

/// Puts native records, and returns a revision at which they stand.
fn put(lab: &Lab, records: &[(&str, &str)]) -> u64 {
    let writes: Vec<_> = records.iter().map(|(key, value)| record(key, value)).collect();
    lab.etcd.transaction(&writes).unwrap();
    lab.etcd.put(&format!("{PREFIX}approvals/heard"), r#"{"revision":1}"#).unwrap()
}

/// Waits until the status of the agent's node is as wanted.
fn wait_for_status(lab: &Lab, agent: &mut Agent, wanted: impl Fn(&Value) -> bool) -> Value {
    let key = format!("{PREFIX}status/{}", agent.node());
    until(agent, "the status", |_| {
        let text = lab.etcd.get(&key)?.unwrap_or_default();
        let status: Value = serde_json::from_str(&text).unwrap_or_default();
        if wanted(&status) { Ok(status) } else { Err(LabError::not_so(status.to_string())) }
    })
}

#[test]
fn what_each_agent_applied_and_rejected_stands_in_the_store_and_a_quiet_system_writes_nothing_more() {
    in_private!();
    let lab = Lab::new().unwrap();
    let mut options = options(&lab);
    // An audit of the store each second.
    options.resync = Duration::from_millis(200);
    options.log_level = "info".to_owned();
    let mut agents: Vec<Agent> = lab.hosts.iter().map(|host| host.spawn_agent(&options).unwrap()).collect();
    for agent in &mut agents {
        wait_for_status(&lab, agent, |status| status["in_sync"] == true);
    }
    let revision = put(
        &lab,
        &[
            ("networks/n", r#"{"subnets":[{"cidr":"10.0.0.0/24","vni":256}]}"#),
            ("networks/late", r#"{"subnets":[{"cidr":"10.1.0.0/24","vni":256}]}"#),
            ("networks/bad", r#"{"subnets":[{"cidr":"10.2.0.0/24","vni":0}]}"#),
            ("endpoints/n/docker-node1/a", r#"{"ip":["10.0.0.2"]}"#),
            ("endpoints/n/docker-node2/b", r#"{"ip":["10.0.0.3"]}"#),
            ("endpoints/n/docker-node2/c", r#"{"ip":["10.0.0.4"],"netns":"/etc"}"#),
            ("endpoints/none/docker-node2/c", r#"{"ip":["10.0.0.5"]}"#),
        ],
    );
    let mut statuses = Vec::new();
    for agent in &mut agents {
        let applied = |status: &Value| status["revision"].as_u64() >= Some(revision);
        let status = wait_for_status(&lab, agent, applied);
        let rejected = json!({"key": format!("{PREFIX}networks/bad"), "field": "subnets[0].vni", "reason": "value"});
        assert_eq!(status["rejected"], json!({"count": 1, "first": [rejected]}));
        let lost = json!({
            "key": format!("{PREFIX}networks/n"), "field": "subnets", "holder": format!("{PREFIX}networks/late")
        });
        assert_eq!(status["conflicts"], json!({"count": 1, "first": [lost]}), "created at once: by key");
        statuses.push(status);
    }
    assert_eq!(statuses[0]["pending"], statuses[1]["pending"]);
    put(&lab, &[("networks/late", r#"{"subnets":[{"cidr":"10.1.0.0/24","vni":257}]}"#)]);
    let refused = |status: &Value| status["blocked"]["count"] == 1 && status["conflicts"]["count"] == 0;
    let status = wait_for_status(&lab, &mut agents[1], refused);
    let blocked = json!({"object": "n: interface of docker-node2/c", "reason": "netns_refused"});
    assert_eq!(status["blocked"]["first"], json!([blocked]));
    let last = put(&lab, &[("endpoints/n/docker-node2/c", r#"{"ip":["10.0.0.4"]}"#)]);
    for agent in &mut agents {
        let status = wait_for_status(&lab, agent, |status| {
            status["revision"].as_u64() >= Some(last) && status["in_sync"] == true
        });
        assert_eq!(status["revision"], last, "the statuses themselves do not count");
        assert_eq!(status["networks"], json!({"here": 1, "in_sync": 1}));
        assert_eq!((&status["pending"], &status["removals_held"]), (&json!(1), &json!(0)));
    }

    // Then nothing more is written, however often everything is read and compared.
    let revision = lab.etcd.revision().unwrap();
    let looks = |agent: &mut Agent| {
        let metrics = agent.metrics().unwrap();
        let audits = metrics.count("vtepd_etcd_relists_total", &[("reason", "audit")]);
        (audits, metrics.count("vtepd_resyncs_total", &[("reason", "periodic")]))
    };
    for agent in &mut agents {
        let before = looks(agent);
        until(agent, "three audits", |agent| {
            let now = looks(agent);
            let enough = now.0 >= before.0 + 3.0 && now.1 >= before.1 + 5.0;
            if enough { Ok(()) } else { Err(LabError::not_so(format!("{now:?}"))) }
        });
    }
    assert_eq!(lab.etcd.revision().unwrap(), revision);
    // What somebody else writes wakes nobody either, and a restart writes at most once.
    lab.etcd.put("/elsewhere", "x").unwrap();
    lab.etcd.put(&format!("{PREFIX}status/somebody"), "{}").unwrap();
    let agent = agents.remove(0);
    agent.stop().unwrap();
    let mut agent = lab.hosts[0].spawn_agent(&options).unwrap();
    let now = revision + 2;
    wait_for_status(&lab, &mut agent, |status| status["revision"].as_u64() >= Some(now));
    assert_eq!(lab.etcd.revision().unwrap(), now + 1);
}

#[test]
fn an_agent_that_may_not_write_its_status_says_so_once_and_does_its_work() {
    in_private!();
    let lab = Lab::with_hosts(1).unwrap();
    let as_root = |arguments: &str| {
        lab.etcd.etcdctl(&words(arguments)).unwrap();
    };
    for arguments in [
        "user add root:r",
        "role add root",
        "user grant-role root root",
        "user add n:secret",
        "role add n",
        "role grant-permission n --prefix=true read /vtepd/v1/",
        "role grant-permission n readwrite /vtepd/v1/nodes/docker-node1",
        "user grant-role n n",
        "auth enable",
    ] {
        as_root(arguments);
    }
    let password = std::env::temp_dir().join(format!("vtepd-status-{}", std::process::id()));
    fs::write(&password, "secret").unwrap();
    let mut options = options(&lab);
    options.log_level = "info".to_owned();
    options.arguments =
        ["--etcd-user", "n", "--etcd-password-file", &password.to_string_lossy()].map(str::to_owned).to_vec();
    let mut agent = lab.hosts[0].spawn_agent(&options).unwrap();
    let root = |key: &str, value: &str| {
        lab.etcd.etcdctl(&["--user", "root:r", "put", "--", &format!("{PREFIX}{key}"), value]).unwrap()
    };
    let said = |agent: &Agent| {
        let log = fs::read_to_string(agent.log_path()).unwrap();
        log.matches("cannot write this node's status").count()
    };
    until(&mut agent, "the complaint", |agent| {
        agent.check_running()?;
        if said(agent) == 1 { Ok(()) } else { Err(LabError::not_so("not yet")) }
    });
    root("networks/n", r#"{"subnets":[{"cidr":"10.0.0.0/24","vni":256}]}"#);
    root("endpoints/n/docker-node1/a", r#"{"ip":["10.0.0.2"]}"#);
    until(&mut agent, "in sync", |agent| {
        let in_sync = agent.metrics()?.sum("vtepd_in_sync", &[("network", "n")]);
        if in_sync == Some(1.0) { Ok(()) } else { Err(LabError::not_so(format!("{in_sync:?}"))) }
    });
    assert_eq!((said(&agent), agent.http_status("/healthz").unwrap()), (1, 200));
    // Once it may, it does.
    as_root("--user root:r role grant-permission n readwrite /vtepd/v1/status/docker-node1");
    until(&mut agent, "the status", |_| {
        let found = lab.etcd.etcdctl(&["--user", "root:r", "get", "--", "/vtepd/v1/status/docker-node1"])?;
        if found.contains(r#""in_sync":true"#) { Ok(()) } else { Err(LabError::not_so(found)) }
    });
    fs::remove_file(password).unwrap();
}
