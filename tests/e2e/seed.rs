//! The seed's network on two hosts: what stands, what crosses the underlay, and a container that comes later.

use std::{process::Stdio, thread::sleep, time::Duration};

use vtepd::lab::{Agent, Lab, LabError};

use crate::hosts::{
    applied, count, in_private, ping, put, registered, restart_without_an_operation, start_all, started, until, words,
};

/// The seed's network and endpoints on two hosts, as native records, applied.
pub(crate) fn seed() -> (Lab, Vec<Agent>) {
    let lab = Lab::new().unwrap();
    lab.hosts[0].add_netns("test1").unwrap();
    lab.hosts[1].add_netns("test2").unwrap();
    let mut agents = start_all(&lab);
    put(&lab, "networks/overlay-demo", r#"{"subnets":[{"cidr":"10.0.0.0/24","gateway":"10.0.0.1","vni":256}]}"#);
    put(
        &lab,
        "endpoints/overlay-demo/docker-node1/test1",
        r#"{"ip":["10.0.0.2"],"mac":"02:42:0a:00:00:02","netns":"/run/netns/test1","ifname":"eth0"}"#,
    );
    put(&lab, "endpoints/overlay-demo/docker-node2/test2", r#"{"ip":["10.0.0.3"],"netns":"/run/netns/test2"}"#);
    registered(&lab, &mut agents);
    applied(&lab, &mut agents);
    (lab, agents)
}

#[test]
fn the_seeds_network_stands_on_two_hosts_as_the_seed_has_it_and_they_ping() {
    in_private!();
    let (lab, agents) = seed();
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
        ping(host, test, "10.0.0.1");
    }
    restart_without_an_operation(agents, || started(&lab));
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
fn an_endpoint_is_wired_when_its_namespace_appears_and_unwired_when_it_goes() {
    in_private!();
    let (lab, mut agents) = seed();
    let host = &lab.hosts[0];
    put(&lab, "endpoints/overlay-demo/docker-node1/late", r#"{"ip":["10.0.0.9"],"netns":"/run/netns/late"}"#);
    applied(&lab, [&mut agents[0]]);
    for _ in 0..3 {
        host.add_netns("late").unwrap();
        until(&mut agents[0], "the ping", |_| host.in_netns("late", &["ping", "-c1", "-W1", "10.0.0.3"]));
        host.delete_netns("late").unwrap();
        until(&mut agents[0], "one veth is left", |_| {
            let links = host.run(&words("ip -n vtepd-overlay-demo -br link show type veth"))?;
            if links.lines().count() == 1 { Ok(()) } else { Err(LabError::not_so(links)) }
        });
    }
    // What leads outside is taken down beside it, the guard of its port last.
    until(&mut agents[0], "one port of the gateway bridge is left, and nothing to do", |agent| {
        let ports = host.run(&words("ip -br link show type veth"))?;
        let in_sync = agent.metrics()?.count("vtepd_in_sync", &[("network", "(host)")]);
        let done = ports.lines().filter(|port| port.contains("vtepd")).count() <= 1 && in_sync == 1.0;
        if done { Ok(()) } else { Err(LabError::not_so(ports)) }
    });
    assert_eq!(count(&mut agents[0], "vtepd_drift_total", &[]), 0.0, "{}", agents[0].log_tail(60));
    restart_without_an_operation(agents, || started(&lab));
}
