//! The guard of `mooring cron`: runs the child, and ends it when nobody says any more that it may run.

use std::{os::fd::AsFd, process::ExitCode, time::Duration};

use rustix::process::{Pid, Signal, getpid, kill_process, kill_process_group};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::unix::pipe,
    process::Command,
    signal::unix::{SignalKind, signal},
    time::interval,
};

use super::{CronError, LOST, dies_with_parent, exit_status, now};
use crate::cli::CronGuard;

/// How often the clock is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// Runs the child until it ends, or until its time is over. Its standard input tells until when, in
/// nanoseconds since the machine started, a line each time that it is prolonged.
///
/// # Errors
/// If the child cannot be started.
pub(crate) async fn run(options: CronGuard) -> Result<ExitCode, CronError> {
    // What is sent to the group is for the child.
    let mut ignored = Vec::new();
    for kind in [
        SignalKind::hangup(),
        SignalKind::interrupt(),
        SignalKind::quit(),
        SignalKind::terminate(),
        SignalKind::user_defined1(),
        SignalKind::user_defined2(),
    ] {
        ignored.push(signal(kind).map_err(CronError::Signals)?);
    }
    let input = std::io::stdin().as_fd().try_clone_to_owned().and_then(pipe::Receiver::from_owned_fd);
    let mut lines = BufReader::new(input.map_err(CronError::Input)?).lines();
    let mut next = async || lines.next_line().await.ok().flatten().and_then(|line| line.parse().ok());
    let Some(mut until) = next().await.map(Duration::from_nanos) else { return Ok(ExitCode::from(LOST)) };
    let failed = |error| CronError::Start(options.command.join(" "), error);
    let (program, arguments) =
        options.command.split_first().ok_or_else(|| failed(std::io::ErrorKind::InvalidInput.into()))?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(std::process::Stdio::null());
    dies_with_parent(&mut command);
    let mut child = command.spawn().map_err(failed)?;
    let pid = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
    let (mut ticks, mut told, mut stopping) = (interval(LOOK), true, false);
    loop {
        tokio::select! {
            status = child.wait() => {
                let status = status.ok().and_then(|status| {
                    use std::os::unix::process::ExitStatusExt;
                    exit_status(&status).or_else(|| u8::try_from(128 + status.signal()?).ok())
                });
                return Ok(ExitCode::from(if stopping { LOST } else { status.unwrap_or(1) }));
            }
            later = next(), if told => match later {
                Some(later) => until = until.max(Duration::from_nanos(later)),
                // The parent is gone: nobody will prolong this.
                None => told = false,
            },
            _ = ticks.tick() => {
                if now() >= until {
                    // This process too.
                    let _ = kill_process_group(getpid(), Signal::KILL);
                }
                if !stopping && (!told || now() + options.stop() >= until) {
                    stopping = true;
                    if let Some(pid) = pid {
                        // It may have ended.
                        let _ = kill_process(pid, Signal::TERM);
                    }
                }
            }
        }
    }
}
