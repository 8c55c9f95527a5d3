//! A real Envoy with the bootstrap that users copy, moved to other ports.

use std::{fs, net::SocketAddr, path::Path, process::Command, time::Duration};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::{browser, process::Process, root};

/// A bootstrap of `envoy/` as JSON, to be changed in places.
#[derive(Clone, Debug)]
pub struct Bootstrap(pub Value);

/// The two ports of a node.
#[derive(Clone, Copy, Debug)]
pub struct Endpoint {
    /// HTTP.
    pub http: SocketAddr,
    /// gevent.
    pub gevent: SocketAddr,
}

impl Bootstrap {
    /// Reads `envoy/<file>`.
    ///
    /// # Errors
    /// If it is no YAML.
    pub fn read(file: &str) -> Result<Self> {
        let path = root().join("envoy").join(file);
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        Ok(Self(serde_yaml_ng::from_str(&text).with_context(|| path.display().to_string())?))
    }

    /// Changes what users are told to change: where Envoy listens, its filter, nodes and sidecar.
    pub fn place(&mut self, listen: u16, admin: u16, nodes: &[Endpoint], sidecar: SocketAddr) {
        self.0["admin"]["address"] = socket(([127, 0, 0, 1], admin).into());
        self.0["static_resources"]["listeners"][0]["address"] = socket(([127, 0, 0, 1], listen).into());
        self.wasm()["vm_config"]["code"]["local"]["filename"] = json!(crate::filter());
        let endpoints = |addresses: Vec<SocketAddr>| {
            addresses
                .into_iter()
                .map(|address| json!({"endpoint": {"address": socket(address)}}))
                .collect::<Value>()
        };
        let http = endpoints(nodes.iter().map(|node| node.http).collect());
        let gevent = endpoints(nodes.iter().map(|node| node.gevent).collect());
        self.cluster("odoo")["load_assignment"]["endpoints"][0]["lb_endpoints"] = http;
        self.cluster("odoo_gevent")["load_assignment"]["endpoints"][0]["lb_endpoints"] = gevent;
        self.cluster("mooring")["load_assignment"]["endpoints"][0]["lb_endpoints"] = endpoints(vec![sidecar]);
    }

    /// The configuration of the wasm filter.
    pub fn wasm(&mut self) -> &mut Value {
        &mut self.filter("mooring")["typed_config"]["config"]
    }

    /// An HTTP filter, by its name.
    pub fn filter(&mut self, name: &str) -> &mut Value {
        named(&mut self.connection_manager()["http_filters"], name)
    }

    /// The HTTP filters, in their order.
    pub fn http_filters(&mut self) -> &mut Vec<Value> {
        self.connection_manager()["http_filters"].as_array_mut().expect("a list")
    }

    /// The connection manager of the first listener.
    pub fn connection_manager(&mut self) -> &mut Value {
        &mut self.0["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    }

    /// A cluster, by its name.
    pub fn cluster(&mut self, name: &str) -> &mut Value {
        named(&mut self.0["static_resources"]["clusters"], name)
    }
}

fn named<'a>(list: &'a mut Value, name: &str) -> &'a mut Value {
    let items = list.as_array_mut().expect("a list");
    items.iter_mut().find(|item| item["name"] == name).unwrap_or_else(|| panic!("nothing named {name}"))
}

/// An address as Envoy writes it.
pub fn socket(address: SocketAddr) -> Value {
    json!({"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}})
}

/// A running Envoy.
pub struct Envoy {
    /// Its process.
    pub process: Process,
    admin: SocketAddr,
}

impl Envoy {
    /// Starts the Envoy `program` with `bootstrap` and waits until it is live. `folder` gets its
    /// configuration and its log, `concurrency` is its number of worker threads.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn start(
        program: &Path,
        bootstrap: &Bootstrap,
        folder: &Path,
        concurrency: u32,
    ) -> Result<Self> {
        Self::start_with(program, bootstrap, folder, concurrency, &[]).await
    }

    /// The same, with more in its environment.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn start_with(
        program: &Path,
        bootstrap: &Bootstrap,
        folder: &Path,
        concurrency: u32,
        environment: &[(&str, &str)],
    ) -> Result<Self> {
        let admin = &bootstrap.0["admin"]["address"]["socket_address"]["port_value"];
        let admin: SocketAddr = ([127, 0, 0, 1], u16::try_from(admin.as_u64().unwrap_or_default())?).into();
        let config = folder.join(format!("envoy-{}.json", admin.port()));
        fs::write(&config, bootstrap.0.to_string())?;
        let mut command = Command::new(program);
        command.arg("-c").arg(&config).args(["--concurrency", &concurrency.to_string()]);
        command.args(["--disable-hot-restart", "--log-level", "warning"]);
        command.envs(environment.iter().copied());
        let log = folder.join(format!("envoy-{}.log", admin.port()));
        let mut process = Process::start("Envoy", command, &log)?;
        let ready = async || browser::get(admin, "/ready").await.ok().filter(|answer| answer.status == 200);
        process.wait(Duration::from_secs(30), ready).await?;
        Ok(Self { process, admin })
    }

    /// Where its admin interface is.
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// One of Envoy's counters or gauges; 0 if it is not there.
    ///
    /// # Errors
    /// If Envoy does not answer.
    pub async fn stat(&self, name: &str) -> Result<u64> {
        let answer =
            browser::get(self.admin, &format!("/stats?filter=^{}$", name.replace('.', "\\."))).await?;
        let value = answer.text().lines().find_map(|line| line.split_once(": ")?.1.trim().parse().ok());
        Ok(value.unwrap_or_default())
    }

    /// All statistics whose name matches a regular expression, as text.
    ///
    /// # Errors
    /// If Envoy does not answer.
    pub async fn stats(&self, filter: &str) -> Result<String> {
        Ok(browser::get(self.admin, &format!("/stats?filter={filter}")).await?.text())
    }
}
