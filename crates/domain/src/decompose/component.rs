//! The parts that software is divided into.

use std::fmt;

use serde::Serialize;

/// A part of a system that one session can build.
///
/// The order is the one they are built in: whoever builds on another stands behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub enum Component {
    /// Models, schemas, migrations.
    Database,
    /// Endpoints and what is behind them.
    Api,
    /// Who somebody is and what they may do.
    Authentication,
    /// What people see.
    Frontend,
    /// Tests of everything.
    Testing,
    /// Containers, pipelines, hosting.
    Deployment,
}

impl Component {
    /// All of them, in the order they are built in.
    pub const ALL: [Self; 6] = [
        Self::Database,
        Self::Api,
        Self::Authentication,
        Self::Frontend,
        Self::Testing,
        Self::Deployment,
    ];

    /// A word for logs and summaries.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Database => "database",
            Self::Api => "api",
            Self::Authentication => "authentication",
            Self::Frontend => "frontend",
            Self::Testing => "testing",
            Self::Deployment => "deployment",
        }
    }

    /// What people call it at the start of a line.
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Database => "Database",
            Self::Api => "API/backend",
            Self::Authentication => "Authentication",
            Self::Frontend => "Frontend",
            Self::Testing => "Testing",
            Self::Deployment => "Deployment",
        }
    }

    /// The components whose code this one uses, so that it cannot well be written before them.
    ///
    /// API and authentication store what the schema says. The frontend calls the API. API and
    /// authentication are built side by side, as in the example of the original: each is a layer
    /// of its own over the same data. Testing and deployment wait for everything as a stage.
    pub(super) fn builds_on(this: Option<Self>) -> &'static [Self] {
        match this {
            None | Some(Self::Api | Self::Authentication) => &[Self::Database],
            Some(Self::Frontend) => &[Self::Api],
            Some(Self::Database | Self::Testing | Self::Deployment) => &[],
        }
    }

    /// Whether several sessions may build it side by side. Schema and authentication are few
    /// files that everything hangs on: two sessions would write the same ones.
    pub(super) fn can_be_split(this: Option<Self>) -> bool {
        matches!(this, None | Some(Self::Api | Self::Frontend))
    }
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
