//! Landings of orchestrations as a whole: real git, real store, sessions and gates played by hand.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use baton::failpoint;
use baton::orchestrator::{NewOrchestration, Strategy};
use baton::store::{Orchestration, PAGE_SESSIONS_MAX, SessionQuery};
use baton_domain::decompose::{DependencyMode, ProposedGraph, ProposedSession};
use baton_domain::ending::{Exit, FailureCode, Outcome};
use baton_domain::landing::{End, LandingFailure, Reason, Stage};
use baton_domain::steering::Resume;
use baton_domain::{OrchestrationId, Session};

use super::*;

/// More looks than any landing of these tests needs.
const LOOKS_MAX: usize = 60;

/// An orchestration under test.
struct Landing {
    app: App,
    id: OrchestrationId,
    sessions: Vec<SessionId>,
    /// The gate is red where one of these files is there.
    bad: Vec<&'static str>,
    /// What it said, by the files it saw.
    runs: Vec<String>,
}

impl Landing {
    /// Of implementations that depend on earlier ones, all started.
    async fn new(gate: Option<&str>, branch: Option<&str>, dependencies: &[&[usize]]) -> Self {
        let mut app = App::new(8).await;
        seed(&app);
        app.settle().await;
        let (id, sessions) = orchestrated(&app, gate, branch, dependencies, None).await;
        app.settle().await;
        Self {
            app,
            id,
            sessions,
            bad: Vec::new(),
            runs: Vec::new(),
        }
    }

    /// Plays the sessions' parts in order: each writes a file of its number.
    async fn all_work(&mut self) {
        for at in 0..self.sessions.len() {
            let file = format!("{at}.txt");
            self.works(at, &[(&file, "x\n")]).await;
        }
    }

    async fn works(&mut self, at: usize, files: &[(&str, &str)]) {
        let id = self.sessions[at];
        self.app.settle().await;
        let attempt = self.app.store.session(id).await.expect("made").attempt;
        self.app
            .tell(id, SessionEvent::ClaudeStarted(attempt))
            .await;
        commit_work(&self.mirror(), id, attempt, files);
        self.ends(id, attempt, true).await;
    }

    async fn fails(&mut self, at: usize) {
        let id = self.sessions[at];
        self.app.settle().await;
        self.app.claude_starts(id).await;
        self.ends(id, Attempt::FIRST, false).await;
    }

    async fn ends(&mut self, id: SessionId, attempt: Attempt, well: bool) {
        let ending = Ending {
            result: Some(ClaudeResult {
                subtype: "success".into(),
                is_error: !well,
                text: "done".into(),
                usage: Usage::default(),
            }),
            ..Ending::default()
        };
        let ended = SessionEvent::AgentEnded(attempt, Box::new(ending));
        self.app.tell(id, ended).await;
        self.app.runtime.exits(id, 0, false);
        self.app.settle().await;
    }

    /// Plays the gate's part until the landing is at rest; `before` each of its answers.
    async fn lands(&mut self, mut before: impl AsyncFnMut(&mut Self)) {
        for _ in 0..LOOKS_MAX {
            self.app.settle().await;
            let Some(gate) = self.running_gate().await else {
                return;
            };
            before(self).await;
            self.gate_ends(&gate).await;
        }
        panic!("no end of gates: {:?}", self.runs);
    }

    /// Another server on the same data and the same sandboxes.
    async fn restarted(mut self) -> Self {
        self.app = self.app.restarted().await;
        self.app.settle().await;
        self
    }

    /// What follows is about another orchestration of the same server.
    fn turn_to(&mut self, other: &(OrchestrationId, Vec<SessionId>)) {
        (self.id, self.sessions) = other.clone();
    }

    async fn running_gate(&self) -> Option<Arc<Session>> {
        let active = self.app.store.active().into_iter();
        let mut gates = active.filter(|session| {
            session.command.is_some() && session.orchestration_id == Some(self.id)
        });
        gates.next()
    }

