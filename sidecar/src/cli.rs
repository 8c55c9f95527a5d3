//! The command line. Every option is also an environment variable.

use std::{net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::node_spec::NodeSpec;

/// Makes several unmodified Odoo servers behave as one.
#[derive(Debug, Parser)]
#[command(version, about, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve the filter: know the nodes, and who owns which session
    Serve(Serve),
    /// Show the nodes
    Nodes(Nodes),
}

#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// An Odoo server: ID=HOST:PORT[,gevent=HOST:PORT][,weight=N]. Repeat it, or separate several in
    /// the variable by spaces
    #[arg(long = "node", env = "MOORING_NODES", value_name = "NODE", value_delimiter = ' ', required = true)]
    pub(crate) nodes: Vec<NodeSpec>,

    /// Where to listen: a loopback IP:PORT, or unix:PATH. May be repeated
    #[arg(
        long,
        env = "MOORING_LISTEN",
        value_name = "ADDRESS",
        value_delimiter = ' ',
        default_value = "127.0.0.1:7070"
    )]
    pub(crate) listen: Vec<Listen>,

    /// Where the directory is kept: embedded, or redis://HOST:PORT/DB
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

    /// How long a session keeps its owner without being used, in seconds (Odoo's own default: 7 days)
    #[arg(long, env = "MOORING_CLAIM_LIFETIME_SECONDS", value_name = "SECONDS", default_value_t = 604_800,
          value_parser = clap::value_parser!(u64).range(60..=31_536_000))]
    pub(crate) claim_lifetime_seconds: u64,

    #[command(flatten)]
    pub(crate) probe: Probe,

    /// How logs look
    #[arg(long, env = "MOORING_LOG_FORMAT", value_name = "FORMAT", default_value = "human")]
    pub(crate) log_format: LogFormat,
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

#[derive(Debug, Args)]
pub(crate) struct Nodes {
    /// Where a sidecar listens: IP:PORT, or unix:PATH
    #[arg(long, env = "MOORING_SIDECAR", value_name = "ADDRESS", default_value = "127.0.0.1:7070")]
    pub(crate) sidecar: Listen,

    /// JSON for machines
    #[arg(long, env = "MOORING_JSON")]
    pub(crate) json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people
    Human,
    /// One JSON object a line
    Json,
}

/// Where a sidecar listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Listen {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("unix:") {
            Some("") => Err("unix: needs a path, such as unix:/run/mooring/mooring.sock".into()),
            Some(path) => Ok(Self::Unix(path.into())),
            None => text.parse().map(Self::Tcp).map_err(|_| {
                "expected IP:PORT such as 127.0.0.1:7070, or unix:PATH such as unix:/run/mooring/mooring.sock"
                    .into()
            }),
        }
    }
}

impl std::fmt::Display for Listen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "http://{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Where the directory is kept.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum StoreUrl {
    Embedded,
    /// Meant as a redis:// URL. It may hold a password and is never printed.
    Redis(String),
}

impl FromStr for StoreUrl {
    type Err = std::convert::Infallible;

    /// Refuses nothing: the parser of the command line would print what is refused. The store does.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(if text == "embedded" { Self::Embedded } else { Self::Redis(text.to_owned()) })
    }
}

impl std::fmt::Debug for StoreUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Embedded => "embedded",
            Self::Redis(_) => "redis://…",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_holds_together() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn every_option_has_a_variable() {
        let command = <Cli as clap::CommandFactory>::command();
        for sub in command.get_subcommands() {
            for option in sub.get_arguments().filter(|option| option.get_id() != "help") {
                let variable = option.get_env().and_then(|name| name.to_str());
                assert!(variable.is_some_and(|name| name.starts_with("MOORING_")), "{}", option.get_id());
            }
        }
    }

    #[test]
    fn a_store_s_password_is_not_printed() {
        let store: StoreUrl = "redis://user:secret@127.0.0.1/0".parse().unwrap();
        assert!(!format!("{store:?}").contains("secret"));
    }

    #[test]
    fn addresses_are_understood_or_explained() {
        assert_eq!("127.0.0.1:1".parse(), Ok(Listen::Tcp(([127, 0, 0, 1], 1).into())));
        assert_eq!("unix:/a b".parse(), Ok(Listen::Unix("/a b".into())));
        for bad in ["", "unix:", "localhost:1", "127.0.0.1"] {
            assert!(bad.parse::<Listen>().unwrap_err().contains("unix:"), "{bad}");
        }
    }
}
