//! The whole program on several hosts in private namespaces: real etcd, real `etcdctl`, real agents.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test ends where something is not as it should be"
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Stdio,
    thread::sleep,
    time::Duration,
};

use nix::sys::signal::Signal;
use vtepd::lab::{Agent, Host, Lab, LabError, Write, in_private_namespaces, wait_for};

const VTEPD: &str = env!("CARGO_BIN_EXE_vtepd");
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs the rest of the test alone in private namespaces.
macro_rules! in_private {
    () => {{
        let test = std::thread::current().name().unwrap().to_owned();
        if !in_private_namespaces(&test).unwrap() {
            return;
        }
    }};
}

fn words(text: &str) -> Vec<&str> {
    text.split_whitespace().collect()
}

fn run(host: &Host, command: &str) -> String {
    host.run(&words(command)).unwrap()
}

fn put(lab: &Lab, key: &str, value: &str) {
    lab.etcd.put(&format!("/vtepd/v1/{key}"), value).unwrap();
}

fn agents(lab: &Lab) -> Vec<Agent> {
    lab.hosts.iter().map(|host| host.spawn_agent(&lab.agent_options(VTEPD)).unwrap()).collect()
}

/// Waits until the agent has applied all that the store has.
fn applied(lab: &Lab, agent: &mut Agent) {
    let revision = lab.etcd.revision().unwrap() as f64;
    let what = format!("{} applies revision {revision}", agent.node());
    let looked = wait_for(&what, PATIENCE, || {
        agent.check_running()?;
        let metrics = agent.metrics()?;
        let (heard, done) = (metrics.count("vtepd_etcd_revision", &[]), metrics.count("vtepd_applied_revision", &[]));
        let lagging: Vec<_> = metrics.series.iter().filter(|s| s.name == "vtepd_in_sync" && s.value != 1.0).collect();
        if heard >= revision && done >= revision && lagging.is_empty() && agent.http_status("/readyz")? == 200 {
            return Ok(());
        }
        Err(LabError::not_so(format!("heard {heard}, applied {done}, not in sync {lagging:?}")))
    });
    if let Err(error) = looked {
        panic!("{error}\n{}", agent.log_tail(40));
    }
}

fn count(agent: &mut Agent, name: &str, labels: &[(&str, &str)]) -> f64 {
    agent.metrics().unwrap().count(name, labels)
}

/// Waits until as many drifts were counted, and as many repaired, as are said; then that it stays so.
fn drifted(agent: &mut Agent, drift: f64) {
    let look = |agent: &mut Agent| {
        let metrics = agent.metrics().unwrap();
        let counted = metrics.count("vtepd_drift_total", &[]);
        let repaired = metrics.count("vtepd_repairs_total", &[("result", "ok")]);
        (counted, repaired, metrics.count("vtepd_in_sync", &[]))
    };
    let waited = wait_for("drift and repairs", PATIENCE, || {
        let (counted, repaired, in_sync) = look(agent);
        let done = counted >= drift && repaired >= drift && in_sync >= 1.0;
        if done {
            Ok(())
        } else {
            Err(LabError::not_so(format!("drift {counted}, repairs {repaired}, in sync {in_sync}")))
        }
    });
    waited.unwrap_or_else(|error| panic!("{error}\n{}", agent.log_tail(40)));
    sleep(Duration::from_millis(100));
    let (counted, repaired, _) = look(agent);
    assert_eq!((counted, repaired), (drift, drift), "{}", agent.log_tail(60));
}

