//! Where the time of a session goes, from its events, the server's log and Docker's events.

use jiff::Timestamp;
use serde_json::Value;

use crate::server::Server;
use crate::table::{median, print_note};

/// In their order; Docker tells of the start a moment after the agent may have connected.
const STEPS: [&str; 9] = [
    "launch decided",
    "container started (Docker's event)",
    "agent connected",
    "job read, clone begins",
    "clone done",
    "claude started",
    "claude's first line",
    "claude ended, work saved",
    "concluded",
];

/// Prints the medians of the steps of these sessions, each with its events, in the order they ran.
pub fn print(sessions: &[(String, Vec<Value>)], server: &Server, docker: &[(String, String, f64)]) {
    let lines = server.lines("{");
    let log: Vec<Value> = lines
        .iter()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let mut steps: Vec<(&str, Vec<f64>)> = STEPS.map(|name| (name, Vec::new())).to_vec();
    let mut over = f64::NEG_INFINITY;
    for (id, events) in sessions {
        // A session that was asked for long ago waited for the one before.
        let mut last = over.max(event_ms(events, "start_requested"));
        for ((_, times), at) in steps.iter_mut().zip(marks(id, events, &log, docker)) {
            if at.is_finite() {
                times.push(at - last);
                last = at;
            }
        }
        over = last;
    }
    print_note("where it goes, median ms since the step before (the first: since it could start)");
    for (name, times) in steps {
        print_note(&format!("  {:>7.1}  {name}", median(times)));
    }
}

fn marks(
    id: &str,
    events: &[Value],
    log: &[Value],
    docker: &[(String, String, f64)],
) -> [f64; STEPS.len()] {
    let logged = |message: &str, step: Option<&str>| logged_ms(log, id, message, step);
    let started = docker
        .iter()
        .find(|(of, what, _)| of == id && what == "start");
    [
        event_ms(events, "launch_decided"),
        started.map_or(f64::NAN, |(.., at)| *at),
        logged("agent connected", None),
        logged("agent", Some("clone")),
        logged("agent", Some("claude")),
        event_ms(events, "claude_started"),
        line_ms(events),
        event_ms(events, "claude_ended"),
        event_ms(events, "concluded"),
    ]
}

/// When an event happened, in milliseconds since the epoch; not a number if it did not.
pub fn event_ms(events: &[Value], name: &str) -> f64 {
    let event = events.iter().find(|event| event["event"] == name);
    event.map_or(f64::NAN, |event| ms(&event["at"]))
}

/// When Claude printed its first line.
pub fn line_ms(events: &[Value]) -> f64 {
    let event = events.iter().find(|event| event["type"] == "claude");
    event.map_or(f64::NAN, |event| ms(&event["at"]))
}

fn logged_ms(log: &[Value], session: &str, message: &str, step: Option<&str>) -> f64 {
    let line = log.iter().find(|line| {
        let fields = &line["fields"];
        fields["session"] == session
            && fields["message"] == message
            && step.is_none_or(|step| fields["step"] == step)
    });
    line.map_or(f64::NAN, |line| ms(&line["timestamp"]))
}

/// A time as milliseconds since the epoch.
pub fn ms(at: &Value) -> f64 {
    let at = at.as_str().and_then(|text| text.parse::<Timestamp>().ok());
    at.map_or(f64::NAN, |at| at.as_nanosecond() as f64 / 1e6)
}
