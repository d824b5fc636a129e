//! Docker's layout from end to end: its records, as they stood in etcd, on two hosts in private namespaces.

use std::{collections::BTreeMap, thread::sleep, time::Duration};

use vtepd::lab::{Agent, Host, Lab, LabError};

use crate::hosts::{
    self, assert_no_operation, count, gone, in_private, options, ping, record, restart_without_an_operation, run,
    until, words,
};

const DEMO: &str = include_str!("../fixtures/docker/demo.jsonl");
const PREFIX: &str = "/docker/network/v1.0";
const NID: &str = "d6c35f4f5a6969dd5907c7049e56ae746d1ba947f478129cfbada23e558082eb";
const EIDS: [&str; 2] = [
    "b67ef09480c92fb5e8cbd927241474816f11b3bf858d2e32b1397588c77447db",
    "fc8bd3d7e7cd9e8ad07463566bcb877783eb1adc5b019346f92a72e04837bd3f",
];
pub(crate) const SANDBOXES: [&str; 2] = ["dd4530e2782c", "8bbc689974f1"];
pub(crate) const OVERLAY: &str = "vtepd-d6c35f4f5a";

/// Every document of the demo, in the order in which it was listed.
pub(crate) fn documents() -> Vec<(String, String)> {
    let line = |line: &str| {
        let line: BTreeMap<String, String> = serde_json::from_str(line).unwrap();
        (line["key"].clone(), line["value"].clone())
    };
    DEMO.lines().map(line).collect()
}

fn document(key: &str) -> String {
    documents().into_iter().find(|(whole, _)| whole.ends_with(key)).unwrap().1
}

fn put(lab: &Lab, key: &str, value: &str) {
    lab.etcd.put(&format!("{PREFIX}/{key}"), value).unwrap();
}

/// A container's namespace, bound where Docker binds it.
pub(crate) fn add_sandbox(host: &Host, name: &str) {
    host.add_netns(name).unwrap();
    let (from, to) = (format!("/run/netns/{name}"), format!("/run/docker/netns/{name}"));
    host.run(&["mkdir", "-p", "/run/docker/netns"]).unwrap();
    host.run(&["touch", &to]).unwrap();
    host.run(&["mount", "--bind", &from, &to]).unwrap();
}

fn spawn(lab: &Lab) -> Vec<Agent> {
    let mut options = options(lab);
    options.arguments = words(&format!("--docker-prefix {PREFIX}/")).into_iter().map(str::to_owned).collect();
    lab.hosts.iter().map(|host| host.spawn_agent(&options).unwrap()).collect()
}

/// Two hosts with a sandbox each and an agent each.
fn sandboxes() -> (Lab, Vec<Agent>) {
    let lab = Lab::new().unwrap();
    for (host, sandbox) in lab.hosts.iter().zip(SANDBOXES) {
        add_sandbox(host, sandbox);
    }
    let agents = spawn(&lab);
    (lab, agents)
}

/// An agent on every host, with all applied that the store has.
fn started(lab: &Lab) -> Vec<Agent> {
    let mut agents = spawn(lab);
    applied(lab, &mut agents);
    agents
}

fn demo() -> (Lab, Vec<Agent>) {
    let (lab, mut agents) = sandboxes();
    for (key, value) in documents() {
        lab.etcd.put(&key, &value).unwrap();
    }
    applied(&lab, &mut agents);
    (lab, agents)
}

/// Waits until the agents have applied all that the store has below either prefix.
pub(crate) fn applied(lab: &Lab, agents: &mut [Agent]) {
    // A key that means nothing: once it is heard, all before it is.
    let marker = lab.etcd.put(&format!("{PREFIX}/idm/heard"), "x").unwrap();
    hosts::applied_at(marker, &mut *agents);
    hosts::applied(lab, agents);
}

/// FDB rows and neighbours of the VXLAN device: MAC and VTEP, address and MAC.
fn rows(host: &Host) -> (Vec<String>, Vec<String>) {
    let text = |row: &serde_json::Value, field: &str| row[field].as_str().unwrap_or_default().to_owned();
    let fdb = host.bridge_json(&words(&format!("-n {OVERLAY} fdb show dev vxlan1"))).unwrap();
    let own = fdb.as_array().unwrap().iter().filter(|row| row["flags"][0] == "self");
    let fdb = own.map(|row| format!("{} {} {}", text(row, "mac"), text(row, "dst"), text(row, "state"))).collect();
    let neighbours = host.ip_json(&words(&format!("-n {OVERLAY} neigh show dev vxlan1"))).unwrap();
    let neighbours = neighbours.as_array().unwrap().iter();
    let neighbours = neighbours.map(|row| format!("{} {} {}", text(row, "dst"), text(row, "lladdr"), row["state"][0]));
    (fdb, neighbours.collect())
}

