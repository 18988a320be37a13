//! The demo's scripts: each plays for its own requirement and for no other.

use std::path::Path;

use scripted_model::{Script, Scripts};

const REQUIREMENTS: [(&str, &str); 4] = [
    ("10-test", "Write tests for the task list"),
    ("20-storage", "Implement task storage"),
    ("30-format", "Implement task formatting"),
    ("40-plan", "Plan the task list"),
];

fn demo() -> Scripts {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/demo");
    Scripts::load(&directory).expect("the demo's scripts are valid")
}

fn last_text(script: &Script) -> &str {
    script
        .turns
        .last()
        .and_then(|turn| turn.text.as_deref())
        .unwrap_or(&script.closing)
}

#[test]
fn each_requirement_has_its_script() {
    let scripts = demo();
    for (name, requirement) in REQUIREMENTS {
        let first = scripts
            .iter()
            .find(|script| script.matches(requirement, ""));
        assert_eq!(first.map(|script| script.name.as_str()), Some(name));
    }
}

/// A dependent session's prompt tells what its dependencies did: were a phrase of another script
/// in that, the wrong one would play.
#[test]
fn what_a_session_says_at_its_end_matches_no_script() {
    let scripts = demo();
    for said in scripts.iter().map(last_text) {
        let matching = scripts.iter().find(|script| script.matches(said, ""));
        assert_eq!(
            matching.map(|script| script.name.as_str()),
            Some("default"),
            "{said}"
        );
    }
}

#[test]
fn each_session_ends_with_next_steps() {
    for script in demo().iter() {
        assert!(
            last_text(script).contains("\nNext steps:\n- "),
            "script {}",
            script.name
        );
    }
}
