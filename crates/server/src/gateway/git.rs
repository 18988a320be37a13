//! One repository's mirror, served to one sandbox by smart HTTP.
//!
//! `git http-backend` does the work, as a CGI program. What a sandbox may see and write is
//! enforced by git itself, by the references hidden from it: it sees the remote's branches and
//! tags, its own base, what it has to merge into that and its own result, and writes its own
//! result only. Other sessions' work stays out of its reach. One rule is ours: a result may be replaced, not deleted.

use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::{Stream, StreamExt, TryStreamExt};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{ChildStdin, ChildStdout};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::io::ReaderStream;

use crate::repos::git::{GitCall, GitProcess, read_complaints};

/// Where the repository is, below the gateway's root.
const PREFIX: &str = "/git/repository.git/";

/// The largest pack a sandbox may push, in bytes: 2 GiB.
const PUSH_BYTES_MAX: &str = "2147483648";
/// The most bytes of all pushes of one attempt together.
const PUSHES_BYTES_MAX: u64 = 2 << 30;
/// The most memory git may take for one object of a push.
const PUSH_OBJECT_BYTES_MAX: &str = "512m";

/// Git calls one sandbox may have open at once; more are told to come back.
const OPEN_MAX: usize = 4;

/// The longest line and the most lines of a CGI header.
const HEADER_LINE_BYTES_MAX: u64 = 8 << 10;
const HEADER_LINES_MAX: usize = 32;

/// The most bytes of a push that name references, before its pack; one name is ever allowed.
const COMMANDS_BYTES_MAX: usize = 64 << 10;

/// The block in which packs are passed on.
const BLOCK_BYTES: usize = 64 << 10;

/// What one sandbox may do with one mirror. Cheap to clone; clones share the limit on open calls.
#[derive(Debug, Clone)]
pub struct GitExport {
    mirror: PathBuf,
    base_ref: String,
    unjoined_refs: String,
    push_ref: Option<String>,
    open: Arc<Semaphore>,
    /// Of all pushes so far.
    pushed_bytes: Arc<AtomicU64>,
}

impl GitExport {
    /// The sandbox may fetch `base_ref`, all below `unjoined_refs` and the remote's branches and
    /// tags from the bare repository at `mirror`, and fetch and push `push_ref`, where there is
    /// one.
    #[must_use]
    pub fn new(
        mirror: PathBuf,
        base_ref: String,
        unjoined_refs: String,
        push_ref: Option<String>,
    ) -> Self {
        Self {
            mirror,
            base_ref,
            unjoined_refs,
            push_ref,
            open: Arc::new(Semaphore::new(OPEN_MAX)),
            pushed_bytes: Arc::default(),
        }
    }
}

/// The two things git clients ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Service {
    /// Clone and fetch.
    Upload,
    /// Push.
    Receive,
}

/// Answers one request of a git client. Bodies are streamed both ways; when the client goes away,
/// git is stopped.
///
/// Everything but the smart protocol is 404; a push where none is allowed is 403; more than
/// [`OPEN_MAX`] calls at once are 429.
pub async fn serve(export: &GitExport, request: Request) -> Response {
    let path = request.uri().path().strip_prefix(PREFIX).unwrap_or("");
    let Some((service, is_advertisement)) =
        route(request.method(), path, request.uri().query().unwrap_or(""))
    else {
        return refusal(
            StatusCode::NOT_FOUND,
            "there is nothing here but git's smart protocol",
        );
    };
    if service == Service::Receive && export.push_ref.is_none() {
        return refusal(StatusCode::FORBIDDEN, "this session may not push");
    }
    let Ok(permit) = Arc::clone(&export.open).try_acquire_owned() else {
        return refusal(StatusCode::TOO_MANY_REQUESTS, "too many git calls at once");
    };
    if service == Service::Receive && is_advertisement {
        start_push_ref_at_base(export).await;
    }
    let request = match service {
        Service::Receive if !is_advertisement => match without_deletions(request).await {
            Ok(request) => request,
            Err(text) => return refusal(StatusCode::FORBIDDEN, text),
        },
        _ => request,
    };
    match answer(export, service, request, permit).await {
        Ok(response) => response,
        Err(error) => {
            tracing::error!(mirror = %export.mirror.display(), %error, "git could not be served");
            refusal(StatusCode::INTERNAL_SERVER_ERROR, "git could not be run")
        }
    }
}

fn route(method: &Method, path: &str, query: &str) -> Option<(Service, bool)> {
    match (method.as_str(), path, query) {
        ("GET", "info/refs", "service=git-upload-pack") => Some((Service::Upload, true)),
        ("GET", "info/refs", "service=git-receive-pack") => Some((Service::Receive, true)),
        ("POST", "git-upload-pack", "") => Some((Service::Upload, false)),
        ("POST", "git-receive-pack", "") => Some((Service::Receive, false)),
        _ => None,
    }
}

fn refusal(status: StatusCode, text: &'static str) -> Response {
    (status, format!("{text}\n")).into_response()
}

