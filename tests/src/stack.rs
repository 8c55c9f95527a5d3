//! Several stand-ins, a sidecar and an Envoy, put together.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    browser::{self, Browser, Connections},
    envoy::{Bootstrap, Endpoint, Envoy},
    host::Host,
    node::Node,
    process::{Process, free_port},
    program, tools,
};

/// What to start.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many nodes are configured.
    pub nodes: usize,
    /// How many of them are started, from the first on.
    pub running: usize,
    /// Which Odoo the stand-ins are: 16, 18 or 19.
    pub profile: u32,
    /// Further arguments for the stand-ins.
    pub standin_args: Vec<String>,
    /// How far the clocks of the nodes are ahead, in seconds; 0 for those beyond the list.
    pub clock_offsets: Vec<i64>,
    /// Further arguments for the sidecar.
    pub sidecar_args: Vec<String>,
    /// Whether the sidecar carries the nodes' sessions.
    pub carry: bool,
    /// Envoy's worker threads.
    pub concurrency: u32,
    /// The file of `envoy/`.
    pub bootstrap: &'static str,
    /// A version of Envoy; none: the one at hand.
    pub envoy_version: Option<&'static str>,
    /// The hosts of nodes that have one of their own, by the node's place.
    pub hosts: BTreeMap<usize, Arc<Host>>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            nodes: 3,
            running: 3,
            profile: 19,
            standin_args: vec![],
            clock_offsets: vec![],
            sidecar_args: ["--probe-interval-ms", "500"].map(str::to_owned).to_vec(),
            carry: false,
            concurrency: 2,
            bootstrap: "envoy.yaml",
            envoy_version: None,
            hosts: BTreeMap::new(),
        }
    }
}

/// Everything, on loopback and in a folder of its own. Dropping it ends and removes it all.
pub struct Stack {
    /// The nodes, running or not.
    pub nodes: Vec<Node>,
    /// The sidecar, while it runs.
    pub sidecar: Option<Process>,
    /// Where the sidecar answers.
    pub sidecar_address: SocketAddr,
    /// Envoy.
    pub envoy: Envoy,
    /// Where Envoy takes requests.
    pub address: SocketAddr,
    /// What Envoy was started with.
    pub bootstrap: Bootstrap,
    options: Options,
    folder: TempDir,
}

impl Stack {
    /// Starts everything and waits until it is ready.
    ///
    /// # Errors
    /// If anything does not start.
    pub async fn start(options: Options) -> Result<Self> {
        Self::start_with(options, |_| {}).await
    }

    /// Starts everything, with a bootstrap that `change` has changed.
    ///
    /// # Errors
    /// If anything does not start.
    pub async fn start_with(options: Options, change: impl FnOnce(&mut Bootstrap)) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let mut nodes = Node::all(&options)?;
        let sidecar_address: SocketAddr = ([127, 0, 0, 1], free_port()?).into();
        for node in nodes.iter_mut().take(options.running) {
            node.start(&options, folder.path()).await?;
        }
        let sidecar = start_sidecar(sidecar_address, &nodes, &options, &folder).await?;

