//! What the kernel tells of a process.

use std::fs;

use anyhow::{Context as _, Result};

/// A number of `/proc/<pid>/<file>`, in MiB.
fn field_mib(pid: u32, file: &str, name: &str) -> Result<f64> {
    let path = format!("/proc/{pid}/{file}");
    let text = fs::read_to_string(&path).with_context(|| format!("{path} cannot be read"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    let kib: f64 = kib
        .with_context(|| format!("{path} has no {name}"))?
        .trim()
        .parse()?;
    Ok(kib / 1024.0)
}

/// Resident memory.
pub fn rss_mib(pid: u32) -> Result<f64> {
    field_mib(pid, "status", "VmRSS:")
}

/// The most there was of it since [`forget_peak`].
pub fn peak_mib(pid: u32) -> Result<f64> {
    field_mib(pid, "status", "VmHWM:")
}

/// Begins a new peak.
pub fn forget_peak(pid: u32) -> Result<()> {
    fs::write(format!("/proc/{pid}/clear_refs"), "5").context("the peak cannot be reset")
}

/// Memory with shared pages divided among those who share them; needs root for other users'
/// processes.
pub fn pss_mib(pid: u32) -> Result<f64> {
    field_mib(pid, "smaps_rollup", "Pss:")
}

/// Who started it.
pub fn parent(pid: u32) -> Result<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("PPid:"));
    Ok(line.context("a process without a parent")?.trim().parse()?)
}
