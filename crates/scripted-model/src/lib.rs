//! A stand-in for the Messages API that plays scripts from files.
//!
//! The unmodified Claude Code CLI, pointed at it by `ANTHROPIC_BASE_URL`, does real work without
//! a key and without a network: it writes files, runs commands and commits, because a script says
//! which tools the model "decides" to use. Faults of the real API (errors, broken streams,
//! silence) are scripted the same way.
//!
//! ```no_run
//! # async fn example() -> Result<(), scripted_model::StartError> {
//! use scripted_model::{Options, ScriptedModel, Scripts};
//!
//! let scripts = Scripts::from_texts([(
//!     "greeting",
//!     r#"
//!         match = ["Say hello"]
//!         [[turn]]
//!         text = "Hello."
//!     "#,
//! )])?;
//! let model = ScriptedModel::start("127.0.0.1:0", scripts, Options::default()).await?;
//! println!("ANTHROPIC_BASE_URL={}", model.base_url());
//! # Ok(()) }
//! ```
//!
//! The format of a script is described in `scripts/README.md` of this crate.

mod conversation;
mod http;
mod journal;
mod message;
mod play;
mod reply;
mod script;
mod server;
mod stream;

pub use journal::{Answered, AuthKind, Entry, Journal, NotSeen};
pub use script::{Fault, FaultScope, Script, ScriptError, Scripts, ToolUse, Turn, Usage};
pub use server::{Options, ScriptedModel, StartError};
