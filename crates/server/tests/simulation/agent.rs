//! The agent of one attempt, as its link would tell the server of it: numbered frames, told again
//! until they are stored, and kept on the sandbox's volume.

use std::collections::{BTreeMap, VecDeque};

use baton::clock::Clock as _;
use baton::launch::JobError;
use baton::store::{OutputLine, StoreError};
use baton::transition::{TransitionError, apply, apply_told};
use baton_agent::protocol::{Job, Stream};
use baton_domain::ending::{ClaudeResult, Cut, Ending, Exit, SetupFailure, Usage};
use baton_domain::{Attempt, Kind, Sandbox, Session, SessionEvent, SessionState};
use bytes::Bytes;
use jiff::SignedDuration;

use crate::draw::Draw;
use crate::life::{Server, move_clock_for};
use crate::part::{self, Part};
use crate::world::{Run, World};

/// Of so many first attempts one has an agent that never connects.
const MUTE_ONE_OF: u128 = 25;

/// One agent: what is in its spool, and what Claude is going to do.
#[derive(Default)]
pub struct Agent {
    spool: Vec<Frame>,
    course: Option<Course>,
    boots: u32,
    claude_starts: u32,
    has_reported: bool,
    volume_is_gone: bool,
    has_forgotten: bool,
    /// What it told Claude: messages, and the words an attempt goes on with.
    pub said: Vec<String>,
    /// What its Claude does with sessions of its own.
    pub part: Option<Part>,
}

#[derive(Clone)]
enum Frame {
    Output(Bytes),
    ClaudeStarted,
    Ended(Box<Ending>),
}

/// What happens in the sandbox from here on.
#[derive(Default)]
struct Course {
    frames: VecDeque<Frame>,
    end: End,
}

#[derive(Default, Clone, Copy, PartialEq)]
enum End {
    /// The last frame tells of it.
    #[default]
    Reported,
    Exits {
        code: i64,
        oom_killed: bool,
    },
    /// Somebody removes the container.
    Vanishes,
    /// Claude says nothing more and does not stop; in the end the agent gives up on it.
    Hangs,
}

/// How agents behave.
#[derive(Clone, Copy, PartialEq)]
pub enum Mood {
    /// As chance has it.
    Any,
    /// Everything that was begun comes to its end.
    Finishing,
}

impl Agent {
    /// Its sandbox starts, perhaps again on the same volume.
    pub fn boots(&mut self) {
        self.boots += 1;
        self.course = None;
        if std::mem::take(&mut self.volume_is_gone) && !self.spool.is_empty() {
            self.spool.clear();
            self.has_forgotten = true;
        }
        if self.boots > 1 && self.claude_has_started() {
            // Paid work is never repeated: the agent finds in its spool that it began.
            let failure = SetupFailure {
                step: "interrupted".into(),
                message: "its container was started again".into(),
            };
            self.ends(Ending {
                setup_failure: Some(failure),
                ..Ending::default()
            });
            self.course = Some(Course::default());
        }
    }

    /// Whether its Claude does nothing: it waits for sessions of its own, or for a slot after that.
    pub fn stands_still(&self) -> bool {
        self.part.as_ref().is_some_and(Part::stands_still)
    }

    /// Its volume is gone.
    pub fn forgets(&mut self) {
        self.volume_is_gone = true;
    }

    pub fn has_job(&self) -> bool {
        self.course.is_some()
    }

    /// Whether nothing of what it told was forgotten with a volume.
    pub fn keeps_its_spool(&self) -> bool {
        !self.has_forgotten
    }

    pub fn claude_starts(&self) -> u32 {
        self.claude_starts
    }

    /// The output among the first `count` frames.
    pub fn output(&self, count: u64) -> impl Iterator<Item = &Bytes> {
        let told = self.spool.iter().take(count as usize);
        told.filter_map(|frame| match frame {
            Frame::Output(bytes) => Some(bytes),
            _ => None,
        })
    }

    fn claude_has_started(&self) -> bool {
        let mut spool = self.spool.iter();
        spool.any(|frame| matches!(frame, Frame::ClaudeStarted))
    }

    pub fn has_ended(&self) -> bool {
        matches!(self.spool.last(), Some(Frame::Ended(_)))
    }

