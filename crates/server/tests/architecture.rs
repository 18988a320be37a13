//! The direction of dependencies, read off the source: between crates, between the server's
//! modules, and what the domain and everything but the configuration keep away from.
//!
//! A new module fails here until it has a row in [`ARROWS`]; that row is the place to argue about
//! what it may know. `ARCHITECTURE.md` draws the same picture; the tests it names are looked for
//! here too, so that it cannot promise what nobody checks.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// What each module of the server may use of the others. Rows go from the bottom up: a module
/// uses rows above its own only, so that there can be no circle.
const ARROWS: &[(&str, &[&str])] = &[
    ("agent_binary", &[]),
    ("claude", &[]),
    ("clock", &[]),
    ("config", &[]),
    ("failpoint", &[]),
    ("image", &[]),
    ("store", &["failpoint"]),
    ("runtime", &["failpoint"]),
    ("repos", &["failpoint"]),
    ("transition", &["clock", "store"]),
    ("open_waits", &["clock", "failpoint", "store", "transition"]),
    ("launch", &["claude", "clock", "config", "repos", "store"]),
    (
        "conclude",
        &[
            "clock",
            "failpoint",
            "launch",
            "repos",
            "store",
            "transition",
        ],
    ),
    (
        "gateway",
        &[
            "claude",
            "clock",
            "config",
            "failpoint",
            "launch",
            "repos",
            "store",
            "transition",
        ],
    ),
    ("blocked", &["clock", "store"]),
    (
        "orchestrator",
        &[
            "blocked",
            "clock",
            "failpoint",
            "store",
            "transition",
            "open_waits",
        ],
    ),
    (
        "landing",
        &[
            "clock",
            "failpoint",
            "orchestrator",
            "repos",
            "store",
            "transition",
        ],
    ),
    (
        "reconcile",
        &[
            "blocked",
            "clock",
            "conclude",
            "config",
            "failpoint",
            "gateway",
            "landing",
            "launch",
            "orchestrator",
            "runtime",
            "store",
            "transition",
            "open_waits",
        ],
    ),
    ("api", &["orchestrator", "store"]),
    ("http", &["api", "orchestrator", "store"]),
    ("mcp", &["api", "orchestrator", "store"]),
    (
        "server",
        &[
            "agent_binary",
            "clock",
            "conclude",
            "config",
            "gateway",
            "http",
            "image",
            "landing",
            "launch",
            "mcp",
            "orchestrator",
            "reconcile",
            "repos",
            "runtime",
            "store",
            "open_waits",
        ],
    ),
    (
        "cli",
        &[
            "config",
            "failpoint",
            "image",
            "mcp",
            "repos",
            "runtime",
            "server",
        ],
    ),
];

/// Arrows that are there and should not be, each with the way out. One that is gone must go from
/// here too.
const DEPARTURES: &[(&str, &str, &str)] = &[];

/// Files outside `config` that read the environment, each with its reason.
const ENVIRONMENT_READERS: &[(&str, &str)] = &[(
    "repos/git.rs",
    "hands PATH and proxies on to git, whose environment is otherwise empty",
)];

/// What the domain may not name: it decides, others look and act.
const NOT_IN_DOMAIN: &[&str] = &[
    "axum",
    "bollard",
    "hyper",
    "reqwest",
    "sqlx",
    "std::env",
    "std::fs",
    "std::io",
    "std::net",
    "std::process",
    "std::thread",
    "std::time::Instant",
    "std::time::SystemTime",
    "Timestamp::now",
    "Zoned::now",
    "Uuid::new_v4",
    "Uuid::now_v7",
    "tokio",
    "tracing",
    "println!",
    "eprintln!",
];

/// What neither door nor the wire types may hold: they reach the world through the orchestrator.
const NOT_IN_DOORS: &[(&str, &str)] = &[
    ("store::Store", "Store"),
    ("runtime::Runtime", "Runtime"),
    ("runtime::DockerRuntime", "DockerRuntime"),
    ("repos::Repos", "Repos"),
    ("gateway::Gateway", "Gateway"),
];

/// Each crate of ours with those of ours it may depend on.
const CRATE_ARROWS: &[(&str, &[&str])] = &[
    ("domain", &[]),
    ("agent", &["baton-domain"]),
    ("scripted-model", &[]),
    ("server", &["baton-agent", "baton-domain"]),
];

/// The domain's only dependencies.
const DOMAIN_DEPENDENCIES: &[&str] = &[
    "aho-corasick",
    "jiff",
    "serde",
    "serde_json",
    "thiserror",
    "unicode-normalization",
    "uuid",
];

