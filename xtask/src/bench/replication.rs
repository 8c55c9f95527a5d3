//! `cargo xtask bench replication`: how fast sessions reach their standby and what that costs, beside a
//! Redis session store that is written straight from the request, as add-ons do.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::Args;
use harness::{
    browser,
    fake_node::FakeNode,
    process::{Process, free_port},
    program,
    stack::start_redis,
};
use indicatif::ProgressBar;
use redis::{AsyncCommands, aio::MultiplexedConnection};
use serde::Serialize;
use tempfile::TempDir;

use super::figures::table;
use crate::build;

#[derive(Args)]
pub struct Options {
    /// Sessions that are there when a sidecar starts
    #[arg(long, env = "MOORING_BENCH_SESSIONS", default_value_t = 100_000,
          value_parser = clap::value_parser!(u32).range(100..))]
    sessions: u32,

    /// How many writes are timed one by one
    #[arg(long, env = "MOORING_BENCH_WRITES", default_value_t = 1_000,
          value_parser = clap::value_parser!(u32).range(100..))]
    writes: u32,

    /// JSON in place of the table
    #[arg(long, env = "MOORING_JSON")]
    json: bool,
}

/// A session file of Odoo 18, about as long as most.
const CONTENT: &str = r#"{"context": {"lang": "en_US", "tz": "Europe/Brussels", "uid": 2}, "create_time": 1795648459.33, "db": "odoo", "debug": "", "login": "somebody@example.com", "uid": 2, "session_token": "408e9e785dc9653d08ca9729d21072b2fc5a8b68789b42f1988640dcedfb70f3", "_trace": [{"platform": "linux", "browser": "firefox", "ip_address": "203.0.113.7", "first_activity": 1795648459, "last_activity": 1795648459}], "n": "#;
/// How long the load of a given rate lasts.
const LOAD: Duration = Duration::from_secs(10);
const RATE: u32 = 1_000;
const PATIENCE: Duration = Duration::from_secs(300);

/// What was measured.
#[derive(Serialize)]
struct Figures {
    file_to_standby_ms_p50: f64,
    file_to_standby_ms_p99: f64,
    redis_set_ms_p50: f64,
    redis_set_ms_p99: f64,
    sustained_sessions_per_second: f64,
    redis_sets_per_second: f64,
    redis_bytes_per_session: f64,
    redis_bytes_per_set: f64,
    /// Of one processor, both sidecars together, at 1,000 writes a second.
    sidecars_cpu_percent: f64,
    catch_up_sessions: u32,
    catch_up_seconds: f64,
}

/// Measures and prints.
pub fn run(options: &Options) -> Result<()> {
    build::all()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let figures = runtime.block_on(async {
        tokio::select! {
            figures = measure(options) => figures,
            _ = tokio::signal::ctrl_c() => anyhow::bail!("interrupted"),
        }
    })?;
    if options.json {
        println!("{}", serde_json::to_string_pretty(&figures)?);
        return Ok(());
    }
    let f = &figures;
    let rows = [
        [
            "file on the standby after, p50/p99".into(),
            format!("{:.2} / {:.2} ms", f.file_to_standby_ms_p50, f.file_to_standby_ms_p99),
            format!("{:.2} / {:.2} ms", f.redis_set_ms_p50, f.redis_set_ms_p99),
        ],
        [
            "sessions a second".into(),
            format!("{:.0}", f.sustained_sessions_per_second),
            format!("{:.0}", f.redis_sets_per_second),
        ],
        [
            "bytes in Redis a session".into(),
            format!("{:.0}", f.redis_bytes_per_session),
            format!("{:.0}", f.redis_bytes_per_set),
        ],
        [
            format!("processor at {RATE} writes a second, two sidecars"),
            format!("{:.0} %", f.sidecars_cpu_percent),
            "–".into(),
        ],
        [
            format!("{} sessions taken in and copied", f.catch_up_sessions),
            format!("{:.1} s", f.catch_up_seconds),
            "–".into(),
        ],
    ];
    print!("{}", table(&["", "Mooring", "SET from the request"], rows.into_iter()));
    Ok(())
}