    fn ends(&mut self, ending: Ending) {
        if !self.has_ended() {
            self.spool.push(Frame::Ended(Box::new(ending)));
        }
    }

    /// Claude goes on for a while.
    fn works(&mut self, frames: usize) {
        for _ in 0..frames {
            if self.claude_has_started() && self.part.is_some() {
                return;
            }
            let next = self
                .course
                .as_mut()
                .and_then(|course| course.frames.pop_front());
            let Some(frame) = next.filter(|_| !self.has_ended()) else {
                return;
            };
            if matches!(frame, Frame::ClaudeStarted) {
                self.claude_starts += 1;
            }
            self.spool.push(frame);
        }
    }
}

/// Lets one agent whose sandbox runs do something.
pub async fn step(
    world: &World,
    server: &mut Server,
    sandbox: &Sandbox,
    draw: &mut Draw,
    mood: Mood,
) {
    let run = (sandbox.session, sandbox.attempt);
    // Without a socket there is nobody to talk to.
    if server.gateway.metered(run.0, run.1).is_none() {
        return;
    }
    let Ok(session) = server.store.session(run.0).await else {
        return;
    };
    if is_mute(run) {
        // One that is to stop is killed for it; others are given up by somebody in the end.
        let is_stopping = matches!(session.state, SessionState::Stopping { .. });
        if mood == Mood::Finishing && !is_stopping {
            world.runtime.sandbox_exits(&sandbox.id, 1, false);
        }
        return;
    }
    let is_stopping =
        matches!(session.state, SessionState::Stopping { attempt, .. } if attempt == run.1);
    let is_deaf = mood == Mood::Any && draw.chance(50);
    if is_stopping && !is_deaf {
        let started = world.agents()[&run].claude_has_started();
        let ending = Ending {
            cut: Some(Cut::Cancelled),
            exit: started.then_some(Exit::Signal(15)),
            ..Ending::default()
        };
        agent(&mut world.agents(), run).ends(ending);
    } else if !get_job(world, server, &session, run, draw, mood).await {
        return;
    }
    let frames = match mood {
        Mood::Any => draw.between(0, 4),
        Mood::Finishing => usize::MAX,
    };
    agent(&mut world.agents(), run).works(frames);
    if world.agents()[&run].claude_has_started() && !world.agents()[&run].has_ended() {
        part::step(world, server, run, draw, mood).await;
        agent(&mut world.agents(), run).works(frames);
    }
    tell_claude(world, server, run, draw, mood).await;
    tell_server(world, server, run, frames).await;
    leave(world, sandbox, run, draw, mood);
}

/// Whether it never connects.
fn is_mute((session, attempt): Run) -> bool {
    attempt == Attempt::FIRST && session.0.as_u128().is_multiple_of(MUTE_ONE_OF)
}

fn agent(agents: &mut BTreeMap<Run, Agent>, run: Run) -> &mut Agent {
    agents.entry(run).or_default()
}

/// Whether it has one now. One that has it says so to each new server.
async fn get_job(
    world: &World,
    server: &Server,
    session: &Session,
    run: Run,
    draw: &mut Draw,
    mood: Mood,
) -> bool {
    // Its socket is there, also when the session has gone on without it.
    let asker = Session {
        attempt: run.1,
        ..session.clone()
    };
    let Ok(gate) = server.gateway.open(&asker) else {
        return false;
    };
    if world.agents()[&run].has_job() {
        return gate.hand_out();
    }
    let job = tokio::select! {
        biased;
        job = gate.job() => job,
        () = move_clock_for(&world.code) => return false,
    };
    match job {
        Ok(_) if !gate.hand_out() => false,
        Ok(job) => {
            look_at_base(world, server, session, &job).await;
            let course = Course::drawn(world, session, run, allowance_usd(&job), draw);
            let mut agents = world.agents();
            let agent = agent(&mut agents, run);
            agent.course = Some(course);
            let coordinates = session.kind == Kind::Coordination;
            agent.part = coordinates.then(|| Part::drawn(draw, mood)).flatten();
            let resume = session.steering.resume.as_ref();
            agent.said.extend(resume.map(|resume| resume.text.clone()));
            true
        }
        Err(JobError::Hopeless(outcome)) => {
            if !gate.deny() {
                return false;
            }
            let event = SessionEvent::LaunchFailed(run.1, outcome);
            let clock = world.clock.as_ref();
            // Refused when somebody was first.
            let _ = apply(&server.store, clock, run.0, &event, None).await;
            false
        }
        Err(JobError::Store(_)) => false,
    }
}

