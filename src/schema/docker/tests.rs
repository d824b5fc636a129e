use std::collections::BTreeMap;

use super::*;
use crate::schema::Reason;

const PREFIX: &str = "/docker/network/v1.0";
const NID: &str = "d6c35f4f5a6969dd5907c7049e56ae746d1ba947f478129cfbada23e558082eb";
const EID: &str = "b67ef09480c92fb5e8cbd927241474816f11b3bf858d2e32b1397588c77447db";

fn documents(text: &str) -> BTreeMap<String, String> {
    let line = |line: &str| {
        let line: BTreeMap<String, String> = serde_json::from_str(line).unwrap();
        (line["key"].clone(), line["value"].clone())
    };
    text.lines().map(line).collect()
}

fn demo() -> BTreeMap<String, String> {
    documents(include_str!("../../../tests/fixtures/docker/demo.jsonl"))
}

fn refused<T: std::fmt::Debug>(
    decode: impl Fn(&[u8], &[u8]) -> Result<T, Rejected>,
    value: &str,
    field: &str,
    reason: Reason,
) {
    let rejected = decode(b"/d/k", value.as_bytes()).expect_err(value);
    assert_eq!((rejected.field.as_str(), rejected.reason), (field, reason), "{value}: {rejected}");
}

#[test]
fn every_document_of_the_demo_is_read_or_means_nothing() {
    let (mut networks, mut overlays, mut endpoints, mut nothing) = (0, 0, Vec::new(), Vec::new());
    for (whole, value) in demo() {
        let (whole, value) = (whole.as_bytes(), value.as_bytes());
        match Key::parse(PREFIX, whole).unwrap() {
            Some(key @ Key::Network(_)) => {
                let found = network(whole, value).unwrap().unwrap();
                let name = Some("overlay-demo".parse().unwrap());
                assert_eq!(found, Network { name, internal: false, pools_v6: Vec::new() });
                assert_eq!((key.network().as_str(), key.under(PREFIX).as_bytes()), (NID, whole));
                networks += 1;
            }
            Some(Key::Overlay(_)) => {
                let found = overlay(whole, value).unwrap();
                assert_eq!((found.mtu, found.secure, found.unallocated.len()), (1450, false, 0));
                let subnet = &found.subnets[0];
                assert_eq!((subnet.vni.get(), subnet.cidr.to_string().as_str()), (256, "10.0.0.0/24"));
                assert_eq!(subnet.gateway.to_string(), "10.0.0.1");
                overlays += 1;
            }
            Some(Key::Endpoint { .. }) => endpoints.push(endpoint(whole, value).unwrap()),
            None => nothing.push(String::from_utf8(whole.to_vec()).unwrap()),
        }
    }
    assert_eq!((networks, overlays, endpoints.len(), nothing.len()), (1, 1, 2, 6), "{nothing:?}");
    for (found, last, netns) in [(&endpoints[0], 2, "dd4530e2782c"), (&endpoints[1], 3, "8bbc689974f1")] {
        assert_eq!(found.ip, [format!("10.0.0.{last}").parse::<std::net::IpAddr>().unwrap()]);
        assert_eq!(found.mac.unwrap().to_string(), format!("02:42:0a:00:00:0{last}"));
        assert_eq!(found.locator.unwrap().to_string(), format!("192.168.205.1{}", last - 2));
        assert_eq!(found.netns.as_ref().unwrap().to_str().unwrap(), format!("/var/run/docker/netns/{netns}"));
        assert_eq!(found.prefix, "eth");
    }
}

#[test]
fn the_documents_of_the_walkthrough_are_read() {
    for (whole, value) in documents(include_str!("../../../tests/fixtures/docker/walkthrough.jsonl")) {
        let (whole, value) = (whole.as_bytes(), value.as_bytes());
        match Key::parse(PREFIX, whole).unwrap().unwrap() {
            Key::Network(_) => assert!(network(whole, value).unwrap().is_some()),
            Key::Overlay(_) => assert_eq!(overlay(whole, value).unwrap().subnets[0].vni.get(), 256),
            Key::Endpoint { .. } => panic!("there is none"),
        }
    }
}

#[test]
fn keys_of_other_kinds_mean_nothing_and_bad_identifiers_are_refused() {
    for key in [
        "endpoint_count/x",
        "ipam/default/data/GlobalDefault/10.0.0.0/24",
        "idm/vxlan-id",
        "network",
        "overlay/peer/x",
        "",
        "network/a/b",
    ] {
        assert_eq!(Key::parse(PREFIX, format!("{PREFIX}/{key}").as_bytes()).unwrap(), None, "{key}");
    }
    assert_eq!(Key::parse(PREFIX, b"/docker/network/v1.0\xff").unwrap(), None);
    assert_eq!(Key::parse(PREFIX, format!("/docker/network/v1.01/network/{NID}").as_bytes()).unwrap(), None);
    let long = "a".repeat(65);
    for id in ["", "x", "..", &NID[1..], &NID.to_uppercase(), &long] {
        let rejected = Key::parse(PREFIX, format!("{PREFIX}/network/{id}").as_bytes()).unwrap_err();
        assert_eq!(rejected.reason, Reason::Key);
        Key::parse(PREFIX, format!("{PREFIX}/endpoint/{NID}/{id}").as_bytes()).unwrap_err();
    }
    let key = format!("{PREFIX}/endpoint/{NID}/{EID}");
    assert_eq!(Key::parse(&format!("{PREFIX}/"), key.as_bytes()).unwrap().unwrap().under(PREFIX), key);
}

