//! HTTP/1.1, as little of it as a client needs that must not be in the way of what it measures.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// The bearer token of all servers here.
pub const SECRET: &str = "the-benchmarks-own-secret-0123456789";
/// The path of the one endpoint that counts.
pub const WEBHOOK: &str = "/api/webhooks/claude";

const BUFFER_BYTES: usize = 64 * 1024;
const ANSWER_WAIT: Duration = Duration::from_secs(60);

/// The bytes of a request that keeps its connection.
pub fn post(path: &str, body: &serde_json::Value) -> Vec<u8> {
    let body = body.to_string();
    format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {SECRET}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// A connection that is kept, for load.
pub struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    pub async fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await.context("no connection")?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            buffer: Vec::with_capacity(BUFFER_BYTES),
        })
    }

    /// Sends a request and gives its answer's status and body.
    pub async fn exchange(&mut self, request: &[u8]) -> Result<(u16, &[u8])> {
        self.stream.write_all(request).await?;
        self.buffer.clear();
        let mut head = None;
        loop {
            let read = self.stream.read_buf(&mut self.buffer).await?;
            ensure!(read > 0, "the server closed the connection");
            if head.is_none() {
                head = Head::of(&self.buffer)?;
            }
            if let Some(head) = head.as_ref()
                && self.buffer.len() >= head.bytes + head.body_bytes
            {
                let end = head.bytes + head.body_bytes;
                ensure!(self.buffer.len() == end, "more came than one answer");
                return Ok((head.status, &self.buffer[head.bytes..end]));
            }
            if self.buffer.len() == self.buffer.capacity() {
                self.buffer.reserve(BUFFER_BYTES);
            }
        }
    }
}

struct Head {
    status: u16,
    bytes: usize,
    body_bytes: usize,
}

impl Head {
    /// None while it is not there as a whole.
    fn of(answer: &[u8]) -> Result<Option<Self>> {
        const LENGTH: &[u8] = b"\r\ncontent-length: "; // as hyper writes it
        let Some(end) = memchr::memmem::find(answer, b"\r\n\r\n") else {
            return Ok(None);
        };
        let head = &answer[..end + 2];
        let at = memchr::memmem::find(head, LENGTH).context("an answer without its length")?;
        let digits = head[at + LENGTH.len()..]
            .iter()
            .take_while(|byte| byte.is_ascii_digit());
        let body_bytes = digits.fold(0, |sum, digit| sum * 10 + usize::from(digit - b'0'));
        let status = std::str::from_utf8(head.get(9..12).unwrap_or_default())?.parse()?;
        Ok(Some(Self {
            status,
            bytes: end + 4,
            body_bytes,
        }))
    }
}

/// One request on a connection of its own; waits for the answer.
pub fn once(
    address: SocketAddr,
    method: &str,
    path: &str,
    body: Option<&serde_json::Value>,
) -> Result<(u16, Vec<u8>)> {
    let mut answer = open(address, method, path, body)?;
    let mut bytes = Vec::new();
    answer
        .read_to_end(&mut bytes)
        .with_context(|| format!("{method} {path} was not answered"))?;
    let end = memchr::memmem::find(&bytes, b"\r\n\r\n").context("an answer without a head")?;
    let status = std::str::from_utf8(bytes.get(9..12).unwrap_or_default())?.parse()?;
    Ok((status, bytes.split_off(end + 4)))
}

/// Sends a request and leaves the answer, head and all, to be read to its end.
pub fn open(
    address: SocketAddr,
    method: &str,
    path: &str,
    body: Option<&serde_json::Value>,
) -> Result<std::net::TcpStream> {
    let body = body.map(ToString::to_string).unwrap_or_default();
    let mut stream = std::net::TcpStream::connect(address).context("no connection")?;
    stream.set_read_timeout(Some(ANSWER_WAIT))?;
    // To a client of HTTP/1.0 a body is sent as it is, and its end is the connection's.
    let request = format!(
        "{method} {path} HTTP/1.0\r\nHost: localhost\r\nAuthorization: Bearer {SECRET}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes())?;
    Ok(stream)
}
