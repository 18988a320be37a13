//! Orchestrations that land as a whole: gates in real sandboxes, culprits left out, others who push
//! meanwhile, and a server that dies at each step of it.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::fake_claude::steps;
use crate::remote::Remote;
use crate::world::{SESSION_LIMIT, World, eventually, lines_of, text};

/// Red where one of two files is there.
const CHECK: &str = "echo checking $(ls)\ntest ! -e bad-1.txt && test ! -e bad-2.txt\n";
const GATE: &str = "cat && sh check.sh";

async fn world() -> (World, Remote) {
    let mut world = World::with_fake_claude().await;
    let files = [("README.md", "Nothing yet.\n"), ("check.sh", CHECK)];
    let remote = world.remote("owner/repo", &files).await;
    world.set("BATON_MAX_RUNNING", 3);
    (world, remote)
}

/// An orchestration with a gate, whose sessions each write one file.
async fn orchestrated(world: &World, files: &[&str]) -> (String, Vec<String>) {
    orchestrated_with(world, GATE, files).await
}

async fn orchestrated_with(world: &World, gate: &str, files: &[&str]) -> (String, Vec<String>) {
    let session = |(at, file): (usize, &&str)| {
        let requirements = steps(json!([
            ["write", file, "x\n"],
            ["commit", format!("Add {file}")],
            ["result", "Written."],
        ]));
        json!({ "key": at.to_string(), "title": format!("Write {file}"), "requirements": requirements })
    };
    let sessions: Vec<Value> = files.iter().enumerate().map(session).collect();
    let fields = json!({
        "project": {
            "repository": "owner/repo", "branch": "feature", "requirements": "Write some files",
        },
        "plan": { "sessions": sessions },
        "strategy": { "gate": gate },
    });
    let made = world.api.call("orchestrate", fields).await;
    let made = &made["results"][0]["data"];
    let sessions = made["sessions"].as_array().expect("sessions").iter();
    let sessions = sessions.map(|of| text(&of["id"])).collect();
    (text(&made["orchestrationId"]), sessions)
}

async fn orchestration(world: &World, id: &str) -> Value {
    let fields = json!({ "orchestrationId": id });
    let mut answer = world.api.call("orchestration.get", fields).await;
    answer["data"]["orchestration"].take()
}

/// Waits until the landing is over; gives the orchestration.
pub async fn landed(world: &World, id: &str) -> Value {
    let mut got = Value::Null;
    let over = eventually(SESSION_LIMIT, async || {
        got = orchestration(world, id).await;
        ["landed", "failed", "nothing_to_land"].contains(&status(&got))
    })
    .await;
    assert!(over, "not landed in time: {got:#}");
    got
}

fn status(orchestration: &Value) -> &str {
    orchestration["landing"]["status"].as_str().unwrap_or("")
}

fn gates(orchestration: &Value) -> Vec<&Value> {
    let sessions = orchestration["sessions"].as_array().into_iter().flatten();
    sessions.filter(|of| of["command"].is_string()).collect()
}

