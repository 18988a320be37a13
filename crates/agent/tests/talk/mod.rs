//! What Claude is told, and conversations that go on.

use std::fs;

use baton_agent::protocol::{Cut, Exit};

use crate::harness::{RESULT, Sandbox, Transcript};

/// What the agent writes to Claude's stdin for `text`.
pub fn user(text: &str) -> String {
    format!(r#"{{"message":{{"content":"{text}","role":"user"}},"type":"user"}}"#)
}

/// A result with this text.
fn result(text: &str) -> String {
    RESULT.replace("done", text)
}

#[tokio::test]
async fn who_works_is_told_what_is_said_and_each_of_it_once() {
    let sandbox = Sandbox::new(&format!(
        "read -r first; echo ready; read -r second; echo \"$second\"; read -r third; \
         echo \"$third\"; echo '{RESULT}'; read -r more || echo closed"
    ));
    let mut agent = sandbox.start(0);
    let mut transcript = Transcript::default();
    let server = sandbox.listen();
    let mut connection = server.accept().await;
    assert!(connection.hello.listens);
    connection.say(4, "before it listens").await;
    connection
        .receive(&mut transcript, |now| {
            now.notes.contains(&"told 4".to_owned())
        })
        .await;
    drop((connection, server));

    // Another connection: what may not have been heard is said again.
    let server = sandbox.listen();
    let mut connection = server.accept().await;
    connection.say(4, "before it listens").await;
    connection.say(6, "and on").await;
    connection.receive_to_end(&mut transcript).await;
    assert!(agent.exit().await.success());
    let (first, second) = (user("before it listens"), user("and on"));
    assert_eq!(
        transcript.stdout_text(),
        format!("ready\n{first}\n{second}\n{RESULT}\nclosed\n")
    );
    assert_eq!(
        transcript.notes,
        ["clone", "claude", "started", "told 4", "told 6"]
    );
    assert_eq!(transcript.ending().exit, Some(Exit::Code(0)));
}

#[tokio::test]
async fn the_last_of_two_results_counts_with_the_tokens_of_both() {
    // The message comes too late for the first turn.
    let (first, second) = (result("first"), result("second"));
    let mut sandbox = Sandbox::new(&format!(
        "read -r prompt; echo ready; until [ -e \"$HOME/go\" ]; do sleep 0.01; done; \
         echo '{first}'; read -r message; echo \"$message\"; sleep 0.5; echo '{second}'"
    ));
    sandbox.job.timers.result_grace_ms = 200;
    let server = sandbox.listen();
    let mut agent = sandbox.start(0);
    let mut transcript = Transcript::default();
    let mut connection = server.accept().await;
    connection.say(1, "more").await;
    connection
        .receive(&mut transcript, |now| {
            now.notes.contains(&"told 1".to_owned())
        })
        .await;
    fs::write(sandbox.path("home/go"), "").expect("written");
    connection.receive_to_end(&mut transcript).await;
    assert!(agent.exit().await.success());
    let ending = transcript.ending();
    assert_eq!((ending.cut, ending.exit), (None, Some(Exit::Code(0))));
    let result = ending.result.as_ref().expect("a result");
    assert_eq!(result.text, "second");
    let usage = result.usage;
    assert_eq!((usage.input_tokens, usage.output_tokens), (2, 4));
    assert!((usage.cost_usd - 0.5).abs() < 1e-9, "{usage:?}");
}

#[tokio::test]
async fn what_comes_after_the_result_is_not_told() {
    let sandbox = Sandbox::new(&format!(
        "read -r prompt; echo '{RESULT}'; read -r more || echo closed; \
         until [ -e \"$HOME/go\" ]; do sleep 0.01; done"
    ));
    let server = sandbox.listen();
    let mut agent = sandbox.start(0);
    let mut transcript = Transcript::default();
    let mut connection = server.accept().await;
    connection
        .receive(&mut transcript, |now| now.stdout_text().contains("closed"))
        .await;
    connection.say(1, "too late").await;
    fs::write(sandbox.path("home/go"), "").expect("written");
    connection.receive_to_end(&mut transcript).await;
    assert!(agent.exit().await.success());
    assert_eq!(transcript.notes, ["clone", "claude", "started"]);
    assert!(transcript.ending().result.is_some());
}

#[tokio::test]
async fn who_does_not_read_what_it_is_told_ends_by_its_timers() {
    // More than a pipe holds.
    let long = "x".repeat(200_000);
    let mut sandbox = Sandbox::new(&format!("echo '{RESULT}'; exec sleep 1000"));
    sandbox.job.claude.prompt = long;
    sandbox.job.timers.result_grace_ms = 200;
    let transcript = sandbox.run().await;
    assert_eq!(transcript.ending().cut, Some(Cut::HungAfterResult));
    assert!(transcript.ending().result.is_some());
}

#[tokio::test]
async fn a_long_message_arrives_whole() {
    let sandbox = Sandbox::new(&format!(
        "read -r prompt; read -r message; echo ${{#message}}; echo '{RESULT}'"
    ));
    let server = sandbox.listen();
    let mut agent = sandbox.start(0);
    let mut transcript = Transcript::default();
    let mut connection = server.accept().await;
    let text = "x".repeat(baton_domain::steering::MESSAGE_BYTES_MAX);
    connection.say(1, &text).await;
    connection.receive_to_end(&mut transcript).await;
    assert!(agent.exit().await.success());
    let expected = format!("{}\n{RESULT}\n", user(&text).len());
    assert_eq!(transcript.stdout_text(), expected);
    assert_eq!(transcript.notes.last().map(String::as_str), Some("told 1"));
}

#[tokio::test]
async fn a_conversation_is_taken_over_before_claude_starts() {
    let mut sandbox = Sandbox::new(&format!(
        "cat \"$CLAUDE_CONFIG_DIR/projects/-workspace/c1.jsonl\"; echo '{RESULT}'"
    ));
    sandbox.job.conversation = Some("c1".into());
    let dir = sandbox.path("earlier/claude/projects/-workspace");
    fs::create_dir_all(&dir).expect("made");
    fs::write(dir.join("c1.jsonl"), "earlier\n").expect("written");
    let transcript = sandbox.run().await;
    assert_eq!(transcript.stdout_text(), format!("earlier\n{RESULT}\n"));
}

#[tokio::test]
async fn a_conversation_that_is_gone_is_a_failure_before_claude() {
    let mut sandbox = Sandbox::new("echo never");
    sandbox.job.conversation = Some("c1".into());
    let transcript = sandbox.run().await;
    let failure = transcript.ending().setup_failure.as_ref();
    let failure = failure.expect("a failure");
    assert_eq!(failure.step, "conversation");
    assert!(failure.message.contains("retry the session"), "{failure:?}");
    assert!(transcript.stdout.is_empty());
    assert!(!sandbox.path("state/started").exists());
}