/// Two nodes with a sidecar each, and a Redis.
struct World {
    redis: MultiplexedConnection,
    redis_address: SocketAddr,
    nodes: [FakeNode; 2],
    sidecars: Vec<(Process, SocketAddr)>,
    _redis: Process,
    folder: TempDir,
}

impl World {
    async fn start() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let (process, redis_address) = start_redis(folder.path()).await?;
        fs::write(folder.path().join("secret"), "0123456789abcdef0123456789abcdef")?;
        let redis = redis::Client::open(format!("redis://{redis_address}"))?;
        let redis = redis.get_multiplexed_async_connection().await?;
        let nodes = [FakeNode::start(&[200]).await?, FakeNode::start(&[200]).await?];
        for place in 0..2 {
            fs::create_dir_all(folder.path().join(format!("node-{place}")))?;
        }
        Ok(Self { redis, redis_address, nodes, sidecars: vec![], _redis: process, folder })
    }

    fn sessions(&self, place: usize) -> PathBuf {
        self.folder.path().join(format!("node-{place}"))
    }

    async fn start_sidecars(&mut self) -> Result<()> {
        for (place, node) in self.nodes.iter().enumerate() {
            let address: SocketAddr = ([127, 0, 0, 1], free_port()?).into();
            let mut command = Command::new(program("mooring"));
            command.args(["serve", "--listen", &address.to_string(), "--probe-interval-ms", "200"]);
            command.args(["--store", &format!("redis://{}", self.redis_address), "--carry-rate", "100000"]);
            command.args(["--node-id", &format!("odoo-{place}"), "--advertise", &node.address.to_string()]);
            command.args(["--sessions", &format!("odoo-{place}={}", self.sessions(place).display())]);
            command.arg("--secret-file").arg(self.folder.path().join("secret"));
            let log = self.folder.path().join(format!("sidecar-{place}.log"));
            let mut process = Process::start("a sidecar", command, &log)?;
            let alive = async || browser::get(address, "/healthz").await.ok();
            process.wait(Duration::from_secs(10), alive).await?;
            self.sidecars.push((process, address));
        }
        Ok(())
    }

    /// Waits until each sidecar knows that both nodes carry.
    async fn wait_until_met(&self) -> Result<()> {
        for (_, address) in &self.sidecars {
            let met = async || {
                let nodes = browser::get(*address, "/v1/nodes").await?.text();
                anyhow::Ok(nodes.matches("\"carries\":true").count() == 2)
            };
            wait("the sidecars know each other", met).await?;
        }
        Ok(())
    }

    async fn used_memory(&mut self) -> Result<f64> {
        let info: String = redis::cmd("INFO").arg("memory").query_async(&mut self.redis).await?;
        let used = info.lines().find_map(|line| line.strip_prefix("used_memory:"));
        Ok(used.context("no used_memory")?.trim().parse()?)
    }

    /// Processor seconds that the sidecars have used.
    fn cpu_seconds(&self) -> Result<f64> {
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        let mut sum = 0.0;
        for (process, _) in &self.sidecars {
            let stat = fs::read_to_string(format!("/proc/{}/stat", process.id()))?;
            let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
            for place in [11, 12] {
                sum += fields.get(place).context("no times in /proc")?.parse::<f64>()? / ticks;
            }
        }
        Ok(sum)
    }
}