#[test]
fn rows_go_from_the_bottom_up() {
    for (at, (module, uses)) in ARROWS.iter().enumerate() {
        let below: BTreeSet<_> = ARROWS[..at].iter().map(|(name, _)| *name).collect();
        for used in *uses {
            assert!(
                below.contains(used),
                "the row of {module} names {used}, which is not above it"
            );
        }
    }
}

#[test]
fn modules_of_the_server_use_only_what_is_below_them() {
    let root = crates().join("server/src");
    let mut wrong = BTreeSet::new();
    let mut departures_met = BTreeSet::new();
    for file in sources(&root) {
        let module = module_of(&root, &file);
        if module == "lib" || module == "main" {
            continue;
        }
        let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| *name == module) else {
            wrong.insert(format!("{module} has no row in ARROWS"));
            continue;
        };
        for used in modules_used(&product_code(&file)) {
            if used == module || allowed.contains(&used.as_str()) {
                continue;
            }
            match DEPARTURES
                .iter()
                .position(|(from, to, _)| *from == module && *to == used)
            {
                Some(at) => _ = departures_met.insert(at),
                None => {
                    let shown = file.strip_prefix(&root).unwrap_or(&file).display();
                    wrong.insert(format!("{module} -> {used} in {shown}"));
                }
            }
        }
    }
    for (at, (from, to, _)) in DEPARTURES.iter().enumerate() {
        if !departures_met.contains(&at) {
            wrong.insert(format!("{from} -> {to} is gone; take it out of DEPARTURES"));
        }
    }
    assert!(wrong.is_empty(), "wrong arrows:\n{}", lines(&wrong));
}

