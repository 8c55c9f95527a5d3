//! The `mooring` binary, driven as operators and filters do.

use std::{
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use affinity::{
    NodeState, SessionKey,
    wire::{self, Claim, ClaimReply, Cursor, OwnerReply, WatchReply},
};
use anyhow::{Context, Result, ensure};
use harness::{
    browser::{self, Answer},
    fake_node::FakeNode,
    process::{Process, free_port},
    program,
};
use http_body_util::Full;
use hyper::{Request, body::Bytes};
use tempfile::TempDir;
use tokio::task::JoinHandle;

mod api;
mod command;
mod doors;
mod left_alone;
mod listening;
mod metrics;
mod names;
mod probes;
mod refusals;
mod rights;
mod store;
mod watch;

/// Long enough for anything that should happen, however slow the machine.
const PATIENCE: Duration = Duration::from_secs(20);
/// A watch that waits this long waits longer than any test has patience.
const FOREVER: u32 = 30_000;

/// `mooring` with some arguments, and nothing of this process's environment.
fn mooring(arguments: &[&str]) -> Command {
    let mut command = Command::new(program("mooring"));
    command.env_clear().args(arguments).stdin(Stdio::null());
    command
}

/// Runs what ends by itself.
fn run(mut command: Command) -> Result<Output> {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let started = Instant::now();
    while child.try_wait()?.is_none() {
        if started.elapsed() > PATIENCE {
            child.kill()?;
            anyhow::bail!("{command:?} does not end: {:?}", child.wait_with_output()?);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(child.wait_with_output()?)
}

/// A sidecar in a folder of its own, on a port of its own.
struct Sidecar {
    process: Process,
    address: SocketAddr,
    folder: TempDir,
}

impl Sidecar {
    /// Starts one for `nodes` with further arguments, and waits until it answers.
    async fn start(nodes: &[String], arguments: &[&str]) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let address = ([127, 0, 0, 1], free_port()?).into();
        let process = start_in(folder.path(), address, nodes, arguments).await?;
        Ok(Self { process, address, folder })
    }

    async fn get(&self, path: &str) -> Result<Answer> {
        browser::get(self.address, path).await
    }

    async fn post(&self, path: &str, body: impl Into<Bytes>) -> Result<Answer> {
        let request = Request::post(format!("http://{}{path}", self.address)).body(Full::new(body.into()))?;
        browser::send(&browser::http1(), request).await
    }

    async fn claim(&self, name: &str, node: &str, expect: u64) -> Result<ClaimReply> {
        let claim =
            Claim { key: key(name), node: affinity::NodeId::new(node)?, expect, origin: wire::Origin::Visit };
        let answer = self.post("/v1/claims", wire::encode(&claim)).await?;
        ensure!(answer.status == 200, "a claim got {}: {}", answer.status, answer.text());
        wire::decode(&answer.body).context("no reply to a claim")
    }

    /// Name and epoch of a session's owner.
    async fn owner(&self, name: &str) -> Result<Option<(String, u64)>> {
        let answer = self.get(&format!("/v1/owners/{}", key(name))).await?;
        ensure!(answer.status == 200, "a look-up got {}: {}", answer.status, answer.text());
        let reply: OwnerReply = wire::decode(&answer.body).context("no reply to a look-up")?;
        Ok(reply.owner.map(|owner| (owner.node.to_string(), owner.epoch)))
    }

    async fn watch(&self, cursor: Cursor, membership: u64, wait_ms: u32) -> Result<WatchReply> {
        watch_at(self.address, cursor, membership, wait_ms).await
    }

    /// Starts a watch that waits.
    async fn waiting(&self, cursor: Cursor, membership: u64) -> Result<JoinHandle<Result<WatchReply>>> {
        let watch = tokio::spawn(watch_at(self.address, cursor, membership, FOREVER));
        tokio::time::sleep(Duration::from_millis(200)).await;
        ensure!(!watch.is_finished(), "it does not wait: {:?}", watch.await?);
        Ok(watch)
    }

    /// Watches until the nodes are in these states, in the order of their names; returns the last
    /// cursor and the digest of the membership.
    async fn wait_for(&self, states: &[NodeState]) -> Result<(Cursor, u64)> {
        let (mut cursor, mut digest, started) = (Cursor::default(), 0, Instant::now());
        loop {
            let reply = self.watch(cursor, digest, 500).await?;
            cursor = reply.cursor;
            if let Some(membership) = reply.membership {
                digest = membership.digest();
                if membership.nodes().iter().map(|node| node.state).eq(states.iter().copied()) {
                    return Ok((cursor, digest));
                }
            }
            ensure!(started.elapsed() < PATIENCE, "the nodes do not become {states:?}");
        }
    }

    /// Waits until its report on the nodes has this in it: sessions are counted once a second.
    async fn wait_until_counted(&self, part: &str) -> Result<()> {
        let started = Instant::now();
        loop {
            let report = self.get("/v1/nodes").await?.text();
            if report.contains(part) {
                return Ok(());
            }
            ensure!(started.elapsed() < PATIENCE, "{part} is not in {report}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until it says that it is ready.
    async fn wait_until_ready(&mut self) -> Result<()> {
        let address = self.address;
        let ready =
            async || browser::get(address, "/readyz").await.ok().filter(|answer| answer.status == 200);
        self.process.wait(PATIENCE, ready).await.map(drop)
    }
}

async fn start_in(
    folder: &Path,
    address: SocketAddr,
    nodes: &[String],
    arguments: &[&str],
) -> Result<Process> {
    let mut command = mooring(&["serve", "--listen", &address.to_string(), "--probe-interval-ms", "50"]);
    command.arg("--state-dir").arg(folder.join("state")).args(arguments);
    for node in nodes {
        command.args(["--node", node]);
    }
    let mut process = Process::start("the sidecar", command, &folder.join("sidecar.log"))?;
    process.wait(PATIENCE, async || browser::get(address, "/healthz").await.ok()).await?;
    Ok(process)
}

async fn watch_at(
    sidecar: SocketAddr,
    Cursor { generation, position }: Cursor,
    membership: u64,
    wait_ms: u32,
) -> Result<WatchReply> {
    let query =
        format!("generation={generation}&position={position}&membership={membership}&wait_ms={wait_ms}");
    let answer = browser::get(sidecar, &format!("/v1/watch?{query}")).await?;
    ensure!(answer.status == 200, "a watch got {}: {}", answer.status, answer.text());
    wire::decode(&answer.body).context("no reply to a watch")
}

fn key(name: &str) -> SessionKey {
    SessionKey::of_session_id(name.as_bytes())
}

/// A node where nobody listens. A port that is free now might be another test's soon.
fn absent(id: &str) -> String {
    format!("{id}=127.0.0.1:1")
}
