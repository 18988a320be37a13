//! The token reaches the remote, over TLS only, and no text.

use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::extract::Request;
use axum::http::{StatusCode, header};

use super::*;

const TOKEN: &str = "ghp_canary0123456789";

fn repos(root: &Path, base_url: &str) -> Repos {
    Repos::new(RepoSettings {
        root: root.to_owned(),
        base_url: base_url.to_owned(),
        token: Some(TOKEN.into()),
    })
}

/// A server that refuses everything and notes what it was shown.
async fn listening() -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a free port");
    let address = listener.local_addr().expect("an address");
    let seen = Arc::new(Mutex::new(Vec::new()));
    let notes = Arc::clone(&seen);
    let router = Router::new().fallback(move |request: Request| async move {
        let shown = request.headers().get(header::AUTHORIZATION);
        let shown = shown
            .and_then(|value| value.to_str().ok())
            .unwrap_or("none");
        let mut notes = notes.lock().unwrap_or_else(PoisonError::into_inner);
        notes.push(shown.to_owned());
        (StatusCode::FORBIDDEN, format!("no entry with {shown}"))
    });
    tokio::spawn(async move { axum::serve(listener, router).await });
    (format!("http://{address}"), seen)
}

#[tokio::test]
async fn plain_http_never_gets_the_token() {
    let folder = tempfile::tempdir().expect("a folder");
    let (url, seen) = listening().await;
    let repository = "o/r".parse().expect("a repository");
    let error = repos(folder.path(), &url)
        .fetch(&repository)
        .await
        .expect_err("refused");
    assert!(
        matches!(error, RepoError::RepositoryNotFound { .. }),
        "{error}"
    );
    let seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    assert!(
        !seen.is_empty() && seen.iter().all(|shown| shown == "none"),
        "{seen:?}"
    );
}

#[tokio::test]
async fn git_sends_the_token_as_we_configure_it_to_the_base_only() {
    let folder = tempfile::tempdir().expect("a folder");
    let (url, seen) = listening().await;
    let (other, other_seen) = listening().await;
    let (key, header, encoded) = authorization(&url, &TOKEN.into());
    for target in [&url, &other] {
        let call = GitCall::new(folder.path(), ["ls-remote", &format!("{target}/o/r.git")])
            .env("GIT_ALLOW_PROTOCOL", "http")
            .config(&key, header.expose_secret())
            .run()
            .await;
        assert_ne!(call.expect("git runs").code, 0);
    }
    let expected = format!("Basic {}", encoded.expose_secret());
    assert_eq!(
        BASE64.decode(encoded.expose_secret()).expect("base64"),
        format!("x-access-token:{TOKEN}").as_bytes()
    );
    let seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    assert!(
        !seen.is_empty() && seen.iter().all(|shown| *shown == expected),
        "{seen:?}"
    );
    let other_seen = other_seen.lock().unwrap_or_else(PoisonError::into_inner);
    assert!(
        other_seen.iter().all(|shown| shown == "none"),
        "{other_seen:?}"
    );
}

#[test]
fn the_token_is_in_the_environment_and_in_no_argument() {
    let folder = Path::new("/nonexistent");
    let repository = "o/r".parse().expect("a repository");
    let repos = repos(folder, "https://git.example.com/");
    let call = repos.with_remote(repos.call(&repository, ["fetch", "x"]));
    let (arguments, configuration) = call.shown();
    let encoded = BASE64.encode(format!("x-access-token:{TOKEN}"));
    assert!(
        !arguments.contains(TOKEN) && !arguments.contains(&encoded),
        "{arguments}"
    );
    let expected = (
        "http.https://git.example.com/.extraHeader".to_owned(),
        format!("Authorization: Basic {encoded}"),
    );
    assert!(configuration.contains(&expected));
    // Calls that stay here do not get it.
    let local = repos.call(&repository, ["update-ref"]);
    let (_, configuration) = local.shown();
    assert!(!configuration.contains(&expected));
}

#[test]
fn the_token_is_taken_out_of_texts() {
    let repos = repos(Path::new("/nonexistent"), "https://git.example.com");
    let encoded = BASE64.encode(format!("x-access-token:{TOKEN}"));
    let text = repos.redacted(format!("> Authorization: Basic {encoded} {TOKEN}"));
    assert_eq!(text, "> Authorization: Basic [redacted] [redacted]");
}

#[test]
fn only_loopback_may_be_plain() {
    for yes in [
        "http://127.0.0.1:80",
        "http://localhost/x",
        "http://[::1]:3/x",
    ] {
        assert!(is_loopback(yes), "{yes}");
    }
    for no in [
        "https://127.0.0.1",
        "http://127.0.0.1.example.com",
        "http://localhost@example.com",
        "http://127.0.0.1:80@example.com",
        "http://10.0.0.1",
        "file:///x",
    ] {
        assert!(!is_loopback(no), "{no}");
    }
}