#[test]
fn every_document_of_the_demo_is_put_as_it_stands_and_the_datapath_is_dockers() {
    in_private!();
    let (lab, mut agents) = demo();
    for (i, (own, remote)) in [(2, 3), (3, 2)].into_iter().enumerate() {
        let (host, sandbox) = (&lab.hosts[i], SANDBOXES[i]);
        let links = host.ip_json(&words(&format!("-d -n {OVERLAY} link"))).unwrap();
        let link = |name: &str| links.as_array().unwrap().iter().find(|l| l["ifname"] == name).unwrap();
        let vxlan = &link("vxlan1")["linkinfo"]["info_data"];
        assert_eq!((&vxlan["id"], &vxlan["port"]), (&256.into(), &4789.into()));
        assert_eq!(vxlan["local"], host.address().to_string());
        assert_eq!((&link("vxlan1")["mtu"], &link("br0")["mtu"]), (&1450.into(), &1450.into()));
        let gateway = &host.ip_json(&words(&format!("-n {OVERLAY} addr show br0"))).unwrap()[0]["addr_info"];
        assert_eq!((gateway.as_array().unwrap().len(), &gateway[0]["local"]), (1, &"10.0.0.1".into()));
        assert_eq!(gateway[0]["prefixlen"], 24);
        let eth0 = &host.ip_json(&["-n", sandbox, "addr", "show", "eth0"]).unwrap()[0];
        assert_eq!((&eth0["address"], &eth0["mtu"]), (&format!("02:42:0a:00:00:0{own}").into(), &1450.into()));
        assert_eq!(eth0["addr_info"][0]["local"], format!("10.0.0.{own}"));
        assert_eq!(eth0["addr_info"][0]["prefixlen"], 24);
        let vtep = lab.hosts[1 - i].address();
        let expected = (
            vec![format!("02:42:0a:00:00:0{remote} {vtep} permanent")],
            vec![format!("10.0.0.{remote} 02:42:0a:00:00:0{remote} \"PERMANENT\"")],
        );
        assert_eq!(rows(host), expected);
        ping(host, sandbox, &format!("10.0.0.{remote}"));
        ping(host, sandbox, "10.0.0.1");
    }
    for agent in &mut agents {
        assert_eq!(count(agent, "vtepd_in_sync", &[("network", "overlay-demo")]), 1.0);
        assert_eq!(count(agent, "vtepd_rejected_records", &[]), 0.0);
        assert_eq!(count(agent, "vtepd_pending_records", &[]), 0.0);
        assert_eq!(count(agent, "vtepd_drift_total", &[]), 0.0);
    }
    // Repair and a restart are as with any other network.
    let host = &lab.hosts[0];
    run(host, &format!("bridge -n {OVERLAY} fdb del 02:42:0a:00:00:03 dev vxlan1"));
    until(&mut agents[0], "the repair", |agent| {
        let repaired = agent.metrics()?.count("vtepd_repairs_total", &[("result", "ok")]);
        if repaired >= 1.0 { Ok(()) } else { Err(LabError::not_so("not repaired")) }
    });
    ping(host, SANDBOXES[0], "10.0.0.3");
    restart_without_an_operation(agents, || started(&lab));
}

