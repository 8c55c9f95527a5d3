//! Command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, ValueEnum};

/// One Odoo node: keeps session files as the chosen Odoo version does, and nothing else of Odoo.
#[derive(Debug, Parser)]
#[command(name = "odoo-standin", version)]
pub(crate) struct Args {
    /// Name of this node; every answer carries it in X-Standin-Node.
    #[arg(long, default_value = "odoo-1")]
    pub(crate) id: String,
    /// Address of the HTTP port (prefork workers); port 0 takes any free one.
    #[arg(long, default_value = "127.0.0.1:8069")]
    pub(crate) http: SocketAddr,
    /// Address of the gevent port (websocket); port 0 takes any free one.
    #[arg(long, default_value = "127.0.0.1:8072")]
    pub(crate) gevent: SocketAddr,
    /// Odoo's data_dir: session files are kept under DIR/sessions.
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: PathBuf,
    /// Stands for the PostgreSQL database: give every node the same directory.
    #[arg(long, value_name = "DIR")]
    pub(crate) shared_dir: PathBuf,
    /// Odoo version whose sessions are kept.
    #[arg(long, value_enum, default_value = "19")]
    pub(crate) profile: Profile,
    /// Age at which 19 changes the second half of a session id.
    #[arg(long, value_name = "SECONDS", default_value_t = 10_800)]
    pub(crate) rotation_secs: u64,
    /// How far this node's clock is ahead; below 0: behind.
    #[arg(long, value_name = "SECONDS", default_value_t = 0, allow_hyphen_values = true)]
    pub(crate) clock_offset_secs: i64,
    /// How long a rotated session id is still accepted.
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    pub(crate) rotation_grace_secs: u64,
}

/// An Odoo version, as far as sessions differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Profile {
    /// Session ids of 40 hex digits, pickled files.
    #[value(name = "16")]
    V16,
    /// Session ids of 84 characters, JSON files, devices traced.
    #[value(name = "18")]
    V18,
    /// As 18, with soft rotation.
    #[value(name = "19")]
    V19,
}

impl Profile {
    /// The number a user types.
    pub(crate) fn number(self) -> u8 {
        match self {
            Profile::V16 => 16,
            Profile::V18 => 18,
            Profile::V19 => 19,
        }
    }

    /// 17 and older write pickle, later versions JSON.
    pub(crate) fn pickles(self) -> bool {
        self < Profile::V18
    }

    /// 18 and later note in the session which devices used it.
    pub(crate) fn traces_devices(self) -> bool {
        self >= Profile::V18
    }

    /// 19 and later change half of an ageing session id.
    pub(crate) fn rotates_softly(self) -> bool {
        self >= Profile::V19
    }

    /// 17 and older take a session id from the query string or a header as well.
    pub(crate) fn takes_explicit_sid(self) -> bool {
        self < Profile::V18
    }
}
