//! How Envoy is to treat Odoo is said in `envoy.yaml`. What Istio and Envoy Gateway make of their manifests
//! says the same, but for what each of them cannot say.

use std::{collections::BTreeSet, path::Path};

use anyhow::{Context, Result, ensure};
use harness::envoy::Bootstrap;
use serde_json::Value;

use crate::{
    envoy_gateway,
    manifests::{Manifests, list, text},
    mesh, schema,
};

/// Requests of every kind.
const REQUESTS: [(&str, &str); 9] = [
    ("GET", "/websocket"),
    ("GET", "/websocket/health"),
    ("GET", "/websocketry"),
    ("POST", "/longpolling/poll"),
    ("GET", "/"),
    ("GET", "/odoo"),
    ("HEAD", "/odoo"),
    ("POST", "/web/login"),
    ("PUT", "/web"),
];

/// Where `found` lacks a field of `expected`, or has another value there.
fn compare(expected: &Value, found: &Value, path: &str, differences: &mut BTreeSet<String>) {
    match (expected, found) {
        (Value::Object(expected), _) => {
            for (name, value) in expected {
                compare(value, &found[name], &format!("{path}.{name}"), differences);
            }
        }
        (Value::Array(expected), Value::Array(found)) if !expected.is_empty() => {
            for (place, value) in expected.iter().enumerate() {
                let found = found.get(place).unwrap_or(&Value::Null);
                compare(value, found, &format!("{path}[{place}]"), differences);
            }
        }
        // Two ways to say one thing.
        (Value::String(text), Value::Null) if text == "0s" => {}
        (Value::Bool(false), Value::Null) => {}
        (Value::Number(number), Value::Null) if number.as_u64() == Some(0) && path.ends_with("_hops") => {}
        _ if expected == found => {}
        _ => drop(differences.insert(path.to_owned())),
    }
}

/// The route that a request takes.
fn route<'a>(routes: &'a Value, method: &str, path: &str) -> Option<&'a Value> {
    list(routes).iter().find(|route| {
        let matched = &route["match"];
        let is_path = match (&matched["prefix"], &matched["path"], &matched["path_separated_prefix"]) {
            (Value::String(prefix), ..) => path.starts_with(prefix),
            (_, Value::String(whole), _) => path == whole,
            (.., Value::String(prefix)) => path
                .strip_prefix(prefix.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
            _ => false,
        };
        let wanted = &matched["headers"][0]["string_match"]["exact"];
        is_path && (wanted.is_null() || wanted == method)
    })
}

/// What `file` says and a gateway's bootstrap does not. `gevent` are the gateway's clusters for the bus.
fn differences(file: &str, found: Value, gevent: &[String]) -> Result<BTreeSet<String>> {
    let (mut own, mut found) = (Bootstrap::read(file)?, Bootstrap(found));
    let mut differences = BTreeSet::new();
    let buffer = |bootstrap: &Bootstrap| {
        bootstrap.0["static_resources"]["listeners"][0]["per_connection_buffer_limit_bytes"].clone()
    };
    compare(&buffer(&own), &buffer(&found), "buffer", &mut differences);

    let mut manager = own.connection_manager().take();
    let mut other = found.connection_manager().take();
    let filters = [&mut manager, &mut other].map(|manager| manager["http_filters"].take());
    compare_filters(&filters[0], &filters[1], &mut differences)?;
    let hosts = [&mut manager, &mut other].map(|manager| manager["route_config"]["virtual_hosts"][0].take());
    for side in [&mut manager, &mut other] {
        // In whatever order.
        let early = &mut side["early_header_mutation_extensions"][0]["typed_config"]["mutations"];
        early.as_array_mut().context("no headers are removed")?.sort_by_key(Value::to_string);
    }
    for name in ["stat_prefix", "route_config", "http_filters"] {
        manager.as_object_mut().context("no manager")?.remove(name);
    }
    compare(&manager, &other, "manager", &mut differences);

    for (method, path) in REQUESTS {
        let [own_route, other_route] =
            [0, 1].map(|place: usize| route(&hosts[place]["routes"], method, path));
        let (own_route, other_route) = (own_route.context("no route")?, other_route.context("no route")?);
        for name in ["request_headers_to_add", "request_headers_to_remove"] {
            // Of the route, where envoy.yaml has most of them of the host.
            let own = [list(&hosts[0][name]), list(&own_route[name])].concat();
            compare(&own.into(), &other_route[name], name, &mut differences);
        }
        let mut expected = own_route["route"].clone();
        let (cluster, name) = (text(&expected["cluster"]).to_owned(), text(&other_route["route"]["cluster"]));
        ensure!(gevent.iter().any(|gevent| gevent == name) == (cluster == "odoo_gevent"), "{method} {path}");
        // Both try five times to find another host, which is as good.
        for field in ["cluster", "host_selection_retry_max_attempts"] {
            expected.as_object_mut().context("no action")?.remove(field);
        }
        let policy = expected["retry_policy"].as_object_mut().context("no retries")?;
        policy.remove("host_selection_retry_max_attempts");
        compare(&expected, &other_route["route"], "route", &mut differences);

        let mut expected = own.cluster(&cluster).clone();
        for field in ["name", "type", "load_assignment"] {
            expected.as_object_mut().context("no cluster")?.remove(field);
        }
        let other = found.cluster(name).clone();
        let most = |cluster: &Value| {
            let thresholds = cluster["circuit_breakers"]["thresholds"][0].as_object().cloned();
            thresholds.unwrap_or_default().values().filter_map(Value::as_u64).min()
        };
        ensure!(most(&other) >= Some(1_000), "{name} has narrow circuit breakers");
        expected.as_object_mut().context("no cluster")?.remove("circuit_breakers");
        compare(&expected, &other, "cluster", &mut differences);
    }
    for field in ["connect_timeout", "circuit_breakers"] {
        let (own, other) = (own.cluster("mooring")[field].take(), found.cluster("mooring")[field].take());
        compare(&own, &other, &format!("sidecars.{field}"), &mut differences);
    }
    Ok(differences)
}

