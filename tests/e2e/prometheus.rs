//! Ten agents, one etcd, and a real Prometheus with the alert rules: every query of every dashboard has data while something is broken,
//! and none stays green when agents are dead.

use std::{collections::BTreeMap, fs, process::Child, time::Duration};

use serde_json::Value;
use vtepd::lab::{Agent, Host, Lab, LabError, wait_for};

use crate::{
    ask::{json, said},
    hosts::{in_private, options, put},
};

const HOSTS: usize = 10;
const DASHBOARDS: [&str; 2] = [include_str!("../../dashboards/fleet.json"), include_str!("../../dashboards/host.json")];

/// Ends with the test.
struct Prometheus<'l> {
    process: Child,
    host: &'l Host,
}

impl Drop for Prometheus<'_> {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl<'l> Prometheus<'l> {
    /// Scrapes all hosts' agents each second.
    fn start(lab: &'l Lab) -> Self {
        let targets: Vec<String> = lab.hosts.iter().map(|host| format!("'{}:9474'", host.address())).collect();
        let rules = fs::canonicalize("deploy/alerts.yaml").unwrap();
        let config = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: ['{}']\nscrape_configs:\n\
             - job_name: vtepd\n  static_configs: [{{targets: [{}]}}]\n",
            rules.display(),
            targets.join(", ")
        );
        let (file, data) = (lab.directory().join("prometheus.yaml"), lab.directory().join("prometheus"));
        fs::write(&file, config).unwrap();
        let host = &lab.hosts[0];
        let log = fs::File::create(lab.directory().join("prometheus.log")).unwrap();
        let arguments = [
            "prometheus".to_owned(),
            format!("--config.file={}", file.display()),
            format!("--storage.tsdb.path={}", data.display()),
            "--web.listen-address=127.0.0.1:9090".to_owned(),
        ];
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let process = host.command(&arguments).stdout(log.try_clone().unwrap()).stderr(log).spawn();
        Self { process: process.expect("prometheus is installed: make deps"), host }
    }

    fn get(&self, path: &str) -> Result<Value, LabError> {
        let (_, body) = self.host.http_get("127.0.0.1:9090".parse().unwrap(), path)?;
        serde_json::from_str(&body).map_err(|error| LabError::not_so(format!("{path}: {error}: {body}")))
    }

    /// The series that a query gives now.
    fn query(&self, query: &str) -> Result<Vec<Value>, LabError> {
        let plain =
            |byte: u8| if byte.is_ascii_alphanumeric() { (byte as char).to_string() } else { format!("%{byte:02X}") };
        let encoded: String = query.bytes().map(plain).collect();
        let answer = self.get(&format!("/api/v1/query?query={encoded}"))?;
        assert_eq!(answer["status"], "success", "{query}: {answer}");
        Ok(answer["data"]["result"].as_array().unwrap().clone())
    }

    fn value(&self, query: &str) -> Result<Option<f64>, LabError> {
        let series = self.query(query)?;
        Ok(series.first().map(|series| series["value"][1].as_str().unwrap().parse().unwrap()))
    }
}

/// The queries of all panels by title, for all hosts and networks.
fn queries() -> BTreeMap<String, String> {
    let mut queries = BTreeMap::new();
    for dashboard in DASHBOARDS {
        let dashboard: Value = serde_json::from_str(dashboard).unwrap();
        for panel in dashboard["panels"].as_array().unwrap() {
            for target in panel["targets"].as_array().into_iter().flatten() {
                let query = target["expr"].as_str().unwrap();
                let query =
                    query.replace("$__rate_interval", "10s").replace("$instance", ".*").replace("$network", ".*");
                let title = format!("{}: {} {}", dashboard["title"], panel["title"], target["refId"]);
                queries.insert(title, query);
            }
        }
    }
    assert!(queries.len() > 30, "the dashboards are written in another way now");
    queries
}

fn until<T>(what: &str, seconds: u64, look: impl FnMut() -> Result<T, LabError>) -> T {
    wait_for(what, Duration::from_secs(seconds), look).unwrap()
}