    async fn gate_ends(&mut self, gate: &Session) {
        let base = format!("refs/baton/base/{}/{}", gate.id, gate.attempt);
        let files = git(&self.mirror(), &["ls-tree", "--name-only", &base]);
        let seen: Vec<&str> = files.lines().filter(|file| *file != "README.md").collect();
        let is_red = seen.iter().any(|file| self.bad.contains(file));
        let said = if is_red { "red" } else { "green" };
        self.runs.push(format!("{}: {said}", seen.join(" ")));
        let ending = Ending {
            exit: Some(Exit::Code(i32::from(is_red))),
            ..Ending::default()
        };
        let attempt = gate.attempt;
        self.app
            .tell(gate.id, SessionEvent::ClaudeStarted(attempt))
            .await;
        let ended = SessionEvent::AgentEnded(attempt, Box::new(ending));
        self.app.tell(gate.id, ended).await;
        self.app.runtime.exits(gate.id, 0, false);
        self.app.settle().await;
    }

    async fn orchestration(&self) -> Orchestration {
        let orchestration = self.app.store.orchestration(self.id).await;
        orchestration.expect("there is one")
    }

    async fn end(&self) -> End {
        match self.orchestration().await.landing.stage {
            Stage::Over { end } => end,
            stage => panic!("not over: {stage:?}"),
        }
    }

    /// Places of sessions.
    fn places(&self, ids: impl IntoIterator<Item = SessionId>) -> Vec<usize> {
        let place = |id| self.sessions.iter().position(|one| *one == id);
        ids.into_iter().filter_map(place).collect()
    }

    async fn landed(&self) -> Vec<usize> {
        self.places(self.orchestration().await.landing.landed)
    }

    async fn left_out(&self) -> Vec<usize> {
        let out = self.orchestration().await.landing.left_out;
        self.places(out.into_iter().map(|out| out.leaf.session))
    }

    async fn branch_of(&self, at: usize) -> Option<String> {
        let session = self
            .app
            .store
            .session(self.sessions[at])
            .await
            .expect("made");
        let result = session.report.as_ref()?.result.as_ref()?;
        result.branch.clone()
    }

    fn remote(&self) -> PathBuf {
        self.app.dir.path().join("remotes/o/r.git")
    }

    fn mirror(&self) -> PathBuf {
        self.app.dir.path().join("data/repos/o/r.git")
    }

    fn files(&self, branch: &str) -> String {
        let files = git(&self.remote(), &["ls-tree", "--name-only", branch]);
        files.lines().collect::<Vec<_>>().join(" ")
    }
}

async fn orchestrated(
    app: &App,
    gate: Option<&str>,
    branch: Option<&str>,
    dependencies: &[&[usize]],
    timeout_s: Option<u64>,
) -> (OrchestrationId, Vec<SessionId>) {
    let new = NewOrchestration {
        kind: None,
        project: Project {
            repository: "o/r".parse().expect("a repository"),
            branch: branch.map(|branch| branch.parse().expect("a branch")),
            requirements: "all of it".into(),
            context: None,
        },
        strategy: Some(Strategy {
            gate: gate.map(str::to_owned),
            timeout_s,
            ..Strategy::default()
        }),
        plan: Some(ProposedGraph {
            mode: DependencyMode::Parallel,
            sessions: dependencies.iter().enumerate().map(proposed).collect(),
            summary: "some".into(),
        }),
        auto_start: true,
        priority: 0,
        project_settings: false,
        max_cost_usd: None,
    };
    let made = app.orchestrator.orchestrate(new, None).await;
    let Accepted::Now(made) = made.expect("accepted") else {
        panic!("there was no key");
    };
    let sessions = made.sessions.iter().map(|of| of.session.id).collect();
    (made.id, sessions)
}

fn proposed((at, dependencies): (usize, &&[usize])) -> ProposedSession {
    ProposedSession {
        kind: Kind::Implementation,
        component: None,
        title: format!("Write {at}.txt"),
        requirements: format!("Write {at}.txt"),
        dependencies: dependencies.to_vec(),
    }
}

pub(super) fn git(dir: &Path, arguments: &[&str]) -> String {
    git_with(dir, arguments, &[], "")
}

