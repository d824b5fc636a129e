//! What an endpoint may send, and what it may not: frames of its own making, on the same host and across.

use std::{
    io::{BufRead as _, BufReader},
    net::{Ipv4Addr, Ipv6Addr},
    process::Stdio,
};

use vtepd::lab::{Agent, Host, Lab};

use crate::{
    frames::{
        ARP, DESTINATION_OPTIONS, FRAGMENT, HOP_BY_HOP, ICMP, ICMPV6, IPV4, IPV6, Mac, UDP, advertisement, arp,
        ethernet, fragment, icmpv6, ipv4, ipv6, mac_of, mark, option, options, padding, solicitation, tagged, udp,
    },
    hosts::{applied, in_private, ping, put, registered, restart_without_an_operation, run, start_all, started},
};

/// Sends each line as a frame.
const SEND: &str = r"
import socket, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind(('eth0', 0))
for line in sys.stdin: s.send(bytes.fromhex(line))
";

/// Prints the name of each frame that comes, until the last.
const RECEIVE: &str = r"
import re, socket, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
s.bind(('eth0', 3))
s.settimeout(20)
print('ready', flush=True)
while True:
    frame, address = s.recvfrom(65536)
    name = re.search(rb'<([a-z0-9-]+)>', frame)
    if name and address[2] != socket.PACKET_OUTGOING:
        print(name[1].decode(), flush=True)
        if name[1] == b'last': break
";

const NOBODY: Ipv6Addr = Ipv6Addr::UNSPECIFIED;

const fn v4(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, last)
}

const fn v6(last: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0, 0, 1, 0, 0, 0, last)
}

const fn link_local(last: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, last)
}

fn mac(last: u8) -> Mac {
    mac_of(v4(last).into())
}

