//! A stand-in for an Odoo node: it answers a few of Odoo's routes and keeps session ids, cookies and session
//! files exactly as Odoo 16, 18 or 19 does, in milliseconds and without PostgreSQL.

mod cli;
mod codec;
mod database;
mod format;
mod jsonrpc;
mod node;
mod pages;
mod pickle;
mod reply;
mod rotation;
mod server;
mod session;
mod store;
mod visit;
mod web;
mod websocket;

use std::io::Write;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use tokio::net::{TcpListener, TcpSocket};
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::Args;
use crate::database::Database;
use crate::node::{Node, Port, Stats};
use crate::rotation::Keeper;
use crate::store::Store;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;

    session::set_clock(args.clock_offset_secs);
    let store = Store::open(args.profile, &args.data_dir)
        .with_context(|| format!("cannot use --data-dir {}", args.data_dir.display()))?;
    let database = Database::open(&args.shared_dir)
        .with_context(|| format!("cannot use --shared-dir {}", args.shared_dir.display()))?;
    let http = listen("--http", args.http)?;
    let gevent = listen("--gevent", args.gevent)?;
    let ready = serde_json::json!({
        "id": args.id,
        "http": http.local_addr()?.to_string(),
        "gevent": gevent.local_addr()?.to_string(),
    });
    let node = Arc::new(Node {
        id: args.id,
        profile: args.profile,
        keeper: Keeper {
            profile: args.profile,
            store,
            database,
            rotation: Duration::from_secs(args.rotation_secs),
            grace: Duration::from_secs(args.rotation_grace_secs),
            rotating: Mutex::new(()),
        },
        stats: Stats::default(),
    });
    tokio::spawn(server::run(node.clone(), Port::Http, http));
    tokio::spawn(server::run(node, Port::Gevent, gevent));

    // The only line on standard output: whoever started this process waits for it.
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{ready}").and_then(|()| stdout.flush()).context("cannot write to standard output")?;

    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    // At once: requests under way are lost, as with a server that dies.
    std::process::exit(0)
}

/// Connections that may wait to be accepted: thousands of browsers come at once on a machine that is busy
/// with all of them.
const BACKLOG: u32 = 4_096;

fn listen(flag: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    let listen = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    listen().with_context(|| format!("cannot listen on {flag} {address}"))
}
