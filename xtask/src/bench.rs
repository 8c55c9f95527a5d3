//! `cargo xtask bench`: what a request costs through Mooring, beside the proxies and filters that it
//! must be compared with, in one run and in turns.

use std::{
    io::{Write, stdout},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use clap::{Args, Subcommand};
use harness::tools;
use indicatif::{ProgressBar, ProgressStyle};
use rand::seq::SliceRandom;
use tokio::signal::unix::{SignalKind, signal};

use crate::build;

mod claims;
mod directory;
mod figures;
mod load;
mod orm_cache;
mod proxies;
mod replication;
mod variants;
mod wasmtime;
mod world;

use figures::Report;
use load::{Load, Slice};
use variants::{Other, Variant};
use world::World;

/// How many sessions take turns.
const SESSIONS: usize = 1_000;

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Options {
    #[command(subcommand)]
    part: Option<Part>,

    /// How many times each variant is measured
    #[arg(long, env = "MOORING_BENCH_ROUNDS", default_value_t = 8,
          value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,

    /// How long each time, in seconds
    #[arg(long, env = "MOORING_BENCH_SLICE_SECONDS", default_value_t = 2,
          value_parser = clap::value_parser!(u32).range(1..))]
    slice_seconds: u32,

    /// Connections that are kept busy
    #[arg(long, env = "MOORING_BENCH_CONNECTIONS", default_value_t = 32,
          value_parser = clap::value_parser!(u32).range(1..))]
    connections: u32,

    /// Three rounds of one second: whether it works, not how fast it is
    #[arg(long, env = "MOORING_BENCH_QUICK")]
    quick: bool,

    /// Measure only these, separated by commas
    #[arg(long, env = "MOORING_BENCH_ONLY", value_name = "VARIANTS", value_delimiter = ',')]
    only: Vec<Variant>,

    /// Measure another bootstrap like envoy/envoy.yaml as well, with another module if one is named
    #[arg(long, value_name = "NAME=FILE[,MODULE]")]
    also: Vec<Other>,

    /// Leave out the module's cost in wasmtime
    #[arg(long, env = "MOORING_BENCH_NO_WASMTIME")]
    no_wasmtime: bool,

    /// Write JSON to a file, or to the standard output in place of the table
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    json: Option<PathBuf>,
}

/// What is measured by itself.
#[derive(Subcommand)]
enum Part {
    /// Measure claims, look-ups, changes and memory of the directory beside the same Redis used directly
    Directory(directory::Options),
    /// Measure the ORM cache's socket beside the same Redis used directly
    Cache(orm_cache::Options),
    /// Measure how fast sessions reach their standby, beside a Redis session store used directly
    Replication(replication::Options),
}

impl Options {
    fn rounds(&self) -> u32 {
        if self.quick { 3 } else { self.rounds }
    }

    fn slice_seconds(&self) -> u32 {
        if self.quick { 1 } else { self.slice_seconds }
    }

    /// What is measured, in the table's order.
    fn variants(&self) -> Vec<Variant> {
        let wanted = |variant: &Variant| self.only.is_empty() || self.only.contains(variant);
        let known = Variant::ALL.into_iter().filter(wanted);
        known.chain(self.also.iter().cloned().map(Variant::Other)).collect()
    }
}

/// Builds what is measured, measures it and prints the report.
pub fn run(options: &Options) -> Result<()> {
    match &options.part {
        Some(Part::Directory(options)) => return directory::run(options),
        Some(Part::Cache(options)) => return orm_cache::run(options),
        Some(Part::Replication(options)) => return replication::run(options),
        None => {}
    }
    build::all()?;
    build::module("noop-filter", "noop_filter", &variants::noop())?;
    tools::envoy()?;
    let programs = proxies::Programs::find()?;
    // One thread: processes end with the thread that started them.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut report = runtime.block_on(async {
        let mut terminated = signal(SignalKind::terminate())?;
        let mut hung_up = signal(SignalKind::hangup())?;
        tokio::select! {
            result = measure(options, &programs) => result,
            _ = tokio::signal::ctrl_c() => anyhow::bail!("interrupted"),
            _ = terminated.recv() => anyhow::bail!("terminated"),
            _ = hung_up.recv() => anyhow::bail!("hung up"),
        }
    })?;
    let wasmtime = (!options.no_wasmtime).then(wasmtime::measure);
    let failure = report.add_wasmtime(wasmtime);
    print(options, &report)?;
    failure.map_or(Ok(()), |error| Err(error.context("the module's cost in wasmtime is not known")))
}

/// Starts everything, and gives each variant its slice in every round, each time in another order.
async fn measure(options: &Options, programs: &proxies::Programs) -> Result<Report> {
    let variants = options.variants();
    let progress = ProgressBar::new(0)
        .with_style(ProgressStyle::with_template("{bar:30} {pos}/{len} {msg} [{elapsed}, {eta} left]")?);
    progress.enable_steady_tick(Duration::from_millis(250));
    progress.set_message("starting the proxies");
    let world = World::start(variants.clone(), programs).await?;
    let load = Load::new(world.folder(), world.cookies(), options.connections)?;

    progress.set_length(u64::from(options.rounds() + 1) * variants.len() as u64);
    let mut slices: Vec<Vec<Slice>> = vec![vec![]; variants.len()];
    let mut order: Vec<usize> = (0..variants.len()).collect();
    for round in 0..=options.rounds() {
        order.shuffle(&mut rand::rng());
        for place in &order {
            let proxy = world.proxies.get(*place).context("a variant without a proxy")?;
            progress.set_message(proxy.variant.to_string());
            // The first round warms up: connections, caches, owners that must be looked up.
            let seconds = if round == 0 { 1 } else { options.slice_seconds() };
            let slice = load.run(proxy.address, proxy.process_id, seconds).await;
            let slice = slice.with_context(|| proxy.variant.to_string())?;
            ensure!(slice.errors == 0, "{}: {} requests failed", proxy.variant, slice.errors);
            if round > 0 {
                slices.get_mut(*place).context("a variant without slices")?.push(slice);
            }
            progress.inc(1);
        }
    }
    progress.finish_and_clear();
    let measured = variants.iter().map(ToString::to_string).zip(slices).collect();
    Ok(Report::new(world.about(options.rounds(), options.slice_seconds(), options.connections), measured))
}

fn print(options: &Options, report: &Report) -> Result<()> {
    match &options.json {
        None => println!("{}", report.markdown()),
        Some(path) if path.as_os_str() == "-" => {
            serde_json::to_writer_pretty(stdout(), report)?;
            writeln!(stdout())?;
        }
        Some(path) => {
            println!("{}", report.markdown());
            std::fs::write(path, serde_json::to_string_pretty(report)? + "\n")
                .with_context(|| path.display().to_string())?;
        }
    }
    Ok(())
}
