//! nf_tables on the real kernel, each test on a host of its own, with `nft` as witness and as vandal.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test ends where something is not as it should be"
)]

mod support;

use std::{
    io::Write as _,
    net::UdpSocket,
    os::fd::AsFd as _,
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use support::{private_host, run};
use vtepd::{
    engine::FailureKind,
    kernel::nft::{Heard, Monitor, Tables},
    model::{
        Mac,
        nft::{Chain, ChainKind, Change, Expression, Family, Hook, HookPoint, Meta, Policy, Rule, Ruleset, TableId},
    },
};

/// Has `nft` do this, or refuse it.
fn try_nft(script: &str) -> Result<(), String> {
    let mut command = Command::new("nft");
    let piped = command.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = piped.spawn().expect("nft");
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

fn nft(script: &str) {
    try_nft(script).unwrap_or_else(|error| panic!("{script}: {error}"));
}

/// What `nft` shows of a table, line by line, without indentation and braces.
fn shown(table: &TableId) -> Vec<String> {
    let text = run(&format!("nft list table {table}"));
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && *line != "}");
    lines.map(|line| line.trim_end_matches(" {").to_owned()).collect()
}

fn host() -> TableId {
    TableId::new(Family::Inet, "vtepd-test")
}

fn guard() -> TableId {
    TableId::new(Family::Netdev, "vtepd")
}

fn hook(kind: ChainKind, point: HookPoint, priority: i32) -> Hook {
    Hook { kind, point, priority, policy: Policy::Accept, device: None }
}

fn ingress(device: &str, policy: Policy) -> Hook {
    let device = Some(device.to_owned());
    Hook { kind: ChainKind::Filter, point: HookPoint::Ingress, priority: -100, policy, device }
}

fn mac(text: &str) -> Mac {
    text.parse().unwrap()
}

/// What a host's own table may hold.
fn host_ruleset() -> Ruleset {
    let subnet = "172.18.0.0/16".parse().unwrap();
    let guard = |rule: Rule| rule.iifname("vtepd-gw").udp_dport(4789).counter().drop();
    let back = Rule::new().iifname("vtepd-gw").oifname("vtepd-gw").drop();
    Ruleset::new(host())
        .with(
            "postrouting",
            Chain::new(
                hook(ChainKind::Nat, HookPoint::Postrouting, 100),
                vec![Rule::new().inet_ipv4().saddr_in(subnet).oifname_not("vtepd-gw").masquerade()],
            ),
        )
        .with("input", Chain::new(hook(ChainKind::Filter, HookPoint::Input, -10), vec![guard(Rule::new())]))
        .with("forward", Chain::new(hook(ChainKind::Filter, HookPoint::Forward, -10), vec![guard(Rule::new()), back]))
}

/// What an overlay's spoof guard may hold, for one device.
fn guard_chain(device: &str) -> Chain {
    let mac = mac("02:42:0a:00:00:02");
    Chain::new(
        ingress(device, Policy::Accept),
        vec![
            Rule::new().ether_saddr_not(mac).drop(),
            Rule::new().arp_sender_mac(mac).arp_sender_ip("10.0.0.2".parse().unwrap()).accept(),
            Rule::new().saddr("10.0.0.2".parse().unwrap()).accept(),
            Rule::new().saddr_in("10.1.2.0/24".parse().unwrap()).accept(),
            Rule::new().icmpv6_type(136).nd_target("fd00::2".parse().unwrap()).accept(),
            Rule::new().saddr("fd00::2".parse().unwrap()).accept(),
            Rule::new().drop(),
        ],
    )
}

fn guard_ruleset() -> Ruleset {
    Ruleset::new(guard()).with("veth0", guard_chain("veth0"))
}

fn put(table: &TableId, name: &str, chain: Chain) -> Change {
    Change::PutChain { table: table.clone(), name: name.to_owned(), chain }
}

fn delete(table: &TableId, name: &str) -> Change {
    Change::DeleteChain { table: table.clone(), name: name.to_owned() }
}

/// Makes `wanted` stand by the changes that what stands asks for; gives those.
fn reconcile(tables: &mut Tables, wanted: &Ruleset) -> Vec<Change> {
    let standing = tables.read(&wanted.table).unwrap();
    let changes = wanted.changes_from(standing.as_ref());
    tables.apply(&changes).unwrap();
    assert_eq!(tables.read(&wanted.table).unwrap().as_ref(), Some(wanted));
    changes
}

#[test]
fn a_hosts_table_is_what_nft_shows_and_is_read_back_as_it_was_written() {
    private_host();
    let mut tables = Tables::open().unwrap();
    assert_eq!(tables.read(&host()).unwrap(), None);
    assert_eq!(reconcile(&mut tables, &host_ruleset()), [Change::ReplaceTable(host_ruleset())]);
    assert_eq!(reconcile(&mut tables, &host_ruleset()), []);
    assert_eq!(
        shown(&host()),
        [
            "table inet vtepd-test",
            "chain forward",
            "type filter hook forward priority filter - 10; policy accept;",
            "iifname \"vtepd-gw\" udp dport 4789 counter packets 0 bytes 0 drop",
            "iifname \"vtepd-gw\" oifname \"vtepd-gw\" drop",
            "chain input",
            "type filter hook input priority filter - 10; policy accept;",
            "iifname \"vtepd-gw\" udp dport 4789 counter packets 0 bytes 0 drop",
            "chain postrouting",
            "type nat hook postrouting priority srcnat; policy accept;",
            "ip saddr 172.18.0.0/16 oifname != \"vtepd-gw\" masquerade",
        ]
    );
}

#[test]
fn a_spoof_guard_is_what_nft_shows_and_is_read_back_as_it_was_written() {
    private_host();
    run("ip link add veth0 type veth peer name veth1");
    let mut tables = Tables::open().unwrap();
    reconcile(&mut tables, &guard_ruleset());
    let raw = |line: String| line.replace("icmpv6 taddr fd00::2", "@th,64,128 0xfd000000000000000000000000000002");
    assert_eq!(
        shown(&guard()).into_iter().map(raw).collect::<Vec<_>>(),
        [
            "table netdev vtepd",
            "chain veth0",
            "type filter hook ingress device \"veth0\" priority -100; policy accept;",
            "ether saddr != 02:42:0a:00:00:02 drop",
            "arp htype 1 arp ptype ip arp hlen 6 arp plen 4 arp saddr ether 02:42:0a:00:00:02 arp saddr ip 10.0.0.2 accept",
            "ip saddr 10.0.0.2 accept",
            "ip saddr 10.1.2.0/24 accept",
            // Newer versions of nft know the target by name.
            "icmpv6 type nd-neighbor-advert @th,64,128 0xfd000000000000000000000000000002 accept",
            "ip6 saddr fd00::2 accept",
            "drop",
        ]
    );
}

#[test]
fn every_expression_and_every_hook_is_read_back_as_it_was_written() {
    private_host();
    let mut tables = Tables::open().unwrap();
    let nfproto = Rule::of(vec![
        Expression::Meta(Meta::NfProto),
        Expression::Compare(vtepd::model::nft::Comparison::Equal, vec![10]),
    ]);
    let rules = vec![
        Rule::new(),
        nfproto.leave(),
        Rule::new().l4proto(6).udp_sport(53).saddr_not_in("fd00::/17".parse().unwrap()).drop(),
        Rule::new().daddr_not_in("10.0.0.0/7".parse().unwrap()).daddr("10.0.0.1".parse().unwrap()).counter(),
        Rule::new().oifname("a-name-of-15-by").iifname("a-name-that-is-too-long").accept(),
    ];
    for (family, points) in [
        (Family::Inet, &[HookPoint::Prerouting, HookPoint::Input, HookPoint::Forward][..]),
        (Family::Ip, &[HookPoint::Output, HookPoint::Postrouting]),
        (Family::Ip6, &[HookPoint::Output, HookPoint::Postrouting]),
    ] {
        let mut wanted =
            Ruleset::new(TableId::new(family, "all")).with("none", Chain { rules: rules.clone(), ..Chain::default() });
        for point in points {
            for (kind, priority) in [(ChainKind::Filter, i32::MIN), (ChainKind::Nat, 7), (ChainKind::Route, -5)] {
                let possible = match kind {
                    ChainKind::Filter => true,
                    ChainKind::Nat => *point != HookPoint::Forward,
                    ChainKind::Route => *point == HookPoint::Output,
                };
                if possible {
                    let hook = Hook { policy: Policy::Drop, ..hook(kind, *point, priority) };
                    let hook = if kind == ChainKind::Filter { hook } else { Hook { policy: Policy::Accept, ..hook } };
                    wanted = wanted.with(format!("{point:?}-{kind:?}"), Chain::new(hook, rules.clone()));
                }
            }
        }
        reconcile(&mut tables, &wanted);
    }
    let egress = Hook { point: HookPoint::Egress, ..ingress("veth0", Policy::Drop) };
    run("ip link add veth0 type veth peer name veth1");
    reconcile(&mut tables, &Ruleset::new(guard()).with("egress", Chain::new(egress, rules)));
}

/// What an operator may do to our table by hand.
const VANDALISM: [&str; 19] = [
    "delete rule inet vtepd-test forward handle RULE",
    "add rule inet vtepd-test forward accept",
    "insert rule inet vtepd-test input accept",
    "replace rule inet vtepd-test forward handle RULE iifname \"vtepd-gw\" udp dport 4790 counter drop comment \"vtepd\"",
    "replace rule inet vtepd-test forward handle RULE iifname \"vtepd-gw\" udp dport { 4789, 4790 } counter drop",
    "replace rule inet vtepd-test forward handle RULE iifname \"vtepd-gw\" udp dport 4789-4790 counter drop",
    "replace rule inet vtepd-test forward handle RULE iifname \"vtepd-gw\" udp dport 4789 limit rate 1/second counter drop",
    "replace rule inet vtepd-test forward handle RULE iifname \"vtepd-gw\" udp dport & 0xff != 4 counter reject",
    "flush chain inet vtepd-test postrouting",
    "add rule inet vtepd-test postrouting masquerade random",
    "flush table inet vtepd-test",
    "delete table inet vtepd-test",
    "flush chain inet vtepd-test input; delete chain inet vtepd-test input",
    "add chain inet vtepd-test input { policy drop; }",
    "flush chain inet vtepd-test input; delete chain inet vtepd-test input; add chain inet vtepd-test input { type filter hook input priority 5; }",
    "add chain inet vtepd-test stranger; add rule inet vtepd-test forward jump stranger",
    "add chain inet vtepd-test stranger { type filter hook output priority 0; }",
    "add set inet vtepd-test strangers { type ipv4_addr; }",
    "add table inet vtepd-test { flags dormant; }",
];

#[test]
fn whatever_is_done_to_a_table_by_hand_is_read_as_a_difference_and_repaired() {
    private_host();
    let mut tables = Tables::open().unwrap();
    reconcile(&mut tables, &host_ruleset());
    let listed = shown(&host());
    for vandalism in VANDALISM {
        nft(&vandalism
            .replace("RULE", &first_rule("forward"))
            .replace("; delete", "\ndelete")
            .replace("; add", "\nadd"));
        assert_ne!(tables.read(&host()).unwrap(), Some(host_ruleset()), "{vandalism}");
        let changes = reconcile(&mut tables, &host_ruleset());
        assert!(!changes.is_empty(), "{vandalism}");
        assert_eq!(without_chain_order(&shown(&host())), without_chain_order(&listed), "{vandalism}");
    }
}

/// The number by which `nft` calls a chain's first rule.
fn first_rule(chain: &str) -> String {
    let text = run(&format!("nft -a list chain {} {chain}", host()));
    let mut rules = text.lines().skip_while(|line| !line.trim_start().starts_with("type ")).skip(1);
    let rule = rules.find(|line| line.contains("# handle")).unwrap();
    rule.rsplit(' ').next().unwrap().to_owned()
}

/// Chains are listed in the order of their making.
fn without_chain_order(lines: &[String]) -> Vec<String> {
    let mut chains: Vec<String> = Vec::new();
    for line in lines {
        match chains.last_mut() {
            Some(last) if !line.starts_with("chain ") => *last += line,
            _ => chains.push(line.clone()),
        }
    }
    chains.sort();
    chains
}

#[test]
fn a_repair_touches_only_the_chain_that_differs() {
    private_host();
    let mut tables = Tables::open().unwrap();
    reconcile(&mut tables, &host_ruleset());
    nft("flush chain inet vtepd-test input");
    let before = first_rule("forward");
    let changes = reconcile(&mut tables, &host_ruleset());
    assert_eq!(changes, [put(&host(), "input", host_ruleset().chains["input"].clone())]);
    assert_eq!(first_rule("forward"), before);
}

#[test]
fn a_comment_and_what_was_counted_are_no_difference() {
    private_host();
    let mut tables = Tables::open().unwrap();
    reconcile(&mut tables, &host_ruleset());
    let rule = first_rule("forward");
    nft(&format!(
        "replace rule inet vtepd-test forward handle {rule} iifname \"vtepd-gw\" udp dport 4789 counter packets 7 bytes 8 drop comment \"seen\""
    ));
    assert_eq!(reconcile(&mut tables, &host_ruleset()), []);
}

#[test]
fn a_batch_that_fails_changes_nothing_and_says_where_it_failed() {
    private_host();
    let mut tables = Tables::open().unwrap();
    reconcile(&mut tables, &host_ruleset());
    let missing = TableId::new(Family::Inet, "missing");
    let drop = || Chain { rules: vec![Rule::new().drop()], ..Chain::default() };
    // A load of no bytes is one that the kernel refuses.
    let load = Expression::Payload { base: vtepd::model::nft::Base::Network, offset: 0, length: 0 };
    let refused = Chain { rules: vec![Rule::new().drop(), Rule::of(vec![load])], ..Chain::default() };
    let route = Chain::new(hook(ChainKind::Route, HookPoint::Input, 0), Vec::new());
    let elsewhere = Chain::new(hook(ChainKind::Filter, HookPoint::Input, 5), Vec::new());
    let foreign = Chain { rules: vec![Rule::of(vec![Expression::Foreign("limit".to_owned())])], ..Chain::default() };
    let no_hook = Chain::new(hook(ChainKind::Filter, HookPoint::Egress, 0), Vec::new());
    for (bad, kind, words) in [
        (
            delete(&host(), "missing"),
            FailureKind::NotFound,
            "ENOENT (No such file or directory): chain missing of table inet vtepd-test",
        ),
        (put(&missing, "a", drop()), FailureKind::NotFound, "chain a of table inet missing"),
        (put(&host(), "new", refused), FailureKind::Refused, "rule 2 of chain new of table inet vtepd-test"),
        (put(&host(), "new", route), FailureKind::Refused, "chain new of"),
        (put(&host(), "input", elsewhere), FailureKind::Refused, "chain input of"),
        (put(&host(), "new", foreign), FailureKind::Refused, "rule 1 of chain new: limit cannot be written"),
        (put(&host(), "new", no_hook), FailureKind::Refused, "no hook Egress"),
    ] {
        let changes = [
            Change::EnsureTable(TableId::new(Family::Ip, "made")),
            delete(&host(), "forward"),
            bad,
            delete(&host(), "input"),
        ];
        let error = tables.apply(&changes).unwrap_err();
        assert_eq!((error.change, error.failure.kind), (Some(2), kind), "{error}");
        assert!(error.failure.message.contains(words), "{error}");
        assert_eq!(tables.read(&host()).unwrap(), Some(host_ruleset()), "{error}");
        assert_eq!(tables.read(&TableId::new(Family::Ip, "made")).unwrap(), None);
    }
    // And the socket goes on as before.
    tables.apply(&[Change::EnsureTable(TableId::new(Family::Ip, "made"))]).unwrap();
    assert_eq!(reconcile(&mut tables, &host_ruleset()), []);
}

#[test]
fn a_table_is_deleted_whether_it_stands_or_not_and_others_are_left_alone() {
    private_host();
    nft(
        "table inet other { chain a { type filter hook input priority 0; drop; }; }\ntable ip vtepd-test { chain a { accept; }; }",
    );
    let mut tables = Tables::open().unwrap();
    tables.apply(&[Change::DeleteTable(host())]).unwrap();
    reconcile(&mut tables, &host_ruleset());
    tables.apply(&[Change::DeleteTable(host()), Change::DeleteTable(host())]).unwrap();
    assert_eq!(tables.read(&host()).unwrap(), None);
    assert_eq!(run("nft list tables"), "table inet other\ntable ip vtepd-test\n");
    assert_eq!(shown(&TableId::new(Family::Inet, "other")).len(), 4);
}

#[test]
fn a_table_of_a_hundred_devices_is_one_transaction() {
    private_host();
    let mut tables = Tables::open().unwrap();
    let mut wanted = Ruleset::new(guard());
    for n in 0..100 {
        wanted = wanted.with(format!("veth{n}"), guard_chain(&format!("veth{n}")));
    }
    reconcile(&mut tables, &wanted);
}

/// Waits until something is heard.
fn hear(monitor: &Monitor, own: u32) -> Heard {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        let heard = monitor.drain(own);
        if heard != Heard::default() {
            return heard;
        }
        assert!(Instant::now() < end, "nothing was heard");
        poll(&mut [PollFd::new(monitor.fd(), PollFlags::POLLIN)], PollTimeout::from(100_u8)).unwrap();
    }
}

