//! What agent and server say to each other over the sandbox's socket.
//!
//! The agent opens `GET /agent` with `Upgrade: baton-agent` on the session's Unix socket; after the
//! `101` both sides send frames: a little-endian `u32` with the length of the rest (at most
//! [`FRAME_BYTES_MAX`]), one tag byte, the payload.
//!
//! ```text
//! agent  → server   Hello   JSON                       once, first
//! server → agent    Job     JSON                       once per connection, after Hello
//! agent  → server   Output  u64 seq, i64 ms, u8 flags, bytes
//! agent  → server   Note    u64 seq, i64 ms, JSON
//! server → agent    Ack     u64 seq: everything up to it is stored for good
//! server → agent    Cancel  stop Claude, save the work, report
//! server → agent    Say     JSON                       told to Claude, if the agent listens
//! server → agent    Waits   u8: whether Claude waits for other sessions, if the agent excuses that
//! ```
//!
//! Output and Note frames share one numbering, from 1 and without gap. The agent keeps each in its
//! spool until it is acknowledged and sends it again after a reconnect, from the last
//! acknowledged number on. A server may acknowledge late, never early. The last frame is
//! [`Note::Ended`]; when it is acknowledged, the agent exits.
//!
//! What the server says has numbers of its own, rising within a session. The agent gives each to
//! Claude once and notes it as [`Note::Told`]; until that note came, the server says it again on
//! each new connection.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

pub use baton_domain::ending::{Cut, Ending, Exit, SetupFailure, Usage};

/// The path of the upgrade request.
pub const AGENT_PATH: &str = "/agent";
/// The value of its `Upgrade` header. A change of the protocol that an older side would
/// misunderstand gets a new name.
pub const UPGRADE: &str = "baton-agent-1";
/// Where the socket's directory is mounted in a sandbox.
pub const RUN_DIR: &str = "/run/baton";
/// The socket's name in that directory.
pub const SOCKET_NAME: &str = "session.sock";
/// The agent's own file name in that directory.
pub const AGENT_NAME: &str = "agent";
/// Claude Code's file name in that directory, where the image may lack it.
pub const CLAUDE_NAME: &str = "claude";
/// Where the workspace volume is mounted: Claude's working directory, the clone.
pub const WORKSPACE_DIR: &str = "/workspace";
/// Where the state volume is mounted: Claude's own state and the agent's spool.
pub const STATE_DIR: &str = "/state";
/// Where the state volume of the attempt that is gone on with is mounted, to be read only.
pub const EARLIER_DIR: &str = "/earlier";
/// The loopback port at which the agent offers the socket to Claude and git.
pub const LOOPBACK_PORT: u16 = 8377;
/// The longest frame, tag and payload together, in bytes.
pub const FRAME_BYTES_MAX: usize = 2 * 1024 * 1024;
/// The most bytes of output in one frame.
pub const OUTPUT_BYTES_MAX: usize = 64 * 1024;

const LENGTH_BYTES: usize = 4;
const TAG_HELLO: u8 = 1;
const TAG_JOB: u8 = 2;
const TAG_ACK: u8 = 3;
const TAG_CANCEL: u8 = 4;
const TAG_SAY: u8 = 5;
const TAG_WAITS: u8 = 6;
const TAG_OUTPUT: u8 = 16;
const TAG_NOTE: u8 = 17;

/// The agent introduces itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The agent's version, for logs.
    pub agent_version: String,
    /// Whether it has its job already; the server sends it anyway and the agent ignores it.
    pub has_job: bool,
    /// The highest number it has given to a frame so far; 0 before the first.
    pub last_seq: u64,
    /// Whether it understands [`Say`]; agents that were started by an older server do not.
    #[serde(default)]
    pub listens: bool,
    /// Whether it understands [`Frame::Waits`]; as above.
    #[serde(default)]
    pub excuses: bool,
}

/// Something to tell Claude.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Say {
    /// Its number.
    pub number: u64,
    /// What is said; at most [`baton_domain::steering::MESSAGE_BYTES_MAX`] bytes, which fit a
    /// frame however they are escaped.
    pub text: String,
}