/// The seed's network and endpoints on two hosts, as native records, applied.
fn seed() -> (Lab, Vec<Agent>) {
    let lab = Lab::new().unwrap();
    lab.hosts[0].add_netns("test1").unwrap();
    lab.hosts[1].add_netns("test2").unwrap();
    let mut agents = agents(&lab);
    put(&lab, "networks/overlay-demo", r#"{"subnets":[{"cidr":"10.0.0.0/24","gateway":"10.0.0.1","vni":256}]}"#);
    put(
        &lab,
        "endpoints/overlay-demo/docker-node1/test1",
        r#"{"ip":["10.0.0.2"],"mac":"02:42:0a:00:00:02","netns":"/run/netns/test1","ifname":"eth0"}"#,
    );
    put(&lab, "endpoints/overlay-demo/docker-node2/test2", r#"{"ip":["10.0.0.3"],"netns":"/run/netns/test2"}"#);
    for agent in &mut agents {
        let registered = || lab.etcd.get(&format!("/vtepd/v1/nodes/{}", agent.node()));
        wait_for("registered", PATIENCE, || registered()?.ok_or_else(|| LabError::not_so("no node record"))).unwrap();
    }
    for agent in &mut agents {
        applied(&lab, agent);
    }
    (lab, agents)
}

#[test]
fn the_seeds_network_stands_on_two_hosts_as_the_seed_has_it_and_they_ping() {
    in_private!();
    let (lab, _agents) = seed();
    for (host, (own, remote)) in lab.hosts.iter().zip([(2, 3), (3, 2)]) {
        let node = host.name();
        let links = host.ip_json(&words("-d -n vtepd-overlay-demo link")).unwrap();
        let link = |name: &str| links.as_array().unwrap().iter().find(|l| l["ifname"] == name).unwrap();
        assert_eq!(link("vxlan1")["linkinfo"]["info_data"]["id"], 256, "{node}");
        assert_eq!(link("vxlan1")["linkinfo"]["info_data"]["local"], host.address().to_string(), "{node}");
        assert_eq!((link("vxlan1")["mtu"].clone(), link("br0")["mtu"].clone()), (1450.into(), 1450.into()), "{node}");
        let gateway = host.ip_json(&words("-n vtepd-overlay-demo addr show br0")).unwrap();
        assert_eq!(gateway[0]["addr_info"][0]["local"], "10.0.0.1", "{node}");
        assert_eq!(gateway[0]["addr_info"][0]["prefixlen"], 24, "{node}");
        let test = if own == 2 { "test1" } else { "test2" };
        let eth0 = &host.ip_json(&["-n", test, "addr", "show", "eth0"]).unwrap()[0];
        assert_eq!(eth0["address"], format!("02:42:0a:00:00:0{own}"), "{node}");
        assert_eq!(eth0["addr_info"][0]["local"], format!("10.0.0.{own}"), "{node}");
        assert_eq!(
            (eth0["addr_info"][0]["prefixlen"].clone(), eth0["mtu"].clone()),
            (24.into(), 1450.into()),
            "{node}"
        );
        let vtep = lab.hosts[2 - (own as usize - 1)].address();
        let fdb = host.bridge_json(&words("-n vtepd-overlay-demo fdb show dev vxlan1")).unwrap();
        let own_rows: Vec<_> = fdb.as_array().unwrap().iter().filter(|row| row["flags"][0] == "self").collect();
        assert_eq!(own_rows.len(), 1, "{node}: {fdb}");
        assert_eq!(own_rows[0]["mac"], format!("02:42:0a:00:00:0{remote}"), "{node}");
        assert_eq!(
            (&own_rows[0]["dst"], &own_rows[0]["state"]),
            (&vtep.to_string().into(), &"permanent".into()),
            "{node}"
        );
        let neighbours = host.ip_json(&words("-n vtepd-overlay-demo neigh show dev vxlan1")).unwrap();
        assert_eq!(neighbours.as_array().unwrap().len(), 1, "{node}: {neighbours}");
        assert_eq!(neighbours[0]["dst"], format!("10.0.0.{remote}"), "{node}");
        assert_eq!(neighbours[0]["lladdr"], format!("02:42:0a:00:00:0{remote}"), "{node}");
        assert_eq!(neighbours[0]["state"][0], "PERMANENT", "{node}");
        host.in_netns(test, &["ping", "-c2", "-i0.1", "-W2", &format!("10.0.0.{remote}")]).unwrap();
        host.in_netns(test, &["ping", "-c1", "-W2", "10.0.0.1"]).unwrap();
    }
}

#[test]
fn what_crosses_the_underlay_is_the_networks_own_vni_and_nothing_at_rest() {
    in_private!();
    let (lab, _agents) = seed();
    let host = &lab.hosts[1];
    let capture = |packets: &str, seconds: &str| {
        let mut tcpdump = host
            .command(&words(&format!("timeout {seconds} tcpdump -Z root -lnn -i enp0s8 -c {packets} udp port 4789")));
        tcpdump.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
    };
    let quiet = capture("1", "1").wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&quiet.stdout).trim(), "", "nobody talks across the tunnel unasked");
    let busy = capture("2", "10");
    sleep(Duration::from_millis(300));
    lab.hosts[0].in_netns("test1", &["ping", "-c2", "-i0.1", "-W2", "10.0.0.3"]).unwrap();
    let seen = busy.wait_with_output().unwrap();
    let seen = String::from_utf8_lossy(&seen.stdout).into_owned();
    assert!(seen.contains("vni 256") && seen.contains("10.0.0.2 > 10.0.0.3: ICMP echo request"), "{seen}");
    assert!(!seen.contains("ARP"), "ARP is answered at home: {seen}");
}