fn git_with(dir: &Path, arguments: &[&str], variables: &[(&str, &str)], stdin: &str) -> String {
    use std::io::Write as _;
    let mut child = Command::new("git")
        .arg("-C")
        .arg(dir)
        .args(arguments)
        .envs(["AUTHOR", "COMMITTER"].into_iter().flat_map(|who| {
            [("NAME", "Test"), ("EMAIL", "test@localhost")]
                .map(|(part, value)| (format!("GIT_{who}_{part}"), value))
        }))
        .envs(variables.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("git runs");
    let mut input = child.stdin.take().expect("a pipe");
    input.write_all(stdin.as_bytes()).expect("git reads");
    drop(input);
    let output = child.wait_with_output().expect("git ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "git {arguments:?}: {said}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// A commit with `files` on top of `parent`.
fn commit_on(dir: &Path, parent: Option<&str>, files: &[(&str, &str)]) -> String {
    let index = tempfile::tempdir().expect("a directory");
    let index = index.path().join("index");
    let variables = [("GIT_INDEX_FILE", index.to_str().expect("a path in UTF-8"))];
    if let Some(parent) = parent {
        git_with(dir, &["read-tree", parent], &variables, "");
    }
    for (path, content) in files {
        let blob = git_with(dir, &["hash-object", "-w", "--stdin"], &[], content);
        let entry = format!("100644,{blob},{path}");
        let add = ["update-index", "--add", "--cacheinfo", &entry];
        git_with(dir, &add, &variables, "");
    }
    let tree = git_with(dir, &["write-tree"], &variables, "");
    let mut commit = vec!["commit-tree", &tree, "-m", "Work"];
    if let Some(parent) = parent {
        commit.extend(["-p", parent]);
    }
    git_with(dir, &commit, &[], "")
}

/// What a sandbox would have pushed.
pub(super) fn commit_work(mirror: &Path, id: SessionId, attempt: Attempt, files: &[(&str, &str)]) {
    let base = git(
        mirror,
        &["rev-parse", &format!("refs/baton/base/{id}/{attempt}")],
    );
    let commit = commit_on(mirror, Some(&base), files);
    let result = format!("refs/baton/result/{id}/{attempt}");
    git(mirror, &["update-ref", &result, &commit]);
}

/// The first commit of the remote, on `main`.
pub(super) fn seed(app: &App) {
    push_on_remote(app, "main", &[("README.md", "Nothing yet.\n")]);
}

/// Somebody pushes to the remote.
fn push_on_remote(app: &App, branch: &str, files: &[(&str, &str)]) {
    let remote = app.dir.path().join("remotes/o/r.git");
    let name = format!("refs/heads/{branch}");
    let tips = git(&remote, &["for-each-ref", "--format=%(objectname)", &name]);
    let parent = Some(tips.as_str()).filter(|tip| !tip.is_empty());
    let commit = commit_on(&remote, parent, files);
    git(&remote, &["update-ref", &name, &commit]);
}

async fn nothing(_: &mut Landing) {}

#[tokio::test]
async fn results_wait_for_each_other_and_land_together() {
    let mut landing = Landing::new(None, Some("feature"), &[&[], &[], &[0]]).await;
    landing.works(0, &[("0.txt", "x\n")]).await;
    assert_eq!(
        landing.branch_of(0).await,
        None,
        "it does not land by itself"
    );
    landing.works(1, &[("1.txt", "x\n")]).await;
    landing.works(2, &[("2.txt", "x\n")]).await;
    landing.lands(nothing).await;
    assert_eq!(landing.end().await, End::Landed);
    assert_eq!(landing.files("feature"), "0.txt 1.txt 2.txt README.md");
    assert_eq!(landing.landed().await, [0, 1, 2]);
    for at in 0..3 {
        assert_eq!(landing.branch_of(at).await.as_deref(), Some("feature"));
    }
    assert_eq!(landing.files("main"), "README.md");
    let graph = git(
        &landing.remote(),
        &["log", "--graph", "--format=%s", "feature"],
    );
    // One merge for each leaf; the first session's work came with the one that builds on it.
    assert_eq!(graph.matches("Land session").count(), 2, "{graph}");
}

#[tokio::test]
async fn without_a_branch_it_lands_on_one_of_its_own() {
    let mut landing = Landing::new(None, None, &[&[], &[]]).await;
    landing.all_work().await;
    landing.lands(nothing).await;
    let branch = landing.orchestration().await.target();
    assert!(branch.as_str().starts_with("baton/"), "{branch}");
    assert_eq!(landing.files(branch.as_str()), "0.txt 1.txt README.md");
    assert_eq!(landing.files("main"), "README.md");
}

#[tokio::test]
async fn who_did_not_complete_is_no_part_of_it() {
    let mut landing = Landing::new(None, Some("feature"), &[&[], &[], &[1]]).await;
    landing.works(0, &[("0.txt", "x\n")]).await;
    landing.fails(1).await;
    landing.lands(nothing).await;
    assert_eq!(landing.files("feature"), "0.txt README.md");
    assert_eq!(landing.landed().await, [0]);
}

#[tokio::test]
async fn a_gate_runs_on_the_merged_results_and_lets_them_pass() {
    let mut landing = Landing::new(Some("sh check.sh"), Some("feature"), &[&[], &[], &[]]).await;
    landing.all_work().await;
    let gate = landing.running_gate().await.expect("a gate runs");
    assert_eq!(gate.command.as_deref(), Some("sh check.sh"));
    let branches = git(&landing.remote(), &["for-each-ref", "refs/heads/feature"]);
    assert_eq!(branches, "", "the branch does not move before");
    landing.lands(nothing).await;
    assert_eq!(landing.runs, ["0.txt 1.txt 2.txt: green"]);
    assert_eq!(landing.end().await, End::Landed);
    assert_eq!(landing.files("feature"), "0.txt 1.txt 2.txt README.md");
    let pushed = git(
        &landing.mirror(),
        &["for-each-ref", &format!("refs/baton/result/{}", gate.id)],
    );
    assert_eq!(pushed, "", "a gate pushes nothing");
}

#[tokio::test]
async fn culprits_are_left_out_whatever_restarts_there_are() {
    let dependencies: [&[usize]; 5] = [&[], &[], &[], &[], &[]];
    let mut landing = Landing::new(Some("sh check.sh"), Some("feature"), &dependencies).await;
    landing.bad = vec!["1.txt", "4.txt"];
    landing.all_work().await;
    // Another server at each of its steps.
    for _ in 0..LOOKS_MAX {
        landing = landing.restarted().await;
        match landing.running_gate().await {
            Some(gate) => landing.gate_ends(&gate).await,
            None => break,
        }
    }
    assert_eq!(landing.end().await, End::Landed);
    assert_eq!(landing.landed().await, [0, 2, 3]);
    assert_eq!(landing.left_out().await, [1, 4]);
    assert_eq!(landing.files("feature"), "0.txt 2.txt 3.txt README.md");
    for out in landing.orchestration().await.landing.left_out {
        let branch = out.branch.clone().expect("it has a branch of its own");
        assert!(branch.starts_with("baton/"), "{branch}");
        let session = landing
            .app
            .store
            .session(out.leaf.session)
            .await
            .expect("made");
        let report = session.report.as_ref().expect("it completed");
        let result = report.result.as_ref().expect("with work");
        assert_eq!(result.branch.as_ref(), Some(&branch));
        assert!(matches!(out.reason, Reason::GateFailed { .. }), "{out:?}");
        assert!(report.warnings[0].contains("the gate is red"), "{report:?}");
    }
    assert!(landing.runs.len() <= 9, "{:?}", landing.runs);
}

#[tokio::test]
async fn a_gate_that_is_red_without_our_work_lands_nothing() {
    let mut landing = Landing::new(Some("sh check.sh"), Some("main"), &[&[], &[]]).await;
    push_on_remote(&landing.app, "main", &[("old.txt", "broken\n")]);
    landing.bad = vec!["old.txt"];
    landing.all_work().await;
    landing.lands(nothing).await;
    let end = landing.end().await;
    let End::Failed { code, gate, .. } = end else {
        panic!("{end:?}");
    };
    assert_eq!(code, LandingFailure::GateRedBefore);
    assert!(gate.is_some());
    assert_eq!(landing.files("main"), "README.md old.txt");
    assert!(
        landing
            .branch_of(0)
            .await
            .is_some_and(|of| of.starts_with("baton/"))
    );
}

#[tokio::test]
async fn a_conflict_is_left_out_with_its_files() {
    let mut landing = Landing::new(None, Some("feature"), &[&[], &[], &[]]).await;
    landing.works(0, &[("same.txt", "one\n")]).await;
    landing.works(1, &[("same.txt", "two\n")]).await;
    landing.works(2, &[("2.txt", "x\n")]).await;
    landing.lands(nothing).await;
    assert_eq!(landing.files("feature"), "2.txt README.md same.txt");
    let out = landing.orchestration().await.landing.left_out;
    assert_eq!(landing.left_out().await, [1]);
    let files = vec!["same.txt".to_owned()];
    assert_eq!(out[0].reason, Reason::MergeConflict { files });
    assert!(
        landing
            .branch_of(1)
            .await
            .is_some_and(|of| of.starts_with("baton/"))
    );
}

#[tokio::test]
async fn someone_pushing_while_the_gate_runs_is_merged_with_and_gated() {
    let mut landing = Landing::new(Some("sh check.sh"), Some("main"), &[&[], &[]]).await;
    landing.all_work().await;
    let mut pushed = false;
    landing
        .lands(async |landing: &mut Landing| {
            if !std::mem::replace(&mut pushed, true) {
                push_on_remote(&landing.app, "main", &[("theirs.txt", "x\n")]);
            }
        })
        .await;
    assert_eq!(
        landing.runs,
        ["0.txt 1.txt: green", "0.txt 1.txt theirs.txt: green"]
    );
    assert_eq!(landing.files("main"), "0.txt 1.txt README.md theirs.txt");
}

#[tokio::test]
async fn a_culprit_that_is_told_and_completes_again_lands_after_all() {
    let mut landing = Landing::new(Some("sh check.sh"), Some("feature"), &[&[], &[]]).await;
    landing.bad = vec!["1.txt"];
    landing.all_work().await;
    landing.lands(nothing).await;
    assert_eq!(landing.left_out().await, [1]);

    landing.bad = vec![];
    let message = SessionEvent::Resumed(Resume {
        from: Attempt::FIRST,
        text: "the check is red".into(),
    });
    landing.app.tell(landing.sessions[1], message).await;
    landing.works(1, &[("1.txt", "better\n")]).await;
    landing.lands(nothing).await;
    assert_eq!(landing.end().await, End::Landed);
    assert_eq!(landing.landed().await, [0, 1]);
    assert_eq!(landing.branch_of(1).await.as_deref(), Some("feature"));
    assert_eq!(landing.files("feature"), "0.txt 1.txt README.md");
    let session = landing
        .app
        .store
        .session(landing.sessions[1])
        .await
        .expect("made");
    assert_eq!(session.report.as_ref().map(|of| of.warnings.len()), Some(0));
}

#[tokio::test]
async fn a_gate_that_passes_when_it_is_retried_opens_the_way() {
    let mut landing = Landing::new(Some("sh check.sh"), Some("feature"), &[&[]]).await;
    landing.bad = vec!["0.txt"];
    landing.all_work().await;
    landing.lands(nothing).await;
    assert_eq!(landing.left_out().await, [0]);
    let runs = landing.orchestration().await.landing.gates;
    let red = runs
        .iter()
        .find(|run| run.commit != runs[runs.len() - 1].commit);
    landing.bad = vec![];
    let red = red.expect("one was red").session;
    landing
        .app
        .orchestrator
        .retry_session(red, None)
        .await
        .expect("may be retried");
    landing.lands(nothing).await;
    assert_eq!(landing.end().await, End::Landed);
    assert_eq!(landing.landed().await, [0]);
}

#[tokio::test]
async fn landings_on_one_branch_take_turns() {
    let gate = Some("sh check.sh");
    let mut landing = Landing::new(gate, Some("main"), &[&[]]).await;
    let first = (landing.id, landing.sessions.clone());
    let second = orchestrated(&landing.app, gate, Some("main"), &[&[]], None).await;

    landing.turn_to(&second);
    landing.works(0, &[("second.txt", "x\n")]).await;
    assert!(landing.running_gate().await.is_some(), "it has begun");
    landing.turn_to(&first);
    landing.works(0, &[("first.txt", "x\n")]).await;
    assert!(landing.running_gate().await.is_none(), "it waits for it");
    landing.turn_to(&second);
    landing.lands(nothing).await;
    landing.turn_to(&first);
    landing.lands(nothing).await;
    assert_eq!(
        landing.runs,
        ["second.txt: green", "first.txt second.txt: green"]
    );
    assert_eq!(landing.files("main"), "README.md first.txt second.txt");
}

#[tokio::test]
async fn a_cancelled_orchestration_lands_nothing() {
    let mut landing = Landing::new(Some("sh check.sh"), Some("feature"), &[&[], &[]]).await;
    landing.works(0, &[("0.txt", "x\n")]).await;
    let cancelled = landing
        .app
        .orchestrator
        .cancel_orchestration(landing.id)
        .await;
    cancelled.expect("may be cancelled");
    landing.app.settle().await;
    let id = landing.sessions[1];
    let ending = Ending::default();
    landing
        .app
        .tell(
            id,
            SessionEvent::AgentEnded(Attempt::FIRST, Box::new(ending)),
        )
        .await;
    landing.app.runtime.exits(id, 0, false);
    landing.lands(nothing).await;
    let end = landing.end().await;
    assert!(
        matches!(
            end,
            End::Failed {
                code: LandingFailure::Cancelled,
                ..
            }
        ),
        "{end:?}"
    );
    assert!(
        landing
            .branch_of(0)
            .await
            .is_some_and(|of| of.starts_with("baton/"))
    );
    assert!(landing.runs.is_empty());
}

#[tokio::test]
async fn a_cancel_comes_too_late_for_what_a_server_pushed_that_died_over_it() {
    let mut landing = Landing::new(None, Some("feature"), &[&[], &[]]).await;
    landing.works(0, &[("0.txt", "x\n")]).await;
    failpoint::watch(Some(Box::new(|point| point != "landing_pushed")));
    landing.works(1, &[("1.txt", "x\n")]).await;
    failpoint::watch(None);
    assert_eq!(landing.files("feature"), "0.txt 1.txt README.md");
    let orchestrator = &landing.app.orchestrator;
    let cancelled = orchestrator.cancel_orchestration(landing.id).await;
    cancelled.expect("may be cancelled");
    assert!(landing.orchestration().await.landing.cancelled);
    let mut landing = landing.restarted().await;
    landing.lands(nothing).await;
    assert_eq!(landing.end().await, End::Landed);
    assert_eq!(landing.landed().await, [0, 1]);
    assert_eq!(landing.branch_of(0).await.as_deref(), Some("feature"));
}

#[tokio::test]
async fn a_round_that_is_cancelled_before_it_begins_leaves_alone_what_has_landed() {
    let mut landing = Landing::new(None, Some("feature"), &[&[], &[]]).await;
    landing.all_work().await;
    landing.lands(nothing).await;
    assert_eq!(landing.landed().await, [0, 1]);
    let resume = SessionEvent::Resumed(Resume {
        from: Attempt::FIRST,
        text: "go on".into(),
    });
    for id in landing.sessions.clone() {
        landing.app.tell(id, resume.clone()).await;
    }
    landing.works(1, &[("1.txt", "better\n")]).await;
    let orchestrator = &landing.app.orchestrator;
    let cancelled = orchestrator.cancel_orchestration(landing.id).await;
    cancelled.expect("may be cancelled");
    landing.ends(landing.sessions[0], Attempt(2), true).await;
    landing.lands(nothing).await;
    let end = landing.end().await;
    let is_cancelled = matches!(
        end,
        End::Failed {
            code: LandingFailure::Cancelled,
            ..
        }
    );
    assert!(is_cancelled, "{end:?}");
    assert_eq!(landing.left_out().await, [1]);
    let own = landing.branch_of(1).await.expect("a branch");
    assert!(own.starts_with("baton/"), "{own}");
    let old = git(&landing.remote(), &["show", "feature:1.txt"]);
    assert_eq!(old, "x");
    let new = git(&landing.remote(), &["show", &format!("{own}:1.txt")]);
    assert_eq!(new, "better");
}

#[tokio::test]
async fn what_waits_to_land_is_saved_when_its_session_goes_on_and_is_cancelled() {
    let mut landing = Landing::new(None, Some("feature"), &[&[], &[]]).await;
    landing.works(0, &[("0.txt", "x\n")]).await;
    let id = landing.sessions[0];
    let resume = SessionEvent::Resumed(Resume {
        from: Attempt::FIRST,
        text: "go on".into(),
    });
    landing.app.tell(id, resume).await;
    let cancelled = landing.app.orchestrator.cancel_session(id).await;
    cancelled.expect("may be cancelled");
    landing.app.settle().await;
    let branch = landing.branch_of(0).await.expect("it has a branch");
    assert!(branch.starts_with("baton/"), "{branch}");
    assert_eq!(landing.files(&branch), "0.txt README.md");
    landing.works(1, &[("1.txt", "x\n")]).await;
    landing.lands(nothing).await;
    assert_eq!(landing.files("feature"), "1.txt README.md");
}

#[tokio::test]
async fn a_session_that_is_added_takes_part() {
    let mut landing = Landing::new(None, Some("feature"), &[&[]]).await;
    landing.all_work().await;
    landing.lands(nothing).await;
    assert_eq!(landing.landed().await, [0]);
    let new = NewSession {
        kind: Kind::Implementation,
        orchestration_id: Some(landing.id),
        ..new_session(&[])
    };
    let Ok(Accepted::Now(added)) = landing.app.orchestrator.create_session(new, None).await else {
        panic!("it was not accepted");
    };
    landing.sessions.push(added.session.id);
    landing.works(1, &[("1.txt", "x\n")]).await;
    landing.lands(nothing).await;
    assert_eq!(landing.landed().await, [0, 1]);
    assert_eq!(landing.files("feature"), "0.txt 1.txt README.md");
}

#[tokio::test]
async fn a_remote_that_is_away_is_waited_for() {
    let mut landing = Landing::new(None, Some("feature"), &[&[]]).await;
    let config = landing.remote().join("config");
    let well = std::fs::read(&config).expect("the remote's configuration");
    std::fs::write(&config, "no configuration").expect("it can be broken");
    landing.all_work().await;
    let stage = landing.orchestration().await.landing.stage;
    assert_eq!(stage, Stage::Merging { onto: None });
    std::fs::write(&config, well).expect("it can be mended");
    let over = |app: &App| app.store.unlanded().is_empty();
    landing.app.settle_until(over).await;
    assert_eq!(landing.end().await, End::Landed);
}

#[tokio::test]
async fn what_the_remote_refuses_is_said_and_tried_again_when_asked() {
    use std::os::unix::fs::PermissionsExt as _;
    let mut landing = Landing::new(None, Some("main"), &[&[]]).await;
    let hook = landing.remote().join("hooks/update");
    std::fs::create_dir_all(hook.parent().expect("a directory")).expect("hooks");
    let refuses_main = "#!/bin/sh\ntest \"$1\" != refs/heads/main || { echo protected; exit 1; }\n";
    std::fs::write(&hook, refuses_main).expect("a hook");
    let executable = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(&hook, executable).expect("a hook that runs");
    landing.all_work().await;
    landing.lands(nothing).await;
    let end = landing.end().await;
    let End::Failed { code, message, .. } = end else {
        panic!("{end:?}");
    };
    assert_eq!(code, LandingFailure::Refused);
    assert!(message.contains("protected"), "{message}");
    assert!(
        landing
            .branch_of(0)
            .await
            .is_some_and(|of| of.starts_with("baton/"))
    );
    // Until somebody asks for it.
    std::fs::remove_file(&hook).expect("a hook");
    let started = landing
        .app
        .orchestrator
        .start_orchestration(landing.id, None)
        .await;
    started.expect("may be started");
    landing.lands(nothing).await;
    assert_eq!(landing.end().await, End::Landed);
    assert_eq!(landing.branch_of(0).await.as_deref(), Some("main"));
}

#[tokio::test]
async fn what_starts_too_late_for_the_whole_fails_without_being_started() {
    let mut app = App::new(8).await;
    seed(&app);
    app.settle().await;
    let (id, sessions) = orchestrated(&app, None, None, &[&[], &[0]], Some(0)).await;
    app.settle().await;
    let query = SessionQuery {
        orchestration: Some(id),
        limit: PAGE_SESSIONS_MAX,
        ..SessionQuery::default()
    };
    app.store.page(&query).await.expect("a page");
    let state = app.state(sessions[0]).await;
    let SessionState::Finished {
        started_at: None,
        outcome: Outcome::Failed { code, .. },
        ..
    } = state
    else {
        panic!("{state:?}");
    };
    assert_eq!(code, FailureCode::Timeout);
    assert_eq!(app.states(&sessions).await, ["failed", "blocked"]);
}
