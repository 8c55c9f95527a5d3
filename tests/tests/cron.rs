//! Scheduled jobs run on one server at a time, whatever happens.

use std::{
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use harness::{
    browser,
    cable::Cable,
    process::{Process, free_port},
    program,
    stack::start_redis,
};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

const LEASE: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(30);

/// What is to run once: says when it began and ended, and complains if another one runs.
const JOB: &str = r#"#!/bin/sh
exec 9> "$1/lock"
flock --nonblock 9 || { echo "TWO AT ONCE at $2" >> "$1/log"; exit 9; }
echo "$2 $$" >> "$1/log"
trap 'exit 7' TERM
while [ ! -e "$1/end" ]; do sleep 0.02 9>&-; done
exit 3
"#;

/// Two servers that would run it, each with a sidecar that reaches Redis over a cable of its own.
struct World {
    folder: TempDir,
    sidecars: Vec<(Process, SocketAddr)>,
    cables: Vec<Cable>,
    _redis: Process,
}

impl World {
    async fn start() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let (redis, address) = start_redis(folder.path()).await?;
        let job = folder.path().join("job");
        std::fs::write(&job, JOB)?;
        std::fs::set_permissions(job, std::fs::Permissions::from_mode(0o755))?;
        let mut world = Self { folder, sidecars: vec![], cables: vec![], _redis: redis };
        for name in ["a", "b"] {
            let cable = Cable::to(address).await?;
            let listen: SocketAddr = ([127, 0, 0, 1], free_port()?).into();
            let mut command = Command::new(program("mooring"));
            command.args(["serve", "--listen", &listen.to_string()]);
            command.args(["--store", &format!("redis://{}/0", cable.address)]);
            let log = world.path().join(format!("sidecar-{name}.log"));
            let mut sidecar = Process::start("a sidecar", command, &log)?;
            sidecar.wait(PATIENCE, async || browser::get(listen, "/healthz").await.ok()).await?;
            world.sidecars.push((sidecar, listen));
            world.cables.push(cable);
        }
        Ok(world)
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn contend(&self, place: usize, more: &[&str]) -> Result<Process> {
        let name = ["a", "b"][place];
        let mut command = Command::new(program("mooring"));
        command.args(["cron", "--name", name, "--lease-seconds", "2", "--stop-seconds", "1"]);
        command.args(["--sidecar", &self.sidecars[place].1.to_string()]).args(more).arg("--");
        command.arg(self.path().join("job")).arg(self.path()).arg(name);
        Process::start("mooring cron", command, &self.path().join(format!("cron-{name}.log")))
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path().join("log")).unwrap_or_default()
    }

    /// Waits until it has been started so many times; where, and as which process.
    async fn started(&self, times: usize) -> Result<(String, i32)> {
        let began = Instant::now();
        loop {
            let log = self.log();
            ensure!(!log.contains("TWO"), "{log}");
            if let Some(line) = log.lines().nth(times - 1) {
                let (name, id) = line.split_once(' ').context("a name and a process")?;
                return Ok((name.to_owned(), id.parse()?));
            }
            ensure!(began.elapsed() < PATIENCE, "it is not started for the {times}. time:\n{log}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Long enough for a second one to be started, if it were.
    async fn nobody_else(&self, times: usize) -> Result<()> {
        tokio::time::sleep(LEASE + LEASE / 2).await;
        let log = self.log();
        ensure!(log.lines().count() == times && !log.contains("TWO"), "{log}");
        Ok(())
    }
}

/// Whether a process is there, and no zombie.
fn lives(id: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{id}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

async fn ends(id: i32) -> Result<()> {
    let began = Instant::now();
    while lives(id) {
        ensure!(began.elapsed() < PATIENCE, "{id} does not end");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

#[tokio::test]
async fn never_two_at_once_and_soon_another_one() -> Result<()> {
    let world = World::start().await?;
    let mut servers = [Some(world.contend(0, &[])?), Some(world.contend(1, &[])?)];
    let place = |name: &str| usize::from(name == "b");
    let (first, job) = world.started(1).await?;
    world.nobody_else(1).await?;
    let nodes = browser::get(world.sidecars[0].1, "/v1/nodes").await?.text();
    ensure!(nodes.contains(&format!(r#""cron":{{"name":"{first}""#)), "{nodes}");

    let began = Instant::now();
    drop(servers[place(&first)].take());
    let (second, job2) = world.started(2).await?;
    println!("the leader was killed: another one after {:.1?}, with a lease of {LEASE:?}", began.elapsed());
    ensure!(second != first && !lives(job));
    servers[place(&first)] = Some(world.contend(place(&first), &[])?);
    world.nobody_else(2).await?;

    let began = Instant::now();
    let leader = servers[place(&second)].as_ref().context("a leader")?;
    leader.signal(Signal::STOP);
    let (third, job3) = world.started(3).await?;
    println!("the leader was frozen: another one after {:.1?}", began.elapsed());
    ensure!(third == first && !lives(job2));
    leader.signal(Signal::CONT);
    world.nobody_else(3).await?;

    let began = Instant::now();
    world.cables[place(&third)].cut();
    let (fourth, job4) = world.started(4).await?;
    println!("the leader was cut off from Redis: another one after {:.1?}", began.elapsed());
    ensure!(fourth == second && !lives(job3));
    world.cables[place(&third)].mend();
    world.nobody_else(4).await?;

    // The guard of the job is killed: the job goes with it, and begins again somewhere.
    let stat = std::fs::read_to_string(format!("/proc/{job4}/stat"))?;
    let guard =
        stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)).context("a parent")?;
    kill_process(Pid::from_raw(guard.parse()?).context("a process")?, Signal::KILL)?;
    ends(job4).await?;
    world.started(5).await?;
    world.nobody_else(5).await
}

#[tokio::test]
async fn the_job_s_end_is_its_own_and_the_next_one_begins_at_once() -> Result<()> {
    let world = World::start().await?;
    let first = world.contend(0, &[])?;
    world.started(1).await?;
    let second = world.contend(1, &[])?;
    // Asked to end, as by a service manager: the job's own exit status, and no wait for the lease's end.
    ensure!(first.terminate()?.code() == Some(7));
    ensure!(world.started(2).await?.0 == "b");
    std::fs::write(world.path().join("end"), "")?;
    let status = second.wait_for_end(PATIENCE).await?;
    ensure!(status.code() == Some(3), "{status}");
    Ok(())
}

#[tokio::test]
async fn who_is_to_exit_on_loss_exits_with_a_status_of_its_own() -> Result<()> {
    let world = World::start().await?;
    let contender = world.contend(0, &["--exit-on-loss"])?;
    let (_, job) = world.started(1).await?;
    world.cables[0].cut();
    let status = contender.wait_for_end(PATIENCE).await?;
    ensure!(status.code() == Some(75) && !lives(job), "{status}");
    Ok(())
}
