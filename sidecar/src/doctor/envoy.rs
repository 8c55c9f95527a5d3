//! What Envoy's admin interface says: whether it has the filter, and reaches the nodes.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use affinity::NodeState;
use hyper::Request;
use serde_json::Value;
use tokio::time::timeout;

use super::{
    envoy_filters,
    report::{Id, Report, Severity},
    servers::Servers,
};
use crate::{cli::Listen, client};

const PATIENCE: Duration = Duration::from_secs(5);

/// The addresses of a node.
struct Places {
    id: String,
    /// Whether its failing health checks are news.
    is_up: bool,
    addresses: Vec<Place>,
}

struct Place {
    what: &'static str,
    address: SocketAddr,
    /// Whether anything can be there.
    is_there: bool,
}

/// Examines an Envoy. `without_gevent` are the nodes that have no gevent port, which was found already.
/// Says how long it waits for Odoo, if that could be seen.
pub(super) async fn examine(
    admin: &Listen,
    servers: &Servers,
    without_gevent: &BTreeSet<String>,
    report: &mut Report,
) -> Option<Duration> {
    let about = format!("Envoy at {admin}");
    let asked = timeout(PATIENCE, async {
        let clusters = ask(admin, "/clusters?format=json").await?;
        Ok::<_, String>((clusters, ask(admin, "/stats?filter=wasmcustom.mooring_&format=json").await?))
    });
    let (clusters, stats) = match asked.await {
        Ok(Ok(answers)) => answers,
        failed => {
            let problem = failed
                .map_or_else(|_| "it does not answer in time".into(), |it| it.err().unwrap_or_default());
            let remedy = "is it running, and is this its admin interface?";
            report.add(Severity::Error, Id::EnvoyAbsent, about, problem, remedy);
            return None;
        }
    };
    let places = places(servers, without_gevent, report).await;
    let clusters = hosts(&clusters);
    examine_hosts(&about, &places, &clusters, report);
    report.looked_at(format!("{about}: the addresses in its {} clusters", clusters.len()));
    let has_filter = !list(at(&stats, "/stats")).is_empty();
    if !has_filter {
        let remedy = "does its configuration name mooring.wasm? Its log says why it was not loaded";
        let problem = "it does not run Mooring's filter: people go to any server";
        report.add(Severity::Error, Id::NoFilter, &about, problem, remedy);
    }
    let config = timeout(PATIENCE, ask(admin, "/config_dump")).await;
    let config = match config.unwrap_or_else(|_| Err("it does not come in time".into())) {
        Ok(config) => config,
        Err(problem) => {
            report.left_out(format!("{about}: its filters and time limits"), problem);
            return None;
        }
    };
    examine_modules(&about, &config, report);
    if !has_filter {
        return None;
    }
    let of_nodes = |what| envoy_filters::clusters_of(&clusters, &addresses(&places, what));
    let (all, http) = (of_nodes(None), of_nodes(Some("HTTP")));
    envoy_filters::examine(&about, &config, &all, &http, report)
}

async fn ask(admin: &Listen, path: &str) -> Result<Value, String> {
    let answer = client::send(admin, Request::get(path), Default::default()).await;
    let answer = answer.map_err(|error| error.to_string())?;
    serde_json::from_slice(answer.body()).map_err(|error| format!("{path}: {error}"))
}

/// Where the nodes are, as Envoy would find them.
async fn places(servers: &Servers, without_gevent: &BTreeSet<String>, report: &mut Report) -> Vec<Places> {
    let mut all = Vec::new();
    for node in &servers.nodes {
        let (id, mut addresses) = (node.id.to_string(), Vec::new());
        for (what, place) in [("HTTP", Some(&node.http)), ("gevent", node.gevent.as_ref())] {
            let Some(place) = place else { continue };
            let is_there = what == "HTTP" || !without_gevent.contains(&id);
            // The one of several that the sidecar takes.
            match tokio::net::lookup_host(place).await.ok().and_then(Iterator::min) {
                Some(address) => addresses.push(Place { what, address, is_there }),
                None => {
                    report.left_out(format!("whether Envoy has {place} of {id}"), "it has no address here")
                }
            }
        }
        all.push(Places { id, is_up: node.state != NodeState::Down, addresses });
    }
    all
}

/// The addresses of this kind, or all.
fn addresses(places: &[Places], kind: Option<&str>) -> BTreeSet<SocketAddr> {
    let all = places.iter().flat_map(|node| &node.addresses);
    all.filter(|place| kind.is_none_or(|kind| kind == place.what)).map(|place| place.address).collect()
}

