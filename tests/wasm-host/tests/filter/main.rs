//! The real filter under a host that plays Envoy. One binary for all topics, because each would compile
//! the module anew. Run it with `--release`: the loops are long.

#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used)]

mod abi;
mod claims;
mod clock;
mod configuration;
mod failover;
mod following;
mod hostile;
mod lookups;
mod memory;
mod metrics;
mod outage;
mod races;
mod random;
mod resets;
mod routing;
mod sharing;
mod support;
