//! Whoever may write below the prefix writes nonsense, or worse: everything else goes on, and the host is not touched.

use std::{collections::BTreeMap, fs};

use serde_json::{Value, json};
use vtepd::lab::{Agent, Host, Lab, LabError, Write};

use crate::hosts::{
    PREFIX, assert_no_operation, in_private, options, ping, put, record, registered, start, until, words,
};

/// A bad record: its key below the prefix, its value, and the field and the reason for which it is refused.
struct Bad {
    key: String,
    value: String,
    field: &'static str,
    reason: &'static str,
}

fn bad(key: impl Into<String>, value: impl Into<String>, field: &'static str, reason: &'static str) -> Bad {
    Bad { key: key.into(), value: value.into(), field, reason }
}

fn bad_networks() -> Vec<Bad> {
    let subnet = |more: &str| format!(r#"{{"subnets":[{{"cidr":"10.9.0.0/24","vni":900{more}}}]}}"#);
    let vni = |vni: &str| format!(r#"{{"subnets":[{{"cidr":"10.9.0.0/24","vni":{vni}}}]}}"#);
    let cidr = |cidr: &str| format!(r#"{{"subnets":[{{"cidr":"{cidr}","vni":900}}]}}"#);
    vec![
        bad("networks/list", "[]", "", "json"),
        bad("networks/empty", "", "", "json"),
        bad("networks/nested", "[".repeat(60_000), "", "json"),
        bad("networks/nested-object", r#"{"labels":"#.repeat(5_000), "", "json"),
        bad("networks/twice", r#"{"mtu":1400,"mtu":1500,"subnets":[]}"#, "", "json"),
        bad("networks/long", format!(r#"{{"labels":{{"a":"{}"}}}}"#, "x".repeat(70_000)), "", "size"),
        bad("networks/no-subnets", r#"{"mtu":1450}"#, "subnets", "missing_field"),
        bad("networks/vni-zero", vni("0"), "subnets[0].vni", "value"),
        bad("networks/vni-long", vni("16777216"), "subnets[0].vni", "value"),
        bad("networks/vni-negative", vni("-1"), "subnets[0].vni", "value"),
        bad("networks/vni-text", vni(r#""256""#), "subnets[0].vni", "value"),
        bad("networks/vni-huge", vni("1e400"), "", "json"),
        bad("networks/unknown", subnet(r#","gatewy":"10.9.0.1""#), "subnets[0].gatewy", "unknown_field"),
        bad(
            "networks/escape",
            subnet(r#","\u001b[2J\n\u202e":1"#),
            "subnets[0].\\u{1b}[2J\\n\\u{202e}",
            "unknown_field",
        ),
        bad("networks/gateway", subnet(r#","gateway":"10.9.0.255""#), "subnets[0].gateway", "value"),
        bad("networks/multicast", cidr("239.0.0.0/24"), "subnets[0].cidr", "value"),
        bad("networks/everything", cidr("0.0.0.0/0"), "subnets[0].cidr", "value"),
        bad("networks/loopback", cidr("127.0.0.0/8"), "subnets[0].cidr", "value"),
        bad(
            "networks/overlap",
            r#"{"subnets":[{"cidr":"10.9.0.0/16","vni":900},{"cidr":"10.9.7.0/24","vni":901}]}"#,
            "subnets[1].cidr",
            "overlap",
        ),
        bad("networks/..", subnet(""), "", "key"),
        bad("networks/%d", subnet(""), "", "key"),
        bad("networks/a b", subnet(""), "", "key"),
        bad("networks/a\n\u{1b}[2Jb\u{0}", subnet(""), "", "key"),
        bad(format!("networks/{}", "x".repeat(65)), subnet(""), "", "key"),
        bad("networks/a/../../b", subnet(""), "", "key"),
        bad("secrets", "x", "", "key"),
        bad("/networks/c", subnet(""), "", "key"),
        bad("store", r#"{"id":"../../etc"}"#, "id", "value"),
        bad("approvals/good", r#"{"revision":-1}"#, "revision", "value"),
        // A good network stands there already: that version stays in force.
        bad("networks/good", r#"{"subnets":[{"cidr":"10.0.0.0/24","vni":0}]}"#, "subnets[0].vni", "value"),
    ]
}

fn bad_nodes() -> Vec<Bad> {
    let node =
        |name: &str, vtep: &str| bad(format!("nodes/{name}"), format!(r#"{{"vtep":"{vtep}"}}"#), "vtep", "value");
    vec![
        node("multicast", "239.1.1.1"),
        node("loopback", "127.0.0.1"),
        node("unspecified", "0.0.0.0"),
        node("mapped", "::ffff:192.168.205.10"),
        bad("nodes/number", r#"{"vtep":7}"#, "vtep", "value"),
        bad("nodes/nothing", "{}", "vtep", "missing_field"),
        bad("nodes/a/b", "{}", "", "key"),
    ]
}

/// All of the good network, most of the node that has an agent.
fn bad_endpoints() -> Vec<Bad> {
    let endpoint = |name: &str, value: &str, field, reason| {
        bad(format!("endpoints/good/docker-node1/{name}"), format!("{{{value}}}"), field, reason)
    };
    let many: Vec<String> = (0..65).map(|n| format!("\"10.0.0.{}\"", 100 + n)).collect();
    vec![
        endpoint("no-ip", r#""mac":"02:00:00:00:00:01""#, "ip", "missing_field"),
        endpoint("ip-text", r#""ip":"10.0.0.9""#, "ip", "value"),
        endpoint("ip-many", &format!(r#""ip":[{}]"#, many.join(",")), "ip", "value"),
        endpoint("mac-multicast", r#""ip":["10.0.0.9"],"mac":"01:00:5e:00:00:01""#, "mac", "value"),
        endpoint("mac-broadcast", r#""ip":["10.0.0.9"],"mac":"ff:ff:ff:ff:ff:ff""#, "mac", "value"),
        endpoint("mac-zero", r#""ip":["10.0.0.9"],"mac":"00:00:00:00:00:00""#, "mac", "value"),
        endpoint("mac-gateway", r#""ip":["10.0.0.9"],"mac":"02:42:0a:00:00:01""#, "mac", "reserved"),
        endpoint("outside", r#""ip":["10.0.1.9"]"#, "ip[0]", "misfit"),
        endpoint("network", r#""ip":["10.0.0.0"]"#, "ip[0]", "misfit"),
        endpoint("broadcast", r#""ip":["10.0.0.255"]"#, "ip[0]", "misfit"),
        endpoint("gateway", r#""ip":["10.0.0.1"]"#, "ip[0]", "reserved"),
        endpoint("two", r#""ip":["10.0.0.9","10.0.0.10"]"#, "ip[1]", "misfit"),
        endpoint("slash", r#""ip":["10.0.0.9"],"ifname":"a/b""#, "ifname", "value"),
        endpoint("long", r#""ip":["10.0.0.9"],"ifname":"abcdefghijklmnop""#, "ifname", "value"),
        endpoint("percent", r#""ip":["10.0.0.9"],"ifname":"eth%d""#, "ifname", "value"),
        endpoint("up", r#""ip":["10.0.0.9"],"netns":"/run/netns/../../proc/1/ns/net""#, "netns", "value"),
        endpoint("relative", r#""ip":["10.0.0.9"],"netns":"netns/test1""#, "netns", "value"),
        endpoint("line", r#""ip":["10.0.0.9"],"netns":"/run/netns/a\nb""#, "netns", "value"),
        endpoint("host", r#""ip":["10.0.0.9"],"netns":"host""#, "ifname", "missing_field"),
        endpoint("..", r#""ip":["10.0.0.9"]"#, "", "key"),
        bad("endpoints/good/x", "{}", "", "key"),
        // A good endpoint stands there already: that version stays in force.
        bad("endpoints/good/appliance/vm", r#"{"ip":[]}"#, "ip", "value"),
    ]
}

const GOOD: [(&str, &str); 4] = [
    ("networks/good", r#"{"subnets":[{"cidr":"10.0.0.0/24","vni":256}]}"#),
    ("nodes/appliance", r#"{"vtep":"192.168.205.20"}"#),
    ("endpoints/good/docker-node1/a", r#"{"ip":["10.0.0.2"],"netns":"/run/netns/test1"}"#),
    ("endpoints/good/appliance/vm", r#"{"ip":["10.0.0.7"],"mac":"52:54:00:00:00:07"}"#),
];

/// Good as records, and each claims what a record of [`GOOD`], or this node's own, holds.
const GREEDY: [(&str, &str); 5] = [
    ("nodes/thief", r#"{"vtep":"192.168.205.10"}"#),
    ("networks/thief", r#"{"subnets":[{"cidr":"10.7.0.0/24","vni":256}]}"#),
    ("endpoints/good/appliance/same-ip", r#"{"ip":["10.0.0.2"],"mac":"02:00:00:00:00:77"}"#),
    ("endpoints/good/appliance/same-mac", r#"{"ip":["10.0.0.77"],"mac":"02:42:0a:00:00:02"}"#),
    ("endpoints/good/docker-node1/same-interface", r#"{"ip":["10.0.0.78"],"netns":"/run/netns/test1"}"#),
];

/// Where an endpoint's namespace must not be looked for, or is none; all below a root but the first two.
const REFUSED: [&str; 8] = [
    "/etc/passwd",
    "/proc/1/ns/net",
    "/run/netns/link-to-host",
    "/run/netns/link-to-root/proc/1/ns/net",
    "/run/netns/host",
    "/run/netns/directory",
    "/run/netns/pipe",
    "/run/netns/vtepd-good",
];

/// In a network of their own, which exists on this node because of them.
fn blocked() -> Vec<(String, String)> {
    let mut records = vec![
        ("networks/paths".to_owned(), r#"{"subnets":[{"cidr":"10.8.0.0/24","vni":800}]}"#.to_owned()),
        ("networks/secret".to_owned(), r#"{"subnets":[{"cidr":"10.6.0.0/24","vni":600}],"secure":true}"#.to_owned()),
        (
            "endpoints/paths/docker-node1/host".to_owned(),
            r#"{"ip":["10.8.0.99"],"netns":"host","ifname":"lo"}"#.to_owned(),
        ),
    ];
    for (n, path) in REFUSED.iter().enumerate() {
        let value = format!(r#"{{"ip":["10.8.0.{}"],"netns":"{path}"}}"#, n + 2);
        records.push((format!("endpoints/paths/docker-node1/p{n}"), value));
    }
    records
}

/// What must not change: the host's own links, addresses and routes.
fn own(host: &Host) -> [String; 4] {
    ["-d link", "addr", "route", "-6 route"].map(|what| {
        let arguments = ["ip", "-j"].into_iter().chain(what.split(' '));
        host.run(&arguments.collect::<Vec<_>>()).unwrap()
    })
}

fn make_traps(host: &Host) {
    for trap in [
        "ln -s /proc/1/ns/net /run/netns/link-to-host",
        "ln -s / /run/netns/link-to-root",
        "touch /run/netns/host && mount --bind /proc/self/ns/net /run/netns/host",
        "mkdir /run/netns/directory",
        "mkfifo /run/netns/pipe",
    ] {
        host.run(&["sh", "-c", trap]).unwrap();
    }
}

/// Waits until the agent says of these series what is said here, and nothing else.
fn wait_for_counts(agent: &mut Agent, wanted: &BTreeMap<String, f64>) {
    until(agent, "the counts", |agent| {
        let metrics = agent.metrics()?;
        let mut counts = BTreeMap::new();
        for series in metrics.series.iter().filter(|series| series.value != 0.0) {
            let reason = series.labels.get("reason").map(String::as_str).unwrap_or_default();
            let name = series.name.trim_start_matches("vtepd_");
            if ["rejected_records", "conflicts", "blocked_objects"].contains(&name) {
                *counts.entry(format!("{name} {reason}")).or_default() += series.value;
            }
        }
        if counts == *wanted { Ok(()) } else { Err(LabError::not_so(format!("{counts:?}, not {wanted:?}"))) }
    });
}

/// The good network is whole, and nothing of the others' is in it.
fn assert_good(host: &Host, agent: &mut Agent) {
    until(agent, "in sync", |agent| {
        let in_sync = agent.metrics()?.sum("vtepd_in_sync", &[("network", "good")]);
        let ready = agent.http_status("/readyz")?;
        if (in_sync, ready) == (Some(1.0), 200) {
            Ok(())
        } else {
            Err(LabError::not_so(format!("{in_sync:?} {ready}")))
        }
    });
    assert_eq!(agent.http_status("/healthz").unwrap(), 200);
    ping(host, "test1", "10.0.0.1");

    let column =
        |rows: &Value, field: &str| rows.as_array().unwrap().iter().map(|row| row[field].clone()).collect::<Vec<_>>();
    let fdb = host.bridge_json(&["-n", "vtepd-good", "fdb", "show", "dev", "vxlan1"]).unwrap();
    let own: Value = fdb.as_array().unwrap().iter().filter(|row| row["flags"][0] == "self").cloned().collect();
    assert_eq!(column(&own, "mac"), [json!("52:54:00:00:00:07")], "{fdb}");
    assert_eq!(column(&own, "dst"), [json!("192.168.205.20")]);
    let neighbours = host.ip_json(&["-n", "vtepd-good", "neigh", "show", "dev", "vxlan1"]).unwrap();
    assert_eq!(column(&neighbours, "dst"), [json!("10.0.0.7")]);
    assert_eq!(column(&neighbours, "lladdr"), [json!("52:54:00:00:00:07")]);
    let bridge = host.ip_json(&["-n", "vtepd-good", "-4", "addr", "show", "br0"]).unwrap();
    assert_eq!(column(&bridge[0]["addr_info"], "local"), [json!("10.0.0.1")]);
    let ports = host.run(&["ip", "-n", "vtepd-good", "-br", "link", "show", "type", "veth"]).unwrap();
    assert_eq!(ports.lines().count(), 1, "{ports}");
    let inner = host.ip_json(&["-n", "test1", "link"]).unwrap();
    let names: Vec<_> = column(&inner, "ifname").into_iter().filter(|name| *name != json!("eth1")).collect();
    assert_eq!(names, [json!("lo"), json!("eth0")]);
}

/// The record's line as the log has it: one line, with what could not be printed escaped.
fn assert_logged(log: &str, bad: &Bad) {
    let key = format!("{PREFIX}{}", bad.key).into_bytes().escape_ascii().to_string();
    let field = if bad.field.is_empty() { String::new() } else { format!("{}: ", bad.field) };
    let wanted = format!("{key}: {field}{}: ", bad.reason);
    assert!(log.lines().any(|line| line.contains(&wanted)), "the log does not say {wanted:?}");
}

fn assert_printable(log: &[u8]) {
    let log = std::str::from_utf8(log).expect("the log is text");
    let bad = log.chars().find(|c| *c != '\n' && (c.is_control() || ('\u{202a}'..='\u{202e}').contains(c)));
    assert_eq!(bad, None, "a raw control character stands in the log");
}

#[test]
fn hostile_records_are_counted_and_named_and_touch_neither_the_host_nor_the_good_network() {
    in_private!();
    let lab = Lab::with_hosts(1).unwrap();
    let host = &lab.hosts[0];
    host.add_netns("test1").unwrap();
    make_traps(host);
    let before = own(host);
    // Without a way outside a good network changes nothing on the host either.
    let mut options = options(&lab);
    options.arguments = ["--gateway-bridge", "none"].map(str::to_owned).to_vec();
    let mut agent = host.spawn_agent(&options).unwrap();
    registered(&lab, [&mut agent]);
    let put = |(key, value): &(&str, &str)| record(key, value);
    lab.etcd.transaction(&GOOD.iter().map(put).collect::<Vec<_>>()).unwrap();
    assert_good(host, &mut agent);

    let all: Vec<Bad> = [bad_networks(), bad_nodes(), bad_endpoints()].into_iter().flatten().collect();
    let mut writes: Vec<Write> = all.iter().map(|bad| record(&bad.key, &bad.value)).collect();
    writes.extend(GREEDY.iter().map(put));
    writes.extend(blocked().iter().map(|(key, value)| record(key, value)));
    lab.etcd.transaction(&writes).unwrap();

    // What no transaction of etcdctl can say: bytes that are no text, and more than fits in one request.
    let etcdctl = ["etcdctl", "--endpoints", &lab.etcd.url(), "put", "--"].join(" ");
    let raw = format!("printf '{{\"vtep\":\"\\377\\200\"}}' | {etcdctl} {PREFIX}nodes/no-text");
    host.run(&["sh", "-c", &raw]).unwrap();
    host.run(&["sh", "-c", &format!("{etcdctl} \"$(printf '{PREFIX}nodes/\\377\\033')\" '{{}}'")]).unwrap();
    let huge = 8;
    for n in 0..huge {
        let value = format!(r#"{{"labels":{{"a":"{}"}}}}"#, "x".repeat(1 << 20));
        let key = format!("{PREFIX}networks/huge{n}");
        host.run_with_input(&["etcdctl", "--endpoints", &lab.etcd.url(), "put", "--", &key], &value).unwrap();
    }

    let mut wanted: BTreeMap<String, f64> = BTreeMap::new();
    for bad in &all {
        *wanted.entry(format!("rejected_records {}", bad.reason)).or_default() += 1.0;
    }
    *wanted.entry("rejected_records json".into()).or_default() += 1.0;
    *wanted.entry("rejected_records key".into()).or_default() += 1.0;
    *wanted.entry("rejected_records size".into()).or_default() += f64::from(huge);
    wanted.insert("conflicts ".into(), GREEDY.len() as f64);
    wanted.insert("blocked_objects netns_refused".into(), REFUSED.len() as f64);
    wanted.insert("blocked_objects unsupported".into(), 2.0);
    wait_for_counts(&mut agent, &wanted);
    assert_good(host, &mut agent);
    assert_eq!(own(host), before);

    let log = fs::read(agent.log_path()).unwrap();
    assert_printable(&log);
    let log = String::from_utf8(log).unwrap();
    all.iter().for_each(|bad| assert_logged(&log, bad));
    for wanted in [r"nodes/\xff\x1b: key: is not UTF-8", "nodes/no-text: json: ", "networks/huge7: size: "] {
        assert!(log.contains(wanted), "the log does not say {wanted:?}");
    }

    // An agent that begins among them comes to the same, once the two good records that were overwritten are good again.
    lab.etcd.transaction(&GOOD.iter().map(put).collect::<Vec<_>>()).unwrap();
    *wanted.get_mut("rejected_records value").unwrap() -= 2.0;
    wait_for_counts(&mut agent, &wanted);
    agent.kill().unwrap();
    let mut agent = host.spawn_agent(&options).unwrap();
    wait_for_counts(&mut agent, &wanted);
    assert_good(host, &mut agent);
    assert_eq!(own(host), before);

    let good = |key: &str| GOOD.iter().any(|(good, _)| *good == key);
    // To delete the store's identity along with other records is to delete the store: it is made good instead, afterwards.
    let keys = all.iter().map(|bad| bad.key.clone()).filter(|key| !good(key) && key != "store");
    let keys =
        keys.chain(GREEDY.iter().map(|(key, _)| (*key).to_owned())).chain(blocked().into_iter().map(|(key, _)| key));
    let keys = keys.chain((0..huge).map(|n| format!("networks/huge{n}"))).chain(["nodes/no-text".to_owned()]);
    lab.etcd.transaction(&keys.map(|key| Write::Delete(format!("{PREFIX}{key}"))).collect::<Vec<_>>()).unwrap();
    let delete = format!("etcdctl --endpoints {} del -- \"$(printf '{PREFIX}nodes/\\377\\033')\"", lab.etcd.url());
    host.run(&["sh", "-c", &delete]).unwrap();
    lab.etcd.put(&format!("{PREFIX}store"), r#"{"id":"6f1c2a0e-3b1d-4a52-9d0e-0d6f3c1b7a11"}"#).unwrap();
    wait_for_counts(&mut agent, &BTreeMap::new());
    assert_good(host, &mut agent);
    assert_eq!(own(host), before);
    let names = host.run(&["ls", "/run/netns"]).unwrap();
    let left: Vec<&str> = names.lines().collect();
    assert_eq!(left, ["directory", "host", "link-to-host", "link-to-root", "pipe", "test1", "vtepd-good"]);
    assert_printable(&fs::read(agent.log_path()).unwrap());
}

#[test]
fn while_a_bad_records_good_version_is_compacted_away_nothing_of_its_network_is_removed() {
    in_private!();
    let lab = Lab::with_hosts(1).unwrap();
    let host = &lab.hosts[0];
    host.add_netns("test1").unwrap();
    let mut agent = start(&lab, host);
    registered(&lab, [&mut agent]);
    let good: Vec<_> = GOOD.iter().map(|(key, value)| record(key, value)).collect();
    lab.etcd.transaction(&good).unwrap();
    assert_good(host, &mut agent);
    let held = |agent: &mut Agent, wanted: f64| {
        until(agent, "the held removals", |agent| {
            let held = agent.metrics()?.count("vtepd_removals_held", &[]);
            if held == wanted { Ok(()) } else { Err(LabError::not_so(format!("{held} are held, not {wanted}"))) }
        });
    };
    // With the endpoint bad, a row and a neighbour stand on it. With the network bad, all does: the namespace, three links,
    // addresses, routes and chains; the rows of links that nobody knows are not looked at. And on the host, what leads outside from
    // there.
    for (time, bad, objects) in [(1, 3, 2.0), (2, 0, 17.0)] {
        let (key, value) = GOOD[bad];
        agent.kill().unwrap();
        put(&lab, key, "{");
        lab.etcd.compact().unwrap();
        agent = start(&lab, host);
        held(&mut agent, objects);
        let log = fs::read_to_string(agent.log_path()).unwrap();
        assert_eq!(log.matches("nothing of the network is removed").count(), time, "once each");
        put(&lab, key, value);
        assert_good(host, &mut agent);
        held(&mut agent, 0.0);
        assert_no_operation(&mut agent);
    }
    // Where somebody deletes the bad record, what stood on its word goes.
    agent.kill().unwrap();
    put(&lab, GOOD[3].0, "{");
    lab.etcd.compact().unwrap();
    agent = start(&lab, host);
    held(&mut agent, 2.0);
    lab.etcd.delete(&format!("{PREFIX}{}", GOOD[3].0)).unwrap();
    held(&mut agent, 0.0);
    until(&mut agent, "the row goes", |_| {
        let rows = host.run(&words("bridge -n vtepd-good fdb show dev vxlan1"))?;
        if rows.contains("52:54:00:00:00:07") { Err(LabError::not_so(rows)) } else { Ok(()) }
    });
}

#[test]
fn ten_thousand_bad_records_are_counted_and_are_a_few_lines_and_a_number_in_the_log() {
    in_private!();
    let lab = Lab::with_hosts(1).unwrap();
    let host = &lab.hosts[0];
    host.add_netns("test1").unwrap();
    let mut options = options(&lab);
    options.log_level = "info".to_owned();
    let mut agent = host.spawn_agent(&options).unwrap();
    registered(&lab, [&mut agent]);
    let good: Vec<_> = GOOD.iter().map(|(key, value)| record(key, value)).collect();
    lab.etcd.transaction(&good).unwrap();
    assert_good(host, &mut agent);
    for hundred in 0..100 {
        let bad = (0..100).map(|n| record(&format!("endpoints/good/appliance/x{hundred}-{n}"), "{"));
        lab.etcd.transaction(&bad.collect::<Vec<_>>()).unwrap();
    }
    wait_for_counts(&mut agent, &BTreeMap::from([("rejected_records json".to_owned(), 10_000.0)]));
    let said = until(&mut agent, "the number", |agent| {
        let log = fs::read_to_string(agent.log_path()).unwrap();
        let number = log.contains("more records were rejected or left out than was written here");
        if number { Ok(log) } else { Err(LabError::not_so("not said yet")) }
    });
    let lines = said.matches("rejected a record").count();
    assert!((50..5000).contains(&lines), "{lines} lines");
    assert_good(host, &mut agent);
}