#[test]
fn every_query_of_every_dashboard_has_data_and_none_is_green_when_agents_are_dead() {
    in_private!();
    let lab = Lab::with_hosts(HOSTS).unwrap();
    put(&lab, "networks/n", r#"{"subnets":[{"cidr":"10.0.0.0/24","vni":256}]}"#);
    for (host, number) in lab.hosts.iter().zip(2..) {
        put(&lab, &format!("endpoints/n/{}/e", host.name()), &format!(r#"{{"ip":["10.0.0.{number}"]}}"#));
    }
    let mut agents: Vec<Agent> = Vec::new();
    for host in &lab.hosts {
        let mut options = options(&lab);
        options.log_level = "info".to_owned();
        // Written once each: what the lab would say itself is replaced.
        options.arguments = vec!["--listen".to_owned(), format!("{}:9474", host.address())];
        agents.push(host.spawn_agent(&options).unwrap());
    }
    let host = &lab.hosts[0];
    let nodes: Vec<&str> = lab.hosts.iter().flat_map(|host| ["--node", host.name()]).collect();
    said(&lab, host, &[&["wait"], nodes.as_slice()].concat());
    let prometheus = Prometheus::start(&lab);
    // Something is broken in every way that a record, a container and somebody else's hand can break it.
    put(&lab, "networks/bad", r#"{"subnets":[]}"#);
    put(&lab, "networks/late", r#"{"subnets":[{"cidr":"10.9.0.0/24","vni":256}]}"#);
    put(&lab, "endpoints/n/docker-node2/refused", r#"{"ip":["10.0.0.99"],"netns":"/etc"}"#);
    until("an agent's drift", 30, || {
        // It is not there where it was just deleted: who deletes it again and again is let wait.
        let row = ["bridge", "-n", "vtepd-n", "fdb", "del", "02:42:0a:00:00:02", "dev", "vxlan1"];
        lab.hosts[1].output(&row)?;
        let drift = prometheus.value(r#"sum(rate(vtepd_drift_total{job="vtepd"}[10s]))"#)?;
        if drift > Some(0.0) { Ok(()) } else { Err(LabError::not_so(format!("{drift:?}"))) }
    });
    for (title, query) in queries() {
        until(&title, 30, || match prometheus.query(&query)? {
            found if found.is_empty() => Err(LabError::not_so(query.clone())),
            found => Ok(found),
        });
    }
    let status = json(&lab, host, &["status", "--json"]);
    assert_eq!(status["nodes"].as_array().unwrap().len(), HOSTS);
    let is = |title: &str, wanted: f64| {
        let query = queries().into_iter().find(|(name, _)| name.contains(title)).unwrap().1;
        until(title, 30, || match prometheus.value(&query)? {
            Some(value) if value == wanted => Ok(()),
            other => Err(LabError::not_so(format!("{other:?} and not {wanted}"))),
        });
    };
    is("Agents down", 0.0);
    is("Refused records", 2.0);
    is("Blocked objects", 1.0);

    // One agent is killed, then all of them.
    agents.pop().unwrap().kill().unwrap();
    is("Agents down", 1.0);
    until("the alert that is on its way", 30, || {
        let alerts = prometheus.get("/api/v1/alerts")?;
        let down = alerts["data"]["alerts"].as_array().unwrap().iter();
        let down: Vec<&Value> = down.filter(|alert| alert["labels"]["alertname"] == "VtepdDown").collect();
        if down.len() == 1 { Ok(()) } else { Err(LabError::not_so(alerts.to_string())) }
    });
    for agent in agents {
        agent.kill().unwrap();
    }
    is("Agents down", HOSTS as f64);
    for title in
        ["Networks out of sync", "Drifted, not repaired", "Blocked objects", "Refused records", "Removals held"]
    {
        let query = queries().into_iter().find(|(name, _)| name.contains("fleet") && name.contains(title)).unwrap().1;
        until(title, 30, || match prometheus.query(&query)? {
            found if found.is_empty() => Ok(()),
            found => Err(LabError::not_so(format!("{query} says {found:?} although no agent lives"))),
        });
    }
}
