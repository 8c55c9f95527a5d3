//! Processes that end with their owner, however it ends.

use std::{
    fs::File,
    net::TcpListener,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};

/// A running program. Dropping it kills it; should this process die, the kernel does.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command`; what it prints goes to `log`.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(name: &str, mut command: Command, log: &Path) -> Result<Self> {
        let file = File::options().create(true).append(true).open(log)?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        // SAFETY: between fork and exec only a system call is made.
        unsafe {
            command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
        }
        let child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned() })
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = Pid::from_raw(self.child.id() as i32) {
            // It may have ended already.
            let _ = kill_process(pid, signal);
        }
    }

    /// Ends it as a service manager does, and waits until it has ended.
    ///
    /// # Errors
    /// If it has not ended after ten seconds.
    pub fn terminate(mut self) -> Result<std::process::ExitStatus> {
        self.signal(Signal::TERM);
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        bail!("{} did not end on SIGTERM within 10 s", self.name)
    }

    /// Waits until it has ended by itself.
    ///
    /// # Errors
    /// If it takes longer than `patience`.
    pub async fn wait_for_end(mut self, patience: Duration) -> Result<std::process::ExitStatus> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            ensure!(Instant::now() < deadline, "{} does not end:\n{}", self.name, self.printed());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Kills it at once.
    pub fn kill(self) {}

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it printed so far.
    pub fn printed(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until `ready` gives something.
    ///
    /// # Errors
    /// If it takes longer than `patience`, or the process ends first; with what it printed last.
    pub async fn wait<T>(
        &mut self,
        patience: Duration,
        mut ready: impl AsyncFnMut() -> Option<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(found) = ready().await {
                return Ok(found);
            }
            let problem = match self.child.try_wait()? {
                Some(status) => format!("ended with {status}"),
                None if Instant::now() > deadline => format!("was not ready within {patience:?}"),
                None => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue;
                }
            };
            let printed = self.printed();
            let last: Vec<&str> = printed.lines().rev().take(12).collect();
            let last: Vec<&str> = last.into_iter().rev().collect();
            bail!("{} {problem}; it printed last:\n{}", self.name, last.join("\n"));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // A frozen process must be killed as well; both calls fail only if it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port on which nobody listens and that this process gave to nobody before. It is below the range
/// from which the kernel takes ports for connections, so that none of those comes in between.
///
/// # Errors
/// If there is none.
pub fn free_port() -> Result<u16> {
    const PORTS: std::ops::Range<u16> = 20_000..32_000;
    static GIVEN: Mutex<Option<u16>> = Mutex::new(None);
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    for _ in PORTS {
        // Tests run in several processes at once: each begins elsewhere.
        let next = given.map_or_else(|| rand::random_range(PORTS), |port| port + 1);
        let port = if PORTS.contains(&next) { next } else { PORTS.start };
        *given = Some(port);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no port is free")
}

/// Waits until something holds; how long that took.
///
/// # Errors
/// If it takes too long.
pub async fn wait_until(what: &str, mut holds: impl AsyncFnMut() -> bool) -> Result<Duration> {
    let started = Instant::now();
    while !holds().await {
        ensure!(started.elapsed() < Duration::from_secs(20), "it does not come about that {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(started.elapsed())
}