/// The filters: the same, in the same order, and the wasm filter configured alike but for its token.
fn compare_filters(own: &Value, other: &Value, differences: &mut BTreeSet<String>) -> Result<()> {
    let kind = |filter: &Value| text(&filter["typed_config"]["@type"]).to_owned();
    let mut rest = list(other);
    for filter in list(own) {
        let Some(place) = rest.iter().position(|found| kind(found) == kind(filter)) else {
            differences.insert(text(&filter["name"]).to_owned());
            continue;
        };
        let (mut expected, mut found) = (filter["typed_config"].clone(), rest[place]["typed_config"].clone());
        rest = &rest[place + 1..];
        for side in [&mut expected, &mut found] {
            // By whatever name the gateway calls Odoo's cluster.
            let clusters = side["cluster_min_healthy_percentages"].as_object();
            if let Some(limits) = clusters.map(|clusters| clusters.values().cloned().collect()) {
                side["cluster_min_healthy_percentages"] = limits;
            }
        }
        if filter["name"] == "mooring" {
            let configuration = |filter: &mut Value| -> Result<Value> {
                let value = filter["config"]["configuration"]["value"].take();
                let mut value: Value = serde_json::from_str(text(&value))?;
                value.as_object_mut().map(|fields| fields.remove("sidecar_token_env"));
                Ok(value)
            };
            ensure!(configuration(&mut expected)? == configuration(&mut found)?, "another configuration");
            for side in [&mut expected, &mut found] {
                let config = side["config"].as_object_mut().context("no wasm")?;
                // The gateway's own names, and how it gets at the code.
                config.retain(|name, _| ["root_id", "failure_policy"].contains(&name.as_str()));
            }
        }
        compare(&expected, &found, text(&filter["name"]), differences);
    }
    Ok(())
}

/// Checks that a gateway says all that `file` says, but for `unsaid`.
fn check(
    file: &str,
    folder: &str,
    bootstrap: fn(&Manifests, &Path) -> Result<Value>,
    gevent: &[String],
    unsaid: &[&str],
) -> Result<()> {
    let found = bootstrap(&schema::with_defaults(folder)?, Path::new("/"))?;
    let found = differences(file, found, gevent)?;
    let unsaid: BTreeSet<String> = unsaid.iter().map(|path| (*path).to_owned()).collect();
    let drifted: Vec<_> = found.difference(&unsaid).collect();
    ensure!(drifted.is_empty(), "envoy/{folder} has drifted from {file}: {drifted:?}");
    let said: Vec<_> = unsaid.difference(&found).collect();
    ensure!(said.is_empty(), "envoy/{folder} says now what {file} says: {said:?}");
    Ok(())
}

/// One consistent hash only: a client without a cookie whom the filter cannot place goes anywhere.
const ONE_HASH: [&str; 2] =
    ["route.hash_policy[0].terminal", "route.hash_policy[1].connection_properties.source_ip"];

#[test]
fn istio_says_what_envoy_yaml_says() -> Result<()> {
    let gevent = [mesh::cluster_name(8072)];
    check("envoy.yaml", "istio/full", mesh::bootstrap, &gevent, &ONE_HASH)?;
    check("envoy-simple.yaml", "istio/simple", mesh::bootstrap, &gevent, &ONE_HASH)
}

#[test]
fn envoy_gateway_says_what_envoy_yaml_says() -> Result<()> {
    let gevent = ["httproute/odoo/odoo-bus/rule/0".to_owned()];
    let make = envoy_gateway::bootstrap;
    // What is left to a default that is the same.
    let by_default = [
        "cluster.outlier_detection.enforcing_consecutive_5xx",
        "cluster.outlier_detection.enforcing_consecutive_gateway_failure",
        "cluster.outlier_detection.enforcing_consecutive_local_origin_failure",
        "manager.upgrade_configs",
    ];
    // There is one filter for balancers.
    let unsaid = [&ONE_HASH[..], &by_default, &["httpchk"]].concat();
    check("envoy.yaml", "gateway/patched", make, &gevent, &unsaid)?;
    let patched = [
        "cluster.close_connections_on_host_health_failure",
        "cluster.health_checks[0].no_traffic_interval",
        "cluster.outlier_detection.enforcing_local_origin_success_rate",
        "cluster.outlier_detection.enforcing_success_rate",
        "cluster.outlier_detection.max_ejection_time",
        "health.cluster_min_healthy_percentages",
        "manager.common_http_protocol_options.max_headers_count",
        "manager.http_protocol_options.accept_http_10",
        "manager.http_protocol_options.default_host_for_http_10",
        "manager.max_request_headers_kb",
        "mooring.config.failure_policy",
    ];
    check("envoy.yaml", "gateway/full", make, &gevent, &[&unsaid[..], &patched].concat())
}

#[test]
fn both_find_the_sidecars_alike() -> Result<()> {
    let (istio, gateway) = (Manifests::build("istio/full")?, Manifests::build("gateway/full")?);
    let istio = &istio.named("EnvoyFilter", "mooring-sidecars")?["spec"]["configPatches"][0]["patch"];
    let gateway = &gateway.one("EnvoyProxy")?["spec"]["bootstrap"]["jsonPatches"][0];
    ensure!(istio["value"] == gateway["value"], "the clusters named mooring differ");
    Ok(())
}
