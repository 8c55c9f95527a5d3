//! `mooring`: the sidecar and the operator's commands.

use std::process::ExitCode;

use clap::Parser;

mod api;
mod asking;
mod cache;
mod cache_command;
mod cli;
mod client;
mod cookie_file;
mod cron;
mod descriptors;
mod directory;
mod doctor;
mod door;
mod drain_command;
mod files;
mod foreign;
mod health_command;
mod heartbeat;
mod lasting;
mod limit;
mod lists;
mod logging;
mod metrics;
mod node_spec;
mod nodes_command;
mod orm_cache;
mod owner_command;
mod private;
mod probe;
mod registry;
mod replicate;
mod secret_file;
mod serve;
mod sessions;
mod sessions_command;
mod store;
mod terminal;
mod token;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&format!("cannot start: {error}")),
    };
    runtime.block_on(run(cli.command)).unwrap_or_else(|error| failed(&error))
}

async fn run(command: cli::Command) -> Result<ExitCode, String> {
    fn text<E: std::fmt::Display>(error: E) -> String {
        error.to_string()
    }
    match command {
        cli::Command::Serve(options) => {
            logging::start(options.log_format);
            serve::run(*options).await.map_err(text)?;
        }
        cli::Command::Cron(options) => {
            logging::start(cli::LogFormat::Human);
            return cron::run(options).await.map_err(text);
        }
        cli::Command::CronGuard(options) => return cron::guard(options).await.map_err(text),
        cli::Command::Doctor(options) => return Ok(doctor::run(options).await),
        cli::Command::Health(options) => health_command::run(options).await.map_err(text)?,
        cli::Command::Nodes(options) => nodes_command::run(options).await.map_err(text)?,
        cli::Command::Drain(options) => drain_command::drain(options).await.map_err(text)?,
        cli::Command::Undrain(options) => drain_command::undrain(options).await.map_err(text)?,
        cli::Command::Cache(options) => cache_command::run(options).await.map_err(text)?,
        cli::Command::Owner(options) => owner_command::run(options).await.map_err(text)?,
        cli::Command::Sessions(cli::Sessions::Revoke(options)) => {
            sessions_command::revoke(options).await.map_err(text)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Says what is wrong on standard error, where people and service managers look.
#[allow(clippy::print_stderr)]
fn failed(problem: &str) -> ExitCode {
    eprintln!("mooring: {problem}");
    ExitCode::FAILURE
}
