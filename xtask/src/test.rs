//! `cargo xtask test`: everything, from a fresh clone.

use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use console::style;
use harness::tools;
use serde_json::{Value, json};

use crate::{
    build::{self, cargo},
    debian, demo, images,
};

type Suite = (&'static str, fn() -> Result<()>);

const SUITES: [Suite; 8] = [
    ("tools", tools_are_there),
    ("format and lints", lints),
    ("build", everything_is_built),
    ("unit and property tests", unit_tests),
    ("affinity in wasm, under Node.js", affinity_in_wasm),
    ("the filter under wasmtime", || tests_of("wasm-host")),
    ("end to end", end_to_end),
    ("the demo's story", demo::once),
];

/// Runs every suite, also after one has failed, and says at the end how each went.
pub fn run() -> Result<()> {
    let mut results = Vec::new();
    for (name, suite) in SUITES {
        println!("\n{}", style(format!("── {name}")).bold());
        let started = Instant::now();
        let result = suite();
        if let Err(error) = &result {
            eprintln!("{} {error:#}", style("error:").red());
        }
        results.push((name, started.elapsed(), result));
    }
    println!();
    for (name, time, result) in &results {
        let mark = if result.is_ok() { style("✔").green() } else { style("✘").red() };
        println!(" {mark} {name:<34} {:>5.0} s", time.as_secs_f64());
    }
    let failed = results.iter().filter(|(_, _, result)| result.is_err()).count();
    if failed > 0 {
        bail!("{failed} of {} suites failed", results.len());
    }
    Ok(())
}

/// Installs what is missing, so that no suite has to.
fn tools_are_there() -> Result<()> {
    println!("Envoy         {}", tools::envoy()?.display());
    println!("redis-server  {}", tools::redis_server()?.display());
    println!("kubectl       {}", tools::kubectl()?.display());
    if tools::on_path("node").is_none() {
        tools::apt(&["nodejs"]).context("Node.js is needed")?;
    }
    println!("node          {}", tools::on_path("node").context("no node on the PATH")?.display());
    Ok(())
}

fn everything_is_built() -> Result<()> {
    build::all()?;
    images::all()?;
    println!("{}", debian::package()?.display());
    Ok(())
}

fn lints() -> Result<()> {
    cargo(&["fmt", "--all", "--check"])?;
    // Like everything else in release: what builds need is then built once.
    cargo(&["clippy", "--quiet", "--release", "--workspace", "--all-targets", "--", "--deny", "warnings"])
}

/// The tests that native code passes, in wasm: the two must give the same owners.
fn affinity_in_wasm() -> Result<()> {
    build::target("wasm32-unknown-unknown")?;
    let runner = wasm_bindgen_test_runner()?;
    let mut command = build::cargo_command();
    command.args([
        "test",
        "--release",
        "--package",
        "mooring-affinity",
        "--target",
        "wasm32-unknown-unknown",
    ]);
    command.args(["--test", "golden", "--test", "properties"]);
    command.env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_RUNNER", runner);
    build::run(&mut command)
}

/// The runner of the very version of wasm-bindgen that Cargo.lock names: others refuse to run.
fn wasm_bindgen_test_runner() -> Result<std::path::PathBuf> {
    let lock = std::fs::read_to_string(harness::root().join("Cargo.lock"))?;
    let version =
        lock.split("name = \"wasm-bindgen\"\nversion = \"").nth(1).and_then(|rest| rest.split('"').next());
    let version = version.context("Cargo.lock names no wasm-bindgen")?;
    let folder = harness::target().join("tools").join(format!("wasm-bindgen-{version}"));
    let runner = folder.join("bin/wasm-bindgen-test-runner");
    if !runner.is_file() {
        let mut install = build::cargo_command();
        // It starts Node.js, which is what takes time: built for speed it takes twice as long to build.
        install.args(["install", "--debug", "wasm-bindgen-cli", "--version", version, "--root"]).arg(&folder);
        // Not this workspace's target: its flags and profiles are not the tool's.
        install.env("CARGO_TARGET_DIR", harness::target().join("tools/build"));
        tools::run(&format!("building wasm-bindgen-cli {version} (about a minute, once)"), install)?;
    }
    Ok(runner)
}

fn end_to_end() -> Result<()> {
    if std::env::var_os("MOORING_ODOO").is_none() {
        println!("{}", style("SKIPPED: tests against a real Odoo; MOORING_ODOO names none").yellow());
    }
    tests_of("mooring-tests")
}

fn unit_tests() -> Result<()> {
    cargo(&["test", "--release", "--workspace", "--lib", "--bins"])?;
    cargo(&["test", "--release", "--workspace", "--doc"])?;
    tests_of("mooring-affinity")
}

/// Runs a package's integration tests. `--package` would choose other features for what they depend on, and
/// build it all once more.
fn tests_of(package: &str) -> Result<()> {
    let mut metadata = build::cargo_command();
    metadata.args(["metadata", "--no-deps", "--format-version", "1"]);
    let metadata: Value = serde_json::from_slice(&metadata.output().context("cannot start cargo")?.stdout)?;
    let packages = metadata["packages"].as_array().into_iter().flatten();
    let targets = packages.filter(|it| it["name"] == package).flat_map(|it| it["targets"].as_array());
    let tests = targets.flatten().filter(|target| target["kind"] == json!(["test"]));
    let names: Vec<&str> = tests.filter_map(|test| test["name"].as_str()).collect();
    ensure!(!names.is_empty(), "{package} has no tests");
    let arguments = names.into_iter().flat_map(|name| ["--test", name]);
    cargo(&["test", "--release", "--workspace"].into_iter().chain(arguments).collect::<Vec<_>>())
}
