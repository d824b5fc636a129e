use std::fmt;

use thiserror::Error;

/// Why a record is rejected. Closed: it is a metric's label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// The key is none of the schema's.
    Key,
    /// The value is too long.
    Size,
    /// The value is not one JSON object without repeated fields.
    Json,
    /// A field that the schema does not have.
    UnknownField,
    /// A required field is missing.
    MissingField,
    /// A field's value is of the wrong type, malformed or out of range.
    Value,
    /// Subnets of one network overlap.
    Overlap,
    /// The endpoint does not fit its network.
    Misfit,
    /// The endpoint asks for the gateway's address or MAC.
    Reserved,
    /// The record asks for something that this version does not do.
    Unsupported,
    /// There are more records of its kind than count, and it is among the youngest.
    Count,
}

impl Reason {
    /// The label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::Size => "size",
            Self::Json => "json",
            Self::UnknownField => "unknown_field",
            Self::MissingField => "missing_field",
            Self::Value => "value",
            Self::Overlap => "overlap",
            Self::Misfit => "misfit",
            Self::Reserved => "reserved",
            Self::Unsupported => "unsupported",
            Self::Count => "count",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A record that is not taken, and why. Every text in it is escaped and of bounded length.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{key}: {field}{sep}{reason}: {message}", sep = if field.is_empty() { "" } else { ": " })]
pub struct Rejected {
    /// The record's key.
    pub key: String,
    /// The field, such as `subnets[0].cidr`; empty when it is the whole record.
    pub field: String,
    /// Why, as a label.
    pub reason: Reason,
    /// Why, in words.
    pub message: String,
}

impl Rejected {
    /// Text of at most this many bytes (before the dots) stands in a rejection; a valid key always fits.
    const MAX_TEXT: usize = 256;

    /// A rejection of the record at `key`.
    pub fn new(key: &[u8], field: &str, reason: Reason, message: &str) -> Self {
        Self {
            key: bounded(key.escape_ascii().map(char::from)),
            field: printable(field),
            reason,
            message: printable(message),
        }
    }
}

/// Text of outside as it may be shown: what is not printable, or turns the direction of text, escaped; cut where it is long.
pub(super) fn printable(text: &str) -> String {
    bounded(text.chars().flat_map(|c| {
        let shown = matches!(c, '\'' | '"' | '\\') || c.escape_debug().len() == 1;
        let escaped = if shown { None } else { Some(c.escape_default()) };
        let plain = if shown { Some(c) } else { None };
        escaped.into_iter().flatten().chain(plain)
    }))
}

fn bounded(chars: impl Iterator<Item = char>) -> String {
    let mut text = String::new();
    for c in chars {
        if text.len() + c.len_utf8() > Rejected::MAX_TEXT {
            text.push('…');
            break;
        }
        text.push(c);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_outside_is_escaped_and_cut() {
        let rejected = Rejected::new(b"/p/\x1b[2J\n", "a\nb", Reason::Value, &"x".repeat(10_000));
        assert_eq!(rejected.key, "/p/\\x1b[2J\\n");
        assert_eq!(rejected.field, "a\\nb");
        assert!(rejected.message.len() < 300);
        assert_eq!(printable("\u{202e}\u{200b}\u{85} 'é\\'"), r"\u{202e}\u{200b}\u{85} 'é\'");
        assert!(rejected.to_string().starts_with("/p/\\x1b[2J\\n: a\\nb: value: xxx"));
    }
}