async fn wait(what: &str, mut holds: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    let began = Instant::now();
    while !holds().await? {
        ensure!(began.elapsed() < PATIENCE, "it does not come about that {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

fn sid(number: u32) -> String {
    let hash = number.wrapping_mul(2_654_435_761);
    format!("{hash:08x}{number:034}{}", "x".repeat(42))
}

/// Saves a session as Odoo does.
fn save(sessions: &Path, number: u32, content: u32) -> Result<PathBuf> {
    let sid = sid(number);
    let folder = sessions.join(&sid[..2]);
    let temporary = sessions.join(format!("tmp{number}.__wz_sess"));
    fs::create_dir_all(&folder)?;
    fs::write(&temporary, format!("{CONTENT}{content}}}"))?;
    let path = folder.join(&sid);
    fs::rename(&temporary, &path)?;
    Ok(path)
}

/// Whether a node has a session with this content.
fn has(sessions: &Path, number: u32, content: u32) -> bool {
    let sid = sid(number);
    let text = fs::read_to_string(sessions.join(&sid[..2]).join(&sid));
    text.is_ok_and(|text| text.ends_with(&format!(" {content}}}")))
}

fn percentiles(mut times: Vec<f64>) -> (f64, f64) {
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times.get((times.len() as f64 * share) as usize).copied().unwrap_or_default();
    (at(0.5), at(0.99))
}

async fn measure(options: &Options) -> Result<Figures> {
    let progress = ProgressBar::new_spinner();
    progress.enable_steady_tick(Duration::from_millis(250));
    let mut world = World::start().await?;
    let [own, standby] = [0, 1].map(|place| world.sessions(place));

    progress.set_message("sessions that are there already");
    for number in 0..options.sessions {
        save(&own, number, 0)?;
    }
    let before = world.used_memory().await?;
    let began = Instant::now();
    world.start_sidecars().await?;
    world.wait_until_met().await?;
    let last = options.sessions;
    let mut missing: Vec<u32> = (0..last).collect();
    wait("all are at the standby", async || {
        missing.retain(|number| !has(&standby, *number, 0));
        tokio::time::sleep(Duration::from_millis(50)).await;
        Ok(missing.is_empty())
    })
    .await?;
    let catch_up_seconds = began.elapsed().as_secs_f64();
    let redis_bytes_per_session = (world.used_memory().await? - before) / f64::from(options.sessions);

    progress.set_message("one write after another");
    let (mut delays, mut sets) = (Vec::new(), Vec::new());
    for number in 0..options.writes {
        let began = Instant::now();
        save(&own, number % last, number + 1)?;
        while !has(&standby, number % last, number + 1) {
            ensure!(began.elapsed() < PATIENCE, "a copy does not come");
            tokio::time::sleep(Duration::from_micros(100)).await;
        }
        delays.push(began.elapsed().as_secs_f64() * 1e3);
        let began = Instant::now();
        let name = format!("session:{}", sid(number));
        let _: () = world.redis.set_ex(name, format!("{CONTENT}{number}}}"), 604_800).await?;
        sets.push(began.elapsed().as_secs_f64() * 1e3);
    }

    progress.set_message("as many as there can be");
    let many = 5_000.min(last);
    let began = Instant::now();
    for number in 0..many {
        save(&own, number, 1_000_000)?;
        // The sidecars have their turn.
        if number % 50 == 0 {
            tokio::task::yield_now().await;
        }
    }
    let mut missing: Vec<u32> = (0..many).collect();
    wait("all are at the standby", async || {
        missing.retain(|number| !has(&standby, *number, 1_000_000));
        Ok(missing.is_empty())
    })
    .await?;
    let sustained = f64::from(many) / began.elapsed().as_secs_f64();
    let before = world.used_memory().await?;
    let began = Instant::now();
    for number in 0..many {
        let name = format!("direct:{}", sid(number));
        let _: () = world.redis.set_ex(name, format!("{CONTENT}{number}}}"), 604_800).await?;
    }
    let redis_sets_per_second = f64::from(many) / began.elapsed().as_secs_f64();
    let redis_bytes_per_set = (world.used_memory().await? - before) / f64::from(many);

    progress.set_message("a thousand writes a second");
    let cpu = world.cpu_seconds()?;
    let began = Instant::now();
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / RATE);
    let mut number = 0;
    while began.elapsed() < LOAD {
        ticks.tick().await;
        save(&own, number % last, 2_000_000 + number)?;
        number += 1;
    }
    let sidecars_cpu_percent = (world.cpu_seconds()? - cpu) / began.elapsed().as_secs_f64() * 100.0;
    progress.finish_and_clear();

    let (p50, p99) = percentiles(delays);
    let (set_p50, set_p99) = percentiles(sets);
    Ok(Figures {
        file_to_standby_ms_p50: p50,
        file_to_standby_ms_p99: p99,
        redis_set_ms_p50: set_p50,
        redis_set_ms_p99: set_p99,
        sustained_sessions_per_second: sustained,
        redis_sets_per_second,
        redis_bytes_per_session,
        redis_bytes_per_set,
        sidecars_cpu_percent,
        catch_up_sessions: options.sessions,
        catch_up_seconds,
    })
}
