//! `mooring drain` and `mooring undrain`.

use std::time::{Duration, Instant};

use affinity::{
    NodeId,
    wire::{MoveReply, NodesReply, SessionsReply},
};
use indicatif::{ProgressBar, ProgressStyle};

use crate::{
    api::MOST_MOVED,
    asking::{AskError, Sidecar},
    cli::{Drain, Undrain},
};

/// How often to look whether a node is empty.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Why a node is not drained.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DrainError {
    #[error("{0}")]
    Ask(#[from] AskError),
    #[error("{0} is drained, but {1} of its sessions were in use when time was up (--timeout-seconds)")]
    Late(NodeId, u64),
}

/// Drains a node, moves its sessions and waits, as asked.
///
/// # Errors
/// If the sidecar or its store cannot be reached, there is no such node, or time is up.
#[allow(clippy::print_stdout)]
pub(crate) async fn drain(options: Drain) -> Result<(), DrainError> {
    let (sidecar, node) = (Sidecar::new(&options.asked)?, &options.node);
    sidecar.tell(&format!("/v1/nodes/{node}/drain")).await?;
    println!("{node} is draining: no new session goes there");
    if options.move_sessions {
        let MoveReply { moved, left } = move_all(&sidecar, node, options.rate).await?;
        println!(
            "{moved} sessions moved to other nodes{}",
            if left > 0 { format!(", {left} stay") } else { String::new() }
        );
    }
    if options.wait {
        wait(&sidecar, &options).await?;
        println!("{node} has no session in use");
    }
    Ok(())
}

/// Ends a drain.
///
/// # Errors
/// As for [`drain`].
#[allow(clippy::print_stdout)]
pub(crate) async fn undrain(options: Undrain) -> Result<(), DrainError> {
    Sidecar::new(&options.asked)?.tell(&format!("/v1/nodes/{}/undrain", options.node)).await?;
    println!("{} may have new sessions again", options.node);
    Ok(())
}

/// How many sessions of a node are in use.
async fn in_use(sidecar: &Sidecar, node: &NodeId) -> Result<u64, AskError> {
    let reply: NodesReply = sidecar.get("/v1/nodes").await?;
    Ok(reply.nodes.iter().find(|report| report.id == *node).map_or(0, |report| report.sessions))
}

async fn move_all(sidecar: &Sidecar, node: &NodeId, rate: u32) -> Result<MoveReply, AskError> {
    let style = ProgressStyle::with_template("moving {bar:30} {pos}/{len} sessions [{elapsed}]");
    let progress = ProgressBar::new(in_use(sidecar, node).await?);
    progress.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let (mut total, mut from, began) = (MoveReply::default(), None::<String>, Instant::now());
    loop {
        let query = from.map(|from| format!("?from={from}")).unwrap_or_default();
        let page: SessionsReply = sidecar.get(&format!("/v1/nodes/{node}/sessions{query}")).await?;
        // A step is a tenth of a second's worth at most.
        for step in page.sessions.chunks((rate as usize / 10).clamp(1, MOST_MOVED)) {
            let reply: MoveReply = sidecar.post(&format!("/v1/nodes/{node}/move"), &step).await?;
            total = MoveReply { moved: total.moved + reply.moved, left: total.left + reply.left };
            let done = total.moved + total.left;
            // Sessions that nobody used lately are not among those counted at first.
            progress.set_length(progress.length().unwrap_or(0).max(done));
            progress.set_position(done);
            let due = Duration::from_secs_f64(done as f64 / f64::from(rate));
            tokio::time::sleep(due.saturating_sub(began.elapsed())).await;
        }
        from = page.next;
        if from.is_none() {
            progress.finish_and_clear();
            return Ok(total);
        }
    }
}

async fn wait(sidecar: &Sidecar, options: &Drain) -> Result<(), DrainError> {
    let (node, patience) = (&options.node, Duration::from_secs(options.timeout_seconds));
    let progress = ProgressBar::new_spinner();
    let began = Instant::now();
    loop {
        let sessions = in_use(sidecar, node).await?;
        if sessions == 0 {
            progress.finish_and_clear();
            return Ok(());
        }
        if began.elapsed() > patience {
            return Err(DrainError::Late(node.clone(), sessions));
        }
        progress.set_message(format!("{sessions} sessions in use on {node}"));
        progress.tick();
        tokio::time::sleep(LOOK_EVERY).await;
        // Whoever logs in or out there begins another session there.
        if options.move_sessions {
            move_all(sidecar, node, options.rate).await?;
        }
    }
}
