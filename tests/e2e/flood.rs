//! Networks that flood, and hosts without an agent: plain VXLAN devices and Open vSwitch.

use std::{
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use vtepd::lab::{Agent, Host, Lab, LabError, wait_for};

use crate::hosts::{
    VTEPD, applied, count, in_private, ping, put, registered, restart_without_an_operation, run, start, words,
};

const PATIENCE: Duration = Duration::from_secs(20);
const OVERLAY: &str = "vtepd-demo";

fn network(lab: &Lab, more: &str) {
    put(lab, "networks/demo", &format!(r#"{{"subnets":[{{"cidr":"10.0.0.0/24","vni":256}}]{more}}}"#));
}

/// A network on two hosts with agents, one container each, 10.0.0.2 and .3; further hosts without an agent have an endpoint
/// in it, 10.0.0.4 and so on.
fn lab(hosts: usize, more: &str) -> (Lab, Vec<Agent>) {
    let lab = Lab::with_hosts(hosts).unwrap();
    let mut agents: Vec<Agent> = lab.hosts[..2].iter().map(|host| start(&lab, host)).collect();
    registered(&lab, &mut agents);
    network(&lab, more);
    for (host, number) in lab.hosts.iter().zip(2..) {
        let node = host.name();
        let netns = if number < 4 { format!(r#","netns":"/run/netns/test{number}""#) } else { String::new() };
        if number < 4 {
            host.add_netns(&format!("test{number}")).unwrap();
            answer_broadcasts(host, &format!("test{number}"));
        } else {
            put(&lab, &format!("nodes/{node}"), &format!(r#"{{"vtep":"{}"}}"#, host.address()));
        }
        put(&lab, &format!("endpoints/demo/{node}/e{number}"), &format!(r#"{{"ip":["10.0.0.{number}"]{netns}}}"#));
    }
    applied(&lab, &mut agents);
    (lab, agents)
}

/// Agents without memory find nothing to do.
fn ends_in_order(lab: &Lab, agents: Vec<Agent>) {
    restart_without_an_operation(agents, || {
        let mut agents: Vec<Agent> = lab.hosts[..2].iter().map(|host| start(lab, host)).collect();
        applied(lab, &mut agents);
        agents
    });
}

/// By default a host leaves pings to everyone unanswered.
fn answer_broadcasts(host: &Host, netns: &str) {
    let answer = "echo 0 > /proc/sys/net/ipv4/icmp_echo_ignore_broadcasts";
    host.in_netns(netns, &["sh", "-c", answer]).unwrap();
}

/// Makes a plain VXLAN device that learns, and has the endpoint's address, in a namespace of its own.
fn plain_device(host: &Host, number: u8, netns: &str) {
    host.add_netns(netns).unwrap();
    answer_broadcasts(host, netns);
    let vtep = host.address();
    run(
        host,
        &format!(
            "ip link add vxlan0 address 02:42:0a:00:00:0{number} mtu 1450 type vxlan id 256 dstport 4789 local {vtep}"
        ),
    );
    run(host, &format!("ip link set vxlan0 netns {netns}"));
    run(host, &format!("ip -n {netns} addr add 10.0.0.{number}/24 dev vxlan0"));
    run(host, &format!("ip -n {netns} link set vxlan0 up"));
}

/// Pings an address that is everyone's until all of these have answered.
fn everyone_answers(host: &Host, netns: &str, device: &str, to: &str, members: &[&str]) {
    let answered = wait_for(&format!("{members:?} answer {to}"), PATIENCE, || {
        let said = host.in_netns(netns, &["ping", "-b", "-c2", "-i0.3", "-W1", "-I", device, to])?;
        let missing: Vec<_> = members.iter().filter(|ip| !said.contains(&format!("from {ip}:"))).collect();
        if missing.is_empty() { Ok(()) } else { Err(LabError::not_so(format!("not {missing:?}: {said}"))) }
    });
    answered.unwrap();
}

/// The all-zero rows of a host's VXLAN device, by destination.
fn flood_list(host: &Host) -> Vec<String> {
    let shown = run(host, &format!("bridge -n {OVERLAY} fdb show dev vxlan1 self"));
    let rows = shown.lines().filter(|row| row.starts_with("00:00:00:00:00:00"));
    let mut list: Vec<String> = rows.filter_map(|row| row.split(' ').nth(2)).map(str::to_owned).collect();
    list.sort();
    list
}

#[test]
fn in_a_network_that_floods_broadcast_and_multicast_arrive_at_every_member() {
    in_private!();
    let (lab, mut agents) = lab(3, r#","flood":true"#);
    let plain = &lab.hosts[2];
    plain_device(plain, 4, "plain");
    assert_eq!(flood_list(&lab.hosts[0]), ["192.168.205.11", "192.168.205.12"]);
    // It is ours that speak first, by ARP: the plain device, which has no rows at all, learns from what it hears.
    for (host, netns, others) in [(0, "test2", ["10.0.0.3", "10.0.0.4"]), (1, "test3", ["10.0.0.2", "10.0.0.4"])] {
        ping(&lab.hosts[host], netns, "10.0.0.4");
        for everyone in ["10.0.0.255", "224.0.0.1"] {
            everyone_answers(&lab.hosts[host], netns, "eth0", everyone, &others);
        }
    }
    ping(plain, "plain", "10.0.0.2");
    ping(plain, "plain", "10.0.0.3");
    // With the list that ours have it reaches everyone of itself.
    for vtep in ["192.168.205.10", "192.168.205.11"] {
        run(plain, &format!("bridge -n plain fdb append 00:00:00:00:00:00 dev vxlan0 dst {vtep}"));
    }
    for everyone in ["10.0.0.255", "224.0.0.1"] {
        everyone_answers(plain, "plain", "vxlan0", everyone, &["10.0.0.2", "10.0.0.3"]);
    }

    // An address that no record has, behind the same VTEP: frames to it are for nobody known, and go to everyone.
    run(plain, "ip -n plain link add unknown link vxlan0 address 02:00:00:00:00:44 type macvlan mode bridge");
    plain.add_netns("behind").unwrap();
    run(plain, "ip -n plain link set unknown netns behind");
    run(plain, "ip -n behind addr add 10.0.0.44/24 dev unknown");
    run(plain, "ip -n behind link set unknown up");
    ping(&lab.hosts[0], "test2", "10.0.0.44");
    ping(plain, "behind", "10.0.0.3");

    lab.etcd.delete("/vtepd/v1/endpoints/demo/docker-node3/e4").unwrap();
    applied(&lab, &mut agents);
    assert_eq!(flood_list(&lab.hosts[0]), ["192.168.205.11"], "the row goes with the last endpoint behind the VTEP");
    assert_eq!(count(&mut agents[0], "vtepd_drift_total", &[]), 0.0);
    ends_in_order(&lab, agents);
}

#[test]
fn flooding_is_switched_on_and_off_and_without_it_nothing_leaks() {
    in_private!();
    let (lab, mut agents) = lab(2, "");
    let sniff = |host: &Host| {
        let mut tcpdump = host.command(&words("timeout 10 tcpdump -Z root -lnn -i enp0s8 -c 1 udp port 4789"));
        tcpdump.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
    };
    let chatter = |lab: &Lab| {
        for to in ["10.0.0.99", "10.0.0.255", "224.0.0.1"] {
            let said = words("ping -b -c2 -i0.2 -W1 -I eth0");
            let _ = lab.hosts[0].in_netns("test2", &[said, vec![to]].concat());
        }
        let stray = "ip neigh replace 10.0.0.98 lladdr 02:00:00:00:00:98 nud permanent dev eth0";
        lab.hosts[0].in_netns("test2", &words(stray)).unwrap();
        let _ = lab.hosts[0].in_netns("test2", &words("ping -c1 -W1 10.0.0.98"));
    };
    for flood in [false, true, false] {
        network(&lab, &format!(r#","flood":{flood}"#));
        applied(&lab, &mut agents);
        assert_eq!(flood_list(&lab.hosts[0]).len(), usize::from(flood));
        ping(&lab.hosts[0], "test2", "10.0.0.3");
        let mut tcpdump = sniff(&lab.hosts[1]);
        wait_for("tcpdump listens", PATIENCE, || {
            let sockets = lab.hosts[1].run(&["cat", "/proc/net/packet"])?;
            if sockets.lines().count() > 1 { Ok(()) } else { Err(LabError::not_so(sockets)) }
        })
        .unwrap();
        chatter(&lab);
        if !flood {
            assert!(tcpdump.try_wait().unwrap().is_none(), "something crossed the underlay");
        }
        // `timeout` passes it on. The one packet that it was to wait for may have ended it already.
        let _ = kill(Pid::from_raw(tcpdump.id() as i32), Signal::SIGTERM);
        let seen = tcpdump.wait_with_output().unwrap();
        let seen = String::from_utf8_lossy(&seen.stdout).into_owned();
        assert_eq!(seen.contains("vni 256"), flood, "{seen}");
    }
    for agent in &mut agents {
        assert_eq!(count(agent, "vtepd_drift_total", &[]), 0.0, "{}", agent.log_tail(40));
    }
    ends_in_order(&lab, agents);
}

/// What `vtepd export-neighbours` prints on a host.
fn exported(lab: &Lab, host: &Host, arguments: &str) -> Result<String, LabError> {
    let etcd = lab.etcd.url();
    host.run(&[vec![VTEPD, "export-neighbours", "--etcd", &etcd], words(arguments)].concat())
}

#[test]
fn a_host_without_an_agent_takes_part_by_the_commands_that_are_printed_for_it() {
    in_private!();
    let (lab, mut agents) = lab(3, "");
    let plain = &lab.hosts[2];
    let printed = exported(&lab, plain, "demo --node docker-node3").unwrap();
    assert!(!printed.contains("10.0.0.4") && printed.contains("ip neigh replace 10.0.0.2 "), "{printed}");
    let made = printed.lines().find_map(|line| line.strip_prefix("# VNI 256: ")).unwrap();
    run(plain, made);
    run(plain, "ip link set vxlan0 address 02:42:0a:00:00:04 mtu 1450 up");
    run(plain, "ip addr add 10.0.0.4/24 dev vxlan0");
    plain.run_with_input(&["sh", "-e"], &printed).unwrap();
    for ours in ["10.0.0.2", "10.0.0.3"] {
        plain.run(&["ping", "-c1", "-W2", ours]).unwrap();
    }
    ping(&lab.hosts[0], "test2", "10.0.0.4");
    ping(&lab.hosts[1], "test3", "10.0.0.4");
    assert_eq!(flood_list(&lab.hosts[0]), Vec::<String>::new());
    let again = exported(&lab, plain, "demo --vtep 192.168.205.12").unwrap();
    assert_eq!(again, printed);
    plain.run_with_input(&["sh", "-e"], &again).unwrap();

    // A record that is bad now counts by its last good version, as it does for an agent.
    put(&lab, "endpoints/demo/docker-node1/e2", "{");
    let body = |text: &str| text.lines().skip(1).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(body(&exported(&lab, plain, "demo --node docker-node3").unwrap()), body(&printed));
    for (arguments, complaint) in [
        ("absent --vtep 192.0.2.1", "there is no network absent"),
        ("demo --node nobody", "no record"),
        ("demo", "required"),
        ("demo --vtep 192.0.2.1 --device a;b", "no name of an interface"),
    ] {
        let error = exported(&lab, plain, arguments).unwrap_err().to_string();
        assert!(error.contains(complaint), "{arguments}: {error}");
    }
    put(&lab, "networks/demo", r#"{"subnets":[{"cidr":"10.0.0.0/24","vni":256}],"secure":true}"#);
    let error = exported(&lab, plain, "demo --node docker-node3").unwrap_err().to_string();
    assert!(error.contains("not in force"), "{error}");
    agents.clear();
}

/// Open vSwitch on one host, its database and sockets in a directory of the lab's. It ends with what is returned.
struct OpenVswitch<'a> {
    host: &'a Host,
    directory: PathBuf,
    processes: Vec<Child>,
}

impl<'a> OpenVswitch<'a> {
    fn start(lab: &Lab, host: &'a Host) -> Self {
        let directory = lab.directory().join("ovs");
        std::fs::create_dir(&directory).unwrap();
        let at = |name: &str| directory.join(name).display().to_string();
        let schema = "/usr/share/openvswitch/vswitch.ovsschema";
        assert!(
            Path::new(schema).exists(),
            "Open vSwitch is missing: apt-get install openvswitch-switch, or make deps"
        );
        // Its own ports are tap devices.
        let tun = std::fs::File::options().read(true).write(true).open("/dev/net/tun");
        tun.unwrap_or_else(|error| panic!("/dev/net/tun, which Open vSwitch needs: {error}; be root, or make it 0666"));
        run(host, &format!("ovsdb-tool create {} {schema}", at("conf.db")));
        let mut this = Self { host, directory: directory.clone(), processes: Vec::new() };
        this.spawn(&format!(
            "ovsdb-server {} --remote=punix:{} --unixctl={} --no-chdir",
            at("conf.db"),
            at("db.sock"),
            at("db.ctl")
        ));
        this.configure("--no-wait init");
        this.spawn(&format!("ovs-vswitchd unix:{} --unixctl={} --no-chdir", at("db.sock"), at("switch.ctl")));
        this
    }

    fn spawn(&mut self, command: &str) {
        let mut command = self.host.command(&words(command));
        for variable in ["OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR"] {
            command.env(variable, &self.directory);
        }
        let log = std::fs::File::create(self.directory.join(format!("{}.log", self.processes.len()))).unwrap();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.processes.push(command.spawn().unwrap());
    }

    /// Runs `ovs-vsctl`, which waits until the switch has done as it was told.
    fn configure(&self, arguments: &str) {
        let database = format!("--db=unix:{}", self.directory.join("db.sock").display());
        let vsctl = || self.host.run(&[vec!["ovs-vsctl", "--timeout=10", &database], words(arguments)].concat());
        let log = || std::fs::read_to_string(self.directory.join("1.log")).unwrap_or_default();
        wait_for(arguments, PATIENCE, vsctl).unwrap_or_else(|error| panic!("{error}\n{}", log()));
    }
}

impl Drop for OpenVswitch<'_> {
    fn drop(&mut self) {
        for process in self.processes.iter_mut().rev() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

#[test]
fn open_vswitch_talks_to_endpoints_of_a_network_that_floods() {
    in_private!();
    let (lab, agents) = lab(3, r#","flood":true"#);
    let host = &lab.hosts[2];
    // Its userspace datapath checks the outer UDP checksum, which a veth pair leaves to the hardware that it does not have.
    for sender in &lab.hosts[..2] {
        run(sender, "ethtool -K enp0s8 tx off");
    }
    let switch = OpenVswitch::start(&lab, host);
    let vtep = host.address();
    run(host, "ip addr flush dev enp0s8");
    switch.configure("add-br underlay -- set bridge underlay datapath_type=netdev -- add-port underlay enp0s8");
    run(host, &format!("ip addr add {vtep}/24 dev underlay"));
    run(host, "ip link set underlay up");
    switch.configure(
        "add-br overlay -- set bridge overlay datapath_type=netdev \
         -- add-port overlay inside -- set interface inside type=internal mtu_request=1450",
    );
    for (port, remote) in [("vx1", lab.hosts[0].address()), ("vx2", lab.hosts[1].address())] {
        // Protected ports keep to themselves what came from another one of them: split horizon.
        switch.configure(&format!(
            "add-port overlay {port} -- set port {port} protected=true \
             -- set interface {port} type=vxlan options:remote_ip={remote} options:local_ip={vtep} options:key=256"
        ));
    }
    host.add_netns("guest").unwrap();
    answer_broadcasts(host, "guest");
    run(host, "ip link set inside netns guest");
    run(host, "ip -n guest link set inside address 02:42:0a:00:00:04 up");
    run(host, "ip -n guest addr add 10.0.0.4/24 dev inside");

    wait_for("the first ping", PATIENCE, || host.in_netns("guest", &["ping", "-c1", "-W1", "10.0.0.2"])).unwrap();
    ping(host, "guest", "10.0.0.3");
    ping(&lab.hosts[0], "test2", "10.0.0.4");
    ping(&lab.hosts[1], "test3", "10.0.0.4");
    for everyone in ["10.0.0.255", "224.0.0.1"] {
        everyone_answers(&lab.hosts[0], "test2", "eth0", everyone, &["10.0.0.3", "10.0.0.4"]);
        everyone_answers(host, "guest", "inside", everyone, &["10.0.0.2", "10.0.0.3"]);
    }
    drop(switch);
    ends_in_order(&lab, agents);
}

#[test]
fn between_the_subnets_of_a_network_that_floods_hosts_reach_each_other() {
    in_private!();
    let lab = Lab::with_hosts(2).unwrap();
    let mut agents: Vec<Agent> = lab.hosts.iter().map(|host| start(&lab, host)).collect();
    registered(&lab, &mut agents);
    let subnets = r#"{"subnets":[{"cidr":"10.0.0.0/24","vni":256},{"cidr":"10.0.1.0/24","vni":257},
        {"cidr":"fd00::/64","vni":256},{"cidr":"fd00:1::/64","vni":257}],"flood":true}"#;
    put(&lab, "networks/demo", subnets);
    for (number, host) in lab.hosts.iter().enumerate() {
        host.add_netns("test").unwrap();
        let (subnet, node) = (["", "1"][number], host.name());
        let ip = format!(r#"["10.0.{number}.2","fd00:{subnet}::2"]"#).replace("fd00:::2", "fd00::2");
        put(&lab, &format!("endpoints/demo/{node}/e"), &format!(r#"{{"ip":{ip},"netns":"/run/netns/test"}}"#));
    }
    applied(&lab, &mut agents);
    ping(&lab.hosts[0], "test", "10.0.1.2");
    ping(&lab.hosts[1], "test", "fd00::2");
    run(&lab.hosts[0], "ip -n vtepd-demo neigh del 10.0.1.2 dev br1");
    ping(&lab.hosts[0], "test", "10.0.1.2");
    // With the network quiet again the bridges resolve what they route to.
    put(&lab, "networks/demo", &subnets.replace("true", "false"));
    applied(&lab, &mut agents);
    ping(&lab.hosts[0], "test", "10.0.1.2");
    for host in &lab.hosts {
        assert!(!run(host, "ip -n vtepd-demo neigh show dev br1").contains("PERMANENT"));
    }
    restart_without_an_operation(agents, || {
        let mut agents: Vec<Agent> = lab.hosts.iter().map(|host| start(&lab, host)).collect();
        applied(&lab, &mut agents);
        agents
    });
}
