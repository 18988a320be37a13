//! Sessions side by side that changed the same lines, and the one that depends on both.

use serde_json::{Value, json};

use crate::fake_claude::steps;
use crate::remote::Remote;
use crate::world::{World, count_of, text};

const MORNING: &str = r#"
match = ["Greet in the morning", "Greet twice."]
[[turn]]
[[turn.tool]]
name = "Bash"
[turn.tool.input]
command = "echo 'Good morning' > greeting.txt && touch morning.txt && git add --all && git commit -qm 'Greet in the morning'"
[[turn]]
text = "It greets in the morning."
"#;
const NIGHT: &str = r#"
match = ["Greet at night", "Greet twice."]
[[turn]]
[[turn.tool]]
name = "Bash"
[turn.tool.input]
command = "echo 'Good night' > greeting.txt && touch night.txt && git add --all && git commit -qm 'Greet at night'"
[[turn]]
text = "It greets at night."
"#;
const ANALYSIS: &str = r#"
match = ["Plan the greetings"]
closing = "Greet twice."
"#;
/// Plays only where the prompt names the file, and has what both others said.
const JOINING: &str = r#"
match = ["Test the greetings", "Before anything else, merge.", 'conflicts in "greeting.txt"', "It greets in the morning.", "It greets at night."]
[[turn]]
text = "I look at the merge."
[[turn.tool]]
name = "Bash"
[turn.tool.input]
command = "git rev-parse --verify --quiet MERGE_HEAD && git status --short && cat greeting.txt"
"#;
const RESOLVING: &str = r#"
[[turn]]
[[turn.tool]]
name = "Bash"
[turn.tool.input]
command = "printf 'Good morning\nGood night\n' > greeting.txt && git add greeting.txt && git commit -qm 'Join both greetings' && echo joined"
[[turn]]
text = "Both greet: {{last_tool_result}}"
"#;
const CARELESS: &str = r#"
[[turn]]
[[turn.tool]]
name = "Bash"
[turn.tool.input]
command = "git commit -qam 'Join both greetings' && echo joined"
[[turn]]
text = "Both greet: {{last_tool_result}}"
"#;

/// A diamond whose middle sessions contradict each other, and a session behind it.
struct Diamond {
    world: World,
    remote: Remote,
    middle: [String; 2],
    joining: String,
    behind: String,
}

impl Diamond {
    /// All of it started; the joining session does `how` once it has looked at the merge.
    async fn started(how: &str) -> Self {
        let joining = [JOINING, how].concat();
        let scripts = [
            ("05-behind", "match = ['Say it again']\nclosing = 'Again.'"),
            ("10-joining", joining.as_str()),
            ("20-morning", MORNING),
            ("20-night", NIGHT),
            ("30-analysis", ANALYSIS),
        ];
        let mut world = World::with_scripts(scripts).await;
        let remote = world
            .remote("owner/repo", &[("greeting.txt", "Hello\n")])
            .await;
        world.start_server().await;
        let analysis = world
            .create_with(json!({ "type": "analysis" }), "Plan the greetings")
            .await;
        world.start(&analysis).await;
        let morning = world.run("Greet in the morning", &[&analysis]).await;
        let night = world.run("Greet at night", &[&analysis]).await;
        let fields = json!({ "type": "testing", "dependencies": [morning, night] });
        let joining = world.create_with(fields, "Test the greetings").await;
        world.start(&joining).await;
        let behind = world.run("Say it again", &[&joining]).await;
        Self {
            world,
            remote,
            middle: [morning, night],
            joining,
            behind,
        }
    }

    /// Whether the joining session's branch contains what both others committed.
    async fn holds_both(&self, joined: &Value) -> bool {
        let branch = text(&joined["result"]["branch"]);
        let mut holds = true;
        for id in &self.middle {
            let session = self.world.session(id).await;
            let commit = text(&session["result"]["commit"]);
            let asked = ["merge-base", "--is-ancestor", &commit, &branch];
            holds &= self.remote.try_git(&asked).await.status.success();
        }
        holds
    }
}

