//! Each point of Envoy's own guide for edges is where docs/edge.md says, with the value that it says, in every
//! bootstrap; `kubernetes/one_source.rs` holds Istio and Envoy Gateway to `envoy.yaml`.

use std::fs;

use anyhow::{Context, Result, ensure};
use harness::{
    browser,
    envoy::Bootstrap,
    root,
    stack::{Options, Stack},
};
use serde_json::Value;

const FILES: [&str; 3] = ["envoy.yaml", "envoy-simple.yaml", "compose/envoy.yaml"];

/// The points of the guide that a connection manager, a listener, a cluster and a bootstrap have.
const POINTS: [&str; 18] = [
    "admin.address",
    "overload_manager.resource_monitors.global_downstream_max_connections.max_active_downstream_connections",
    "overload_manager.resource_monitors.fixed_heap.max_heap_size_bytes",
    "overload_manager.actions.shrink_heap.value",
    "overload_manager.actions.stop_accepting_requests.value",
    "listener.per_connection_buffer_limit_bytes",
    "cluster.per_connection_buffer_limit_bytes",
    "manager.use_remote_address",
    "manager.common_http_protocol_options.idle_timeout",
    "manager.common_http_protocol_options.headers_with_underscores_action",
    "manager.stream_idle_timeout",
    "manager.request_timeout",
    "manager.request_headers_timeout",
    "manager.http2_protocol_options.max_concurrent_streams",
    "manager.http2_protocol_options.initial_stream_window_size",
    "manager.http2_protocol_options.initial_connection_window_size",
    "manager.merge_slashes",
    "manager.path_with_escaped_slashes_action",
];

fn document() -> Result<String> {
    Ok(fs::read_to_string(root().join("docs/edge.md"))?)
}

/// The value of a field: in an object, or in the item of a list that is named so, however deep that is.
fn find<'a>(value: &'a Value, field: &str) -> Option<&'a Value> {
    match value {
        Value::Object(fields) => {
            fields.get(field).or_else(|| fields.values().find_map(|value| find(value, field)))
        }
        Value::Array(items) => {
            let is_named = |item: &&Value| item["name"].as_str().is_some_and(|name| name.ends_with(field));
            items.iter().find(is_named).or_else(|| items.iter().find_map(|item| find(item, field)))
        }
        _ => None,
    }
}

/// What a bootstrap says of a field of the document's table; for clusters, what each of Odoo's says.
fn said(bootstrap: &Bootstrap, field: &str) -> Result<Vec<Option<Value>>> {
    let mut bootstrap = bootstrap.clone();
    let (place, path) = field.split_once('.').context("no place")?;
    let roots = match place {
        "listener" => vec![bootstrap.0["static_resources"]["listeners"][0].clone()],
        "manager" => vec![bootstrap.connection_manager().clone()],
        "cluster" => ["odoo", "odoo_gevent"].map(|name| bootstrap.cluster(name).clone()).to_vec(),
        place => vec![bootstrap.0[place].clone()],
    };
    let mut found = Vec::new();
    for root in roots {
        // A manager's fields are where they are said to be; elsewhere lists and types are left out.
        let value = if place == "manager" {
            root.pointer(&format!("/{}", path.replace('.', "/"))).cloned()
        } else {
            path.split('.').try_fold(&root, |value, field| find(value, field)).cloned()
        };
        let address = |value: &Value| value.pointer("/socket_address/address").cloned();
        found.push(value.map(|value| address(&value).unwrap_or(value)));
    }
    Ok(found)
}

#[test]
fn every_point_of_envoy_s_guide_is_met_or_says_why_not() -> Result<()> {
    let document = document()?;
    let table = document.split("\n\n").find(|part| part.starts_with("| point |")).context("no table")?;
    let rows = table.lines().skip(2).map(|line| line.split('|').map(str::trim).collect::<Vec<_>>());
    let mut met = Vec::new();
    for row in rows {
        let [_, point, field, value, why, _] = row[..] else { anyhow::bail!("another row: {row:?}") };
        ensure!(!point.is_empty(), "a row without a point");
        if field == "none" {
            ensure!(!why.is_empty(), "{point}: no reason");
            continue;
        }
        let (field, expected) = (field.trim_matches('`'), value.trim_matches('`'));
        for file in FILES {
            for found in said(&Bootstrap::read(file)?, field)? {
                let found = found.map_or("none".to_owned(), |found| {
                    found.as_str().map_or_else(|| found.to_string(), str::to_owned)
                });
                ensure!(found == expected, "{file}: {field} is {found}, docs/edge.md says {expected}");
            }
        }
        met.push(field.to_owned());
    }
    for point in POINTS {
        ensure!(met.iter().any(|field| field == point), "docs/edge.md does not speak of {point}");
    }
    Ok(())
}

#[tokio::test]
async fn names_of_headers_can_be_as_odoo_writes_them() -> Result<()> {
    let document = document()?;
    let block = document.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next());
    let block: Value = serde_yaml_ng::from_str(block.context("no block of YAML")?)?;
    let options = Options { nodes: 1, running: 1, ..Options::default() };
    let stack = Stack::start_with(options, |bootstrap| {
        let merge = |target: &mut Value, part: &str| {
            for (field, value) in block[part].as_object().into_iter().flatten() {
                target[field] = value.clone();
            }
        };
        merge(bootstrap.connection_manager(), "manager");
        merge(bootstrap.cluster("odoo"), "cluster");
    })
    .await?;
    let request = b"GET /web/static/x.css HTTP/1.1\r\nHost: odoo\r\nConnection: close\r\n\r\n";
    let as_written = browser::raw(stack.address, request).await?;
    ensure!(as_written.contains("\nX-Standin-Node: odoo-1"), "{as_written}");
    let (_envoy, address) = stack.another_envoy("envoy.yaml", |_| {}).await?;
    let small = browser::raw(address, request).await?;
    ensure!(small.contains("\nx-standin-node: odoo-1"), "{small}");
    Ok(())
}