#[test]
fn doors_hold_no_store_and_no_runtime() {
    let root = crates().join("server/src");
    let mut wrong = BTreeSet::new();
    for file in sources(&root) {
        if !["api", "http", "mcp"].contains(&module_of(&root, &file).as_str()) {
            continue;
        }
        let code = product_code(&file);
        for (path, name) in NOT_IN_DOORS {
            let named = mentions(&code, path) || mentions_alone(&code, name);
            if named {
                wrong.insert(format!("{} names {path}", file.display()));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "what doors may not hold:\n{}",
        lines(&wrong)
    );
}

#[test]
fn the_domain_does_no_io_and_asks_for_no_time() {
    let mut wrong = BTreeSet::new();
    for file in sources(&crates().join("domain/src")) {
        let code = product_code(&file);
        for name in NOT_IN_DOMAIN {
            if mentions(&code, name) {
                wrong.insert(format!("{} names {name}", file.display()));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "what the domain may not name:\n{}",
        lines(&wrong)
    );
    let named = dependencies("domain");
    let allowed = DOMAIN_DEPENDENCIES
        .iter()
        .map(|name| (*name).to_owned())
        .collect();
    assert_eq!(named, allowed, "the domain's dependencies");
}

#[test]
fn only_the_configuration_reads_the_environment() {
    let root = crates().join("server/src");
    let mut readers = BTreeSet::new();
    for file in sources(&root) {
        let shown = file
            .strip_prefix(&root)
            .unwrap_or(&file)
            .display()
            .to_string();
        if shown != "config.rs" && mentions(&product_code(&file), "std::env") {
            readers.insert(shown);
        }
    }
    let known = ENVIRONMENT_READERS
        .iter()
        .map(|(file, _)| (*file).to_owned())
        .collect();
    assert_eq!(readers, known, "files outside config.rs that name std::env");
}

#[test]
fn crates_depend_only_on_crates_below_them() {
    for (name, allowed) in CRATE_ARROWS {
        let ours = dependencies(name)
            .into_iter()
            .filter(|dependency| dependency.starts_with("baton") || dependency == "scripted-model");
        for dependency in ours {
            assert!(
                allowed.contains(&dependency.as_str()),
                "{name} -> {dependency}"
            );
        }
    }
}

#[test]
fn tests_that_the_documents_name_exist() {
    let mut there = BTreeSet::new();
    for file in rust_files(&crates()) {
        let text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{file:?}: {error}"));
        there.extend(text.split("fn ").skip(1).filter_map(|rest| {
            let (name, _) = rest.split_once(['(', '<'])?;
            Some(name.to_owned())
        }));
    }
    let mut missing = BTreeSet::new();
    for document in ["ARCHITECTURE.md", "docs/feature-status.md"] {
        let path = crates().join("..").join(document);
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
        // What stands between backquotes and looks like a sentence is the name of a test.
        let quoted = text.split('`').skip(1).step_by(2);
        let names = quoted.filter(|name| {
            let letters = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
            name.chars().all(letters) && name.matches('_').count() >= 2
        });
        let unknown = names.filter(|name| !there.contains(*name));
        missing.extend(unknown.map(|name| format!("{name}, in {document}")));
    }
    assert!(missing.is_empty(), "no such tests:\n{}", lines(&missing));
}

fn crates() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the server lies in the folder of all crates")
        .to_owned()
}

/// Every source file below `root` but those that hold tests alone.
fn sources(root: &Path) -> Vec<PathBuf> {
    let mut files = rust_files(root);
    files.retain(|file| {
        let inside = file.strip_prefix(root).unwrap_or(file).with_extension("");
        inside.iter().all(|part| part != "tests")
    });
    files
}

fn rust_files(root: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
        for entry in entries {
            let path = entry.expect("an entry can be read").path();
            if path.is_dir() {
                let built = path.file_name().is_some_and(|name| name == "target");
                folders.extend((!built).then_some(path));
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    assert!(!files.is_empty(), "no source in {root:?}");
    files.sort();
    files
}

/// The first name below `root`: `http` for `http.rs` and for `http/gate.rs`.
fn module_of(root: &Path, file: &Path) -> String {
    let inside = file.strip_prefix(root).expect("the file is below its root");
    let first = inside.iter().next().unwrap_or_default().to_string_lossy();
    first.trim_end_matches(".rs").to_owned()
}

/// The file without comments and without its module of tests.
fn product_code(file: &Path) -> String {
    let text = fs::read_to_string(file).unwrap_or_else(|error| panic!("{file:?}: {error}"));
    let mut code = String::with_capacity(text.len());
    let mut kept = text.lines().peekable();
    while let Some(line) = kept.next() {
        let opens_tests = |next: &&str| next.starts_with("mod ") && next.ends_with('{');
        if line == "#[cfg(test)]" && kept.peek().is_some_and(opens_tests) {
            break;
        }
        if !line.trim_start().starts_with("//") {
            code.push_str(line);
            code.push('\n');
        }
    }
    code
}

/// The modules named as `crate::name` or `crate::{name…, name…}`.
fn modules_used(code: &str) -> BTreeSet<String> {
    let mut modules = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let inside_a_word = code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let path = &code[at + "crate::".len()..];
        if inside_a_word {
            continue;
        }
        match path.strip_prefix('{') {
            None => modules.extend(words(path).next().map(str::to_owned)),
            Some(group) => modules.extend(first_words_of_group(group)),
        }
    }
    modules
}

/// Of `a::{b, c}, d}` the names `a` and `d`.
fn first_words_of_group(group: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut depth = 0_usize;
    let mut expects_name = true;
    for (at, letter) in group.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => expects_name = true,
            _ if depth == 0 && expects_name && !letter.is_whitespace() => {
                names.extend(words(&group[at..]).next().map(str::to_owned));
                expects_name = false;
            }
            _ => {}
        }
    }
    names
}

fn words(code: &str) -> impl Iterator<Item = &str> {
    code.split(|c: char| !c.is_alphanumeric() && c != '_')
        .filter(|word| !word.is_empty())
}

/// Whether `name` stands in the code as a whole name.
fn mentions(code: &str, name: &str) -> bool {
    let part_of_name = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(name).any(|(at, _)| {
        !code[..at].ends_with(part_of_name) && !code[at + name.len()..].starts_with(part_of_name)
    })
}

/// Whether `name` stands in the code without a path before it: not as somebody's variant.
fn mentions_alone(code: &str, name: &str) -> bool {
    let part_of_name = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(name).any(|(at, _)| {
        let before = &code[..at];
        !before.ends_with(part_of_name)
            && !before.ends_with("::")
            && !code[at + name.len()..].starts_with(part_of_name)
    })
}

/// What stands under `[dependencies]` in a crate's manifest.
fn dependencies(name: &str) -> BTreeSet<String> {
    let path = crates().join(name).join("Cargo.toml");
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
    let section = text.split("[dependencies]\n").nth(1).unwrap_or_default();
    let section = section.split("\n[").next().unwrap_or_default();
    let names = section
        .lines()
        .filter_map(|line| line.split(['.', ' ', '=']).next());
    names
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

fn lines(of: &BTreeSet<String>) -> String {
    of.iter().map(|line| format!("  {line}\n")).collect()
}

#[test]
fn groups_and_single_names_are_found() {
    let code = "use crate::store::{Store, rows::Row};\nuse crate::{\n    api::{self, ApiError},\n    \
                clock,\n};\nlet x = mycrate::y; crate::http::z();";
    let found: Vec<_> = modules_used(code).into_iter().collect();
    assert_eq!(found, ["api", "clock", "http", "store"]);
}