#[tokio::test]
async fn session_merges_the_contradicting_results_it_depends_on() {
    let diamond = Diamond::started(RESOLVING).await;
    let joined = diamond.world.completed(&diamond.joining).await;
    assert_eq!(joined["output"]["summary"], "Both greet: joined");
    let branch = text(&joined["result"]["branch"]);
    let greeting = diamond.remote.file(&branch, "greeting.txt").await;
    assert_eq!(greeting.as_deref(), Some("Good morning\nGood night\n"));
    assert!(diamond.holds_both(&joined).await);
    for file in ["morning.txt", "night.txt"] {
        assert!(diamond.remote.file(&branch, file).await.is_some(), "{file}");
    }
    let output = diamond.world.output(&diamond.joining).await;
    let seen = output.to_string();
    assert!(seen.contains("I look at the merge."), "{seen}");
    diamond.world.completed(&diamond.behind).await;
}

#[tokio::test]
async fn session_that_leaves_conflict_markers_fails_and_blocks_its_dependents() {
    let diamond = Diamond::started(CARELESS).await;
    let session = diamond
        .world
        .failed(&diamond.joining, "merge_conflict")
        .await;
    let error = text(&session["error"]);
    assert!(
        error.contains("conflicts are left in greeting.txt"),
        "{error}"
    );
    // What it did is kept where nobody takes it for finished.
    let branch = text(&session["result"]["branch"]);
    assert!(branch.starts_with("baton/"), "{branch}");
    let greeting = diamond.remote.file(&branch, "greeting.txt").await;
    assert!(greeting.is_some_and(|text| text.contains("<<<<<<< HEAD")));
    assert!(diamond.holds_both(&session).await);
    let behind = diamond.world.until(&diamond.behind, "blocked").await;
    assert_eq!(behind["blockedBy"], diamond.joining.as_str());
}

#[tokio::test]
async fn contradicting_results_pass_through_a_session_that_only_reads() {
    let mut world = World::with_fake_claude().await;
    let remote = world
        .remote("owner/repo", &[("greeting.txt", "Hello\n")])
        .await;
    world.start_server().await;
    let writes = |words: &str| {
        steps(json!([
            ["write", "greeting.txt", words],
            ["commit", "Greet"],
            ["result", "Done."]
        ]))
    };
    let one = world.run(&writes("Good morning\n"), &[]).await;
    let other = world.run(&writes("Good night\n"), &[]).await;
    let fields = json!({ "type": "review", "dependencies": [one, other] });
    let read = steps(json!([["result", "Read both."]]));
    let review = world.create_with(fields, &read).await;
    world.start(&review).await;
    // It resolves by hand and leaves the commit to the agent.
    let joins = steps(json!([
        ["write", "greeting.txt", "Good day\n"],
        ["result", "Joined."]
    ]));
    let joining = world.run(&joins, &[&review]).await;
    // It behaves as if there was nothing to merge.
    let ignores = steps(json!([
        ["write", "other.txt", "x\n"],
        ["result", "Nothing there."]
    ]));
    let ignoring = world.run(&ignores, &[&review]).await;

    let review = world.completed(&review).await;
    let unjoined = &review["result"]["unjoined"];
    assert_eq!(unjoined.as_array().map(Vec::len), Some(1), "{review:#}");
    assert!(text(&review["warnings"][0]).contains("contradicts"));
    let joined = world.completed(&joining).await;
    let branch = text(&joined["result"]["branch"]);
    let greeting = remote.file(&branch, "greeting.txt").await;
    assert_eq!(greeting.as_deref(), Some("Good day\n"));
    for id in [&one, &other] {
        let commit = text(&world.session(id).await["result"]["commit"]);
        let asked = ["merge-base", "--is-ancestor", &commit, &branch];
        assert!(remote.try_git(&asked).await.status.success());
    }
    let ignored = world.failed(&ignoring, "merge_conflict").await;
    assert!(text(&ignored["error"]).contains("greeting.txt"));
    assert_eq!(
        count_of(&world.events(&ignoring).await, "claude_started"),
        1
    );
}