/// What Claude may cost in this attempt.
fn allowance_usd(job: &Job) -> f64 {
    let mut args = job.claude.args.iter();
    args.find(|arg| *arg == "--max-budget-usd");
    let told = args.next().map(|usd| usd.parse().expect("an amount"));
    told.unwrap_or(f64::INFINITY)
}

/// The code of all dependencies is there to start from.
async fn look_at_base(world: &World, server: &Server, session: &Session, job: &Job) {
    let mut there = world.code.works(&job.checkout.commit);
    for merge in &job.checkout.merges {
        there.extend(world.code.works(&merge.commit));
    }
    for id in &session.dependencies {
        let Ok(dependency) = server.store.session(*id).await else {
            continue;
        };
        let result = dependency.report.as_ref().and_then(|of| of.result.as_ref());
        let left = result.map(|result| world.code.works(&result.commit));
        let is_final = dependency.attempt == Attempt::FIRST;
        if is_final && left.is_some_and(|left| !left.is_subset(&there)) {
            world.witness.objects(format!(
                "session {} starts without the work of {id}",
                session.id
            ));
        }
    }
}

impl Course {
    fn drawn(
        world: &World,
        session: &Session,
        run: Run,
        allowance_usd: f64,
        draw: &mut Draw,
    ) -> Self {
        let mut course = Self::default();
        let say = |course: &mut Self, draw: &mut Draw| {
            for at in 0..draw.between(0, 4) {
                let text = format!("{} {} {}", run.1, course.frames.len(), at);
                course.frames.push_back(Frame::Output(text.into()));
            }
        };
        let which = draw.between(0, 100);
        if which < 4 {
            let failure = SetupFailure {
                step: "clone".into(),
                message: "no room".into(),
            };
            let ending = Ending {
                setup_failure: Some(failure),
                ..Ending::default()
            };
            course.frames.push_back(Frame::Ended(Box::new(ending)));
            return course;
        }
        course.frames.push_back(Frame::ClaudeStarted);
        say(&mut course, draw);
        course.end = match which {
            4..8 => End::Exits {
                code: 1,
                oom_killed: false,
            },
            8..11 => End::Exits {
                code: 137,
                oom_killed: true,
            },
            11..14 => End::Vanishes,
            14..18 => End::Hangs,
            _ => End::Reported,
        };
        if course.end == End::Reported {
            let merges = draw.chance(85);
            let pushed = session.kind.writes() && draw.chance(80);
            let mut ending = ending(which);
            if let Some(result) = &mut ending.result {
                result.usage.cost_usd = draw.between(0, 3) as f64;
                // As Claude Code does, after the turn that reached it.
                if result.usage.cost_usd >= allowance_usd {
                    result.is_error = true;
                    result.subtype = "error_max_budget_usd".into();
                }
            }
            ending.pushed = pushed.then(|| world.code.pushes(run.0, run.1, merges));
            course.frames.push_back(Frame::Ended(Box::new(ending)));
        }
        course
    }
}

fn ending(which: usize) -> Ending {
    let result = |is_error| ClaudeResult {
        subtype: "success".into(),
        is_error,
        text: "done".into(),
        usage: Usage::default(),
    };
    match which {
        18..24 => Ending {
            result: Some(result(true)),
            ..Ending::default()
        },
        24..27 => Ending {
            exit: Some(Exit::Code(1)),
            ..Ending::default()
        },
        27..29 => Ending {
            exit: Some(Exit::Code(0)),
            ..Ending::default()
        },
        29..31 => Ending {
            exit: Some(Exit::Signal(9)),
            oom_kills: 1,
            ..Ending::default()
        },
        31..33 => Ending {
            result: Some(result(false)),
            salvage_failure: Some("no room".into()),
            ..Ending::default()
        },
        _ => Ending {
            result: Some(result(false)),
            ..Ending::default()
        },
    }
}

