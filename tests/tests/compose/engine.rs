//! A Docker engine of the test's own, on a host of its own: it knows no image but those that it is given,
//! and nothing of it is left.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use harness::{host::Host, image::Image, process::Process, root, tools};
use tempfile::TempDir;

/// A running engine.
pub(crate) struct Engine {
    daemon: Option<Process>,
    host: Host,
    compose: PathBuf,
    socket: String,
    folder: TempDir,
}

impl Engine {
    /// Starts one.
    ///
    /// # Errors
    /// If none can run here.
    pub(crate) async fn start() -> Result<Self> {
        for (program, package) in [("dockerd", "docker.io"), ("docker-compose", "docker-compose")] {
            if tools::on_path(program).is_none() {
                tools::apt(&[package]).with_context(|| format!("{program} is needed"))?;
            }
        }
        let folder = tempfile::tempdir()?;
        let host = Host::start(folder.path()).await?;
        let at = |name: &str| folder.path().join(name).display().to_string();
        let socket = format!("unix://{}", at("docker.sock"));
        // With processes and mounts of its own: the kernel ends and unmounts all of them with it.
        let mut command = host.command(Path::new("unshare"));
        command.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "dockerd"]);
        command.args(["--host", &socket, "--data-root", &at("data"), "--exec-root", &at("run")]);
        command.args(["--pidfile", &at("pid"), "--log-level", "warn"]);
        let daemon = Process::start("dockerd", command, &folder.path().join("dockerd.log"))?;
        let compose = tools::on_path("docker-compose").context("docker-compose")?;
        let mut engine = Self { daemon: Some(daemon), host, compose, socket, folder };
        let info = || {
            Command::new("docker")
                .args(["info", "--format", "{{.ServerVersion}}"])
                .env("DOCKER_HOST", &engine.socket)
                .output()
        };
        let answers = async || info().ok().filter(|output| output.status.success());
        let daemon = engine.daemon.as_mut().context("just started")?;
        daemon.wait(Duration::from_secs(30), answers).await?;
        Ok(engine)
    }

    /// Where a port of a container is found that the stack publishes.
    pub(crate) fn published(&self, port: u16) -> SocketAddr {
        (self.host.address, port).into()
    }

    /// Where the engine keeps a volume of the stack's.
    pub(crate) fn volume(&self, name: &str) -> PathBuf {
        self.folder.path().join("data/volumes").join(format!("mooring_{name}")).join("_data")
    }

    /// Takes an image from an archive.
    pub(crate) fn load(&self, archive: &Path) -> Result<()> {
        self.docker(&["load", "--quiet", "--input", &archive.display().to_string()]).map(drop)
    }

    /// Takes an image that is made now.
    pub(crate) fn import(&self, image: &Image) -> Result<()> {
        let archive = self.folder.path().join("image.tar");
        image.save(&archive)?;
        self.load(&archive)
    }

    /// `docker …`, and what it printed.
    pub(crate) fn docker(&self, arguments: &[&str]) -> Result<String> {
        self.run(Command::new("docker").args(arguments))
    }

    /// `docker compose …` in the folder of the stack, and what it printed.
    pub(crate) fn compose(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.compose);
        command
            .args(arguments)
            .current_dir(root().join("envoy/compose"))
            .env("MOORING_WASM", harness::filter());
        self.run(&mut command)
    }

    fn run(&self, command: &mut Command) -> Result<String> {
        let Output { status, stdout, stderr } = command.env("DOCKER_HOST", &self.socket).output()?;
        ensure!(status.success(), "{command:?}: {}", String::from_utf8_lossy(&stderr));
        Ok(String::from_utf8(stdout)?)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Some(daemon) = self.daemon.take() {
            // What it did not end, the kernel does.
            let _ = daemon.terminate();
        }
    }
}