        let endpoints: Vec<Endpoint> = nodes.iter().map(|node| node.endpoint).collect();
        let (envoy, address, bootstrap) =
            start_envoy(&options, &endpoints, sidecar_address, folder.path(), change).await?;
        Ok(Self {
            nodes,
            sidecar: Some(sidecar),
            sidecar_address,
            envoy,
            address,
            bootstrap,
            options,
            folder,
        })
    }

    /// One more Envoy before the same nodes, with `file` of `envoy/` as `change` leaves it, and where it takes
    /// requests.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn another_envoy(
        &self,
        file: &'static str,
        change: impl FnOnce(&mut Bootstrap),
    ) -> Result<(Envoy, SocketAddr)> {
        let options = Options { bootstrap: file, ..self.options.clone() };
        let endpoints: Vec<Endpoint> = self.nodes.iter().map(|node| node.endpoint).collect();
        let started = start_envoy(&options, &endpoints, self.sidecar_address, self.folder.path(), change);
        let (envoy, address, _) = started.await?;
        Ok((envoy, address))
    }

    /// A browser that comes in through Envoy.
    pub fn browser(&self, connections: &Connections) -> Browser {
        Browser::new(connections.clone(), self.address)
    }

    /// Starts a node that is not running.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn start_node(&mut self, place: usize) -> Result<()> {
        let node = self.nodes.get_mut(place).context("no such node")?;
        node.start(&self.options, self.folder.path()).await
    }

    /// Kills a node at once.
    pub fn kill_node(&mut self, id: &str) {
        let node = self.nodes.iter_mut().find(|node| node.id == id);
        node.and_then(|node| node.process.take()).expect("a running node").kill();
    }

    /// Starts the sidecar, with the state that it left.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn start_sidecar(&mut self) -> Result<()> {
        let sidecar = start_sidecar(self.sidecar_address, &self.nodes, &self.options, &self.folder).await?;
        self.sidecar = Some(sidecar);
        Ok(())
    }

    /// Gives the sidecar further arguments when it is started next.
    pub fn add_sidecar_args(&mut self, args: &[&str]) {
        self.options.sidecar_args.extend(args.iter().map(|text| (*text).to_owned()));
    }

    /// What `mooring nodes --json` prints.
    ///
    /// # Errors
    /// If the command fails.
    pub fn mooring_nodes(&self) -> Result<Value> {
        let mut command = Command::new(program("mooring"));
        command.args(["nodes", "--json", "--sidecar", &self.sidecar_address.to_string()]);
        let output = command.output()?;
        anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// Waits until the sidecar says that a node is in a state.
    ///
    /// # Errors
    /// If that takes more than 20 s.
    pub async fn wait_for_state(&self, id: &str, state: &str) -> Result<()> {
        for _ in 0..400 {
            let report = self.mooring_nodes()?;
            let nodes = report["nodes"].as_array().context("no nodes")?;
            if nodes.iter().any(|node| node["id"] == id && node["state"] == state) {
                // The filter hears of it at once, each of its threads within 100 ms.
                tokio::time::sleep(Duration::from_millis(300)).await;
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        anyhow::bail!("{id} did not become {state}")
    }

    /// Waits until Envoy's own health checks call this many nodes healthy.
    ///
    /// # Errors
    /// If that takes more than 20 s.
    pub async fn wait_until_healthy(&self, nodes: u64) -> Result<()> {
        for _ in 0..400 {
            if self.envoy.stat("cluster.odoo.membership_healthy").await? == nodes {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        anyhow::bail!("Envoy does not call {nodes} nodes healthy")
    }

    /// Where a node keeps its sessions.
    pub fn sessions(&self, id: &str) -> PathBuf {
        self.folder.path().join(id).join("sessions")
    }

    /// The folder of this stack's files.
    pub fn folder(&self) -> PathBuf {
        self.folder.path().to_path_buf()
    }
}

/// Starts an Envoy, and waits until its filter has heard from the sidecar: then it knows the nodes.
async fn start_envoy(
    options: &Options,
    nodes: &[Endpoint],
    sidecar: SocketAddr,
    folder: &Path,
    change: impl FnOnce(&mut Bootstrap),
) -> Result<(Envoy, SocketAddr, Bootstrap)> {
    let program = options.envoy_version.map_or_else(tools::envoy, tools::envoy_of_version)?;
    let mut bootstrap = Bootstrap::read(options.bootstrap)?;
    let address: SocketAddr = ([127, 0, 0, 1], free_port()?).into();
    bootstrap.place(address.port(), free_port()?, nodes, sidecar);
    change(&mut bootstrap);
    let envoy = Envoy::start(&program, &bootstrap, folder, options.concurrency).await?;
    if !serde_json::to_string(bootstrap.http_filters())?.contains("sidecar_cluster") {
        return Ok((envoy, address, bootstrap));
    }
    for _ in 0..200 {
        if envoy.stat("wasmcustom.mooring_sidecar_polls").await? > 0 {
            // Every thread looks at the board once in 100 ms.
            tokio::time::sleep(Duration::from_millis(250)).await;
            return Ok((envoy, address, bootstrap));
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    anyhow::bail!("the filter has not heard from the sidecar; Envoy printed:\n{}", envoy.process.printed())
}

async fn start_sidecar(
    address: SocketAddr,
    nodes: &[Node],
    options: &Options,
    folder: &TempDir,
) -> Result<Process> {
    let mut command = Command::new(program("mooring"));
    command.args(["serve", "--listen", &address.to_string()]);
    command.arg("--state-dir").arg(folder.path().join("state"));
    for node in nodes {
        let Endpoint { http, gevent } = node.endpoint;
        command.args(["--node", &format!("{}={http},gevent={gevent}", node.id)]);
    }
    for node in nodes.iter().filter(|_| options.carry) {
        let sessions = folder.path().join(&node.id).join("sessions");
        command.args(["--sessions", &format!("{}={}", node.id, sessions.display())]);
    }
    command.args(&options.sidecar_args);
    let mut process = Process::start("the sidecar", command, &folder.path().join("sidecar.log"))?;
    let ready = async || browser::get(address, "/readyz").await.ok().filter(|answer| answer.status == 200);
    process.wait(Duration::from_secs(10), ready).await?;
    Ok(process)
}

/// A Redis server of its own, without persistence.
///
/// # Errors
/// If it cannot be found or does not start.
pub async fn start_redis(folder: &Path) -> Result<(Process, SocketAddr)> {
    let address: SocketAddr = ([127, 0, 0, 1], free_port()?).into();
    let mut command = Command::new(tools::redis_server()?);
    command.args([
        "--port",
        &address.port().to_string(),
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--appendonly",
        "no",
    ]);
    command.arg("--dir").arg(folder);
    let mut process = Process::start("redis-server", command, &folder.join("redis.log"))?;
    process
        .wait(Duration::from_secs(10), async || tokio::net::TcpStream::connect(address).await.ok())
        .await?;
    Ok((process, address))
}
