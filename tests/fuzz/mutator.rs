//! Makes records that are nearly good out of good ones.

use serde_json::{Map, Value};

/// A key and its value.
#[derive(Clone, Debug)]
pub(crate) struct Document {
    pub(crate) key: Vec<u8>,
    pub(crate) value: Vec<u8>,
}

const NUMBERS: [&str; 18] = [
    "0",
    "-0",
    "1",
    "-1",
    "255",
    "256",
    "300",
    "67",
    "68",
    "1279",
    "65535",
    "65536",
    "16777215",
    "16777216",
    "9223372036854775808",
    "18446744073709551616",
    "1.5",
    "1e400",
];

const TEXTS: [&str; 40] = [
    "",
    " ",
    "host",
    "<nil>",
    "null",
    "[]",
    "{}",
    "eth%d",
    "a/b",
    "..",
    ".",
    "abcdefghijklmnop",
    "eth0",
    "/",
    "/etc/passwd",
    "/run/netns/../x",
    "/run/netns/test1",
    "/run//netns",
    "10.0.0.0",
    "10.0.0.1",
    "10.0.0.2",
    "10.0.0.255",
    "10.0.0.0/24",
    "10.0.0.0/31",
    "10.0.0.0/8",
    "0.0.0.0/0",
    "::/0",
    "fd00::/64",
    "fd00:0:0:1::2",
    "::ffff:10.0.0.1",
    "::1",
    "127.0.0.1",
    "239.1.1.1",
    "255.255.255.255",
    "192.168.205.10",
    "00:00:00:00:00:00",
    "01:00:5e:00:00:01",
    "02:42:0a:00:00:01",
    "\u{0}\u{1b}[2J\u{202e}",
    "é\u{2028}\u{feff}",
];

const TOKENS: [&[u8]; 12] =
    [b"{", b"}", b"[", b"]", b"\"", b",", b":", b"null", b"true", b"\\u0000", b"\xff\xfe", b"\xed\xa0\x80"];

const SEGMENTS: [&str; 14] = [
    "",
    "..",
    "%d",
    "a b",
    "a\nb",
    "node1",
    "node2",
    "overlay-demo",
    "second",
    "nodes",
    "networks",
    "endpoints",
    "x\u{1b}[2J",
    "abababababababababababababababababababababababababababababababab",
];

pub(crate) struct Mutator<'c> {
    state: u64,
    corpus: &'c [Document],
}

impl<'c> Mutator<'c> {
    pub(crate) fn new(seed: u64, corpus: &'c [Document]) -> Self {
        Self { state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1, corpus }
    }