#[test]
fn a_restarted_agent_sends_no_message_to_a_correct_kernel_and_no_ping_is_lost() {
    in_private!();
    let (lab, mut agents) = seed();
    let host = &lab.hosts[0];
    let mut ping = host.command(&words("ip netns exec test1 ping -i0.02 -W2 -c150 10.0.0.3"));
    let ping = ping.stdout(Stdio::piped()).spawn().unwrap();
    let mut monitor = host.command(&words("ip -n vtepd-overlay-demo monitor link address neigh route"));
    let mut monitor = monitor.stdout(Stdio::piped()).spawn().unwrap();
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let agent = agents.remove(0);
        let status = if signal == Signal::SIGTERM { agent.stop().unwrap() } else { agent.kill().unwrap() };
        assert_eq!(status.success(), signal == Signal::SIGTERM, "{status}");
        agents.insert(0, host.spawn_agent(&lab.agent_options(VTEPD)).unwrap());
        applied(&lab, &mut agents[0]);
        assert_eq!(count(&mut agents[0], "vtepd_ops_total", &[]), 0.0, "{}", agents[0].log_tail(40));
        assert_eq!(count(&mut agents[0], "vtepd_drift_total", &[]), 0.0);
    }
    let output = ping.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("150 packets transmitted, 150 received"), "{said}");
    monitor.kill().unwrap();
    let heard = monitor.wait_with_output().unwrap();
    // The kernel's own neighbour states (of the ping's ARP) are no doing of ours.
    let heard = String::from_utf8_lossy(&heard.stdout).into_owned();
    let ours: Vec<_> = heard.lines().filter(|line| !line.contains("REACHABLE") && !line.contains("STALE")).collect();
    assert!(ours.iter().all(|line| line.contains("DELAY") || line.contains("PROBE")), "{ours:#?}");
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
        run(host, breakage);
        drifted(agent, f64::from(n));
        host.in_netns("test1", &["ping", "-c1", "-W2", "10.0.0.3"])
            .unwrap_or_else(|error| panic!("{breakage}: {error}"));
    }
    let ops = count(agent, "vtepd_ops_total", &[]);
    sleep(Duration::from_millis(300));
    assert_eq!(count(agent, "vtepd_ops_total", &[]), ops, "nothing is sent at rest");
}

