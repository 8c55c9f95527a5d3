//! `cargo xtask bench directory`: what the directory costs, beside the same Redis used directly, at
//! several numbers of sessions in one run.

use std::{
    fs,
    net::SocketAddr,
    process::Command,
    time::{Duration, Instant},
};

use affinity::{
    NodeId, SessionKey,
    wire::{self, Claim, ClaimReply, Cursor, WatchReply},
};
use anyhow::{Context, Result, ensure};
use clap::Args;
use harness::{
    browser::{self, Browser, Connections, Method, http1},
    process::{Process, free_port},
    program,
    stack::start_redis,
};
use indicatif::{ProgressBar, ProgressStyle};
use redis::{Script, aio::MultiplexedConnection};
use serde::Serialize;
use tempfile::TempDir;

use super::figures::{Spread, table};
use crate::build;

#[derive(Args)]
pub struct Options {
    /// How many sessions are owned when it is measured; several, separated by commas
    #[arg(
        long,
        env = "MOORING_BENCH_SESSIONS",
        value_delimiter = ',',
        default_value = "10000,100000,1000000"
    )]
    sessions: Vec<u32>,

    /// Connections that are kept busy
    #[arg(long, env = "MOORING_BENCH_CONNECTIONS", default_value_t = 32,
          value_parser = clap::value_parser!(u32).range(1..=1_000))]
    connections: u32,

    /// How many times each thing is measured, in turns
    #[arg(long, env = "MOORING_BENCH_ROUNDS", default_value_t = 5,
          value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,

    /// JSON in place of the table
    #[arg(long, env = "MOORING_JSON")]
    json: bool,
}

/// How long one measurement takes.
const SLICE: Duration = Duration::from_secs(1);
/// Changes whose way to a filter is timed in a round.
const CHANGES: u64 = 100;
/// What a claim does in Redis, without all that Mooring does besides.
const RAW: &str = "redis.call('HSET', KEYS[1], 'node', ARGV[1], 'epoch', '1')
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return {1, ARGV[1], 1, 0}";

/// What was measured at one number of sessions.
#[derive(Serialize)]
struct Row {
    sessions: u32,
    claims_per_second: Spread,
    /// As a share of raw EVALSHA in the same round.
    of_raw: Spread,
    raw_per_second: Spread,
    cached_lookups_per_second: Spread,
    change_ms_p50: f64,
    change_ms_p99: f64,
    raw_change_ms_p50: f64,
    raw_change_ms_p99: f64,
    sidecar_mb: f64,
    redis_mb: f64,
}

/// Measures and prints.
pub fn run(options: &Options) -> Result<()> {
    build::all()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let rows = runtime.block_on(async {
        tokio::select! {
            rows = measure(options) => rows,
            _ = tokio::signal::ctrl_c() => anyhow::bail!("interrupted"),
        }
    })?;
    if options.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
    } else {
        print!("{}", markdown(&rows));
    }
    Ok(())
}

fn markdown(rows: &[Row]) -> String {
    let head = [
        "sessions",
        "claims/s",
        "of raw EVALSHA",
        "look-ups/s, cached",
        "change to filter, p50/p99 ms",
        "raw stream, p50/p99 ms",
        "sidecar MB",
        "Redis MB",
    ];
    let line = |row: &Row| {
        [
            row.sessions.to_string(),
            row.claims_per_second.show(0),
            row.of_raw.show(2),
            row.cached_lookups_per_second.show(0),
            format!("{:.2} / {:.2}", row.change_ms_p50, row.change_ms_p99),
            format!("{:.2} / {:.2}", row.raw_change_ms_p50, row.raw_change_ms_p99),
            format!("{:.0}", row.sidecar_mb),
            format!("{:.0}", row.redis_mb),
        ]
    };
    table(&head, rows.iter().map(line))
}

async fn measure(options: &Options) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for sessions in &options.sessions {
        rows.push(World::start(options.connections).await?.measure(*sessions, options.rounds).await?);
    }
    Ok(rows)
}

/// A Redis and two sidecars: what the one changes, a filter hears at the other.
struct World {
    sidecars: [(Process, SocketAddr); 2],
    http: Connections,
    raw: Vec<MultiplexedConnection>,
    next: u64,
    _redis: Process,
    _folder: TempDir,
}

fn key(number: u64) -> SessionKey {
    SessionKey::of_session_id(&number.to_be_bytes())
}

