//! What the ORM cache can be told.

use std::{path::PathBuf, time::Duration};

use clap::Args;

use super::Asked;

/// The ORM cache of `mooring serve`.
#[derive(Clone, Debug, Args)]
pub(crate) struct OrmCacheOptions {
    /// The Unix socket on which the Odoo module finds the ORM cache; without it there is none
    #[arg(long, env = "MOORING_CACHE_SOCKET", value_name = "PATH")]
    pub(crate) cache_socket: Option<PathBuf>,

    /// How many megabytes of values are kept at hand
    #[arg(long, env = "MOORING_CACHE_MB", value_name = "MB", default_value_t = 256,
          value_parser = clap::value_parser!(u64).range(8..=1_048_576))]
    pub(crate) cache_mb: u64,

    /// How long values stay in Redis, in seconds
    #[arg(long, env = "MOORING_CACHE_SECONDS", value_name = "SECONDS", default_value_t = 86_400,
          value_parser = clap::value_parser!(u64).range(1..=31_536_000))]
    cache_seconds: u64,
}

impl OrmCacheOptions {
    /// How many bytes are kept at hand.
    pub(crate) fn bytes(&self) -> u64 {
        self.cache_mb << 20
    }

    /// How long values stay in Redis.
    pub(crate) fn lifetime(&self) -> Duration {
        Duration::from_secs(self.cache_seconds)
    }
}

/// `mooring cache`.
#[derive(Debug, Args)]
pub(crate) struct Cache {
    /// JSON for machines
    #[arg(long, env = "MOORING_JSON")]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) asked: Asked,
}
