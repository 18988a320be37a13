//! The pages in `docs/use-cases`, run as a reader would: every block of shell, in order, with
//! bash, curl and jq; then a look at the branch it all came together on.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;

use crate::remote::Remote;
use crate::world::{SECRET, World, text};

/// How long all sessions of a page may take together, on a busy machine.
const PAGE_LIMIT: Duration = Duration::from_secs(240);
const REPOSITORY: &str = "owner/repo";
const IGNORED: (&str, &str) = (".gitignore", "__pycache__/\n");

/// A page that was run to its end.
struct Ran {
    world: World,
    remote: Remote,
    printed: String,
}

impl Ran {
    /// Runs the page of that name against a server of its own, by the command that it tells
    /// its readers.
    async fn page(name: &str, files: &[(&str, &str)], inputs: &[(&str, &str)]) -> Self {
        let mut world = World::with_script_folder(name).await;
        let remote = world.remote(REPOSITORY, files).await;
        world.start_server().await;

        let pages = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/use-cases");
        let page = std::fs::read_to_string(pages.join(format!("{name}.md")));
        let page = page.expect("the page is there");
        let command = page
            .lines()
            .find_map(|line| line.strip_prefix("$ bash -euo pipefail"));
        let command = command.expect("the page tells how to run it");
        let running = Command::new("bash")
            .arg("-c")
            .arg(format!("exec bash -euo pipefail{command}"))
            .current_dir(&pages)
            .env_clear()
            .envs(std::env::var("PATH").map(|path| ("PATH", path)))
            .env("BATON_URL", world.api.base_url())
            .env("CLAUDE_WEBHOOK_SECRET", SECRET)
            .env("REPOSITORY", REPOSITORY)
            .envs(inputs.iter().copied())
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(PAGE_LIMIT, running).await;
        let output = output.expect("the page ends in time");
        let output = output.expect("bash can be run");
        let printed = both(&output);
        println!("--- {name} printed:\n{printed}");
        assert!(output.status.success(), "{}\n{printed}", output.status);
        Self {
            world,
            remote,
            printed,
        }
    }

    /// All sessions there are, in order of creation.
    async fn sessions(&self) -> Vec<Value> {
        let listed = self.world.api.call("session.list", json!({})).await;
        let sessions = listed["data"]["sessions"].as_array().cloned();
        sessions.expect("a list")
    }

    /// The graph of `branch`, once it holds what every session meant for it made.
    async fn story(&self, branch: &str) -> String {
        let log = ["log", "--graph", "--oneline", branch];
        let story = self.remote.git(&log).await;
        println!("--- git log --graph --oneline {branch}\n{story}");
        let sessions = self.sessions().await;
        let meant = sessions
            .iter()
            .filter(|one| one["project"]["branch"] == branch);
        for session in meant {
            assert_eq!(session["status"], "completed", "{session:#}");
            if !left_changes(session) {
                continue;
            }
            let commit = &text(&session["result"]["commit"]);
            let contained = ["merge-base", "--is-ancestor", commit, branch];
            let contained = self.remote.try_git(&contained).await.status.success();
            assert!(contained, "{branch} is without {session:#}");
        }
        story
    }

    async fn clone_of(&self, branch: &str) -> Clone {
        let dir = TempDir::new().expect("a directory");
        let path = dir.path().join("clone");
        let to = path.display().to_string();
        self.remote
            .git(&["clone", "--quiet", "--branch", branch, ".", &to])
            .await;
        Clone { _dir: dir, path }
    }
}

/// A fresh clone, to try by hand what is in it.
struct Clone {
    _dir: TempDir,
    path: PathBuf,
}

impl Clone {
    /// Runs the project's own tests; gives whether they passed, and what they printed.
    async fn tests(&self) -> (bool, String) {
        let output = self
            .ran("python3", &["-B", "-m", "unittest", "--verbose"])
            .await;
        (output.status.success(), both(&output))
    }

    /// Runs them, and sees that `count` pass.
    async fn passes(&self, count: usize) {
        let (passed, printed) = self.tests().await;
        println!("--- python3 -m unittest\n{printed}");
        assert!(passed, "{printed}");
        assert!(printed.contains(&format!("Ran {count} tests")), "{printed}");
    }