/// The hosts of each cluster, and whether they pass their health checks.
pub(super) type Clusters = BTreeMap<String, BTreeMap<SocketAddr, bool>>;

fn hosts(clusters: &Value) -> Clusters {
    let mut all = Clusters::new();
    for cluster in list(at(clusters, "/cluster_statuses")) {
        let hosts = all.entry(text(at(cluster, "/name")).to_owned()).or_default();
        for host in list(at(cluster, "/host_statuses")) {
            let ip = at(host, "/address/socket_address/address").as_str();
            let port = at(host, "/address/socket_address/port_value").as_u64();
            let ip = ip.and_then(|ip| ip.parse::<IpAddr>().ok());
            let port = port.and_then(|port| u16::try_from(port).ok());
            let Some(address) = ip.zip(port).map(SocketAddr::from) else { continue };
            let healthy = *at(host, "/health_status/failed_active_health_check") != true;
            hosts.insert(address, healthy);
        }
    }
    all
}

/// Compares Envoy's addresses with the sidecar's.
fn examine_hosts(about: &str, places: &[Places], clusters: &Clusters, report: &mut Report) {
    let own = addresses(places, None);
    let ours = clusters.values().filter(|hosts| hosts.keys().any(|host| own.contains(host)));
    let foreign = ours.flat_map(|hosts| hosts.keys()).filter(|host| !own.contains(host));
    let foreign: BTreeSet<_> = foreign.map(ToString::to_string).collect();
    let foreign = foreign.into_iter().collect::<Vec<_>>().join(", ");
    // In any cluster: one health check that passes is enough.
    let state = |address: &SocketAddr| {
        clusters.values().filter_map(|hosts| hosts.get(address)).copied().reduce(|one, other| one || other)
    };
    let mut complete = true;
    for Places { id, is_up, addresses } in places {
        let those = |wanted: Option<bool>| {
            let those = addresses.iter().filter(|place| place.is_there && state(&place.address) == wanted);
            those
                .map(|Place { what, address, .. }| format!("{address} ({what})"))
                .collect::<Vec<_>>()
                .join(", ")
        };
        let (unknown, failing) = (those(None), those(Some(false)));
        if !unknown.is_empty() {
            complete = false;
            let instead =
                if foreign.is_empty() { String::new() } else { format!("; it has {foreign} instead") };
            let problem =
                format!("it does not know {unknown} of {id}: what belongs there goes elsewhere{instead}");
            let remedy = "the same addresses in Envoy's clusters and at the sidecar";
            report.add(Severity::Error, Id::EnvoyUnknownNode, about, problem, remedy);
        }
        // A node that is down was found already.
        if *is_up && !failing.is_empty() {
            let problem = format!("{failing} of {id} fails its health check: nobody is sent there");
            let remedy = "is that port open from Envoy's host, and is the check's path one that Odoo has?";
            report.add(Severity::Error, Id::EnvoyUnreachableNode, about, problem, remedy);
        }
    }
    if complete && !foreign.is_empty() {
        let problem = format!(
            "beside the nodes it has {foreign}, which the sidecar does not know: who has no session yet may be \
             sent there"
        );
        let remedy = "the same addresses in Envoy's clusters and at the sidecar";
        report.add(Severity::Warning, Id::EnvoyExtraHost, about, problem, remedy);
    }
}

/// What lies at a path; null if nothing does.
pub(super) fn at<'a>(value: &'a Value, path: &str) -> &'a Value {
    value.pointer(path).unwrap_or(&Value::Null)
}

pub(super) fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