/// All a sandbox needs to know. It comes over the socket and never by environment or argument:
/// those show in `docker inspect`, and a long one keeps the container from starting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// The session's id.
    pub session: String,
    /// Which attempt this is.
    pub attempt: u32,
    /// The code to start from.
    pub checkout: Checkout,
    /// The ref the result is pushed to; absent for sessions that leave no change.
    pub push_ref: Option<String>,
    /// What to run.
    pub claude: ClaudeCommand,
    /// How long to wait for what.
    pub timers: Timers,
    /// Claude's name for the conversation that it goes on with; its files are in [`EARLIER_DIR`].
    /// Absent: a conversation begins.
    #[serde(default)]
    pub conversation: Option<String>,
}

/// The code a session starts from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkout {
    /// The path of the repository on the socket, `/git/repository.git`.
    pub path: String,
    /// The ref to fetch.
    pub fetch_ref: String,
    /// The commit to start from; what the ref points at.
    pub commit: String,
    /// The name of the local branch Claude works on.
    pub branch: String,
    /// The author of commits made in the sandbox.
    pub author_name: String,
    /// Their address.
    pub author_email: String,
    /// Results that contradict `commit`, in the order in which they are to be merged into it. They
    /// are fetched with it. An older server names none.
    #[serde(default)]
    pub merges: Vec<Merge>,
    /// Whether the merge of the first of them is begun, and left to Claude in the middle.
    #[serde(default)]
    pub begin_merge: bool,
}

/// A commit to be merged into what a session starts from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Merge {
    /// The ref to fetch.
    pub fetch_ref: String,
    /// The commit; what the ref points at.
    pub commit: String,
}

/// How Claude is run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaudeCommand {
    /// The program, looked up in the image's `PATH`, then in [`RUN_DIR`].
    pub program: String,
    /// Its arguments. To one that listens the agent adds those that make it read messages on stdin.
    pub args: Vec<String>,
    /// Whether it is Claude, told the prompt and what is said later; else its stdin is empty.
    #[serde(default = "yes")]
    pub listens: bool,
    /// What is added to its environment. Nothing secret.
    pub env: Vec<(String, String)>,
    /// The first message it is told.
    pub prompt: String,
    /// Whether the text of the repository's `CLAUDE.md` is passed by `--append-system-prompt`
    /// after `system_prompt`.
    pub pass_claude_md: bool,
    /// What is appended to Claude's system prompt.
    pub system_prompt: String,
}

fn yes() -> bool {
    true
}

/// Limits in milliseconds, measured by the agent's monotonic clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timers {
    /// From Claude's start to its first byte.
    pub first_byte_ms: u64,
    /// Between two pieces of output.
    pub silence_ms: u64,
    /// From the result, or what was printed after it, to the exit.
    pub result_grace_ms: u64,
    /// From SIGTERM to SIGKILL.
    pub term_grace_ms: u64,
    /// From Claude's start to the end.
    pub timeout_ms: u64,
}

/// What an agent tells about its progress.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "note", rename_all = "snake_case")]
pub enum Note {
    /// A step before Claude's start begins.
    Setup {
        /// `clone`, `claude`.
        step: String,
    },
    /// Claude's process was started. Comes at most once in an attempt.
    ClaudeStarted,
    /// Claude's stdin took what was said under that number, and all before it.
    Told {
        /// The number.
        number: u64,
    },
    /// Claude has ended and the work is saved, or could not be. The last frame.
    Ended(Box<Ending>),
}

/// Which of Claude's streams a piece of output comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// stream-json.
    Stdout,
    /// Complaints.
    Stderr,
}

/// A numbered frame.
#[derive(Debug, Clone, PartialEq)]
pub struct Numbered {
    /// Its number.
    pub seq: u64,
    /// Milliseconds since the epoch by the agent's clock.
    pub at_ms: i64,
    /// What it carries.
    pub body: Body,
}

/// What a numbered frame carries.
#[derive(Debug, Clone, PartialEq)]
pub enum Body {
    /// Whole lines with their line ends; or, where a line is longer than a frame, a piece of it
    /// with `more` set on all pieces but the last. Bytes are as Claude wrote them. Only the last
    /// line of a stream may lack its line end.
    Output {
        /// The stream.
        stream: Stream,
        /// Whether the line goes on in the next frame of this stream.
        more: bool,
        /// At most [`OUTPUT_BYTES_MAX`] bytes.
        bytes: Bytes,
    },
    /// A step.
    Note(Note),
}

/// A frame of either side.
#[derive(Debug, Clone, PartialEq)]
pub enum Frame {
    /// See [`Hello`].
    Hello(Hello),
    /// See [`Job`].
    Job(Box<Job>),
    /// Everything up to this number is stored for good.
    Ack(u64),
    /// Stop Claude, save the work, report.
    Cancel,
    /// See [`Say`].
    Say(Say),
    /// Whether Claude waits for other sessions from now on: its time does not count then.
    Waits(bool),
    /// See [`Numbered`].
    Numbered(Numbered),
}