/// Messages that wait reach Claude while it runs.
async fn tell_claude(world: &World, server: &Server, run: Run, draw: &mut Draw, mood: Mood) {
    let Ok(session) = server.store.session(run.0).await else {
        return;
    };
    if mood == Mood::Any && draw.chance(3) {
        let until = world.clock.now() + SignedDuration::from_secs(draw.between(5, 60) as i64);
        let event = SessionEvent::LimitHit(run.1, until);
        // Refused of one that does not run.
        let _ = apply(&server.store, world.clock.as_ref(), run.0, &event, None).await;
    }
    let listens = matches!(
        session.state,
        SessionState::Running { attempt, .. } | SessionState::Awaiting { attempt, .. }
            if attempt == run.1
    );
    let messages = &session.steering.messages;
    let Some(last) = messages.last().filter(|_| listens) else {
        return;
    };
    if world.agents()[&run].has_ended() || (mood == Mood::Any && draw.chance(50)) {
        return;
    }
    let texts = messages.iter().map(|message| message.text.clone());
    agent(&mut world.agents(), run).said.extend(texts);
    let event = SessionEvent::MessageTold(run.1, last.number);
    let clock = world.clock.as_ref();
    // One that could not be recorded is told again.
    let _ = apply(&server.store, clock, run.0, &event, None).await;
}

/// Tells what is not stored yet, at most so many frames.
async fn tell_server(world: &World, server: &Server, run: Run, frames: usize) {
    let (id, attempt) = run;
    let Ok(acked) = server.store.acked(id, attempt).await else {
        return;
    };
    let spool = world.agents()[&run].spool.clone();
    let waiting = spool.into_iter().enumerate().skip(acked as usize);
    for (at, frame) in waiting.take(frames) {
        let position = at as u64 + 1;
        let is_end = matches!(frame, Frame::Ended(_));
        let told = match frame {
            Frame::Output(bytes) => {
                let line = OutputLine {
                    at: world.clock.now(),
                    stream: Stream::Stdout,
                    bytes,
                    cut_bytes: 0,
                    line_end: true,
                };
                server
                    .store
                    .append_output(id, attempt, position, &[line])
                    .await
            }
            Frame::ClaudeStarted => {
                tell(
                    world,
                    server,
                    run,
                    SessionEvent::ClaudeStarted(attempt),
                    position,
                )
                .await
            }
            Frame::Ended(ending) => {
                let event = SessionEvent::AgentEnded(attempt, ending);
                tell(world, server, run, event, position).await
            }
        };
        if let Err(error) = told {
            world
                .witness
                .objects(format!("{run:?} was not stored: {error}"));
            return;
        }
        if is_end {
            agent(&mut world.agents(), run).has_reported = true;
        }
    }
}

/// As the link does: what comes too late still moves the position.
async fn tell(
    world: &World,
    server: &Server,
    (id, attempt): Run,
    event: SessionEvent,
    position: u64,
) -> Result<(), StoreError> {
    let told = Some((attempt, position));
    let clock = world.clock.as_ref();
    match apply_told(&server.store, clock, id, &event, told).await {
        Ok(_) => Ok(()),
        Err(TransitionError::Invalid(_)) => {
            server.store.append_output(id, attempt, position, &[]).await
        }
        Err(TransitionError::Store(error)) => Err(error),
    }
}

/// The sandbox ends, where its course has come to that.
fn leave(world: &World, sandbox: &Sandbox, run: Run, draw: &mut Draw, mood: Mood) {
    let mut agents = world.agents();
    let agent = agent(&mut agents, run);
    if mood == Mood::Any && draw.chance(30) {
        return;
    }
    if agent.has_reported {
        return world.runtime.sandbox_exits(&sandbox.id, 0, false);
    }
    let Some(course) = &agent.course else {
        return;
    };
    if !course.frames.is_empty() || agent.has_ended() {
        return;
    }
    match course.end {
        End::Reported => {}
        End::Exits { code, oom_killed } => {
            world.runtime.sandbox_exits(&sandbox.id, code, oom_killed);
        }
        End::Vanishes => world.runtime.sandbox_vanishes(&sandbox.id),
        End::Hangs if mood == Mood::Finishing => agent.ends(Ending {
            cut: Some(Cut::Stalled),
            exit: Some(Exit::Signal(9)),
            ..Ending::default()
        }),
        End::Hangs => {}
    }
}
