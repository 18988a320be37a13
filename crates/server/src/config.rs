//! The server's configuration: flag before environment before file `baton.toml` before default.
//!
//! This is the only reader of the environment. Secrets come from the environment or from a file
//! that `<NAME>_FILE` names, never from a flag: flags show in the process list.

mod prices;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use baton_domain::Kind;
use baton_domain::coordination::CoordinationLimits;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

pub use prices::{Price, Prices};

/// The shortest secret that may guard a public address, in bytes.
const PUBLIC_SECRET_BYTES_MIN: usize = 32;
const LISTEN_DEFAULT: &str = "127.0.0.1:3002";
/// The image `baton image build` makes unless told otherwise.
pub const IMAGE_DEFAULT: &str = "claudecode:latest";
const GIT_BASE_URL_DEFAULT: &str = "https://github.com";
const MODEL_BASE_URL_DEFAULT: &str = "https://api.anthropic.com";
const MAX_RUNNING_DEFAULT: usize = 4;
const MAX_PREPARED_DEFAULT: usize = 4;
/// More levels of sessions are no better divided, and nobody could follow them.
const COORDINATION_DEPTH_MAX: u32 = 10;
/// More sessions than one answer of `orchestration.get` holds could not be looked at.
const COORDINATION_SESSIONS_MAX: usize = 1_000;
const KEEP_DAYS_DEFAULT: u32 = 7;
const OUTPUT_MIB_DEFAULT: u64 = 64;

/// What stands between flags, environment and file: every setting may be absent.
#[derive(Debug, Clone, Default, clap::Args, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Address of the public API.
    #[arg(long, env = "BATON_LISTEN")]
    pub listen: Option<SocketAddr>,
    /// Database, repositories, output, sockets.
    #[arg(long, env = "BATON_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    /// `sqlite:` or `postgres:` URL; a SQLite file in the data directory when absent.
    #[arg(long, env = "BATON_DATABASE_URL")]
    pub database_url: Option<String>,
    /// `owner/repo` is cloned from `<this>/owner/repo.git`; `https:` and `file:`.
    #[arg(long, env = "BATON_GIT_BASE_URL")]
    pub git_base_url: Option<String>,
    /// Sessions running at once.
    #[arg(long, env = "BATON_MAX_RUNNING")]
    pub max_running: Option<usize>,
    /// Containers made ahead of their start.
    #[arg(long, env = "BATON_MAX_PREPARED")]
    pub max_prepared: Option<usize>,
    /// Levels of sessions that coordination sessions may make below one that a client made.
    #[arg(long, env = "BATON_COORDINATION_DEPTH")]
    pub coordination_depth: Option<u32>,
    /// Sessions that the coordination sessions of one orchestration may make together.
    #[arg(long, env = "BATON_COORDINATION_SESSIONS")]
    pub coordination_sessions: Option<usize>,
    /// The image sessions run in; any image with git and glibc works.
    #[arg(long = "image", env = "CLAUDE_CONTAINER_IMAGE")]
    pub image: Option<String>,
    /// Where model calls are forwarded to.
    #[arg(long, env = "ANTHROPIC_BASE_URL")]
    pub anthropic_base_url: Option<String>,
    /// The container runtime's address, as Docker defines it.
    #[arg(long, env = "DOCKER_HOST")]
    pub docker_host: Option<String>,
    /// An OCI runtime other than the daemon's default, such as `runsc`.
    #[arg(long, env = "BATON_OCI_RUNTIME")]
    pub oci_runtime: Option<String>,
    /// Further names under which the API may be reached, comma-separated.
    #[arg(long, env = "BATON_ALLOWED_HOSTS", value_delimiter = ',')]
    pub allowed_hosts: Option<Vec<String>>,
    /// Days for which the volumes of failed sessions are kept.
    #[arg(long, env = "BATON_KEEP_DAYS")]
    pub keep_days: Option<u32>,
    /// MiB of output kept for each session; of a longer one its head and its tail are kept.
    #[arg(long, env = "BATON_OUTPUT_MIB")]
    pub output_mib: Option<u64>,
    /// Seconds until a started Claude must have printed something.
    #[arg(long, env = "BATON_FIRST_BYTE_SECONDS")]
    pub first_byte_seconds: Option<u64>,
    /// Seconds for which a working Claude may print nothing.
    #[arg(long, env = "BATON_SILENCE_SECONDS")]
    pub silence_seconds: Option<u64>,
    /// Seconds from Claude's result to its exit.
    #[arg(long, env = "BATON_RESULT_GRACE_SECONDS")]
    pub result_grace_seconds: Option<u64>,
    /// Seconds between SIGTERM and SIGKILL.
    #[arg(long, env = "BATON_TERM_GRACE_SECONDS")]
    pub term_grace_seconds: Option<u64>,
    /// Limits by session type; in the file only.
    #[arg(skip)]
    pub limits: HashMap<Kind, KindLimits>,
    /// Prices by family of models; in the file only.
    #[arg(skip)]
    pub prices: HashMap<String, Price>,
    /// Points at which tests let a debug build die.
    #[arg(long, env = "BATON_FAILPOINT", hide = true)]
    #[serde(skip)]
    pub failpoint: Option<String>,
}

