//! Builds the filter for Envoy and the programs.

use std::{
    env, fmt, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use harness::tools;

/// What the filter needs of the SDK's callbacks. Envoy calls only what a module exports: without the
/// rest, no byte of a body and no websocket frame enters the VM, and a request enters it four times
/// instead of eight.
const EXPORTS: [&str; 12] = [
    "memory",
    "_initialize",
    "proxy_abi_version_0_2_1",
    "proxy_on_memory_allocate",
    "proxy_on_vm_start",
    "proxy_on_configure",
    "proxy_on_tick",
    "proxy_on_context_create",
    "proxy_on_request_headers",
    "proxy_on_response_headers",
    "proxy_on_http_call_response",
    "proxy_on_delete",
];

/// What was built.
pub struct Built {
    filter: PathBuf,
    bytes: u64,
    programs: Vec<PathBuf>,
}

impl fmt::Display for Built {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} KB)", self.filter.display(), self.bytes / 1000)?;
        self.programs.iter().try_for_each(|program| write!(f, "\n{}", program.display()))
    }
}

/// Builds everything that a user runs.
pub fn all() -> Result<Built> {
    cargo(&["build", "--release", "--bin", "mooring", "--bin", "odoo-standin"])?;
    filter()
}

/// Builds the filter.
pub fn filter() -> Result<Built> {
    let path = harness::target().join("mooring/mooring.wasm");
    let bytes = module("mooring-filter", "mooring", &path)?;
    let programs = ["mooring", "odoo-standin"].map(harness::program).to_vec();
    Ok(Built { filter: path, bytes, programs })
}

/// Installs the standard library of a target, unless it is there: rustup may be told not to follow
/// rust-toolchain.toml by itself.
pub fn target(name: &str) -> Result<()> {
    let rustc = env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    let mut library = Command::new(rustc);
    library.args(["--print", "target-libdir", "--target", name]).current_dir(harness::root());
    let output = library.output().context("cannot start rustc")?;
    let folder = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    if output.status.success() && folder.is_dir() {
        return Ok(());
    }
    run(Command::new("rustup").args(["target", "add", name]).current_dir(harness::root()))
        .with_context(|| format!("Rust's library for {name} is needed"))
}

/// Builds the proxy-wasm module `name` of a package as Envoy is to load it; returns its size.
pub fn module(package: &str, name: &str, to: &Path) -> Result<u64> {
    target("wasm32-wasip1")?;
    let mut command = cargo_command();
    command.args(["build", "--package", package, "--target", "wasm32-wasip1", "--profile", "wasm"]);
    // Every V8 that runs proxy-wasm modules has SIMD; BLAKE3 uses it.
    let flags = ["-Ctarget-feature=+simd128".to_owned()].into_iter().chain(remapped_paths());
    with_flags(&mut command, flags);
    run(&mut command)?;
    strip(&harness::target().join("wasm32-wasip1/wasm").join(name).with_extension("wasm"), to)
}

/// Builds the sidecar and the stand-in so that they need nothing of the system that they run on, and so that
/// the same source gives the same bytes wherever it is built.
pub fn static_programs() -> Result<()> {
    let target = harness::static_target();
    self::target(&target)?;
    if tools::on_path("musl-gcc").is_none() {
        tools::apt(&["musl-tools"]).context("musl-gcc is needed (Debian: musl-tools)")?;
    }
    let mut command = cargo_command();
    command.args([
        "build",
        "--release",
        "--target",
        &target,
        "--package",
        "mooring",
        "--package",
        "odoo-standin",
    ]);
    with_flags(&mut command, remapped_paths());
    // Of a library in C. Unlike the repository's, its path has no spaces.
    let crates = remapped_paths().into_iter().filter(|flag| flag.ends_with("=/crates"));
    let of_c: Vec<_> = crates.map(|flag| flag.replace("--remap-path-prefix", "-ffile-prefix-map")).collect();
    command.env(format!("CFLAGS_{}", target.replace('-', "_")), of_c.join(" "));
    run(&mut command)
}

/// Has a build of this workspace use flags, which may have spaces in them.
fn with_flags(command: &mut Command, flags: impl IntoIterator<Item = String>) {
    let flags: Vec<_> = flags.into_iter().collect();
    command.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
}

/// Flags that keep this machine's paths out of what is built, where panic messages would carry them.
fn remapped_paths() -> Vec<String> {
    let home = env::var("HOME").unwrap_or_default();
    let cargo = env::var("CARGO_HOME").unwrap_or_else(|_| format!("{home}/.cargo"));
    let registry = Path::new(&cargo).join("registry/src");
    let registries = fs::read_dir(registry).into_iter().flatten().flatten().map(|entry| entry.path());
    let pairs = registries.map(|path| (path, "/crates")).chain([(harness::root(), "/mooring")]);
    pairs.map(|(path, name)| format!("--remap-path-prefix={}={name}", path.display())).collect()
}

/// Keeps the exports that Envoy needs and what they need; returns the module's size.
fn strip(from: &Path, to: &Path) -> Result<u64> {
    let bytes = fs::read(from).with_context(|| from.display().to_string())?;
    let mut config = walrus::ModuleConfig::new();
    let mut module = config.generate_name_section(false).generate_producers_section(false).parse(&bytes)?;
    for name in EXPORTS {
        ensure!(module.exports.iter().any(|export| export.name == name), "the filter does not export {name}");
    }
    let unneeded: Vec<_> = module
        .exports
        .iter()
        .filter(|export| !EXPORTS.contains(&export.name.as_str()))
        .map(|e| e.id())
        .collect();
    unneeded.into_iter().for_each(|export| module.exports.delete(export));
    walrus::passes::gc::run(&mut module);
    let bytes = module.emit_wasm();
    fs::create_dir_all(to.parent().context("no folder")?)?;
    fs::write(to, &bytes)?;
    Ok(bytes.len() as u64)
}

/// Runs cargo in the workspace; it prints its own progress.
pub fn cargo(arguments: &[&str]) -> Result<()> {
    run(cargo_command().args(arguments))
}

/// Cargo in the workspace, without what the cargo that runs this program told it of its package: some
/// dependencies' build scripts look at that, and would build them once more.
pub fn cargo_command() -> Command {
    let mut command = Command::new(env!("CARGO"));
    let about_package = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
    for (name, _) in env::vars_os().filter(|(name, _)| name.to_str().is_some_and(about_package)) {
        command.env_remove(name);
    }
    command.current_dir(harness::root());
    command
}

/// Runs a command that prints for itself.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {:?}", command.get_program()))?;
    ensure!(status.success(), "{command:?} failed ({status})");
    Ok(())
}
