//! The pods of `envoy/kubernetes` as a kubelet runs them, with the environment, commands and order of the
//! manifest, and its very ports: each pod has a loopback address of its own.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use harness::{
    browser,
    process::{Process, wait_until},
    program,
    stack::start_redis,
};
use serde_json::Value;
use tempfile::TempDir;

use crate::manifests::{Manifests, list, text};

/// What filters show to the sidecars.
pub(crate) const TOKEN: &str = "the-token-of-the-sidecars-and-their-filters";

const PATIENCE: Duration = Duration::from_secs(20);

/// A pod that runs.
pub(crate) struct Pod {
    pub(crate) name: String,
    pub(crate) ip: IpAddr,
    sidecar: Process,
    odoo: Process,
}

impl Pod {
    /// One of its ports.
    pub(crate) fn port(&self, port: u16) -> SocketAddr {
        (self.ip, port).into()
    }
}

/// A StatefulSet's pods, with a Redis.
pub(crate) struct Pods {
    /// Those that run, by name.
    pub(crate) running: BTreeMap<String, Pod>,
    spec: Value,
    /// The first two numbers behind 127, this set's own.
    net: [u8; 2],
    secrets: BTreeMap<&'static str, String>,
    folder: TempDir,
    _redis: Process,
}

impl Pods {
    /// Starts a Redis, and makes the Secret that the manifest refers to.
    pub(crate) async fn prepare(manifests: &Manifests) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let (redis, address) = start_redis(folder.path()).await?;
        let password = "not-the-session-secret";
        let mut connection = redis::Client::open(format!("redis://{address}/"))?.get_connection()?;
        redis::cmd("CONFIG").arg(&["SET", "requirepass", password]).exec(&mut connection)?;
        let secrets = BTreeMap::from([
            ("store", format!("redis://{address}/0")),
            ("redis-password", password.to_owned()),
            ("secret", "0123456789abcdef0123456789abcdef".to_owned()),
            ("token", TOKEN.to_owned()),
        ]);
        fs::create_dir(folder.path().join("secrets"))?;
        for (name, value) in &secrets {
            fs::write(folder.path().join("secrets").join(name), value)?;
        }
        let spec = manifests.named("StatefulSet", "odoo")?["spec"]["template"]["spec"].clone();
        let net = [rand::random_range(64..=127), rand::random()];
        Ok(Self { running: BTreeMap::new(), spec, net, secrets, folder, _redis: redis })
    }

    /// Where a pod is or will be.
    pub(crate) fn ip(&self, ordinal: u8) -> IpAddr {
        Ipv4Addr::new(127, self.net[0], self.net[1], 10 + ordinal).into()
    }

    /// A folder for whoever else takes part.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Starts a pod: its sidecar, what is done before Odoo, Odoo. Returns when it is ready.
    pub(crate) async fn start(&mut self, ordinal: u8) -> Result<()> {
        let (name, ip) = (format!("odoo-{ordinal}"), self.ip(ordinal));
        fs::create_dir_all(self.folder.path().join(&name))?;
        let [sidecar, undrain] = list(&self.spec["initContainers"]) else { bail!("other init containers") };
        ensure!(sidecar["restartPolicy"] == "Always", "the first is no sidecar");
        let command = self.command(sidecar, &name, ip, list(&sidecar["args"]))?;
        let mut process = Process::start(&name, command, &self.log(&format!("{name}-sidecar")))?;
        wait_for(&mut process, ip, sidecar, "startupProbe").await?;
        let mut command = self.command(undrain, &name, ip, list(&undrain["args"]))?;
        let output = command.env("MOORING_SIDECAR", format!("{ip}:7070")).output()?;
        ensure!(output.status.success(), "undrain: {}", String::from_utf8_lossy(&output.stderr));
        let odoo = self.start_odoo(&name, ip).await?;
        self.running.insert(name.clone(), Pod { name, ip, sidecar: process, odoo });
        Ok(())
    }

    async fn start_odoo(&self, name: &str, ip: IpAddr) -> Result<Process> {
        let mut command = Command::new(program("odoo-standin"));
        command.args(["--id", name, "--http", &format!("{ip}:8069"), "--gevent", &format!("{ip}:8072")]);
        command.arg("--data-dir").arg(self.folder.path().join(name));
        command.arg("--shared-dir").arg(self.folder.path().join("database"));
        let mut odoo = Process::start(name, command, &self.log(name))?;
        wait_for(&mut odoo, ip, &self.spec["containers"][0], "readinessProbe").await?;
        Ok(odoo)
    }

    /// Ends a pod as a kubelet does: the hooks of both containers run, then Odoo ends, then its sidecar.
    pub(crate) async fn delete(&mut self, name: &str) -> Result<()> {
        let pod = self.running.remove(name).context("no such pod")?;
        let sidecar = &self.spec["initContainers"][0];
        let hook = list(&sidecar["lifecycle"]["preStop"]["exec"]["command"]);
        ensure!(hook.first().is_some_and(|program| program == "/mooring"), "{hook:?}");
        let mut command = self.command(sidecar, name, pod.ip, &hook[1..])?;
        command.env("MOORING_SIDECAR", format!("{}:7070", pod.ip));
        let output = tokio::task::spawn_blocking(move || command.output()).await??;
        ensure!(output.status.success(), "preStop: {}", String::from_utf8_lossy(&output.stderr));
        let nodes = self.nodes(&pod)?;
        let is_empty = nodes.iter().any(|node| node["id"] == name && node["sessions"] == 0);
        ensure!(is_empty, "{name} ends with sessions: {nodes:?}");
        pod.odoo.terminate()?;
        pod.sidecar.terminate()?;
        Ok(())
    }

    /// Kills a pod at once.
    pub(crate) fn kill(&mut self, name: &str) -> Result<()> {
        self.running.remove(name).map(drop).context("no such pod")
    }

    /// Waits until every sidecar knows the pods that run, and no others, as active.
    pub(crate) async fn wait_until_active(&self) -> Result<()> {
        let running: Vec<&String> = self.running.keys().collect();
        for pod in self.running.values() {
            let is_known = async || {
                let nodes = self.nodes(pod).unwrap_or_default();
                let active = nodes.iter().filter(|node| node["state"] == "active");
                active.map(|node| text(&node["id"])).eq(running.iter().copied())
            };
            wait_until("the pods are active", is_known).await?;
        }
        Ok(())
    }

    /// The nodes as a pod's sidecar shows them.
    fn nodes(&self, pod: &Pod) -> Result<Vec<Value>> {
        let mut command = Command::new(program("mooring"));
        command.args(["nodes", "--json", "--sidecar", &pod.port(7070).to_string()]);
        command.arg("--token-file").arg(self.folder.path().join("secrets/token"));
        let report: Value = serde_json::from_slice(&command.output()?.stdout)?;
        Ok(list(&report["nodes"]).to_vec())
    }

    /// Looks whether a secret is in what a process wrote.
    pub(crate) fn check_logs(&self) -> Result<()> {
        for entry in fs::read_dir(self.folder.path())?.flatten() {
            if entry.path().extension().is_some_and(|extension| extension == "log") {
                let written = fs::read_to_string(entry.path())?;
                for secret in ["redis-password", "secret", "token"] {
                    let is_told = written.contains(&self.secrets[secret]);
                    ensure!(!is_told, "the {secret} is in {}", entry.path().display());
                }
            }
        }
        Ok(())
    }

    fn log(&self, name: &str) -> PathBuf {
        self.folder.path().join(format!("{name}.log"))
    }

    /// `mooring` as a container of the manifest would run it.
    fn command(&self, container: &Value, name: &str, ip: IpAddr, args: &[Value]) -> Result<Command> {
        let mut command = Command::new(program("mooring"));
        command.env_clear().args(args.iter().map(text));
        // Sooner than in earnest.
        command.env("MOORING_PROBE_INTERVAL_MS", "250");
        let mut known = BTreeMap::new();
        for variable in list(&container["env"]) {
            let value = self.value(variable, name, ip, &known)?;
            command.env(text(&variable["name"]), self.here(&value, name, ip));
            known.insert(text(&variable["name"]).to_owned(), value);
        }
        Ok(command)
    }

    fn value(
        &self,
        variable: &Value,
        name: &str,
        ip: IpAddr,
        known: &BTreeMap<String, String>,
    ) -> Result<String> {
        let from = &variable["valueFrom"];
        if let Some(key) = from["secretKeyRef"]["key"].as_str() {
            return self.secrets.get(key).cloned().with_context(|| format!("no {key} in the Secret"));
        }
        Ok(match from["fieldRef"]["fieldPath"].as_str() {
            Some("metadata.name") => name.to_owned(),
            Some("status.podIP") => ip.to_string(),
            Some(other) => bail!("unknown field {other}"),
            // A reference to a variable that comes later stays as it is, as in Kubernetes.
            None => known.iter().fold(text(&variable["value"]).to_owned(), |value, (name, found)| {
                value.replace(&format!("$({name})"), found)
            }),
        })
    }

    /// Paths and addresses of a container, as they are outside of one.
    fn here(&self, value: &str, name: &str, ip: IpAddr) -> String {
        let folder = self.folder.path().display();
        let value = value.replace("0.0.0.0", &ip.to_string());
        let value = value.replace("/etc/mooring", &format!("{folder}/secrets"));
        value.replace("/var/lib/odoo", &format!("{folder}/{name}"))
    }
}

/// Waits until a container's probe succeeds.
async fn wait_for(process: &mut Process, ip: IpAddr, container: &Value, probe: &str) -> Result<()> {
    let probe = &container[probe]["httpGet"];
    let port = list(&container["ports"]).iter().find(|port| port["name"] == probe["port"]);
    let port = port.and_then(|port| port["containerPort"].as_u64()).context("no such port")?;
    let (address, path) = (SocketAddr::new(ip, u16::try_from(port)?), text(&probe["path"]).to_owned());
    let good = async || browser::get(address, &path).await.ok().filter(|answer| answer.status == 200);
    process.wait(PATIENCE, good).await.map(drop)
}