/// Limits of one session type in the file: `[limits.testing]`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KindLimits {
    /// MiB of memory, swap included.
    pub memory_mib: Option<u64>,
    /// CPUs, as a decimal number.
    pub cpus: Option<f64>,
    /// Processes and threads.
    pub pids: Option<i64>,
    /// Seconds a session may run when its client doesn't say.
    pub timeout_seconds: Option<u64>,
    /// How many may run at once; no limit of their own when absent.
    pub max_running: Option<usize>,
}

/// The configuration of a running server.
#[derive(Debug, Clone)]
pub struct Config {
    /// Bearer tokens that are accepted, at least one.
    pub secrets: Vec<SecretString>,
    /// See [`Settings::listen`].
    pub listen: SocketAddr,
    /// See [`Settings::data_dir`].
    pub data_dir: PathBuf,
    /// The SQLite file; in the data directory when absent.
    pub database: Option<PathBuf>,
    /// See [`Settings::git_base_url`].
    pub git_base_url: String,
    /// For fetching and pushing, used by the server alone.
    pub github_token: Option<SecretString>,
    /// See [`Settings::anthropic_base_url`].
    pub model_base_url: String,
    /// For model calls, used by the server alone.
    pub credential: Option<Credential>,
    /// See [`Settings::image`].
    pub image: String,
    /// See [`Settings::max_running`].
    pub max_running: usize,
    /// See [`Settings::max_prepared`].
    pub max_prepared: usize,
    /// How far coordination sessions may go.
    pub coordination: CoordinationLimits,
    /// See [`Settings::docker_host`].
    pub docker_host: Option<String>,
    /// See [`Settings::oci_runtime`].
    pub oci_runtime: Option<String>,
    /// See [`Settings::allowed_hosts`].
    pub allowed_hosts: Vec<String>,
    /// See [`Settings::keep_days`].
    pub keep_days: u32,
    /// Bytes of output kept for each session.
    pub output_bytes_max: u64,
    /// How long agents wait for what.
    pub waits: Waits,
    /// Limits by session type.
    pub limits: HashMap<Kind, KindLimits>,
    /// What model calls are estimated to cost.
    pub prices: Prices,
    /// See [`Settings::failpoint`].
    pub failpoint: Option<String>,
}

/// How we show who we are to the model API.
#[derive(Debug, Clone)]
pub enum Credential {
    /// `ANTHROPIC_API_KEY`: sent as `x-api-key`.
    ApiKey(SecretString),
    /// `CLAUDE_CODE_OAUTH_TOKEN`: a subscription's token, sent as a bearer with a beta header.
    OauthToken(SecretString),
    /// `ANTHROPIC_AUTH_TOKEN`: sent as a bearer, for gateways of one's own.
    AuthToken(SecretString),
}

