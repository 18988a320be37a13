//! What sessions of a graph are told, and what people are told of the graph.

use std::fmt::Write as _;

use super::demand::Demand;
use super::phases::Draft;
use super::{DependencyMode, ProposedGraph, ProposedSession, Request};
use crate::project::Kind;

/// The most bytes of the pieces that concern a session.
const PART_BYTES_MAX: usize = 256 * 1024;
/// The most bytes of the whole request that a session has as context beside its part.
const WHOLE_BYTES_MAX: usize = 64 * 1024;
/// The most letters of a title.
pub(super) const TITLE_LETTERS_MAX: usize = 80;
/// The most titles of other sessions that a session is told.
const TITLES_MAX: usize = 16;

/// The title of an implementation that is no part of anything.
const ALL_OF_IT: &str = "Implementation";

pub(super) fn graph(
    request: &Request<'_>,
    mode: DependencyMode,
    demand: &Demand<'_>,
    stages: &[Vec<Draft<'_>>],
    edges: Vec<Vec<usize>>,
) -> ProposedGraph {
    let drafts: Vec<&Draft<'_>> = stages.iter().flatten().collect();
    let titles: Vec<String> = drafts.iter().map(|draft| title(draft)).collect();
    let implementations: Vec<usize> = (0..drafts.len())
        .filter(|at| drafts[*at].kind == Kind::Implementation)
        .collect();
    let sessions = drafts
        .iter()
        .zip(edges)
        .enumerate()
        .map(|(at, (draft, dependencies))| {
            let others = implementations.iter().filter(|other| **other != at);
            let others: Vec<&str> = others.map(|other| titles[*other].as_str()).collect();
            let named_phase = draft.texts.is_empty() && draft.feature.is_some();
            let is_one_part = demand.parts.len() > 1 || !others.is_empty() || named_phase;
            ProposedSession {
                kind: draft.kind,
                component: draft.component,
                title: titles[at].clone(),
                requirements: requirements(
                    draft,
                    &titles[at],
                    &others,
                    is_one_part,
                    request.requirements,
                ),
                dependencies,
            }
        })
        .collect();
    ProposedGraph {
        mode,
        sessions,
        summary: summary(request, mode, demand, stages, &titles),
    }
}

fn title(draft: &Draft<'_>) -> String {
    let of_kind = match draft.kind {
        Kind::Analysis => "Analysis",
        Kind::Testing => "Testing",
        Kind::Review => "Review",
        Kind::Implementation | Kind::Coordination => ALL_OF_IT,
    };
    let component = draft.component.map(|component| component.title());
    let Some(feature) = draft.feature else {
        return component.unwrap_or(of_kind).to_owned();
    };
    let before = component.map_or(String::new(), |component| format!("{component}: "));
    let after = match draft.more {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let letters_max = TITLE_LETTERS_MAX - before.chars().count() - after.chars().count();
    match one_line(feature, letters_max).as_str() {
        "" => component.unwrap_or(of_kind).to_owned(),
        line => format!("{before}{line}{after}"),
    }
}

/// The first line without marks of emphasis, cut between words.
pub(super) fn one_line(text: &str, letters_max: usize) -> String {
    let line = text
        .lines()
        .find(|line| !line.trim().is_empty())
        .unwrap_or("");
    let plain = |c: &char| !matches!(c, '*' | '`' | '#') && !c.is_control();
    let letters: Vec<char> = line
        .trim()
        .chars()
        .take(letters_max * 2)
        .filter(plain)
        .collect();
    let whole: String = letters.iter().collect();
    let whole = whole.trim().trim_end_matches(['.', ':', ',', ';']);
    if whole.chars().count() <= letters_max {
        return whole.to_owned();
    }
    let cut: String = whole.chars().take(letters_max - 1).collect();
    let end = cut.rfind(' ').filter(|end| *end > cut.len() / 2);
    format!("{}…", cut[..end.unwrap_or(cut.len())].trim_end())
}

/// What a session is told. `others` are the titles of the implementations beside it.
fn requirements(
    draft: &Draft<'_>,
    title: &str,
    others: &[&str],
    is_one_part: bool,
    whole: &str,
) -> String {
    let alone = draft.kind == Kind::Implementation && !is_one_part;
    let mut text = match draft.kind {
        Kind::Analysis => "Analyse the project and plan the work on the request below. Change \
                           nothing; the sessions after yours build on your plan."
            .to_owned(),
        Kind::Testing => "Write and run tests for the work on the request below.".to_owned(),
        Kind::Review => {
            "Review the work on the request below: is all of it there, and right?".to_owned()
        }
        Kind::Implementation | Kind::Coordination if alone => {
            "Implement the request below.".to_owned()
        }
        Kind::Implementation | Kind::Coordination => {
            format!("Implement one part of the request below: {title}")
        }
    };
    if !others.is_empty() && others != [ALL_OF_IT] {
        let with = match draft.kind {
            Kind::Implementation => "Other sessions build the rest; leave to them:",
            _ => "Sessions that build it:",
        };
        let _ = write!(text, "\n\n{with}");
        for other in others.iter().take(TITLES_MAX) {
            let _ = write!(text, "\n- {}", fenced(other));
        }
        if others.len() > TITLES_MAX {
            let _ = write!(text, "\n- and {} more", others.len() - TITLES_MAX);
        }
    }
    let is_whole = alone
        || draft
            .texts
            .iter()
            .map(|part| part.trim())
            .eq([whole.trim()]);
    if !draft.texts.is_empty() && !is_whole {
        let part = draft.texts.iter().copied();
        let part = fenced(&within(part, "\n\n", PART_BYTES_MAX));
        let _ = write!(
            text,
            "\n\nWhat concerns you in it:\n<part>\n{part}\n</part>"
        );
    }
    let whole = fenced(&within([whole.trim()], "", WHOLE_BYTES_MAX));
    let _ = write!(
        text,
        "\n\nThe whole request:\n<request>\n{whole}\n</request>"
    );
    text
}

/// Texts one after the other, cut with a note at `bytes_max`.
fn within<'a>(texts: impl IntoIterator<Item = &'a str>, between: &str, bytes_max: usize) -> String {
    let mut joined = String::new();
    for text in texts {
        if !joined.is_empty() {
            joined.push_str(between);
        }
        let room = bytes_max.saturating_sub(joined.len());
        if text.len() > room {
            joined.push_str(&text[..text.floor_char_boundary(room)]);
            joined.push_str("\n(The rest is left out: it is too long.)");
            break;
        }
        joined.push_str(text);
    }
    joined
}

/// Takes from a text what could end its markers early.
pub(super) fn fenced(text: &str) -> String {
    text.replace("</part", "<\\/part")
        .replace("</request", "<\\/request")
}

fn summary(
    request: &Request<'_>,
    mode: DependencyMode,
    demand: &Demand<'_>,
    stages: &[Vec<Draft<'_>>],
    titles: &[String],
) -> String {
    let mut titles = titles.iter();
    let stages: Vec<String> = stages
        .iter()
        .map(|stage| {
            let named: Vec<&str> = titles
                .by_ref()
                .take(stage.len())
                .map(String::as_str)
                .collect();
            let shown = named[..named.len().min(TITLES_MAX)].join(", ");
            match named.len().saturating_sub(TITLES_MAX) {
                0 => shown,
                more => format!("{shown} and {more} more"),
            }
        })
        .collect();
    let mut text = format!("{}; mode {}.", stages.join(" → "), mode.name());
    let excluded: Vec<&str> = demand.excluded.iter().map(|of| of.name()).collect();
    if !excluded.is_empty() {
        let _ = write!(
            text,
            " Left out, as the request says: {}.",
            excluded.join(", ")
        );
    }
    if let Some(sessions) = request.parallel_sessions {
        let _ = write!(text, " At most {sessions} run at once.");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::{Request, decompose};
    use expect_test::{Expect, expect};

    fn graph(text: &str) -> super::ProposedGraph {
        decompose(&Request {
            requirements: text,
            parallel_sessions: Some(3),
            ..Request::default()
        })
    }

    #[track_caller]
    fn check(text: &str, at: usize, expected: Expect) {
        expected.assert_eq(&graph(text).sessions[at].requirements);
    }

    const SHOP: &str =
        "Build a shop for bicycles. The API is written in Go.\n\n- a React frontend\n";

    #[test]
    fn a_session_is_told_its_part_and_the_whole() {
        check(
            SHOP,
            1,
            expect![[r#"
            Implement one part of the request below: API/backend

            Other sessions build the rest; leave to them:
            - Frontend

            What concerns you in it:
            <part>
            Build a shop for bicycles.

            The API is written in Go.
            </part>

            The whole request:
            <request>
            Build a shop for bicycles. The API is written in Go.

            - a React frontend
            </request>"#]],
        );
        check(
            SHOP,
            3,
            expect![[r#"
            Write and run tests for the work on the request below.

            Sessions that build it:
            - API/backend
            - Frontend

            The whole request:
            <request>
            Build a shop for bicycles. The API is written in Go.

            - a React frontend
            </request>"#]],
        );
    }

    #[test]
    fn the_only_implementation_is_told_the_whole() {
        check(
            "Make it faster.",
            1,
            expect![[r#"
            Implement the request below.

            The whole request:
            <request>
            Make it faster.
            </request>"#]],
        );
    }

    #[test]
    fn a_text_cannot_end_its_markers() {
        check(
            "x</request>\ny</part>",
            0,
            expect![[r#"
                Analyse the project and plan the work on the request below. Change nothing; the sessions after yours build on your plan.

                The whole request:
                <request>
                x<\/request>
                y<\/part>
                </request>"#]],
        );
    }

    #[test]
    fn the_summary_says_stages_mode_and_what_is_left_out() {
        expect!["Analysis → API/backend, Frontend → Testing → Review; mode wait_for_core. At most 3 run at once."].assert_eq(&graph(SHOP).summary);
        expect!["Analysis → API/backend → Testing → Review; mode sequential. Left out, as the request says: authentication, frontend. At most 3 run at once."].assert_eq(&graph("An API. No frontend, no login.").summary);
    }
}
