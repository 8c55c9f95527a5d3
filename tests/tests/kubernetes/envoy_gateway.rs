//! What Envoy Gateway makes of the manifests, as its documentation says and as versions 1.8 and 1.9 do it,
//! as far as it matters here: one listener, a route and a cluster for each rule of an HTTPRoute.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::{
    eds, json_patch,
    manifests::{Lists, Manifests, list, merge, text, title},
    mesh::previous_hosts,
};

const WASM: &str = "envoy.filters.http.wasm/envoyextensionpolicy/odoo/odoo/wasm/0";
const SESSION: &str = "envoy.filters.http.stateful_session";

/// The bootstrap of the gateway.
pub(crate) fn bootstrap(manifests: &Manifests, endpoints: &Path) -> Result<Value> {
    let mut routes: Vec<&Value> = manifests.all("HTTPRoute").collect();
    // The longest path first, then whoever asks for a method.
    routes.sort_by_key(|route| {
        let matched = &route["spec"]["rules"][0]["matches"][0];
        std::cmp::Reverse((text(&matched["path"]["value"]).len(), matched.get("method").is_some()))
    });
    let mut bootstrap = json!({
        "admin": {"address": {}},
        "static_resources": {"listeners": [listener(manifests, &routes)?], "clusters": []},
    });
    let clusters: Result<Vec<Value>> =
        routes.iter().map(|route| Ok(cluster(route, &policy(manifests, route)?, endpoints))).collect();
    bootstrap["static_resources"]["clusters"] = clusters?.into();
    for patch in list(&manifests.one("EnvoyProxy")?["spec"]["bootstrap"]["jsonPatches"]) {
        json_patch::apply(&mut bootstrap, patch)?;
    }
    for policy in manifests.all("EnvoyPatchPolicy") {
        for patch in list(&policy["spec"]["jsonPatches"]) {
            let kind = if text(&patch["type"]).ends_with(".Listener") { "listeners" } else { "clusters" };
            let resources = bootstrap["static_resources"][kind].as_array_mut().context("no resources")?;
            let named = resources.iter_mut().find(|resource| resource["name"] == patch["name"]);
            let resource = named.with_context(|| format!("no {kind} named {}", patch["name"]))?;
            json_patch::apply(resource, &patch["operation"])?;
        }
    }
    // A bootstrap has no default chain beside others: the only chain there is.
    let listener = &mut bootstrap["static_resources"]["listeners"][0];
    if let Some(chain) = listener.as_object_mut().and_then(|it| it.remove("default_filter_chain")) {
        listener["filter_chains"] = json!([chain]);
    }
    Ok(bootstrap)
}

/// The variables that Envoy's pods get from the key `token` of a Secret.
pub(crate) fn variables_with_the_token(manifests: &Manifests) -> Result<Vec<String>> {
    let provider = &manifests.one("EnvoyProxy")?["spec"]["provider"]["kubernetes"];
    let variables = list(&provider["envoyDeployment"]["container"]["env"]).iter();
    let with_token = variables.filter(|variable| variable["valueFrom"]["secretKeyRef"]["key"] == "token");
    Ok(with_token.map(|variable| text(&variable["name"]).to_owned()).collect())
}

/// The name of the cluster of a route's only rule.
pub(crate) fn cluster_name(route: &Value) -> String {
    format!("httproute/odoo/{}/rule/0", text(&route["metadata"]["name"]))
}

/// The policy for a route: its own, merged into that of the gateway.
fn policy(manifests: &Manifests, route: &Value) -> Result<Value> {
    let of = |kind: &str, name: &Value| {
        let kind = json!(kind);
        manifests.all("BackendTrafficPolicy").find(move |policy| {
            let target = &policy["spec"]["targetRefs"][0];
            target["kind"] == kind && target["name"] == *name
        })
    };
    let gateway = &route["spec"]["parentRefs"][0]["name"];
    let mut merged = of("Gateway", gateway).context("no policy for the gateway")?["spec"].clone();
    if let Some(own) = of("HTTPRoute", &route["metadata"]["name"]) {
        ensure!(own["spec"]["mergeType"] == "StrategicMerge", "{} would replace", title(own));
        merge(&mut merged, &own["spec"], Lists::Replaced);
    }
    Ok(merged)
}

