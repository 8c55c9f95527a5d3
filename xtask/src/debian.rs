//! The Debian package of the sidecar, with the filter and the configuration of a plain host.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use harness::{filter, root, static_program, target};

use crate::build;

/// What is in the package, from where (seen from the repository's root) and with what mode.
const FILES: [(&str, &str, u32); 10] = [
    ("etc/mooring/mooring.env", "envoy/systemd/mooring.env", 0o644),
    ("lib/systemd/system/mooring.service", "envoy/systemd/mooring.service", 0o644),
    ("lib/systemd/system/mooring-envoy.service", "envoy/systemd/mooring-envoy.service", 0o644),
    ("usr/lib/sysusers.d/mooring.conf", "envoy/systemd/sysusers.conf", 0o644),
    ("usr/share/doc/mooring/copyright", "LICENSE", 0o644),
    ("usr/share/doc/mooring/CHANGELOG.md", "CHANGELOG.md", 0o644),
    ("DEBIAN/conffiles", "envoy/systemd/debian/conffiles", 0o644),
    ("DEBIAN/postinst", "envoy/systemd/debian/postinst", 0o755),
    ("DEBIAN/prerm", "envoy/systemd/debian/prerm", 0o755),
    ("DEBIAN/postrm", "envoy/systemd/debian/postrm", 0o755),
];
/// Where the package has the Odoo module, in a folder that `addons_path` can name.
const ADDON: &str = "usr/lib/mooring/addon";
/// Where the package has the filter.
const FILTER: &str = "usr/lib/mooring/mooring.wasm";

/// Makes the package of what was built; returns where it is. The same files give the same bytes.
pub fn package() -> Result<PathBuf> {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let stage = target().join("debian/stage");
    if stage.exists() {
        fs::remove_dir_all(&stage)?;
    }
    let put = |name: &str, content: &[u8], mode: u32| -> Result<()> {
        let path = stage.join(name);
        fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
        fs::write(&path, content)?;
        Ok(fs::set_permissions(path, fs::Permissions::from_mode(mode))?)
    };
    let read = |path: &Path| fs::read(path).with_context(|| path.display().to_string());
    for (name, from, mode) in FILES {
        put(name, &read(&root().join(from))?, mode)?;
    }
    for path in addon(&root().join("addon"))? {
        let name = path.strip_prefix(root().join("addon"))?;
        put(&format!("{ADDON}/{}", name.display()), &read(&path)?, 0o644)?;
    }
    put("usr/bin/mooring", &read(&static_program("mooring"))?, 0o755)?;
    put(FILTER, &read(&filter())?, 0o644)?;
    let control = String::from_utf8(read(&root().join("envoy/systemd/debian/control"))?)?;
    let control =
        control.replace("@VERSION@", env!("CARGO_PKG_VERSION")).replace("@ARCHITECTURE@", architecture);
    put("DEBIAN/control", control.as_bytes(), 0o644)?;
    put("etc/mooring/envoy.yaml", bootstrap()?.as_bytes(), 0o644)?;

    let file = target().join(format!("debian/mooring_{}_{architecture}.deb", env!("CARGO_PKG_VERSION")));
    let mut command = Command::new("dpkg-deb");
    command.args(["--root-owner-group", "-Zxz", "--build"]).arg(&stage).arg(&file);
    // Nothing in it says when it was made.
    build::run(command.env("SOURCE_DATE_EPOCH", "0"))?;
    Ok(file)
}

/// The files of the Odoo module: its code, and its licences beside it.
fn addon(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() && !["__pycache__", "tests"].contains(&name.as_ref()) {
            files.extend(addon(&path)?);
        } else if path.extension().is_some_and(|it| it == "py") || name.starts_with("LICENSE") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// `envoy.yaml` with the package's own filter.
fn bootstrap() -> Result<String> {
    let text = fs::read_to_string(root().join("envoy/envoy.yaml"))?;
    let line = "filename: mooring.wasm } } # CHANGE: its full path";
    ensure!(text.contains(line), "envoy.yaml does not name mooring.wasm as it used to");
    Ok(text.replace(line, &format!("filename: /{FILTER} }} }}")))
}