/// Why a frame could not be read.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// Longer than [`FRAME_BYTES_MAX`], or empty.
    #[error("frame of {0} bytes is outside the limits")]
    Length(usize),
    /// A tag of no known frame.
    #[error("frame has the unknown tag {0}")]
    Tag(u8),
    /// The payload is shorter than its tag demands.
    #[error("frame with tag {0} is cut short")]
    Short(u8),
    /// The payload is not the JSON its tag demands.
    #[error("frame with tag {tag} holds unreadable JSON")]
    Json {
        /// The tag.
        tag: u8,
        /// What serde found.
        #[source]
        source: serde_json::Error,
    },
}

impl Frame {
    /// Appends the frame, its length included.
    pub fn encode(&self, out: &mut BytesMut) {
        let start = out.len();
        out.put_u32_le(0);
        match self {
            Self::Hello(hello) => put_json(out, TAG_HELLO, hello),
            Self::Job(job) => put_json(out, TAG_JOB, job),
            Self::Ack(seq) => {
                out.put_u8(TAG_ACK);
                out.put_u64_le(*seq);
            }
            Self::Cancel => out.put_u8(TAG_CANCEL),
            Self::Say(say) => put_json(out, TAG_SAY, say),
            Self::Waits(waits) => {
                out.put_u8(TAG_WAITS);
                out.put_u8(u8::from(*waits));
            }
            Self::Numbered(frame) => frame.encode_body(out),
        }
        let length = out.len() - start - LENGTH_BYTES;
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        out[start..start + LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());
    }

    /// Takes the next frame off `buffer`; none when it is not there as a whole yet.
    ///
    /// # Errors
    /// [`FrameError`]; the connection is of no more use then.
    pub fn decode(buffer: &mut BytesMut) -> Result<Option<Self>, FrameError> {
        let Some(head) = buffer.first_chunk::<LENGTH_BYTES>() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes(*head) as usize;
        if length == 0 || length > FRAME_BYTES_MAX {
            return Err(FrameError::Length(length));
        }
        if buffer.len() < LENGTH_BYTES + length {
            buffer.reserve(LENGTH_BYTES + length - buffer.len());
            return Ok(None);
        }
        buffer.advance(LENGTH_BYTES);
        let mut payload = buffer.split_to(length).freeze();
        let tag = payload.get_u8();
        let frame = match tag {
            TAG_HELLO => Self::Hello(from_json(tag, &payload)?),
            TAG_JOB => Self::Job(from_json(tag, &payload)?),
            TAG_ACK => Self::Ack(
                payload
                    .try_get_u64_le()
                    .map_err(|_| FrameError::Short(tag))?,
            ),
            TAG_CANCEL => Self::Cancel,
            TAG_SAY => Self::Say(from_json(tag, &payload)?),
            TAG_WAITS => {
                let waits = payload.try_get_u8();
                Self::Waits(waits.map_err(|_| FrameError::Short(tag))? != 0)
            }
            TAG_OUTPUT | TAG_NOTE => Self::Numbered(Numbered::decode_body(tag, payload)?),
            unknown => return Err(FrameError::Tag(unknown)),
        };
        Ok(Some(frame))
    }
}

impl Numbered {
    const MORE: u8 = 1;
    const STDERR: u8 = 2;

    fn encode_body(&self, out: &mut BytesMut) {
        match &self.body {
            Body::Output {
                stream,
                more,
                bytes,
            } => {
                self.put_head(out, TAG_OUTPUT);
                out.put_u8(Self::flags(*stream, *more));
                out.put_slice(bytes);
            }
            Body::Note(note) => {
                self.put_head(out, TAG_NOTE);
                append_json(out, note);
            }
        }
    }

    fn put_head(&self, out: &mut BytesMut, tag: u8) {
        out.put_u8(tag);
        out.put_u64_le(self.seq);
        out.put_i64_le(self.at_ms);
    }

    fn flags(stream: Stream, more: bool) -> u8 {
        let more = if more { Self::MORE } else { 0 };
        let stderr = if stream == Stream::Stderr {
            Self::STDERR
        } else {
            0
        };
        more | stderr
    }

