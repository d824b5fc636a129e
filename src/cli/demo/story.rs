//! What the demo does, in the private namespaces.

use std::{path::Path, process::ExitCode, thread::sleep, time::Duration};

use super::{
    DemoOptions,
    break_and_repair::{self, Break, milliseconds},
    diagram::{self, Subject},
    interrupt::{self, Interrupt},
    outside::Report,
    session::{Session, typed},
    witness::Witness,
};
use crate::lab::{Agent, Host, Lab, LabError, Metrics};

const NETWORK: &str = "overlay-demo";
const OVERLAY: &str = "vtepd-overlay-demo";
const GATEWAY_BRIDGE: &str = "vtepd-gw";
const CONTAINERS: [&str; 2] = ["test1", "test2"];
const ADDRESSES: [&str; 2] = ["10.0.0.2", "10.0.0.3"];
const MACS: [&str; 2] = ["02:42:0a:00:00:02", "02:42:0a:00:00:03"];
/// The records of etcd, with the keys under the prefix.
const RECORDS: [(&str, &str); 3] = [
    ("networks/overlay-demo", r#"{"subnets":[{"cidr":"10.0.0.0/24","gateway":"10.0.0.1","vni":256}],"mtu":1450}"#),
    (
        "endpoints/overlay-demo/docker-node1/test1",
        r#"{"ip":["10.0.0.2"],"mac":"02:42:0a:00:00:02","netns":"/run/netns/test1"}"#,
    ),
    (
        "endpoints/overlay-demo/docker-node2/test2",
        r#"{"ip":["10.0.0.3"],"mac":"02:42:0a:00:00:03","netns":"/run/netns/test2"}"#,
    ),
];
/// What the demo breaks.
const KINDS: [&str; 3] = ["fdb", "neighbour", "link"];
const CONVERGENCE: Duration = Duration::from_secs(15);
const ROW_REPAIR: Duration = Duration::from_millis(250);
const DEVICE_REPAIR: Duration = Duration::from_secs(2);
const COUNTING: Duration = Duration::from_secs(2);

pub(super) fn play(options: &DemoOptions) -> ExitCode {
    let interrupt = match Interrupt::listen() {
        Ok(interrupt) => interrupt,
        Err(error) => {
            eprintln!("vtepd demo: {error}");
            return ExitCode::FAILURE;
        }
    };
    let mut session = Session::new(interrupt);
    match tell(&mut session, options) {
        Ok(()) => {}
        Err(LabError::Interrupted) => {
            session.say("\nInterrupted: everything is taken down.");
            return ExitCode::from(interrupt::EXIT_CODE);
        }
        Err(error) => session.check("the demo comes to its end", Err(error)),
    }
    session.sum_up();
    if session.all_held() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Everything from the first namespace to the last. What it has made is taken down when it returns, also with an error.
fn tell(session: &mut Session, options: &DemoOptions) -> Result<(), LabError> {
    session.heading("Two hosts in private namespaces, and an etcd")?;
    let lab = Lab::new()?;
    let mut agents = Vec::new();
    let mut story = Story { session, lab: &lab, agents: &mut agents };
    let outcome = story.tell(&options.vtepd);
    if let Err(error) = outcome {
        if matches!(error, LabError::Interrupted) {
            return Err(error);
        }
        story.show_logs();
        if !options.keep {
            return Err(error);
        }
        story.session.check("the demo comes to its end", Err(error));
    }
    if options.keep {
        stay_up(session, &lab);
        return Ok(());
    }
    take_down(session, lab, agents)
}

struct Story<'a> {
    session: &'a mut Session,
    lab: &'a Lab,
    agents: &'a mut Vec<Agent>,
}

impl Story<'_> {
    fn tell(&mut self, vtepd: &Path) -> Result<(), LabError> {
        let [one, two] = self.lab.hosts.as_slice() else {
            return Err(LabError::not_so("the demo plays on two hosts"));
        };
        self.show_hosts(one)?;
        self.write_records(one, two)?;
        self.start_agents(vtepd)?;
        self.show_kernel(one, two)?;
        self.ping(one, "test1 reaches test2 through the tunnel")?;
        self.break_and_repair(one, two)?;
        self.show_metrics()
    }

    fn show_hosts(&mut self, one: &Host) -> Result<(), LabError> {
        self.session.say(UNDERLAY);
        self.session.show(one, &["ip", "link"])?;
        self.session.show(one, &["ip", "route"])?;
        let underlay = one.run(&["ping", "-c", "1", "-W", "2", "192.168.205.11"]).map(drop);
        self.session.check("the hosts reach each other over the underlay", underlay);
        Ok(())
    }

    fn write_records(&mut self, one: &Host, two: &Host) -> Result<(), LabError> {
        self.session.heading("A container on each host; the network and its endpoints go into etcd")?;
        for (host, container) in [one, two].into_iter().zip(CONTAINERS) {
            self.session.say(&format!("{}$ ip netns add {container}", host.name()));
            host.add_netns(container)?;
        }
        for (key, value) in RECORDS {
            let key = format!("/vtepd/v1/{key}");
            self.session.say(&format!("underlay$ {}", typed(&["etcdctl", "put", &key, value])));
            self.lab.etcd.put(&key, value)?;
            self.session.say("OK");
        }
        Ok(())
    }

    fn start_agents(&mut self, vtepd: &Path) -> Result<(), LabError> {
        self.session.heading("An agent on each host")?;
        let options = self.lab.agent_options(vtepd);
        for host in &self.lab.hosts {
            let mut line = options.command_line(host);
            if let Some(program) = line.first_mut() {
                "vtepd".clone_into(program);
            }
            self.session.say(&format!("{}$ {} &", host.name(), typed(&line)));
            self.agents.push(host.spawn_agent(&options)?);
        }
        self.expect_in_sync()?;
        for (host, at) in self.lab.hosts.iter().zip([1, 0]) {
            let what = format!("{} has the row and the neighbour of the other container", host.name());
            let there = self.session.wait_for(&what, CONVERGENCE, || rows_stand(host, at));
            self.session.check(&what, there);
        }
        Ok(())
    }

    /// Every agent says that its kernel is as it should be. Where one never does, the rest of the demo has no ground.
    fn expect_in_sync(&mut self) -> Result<(), LabError> {
        for agent in self.agents.iter_mut() {
            let what = format!("the agent on {} reports {NETWORK} in sync", agent.node());
            self.session.wait_for(&what, CONVERGENCE, || {
                let in_sync = agent.metrics()?.sum("vtepd_in_sync", &[("network", NETWORK)]);
                match in_sync {
                    Some(1.0) => Ok(()),
                    Some(value) => Err(LabError::not_so(format!("vtepd_in_sync is {value}"))),
                    None => Err(LabError::not_so("no vtepd_in_sync yet")),
                }
            })?;
            self.session.check(&what, Ok(()));
        }
        Ok(())
    }

    fn show_kernel(&mut self, one: &Host, two: &Host) -> Result<(), LabError> {
        self.session.heading("What stands in the kernel")?;
        let in_overlay: [&[&str]; 5] = [
            &["ip", "-n", OVERLAY, "-d", "link"],
            &["bridge", "-n", OVERLAY, "fdb", "show", "dev", "vxlan1"],
            &["ip", "-n", OVERLAY, "neigh", "show", "dev", "vxlan1"],
            &["ip", "-n", OVERLAY, "route"],
            &["ip", "-n", "test1", "-d", "link"],
        ];
        self.session.show(one, &["ip", "netns"])?;
        for command in in_overlay {
            self.session.show(one, command)?;
        }
        self.session.show(one, &["ip", "-n", "test1", "route"])?;
        self.session.show(two, &["bridge", "-n", OVERLAY, "fdb", "show", "dev", "vxlan1"])?;
        self.session.show(two, &["ip", "-n", OVERLAY, "neigh", "show", "dev", "vxlan1"])?;
        self.session.show(two, &["ip", "-n", "test2", "route"])?;
        let subject = Subject { container: "test1", overlay: OVERLAY, gateway_bridge: GATEWAY_BRIDGE };
        self.session.say(&diagram::draw(one, &subject)?);
        Ok(())
    }

    fn ping(&mut self, from: &Host, what: &str) -> Result<(), LabError> {
        self.session.heading("A ping across")?;
        let [_, to] = ADDRESSES;
        let arguments = Host::netns_arguments("test1", &["ping", "-c", "3", "-i", "0.2", "-W", "2", to]);
        let pinged = self.session.run(from, &arguments.iter().map(String::as_str).collect::<Vec<_>>());
        let lossless = pinged.and_then(|said| {
            if said.contains(" 0% packet loss") { Ok(()) } else { Err(LabError::not_so("packets were lost")) }
        });
        self.session.check(what, lossless);
        self.session.interrupt().check()
    }

    fn break_and_repair(&mut self, one: &Host, two: &Host) -> Result<(), LabError> {
        let [_, mac] = MACS;
        let [_, address] = ADDRESSES;
        let row = format!("{mac} dev vxlan1");
        let neighbour = format!("{address} dev vxlan1");
        let breaks = [
            Break {
                what: "the deleted FDB row",
                command: &["bridge", "-n", OVERLAY, "fdb", "del", mac, "dev", "vxlan1"],
                lost: &row,
                back: &[&row],
                within: ROW_REPAIR,
            },
            Break {
                what: "the deleted neighbour",
                command: &["ip", "-n", OVERLAY, "neigh", "del", address, "dev", "vxlan1"],
                lost: &neighbour,
                back: &[&neighbour],
                within: ROW_REPAIR,
            },
            Break {
                what: "the deleted vxlan1, with its rows",
                command: &["ip", "-n", OVERLAY, "link", "del", "vxlan1"],
                lost: ": vxlan1",
                back: &[": vxlan1", &row, &neighbour],
                within: DEVICE_REPAIR,
            },
        ];
        let witness = Witness::new(one, OVERLAY)?;
        for broken in &breaks {
            self.session.heading(&format!("Somebody else's hand: {}", broken.what))?;
            match break_and_repair::play(self.session, one, &witness, broken) {
                Err(LabError::Interrupted) => return Err(LabError::Interrupted),
                Ok(took) => {
                    let what = format!("{}: all is back {} after the loss", broken.what, milliseconds(took));
                    self.session.check(&what, Ok(()));
                }
                Err(error) => self.session.check(broken.what, Err(error)),
            }
        }
        drop(witness);
        self.session.show(one, &["bridge", "-n", OVERLAY, "fdb", "show", "dev", "vxlan1"])?;
        self.session.show(one, &["ip", "-n", OVERLAY, "neigh", "show", "dev", "vxlan1"])?;
        self.expect_in_sync()?;
        for (host, at) in [(one, 1), (two, 0)] {
            self.session.check(&format!("the rows stand on {}", host.name()), rows_stand(host, at));
        }
        self.ping(one, "test1 reaches test2 again")
    }

    fn show_metrics(&mut self) -> Result<(), LabError> {
        self.session.heading("What the metrics say")?;
        let Some(agent) = self.agents.first_mut() else {
            return Err(LabError::not_so("no agent runs"));
        };
        // The last repair is in the kernel a moment before its acknowledgement is counted.
        let look = || {
            let metrics = agent.metrics()?;
            KINDS.iter().try_for_each(|kind| counted(&metrics, kind))
        };
        // What is missing then fails its own check below.
        let _ = self.session.wait_for("the counters", COUNTING, look);
        let metrics = agent.metrics()?;
        let node = agent.node();
        self.session.say(&format!(
            "{node}$ curl -s 127.0.0.1:9474/metrics | grep -E '^vtepd_(drift|repairs|in_sync)' | grep -v ' 0$'"
        ));
        let prefixes = ["vtepd_drift", "vtepd_repairs", "vtepd_in_sync"];
        let shown = |name: &str| prefixes.iter().any(|prefix| name.starts_with(prefix));
        for series in metrics.series.iter().filter(|series| series.value != 0.0 && shown(&series.name)) {
            self.session.say(&series.line);
        }
        for kind in KINDS {
            let what = format!("drift and repair of kind {kind} are counted");
            self.session.check(&what, counted(&metrics, kind));
        }
        Ok(())
    }

    /// Says what the agents logged last.
    fn show_logs(&self) {
        for agent in self.agents.iter() {
            self.session.say(&format!("\nThe end of the log of {}:\n{}", agent.node(), agent.log_tail(30)));
        }
    }
}

