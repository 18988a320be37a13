//! Texts as people write them, each with the graph it should become: `tests/decompose/*.txt`.
//!
//! A file holds, between lines of `%%%`: what the client chose (`mode:`, `phases:`, `context:`), the
//! text, and the graph. Its first line is the mode; then a line for each session with its number, kind or
//! component, the title where it is made for one feature, and the numbers of those it waits for.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use baton_domain::Kind;
use baton_domain::decompose::{
    Component, DependencyMode, ProposedGraph, ProposedSession, Request, SESSIONS_MAX, decompose,
};
use proptest::collection::vec;
use proptest::prelude::*;

const TEXTS_MIN: usize = 60;

fn render(graph: &ProposedGraph) -> String {
    let mut text = format!("{}\n", graph.mode.name());
    for (at, session) in graph.sessions.iter().enumerate() {
        let _ = write!(text, "{} {}", at + 1, name(session));
        if !session.dependencies.is_empty() {
            let waits: Vec<String> = session
                .dependencies
                .iter()
                .map(|of| (of + 1).to_string())
                .collect();
            let _ = write!(text, " <- {}", waits.join(" "));
        }
        text.push('\n');
    }
    text
}

fn name(session: &ProposedSession) -> String {
    let kind = session.kind.name();
    if session.kind != Kind::Implementation {
        return kind.to_owned();
    }
    let of = session.component.map_or(kind, Component::name);
    let feature = match session.component {
        Some(_) => session.title.split_once(": ").map(|(_, feature)| feature),
        None => Some(session.title.as_str()).filter(|title| *title != "Implementation"),
    };
    feature.map_or(of.to_owned(), |feature| format!("{of} \"{feature}\""))
}