/// The push reference is the only one a pushing client is shown. Starting it at the base tells
/// the client what is here already; otherwise it would send the repository's whole history.
async fn start_push_ref_at_base(export: &GitExport) {
    let Some(push_ref) = &export.push_ref else {
        return;
    };
    // `create` fails where it exists already, and that is well.
    let created = GitCall::new(&export.mirror, ["update-ref", "--stdin"])
        .stdin(format!("create {push_ref} {}\n", export.base_ref))
        .run()
        .await;
    if let Err(error) = created {
        tracing::warn!(%push_ref, %error, "a push will send more than it needs to");
    }
}

/// Reads the beginning of a push, which names what it changes, and gives the request back whole.
///
/// Git can be told to refuse deletions of branches, but not of other references.
async fn without_deletions(request: Request) -> Result<Request, &'static str> {
    if request.headers().contains_key(header::CONTENT_ENCODING) {
        return Err("a push may not be compressed as a whole");
    }
    let (head, body) = request.into_parts();
    let mut blocks = body.into_data_stream();
    let mut beginning = Vec::new();
    while let Commands::Unfinished = commands(&beginning)? {
        if beginning.len() > COMMANDS_BYTES_MAX {
            return Err("a push may not name so many references");
        }
        match blocks.next().await {
            Some(Ok(block)) => beginning.extend_from_slice(&block),
            // Git will say what is missing.
            _ => break,
        }
    }
    let beginning = futures::stream::iter([Ok(Bytes::from(beginning))]);
    let body = Body::from_stream(beginning.chain(blocks));
    Ok(Request::from_parts(head, body))
}

enum Commands {
    Unfinished,
    Finished,
}

/// Looks for deletions in `<old id> <new id> <reference>` lines, each with its length in front,
/// up to the empty one that ends them.
fn commands(mut bytes: &[u8]) -> Result<Commands, &'static str> {
    loop {
        let Some((length, rest)) = bytes.split_at_checked(4) else {
            return Ok(Commands::Unfinished);
        };
        let length = std::str::from_utf8(length)
            .ok()
            .and_then(|hex| usize::from_str_radix(hex, 16).ok());
        let line_bytes = match length {
            Some(0) => return Ok(Commands::Finished),
            Some(length @ 4..) => length - 4,
            _ => return Err("this is not a push"),
        };
        let Some((line, rest)) = rest.split_at_checked(line_bytes) else {
            return Ok(Commands::Unfinished);
        };
        if is_deletion(line)? {
            return Err("a result may be replaced, not deleted");
        }
        bytes = rest;
    }
}

/// Reads one `<old id> <new id> <reference>` line, capabilities behind a NUL. Anything else is
/// refused: in a push certificate git would find commands that are not seen here.
fn is_deletion(line: &[u8]) -> Result<bool, &'static str> {
    let command = line.split(|byte| *byte == 0).next().unwrap_or_default();
    let mut words = command.splitn(3, |byte| *byte == b' ');
    let is_id =
        |word: &[u8]| matches!(word.len(), 40 | 64) && word.iter().all(u8::is_ascii_hexdigit);
    if let Some(id) = command.strip_prefix(b"shallow ") {
        return match is_id(id.trim_ascii_end()) {
            true => Ok(false),
            false => Err("only plain pushes are taken"),
        };
    }
    match (words.next(), words.next(), words.next()) {
        (Some(old), Some(new), Some(name))
            if is_id(old) && is_id(new) && name.starts_with(b"refs/") =>
        {
            Ok(new.iter().all(|digit| *digit == b'0'))
        }
        _ => Err("only plain pushes are taken"),
    }
}

async fn answer(
    export: &GitExport,
    service: Service,
    request: Request,
    permit: OwnedSemaphorePermit,
) -> io::Result<Response> {
    let (head, body) = request.into_parts();
    let mut call = backend(export, service)
        .env("REQUEST_METHOD", head.method.as_str())
        .env("QUERY_STRING", head.uri.query().unwrap_or(""));
    let suffix = head.uri.path().strip_prefix(PREFIX).unwrap_or("");
    call = call.env("PATH_TRANSLATED", export.mirror.join(suffix));
    for (name, variable) in [
        (header::CONTENT_TYPE, "CONTENT_TYPE"),
        (header::CONTENT_LENGTH, "CONTENT_LENGTH"),
        (header::CONTENT_ENCODING, "HTTP_CONTENT_ENCODING"),
    ] {
        if let Some(value) = head.headers.get(name).and_then(|value| value.to_str().ok()) {
            call = call.env(variable, value);
        }
    }
    let has_body = head.method == Method::POST;
    let mut process = call.spawn(has_body).map_err(io::Error::other)?;
    let (stdin, stdout, stderr) = process.pipes();
    if let Some(stdin) = stdin {
        let counted = (service == Service::Receive).then(|| Arc::clone(&export.pushed_bytes));
        tokio::spawn(pass_on(body, stdin, counted));
    }
    let mirror = export.mirror.clone();
    tokio::spawn(async move {
        let complaints = read_complaints(stderr).await;
        if !complaints.is_empty() {
            tracing::debug!(mirror = %mirror.display(), %complaints, "git http-backend");
        }
    });
    let stdout = stdout.ok_or_else(|| io::Error::other("git has no output"))?;
    let mut stdout = BufReader::with_capacity(BLOCK_BYTES, stdout);
    let (status, headers) = read_head(&mut stdout).await?;
    let body = Body::from_stream(BackendBody {
        blocks: ReaderStream::with_capacity(stdout, BLOCK_BYTES),
        _process: process,
        _permit: permit,
    });
    Ok((status, headers, body).into_response())
}