/// A network on two hosts; `test1` and `test4` are on the first, `test3` on the second.
fn network(guard: bool) -> (Lab, Vec<Agent>) {
    let lab = Lab::new().unwrap();
    let mut agents = start_all(&lab);
    let subnets = r#""subnets":[{"cidr":"10.0.0.0/24","vni":256},{"cidr":"fd00:0:0:1::/64","vni":256}]"#;
    // On is what it is when nothing is said.
    let guard = if guard { "" } else { r#","spoof_guard":false"# };
    put(&lab, "networks/overlay-demo", &format!("{{{subnets}{guard}}}"));
    for (host, number) in [(0, 2), (0, 4), (1, 3)] {
        let (host, netns) = (&lab.hosts[host], format!("test{number}"));
        host.add_netns(&netns).unwrap();
        let value = format!(r#"{{"ip":["10.0.0.{number}","fd00:0:0:1::{number}"],"netns":"/run/netns/{netns}"}}"#);
        put(&lab, &format!("endpoints/overlay-demo/{}/{netns}", host.name()), &value);
    }
    registered(&lab, &mut agents);
    applied(&lab, &mut agents);
    (lab, agents)
}

/// A frame with the name that it goes by.
type Frame = (&'static str, Vec<u8>);

/// Sends the frames from `test2`, and tells which of them arrive.
fn sent(from: &Host, to: (&Host, u8), frames: &[Frame]) -> Vec<String> {
    let (host, number) = to;
    let netns = format!("test{number}");
    let mut command = host.command(&["ip", "netns", "exec", &netns, "python3", "-c", RECEIVE]);
    let mut receiver = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut arrived = BufReader::new(receiver.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert_eq!(arrived.next().as_deref(), Some("ready"));
    // The last is always let through.
    let last = ethernet(mac(number), mac(2), IPV4, &ipv4(v4(2), v4(number), UDP, 0, &udp(mark("last"))));
    let hex = |frame: &Vec<u8>| frame.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let lines: Vec<String> = frames.iter().map(|(_, frame)| frame).chain([&last]).map(hex).collect();
    from.run_with_input(&["ip", "netns", "exec", "test2", "python3", "-c", SEND], &lines.join("\n")).unwrap();
    let mut names: Vec<String> = arrived.collect();
    assert!(receiver.wait().unwrap().success(), "{names:?}");
    assert_eq!(names.pop().as_deref(), Some("last"));
    names
}

fn names(frames: &[Frame]) -> Vec<&str> {
    frames.iter().map(|(name, _)| *name).collect()
}

/// From `test2` to another endpoint.
struct To {
    mac: Mac,
    v4: Ipv4Addr,
    v6: Ipv6Addr,
}

impl To {
    fn new(number: u8) -> Self {
        Self { mac: mac(number), v4: v4(number), v6: v6(number.into()) }
    }

    fn ethernet(&self, kind: u16, payload: &[u8]) -> Vec<u8> {
        ethernet(self.mac, mac(2), kind, payload)
    }

    fn arp(&self, name: &str, operation: u16, sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr)) -> Vec<u8> {
        self.ethernet(ARP, &[&arp(operation, sender, target)[..], &mark(name)].concat())
    }

    fn ipv4(&self, name: &str, from: Ipv4Addr) -> Vec<u8> {
        self.ethernet(IPV4, &ipv4(from, self.v4, UDP, 0, &udp(mark(name))))
    }

    fn ipv6(&self, from: Ipv6Addr, next: u8, parts: &[&[u8]]) -> Vec<u8> {
        self.ethernet(IPV6, &ipv6(from, self.v6, next, &parts.concat()))
    }

    fn icmpv6(&self, from: Ipv6Addr, kind: u8, body: &[u8]) -> Vec<u8> {
        self.ipv6(from, ICMPV6, &[&icmpv6(from, self.v6, kind, body)])
    }

    /// Someone else's address at the sender's.
    fn rogue(&self, name: &str) -> Vec<u8> {
        icmpv6(v6(2), self.v6, 136, &advertisement(v6(9), mac(2), mark(name)))
    }
}

/// What `test2` may send to an endpoint: all that is its own.
fn own(number: u8) -> Vec<Frame> {
    let (to, from) = (To::new(number), mac(2));
    let echo = |name: &str| icmpv6(v6(2), to.v6, 128, &[&[0; 4][..], &mark(name)].concat());
    let report = [&[0; 4][..], &mark("report")].concat();
    let multicast = ipv4(v4(2), [224, 0, 0, 9].into(), UDP, 0, &udp(mark("multicast4")));
    vec![
        ("arp", to.arp("arp", 1, (from, v4(2)), ([0; 6], to.v4))),
        ("arp-reply", to.arp("arp-reply", 2, (from, v4(2)), (to.mac, to.v4))),
        ("arp-probe", to.arp("arp-probe", 1, (from, Ipv4Addr::UNSPECIFIED), ([0; 6], v4(2)))),
        ("solicitation", to.icmpv6(v6(2), 135, &solicitation(to.v6, mark("solicitation")))),
        ("duplicate", to.icmpv6(NOBODY, 135, &solicitation(v6(2), mark("duplicate")))),
        ("duplicate-local", to.icmpv6(NOBODY, 135, &solicitation(link_local(2), mark("duplicate-local")))),
        ("udp4", to.ipv4("udp4", v4(2))),
        ("multicast4", ethernet([1, 0, 0x5e, 0, 0, 9], from, IPV4, &multicast)),
        ("fragment4", to.ethernet(IPV4, &ipv4(v4(2), to.v4, ICMP, 1400, &mark("fragment4")))),
        ("udp6", to.ipv6(v6(2), UDP, &[&udp(mark("udp6"))])),
        ("udp6-local", to.ipv6(link_local(2), UDP, &[&udp(mark("udp6-local"))])),
        ("echo", to.ipv6(v6(2), ICMPV6, &[&echo("echo")])),
        ("echo-options", to.ipv6(v6(2), DESTINATION_OPTIONS, &[&padding(ICMPV6), &echo("echo-options")])),
        ("echo-fragment", to.ipv6(v6(2), FRAGMENT, &[&fragment(ICMPV6, 0, true), &echo("echo-fragment")])),
        ("later-fragment", to.ipv6(v6(2), FRAGMENT, &[&fragment(ICMPV6, 1400, false), &mark("later-fragment")])),
        ("report", to.ipv6(NOBODY, HOP_BY_HOP, &[&padding(ICMPV6), &icmpv6(NOBODY, to.v6, 143, &report)])),
        ("router-solicit", to.icmpv6(link_local(2), 133, &[&[0; 4][..], &option(mark("router-solicit"))].concat())),
        ("advertisement", to.icmpv6(v6(2), 136, &advertisement(v6(2), from, mark("advertisement")))),
        ("local", to.icmpv6(link_local(2), 136, &advertisement(link_local(2), from, mark("local")))),
    ]
}

/// What it may not: each is somebody else's, or could hide that it is.
fn forged(number: u8) -> Vec<Frame> {
    let (to, from, other) = (To::new(number), mac(2), mac(9));
    let other_mac = ipv4(v4(2), to.v4, UDP, 0, &udp(mark("mac")));
    let mut odd = to.arp("arp-odd", 1, (from, v4(2)), ([0; 6], to.v4));
    odd[15] = 6;
    let head = [0, 1, 8, 0, 6, 4, 0];
    let local = |kind, length: usize, name| {
        to.icmpv6(link_local(2), kind, &[&vec![0; length][..], &option(mark(name))].concat())
    };
    // A first fragment that ends before it is known what is claimed, or even that something is.
    let first = fragment(DESTINATION_OPTIONS, 0, true);
    vec![
        ("mac", ethernet(to.mac, other, IPV4, &other_mac)),
        ("ip", to.ipv4("ip", v4(9))),
        ("gateway", to.ipv4("gateway", v4(1))),
        ("no-ip", to.ipv4("no-ip", Ipv4Addr::UNSPECIFIED)),
        ("arp-gratuitous", to.arp("arp-gratuitous", 1, (from, v4(9)), ([0; 6], v4(9)))),
        ("arp-forged", to.arp("arp-forged", 2, (from, v4(9)), (to.mac, to.v4))),
        ("arp-hardware", to.arp("arp-hardware", 2, (other, v4(2)), (to.mac, to.v4))),
        ("arp-odd", odd),
        ("arp-short", to.ethernet(ARP, &[&head[..], &mark("arp-short")[..20]].concat())),
        ("rarp", to.ethernet(0x8035, &[&arp(3, (from, v4(2)), (from, v4(2)))[..], &mark("rarp")].concat())),
        ("ip6", to.ipv6(v6(9), UDP, &[&udp(mark("ip6"))])),
        ("no-ip6", to.ipv6(NOBODY, UDP, &[&udp(mark("no-ip6"))])),
        ("rogue", to.ipv6(v6(2), ICMPV6, &[&to.rogue("rogue")])),
        ("rogue-local", to.icmpv6(link_local(2), 136, &advertisement(v6(9), from, mark("rogue-local")))),
        ("rogue-options", to.ipv6(v6(2), DESTINATION_OPTIONS, &[&padding(ICMPV6), &to.rogue("rogue-options")])),
        ("rogue-hop", to.ipv6(v6(2), HOP_BY_HOP, &[&padding(ICMPV6), &to.rogue("rogue-hop")])),
        ("rogue-fragment", to.ipv6(v6(2), FRAGMENT, &[&fragment(ICMPV6, 0, false), &to.rogue("rogue-fragment")])),
        ("rogue-cut", to.ipv6(v6(2), FRAGMENT, &[&first, &options(ICMPV6, mark("rogue-cut")), &to.rogue("cut")[..8]])),
        ("rogue-hidden", to.ipv6(v6(2), FRAGMENT, &[&first, &options(ICMPV6, mark("rogue-hidden"))])),
        ("router", local(134, 12, "router")),
        ("redirect", local(137, 36, "redirect")),
        ("duplicate-other", to.icmpv6(NOBODY, 135, &solicitation(v6(9), mark("duplicate-other")))),
        ("vlan", tagged(0x8100, &to.ipv4("vlan", v4(2)))),
        ("service-vlan", tagged(0x88a8, &to.ipv4("service-vlan", v4(2)))),
        ("two-vlans", tagged(0x88a8, &tagged(0x8100, &to.ipv4("two-vlans", v4(9))))),
        ("old-vlan", tagged(0x9100, &to.ipv4("old-vlan", v4(2)))),
        ("unknown-type", to.ethernet(0x88b5, &mark("unknown-type"))),
        ("spanning-tree", to.ethernet(24, &mark("spanning-tree"))),
    ]
}

/// What a VXLAN device with proxy answers by itself, or swallows.
fn crosses((name, _): &Frame) -> bool {
    let answered = ["solicitation", "duplicate", "duplicate-local", "duplicate-other"];
    // What goes to many goes to nobody: nothing is flooded.
    !name.starts_with("arp") && !answered.contains(name) && !name.starts_with("multicast")
}

/// What the kernel in an endpoint's namespace knows of an address.
fn known(host: &Host, netns: &str, ip: &str) -> String {
    let neighbours = host.ip_json(&["-n", netns, "neigh", "show", ip, "dev", "eth0"]).unwrap();
    neighbours[0]["lladdr"].as_str().unwrap_or_default().to_owned()
}

/// `test2` claims addresses of others; who believes it?
fn believed(lab: &Lab) -> Vec<&'static str> {
    let (one, two) = (&lab.hosts[0], &lab.hosts[1]);
    for (host, netns, to) in
        [(one, "test4", "10.0.0.3"), (one, "test4", "fd00:0:0:1::3"), (two, "test3", "fd00:0:0:1::4")]
    {
        ping(host, netns, to);
    }
    let claim = |to: u8, ip| To::new(to).icmpv6(v6(2), 136, &advertisement(ip, mac(2), mark("claim")));
    let gratuitous = ethernet([0xff; 6], mac(2), ARP, &arp(1, (mac(2), v4(3)), ([0; 6], v4(3))));
    sent(one, (one, 4), &[("gratuitous", gratuitous), ("claim", claim(4, v6(3)))]);
    sent(one, (two, 3), &[("claim", claim(3, v6(4)))]);
    let forged = "02:42:0a:00:00:02";
    let looked = [
        ("arp on its host", known(one, "test4", "10.0.0.3")),
        ("nd on its host", known(one, "test4", "fd00:0:0:1::3")),
        ("nd across", known(two, "test3", "fd00:0:0:1::4")),
    ];
    looked.into_iter().filter(|(_, lladdr)| lladdr == forged).map(|(what, _)| what).collect()
}

fn everybody_pings(lab: &Lab) {
    for (host, netns) in [(0, "test2"), (0, "test4"), (1, "test3")] {
        for number in [1, 2, 3, 4] {
            ping(&lab.hosts[host], netns, &format!("10.0.0.{number}"));
            ping(&lab.hosts[host], netns, &format!("fd00:0:0:1::{number}"));
        }
    }
    // Longer than the MTU: in fragments.
    for to in ["10.0.0.3", "fd00:0:0:1::3"] {
        lab.hosts[0].in_netns("test2", &["ping", "-c1", "-W2", "-s4000", to]).unwrap();
    }
}

#[test]
fn a_container_sends_what_is_its_own_and_nothing_else_on_its_host_and_across() {
    in_private!();
    let (lab, agents) = network(true);
    let (one, two) = (&lab.hosts[0], &lab.hosts[1]);
    everybody_pings(&lab);
    assert_eq!(sent(one, (one, 4), &own(4)), names(&own(4)));
    assert_eq!(sent(one, (one, 4), &forged(4)), Vec::<String>::new());
    let across: Vec<Frame> = own(3).into_iter().filter(crosses).collect();
    assert_eq!(sent(one, (two, 3), &across), names(&across));
    assert_eq!(sent(one, (two, 3), &forged(3)), Vec::<String>::new());
    assert_eq!(believed(&lab), Vec::<&str>::new());
    everybody_pings(&lab);
    // A new address of its own is probed for as ever, and found unique; it cannot be used, since etcd says nothing of it.
    run(one, "ip -n test2 addr add fd00:0:0:1::77/64 dev eth0");
    let unique = || run(one, "ip -n test2 -6 addr show dev eth0 tentative");
    vtepd::lab::wait_for("detection is over", std::time::Duration::from_secs(10), || {
        let left = unique();
        if left.contains("::77") { Err(vtepd::lab::LabError::not_so(left)) } else { Ok(()) }
    })
    .unwrap();
    assert!(!run(one, "ip -n test2 -6 addr show dev eth0 dadfailed").contains("::77"));
    let refused = one.in_netns("test2", &["ping", "-c1", "-W1", "-I", "fd00:0:0:1::77", "fd00:0:0:1::4"]);
    assert!(refused.is_err(), "{refused:?}");
    restart_without_an_operation(agents, || started(&lab));
}

#[test]
fn without_the_guard_all_of_that_arrives_and_is_believed() {
    in_private!();
    let (lab, agents) = network(false);
    let (one, two) = (&lab.hosts[0], &lab.hosts[1]);
    assert_eq!(sent(one, (one, 4), &forged(4)), names(&forged(4)));
    let across: Vec<Frame> = forged(3).into_iter().filter(crosses).collect();
    assert_eq!(sent(one, (two, 3), &across), names(&across));
    assert_eq!(believed(&lab), ["arp on its host", "nd on its host", "nd across"]);
    assert_eq!(run(one, "ip netns exec vtepd-overlay-demo nft list ruleset").trim(), "");
    restart_without_an_operation(agents, || started(&lab));
}
