//! The order of the steps, with scripts standing in for the programs. That the real programs give
//! a working image is for the end-to-end tests, which run in one.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::sync::Mutex;

use super::build::sha512;
use super::*;

const IMAGE: &str = "test:latest";

/// Notes each call, then does what the file named after the docker verb says, if there is one.
const DOCKER: &str = r#"#!/bin/sh
here=$(dirname "$0")
case $1:$2 in
image:inspect) verb=inspect ;;
*) verb=$1 ;;
esac
for last; do :; done
case $verb in
version) echo amd64; exit ;;
inspect) cat "$here/images/$last" 2>/dev/null || exit 1; exit ;;
esac
echo "docker $verb $last" >>"$here/calls"
if [ -e "$here/$verb" ]; then . "$here/$verb"; fi
case $verb in
run) echo '2.1.330 (Claude Code)' ;;
build)
    cp -r "$last" "$here/context"
    while [ $# -gt 0 ]; do
        case $1 in
        --build-arg=BASE=*) echo "on ${1#*BASE=}" >>"$here/calls" ;;
        --iidfile) printf sha256:new >"$2" ;;
        esac
        shift
    done ;;
esac
"#;

/// Leaves the package that the test put there.
const NPM: &str = r#"#!/bin/sh
here=$(dirname "$0")
echo "npm $*" >>"$here/calls"
cp "$here/package.tgz" ./some-name-2.1.330.tgz
"#;

const MMDEBSTRAP: &str = r#"#!/bin/sh
here=$(dirname "$0")
echo "mmdebstrap" >>"$here/calls"
if [ -e "$here/mmdebstrap-fails" ]; then echo 'E: no mirror' >&2; exit 1; fi
for last; do :; done
echo tar >"$last"
"#;

/// A folder of stand-ins, and a package of a few bytes that is pinned in place of the real one.
struct Stage {
    folder: tempfile::TempDir,
    tools: Tools,
    lines: Mutex<Vec<String>>,
}

impl Stage {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let at = folder.path();
        for (name, script) in [("docker", DOCKER), ("npm", NPM), ("mmdebstrap", MMDEBSTRAP)] {
            fs::write(at.join(name), script).expect("a script");
            let executable = fs::Permissions::from_mode(0o755);
            fs::set_permissions(at.join(name), executable).expect("an executable script");
        }
        for name in ["images", "package", "cache"] {
            fs::create_dir(at.join(name)).expect("a folder");
        }
        fs::write(at.join("package/claude"), "the binary").expect("a binary");
        let packed = Command::new("tar")
            .args(["--create", "--gzip", "--file", "package.tgz", "package"])
            .current_dir(at)
            .status();
        assert!(packed.expect("tar runs").success());