    /// Makes a file what it was on `main`.
    async fn undo(&self, file: &str) {
        let output = self
            .ran("git", &["checkout", "--quiet", "origin/main", "--", file])
            .await;
        assert!(output.status.success(), "{}", both(&output));
    }

    async fn ran(&self, program: &str, args: &[&str]) -> Output {
        let output = Command::new(program)
            .args(args)
            .current_dir(&self.path)
            .stdin(Stdio::null())
            .output();
        output.await.expect("the program can be run")
    }
}

fn both(output: &Output) -> String {
    let printed = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    String::from_utf8_lossy(&printed).into_owned()
}

fn left_changes(session: &Value) -> bool {
    let files = session["result"]["filesChanged"].as_u64();
    files.is_some_and(|files| files > 0)
}

/// How many lines of a graph have these words.
fn count(story: &str, words: &str) -> usize {
    story.lines().filter(|line| line.contains(words)).count()
}

/// Sees that each of these commits is in a graph, once.
#[track_caller]
fn told(story: &str, subjects: &[&str]) {
    for subject in subjects {
        assert_eq!(count(story, subject), 1, "{subject:?} in\n{story}");
    }
}

const APPLICATION: &str = "A task management app.\n";

#[tokio::test]
async fn full_stack_application_comes_together_on_its_branch() {
    let files = [("README.md", APPLICATION), IGNORED];
    let ran = Ran::page("full-stack", &files, &[]).await;
    let sessions = ran.sessions().await;
    let types: Vec<_> = sessions.iter().map(|one| text(&one["type"])).collect();
    let of_each = |kind: &str| types.iter().filter(|of| *of == kind).count();
    assert_eq!(of_each("analysis"), 2, "{types:?}");
    assert_eq!(of_each("implementation"), 6, "{types:?}");
    // One of them is the gate.
    assert_eq!(of_each("testing"), 3, "{types:?}");

    for branch in ["task-app", "task-app-planned"] {
        let story = ran.story(branch).await;
        told(
            &story,
            &[
                "Keep tasks in SQLite",
                "Show and add tasks on a page",
                "Sign tokens and check them",
                "Test backend, frontend and authentication together",
            ],
        );
        // What the tests begin from says whose work it joins.
        let built = sessions
            .iter()
            .filter(|one| one["project"]["branch"] == branch && one["type"] == "implementation");
        for session in built {
            let id = text(&session["id"]);
            assert!(story.contains(&id), "{id} is not in\n{story}");
        }
        ran.clone_of(branch).await.passes(3).await;
    }
    let landing = r#"{"status":"landed","branch":"task-app-planned""#;
    assert!(ran.printed.contains(landing), "{landing}");
    assert!(ran.printed.contains(r#""verdict":"green""#), "the gate");
    // Of four that landed one by one the first found no branch, and the others were merged.
    let landings = ["log", "--format=%s", "--grep=^Land session", "task-app"];
    let landings = ran.remote.git(&landings).await;
    assert_eq!(landings.lines().count(), 3, "{landings}");
    assert_eq!(ran.remote.file("main", "backend.py").await, None);
    assert!(ran.printed.contains("- Test them together."), "next steps");
}

const BASKET: [(&str, &str); 3] = [
    (
        "basket.py",
        "\"\"\"What a basket costs, in cents.\"\"\"\n\n\n\
         def total(prices):\n    result = prices[0]\n    for price in prices[1:]:\n        \
         result += price\n    return result\n\n\n\
         def discounted(prices, percent):\n    \
         return sum(round(price * (100 - percent) / 100) for price in prices)\n",
    ),
    (
        "test_basket.py",
        "import unittest\n\nfrom basket import discounted, total\n\n\n\
         class TestBasket(unittest.TestCase):\n    \
         def test_prices_are_added_up(self):\n        self.assertEqual(total([100, 250]), 350)\n\n    \
         def test_a_discount_is_taken_off(self):\n        \
         self.assertEqual(discounted([100, 300], 10), 360)\n",
    ),
    IGNORED,
];

#[tokio::test]
async fn simple_bug_is_fixed_and_tested_side_by_side() {
    let bug = "The total of an empty basket is an error instead of 0";
    let ran = Ran::page("bug-fix", &BASKET, &[("BUG", bug)]).await;
    let story = ran.story("fix-bug").await;
    told(
        &story,
        &[
            "Let the total of an empty basket be 0",
            "Test the total of an empty basket",
        ],
    );
    assert_eq!(count(&story, "Land session"), 1, "{story}");
    check_bug_fix(&ran, "FAILED (errors=1)").await;
    let sessions = ran.sessions().await;
    let [analysis, fix, test, review] = &sessions[..] else {
        panic!("not four sessions: {sessions:#?}");
    };
    assert_eq!(fix["dependencies"], json!([analysis["id"]]));
    assert_eq!(test["dependencies"], json!([analysis["id"]]));
    assert_eq!(review["dependencies"], json!([fix["id"], test["id"]]));
}

#[tokio::test]
async fn hard_bug_is_diagnosed_before_it_is_fixed() {
    let bug = "Three articles of 3.33 with 10 % off cost 9.00 instead of 8.99";
    let ran = Ran::page("bug-fix", &BASKET, &[("BUG", bug)]).await;
    let story = ran.story("fix-bug").await;
    told(
        &story,
        &[
            "Round once, when all is added up",
            "Test that a discount is rounded once",
        ],
    );
    // One after the other, so there is nothing to merge.
    assert_eq!(ran.remote.commits("fix-bug").await.len(), 2, "{story}");
    check_bug_fix(&ran, "FAILED (failures=1)").await;
    let sessions = ran.sessions().await;
    let [analysis, diagnosis, fix, review] = &sessions[..] else {
        panic!("not four sessions: {sessions:#?}");
    };
    assert_eq!(diagnosis["dependencies"], json!([analysis["id"]]));
    assert_eq!(fix["dependencies"], json!([diagnosis["id"]]));
    assert_eq!(review["dependencies"], json!([fix["id"], diagnosis["id"]]));
}

/// A test is there that fails without the fix and passes with it, and the sessions saw both.
async fn check_bug_fix(ran: &Ran, failure: &str) {
    let before = format!("fix `python3 -m unittest` says: {failure}");
    assert!(ran.printed.contains(&before), "{before}");
    let after = "With it `python3 -m unittest` says: OK";
    assert!(ran.printed.contains(after), "{after}");
    let clone = ran.clone_of("fix-bug").await;
    clone.passes(3).await;
    clone.undo("basket.py").await;
    let (passed, printed) = clone.tests().await;
    assert!(!passed && printed.contains(failure), "{printed}");
}

const API: (&str, &str) = (
    "api.py",
    "\"\"\"An API that lists books.\"\"\"\n\n\
     BOOKS = [\"Emma\", \"Dracula\", \"Ulysses\", \"Beowulf\", \"Walden\"]\n\n\n\
     def get(path, **query):\n    \"\"\"Status and answer.\"\"\"\n    \
     if path == \"/books\":\n        return 200, BOOKS\n    return 404, \"there is no such thing\"\n",
);

#[tokio::test]
async fn features_are_added_one_after_the_other_and_mended_where_tests_fail() {
    let ran = Ran::page("progressive-enhancement", &[API, IGNORED], &[]).await;
    let story = ran.story("better-api").await;
    let oldest_last = [
        "Test sorting",
        "Sort books by title",
        "Begin the first page with the first book",
        "Test paging",
        "Page through books",
        "Test the health check",
        "Say whether the API is well",
    ];
    told(&story, &oldest_last);
    // The first two found the branch as they had left it; one landed twice.
    assert_eq!(count(&story, "Land session"), 5, "{story}");
    ran.clone_of("better-api").await.passes(5).await;

    let sessions = ran.sessions().await;
    let attempts = sessions
        .iter()
        .map(|one| json!([one["type"], one["attempt"]]));
    let expected = json!([
        ["implementation", 1],
        ["testing", 1],
        // Told what the tests found.
        ["implementation", 2],
        ["testing", 1],
        ["testing", 1],
        ["implementation", 1],
        // Retried.
        ["testing", 2],
    ]);
    assert_eq!(Value::from_iter(attempts), expected);
}
