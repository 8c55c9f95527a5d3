//! `mooring cron`: scheduled jobs on one server at a time.
//!
//! Whoever has the lease runs the child, and prolongs the lease. Between the two is a guard: another
//! process, which ends the child when the lease is about to end, also if this one is frozen or dead. A frozen
//! guard is killed from here, and the child with it. Times are of a clock that goes on while a machine sleeps.

use std::{
    io,
    process::{ExitCode, Stdio},
    time::Duration,
};

use affinity::wire::{LeaseReply, LeaseRequest};
use rustix::{
    process::{Pid, Signal, kill_process_group, set_parent_process_death_signal},
    time::{ClockId, clock_gettime},
};
use tokio::{
    io::AsyncWriteExt,
    process::{Child, ChildStdin, Command},
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    time::{MissedTickBehavior, interval, timeout},
};

use crate::{
    asking::{AskError, Sidecar},
    cli::Cron,
};

mod guard;

pub(crate) use guard::run as guard;

/// The exit status of who lost the lease: try again later (`EX_TEMPFAIL`).
const LOST: u8 = 75;
/// How much sooner than the lease the child is gone: clocks do not go equally fast.
const MARGIN: Duration = Duration::from_millis(250);

/// Why scheduled jobs cannot be run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CronError {
    #[error("{0}")]
    Ask(#[from] AskError),
    #[error("--stop-seconds {0}: expected less than --lease-seconds {1}")]
    Stop(u64, u64),
    #[error("{0} cannot be started: {1}")]
    Start(String, io::Error),
    #[error("the guard is started by `mooring cron` only: {0}")]
    Input(io::Error),
    #[error("signals cannot be received: {0}")]
    Signals(io::Error),
}

/// A time on a clock that goes on while the machine sleeps.
fn now() -> Duration {
    let time = clock_gettime(ClockId::Boottime);
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or_default(),
        u32::try_from(time.tv_nsec).unwrap_or_default(),
    )
}

/// Runs the child whenever, and for as long as, this process has the lease.
///
/// # Errors
/// If it cannot be started, or the sidecar refuses.
pub(crate) async fn run(options: Cron) -> Result<ExitCode, CronError> {
    if options.stop_seconds >= options.lease_seconds {
        return Err(CronError::Stop(options.stop_seconds, options.lease_seconds));
    }
    let contender = Contender::new(&options)?;
    let mut signals = signals().map_err(CronError::Signals)?;
    loop {
        tracing::info!("waiting for the lease as {}", contender.name);
        let until = tokio::select! {
            until = contender.wait() => until?,
            // Nothing runs that could be told.
            _ = signals.recv() => return Ok(ExitCode::SUCCESS),
        };
        tracing::info!("this is where scheduled jobs run now");
        let status = contender.work(&options, until, &mut signals).await?;
        if status != LOST {
            contender.give_back().await;
            return Ok(ExitCode::from(status));
        }
        tracing::warn!("the lease is lost, and the child has been stopped");
        if options.exit_on_loss {
            return Ok(ExitCode::from(LOST));
        }
    }
}

/// Signals that are passed on to the child.
fn signals() -> io::Result<mpsc::UnboundedReceiver<Signal>> {
    let (sender, receiver) = mpsc::unbounded_channel();
    for passed in [Signal::HUP, Signal::INT, Signal::QUIT, Signal::TERM, Signal::USR1, Signal::USR2] {
        let mut stream = signal(SignalKind::from_raw(passed.as_raw()))?;
        let sender = sender.clone();
        tokio::spawn(async move { while stream.recv().await.is_some() && sender.send(passed).is_ok() {} });
    }
    Ok(receiver)
}

/// One who would have the lease.
struct Contender {
    sidecar: Sidecar,
    name: String,
    token: u64,
    lease: Duration,
}

impl Contender {
    fn new(options: &Cron) -> Result<Self, CronError> {
        let name = options
            .name
            .clone()
            .unwrap_or_else(|| rustix::system::uname().nodename().to_string_lossy().into_owned());
        Ok(Self {
            sidecar: Sidecar::new(&options.asked)?,
            name,
            token: rand::random(),
            lease: Duration::from_secs(options.lease_seconds),
        })
    }