pub(super) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Looks at every wasm module in the configuration that is Mooring's.
fn examine_modules(about: &str, config: &Value, report: &mut Report) {
    if at(config, "/vm_config").is_object() && *at(config, "/root_id") == "mooring" {
        if *at(config, "/failure_policy") != "FAIL_RELOAD" {
            let problem = "a filter that fails stays failed: its failure_policy is not FAIL_RELOAD";
            report.add(Severity::Error, Id::NoReload, about, problem, "failure_policy: FAIL_RELOAD");
        }
        let remote = at(config, "/vm_config/code/remote");
        if remote.is_object() && text(at(remote, "/sha256")).is_empty() {
            let problem =
                "it fetches its filter without saying which: whoever can change the file changes what runs";
            let remedy = "sha256 beside the filter's address";
            report.add(Severity::Warning, Id::UnpinnedModule, about, problem, remedy);
        }
    }
    match config {
        Value::Array(items) => items.iter().for_each(|item| examine_modules(about, item, report)),
        Value::Object(fields) => fields.values().for_each(|field| examine_modules(about, field, report)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::doctor::{odoo_conf::tests::names, servers::tests::servers};

    #[test]
    fn a_module_from_elsewhere_must_be_pinned() {
        for (sha256, expected) in [("", 1), ("e3b0c442", 0)] {
            let code = json!({"remote": {"http_uri": {"uri": "https://example.com/mooring.wasm"}, "sha256": sha256}});
            let plugin =
                json!({"root_id": "mooring", "failure_policy": "FAIL_RELOAD", "vm_config": {"code": code}});
            let mut report = Report::default();
            examine_modules("Envoy", &json!({"configs": [{"filters": [{"config": plugin}]}]}), &mut report);
            assert_eq!(names(&report), vec!["unpinned-module"; expected]);
        }
    }

    /// Envoy's answer for two clusters of hosts, each with whether it passes its checks.
    fn clusters(http: &[(&str, bool)], gevent: &[(&str, bool)]) -> Clusters {
        let cluster = |name: &str, hosts: &[(&str, bool)]| {
            let host = |(address, passes): &(&str, bool)| {
                let (ip, port) = address.rsplit_once(':').unwrap();
                let address = json!({"address": ip, "port_value": port.parse::<u16>().unwrap()});
                let health = if *passes { json!({}) } else { json!({"failed_active_health_check": true}) };
                json!({"address": {"socket_address": address}, "health_status": health})
            };
            json!({"name": name, "host_statuses": hosts.iter().map(host).collect::<Value>()})
        };
        hosts(&json!({"cluster_statuses": [
            cluster("odoo", http), cluster("odoo_gevent", gevent), cluster("mooring", &[("127.0.0.1:7070", true)]),
        ]}))
    }

    #[tokio::test]
    async fn envoy_s_addresses_must_be_the_sidecar_s() {
        let http = [("10.0.0.1:8069", true), ("10.0.0.2:8069", true), ("10.0.0.3:8069", true)];
        let gevent = [("10.0.0.1:8072", true), ("10.0.0.2:8072", true), ("10.0.0.3:8072", true)];
        let failing = |mut hosts: [(&'static str, bool); 3]| {
            hosts[2].1 = false;
            hosts
        };
        let other = [http[0], http[1], ("10.0.0.9:8069", true)];
        let more = [http[0], http[1], http[2], ("10.0.0.9:8069", true)];
        for (http, gevent, down, expected) in [
            (&http[..], &gevent[..], false, vec![]),
            (&http[..2], &gevent[..], false, vec!["envoy-unknown-node"]),
            (&http[..2], &gevent[..2], false, vec!["envoy-unknown-node"]),
            (&other[..], &gevent[..], false, vec!["envoy-unknown-node"]),
            (&more[..], &gevent[..], false, vec!["envoy-extra-host"]),
            (&failing(http)[..], &failing(gevent)[..], false, vec!["envoy-unreachable-node"]),
            (&failing(http)[..], &failing(gevent)[..], true, vec![]),
            (&http[..0], &gevent[..0], false, vec!["envoy-unknown-node"; 3]),
        ] {
            let mut servers = servers();
            if down {
                servers.nodes[2].state = NodeState::Down;
            }
            let mut report = Report::default();
            let places = places(&servers, &BTreeSet::new(), &mut report).await;
            examine_hosts("Envoy", &places, &clusters(http, gevent), &mut report);
            assert_eq!(names(&report), expected, "{http:?} {gevent:?} {down}");
        }
    }

    #[tokio::test]
    async fn a_gevent_port_that_cannot_be_there_is_not_missed() {
        let mut report = Report::default();
        let without = BTreeSet::from(["odoo-3".to_owned()]);
        let places = places(&servers(), &without, &mut report).await;
        let http = [("10.0.0.1:8069", true), ("10.0.0.2:8069", true), ("10.0.0.3:8069", true)];
        let gevent = [("10.0.0.1:8072", true), ("10.0.0.2:8072", true), ("10.0.0.3:8072", false)];
        for gevent in [&gevent[..], &gevent[..2]] {
            examine_hosts("Envoy", &places, &clusters(&http, gevent), &mut report);
            assert_eq!(names(&report), Vec::<String>::new());
        }
    }
}
