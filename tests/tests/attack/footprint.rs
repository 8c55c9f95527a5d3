//! What a process takes of memory and descriptors, and how many of these it may take.

use std::fs;

use anyhow::{Context, Result};
use harness::process::Process;
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit, setrlimit};

/// What a process takes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Footprint {
    pub resident_kb: u64,
    pub descriptors: u64,
}

impl Footprint {
    /// Of a process, by its id.
    pub fn of(process: u32) -> Result<Self> {
        let status = fs::read_to_string(format!("/proc/{process}/status"))?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().split(' ').next());
        let resident_kb = resident.context("no memory")?.parse()?;
        let descriptors = fs::read_dir(format!("/proc/{process}/fd"))?.count() as u64;
        Ok(Self { resident_kb, descriptors })
    }

    /// The greater of each.
    pub fn most(self, other: Self) -> Self {
        Self {
            resident_kb: self.resident_kb.max(other.resident_kb),
            descriptors: self.descriptors.max(other.descriptors),
        }
    }
}

/// Lets this process, and what it starts from now on, have this many descriptors; `None`: as many as it may
/// have. How many that are.
pub fn limit_descriptors(most: Option<u64>) -> Result<u64> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: most.or(maximum), maximum })?;
    Ok(most.or(maximum).unwrap_or(u64::MAX))
}

/// Lets another process have as many as it may.
pub fn unlimit_descriptors_of(process: &Process) -> Result<()> {
    let pid = Pid::from_raw(process.id() as i32).context("no process")?;
    let maximum = getrlimit(Resource::Nofile).maximum;
    prlimit(Some(pid), Resource::Nofile, Rlimit { current: maximum, maximum })?;
    Ok(())
}
