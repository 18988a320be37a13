//! The steps of one build.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha512};

use super::inputs::{Inputs, NpmPackage};
use super::program::{Call, Log, Programs};
use super::{ANSWER_LIMIT, BuildOptions, CLI_LABEL, ImageError, LABEL, Report, Tools, off_thread};

/// Long enough for 30 MB over a slow line; a registry out of reach mostly fails at once.
const PULL_LIMIT: Duration = Duration::from_secs(120);
const BOOTSTRAP_LIMIT: Duration = Duration::from_secs(20 * 60);
const FETCH_LIMIT: Duration = Duration::from_secs(20 * 60);
const BUILD_LIMIT: Duration = Duration::from_secs(20 * 60);
/// For copying an image's worth of bytes from one place of this machine to another.
const COPY_LIMIT: Duration = Duration::from_secs(10 * 60);
/// The CLI answers in half a second; a machine under load is given more.
const TRIAL_LIMIT: Duration = Duration::from_secs(120);
/// Block size for reading the package of 175 MB.
const BLOCK_BYTES: usize = 1 << 20;
/// apt settings of this machine that a bootstrap needs too in order to reach package mirrors.
const APT_SETTINGS: [&str; 4] = [
    "Acquire::http::Proxy",
    "Acquire::https::Proxy",
    "Acquire::https::CAInfo",
    "Acquire::http::Proxy-Auto-Detect",
];
/// Passed to `docker build` by name where they are set, so that their values appear neither in `ps`
/// nor in the image.
const PROXY_VARIABLES: [&str; 6] = [
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
];

/// One build: the machine it is for, and the files it makes on the way.
pub(super) struct Build<'a> {
    programs: &'a Programs,
    inputs: &'a Inputs,
    options: &'a BuildOptions,
    report: Report<'a>,
    architecture: String,
    npm: &'a NpmPackage,
    /// Emptied before and removed after.
    workspace: PathBuf,
    log: Log,
}

impl<'a> Build<'a> {
    /// Finds out what machine it is for, and makes room.
    pub async fn prepare(
        tools: &'a Tools,
        options: &'a BuildOptions,
        report: Report<'a>,
    ) -> Result<Self, ImageError> {
        let Tools { programs, inputs } = tools;
        let architecture = tools.architecture().await?;
        let Some(npm) = inputs.claude_code.npm.get(&architecture) else {
            let known: Vec<_> = inputs.claude_code.npm.keys().map(String::as_str).collect();
            return Err(ImageError::Architecture {
                architecture,
                known: known.join(", "),
            });
        };
        let log = Log::create(options.cache.join("image-build.log"))?;
        let workspace = options.cache.join("image-build");
        let build = Self {
            programs,
            inputs,
            options,
            report,
            architecture,
            npm,
            workspace,
            log,
        };
        build.clean_up();
        let context = build.context();
        fs::create_dir_all(&context).map_err(ImageError::io("cannot create", &context))?;
        Ok(build)
    }

    /// Removes what only this build needed. What stays behind is removed by the next one.
    pub fn clean_up(&self) {
        let _ = fs::remove_dir_all(&self.workspace);
    }

    /// Builds, tries and names the image.
    pub async fn run(&self) -> Result<(), ImageError> {
        self.say("building the session image; this takes a few minutes the first time");
        // One waits for the network, the other for the processor.
        let ((), (base, fallback)) = tokio::try_join!(self.write_context(), self.base())?;
        let image = match (self.assemble(&base).await, fallback) {
            (Ok(image), _) => image,
            (Err(error), Fallback::None) => return Err(error),
            (Err(error), Fallback::Bootstrap) => {
                self.say(&format!("{base} does not work as a base: {error}"));
                let base = self.bootstrap_after(error).await?;
                self.assemble(&base).await?
            }
        };
        self.try_out(&image).await?;
        self.docker("naming the image", ANSWER_LIMIT)
            .args(["tag", &image, &self.options.image])
            .logged(&self.log)
            .await
    }

    /// The reference of a base in the daemon, and what is left to try if it turns out unfit.
    async fn base(&self) -> Result<(String, Fallback), ImageError> {
        if let Some(base) = &self.options.base {
            if !self.has(base).await? {
                self.pull(base).await?;
            }
            return Ok((base.clone(), Fallback::None));
        }
        let kept = self.bootstrapped_base();
        if !self.options.rebuild && self.has(&kept).await? {
            return Ok((kept, Fallback::None));
        }
        let usual = &self.inputs.base.image;
        if !self.options.rebuild && self.has(usual).await? {
            return Ok((usual.clone(), Fallback::Bootstrap));
        }
        match self.pull(usual).await {
            Ok(()) => Ok((usual.clone(), Fallback::Bootstrap)),
            Err(error) => Ok((self.bootstrap_after(error).await?, Fallback::None)),
        }
    }