/// How long agents wait for what, in seconds.
#[derive(Debug, Clone, Copy)]
pub struct Waits {
    /// From Claude's start to its first byte.
    pub first_byte_s: u64,
    /// Between two pieces of output.
    pub silence_s: u64,
    /// From the result to the exit.
    pub result_grace_s: u64,
    /// From SIGTERM to SIGKILL.
    pub term_grace_s: u64,
}

/// Why the server cannot be configured.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// No bearer secret.
    #[error(
        "CLAUDE_WEBHOOK_SECRET is not set; every client needs it as its bearer token, so choose \
         one, for example: export CLAUDE_WEBHOOK_SECRET=$(openssl rand -hex 32)"
    )]
    NoSecret,
    /// A public address with a guessable secret.
    #[error(
        "{listen} is reachable from other machines and a secret in CLAUDE_WEBHOOK_SECRET is \
         shorter than {PUBLIC_SECRET_BYTES_MIN} bytes; use a longer one or listen on 127.0.0.1"
    )]
    ShortSecret {
        /// The address.
        listen: SocketAddr,
    },
    /// A `_FILE` variable or the configuration file that cannot be read.
    #[error("{what} {} cannot be read", path.display())]
    Unreadable {
        /// Who names the file.
        what: String,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A configuration file that is not ours.
    #[error("{} is not a valid configuration", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A value that cannot be.
    #[error("{name} is {value}, but {rule}")]
    Value {
        /// The setting.
        name: &'static str,
        /// Its value.
        value: String,
        /// What it must be.
        rule: &'static str,
    },
    /// No home directory and no `BATON_DATA_DIR`.
    #[error("no directory for data: set BATON_DATA_DIR")]
    NoDataDir,
}

impl Settings {
    /// What flags and environment leave open, from `file`.
    fn or(self, file: Self) -> Self {
        Self {
            listen: self.listen.or(file.listen),
            data_dir: self.data_dir.or(file.data_dir),
            database_url: self.database_url.or(file.database_url),
            git_base_url: self.git_base_url.or(file.git_base_url),
            max_running: self.max_running.or(file.max_running),
            max_prepared: self.max_prepared.or(file.max_prepared),
            coordination_depth: self.coordination_depth.or(file.coordination_depth),
            coordination_sessions: self.coordination_sessions.or(file.coordination_sessions),
            image: self.image.or(file.image),
            anthropic_base_url: self.anthropic_base_url.or(file.anthropic_base_url),
            docker_host: self.docker_host.or(file.docker_host),
            oci_runtime: self.oci_runtime.or(file.oci_runtime),
            allowed_hosts: self.allowed_hosts.or(file.allowed_hosts),
            keep_days: self.keep_days.or(file.keep_days),
            output_mib: self.output_mib.or(file.output_mib),
            first_byte_seconds: self.first_byte_seconds.or(file.first_byte_seconds),
            silence_seconds: self.silence_seconds.or(file.silence_seconds),
            result_grace_seconds: self.result_grace_seconds.or(file.result_grace_seconds),
            term_grace_seconds: self.term_grace_seconds.or(file.term_grace_seconds),
            limits: if self.limits.is_empty() {
                file.limits
            } else {
                self.limits
            },
            prices: if self.prices.is_empty() {
                file.prices
            } else {
                self.prices
            },
            failpoint: self.failpoint,
        }
    }

    /// The directory for data: as set, else the platform's with `/baton`.
    ///
    /// # Errors
    /// [`ConfigError::NoDataDir`].
    pub fn data_dir(&self) -> Result<PathBuf, ConfigError> {
        let platform = || directories::BaseDirs::new().map(|dirs| dirs.data_dir().join("baton"));
        self.data_dir
            .clone()
            .or_else(platform)
            .ok_or(ConfigError::NoDataDir)
    }

    /// The session image: as set, else `claudecode:latest`.
    #[must_use]
    pub fn image(&self) -> String {
        self.image
            .clone()
            .unwrap_or_else(|| IMAGE_DEFAULT.to_owned())
    }

