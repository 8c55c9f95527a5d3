//! Everything that runs while it is measured: one set of backends, a sidecar, and a proxy for each
//! variant, all started once.

use std::{collections::BTreeSet, net::SocketAddr, path::Path, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use harness::{
    browser::{self, Browser, Method, http1, random_sid},
    envoy::{Endpoint, Envoy},
    process::{Process, free_port},
    program, tools,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    SESSIONS, claims,
    proxies::Programs,
    variants::{NODE_COOKIE, Place, Variant, bootstrap},
};

/// How many nodes there are.
const NODES: usize = 3;

/// A proxy that requests can be sent to.
pub struct Proxy {
    pub variant: Variant,
    pub address: SocketAddr,
    pub process_id: u32,
    _running: Running,
}

enum Running {
    Envoy { _envoy: Envoy },
    Other { _process: Process },
}

/// The proxies and what is around them. Dropping it ends and removes it all.
pub struct World {
    pub proxies: Vec<Proxy>,
    cookies: Vec<String>,
    nodes: Vec<Endpoint>,
    _backends: Process,
    _sidecar: Process,
    folder: TempDir,
}

impl World {
    /// Starts everything, and makes sure that sessions stick where they should.
    pub async fn start(variants: Vec<Variant>, programs: &Programs) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let mut nodes = Vec::new();
        for _ in 0..NODES {
            nodes.push(Endpoint { http: local(free_port()?), gevent: local(free_port()?) });
        }
        let backends = programs.start_backends(&nodes, folder.path()).await?;
        let sidecar_address = local(free_port()?);
        let sidecar = start_sidecar(sidecar_address, &nodes, folder.path()).await?;
        let sids: Vec<String> = (0..SESSIONS).map(|_| random_sid()).collect();
        let names: Vec<String> = (0..NODES).map(name).collect();
        claims::claim_all(sidecar_address, &sids, &names).await?;

        let mut proxies = Vec::new();
        for variant in variants {
            let proxy = start_proxy(&variant, programs, &nodes, sidecar_address, folder.path()).await;
            proxies.push(proxy.with_context(|| variant.to_string())?);
        }
        let cookies = cookies(&proxies, &sids).await?;
        let world = Self { proxies, cookies, nodes, _backends: backends, _sidecar: sidecar, folder };
        for proxy in &world.proxies {
            world.check(proxy).await.with_context(|| proxy.variant.to_string())?;
        }
        Ok(world)
    }

    /// The folder of everybody's files.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// What browsers send, one a session.
    pub fn cookies(&self) -> &[String] {
        &self.cookies
    }

    /// What a reader of the figures must know.
    pub fn about(&self, rounds: u32, slice_seconds: u32, connections: u32) -> Value {
        let version = tools::envoy()
            .ok()
            .and_then(|envoy| Command::new(envoy).arg("--version").output().ok())
            .and_then(|output| {
                // "…  version: COMMIT/1.40.0/Clean/RELEASE/BoringSSL"
                let text = String::from_utf8_lossy(&output.stdout);
                text.split("version:").nth(1)?.split('/').nth(1).map(str::to_owned)
            });
        json!({
            "envoy": version,
            "envoy_worker_threads": 1,
            "processors": std::thread::available_parallelism().map_or(0, usize::from),
            "nodes": self.nodes.len(),
            "sessions": self.cookies.len(),
            "connections": connections,
            "rounds": rounds,
            "slice_seconds": slice_seconds,
        })
    }

    /// Whether a proxy answers, has sessions stick and, if it is Mooring, knows their owners.
    async fn check(&self, proxy: &Proxy) -> Result<()> {
        let mut client = Browser::new(http1(), proxy.address);
        for (place, cookie) in self.cookies.iter().enumerate().take(12) {
            let mut served = BTreeSet::new();
            for _ in 0..NODES + 1 {
                let headers = [("cookie", cookie.as_str())];
                let answer = client.request(Method::GET, "/odoo", &headers, "").await?;
                ensure!(answer.status == 200, "answered {}: {}", answer.status, answer.text());
                served.insert(answer.header("x-node").to_owned());
            }
            let owner = self.nodes[place % NODES].http.port().to_string();
            if proxy.variant.is_mooring() {
                ensure!(served.iter().eq([&owner]), "a session of {owner} was served by {served:?}");
            } else if proxy.variant.is_sticky() {
                ensure!(served.len() == 1, "one session was served by {served:?}");
            }
        }
        Ok(())
    }
}

