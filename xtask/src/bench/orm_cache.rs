//! `cargo xtask bench cache`: a value's way over the ORM cache's socket, from Rust and from Python, beside the
//! same Redis used directly by the same process in the same run, in turns.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::Args;
use harness::{
    orm_cache::{CacheClient, CacheSidecar, Found, SECRET, key},
    redis_servers::Server,
    root,
};
use redis::AsyncCommands;
use serde::{Deserialize, Serialize};

use super::figures::table;
use crate::build;

#[derive(Args)]
pub struct Options {
    /// How many times each thing is done
    #[arg(long, env = "MOORING_BENCH_TIMES", default_value_t = 1_000,
          value_parser = clap::value_parser!(u32).range(20..=100_000))]
    times: u32,

    /// JSON in place of the table
    #[arg(long, env = "MOORING_JSON")]
    json: bool,
}

const SCRIPT: &str = include_str!("orm_cache.py");
const SIZES: [(&str, usize); 2] = [("1 KB", 1 << 10), ("600 KB", 600 << 10)];
const MEGABYTES: &str = "64";

/// How long something took, in microseconds.
#[derive(Clone, Copy, Serialize)]
struct Times {
    p50_us: f64,
    p99_us: f64,
}

impl Times {
    fn of(mut seconds: Vec<f64>) -> Self {
        seconds.sort_by(f64::total_cmp);
        let at =
            |share: f64| seconds.get((seconds.len() as f64 * share) as usize).copied().unwrap_or_default();
        Self { p50_us: at(0.5) * 1e6, p99_us: at(0.99) * 1e6 }
    }
}

/// What was measured from one language with one size.
#[derive(Serialize)]
struct Row {
    from: &'static str,
    size: String,
    times: BTreeMap<String, Times>,
}

#[derive(Serialize)]
struct Figures {
    rows: Vec<Row>,
    /// What the sidecar held at the end, and was allowed to.
    held_bytes: u64,
    most_bytes: u64,
}

type Samples = BTreeMap<String, Vec<f64>>;

fn row(from: &'static str, size: String, samples: Samples) -> Row {
    Row { from, size, times: samples.into_iter().map(|(name, seconds)| (name, Times::of(seconds))).collect() }
}

/// Measures and prints.
pub fn run(options: &Options) -> Result<()> {
    build::all()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let figures = runtime.block_on(async {
        tokio::select! {
            figures = measure(options.times) => figures,
            _ = tokio::signal::ctrl_c() => anyhow::bail!("interrupted"),
        }
    })?;
    if options.json {
        println!("{}", serde_json::to_string_pretty(&figures)?);
    } else {
        print!("{}", markdown(&figures));
    }
    Ok(())
}

fn markdown(figures: &Figures) -> String {
    let head = ["from", "value", "get", "Redis GET", "put", "Redis SET", "get and decode"];
    let line = |row: &Row| {
        let show = |name: &str| {
            row.times
                .get(name)
                .map_or("–".to_owned(), |times| format!("{:.0} / {:.0}", times.p50_us, times.p99_us))
        };
        let [get, redis_get, put, redis_set, decoded] =
            ["get", "redis_get", "put", "redis_set", "get_and_decode"].map(show);
        [row.from.to_owned(), row.size.clone(), get, redis_get, put, redis_set, decoded]
    };
    let megabytes = |bytes: u64| bytes >> 20;
    format!(
        "{}\nMicroseconds, p50 / p99. The sidecar holds {} of at most {} MB.\n",
        table(&head, figures.rows.iter().map(line)),
        megabytes(figures.held_bytes),
        megabytes(figures.most_bytes)
    )
}

async fn measure(times: u32) -> Result<Figures> {
    let folder = tempfile::tempdir()?;
    let redis = Server::start(folder.path(), "").await?;
    let arguments = ["--cache-mb", MEGABYTES];
    let sidecar = CacheSidecar::start(folder.path(), Some((redis.address, SECRET)), &arguments).await?;
    let mut rows = from_rust(&sidecar, redis.address, times).await?;
    rows.extend(from_python(&sidecar.socket, redis.address, times)?);
    let report = sidecar.report()?;
    let number = |name: &str| report[name].as_u64().context("no such number");
    let (held_bytes, most_bytes) = (number("bytes")?, number("most_bytes")?);
    ensure!(held_bytes <= most_bytes, "the bound does not hold: {report}");
    Ok(Figures { rows, held_bytes, most_bytes })
}

/// The result of something, whose time is added to the samples of its name.
async fn timed<T>(samples: &mut Samples, name: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    let began = Instant::now();
    let result = work.await?;
    samples.entry(name.to_owned()).or_default().push(began.elapsed().as_secs_f64());
    Ok(result)
}

async fn from_rust(sidecar: &CacheSidecar, address: SocketAddr, times: u32) -> Result<Vec<Row>> {
    let mut client: CacheClient = sidecar.connect().await?;
    let redis = redis::Client::open(format!("redis://{address}"))?;
    let mut redis = redis.get_multiplexed_async_connection().await?;
    redis.set_response_timeout(Duration::from_secs(5));
    let mut rows = Vec::new();
    for (size, bytes) in SIZES {
        let (mut samples, value) = (Samples::new(), vec![b'x'; bytes]);
        for number in 0..times {
            let (name, own) = (format!("bench:{number}"), key(u64::from(number) << 20 | bytes as u64));
            timed(&mut samples, "put", client.put(own, 0, (1, 1), &value)).await?;
            let set = async { Ok(redis.pset_ex::<_, _, ()>(&name, &value, 1_000).await?) };
            timed(&mut samples, "redis_set", set).await?;
            let found = timed(&mut samples, "get", client.get(own, 0)).await?;
            ensure!(matches!(found, Found::Value(found) if found == value), "another value came back");
            let get = async { Ok(redis.get::<_, Vec<u8>>(&name).await?) };
            ensure!(timed(&mut samples, "redis_get", get).await? == value, "another value came back");
        }
        rows.push(row("Rust", size.to_owned(), samples));
    }
    Ok(rows)
}

#[derive(Deserialize)]
struct Printed {
    size: String,
    seconds: Samples,
}

fn from_python(socket: &Path, redis: SocketAddr, times: u32) -> Result<Vec<Row>> {
    let mut command = Command::new("python3");
    command.arg("-c").arg(SCRIPT).arg(socket).arg(redis.port().to_string()).arg(times.to_string());
    command.env("PYTHONPATH", root().join("addon")).env("PYTHONDONTWRITEBYTECODE", "1");
    let output = command.output().context("python3")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = output.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines
        .map(|line| {
            let Printed { size, seconds } = serde_json::from_slice(line)?;
            Ok(row("Python", size, seconds))
        })
        .collect()
}
