//! One type for each kind of identifier, so that none is taken for another.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A text that is not a hyphenated UUID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a UUID of the form 8-4-4-4-12")]
pub struct InvalidId;

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.as_hyphenated().fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            /// Reads the hyphenated form only: `Uuid::parse_str` would also take braces, `urn:`
            /// and bare hex, and one id must have one spelling. Upper case is accepted.
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let hyphenated = text.len() == 36
                    && [8, 13, 18, 23].iter().all(|&at| text.as_bytes()[at] == b'-');
                if !hyphenated {
                    return Err(InvalidId);
                }
                Uuid::try_parse(text).map(Self).map_err(|_| InvalidId)
            }
        }
    };
}

uuid_id! {
    /// Names one session for its whole life, all attempts included.
    SessionId
}
uuid_id! {
    /// Names one orchestration: sessions that were asked for together.
    OrchestrationId
}
uuid_id! {
    /// Claude Code's own name for its conversation, chosen by us before it starts.
    ClaudeSessionId
}
uuid_id! {
    /// Names one wait of a client's for sessions.
    WaitId
}

/// Which run of a session: the first is 1. Each attempt has a sandbox and volumes of its own, and
/// starts Claude at most once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Attempt(pub u32);

impl Attempt {
    /// The first attempt of every session.
    pub const FIRST: Self = Self(1);
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Counts the changes of a session's row; a write names the version it read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Version(pub u64);

impl Version {
    /// The version after one more change.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_hyphenated_form_is_an_id() {
        let plain = "0192d1f6-0000-7000-8000-000000000001";
        assert_eq!(
            plain.parse::<SessionId>().map(|id| id.to_string()),
            Ok(plain.to_owned())
        );
        for wrong in [
            "",
            "x",
            "{0192d1f6-0000-7000-8000-000000000001}",
            "urn:uuid:0192d1f6-0000-7000-8000-000000000001",
            "0192d1f6000070008000000000000001",
            "0192d1f6-0000-7000-8000-00000000000g",
            "0192d1f6-0000-7000-8000-000000000001\n",
            "../../../../../../../../../etc/passwd",
        ] {
            assert_eq!(wrong.parse::<SessionId>(), Err(InvalidId), "{wrong:?}");
        }
    }
}
