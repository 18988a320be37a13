//! The link to an agent: its job and messages to Claude go out, its numbered frames come in and
//! are acknowledged when they are stored for good.

use std::sync::Arc;
use std::time::Duration;

use baton_agent::protocol::{Frame, FrameError, Hello, Note, Numbered, Say, Stream};
use baton_domain::SessionEvent;
use baton_domain::output::usage_limit;
use baton_domain::pauses::{LIMIT_PRINTED_MAX, UsageLimit};
use baton_domain::session::SessionState;
use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::Gate;
use super::lines::{Gap, Lines};
use crate::failpoint;
use crate::launch::JobError;
use crate::store::{OutputLine, StoreError};
use crate::transition::{TransitionError, apply_told};

/// How long an agent may take to introduce itself.
const HELLO_WAIT: Duration = Duration::from_secs(10);
/// Frames that may wait to be stored; each holds at most 64 KiB of output.
const FRAMES_WAITING_MAX: usize = 32;
/// The buffer frames are read into.
const READ_BYTES: usize = 256 * 1024;
/// The pause before a store that did not answer is asked again.
const STORE_PAUSE: Duration = Duration::from_millis(500);

/// Why a link ended; the agent dials again.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The connection broke.
    #[error("the connection broke")]
    Io(#[from] std::io::Error),
    /// The agent sent something unreadable.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The agent left frames out.
    #[error(transparent)]
    Gap(#[from] Gap),
    /// The agent did not introduce itself.
    #[error("the agent did not introduce itself")]
    NoHello,
    /// A frame that only a server sends.
    #[error("the agent sent a frame that only a server sends")]
    Unexpected,
    /// The store refused for good.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Serves one connection of the session's agent until it breaks or the agent is done. At most one
/// is served at a time: a later one waits until the earlier has ended, and ends it.
pub(super) async fn serve<Io>(gate: Arc<Gate>, io: Io) -> Result<(), LinkError>
where
    Io: AsyncRead + AsyncWrite + Send + 'static,
{
    let superseded = gate.supersede();
    let _alone = gate.link.lock().await;
    let (mut reader, mut writer) = tokio::io::split(io);
    let mut buffer = BytesMut::with_capacity(READ_BYTES);
    let hello = tokio::select! {
        hello = tokio::time::timeout(HELLO_WAIT, read_hello(&mut reader, &mut buffer)) => {
            hello.map_err(|_| LinkError::NoHello)??
        }
        () = superseded.cancelled() => return Ok(()),
    };
    let _present = gate.present();
    let acked = gate.parts.store.acked(gate.session, gate.attempt).await?;
    tracing::debug!(session = %gate.session, last_seq = hello.last_seq, acked, "agent connected");
    send(&mut writer, &Frame::Ack(acked)).await?;

    let (frames, waiting) = mpsc::channel(FRAMES_WAITING_MAX);
    let reading = read_frames(reader, buffer, frames);
    let storing = async {
        let lines = Lines::after(acked);
        store_frames(&gate, lines, waiting, writer, &hello, &superseded).await
    };
    let (read, stored) = tokio::join!(reading, storing);
    stored.and(read)
}

async fn read_hello<Io: AsyncRead>(
    reader: &mut ReadHalf<Io>,
    buffer: &mut BytesMut,
) -> Result<Hello, LinkError> {
    loop {
        match Frame::decode(buffer)? {
            Some(Frame::Hello(hello)) => return Ok(hello),
            Some(_) => return Err(LinkError::NoHello),
            None if reader.read_buf(buffer).await? == 0 => return Err(LinkError::NoHello),
            None => {}
        }
    }
}

/// Reads ahead while earlier frames are being stored; a full channel holds the agent back.
async fn read_frames<Io: AsyncRead>(
    mut reader: ReadHalf<Io>,
    mut buffer: BytesMut,
    frames: mpsc::Sender<Numbered>,
) -> Result<(), LinkError> {
    loop {
        while let Some(frame) = Frame::decode(&mut buffer)? {
            let Frame::Numbered(frame) = frame else {
                return Err(LinkError::Unexpected);
            };
            if frames.send(frame).await.is_err() {
                return Ok(());
            }
        }
        buffer.reserve(READ_BYTES);
        let read = tokio::select! {
            read = reader.read_buf(&mut buffer) => read?,
            () = frames.closed() => return Ok(()),
        };
        if read == 0 {
            return Ok(());
        }
    }
}

async fn store_frames<Io: AsyncWrite>(
    gate: &Arc<Gate>,
    mut lines: Lines,
    mut waiting: mpsc::Receiver<Numbered>,
    mut writer: WriteHalf<Io>,
    hello: &Hello,
    superseded: &CancellationToken,
) -> Result<(), LinkError> {
    let mut stop = gate.stop.subscribe();
    let mut told_to_stop = false;
    let has_one = tokio::select! {
        job = send_job(gate, &mut writer, hello.has_job, &mut stop) => job?,
        () = superseded.cancelled() => return Ok(()),
    };
    if !has_one {
        return Ok(());
    }
    let mut news = gate.news.subscribe();
    // What waited before is news to this connection.
    news.mark_changed();
    let mut said = 0;
    // Whether Claude waits for other sessions, as the agent was told last.
    let told_waits = gate.coordinates && hello.excuses;
    let mut told_waits = told_waits.then_some(None);
    let mut moves = gate.parts.store.watch_events(gate.session);
    loop {
        if let Some(told) = &mut told_waits {
            moves.mark_unchanged();
            let waits = gate.awaits();
            if told.replace(waits) != Some(waits) {
                send(&mut writer, &Frame::Waits(waits)).await?;
            }
        }
        if *stop.borrow() && !told_to_stop {
            send(&mut writer, &Frame::Cancel).await?;
            told_to_stop = true;
        }
        let frame = tokio::select! {
            frame = waiting.recv() => frame,
            changed = stop.changed(), if !told_to_stop => {
                if changed.is_err() { return Ok(()) }
                continue;
            }
            changed = news.changed(), if hello.listens => {
                if changed.is_err() { return Ok(()) }
                said = say(gate, &mut writer, said).await?;
                continue;
            }
            changed = moves.changed(), if told_waits.is_some() => {
                if changed.is_err() { return Ok(()) }
                continue;
            }
            // Only between two batches: the next link asks how far this one has stored, and an
            // append under way would not be in the answer.
            () = superseded.cancelled() => return Ok(()),
        };
        let Some(frame) = frame else { return Ok(()) };
        let mut note = lines.take(frame)?;
        while note.is_none() && !lines.is_full() {
            let Ok(frame) = waiting.try_recv() else { break };
            note = lines.take(frame)?;
        }
        if !lines.is_whole() && note.is_none() {
            continue;
        }
        let ended = store_batch(gate, &mut lines, note, &mut writer).await?;
        if ended {
            return Ok(());
        }
    }
}

/// Sends the job, if the agent has none; false: there is none and will be none.
async fn send_job<Io: AsyncWrite>(
    gate: &Arc<Gate>,
    writer: &mut WriteHalf<Io>,
    has_job: bool,
    stop: &mut tokio::sync::watch::Receiver<bool>,
) -> Result<bool, LinkError> {
    if has_job {
        return Ok(gate.hand_out());
    }
    if *stop.borrow() {
        return Ok(true);
    }
    let job = tokio::select! {
        job = gate.job() => job,
        _ = stop.wait_for(|stopped| *stopped) => return Ok(true),
    };
    match job {
        Ok(job) => {
            failpoint::reach("job_ready");
            // From here on the agent may start Claude, whatever becomes of this connection.
            if !gate.hand_out() {
                return Ok(false);
            }
            send(writer, &Frame::Job(Box::new(job))).await?;
            failpoint::reach("job_sent");
            Ok(true)
        }
        Err(JobError::Hopeless(outcome)) => {
            // The session fails for it: a remote that comes back later must not start Claude.
            if !gate.deny() {
                return Ok(false);
            }
            let event = SessionEvent::LaunchFailed(gate.attempt, outcome);
            gate.apply(&event, None).await?;
            Ok(false)
        }
        Err(JobError::Store(error)) => {
            tokio::time::sleep(STORE_PAUSE).await;
            Err(error.into())
        }
    }
}

/// Says what waits to be said and has a number above `said`; gives the last number said.
async fn say<Io: AsyncWrite>(
    gate: &Gate,
    writer: &mut WriteHalf<Io>,
    mut said: u64,
) -> Result<u64, LinkError> {
    let session = gate.parts.store.session(gate.session).await?;
    let works = match session.state {
        SessionState::Starting { attempt, .. }
        | SessionState::Running { attempt, .. }
        | SessionState::Awaiting { attempt, .. } => attempt == gate.attempt,
        _ => false,
    };
    let waiting = session.steering.messages.iter().filter(|_| works);
    for message in waiting {
        if message.number > said {
            said = message.number;
            let text = message.text.clone();
            send(writer, &Frame::Say(Say { number: said, text })).await?;
            failpoint::reach("message_said");
        }
    }
    Ok(said)
}

/// Stores what has gathered, then what the note says, then acknowledges. True after the last frame.
async fn store_batch<Io: AsyncWrite>(
    gate: &Arc<Gate>,
    lines: &mut Lines,
    note: Option<Note>,
    writer: &mut WriteHalf<Io>,
) -> Result<bool, LinkError> {
    if note.is_some() {
        lines.flush();
    }
    let (position, batch) = lines.drain();
    // The note's own number is acknowledged only when what it says is recorded.
    let lines_position = if note.is_some() {
        position - 1
    } else {
        position
    };
    if let Some(limit) = printed_limit(&batch).filter(|_| gate.has_model) {
        // Recorded first: lines that are stored do not come again.
        let until = limit.until(gate.parts.clock.now(), LIMIT_PRINTED_MAX);
        gate.apply(&SessionEvent::LimitHit(gate.attempt, until), None)
            .await?;
    }
    if !batch.is_empty() || note.is_none() {
        append(gate, lines_position, &batch).await?;
        failpoint::reach("output_stored");
    }
    let [recorded, acknowledged] = failpoints(note.as_ref());
    let ended = matches!(note, Some(Note::Ended(_)));
    let acked = match note.map(|note| event_of(gate, note)) {
        // A step of the setup changes nothing: it is acknowledged with whatever comes next.
        Some(None) => lines_position,
        Some(Some(event)) => {
            gate.apply(&event, Some(position)).await?;
            position
        }
        None => position,
    };
    failpoint::reach(recorded);
    send(writer, &Frame::Ack(acked)).await?;
    failpoint::reach(acknowledged);
    Ok(ended)
}

/// The last usage limit that Claude printed in these lines.
fn printed_limit(batch: &[OutputLine]) -> Option<UsageLimit> {
    let told = batch
        .iter()
        .rev()
        .filter(|line| line.stream == Stream::Stdout)
        // Most lines are not worth parsing.
        .filter(|line| memchr::memmem::find(&line.bytes, b"\"rate_limit_event\"").is_some());
    told.filter_map(|line| usage_limit(&line.bytes)).next()
}

/// The points at which a note's saying is recorded, and its batch acknowledged.
fn failpoints(note: Option<&Note>) -> [&'static str; 2] {
    match note {
        None => ["", "output_acknowledged"],
        Some(Note::Setup { .. }) => ["setup_recorded", "setup_acknowledged"],
        Some(Note::ClaudeStarted) => ["start_recorded", "start_acknowledged"],
        Some(Note::Told { .. }) => ["told_recorded", "told_acknowledged"],
        Some(Note::Ended(_)) => ["ended_recorded", "ended_acknowledged"],
    }
}

fn event_of(gate: &Gate, note: Note) -> Option<SessionEvent> {
    match note {
        Note::Setup { step } => {
            tracing::debug!(session = %gate.session, step, "agent");
            None
        }
        Note::ClaudeStarted => Some(SessionEvent::ClaudeStarted(gate.attempt)),
        Note::Told { number } => Some(SessionEvent::MessageTold(gate.attempt, number)),
        Note::Ended(ending) => {
            let ending = Box::new(ending.capped());
            Some(SessionEvent::AgentEnded(gate.attempt, ending))
        }
    }
}

/// Appends, for as long as it takes: while the store has no room the agent keeps its frames.
async fn append(gate: &Gate, position: u64, batch: &[OutputLine]) -> Result<(), LinkError> {
    loop {
        let store = &gate.parts.store;
        match store
            .append_output(gate.session, gate.attempt, position, batch)
            .await
        {
            Err(error @ StoreError::Unavailable { .. }) => {
                tracing::warn!(session = %gate.session, %error, "output waits to be stored");
                tokio::time::sleep(STORE_PAUSE).await;
            }
            Ok(()) => {
                gate.look_for_overlaps(batch).await;
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        }
    }
}

impl Gate {
    /// Applies what happened, as the agent told up to `position`; what was told before, or comes
    /// too late, changes nothing.
    pub(super) async fn apply(
        &self,
        event: &SessionEvent,
        position: Option<u64>,
    ) -> Result<(), LinkError> {
        let parts = &self.parts;
        let told = position.map(|position| (self.attempt, position));
        loop {
            let applied = apply_told(
                &parts.store,
                parts.clock.as_ref(),
                self.session,
                event,
                told,
            );
            match applied.await {
                Ok(session) => {
                    tracing::info!(session = %self.session, state = session.state.name(), "{}", event.name());
                    if matches!(session.state, SessionState::Concluding { .. })
                        || session.state.is_over()
                    {
                        parts.wake.notify_one();
                    }
                    return Ok(());
                }
                Err(TransitionError::Invalid(error)) => {
                    tracing::debug!(session = %self.session, %error, "repeated or late event");
                    return match position {
                        Some(position) => append(self, position, &[]).await,
                        None => Ok(()),
                    };
                }
                Err(TransitionError::Store(error @ StoreError::Unavailable { .. })) => {
                    tracing::warn!(session = %self.session, %error, "an event waits to be recorded");
                    tokio::time::sleep(STORE_PAUSE).await;
                }
                Err(TransitionError::Store(error)) => return Err(error.into()),
            }
        }
    }
}

async fn send<Io: AsyncWrite>(
    writer: &mut WriteHalf<Io>,
    frame: &Frame,
) -> Result<(), std::io::Error> {
    let mut bytes = BytesMut::new();
    frame.encode(&mut bytes);
    writer.write_all(&bytes).await?;
    writer.flush().await
}
