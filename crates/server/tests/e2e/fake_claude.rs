//! The image with the misbehaving stand-in for Claude Code, and what is asked of it.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::docker::{docker, try_docker};

const PROGRAM: &str = include_str!("fake_claude.py");
const DOCKERFILE: &str = "\
    FROM claudecode:latest\n\
    LABEL baton.test=e2e\n\
    COPY claude /usr/local/bin/claude\n";

/// The name of the image; built when this version of it is not there yet.
pub async fn image() -> String {
    let base = docker([
        "image",
        "inspect",
        "--format",
        "{{.Id}}",
        "claudecode:latest",
    ])
    .await;
    let digest = Sha256::digest([PROGRAM, DOCKERFILE, &base].concat());
    let version: String = digest
        .iter()
        .take(6)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let image = format!("baton-test-fake-claude:{version}");
    if try_docker(["image", "inspect", &image])
        .await
        .status
        .success()
    {
        return image;
    }
    build(&image).await;
    image
}

/// Tests that build it at the same time build the same.
async fn build(image: &str) {
    let context = tempfile::tempdir().expect("a directory for the build");
    std::fs::write(context.path().join("Dockerfile"), DOCKERFILE).expect("the Dockerfile");
    let program = context.path().join("claude");
    std::fs::write(&program, PROGRAM).expect("the program");
    make_executable(&program);
    let output = tokio::process::Command::new("docker")
        // The builder in every daemon: another one may not see images that are only local.
        .env("DOCKER_BUILDKIT", "0")
        .args(["build", "--quiet", "--tag", image])
        .arg(context.path())
        .output()
        .await
        .expect("docker can be run");
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "the image was not built: {complaints}"
    );
}

fn make_executable(path: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(path, mode).expect("the program is ours");
}

/// Requirements that make the stand-in take `steps`.
pub fn steps(steps: Value) -> String {
    format!("fake: {steps}")
}

/// Steps that print `count` numbered lines, `delay_ms` apart, and complete.
pub fn numbered(count: usize, delay_ms: u64) -> String {
    steps(json!([
        ["count_start"],
        ["numbered", count, delay_ms],
        ["result", "Counted."]
    ]))
}

/// What [`numbered`] prints, line by line, in one canonical form.
pub fn numbered_lines(count: usize) -> Vec<String> {
    let init =
        json!({"type": "system", "subtype": "init", "model": "fake", "claude_code_version": "0"});
    let result = json!({
        "type": "result", "subtype": "success", "is_error": false, "num_turns": 1, "result": "Counted.",
        "total_cost_usd": 0.0125, "usage": {"input_tokens": 100, "output_tokens": 20},
    });
    let lines = (0..count).map(|number| format!("line {number:06} {:064}", number * number));
    std::iter::once(init.to_string())
        .chain(lines)
        .chain(std::iter::once(result.to_string()))
        .collect()
}
