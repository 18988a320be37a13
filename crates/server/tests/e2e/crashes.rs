//! The server dies by `kill -9` at each step of a session's life, and at random: nothing is lost,
//! nothing happens twice.

use std::collections::HashSet;
use std::time::Duration;

use serde_json::{Value, json};

use crate::api::wrapped;
use crate::docker::{docker, inspect};
use crate::fake_claude::{numbered, numbered_lines, steps};
use crate::remote::Remote;
use crate::world::{SESSION_LIMIT, World, count_of, eventually, stdout_lines, text};

/// Lines of a session in which the server dies once.
const LINES: usize = 60;
/// Milliseconds between them.
const LINE_PAUSE_MS: u64 = 10;
/// Lines of a session in which the server dies often.
const LONG_LINES: usize = 700;
/// How often it dies there.
const KILLS: usize = 10;
/// The longest that it lives in between.
const LIFE_MAX: Duration = Duration::from_millis(1_200);

/// The control run: what all the others must look like in the end.
#[tokio::test]
async fn server_that_does_not_die() {
    let mut world = World::with_fake_claude().await;
    let remote = world
        .remote("owner/repo", &[("README.md", "Nothing yet.\n")])
        .await;
    let containers = world.container_events();
    world.start_server().await;
    let id = world.run(&numbered(LINES, LINE_PAUSE_MS), &[]).await;
    check(&world, &remote, &id, LINES).await;
    containers.until("destroy", 1).await;
    assert_eq!(containers.count("create"), 1, "{:?}", containers.seen());
}

/// Everything that must be true however often the server died.
pub async fn check(world: &World, remote: &Remote, id: &str, lines: usize) {
    let session = world.completed(id).await;
    assert_eq!(session["attempt"], 1);
    let events = world.events(id).await;
    let printed = stdout_lines(&events);
    let expected = numbered_lines(lines);
    for (at, (printed, expected)) in printed.iter().zip(&expected).enumerate() {
        assert_eq!(printed, expected, "line {at}");
    }
    assert_eq!(
        printed.len(),
        expected.len(),
        "lines are missing or too many"
    );
    for once in [
        "created",
        "start_requested",
        "launch_decided",
        "claude_started",
        "claude_ended",
    ] {
        assert_eq!(count_of(&events, once), 1, "{once}");
    }
    assert_eq!(count_of(&events, "concluded"), 1);

    let starts: HashSet<_> = world
        .model
        .journal()
        .entries()
        .into_iter()
        .filter_map(|entry| entry.prompt)
        .collect();
    assert_eq!(starts.len(), 1, "Claude was started {} times", starts.len());
    let branch = text(&session["result"]["branch"]);
    assert_eq!(
        remote.commits(&branch).await,
        [text(&session["result"]["commit"])]
    );
    assert_eq!(
        remote.file(&branch, "starts.txt").await.as_deref(),
        Some("started\n")
    );
    let branches = remote
        .git(&["for-each-ref", "--format=%(refname:short)", "refs/heads"])
        .await;
    assert_eq!(
        branches.lines().collect::<Vec<_>>(),
        [branch.as_str(), "main"]
    );
    world.docker_is_empty().await;
    let run_dirs = eventually(SESSION_LIMIT, async || world.run_dirs() == 0).await;
    assert!(run_dirs, "directories of sockets are left");
}

/// Asks for a session as a client does that knows its server may die: again with the same key.
async fn insist(world: &World) -> Result<String, String> {
    let session = json!({
        "type": "implementation",
        "project": {
            "repository": "owner/repo",
            "requirements": numbered(LINES, LINE_PAUSE_MS),
        },
    });
    let create = wrapped("session.create", json!({ "session": session }));
    let key = [("idempotency-key", "the-one-session")];
    let created = world.api.try_webhook(&create, &key).await?.ok();
    let id = text(&created["data"]["session"]["id"]);
    let start = wrapped("session.start", json!({ "sessionId": id }));
    let started = world.api.try_webhook(&start, &[]).await?;
    // It runs already, or is over.
    assert!([200, 409].contains(&started.status), "{}", started.text);
    Ok(id)
}

