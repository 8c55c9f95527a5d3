//! What the module costs without Envoy, as `wasm-bench` of `tests/wasm-host` measures it.

use std::{collections::BTreeMap, process::Stdio};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

/// What `wasm-bench --json` prints.
#[derive(Deserialize, Serialize)]
pub struct Wasmtime {
    pub cases: Vec<Case>,
}

/// One kind of request.
#[derive(Deserialize, Serialize)]
pub struct Case {
    pub name: String,
    pub ns_median: f64,
    pub ns_q1: f64,
    pub ns_q3: f64,
    /// Of the median, what the host and its calls took: the rest is the module's.
    pub ns_in_hostcalls: f64,
    /// Calls of each host function in one request.
    pub hostcalls: BTreeMap<String, f64>,
}

/// Builds and runs `wasm-bench`.
pub fn measure() -> Result<Wasmtime> {
    let mut command = crate::build::cargo_command();
    command.args(["run", "--release", "--quiet", "--bin", "wasm-bench"]);
    command.args(["--", "--json"]);
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "wasm-bench failed ({})", output.status);
    serde_json::from_slice(&output.stdout).context("wasm-bench printed something else than expected")
}
