//! The project's own commands: `cargo xtask build`, `images`, `release`, `demo`, `test`, `bench`.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod bench;
mod build;
mod debian;
mod demo;
mod images;
mod release;
mod report;
mod test;

/// Builds, shows, tests and measures Mooring.
#[derive(Parser)]
#[command(name = "cargo xtask", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build the filter (target/mooring/mooring.wasm), the sidecar and the Odoo stand-in
    Build,
    /// Build container images of the sidecar, the filter and the Odoo stand-in
    Images(images::Options),
    /// Build what a version consists of: programs, images, a Debian package, a bill of materials, checksums
    Release(release::Options),
    /// Start three stand-ins, the sidecar and Envoy, and show what Mooring does
    Demo(demo::Options),
    /// Run every test; what is missing is installed
    Test,
    /// Measure Mooring beside bare Envoy, a filter that does nothing, and what else sticks sessions
    Bench(bench::Options),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Build => build::all().map(|built| println!("{built}")),
        Command::Images(options) => images::run(&options),
        Command::Release(options) => release::run(&options),
        Command::Demo(options) => demo::run(&options),
        Command::Test => test::run(),
        Command::Bench(options) => bench::run(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