/// `git http-backend` with everything hidden that this sandbox has no business with.
///
/// The client's wish for protocol 2 is not passed on: there, a client may ask for any commit by
/// its id, hidden or not.
fn backend(export: &GitExport, service: Service) -> GitCall {
    let mut call = GitCall::new(&export.mirror, ["http-backend"])
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("REMOTE_ADDR", "sandbox")
        // It serves our own mirror, whoever owns the data folder.
        .config("safe.directory", "*")
        .config("http.getanyfile", "false");
    match service {
        Service::Upload => {
            call = call
                .config("http.uploadpack", "true")
                .config("http.receivepack", "false")
                .config("uploadpack.allowAnySHA1InWant", "false")
                .config("uploadpack.allowReachableSHA1InWant", "false")
                .config("uploadpack.allowTipSHA1InWant", "false")
                .config("uploadpack.hideRefs", "refs/")
                .config("uploadpack.hideRefs", "!refs/heads/")
                .config("uploadpack.hideRefs", "!refs/tags/")
                .config("uploadpack.hideRefs", &format!("!{}", export.base_ref))
                .config("uploadpack.hideRefs", &format!("!{}", export.unjoined_refs));
            if let Some(push_ref) = &export.push_ref {
                call = call.config("uploadpack.hideRefs", &format!("!{push_ref}"));
            }
        }
        Service::Receive => {
            call = call
                .config("http.uploadpack", "false")
                .config("http.receivepack", "true")
                .config("receive.hideRefs", "refs/")
                .config("receive.fsckObjects", "true")
                .config("receive.maxInputSize", PUSH_BYTES_MAX)
                // Large files go to disk as they come, rather than through memory.
                .config("core.bigFileThreshold", "32m")
                .config("core.fsyncMethod", "batch")
                // A small pack may hold a huge commit, which git would take into memory whole.
                .env("GIT_ALLOC_LIMIT", PUSH_OBJECT_BYTES_MAX);
            if let Some(push_ref) = &export.push_ref {
                call = call.config("receive.hideRefs", &format!("!{push_ref}"));
            }
        }
    }
    call
}

/// Passes the request's body to git. A client that stops in the middle leaves git with too short
/// a pack, which it refuses.
async fn pass_on(body: Body, mut stdin: ChildStdin, passed: Option<Arc<AtomicU64>>) {
    let mut blocks = body.into_data_stream();
    while let Some(Ok(block)) = blocks.next().await {
        let bytes = block.len() as u64;
        if let Some(passed) = &passed
            && passed.fetch_add(bytes, Ordering::Relaxed) + bytes > PUSHES_BYTES_MAX
        {
            // As if the client had stopped: what was pushed in vain before stays on the disk, and
            // the disk is everybody's.
            return;
        }
        if stdin.write_all(&block).await.is_err() {
            // Git has seen enough; its answer says why.
            return;
        }
    }
}

/// Reads a CGI program's header, up to and with the empty line.
async fn read_head(stdout: &mut BufReader<ChildStdout>) -> io::Result<(StatusCode, HeaderMap)> {
    let invalid = |what: &'static str| io::Error::new(io::ErrorKind::InvalidData, what);
    let mut status = StatusCode::OK;
    let mut headers = HeaderMap::new();
    let mut line = String::new();
    for _ in 0..HEADER_LINES_MAX {
        line.clear();
        (&mut *stdout)
            .take(HEADER_LINE_BYTES_MAX)
            .read_line(&mut line)
            .await?;
        if !line.ends_with('\n') {
            return Err(invalid("git http-backend ended within its header"));
        }
        let text = line.trim_end();
        if text.is_empty() {
            return Ok((status, headers));
        }
        let (name, value) = text
            .split_once(':')
            .ok_or_else(|| invalid("git http-backend printed a header without a colon"))?;
        let value = value.trim();
        if name.eq_ignore_ascii_case("status") {
            let code = value.split(' ').next().unwrap_or_default();
            status = code
                .parse()
                .map_err(|_| invalid("git http-backend printed an unreadable status"))?;
        } else if let (Ok(name), Ok(value)) =
            (name.parse::<HeaderName>(), value.parse::<HeaderValue>())
        {
            headers.append(name, value);
        }
    }
    Err(invalid("git http-backend printed too many headers"))
}

/// Git's output; holds git, so that both end together.
struct BackendBody {
    blocks: ReaderStream<BufReader<ChildStdout>>,
    _process: GitProcess,
    _permit: OwnedSemaphorePermit,
}

impl Stream for BackendBody {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.blocks.try_poll_next_unpin(context)
    }
}

#[cfg(test)]
#[path = "git/tests.rs"]
mod tests;
