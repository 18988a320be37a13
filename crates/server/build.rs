//! Builds the agent as a static program for the server to carry inside of itself.
//!
//! A sandbox's image need not know the agent, and agent and server are always of one version. The
//! agent is linked statically since nobody knows which libc an image has, if any.

use std::env;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Names a finished agent to be embedded instead, where the target cannot be linked statically
/// here.
const PREBUILT: &str = "BATON_AGENT_BINARY";

/// What the cargo of this build tells its children and the cargo of the agent's must not hear:
/// flags for the server's target, and the wrappers of `cargo clippy` and `cargo check`, with which
/// there would be no program at all.
const NOT_INHERITED: [&str; 6] = [
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "CARGO_TARGET_DIR",
    "RUSTC_WRAPPER",
    "RUSTC_WORKSPACE_WRAPPER",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-env-changed={PREBUILT}");
    let agent = match env::var_os(PREBUILT) {
        Some(path) => {
            let path = PathBuf::from(path).canonicalize()?;
            println!("cargo:rerun-if-changed={}", path.display());
            path
        }
        None => build()?,
    };
    println!("cargo:rustc-env=BATON_AGENT_PATH={}", agent.display());
    Ok(())
}

fn build() -> Result<PathBuf, Box<dyn Error>> {
    let root = Path::new(&env::var("CARGO_MANIFEST_DIR")?)
        .join("../..")
        .canonicalize()?;
    for source in [
        "Cargo.toml",
        "Cargo.lock",
        "crates/agent/Cargo.toml",
        "crates/agent/src",
        "crates/domain/Cargo.toml",
        "crates/domain/src",
    ] {
        println!("cargo:rerun-if-changed={}", root.join(source).display());
    }
    let target = env::var("TARGET")?;
    let target_dir = Path::new(&env::var("OUT_DIR")?).join("agent-target");
    let mut cargo = Command::new(env::var("CARGO")?);
    for name in NOT_INHERITED {
        cargo.env_remove(name);
    }
    for (name, value) in profile(env::var("PROFILE")? == "release") {
        cargo.env(format!("CARGO_PROFILE_RELEASE_{name}"), value);
    }
    // All that it needs, the outer build has fetched.
    let status = cargo
        .current_dir(&root)
        .args(["build", "--release", "--locked", "--offline"])
        .args(["--package", "baton-agent", "--bin", "baton-agent"])
        .args(["--target", &target])
        .arg("--target-dir")
        .arg(&target_dir)
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .status()?;
    if !status.success() {
        return Err(format!(
            "the agent could not be built as a static program for {target}; {PREBUILT} may name a finished one"
        )
        .into());
    }
    Ok(target_dir.join(target).join("release/baton-agent"))
}

/// Small and quick for a release; quickly built otherwise.
fn profile(release: bool) -> [(&'static str, &'static str); 5] {
    let (opt_level, lto, units) = if release {
        ("s", "fat", "1")
    } else {
        ("1", "off", "16")
    };
    [
        ("OPT_LEVEL", opt_level),
        ("LTO", lto),
        ("CODEGEN_UNITS", units),
        ("PANIC", "abort"),
        ("STRIP", "symbols"),
    ]
}
