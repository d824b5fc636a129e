use std::collections::BTreeSet;

use super::*;
use crate::{
    model::{EndpointId, Name},
    schema::{Change, Kv, Reason},
};

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn id(node: &str, endpoint: &str) -> EndpointId {
    EndpointId { node: name(node), endpoint: name(endpoint) }
}

/// An audit's listing in one page.
pub(super) fn audit(
    store: &mut Store,
    source: Source,
    revision: i64,
    records: Vec<Kv>,
    touched: &BTreeSet<Vec<u8>>,
) -> Audited {
    store.begin_listing(source, true);
    assert!(store.list(source, records, true).is_empty());
    store.audited(source, revision, touched)
}

fn new_store() -> Store {
    let vtep = Some("192.168.0.1".parse().unwrap());
    Store::new(StoreConfig {
        prefix: "/p".into(),
        docker_prefix: None,
        node: name("a"),
        vtep,
        host_endpoints: false,
        underlay_mtu: 1500,
        max_removal: 50,
    })
}

fn kv(key: &str, value: &str, revision: i64) -> Kv {
    let key = format!("/p/{key}").into_bytes();
    Kv { key, value: value.as_bytes().to_vec(), create_revision: revision, mod_revision: revision }
}

fn put(key: &str, value: &str, create: i64, revision: i64) -> Change {
    Change::Put(Kv { create_revision: create, ..kv(key, value, revision) })
}

fn delete(key: &str, revision: i64) -> Change {
    Change::Delete { key: format!("/p/{key}").into_bytes(), revision }
}

const NET: &str = r#"{"subnets":[{"cidr":"10.0.0.0/24","vni":256}]}"#;

