//! Mooring's proxy-wasm filter: sends each request to the Odoo node that holds its session.
//!
//! | module | what |
//! |---|---|
//! | `config` | the plugin's JSON configuration |
//! | `json` | reading JSON |
//! | `entry` | the callbacks that Envoy enters by |
//! | `vm` | the roots and streams of a VM |
//! | `root` | one per configuration: start, ticks, following the sidecar |
//! | `stream` | one per request: decision before, claim after |
//! | `router` | the nodes with their header values ready to write |
//! | `owners` | who owns which session, as far as this VM knows |
//! | `board` | what the VMs of one Envoy share |
//! | `sidecar` | calls to the sidecar, and when not to make them |
//! | `metrics` | counters and gauges, flushed on ticks |
//! | `host` | hostcalls |
//!
//! Decisions themselves (keys, rankings, plans) are `affinity`'s.

pub mod config;
pub mod entry;
pub mod json;
pub mod vm;

mod board;
mod host;
mod metrics;
mod owners;
mod root;
mod router;
mod sidecar;
mod state;
mod stream;