    /// Asks for the lease; until when the child may run, if it is granted.
    async fn ask(&self, held: bool) -> Result<Option<Duration>, AskError> {
        // What counts is when it was asked for: it cannot have been given sooner.
        let asked = now();
        let for_ms = u64::try_from(self.lease.as_millis()).unwrap_or(u64::MAX);
        let request = LeaseRequest { name: self.name.clone(), token: self.token, for_ms, held };
        let reply: LeaseReply = self.sidecar.post("/v1/cron", &request).await?;
        Ok(reply.granted.then(|| asked + self.lease - MARGIN))
    }

    /// Waits until it has the lease.
    async fn wait(&self) -> Result<Duration, CronError> {
        let mut ticks = interval(self.lease / 20);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut quiet = false;
        loop {
            ticks.tick().await;
            match timeout(self.lease / 2, self.ask(false)).await {
                Ok(Ok(Some(until))) => return Ok(until),
                Ok(Ok(None)) => quiet = false,
                Ok(Err(error @ (AskError::Unauthorized(_) | AskError::Token(..)))) => {
                    return Err(error.into());
                }
                Ok(Err(error)) if !quiet => {
                    quiet = true;
                    tracing::warn!("{error}");
                }
                Ok(Err(_)) | Err(_) => {}
            }
        }
    }

    /// Runs the child until it ends, and prolongs the lease meanwhile. Returns its exit status.
    async fn work(
        &self,
        options: &Cron,
        mut until: Duration,
        signals: &mut mpsc::UnboundedReceiver<Signal>,
    ) -> Result<u8, CronError> {
        let mut guarded = Guarded::start(options)?;
        guarded.allow(until).await;
        let mut ticks = interval(self.lease / 10);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                status = guarded.guard.wait() => {
                    // Whoever it started may have outlived it.
                    guarded.signal(Signal::KILL);
                    return Ok(status.ok().and_then(|status| exit_status(&status)).unwrap_or(LOST));
                }
                Some(passed) = signals.recv() => guarded.signal(passed),
                _ = ticks.tick() => {
                    // A frozen guard.
                    if now() >= until {
                        guarded.signal(Signal::KILL);
                        continue;
                    }
                    match timeout(self.lease / 5, self.ask(true)).await {
                        Ok(Ok(Some(later))) => {
                            until = later;
                            guarded.allow(until).await;
                        }
                        Ok(Ok(None)) => tracing::warn!("somebody else has the lease"),
                        Ok(Err(error)) => tracing::warn!("the lease cannot be prolonged: {error}"),
                        Err(_) => tracing::warn!("the lease cannot be prolonged: the sidecar does not answer"),
                    }
                }
            }
        }
    }

    async fn give_back(&self) {
        let request = LeaseRequest { name: self.name.clone(), token: self.token, for_ms: 0, held: true };
        let given = timeout(self.lease / 2, self.sidecar.post::<LeaseReply>("/v1/cron", &request)).await;
        // Otherwise it ends by itself.
        drop(given);
    }
}

/// The guard and its child, in a process group of their own.
struct Guarded {
    guard: Child,
    tell: Option<ChildStdin>,
    group: Option<Pid>,
}

impl Guarded {
    fn start(options: &Cron) -> Result<Self, CronError> {
        let failed = |error| CronError::Start(options.command.join(" "), error);
        let mut command = Command::new(std::env::current_exe().map_err(failed)?);
        command.arg("cron-guard").arg(options.stop_seconds.to_string()).arg("--").args(&options.command);
        command.stdin(Stdio::piped()).process_group(0);
        let mut guard = command.spawn().map_err(failed)?;
        let group = guard.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        Ok(Self { tell: guard.stdin.take(), guard, group })
    }

    /// Tells until when the child may run.
    async fn allow(&mut self, until: Duration) {
        if let Some(tell) = &mut self.tell {
            // A guard that cannot be told ends the child in time.
            let _ = tell.write_all(format!("{}\n", until.as_nanos()).as_bytes()).await;
        }
    }

    fn signal(&self, signal: Signal) {
        if let Some(group) = self.group {
            // It may have ended.
            let _ = kill_process_group(group, signal);
        }
    }
}

/// As shells tell it: 128 and more for a signal.
fn exit_status(status: &std::process::ExitStatus) -> Option<u8> {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => u8::try_from(code).ok(),
        // A guard is killed when its time is over.
        (None, _) => None,
    }
}

/// Dies with its parent.
fn dies_with_parent(command: &mut Command) {
    // SAFETY: between fork and exec only a system call is made.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
    }
}