    /// These settings completed from `file`, or from `baton.toml` in the working directory when
    /// that exists.
    ///
    /// # Errors
    /// [`ConfigError::Unreadable`], [`ConfigError::File`].
    pub fn with_file(self, file: Option<&Path>) -> Result<Self, ConfigError> {
        let named = file.is_some();
        let path = file.map_or_else(|| PathBuf::from("baton.toml"), Path::to_path_buf);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if !named && error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(self);
            }
            Err(source) => {
                return Err(ConfigError::Unreadable {
                    what: "the file".into(),
                    path,
                    source,
                });
            }
        };
        let file = toml::from_str(&text).map_err(|source| ConfigError::File {
            path,
            source: Box::new(source),
        })?;
        Ok(self.or(file))
    }
}

impl Config {
    /// Reads the secrets and checks the whole.
    ///
    /// # Errors
    /// [`ConfigError`], each with what to do.
    pub fn from_settings(settings: Settings) -> Result<Self, ConfigError> {
        let listen = match settings.listen {
            Some(listen) => listen,
            None => LISTEN_DEFAULT.parse().map_err(|_| ConfigError::Value {
                name: "BATON_LISTEN",
                value: LISTEN_DEFAULT.to_owned(),
                rule: "it must be an address and a port",
            })?,
        };
        let config = Self {
            secrets: secrets()?,
            listen,
            data_dir: settings.data_dir()?,
            database: database(settings.database_url.as_deref())?,
            git_base_url: settings
                .git_base_url
                .clone()
                .unwrap_or(GIT_BASE_URL_DEFAULT.into()),
            github_token: secret("GITHUB_TOKEN")?,
            model_base_url: settings
                .anthropic_base_url
                .clone()
                .unwrap_or(MODEL_BASE_URL_DEFAULT.into()),
            credential: credential()?,
            image: settings.image(),
            max_running: settings.max_running.unwrap_or(MAX_RUNNING_DEFAULT),
            max_prepared: settings.max_prepared.unwrap_or(MAX_PREPARED_DEFAULT),
            coordination: coordination(&settings)?,
            docker_host: settings.docker_host,
            oci_runtime: settings.oci_runtime,
            allowed_hosts: settings.allowed_hosts.unwrap_or_default(),
            keep_days: settings.keep_days.unwrap_or(KEEP_DAYS_DEFAULT),
            output_bytes_max: settings.output_mib.unwrap_or(OUTPUT_MIB_DEFAULT) * 1024 * 1024,
            waits: Waits {
                first_byte_s: settings.first_byte_seconds.unwrap_or(180),
                silence_s: settings.silence_seconds.unwrap_or(15 * 60),
                result_grace_s: settings.result_grace_seconds.unwrap_or(30),
                term_grace_s: settings.term_grace_seconds.unwrap_or(10),
            },
            limits: settings.limits,
            prices: Prices::with(settings.prices),
            failpoint: settings.failpoint,
        };
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let short = |secret: &SecretString| secret.expose_secret().len() < PUBLIC_SECRET_BYTES_MIN;
        if !self.listen.ip().is_loopback() && self.secrets.iter().any(short) {
            return Err(ConfigError::ShortSecret {
                listen: self.listen,
            });
        }
        if !is_git_base(&self.git_base_url) {
            return Err(ConfigError::Value {
                name: "BATON_GIT_BASE_URL",
                // Whatever stands before the host may be a password.
                value: self
                    .git_base_url
                    .rsplit('@')
                    .next()
                    .unwrap_or_default()
                    .to_owned(),
                rule: "it must be https://HOST or file:///PATH, without a user or password in it; \
                       the token belongs into GITHUB_TOKEN",
            });
        }
        if self.max_running == 0 {
            return Err(ConfigError::Value {
                name: "BATON_MAX_RUNNING",
                value: "0".into(),
                rule: "no session could ever run; use 1 or more",
            });
        }
        let none = self.limits.iter().find(|(_, of)| of.max_running == Some(0));
        if let Some((kind, _)) = none {
            return Err(ConfigError::Value {
                name: "max_running in [limits]",
                value: format!("0 for {kind}"),
                rule: "no session of that type could ever run; use 1 or more",
            });
        }
        Ok(())
    }
}