    fn below(&mut self, n: usize) -> usize {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        usize::try_from((self.state >> 11) % n.max(1) as u64).unwrap()
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    pub(crate) fn next(&mut self) -> Document {
        let corpus = self.corpus;
        let mut document = corpus[self.below(corpus.len())].clone();
        if self.one_in(4) {
            self.mutate_key(&mut document.key);
        }
        if self.one_in(8) {
            return document;
        }
        for _ in 0..=self.below(3) {
            if self.below(3) > 0 {
                self.mutate_meaning(&mut document.value);
            } else {
                self.mutate_bytes(&mut document.value);
            }
        }
        if self.one_in(5000) {
            let filler = vec![b' '; 70_000];
            document.value.extend(filler);
        }
        document
    }

    fn mutate_key(&mut self, key: &mut Vec<u8>) {
        if self.one_in(4) {
            return self.mutate_bytes(key);
        }
        let text = String::from_utf8_lossy(key).into_owned();
        let mut parts: Vec<&str> = text.split('/').collect();
        // Mostly the last part: another record of the same kind.
        let at = if self.one_in(4) { self.below(parts.len()) } else { parts.len() - 1 };
        let other = format!("e{}", self.below(6));
        match self.below(6) {
            0 => parts[at] = self.one_of(&SEGMENTS),
            1 => drop(parts.remove(at)),
            2 => parts.insert(at, self.one_of(&SEGMENTS)),
            _ => parts[at] = &other,
        }
        *key = parts.join("/").into_bytes();
    }

    fn mutate_bytes(&mut self, bytes: &mut Vec<u8>) {
        let at = self.below(bytes.len() + 1);
        let end = (at + self.below(16)).min(bytes.len());
        match self.below(8) {
            0 if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
            1 if at < bytes.len() => bytes[at] = self.below(256) as u8,
            2 => bytes.truncate(at),
            3 => drop(bytes.drain(at..end)),
            4 => {
                let some = bytes[at..end].repeat(self.below(4));
                bytes.splice(at..at, some);
            }
            5 => {
                let corpus = self.corpus;
                let other = &corpus[self.below(corpus.len())].value;
                let from = self.below(other.len() + 1);
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
            6 => {
                let many = if self.one_in(50) { 200 } else { 1 };
                let token = self.one_of(&TOKENS).repeat(many);
                bytes.splice(at..at, token);
            }
            _ => self.mutate_number(bytes, at),
        }
    }

    /// Another number in the place of the next one.
    fn mutate_number(&mut self, bytes: &mut Vec<u8>, from: usize) {
        let Some(start) = bytes[from..].iter().position(u8::is_ascii_digit).map(|at| from + at) else { return };
        let end = bytes[start..].iter().position(|b| !b.is_ascii_digit()).map_or(bytes.len(), |at| start + at);
        let number = self.one_of(&NUMBERS).bytes();
        bytes.splice(start..end, number);
    }

    /// Changes a value in the document and leaves it JSON. What is none any more is changed as bytes.
    fn mutate_meaning(&mut self, bytes: &mut Vec<u8>) {
        let Ok(mut whole) = serde_json::from_slice(bytes) else { return self.mutate_bytes(bytes) };
        self.mutate_value(&mut whole);
        *bytes = whole.to_string().into_bytes();
    }

    fn mutate_value(&mut self, value: &mut Value) {
        match value {
            Value::Object(fields) if !fields.is_empty() && !self.one_in(8) => self.mutate_object(fields),
            Value::Array(items) if !items.is_empty() && !self.one_in(8) => {
                let at = self.below(items.len());
                match self.below(8) {
                    0 => drop(items.remove(at)),
                    1 => items.push(items[at].clone()),
                    2 => *items = vec![items[at].clone(); 70],
                    _ => self.mutate_value(&mut items[at]),
                }
            }
            // JSON that stands as text in JSON.
            Value::String(text) if text.starts_with(['[', '{']) && !self.one_in(8) => {
                let mut inner = std::mem::take(text).into_bytes();
                self.mutate_meaning(&mut inner);
                *text = String::from_utf8_lossy(&inner).into_owned();
            }
            Value::String(text) if !text.is_empty() && self.one_in(2) => {
                let mut inner = std::mem::take(text).into_bytes();
                self.mutate_number(&mut inner, 0);
                *text = String::from_utf8_lossy(&inner).into_owned();
            }
            _ => *value = self.new_value(value.take()),
        }
    }

    fn mutate_object(&mut self, fields: &mut Map<String, Value>) {
        let names: Vec<String> = fields.keys().cloned().collect();
        let name = &names[self.below(names.len())];
        match self.below(12) {
            0 => drop(fields.remove(name)),
            1 => {
                let value = fields.remove(name).unwrap();
                fields.insert(self.one_of(&TEXTS).to_owned(), value);
            }
            2 => {
                let other = &names[self.below(names.len())];
                let value = fields[other].clone();
                fields.insert(name.clone(), value);
            }
            3 => {
                let corpus = self.corpus;
                let other = &corpus[self.below(corpus.len())].value;
                if let Ok(Value::Object(others)) = serde_json::from_slice::<Value>(other) {
                    fields.extend(others);
                }
            }
            _ => self.mutate_value(fields.get_mut(name).unwrap()),
        }
    }

    fn new_value(&mut self, old: Value) -> Value {
        match self.below(12) {
            0 => Value::Null,
            1 => Value::Bool(self.one_in(2)),
            2 => Value::Array(vec![old]),
            3 => Value::String(old.to_string()),
            4 => (0..self.below(200)).fold(old, |inner, _| Value::Array(vec![inner])),
            5 => Value::String("x".repeat(self.below(2000))),
            6..9 => serde_json::from_str(self.one_of(&NUMBERS)).unwrap_or(Value::Null),
            _ => Value::String(self.one_of(&TEXTS).to_owned()),
        }
    }
}