fn local(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

fn name(place: usize) -> String {
    format!("odoo-{}", place + 1)
}

async fn start_sidecar(address: SocketAddr, nodes: &[Endpoint], folder: &Path) -> Result<Process> {
    let mut command = Command::new(program("mooring"));
    command.args(["serve", "--listen", &address.to_string()]);
    command.arg("--state-dir").arg(folder.join("state"));
    for (place, Endpoint { http, gevent }) in nodes.iter().enumerate() {
        command.args(["--node", &format!("{}={http},gevent={gevent}", name(place))]);
    }
    let mut process = Process::start("the sidecar", command, &folder.join("sidecar.log"))?;
    let ready = async || browser::get(address, "/readyz").await.ok().filter(|answer| answer.status == 200);
    process.wait(Duration::from_secs(10), ready).await?;
    Ok(process)
}

async fn start_proxy(
    variant: &Variant,
    programs: &Programs,
    nodes: &[Endpoint],
    sidecar: SocketAddr,
    folder: &Path,
) -> Result<Proxy> {
    let listen = free_port()?;
    let (process_id, running) = match variant {
        Variant::Nginx => {
            let process = programs.start_ip_hash(listen, nodes, folder).await?;
            (process.id(), Running::Other { _process: process })
        }
        Variant::Haproxy => {
            let process = programs.start_haproxy(listen, nodes, folder).await?;
            (process.id(), Running::Other { _process: process })
        }
        _ => {
            let place = Place { listen, admin: free_port()?, nodes, sidecar };
            let envoy = Envoy::start(&tools::envoy()?, &bootstrap(variant, &place)?, folder, 1).await?;
            if variant.is_mooring() {
                wait_until_polled(&envoy).await?;
            }
            (envoy.process.id(), Running::Envoy { _envoy: envoy })
        }
    };
    Ok(Proxy { variant: variant.clone(), address: local(listen), process_id, _running: running })
}

/// Waits until the filter has heard from the sidecar: then it knows the nodes.
async fn wait_until_polled(envoy: &Envoy) -> Result<()> {
    for _ in 0..200 {
        if envoy.stat("wasmcustom.mooring_sidecar_polls").await? > 0 {
            // Every thread looks at the board once in 100 ms.
            tokio::time::sleep(Duration::from_millis(250)).await;
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    anyhow::bail!("the filter has not heard from the sidecar; Envoy printed:\n{}", envoy.process.printed())
}

/// A session's cookies: its own, one that any site may have, and the one in which Envoy's
/// `stateful_session` keeps the node. All variants get the same bytes.
async fn cookies(proxies: &[Proxy], sids: &[String]) -> Result<Vec<String>> {
    let mut nodes = vec!["CRUKDzEyNy4wLjAuMTo1MDAwMA==".to_owned()];
    if let Some(proxy) = proxies.iter().find(|proxy| proxy.variant == Variant::Cookie) {
        let mut found = BTreeSet::new();
        for _ in 0..NODES * 8 {
            let answer = browser::get(proxy.address, "/odoo").await?;
            let cookie = answer.header("set-cookie").split(';').next().unwrap_or_default();
            let (_, node) = cookie.split_once('=').context("no node in a cookie")?;
            found.insert(node.trim_matches('"').to_owned());
        }
        ensure!(found.len() == NODES, "{} nodes in cookies instead of {NODES}", found.len());
        nodes = found.into_iter().collect();
    }
    let cookie = |(sid, node): (&String, &String)| {
        format!("frontend_lang=en_US; session_id={sid}; {NODE_COOKIE}={node}")
    };
    Ok(sids.iter().zip(nodes.iter().cycle()).map(cookie).collect())
}
