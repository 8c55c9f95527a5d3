//! The other proxies, the backends, and the Lua script, with their configurations.

use std::{fs, net::SocketAddr, path::Path, path::PathBuf, process::Command, time::Duration};

use affinity::Port;
use anyhow::{Context, Result, bail};
use base64::{Engine, engine::general_purpose::STANDARD};
use harness::{envoy::Endpoint, process::Process, tools};
use serde_json::{Value, json};
use tokio::net::TcpStream;

/// What is needed beside Envoy.
pub struct Programs {
    nginx: PathBuf,
    haproxy: PathBuf,
}

impl Programs {
    /// Finds the programs; apt installs what is missing, if this is root.
    pub fn find() -> Result<Self> {
        let missing: Vec<&str> =
            ["wrk", "nginx", "haproxy"].into_iter().filter(|name| tools::on_path(name).is_none()).collect();
        if !missing.is_empty() {
            let list = missing.join(" ");
            if !rustix::process::geteuid().is_root() || tools::on_path("apt-get").is_none() {
                bail!("not installed: {list} (Debian: sudo apt-get install {list})");
            }
            tools::apt(&missing)?;
        }
        let find = |name: &str| tools::on_path(name).with_context(|| format!("apt installed no {name}"));
        Ok(Self { nginx: find("nginx")?, haproxy: find("haproxy")? })
    }

    /// One nginx that is all nodes: a few hundred bytes from each port, and its name.
    pub async fn start_backends(&self, nodes: &[Endpoint], folder: &Path) -> Result<Process> {
        let ports = nodes.iter().flat_map(|node| [node.http, node.gevent]);
        let listen = ports.map(|address| format!("listen {address};")).collect::<String>();
        let body = "A page as short as this one costs its server next to nothing. ".repeat(6);
        let servers = format!(
            r#"server {{ {listen} add_header x-node $server_port; location / {{ return 200 "{body}"; }} }}"#
        );
        let first = nodes.first().context("no nodes")?.http;
        self.start_nginx("the backends", &servers, first, folder).await
    }

    /// nginx with `ip_hash`.
    pub async fn start_ip_hash(&self, listen: u16, nodes: &[Endpoint], folder: &Path) -> Result<Process> {
        let hosts = nodes.iter().map(|node| format!("server {};", node.http)).collect::<String>();
        let servers = format!(
            r#"upstream odoo {{ ip_hash; {hosts} keepalive 64; }}
            server {{
                listen 127.0.0.1:{listen};
                location / {{
                    proxy_pass http://odoo;
                    proxy_http_version 1.1;
                    proxy_read_timeout 720s;
                    proxy_set_header Connection "";
                    proxy_set_header Host $host;
                    proxy_set_header X-Forwarded-Host $host;
                    proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
                    proxy_set_header X-Forwarded-Proto $scheme;
                }}
            }}"#
        );
        self.start_nginx("nginx", &servers, ([127, 0, 0, 1], listen).into(), folder).await
    }

    async fn start_nginx(
        &self,
        name: &str,
        servers: &str,
        ready: SocketAddr,
        folder: &Path,
    ) -> Result<Process> {
        let folder = folder.join(format!("nginx-{}", ready.port()));
        fs::create_dir_all(&folder)?;
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {}/{kind};", folder.display()))
            .concat();
        // One process, which ends with this one.
        let config = format!(
            "daemon off; master_process off; worker_processes 1; error_log stderr warn; pid {0}/pid;
            events {{ worker_connections 4096; }}
            http {{
                access_log off; keepalive_timeout 1h; keepalive_requests 1000000000; {temporary}
                {servers}
            }}",
            folder.display()
        );
        let path = folder.join("nginx.conf");
        fs::write(&path, config)?;
        let mut command = Command::new(&self.nginx);
        command.arg("-p").arg(&folder).arg("-c").arg(&path).args(["-e", "stderr"]);
        start(name, command, ready, &folder.join("log")).await
    }