#[test]
fn an_endpoint_is_deleted_and_one_moves() {
    in_private!();
    let (lab, mut agents) = demo();
    // A third container, on the second host, moves to the first one in one put.
    let third = "3".repeat(64);
    let moved = |host: usize, sandbox: &str| {
        let value = document(EIDS[1]).replace("10.0.0.3", "10.0.0.4").replace("00:03", "00:04");
        let locators = ["192.168.205.10", "192.168.205.11"];
        let value = value.replace("192.168.205.11", locators[host]).replace(SANDBOXES[1], sandbox);
        put(&lab, &format!("endpoint/{NID}/{third}"), &value);
    };
    add_sandbox(&lab.hosts[1], "aaaaaaaaaaaa");
    moved(1, "aaaaaaaaaaaa");
    applied(&lab, &mut agents);
    ping(&lab.hosts[0], SANDBOXES[0], "10.0.0.4");
    add_sandbox(&lab.hosts[0], "bbbbbbbbbbbb");
    moved(0, "bbbbbbbbbbbb");
    applied(&lab, &mut agents);
    ping(&lab.hosts[1], SANDBOXES[1], "10.0.0.4");
    assert_eq!(rows(&lab.hosts[0]).0.len(), 1);
    assert_eq!(rows(&lab.hosts[1]).0.len(), 2);
    assert!(!run(&lab.hosts[1], "ip -n aaaaaaaaaaaa -br link").contains("eth0"));
    for eid in [EIDS[0], &third] {
        lab.etcd.delete(&format!("{PREFIX}/endpoint/{NID}/{eid}")).unwrap();
    }
    applied(&lab, &mut agents);
    assert_eq!(rows(&lab.hosts[1]), (Vec::new(), Vec::new()));
    gone(&lab.hosts[0], OVERLAY);
    restart_without_an_operation(agents, || started(&lab));
}