/// Whether the host's overlay has the row and the neighbour of the container at this place of the lists.
fn rows_stand(host: &Host, at: usize) -> Result<(), LabError> {
    let (Some(mac), Some(address)) = (MACS.get(at), ADDRESSES.get(at)) else {
        return Err(LabError::not_so("there is no such container"));
    };
    let rows = host.run(&["bridge", "-n", OVERLAY, "fdb", "show", "dev", "vxlan1"])?;
    let neighbours = host.run(&["ip", "-n", OVERLAY, "neigh", "show", "dev", "vxlan1"])?;
    let row = rows.lines().any(|line| line.starts_with(mac) && line.contains("dst") && line.contains("permanent"));
    let neighbour = neighbours.lines().any(|line| {
        line.split_whitespace().next() == Some(address) && line.contains(mac) && line.contains("PERMANENT")
    });
    if row && neighbour {
        Ok(())
    } else {
        Err(LabError::not_so(format!("row there: {row}, neighbour there: {neighbour}")))
    }
}

fn counted(metrics: &Metrics, kind: &str) -> Result<(), LabError> {
    let drift = metrics.count("vtepd_drift_total", &[("kind", kind)]);
    let repairs = metrics.count("vtepd_repairs_total", &[("kind", kind), ("result", "ok")]);
    if drift >= 1.0 && repairs >= 1.0 {
        Ok(())
    } else {
        Err(LabError::not_so(format!("drift {drift}, repairs {repairs}")))
    }
}