/// The path of this program, for another process of it.
///
/// # Errors
/// When the system does not tell.
pub fn own_program() -> std::io::Result<PathBuf> {
    std::env::current_exe()
}

/// The bearer token to show to a server: the first of `CLAUDE_WEBHOOK_SECRET`.
///
/// # Errors
/// [`ConfigError::NoSecret`]; a file that cannot be read.
pub fn bearer() -> Result<SecretString, ConfigError> {
    secrets()?.into_iter().next().ok_or(ConfigError::NoSecret)
}

fn coordination(settings: &Settings) -> Result<CoordinationLimits, ConfigError> {
    let default = CoordinationLimits::default();
    let limits = CoordinationLimits {
        depth_max: settings.coordination_depth.unwrap_or(default.depth_max),
        sessions_max: settings
            .coordination_sessions
            .unwrap_or(default.sessions_max),
    };
    if limits.depth_max > COORDINATION_DEPTH_MAX {
        return Err(ConfigError::Value {
            name: "BATON_COORDINATION_DEPTH",
            value: limits.depth_max.to_string(),
            rule: "it must be 10 or less; 0 lets coordination sessions make none",
        });
    }
    if limits.sessions_max > COORDINATION_SESSIONS_MAX {
        return Err(ConfigError::Value {
            name: "BATON_COORDINATION_SESSIONS",
            value: limits.sessions_max.to_string(),
            rule: "it must be 1000 or less; 0 lets coordination sessions make none",
        });
    }
    Ok(limits)
}

/// Every bearer token in `CLAUDE_WEBHOOK_SECRET`, comma-separated for rotation.
fn secrets() -> Result<Vec<SecretString>, ConfigError> {
    let Some(listed) = secret("CLAUDE_WEBHOOK_SECRET")? else {
        return Err(ConfigError::NoSecret);
    };
    let secrets: Vec<SecretString> = listed
        .expose_secret()
        .split(',')
        .map(str::trim)
        .filter(|one| !one.is_empty())
        .map(SecretString::from)
        .collect();
    if secrets.is_empty() {
        Err(ConfigError::NoSecret)
    } else {
        Ok(secrets)
    }
}

/// Plain `http:` serves tests, on loopback only.
fn is_git_base(url: &str) -> bool {
    let known = [
        "https://",
        "file://",
        "http://127.0.0.1",
        "http://localhost",
        "http://[::1]",
    ];
    known.iter().any(|prefix| url.starts_with(prefix)) && !url.contains('@')
}

/// The file that `sqlite:FILE` names.
fn database(url: Option<&str>) -> Result<Option<PathBuf>, ConfigError> {
    let Some(url) = url.filter(|url| !url.is_empty()) else {
        return Ok(None);
    };
    let file = url
        .strip_prefix("sqlite:")
        .map(|path| path.strip_prefix("//").unwrap_or(path));
    match file {
        Some(path) if !path.is_empty() && !path.contains('?') => Ok(Some(PathBuf::from(path))),
        // Only the scheme is shown: such a URL may hold a password.
        _ => Err(ConfigError::Value {
            name: "BATON_DATABASE_URL",
            value: format!("{}:…", url.split(':').next().unwrap_or_default()),
            rule: "this version knows sqlite:FILE only; leave it unset for a file in the data directory",
        }),
    }
}

/// The model credential; where several are set, the one Claude Code itself would prefer.
fn credential() -> Result<Option<Credential>, ConfigError> {
    Ok(if let Some(token) = secret("ANTHROPIC_AUTH_TOKEN")? {
        Some(Credential::AuthToken(token))
    } else if let Some(key) = secret("ANTHROPIC_API_KEY")? {
        Some(Credential::ApiKey(key))
    } else {
        secret("CLAUDE_CODE_OAUTH_TOKEN")?.map(Credential::OauthToken)
    })
}

/// Whether a model credential is configured; for `baton doctor` and `baton demo`.
///
/// # Errors
/// [`ConfigError::Unreadable`].
pub fn has_credential() -> Result<bool, ConfigError> {
    Ok(credential()?.is_some())
}

