//! Stand-ins for images that cannot be pulled, made of this machine's own programs.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use harness::{image::Image, tools};

/// What `prepare.sh` and the health check of Redis call.
const SHELL: [&str; 9] = ["sh", "cat", "chmod", "chown", "grep", "head", "mv", "od", "tr"];

/// Redis with a shell, as `redis:…-alpine` has one.
pub(crate) fn redis(reference: &str) -> Result<Image> {
    let server = tools::redis_server()?;
    let client = server.with_file_name("redis-cli");
    let mut image = with_program(system(reference), &server)?;
    image = with_program(image, &client)?;
    for name in SHELL {
        image = with_program(image, &tools::on_path(name).with_context(|| format!("no {name} here"))?)?;
    }
    Ok(image)
}

/// Envoy.
pub(crate) fn envoy(reference: &str) -> Result<Image> {
    let program = tools::envoy()?;
    let image = with_libraries(system(reference), &program)?;
    Ok(image.file("usr/bin/envoy", fs::read(program)?, 0o755, 0))
}

/// A file system that is merged below `/usr`, as Debian's.
fn system(reference: &str) -> Image {
    let links = ["bin", "lib", "lib64"];
    links
        .iter()
        .fold(Image::new(reference), |image, name| image.link(name, format!("usr/{name}")))
        .folder("tmp", 0o1777, 0)
}

fn with_program(image: Image, program: &Path) -> Result<Image> {
    let name = program.file_name().context("a program has a name")?;
    let image = with_libraries(image, program)?;
    Ok(image.file(Path::new("usr/bin").join(name), fs::read(program)?, 0o755, 0))
}

/// Adds what the dynamic loader would look for.
fn with_libraries(mut image: Image, program: &Path) -> Result<Image> {
    let output = Command::new("ldd").arg(program).output().context("cannot start ldd")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "ldd {}: {text}", program.display());
    let paths = text.split_whitespace().filter(|word| word.starts_with('/') && !word.ends_with(':'));
    for path in paths.map(PathBuf::from) {
        let below_usr = if path.starts_with("/usr") {
            path.clone()
        } else {
            Path::new("/usr").join(path.strip_prefix("/")?)
        };
        image = image.file(below_usr, fs::read(&path).with_context(|| path.display().to_string())?, 0o755, 0);
    }
    Ok(image)
}