fn ip(last: u8) -> String {
    format!(r#"{{"ip":["10.0.0.{last}"]}}"#)
}

/// Two nodes, a network, an endpoint on each.
fn two_nodes() -> (Store, Update) {
    let mut store = new_store();
    let mut updates = store.snapshot(
        10,
        vec![
            kv("nodes/b", r#"{"vtep":"192.168.0.2"}"#, 1),
            kv("networks/n", NET, 2),
            kv("endpoints/n/a/e1", r#"{"ip":["10.0.0.2"],"netns":"/run/netns/x"}"#, 3),
            kv("endpoints/n/b/e2", &ip(3), 4),
        ],
    );
    let update = updates.remove("n").unwrap();
    assert!(updates.is_empty());
    (store, update)
}

#[test]
fn a_network_with_an_endpoint_here_is_told_whole() {
    let (store, update) = two_nodes();
    let spec = update.spec.unwrap().unwrap();
    let segment = &spec.segments[0];
    let tunnel = segment.tunnel.unwrap();
    assert_eq!((segment.vni.get(), tunnel.port, segment.mtu), (256, 4789, 1450));
    assert_eq!(tunnel.local.to_string(), "192.168.0.1");
    assert_eq!(segment.gateway_mac.to_string(), "02:42:0a:00:00:01");
    assert_eq!(segment.gateways[0].to_string(), "10.0.0.1/24");
    let [(first, Some(EndpointSpec::Local(local))), (second, Some(EndpointSpec::Remote(remote)))] =
        update.endpoints.as_slice()
    else {
        panic!("{:?}", update.endpoints)
    };
    assert_eq!((first, second), (&id("a", "e1"), &id("b", "e2")));
    assert_eq!(local.addresses[0].to_string(), "10.0.0.2/24");
    assert_eq!(remote.vtep.to_string(), "192.168.0.2");
    assert_eq!((store.revision(), store.is_complete(), update.revision), (10, true, 10));
    assert_eq!(store.counts(), Counts { nodes: 1, networks: 1, endpoints: 2, ..Counts::default() });
}

#[test]
fn a_network_without_an_endpoint_here_does_not_exist_here() {
    let (mut store, _) = two_nodes();
    let updates = store.changes(11, vec![delete("endpoints/n/a/e1", 11)]);
    assert_eq!(updates["n"].spec, Some(None));
    assert!(store.changes(12, vec![put("endpoints/n/b/e3", &ip(4), 12, 12)]).is_empty());
    let updates = store.changes(13, vec![put("endpoints/n/a/vm", &ip(5), 13, 13)]);
    assert!(matches!(updates["n"].spec, Some(Some(_))), "an endpoint that nobody wires up makes it exist");
    assert_eq!(updates["n"].endpoints.len(), 2, "and means nothing itself");
}

#[test]
fn an_endpoint_that_moves_in_one_revision_is_one_update() {
    let (mut store, _) = two_nodes();
    store.changes(11, vec![put("nodes/c", r#"{"vtep":"192.168.0.3"}"#, 11, 11)]);
    let updates = store.changes(12, vec![put("endpoints/n/c/e2", &ip(3), 12, 12), delete("endpoints/n/b/e2", 12)]);
    let endpoints = &updates["n"].endpoints;
    assert!(matches!(&endpoints[..], [(old, None), (new, Some(_))] if *old == id("b", "e2") && *new == id("c", "e2")));
}

#[test]
fn an_endpoint_that_moves_by_put_then_delete_is_one_update() {
    let (mut store, _) = two_nodes();
    store.changes(11, vec![put("nodes/c", r#"{"vtep":"192.168.0.3"}"#, 11, 11)]);
    assert!(store.changes(12, vec![put("endpoints/n/c/e2", &ip(3), 12, 12)]).is_empty());
    let conflict = store.conflicts().next().unwrap();
    assert_eq!((conflict.key.to_string().as_str(), conflict.field), ("endpoints/n/c/e2", "ip"));
    assert_eq!(conflict.holder.to_string(), "endpoints/n/b/e2");
    let updates = store.changes(13, vec![delete("endpoints/n/b/e2", 13)]);
    let endpoints = &updates["n"].endpoints;
    assert!(matches!(&endpoints[..], [(old, None), (new, Some(_))] if *old == id("b", "e2") && *new == id("c", "e2")));
    assert_eq!(store.counts().conflicts, 0);
}

#[test]
fn a_bad_value_changes_nothing_but_itself() {
    let (mut store, _) = two_nodes();
    let bad = put("networks/n", r#"{"subnets":[]}"#, 2, 11);
    let good = put("endpoints/n/b/e3", &ip(4), 11, 11);
    let updates = store.changes(11, vec![bad, good]);
    assert_eq!((updates["n"].spec.clone(), updates["n"].endpoints.len()), (None, 1));
    let rejected = store.take_new_rejections();
    assert_eq!((rejected[0].key.as_str(), rejected[0].field.as_str()), ("/p/networks/n", "subnets"));
    assert_eq!(store.counts().rejected[&Reason::Value], 1);
    assert_eq!(store.without_predecessor().count(), 0);
    store.changes(12, vec![put("networks/n", NET, 2, 12)]);
    assert!(store.counts().rejected.is_empty());
}

#[test]
fn a_bad_value_without_predecessor_is_not_there() {
    let mut store = new_store();
    let changed = Kv { create_revision: 2, ..kv("networks/n", "{", 3) };
    store.snapshot(5, vec![changed, kv("networks/new", "{", 4), kv("elsewhere/x", "{}", 4)]);
    assert_eq!(store.counts().networks, 0);
    let keys: Vec<_> = store.without_predecessor().collect();
    assert_eq!(keys, [(b"/p/networks/n".as_slice(), 3)], "what was made bad has no history");
    assert_eq!(store.counts().rejected[&Reason::Key], 1);
}

#[test]
fn a_good_version_out_of_the_history_is_in_force_while_the_bad_one_stands() {
    let mut store = new_store();
    let bad = Kv { create_revision: 2, ..kv("networks/n", "{", 4) };
    let records = vec![bad, kv("endpoints/n/a/e1", &ip(2), 3)];
    assert!(store.snapshot(5, records.clone()).is_empty());
    let earlier = kv("networks/n", NET, 2);
    assert!(matches!(store.predecessor(&earlier)["n"].spec, Some(Some(_))));
    assert_eq!((store.counts().rejected.len(), store.without_predecessor().count()), (1, 0));
    assert!(store.snapshot(6, records).is_empty(), "the bad version heard again changes nothing");
    assert!(store.predecessor(&earlier).is_empty());
}

#[test]
fn removals_are_held_while_a_record_is_bad_whose_good_version_cannot_be_found() {
    for (key, good, networks) in [
        ("networks/n", NET.to_owned(), vec!["n"]),
        ("endpoints/n/b/e2", ip(3), vec!["n"]),
        ("nodes/b", r#"{"vtep":"192.168.0.2"}"#.to_owned(), vec!["m", "n"]),
    ] {
        for end in [put(key, &good, 2, 9), delete(key, 9), put(key, "{", 9, 9)] {
            let mut store = new_store();
            let others = ["endpoints/m/b/e", "endpoints/n/b/e3"].map(|key| kv(key, &ip(4), 3));
            let bad = Kv { create_revision: 2, ..kv(key, "{", 4) };
            store.snapshot(5, others.into_iter().chain([bad]).collect());
            assert!(store.held().is_empty(), "it may be found yet");
            store.history_lost(format!("/p/{key}").as_bytes());
            let held = |store: &Store| store.held().into_keys().map(|name| name.to_string()).collect::<Vec<_>>();
            assert_eq!(held(&store), networks, "{key}");
            store.changes(6, vec![put(key, "[", 2, 6)]);
            assert_eq!(held(&store), networks, "another bad version of {key} changes nothing");
            store.changes(9, vec![end]);
            assert!(held(&store).is_empty(), "{key}");
        }
    }
}

#[test]
fn a_bad_value_at_a_key_that_was_made_anew_has_no_predecessor() {
    let (mut store, _) = two_nodes();
    let updates = store.changes(11, vec![put("networks/n", "{", 11, 11)]);
    assert_eq!(updates["n"].spec, Some(None));
}

#[test]
fn records_wait_for_their_network_and_their_node() {
    let mut store = new_store();
    assert!(store.snapshot(3, vec![kv("endpoints/n/a/e1", &ip(2), 1), kv("endpoints/n/b/e2", &ip(3), 2)]).is_empty());
    assert_eq!(store.counts().pending, 2);
    let updates = store.changes(4, vec![put("networks/n", NET, 4, 4)]);
    assert!(matches!(updates["n"].spec, Some(Some(_))));
    assert!(updates["n"].endpoints.is_empty());
    assert_eq!(store.counts().pending, 1);
    let updates = store.changes(5, vec![put("nodes/b", r#"{"vtep":"192.168.0.2"}"#, 5, 5)]);
    assert_eq!((updates["n"].spec.clone(), updates["n"].endpoints.len()), (None, 1));
    let updates = store.changes(6, vec![delete("nodes/b", 6)]);
    assert!(matches!(&updates["n"].endpoints[..], [(_, None)]));
}

#[test]
fn a_node_that_changes_its_vtep_takes_its_endpoints_along() {
    let (mut store, _) = two_nodes();
    let updates = store.changes(11, vec![put("nodes/b", r#"{"vtep":"192.168.0.9"}"#, 1, 11)]);
    let [(_, Some(EndpointSpec::Remote(remote)))] = &updates["n"].endpoints[..] else { panic!("{updates:?}") };
    assert_eq!(remote.vtep.to_string(), "192.168.0.9");
}

#[test]
fn two_nodes_may_swap_their_vteps_in_one_revision() {
    let (mut store, _) = two_nodes();
    store.changes(
        11,
        vec![put("nodes/c", r#"{"vtep":"192.168.0.3"}"#, 11, 11), put("endpoints/n/c/e3", &ip(4), 11, 11)],
    );
    let swap =
        vec![put("nodes/b", r#"{"vtep":"192.168.0.3"}"#, 1, 12), put("nodes/c", r#"{"vtep":"192.168.0.2"}"#, 11, 12)];
    let updates = store.changes(12, swap);
    assert_eq!(updates["n"].endpoints.len(), 2);
    assert!(updates["n"].endpoints.iter().all(|(_, spec)| spec.is_some()));
}

#[test]
fn without_a_configured_vtep_this_nodes_record_counts() {
    let config = StoreConfig {
        prefix: "/p".into(),
        docker_prefix: None,
        node: name("a"),
        vtep: None,
        host_endpoints: false,
        underlay_mtu: 1500,
        max_removal: 50,
    };
    let mut store = Store::new(config);
    assert!(store.snapshot(3, vec![kv("networks/n", NET, 1), kv("endpoints/n/a/e", &ip(2), 2)]).is_empty());
    let updates = store.changes(4, vec![put("nodes/a", r#"{"vtep":"fd00::1"}"#, 4, 4)]);
    let spec = updates["n"].spec.clone().unwrap().unwrap();
    assert_eq!((spec.segments[0].tunnel.unwrap().local.to_string().as_str(), spec.segments[0].mtu), ("fd00::1", 1430));
    let updates = store.changes(5, vec![put("nodes/a", r#"{"vtep":"192.168.0.1"}"#, 4, 5)]);
    let spec = updates["n"].spec.clone().unwrap().unwrap();
    assert_eq!(spec.segments[0].mtu, 1450);
}

#[test]
fn a_network_that_asks_for_encryption_is_blocked_and_said_to_be() {
    let (mut store, _) = two_nodes();
    let value = r#"{"subnets":[{"cidr":"10.0.0.0/24","vni":256}],"secure":true}"#;
    let updates = store.changes(11, vec![put("networks/n", value, 2, 11)]);
    assert_eq!(updates["n"].spec, Some(None), "never half");
    assert_eq!(store.counts().blocked[&BlockedReason::Unsupported], 1);
    let updates = store.changes(12, vec![put("networks/n", NET, 2, 12)]);
    assert_eq!(updates["n"].endpoints.len(), 2);
}

#[test]
fn flooding_asked_for_or_given_up_changes_the_networks_spec_and_no_endpoint() {
    let (mut store, _) = two_nodes();
    let value = r#"{"subnets":[{"cidr":"10.0.0.0/24","vni":256}],"flood":true}"#;
    for (revision, value, flood) in [(11, value, true), (12, NET, false)] {
        let updates = store.changes(revision, vec![put("networks/n", value, 2, revision)]);
        let spec = updates["n"].spec.clone().unwrap().unwrap();
        assert_eq!((spec.segments[0].tunnel.unwrap().flood, updates["n"].endpoints.len()), (flood, 0));
    }
}

#[test]
fn a_network_behind_vteps_of_both_families_is_blocked_until_the_last_endpoint_behind_the_odd_one_goes() {
    let (mut store, _) = two_nodes();
    let odd = put("nodes/c", r#"{"vtep":"fd00:1::3"}"#, 11, 11);
    assert!(store.changes(11, vec![odd]).is_empty(), "a node without endpoints in the network is no matter");
    let updates = store.changes(12, vec![put("endpoints/n/c/e3", &ip(4), 12, 12)]);
    assert_eq!(updates["n"].spec, Some(None));
    let blocked: Vec<_> = store.blocked().map(|blocked| (blocked.key.to_string(), blocked.reason)).collect();
    assert_eq!(blocked, [("networks/n".to_owned(), BlockedReason::MixedUnderlay)]);
    assert!(store.changes(13, vec![put("endpoints/n/c/e4", &ip(5), 13, 13)]).is_empty());
    assert!(store.changes(14, vec![delete("endpoints/n/c/e3", 14)]).is_empty());
    let updates = store.changes(15, vec![delete("endpoints/n/c/e4", 15)]);
    assert!(matches!(updates["n"].spec, Some(Some(_))));
    assert_eq!(updates["n"].endpoints.len(), 2, "told whole");
    assert!(store.counts().blocked.is_empty());
}

#[test]
fn a_node_that_moves_to_the_other_family_blocks_its_networks_and_frees_them_when_it_comes_back() {
    let (mut store, _) = two_nodes();
    let updates = store.changes(11, vec![put("nodes/b", r#"{"vtep":"fd00:1::2"}"#, 1, 11)]);
    assert_eq!(updates["n"].spec, Some(None));
    let updates = store.changes(12, vec![put("nodes/b", r#"{"vtep":"192.168.0.9"}"#, 1, 12)]);
    assert_eq!(updates["n"].endpoints.len(), 2);
}

#[test]
fn networks_follow_the_underlays_mtu_unless_they_say_their_own() {
    let (mut store, _) = two_nodes();
    let own = r#"{"subnets":[{"cidr":"10.1.0.0/24","vni":7}],"mtu":1450}"#;
    let m = |last: u8| format!(r#"{{"ip":["10.1.0.{last}"]}}"#);
    store.changes(11, vec![put("networks/m", own, 11, 11), put("endpoints/m/a/e", &m(2), 11, 11)]);
    assert_eq!(store.counts().excesses, 0);
    let updates = store.set_underlay_mtu(1400);
    assert_eq!(updates.keys().map(Name::as_str).collect::<Vec<_>>(), ["n"]);
    let update = &updates["n"];
    assert!(update.endpoints.is_empty());
    assert_eq!(update.spec.as_ref().unwrap().as_ref().unwrap().segments[0].mtu, 1350);
    let key = crate::schema::Key::Network(name("m"));
    assert_eq!(store.excesses().collect::<Vec<_>>(), [Excess { key, mtu: 1450, overhead: 50, underlay: 1400 }]);
    assert!(store.set_underlay_mtu(1400).is_empty(), "the same again is no news");
    assert_eq!(store.set_underlay_mtu(100)["n"].spec, Some(None), "below the least MTU it is blocked");
    assert_eq!(store.counts().blocked[&BlockedReason::Mtu], 1);
    assert_eq!(store.set_underlay_mtu(9000)["n"].endpoints.len(), 2);
    assert_eq!((store.counts().excesses, store.counts().blocked.len()), (0, 0));
}

#[test]
fn an_endpoint_in_the_hosts_namespace_is_blocked_here_and_remote_elsewhere() {
    let (mut store, _) = two_nodes();
    let host = |last: u8| format!(r#"{{"ip":["10.0.0.{last}"],"netns":"host","ifname":"ov0"}}"#);
    let updates =
        store.changes(11, vec![put("endpoints/n/a/h", &host(7), 11, 11), put("endpoints/n/b/h", &host(8), 11, 11)]);
    assert!(matches!(&updates["n"].endpoints[..], [(only, Some(_))] if *only == id("b", "h")));
    let blocked: Vec<String> = store.blocked().map(|blocked| blocked.key.to_string()).collect();
    assert_eq!(blocked, ["endpoints/n/a/h"]);
}

#[test]
fn where_it_is_allowed_an_endpoint_in_the_hosts_namespace_is_wired_up() {
    let (mut store, _) = two_nodes();
    store.config.host_endpoints = true;
    let host = r#"{"ip":["10.0.0.7"],"netns":"host","ifname":"ov0"}"#;
    let updates = store.changes(11, vec![put("endpoints/n/a/h", host, 11, 11)]);
    let [(_, Some(EndpointSpec::Local(local)))] = &updates["n"].endpoints[..] else { panic!("{updates:?}") };
    assert_eq!((&local.netns, local.ifname.as_str()), (&crate::model::Netns::Host, "ov0"));
    assert!(store.counts().blocked.is_empty());
}

#[test]
fn the_gateways_address_and_mac_are_reserved() {
    let (mut store, _) = two_nodes();
    let mac = r#"{"ip":["10.0.0.9"],"mac":"02:42:0a:00:00:01"}"#;
    assert!(store.changes(11, vec![put("endpoints/n/b/g", &ip(1), 11, 11)]).is_empty());
    assert!(store.changes(12, vec![put("endpoints/n/b/m", mac, 12, 12)]).is_empty());
    assert_eq!(store.counts().rejected[&Reason::Reserved], 2);
}

#[test]
fn an_endpoint_is_judged_again_when_its_network_changes() {
    let (mut store, _) = two_nodes();
    assert!(store.changes(11, vec![put("endpoints/n/b/far", r#"{"ip":["10.0.1.7"]}"#, 11, 11)]).is_empty());
    assert_eq!(store.counts().rejected[&Reason::Misfit], 1);
    let wider = r#"{"subnets":[{"cidr":"10.0.0.0/23","vni":256}]}"#;
    let updates = store.changes(12, vec![put("networks/n", wider, 2, 12)]);
    assert!(store.counts().rejected.is_empty());
    let told: Vec<_> = updates["n"].endpoints.iter().map(|(id, _)| id.clone()).collect();
    assert_eq!(
        told,
        [id("a", "e1"), id("b", "far")],
        "the local one has another prefix length; the remote one is as before"
    );
    let updates = store.changes(13, vec![put("networks/n", NET, 2, 13)]);
    assert!(updates["n"].endpoints.iter().any(|(gone, spec)| *gone == id("b", "far") && spec.is_none()));
}

#[test]
fn when_the_winner_goes_the_loser_is_taken_and_his_loser_is_not() {
    let mut store = new_store();
    let other = r#"{"subnets":[{"cidr":"10.0.0.0/24","vni":256},{"cidr":"10.0.1.0/24","vni":257}]}"#;
    let third = r#"{"subnets":[{"cidr":"10.0.1.0/24","vni":257}]}"#;
    store.snapshot(3, vec![kv("networks/x", NET, 1), kv("networks/y", other, 2), kv("networks/z", third, 3)]);
    let losers = |store: &Store| store.conflicts().map(|c| c.key.to_string()).collect::<Vec<_>>();
    assert_eq!(losers(&store), ["networks/y"], "who loses one claim holds none: z has 257");
    store.changes(4, vec![delete("networks/x", 4)]);
    assert_eq!(losers(&store), ["networks/z"], "y is older than z");
}

#[test]
fn when_the_winner_and_the_next_in_line_go_at_once_the_third_is_taken() {
    let (mut store, _) = two_nodes();
    store.changes(11, vec![put("endpoints/n/b/e3", &ip(3), 11, 11)]);
    store.changes(12, vec![put("endpoints/n/a/e4", r#"{"ip":["10.0.0.3"],"netns":"/run/netns/y"}"#, 12, 12)]);
    assert_eq!(store.counts().conflicts, 2);
    let updates = store.changes(13, vec![delete("nodes/b", 13)]);
    assert!(matches!(&updates["n"].endpoints[..], [(_, Some(EndpointSpec::Local(_))), (_, None)]), "{updates:?}");
    assert_eq!((store.counts().conflicts, store.counts().pending), (0, 2));
}

#[test]
fn one_interface_of_one_namespace_holds_one_endpoint_under_either_name_of_its_path() {
    let (mut store, _) = two_nodes();
    let same = r#"{"ip":["10.0.0.8"],"netns":"/var/run/netns/x"}"#;
    assert!(store.changes(11, vec![put("endpoints/n/a/e9", same, 11, 11)]).is_empty());
    assert_eq!(store.conflicts().next().unwrap().field, "ifname");
}

#[test]
fn a_network_with_too_many_endpoints_keeps_the_oldest_and_others_are_not_touched() {
    let limits = Limits { nodes: 3, networks: 2, endpoints: 2 };
    let mut store = Store::with_limits(new_store().config, limits);
    let other = r#"{"subnets":[{"cidr":"10.1.0.0/24","vni":257}]}"#;
    store.snapshot(
        10,
        vec![
            kv("nodes/b", r#"{"vtep":"192.168.0.2"}"#, 1),
            kv("networks/n", NET, 2),
            kv("networks/m", other, 3),
            kv("networks/third", r#"{"subnets":[{"cidr":"10.2.0.0/24","vni":258}]}"#, 4),
            kv("endpoints/n/a/e", &ip(2), 5),
            kv("endpoints/n/b/young", &ip(3), 7),
            kv("endpoints/n/b/old", &ip(4), 6),
            kv("endpoints/m/a/e", r#"{"ip":["10.1.0.2"]}"#, 8),
        ],
    );
    let refused = |store: &Store| store.rejections().map(|r| (r.key.clone(), r.reason)).collect::<Vec<_>>();
    let beyond = |key: &str| (format!("/p/{key}"), Reason::Count);
    assert_eq!(refused(&store), [beyond("networks/third"), beyond("endpoints/n/b/young")]);
    assert_eq!((store.take_new_rejections().len(), store.counts().conflicts), (2, 0));
    let updates = store.changes(11, vec![delete("endpoints/n/b/old", 11)]);
    assert!(
        matches!(&updates["n"].endpoints[..], [(old, None), (young, Some(_))] if *old == id("b", "old") && *young == id("b", "young"))
    );
    store.changes(12, vec![delete("networks/m", 12)]);
    assert!(refused(&store).is_empty());
}

#[test]
fn an_audit_leaves_alone_what_was_touched_since() {
    let (mut store, _) = two_nodes();
    let listing = vec![
        kv("nodes/b", r#"{"vtep":"192.168.0.2"}"#, 1),
        kv("networks/n", NET, 2),
        kv("endpoints/n/a/e1", r#"{"ip":["10.0.0.2"],"netns":"/run/netns/x"}"#, 3),
        kv("endpoints/n/b/e2", &ip(3), 4),
    ];
    store.changes(11, vec![delete("endpoints/n/b/e2", 11), put("endpoints/n/b/e5", &ip(6), 11, 11)]);
    let touched = [b"/p/endpoints/n/b/e2".to_vec(), b"/p/endpoints/n/b/e5".to_vec()].into();
    let audited = audit(&mut store, Source::Native, 10, listing.clone(), &touched);
    assert_eq!((audited.differences, audited.updates.len()), (0, 0));
    let lost = audit(&mut store, Source::Native, 10, listing[..3].to_vec(), &std::collections::BTreeSet::new());
    assert_eq!(lost.differences, 0, "what is known by a later revision is not judged by an earlier listing");
    let lost = audit(&mut store, Source::Native, 12, listing, &std::collections::BTreeSet::new());
    assert_eq!((lost.differences, lost.updates["n"].endpoints.len()), (2, 2));
}

#[test]
fn identity_and_approvals_are_kept() {
    let mut store = new_store();
    store.snapshot(3, vec![kv("store", r#"{"id":"7"}"#, 1), kv("approvals/n", r#"{"revision":2}"#, 2)]);
    assert_eq!((store.identity(), store.approval(&name("n"))), (Some("7"), Some(2)));
    store.changes(4, vec![delete("store", 4)]);
    assert_eq!(store.identity(), None);
}

#[test]
fn one_change_among_a_hundred_thousand_endpoints_is_told_alone() {
    let mut store = new_store();
    let mut kvs = vec![kv("networks/n", r#"{"subnets":[{"cidr":"10.0.0.0/8","vni":256}]}"#, 1)];
    for node in 0..100 {
        kvs.push(kv(&format!("nodes/b{node}"), &format!(r#"{{"vtep":"192.168.1.{node}"}}"#), 2));
    }
    kvs.push(kv("endpoints/n/a/e", &ip(2), 3));
    for i in 0..100_000_u32 {
        let address = std::net::Ipv4Addr::from((10 << 24) + 1000 + i);
        kvs.push(kv(&format!("endpoints/n/b{}/e{i}", i % 100), &format!(r#"{{"ip":["{address}"]}}"#), 4));
    }
    let updates = store.snapshot(5, kvs);
    assert_eq!(updates["n"].endpoints.len(), 100_000, "the local one is not wired up");
    for i in 0..1000 {
        let updates = store.changes(
            10 + i,
            vec![put("endpoints/n/b1/new", &format!(r#"{{"ip":["10.99.0.{}"]}}"#, i % 200), 10, 10 + i)],
        );
        assert_eq!(updates["n"].endpoints.len(), 1);
    }
}

fn routes(update: &Update) -> Vec<String> {
    let locals = update.endpoints.iter().filter_map(|(_, spec)| match spec {
        Some(EndpointSpec::Local(local)) => Some(&local.routes),
        _ => None,
    });
    locals.flatten().map(ToString::to_string).collect()
}

#[test]
fn an_endpoint_has_routes_to_the_networks_other_subnets_by_its_own_gateways() {
    let mut store = new_store();
    let net = |more: &str| {
        format!(
            r#"{{"subnets":[{{"cidr":"10.0.0.0/24","vni":7,"gateway":"10.0.0.254"}},{{"cidr":"fd00::/64","vni":7}},
                {{"cidr":"10.0.1.0/24","vni":7}},{{"cidr":"10.0.2.0/24","vni":8}},{{"cidr":"fd00:0:0:2::/64","vni":8}}{more}]}}"#
        )
    };
    let v4 = r#"{"ip":["10.0.0.2"],"netns":"/run/netns/x"}"#;
    let mut updates = store.snapshot(10, vec![kv("networks/n", &net(""), 1), kv("endpoints/n/a/e", v4, 2)]);
    let led = ["10.0.1.0/24 via 10.0.0.254", "10.0.2.0/24 via 10.0.0.254"];
    assert_eq!(routes(&updates.remove("n").unwrap()), led);

    let both = r#"{"ip":["10.0.0.2","fd00::2"],"netns":"/run/netns/x"}"#;
    let mut updates = store.changes(11, vec![put("endpoints/n/a/e", both, 2, 11)]);
    assert_eq!(routes(&updates.remove("n").unwrap()), [&led[..], &["fd00:0:0:2::/64 via fd00::1"]].concat());

    // The subnets are the network's: with one more every endpoint of this host is told.
    let mut updates = store.changes(12, vec![put("networks/n", &net(r#",{"cidr":"10.9.0.0/16","vni":9}"#), 1, 12)]);
    let update = updates.remove("n").unwrap();
    assert_eq!(routes(&update), [&led[..], &["10.9.0.0/16 via 10.0.0.254", "fd00:0:0:2::/64 via fd00::1"]].concat());
}

#[test]
fn endpoints_of_an_internal_network_ask_for_no_way_outside() {
    let (mut store, update) = two_nodes();
    let outside = |update: &Update| match &update.endpoints[0].1 {
        Some(EndpointSpec::Local(local)) => local.outside,
        other => panic!("{other:?}"),
    };
    assert!(outside(&update));
    let internal = NET.replace("]}", r#"],"internal":true}"#);
    let mut updates = store.changes(11, vec![put("networks/n", &internal, 2, 11)]);
    assert!(!outside(&updates.remove("n").unwrap()));
}
