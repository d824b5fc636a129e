//! JSON that is read strictly: a field that nobody asked for, or that stands twice, is an error with the field's name.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, SeqAccess, Visitor},
};

use super::{Reason, Rejected};

#[derive(Debug)]
pub(super) enum Json {
    Null,
    Bool(bool),
    Unsigned(u64),
    /// Negative, fractional or beyond 64 bits: no field of the schema is one.
    OtherNumber,
    Text(String),
    List(Vec<Json>),
    Object(Vec<(String, Json)>),
}

impl Json {
    const fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a boolean",
            Self::Unsigned(_) | Self::OtherNumber => "a number",
            Self::Text(_) => "a string",
            Self::List(_) => "a list",
            Self::Object(_) => "an object",
        }
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(JsonVisitor)
    }
}

/// Up to so many fields are compared one by one.
const FEW: usize = 16;

struct JsonVisitor;

impl<'de> Visitor<'de> for JsonVisitor {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(Json::Unsigned(value))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Json, E> {
        Ok(Json::OtherNumber)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Json, E> {
        Ok(Json::OtherNumber)
    }

    fn visit_str<E>(self, value: &str) -> Result<Json, E> {
        Ok(Json::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Json, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            items.push(item);
        }
        Ok(Json::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
        let mut fields: Vec<(String, Json)> = Vec::new();
        // A record has few fields; what has many is looked through by a set.
        let mut names = std::collections::BTreeSet::new();
        while let Some((name, value)) = map.next_entry::<String, Json>()? {
            let twice = if fields.len() < FEW {
                fields.iter().any(|(other, _)| *other == name)
            } else {
                if names.is_empty() {
                    names.extend(fields.iter().map(|(name, _)| name.clone()));
                }
                !names.insert(name.clone())
            };
            if twice {
                return Err(A::Error::custom(format_args!("field '{name}' stands twice")));
            }
            fields.push((name, value));
        }
        Ok(Json::Object(fields))
    }
}

/// One value and where it stands, so that an error can say so.
pub(super) struct Field<'k> {
    key: &'k [u8],
    path: String,
    json: Json,
}

/// The fields of one object, taken one by one.
pub(super) struct Fields<'k> {
    key: &'k [u8],
    path: String,
    fields: Vec<(String, Json)>,
}

impl<'k> Field<'k> {
    /// The record's whole value.
    pub(super) fn parse(key: &'k [u8], value: &[u8]) -> Result<Self, Rejected> {
        let json = serde_json::from_slice(value).map_err(|e| Rejected::new(key, "", Reason::Json, &e.to_string()))?;
        Ok(Self { key, path: String::new(), json })
    }

    pub(super) fn reject(&self, reason: Reason, message: &str) -> Rejected {
        Rejected::new(self.key, &self.path, reason, message)
    }

    fn wrong(&self, wanted: &str) -> Rejected {
        let reason = if self.path.is_empty() { Reason::Json } else { Reason::Value };
        self.reject(reason, &format!("is {}, not {wanted}", self.json.kind()))
    }

    pub(super) fn object(self) -> Result<Fields<'k>, Rejected> {
        match self.json {
            Json::Object(fields) => Ok(Fields { key: self.key, path: self.path, fields }),
            _ => Err(self.wrong("an object")),
        }
    }

    /// The items of a list of 1 to `max`.
    pub(super) fn list(self, max: usize) -> Result<Vec<Self>, Rejected> {
        self.list_of(1, max)
    }

    /// The items of a list of `min` to `max`.
    pub(super) fn list_of(mut self, min: usize, max: usize) -> Result<Vec<Self>, Rejected> {
        let Json::List(items) = &mut self.json else { return Err(self.wrong("a list")) };
        let items = std::mem::take(items);
        if !(min..=max).contains(&items.len()) {
            return Err(self.reject(Reason::Value, &format!("has {} items; {min} to {max} are allowed", items.len())));
        }
        let (key, path) = (self.key, self.path);
        let item = |(i, json)| Self { key, path: format!("{path}[{i}]"), json };
        Ok(items.into_iter().enumerate().map(item).collect())
    }

    /// Whether it is a list.
    pub(super) const fn is_list(&self) -> bool {
        matches!(self.json, Json::List(_))
    }

    /// JSON that stands as text in JSON; a value that is no text is itself, and empty text is `null`.
    pub(super) fn unwrapped(self) -> Result<Option<Self>, Rejected> {
        let json = match &self.json {
            Json::Null => return Ok(None),
            Json::Text(text) if text.trim().is_empty() => return Ok(None),
            Json::Text(text) => serde_json::from_str(text)
                .map_err(|error| self.reject(Reason::Value, &format!("holds text that is no JSON: {error}")))?,
            _ => return Ok(Some(self)),
        };
        let field = Self { json, ..self };
        Ok(if matches!(field.json, Json::Null) { None } else { Some(field) })
    }

    pub(super) fn text(&self) -> Result<&str, Rejected> {
        match &self.json {
            Json::Text(text) => Ok(text),
            _ => Err(self.wrong("a string")),
        }
    }

    pub(super) fn bool(&self) -> Result<bool, Rejected> {
        match self.json {
            Json::Bool(value) => Ok(value),
            _ => Err(self.wrong("true or false")),
        }
    }

    /// A whole number within the bounds.
    pub(super) fn number(&self, min: u64, max: u64) -> Result<u64, Rejected> {
        let within = || self.reject(Reason::Value, &format!("is not a whole number from {min} to {max}"));
        match self.json {
            Json::Unsigned(number) if (min..=max).contains(&number) => Ok(number),
            Json::Unsigned(_) | Json::OtherNumber => Err(within()),
            _ => Err(self.wrong("a number")),
        }
    }

    /// Text that `T` can be read from.
    pub(super) fn parsed<T: std::str::FromStr>(&self, what: &str) -> Result<T, Rejected> {
        let text = self.text()?;
        text.parse().map_err(|_| self.reject(Reason::Value, &format!("'{text}' is not {what}")))
    }
}

impl<'k> Fields<'k> {
    /// Takes a field; `null` is as good as absent.
    pub(super) fn take(&mut self, name: &str) -> Option<Field<'k>> {
        let at = self.fields.iter().position(|(field, _)| field == name)?;
        let (_, json) = self.fields.swap_remove(at);
        if matches!(json, Json::Null) { None } else { Some(Field { key: self.key, path: self.path_of(name), json }) }
    }

    /// Takes a field that must be there.
    pub(super) fn require(&mut self, name: &str) -> Result<Field<'k>, Rejected> {
        self.take(name).ok_or_else(|| self.reject(name, Reason::MissingField, "is required"))
    }

    /// Everything was taken: what is left is unknown.
    pub(super) fn finish(self) -> Result<(), Rejected> {
        match self.fields.first() {
            None => Ok(()),
            Some((name, _)) => Err(self.reject(name, Reason::UnknownField, "is not a field of this record")),
        }
    }

    /// What is left, whatever its names.
    pub(super) fn rest(self) -> impl Iterator<Item = (String, Field<'k>)> {
        let (key, path) = (self.key, self.path);
        self.fields.into_iter().map(move |(name, json)| {
            let path = format!("{path}.{name}");
            (name, Field { key, path, json })
        })
    }

    pub(super) fn reject(&self, name: &str, reason: Reason, message: &str) -> Rejected {
        Rejected::new(self.key, &self.path_of(name), reason, message)
    }

    fn path_of(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }
}