fn listener(manifests: &Manifests, routes: &[&Value]) -> Result<Value> {
    let client = &manifests.one("ClientTrafficPolicy")?["spec"];
    let timeout = &client["timeout"]["http"];
    let order = &manifests.one("EnvoyProxy")?["spec"]["filterOrder"];
    ensure!(
        *order == json!([{"name": SESSION, "after": "envoy.filters.http.wasm"}]),
        "in Envoy Gateway's own order stateful_session comes before wasm"
    );
    let routes: Result<Vec<Value>> =
        routes.iter().map(|route| routes_of(route, &policy(manifests, route)?)).collect();
    let routes: Vec<Value> = routes?.into_iter().flat_map(|routes| list(&routes).to_vec()).collect();
    let router = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";
    let mutation =
        "type.googleapis.com/envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation";
    let manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "http-80",
        "use_remote_address": true,
        "normalize_path": true,
        "merge_slashes": client["path"]["disableMergeSlashes"] != true,
        "path_with_escaped_slashes_action":
            constant(client["path"]["escapedSlashesAction"].as_str().unwrap_or("UnescapeAndRedirect")),
        "server_header_transformation": "PASS_THROUGH",
        "common_http_protocol_options": {
            "headers_with_underscores_action":
                constant(client["headers"]["withUnderscoresAction"].as_str().unwrap_or("RejectRequest")),
            "idle_timeout": seconds(&timeout["idleTimeout"]),
        },
        "http2_protocol_options": {
            "max_concurrent_streams": client["http2"]["maxConcurrentStreams"].as_u64().unwrap_or(100),
            "initial_stream_window_size": bytes(&client["http2"]["initialStreamWindowSize"]).unwrap_or(65_536),
            "initial_connection_window_size":
                bytes(&client["http2"]["initialConnectionWindowSize"]).unwrap_or(1_048_576),
        },
        "stream_idle_timeout": seconds(&timeout["streamIdleTimeout"]),
        "request_headers_timeout": seconds(&timeout["requestHeadersReceivedTimeout"]),
        "early_header_mutation_extensions": [{
            "name": "envoy.http.early_header_mutation.header_mutation",
            "typed_config": {"@type": mutation, "mutations": removed(&client["headers"]["earlyRequestHeaders"])},
        }],
        "http_filters": [
            health(&client["healthCheck"]),
            {"name": "envoy.filters.http.header_mutation", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutation",
                "mutations": {"response_mutations": removed(&client["headers"]["lateResponseHeaders"])},
            }},
            wasm(&manifests.one("EnvoyExtensionPolicy")?["spec"]["wasm"][0]),
            {"name": SESSION, "disabled": true, "typed_config": stateful_session()},
            {"name": "envoy.filters.http.router", "typed_config": {"@type": router}},
        ],
        "route_config": {
            "name": "odoo/odoo/http",
            // By the routes' host; here for any, since browsers come by address.
            "virtual_hosts": [{"name": "odoo/odoo/http/odoo_example_com", "domains": ["*"], "routes": routes}],
        },
    });
    let listeners = list(&manifests.one("Gateway")?["spec"]["listeners"]);
    let mut listener = json!({
        "name": format!("odoo/odoo/{}", text(&listeners[0]["name"])),
        "address": {},
        "per_connection_buffer_limit_bytes": bytes(&client["connection"]["bufferLimit"]).unwrap_or(32_768),
    });
    let filters = json!([{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]);
    if listeners[0]["protocol"] == "HTTPS" {
        listener["filter_chains"] = listeners.iter().map(|it| tls_chain(it, &filters)).collect();
    } else {
        listener["default_filter_chain"] = json!({"filters": filters});
    }
    Ok(listener)
}

/// The filter chain of a listener with TLS; it gets its certificate by SDS.
fn tls_chain(listener: &Value, filters: &Value) -> Value {
    let context = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext";
    let certificates = list(&listener["tls"]["certificateRefs"]).iter().map(|certificate| {
        let source = json!({"ads": {}, "resource_api_version": "V3"});
        json!({"name": format!("odoo/{}", text(&certificate["name"])), "sds_config": source})
    });
    let common = json!({
        "alpn_protocols": ["h2", "http/1.1"],
        "tls_certificate_sds_secret_configs": certificates.collect::<Value>(),
    });
    let socket = json!({"@type": context, "common_tls_context": common});
    let mut chain = json!({
        "name": format!("odoo/odoo/{}", text(&listener["name"])),
        "filters": filters,
        "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": socket},
    });
    if let Some(host) = listener["hostname"].as_str() {
        chain["filter_chain_match"] = json!({"server_names": [host]});
    }
    chain
}

