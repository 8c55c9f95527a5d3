//! What Envoy's admin interface says: whether it has the filter, and reaches the nodes.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use hyper::Request;
use serde_json::Value;
use tokio::time::timeout;

use super::{Findings, Severity, servers::Servers};
use crate::{cli::Listen, client};

const PATIENCE: Duration = Duration::from_secs(3);

/// Examines an Envoy.
pub(super) async fn examine(admin: &Listen, servers: &Servers, findings: &mut Findings) {
    let about = format!("Envoy at {admin}");
    let asked = timeout(PATIENCE, async {
        Ok::<_, String>((
            ask(admin, "/clusters?format=json").await?,
            ask(admin, "/config_dump").await?,
            ask(admin, "/stats?filter=wasmcustom.mooring_&format=json").await?,
        ))
    });
    let (clusters, config, stats) = match asked.await {
        Ok(Ok(answers)) => answers,
        failed => {
            let problem = failed
                .map_or_else(|_| "it does not answer in time".into(), |it| it.err().unwrap_or_default());
            let remedy = "is it running, and is this its admin interface?";
            findings.add(Severity::Error, "envoy-absent", about, problem, remedy);
            return;
        }
    };
    if list(at(&stats, "/stats")).is_empty() {
        let remedy = "does its configuration name mooring.wasm? Its log says why it was not loaded";
        findings.add(Severity::Error, "no-filter", &about, "it does not run Mooring's filter", remedy);
    }
    examine_modules(&about, &config, findings);
    let hosts = hosts(&clusters);
    for node in &servers.nodes {
        for (what, place) in [("HTTP", Some(&node.http)), ("gevent", node.gevent.as_ref())] {
            let Some(place) = place else { continue };
            let Some(address) = resolved(place).await else { continue };
            match hosts.get(&address) {
                None => {
                    let problem = format!("it does not know the {what} address {address} of {}", node.id);
                    let remedy = "the same addresses in Envoy's clusters and at the sidecar";
                    findings.add(Severity::Error, "envoy-knows-not", &about, problem, remedy);
                }
                Some(false) => {
                    let problem =
                        format!("{address}, the {what} address of {}, fails its health check", node.id);
                    let remedy =
                        "is that port open from Envoy's host, and is the check's path one that Odoo has?";
                    findings.add(Severity::Error, "envoy-reaches-not", &about, problem, remedy);
                }
                Some(true) => {}
            }
        }
    }
}

async fn ask(admin: &Listen, path: &str) -> Result<Value, String> {
    let answer = client::send(admin, Request::get(path), Default::default()).await;
    let answer = answer.map_err(|error| error.to_string())?;
    serde_json::from_slice(answer.body()).map_err(|error| format!("{path}: {error}"))
}

async fn resolved(place: &str) -> Option<SocketAddr> {
    tokio::net::lookup_host(place).await.ok()?.next()
}

/// Every host of every cluster, and whether it passes its health checks in one of them.
fn hosts(clusters: &Value) -> BTreeMap<SocketAddr, bool> {
    let mut hosts = BTreeMap::new();
    for cluster in list(at(clusters, "/cluster_statuses")) {
        for host in list(at(cluster, "/host_statuses")) {
            let ip = at(host, "/address/socket_address/address").as_str();
            let port = at(host, "/address/socket_address/port_value").as_u64();
            let ip = ip.and_then(|ip| ip.parse::<IpAddr>().ok());
            let port = port.and_then(|port| u16::try_from(port).ok());
            let Some(address) = ip.zip(port).map(SocketAddr::from) else { continue };
            let healthy = *at(host, "/health_status/failed_active_health_check") != true;
            *hosts.entry(address).or_default() |= healthy;
        }
    }
    hosts
}

/// What lies at a path; null if nothing does.
fn at<'a>(value: &'a Value, path: &str) -> &'a Value {
    value.pointer(path).unwrap_or(&Value::Null)
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// Looks at every wasm module in the configuration that is Mooring's.
fn examine_modules(about: &str, config: &Value, findings: &mut Findings) {
    if at(config, "/vm_config").is_object() && *at(config, "/root_id") == "mooring" {
        if *at(config, "/failure_policy") != "FAIL_RELOAD" {
            let problem = "a filter that fails stays failed: its failure_policy is not FAIL_RELOAD";
            findings.add(Severity::Error, "no-reload", about, problem, "failure_policy: FAIL_RELOAD");
        }
        let remote = at(config, "/vm_config/code/remote");
        if remote.is_object() && at(remote, "/sha256").as_str().unwrap_or_default().is_empty() {
            let problem =
                "it fetches its filter without saying which: whoever can change the file changes what runs";
            findings.add(
                Severity::Warning,
                "unpinned-module",
                about,
                problem,
                "sha256 beside the filter's address",
            );
        }
    }
    match config {
        Value::Array(items) => items.iter().for_each(|item| examine_modules(about, item, findings)),
        Value::Object(fields) => fields.values().for_each(|field| examine_modules(about, field, findings)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_module_from_elsewhere_must_be_pinned() {
        for (sha256, expected) in [("", 1), ("e3b0c442", 0)] {
            let code = json!({"remote": {"http_uri": {"uri": "https://example.com/mooring.wasm"}, "sha256": sha256}});
            let plugin =
                json!({"root_id": "mooring", "failure_policy": "FAIL_RELOAD", "vm_config": {"code": code}});
            let mut findings = Findings::default();
            examine_modules("Envoy", &json!({"configs": [{"filters": [{"config": plugin}]}]}), &mut findings);
            let names: Vec<_> = findings.0.iter().map(|finding| finding.name).collect();
            assert_eq!(names, vec!["unpinned-module"; expected]);
        }
    }
}