    fn decode_body(tag: u8, mut payload: Bytes) -> Result<Self, FrameError> {
        let short = |_| FrameError::Short(tag);
        let seq = payload.try_get_u64_le().map_err(short)?;
        let at_ms = payload.try_get_i64_le().map_err(short)?;
        let body = if tag == TAG_OUTPUT {
            let flags = payload.try_get_u8().map_err(short)?;
            if payload.len() > OUTPUT_BYTES_MAX {
                return Err(FrameError::Length(payload.len()));
            }
            let stream = if flags & Self::STDERR == 0 {
                Stream::Stdout
            } else {
                Stream::Stderr
            };
            Body::Output {
                stream,
                more: flags & Self::MORE != 0,
                bytes: payload,
            }
        } else {
            Body::Note(from_json(tag, &payload)?)
        };
        Ok(Self { seq, at_ms, body })
    }
}

fn put_json(out: &mut BytesMut, tag: u8, value: &impl Serialize) {
    out.put_u8(tag);
    append_json(out, value);
}

fn append_json(out: &mut BytesMut, value: &impl Serialize) {
    // The types above hold only strings, numbers and lists of them; such cannot fail.
    #[expect(
        clippy::expect_used,
        reason = "serialising our own plain types cannot fail"
    )]
    let json = serde_json::to_vec(value).expect("plain types serialise");
    out.put_slice(&json);
}

fn from_json<T: for<'de> Deserialize<'de>>(tag: u8, payload: &[u8]) -> Result<T, FrameError> {
    serde_json::from_slice(payload).map_err(|source| FrameError::Json { tag, source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn output(seq: u64, more: bool, bytes: Vec<u8>) -> Frame {
        let body = Body::Output {
            stream: Stream::Stderr,
            more,
            bytes: bytes.into(),
        };
        Frame::Numbered(Numbered {
            seq,
            at_ms: -1,
            body,
        })
    }

    #[test]
    fn a_frame_comes_whole_or_not_at_all() {
        let mut wire = BytesMut::new();
        let ended = Note::Ended(Box::new(Ending {
            oom_kills: 2,
            ..Ending::default()
        }));
        let frame = Frame::Numbered(Numbered {
            seq: 7,
            at_ms: 5,
            body: Body::Note(ended),
        });
        frame.encode(&mut wire);
        let whole = wire.clone();
        for cut in 0..whole.len() {
            let mut part = BytesMut::from(&whole[..cut]);
            assert!(matches!(Frame::decode(&mut part), Ok(None)), "cut at {cut}");
        }
        assert_eq!(Frame::decode(&mut wire).ok().flatten(), Some(frame));
        assert!(wire.is_empty());
    }

    #[test]
    fn the_longest_message_fits_a_frame() {
        // The worst that JSON makes of a byte.
        let text = "\u{1}".repeat(baton_domain::steering::MESSAGE_BYTES_MAX);
        let frame = Frame::Say(Say { number: 1, text });
        let mut wire = BytesMut::new();
        frame.encode(&mut wire);
        assert!(Frame::decode(&mut wire).expect("readable") == Some(frame));
    }

    #[test]
    fn a_greeting_of_an_older_agent_is_understood() {
        let hello: Hello =
            serde_json::from_str(r#"{"agent_version":"0.1.0","has_job":true,"last_seq":7}"#)
                .expect("readable");
        assert!(!hello.listens && !hello.excuses);
    }

    #[test]
    fn a_length_out_of_bounds_is_refused_before_anything_is_allocated() {
        let mut wire = BytesMut::from(&u32::MAX.to_le_bytes()[..]);
        assert!(matches!(
            Frame::decode(&mut wire),
            Err(FrameError::Length(_))
        ));
    }

    proptest! {
        #[test]
        fn output_survives_the_wire_byte_for_byte(
            seq in any::<u64>(),
            more in any::<bool>(),
            bytes in proptest::collection::vec(any::<u8>(), 0..2_000),
        ) {
            let frame = output(seq, more, bytes);
            let mut wire = BytesMut::new();
            frame.encode(&mut wire);
            Frame::Ack(seq).encode(&mut wire);
            prop_assert_eq!(Frame::decode(&mut wire).expect("readable"), Some(frame));
            prop_assert_eq!(Frame::decode(&mut wire).expect("readable"), Some(Frame::Ack(seq)));
        }

        #[test]
        fn garbage_is_an_error_and_never_a_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let mut wire = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = Frame::decode(&mut wire) {}
        }
    }
}
