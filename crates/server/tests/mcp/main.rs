//! The MCP door with the programs that others wrote: the official SDKs, Inspector, and the
//! conformance suites, over HTTP and over stdio, against a real server over a real store.
//!
//! `scripts/mcp-clients` installs them; what they do is in `clients`.

#[expect(dead_code, reason = "the tests of HTTP need more of it")]
#[path = "../http/app.rs"]
mod app;
mod bundle;
mod conformance;
mod program;
mod sdks;
mod stand_in;
