//! What `mooring serve` can be told.

use std::{path::PathBuf, time::Duration};

use affinity::NodeId;
use clap::{Args, ValueEnum};

use super::{
    OrmCacheOptions,
    values::{Listen, ReplicateSpec, SessionsSpec, StoreUrl},
};
use crate::{
    node_spec::{NodeSpec, Places},
    store::{Access, Lifetimes},
};

#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// An Odoo server: ID=HOST:PORT[,gevent=HOST:PORT][,weight=N]. Repeat it, or separate several in
    /// the variable by spaces
    #[arg(long = "node", env = "MOORING_NODES", value_name = "NODE", value_delimiter = ' ')]
    pub(crate) nodes: Vec<NodeSpec>,

    /// The name of the Odoo server beside this sidecar: it is registered for all other sidecars
    #[arg(long, env = "MOORING_NODE_ID", value_name = "ID", requires = "advertise")]
    pub(crate) node_id: Option<NodeId>,

    /// Where Envoy finds that server: HOST:PORT[,gevent=HOST:PORT][,weight=N]
    #[arg(long, env = "MOORING_ADVERTISE", value_name = "PLACES", requires = "node_id")]
    pub(crate) advertise: Option<Places>,

    /// Where to listen: IP:PORT, or unix:PATH. May be repeated. Beyond loopback only with --token-file
    #[arg(
        long,
        env = "MOORING_LISTEN",
        value_name = "ADDRESS",
        value_delimiter = ' ',
        default_value = "127.0.0.1:7070"
    )]
    pub(crate) listen: Vec<Listen>,

    /// The file of the token that filters and operators must show, or of several, one a line; without one,
    /// whoever reaches an address that is listened on is trusted
    #[arg(long, env = "MOORING_TOKEN_FILE", value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,

    /// Where the directory is kept: embedded, redis://HOST:PORT/DB,
    /// redis+sentinel://HOST:PORT,HOST:PORT/MASTER or redis+cluster://HOST:PORT,HOST:PORT; with rediss
    /// in place of redis for TLS
    #[arg(
        long,
        env = "MOORING_STORE",
        value_name = "STORE",
        default_value = "embedded",
        hide_env_values = true
    )]
    pub(crate) store: StoreUrl,

    /// The folder of the embedded store; created if it is not there
    #[arg(long, env = "MOORING_STATE_DIR", value_name = "DIR", default_value = "/var/lib/mooring")]
    pub(crate) state_dir: PathBuf,

    /// What every key in Redis begins with
    #[arg(long, env = "MOORING_REDIS_PREFIX", value_name = "PREFIX", default_value = "mooring")]
    pub(crate) redis_prefix: String,

    /// The ACL user for Redis
    #[arg(long, env = "MOORING_REDIS_USER", value_name = "USER")]
    pub(crate) redis_user: Option<String>,

    /// The file that holds the password for Redis
    #[arg(long, env = "MOORING_REDIS_PASSWORD_FILE", value_name = "FILE")]
    pub(crate) redis_password_file: Option<PathBuf>,

    /// The ACL user for the Sentinels, where they want one
    #[arg(long, env = "MOORING_REDIS_SENTINEL_USER", value_name = "USER")]
    pub(crate) redis_sentinel_user: Option<String>,

    /// The file that holds the password for the Sentinels, where they want one
    #[arg(long, env = "MOORING_REDIS_SENTINEL_PASSWORD_FILE", value_name = "FILE")]
    pub(crate) redis_sentinel_password_file: Option<PathBuf>,

    /// The certificates that Redis over TLS is trusted by, in PEM; else the system's
    #[arg(long, env = "MOORING_REDIS_CA_FILE", value_name = "FILE")]
    pub(crate) redis_ca_file: Option<PathBuf>,

    /// The sessions directory of an Odoo server on this host, data_dir/sessions: ID=PATH. Its sessions
    /// are carried to the other servers. Repeat it, or separate several in the variable by spaces. Leave
    /// it off where servers share a directory or keep sessions in Redis by themselves
    #[arg(long, env = "MOORING_SESSIONS", value_name = "ID=PATH", value_delimiter = ' ')]
    pub(crate) sessions: Vec<SessionsSpec>,

    /// A directory of small files that all nodes are to have, such as an OpenID store: PATH=MODE. Directories
    /// of the same name belong together. MODE newest: the latest change of a file wins everywhere; add: files
    /// that appear are put everywhere. Repeat it, or separate several in the variable by spaces
    #[arg(long, env = "MOORING_REPLICATE", value_name = "PATH=MODE", value_delimiter = ' ')]
    pub(crate) replicate: Vec<ReplicateSpec>,

    /// The file of the secret that seals sessions and files in the store, the same for all sidecars: 32 or
    /// more characters; older secrets may follow, a line each. The embedded store makes its own
    #[arg(long, env = "MOORING_SECRET_FILE", value_name = "FILE")]
    pub(crate) secret_file: Option<PathBuf>,

    /// How many sessions a second are looked at when standbys move, or a store is filled
    #[arg(long, env = "MOORING_CARRY_RATE", value_name = "SESSIONS", default_value_t = 500,
          value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) carry_rate: u32,

    /// How long a session that began keeps its owner if nobody comes back with it, in seconds
    #[arg(long, env = "MOORING_PROVISIONAL_SECONDS", value_name = "SECONDS", default_value_t = 300,
          value_parser = clap::value_parser!(u64).range(2..=86_400))]
    pub(crate) provisional_seconds: u64,

    /// How many owners are kept at hand, at about 80 bytes each
    #[arg(long, env = "MOORING_CACHE_SESSIONS", value_name = "SESSIONS", default_value_t = 1_000_000,
          value_parser = clap::value_parser!(u64).range(100..=100_000_000))]
    pub(crate) cache_sessions: u64,

    /// How far beyond its fair share of sessions a node may go before new ones go elsewhere, as a factor
    #[arg(long, env = "MOORING_BOUNDED_LOAD", value_name = "FACTOR", default_value_t = 1.25, value_parser = factor)]
    pub(crate) bounded_load: f64,

    /// How long a session keeps its owner without being used, in seconds (Odoo's own default: 7 days)
    #[arg(long, env = "MOORING_CLAIM_LIFETIME_SECONDS", value_name = "SECONDS", default_value_t = 604_800,
          value_parser = clap::value_parser!(u64).range(60..=31_536_000))]
    pub(crate) claim_lifetime_seconds: u64,

    /// How many requests are worked on at once, and how many may wait for changes; more are refused
    #[arg(long, env = "MOORING_MOST_REQUESTS", value_name = "REQUESTS", default_value_t = 4_096,
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) most_requests: u32,

    #[command(flatten)]
    pub(crate) orm_cache: OrmCacheOptions,

    #[command(flatten)]
    pub(crate) probe: Probe,

    /// How logs look
    #[arg(long, env = "MOORING_LOG_FORMAT", value_name = "FORMAT", default_value = "human")]
    pub(crate) log_format: LogFormat,
}

