//! The agent's library part: the protocol that both sides of a sandbox's socket speak.

pub mod protocol;
