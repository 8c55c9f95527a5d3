//! `mooring`: the sidecar and the operator's commands.

use std::process::ExitCode;

use clap::Parser;

mod api;
mod asking;
mod cache;
mod cli;
mod client;
mod cookie_file;
mod directory;
mod drain_command;
mod health_command;
mod heartbeat;
mod limit;
mod logging;
mod metrics;
mod node_spec;
mod nodes_command;
mod owner_command;
mod probe;
mod registry;
mod serve;
mod sessions;
mod sessions_command;
mod store;
mod token;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&format!("cannot start: {error}")),
    };
    let result = runtime.block_on(async {
        match cli.command {
            cli::Command::Serve(options) => {
                logging::start(options.log_format);
                serve::run(*options).await.map_err(|error| error.to_string())
            }
            cli::Command::Health(options) => {
                health_command::run(options).await.map_err(|error| error.to_string())
            }
            cli::Command::Nodes(options) => {
                nodes_command::run(options).await.map_err(|error| error.to_string())
            }
            cli::Command::Drain(options) => {
                drain_command::drain(options).await.map_err(|error| error.to_string())
            }
            cli::Command::Undrain(options) => {
                drain_command::undrain(options).await.map_err(|error| error.to_string())
            }
            cli::Command::Sessions(cli::Sessions::Revoke(options)) => {
                sessions_command::revoke(options).await.map_err(|error| error.to_string())
            }
            cli::Command::Owner(options) => {
                owner_command::run(options).await.map_err(|error| error.to_string())
            }
        }
    });
    result.map_or_else(|error| failed(&error), |()| ExitCode::SUCCESS)
}

/// Says what is wrong on standard error, where people and service managers look.
#[allow(clippy::print_stderr)]
fn failed(problem: &str) -> ExitCode {
    eprintln!("mooring: {problem}");
    ExitCode::FAILURE
}