impl World {
    async fn start(connections: u32) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let (redis, address) = start_redis(folder.path()).await?;
        let url = format!("redis://{address}/0");
        let sidecar = async || -> Result<(Process, SocketAddr)> {
            let address: SocketAddr = ([127, 0, 0, 1], free_port()?).into();
            let mut command = Command::new(program("mooring"));
            command.args(["serve", "--listen", &address.to_string(), "--store", &url]);
            // Nothing is forgotten while it is counted.
            command.args(["--provisional-seconds", "86400"]);
            for node in 1..=3 {
                command.args(["--node", &format!("odoo-{node}=127.0.0.1:{node}")]);
            }
            let log = folder.path().join(format!("sidecar-{}.log", address.port()));
            let mut process = Process::start("a sidecar", command, &log)?;
            let alive = async || browser::get(address, "/healthz").await.ok();
            process.wait(Duration::from_secs(10), alive).await?;
            Ok((process, address))
        };
        let sidecars = [sidecar().await?, sidecar().await?];
        let client = redis::Client::open(url)?;
        let mut raw = Vec::new();
        for _ in 0..connections {
            raw.push(client.get_multiplexed_async_connection().await?);
        }
        Ok(Self { sidecars, http: http1(), raw, next: 0, _redis: redis, _folder: folder })
    }

    async fn measure(mut self, sessions: u32, rounds: u32) -> Result<Row> {
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg} [{elapsed}]")?;
        let progress = ProgressBar::new(sessions.into()).with_style(style).with_message("sessions claimed");
        let (sidecar_before, redis_before) = (self.sidecar_mb()?, self.redis_mb().await?);
        while self.next < sessions.into() {
            self.claim_until(Instant::now() + SLICE, Some(sessions.into())).await?;
            progress.set_position(self.next);
        }
        // Look-ups fill the cache with what may be believed.
        let known = u64::from(sessions.min(20_000));
        self.look_up_until(Instant::now() + Duration::from_secs(60), known, Some(known)).await?;
        let row_memory = (self.sidecar_mb()? - sidecar_before, self.redis_mb().await? - redis_before);
        let (mut claims, mut raws, mut shares, mut lookups) = (vec![], vec![], vec![], vec![]);
        let (mut changes, mut raw_changes) = (vec![], vec![]);
        for round in 0..rounds {
            progress.set_message(format!("sessions, round {} of {rounds}", round + 1));
            let claimed = self.claim_until(Instant::now() + SLICE, None).await?;
            let raw = self.raw_until(Instant::now() + SLICE).await?;
            claims.push(claimed);
            raws.push(raw);
            shares.push(claimed / raw);
            lookups.push(self.look_up_until(Instant::now() + SLICE, known, None).await?);
            changes.extend(self.changes(round).await?);
            raw_changes.extend(self.raw_changes().await?);
        }
        progress.finish_and_clear();
        let spread = |values: Vec<f64>| Spread::of(values).context("nothing was measured");
        Ok(Row {
            sessions,
            claims_per_second: spread(claims)?,
            of_raw: spread(shares)?,
            raw_per_second: spread(raws)?,
            cached_lookups_per_second: spread(lookups)?,
            change_ms_p50: quantile(&mut changes, 0.5),
            change_ms_p99: quantile(&mut changes, 0.99),
            raw_change_ms_p50: quantile(&mut raw_changes, 0.5),
            raw_change_ms_p99: quantile(&mut raw_changes, 0.99),
            sidecar_mb: row_memory.0,
            redis_mb: row_memory.1,
        })
    }

    /// Claims new sessions over all connections until a time, or until there are so many; how many a
    /// second.
    async fn claim_until(&mut self, end: Instant, most: Option<u64>) -> Result<f64> {
        let (began, first, lanes) = (Instant::now(), self.next, self.raw.len() as u64);
        let at = self.sidecars[0].1;
        let lane = async |lane: u64| -> Result<u64> {
            let (mut client, mut number) = (Browser::new(self.http.clone(), at), first + lane);
            while Instant::now() < end && most.is_none_or(|most| number < most) {
                let claim = Claim {
                    key: key(number),
                    node: NodeId::new("odoo-1")?,
                    expect: 0,
                    origin: wire::Origin::Visit,
                };
                let answer = client.request(Method::POST, "/v1/claims", &[], wire::encode(&claim)).await?;
                ensure!(answer.status == 200, "a claim got {}: {}", answer.status, answer.text());
                number += lanes;
            }
            Ok((number - first - lane) / lanes)
        };
        let counts = futures::future::try_join_all((0..lanes).map(lane)).await?;
        self.next += counts.iter().max().copied().unwrap_or_default() * lanes;
        if let Some(most) = most {
            self.next = self.next.min(most);
        }
        Ok(counts.iter().sum::<u64>() as f64 / began.elapsed().as_secs_f64())
    }

    async fn look_up_until(&self, end: Instant, known: u64, most: Option<u64>) -> Result<f64> {
        let (began, lanes, at) = (Instant::now(), self.raw.len() as u64, self.sidecars[0].1);
        let lane = async |lane: u64| -> Result<u64> {
            let (mut client, mut number) = (Browser::new(self.http.clone(), at), lane);
            while Instant::now() < end && most.is_none_or(|most| number < most) {
                let path = format!("/v1/owners/{}", key(number % known));
                let answer = client.request(Method::GET, &path, &[], "").await?;
                ensure!(answer.status == 200, "a look-up got {}: {}", answer.status, answer.text());
                number += lanes;
            }
            Ok((number - lane) / lanes)
        };
        let counts = futures::future::try_join_all((0..lanes).map(lane)).await?;
        Ok(counts.iter().sum::<u64>() as f64 / began.elapsed().as_secs_f64())
    }

    /// The same as a claim, by EVALSHA straight from here.
    async fn raw_until(&self, end: Instant) -> Result<f64> {
        let (began, script) = (Instant::now(), Script::new(RAW));
        let lane = async |(lane, connection): (usize, &MultiplexedConnection)| -> Result<u64> {
            let (mut connection, mut count) = (connection.clone(), 0_u64);
            while Instant::now() < end {
                let name = format!("raw:owner:{{{}}}", key(((lane as u64) << 40) + count));
                let mut call = script.key(name);
                call.arg("odoo-1").arg(86_400_000);
                call.invoke_async::<(u8, String, u64, u8)>(&mut connection).await?;
                count += 1;
            }
            Ok(count)
        };
        let counts = futures::future::try_join_all(self.raw.iter().enumerate().map(lane)).await?;
        Ok(counts.iter().sum::<u64>() as f64 / began.elapsed().as_secs_f64())
    }

    /// How long a change at one sidecar takes to who watches the other, in milliseconds.
    async fn changes(&self, round: u32) -> Result<Vec<f64>> {
        let mut times = Vec::new();
        let mut cursor = self.watch(Cursor::default(), 0).await?.cursor;
        let mut claimer = Browser::new(self.http.clone(), self.sidecars[0].1);
        for number in 0..CHANGES {
            let claim = Claim {
                key: key((1 << 50) + number),
                node: NodeId::new("odoo-1")?,
                expect: u64::from(round) + 1,
                origin: wire::Origin::Visit,
            };
            let watch = self.watch(cursor, 5_000);
            let change = async {
                tokio::time::sleep(Duration::from_millis(3)).await;
                let began = Instant::now();
                let node = NodeId::new(format!("odoo-{}", 2 + round % 2))?;
                let claim = Claim { node, ..claim.clone() };
                let answer = claimer.request(Method::POST, "/v1/claims", &[], wire::encode(&claim)).await?;
                let reply: ClaimReply = wire::decode(&answer.body).context("no reply to a claim")?;
                ensure!(reply.granted, "not granted: {reply:?}");
                anyhow::Ok(began)
            };
            let heard = async { anyhow::Ok((watch.await?, Instant::now())) };
            let ((reply, at), began) = tokio::try_join!(heard, change)?;
            ensure!(reply.changes.len() == 1, "{} changes came", reply.changes.len());
            cursor = reply.cursor;
            times.push(at.saturating_duration_since(began).as_secs_f64() * 1e3);
        }
        Ok(times)
    }

    /// The changes after a cursor, whatever becomes of the nodes meanwhile.
    async fn watch(&self, cursor: Cursor, wait_ms: u32) -> Result<WatchReply> {
        let Cursor { generation, position } = cursor;
        let mut membership = 0;
        loop {
            let query = format!("generation={generation}&position={position}&membership={membership}");
            let path = format!("/v1/watch?{query}&wait_ms={wait_ms}");
            let answer = browser::get(self.sidecars[1].1, &path).await?;
            let reply: WatchReply = wire::decode(&answer.body).context("no reply to a watch")?;
            match &reply.membership {
                Some(nodes) if reply.changes.is_empty() && !reply.reset => membership = nodes.digest(),
                _ => return Ok(reply),
            }
        }
    }

    /// How long an entry of a stream takes to who reads it, in milliseconds.
    async fn raw_changes(&self) -> Result<Vec<f64>> {
        let (mut writer, mut reader) = match self.raw.as_slice() {
            [writer, reader, ..] => (writer.clone(), reader.clone()),
            _ => return Ok(vec![]),
        };
        let mut times = Vec::new();
        for _ in 0..CHANGES {
            let mut read = redis::cmd("XREAD");
            read.arg("BLOCK").arg(5_000).arg("STREAMS").arg("raw:changes").arg("$");
            let heard = async {
                let _: redis::Value = read.query_async(&mut reader).await?;
                anyhow::Ok(Instant::now())
            };
            let change = async {
                tokio::time::sleep(Duration::from_millis(3)).await;
                let began = Instant::now();
                let mut add = redis::cmd("XADD");
                add.arg("raw:changes").arg("MAXLEN").arg("~").arg(10_000).arg("*").arg("key").arg("x");
                add.exec_async(&mut writer).await?;
                anyhow::Ok(began)
            };
            let (at, began) = tokio::try_join!(heard, change)?;
            times.push(at.saturating_duration_since(began).as_secs_f64() * 1e3);
        }
        Ok(times)
    }

    /// What the first sidecar has of memory.
    fn sidecar_mb(&self) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.sidecars[0].0.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
    }

    async fn redis_mb(&self) -> Result<f64> {
        let mut connection = self.raw.first().context("no connection")?.clone();
        let info: String = redis::cmd("INFO").arg("memory").query_async(&mut connection).await?;
        let used =
            info.lines().find_map(|line| line.strip_prefix("used_memory:")).context("no used_memory")?;
        Ok(used.parse::<f64>()? / 1024.0 / 1024.0)
    }
}

fn quantile(values: &mut [f64], part: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let place = (values.len().saturating_sub(1)) as f64 * part;
    values.get(place.round() as usize).copied().unwrap_or_default()
}
