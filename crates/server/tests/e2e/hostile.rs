//! Claudes that misbehave: floods, silence, hangs, stubbornness, greed.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::docker::docker;
use crate::fake_claude::steps;
use crate::world::{SESSION_LIMIT, World, count_of, eventually, stdout_lines, text};

/// How much a server may grow, in KiB, while one session floods it. The goal is 16 MiB for a
/// release build; a debug build's allocations are not so tightly packed.
const GROWTH_KIB_MAX: u64 = 32 * 1024;
/// How little room the greedy get.
const LITTLE_MEMORY: &str = "[limits.implementation]\nmemory_mib = 96\n";

async fn world() -> World {
    let world = World::with_fake_claude().await;
    world
        .remote("owner/repo", &[("README.md", "Nothing yet.\n")])
        .await;
    world
}

/// Waits until a session is over; gives it, and by how many KiB the server grew meanwhile.
async fn over_with_growth(world: &World, requirements: &str) -> (Value, u64) {
    // A first session fills what is kept anyway.
    let first = world
        .ran(&steps(json!([["numbered", 10, 0], ["result", "Done."]])))
        .await;
    assert_eq!(first["status"], "completed", "{first:#}");
    let before = world.server_rss_kib();
    let id = world.run(requirements, &[]).await;
    let mut highest = before;
    let mut session = Value::Null;
    let over = eventually(SESSION_LIMIT, async || {
        highest = highest.max(world.server_rss_kib());
        session = world.session(&id).await;
        crate::world::is_over(&session)
    })
    .await;
    assert!(over, "not over in time: {session:#}");
    eprintln!("the server grew from {before} to {highest} KiB");
    (session, highest - before)
}

#[tokio::test]
async fn flood_of_output_is_cut_in_the_middle_and_costs_the_server_no_memory() {
    let mut world = world().await;
    world.start_server().await;
    let flood = steps(json!([
        ["numbered", 3, 0],
        ["print_mib", 200],
        ["result", "Flooded."]
    ]));
    let (session, growth) = over_with_growth(&world, &flood).await;
    assert_eq!(session["status"], "completed", "{session:#}");
    assert_eq!(session["output"]["summary"], "Flooded.");
    assert!(growth < GROWTH_KIB_MAX, "the server grew by {growth} KiB");

    let events = world.events(&text(&session["id"])).await;
    let truncated: Vec<_> = events
        .iter()
        .filter(|event| event["type"] == "truncated")
        .collect();
    assert!(
        !truncated.is_empty(),
        "nothing was cut of {} events",
        events.len()
    );
    let dropped = truncated[0]["bytes"].as_u64();
    assert!(dropped > Some(100 << 20), "{:?}", truncated[0]);
    let lines = stdout_lines(&events);
    assert!(lines[1].starts_with("line 000000 "), "the head is gone");
    let kept: usize = lines.iter().map(String::len).sum();
    assert!(kept <= 65 << 20, "{kept} bytes are kept");
    assert!(
        lines.last().is_some_and(|line| line.contains("Flooded.")),
        "the tail is gone"
    );
}

#[tokio::test]
async fn very_long_line_is_cut_and_the_next_one_is_whole() {
    let mut world = world().await;
    world.start_server().await;
    let long = steps(json!([
        ["line_mib", 50],
        ["numbered", 1, 0],
        ["result", "Said."]
    ]));
    let (session, growth) = over_with_growth(&world, &long).await;
    assert_eq!(session["status"], "completed", "{session:#}");
    assert!(growth < GROWTH_KIB_MAX, "the server grew by {growth} KiB");
    let events = world.events(&text(&session["id"])).await;
    let cut = events
        .iter()
        .find(|event| event["cutBytes"].is_u64())
        .expect("a line that is cut");
    let kept = text(&cut["line"]).len() as u64;
    assert_eq!(
        kept + cut["cutBytes"].as_u64().unwrap_or_default(),
        50 << 20
    );
    assert!(kept <= 1 << 20, "{kept} bytes of one line are kept");
    assert_eq!(stdout_lines(&events)[2], format!("line 000000 {:064}", 0));
}

#[tokio::test]
async fn bytes_that_are_no_text_come_through_as_they_are() {
    let mut world = world().await;
    world.start_server().await;
    let strange = b"caf\xff\xfe\x00\x1b[31m";
    let digits: String = strange.iter().map(|byte| format!("{byte:02x}")).collect();
    let session = world
        .ran(&steps(json!([["raw", digits], ["result", "Odd."]])))
        .await;
    assert_eq!(session["status"], "completed", "{session:#}");
    let events = world.events(&text(&session["id"])).await;
    let encoded = events
        .iter()
        .find(|event| event["base64"].is_string())
        .expect("such a line");
    assert_eq!(encoded["type"], "stdout");
    let decoded = STANDARD.decode(text(&encoded["base64"])).expect("base64");
    assert_eq!(decoded, strange);
}

#[tokio::test]
async fn claude_that_hangs_after_its_result_has_completed() {
    let mut world = world().await;
    world.set("BATON_RESULT_GRACE_SECONDS", 2);
    world.start_server().await;
    let session = world
        .ran(&steps(json!([["result", "Done."], ["hang"]])))
        .await;
    assert_eq!(session["status"], "completed", "{session:#}");
    assert_eq!(session["output"]["summary"], "Done.");
    assert_eq!(
        session["usage"],
        json!({"inputTokens": 100, "outputTokens": 20, "costUsd": 0.0125})
    );
}