impl Serve {
    /// How long owners are remembered.
    pub(crate) fn lifetimes(&self) -> Lifetimes {
        let durable = Duration::from_secs(self.claim_lifetime_seconds);
        Lifetimes { provisional: Duration::from_secs(self.provisional_seconds).min(durable), durable }
    }

    /// What is given beside the store's URL.
    pub(crate) fn access(&self) -> Access {
        Access {
            user: self.redis_user.clone(),
            password_file: self.redis_password_file.clone(),
            sentinel_user: self.redis_sentinel_user.clone(),
            sentinel_password_file: self.redis_sentinel_password_file.clone(),
            ca_file: self.redis_ca_file.clone(),
        }
    }

    /// Whether anything goes through the store that is sealed.
    pub(crate) fn seals(&self) -> bool {
        let shares = self.orm_cache.cache_socket.is_some() && self.store != StoreUrl::Embedded;
        shares || !self.sessions.is_empty() || !self.replicate.is_empty()
    }

    /// The node beside this sidecar.
    pub(crate) fn beside(&self) -> Option<NodeSpec> {
        let (id, places) = self.node_id.clone().zip(self.advertise.clone())?;
        Some(places.of(id))
    }
}

fn factor(text: &str) -> Result<f64, String> {
    let factor = text.parse().ok().filter(|factor| (1.0..=100.0).contains(factor));
    factor.ok_or_else(|| "expected a number from 1 to 100, such as 1.25".to_owned())
}

/// How nodes are probed.
#[derive(Clone, Debug, Args)]
pub(crate) struct Probe {
    /// What is asked of each node's HTTP port: below 400 is healthy (Odoo 14 and older: /web/login)
    #[arg(long, env = "MOORING_PROBE_PATH", value_name = "PATH", default_value = "/web/health")]
    pub(crate) probe_path: String,

    /// How often, in milliseconds
    #[arg(long, env = "MOORING_PROBE_INTERVAL_MS", value_name = "MS", default_value_t = 2_000,
          value_parser = clap::value_parser!(u64).range(50..=600_000))]
    pub(crate) probe_interval_ms: u64,

    /// How long an answer may take, in milliseconds
    #[arg(long, env = "MOORING_PROBE_TIMEOUT_MS", value_name = "MS", default_value_t = 2_000,
          value_parser = clap::value_parser!(u64).range(10..=600_000))]
    pub(crate) probe_timeout_ms: u64,

    /// How many probes in a row must fail before a node is down
    #[arg(long, env = "MOORING_DOWN_AFTER", value_name = "PROBES", default_value_t = 2,
          value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) down_after: u32,

    /// How many probes in a row must succeed before it is up again
    #[arg(long, env = "MOORING_UP_AFTER", value_name = "PROBES", default_value_t = 2,
          value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) up_after: u32,
}

impl Probe {
    pub(crate) fn interval(&self) -> Duration {
        Duration::from_millis(self.probe_interval_ms)
    }

    pub(crate) fn timeout(&self) -> Duration {
        Duration::from_millis(self.probe_timeout_ms)
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people
    Human,
    /// One JSON object a line
    Json,
}
