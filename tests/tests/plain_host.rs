//! What a plain host with systemd gets: the Debian package, and units that hold together.

use std::{path::PathBuf, process::Command};

use anyhow::{Context, Result, ensure};
use harness::{envoy::Bootstrap, root, say, target, tools};

/// The output of a command that must succeed.
fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    let text =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    ensure!(output.status.success(), "{command:?}: {text}");
    Ok(text)
}

/// The package, as `cargo xtask release` and `test` make it.
fn package() -> Result<PathBuf> {
    let folder = target().join("debian");
    let entries = std::fs::read_dir(&folder).with_context(|| folder.display().to_string())?;
    let package = entries
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|it| it == "deb"));
    package.context("no package; `cargo xtask release` makes it")
}

#[test]
fn the_package_holds_what_it_says() -> Result<()> {
    if tools::on_path("dpkg-deb").is_none() {
        say("SKIPPED: the Debian package: no dpkg-deb here");
        return Ok(());
    }
    let (package, folder) = (package()?, tempfile::tempdir()?);
    output(Command::new("dpkg-deb").arg("--extract").arg(&package).arg(folder.path()))?;
    let version = output(Command::new(folder.path().join("usr/bin/mooring")).arg("--version"))?;
    let named = output(Command::new("dpkg-deb").arg("--field").arg(&package).arg("Version"))?;
    ensure!(version.trim() == format!("mooring {}", named.trim()), "{version} in {named}");
    let listed = output(Command::new("dpkg-deb").arg("--contents").arg(&package))?;
    ensure!(listed.lines().all(|line| line.contains(" root/root ")), "{listed}");

    // A folder for `addons_path`, with nothing in it but one module and what it may be used for.
    let addon = folder.path().join("usr/lib/mooring/addon");
    output(
        Command::new("diff")
            .args(["--recursive", "--exclude=__pycache__"])
            .args([root().join("addon/mooring"), addon.join("mooring")]),
    )?;
    let beside =
        std::fs::read_dir(&addon)?.map(|entry| Ok(entry?.file_name())).collect::<Result<Vec<_>>>()?;
    ensure!(beside.len() == 3 && addon.join("LICENSE").is_file(), "{beside:?}");

    // Its Envoy loads its own filter, and is the one that is tested otherwise.
    let text = std::fs::read_to_string(folder.path().join("etc/mooring/envoy.yaml"))?;
    let mut packaged = Bootstrap(serde_yaml_ng::from_str(&text)?);
    let filter = &mut packaged.wasm()["vm_config"]["code"]["local"]["filename"];
    let path = filter.take();
    *filter = "mooring.wasm".into();
    ensure!(packaged.0 == Bootstrap::read("envoy.yaml")?.0, "another envoy.yaml");
    let path = folder.path().join(path.as_str().context("a path")?.trim_start_matches('/'));
    ensure!(std::fs::read(path)? == std::fs::read(harness::filter())?, "another filter");
    Ok(())
}

#[test]
fn the_units_are_valid_and_confined() -> Result<()> {
    let Some(analyze) = tools::on_path("systemd-analyze") else {
        say("SKIPPED: the systemd units: no systemd-analyze here");
        return Ok(());
    };
    // The programs that they start need not be installed here.
    let folder = tempfile::tempdir()?;
    for name in ["mooring.service", "mooring-envoy.service"] {
        let unit = std::fs::read_to_string(root().join("envoy/systemd").join(name))?;
        let program = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")?.split(' ').next());
        let unit = unit.replace(program.context("it starts something")?, "/bin/true");
        std::fs::write(folder.path().join(name), unit)?;
    }
    for name in ["mooring.service", "mooring-envoy.service"] {
        let verified =
            output(Command::new(&analyze).args(["verify", "--man=no"]).arg(folder.path().join(name)))?;
        ensure!(verified.trim().is_empty(), "{verified}");
        // Of 100; a service without any of these lines has more than 90.
        let mut security = Command::new(&analyze);
        security.args(["security", "--offline=true", "--threshold=20", "--no-pager"]);
        let judged = output(security.arg(folder.path().join(name)))?;
        println!("{}", judged.lines().last().unwrap_or_default());
    }
    Ok(())
}

/// The defaults that come with the package are ones that the sidecar understands.
#[test]
fn every_setting_of_the_environment_file_is_one_of_the_sidecar_s() -> Result<()> {
    let help = output(Command::new(harness::program("mooring")).args(["serve", "--help"]))?;
    let text = std::fs::read_to_string(root().join("envoy/systemd/mooring.env"))?;
    let settings: Vec<_> = text
        .lines()
        .filter_map(|line| line.trim_start_matches('#').split_once('='))
        .map(|(name, _)| name)
        .filter(|name| name.starts_with("MOORING_"))
        .collect();
    ensure!(settings.len() > 5, "{settings:?}");
    for name in settings {
        ensure!(["=", "]"].iter().any(|end| help.contains(&format!("[env: {name}{end}"))), "no {name}");
    }
    Ok(())
}
