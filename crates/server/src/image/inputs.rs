//! What the session image is made of, as compiled into this binary from `images/session/`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::LazyLock;

use serde::Deserialize;
use sha2::{Digest as _, Sha256};

/// Hex digits of a digest that tell two bootstrapped bases apart in a tag.
const BASE_DIGEST_DIGITS: usize = 12;

static EMBEDDED: LazyLock<Inputs> = LazyLock::new(|| {
    // Compiled in and read by a test of this module, so it cannot fail where that test passed.
    Inputs::parse(include_str!("../../../../images/session/inputs.toml"))
        .expect("images/session/inputs.toml was checked when this binary was built")
});

/// Everything that decides what is in the image. Two equal values build the same image, up to the
/// Debian packages' own updates.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Inputs {
    /// Debian packages, installed without recommended ones.
    pub packages: Vec<String>,
    pub base: BaseInputs,
    pub claude_code: ClaudeCodeInputs,
    /// What `docker build` runs.
    #[serde(skip)]
    pub dockerfile: String,
    /// The script that runs on the base.
    #[serde(skip)]
    pub install: String,
}

/// The two ways to one base system.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BaseInputs {
    /// Reference of the image to pull.
    pub image: String,
    /// Debian suite to bootstrap where nothing can be pulled.
    pub suite: String,
}

/// The Claude Code CLI, one npm package per architecture.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ClaudeCodeInputs {
    pub version: String,
    /// By architecture as Docker and Debian name it (`amd64`, `arm64`).
    pub npm: BTreeMap<String, NpmPackage>,
}

/// A published package and the digest it must have.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NpmPackage {
    pub package: String,
    /// As npm writes it: `sha512-<base64>`.
    pub integrity: String,
}

impl Inputs {
    /// The inputs this binary was built with.
    pub fn embedded() -> &'static Self {
        &EMBEDDED
    }

    fn parse(text: &str) -> Result<Self, toml::de::Error> {
        let mut inputs: Self = toml::from_str(text)?;
        inputs.dockerfile = include_str!("../../../../images/session/Dockerfile").to_owned();
        inputs.install = include_str!("../../../../images/session/install").to_owned();
        Ok(inputs)
    }

    /// The label of an image built from these inputs for `architecture`: 64 hex digits.
    ///
    /// `base` is the reference asked for in place of the usual base, if any.
    pub fn label(&self, architecture: &str, base: Option<&str>) -> String {
        let mut digest = self.base_digest(architecture);
        digest.field("base", base.unwrap_or(&self.base.image));
        digest.field("claude-code", &self.claude_code.version);
        if let Some(npm) = self.claude_code.npm.get(architecture) {
            digest
                .field("package", &npm.package)
                .field("integrity", &npm.integrity);
        }
        digest
            .field("dockerfile", &self.dockerfile)
            .field("install", &self.install);
        digest.hex()
    }

    /// Name under which the bootstrapped base is kept, so that a new version of the CLI alone does
    /// not bootstrap again. `mirror` is where its packages come from, if not the usual place.
    pub fn bootstrapped_base(&self, architecture: &str, mirror: Option<&str>) -> String {
        let mut digest = self.base_digest(architecture);
        digest.field("mirror", mirror.unwrap_or_default());
        let digest = digest.hex();
        format!(
            "baton-session-base:{}-{}",
            self.base.suite,
            &digest[..BASE_DIGEST_DIGITS]
        )
    }

    /// The package list as `install` reads it: one name per line.
    pub fn packages_file(&self) -> String {
        self.packages
            .iter()
            .map(|package| format!("{package}\n"))
            .collect()
    }

    fn base_digest(&self, architecture: &str) -> Fields {
        let mut digest = Fields(Sha256::new());
        digest
            .field("architecture", architecture)
            .field("suite", &self.base.suite);
        digest.field("packages", &self.packages_file());
        digest
    }
}

/// A digest over named fields, each with its length, so that no two lists of fields run together.
struct Fields(Sha256);