#[test]
fn every_change_by_hand_is_heard_and_our_own_are_not() {
    private_host();
    let mut tables = Tables::open().unwrap();
    let monitor = Monitor::open().unwrap();
    for vandalism in VANDALISM {
        reconcile(&mut tables, &host_ruleset());
        assert_eq!(monitor.drain(tables.port()), Heard::default());
        nft(&vandalism
            .replace("RULE", &first_rule("forward"))
            .replace("; delete", "\ndelete")
            .replace("; add", "\nadd"));
        assert!(hear(&monitor, tables.port()).tables.contains(&host()), "{vandalism}");
    }
    nft("add table ip other");
    assert_eq!(hear(&monitor, tables.port()).tables, [TableId::new(Family::Ip, "other")].into());
    tables.apply(&[Change::DeleteTable(host())]).unwrap();
    assert_eq!(hear(&monitor, 0).tables, [host()].into());
}

#[test]
fn an_overrun_is_told() {
    private_host();
    let mut tables = Tables::open().unwrap();
    let monitor = Monitor::open().unwrap();
    let small = nix::sys::socket::setsockopt(&monitor.fd(), nix::sys::socket::sockopt::RcvBufForce, &4096);
    small.or_else(|_| nix::sys::socket::setsockopt(&monitor.fd(), nix::sys::socket::sockopt::RcvBuf, &4096)).unwrap();
    for _ in 0..20 {
        tables.apply(&[Change::ReplaceTable(host_ruleset())]).unwrap();
    }
    assert!(hear(&monitor, tables.port()).overrun);
    assert_eq!(monitor.drain(0), Heard::default());
    tables.apply(&[Change::DeleteTable(host())]).unwrap();
    assert_eq!(hear(&monitor, 0), Heard { tables: [host()].into(), overrun: false });
}