    /// HAProxy with a stick table.
    pub async fn start_haproxy(&self, listen: u16, nodes: &[Endpoint], folder: &Path) -> Result<Process> {
        let hosts = nodes.iter().enumerate();
        let hosts: String =
            hosts.map(|(n, node)| format!("  server odoo-{n} {} check inter 2s\n", node.http)).collect();
        let config = format!(
            "global
  nbthread 1
  maxconn 4000
defaults
  mode http
  timeout connect 2s
  timeout client 720s
  timeout server 720s
  option forwardfor
  http-reuse always
frontend odoo
  bind 127.0.0.1:{listen}
  default_backend odoo
backend odoo
  balance roundrobin
  option httpchk GET /web/health
  stick-table type string len 84 size 100k expire 1h
  stick on req.cook(session_id)
{hosts}"
        );
        let path = folder.join("haproxy.cfg");
        fs::write(&path, config)?;
        let mut command = Command::new(&self.haproxy);
        command.args(["-db", "-f"]).arg(&path);
        start("HAProxy", command, ([127, 0, 0, 1], listen).into(), &folder.join("haproxy.log")).await
    }
}

async fn start(name: &str, command: Command, ready: SocketAddr, log: &Path) -> Result<Process> {
    let mut process = Process::start(name, command, log)?;
    process.wait(Duration::from_secs(10), async || TcpStream::connect(ready).await.ok()).await?;
    Ok(process)
}

/// What Mooring's filter does, as far as a script can: the home of a session by rendezvous hashing,
/// and the headers that the rest of the configuration obeys. It looks at responses as well, but knows no owners and
/// claims nothing.
const SCRIPT: &str = r#"
local bit = require("bit")
local band, bxor, lshift, rshift, tobit = bit.band, bit.bxor, bit.lshift, bit.rshift, bit.tobit

local function mix(h)
  h = tobit(h + lshift(h, 10))
  return bxor(h, rshift(h, 6))
end

local function hash(text)
  local h = 0
  for i = 1, #text do h = mix(tobit(h + text:byte(i))) end
  return h
end

local function finish(h)
  h = tobit(h + lshift(h, 3))
  h = bxor(h, rshift(h, 11))
  return tobit(h + lshift(h, 15))
end

for _, node in ipairs(nodes) do node.seed = hash(node.http.plain) end

local function session(cookies)
  local sid = cookies and (";" .. cookies):match('; ?session_id="?([^;"]+)')
  if sid and #sid >= 84 then return sid:sub(1, 42) end
  return sid
end

function envoy_on_request(handle)
  local headers = handle:headers()
  local path = headers:get(":path")
  local bus = path:sub(1, 10) == "/websocket" or path:sub(1, 13) == "/longpolling/"
  local port = bus and "gevent" or "http"
  local key = session(headers:get("cookie")) or handle:streamInfo():downstreamDirectRemoteAddress()
  local h, best, first = hash(key), nil, nil
  for i = 1, #nodes do
    local score = finish(mix(tobit(h + nodes[i].seed)))
    if not best or score > best then best, first = score, i end
  end
  headers:replace("x-mooring-upstream", nodes[first][port].encoded)
  headers:replace("x-mooring-next", nodes[first][port].next)
end

function envoy_on_response(handle)
  local headers = handle:headers()
  if headers:get("x-mooring-upstream") then headers:remove("x-mooring-upstream") end
  -- A session that begins would be claimed here.
  began = headers:get("set-cookie") ~= nil
end
"#;

/// The Lua filter.
pub fn lua(nodes: &[Endpoint]) -> Value {
    let quoted = |address: &SocketAddr, next: Vec<String>| {
        let plain = address.to_string();
        format!(
            r#"{{plain = "{plain}", encoded = "{}", next = "{}"}}"#,
            STANDARD.encode(&plain),
            next.join(",")
        )
    };
    let port = |place: usize, port: Port| {
        let address = |node: &Endpoint| match port {
            Port::Http => node.http,
            Port::Gevent => node.gevent,
        };
        let next = nodes.iter().cycle().skip(place + 1).take(nodes.len() - 1);
        quoted(&address(&nodes[place]), next.map(|node| address(node).to_string()).collect())
    };
    let table: String = (0..nodes.len())
        .map(|place| {
            format!("{{http = {}, gevent = {}}},\n", port(place, Port::Http), port(place, Port::Gevent))
        })
        .collect();
    json!({
        "name": "envoy.filters.http.lua",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua",
            "default_source_code": {"inline_string": format!("local nodes = {{\n{table}}}\n{SCRIPT}")},
        },
    })
}
