use std::{borrow::Borrow, cmp::Ordering, fmt, hash, str::FromStr, sync::Arc};

use thiserror::Error;

/// A name that stands in a key: `[a-zA-Z0-9][a-zA-Z0-9_.-]{0,63}`. Cheap to clone and to compare: what is not long, as most names,
/// is held in place.
#[derive(Clone)]
pub struct Name(Text);

#[derive(Clone)]
enum Text {
    Short(Short),
    Long(Arc<str>),
}

/// So many bytes are held in place: with their number and the distinction from a long one three words.
const SHORT: usize = 22;

/// A text of few bytes, with zeros behind it. No name has a zero in it, so that the bytes alone order names like their texts.
#[derive(Clone, Copy)]
struct Short {
    len: u8,
    bytes: [u8; SHORT],
}

impl Short {
    fn new(text: &str) -> Option<Self> {
        let mut bytes = [0; SHORT];
        bytes.get_mut(..text.len())?.copy_from_slice(text.as_bytes());
        Some(Self { len: u8::try_from(text.len()).ok()?, bytes })
    }

    fn as_str(&self) -> &str {
        let bytes = self.bytes.get(..usize::from(self.len)).unwrap_or_default();
        // It was made of text.
        std::str::from_utf8(bytes).unwrap_or_default()
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Short::new(text).map_or_else(|| Self::Long(text.into()), Self::Short)
    }
}

impl Ord for Name {
    fn cmp(&self, other: &Self) -> Ordering {
        match (&self.0, &other.0) {
            (Text::Short(one), Text::Short(other)) => one.bytes.cmp(&other.bytes),
            (Text::Long(one), Text::Long(other)) if Arc::ptr_eq(one, other) => Ordering::Equal,
            _ => self.as_str().cmp(other.as_str()),
        }
    }
}

impl PartialOrd for Name {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Name {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Name {}

impl hash::Hash for Name {
    fn hash<H: hash::Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

/// Why a text is not a [`Name`].
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("is not a name of the form [a-zA-Z0-9][a-zA-Z0-9_.-]{{0,63}}")]
pub struct InvalidName;

impl Name {
    /// The longest name, in bytes.
    pub const MAX: usize = 64;

    /// What is called so is the host's own and no record's: a key cannot have this name.
    pub fn host() -> Self {
        Self("(host)".into())
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        match &self.0 {
            Text::Short(short) => short.as_str(),
            Text::Long(text) => text,
        }
    }
}

impl FromStr for Name {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
        let valid = text.len() <= Self::MAX
            && text.bytes().all(allowed)
            && text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
        if valid { Ok(Self(text.into())) } else { Err(InvalidName) }
    }
}

impl Borrow<str> for Name {
    fn borrow(&self) -> &str {
        self.as_str()
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_ordered_like_their_texts_whether_long_or_short() {
        let texts: Vec<String> =
            (1..=64).flat_map(|n| ["a", "b", "a-", "."].map(|t| format!("a{}", t.repeat(n)))).collect();
        let texts: Vec<String> = texts.into_iter().filter(|text| text.len() <= Name::MAX).collect();
        for (one, other) in texts.iter().flat_map(|one| texts.iter().map(move |other| (one, other))) {
            let (a, b): (Name, Name) = (one.parse().unwrap(), other.parse().unwrap());
            assert_eq!((a.cmp(&b), a == b, a.as_str()), (one.cmp(other), one == other, one.as_str()));
        }
        assert_eq!(size_of::<Name>(), 24);
    }

    #[test]
    fn names_are_what_the_key_schema_allows() {
        for good in ["a", "overlay-demo", "Node_1.example", &"x".repeat(64)] {
            assert!(good.parse::<Name>().is_ok(), "{good}");
        }
        for bad in ["", "-a", ".", "..", "a/b", "a b", "x%d\n", "é", &"x".repeat(65)] {
            assert_eq!(bad.parse::<Name>(), Err(InvalidName), "{bad}");
        }
    }
}
