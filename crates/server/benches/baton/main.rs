//! The benchmarks: what the server does on this machine, beside what the machine itself allows.
//!
//! `cargo bench --package baton --bench baton -- [SECTION…]`; see `docs/benchmarks.md`. The server
//! is the release binary, driven from outside as its users drive it.

mod chain;
mod cold;
mod disk;
mod docker;
mod home;
mod http;
mod ingest;
mod load;
mod memory;
mod process;
mod raw_axum;
mod requests;
mod restart;
mod server;
mod steps;
mod table;
mod upkeep;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};

/// What every section gets.
pub struct Bench {
    /// The server's binary.
    pub program: PathBuf,
    /// Where data directories and images are made; on the disk that is measured.
    pub scratch: tempfile::TempDir,
    /// For what has to be asynchronous.
    pub runtime: tokio::runtime::Runtime,
}

type Section = (&'static str, fn(&Bench) -> Result<()>);

const SECTIONS: [Section; 9] = [
    ("get", requests::get),
    ("list", requests::list),
    ("create", requests::create),
    ("upkeep", upkeep::run),
    ("output", ingest::run),
    ("chain", chain::run),
    ("memory", memory::run),
    ("restart", restart::run),
    ("cold", cold::run),
];

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let words: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| word != "--bench")
        .collect();
    if let [word, rest @ ..] = words.as_slice()
        && word == raw_axum::ARGUMENT
    {
        return raw_axum::run(rest);
    }
    let known = |word: &String| SECTIONS.iter().any(|(name, _)| name == word);
    if let Some(unknown) = words.iter().find(|word| !known(word)) {
        let names = SECTIONS.map(|(name, _)| name).join(" ");
        bail!("there is no section {unknown}; there are: {names}");
    }
    let bench = Bench {
        program: program()?,
        scratch: tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))
            .context("no directory to work in")?,
        runtime: tokio::runtime::Runtime::new().context("no runtime")?,
    };
    table::print_head();
    let mut failed = Vec::new();
    for (name, section) in SECTIONS {
        if words.is_empty() || words.iter().any(|word| word == name) {
            table::print_section(name);
            // What cannot be measured must not keep the rest from being measured.
            if let Err(error) = section(&bench) {
                table::print_note(&format!("{name} was not measured: {error:#}"));
                failed.push(name);
            }
        }
    }
    if failed.is_empty() {
        Ok(())
    } else {
        bail!("not measured: {}", failed.join(", "))
    }
}

/// `BATON_BENCH_PROGRAM`, else the release binary of this workspace.
fn program() -> Result<PathBuf> {
    let built = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/release/baton");
    let path = std::env::var_os("BATON_BENCH_PROGRAM").map_or_else(|| built.into(), PathBuf::from);
    path.canonicalize()
        .with_context(|| format!("{} is not there; scripts/build makes it", path.display()))
}