#[tokio::test]
async fn result_that_is_an_error_and_no_result_at_all_are_failures() {
    let mut world = world().await;
    world.start_server().await;
    let error = world
        .run(&steps(json!([["result", "It broke.", true]])), &[])
        .await;
    let silent = world.run(&steps(json!([["numbered", 1, 0]])), &[]).await;
    let crash = world
        .run(&steps(json!([["exit", "no such option"]])), &[])
        .await;
    let session = world.failed(&error, "claude_error").await;
    assert!(text(&session["error"]).contains("It broke."), "{session:#}");
    world.failed(&silent, "no_result").await;
    let session = world.failed(&crash, "claude_exited").await;
    assert!(
        text(&session["error"]).contains("no such option"),
        "{session:#}"
    );
}

#[tokio::test]
async fn claude_that_ignores_being_told_to_stop_is_cancelled_all_the_same() {
    let mut world = world().await;
    world.set("BATON_TERM_GRACE_SECONDS", 1);
    world.start_server().await;
    let id = world
        .run(
            &steps(json!([["ignore_term"], ["numbered", 1, 0], ["hang"]])),
            &[],
        )
        .await;
    world.printed(&id, &format!("line 000000 {:064}", 0)).await;
    world.cancel(&id).await;
    let session = world.over(&id).await;
    assert_eq!(session["status"], "cancelled", "{session:#}");
    world.no_container().await;
}

#[tokio::test]
async fn want_of_memory_fails_a_session_only_where_it_hit_claude_itself() {
    let mut world = world().await;
    world.configure(LITTLE_MEMORY);
    world.start_server().await;
    let greedy = world.run(&steps(json!([["allocate"]])), &[]).await;
    let careful = steps(json!([["allocate_in_child"], ["result", "Survived."]]));
    let careful = world.run(&careful, &[]).await;
    world.failed(&greedy, "oom").await;
    let session = world.completed(&careful).await;
    assert_eq!(session["output"]["summary"], "Survived.");
    let warnings = session["warnings"].to_string();
    assert!(warnings.contains("memory"), "{session:#}");
}

#[tokio::test]
async fn silence_fails_a_session() {
    let mut world = world().await;
    world.set("BATON_SILENCE_SECONDS", 2);
    world.start_server().await;
    let id = world
        .run(&steps(json!([["numbered", 1, 0], ["hang"]])), &[])
        .await;
    let session = world.failed(&id, "stalled").await;
    assert!(text(&session["error"]).contains("silent"), "{session:#}");
}

#[tokio::test]
async fn session_ends_when_its_time_is_over() {
    let mut world = world().await;
    world.start_server().await;
    let fields = json!({ "options": { "timeout": 2 } });
    let id = world
        .create_with(fields, &steps(json!([["numbered", 10_000, 50]])))
        .await;
    world.start(&id).await;
    world.failed(&id, "timeout").await;
}

#[tokio::test]
async fn container_removed_by_hand_is_a_loss_and_its_volumes_stay() {
    let mut world = world().await;
    world.start_server().await;
    let id = world
        .run(&steps(json!([["numbered", 1, 0], ["hang"]])), &[])
        .await;
    world.printed(&id, &format!("line 000000 {:064}", 0)).await;
    let container = text(&world.session(&id).await["containerId"]);
    docker(["rm", "--force", &container]).await;
    world.failed(&id, "container_lost").await;
    assert_eq!(crate::docker::volumes(&world.instance).await.len(), 2);
    assert_eq!(count_of(&world.events(&id).await, "sandbox_lost"), 1);
}

#[tokio::test]
async fn prompt_beyond_what_arguments_can_hold_arrives_whole() {
    let mut world = world().await;
    world.start_server().await;
    let head = steps(json!([["tell_prompt_size"]]));
    let requirements = format!("{head}\n{}", "more\n".repeat(40_000));
    let session = world.ran(&requirements).await;
    assert_eq!(session["status"], "completed", "{session:#}");
    let said = text(&session["output"]["summary"]);
    assert_eq!(said, format!("the prompt has {} bytes", requirements.len()));
}

#[tokio::test]
async fn client_that_does_not_read_holds_up_nobody() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut world = world().await;
    world.start_server().await;
    let requirements = steps(json!([
        ["print_mib", 20],
        ["numbered", 100, 10],
        ["result", "Done."]
    ]));
    let id = world.run(&requirements, &[]).await;
    let address = world.api.base_url().replace("http://", "");
    let mut stuck = tokio::net::TcpStream::connect(&address)
        .await
        .expect("the server listens");
    let request = format!(
        "GET /api/v1/sessions/{id}/events?after=0&follow=true HTTP/1.1\r\nHost: {address}\r\n\
         Authorization: Bearer {}\r\n\r\n",
        crate::world::SECRET
    );
    stuck
        .write_all(request.as_bytes())
        .await
        .expect("the request is sent");
    let mut first = [0; 12];
    let answered = tokio::time::timeout(Duration::from_secs(30), stuck.read_exact(&mut first));
    answered
        .await
        .expect("an answer in time")
        .expect("an answer");
    assert_eq!(&first, b"HTTP/1.1 200");
    // From here on it reads nothing.
    world.completed(&id).await;
    drop(stuck);
}