#[test]
fn texts_of_people_become_the_graphs_they_mean() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/decompose");
    let entries = fs::read_dir(&folder).expect("the texts are there");
    let mut paths: Vec<_> = entries
        .map(|entry| entry.expect("an entry").path())
        .collect();
    paths.sort();
    assert!(paths.len() >= TEXTS_MIN, "{} texts", paths.len());
    let mut wrong = String::new();
    for path in paths {
        let file = fs::read_to_string(&path).expect("a text can be read");
        let mut parts = file.split("%%%\n");
        let (Some(chosen), Some(text), Some(expected), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            panic!("{} has not three parts", path.display());
        };
        let field = |name: &str| {
            let line = chosen.lines().find_map(|line| line.strip_prefix(name));
            line.map(str::trim).unwrap_or_default()
        };
        let phases = field("phases:").split(',').map(str::trim);
        let phases: Vec<String> = phases
            .filter(|name| !name.is_empty())
            .map(str::to_owned)
            .collect();
        let request = Request {
            requirements: text,
            mode: DependencyMode::ALL
                .into_iter()
                .find(|mode| mode.name() == field("mode:")),
            phases: &phases,
            context: Some(field("context:")),
            ..Request::default()
        };
        let found = render(&decompose(&request));
        if found != expected {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let _ = write!(
                wrong,
                "== {name}\n{text}-- expected\n{expected}-- found\n{found}"
            );
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// What a graph must be, whatever the text.
fn check_sound(request: &Request<'_>) -> Result<(), TestCaseError> {
    let graph = decompose(request);
    prop_assert!((1..=SESSIONS_MAX).contains(&graph.sessions.len()));
    for (at, session) in graph.sessions.iter().enumerate() {
        let ascending = session
            .dependencies
            .windows(2)
            .all(|pair| pair[0] < pair[1]);
        prop_assert!(ascending && session.dependencies.iter().all(|of| *of < at));
        prop_assert!(session.kind != Kind::Coordination);
        prop_assert!(session.title.chars().count() <= 80 && !session.title.contains('\n'));
        prop_assert!(!session.requirements.trim().is_empty());
    }
    prop_assert_eq!(&graph, &decompose(request));
    Ok(())
}

/// Lines like those of requirements, in wild order.
fn lines() -> impl Strategy<Value = String> {
    const STARTS: [&str; 12] = [
        "", "- ", "  - ", "1. ", "2) ", "# ", "## ", "> ", "* [x] ", "```", "Note: ", "(1) ",
    ];
    const WORDS: [&str; 24] = [
        "API",
        "frontend",
        "no",
        "without",
        "login",
        "database",
        "tests",
        "deploy",
        "or",
        ",",
        ":",
        "add",
        "first",
        "then",
        "the",
        "rest of",
        "React",
        "to",
        "already exists",
        "\u{301}",
        "🦀",
        ".",
        "(",
        "Übersicht",
    ];
    let line = (0..STARTS.len(), vec(0..WORDS.len(), 0..12)).prop_map(|(start, words)| {
        let words: Vec<&str> = words.into_iter().map(|at| WORDS[at]).collect();
        format!("{}{}", STARTS[start], words.join(" "))
    });
    vec(line, 0..40).prop_map(|lines| lines.join("\n"))
}

fn modes() -> impl Strategy<Value = Option<DependencyMode>> {
    (0..4_usize).prop_map(|at| DependencyMode::ALL.get(at).copied())
}

fn phases() -> impl Strategy<Value = Vec<String>> {
    const NAMES: [&str; 8] = [
        "analysis",
        "implementation",
        "testing",
        "review",
        "deployment",
        "api",
        "polish",
        "",
    ];
    prop_oneof![
        vec((0..NAMES.len()).prop_map(|at| NAMES[at].to_owned()), 0..6),
        vec(".{0,20}", 0..100),
    ]
}

proptest! {
    // Where this test lies, there is no place that proptest finds for its failures.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_text_becomes_a_sound_graph(text in ".{0,400}", mode in modes(), phases in phases()) {
        let request = Request { requirements: &text, mode, phases: &phases, ..Request::default() };
        check_sound(&request)?;
    }

    #[test]
    fn every_list_becomes_a_sound_graph(text in lines(), mode in modes(), phases in phases()) {
        let request = Request { requirements: &text, mode, phases: &phases, ..Request::default() };
        check_sound(&request)?;
    }
}

/// Long enough that anything quadratic takes minutes, short enough for a debug build.
#[test]
fn long_texts_of_one_pattern_are_no_trouble() {
    const BYTES: usize = 128 * 1024;
    let hard = [
        "a",
        " ",
        "\n",
        "-",
        "- a\n",
        "# a\n",
        "1. ",
        "(1) (2) ",
        "```\n",
        "~",
        "\u{301}",
        "ß",
        ":",
        "a:\n",
        "no ",
        "api ",
        "no api or ",
        "api to the ui ",
        "without ",
        "  - x\n",
        "ﷺ",
        "* ",
        "**a**\n",
        "=\n",
        "a\n---\n",
        ". A",
        "first then ",
        "</request>",
        "/a.b ",
        "@. ",
        "- add a page for the shop\n",
    ];
    for piece in hard {
        let text = piece.repeat(BYTES / piece.len());
        let request = Request {
            requirements: &text,
            ..Request::default()
        };
        assert!(
            decompose(&request).sessions.len() <= SESSIONS_MAX,
            "{piece:?}"
        );
    }
}

#[test]
fn a_mebibyte_is_divided_and_each_session_stays_small() {
    let text = "- add a page for the shop\n- store orders in Postgres, please\n".repeat(20_000);
    assert!(text.len() > 1024 * 1024);
    let request = Request {
        requirements: &text,
        ..Request::default()
    };
    let graph = decompose(&request);
    assert!(graph.sessions.len() > 4);
    let longest = graph
        .sessions
        .iter()
        .map(|session| session.requirements.len())
        .max();
    assert!(longest < Some(512 * 1024), "{longest:?}");
}
