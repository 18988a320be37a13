//! `baton doctor`: checks what a server needs and says how to mend what is missing.

use std::path::Path;
use std::process::ExitCode;

use crate::config::{self, Config, Settings};
use crate::image::{self, ImageState};
use crate::repos::Repos;
use crate::runtime::DockerRuntime;

/// The oldest git that merges without a work tree.
const GIT_VERSION_MIN: (u32, u32) = (2, 38);
/// Below this much room the doctor warns.
const DISK_GIB_WARN: u64 = 5;
const GIB: u64 = 1024 * 1024 * 1024;

/// Arguments of `baton doctor`.
#[derive(Debug, clap::Args)]
pub struct DoctorArgs {
    #[command(flatten)]
    settings: Settings,
}

/// How one check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Good,
    Warn,
    Bad,
}

/// One line of the report.
struct Finding {
    verdict: Verdict,
    subject: &'static str,
    text: String,
}

impl Finding {
    fn good(subject: &'static str, text: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Good,
            subject,
            text: text.into(),
        }
    }

    fn warn(subject: &'static str, text: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Warn,
            subject,
            text: text.into(),
        }
    }

    fn bad(subject: &'static str, text: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Bad,
            subject,
            text: text.into(),
        }
    }
}

/// Prints a line for each check; fails when a server could not run sessions.
///
/// # Errors
/// When the settings themselves cannot be read.
pub async fn run(args: DoctorArgs) -> anyhow::Result<ExitCode> {
    let settings = args.settings.with_file(None)?;
    let mut findings = vec![configuration(settings.clone())];
    findings.extend(docker(&settings).await);
    findings.push(session_image(&settings).await);
    findings.push(credential());
    findings.push(git().await);
    findings.push(disk(&settings.data_dir()?));
    for finding in &findings {
        let mark = match finding.verdict {
            Verdict::Good => "ok  ",
            Verdict::Warn => "warn",
            Verdict::Bad => "BAD ",
        };
        println!("{mark}  {:<12} {}", finding.subject, finding.text);
    }
    let bad = findings
        .iter()
        .filter(|finding| finding.verdict == Verdict::Bad)
        .count();
    if bad == 0 {
        println!("\nA server can run sessions here.");
        Ok(ExitCode::SUCCESS)
    } else {
        println!("\n{bad} of these must be mended before a server can run sessions here.");
        Ok(ExitCode::FAILURE)
    }
}

fn configuration(settings: Settings) -> Finding {
    match Config::from_settings(settings) {
        Ok(config) => Finding::good(
            "settings",
            format!("the server would listen on {}", config.listen),
        ),
        Err(error) => Finding::bad("settings", error.to_string()),
    }
}

async fn docker(settings: &Settings) -> Vec<Finding> {
    let runtime = DockerRuntime::connect("doctor".to_owned(), settings.docker_host.as_deref());
    let answered = match runtime {
        Ok(runtime) => runtime.daemon().await,
        Err(error) => Err(error),
    };
    match answered {
        Ok(daemon) => {
            let away_s = (daemon.now.as_second() - jiff::Timestamp::now().as_second()).abs();
            let clock = if away_s <= 60 {
                Finding::good("clock", "agrees with the Docker daemon's")
            } else {
                let text = format!(
                    "differs from the Docker daemon's by {away_s} s; set both by NTP, or ages of \
                     containers and volumes will be misjudged"
                );
                Finding::warn("clock", text)
            };
            vec![
                Finding::good("docker", format!("daemon {} answers", daemon.version)),
                clock,
            ]
        }
        Err(error) => {
            let text = format!(
                "{error}; install Docker Engine (Debian: apt-get install docker.io), start it \
                 (systemctl start docker), and let this user into the group `docker`; or set \
                 DOCKER_HOST"
            );
            vec![Finding::bad("docker", text)]
        }
    }
}

async fn session_image(settings: &Settings) -> Finding {
    let name = settings.image();
    match image::state(&name).await {
        Ok(ImageState::UpToDate) => {
            let version = image::cli_version();
            Finding::good(
                "image",
                format!("{name} is up to date, with Claude Code {version}"),
            )
        }
        Ok(ImageState::Outdated) => {
            let text = format!("{name} was built from other inputs; run `baton image build`");
            Finding::warn("image", text)
        }
        Ok(ImageState::Foreign) => {
            let text = format!(
                "{name} is an image of your own; it must hold git and glibc, and gets Claude Code \
                 from the image that `baton image build` makes"
            );
            Finding::good("image", text)
        }
        Ok(ImageState::Missing) => Finding::bad(
            "image",
            format!("{name} is missing; run `baton image build`"),
        ),
        Err(error) => Finding::bad("image", error.to_string()),
    }
}

fn credential() -> Finding {
    match config::has_credential() {
        Ok(true) => Finding::good("credential", "a model credential is set, on this side only"),
        Ok(false) => Finding::warn(
            "credential",
            "no model credential: set ANTHROPIC_API_KEY, CLAUDE_CODE_OAUTH_TOKEN (from `claude \
             setup-token`) or ANTHROPIC_AUTH_TOKEN for the server, or the model will refuse",
        ),
        Err(error) => Finding::bad("credential", error.to_string()),
    }
}

async fn git() -> Finding {
    match Repos::git_version().await {
        Ok(version) if parsed(&version) >= Some(GIT_VERSION_MIN) => {
            Finding::good("git", format!("version {version}"))
        }
        Ok(version) => {
            let (major, minor) = GIT_VERSION_MIN;
            let text = format!("version {version} is too old; install {major}.{minor} or newer");
            Finding::bad("git", text)
        }
        Err(error) => Finding::bad("git", format!("{error}; install the package git")),
    }
}

fn parsed(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split('.').map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn disk(data_dir: &Path) -> Finding {
    let existing = data_dir
        .ancestors()
        .find(|path| path.exists())
        .unwrap_or(Path::new("/"));
    match rustix::fs::statvfs(existing) {
        Ok(disk) => {
            let free_gib = disk.f_bavail.saturating_mul(disk.f_frsize) / GIB;
            let text = format!("{free_gib} GiB free for {}", data_dir.display());
            if free_gib >= DISK_GIB_WARN {
                Finding::good("disk", text)
            } else {
                Finding::warn(
                    "disk",
                    format!("{text}; sessions stop being stored when it is full"),
                )
            }
        }
        Err(error) => Finding::bad("disk", format!("{}: {error}", data_dir.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_number() {
        assert!(parsed("2.39.5") > Some(GIT_VERSION_MIN));
        assert!(parsed("2.9.1") < Some(GIT_VERSION_MIN));
        assert!(parsed("x") < Some(GIT_VERSION_MIN));
    }
}