/// Lets the server die where it reaches `point` first, starts another, and looks at the end.
async fn dies_at(point: &str) {
    let mut world = World::with_fake_claude().await;
    let remote = world
        .remote("owner/repo", &[("README.md", "Nothing yet.\n")])
        .await;
    let containers = world.container_events();
    world.set("BATON_FAILPOINT", point);
    world.start_server().await;
    // Whether it is answered depends on the point.
    let before = insist(&world).await;
    world.server_died().await;
    world.unset("BATON_FAILPOINT");
    world.start_server().await;
    let id = insist(&world)
        .await
        .unwrap_or_else(|error| panic!("the second server: {error}"));
    if let Ok(before) = before {
        assert_eq!(id, before, "the same key made another session");
    }
    check(&world, &remote, &id, LINES).await;
    let listed = world.api.call("session.list", json!({})).await;
    assert_eq!(
        listed["data"]["sessions"].as_array().map(Vec::len),
        Some(1),
        "{listed}"
    );
    containers.until("destroy", 1).await;
    assert_eq!(containers.count("create"), 1, "{:?}", containers.seen());
    assert_eq!(containers.count("start"), 1, "{:?}", containers.seen());
}

#[tokio::test]
async fn server_dies_when_a_session_was_created() {
    dies_at("created").await;
}

#[tokio::test]
async fn server_dies_when_a_sandbox_was_prepared() {
    dies_at("prepared").await;
}

#[tokio::test]
async fn server_dies_when_a_launch_was_decided() {
    dies_at("launch_decided").await;
}

#[tokio::test]
async fn server_dies_when_a_sandbox_was_launched() {
    dies_at("launched").await;
}

#[tokio::test]
async fn server_dies_when_a_job_is_ready() {
    dies_at("job_ready").await;
}

#[tokio::test]
async fn server_dies_when_a_job_was_sent() {
    dies_at("job_sent").await;
}

#[tokio::test]
async fn server_dies_when_a_step_before_claude_was_recorded() {
    dies_at("setup_recorded").await;
}

#[tokio::test]
async fn server_dies_when_claudes_start_was_recorded() {
    dies_at("start_recorded").await;
}

#[tokio::test]
async fn server_dies_when_claudes_start_was_acknowledged() {
    dies_at("start_acknowledged").await;
}

#[tokio::test]
async fn server_dies_when_output_was_stored() {
    dies_at("output_stored").await;
}

#[tokio::test]
async fn server_dies_when_output_was_acknowledged() {
    dies_at("output_acknowledged").await;
}

#[tokio::test]
async fn server_dies_when_claudes_end_was_recorded() {
    dies_at("ended_recorded").await;
}

#[tokio::test]
async fn server_dies_when_claudes_end_was_acknowledged() {
    dies_at("ended_acknowledged").await;
}

#[tokio::test]
async fn server_dies_when_the_work_has_landed() {
    dies_at("landed").await;
}

#[tokio::test]
async fn server_dies_when_the_outcome_was_recorded() {
    dies_at("concluded").await;
}

#[tokio::test]
async fn server_dies_when_the_sandbox_was_removed_but_not_its_volumes() {
    dies_at("sandbox_deleted").await;
}

#[tokio::test]
async fn server_dies_when_the_sandbox_was_removed() {
    dies_at("removed").await;
}

