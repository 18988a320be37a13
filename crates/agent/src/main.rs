//! PID 1 of a sandbox: fetches the code, runs Claude once, keeps what it prints until the server
//! has stored it, and pushes the work out. All of it goes over one Unix socket.
//!
//! One thread, and little memory: many of these wait side by side on one machine.

mod attempt;
mod checkout;
mod children;
mod claude;
mod conversation;
mod dial;
mod forward;
mod git;
mod link;
mod outbox;
mod patience;
mod places;
mod result_search;
mod salvage;
mod splitter;
mod spool;
mod tail;
mod talk;

use std::fmt;
use std::process::ExitCode;

use tokio::runtime;
use tokio::task::LocalSet;

use crate::places::Places;

fn main() -> ExitCode {
    let places = match Places::from_arguments(std::env::args().skip(1)) {
        Ok(places) => places,
        Err(error) => {
            log(format_args!("{error}"));
            return ExitCode::from(2);
        }
    };
    match runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => LocalSet::new().block_on(&runtime, attempt::live(places)),
        Err(error) => {
            log(format_args!("no runtime: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// A line for whoever looks at the container's own log. No prompt, no output of Claude's.
fn log(line: fmt::Arguments<'_>) {
    eprintln!("baton-agent: {line}");
}
