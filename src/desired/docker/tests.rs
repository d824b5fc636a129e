use std::collections::BTreeMap;

use crate::{
    desired::{EndpointSpec, Source, Store, StoreConfig, Update},
    model::Name,
    schema::{Change, Kv, Reason},
};

const D: &str = "/docker/network/v1.0";

fn id(digit: char) -> String {
    digit.to_string().repeat(64)
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn unlisted(vtep: Option<&str>) -> Store {
    Store::new(StoreConfig {
        prefix: "/p".into(),
        docker_prefix: Some(D.into()),
        node: name("a"),
        vtep: vtep.map(|vtep| vtep.parse().unwrap()),
        host_endpoints: false,
        underlay_mtu: 1500,
        max_removal: 50,
    })
}

fn store() -> Store {
    let mut store = unlisted(Some("192.168.0.1"));
    store.snapshot_of(Source::Native, 1, Vec::new());
    store.snapshot_of(Source::Docker, 1, Vec::new());
    store
}

fn kv(key: &str, value: &str, created: i64, modified: i64) -> Kv {
    Kv { key: key.into(), value: value.into(), create_revision: created, mod_revision: modified }
}

fn network(n: char, label: &str, created: i64) -> Kv {
    kv(&format!("{D}/network/{}", id(n)), &format!(r#"{{"name":"{label}","networkType":"overlay"}}"#), created, created)
}

fn overlay(n: char, subnets: &str, created: i64, modified: i64) -> Kv {
    kv(&format!("{D}/overlay/network/{}", id(n)), &format!("[{subnets}]"), created, modified)
}

fn subnet(third: u8, vni: u32) -> String {
    format!(r#"{{"SubnetIP":"10.0.{third}.0/24","GwIP":"10.0.{third}.1/24","Vni":{vni}}}"#)
}

fn endpoint(n: char, e: char, addr: &str, locator: u8, sandbox: &str, created: i64, modified: i64) -> Kv {
    let value = format!(
        r#"{{"ep_iface":{{"addr":"{addr}/24"}},"locator":"192.168.0.{locator}","sandbox":"{sandbox}","virtualIP":"<nil>"}}"#
    );
    kv(&format!("{D}/endpoint/{}/{}", id(n), id(e)), &value, created, modified)
}

fn put(store: &mut Store, kvs: Vec<Kv>) -> BTreeMap<Name, Update> {
    let revision = kvs.iter().map(|kv| kv.mod_revision).max().unwrap();
    store.changes(revision, kvs.into_iter().map(Change::Put).collect())
}

fn delete(store: &mut Store, key: &str, revision: i64) -> BTreeMap<Name, Update> {
    store.changes(revision, vec![Change::Delete { key: key.into(), revision }])
}

/// A network with an endpoint here and one behind 192.168.0.2.
fn demo() -> (Store, Update) {
    let mut store = store();
    put(&mut store, vec![overlay('1', &subnet(0, 256), 2, 2), network('1', "demo", 3)]);
    let here = endpoint('1', 'a', "10.0.0.2", 1, &id('c'), 4, 4);
    let mut updates = put(&mut store, vec![here, endpoint('1', 'b', "10.0.0.3", 2, "", 4, 4)]);
    let update = updates.remove(id('1').as_str()).unwrap();
    (store, update)
}

fn local_ifnames(update: &Update) -> Vec<String> {
    let locals = update.endpoints.iter().filter_map(|(_, spec)| match spec {
        Some(EndpointSpec::Local(local)) => Some(local.ifname.clone()),
        _ => None,
    });
    locals.collect()
}

#[test]
fn a_network_of_dockers_is_told_like_any_other() {
    let (store, update) = demo();
    let spec = update.spec.unwrap().unwrap();
    assert_eq!((spec.name.as_str(), spec.segments.len()), (id('1').as_str(), 1));
    let segment = &spec.segments[0];
    assert_eq!((segment.vni.get(), segment.tunnel.unwrap().port, segment.mtu), (256, 4789, 1450));
    assert_eq!(segment.gateways[0].to_string(), "10.0.0.1/24");
    let [(_, Some(EndpointSpec::Local(local))), (_, Some(EndpointSpec::Remote(remote)))] = update.endpoints.as_slice()
    else {
        panic!("{:?}", update.endpoints)
    };
    assert_eq!(local.netns.to_string(), "/var/run/docker/netns/cccccccccccc");
    assert_eq!((local.ifname.as_str(), local.mac.to_string().as_str()), ("eth0", "02:42:0a:00:00:02"));
    assert_eq!((remote.vtep.to_string().as_str(), remote.ips.len()), ("192.168.0.2", 1));
    assert_eq!(store.counts().endpoints, 2);
    assert_eq!(store.counts().pending, 0);
    assert_eq!(store.shown_name(&name(&id('1'))).as_str(), "demo");
}

#[test]
fn nothing_is_told_before_the_networks_of_both_layouts_were_listed() {
    for first in [Source::Native, Source::Docker] {
        let mut store = unlisted(Some("192.168.0.1"));
        let native = vec![
            kv("/p/networks/n", r#"{"subnets":[{"cidr":"10.0.0.0/24","vni":256}]}"#, 3, 3),
            kv("/p/endpoints/n/a/e", r#"{"ip":["10.0.0.2"]}"#, 4, 4),
        ];
        let here = endpoint('1', 'a', "10.0.0.2", 1, "", 5, 5);
        let docker = vec![overlay('1', &subnet(0, 256), 2, 2), network('1', "demo", 2), here];
        let listing = |source| if source == Source::Native { native.clone() } else { docker.clone() };
        let second = if first == Source::Native { Source::Docker } else { Source::Native };
        store.begin_listing(first, false);
        assert!(store.list(first, listing(first), true).is_empty());
        assert!(store.listed(first, 5).is_empty());
        assert!(!store.is_complete());
        let updates = store.snapshot_of(second, 5, listing(second));
        assert!(store.is_complete());
        let told: Vec<&str> = updates.keys().map(Name::as_str).collect();
        assert_eq!(told, [id('1')], "Docker's network is older and has the VNI");
        let conflict = store.conflicts().next().unwrap();
        assert_eq!(store.whole_key(&conflict.key), "/p/networks/n");
        assert_eq!(store.whole_key(&conflict.holder), format!("{D}/overlay/network/{}", id('1')));
    }
}

#[test]
fn what_a_listing_omits_is_deleted_only_below_its_own_prefix() {
    let (mut store, _) = demo();
    put(&mut store, vec![kv("/p/networks/n", r#"{"subnets":[{"cidr":"10.9.0.0/24","vni":9}]}"#, 5, 5)]);
    put(&mut store, vec![kv("/p/store", r#"{"id":"one"}"#, 6, 6)]);
    let listing = vec![kv("/p/store", r#"{"id":"one"}"#, 6, 6)];
    assert!(store.snapshot_of(Source::Native, 7, listing).is_empty());
    assert_eq!(store.counts().networks, 1);
    // A listing without any of Docker's records is not believed; an audit takes place beside a watch that is heard.
    assert!(store.snapshot_of(Source::Docker, 7, Vec::new()).is_empty());
    assert_eq!(store.removals().len(), 1);
    let approval = format!("/p/approvals/{}", id('1'));
    let updates = put(&mut store, vec![kv(&approval, r#"{"revision":7}"#, 8, 8)]);
    assert_eq!(updates.len(), 1);
    assert_eq!(store.counts(), crate::desired::Counts::default());
    assert!(store.networks.is_empty() && store.nodes.is_empty() && store.docker.networks.is_empty());
    assert!(store.docker.sandboxes.is_empty() && store.docker.names.is_empty());
}

#[test]
fn an_endpoint_that_moves_is_one_update() {
    let (mut store, _) = demo();
    let updates = put(&mut store, vec![endpoint('1', 'b', "10.0.0.3", 3, "", 4, 6)]);
    let endpoints = &updates[id('1').as_str()].endpoints;
    assert!(matches!(&endpoints[..], [(_, None), (_, Some(EndpointSpec::Remote(_)))]), "{endpoints:?}");
    let updates = put(&mut store, vec![endpoint('1', 'a', "10.0.0.2", 2, &id('c'), 4, 7)]);
    assert_eq!(updates[id('1').as_str()].spec, Some(None), "nothing is left here");
}

#[test]
fn records_wait_for_one_another_and_to_be_completed() {
    let mut store = store();
    let here = endpoint('1', 'a', "10.0.0.2", 1, "", 2, 2);
    assert!(put(&mut store, vec![here, network('1', "demo", 2)]).is_empty());
    assert_eq!(store.counts().pending, 2, "the network, and its endpoint");
    assert!(put(&mut store, vec![overlay('1', &subnet(0, 0), 3, 3)]).is_empty());
    assert_eq!(store.counts().pending, 2, "the VNI is not allocated");
    let updates = put(&mut store, vec![overlay('1', &[subnet(0, 256), subnet(1, 0)].join(","), 3, 4)]);
    assert!(matches!(updates[id('1').as_str()].spec, Some(Some(_))));
    assert_eq!(store.counts().pending, 0);
    let early = kv(&format!("{D}/endpoint/{}/{}", id('1'), id('d')), "{}", 5, 5);
    put(&mut store, vec![early, endpoint('1', 'b', "10.0.1.2", 2, "", 5, 5)]);
    assert_eq!(store.counts().pending, 2, "one has no address yet, one no VNI");
    let updates = put(&mut store, vec![overlay('1', &[subnet(0, 256), subnet(1, 257)].join(","), 3, 6)]);
    let update = &updates[id('1').as_str()];
    assert_eq!((update.spec.as_ref().unwrap().as_ref().unwrap().segments.len(), update.endpoints.len()), (2, 1));
    assert_eq!((store.counts().pending, store.counts().rejected.len()), (1, 0));
}

#[test]
fn a_network_that_is_being_deleted_means_nothing_any_more_and_nor_do_its_endpoints() {
    let (mut store, _) = demo();
    for (revision, more) in [(6, r#""inDelete":true"#), (8, r#""configOnly":true"#), (10, r#""networkType":"bridge""#)]
    {
        let key = format!("{D}/network/{}", id('1'));
        let value = format!(r#"{{"name":"demo","networkType":"overlay",{more}}}"#).replacen(
            r#""networkType":"overlay","networkType""#,
            r#""networkType""#,
            1,
        );
        assert_eq!(put(&mut store, vec![kv(&key, &value, 3, revision)])[id('1').as_str()].spec, Some(None), "{more}");
        assert_eq!((store.counts().pending, store.counts().endpoints), (0, 0));
        let back = Kv { mod_revision: revision + 1, ..network('1', "demo", 3) };
        assert_eq!(put(&mut store, vec![back])[id('1').as_str()].endpoints.len(), 2);
    }
}

#[test]
fn interfaces_of_a_sandbox_are_numbered_by_create_revision() {
    let (mut store, update) = demo();
    assert_eq!(local_ifnames(&update), ["eth0"]);
    put(&mut store, vec![overlay('2', &subnet(2, 300), 5, 5), network('2', "other", 5)]);
    let updates = put(&mut store, vec![endpoint('2', 'e', "10.0.2.2", 1, &id('c'), 6, 6)]);
    assert_eq!(local_ifnames(&updates[id('2').as_str()]), ["eth1"]);
    let updates = delete(&mut store, &format!("{D}/endpoint/{}/{}", id('1'), id('a')), 7);
    assert_eq!(local_ifnames(&updates[id('2').as_str()]), ["eth0"], "the other moves up");
    let updates = put(&mut store, vec![endpoint('1', 'a', "10.0.0.2", 1, &id('c'), 8, 8)]);
    assert_eq!(local_ifnames(&updates[id('1').as_str()]), ["eth1"]);
    assert_eq!(store.counts().conflicts, 0);
}

#[test]
fn one_interface_of_a_sandbox_has_one_owner_in_either_layout() {
    let (mut store, _) = demo();
    let native = vec![
        kv("/p/networks/n", r#"{"subnets":[{"cidr":"10.9.0.0/24","vni":9}]}"#, 5, 5),
        kv("/p/endpoints/n/a/e", r#"{"ip":["10.9.0.2"],"netns":"/run/docker/netns/cccccccccccc"}"#, 5, 5),
    ];
    assert!(put(&mut store, native).is_empty());
    let conflict = store.conflicts().next().unwrap();
    assert_eq!((store.whole_key(&conflict.key).as_str(), conflict.field), ("/p/endpoints/n/a/e", "ifname"));
    let updates = delete(&mut store, &format!("{D}/endpoint/{}/{}", id('1'), id('a')), 6);
    assert_eq!(local_ifnames(&updates["n"]), ["eth0"]);
    put(&mut store, vec![endpoint('1', 'a', "10.0.0.2", 1, &id('c'), 7, 7)]);
    let conflict = store.conflicts().next().unwrap();
    assert_eq!(
        (store.whole_key(&conflict.key), conflict.field),
        (format!("{D}/endpoint/{}/{}", id('1'), id('a')), "sandbox")
    );
}

#[test]
fn a_locator_claims_nothing_from_a_native_node_of_the_same_address() {
    let (mut store, _) = demo();
    put(&mut store, vec![kv("/p/nodes/b", r#"{"vtep":"192.168.0.2"}"#, 9, 9)]);
    assert_eq!(store.counts().conflicts, 0);
}

#[test]
fn a_node_that_changes_its_vtep_changes_which_endpoints_live_there() {
    let mut store = unlisted(None);
    store.snapshot_of(Source::Native, 1, Vec::new());
    let docker = vec![
        overlay('1', &subnet(0, 256), 2, 2),
        network('1', "demo", 2),
        endpoint('1', 'a', "10.0.0.2", 1, &id('c'), 3, 3),
        endpoint('1', 'b', "10.0.0.3", 2, &id('d'), 3, 3),
    ];
    assert!(store.snapshot_of(Source::Docker, 3, docker).is_empty(), "no address, nothing here");
    let updates = put(&mut store, vec![kv("/p/nodes/a", r#"{"vtep":"192.168.0.1"}"#, 4, 4)]);
    let first = updates[id('1').as_str()].clone();
    assert!(matches!(&first.endpoints[..], [(_, Some(EndpointSpec::Local(_))), (_, Some(EndpointSpec::Remote(_)))]));
    let updates = put(&mut store, vec![kv("/p/nodes/a", r#"{"vtep":"192.168.0.2"}"#, 4, 5)]);
    let second = updates[id('1').as_str()].clone();
    assert!(matches!(&second.endpoints[..], [(_, Some(EndpointSpec::Remote(_))), (_, Some(EndpointSpec::Local(_)))]));
    assert_eq!(second.spec.unwrap().unwrap().segments[0].tunnel.unwrap().local.to_string(), "192.168.0.2");
    let updates = delete(&mut store, "/p/nodes/a", 6);
    assert_eq!(updates[id('1').as_str()].spec, Some(None));
}

#[test]
fn ipv6_addresses_go_with_the_ipv4_one_and_their_gateway_stays_off_the_bridge() {
    let mut store = store();
    let info = r#"[{"IPAMData":"{\"Gateway\":\"fd00::1/64\",\"Pool\":\"fd00::/64\"}"}]"#;
    let value = serde_json::json!({"name": "six", "networkType": "overlay", "ipamV6Info": info}).to_string();
    let six = |e: char, v6: &str, locator: u8, revision: i64| {
        let value = format!(
            r#"{{"ep_iface":{{"addr":"10.0.0.{}/24","addrv6":"{v6}/64"}},"locator":"192.168.0.{locator}","sandbox":"{}"}}"#,
            e as u8,
            id('c'),
        );
        kv(&format!("{D}/endpoint/{}/{}", id('1'), id(e)), &value, revision, revision)
    };
    let records = vec![
        kv(&format!("{D}/network/{}", id('1')), &value, 2, 2),
        overlay('1', &subnet(0, 256), 2, 2),
        six('a', "fd00::2", 1, 3),
        six('b', "fd00::3", 2, 3),
        six('c', "fd07::4", 2, 3),
    ];
    let updates = put(&mut store, records);
    let update = &updates[id('1').as_str()];
    assert_eq!(update.spec.as_ref().unwrap().as_ref().unwrap().segments[0].gateways.len(), 1);
    let [(_, Some(EndpointSpec::Local(local))), (_, Some(EndpointSpec::Remote(remote)))] = &update.endpoints[..] else {
        panic!("{update:?}")
    };
    assert_eq!((local.addresses[1].to_string().as_str(), local.vni.get()), ("fd00::2/64", 256));
    assert_eq!(remote.ips[1].to_string(), "fd00::3");
    let rejected = &store.take_new_rejections()[0];
    assert_eq!((rejected.field.as_str(), rejected.reason), ("ep_iface.addrv6", Reason::Misfit));
    assert_eq!(rejected.key, format!("{D}/endpoint/{}/{}", id('1'), id('c')));
}

#[test]
fn a_bad_version_leaves_the_good_one_in_force_and_other_keys_mean_nothing() {
    let (mut store, _) = demo();
    let bad = kv(&format!("{D}/overlay/network/{}", id('1')), "{", 2, 6);
    let noise = kv(&format!("{D}/ipam/default/config/GlobalDefault"), "{", 6, 6);
    assert!(put(&mut store, vec![bad, noise]).is_empty());
    assert_eq!(store.counts().rejected, BTreeMap::from([(Reason::Json, 1)]));
    assert_eq!(store.without_predecessor().count(), 0);
    let anew = kv(&format!("{D}/overlay/network/{}", id('1')), "{", 7, 7);
    assert_eq!(put(&mut store, vec![anew])[id('1').as_str()].spec, Some(None));
    store.history_lost(format!("{D}/overlay/network/{}", id('1')).as_bytes());
    assert!(store.held().into_keys().eq([name(&id('1'))]));
    let earlier = overlay('1', &subnet(0, 256), 7, 7);
    assert!(matches!(store.predecessor(&earlier)[id('1').as_str()].spec, Some(Some(_))));
    let native = kv(&format!("/p/networks/{}", id('1')), r#"{"subnets":[{"cidr":"10.7.0.0/24","vni":7}]}"#, 8, 8);
    assert!(put(&mut store, vec![native]).is_empty(), "a name of Docker's");
    assert_eq!(store.counts().rejected[&Reason::Key], 1);
    assert!(delete(&mut store, &format!("/p/networks/{}", id('1')), 9).is_empty());
}

#[test]
fn names_that_collide_are_told_apart_by_the_identifier() {
    let (mut store, _) = demo();
    let shown = |store: &Store, n: char| store.shown_name(&name(&id(n))).to_string();
    assert!(store.take_renamed() && !store.take_renamed());
    put(&mut store, vec![network('2', "demo", 5), network('3', "no name", 5)]);
    assert!(store.take_renamed());
    assert_eq!((shown(&store, '1').as_str(), shown(&store, '2').as_str()), ("demo-1111111111", "demo-2222222222"));
    assert_eq!(shown(&store, '3'), id('3'));
    let native = |n: &str, vni: u32, revision: i64| {
        let value = format!(r#"{{"subnets":[{{"cidr":"10.7.0.0/24","vni":{vni}}}]}}"#);
        kv(&format!("/p/networks/{n}"), &value, revision, revision)
    };
    put(&mut store, vec![native("demo-1111111111", 7, 6)]);
    assert_eq!((shown(&store, '1'), shown(&store, '2').as_str()), (id('1'), "demo-2222222222"));
    delete(&mut store, &format!("{D}/network/{}", id('2')), 7);
    assert_eq!(shown(&store, '1'), "demo");
    assert!(store.take_renamed());
    put(&mut store, vec![native("demo", 8, 8)]);
    assert!(store.take_renamed());
    assert_eq!(shown(&store, '1'), id('1'));
}

fn routes_and_outside(update: &Update) -> (Vec<String>, bool) {
    let [(_, Some(EndpointSpec::Local(local)))] = update.endpoints.as_slice() else { panic!("{:?}", update.endpoints) };
    (local.routes.iter().map(ToString::to_string).collect(), local.outside)
}

#[test]
fn static_routes_come_before_those_to_other_subnets_and_no_gateway_service_is_no_way_outside() {
    let mut store = store();
    let subnets = [subnet(0, 256), subnet(1, 257), subnet(2, 258)].join(",");
    put(&mut store, vec![overlay('1', &subnets, 2, 2), network('1', "demo", 3)]);
    let written = |join: &str, revision: i64| {
        let value = format!(
            r#"{{"ep_iface":{{"addr":"10.0.0.2/24"}},"locator":"192.168.0.1","sandbox":"{}","joinInfo":{join}}}"#,
            id('c')
        );
        kv(&format!("{D}/endpoint/{}/{}", id('1'), id('a')), &value, 4, revision)
    };
    let update = |store: &mut Store, kv| put(store, vec![kv]).remove(id('1').as_str()).unwrap();
    let plain = r#"{"StaticRoutes":null,"disableGatewayService":false}"#;
    let led = ["10.0.1.0/24 via 10.0.0.1", "10.0.2.0/24 via 10.0.0.1"].map(str::to_owned).to_vec();
    assert_eq!(routes_and_outside(&update(&mut store, written(plain, 4))), (led.clone(), true));
    let own = r#"{"StaticRoutes":[{"Destination":{"IP":"0.0.0.0","Mask":"AAAAAA=="},"RouteType":0,"NextHop":"10.0.0.9"},
        {"Destination":{"IP":"10.0.1.0","Mask":"////AA=="},"RouteType":0,"NextHop":"10.0.0.8"}],"disableGatewayService":true}"#;
    let both = ["0.0.0.0/0 via 10.0.0.9", "10.0.1.0/24 via 10.0.0.8", "10.0.2.0/24 via 10.0.0.1"].map(str::to_owned);
    assert_eq!(routes_and_outside(&update(&mut store, written(own, 5))), (both.to_vec(), false));
    assert_eq!(routes_and_outside(&update(&mut store, written("null", 6))), (led.clone(), true));
    let internal = r#"{"name":"demo","networkType":"overlay","internal":true}"#;
    let internal = kv(&format!("{D}/network/{}", id('1')), internal, 3, 7);
    assert_eq!(routes_and_outside(&update(&mut store, internal)), (led, false));
}

/// An endpoint of network 1, with a MAC address of its own choice.
fn with_mac(e: char, last: u8, mac: u8, locator: u8, created: i64) -> Kv {
    let value = format!(
        r#"{{"ep_iface":{{"addr":"10.0.0.{last}/24","mac":"02:00:00:00:00:0{mac}"}},"locator":"192.168.0.{locator}","sandbox":"{}"}}"#,
        id(e)
    );
    kv(&format!("{D}/endpoint/{}/{}", id('1'), id(e)), &value, created, created)
}

#[test]
fn endpoints_behind_one_vtep_may_share_a_mac_address_and_behind_another_may_not() {
    let (mut store, _) = demo();
    let told = |mut updates: BTreeMap<Name, Update>| updates.remove(id('1').as_str()).unwrap_or_default().endpoints;
    let both = told(put(&mut store, vec![with_mac('d', 4, 7, 2, 10), with_mac('e', 5, 7, 2, 11)]));
    assert_eq!(both.iter().filter(|(_, spec)| matches!(spec, Some(EndpointSpec::Remote(_)))).count(), 2);
    assert!(told(put(&mut store, vec![with_mac('f', 6, 7, 3, 12)])).is_empty());
    let lost = store.conflicts().next().unwrap();
    assert_eq!((lost.field, lost.claim.as_str()), ("ep_iface.mac", "02:00:00:00:00:07 on VNI 256"));
    let key = |e: char| format!("{D}/endpoint/{}/{}", id('1'), id(e));
    // The second still has it when the first goes; when both are gone the third does.
    assert!(matches!(&told(delete(&mut store, &key('d'), 13))[..], [(_, None)]));
    assert_eq!(store.counts().conflicts, 1);
    assert!(matches!(&told(delete(&mut store, &key('e'), 14))[..], [(_, None), (_, Some(EndpointSpec::Remote(_)))]));
    assert_eq!(store.counts().conflicts, 0);
}

#[test]
fn one_who_waits_between_two_sharers_takes_the_mac_address_when_the_first_goes() {
    let (mut store, _) = demo();
    put(&mut store, vec![with_mac('d', 4, 7, 2, 10), with_mac('e', 5, 7, 3, 11), with_mac('f', 6, 7, 2, 12)]);
    let loser = |store: &Store| store.conflicts().map(|lost| lost.key.to_string()).collect::<Vec<_>>();
    assert!(loser(&store)[0].ends_with(&id('e')));
    delete(&mut store, &format!("{D}/endpoint/{}/{}", id('1'), id('d')), 13);
    assert_eq!(loser(&store).len(), 1);
    assert!(loser(&store)[0].ends_with(&id('f')), "younger than the one behind the other VTEP");
}

#[test]
fn of_those_who_share_a_mac_address_on_this_node_the_oldest_is_wired_up() {
    let (mut store, _) = demo();
    let wired = |updates: &BTreeMap<Name, Update>| {
        let endpoints = &updates[id('1').as_str()].endpoints;
        endpoints.iter().filter_map(|(of, spec)| spec.as_ref().map(|_| of.endpoint.to_string())).collect::<Vec<_>>()
    };
    let updates = put(&mut store, vec![with_mac('d', 4, 7, 1, 10), with_mac('e', 5, 7, 1, 11)]);
    assert_eq!(wired(&updates), [id('d')]);
    let blocked: Vec<_> = store.blocked().map(|blocked| (blocked.key.to_string(), blocked.reason.as_str())).collect();
    assert_eq!(blocked.len(), 1);
    assert!(blocked[0].0.ends_with(&id('e')) && blocked[0].1 == "mac");
    let updates = delete(&mut store, &format!("{D}/endpoint/{}/{}", id('1'), id('d')), 12);
    assert_eq!(wired(&updates), [id('e')]);
    assert_eq!((store.blocked().count(), store.counts().conflicts), (0, 0));
}
