//! The load, from `wrk`, and what it costs the proxy.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, Result, ensure};
use harness::tools;
use serde::Deserialize;
use tokio::process::Command;

/// What `wrk` does: a random one of the cookies with each request; at the end, figures for machines.
const SCRIPT: &str = r#"
local requests = {}

function init(args)
  math.randomseed(os.time())
  for cookie in io.lines(args[1]) do
    requests[#requests + 1] = wrk.format("GET", "/odoo/action-341?page=2", {
      ["Host"] = "odoo.example.com",
      ["User-Agent"] = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
      ["Accept"] = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
      ["Accept-Language"] = "en-US,en;q=0.5",
      ["Cookie"] = cookie,
    })
  end
end

function request()
  return requests[math.random(#requests)]
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '\n{"requests": %d, "micros": %d, "p50": %d, "p99": %d, "errors": %d}\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    errors.connect + errors.read + errors.write + errors.timeout + errors.status))
end
"#;

/// What a slice of the time showed.
#[derive(Clone, Copy, Debug)]
pub struct Slice {
    /// Requests a second.
    pub rate: f64,
    /// Processor time of the proxy for each request, in microseconds.
    pub cpu_us: f64,
    /// Half of the requests took no longer, in microseconds.
    pub p50_us: f64,
    /// 99 of 100 requests took no longer, in microseconds.
    pub p99_us: f64,
    /// Requests without a good answer.
    pub errors: u64,
}

/// What the script prints.
#[derive(Deserialize)]
struct Figures {
    requests: u64,
    micros: f64,
    p50: f64,
    p99: f64,
    errors: u64,
}

/// A load that is ready to run.
pub struct Load {
    wrk: PathBuf,
    script: PathBuf,
    cookies: PathBuf,
    connections: u32,
}

impl Load {
    /// A load of `cookies`; its files lie in `folder`.
    pub fn new(folder: &Path, cookies: &[String], connections: u32) -> Result<Self> {
        let wrk = tools::on_path("wrk").context("wrk is not installed")?;
        let load =
            Self { wrk, script: folder.join("load.lua"), cookies: folder.join("cookies"), connections };
        fs::write(&load.script, SCRIPT)?;
        fs::write(&load.cookies, cookies.join("\n") + "\n")?;
        Ok(load)
    }

    /// Sends requests to `address` for some seconds; the processor's time is that of `process`.
    pub async fn run(&self, address: SocketAddr, process: u32, seconds: u32) -> Result<Slice> {
        let mut command = Command::new(&self.wrk);
        command.args(["--threads", "1", "--timeout", "5s", "--duration", &format!("{seconds}s")]);
        command.args(["--connections", &self.connections.to_string(), "--script"]).arg(&self.script);
        command.arg(format!("http://{address}")).arg("--").arg(&self.cookies);
        command.stdin(Stdio::null()).stderr(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let before = processor_us(process)?;
        let output = command.output().await.context("cannot start wrk")?;
        let cpu = processor_us(process)? - before;

        let text = String::from_utf8_lossy(&output.stdout);
        let figures = text.lines().rev().find(|line| line.starts_with('{'));
        let figures = figures.and_then(|line| serde_json::from_str::<Figures>(line).ok());
        let figures = figures
            .with_context(|| format!("wrk said no figures: {}", String::from_utf8_lossy(&output.stderr)))?;
        ensure!(figures.requests > 0, "no request was answered");
        let requests = figures.requests as f64;
        Ok(Slice {
            rate: requests / figures.micros * 1e6,
            cpu_us: cpu / requests,
            p50_us: figures.p50,
            p99_us: figures.p99,
            errors: figures.errors,
        })
    }
}

/// The processor time that a process has used, in microseconds.
fn processor_us(process: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).context("the proxy has ended")?;
    // The second field is the program's name and may hold anything; after it utime and stime are the
    // twelfth and thirteenth.
    let (_, rest) = stat.rsplit_once(')').context("/proc/…/stat has no name")?;
    let ticks = rest.split_whitespace().skip(11).take(2).map(str::parse::<u64>);
    let ticks = ticks.sum::<Result<u64, _>>().context("/proc/…/stat has no times")?;
    Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64 * 1e6)
}
