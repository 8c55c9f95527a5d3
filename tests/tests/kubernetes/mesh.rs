//! What Istio makes of the manifests for the Envoy of an ingress gateway, as its documentation says and as
//! versions 1.27 to 1.30 do it: listener, routes and clusters, then the patches of EnvoyFilters. Left out is
//! what stock Envoy does not have (istio.alpn, istio.stats) and what says nothing here (mTLS, telemetry).

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::{
    eds,
    manifests::{Lists, Manifests, list, merge, text, title},
};

const MANAGER: &str = "envoy.filters.network.http_connection_manager";

/// The bootstrap of the gateway.
pub(crate) fn bootstrap(manifests: &Manifests, endpoints: &Path) -> Result<Value> {
    let service = manifests.one("VirtualService")?;
    let rule = manifests.one("DestinationRule")?;
    let routes = routes(service, rule)?;
    let clusters = [8069, 8072].map(|port| cluster(port, rule, endpoints));
    let mut bootstrap = json!({
        "admin": {"address": {}},
        "static_resources": {
            "listeners": [listener(manifests.one("WasmPlugin")?, routes)?],
            "clusters": clusters,
        },
    });
    let plugin = manifests.one("WasmPlugin")?;
    for filter in manifests.all("EnvoyFilter") {
        // They apply to the gateway only, because they are in its namespace and select it.
        ensure!(filter["metadata"]["namespace"] == plugin["metadata"]["namespace"], "{}", title(filter));
        ensure!(
            filter["spec"]["workloadSelector"]["labels"] == plugin["spec"]["selector"]["matchLabels"],
            "{} selects another gateway",
            title(filter)
        );
        for (place, patch) in list(&filter["spec"]["configPatches"]).iter().enumerate() {
            let applied = apply(&mut bootstrap["static_resources"], patch)
                .with_context(|| format!("{}, patch {place}", title(filter)))?;
            ensure!(applied > 0, "{}, patch {place} matches nothing", title(filter));
        }
    }
    Ok(bootstrap)
}

/// The name that Istio gives a Service's cluster.
pub(crate) fn cluster_name(port: u16) -> String {
    format!("outbound|{port}||odoo.odoo.svc.cluster.local")
}

fn listener(plugin: &Value, routes: Vec<Value>) -> Result<Value> {
    ensure!(plugin["spec"].get("phase").is_none(), "a plugin with a phase is elsewhere in the chain");
    let extension = |name: &str, kind: &str| json!({"name": name, "typed_config": {"@type": kind}});
    let filters = [
        wasm(plugin),
        extension(
            "envoy.filters.http.grpc_stats",
            "type.googleapis.com/envoy.extensions.filters.http.grpc_stats.v3.FilterConfig",
        ),
        extension(
            "envoy.filters.http.fault",
            "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault",
        ),
        extension(
            "envoy.filters.http.cors",
            "type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors",
        ),
        extension(
            "envoy.filters.http.router",
            "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
        ),
    ];
    let manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "outbound_0.0.0.0_8080",
        "use_remote_address": true,
        "normalize_path": true,
        "path_with_escaped_slashes_action": "KEEP_UNCHANGED",
        "forward_client_cert_details": "SANITIZE_SET",
        "set_current_client_cert_details": {"subject": true, "cert": true, "dns": true, "uri": true},
        "stream_idle_timeout": "0s",
        "upgrade_configs": [{"upgrade_type": "websocket"}],
        "http_filters": filters,
        "route_config": {
            "name": "http.8080",
            // By the VirtualService's host; here for any, since browsers come by address.
            "virtual_hosts": [{"name": "odoo.example.com:80", "domains": ["*"], "routes": routes}],
        },
    });
    Ok(json!({
        "name": "0.0.0.0_8080",
        "address": {},
        "filter_chains": [{"filters": [{"name": MANAGER, "typed_config": manager}]}],
    }))
}

fn wasm(plugin: &Value) -> Value {
    let (name, spec) = (text(&plugin["metadata"]["name"]), &plugin["spec"]);
    let namespace = text(&plugin["metadata"]["namespace"]);
    json!({
        "name": format!("extensions.istio.io/wasmplugin/{namespace}.{name}"),
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm",
            "config": {
                "name": format!("{namespace}.{name}"),
                "root_id": spec["pluginName"],
                "failure_policy": spec["failStrategy"],
                "configuration": {
                    "@type": "type.googleapis.com/google.protobuf.StringValue",
                    "value": spec["pluginConfig"].to_string(),
                },
                // No vm_id; and the code is a file, once istio-agent has fetched the image.
                "vm_config": {
                    "runtime": "envoy.wasm.runtime.v8",
                    "environment_variables": {"host_env_keys": host_keys(plugin)},
                    "code": {"local": {"filename": harness::filter()}},
                },
            },
        },
    })
}