/// A secret from `name`, or from the file that `<name>_FILE` names; an empty one counts as none.
fn secret(name: &str) -> Result<Option<SecretString>, ConfigError> {
    let file_variable = format!("{name}_FILE");
    let text = match std::env::var_os(&file_variable) {
        Some(path) => {
            let path = PathBuf::from(path);
            let text =
                std::fs::read_to_string(&path).map_err(|source| ConfigError::Unreadable {
                    what: file_variable,
                    path,
                    source,
                })?;
            text.trim_end_matches(['\r', '\n']).to_owned()
        }
        None => std::env::var(name).unwrap_or_default(),
    };
    Ok(Some(text)
        .filter(|text| !text.is_empty())
        .map(SecretString::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(listen: &str, secret: &str) -> Config {
        Config {
            secrets: vec![secret.into()],
            listen: listen.parse().expect("an address"),
            data_dir: PathBuf::new(),
            database: None,
            git_base_url: GIT_BASE_URL_DEFAULT.into(),
            github_token: None,
            model_base_url: String::new(),
            credential: None,
            image: String::new(),
            max_running: 1,
            max_prepared: 0,
            coordination: CoordinationLimits::default(),
            docker_host: None,
            oci_runtime: None,
            allowed_hosts: Vec::new(),
            keep_days: 7,
            output_bytes_max: 0,
            waits: Waits {
                first_byte_s: 1,
                silence_s: 1,
                result_grace_s: 1,
                term_grace_s: 1,
            },
            limits: HashMap::new(),
            prices: Prices::default(),
            failpoint: None,
        }
    }

    #[test]
    fn a_public_address_needs_a_long_secret() {
        assert!(config("127.0.0.1:1", "short").check().is_ok());
        assert!(config("[::1]:1", "short").check().is_ok());
        assert!(config("0.0.0.0:1", "short").check().is_err());
        assert!(config("0.0.0.0:1", &"x".repeat(32)).check().is_ok());
        let debug = format!("{:?}", config("127.0.0.1:1", "hush-hush"));
        assert!(!debug.contains("hush-hush"));
    }

    #[test]
    fn a_database_url_is_a_sqlite_file() {
        let path = |url| database(Some(url)).ok().flatten();
        assert_eq!(path("sqlite:/x/y.db"), Some("/x/y.db".into()));
        assert_eq!(path("sqlite:///x/y.db"), Some("/x/y.db".into()));
        assert_eq!(path("sqlite:y.db"), Some("y.db".into()));
        let error = database(Some("postgres://me:hush@host/db")).expect_err("not yet");
        assert!(!error.to_string().contains("hush"), "{error}");
    }

    #[test]
    fn a_git_base_holds_no_password_and_no_other_scheme() {
        for good in [
            "https://github.com",
            "file:///srv/git",
            "http://127.0.0.1:8080/git",
        ] {
            assert!(is_git_base(good), "{good}");
        }
        for bad in [
            "https://me:hush@host",
            "ssh://host",
            "http://far.example",
            "ext::sh -c x",
        ] {
            let mut config = config("127.0.0.1:1", "x");
            config.git_base_url = bad.to_owned();
            let error = config.check().expect_err("refused").to_string();
            assert!(!error.contains("hush"), "{error}");
        }
    }

    #[test]
    fn a_flag_wins_over_the_file() {
        let file: Settings = toml::from_str(
            "max_running = 9\nimage = \"mine\"\n[limits.testing]\ncpus = 1.5\n\
                [prices.\"opus-9\"]\ninput = 1\noutput = 2\ncache_write = 3\ncache_read = 4",
        )
        .expect("a valid file");
        let settings = Settings {
            max_running: Some(2),
            ..Settings::default()
        }
        .or(file);
        assert_eq!(settings.max_running, Some(2));
        assert_eq!(settings.image.as_deref(), Some("mine"));
        assert_eq!(settings.limits[&Kind::Testing].cpus, Some(1.5));
        assert_eq!(settings.prices["opus-9"].output, 2.0);
    }

    #[test]
    fn a_word_unknown_in_the_file_is_refused() {
        assert!(toml::from_str::<Settings>("max_runing = 9").is_err());
    }
}