        let mut inputs = Inputs::embedded().clone();
        inputs.claude_code.version = "2.1.330".to_owned();
        let npm = inputs
            .claude_code
            .npm
            .get_mut("amd64")
            .expect("amd64 is pinned");
        npm.integrity = sha512(&at.join("package.tgz")).expect("the package");
        let programs = Programs {
            folder: Some(at.to_owned()),
        };
        Self {
            folder,
            tools: Tools { programs, inputs },
            lines: Mutex::default(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The daemon has an image of this name with this label.
    fn has_image(&self, name: &str, label: &str) {
        fs::write(self.path("images").join(name), label).expect("an image");
    }

    /// What `docker <verb>` does instead of succeeding.
    fn docker_does(&self, verb: &str, script: &str) {
        fs::write(self.path(verb), script).expect("a script");
    }

    fn options(&self) -> BuildOptions {
        BuildOptions {
            image: IMAGE.to_owned(),
            cache: self.path("cache"),
            base: None,
            mirror: None,
            rebuild: false,
        }
    }

    async fn build(&self) -> Result<BuildOutcome, ImageError> {
        self.build_with(&self.options()).await
    }

    async fn build_with(&self, options: &BuildOptions) -> Result<BuildOutcome, ImageError> {
        let report = |line: &str| {
            self.lines
                .lock()
                .expect("no test panicked in here")
                .push(line.to_owned());
        };
        self.tools.build(options, &report).await
    }

    /// Calls of the daemon that change something, of npm and of mmdebstrap; two kinds run side by
    /// side, so each kind is given by itself.
    fn calls(&self, program: &str) -> Vec<String> {
        let calls = fs::read_to_string(self.path("calls")).unwrap_or_default();
        calls
            .lines()
            .filter(|line| line.starts_with(program))
            .map(str::to_owned)
            .collect()
    }

    fn base(&self) -> String {
        self.tools.inputs.bootstrapped_base("amd64", None)
    }
}

#[tokio::test]
async fn image_with_the_same_label_is_left_alone() {
    let stage = Stage::new();
    stage.has_image(IMAGE, &stage.tools.inputs.label("amd64", None));
    assert_eq!(
        stage.build().await.expect("nothing to do"),
        BuildOutcome::UpToDate
    );
    assert_eq!(stage.calls(""), [""; 0]);
    assert!(!stage.path("cache/image-build.lock").exists());
}

#[tokio::test]
async fn state_tells_whose_image_it_is() {
    let stage = Stage::new();
    let state = async || {
        stage
            .tools
            .state(IMAGE, None)
            .await
            .expect("the daemon answers")
    };
    assert_eq!(state().await, ImageState::Missing);
    stage.has_image(IMAGE, "<no value>");
    assert_eq!(state().await, ImageState::Foreign);
    stage.has_image(IMAGE, "another");
    assert_eq!(state().await, ImageState::Outdated);
    stage.has_image(IMAGE, &stage.tools.inputs.label("amd64", None));
    assert_eq!(state().await, ImageState::UpToDate);
}

#[tokio::test]
async fn pulled_base_is_used_when_a_registry_is_in_reach() {
    let stage = Stage::new();
    assert!(matches!(
        stage.build().await.expect("builds"),
        BuildOutcome::Built { .. }
    ));
    assert_eq!(stage.calls("on "), ["on debian:bookworm-slim"]);
    assert_eq!(stage.calls("mmdebstrap"), [""; 0]);
    assert_eq!(stage.calls("docker tag"), [format!("docker tag {IMAGE}")]);

    let in_context = |name| fs::read_to_string(stage.path("context").join(name)).expect(name);
    assert_eq!(in_context("claude"), "the binary");
    assert_eq!(in_context("packages"), stage.tools.inputs.packages_file());
    assert_eq!(in_context("install"), stage.tools.inputs.install);
    assert!(
        !stage.path("cache/image-build").exists(),
        "nothing large stays behind"
    );
}

#[tokio::test]
async fn base_is_bootstrapped_without_a_registry() {
    let stage = Stage::new();
    stage.docker_does("pull", "echo 'no route to host' >&2; exit 1");
    stage.build().await.expect("builds");
    assert_eq!(stage.calls("mmdebstrap"), ["mmdebstrap"]);
    assert_eq!(
        stage.calls("docker import"),
        [format!("docker import {}", stage.base())]
    );
    assert_eq!(stage.calls("on "), [format!("on {}", stage.base())]);
}

#[tokio::test]
async fn pulled_base_that_does_not_work_is_replaced() {
    let stage = Stage::new();
    // As where images can be pulled, but no package mirror is in reach of containers.
    stage.docker_does("build", "case \"$*\" in *BASE=debian*) exit 100 ;; esac");
    stage.build().await.expect("builds");
    assert_eq!(stage.calls("on "), [format!("on {}", stage.base())]);
}

#[tokio::test]
async fn bootstrapped_base_is_used_again() {
    let stage = Stage::new();
    stage.has_image(&stage.base(), "sha256:base");
    stage.build().await.expect("builds");
    assert_eq!(stage.calls("docker pull"), [""; 0]);
    assert_eq!(stage.calls("mmdebstrap"), [""; 0]);

    let rebuild = BuildOptions {
        rebuild: true,
        ..stage.options()
    };
    stage.build_with(&rebuild).await.expect("builds");
    assert_eq!(
        stage.calls("docker pull").len(),
        1,
        "a rebuild is asked for newest packages"
    );
}

#[tokio::test]
async fn without_any_base_both_reasons_are_given() {
    let stage = Stage::new();
    stage.docker_does("pull", "echo 'no route to host' >&2; exit 1");
    fs::write(stage.path("mmdebstrap-fails"), "").expect("a file");
    let error = stage.build().await.expect_err("there is no base");
    let text = error.to_string();
    assert!(
        text.contains("no route to host") && text.contains("E: no mirror"),
        "{text}"
    );
    assert_eq!(stage.calls("docker tag"), [""; 0]);
}

#[tokio::test]
async fn replaced_package_is_refused() {
    let stage = Stage::new();
    fs::write(stage.path("package.tgz"), "something else").expect("a file");
    let error = stage.build().await.expect_err("the digest differs");
    assert!(matches!(error, ImageError::Integrity { .. }), "{error}");
    assert_eq!(stage.calls("docker build"), [""; 0]);
}

#[tokio::test]
async fn kept_package_is_used_unless_it_was_damaged() {
    let stage = Stage::new();
    stage.build().await.expect("builds");
    stage.build().await.expect("builds");
    assert_eq!(stage.calls("npm").len(), 1);

    let kept = stage.path("cache/claude-code-2.1.330-amd64.tgz");
    fs::write(&kept, "cut off").expect("the kept package");
    stage.build().await.expect("builds");
    assert_eq!(stage.calls("npm").len(), 2);
    let integrity = &stage.tools.inputs.claude_code.npm["amd64"].integrity;
    assert_eq!(&sha512(&kept).expect("the kept package"), integrity);
}

#[tokio::test]
async fn image_whose_cli_does_not_answer_gets_no_name() {
    let stage = Stage::new();
    stage.docker_does("run", "echo 1.0.0; exit");
    let error = stage.build().await.expect_err("the version differs");
    assert!(matches!(error, ImageError::Unusable { .. }), "{error}");
    assert_eq!(stage.calls("docker tag"), [""; 0]);
}

#[tokio::test]
async fn base_asked_for_is_the_only_one_tried() {
    let stage = Stage::new();
    stage.docker_does("build", "exit 100");
    let options = BuildOptions {
        base: Some("mirror/debian:12".to_owned()),
        ..stage.options()
    };
    stage
        .build_with(&options)
        .await
        .expect_err("that base does not work");
    assert_eq!(stage.calls("docker pull"), ["docker pull mirror/debian:12"]);
    assert_eq!(stage.calls("mmdebstrap"), [""; 0]);
}

#[tokio::test]
async fn daemon_out_of_reach_is_said_first() {
    let stage = Stage::new();
    let script = "#!/bin/sh\necho 'Cannot connect to the Docker daemon' >&2; exit 1\n";
    fs::write(stage.path("docker"), script).expect("a script");
    let error = stage.build().await.expect_err("no daemon");
    assert!(matches!(error, ImageError::Daemon { .. }), "{error}");
    assert!(error.to_string().contains("Cannot connect"), "{error}");
}
