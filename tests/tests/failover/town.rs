//! Two ways to run the same Odoo servers: behind Mooring, with a sidecar beside each and Redis; and
//! behind nginx with `ip_hash`, each with its own.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use harness::{
    browser,
    envoy::Endpoint,
    process::{Process, free_port},
    program,
    stack::{Options, Stack, start_redis},
    tools,
};
use tempfile::TempDir;
use tokio::net::TcpStream;

fn local(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

/// Mooring's: a Redis, a sidecar beside Envoy that knows the nodes, and one beside each node.
pub struct Town {
    pub stack: Stack,
    pub redis: Option<Process>,
    pub redis_address: SocketAddr,
    pub beside: Vec<Option<Process>>,
    folder: TempDir,
}

impl Town {
    /// Starts it, and waits until all nodes' sessions are carried.
    pub async fn start(profile: u32, standin_args: &[&str], clock_offsets: Vec<i64>) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let (redis, redis_address) = start_redis(folder.path()).await?;
        std::fs::write(folder.path().join("secret"), "a secret of at least thirty-two characters")?;
        let store = format!("redis://{redis_address}/0");
        let sidecar_args = ["--probe-interval-ms", "200", "--store", &store].map(str::to_owned).to_vec();
        let standin_args = standin_args.iter().map(|text| (*text).to_owned()).collect();
        let stack = Stack::start(Options {
            profile,
            sidecar_args,
            standin_args,
            clock_offsets,
            ..Options::default()
        })
        .await?;
        let mut town =
            Self { stack, redis: Some(redis), redis_address, beside: vec![None, None, None], folder };
        for place in 0..3 {
            town.start_beside(place).await?;
        }
        town.wait_until_carried().await?;
        Ok(town)
    }

    /// Starts the sidecar beside a node.
    pub async fn start_beside(&mut self, place: usize) -> Result<()> {
        let node = self.stack.nodes.get(place).context("no such node")?;
        let Endpoint { http, gevent } = node.endpoint;
        let address = local(free_port()?);
        let mut command = Command::new(program("mooring"));
        command.args(["serve", "--listen", &address.to_string(), "--probe-interval-ms", "200"]);
        command.args(["--store", &format!("redis://{}/0", self.redis_address), "--node-id", &node.id]);
        command.args(["--advertise", &format!("{http},gevent={gevent}")]);
        command.args(["--sessions", &format!("{}={}", node.id, self.stack.sessions(&node.id).display())]);
        command.arg("--secret-file").arg(self.folder.path().join("secret"));
        let log = self.folder.path().join(format!("beside-{}.log", node.id));
        let mut process = Process::start("the sidecar beside a node", command, &log)?;
        process.wait(Duration::from_secs(10), async || browser::get(address, "/healthz").await.ok()).await?;
        self.beside[place] = Some(process);
        Ok(())
    }

    /// Starts Redis again where it was, empty.
    pub async fn start_redis_again(&mut self) -> Result<()> {
        let mut command = Command::new(tools::redis_server()?);
        command.args(["--port", &self.redis_address.port().to_string(), "--bind", "127.0.0.1", "--save", ""]);
        command.arg("--dir").arg(self.folder.path());
        let mut redis = Process::start("redis-server", command, &self.folder.path().join("redis.log"))?;
        let address = self.redis_address;
        redis.wait(Duration::from_secs(10), async || TcpStream::connect(address).await.ok()).await?;
        self.redis = Some(redis);
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
    pub nodes: Vec<(String, Endpoint, Option<Process>)>,
    pub address: SocketAddr,
    profile: u32,
    standin_args: Vec<String>,
    _nginx: Process,
    folder: TempDir,
}

impl Recipe {
    pub async fn start(profile: u32, standin_args: &[&str]) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let mut nodes = Vec::new();
        for number in 1..=3 {
            let endpoint = Endpoint { http: local(free_port()?), gevent: local(free_port()?) };
            nodes.push((format!("odoo-{number}"), endpoint, None));
        }
        let address = local(free_port()?);
        let nginx = start_nginx(address, &nodes, folder.path()).await?;
        let standin_args = standin_args.iter().map(|text| (*text).to_owned()).collect();
        let mut recipe = Self { nodes, address, profile, standin_args, _nginx: nginx, folder };
        for place in 0..3 {
            recipe.start_node(place).await?;
        }
        Ok(recipe)
    }

    pub async fn start_node(&mut self, place: usize) -> Result<()> {
        let (id, endpoint, _) = self.nodes.get(place).context("no such node")?;
        let mut command = Command::new(program("odoo-standin"));
        command.args(["--id", id, "--profile", &self.profile.to_string()]);
        command.args(["--http", &endpoint.http.to_string(), "--gevent", &endpoint.gevent.to_string()]);
        command.arg("--data-dir").arg(self.folder.path().join(id));
        command.arg("--shared-dir").arg(self.folder.path().join("database")).args(&self.standin_args);
        let mut process = Process::start(id, command, &self.folder.path().join(format!("{id}.log")))?;
        let http = endpoint.http;
        process.wait(Duration::from_secs(10), async || TcpStream::connect(http).await.ok()).await?;
        self.nodes[place].2 = Some(process);
        Ok(())
    }

    pub fn sessions(&self, place: usize) -> PathBuf {
        self.folder.path().join(&self.nodes[place].0).join("sessions")
    }
}

/// nginx as the usual guide for Odoo has it.
async fn start_nginx(
    address: SocketAddr,
    nodes: &[(String, Endpoint, Option<Process>)],
    folder: &Path,
) -> Result<Process> {
    let program = tools::on_path("nginx");
    if program.is_none() {
        ensure!(rustix::process::geteuid().is_root(), "nginx is needed (Debian: sudo apt-get install nginx)");
        tools::apt(&["nginx"])?;
    }
    let program = tools::on_path("nginx").context("apt installed no nginx")?;
    let servers = |port: fn(&Endpoint) -> SocketAddr| {
        nodes.iter().map(|(_, endpoint, _)| format!("server {};", port(endpoint))).collect::<String>()
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