#[test]
fn among_ten_thousand_endpoints_every_broken_row_is_repaired_and_counted() {
    in_private!();
    let (lab, mut agents) = seed();
    let mut writes = vec![Write::Put(
        "/vtepd/v1/networks/overlay-demo".into(),
        r#"{"subnets":[{"cidr":"10.0.0.0/8","gateway":"10.0.0.1","vni":256}]}"#.into(),
    )];
    let mac = |n: u32| format!("02:42:0a:01:{:02x}:{:02x}", n >> 8, n & 255);
    for n in 0..10_000_u32 {
        let key = format!("/vtepd/v1/endpoints/overlay-demo/docker-node2/e{n}");
        writes.push(Write::Put(key, format!(r#"{{"ip":["10.1.{}.{}"]}}"#, n >> 8, n & 255)));
    }
    for some in writes.chunks(100) {
        lab.etcd.transaction(some).unwrap();
    }
    let (host, agent) = (&lab.hosts[0], &mut agents[0]);
    applied(&lab, agent);
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
}

#[test]
fn an_endpoint_is_wired_when_its_namespace_appears_and_unwired_when_it_goes() {
    in_private!();
    let (lab, mut agents) = seed();
    let host = &lab.hosts[0];
    put(&lab, "endpoints/overlay-demo/docker-node1/late", r#"{"ip":["10.0.0.9"],"netns":"/run/netns/late"}"#);
    applied(&lab, &mut agents[0]);
    for _ in 0..3 {
        host.add_netns("late").unwrap();
        wait_for("the ping", PATIENCE, || host.in_netns("late", &["ping", "-c1", "-W1", "10.0.0.3"])).unwrap();
        host.delete_netns("late").unwrap();
        wait_for("one veth is left", PATIENCE, || {
            let links = host.run(&words("ip -n vtepd-overlay-demo -br link show type veth"))?;
            if links.lines().count() == 1 { Ok(()) } else { Err(LabError::not_so(links)) }
        })
        .unwrap();
    }
    assert_eq!(count(&mut agents[0], "vtepd_drift_total", &[]), 0.0, "{}", agents[0].log_tail(60));
}

#[test]
fn an_agent_without_memory_takes_down_what_is_no_longer_desired_and_cleanup_the_rest() {
    in_private!();
    let (lab, mut agents) = seed();
    let host = &lab.hosts[0];
    run(host, "ip netns add mine");
    run(host, "ip netns add vtepd-not-ours");
    put(&lab, "networks/second", r#"{"subnets":[{"cidr":"10.5.0.0/24","vni":300},{"cidr":"fd05::/64","vni":300}]}"#);
    put(
        &lab,
        "endpoints/second/docker-node1/t",
        r#"{"ip":["10.5.0.2","fd05::2"],"netns":"/run/netns/test1","ifname":"eth5"}"#,
    );
    applied(&lab, &mut agents[0]);
    agents.remove(0).kill().unwrap();
    lab.etcd.delete("/vtepd/v1/networks/overlay-demo").unwrap();
    let mut agent = host.spawn_agent(&lab.agent_options(VTEPD)).unwrap();
    applied(&lab, &mut agent);
    wait_for("overlay-demo is gone", PATIENCE, || {
        let names = host.run(&words("ip netns"))?;
        if names.contains("vtepd-overlay-demo") { Err(LabError::not_so(names)) } else { Ok(()) }
    })
    .unwrap();
    let links = run(host, "ip -n test1 -br addr");
    assert!(!links.contains("eth0") && links.contains("10.5.0.2/24") && links.contains("fd05::2/64"), "{links}");

    let refused = host.output(&[VTEPD, "cleanup"]).unwrap();
    assert!(!refused.status.success(), "an agent runs");
    agent.stop().unwrap();
    let output = host.run(&[VTEPD, "cleanup"]).unwrap();
    assert!(output.contains("second"), "{output}");
    let names: BTreeSet<String> = run(host, "ip netns").lines().map(|l| words(l)[0].to_owned()).collect();
    assert_eq!(names, ["mine", "test1", "vtepd-not-ours"].map(str::to_owned).into());
    assert!(!run(host, "ip -n test1 -br link").contains("eth"), "the container has no interface of ours");
}

#[test]
fn a_record_that_went_bad_while_no_agent_ran_keeps_its_last_good_version_in_force() {
    in_private!();
    let (lab, mut agents) = seed();
    agents.remove(0).kill().unwrap();
    put(&lab, "endpoints/overlay-demo/docker-node2/test2", r#"{"ip":["10.0.0.3"],"netns":7}"#);
    put(&lab, "endpoints/overlay-demo/docker-node2/test2", r#"{"ip":"10.0.0.4"}"#);
    let mut agent = lab.hosts[0].spawn_agent(&lab.agent_options(VTEPD)).unwrap();
    applied(&lab, &mut agent);
    assert_eq!(count(&mut agent, "vtepd_ops_total", &[]), 0.0, "{}", agent.log_tail(40));
    assert_eq!(count(&mut agent, "vtepd_rejected_records", &[]), 1.0);
    lab.hosts[0].in_netns("test1", &["ping", "-c1", "-W2", "10.0.0.3"]).unwrap();
    put(&lab, "endpoints/overlay-demo/docker-node2/test2", r#"{"ip":["10.0.0.4"]}"#);
    applied(&lab, &mut agent);
    assert_eq!(count(&mut agent, "vtepd_rejected_records", &[]), 0.0);
    let fdb = run(&lab.hosts[0], "bridge -n vtepd-overlay-demo fdb show dev vxlan1 self");
    assert!(fdb.contains("02:42:0a:00:00:04") && !fdb.contains("02:42:0a:00:00:03"), "{fdb}");
}

#[test]
fn two_agents_of_one_instance_do_not_run_on_one_host() {
    in_private!();
    let lab = Lab::with_hosts(1).unwrap();
    let host = &lab.hosts[0];
    let mut first = host.spawn_agent(&lab.agent_options(VTEPD)).unwrap();
    applied(&lab, &mut first);
    let mut options = lab.agent_options(VTEPD);
    options.port += 1;
    let second = host.output(&options.command_line(host).iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
    assert!(!second.status.success());
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(said.contains("another agent of instance"), "{said}");
}

/// A small generator: the run follows from its seed.
struct Chance(u64);

impl Chance {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

const NETWORKS: u64 = 20;
/// Endpoints of each network that have a namespace on every host; as many again have none anywhere.
const WIRED: u64 = 6;
const ROUNDS: u64 = 60;

/// Which endpoints there are: network and number, on which host.
type Placed = BTreeMap<(u64, u64), usize>;

#[test]
fn whatever_is_put_moved_and_killed_every_kernel_ends_as_the_store_says() {
    in_private!();
    let mut lab = Lab::with_hosts(3).unwrap();
    let mut chance = Chance(0x5eed);
    for host in &lab.hosts {
        let names: Vec<String> =
            (0..NETWORKS).flat_map(|n| (0..WIRED).map(move |e| format!("netns add c{n}-{e}"))).collect();
        host.run_with_input(&words("ip -batch -"), &names.join("\n")).unwrap();
        run(host, "ip link add mine type bridge");
        run(host, "ip netns add vtepd-foreign");
    }
    let mut agents: Vec<Option<Agent>> = agents(&lab).into_iter().map(Some).collect();
    let mut placed = Placed::new();
    let networks: Vec<Write> = (0..NETWORKS)
        .map(|n| {
            let value = format!(
                r#"{{"subnets":[{{"cidr":"10.{n}.0.0/16","vni":{}}},{{"cidr":"fd00:{}::/64","vni":{}}}]}}"#,
                300 + n,
                n + 1,
                300 + n
            );
            Write::Put(format!("/vtepd/v1/networks/n{n}"), value)
        })
        .collect();
    lab.etcd.transaction(&networks).unwrap();
    for round in 0..ROUNDS {
        let mut writes = BTreeMap::new();
        for _ in 0..12 {
            let (network, number) = (chance.below(NETWORKS), chance.below(2 * WIRED));
            if writes.keys().any(|(at, _): &((u64, u64), usize)| *at == (network, number)) {
                continue;
            }
            let at = (network, number);
            let old = placed.get(&at).copied();
            if let Some(old) = old {
                writes.insert((at, old), Write::Delete(endpoint_key(&lab, at, old)));
                placed.remove(&at);
            }
            // A third goes, the others move or come.
            if old.is_none() || chance.below(3) > 0 {
                let host = chance.below(3) as usize;
                writes.insert((at, host), Write::Put(endpoint_key(&lab, at, host), endpoint_value(at)));
                placed.insert(at, host);
            }
        }
        lab.etcd.transaction(&writes.into_values().collect::<Vec<_>>()).unwrap();
        match round % 12 {
            3 => {
                lab.etcd.kill();
                sleep(Duration::from_millis(chance.below(300)));
                lab.etcd.start().unwrap();
            }
            6 => {
                lab.etcd.compact().unwrap();
            }
            8 => {
                let victim = chance.below(3) as usize;
                if let Some(agent) = agents[victim].take() {
                    agent.kill().unwrap();
                }
            }
            10 => {
                for (agent, host) in agents.iter_mut().zip(&lab.hosts) {
                    agent.get_or_insert_with(|| host.spawn_agent(&lab.agent_options(VTEPD)).unwrap());
                }
            }
            _ => {}
        }
    }
    let mut agents: Vec<Agent> = agents
        .into_iter()
        .zip(&lab.hosts)
        .map(|(agent, host)| agent.unwrap_or_else(|| host.spawn_agent(&lab.agent_options(VTEPD)).unwrap()))
        .collect();
    for agent in &mut agents {
        applied(&lab, agent);
    }
    for (index, host) in lab.hosts.iter().enumerate() {
        let look = || {
            let (expected, found) = (expected(&lab, &placed, index), found(host));
            let wrong: Vec<_> = found.difference(&expected).take(9).collect();
            let missing: Vec<_> = expected.difference(&found).take(9).collect();
            let same = wrong.is_empty() && missing.is_empty();
            if same { Ok(()) } else { Err(LabError::not_so(format!("wrong {wrong:#?}, missing {missing:#?}"))) }
        };
        let waited = wait_for(host.name(), PATIENCE, look);
        waited.unwrap_or_else(|error| panic!("{error}\n{}", agents[index].log_tail(40)));
        assert!(run(host, "ip link show mine").contains("mine"), "a foreign device is untouched");
        assert!(run(host, "ip netns").contains("vtepd-foreign"), "a foreign namespace is untouched");
        assert_eq!(count(&mut agents[index], "vtepd_drift_total", &[]), 0.0, "{}", agents[index].log_tail(40));
    }
    let (at, from) = placed.iter().find(|(at, _)| at.1 < WIRED).unwrap();
    let to = placed.iter().find(|(other, host)| other.0 == at.0 && other.1 < WIRED && *host != from);
    if let Some(((network, number), _)) = to {
        let address = format!("10.{network}.1.{number}");
        lab.hosts[*from].in_netns(&format!("c{}-{}", at.0, at.1), &["ping", "-c1", "-W2", &address]).unwrap();
    }
}

fn endpoint_key(lab: &Lab, (network, number): (u64, u64), host: usize) -> String {
    format!("/vtepd/v1/endpoints/n{network}/{}/e{number}", lab.hosts[host].name())
}

fn endpoint_value((network, number): (u64, u64)) -> String {
    let addresses = format!(r#""10.{network}.1.{number}","fd00:{}::1:{number}""#, network + 1);
    if number < WIRED {
        format!(r#"{{"ip":[{addresses}],"netns":"/run/netns/c{network}-{number}"}}"#)
    } else {
        format!(r#"{{"ip":[{addresses}]}}"#)
    }
}

/// What the store says of a host, in lines.
fn expected(lab: &Lab, placed: &Placed, host: usize) -> BTreeSet<String> {
    let mut lines = BTreeSet::new();
    for network in 0..NETWORKS {
        let members: Vec<_> = placed.iter().filter(|((n, _), _)| *n == network).collect();
        if !members.iter().any(|(_, at)| **at == host) {
            continue;
        }
        lines.insert(format!("n{network} exists"));
        for ((_, number), at) in members {
            let mac = format!("02:42:0a:{network:02x}:01:{number:02x}");
            let (v4, v6) = (format!("10.{network}.1.{number}"), format!("fd00:{}::1:{number}", network + 1));
            if *at != host {
                lines.insert(format!("n{network} fdb {mac} {}", lab.hosts[*at].address()));
                lines.insert(format!("n{network} neigh {v4} {mac}"));
                lines.insert(format!("n{network} neigh {v6} {mac}"));
            } else if *number < WIRED {
                lines.insert(format!("c{network}-{number} {mac} {v4}/16 {v6}/64"));
            }
        }
    }
    lines
}

/// What `ip` and `bridge` say of a host, in the same lines.
fn found(host: &Host) -> BTreeSet<String> {
    let mut lines = BTreeSet::new();
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    for line in run(host, "ip netns").lines() {
        let name = words(line)[0];
        if let Some(network) = name.strip_prefix("vtepd-n") {
            lines.insert(format!("n{network} exists"));
            let rows = host.bridge_json(&["-n", name, "fdb", "show", "dev", "vxlan1", "self"]).unwrap();
            for row in rows.as_array().unwrap().iter().filter(|row| row["dst"].is_string()) {
                lines.insert(format!("n{network} fdb {} {}", text(&row["mac"]), text(&row["dst"])));
            }
            let rows = host.ip_json(&["-n", name, "neigh", "show", "dev", "vxlan1", "nud", "permanent"]).unwrap();
            for row in rows.as_array().unwrap() {
                lines.insert(format!("n{network} neigh {} {}", text(&row["dst"]), text(&row["lladdr"])));
            }
        } else if name.starts_with('c') {
            for link in host.ip_json(&["-n", name, "addr"]).unwrap().as_array().unwrap() {
                if link["ifname"] != "eth0" {
                    continue;
                }
                let global = |a: &&serde_json::Value| a["scope"] == "global";
                let addresses = link["addr_info"].as_array().unwrap().iter().filter(global);
                let nets: Vec<String> =
                    addresses.map(|a| format!("{}/{}", text(&a["local"]), a["prefixlen"])).collect();
                lines.insert(format!("{name} {} {}", text(&link["address"]), nets.join(" ")));
            }
        }
    }
    lines
}