impl Fields {
    fn field(&mut self, name: &str, value: &str) -> &mut Self {
        for part in [name, value] {
            self.0.update((part.len() as u64).to_le_bytes());
            self.0.update(part);
        }
        self
    }

    fn hex(self) -> String {
        self.0
            .finalize()
            .iter()
            .fold(String::new(), |mut hex, byte| {
                // Writing to a String cannot fail.
                let _ = write!(hex, "{byte:02x}");
                hex
            })
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    use super::*;

    const SHA512_BYTES: usize = 64;

    #[test]
    fn embedded_inputs_are_complete() {
        let inputs = Inputs::embedded();
        assert_eq!(inputs.claude_code.version.split('.').count(), 3);
        assert!(
            inputs.packages.is_sorted(),
            "sorted, so that a diff shows what changed"
        );
        for package in ["ca-certificates", "git"] {
            assert!(
                inputs.packages.iter().any(|name| name == package),
                "{package} is missing"
            );
        }
        for architecture in ["amd64", "arm64"] {
            let npm = &inputs.claude_code.npm[architecture];
            let digest = npm
                .integrity
                .strip_prefix("sha512-")
                .expect("npm's form of a digest");
            assert_eq!(STANDARD.decode(digest).expect("base64").len(), SHA512_BYTES);
        }
    }

    #[test]
    fn dockerfile_uses_what_the_build_context_holds() {
        let inputs = Inputs::embedded();
        for line in [
            "ARG BASE",
            "FROM ${BASE}",
            "COPY install packages /tmp/baton/",
        ] {
            assert!(
                inputs.dockerfile.lines().any(|found| found == line),
                "no line {line:?}"
            );
        }
        assert!(
            inputs
                .dockerfile
                .contains("COPY claude /usr/local/bin/claude")
        );
        assert!(inputs.install.contains("done <\"$here/packages\""));
    }

    #[test]
    fn packages_file_has_one_name_per_line() {
        let inputs = Inputs {
            packages: vec!["git".into(), "jq".into()],
            ..Inputs::embedded().clone()
        };
        assert_eq!(inputs.packages_file(), "git\njq\n");
    }

    #[test]
    fn label_is_stable_and_follows_every_input() {
        let inputs = Inputs::embedded();
        let label = inputs.label("amd64", None);
        assert_eq!(label, Inputs::embedded().label("amd64", None));
        assert_eq!(label, inputs.label("amd64", Some(&inputs.base.image)));
        assert_eq!(label.len(), 64);

        let changed = |change: fn(&mut Inputs)| {
            let mut inputs = inputs.clone();
            change(&mut inputs);
            inputs.label("amd64", None)
        };
        let labels = [
            label,
            inputs.label("arm64", None),
            inputs.label("amd64", Some("debian:trixie-slim")),
            changed(|inputs| inputs.packages.push("zsh".into())),
            changed(|inputs| inputs.base.suite = "trixie".into()),
            changed(|inputs| inputs.claude_code.version = "2.1.331".into()),
            changed(|inputs| inputs.dockerfile.push('\n')),
            changed(|inputs| inputs.install.push('\n')),
            changed(|inputs| {
                if let Some(npm) = inputs.claude_code.npm.get_mut("amd64") {
                    npm.integrity.push('=');
                }
            }),
        ];
        let different: std::collections::BTreeSet<_> = labels.iter().collect();
        assert_eq!(different.len(), labels.len(), "{labels:#?}");
    }

    #[test]
    fn bootstrapped_base_outlives_a_new_version_of_the_cli() {
        let inputs = Inputs::embedded();
        let mut newer = inputs.clone();
        newer.claude_code.version = "2.1.331".into();
        let name = inputs.bootstrapped_base("amd64", None);
        assert_eq!(name, newer.bootstrapped_base("amd64", None));
        assert_ne!(
            name,
            inputs.bootstrapped_base("amd64", Some("file:/mirror"))
        );
    }
}
