//! Two ways to run the same Odoo servers: behind Mooring, with a sidecar beside each and Redis; and
//! behind nginx with `ip_hash`, each with its own.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use harness::{
    browser,
    envoy::Endpoint,
    host::Host,
    node::Node,
    process::{Process, free_port},
    program,
    redis_servers::Server,
    small_disk::SmallDisk,
    stack::{Options, Stack},
    tools,
};
use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::night::Night;

/// What all sidecars share.
pub const SECRET: &str = "a secret of at least thirty-two characters";

fn local(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

/// How a sidecar is told the secret.
pub enum Secret {
    /// `--secret-file`, with this text.
    File(String),
    /// `MOORING_SECRET`.
    Variable(String),
}

/// Mooring's: a Redis, a sidecar beside Envoy that knows the nodes, and one beside each node.
pub struct Town {
    /// The disk on which the first node's sessions are, if it is a small one. It goes before the
    /// folder that it is in.
    pub disk: Option<SmallDisk>,
    pub stack: Stack,
    pub redis: Option<Server>,
    pub beside: Vec<Option<Process>>,
    /// The second node's, if it has one of its own.
    pub host: Option<Arc<Host>>,
    /// Where those answer, each on its host.
    pub beside_addresses: [SocketAddr; 3],
    /// What each of those is told of the secret when it is started.
    pub secrets: [Secret; 3],
    /// How much they log.
    pub log: &'static str,
    redis_address: SocketAddr,
    folder: TempDir,
}

impl Town {
    /// Starts it, and waits until all nodes' sessions are carried.
    pub async fn start(night: &Night) -> Result<Self> {
        Self::start_with(night, |_| ()).await
    }

    /// Starts it, with what is changed before the sidecars beside the nodes are started.
    pub async fn start_with(night: &Night, change: impl FnOnce(&mut Self)) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let host = own_host(night, folder.path()).await?;
        let redis_address = local(free_port()?);
        let redis = start_redis(redis_address, host.as_deref(), folder.path()).await?;
        let store = format!("redis://{redis_address}/0");
        let sidecar_args = ["--probe-interval-ms", "200", "--store", &store].map(str::to_owned).to_vec();
        let stack = Stack::start(Options { sidecar_args, ..options(night, host.as_ref()) }).await?;
        let disk = small_disk(night, &stack.sessions("odoo-1"))?;
        let (redis, beside) = (Some(redis), vec![None, None, None]);
        let beside_addresses = [local(free_port()?), local(free_port()?), local(free_port()?)];
        let secrets = [(); 3].map(|()| Secret::File(SECRET.to_owned()));
        let log = "info";
        let mut town =
            Self { stack, redis, beside, disk, host, beside_addresses, secrets, log, redis_address, folder };
        change(&mut town);
        for place in 0..3 {
            town.start_beside(place).await?;
        }
        town.wait_until_carried().await?;
        Ok(town)
    }

    /// Starts the sidecar beside a node.
    pub async fn start_beside(&mut self, place: usize) -> Result<()> {
        let node = self.stack.nodes.get(place).context("no such node")?;
        let host = self.host.as_ref().filter(|host| host.address == node.endpoint.http.ip());
        let Endpoint { http, gevent } = node.endpoint;
        let address = self.beside_addresses[place];
        let program = program("mooring");
        let mut command = host.map_or_else(|| Command::new(&program), |host| host.command(&program));
        command.args(["serve", "--listen", &address.to_string(), "--probe-interval-ms", "200"]);
        let redis = SocketAddr::new(
            host.map_or(self.redis_address.ip(), |host| host.near),
            self.redis_address.port(),
        );
        command.args(["--store", &format!("redis://{redis}/0"), "--node-id", &node.id]);
        command.args(["--advertise", &format!("{http},gevent={gevent}")]);
        command.args(["--sessions", &format!("{}={}", node.id, self.stack.sessions(&node.id).display())]);
        match &self.secrets[place] {
            Secret::File(text) => {
                let file = self.folder.path().join(format!("secret-{}", node.id));
                std::fs::write(&file, text)?;
                command.arg("--secret-file").arg(file);
            }
            Secret::Variable(text) => drop(command.env("MOORING_SECRET", text)),
        }
        command.env("RUST_LOG", self.log);
        let log = self.folder.path().join(format!("beside-{}.log", node.id));
        let mut process = Process::start("the sidecar beside a node", command, &log)?;
        if host.is_none() {
            let healthy = async || browser::get(address, "/healthz").await.ok();
            process.wait(Duration::from_secs(10), healthy).await?;
        }
        self.beside[place] = Some(process);
        Ok(())
    }

    /// Starts Redis where it was, empty.
    pub async fn start_redis(&mut self) -> Result<()> {
        self.redis = Some(start_redis(self.redis_address, self.host.as_deref(), self.folder.path()).await?);
        Ok(())
    }

    /// Waits until the filter knows that the nodes carry their sessions.
    async fn wait_until_carried(&self) -> Result<()> {
        for _ in 0..200 {
            let metrics = browser::get(self.stack.sidecar_address, "/v1/nodes").await?.text();
            if metrics.matches("\"carries\":true").count() == 3 {
                tokio::time::sleep(Duration::from_millis(500)).await;
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        anyhow::bail!("the nodes' sessions are not carried")
    }

    /// Which nodes have a session's file, by their places.
    pub fn holders(&self, sid: &str) -> Vec<usize> {
        let file = |place: &usize| {
            let sessions = self.stack.sessions(&self.stack.nodes[*place].id);
            sessions.join(&sid[..2]).join(sid)
        };
        (0..3).filter(|place| file(place).exists()).collect()
    }

    /// All that was logged, by whomever.
    pub fn logs(&self) -> Result<String> {
        let mut logs = String::new();
        for folder in [self.folder.path(), &self.stack.folder()] {
            for entry in std::fs::read_dir(folder)? {
                let path = entry?.path();
                if path.extension().is_some_and(|end| end == "log") {
                    logs += &String::from_utf8_lossy(&std::fs::read(path)?);
                }
            }
        }
        Ok(logs)
    }

    /// Whether the sidecar beside a node is ready: it has looked at all of the node's sessions.
    pub async fn is_ready(&self, place: usize) -> bool {
        browser::get(self.beside_addresses[place], "/readyz").await.is_ok_and(|answer| answer.status == 200)
    }

    /// A metric of the sidecar beside a node; 0 if it is not there.
    pub async fn metric(&self, place: usize, name: &str) -> Result<u64> {
        let text = browser::get(self.beside_addresses[place], "/metrics").await?.text();
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        Ok(value.unwrap_or_default())
    }

    /// What the sidecars printed that an operator should see.
    pub fn complaints(&self) -> Vec<String> {
        let printed = self.beside.iter().flatten().map(Process::printed).collect::<String>();
        let bad = printed.lines().filter(|line| {
            line.contains("ERROR")
                || line.contains("has ended")
                || line.contains("WARN")
                || line.contains("panicked")
        });
        bad.take(8).map(str::to_owned).collect()
    }
}

/// The classic recipe: nginx with `ip_hash` before the same servers.
pub struct Recipe {
    pub nodes: Vec<Node>,
    pub address: SocketAddr,
    pub disk: Option<SmallDisk>,
    pub host: Option<Arc<Host>>,
    options: Options,
    _nginx: Process,
    folder: TempDir,
}

impl Recipe {
    pub async fn start(night: &Night) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let host = own_host(night, folder.path()).await?;
        let options = options(night, host.as_ref());
        let nodes = Node::all(&options)?;
        let address = local(free_port()?);
        let nginx = start_nginx(address, &nodes, folder.path()).await?;
        let mut recipe = Self { nodes, address, disk: None, host, options, _nginx: nginx, folder };
        for place in 0..3 {
            recipe.start_node(place).await?;
        }
        recipe.disk = small_disk(night, &recipe.sessions("odoo-1"))?;
        Ok(recipe)
    }

    pub async fn start_node(&mut self, place: usize) -> Result<()> {
        let node = self.nodes.get_mut(place).context("no such node")?;
        node.start(&self.options, self.folder.path()).await
    }

    pub fn sessions(&self, id: &str) -> PathBuf {
        self.folder.path().join(id).join("sessions")
    }
}

/// The servers of either.
fn options(night: &Night, host: Option<&Arc<Host>>) -> Options {
    Options {
        profile: night.profile,
        standin_args: night.standin_args().map(str::to_owned).to_vec(),
        clock_offsets: night.clocks.clone(),
        hosts: host.map(|host| (1, Arc::clone(host))).into_iter().collect(),
        ..Options::default()
    }
}

async fn own_host(night: &Night, folder: &Path) -> Result<Option<Arc<Host>>> {
    Ok(if night.apart { Some(Arc::new(Host::start(folder).await?)) } else { None })
}

fn small_disk(night: &Night, sessions: &Path) -> Result<Option<SmallDisk>> {
    night.small_disk.then(|| SmallDisk::mount(sessions)).transpose()
}

/// A Redis that also a host of its own reaches.
async fn start_redis(address: SocketAddr, host: Option<&Host>, folder: &Path) -> Result<Server> {
    let near = host.map(|host| format!("bind 127.0.0.1 {}\nprotected-mode no", host.near));
    Server::start_at(address, folder, &near.unwrap_or_default()).await
}

/// nginx as the usual guide for Odoo has it.
async fn start_nginx(address: SocketAddr, nodes: &[Node], folder: &Path) -> Result<Process> {
    let program = tools::on_path("nginx");
    if program.is_none() {
        ensure!(rustix::process::geteuid().is_root(), "nginx is needed (Debian: sudo apt-get install nginx)");
        tools::apt(&["nginx"])?;
    }
    let program = tools::on_path("nginx").context("apt installed no nginx")?;
    let servers = |port: fn(&Endpoint) -> SocketAddr| {
        nodes.iter().map(|node| format!("server {};", port(&node.endpoint))).collect::<String>()
    };
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {}/{kind};", folder.display()))
        .concat();
    let config = format!(
        r#"daemon off; master_process off; error_log stderr crit; pid {0}/pid;
        events {{ worker_connections 4096; }}
        http {{
            access_log off; {temporary}
            set_real_ip_from 127.0.0.1; real_ip_header X-Test-IP;
            map $http_upgrade $connection_upgrade {{ default upgrade; "" close; }}
            upstream odoo {{ ip_hash; {1} }}
            upstream bus {{ ip_hash; {2} }}
            server {{
                listen {address};
                client_max_body_size 0;
                proxy_connect_timeout 2s; proxy_read_timeout 720s;
                proxy_set_header Host $host;
                proxy_set_header X-Forwarded-Host $host;
                location /websocket {{
                    proxy_pass http://bus; proxy_http_version 1.1;
                    proxy_set_header Upgrade $http_upgrade;
                    proxy_set_header Connection $connection_upgrade;
                }}
                location / {{ proxy_pass http://odoo; }}
            }}
        }}"#,
        folder.display(),
        servers(|endpoint| endpoint.http),
        servers(|endpoint| endpoint.gevent),
    );
    let path = folder.join("nginx.conf");
    std::fs::write(&path, config)?;
    let mut command = Command::new(program);
    command.arg("-p").arg(folder).arg("-c").arg(&path).args(["-e", "stderr"]);
    let mut process = Process::start("nginx", command, &folder.join("nginx.log"))?;
    process.wait(Duration::from_secs(10), async || TcpStream::connect(address).await.ok()).await?;
    Ok(process)
}
