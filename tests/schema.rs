//! The published JSON Schema of the native records, held against what the decoders take.

#![allow(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test ends where something is not as it should be"
)]

use std::{collections::BTreeMap, fs, path::Path};

use jsonschema::Validator;
use serde_json::{Value, json};
use vtepd::schema::{self, Key, Rejected};

fn file(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn validator(kind: &str) -> Validator {
    let schema: Value = serde_json::from_str(&file(&format!("schema/{kind}.json"))).unwrap();
    jsonschema::draft202012::meta::validate(&schema).unwrap_or_else(|error| panic!("{kind}: {error}"));
    jsonschema::options().should_validate_formats(true).build(&schema).unwrap_or_else(|error| panic!("{kind}: {error}"))
}

fn decoded(kind: &str, value: &Value) -> Result<(), Rejected> {
    let value = value.to_string();
    match kind {
        "node" => schema::node(b"k", value.as_bytes()).map(drop),
        "network" => schema::network(b"k", value.as_bytes()).map(drop),
        _ => schema::endpoint(b"k", value.as_bytes()).map(drop),
    }
}

fn assert_agreed(kind: &str, validator: &Validator, value: &Value, good: bool) {
    let decoded = decoded(kind, value);
    assert_eq!(decoded.is_ok(), good, "{kind} {value}: the decoder says {decoded:?}");
    let said = validator.validate(value).map_err(|error| error.to_string());
    assert_eq!(said.is_ok(), good, "{kind} {value}: the schema says {said:?}");
}

/// Each value in the place of `field` of a good record.
fn with(good: &Value, field: &str, values: &[Value]) -> Vec<Value> {
    let put = |value: &Value| {
        let mut record = good.clone();
        record[field] = value.clone();
        record
    };
    values.iter().map(put).collect()
}

#[test]
fn schema_and_decoder_agree_on_nodes() {
    let validator = validator("node");
    let vtep = |values: &[Value]| with(&json!({}), "vtep", values);
    for value in vtep(&[json!("192.168.205.10"), json!("fd00::1"), json!("2001:db8::")]) {
        assert_agreed("node", &validator, &value, true);
    }
    let bad = [
        "",
        "x",
        "0.0.0.0",
        "127.0.0.1",
        "239.1.1.1",
        "255.255.255.255",
        "::",
        "::1",
        "ff02::1",
        "::ffff:10.0.0.1",
        "1.2.3",
    ];
    let bad = vtep(&bad.map(Value::from)).into_iter().chain(vtep(&[json!(7), json!(null), json!(["10.0.0.1"])]));
    for value in bad.chain([json!({}), json!([]), json!("x"), json!({"vtep": "10.0.0.1", "name": "a"})]) {
        assert_agreed("node", &validator, &value, false);
    }
}

#[test]
fn schema_and_decoder_agree_on_networks() {
    let validator = validator("network");
    let v4 = json!({"subnets": [{"cidr": "10.0.0.0/24", "vni": 256}]});
    let v6 = json!({"subnets": [{"cidr": "10.0.0.0/24", "vni": 256}, {"cidr": "fd00::/64", "vni": 256, "gateway": "fd00::ff"}]});
    let subnets = |field: &str, values: &[Value]| {
        let all = with(&json!({"cidr": "10.0.0.0/24", "vni": 256}), field, values);
        all.into_iter().map(|subnet| json!({"subnets": [subnet]})).collect::<Vec<_>>()
    };
    let good = [
        vec![v4.clone(), v6.clone()],
        with(&v4, "mtu", &[json!(null), json!(68), json!(65535)]),
        with(&v6, "mtu", &[json!(null), json!(1280)]),
        with(&v4, "port", &[json!(null), json!(1), json!(65535)]),
        with(&v4, "flood", &[json!(null), json!(true)]),
        with(&v4, "labels", &[json!(null), json!({}), json!({"a": "b"})]),
        subnets("vni", &[json!(1), json!(16_777_215)]),
        subnets("gateway", &[json!(null), json!("10.0.0.254")]),
        subnets("cidr", &[json!("10.0.0.0/30"), json!("128.0.0.0/1"), json!("fd00::/127"), json!("fd00::/8")]),
    ];
    for value in good.iter().flatten() {
        assert_agreed("network", &validator, value, true);
    }
    let cidrs = [
        "",
        "x",
        "10.0.0.0",
        "10.0.0.0/0",
        "10.0.0.0/31",
        "fd00::/128",
        "fd00::/0",
        "0.0.0.0/0",
        "127.0.0.0/8",
        "239.0.0.0/24",
        "ff02::/64",
        "::/64",
    ];
    let bad = [
        vec![json!({}), json!([]), json!({"subnets": []}), json!({"subnets": [{}]}), json!({"subnets": null})],
        with(&v4, "mtu", &[json!(67), json!(65536), json!("1450"), json!(1450.5), json!(-1)]),
        with(&v6, "mtu", &[json!(1279)]),
        with(&v4, "port", &[json!(0), json!(65536), json!("4789")]),
        with(&v4, "secure", &[json!("yes"), json!(0)]),
        with(&v4, "labels", &[json!({"a": 1}), json!([]), json!({"a": "x".repeat(1025)})]),
        with(&v4, "Internal", &[json!(true)]),
        subnets("vni", &[json!(0), json!(16_777_216), json!(-1), json!("1"), json!(null)]),
        subnets("gateway", &[json!(""), json!("x"), json!("239.0.0.1"), json!(1)]),
        subnets("gw", &[json!("10.0.0.1")]),
        subnets("cidr", &cidrs.map(Value::from)),
    ];
    for value in bad.iter().flatten() {
        assert_agreed("network", &validator, value, false);
    }
}

#[test]
fn schema_and_decoder_agree_on_endpoints() {
    let validator = validator("endpoint");
    let one = json!({"ip": ["10.0.0.2"]});
    let good = [
        vec![
            one.clone(),
            json!({"ip": ["10.0.0.2", "fd00::2"]}),
            json!({"ip": ["10.0.0.2"], "netns": "host", "ifname": "tap0"}),
        ],
        with(&one, "mac", &[json!(null), json!("02:42:0a:00:00:02"), json!("52:54:00:AB:cd:07")]),
        with(&one, "netns", &[json!(null), json!("/run/netns/a"), json!("/run/netns/.a..b")]),
        with(&one, "ifname", &[json!(null), json!("eth0"), json!("a.b-c_d"), json!("abcdefghijklmno"), json!("...")]),
    ];
    for value in good.iter().flatten() {
        assert_agreed("endpoint", &validator, value, true);
    }
    let many: Vec<String> = (0..65).map(|n| format!("10.0.1.{n}")).collect();
    let macs = ["", "x", "ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01", "00:00:00:00:00:00", "02:42:0a:00:00"];
    let paths =
        ["", "/", "netns/a", "/run/../etc", "/run/netns/..", "/run//x", "/run/netns/", "/run/./x", "/a\u{0}b", "/a\nb"];
    let names = ["", ".", "..", "a/b", "a b", "a:b", "x%d", "abcdefghijklmnop", "a\u{7}", "é"];
    let bad = [
        vec![
            json!({}),
            json!([]),
            json!({"ip": ["10.0.0.2"], "netns": "host"}),
            json!({"ip": ["10.0.0.2"], "netns": "host", "ifname": null}),
        ],
        with(
            &one,
            "ip",
            &[json!([]), json!(null), json!("10.0.0.2"), json!(["10.0.0.2", "10.0.0.2"]), json!(many), json!([7])],
        ),
        with(&one, "ip", &["x", "0.0.0.0", "127.0.0.1", "224.0.0.1", "::1", "ff02::1"].map(|ip| json!([ip]))),
        with(&one, "mac", &macs.map(Value::from)),
        with(&one, "netns", &paths.map(Value::from)),
        with(&one, "ifname", &names.map(Value::from)),
        with(&one, "vni", &[json!(1)]),
    ];
    for value in bad.iter().flatten() {
        assert_agreed("endpoint", &validator, value, false);
    }
}

/// The values that README and `docs/` put, by the kind that their keys are of.
#[test]
fn the_examples_of_the_documents_are_good_by_schema_and_decoder() {
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    let pages = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/docs")).unwrap();
    let pages = pages.map(|page| format!("docs/{}", page.unwrap().file_name().into_string().unwrap()));
    for page in pages.filter(|page| page.ends_with(".md")).chain(["README.md".to_owned()]) {
        let text = file(&page).replace("\\\n", " ");
        for example in text.split("etcdctl put ").skip(1) {
            let Some((key, rest)) = example.split_once(" '").filter(|(key, _)| !key.contains('\n')) else { continue };
            let Some((value, _)) = rest.split_once('\'') else { continue };
            let kind = match Key::parse("/vtepd/v1", key.trim().as_bytes()).unwrap() {
                Key::Node(_) => "node",
                Key::Network(_) => "network",
                _ => "endpoint",
            };
            assert_agreed(kind, &validator(kind), &serde_json::from_str(value).unwrap(), true);
            *kinds.entry(kind).or_default() += 1;
        }
    }
    let (endpoints, networks, nodes) = (kinds["endpoint"], kinds["network"], kinds["node"]);
    assert!(endpoints >= 3 && networks >= 1 && nodes >= 1, "{kinds:?}");
}
