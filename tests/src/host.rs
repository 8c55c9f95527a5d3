//! A host of its own, whose cable can be pulled.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use crate::{process::Process, tools};

/// A network namespace with a cable to this one.
#[derive(Debug)]
pub struct Host {
    /// The namespace ends with the last process in it; this one is there from the start.
    holder: Process,
    /// Its address.
    pub address: IpAddr,
    /// This side's address, as it is seen from there.
    pub near: IpAddr,
}

impl Host {
    /// Makes one.
    ///
    /// # Errors
    /// If this may not: that takes root, `ip`, `unshare` and `nsenter`.
    pub async fn start(folder: &Path) -> Result<Self> {
        let [ip, unshare] = ["ip", "unshare"].map(|name| tools::on_path(name).context(name.to_owned()));
        // 198.18.0.0/15 is for tests of networks.
        let [a, b, name]: [u8; 3] = rand::random();
        let [near, address] = [1, 2].map(|end| IpAddr::from(Ipv4Addr::new(198, 18, a, b & !3 | end)));
        let mut command = Command::new(unshare?);
        command.args(["--net", "sleep", "infinity"]);
        let holder = Process::start("a network namespace", command, &folder.join("namespace.log"))?;
        let (mut host, link) = (Self { holder, address, near }, format!("moor{a}-{b}-{name}"));
        let ip = ip?;
        let near_ip = |arguments: &str| run(Command::new(&ip).args(arguments.split(' ')));
        // It has its namespace a moment after it was started.
        let own = std::fs::read_link("/proc/self/ns/net")?;
        let theirs = PathBuf::from(format!("/proc/{}/ns/net", host.holder.id()));
        let apart = async || std::fs::read_link(&theirs).ok().filter(|other| *other != own);
        host.holder.wait(Duration::from_secs(5), apart).await?;
        near_ip(&format!("link add {link} type veth peer name eth0 netns {}", host.holder.id()))?;
        near_ip(&format!("address add {near}/30 dev {link}"))?;
        near_ip(&format!("link set {link} up"))?;
        host.far_ip(&format!("address add {address}/30 dev eth0"))?;
        // Also there without the cable: what runs on the host goes on reaching itself.
        host.far_ip("link set lo up")?;
        host.far_ip(&format!("address add {address}/32 dev lo"))?;
        host.plug()?;
        Ok(host)
    }

    /// A command that runs a program there.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.holder.id().to_string(), "--net", "--"]).arg(program);
        command
    }

    /// Pulls the cable.
    ///
    /// # Errors
    /// If `ip` fails.
    pub fn unplug(&self) -> Result<()> {
        self.far_ip("link set eth0 down")
    }

    /// Plugs it in again.
    ///
    /// # Errors
    /// If `ip` fails.
    pub fn plug(&self) -> Result<()> {
        self.far_ip("link set eth0 up")
    }

    fn far_ip(&self, arguments: &str) -> Result<()> {
        run(self.command(Path::new("ip")).args(arguments.split(' ')))
    }
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
