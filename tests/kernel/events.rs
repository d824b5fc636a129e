//! What the kernel tells of foreign changes.

use std::time::{Duration, Instant};

use vtepd::{
    engine::{Event, InnerLink, InnerState, Kernel, Op},
    kernel::NetworkKernel,
    model::Mac,
};

use crate::{
    edge::{datapath, do_all, inner, inner_at, link, row, veth},
    support::{ip, mac, run},
};

/// Drains events until one passes, or fails after a second.
fn wait_for(kernel: &mut NetworkKernel, what: &str, mut wanted: impl FnMut(&Event) -> bool) {
    let end = Instant::now() + Duration::from_secs(1);
    let mut seen = Vec::new();
    while Instant::now() < end {
        seen.extend(kernel.events());
        if seen.iter().any(&mut wanted) {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("no event for {what}: {seen:?}");
}

#[test]
fn foreign_changes_in_the_overlay_are_heard() {
    let (mut kernel, br0, vxlan1) = datapath();
    let text = "02:42:0a:00:00:03";
    do_all(
        &mut kernel,
        &[
            Op::PutFdb { ifindex: vxlan1, mac: mac(text), dst: ip("192.168.205.11") },
            Op::PutNeighbour { ifindex: vxlan1, ip: ip("10.0.0.3"), mac: mac(text) },
        ],
    );
    let own = kernel.events();
    assert!(own.contains(&Event::Fdb(row(vxlan1, text, "192.168.205.11"))), "{own:?}");
    assert!(!own.iter().any(|event| matches!(event, Event::Neighbour(_))), "our own neighbours are known: {own:?}");
    // A link's operational state follows its administrative one in the kernel's own time.
    let later: Vec<_> = kernel.events().into_iter().filter(|event| !matches!(event, Event::Link(_))).collect();
    assert!(later.is_empty(), "{later:?}");

    run("bridge -n vtepd-demo fdb replace 02:42:0a:00:00:03 dev vxlan1 dst 192.168.205.66 self");
    wait_for(
        &mut kernel,
        "an overwritten row",
        |event| matches!(event, Event::Fdb(row) if row.mac == mac(text) && row.dst == Some(ip("192.168.205.66"))),
    );
    run("bridge -n vtepd-demo fdb del 02:42:0a:00:00:03 dev vxlan1 self");
    wait_for(&mut kernel, "a deleted row", |event| matches!(event, Event::FdbGone(row) if row.mac == mac(text)));
    run("ip -n vtepd-demo neigh replace 10.0.0.3 lladdr 02:42:0a:00:00:66 dev vxlan1 nud permanent");
    wait_for(
        &mut kernel,
        "an overwritten neighbour",
        |event| matches!(event, Event::Neighbour(entry) if entry.mac == Some(mac("02:42:0a:00:00:66"))),
    );
    run("ip -n vtepd-demo neigh del 10.0.0.3 dev vxlan1");
    wait_for(
        &mut kernel,
        "a deleted neighbour",
        |event| matches!(event, Event::NeighbourGone(entry) if entry.ip == ip("10.0.0.3")),
    );
    run("bridge -n vtepd-demo link set dev vxlan1 learning on");
    wait_for(
        &mut kernel,
        "a port attribute",
        |event| matches!(event, Event::Link(link) if link.ifindex == vxlan1 && link.port.is_some_and(|port| port.learning)),
    );
    run("ip -n vtepd-demo addr add 10.0.0.1/24 dev br0");
    wait_for(&mut kernel, "an address", |event| *event == Event::Addresses(br0));
    run("ip -n vtepd-demo link set vxlan1 down");
    wait_for(
        &mut kernel,
        "a link that is down",
        |event| matches!(event, Event::Link(link) if link.ifindex == vxlan1 && !link.up),
    );
    run("ip -n vtepd-demo link set vxlan1 nomaster");
    wait_for(
        &mut kernel,
        "a port that left",
        |event| matches!(event, Event::Link(link) if link.ifindex == vxlan1 && link.master.is_none() && link.port.is_none()),
    );
    run("ip -n vtepd-demo link del vxlan1");
    wait_for(&mut kernel, "a deleted link", |event| *event == Event::LinkGone(vxlan1));
}

#[test]
fn a_port_that_leaves_its_bridge_is_not_taken_for_a_link_that_went_away() {
    let (mut kernel, _, vxlan1) = datapath();
    kernel.events();
    run("ip -n vtepd-demo link set vxlan1 nomaster");
    std::thread::sleep(Duration::from_millis(50));
    let events = kernel.events();
    assert!(!events.contains(&Event::LinkGone(vxlan1)), "{events:?}");
}

#[test]
fn foreign_changes_in_an_endpoints_namespace_are_heard_without_pinning_it() {
    let (mut kernel, ..) = datapath();
    run("ip netns add test1");
    do_all(&mut kernel, &[Op::AddLink(veth("veth2", "test1"))]);
    run("ip -n test1 addr add 10.0.0.2/24 dev eth0");
    run("ip -n test1 link set eth0 up");
    run("ip -n vtepd-demo link set veth2 up");
    let state = inner(&mut kernel, inner_at("test1"));
    let InnerState::Netns { nsid: Some(nsid), link: Some(InnerLink { link: eth0, .. }), .. } = state else {
        panic!("{state:?}")
    };
    while !kernel.events().is_empty() {}
    for change in [
        "addr del 10.0.0.2/24 dev eth0",
        "addr add 10.0.0.2/24 dev eth0",
        "route add default via 10.0.0.1",
        "route del default",
        "link set eth0 down",
    ] {
        run(&format!("ip -n test1 {change}"));
        wait_for(&mut kernel, change, |event| *event == Event::Inner { nsid, ifindex: Some(eth0.ifindex) });
    }
    run("ip -n test1 link set eth0 up");
    run("ip -n test1 addr flush dev eth0");
    std::thread::sleep(Duration::from_millis(50));
    let events = kernel.events();
    let told = Event::Inner { nsid, ifindex: Some(eth0.ifindex) };
    let heard = events.iter().filter(|event| **event == told).count();
    assert_eq!(heard, 1, "told once in one drain: {events:?}");
    let veth2 = link(&mut kernel, "veth2").ifindex;
    run("ip netns del test1");
    wait_for(&mut kernel, "the namespace's end", |event| *event == Event::LinkGone(veth2));
}

#[test]
fn more_events_than_the_buffer_holds_are_one_overrun() {
    let (mut kernel, _, vxlan1) = datapath();
    while !kernel.events().is_empty() {}
    let nth = |n: u32| Mac::new([2, 0x42, 1, n.to_be_bytes()[1], n.to_be_bytes()[2], n.to_be_bytes()[3]]);
    let ops: Vec<Op> =
        (0..40_000).map(|n| Op::PutFdb { ifindex: vxlan1, mac: nth(n), dst: ip("192.168.205.11") }).collect();
    do_all(&mut kernel, &ops);
    let mut events = Vec::new();
    loop {
        let some = kernel.events();
        if some.is_empty() {
            break;
        }
        events.extend(some);
    }
    let overruns = events.iter().filter(|event| **event == Event::Overrun).count();
    println!("{} events, full buffer: {:?}", events.len(), kernel.full_event_buffer());
    assert_eq!(overruns, 1);
    assert!(events.len() < ops.len());
    run("ip -n vtepd-demo link set br0 down");
    wait_for(&mut kernel, "something after the overrun", |event| matches!(event, Event::Link(link) if !link.up));
}