/// The names of the variables that the filter is given of Envoy's environment.
pub(crate) fn host_keys(plugin: &Value) -> Vec<String> {
    let variables = list(&plugin["spec"]["vmConfig"]["env"]).iter();
    let of_host = variables.filter(|variable| variable["valueFrom"] == "HOST");
    of_host.map(|variable| text(&variable["name"]).to_owned()).collect()
}

fn routes(service: &Value, rule: &Value) -> Result<Vec<Value>> {
    let mut routes = Vec::new();
    for http in list(&service["spec"]["http"]) {
        let destination = &http["route"][0]["destination"];
        let port = destination["port"]["number"].as_u64().context("no port")?;
        ensure!(destination["host"] == rule["spec"]["host"], "a route without the DestinationRule");
        let cookie = &rule["spec"]["trafficPolicy"]["loadBalancer"]["consistentHash"]["httpCookie"];
        let mut retries = json!({
            "retry_on": http["retries"]["retryOn"],
            "num_retries": http["retries"]["attempts"],
            "host_selection_retry_max_attempts": 5,
        });
        // Where sessions are hashed, retries go to the same host unless this says otherwise.
        if http["retries"]["retryIgnorePreviousHosts"] == true {
            retries["retry_host_predicate"] = previous_hosts();
        }
        let request = &http["headers"]["request"];
        let set = request["set"].as_object().into_iter().flatten().map(|(name, value)| {
            json!({"header": {"key": name, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"})
        });
        let route = json!({
            "name": http["name"],
            "request_headers_to_add": set.collect::<Value>(),
            "request_headers_to_remove": request["remove"],
            "route": {
                "cluster": cluster_name(u16::try_from(port)?),
                "timeout": http.get("timeout").cloned().unwrap_or(json!("0s")),
                "max_grpc_timeout": "0s",
                "hash_policy": [{"cookie": cookie}],
                "retry_policy": retries,
            },
        });
        let everything = [json!({})];
        let matches = http.get("match").map_or(&everything[..], list);
        for found in matches {
            let mut route = route.clone();
            route["match"] = route_match(found)?;
            routes.push(route);
        }
    }
    Ok(routes)
}

/// Istio's and Envoy Gateway's way to say that a retry goes elsewhere.
pub(crate) fn previous_hosts() -> Value {
    let kind = "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate";
    json!([{"name": "envoy.retry_host_predicates.previous_hosts", "typed_config": {"@type": kind}}])
}

fn route_match(found: &Value) -> Result<Value> {
    let mut matched = match &found["uri"] {
        Value::Null => json!({"prefix": "/"}),
        uri if uri.get("exact").is_some() => json!({"path": uri["exact"]}),
        uri if uri.get("prefix").is_some() => json!({"prefix": uri["prefix"]}),
        other => bail!("unknown match {other}"),
    };
    if let Some(method) = found["method"].get("exact") {
        matched["headers"] = json!([{"name": ":method", "string_match": {"exact": method}}]);
    }
    Ok(matched)
}

fn cluster(port: u16, rule: &Value, endpoints: &Path) -> Value {
    let policy = &rule["spec"]["trafficPolicy"];
    let ejection = &policy["outlierDetection"];
    let enforced = |count: &Value| if count.as_u64().unwrap_or_default() > 0 { 100 } else { 0 };
    let most = u32::MAX;
    json!({
        "name": cluster_name(port),
        "type": "EDS",
        "eds_cluster_config": eds::config(endpoints, &cluster_name(port)),
        "connect_timeout": policy["connectionPool"]["tcp"]["connectTimeout"],
        "lb_policy": "MAGLEV",
        "maglev_lb_config": {"table_size": policy["loadBalancer"]["consistentHash"]["maglev"]["tableSize"]},
        "common_lb_config": {"healthy_panic_threshold": {"value": ejection["minHealthPercent"]}},
        "circuit_breakers": {"thresholds": [{
            "max_connections": most, "max_pending_requests": most, "max_requests": most, "max_retries": most,
            "track_remaining": true,
        }]},
        "outlier_detection": {
            "enforcing_success_rate": 0,
            "consecutive_5xx": ejection["consecutive5xxErrors"],
            "enforcing_consecutive_5xx": enforced(&ejection["consecutive5xxErrors"]),
            "consecutive_gateway_failure": ejection["consecutiveGatewayErrors"],
            "enforcing_consecutive_gateway_failure": enforced(&ejection["consecutiveGatewayErrors"]),
            "split_external_local_origin_errors": ejection["splitExternalLocalOriginErrors"],
            "consecutive_local_origin_failure": ejection["consecutiveLocalOriginFailures"],
            "enforcing_consecutive_local_origin_failure":
                enforced(&ejection["consecutiveLocalOriginFailures"]),
            "enforcing_local_origin_success_rate": 0,
            "interval": ejection["interval"],
            "base_ejection_time": ejection["baseEjectionTime"],
            "max_ejection_percent": ejection["maxEjectionPercent"],
        },
    })
}

/// Applies one patch; returns to how many things.
fn apply(resources: &mut Value, patch: &Value) -> Result<usize> {
    let (to, matched, value) = (text(&patch["applyTo"]), &patch["match"], &patch["patch"]["value"]);
    ensure!(matched["context"] == "GATEWAY", "not for a gateway");
    let operation = text(&patch["patch"]["operation"]);
    let is_lost = operation == "MERGE" && says_nothing(value);
    ensure!(!is_lost, "a merge does not see 0, false and empty texts");
    let filters = &mut resources["listeners"][0]["filter_chains"][0]["filters"];
    match (to, operation) {
        ("CLUSTER", "ADD") => {
            let clusters = resources["clusters"].as_array_mut().context("no clusters")?;
            clusters.push(value.clone());
            Ok(1)
        }
        ("CLUSTER", "MERGE") => {
            let clusters = resources["clusters"].as_array_mut().context("no clusters")?;
            let found = clusters.iter_mut().filter(|cluster| is_meant(cluster, &matched["cluster"]));
            Ok(found.map(|cluster| merge(cluster, value, Lists::Appended)).count())
        }
        ("LISTENER", "MERGE") => {
            merge(&mut resources["listeners"][0], value, Lists::Appended);
            Ok(1)
        }
        ("NETWORK_FILTER", "MERGE") => {
            ensure!(matched["listener"]["filterChain"]["filter"]["name"] == MANAGER, "another filter");
            ensure!(value["typed_config"]["@type"] == filters[0]["typed_config"]["@type"], "another type");
            merge(&mut filters[0], value, Lists::Appended);
            Ok(1)
        }
        ("HTTP_FILTER", "INSERT_BEFORE") => {
            let name = &matched["listener"]["filterChain"]["filter"]["subFilter"]["name"];
            let chain = filters[0]["typed_config"]["http_filters"].as_array_mut().context("no filters")?;
            let place = chain.iter().position(|filter| filter["name"] == *name).context("no such filter")?;
            chain.insert(place, value.clone());
            Ok(1)
        }
        ("HTTP_FILTER", "INSERT_FIRST") => {
            ensure!(matched["listener"]["filterChain"]["filter"]["name"] == MANAGER, "another filter");
            let chain = filters[0]["typed_config"]["http_filters"].as_array_mut().context("no filters")?;
            chain.insert(0, value.clone());
            Ok(1)
        }
        ("HTTP_ROUTE", "MERGE") => {
            let name = &matched["routeConfiguration"]["vhost"]["route"]["name"];
            let host = &mut filters[0]["typed_config"]["route_config"]["virtual_hosts"][0];
            let routes = host["routes"].as_array_mut().context("no routes")?;
            let found = routes.iter_mut().filter(|route| route["name"] == *name);
            Ok(found.map(|route| merge(route, value, Lists::Appended)).count())
        }
        _ => bail!("what {operation} does to a {to} is not known here"),
    }
}

/// Whether a patch for `matched` is for this cluster: by the parts of its name.
fn is_meant(cluster: &Value, matched: &Value) -> bool {
    let parts: Vec<&str> = text(&cluster["name"]).split('|').collect();
    let [_, port, _, service] = parts[..] else { return false };
    let is_port = matched.get("portNumber").is_none_or(|number| number.as_u64() == port.parse().ok());
    is_port && matched["service"] == service
}

/// Whether there is a value in it that protobuf takes for one that was left out.
fn says_nothing(value: &Value) -> bool {
    match value {
        Value::Object(fields) => fields.values().any(says_nothing),
        Value::Array(items) => items.iter().any(says_nothing),
        other => *other == json!(0) || *other == json!(false) || *other == json!(""),
    }
}
