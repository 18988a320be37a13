//! What a sandbox may reach, and nothing else.

pub mod git;
