//! Records in files: what `vtepd apply` and `vtepd plan --against` read.
//!
//! Three forms, as YAML or JSON: mappings as the keys have them (`networks:`, `nodes:`, `endpoints:` by network and node), lists of
//! `key` and `value`, and one such object a line, as `vtepd validate` takes them.

use std::{
    fs,
    io::{self, Read as _},
    path::Path,
};

use serde::Deserialize as _;
use serde_json::{Map, Value};

/// A record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// The whole key.
    pub(super) key: String,
    /// The value, as JSON.
    pub(super) value: String,
}

/// The records of all files, in order; `-` is standard input.
pub(super) fn read(prefix: &str, files: &[impl AsRef<Path>]) -> Result<Vec<Record>, String> {
    let mut records: Vec<Record> = Vec::new();
    for file in files.iter().map(AsRef::as_ref) {
        let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", file.display());
        let mut text = String::new();
        if file.as_os_str() == "-" {
            io::stdin().read_to_string(&mut text).map_err(|error| failed(&error))?;
        } else {
            text = fs::read_to_string(file).map_err(|error| failed(&error))?;
        }
        for document in documents(&text).map_err(|error| failed(&error))? {
            records.extend(records_of(prefix.trim_end_matches('/'), document).map_err(|error| failed(&error))?);
        }
    }
    let mut keys: Vec<&str> = records.iter().map(|record| record.key.as_str()).collect();
    keys.sort_unstable();
    if let Some(twice) = keys.windows(2).find(|two| two.first() == two.last()).and_then(|two| two.first()) {
        return Err(format!("{twice} stands in the files twice"));
    }
    Ok(records)
}

fn documents(text: &str) -> Result<Vec<Value>, String> {
    // JSON is YAML, but several objects one after the other are none.
    let json: Result<Vec<Value>, _> = serde_json::Deserializer::from_str(text).into_iter().collect();
    match json {
        Ok(documents) => Ok(documents),
        Err(_) => serde_saphyr::from_multiple::<Value>(text).map_err(|error| error.to_string()),
    }
}

fn records_of(prefix: &str, document: Value) -> Result<Vec<Record>, String> {
    match document {
        Value::Null => Ok(Vec::new()),
        Value::Array(list) => list.into_iter().map(keyed).collect(),
        Value::Object(object) if object.contains_key("key") => Ok(vec![keyed(Value::Object(object))?]),
        Value::Object(object) => {
            let mut records = Vec::new();
            for (kind, below) in object {
                let depth = match kind.as_str() {
                    "networks" | "nodes" => 1,
                    "endpoints" => 3,
                    _ => return Err(format!("`{kind}` is neither networks, nodes nor endpoints")),
                };
                below_key(&format!("{prefix}/{kind}"), below, depth, &mut records)?;
            }
            Ok(records)
        }
        _ => Err("is neither a mapping nor a list of records".to_owned()),
    }
}

/// The records below a part of a key that has so many parts more.
fn below_key(key: &str, value: Value, depth: usize, records: &mut Vec<Record>) -> Result<(), String> {
    if depth == 0 {
        records.push(Record { key: key.to_owned(), value: value.to_string() });
        return Ok(());
    }
    let names: Map<String, Value> = match value {
        Value::Object(names) => names,
        Value::Null => Map::new(),
        _ => return Err(format!("{key}: is no mapping of names")),
    };
    names.into_iter().try_for_each(|(name, value)| below_key(&format!("{key}/{name}"), value, depth - 1, records))
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Keyed {
    key: String,
    value: Value,
}

fn keyed(value: Value) -> Result<Record, String> {
    let Keyed { key, value } = Keyed::deserialize(value).map_err(|error| format!("a record of the list: {error}"))?;
    let value = if let Value::String(text) = value { text } else { value.to_string() };
    Ok(Record { key, value })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(text: &str) -> Result<Vec<(String, String)>, String> {
        let mut all = Vec::new();
        for document in documents(text)? {
            all.extend(records_of("/p", document)?.into_iter().map(|record| (record.key, record.value)));
        }
        Ok(all)
    }

    #[test]
    fn all_forms_say_the_same() {
        let yaml = "networks:\n  n:\n    subnets:\n    - {cidr: 10.0.0.0/24, vni: 256}\n---\nendpoints:\n  n:\n    a:\n      e: {ip: [10.0.0.2]}\n";
        let json = r#"{"networks":{"n":{"subnets":[{"cidr":"10.0.0.0/24","vni":256}]}},"endpoints":{"n":{"a":{"e":{"ip":["10.0.0.2"]}}}}}"#;
        let lines = "{\"key\":\"/p/networks/n\",\"value\":{\"subnets\":[{\"cidr\":\"10.0.0.0/24\",\"vni\":256}]}}\n{\"key\":\"/p/endpoints/n/a/e\",\"value\":\"{\\\"ip\\\":[\\\"10.0.0.2\\\"]}\"}\n";
        let list = "- key: /p/networks/n\n  value: {subnets: [{cidr: 10.0.0.0/24, vni: 256}]}\n- key: /p/endpoints/n/a/e\n  value: {ip: [10.0.0.2]}\n";
        let mut expected = vec![
            ("/p/endpoints/n/a/e".to_owned(), r#"{"ip":["10.0.0.2"]}"#.to_owned()),
            ("/p/networks/n".to_owned(), r#"{"subnets":[{"cidr":"10.0.0.0/24","vni":256}]}"#.to_owned()),
        ];
        expected.sort();
        for text in [yaml, json, lines, list] {
            let mut read = records(text).unwrap();
            read.sort();
            assert_eq!(read, expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_record_is_said() {
        for (text, said) in [
            ("network: {n: {}}", "`network` is neither"),
            ("networks: [n]", "no mapping of names"),
            ("just text", "neither a mapping nor a list"),
            ("- {key: /p/networks/n}", "missing field `value`"),
            ("a: [", ""),
        ] {
            let error = records(text).unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
    }
}