#[tokio::test]
async fn server_dies_again_and_again_while_output_flows() {
    let seed = std::env::var("BATON_TEST_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| jiff::Timestamp::now().as_nanosecond() as u64);
    eprintln!("BATON_TEST_SEED={seed}");
    let mut random = Random(seed);
    let mut world = World::with_fake_claude().await;
    let remote = world
        .remote("owner/repo", &[("README.md", "Nothing yet.\n")])
        .await;
    let containers = world.container_events();
    world.start_server().await;
    let id = world.run(&numbered(LONG_LINES, LINE_PAUSE_MS), &[]).await;
    world.until(&id, "running").await;
    for _ in 0..KILLS {
        let life = LIFE_MAX.mul_f64(random.fraction());
        // Not a wait for something: the moment of the kill is the input.
        tokio::time::sleep(life).await;
        world.kill_server();
        world.start_server().await;
    }
    check(&world, &remote, &id, LONG_LINES).await;
    containers.until("destroy", 1).await;
    assert_eq!(containers.count("create"), 1, "{:?}", containers.seen());
}

#[tokio::test]
async fn claude_that_ends_while_no_server_is_there_has_completed() {
    let mut world = World::with_fake_claude().await;
    let remote = world
        .remote("owner/repo", &[("README.md", "Nothing yet.\n")])
        .await;
    world.start_server().await;
    let id = world.run(&numbered(LINES, LINE_PAUSE_MS), &[]).await;
    world.printed(&id, &format!("line 000000 {:064}", 0)).await;
    let container = text(&world.session(&id).await["containerId"]);
    world.kill_server();
    let ended = eventually(SESSION_LIMIT, async || {
        !docker(["top", &container, "-eo", "pid,args"])
            .await
            .contains("python3")
    })
    .await;
    assert!(ended, "Claude does not end");
    world.start_server().await;
    check(&world, &remote, &id, LINES).await;
}

#[tokio::test]
async fn claude_is_not_started_again_in_a_container_that_is() {
    let mut world = World::with_fake_claude().await;
    let remote = world
        .remote("owner/repo", &[("README.md", "Nothing yet.\n")])
        .await;
    world.start_server().await;
    let requirements = steps(json!([["count_start"], ["numbered", 1, 0], ["hang"]]));
    let id = world.run(&requirements, &[]).await;
    world.printed(&id, &format!("line 000000 {:064}", 0)).await;
    let container = text(&world.session(&id).await["containerId"]);
    // A server that saw the container's end would not let it live.
    world.kill_server();
    docker(["kill", &container]).await;
    docker(["start", &container]).await;
    world.start_server().await;
    let session = world.failed(&id, "interrupted").await;
    let branch = text(&session["result"]["branch"]);
    let starts = remote.file(&branch, "starts.txt").await;
    assert_eq!(starts.as_deref(), Some("started\n"));
    assert_eq!(world.model.journal().entries().len(), 1);
    assert_eq!(count_of(&world.events(&id).await, "claude_started"), 1);
}

/// Waits until the first turn of script `wait` was asked for `times` times.
async fn asked(world: &World, times: usize) {
    let journal = world.model.journal();
    let seen = journal.wait_until(SESSION_LIMIT, |entries| {
        entries.iter().filter(|entry| entry.asks("wait", 0)).count() >= times
    });
    seen.await.expect("Claude asks the model");
}

#[tokio::test]
async fn model_call_that_is_under_way_when_the_server_dies_is_made_again() {
    let script = "match = ['Wait and write']\n[[turn]]\nhold = 'answer'\n[[turn.tool]]\n\
        name = 'Write'\n[turn.tool.input]\nfile_path = '{{cwd}}/late.txt'\ncontent = 'at last'\n";
    let mut world = World::with_scripts([("wait", script)]).await;
    let remote = world
        .remote("owner/repo", &[("README.md", "Nothing yet.\n")])
        .await;
    world.start_server().await;
    let id = world.run("Wait and write", &[]).await;
    asked(&world, 1).await;
    world.kill_server();
    world.start_server().await;
    asked(&world, 2).await;
    world.model.release("answer");
    let session = world.completed(&id).await;
    let branch = text(&session["result"]["branch"]);
    assert_eq!(
        remote.file(&branch, "late.txt").await.as_deref(),
        Some("at last")
    );
    assert_eq!(count_of(&world.events(&id).await, "claude_started"), 1);
}

#[tokio::test]
async fn server_that_is_asked_to_stop_leaves_sessions_running_and_the_next_adopts_them() {
    let mut world = World::with_fake_claude().await;
    let remote = world
        .remote("owner/repo", &[("README.md", "Nothing yet.\n")])
        .await;
    world.start_server().await;
    let id = world.run(&numbered(LINES, LINE_PAUSE_MS), &[]).await;
    let session = world.until(&id, "running").await;
    let status = world.stop_server().await;
    assert_eq!(status.code(), Some(0), "{status}");
    let container = text(&session["containerId"]);
    let state = inspect(&container)
        .await
        .map(|of| of["State"]["Running"].clone());
    assert_eq!(state, Some(Value::Bool(true)));
    world.start_server().await;
    check(&world, &remote, &id, LINES).await;
}

#[tokio::test]
async fn second_server_on_the_same_data_is_refused() {
    let mut world = World::with_fake_claude().await;
    world.start_server().await;
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_baton"))
        .arg("serve")
        .env("BATON_DATA_DIR", world.data_dir())
        .env("BATON_LISTEN", "127.0.0.1:0")
        .env("CLAUDE_WEBHOOK_SECRET", "another-secret")
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(Duration::from_secs(10), output).await;
    let output = output.expect("it gives up in time").expect("it can be run");
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("another server uses"), "{said}");
    let alive = eventually(Duration::ZERO, async || world.has_ended().is_none()).await;
    assert!(alive, "the first server ended");
}

/// SplitMix64: enough to choose moments.
struct Random(u64);

impl Random {
    /// From 0 up to 1.
    fn fraction(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}