/// Says how to look around, lets the starting program end, and waits until somebody ends the demo.
fn stay_up(session: &Session, lab: &Lab) {
    session.sum_up();
    session.interrupt().outlive_starter();
    let hosts = lab.hosts.iter().map(|host| (host.name().to_owned(), host.pid())).collect();
    let directory = lab.directory().to_owned();
    session.say(&Report { passed: session.all_held(), hosts, directory }.line());
    while !session.interrupt().is_requested() {
        sleep(Duration::from_millis(50));
    }
}

fn take_down(session: &mut Session, lab: Lab, agents: Vec<Agent>) -> Result<(), LabError> {
    session.heading("Everything is taken down")?;
    let mut pids = lab.pids();
    for agent in agents {
        pids.push(agent.pid());
        let what = format!("the agent on {} ends when it is asked to", agent.node());
        let ended = agent
            .stop()
            .and_then(|status| if status.success() { Ok(()) } else { Err(LabError::not_so(status.to_string())) });
        session.check(&what, ended);
    }
    let directory = lab.directory().to_owned();
    drop(lab);
    let left: Vec<_> = pids.iter().filter(|pid| Path::new(&format!("/proc/{pid}")).exists()).collect();
    let gone = if left.is_empty() && !directory.exists() {
        Ok(())
    } else {
        Err(LabError::not_so(format!("processes {left:?}, {} there: {}", directory.display(), directory.exists())))
    };
    session.check("no process, namespace or file is left", gone);
    Ok(())
}

const UNDERLAY: &str = "
      docker-node1                    docker-node2
      enp0s8 192.168.205.10           enp0s8 192.168.205.11
           |                               |
      -----+-------- underlay ------------+-----
                 192.168.205.1, etcd
";
