//! Logs on standard error: for people, or JSON for machines. `RUST_LOG` chooses what is said.

use std::io::{IsTerminal, stderr};

use tracing_subscriber::EnvFilter;

use crate::cli::LogFormat;

/// What is said unless `RUST_LOG` chooses. The HTTP/2 library warns of each connection that misbehaves: whoever
/// floods the sidecar would fill the disk, too. Metrics count those.
const DEFAULT: &str = "info,h2=error";

/// Starts logging.
pub(crate) fn start(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(DEFAULT));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_target(false).with_writer(stderr);
    // Colours are for people: service managers and container engines keep what is said.
    let builder = builder.with_ansi(stderr().is_terminal());
    match format {
        LogFormat::Human => builder.init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
}
