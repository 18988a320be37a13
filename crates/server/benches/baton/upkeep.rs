//! placeholder
use anyhow::Result;
use crate::Bench;
/// x
pub fn run(_bench: &Bench) -> Result<()> { Ok(()) }