    async fn has(&self, reference: &str) -> Result<bool, ImageError> {
        let found = self
            .docker("looking for a base", ANSWER_LIMIT)
            .args(["image", "inspect", "--format", "{{.Id}}", reference])
            .answer()
            .await;
        match found {
            Ok(_) => Ok(true),
            Err(ImageError::ProgramFailed { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn pull(&self, reference: &str) -> Result<(), ImageError> {
        self.say(&format!("pulling the base {reference}"));
        self.docker("pulling the base", PULL_LIMIT)
            .args(["pull", "--quiet", reference])
            .logged(&self.log)
            .await
    }

    async fn bootstrap_after(&self, pulled: ImageError) -> Result<String, ImageError> {
        self.say(&format!(
            "no base from a registry; bootstrapping Debian {} from its packages",
            self.inputs.base.suite
        ));
        self.bootstrap()
            .await
            .map_err(|bootstrapped| ImageError::NoBase {
                pulled: Box::new(pulled),
                bootstrapped: Box::new(bootstrapped),
            })
    }

    fn bootstrapped_base(&self) -> String {
        self.inputs
            .bootstrapped_base(&self.architecture, self.options.mirror.as_deref())
    }

    /// Makes a base from Debian packages alone. It has the packages of the inputs already, so that
    /// nothing has to be reached from inside a container later.
    async fn bootstrap(&self) -> Result<String, ImageError> {
        let archive = self.workspace.join("base.tar");
        let apt = self.workspace.join("apt.conf");
        fs::write(&apt, self.apt_settings().await).map_err(ImageError::io("cannot write", &apt))?;
        self.programs
            .call("mmdebstrap", "bootstrapping the base", BOOTSTRAP_LIMIT)
            .args(["--variant=minbase", "--format=tar"])
            .arg(format!("--architectures={}", self.architecture))
            .arg(format!("--include={}", self.inputs.packages.join(",")))
            .arg("--aptopt=Acquire::Languages \"none\"")
            .arg(format!("--aptopt={}", apt.display()))
            .args(
                ["doc", "info", "lintian", "locale", "man"]
                    .map(|folder| format!("--dpkgopt=path-exclude=/usr/share/{folder}/*")),
            )
            .arg("--dpkgopt=path-include=/usr/share/doc/*/copyright")
            // This machine's settings and names stay on this machine.
            .arg("--customize-hook=rm -f \"$1\"/etc/apt/apt.conf.d/99mmdebstrap")
            .arg("--customize-hook=rm -f \"$1\"/etc/hostname \"$1\"/etc/resolv.conf")
            .arg(&self.inputs.base.suite)
            .arg(&archive)
            .args(&self.options.mirror)
            .logged(&self.log)
            .await?;
        let name = self.bootstrapped_base();
        self.docker("importing the base", COPY_LIMIT)
            .arg("import")
            .arg(&archive)
            .arg(&name)
            .logged(&self.log)
            .await?;
        fs::remove_file(&archive).map_err(ImageError::io("cannot remove", &archive))?;
        Ok(name)
    }

    /// How apt of this machine reaches its mirrors; nothing where there is no apt.
    async fn apt_settings(&self) -> String {
        let dump = self
            .programs
            .call("apt-config", "reading this machine's proxy", ANSWER_LIMIT)
            .args(["dump", "Acquire"])
            .answer()
            .await
            .unwrap_or_default();
        let wanted = |line: &&str| {
            line.split_once(' ').is_some_and(|(setting, value)| {
                APT_SETTINGS.contains(&setting) && !value.trim_matches(['"', ';']).is_empty()
            })
        };
        dump.lines()
            .filter(wanted)
            .map(|line| format!("{line}\n"))
            .collect()
    }

    /// Fills the build context: Dockerfile, script, package list and the CLI's binary.
    async fn write_context(&self) -> Result<(), ImageError> {
        let context = self.context();
        for (name, text) in [
            ("Dockerfile", &self.inputs.dockerfile),
            ("install", &self.inputs.install),
            ("packages", &self.inputs.packages_file()),
        ] {
            let path = context.join(name);
            fs::write(&path, text).map_err(ImageError::io("cannot write", &path))?;
        }
        let package = self.fetch_cli().await?;
        self.programs
            .call("tar", "unpacking the CLI", COPY_LIMIT)
            .args([
                "--extract",
                "--gzip",
                "--no-same-owner",
                "--strip-components=1",
                "--file",
            ])
            .arg(&package)
            .arg("--directory")
            .arg(&context)
            .arg("package/claude")
            .logged(&self.log)
            .await
    }

    /// The package with the CLI: kept from an earlier build, or fetched now. Checked either way.
    async fn fetch_cli(&self) -> Result<PathBuf, ImageError> {
        let version = &self.inputs.claude_code.version;
        let file = format!("claude-code-{version}-{}.tgz", self.architecture);
        let kept = self.options.cache.join(file);
        match self.check_digest(&kept).await {
            Ok(()) => return Ok(kept),
            Err(ImageError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            Err(error) => self.say(&format!("{error}; fetching it again")),
        }
        self.say(&format!("fetching Claude Code {version} with npm (175 MB)"));
        let folder = self.workspace.join("npm");
        fs::create_dir_all(&folder).map_err(ImageError::io("cannot create", &folder))?;
        self.programs
            .call("npm", "fetching Claude Code", FETCH_LIMIT)
            .args(["pack", "--ignore-scripts", "--loglevel=error"])
            .arg(format!("{}@{version}", self.npm.package))
            .env("npm_config_update_notifier", "false")
            .folder(&folder)
            .logged(&self.log)
            .await?;
        let fetched = only_file(&folder)?;
        self.check_digest(&fetched).await?;
        fs::rename(&fetched, &kept).map_err(ImageError::io("cannot keep", &fetched))?;
        Ok(kept)
    }

    async fn check_digest(&self, path: &Path) -> Result<(), ImageError> {
        let path = path.to_owned();
        let expected = self.npm.integrity.clone();
        off_thread("checking the package", move || {
            let found = sha512(&path).map_err(ImageError::io("cannot read", &path))?;
            if found == expected {
                return Ok(());
            }
            Err(ImageError::Integrity {
                path,
                expected,
                found,
            })
        })
        .await
    }

    /// Runs the Dockerfile over `base`; gives the id of the image, which has no name yet.
    async fn assemble(&self, base: &str) -> Result<String, ImageError> {
        self.say(&format!("building on {base}"));
        let id_file = self.workspace.join("image-id");
        let label = self
            .inputs
            .label(&self.architecture, self.options.base.as_deref());
        self.docker("building the image", BUILD_LIMIT)
            // The builder in every daemon: another one may not see images that are only local.
            .env("DOCKER_BUILDKIT", "0")
            // Package mirrors are often in reach of the machine, but not of its containers.
            .args(["build", "--network=host"])
            .args(self.options.rebuild.then_some("--no-cache"))
            .arg(format!("--build-arg=BASE={base}"))
            .args(PROXY_VARIABLES.map(|name| format!("--build-arg={name}")))
            .arg(format!("--label={LABEL}={label}"))
            .arg(format!(
                "--label={CLI_LABEL}={}",
                self.inputs.claude_code.version
            ))
            .arg("--iidfile")
            .arg(&id_file)
            .arg(self.context())
            .logged(&self.log)
            .await?;
        fs::read_to_string(&id_file).map_err(ImageError::io("cannot read", &id_file))
    }

    /// Asks the CLI in the image for its version, under the limits of a sandbox.
    async fn try_out(&self, image: &str) -> Result<(), ImageError> {
        let said = self
            .docker("trying the image", TRIAL_LIMIT)
            .args([
                "run",
                "--rm",
                "--network=none",
                "--read-only",
                "--cap-drop=ALL",
            ])
            .args(["--security-opt=no-new-privileges", "--tmpfs=/tmp"])
            .args([
                "--tmpfs=/home/agent:uid=10001,gid=10001",
                image,
                "claude",
                "--version",
            ])
            .answer()
            .await?;
        if said.split_whitespace().next() == Some(&self.inputs.claude_code.version) {
            return Ok(());
        }
        Err(ImageError::Unusable {
            image: self.options.image.clone(),
            said,
        })
    }

    fn context(&self) -> PathBuf {
        self.workspace.join("context")
    }

    fn docker(&self, step: &'static str, limit: Duration) -> Call {
        self.programs.call("docker", step, limit)
    }

    fn say(&self, line: &str) {
        (self.report)(line);
    }
}

/// What can still be done when a base turns out unfit.
enum Fallback {
    None,
    Bootstrap,
}

/// The digest of the file at `path`, in npm's form.
pub(super) fn sha512(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut digest = Sha512::new();
    let mut block = vec![0; BLOCK_BYTES];
    loop {
        match file.read(&mut block)? {
            0 => return Ok(format!("sha512-{}", STANDARD.encode(digest.finalize()))),
            read => digest.update(&block[..read]),
        }
    }
}

/// The one file in `folder`: npm names its archives differently from version to version.
fn only_file(folder: &Path) -> Result<PathBuf, ImageError> {
    let mut entries = fs::read_dir(folder).map_err(ImageError::io("cannot read", folder))?;
    let entry = entries
        .next()
        .unwrap_or_else(|| Err(io::ErrorKind::NotFound.into()));
    Ok(entry
        .map_err(ImageError::io("npm left nothing in", folder))?
        .path())
}