#[test]
fn only_overlay_networks_that_are_there_to_stay_are_networks() {
    for value in [
        "{}",
        r#"{"networkType":null,"name":null}"#,
        r#"{"networkType":"bridge","ipamV6Info":"{"}"#,
        r#"{"networkType":"overlay","inDelete":true}"#,
        r#"{"networkType":"overlay","configOnly":true}"#,
    ] {
        assert_eq!(network(b"/d/k", value.as_bytes()).unwrap(), None, "{value}");
    }
    for more in
        ["", r#","inDelete":null,"configOnly":null,"internal":null,"name":null,"ipamV6Info":null"#, r#","name":"a b""#]
    {
        let value = format!(r#"{{"networkType":"overlay"{more}}}"#);
        assert_eq!(network(b"/d/k", value.as_bytes()).unwrap(), Some(Network::default()), "{value}");
    }
    refused(network, "[]", "", Reason::Json);
    refused(network, "", "", Reason::Json);
    refused(network, r#"{"networkType":"overlay","inDelete":"no"}"#, "inDelete", Reason::Value);
    refused(network, &"[".repeat(MAX_VALUE), "", Reason::Json);
    refused(network, &" ".repeat(MAX_VALUE + 1), "", Reason::Size);
}

#[test]
fn ipv6_pools_are_read_out_of_json_in_json_in_json() {
    let data = serde_json::json!({"AddressSpace": "GlobalDefault", "Gateway": "fd00::1/64", "Pool": "fd00::/64"});
    let info = serde_json::json!([{"IPAMData": data.to_string(), "PoolID": "x"}, {"IPAMData": ""}, {}, null]);
    for info in [serde_json::Value::String(info.to_string()), info] {
        let value = serde_json::json!({"networkType": "overlay", "ipamV6Info": info}).to_string();
        let pools = network(b"/d/k", value.as_bytes()).unwrap().unwrap().pools_v6;
        assert_eq!(pools, ["fd00::/64".parse().unwrap()]);
    }
    let bad = |info: &str| serde_json::json!({"networkType": "overlay", "ipamV6Info": info}).to_string();
    refused(network, &bad("{"), "ipamV6Info", Reason::Value);
    refused(network, &bad("{}"), "ipamV6Info", Reason::Value);
    refused(
        network,
        &bad(r#"[{"IPAMData":"{\"Pool\":\"10.0.0.0/24\"}"}]"#),
        "ipamV6Info[0].IPAMData.Pool",
        Reason::Value,
    );
    refused(network, &bad(r#"[{"IPAMData":"{\"Pool\":\"x\"}"}]"#), "ipamV6Info[0].IPAMData.Pool", Reason::Value);
}

#[test]
fn overlays_of_old_and_new_versions_are_read_alike() {
    let subnets = r#"[{"SubnetIP":"10.0.0.0/24","GwIP":"10.0.0.1/24","Vni":256}]"#;
    let old = overlay(b"/d/k", subnets.as_bytes()).unwrap();
    for more in ["", r#","mtu":0"#, r#","mtu":null,"secure":null"#, r#","mtu":1500,"secure":false,"future":{}"#] {
        let new = overlay(b"/d/k", format!(r#"{{"subnets":{subnets}{more}}}"#).as_bytes()).unwrap();
        assert_eq!(new, old, "{more}");
    }
    let jumbo = overlay(b"/d/k", br#"{"mtu":9000,"secure":true}"#).unwrap();
    assert_eq!((jumbo.mtu, jumbo.secure, jumbo.subnets.len()), (8950, true, 0));
}

#[test]
fn a_subnet_without_a_vni_is_not_allocated_yet() {
    let value = br#"[{"SubnetIP":"10.0.0.0/24","GwIP":"<nil>","Vni":7},{"SubnetIP":"10.0.1.0/24","Vni":0},
        {"SubnetIP":"10.0.2.0/24","GwIP":null},{"SubnetIP":""},{}]"#;
    let overlay = overlay(b"/d/k", value).unwrap();
    assert_eq!((overlay.subnets.len(), overlay.unallocated.len()), (1, 2));
    assert_eq!(overlay.subnets[0].gateway.to_string(), "10.0.0.1");
}

#[test]
fn a_bad_overlay_names_its_field() {
    refused(overlay, "3", "", Reason::Json);
    refused(overlay, r#"{"subnets":{}}"#, "subnets", Reason::Value);
    refused(overlay, r#"{"mtu":-1}"#, "mtu", Reason::Value);
    refused(overlay, r#"{"secure":1}"#, "secure", Reason::Value);
    refused(overlay, r#"[7]"#, "[0]", Reason::Value);
    let subnet = |fields: &str| format!(r#"{{"subnets":[{{{fields}}}]}}"#);
    refused(overlay, &subnet(r#""SubnetIP":"10.0.0""#), "subnets[0].SubnetIP", Reason::Value);
    refused(overlay, &subnet(r#""SubnetIP":"10.0.0.0/32""#), "subnets[0].SubnetIP", Reason::Value);
    refused(overlay, &subnet(r#""SubnetIP":"10.0.0.0/24","Vni":16777216"#), "subnets[0].Vni", Reason::Value);
    for gateway in ["10.0.1.1/24", "10.0.0.255", "x", "/"] {
        let value = subnet(&format!(r#""SubnetIP":"10.0.0.0/24","Vni":7,"GwIP":"{gateway}""#));
        refused(overlay, &value, "subnets[0].GwIP", Reason::Value);
    }
    let two = r#"[{"SubnetIP":"10.0.0.0/16","Vni":1},{"SubnetIP":"10.0.3.0/24","Vni":0}]"#;
    refused(overlay, two, "[1].SubnetIP", Reason::Overlap);
}

#[test]
fn of_an_endpoint_nearly_everything_may_be_missing_or_null() {
    let empty = endpoint(b"/d/k", b"{}").unwrap();
    assert_eq!((empty.ip.len(), empty.locator, &empty.netns, empty.prefix.as_str()), (0, None, &None, "eth"));
    for value in [
        r#"{"ep_iface":null,"locator":null,"sandbox":null}"#,
        r#"{"ep_iface":{},"locator":"","sandbox":""}"#,
        r#"{"ep_iface":{"addr":null,"addrv6":"fd00::2/64","mac":null,"dstPrefix":null},"joinInfo":null}"#,
        r#"{"ep_iface":{"addr":"\u003cnil\u003e","mac":""},"locator":"<nil>"}"#,
    ] {
        assert_eq!(endpoint(b"/d/k", value.as_bytes()).unwrap(), empty, "{value}");
    }
    let both = r#"{"ep_iface":{"addr":"10.0.0.2","addrv6":"fd00::2/64"},"locator":"fd00::1","sandbox":"short"}"#;
    let both = endpoint(b"/d/k", both.as_bytes()).unwrap();
    assert_eq!((both.ip.len(), both.mac, both.locator), (2, None, "fd00::1".parse().ok()));
    assert_eq!(both.netns, Some("/var/run/docker/netns/short".into()));
}

#[test]
fn a_bad_endpoint_names_its_field() {
    refused(endpoint, "[]", "", Reason::Json);
    refused(endpoint, r#"{"ep_iface":[]}"#, "ep_iface", Reason::Value);
    refused(endpoint, r#"{"ep_iface":{"addr":"10.0.0"}}"#, "ep_iface.addr", Reason::Value);
    refused(endpoint, r#"{"ep_iface":{"addr":"127.0.0.1/8"}}"#, "ep_iface.addr", Reason::Value);
    refused(endpoint, r#"{"ep_iface":{"addr":"10.0.0.2/24","addrv6":"ff02::1/64"}}"#, "ep_iface.addrv6", Reason::Value);
    for mac in ["00:00:00:00:00:00", "01:00:5e:00:00:01", "x"] {
        refused(endpoint, &format!(r#"{{"ep_iface":{{"mac":"{mac}"}}}}"#), "ep_iface.mac", Reason::Value);
    }
    for prefix in ["e/h", "x%d", "eth.", "abcdefghijk"] {
        refused(
            endpoint,
            &format!(r#"{{"ep_iface":{{"dstPrefix":"{prefix}"}}}}"#),
            "ep_iface.dstPrefix",
            Reason::Value,
        );
    }
    for locator in ["127.0.0.1", "239.0.0.1", "host", "192.168.0.1:2376"] {
        refused(endpoint, &format!(r#"{{"locator":"{locator}"}}"#), "locator", Reason::Value);
    }
    for sandbox in ["../../../etc", "a/b", "..", "é"] {
        refused(endpoint, &format!(r#"{{"sandbox":"{sandbox}"}}"#), "sandbox", Reason::Value);
    }
}

#[test]
fn a_locator_is_the_name_of_its_node_and_back() {
    for text in ["192.168.205.10", "fd00::1", "::5", "2001:db8:1:2:3:4:5:6"] {
        let locator = text.parse().unwrap();
        assert_eq!(locator_of(&node_of(locator).unwrap()), Some(locator), "{text}");
    }
    assert_eq!(locator_of(&"docker-node1".parse().unwrap()), None);
}
