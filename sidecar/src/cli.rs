//! The command line. Every option is also an environment variable.

use std::path::PathBuf;

use affinity::NodeId;
use clap::{Args, Parser, Subcommand};

mod cron;
mod orm_cache;
mod serve;
mod values;

pub(crate) use self::{
    cron::{Cron, CronGuard},
    orm_cache::{Cache, OrmCacheOptions},
    serve::{LogFormat, Probe, Serve},
    values::{Listen, OdooConf, ReplicateSpec, SessionsSpec, StoreUrl},
};

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
    Serve(Box<Serve>),
    /// Show the nodes
    Nodes(Nodes),
    /// Succeed if a sidecar is well: what a container's health check runs
    Health(Health),
    /// Keep new sessions away from a node; those that it has may stay or move
    Drain(Drain),
    /// Let a drained node have new sessions again
    Undrain(Undrain),
    /// Say where a session's requests go, and why
    Owner(OwnerOf),
    /// Show what the ORM cache does
    Cache(Cache),
    /// Run a program on one server at a time, such as Odoo for scheduled jobs
    Cron(Cron),
    #[command(hide = true)]
    CronGuard(CronGuard),
    /// Say what will break, and how to mend it
    Doctor(Doctor),
    /// End sessions everywhere
    #[command(subcommand)]
    Sessions(Sessions),
}

#[derive(Debug, Subcommand)]
pub(crate) enum Sessions {
    /// End one session, or all of a node: whoever has them must log in again
    Revoke(Revoke),
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("which").required(true).multiple(false).args(["file", "node"]))]
pub(crate) struct Revoke {
    /// A file with the session id or a Cookie header, or - for the standard input. Never the id itself
    #[arg(env = "MOORING_COOKIE_FILE", value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,

    /// All sessions that this node owns
    #[arg(long, env = "MOORING_REVOKE_NODE", value_name = "ID")]
    pub(crate) node: Option<NodeId>,

    #[command(flatten)]
    pub(crate) asked: Asked,
}

/// Which sidecar a command asks.
#[derive(Clone, Debug, Args)]
pub(crate) struct Asked {
    /// Where a sidecar listens: IP:PORT, or unix:PATH
    #[arg(long, env = "MOORING_SIDECAR", value_name = "ADDRESS", default_value = "127.0.0.1:7070")]
    pub(crate) sidecar: Listen,

    /// The file of its token
    #[arg(long, env = "MOORING_TOKEN_FILE", value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// Odoo's configuration file of a node on this host: ID=PATH. Repeat it, or separate several in the
    /// variable by spaces
    #[arg(long, env = "MOORING_ODOO_CONF", value_name = "ID=PATH", value_delimiter = ' ',
          value_parser = OdooConf::of_file)]
    pub(crate) odoo_conf: Vec<OdooConf>,

    /// Envoy's admin interface: IP:PORT, or unix:PATH
    #[arg(long, env = "MOORING_ENVOY_ADMIN", value_name = "ADDRESS")]
    pub(crate) envoy: Option<Listen>,

    /// What the sidecar asks nodes for: its --probe-path
    #[arg(long, env = "MOORING_PROBE_PATH", value_name = "PATH", default_value = "/web/health")]
    pub(crate) probe_path: String,

    /// JSON for machines
    #[arg(long, env = "MOORING_JSON")]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) asked: Asked,
}

#[derive(Debug, Args)]
pub(crate) struct Drain {
    /// The node
    #[arg(env = "MOORING_DRAIN_NODE")]
    pub(crate) node: NodeId,

    /// Hand its sessions over to the other nodes
    #[arg(long = "move", env = "MOORING_DRAIN_MOVE")]
    pub(crate) move_sessions: bool,

    /// How many sessions to hand over in a second
    #[arg(long, env = "MOORING_DRAIN_RATE", value_name = "SESSIONS", default_value_t = 200,
          value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) rate: u32,

    /// Return when it owns no session that was in use within the last hour
    #[arg(long, env = "MOORING_DRAIN_WAIT")]
    pub(crate) wait: bool,

    /// Give up waiting after so many seconds
    #[arg(long, env = "MOORING_DRAIN_TIMEOUT_SECONDS", value_name = "SECONDS", default_value_t = 3_600,
          value_parser = clap::value_parser!(u64).range(1..=604_800))]
    pub(crate) timeout_seconds: u64,

    #[command(flatten)]
    pub(crate) asked: Asked,
}

#[derive(Debug, Args)]
pub(crate) struct Undrain {
    /// The node
    #[arg(env = "MOORING_DRAIN_NODE")]
    pub(crate) node: NodeId,

    #[command(flatten)]
    pub(crate) asked: Asked,
}

#[derive(Debug, Args)]
pub(crate) struct OwnerOf {
    /// A file with the session id or a Cookie header, or - for the standard input. Never the id itself:
    /// whoever can list processes would read it
    #[arg(env = "MOORING_COOKIE_FILE", value_name = "FILE")]
    pub(crate) file: PathBuf,

    /// JSON for machines
    #[arg(long, env = "MOORING_JSON")]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) asked: Asked,
}

#[derive(Debug, Args)]
pub(crate) struct Health {
    /// Only if it is ready as well: its nodes probed, its store reached, its sessions looked at
    #[arg(long, env = "MOORING_HEALTH_READY")]
    pub(crate) ready: bool,

    #[command(flatten)]
    pub(crate) asked: Asked,
}

#[derive(Debug, Args)]
pub(crate) struct Nodes {
    #[command(flatten)]
    pub(crate) asked: Asked,

    /// Show them again and again, until interrupted
    #[arg(long, env = "MOORING_WATCH", conflicts_with = "json")]
    pub(crate) watch: bool,

    /// JSON for machines
    #[arg(long, env = "MOORING_JSON")]
    pub(crate) json: bool,
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
        for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
            for option in
                sub.get_arguments().filter(|option| option.get_id() != "help" && !option.is_last_set())
            {
                let variable = option.get_env().and_then(|name| name.to_str());
                assert!(variable.is_some_and(|name| name.starts_with("MOORING_")), "{}", option.get_id());
            }
        }
    }
}
