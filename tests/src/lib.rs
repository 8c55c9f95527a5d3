//! Starts what the end-to-end tests and the demo need: Odoo stand-ins, the sidecar, Envoy and Redis,
//! each a real process on loopback that ends with its owner; and browsers that use them.

pub mod browser;
pub mod cable;
pub mod crowd;
pub mod envoy;
pub mod fake_node;
pub mod host;
pub mod image;
pub mod node;
pub mod odoo;
pub mod orm_cache;
pub mod person;
pub mod process;
pub mod redis_servers;
pub mod schema;
pub mod small_disk;
pub mod stack;
pub mod tools;
pub mod witnesses;

use std::{
    io::Write,
    path::{Path, PathBuf},
};

/// The root of the repository.
pub fn root() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests).to_path_buf()
}

/// Where cargo puts what it builds.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Where `cargo xtask build` puts the filter.
pub fn filter() -> PathBuf {
    std::env::var_os("MOORING_WASM").map_or_else(|| target().join("mooring/mooring.wasm"), PathBuf::from)
}

/// The target of programs that need nothing of the system that they run on.
pub fn static_target() -> String {
    format!("{}-unknown-linux-musl", std::env::consts::ARCH)
}

/// A program of this workspace that needs nothing of the system that it runs on, as `cargo xtask images`
/// built it.
pub fn static_program(name: &str) -> PathBuf {
    target().join(static_target()).join("release").join(name)
}

/// A program of this workspace, as `cargo xtask build` built it.
pub fn program(name: &str) -> PathBuf {
    target().join("release").join(name)
}

/// Prints a line also where the test harness keeps what tests print to itself.
pub fn say(line: &str) {
    // Who cannot be told cannot be told that either.
    let _ = writeln!(std::io::stderr(), "{line}");
}
