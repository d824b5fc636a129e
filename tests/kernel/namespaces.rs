//! Overlay namespaces: made, found, left alone, taken for gone.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use serde_json::json as value;
use vtepd::{
    engine::{FailureKind, Kernel, NetnsState, Op, Query},
    kernel::{NetworkKernel, owned},
};

use crate::{
    edge::{NETNS, bridge, datapath, do_all, netns, vxlan},
    support::{ip, json, kernel_of, mac, private_host, run},
};

#[test]
fn the_overlay_namespace_is_made_found_and_deleted() {
    private_host();
    let mut kernel = kernel_of("demo");
    assert_eq!(netns(&mut kernel), NetnsState::Absent);
    do_all(&mut kernel, &[Op::CreateNetns]);
    let NetnsState::Ours(id) = netns(&mut kernel) else { panic!("not ours") };
    assert_eq!(json("ip -j netns")[0]["name"], NETNS);
    let lo = json("ip -n vtepd-demo -j link show lo");
    assert_eq!(lo[0]["ifalias"], "vtepd:default:demo");
    assert!(lo[0]["flags"].as_array().unwrap().contains(&value!("UP")));
    let generation = kernel.generation();
    assert_eq!(kernel.event_fds().len(), 2);
    assert_eq!(netns(&mut kernel), NetnsState::Ours(id), "found again");
    assert_eq!(kernel.generation(), generation, "the sockets are kept");
    assert_eq!(kernel.apply(&[Op::CreateNetns])[0].as_ref().unwrap_err().kind, FailureKind::Exists);
    assert_eq!(netns(&mut kernel_of("demo")), NetnsState::Ours(id), "found by another agent of the instance");
    netns(&mut kernel);
    do_all(&mut kernel, &[Op::DeleteNetns]);
    assert!(!Path::new("/run/netns/vtepd-demo").exists());
    assert_eq!(netns(&mut kernel), NetnsState::Absent);
    assert!(kernel.event_fds().is_empty());
    do_all(&mut kernel, &[Op::DeleteNetns]);
}

#[test]
fn what_somebody_else_has_at_the_path_is_left_alone() {
    private_host();
    run("ip netns add vtepd-demo");
    let mut kernel = kernel_of("demo");
    let refused = |kernel: &mut NetworkKernel| {
        assert_eq!(netns(kernel), NetnsState::Foreign);
        for op in [Op::CreateNetns, Op::DeleteNetns] {
            assert_eq!(kernel.apply(&[op])[0].as_ref().unwrap_err().kind, FailureKind::Exists);
        }
    };
    refused(&mut kernel);
    run("ip -n vtepd-demo link set lo alias vtepd:other:demo");
    refused(&mut kernel);
    run("ip -n vtepd-demo link show lo");
    run("ip netns del vtepd-demo");
    fs::write("/run/netns/vtepd-demo", "somebody's").unwrap();
    refused(&mut kernel);
    assert_eq!(fs::read_to_string("/run/netns/vtepd-demo").unwrap(), "somebody's");
    fs::remove_file("/run/netns/vtepd-demo").unwrap();
    std::os::unix::fs::symlink("/run/netns/elsewhere", "/run/netns/vtepd-demo").unwrap();
    refused(&mut kernel);
    fs::remove_file("/run/netns/vtepd-demo").unwrap();
    fs::write("/run/netns/vtepd-demo", "").unwrap();
    run("mount --bind /proc/self/ns/uts /run/netns/vtepd-demo");
    refused(&mut kernel);
    assert!(owned(Path::new("/run/netns"), "default").unwrap().unreadable.is_empty());
}

#[test]
fn an_empty_file_left_by_a_crash_is_bound_over() {
    private_host();
    fs::create_dir("/run/netns").unwrap();
    fs::write("/run/netns/vtepd-demo", "").unwrap();
    let mut kernel = kernel_of("demo");
    assert_eq!(netns(&mut kernel), NetnsState::Absent);
    do_all(&mut kernel, &[Op::CreateNetns]);
    assert!(matches!(netns(&mut kernel), NetnsState::Ours(_)));
}

#[test]
fn an_agent_without_memory_finds_its_own_namespaces_only() {
    private_host();
    assert!(owned(Path::new("/run/netns"), "default").unwrap().networks.is_empty());
    let id = "cafe".repeat(16);
    let mut kernels: Vec<_> = ["beta", "alpha", &id].map(kernel_of).into_iter().collect();
    kernels.iter_mut().for_each(|kernel| do_all(kernel, &[Op::CreateNetns]));
    assert!(Path::new("/run/netns/vtepd-cafecafeca").exists());
    run("ip netns add vtepd-other");
    run("ip -n vtepd-other link set lo alias vtepd:second:other");
    fs::write("/run/netns/vtepd-file", "").unwrap();
    let found = owned(Path::new("/run/netns"), "default").unwrap();
    assert_eq!(found.networks, ["alpha", "beta", &id].map(|name| name.parse().unwrap()));
    assert!(found.unreadable.is_empty());
    assert_eq!(owned(Path::new("/run/netns"), "second").unwrap().networks, ["other".parse().unwrap()]);
}

#[test]
fn a_namespace_that_was_deleted_by_hand_frees_its_vni_and_can_be_made_again() {
    let (mut kernel, ..) = datapath();
    let generation = kernel.generation();
    run("ip netns del vtepd-demo");
    assert_eq!(netns(&mut kernel), NetnsState::Absent);
    assert_ne!(kernel.generation(), generation);
    // The kernel takes a namespace down in its own time once nothing holds it.
    let end = Instant::now() + Duration::from_secs(5);
    do_all(&mut kernel, &[Op::CreateNetns]);
    while let Err(failure) = &kernel.apply(&[Op::AddLink(vxlan(256, "192.168.205.10"))])[0] {
        assert_eq!(failure.kind, FailureKind::Exists, "{failure}");
        assert!(Instant::now() < end, "{failure}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn without_its_namespace_every_operation_and_read_says_so() {
    private_host();
    let mut kernel = kernel_of("demo");
    let ops = [
        Op::PutFdb { ifindex: 2, mac: mac("02:42:0a:00:00:03"), dst: ip("192.168.205.11") },
        Op::AddLink(bridge()),
        Op::DeleteNeighbour { ifindex: 2, ip: ip("10.0.0.3") },
    ];
    let results = kernel.apply(&ops);
    assert_eq!(results.len(), 3);
    assert!(results.iter().all(|result| result.as_ref().unwrap_err().kind == FailureKind::NotFound));
    assert_eq!(kernel.read(&Query::Links).unwrap_err().kind, FailureKind::NotFound);
    assert!(kernel.events().is_empty());
}
