//! What a session is to work on, with the rules that names from outside must meet.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// What a session is for; the wire calls it `type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Reads the project and plans; leaves no change.
    Analysis,
    /// Writes code.
    Implementation,
    /// Writes and runs tests.
    Testing,
    /// Reads changes and judges them; leaves no change.
    Review,
    /// Conducts other sessions.
    Coordination,
}

impl Kind {
    /// All kinds, in the order people name them.
    pub const ALL: [Self; 5] = [
        Self::Analysis,
        Self::Implementation,
        Self::Testing,
        Self::Review,
        Self::Coordination,
    ];

    /// The word on the wire.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Analysis => "analysis",
            Self::Implementation => "implementation",
            Self::Testing => "testing",
            Self::Review => "review",
            Self::Coordination => "coordination",
        }
    }

    /// Whether sessions of this kind may leave changes in the repository.
    #[must_use]
    pub fn writes(self) -> bool {
        matches!(self, Self::Implementation | Self::Testing)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A word that is no session kind; the text lists the known ones.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown session type; known are analysis, implementation, testing, review, coordination")]
pub struct UnknownKind;

impl FromStr for Kind {
    type Err = UnknownKind;

    fn from_str(text: &str) -> Result<Self, UnknownKind> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == text)
            .ok_or(UnknownKind)
    }
}

/// Why a repository or branch name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    /// The repository is not `owner/name` within the rules.
    #[error(
        "must be owner/name: owner of at most 39 letters, digits, - and _; name of at most 100 \
         letters, digits, ., - and _, not . or .. and without .git"
    )]
    Repository,
    /// The branch is not a name git would take.
    #[error(
        "must be a branch name git accepts: at most 244 of letters, digits and . _ / + # @ = -, \
         starting with a letter, digit or _"
    )]
    Branch,
}

/// A repository as people name it, `owner/name`.
///
/// The rules leave nothing that a shell, a URL or a path could read as more than a name: it is
/// joined to a fixed base, so it cannot name another host or leave its folder.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Repository(Arc<str>);

impl Repository {
    const OWNER_BYTES_MAX: usize = 39;
    const NAME_BYTES_MAX: usize = 100;

    /// `owner/name`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Repository {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let word = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        let (owner, name) = text.split_once('/').ok_or(InvalidName::Repository)?;
        let owner_fits = owner.len() <= Self::OWNER_BYTES_MAX
            && owner.starts_with(|c: char| c.is_ascii_alphanumeric())
            && owner.chars().all(word);
        let name_fits = name.len() <= Self::NAME_BYTES_MAX
            && name.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '.' || c == '_')
            && name.chars().all(|c| word(c) || c == '.')
            && name != "."
            && name != ".."
            && !name.to_ascii_lowercase().ends_with(".git");
        if owner_fits && name_fits {
            Ok(Self(text.into()))
        } else {
            Err(InvalidName::Repository)
        }
    }
}

/// A branch to land on, within git's own rules and narrower ones.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Branch(Arc<str>);

impl Branch {
    const BYTES_MAX: usize = 244;

    /// The name without `refs/heads/`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Branch {
    /// `baton/<short id>`: where work lands that was given no branch. The short id is the end of
    /// the id, as in a container's name: our ids begin with their time.
    #[must_use]
    pub fn own(id: uuid::Uuid) -> Self {
        let hex = id.simple().to_string();
        Self(format!("baton/{}", &hex[hex.len() - 12..]).into())
    }
}

impl FromStr for Branch {
    type Err = InvalidName;

    /// Our own letters first, then the rules of `git check-ref-format` that they leave open.
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let letters = text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "._/+#@=-".contains(c));
        let fits = letters
            && text.len() <= Self::BYTES_MAX
            && text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
            && !text.contains("..")
            && !text.contains("//")
            && !text.contains("@{")
            && !text.ends_with('/')
            && !text.ends_with('.')
            && text != "HEAD"
            && text.split('/').all(|part| {
                !part.starts_with('.') && !part.to_ascii_lowercase().ends_with(".lock")
            });
        if fits {
            Ok(Self(text.into()))
        } else {
            Err(InvalidName::Branch)
        }
    }
}

macro_rules! name_conversions {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;

            fn try_from(text: String) -> Result<Self, InvalidName> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0.as_ref().to_owned()
            }
        }
    };
}

name_conversions!(Repository);
name_conversions!(Branch);

/// What a session works on, as the client gave it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Project {
    /// Where the code is.
    pub repository: Repository,
    /// Where the result lands; `baton/<short id>` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branch: Option<Branch>,
    /// What is to be done, in the client's words, byte for byte.
    pub requirements: Arc<str>,
    /// What else Claude should know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context: Option<Arc<str>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_are_owner_and_name() {
        for good in ["owner/repo", "o/r", "a-b_c/x.y", "o/.github", "o/_x"] {
            assert!(good.parse::<Repository>().is_ok(), "{good:?}");
        }
        for bad in [
            "",
            "repo",
            "/r",
            "o/",
            "o/r/x",
            "-o/r",
            "o/..",
            "o/.",
            "o/-r",
            "o/r.git",
            "o/r.GIT",
            "o/r r",
            "o/r;id",
            "o/$(id)",
            "https://h/o/r",
            "o/r\n",
            "ö/r",
            "o\u{3000}/r",
        ] {
            assert_eq!(
                bad.parse::<Repository>(),
                Err(InvalidName::Repository),
                "{bad:?}"
            );
        }
        let long = format!("{}/r", "o".repeat(40));
        assert!(long.parse::<Repository>().is_err());
    }

    #[test]
    fn branches_are_names_git_accepts() {
        for good in [
            "main",
            "feature-branch",
            "feature/x_1.2",
            "a@b",
            "fix#12",
            "v1+2=3",
        ] {
            assert!(good.parse::<Branch>().is_ok(), "{good:?}");
        }
        for bad in [
            "",
            "-x",
            ".x",
            "a/.b",
            "a..b",
            "a//b",
            "a/",
            "a.",
            "a.lock",
            "a.lock/b",
            "a b",
            "a~b",
            "a^b",
            "a:b",
            "a\\b",
            "a@{b",
            "HEAD",
            "a\nb",
            "a\u{3000}b",
            "$(id)",
            "a;b",
        ] {
            assert_eq!(bad.parse::<Branch>(), Err(InvalidName::Branch), "{bad:?}");
        }
        assert!("x".repeat(245).parse::<Branch>().is_err());
    }
}