/// A veth pair on this host: what is sent to the address goes out by `veth1` and comes in by `veth0`.
fn sender() -> UdpSocket {
    run("sysctl -q -w net.ipv6.conf.all.disable_ipv6=1");
    run("ip link add veth0 address 02:42:0a:00:00:01 type veth peer name veth1 address 02:42:0a:00:00:02");
    run("ip link set veth0 up");
    run("ip link set veth1 up");
    run("ip addr add 10.0.0.2/24 dev veth1");
    run("ip neigh replace 10.0.0.9 lladdr 02:42:0a:00:00:01 dev veth1");
    let socket = UdpSocket::bind("10.0.0.2:0").unwrap();
    socket.connect("10.0.0.9:9").unwrap();
    socket
}

/// How many packets a rule of a chain has counted, by what the rule says.
fn counted(table: &TableId, rule: &str) -> u64 {
    let lines = shown(table);
    let line = lines.iter().find(|line| line.starts_with(rule)).unwrap_or_else(|| panic!("{rule}: {lines:?}"));
    line.split("packets ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap()
}

#[test]
fn a_chain_waits_for_its_device_by_name_and_outlives_it() {
    private_host();
    let mut tables = Tables::open().unwrap();
    let monitor = Monitor::open().unwrap();
    let rule = || Rule::new().udp_dport(9).counter().drop();
    let wanted = Ruleset::new(guard()).with("c", Chain::new(ingress("veth0", Policy::Accept), vec![rule()]));
    tables.apply(&[Change::ReplaceTable(wanted.clone())]).unwrap();
    let shot = |socket: &UdpSocket| {
        socket.send(b"x").unwrap();
        counted(&guard(), "udp dport 9 counter")
    };
    let socket = sender();
    assert_eq!(shot(&socket), 1, "made before its device");
    run("ip link set veth0 name away");
    assert_eq!(shot(&socket), 1, "renamed");
    run("ip link set away name veth0");
    assert_eq!(shot(&socket), 2, "renamed back");
    run("ip link del veth0");
    assert_eq!(tables.read(&guard()).unwrap(), Some(wanted.clone()), "deleted");
    let socket = sender();
    assert_eq!(shot(&socket), 3, "made again");
    assert_eq!(monitor.drain(tables.port()), Heard::default(), "nobody tells of devices");
    assert_eq!(tables.read(&guard()).unwrap(), Some(wanted));
}

#[test]
fn a_second_device_of_a_chain_is_a_difference() {
    private_host();
    run("ip link add veth0 type veth peer name veth1");
    let mut tables = Tables::open().unwrap();
    let wanted = Ruleset::new(guard()).with("c", Chain::new(ingress("veth0", Policy::Accept), Vec::new()));
    reconcile(&mut tables, &wanted);
    let other = Chain::new(ingress("veth1", Policy::Accept), Vec::new());
    tables.apply(&[put(&guard(), "c", other)]).unwrap();
    assert_ne!(tables.read(&guard()).unwrap(), Some(wanted.clone()));
    let changes = reconcile(&mut tables, &wanted);
    assert_eq!(changes, [delete(&guard(), "c"), put(&guard(), "c", wanted.chains["c"].clone())]);
}

#[test]
fn nothing_slips_through_while_a_table_or_a_chain_is_replaced() {
    private_host();
    let socket = sender();
    // Behind the guard, a witness of what it let through.
    nft(
        "table netdev witness { chain c { type filter hook ingress device \"veth0\" priority 100; udp dport 9 counter drop; }; }",
    );
    let mut tables = Tables::open().unwrap();
    let chain = || Chain::new(ingress("veth0", Policy::Accept), vec![Rule::new().udp_dport(9).counter().drop()]);
    let wanted = Ruleset::new(guard()).with("c", chain());
    tables.apply(&[Change::ReplaceTable(wanted.clone())]).unwrap();
    let done = AtomicBool::new(false);
    let sent = std::thread::scope(|scope| {
        let flood = scope.spawn(|| {
            let mut sent = 0_u64;
            while !done.load(Ordering::Relaxed) {
                sent += u64::from(socket.send(b"x").is_ok());
            }
            sent
        });
        let ways = [
            vec![Change::ReplaceTable(wanted.clone())],
            vec![put(&guard(), "c", chain())],
            vec![delete(&guard(), "c"), put(&guard(), "c", chain())],
        ];
        let results: Vec<_> = (0..100).flat_map(|_| ways.each_ref().map(|way| tables.apply(way))).collect();
        done.store(true, Ordering::Relaxed);
        results.into_iter().for_each(|result| result.unwrap());
        flood.join().unwrap()
    });
    assert!(sent > 1000, "{sent}");
    assert_eq!(counted(&TableId::new(Family::Netdev, "witness"), "udp dport 9 counter"), 0, "of {sent}");
}

#[test]
fn a_table_that_others_change_all_the_time_is_read_whole_or_reported_torn() {
    private_host();
    let mut tables = Tables::open().unwrap();
    let (one, other) = (Policy::Accept, Policy::Drop);
    let of = |policy| {
        let chain =
            || Chain::new(ingress("veth0", policy), vec![Rule::new().drop(); if policy == one { 1 } else { 3 }]);
        (0..40).fold(Ruleset::new(guard()), |table, n| table.with(format!("c{n}"), chain()))
    };
    tables.apply(&[Change::ReplaceTable(of(one))]).unwrap();
    let netns = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
    let done = AtomicBool::new(false);
    let readings: Vec<_> = std::thread::scope(|scope| {
        scope.spawn(|| {
            nix::sched::setns(netns.as_fd(), nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            let mut tables = Tables::open().unwrap();
            while !done.load(Ordering::Relaxed) {
                for policy in [other, one] {
                    tables.apply(&[Change::ReplaceTable(of(policy))]).unwrap();
                    std::thread::sleep(Duration::from_micros(500));
                }
            }
        });
        let readings = (0..100).map(|_| tables.read(&guard())).collect();
        done.store(true, Ordering::Relaxed);
        readings
    });
    for reading in readings {
        match reading {
            Ok(found) => assert!(found == Some(of(one)) || found == Some(of(other)), "half of each: {found:?}"),
            Err(failure) => assert_eq!(failure.kind, FailureKind::Torn, "{failure:?}"),
        }
    }
    assert_eq!(tables.read(&guard()).unwrap(), Some(of(one)));
}