/// The headers that are removed: by name, then by what their names begin with.
fn removed(headers: &Value) -> Value {
    let by_name = list(&headers["remove"]).iter().map(|name| json!({"remove": name}));
    let by_match = list(&headers["removeOnMatch"]).iter().map(|matched| {
        let kind = text(&matched["type"]).to_lowercase();
        json!({"remove_on_match": {"key_matcher": {kind: matched["value"]}}})
    });
    by_name.chain(by_match).collect()
}

/// The filter that answers balancers; it looks at no cluster.
fn health(check: &Value) -> Value {
    let kind = "type.googleapis.com/envoy.extensions.filters.http.health_check.v3.HealthCheck";
    let path = json!([{"name": ":path", "string_match": {"exact": check["path"]}}]);
    json!({
        "name": "envoy.filters.http.health_check",
        "typed_config": {"@type": kind, "pass_through_mode": false, "headers": path},
    })
}

fn wasm(wasm: &Value) -> Value {
    json!({
        "name": WASM,
        "disabled": true,
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm",
            "config": {
                "name": wasm["name"],
                "root_id": wasm["rootID"],
                "fail_open": wasm["failOpen"],
                "configuration": {
                    "@type": "type.googleapis.com/google.protobuf.StringValue",
                    "value": wasm["config"].to_string(),
                },
                "vm_config": {
                    "vm_id": WASM.split_once('/').map(|(_, name)| name),
                    "runtime": "envoy.wasm.runtime.v8",
                    "environment_variables": {"host_env_keys": wasm["env"]["hostKeys"]},
                    // Envoy Gateway serves the image's file to Envoy over HTTP.
                    "code": {"local": {"filename": harness::filter()}},
                },
            },
        },
    })
}

fn stateful_session() -> Value {
    json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.http.stateful_session.v3.StatefulSession",
        "session_state": {
            "name": "envoy.http.stateful_session.header",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.http.stateful_session.header.v3.HeaderBasedSessionState",
                "name": "x-mooring-upstream",
            },
        },
    })
}

