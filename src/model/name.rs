use std::{borrow::Borrow, fmt, str::FromStr, sync::Arc};

use thiserror::Error;

/// A name that stands in a key: `[a-zA-Z0-9][a-zA-Z0-9_.-]{0,63}`. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Arc<str>);

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
        &self.0
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
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
