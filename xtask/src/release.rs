//! `cargo xtask release`: everything that a version consists of, and its checksums.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use clap::Args;
use harness::{filter, root, static_program, static_target, target, tools};
use serde_json::Value;

use crate::{build, debian, images};

/// Writes the software bill of materials.
const CYCLONEDX: &str = "0.5.9";

#[derive(Args)]
pub struct Options {
    /// Where to put it; must not be there yet
    #[arg(long, env = "MOORING_RELEASE_DIR", value_name = "DIR")]
    to: Option<PathBuf>,

    /// Build everything once more, in another folder, and compare
    #[arg(long, env = "MOORING_RELEASE_VERIFY")]
    verify: bool,
}

/// Builds, gathers and sums.
pub fn run(options: &Options) -> Result<()> {
    let version = env!("CARGO_PKG_VERSION");
    let folder = options.to.clone().unwrap_or_else(|| target().join(format!("mooring-{version}")));
    ensure!(!folder.exists(), "{} is there already: remove it, or name another with --to", folder.display());
    if options.verify {
        let status = Command::new("git").args(["status", "--porcelain"]).current_dir(root()).output()?;
        ensure!(status.stdout.is_empty(), "--verify builds what is committed: commit or stash what is not");
    }
    build::filter()?;
    images::all()?;
    fs::create_dir_all(&folder)?;
    let add = |from: &Path, name: &str| -> Result<()> {
        fs::copy(from, folder.join(name)).with_context(|| from.display().to_string())?;
        Ok(())
    };
    add(&static_program("mooring"), &format!("mooring-{version}-{}", static_target()))?;
    add(&filter(), &format!("mooring-{version}.wasm"))?;
    for name in images::NAMES {
        add(&images::archive(name), &format!("{name}-{version}.oci.tar"))?;
    }
    let package = debian::package()?;
    add(&package, &package.file_name().context("a package has a name")?.to_string_lossy())?;
    fs::write(folder.join(format!("mooring-{version}.cdx.json")), bill_of_materials()?)?;
    let mut names: Vec<String> = fs::read_dir(&folder)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_>>()?;
    names.sort();
    let mut sum = Command::new("sha256sum");
    let output = sum.args(&names).current_dir(&folder).output().context("cannot start sha256sum")?;
    ensure!(output.status.success(), "sha256sum failed");
    let sums = String::from_utf8(output.stdout)?;
    fs::write(folder.join("SHA256SUMS"), &sums)?;
    print!("{sums}");
    println!("in {}", folder.display());
    if options.verify { verify(&sums) } else { Ok(()) }
}

/// What the sidecar is made of, in CycloneDX.
fn bill_of_materials() -> Result<Vec<u8>> {
    let tool = target().join("tools").join(format!("cyclonedx-{CYCLONEDX}"));
    if !tool.join("bin/cargo-cyclonedx").is_file() {
        let mut install = build::cargo_command();
        install.args(["install", "cargo-cyclonedx", "--locked", "--version", CYCLONEDX, "--root"]).arg(&tool);
        install.env("CARGO_TARGET_DIR", target().join("tools/build"));
        tools::run("building cargo-cyclonedx (about two minutes, once)", install)?;
    }
    let mut command = Command::new(tool.join("bin/cargo-cyclonedx"));
    command.args(["cyclonedx", "--format", "json", "--target", &static_target()]);
    command.arg("--manifest-path").arg(root().join("sidecar/Cargo.toml"));
    command.args(["--override-filename", "bill-of-materials"]);
    tools::run("listing what the sidecar is made of", command)?;
    let bill = fs::read_to_string(root().join("sidecar/bill-of-materials.json"))?;
    for folder in [
        "affinity",
        "filter",
        "sidecar",
        "tests",
        "tests/noop-filter",
        "tests/standin",
        "tests/wasm-host",
        "xtask",
    ] {
        // It writes one beside every member of the workspace.
        let _ = fs::remove_file(root().join(folder).join("bill-of-materials.json"));
    }
    // When and where it was made is nobody's business.
    let source = format!("path+file://{}", root().display()).replace(' ', "%20");
    let mut bill: Value = serde_json::from_str(&bill.replace(&source, "path+file:///mooring"))?;
    bill.as_object_mut().context("a bill is an object")?.remove("serialNumber");
    bill["metadata"]["timestamp"] = "1970-01-01T00:00:00Z".into();
    Ok(serde_json::to_vec_pretty(&bill)?)
}

/// Builds a copy of what is committed elsewhere, and compares.
fn verify(sums: &str) -> Result<()> {
    let elsewhere = tempfile::tempdir()?;
    let source = elsewhere.path().join("a copy");
    build::run(Command::new("git").args(["clone", "--quiet"]).arg(root()).arg(&source))?;
    let to = elsewhere.path().join("again");
    let mut again = build::cargo_command();
    again.args(["xtask", "release", "--to"]).arg(&to).current_dir(&source);
    build::run(again.env_remove("CARGO_TARGET_DIR"))?;
    let other = fs::read_to_string(to.join("SHA256SUMS"))?;
    let differing: Vec<&str> = sums.lines().filter(|line| !other.contains(line)).collect();
    ensure!(differing.is_empty(), "built again, these are others:\n{}", differing.join("\n"));
    println!("built again in another folder: the same");
    Ok(())
}