#[test]
fn only_overlay_networks_that_are_complete_and_in_clear_are_made() {
    in_private!();
    let (lab, mut agents) = sandboxes();
    let network = format!("network/{NID}");
    let overlay = format!("overlay/network/{NID}");
    for (key, value) in documents().into_iter().filter(|(key, _)| !key.ends_with(&overlay)) {
        lab.etcd.put(&key, &value).unwrap();
    }
    applied(&lab, &mut agents);
    let made = |lab: &Lab| run(&lab.hosts[0], "ip netns").contains(OVERLAY);
    assert!(!made(&lab));
    assert_eq!(count(&mut agents[0], "vtepd_pending_records", &[]), 3.0, "the network and its endpoints");
    put(&lab, &overlay, &document(&overlay));
    applied(&lab, &mut agents);
    ping(&lab.hosts[0], SANDBOXES[0], "10.0.0.3");
    assert_eq!(count(&mut agents[0], "vtepd_pending_records", &[]), 0.0);

    let unmade = |lab: &Lab, agents: &mut [Agent]| {
        applied(lab, agents);
        gone(&lab.hosts[0], OVERLAY);
    };
    put(&lab, &overlay, &document(&overlay).replace(r#""secure":false"#, r#""secure":true"#));
    unmade(&lab, &mut agents);
    assert_eq!(count(&mut agents[0], "vtepd_blocked_objects", &[("reason", "unsupported")]), 1.0);
    put(&lab, &overlay, &document(&overlay));
    applied(&lab, &mut agents);
    ping(&lab.hosts[0], SANDBOXES[0], "10.0.0.3");
    for (from, to) in [
        (r#""inDelete":false"#, r#""inDelete":true"#),
        (r#""configOnly":false"#, r#""configOnly":true"#),
        (r#""networkType":"overlay""#, r#""networkType":"macvlan""#),
    ] {
        let value = documents().into_iter().find(|(key, _)| *key == format!("{PREFIX}/{network}")).unwrap().1;
        put(&lab, &network, &value.replace(from, to));
        unmade(&lab, &mut agents);
        assert_eq!(count(&mut agents[0], "vtepd_rejected_records", &[]), 0.0);
        assert_eq!(count(&mut agents[0], "vtepd_pending_records", &[]), 0.0, "{to}");
        put(&lab, &network, &value);
        applied(&lab, &mut agents);
        ping(&lab.hosts[0], SANDBOXES[0], "10.0.0.3");
    }
    restart_without_an_operation(agents, || started(&lab));
}

#[test]
fn both_layouts_stand_side_by_side_and_a_listing_of_one_leaves_the_other_alone() {
    in_private!();
    let (lab, mut agents) = demo();
    let endpoint = |node: &str, last: u8, sandbox: &str| {
        let key = format!("endpoints/native/{node}/e");
        let value = format!(r#"{{"ip":["10.5.0.{last}"],"netns":"/run/docker/netns/{sandbox}","ifname":"ov0"}}"#);
        record(&key, &value)
    };
    let network = r#"{"subnets":[{"cidr":"10.5.0.0/24","vni":300}]}"#;
    lab.etcd
        .transaction(&[
            record("networks/native", network),
            // Younger than Docker's network, and named like it; it wants its VNI.
            record("networks/overlay-demo", &network.replace("300", "256")),
            endpoint("docker-node1", 2, SANDBOXES[0]),
            endpoint("docker-node2", 3, SANDBOXES[1]),
        ])
        .unwrap();
    applied(&lab, &mut agents);
    let both = |agents: &mut [Agent]| {
        ping(&lab.hosts[0], SANDBOXES[0], "10.5.0.3");
        ping(&lab.hosts[1], SANDBOXES[1], "10.0.0.2");
        for agent in agents {
            assert_eq!(count(agent, "vtepd_conflicts", &[]), 1.0);
            assert_eq!(count(agent, "vtepd_in_sync", &[("network", "overlay-demo-d6c35f4f5a")]), 1.0);
        }
    };
    both(&mut agents);
    let mut agents = restart_without_an_operation(agents, || started(&lab));
    sleep(Duration::from_millis(200));
    both(&mut agents);
    agents.iter_mut().for_each(assert_no_operation);
}

#[test]
fn two_networks_of_one_sandbox_get_an_interface_each_and_the_second_moves_up_when_the_first_goes() {
    in_private!();
    let (lab, mut agents) = demo();
    let other = "1".repeat(64);
    let overlay = format!("overlay/network/{NID}");
    put(
        &lab,
        &format!("overlay/network/{other}"),
        &document(&overlay).replace("10.0.0.", "10.6.0.").replace("256", "257"),
    );
    let network = documents().into_iter().find(|(key, _)| *key == format!("{PREFIX}/network/{NID}")).unwrap().1;
    put(&lab, &format!("network/{other}"), &network.replace("overlay-demo", "other"));
    for eid in EIDS {
        let value = document(eid).replace("10.0.0.", "10.6.0.").replace("02:42:0a:00", "02:42:0a:06");
        put(&lab, &format!("endpoint/{other}/{eid}"), &value);
    }
    applied(&lab, &mut agents);
    let addresses = || run(&lab.hosts[0], &format!("ip -n {} -br -4 addr", SANDBOXES[0]));
    let has = |name: &str, ip: &str| {
        addresses().lines().any(|line| line.starts_with(&format!("{name}@")) && line.contains(&format!(" {ip}/24")))
    };
    assert!(has("eth0", "10.0.0.2") && has("eth1", "10.6.0.2"), "{}", addresses());
    ping(&lab.hosts[0], SANDBOXES[0], "10.0.0.3");
    ping(&lab.hosts[0], SANDBOXES[0], "10.6.0.3");
    lab.etcd.delete(&format!("{PREFIX}/endpoint/{NID}/{}", EIDS[0])).unwrap();
    until(&mut agents[0], "the second moves up", |_| {
        let moved = has("eth0", "10.6.0.2") && !addresses().contains("10.0.0.2");
        if moved { Ok(()) } else { Err(LabError::not_so(addresses())) }
    });
    applied(&lab, &mut agents);
    ping(&lab.hosts[0], SANDBOXES[0], "10.6.0.3");
    assert_eq!(count(&mut agents[0], "vtepd_in_sync", &[("network", "other")]), 1.0);
    restart_without_an_operation(agents, || started(&lab));
}

#[test]
fn static_routes_of_an_endpoint_stand_in_its_sandbox_and_go_with_the_record() {
    in_private!();
    let (lab, mut agents) = demo();
    let key = format!("endpoint/{NID}/{}", EIDS[0]);
    let plain = document(&key);
    // As libnetwork writes them: by a next hop, and on the link.
    let routes = r#"[{"Destination":{"IP":"0.0.0.0","Mask":"AAAAAA=="},"RouteType":0,"NextHop":"10.0.0.3"},
        {"Destination":{"IP":"10.7.0.0","Mask":"//8AAA=="},"RouteType":1,"NextHop":""}]"#;
    put(&lab, &key, &plain.replace(r#""StaticRoutes":null"#, &format!(r#""StaticRoutes":{routes}"#)));
    applied(&lab, &mut agents);
    let show = || run(&lab.hosts[0], &format!("ip -n {} route show proto 118", SANDBOXES[0]));
    let shown: Vec<String> = show().lines().map(|line| line.trim().to_owned()).collect();
    assert_eq!(shown, ["default via 10.0.0.3 dev eth0", "10.7.0.0/16 dev eth0 scope link"]);
    put(&lab, &key, &plain);
    applied(&lab, &mut agents);
    // With a default route of its own a sandbox asks for no other; without, the way outside is as in the seed.
    assert_eq!(show().trim(), "default via 172.18.0.1 dev eth1");
}
