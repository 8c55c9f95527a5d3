//! What `mooring cron` can be told.

use std::time::Duration;

use clap::Args;

use super::Asked;

#[derive(Debug, Args)]
pub(crate) struct Cron {
    /// How this server is called in `mooring nodes`; else its host name
    #[arg(long, env = "MOORING_CRON_NAME", value_name = "NAME")]
    pub(crate) name: Option<String>,

    /// After how long without news from here another server takes over, in seconds; the same everywhere
    #[arg(long, env = "MOORING_CRON_LEASE_SECONDS", value_name = "SECONDS", default_value_t = 30,
          value_parser = clap::value_parser!(u64).range(2..=3_600))]
    pub(crate) lease_seconds: u64,

    /// How long before that the program is asked to end (SIGTERM), in seconds; at last it is killed
    #[arg(long, env = "MOORING_CRON_STOP_SECONDS", value_name = "SECONDS", default_value_t = 10,
          value_parser = clap::value_parser!(u64).range(1..=1_800))]
    pub(crate) stop_seconds: u64,

    /// End with status 75 when the lease is lost, instead of waiting for it again: for platforms that
    /// restart what ends
    #[arg(long, env = "MOORING_CRON_EXIT_ON_LOSS")]
    pub(crate) exit_on_loss: bool,

    #[command(flatten)]
    pub(crate) asked: Asked,

    /// The program that runs on one server at a time, and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

/// Started by `mooring cron` only.
#[derive(Debug, Args)]
pub(crate) struct CronGuard {
    stop_seconds: u64,

    #[arg(last = true, required = true)]
    pub(crate) command: Vec<String>,
}

impl CronGuard {
    pub(crate) fn stop(&self) -> Duration {
        Duration::from_secs(self.stop_seconds)
    }
}
