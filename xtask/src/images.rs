//! `cargo xtask images`: container images of what users run, without an engine.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context, Result};
use clap::Args;
use comfy_table::{CellAlignment, Table, presets};
use harness::{image::Image, static_program, target};
use serde::Serialize;
use serde_json::json;

use crate::build;

#[derive(Args)]
pub struct Options {
    /// Also give them to the Docker engine of this machine
    #[arg(long, env = "MOORING_IMAGES_LOAD")]
    load: bool,

    /// JSON in place of the table
    #[arg(long, env = "MOORING_JSON")]
    json: bool,
}

/// The images.
pub const NAMES: [&str; 3] = ["mooring", "mooring-filter", "odoo-standin"];
/// Nobody's in particular: what images run as unless told otherwise.
const NOBODY: u64 = 65_532;

/// An image that was made.
#[derive(Serialize)]
pub struct Made {
    image: String,
    file: PathBuf,
    bytes: u64,
    digest: String,
}

/// Builds what the images hold, makes them and prints where they are.
pub fn run(options: &Options) -> Result<()> {
    build::filter()?;
    let made = all()?;
    if options.load {
        for image in &made {
            let mut load = Command::new("docker");
            build::run(load.args(["load", "--quiet", "--input"]).arg(&image.file))?;
        }
    }
    if options.json {
        println!("{}", serde_json::to_string_pretty(&made)?);
        return Ok(());
    }
    let mut table = Table::new();
    table.load_preset(presets::UTF8_HORIZONTAL_ONLY).set_header(["image", "size", "file", "digest"]);
    for Made { image, file, bytes, digest } in &made {
        let size = format!("{:.1} MB", *bytes as f64 / 1e6);
        let file = file.strip_prefix(harness::root()).unwrap_or(file).display().to_string();
        table.add_row([image, &size, &file, digest]);
    }
    if let Some(column) = table.column_mut(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    println!("{table}");
    Ok(())
}

/// Makes all images; the filter is built already.
pub fn all() -> Result<Vec<Made>> {
    build::static_programs()?;
    fs::create_dir_all(target().join("images"))?;
    let mut made = Vec::new();
    for (name, mut image) in NAMES.into_iter().zip([sidecar()?, filter()?, standin()?]) {
        let version = env!("CARGO_PKG_VERSION");
        image.config["Labels"] = json!({
            "org.opencontainers.image.title": name,
            "org.opencontainers.image.version": version,
            "org.opencontainers.image.licenses": "Apache-2.0",
            "org.opencontainers.image.source": env!("CARGO_PKG_REPOSITORY"),
        });
        let file = archive(name);
        let digest = image.save(&file)?;
        made.push(Made { image: reference(name), bytes: fs::metadata(&file)?.len(), file, digest });
    }
    Ok(made)
}

/// Where an image is.
pub fn archive(name: &str) -> PathBuf {
    target().join("images").join(format!("{name}.tar"))
}

fn reference(name: &str) -> String {
    format!("{name}:{}", env!("CARGO_PKG_VERSION"))
}

fn program(name: &str) -> Result<Vec<u8>> {
    let path = static_program(name);
    fs::read(&path).with_context(|| path.display().to_string())
}

/// The sidecar; its own health check, and folders that volumes take their owner from.
fn sidecar() -> Result<Image> {
    let mut image = Image::new(&reference("mooring"))
        .file("mooring", program("mooring")?, 0o755, 0)
        .folder("run/mooring", 0o750, NOBODY)
        .folder("var/lib/mooring", 0o700, NOBODY);
    image.config = json!({
        "User": format!("{NOBODY}:{NOBODY}"),
        "Entrypoint": ["/mooring"],
        "Cmd": ["serve"],
        // For `docker exec … mooring nodes`.
        "Env": ["PATH=/"],
        "Healthcheck": {"Test": ["CMD", "/mooring", "health"], "Interval": 5_000_000_000_u64},
    });
    Ok(image)
}

/// The filter, as Istio and Envoy Gateway fetch it.
fn filter() -> Result<Image> {
    let module = fs::read(harness::filter())?;
    Ok(Image::new(&reference("mooring-filter")).file("plugin.wasm", module, 0o644, 0))
}

/// The Odoo stand-in, for the demo.
fn standin() -> Result<Image> {
    let mut image = Image::new(&reference("odoo-standin"))
        .file("odoo-standin", program("odoo-standin")?, 0o755, 0)
        .folder("var/lib/odoo", 0o755, NOBODY);
    image.config = json!({"User": format!("{NOBODY}:{NOBODY}"), "Entrypoint": ["/odoo-standin"]});
    Ok(image)
}