async fn files_of(remote: &Remote, branch: &str) -> Vec<String> {
    let files = remote.git(&["ls-tree", "--name-only", branch]).await;
    files.lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn results_pass_the_gate_and_land_on_one_branch() {
    let (mut world, remote) = world().await;
    world.start_server().await;
    let (id, sessions) = orchestrated(&world, &["a.txt", "b.txt", "c.txt"]).await;
    let got = landed(&world, &id).await;
    assert_eq!(status(&got), "landed", "{got:#}");
    assert_eq!(got["landing"]["landed"], json!(sessions));
    assert_eq!(got["landing"]["branch"], "feature");
    assert_eq!(
        files_of(&remote, "feature").await,
        ["README.md", "a.txt", "b.txt", "c.txt", "check.sh"]
    );
    let tip = remote.git(&["rev-parse", "feature"]).await;
    assert_eq!(got["landing"]["commit"], tip);
    let graph = remote
        .git(&["log", "--graph", "--format=%s", "feature"])
        .await;
    for session in &sessions {
        assert!(
            graph.contains(&format!("Land session {session}")),
            "{graph}"
        );
        let session = world.session(session).await;
        assert_eq!(session["result"]["branch"], "feature");
    }
    let branches = remote.git(&["for-each-ref", "--format=%(refname:short)", "refs/heads"]);
    assert_eq!(branches.await, "feature\nmain");

    let [gate] = gates(&got)[..] else {
        panic!("not one run of the gate: {got:#}");
    };
    assert_eq!(gate["command"], GATE);
    assert_eq!(gate["status"], "completed");
    assert_eq!(gate["type"], "testing");
    let requirements = format!("Gate of orchestration {id}: {GATE}");
    assert_eq!(gate["project"]["requirements"], requirements);
    let output = world.output(&text(&gate["id"])).await;
    assert_eq!(
        lines_of(&output),
        ["checking README.md a.txt b.txt c.txt check.sh"]
    );
    world.docker_is_empty().await;
}

#[tokio::test]
async fn culprits_are_left_out_and_the_others_land() {
    let (mut world, remote) = world().await;
    world.start_server().await;
    let (id, sessions) = orchestrated(&world, &["a.txt", "bad-1.txt", "c.txt", "bad-2.txt"]).await;
    let got = landed(&world, &id).await;
    assert_eq!(status(&got), "landed", "{got:#}");
    assert_eq!(got["landing"]["landed"], json!([sessions[0], sessions[2]]));
    assert_eq!(
        files_of(&remote, "feature").await,
        ["README.md", "a.txt", "c.txt", "check.sh"]
    );
    let out = got["landing"]["leftOut"]
        .as_array()
        .expect("some are left out");
    assert_eq!(out.len(), 2, "{got:#}");
    for (out, session, file) in [
        (&out[0], &sessions[1], "bad-1.txt"),
        (&out[1], &sessions[3], "bad-2.txt"),
    ] {
        assert_eq!(out["sessionId"], session.as_str());
        assert_eq!(out["reason"], "gate_failed");
        let branch = text(&out["branch"]);
        assert!(branch.starts_with("baton/"), "{branch}");
        assert!(remote.file(&branch, file).await.is_some());
        let gate = world.session(&text(&out["gateSessionId"])).await;
        assert_eq!(gate["errorCode"], "gate_failed");
        let error = text(&gate["error"]);
        assert!(error.contains("code 1") && error.contains(file), "{error}");
        let session = world.session(session).await;
        assert_eq!(session["status"], "completed");
        assert_eq!(session["result"]["branch"], branch);
    }
}

#[tokio::test]
async fn someone_who_pushes_in_the_middle_is_merged_with_and_gated() {
    let (mut world, remote) = world().await;
    world.start_server().await;
    let theirs = remote
        .git(&["commit-tree", "main^{tree}", "-p", "main", "-m", "Theirs"])
        .await;
    remote
        .git(&["update-ref", "refs/test/theirs", &theirs])
        .await;
    // Pushes by itself in the middle of the first push to the branch.
    let hook = "#!/bin/sh\nread old new ref\n\
        [ \"$ref\" = refs/heads/feature ] && [ ! -e moved ] || exit 0\n: > moved\n\
        unset GIT_QUARANTINE_PATH GIT_OBJECT_DIRECTORY GIT_ALTERNATE_OBJECT_DIRECTORIES\n\
        git update-ref refs/heads/feature refs/test/theirs\n";
    let path = PathBuf::from(remote.git(&["rev-parse", "--absolute-git-dir"]).await);
    let path = path.join("hooks/pre-receive");
    std::fs::write(&path, hook).expect("a hook");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("it runs");

    let (id, _) = orchestrated(&world, &["a.txt", "b.txt"]).await;
    let got = landed(&world, &id).await;
    assert_eq!(status(&got), "landed", "{got:#}");
    let subjects = remote.git(&["log", "--format=%s", "feature"]).await;
    assert!(subjects.lines().any(|line| line == "Theirs"), "{subjects}");
    assert_eq!(
        files_of(&remote, "feature").await,
        ["README.md", "a.txt", "b.txt", "check.sh"]
    );
    assert_eq!(gates(&got).len(), 2, "what is pushed was gated as it is");
}

#[tokio::test]
async fn a_gate_reaches_no_model_and_pushes_nothing() {
    let (mut world, remote) = world().await;
    world.start_server().await;
    let gate = "status() { curl -s -o /dev/null -w '%{http_code}' \"$@\"; }\n\
        test $(status -X POST http://127.0.0.1:8377/model/v1/messages) = 403 || exit 2\n\
        git push -q origin HEAD:refs/heads/evil && exit 3\n\
        git ls-remote origin | grep -q refs/baton/result && exit 4\n\
        touch left-behind.txt\n";
    let (id, _) = orchestrated_with(&world, gate, &["a.txt"]).await;
    let got = landed(&world, &id).await;
    assert_eq!(status(&got), "landed", "{got:#}");
    assert_eq!(
        files_of(&remote, "feature").await,
        ["README.md", "a.txt", "check.sh"]
    );
    let gate = text(&gates(&got)[0]["id"]);
    let mirror = world.mirror("owner/repo");
    let result = format!("refs/baton/result/{gate}");
    assert_eq!(mirror.git(&["for-each-ref", &result]).await, "");
    assert_eq!(world.model.journal().entries().len(), 0);
}

/// Lets the server die where it reaches `point` first, starts another, and looks at the end.
async fn dies_at(point: &str) {
    let (mut world, remote) = world().await;
    world.set("BATON_FAILPOINT", point);
    world.start_server().await;
    let (id, sessions) = orchestrated(&world, &["a.txt", "bad-1.txt"]).await;
    world.server_died().await;
    world.unset("BATON_FAILPOINT");
    world.start_server().await;
    let got = landed(&world, &id).await;
    assert_eq!(got["landing"]["landed"], json!([sessions[0]]), "{got:#}");
    assert_eq!(
        got["landing"]["leftOut"][0]["sessionId"],
        sessions[1].as_str()
    );
    assert_eq!(
        files_of(&remote, "feature").await,
        ["README.md", "a.txt", "check.sh"]
    );
    // Both together, one alone; the other alone is on its own branch and was gated with both.
    let mut commits: Vec<String> = Vec::new();
    for run in got["landing"]["gateRuns"].as_array().into_iter().flatten() {
        commits.push(text(&run["commit"]));
    }
    let runs = commits.len();
    commits.sort_unstable();
    commits.dedup();
    assert_eq!(commits.len(), runs, "a commit was gated twice");
    assert_eq!(
        gates(&got).len(),
        runs,
        "a run of the gate is not in the landing's record"
    );
    let landings = remote.git(&["log", "--format=%s", "feature"]).await;
    assert_eq!(landings.matches("Land session").count(), 1, "{landings}");
    let branch = text(&world.session(&sessions[1]).await["result"]["branch"]);
    assert!(remote.file(&branch, "bad-1.txt").await.is_some());
    world.docker_is_empty().await;
}

#[tokio::test]
async fn server_dies_when_results_were_considered() {
    dies_at("landing_considered").await;
}

#[tokio::test]
async fn server_dies_when_results_were_merged() {
    dies_at("landing_merged").await;
}

#[tokio::test]
async fn server_dies_when_a_gate_was_decided() {
    dies_at("gate_decided").await;
}

#[tokio::test]
async fn server_dies_when_a_gate_was_created() {
    dies_at("gate_created").await;
}

#[tokio::test]
async fn server_dies_when_a_landing_was_pushed() {
    dies_at("landing_pushed").await;
}

#[tokio::test]
async fn server_dies_when_a_landing_was_settled() {
    dies_at("landing_settled").await;
}
