//! The agent's library part: the protocol that both sides of a sandbox's socket speak, and the
//! reading of Claude's result message.

pub mod protocol;
pub mod result;
