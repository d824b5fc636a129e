//! Hosts of the lab with an agent each: started, fed, waited for, and started again with nothing to send.

use std::time::Duration;

use vtepd::lab::{Agent, AgentOptions, Host, Lab, LabError, Write, wait_for};

/// The program under test.
pub(crate) const VTEPD: &str = env!("CARGO_BIN_EXE_vtepd");
/// How long a condition may take to come true before the test fails.
const PATIENCE: Duration = Duration::from_secs(30);
/// What the keys of native records begin with.
pub(crate) const PREFIX: &str = "/vtepd/v1/";

/// Runs the rest of the test alone in private namespaces.
macro_rules! in_private {
    () => {{
        let test = std::thread::current().name().unwrap().to_owned();
        if !vtepd::lab::in_private_namespaces(&test).unwrap() {
            return;
        }
    }};
}
pub(crate) use in_private;

pub(crate) fn words(text: &str) -> Vec<&str> {
    text.split_whitespace().collect()
}

/// Runs a command of plain words on a host and gives its output.
pub(crate) fn run(host: &Host, command: &str) -> String {
    host.run(&words(command)).unwrap()
}

/// One ping out of a namespace, answered.
pub(crate) fn ping(host: &Host, netns: &str, to: &str) {
    host.in_netns(netns, &["ping", "-c1", "-W2", to]).unwrap_or_else(|error| panic!("{netns} to {to}: {error}"));
}

/// A native record; the key is what follows the prefix.
pub(crate) fn record(key: &str, value: &str) -> Write {
    Write::Put(format!("{PREFIX}{key}"), value.to_owned())
}

/// Puts a native record.
pub(crate) fn put(lab: &Lab, key: &str, value: &str) {
    lab.etcd.put(&format!("{PREFIX}{key}"), value).unwrap();
}

/// What an agent is started with where a test does not say otherwise.
pub(crate) fn options(lab: &Lab) -> AgentOptions {
    lab.agent_options(VTEPD)
}

/// Starts an agent on one host.
pub(crate) fn start(lab: &Lab, host: &Host) -> Agent {
    host.spawn_agent(&options(lab)).unwrap()
}

/// Starts an agent on every host.
pub(crate) fn start_all(lab: &Lab) -> Vec<Agent> {
    lab.hosts.iter().map(|host| start(lab, host)).collect()
}

/// Starts an agent on every host and waits until each has applied all that the store has.
pub(crate) fn started(lab: &Lab) -> Vec<Agent> {
    let mut agents = start_all(lab);
    applied(lab, &mut agents);
    agents
}

/// Looks until it is so; if it never is, the test fails with the end of the agent's log.
pub(crate) fn until<T>(agent: &mut Agent, what: &str, mut look: impl FnMut(&mut Agent) -> Result<T, LabError>) -> T {
    let waited = wait_for(what, PATIENCE, || look(agent));
    waited.unwrap_or_else(|error| panic!("{}: {error}\n{}", agent.node(), agent.log_tail(60)))
}

/// Waits until the store has the records of the agents' nodes.
pub(crate) fn registered<'a>(lab: &Lab, agents: impl IntoIterator<Item = &'a mut Agent>) {
    for agent in agents {
        let key = format!("{PREFIX}nodes/{}", agent.node());
        until(agent, "registered", |_| lab.etcd.get(&key)?.ok_or_else(|| LabError::not_so("no node record")));
    }
}

/// Waits until the agents have applied all that the store has: a record that asks for nothing is heard last.
pub(crate) fn applied<'a>(lab: &Lab, agents: impl IntoIterator<Item = &'a mut Agent>) {
    let marker = lab.etcd.put(&format!("{PREFIX}approvals/heard"), r#"{"revision":1}"#);
    applied_at(marker.unwrap(), agents);
}

/// Waits until the agents have applied this revision.
pub(crate) fn applied_at<'a>(revision: u64, agents: impl IntoIterator<Item = &'a mut Agent>) {
    let revision = revision as f64;
    for agent in agents {
        until(agent, &format!("applied revision {revision}"), |agent| {
            let metrics = agent.metrics()?;
            let heard = metrics.count("vtepd_etcd_revision", &[]);
            let done = metrics.count("vtepd_applied_revision", &[]);
            let lagging: Vec<_> =
                metrics.series.iter().filter(|s| s.name == "vtepd_in_sync" && s.value != 1.0).collect();
            if heard >= revision && done >= revision && lagging.is_empty() && agent.http_status("/readyz")? == 200 {
                return Ok(());
            }
            Err(LabError::not_so(format!("heard {heard}, applied {done}, not in sync {lagging:?}")))
        });
    }
}

/// Waits until a host has no namespace of that name.
pub(crate) fn gone(host: &Host, netns: &str) {
    let looked = wait_for(&format!("{netns} is gone"), PATIENCE, || {
        let names = host.run(&["ip", "netns"])?;
        if names.contains(netns) { Err(LabError::not_so(names)) } else { Ok(()) }
    });
    looked.unwrap();
}

/// The sum of the agent's series of that name that carry these labels.
pub(crate) fn count(agent: &mut Agent, name: &str, labels: &[(&str, &str)]) -> f64 {
    agent.metrics().unwrap().count(name, labels)
}

/// Since its start the agent has sent the kernel nothing and counted no drift.
pub(crate) fn assert_no_operation(agent: &mut Agent) {
    let metrics = agent.metrics().unwrap();
    let (ops, drift) = (metrics.count("vtepd_ops_total", &[]), metrics.count("vtepd_drift_total", &[]));
    assert_eq!((ops, drift), (0.0, 0.0), "{}: {}", agent.node(), agent.log_tail(60));
}

/// How a test ends: agents without memory, which `start` starts and waits for, read all kernel state and find nothing to do.
pub(crate) fn restart_without_an_operation(agents: Vec<Agent>, start: impl FnOnce() -> Vec<Agent>) -> Vec<Agent> {
    for agent in agents {
        assert!(agent.stop().unwrap().success(), "an agent that is asked to end does so in order");
    }
    let mut agents = start();
    agents.iter_mut().for_each(assert_no_operation);
    agents
}