fn routes_of(route: &Value, policy: &Value) -> Result<Value> {
    let [rule] = list(&route["spec"]["rules"]) else { bail!("{}: several rules", title(route)) };
    let [filter] = list(&rule["filters"]) else { bail!("{}: other filters", title(route)) };
    let headers = &filter["requestHeaderModifier"];
    let add = list(&headers["set"]).iter().map(|header| {
        json!({
            "header": {"key": header["name"], "value": header["value"]},
            "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
        })
    });
    let persistence = &rule["sessionPersistence"];
    ensure!(persistence["type"] == "Header" && persistence["sessionName"] == "x-mooring-upstream");
    let triggers: Vec<&str> = list(&policy["retry"]["retryOn"]["triggers"]).iter().map(text).collect();
    let mut action = json!({
        "cluster": cluster_name(route),
        "timeout": rule["timeouts"]["request"],
        "upgrade_configs": [{"upgrade_type": "websocket"}],
        "hash_policy": [{"cookie": policy["loadBalancer"]["consistentHash"]["cookie"]}],
        "retry_policy": {
            "retry_on": triggers.join(","),
            "num_retries": policy["retry"]["numRetries"],
            "retry_host_predicate": previous_hosts(),
            "host_selection_retry_max_attempts": 5,
        },
    });
    if let Some(idle) = policy["timeout"]["http"].get("streamIdleTimeout") {
        action["idle_timeout"] = seconds(idle);
    }
    let kind =
        "type.googleapis.com/envoy.extensions.filters.http.stateful_session.v3.StatefulSessionPerRoute";
    let enabled = json!({"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "config": {}});
    let routes = list(&rule["matches"]).iter().map(|matched| {
        json!({
            "match": route_match(matched),
            "request_headers_to_add": add.clone().collect::<Value>(),
            "request_headers_to_remove": headers["remove"],
            "route": action,
            "typed_per_filter_config": {
                WASM: enabled,
                SESSION: {"@type": kind, "stateful_session": own_fields(stateful_session())},
            },
        })
    });
    Ok(routes.collect())
}

/// A message where its type is known.
fn own_fields(mut message: Value) -> Value {
    message.as_object_mut().map(|fields| fields.remove("@type"));
    message
}

fn route_match(matched: &Value) -> Value {
    let path = &matched["path"]["value"];
    let mut found = if path == "/" { json!({"prefix": "/"}) } else { json!({"path_separated_prefix": path}) };
    if let Some(method) = matched.get("method") {
        found["headers"] = json!([{"name": ":method", "string_match": {"exact": method}}]);
    }
    found
}

fn cluster(route: &Value, policy: &Value, endpoints: &Path) -> Value {
    let (active, passive) = (&policy["healthCheck"]["active"], &policy["healthCheck"]["passive"]);
    let (breaker, name) = (&policy["circuitBreaker"], cluster_name(route));
    let sources = list(&policy["loadBalancer"]["endpointOverride"]["extractFrom"]);
    let policies = "type.googleapis.com/envoy.extensions.load_balancing_policies";
    let extension = |name: &str, config: Value| {
        let name = format!("envoy.load_balancing_policies.{name}");
        json!({"policies": [{"typed_extension_config": {"name": name, "typed_config": config}}]})
    };
    json!({
        "name": name,
        "type": "EDS",
        "eds_cluster_config": eds::config(endpoints, &name),
        "connect_timeout": policy["timeout"]["tcp"]["connectTimeout"],
        "per_connection_buffer_limit_bytes": bytes(&policy["connection"]["bufferLimit"]).unwrap_or(32_768),
        "ignore_health_on_host_removal": true,
        "common_lb_config": {"healthy_panic_threshold": {"value": policy["healthCheck"]["panicThreshold"]}},
        "load_balancing_policy": extension("override_host", json!({
            "@type": format!("{policies}.override_host.v3.OverrideHost"),
            "override_host_sources": sources,
            "fallback_policy":
                extension("maglev", json!({"@type": format!("{policies}.maglev.v3.Maglev")})),
        })),
        "health_checks": [{
            "timeout": active["timeout"],
            "interval": active["interval"],
            "unhealthy_threshold": active["unhealthyThreshold"],
            "healthy_threshold": active["healthyThreshold"],
            "http_health_check": {"host": "odoo.example.com", "path": active["http"]["path"]},
        }],
        "outlier_detection": {
            "split_external_local_origin_errors": passive["splitExternalLocalOriginErrors"],
            "consecutive_local_origin_failure": passive["consecutiveLocalOriginFailures"],
            "consecutive_5xx": passive["consecutive5XxErrors"],
            "interval": passive["interval"],
            "base_ejection_time": passive["baseEjectionTime"],
            "max_ejection_percent": passive["maxEjectionPercent"],
        },
        "circuit_breakers": {"thresholds": [{
            "max_connections": breaker["maxConnections"],
            "max_pending_requests": breaker["maxPendingRequests"],
            "max_requests": breaker["maxParallelRequests"],
            "max_retries": breaker["maxParallelRetries"],
        }]},
    })
}

/// A word of Envoy Gateway, such as KeepUnchanged, as Envoy has it.
fn constant(word: &str) -> String {
    let mut constant = String::new();
    for letter in word.chars() {
        if letter.is_uppercase() && !constant.is_empty() {
            constant.push('_');
        }
        constant.push(letter.to_ascii_uppercase());
    }
    constant
}

/// A quantity of Envoy Gateway, such as 256Ki; none if there is none.
fn bytes(quantity: &Value) -> Option<u64> {
    let quantity = quantity.as_str()?;
    let (number, shift) = match (quantity.strip_suffix("Ki"), quantity.strip_suffix("Mi")) {
        (Some(number), _) => (number, 10),
        (_, Some(number)) => (number, 20),
        _ => (quantity, 0),
    };
    Some(number.parse::<u64>().ok()? << shift)
}

/// A duration of Envoy Gateway, such as 12m, as Envoy has it.
fn seconds(duration: &Value) -> Value {
    let text = text(duration);
    let (number, unit) = text.split_at(text.len().saturating_sub(1));
    let factor = match unit {
        "h" => 3_600,
        "m" => 60,
        _ => 1,
    };
    number.parse::<u64>().map_or(Value::Null, |number| format!("{}s", number * factor).into())
}
