use super::*;
use expect_test::{Expect, expect};
use proptest::prelude::*;

fn read(plan: &Value) -> Result<ProposedGraph, PlanError> {
    let repository = "owner/repo".parse().expect("a good name");
    ProposedGraph::from_plan_json(plan, &PlanLimits::of(&repository))
}

#[track_caller]
fn check(plan: Value, expected: Expect) {
    expected.assert_eq(&match read(&plan) {
        Ok(graph) => shown(&graph),
        Err(error) => error.to_string(),
    });
}

fn shown(graph: &ProposedGraph) -> String {
    let lines = graph.sessions.iter().map(|session| {
        let kind = session.kind;
        format!("{kind} {:?} {:?}", session.title, session.dependencies)
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// `a<-b,c` as sessions of a plan.
fn plan(text: &str) -> Value {
    let sessions = text.split_whitespace().map(|entry| {
        let (key, list) = entry.split_once("<-").unwrap_or((entry, ""));
        let dependencies: Vec<&str> = list.split(',').filter(|key| !key.is_empty()).collect();
        session(key, &dependencies)
    });
    json!({ "summary": "All of it.", "sessions": sessions.collect::<Vec<_>>() })
}

fn session(key: &str, dependencies: &[&str]) -> Value {
    json!({
        "key": key, "type": "implementation", "title": key, "requirements": "Do it.",
        "dependencies": dependencies,
    })
}

fn with(field: &str, value: Value) -> Value {
    let mut plan = plan("a b<-a");
    plan["sessions"][1][field] = value;
    plan
}

#[test]
fn sessions_come_after_those_they_wait_for() {
    check(
        plan("d<-b,c b<-a c<-a,a a"),
        expect![[r#"
        implementation "a" []
        implementation "b" [0]
        implementation "c" [0]
        implementation "d" [1, 2]"#]],
    );
}

#[test]
fn circles_and_unknown_or_repeated_keys_are_refused() {
    check(
        plan("a<-b b<-c c<-a"),
        expect!["sessions depend on each other in a circle: a -> b -> c -> a"],
    );
    check(
        plan("a<-a"),
        expect!["sessions depend on each other in a circle: a -> a"],
    );
    check(
        plan("a b<-a,x"),
        expect![[
            r#"sessions[1].dependencies[1] must be the key of a session of this plan, not "x""#
        ]],
    );
    check(
        plan("a b a"),
        expect!["sessions[2].key must be another key than sessions[0].key"],
    );
}

#[test]
fn a_plan_has_one_to_fifty_sessions() {
    check(
        json!({ "sessions": [] }),
        expect!["sessions must hold 1 to 50 sessions, not 0"],
    );
    let keys = |count: usize| (0..count).map(|at| format!("k{at} ")).collect::<String>();
    assert_eq!(
        read(&plan(&keys(50))).map(|graph| graph.sessions.len()),
        Ok(50)
    );
    check(
        plan(&keys(51)),
        expect!["sessions must hold 1 to 50 sessions, not 51"],
    );
}

#[test]
fn fields_are_checked_and_named() {
    check(json!([]), expect!["plan must be an object"]);
    check(json!({ "sessions": 3 }), expect!["sessions must be a list"]);
    check(
        json!({ "sessions": ["a"] }),
        expect!["sessions[0] must be an object"],
    );
    check(
        with("type", json!("coordination")),
        expect!["sessions[1].type must be analysis, implementation, testing or review"],
    );
    check(
        with("type", json!("")),
        expect!["sessions[1].type must be a text of 1 to 64 bytes that is not blank"],
    );
    check(
        with("key", json!("a b")),
        expect!["sessions[1].key must be of letters, digits, -, _ and ."],
    );
    check(
        with("title", json!(" ")),
        expect!["sessions[1].title must be a text of 1 to 200 bytes that is not blank"],
    );
    check(
        with("requirements", json!("x".repeat(64 * 1024 + 1))),
        expect!["sessions[1].requirements must be a text of 1 to 65536 bytes that is not blank"],
    );
    check(
        with("dependencies", json!("a")),
        expect!["sessions[1].dependencies must be a list of at most 50 keys"],
    );
    check(
        with("dependencies", json!([1])),
        expect!["sessions[1].dependencies[0] must be a text of 1 to 64 bytes that is not blank"],
    );
}

#[test]
fn a_key_and_what_is_to_be_done_are_enough() {
    let plan = json!({ "sessions": [{ "key": "a", "requirements": "do it" }] });
    let repository = "owner/name".parse().expect("a repository");
    let graph = ProposedGraph::from_plan_json(&plan, &PlanLimits::of(&repository));
    let [only] = &graph.expect("a plan").sessions[..] else {
        panic!("one session");
    };
    assert_eq!(
        (only.kind, only.title.as_str()),
        (Kind::Implementation, "a")
    );
}

#[test]
fn no_other_repository_is_let_in() {
    check(
        with("repository", json!("owner/repo")),
        expect![[r#"
        implementation "a" []
        implementation "b" [0]"#]],
    );
    check(
        with("repository", json!("owner/other")),
        expect!["sessions[1].repository must be owner/repo or left out"],
    );
    let mut whole = plan("a");
    whole["repository"] = json!({ "name": "owner/repo" });
    check(whole, expect!["repository must be owner/repo or left out"]);
}

#[test]
fn all_requirements_together_have_a_limit() {
    let mut whole = plan(&(0..17).map(|at| format!("k{at} ")).collect::<String>());
    for at in 0..17 {
        whole["sessions"][at]["requirements"] = json!("x".repeat(64 * 1024));
    }
    check(
        whole,
        expect!["sessions must hold at most 1048576 bytes of requirements together"],
    );
}

#[test]
fn what_is_no_json_is_said_to_be_none() {
    let repository = "owner/repo".parse().expect("a good name");
    let limits = PlanLimits::of(&repository);
    for text in ["", "I made a plan.", &"[".repeat(100_000)] {
        let error = ProposedGraph::from_plan_text(text, &limits);
        assert!(matches!(error, Err(PlanError::NotJson(_))), "{error:?}");
    }
}

#[test]
fn the_prompt_carries_the_request_and_the_wishes() {
    let phases = ["analysis".to_owned(), "polish".to_owned()];
    let prompt = plan_prompt(&Request {
        requirements: "Build a shop.</request>",
        mode: Some(DependencyMode::Sequential),
        phases: &phases,
        parallel_sessions: Some(2),
        ..Request::default()
    });
    expect![[r#"
        - Asked for by the client: make one chain, each session after the one before.
        - At most 2 sessions run at once.
        - Phases the client wants, in this order: analysis, polish.

        <request>
        Build a shop.<\/request>
        </request>"#]]
    .assert_eq(prompt.split_once("why.\n").map_or("", |(_, rest)| rest));
}

#[test]
fn a_plan_within_the_schema_is_taken() {
    let schema = plan_schema();
    let item = &schema["properties"]["sessions"]["items"];
    let planned = plan("a");
    for name in item["required"].as_array().expect("a list") {
        let name = name.as_str().expect("a name");
        assert!(!planned["sessions"][0][name].is_null(), "{name}");
        assert!(!item["properties"][name].is_null(), "{name}");
    }
}

proptest! {
    #[test]
    fn every_plan_taken_is_in_order(lists in proptest::collection::vec(
        proptest::collection::vec(0..20_usize, 0..4), 0..20,
    )) {
        let entries = lists.iter().enumerate().map(|(at, list)| {
            let keys: Vec<String> = list.iter().map(|of| format!("k{of}")).collect();
            format!("k{at}<-{}", keys.join(","))
        });
        let plan = plan(&entries.collect::<Vec<_>>().join(" "));
        if let Ok(graph) = read(&plan) {
            prop_assert_eq!(graph.sessions.len(), lists.len());
            for (at, session) in graph.sessions.iter().enumerate() {
                prop_assert!(session.dependencies.iter().all(|of| *of < at));
            }
        }
    }
}
