//! What users load: both tiers, the oldest Envoy and the newest, and configurations that are refused; how
//! they treat what clients and other proxies say.

mod balancer;
mod guide;
mod headers;

use anyhow::{Result, ensure};
use harness::{
    browser::{self, tally},
    envoy::Bootstrap,
    stack::{Options, Stack},
    tools::OLDEST_ENVOY,
};
use serde_json::{Value, json};

/// Logs people in, kills a node, and sees that everybody else stays and nobody gets an error.
async fn sticks_and_fails_over(stack: &mut Stack) -> Result<()> {
    let http = browser::http1();
    let mut people = Vec::new();
    for number in 0..40 {
        let mut browser = stack.browser(&http);
        browser.sid = Some(browser::random_sid());
        let node = browser.log_in(&format!("user{number}")).await?.node().to_owned();
        for _ in 0..5 {
            let answer = browser.get("/odoo").await?;
            ensure!(answer.node() == node, "user{number} moved from {node} to {}", answer.node());
            let seen = answer.header("x-standin-seen");
            ensure!(["", "x-mooring-next"].contains(&seen), "Odoo was sent {seen}");
        }
        let echo = browser.websocket("hi").await?;
        ensure!(echo.starts_with(&node), "the websocket of {node} says {echo}");
        people.push((browser, node));
    }
    ensure!(tally(people.iter().map(|(_, node)| node)).len() == 3, "not every node has people");
    stack.kill_node("odoo-1");
    for (browser, node) in &mut people {
        let answer = browser.get("/web/static/x.css").await?;
        ensure!(answer.status == 200, "status {}", answer.status);
        ensure!((answer.node() == node) == (node != "odoo-1"), "somebody of {node} is on {}", answer.node());
    }
    Ok(())
}

#[tokio::test]
async fn the_oldest_envoy() -> Result<()> {
    let options = Options { envoy_version: Some(OLDEST_ENVOY), ..Options::default() };
    sticks_and_fails_over(&mut Stack::start(options).await?).await
}

#[tokio::test]
async fn the_simple_tier() -> Result<()> {
    let options = Options { bootstrap: "envoy-simple.yaml", ..Options::default() };
    sticks_and_fails_over(&mut Stack::start(options).await?).await
}

#[tokio::test]
async fn without_a_sidecar() -> Result<()> {
    // The nodes are known only once ports are chosen, so the configuration is made from the clusters.
    let mut stack = Stack::start_with(Options::default(), |bootstrap| {
        let addresses = |cluster: &Value| -> Vec<String> {
            let endpoints = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"].as_array();
            let address = |endpoint: &Value| {
                format!("127.0.0.1:{}", endpoint["endpoint"]["address"]["socket_address"]["port_value"])
            };
            endpoints.into_iter().flatten().map(address).collect()
        };
        let http = addresses(bootstrap.cluster("odoo"));
        let gevent = addresses(bootstrap.cluster("odoo_gevent"));
        let nodes: Vec<Value> = http
            .iter()
            .zip(&gevent)
            .enumerate()
            .map(|(place, (http, gevent))| {
                json!({"id": format!("odoo-{}", place + 1), "http": http, "gevent": gevent})
            })
            .collect();
        bootstrap.wasm()["configuration"]["value"] = json!({"nodes": nodes}).to_string().into();
    })
    .await?;
    stack.sidecar.take().expect("a sidecar").kill();
    sticks_and_fails_over(&mut stack).await
}

#[tokio::test]
async fn envoy_refuses_a_bad_configuration_and_says_where() -> Result<()> {
    for (value, expected) in [
        (r#"{"sidecar_cluster": "mooring", "trusted_proxy": 1}"#, "trusted_proxy: unknown field"),
        (r#"{"nodes": [{"id": "odoo-1", "http": "odoo:8069"}]}"#, "nodes[0].http: expected ip:port"),
        (
            r#"{"sidecar_cluster": "mooring", "sidecar_token_env": "TOKEN"}"#,
            "sidecar_token_env: no environment",
        ),
        ("{", "line 1, column 2"),
        ("", "expected a JSON object"),
    ] {
        let started = Stack::start_with(Options::default(), |bootstrap| {
            bootstrap.wasm()["configuration"]["value"] = value.into();
        })
        .await;
        let error = started.err().map(|error| format!("{error:#}")).unwrap_or_default();
        ensure!(error.contains(expected), "{value:?}: {expected:?} is not in {error}");
    }
    Ok(())
}

#[test]
fn the_tiers_differ_only_as_they_say() -> Result<()> {
    let mut full = Bootstrap::read("envoy.yaml")?;
    let simple = Bootstrap::read("envoy-simple.yaml")?;
    let manager = full.connection_manager();
    // Older Envoys remove by name, and know no CEL in headers.
    let early = &mut manager["early_header_mutation_extensions"][0]["typed_config"]["mutations"];
    let names = ["x-mooring-upstream", "x-mooring-next", "x-mooring-owner", "x-mooring-key"];
    let named = names.map(|name| json!({"remove": name}));
    early.as_array_mut().expect("a list").splice(0..1, named);
    let bus = &mut manager["route_config"]["virtual_hosts"][0]["routes"][0];
    bus.as_object_mut().expect("an object").remove("request_headers_to_add");
    let removed = &mut manager["route_config"]["virtual_hosts"][0]["request_headers_to_remove"];
    *removed = json!(["x-mooring-upstream", "x-mooring-next"]);
    for name in ["odoo", "odoo_gevent"] {
        let cluster = full.cluster(name).as_object_mut().expect("an object");
        cluster.remove("load_balancing_policy");
        cluster.insert("lb_policy".into(), json!("MAGLEV"));
    }
    ensure!(full.0 == simple.0, "envoy-simple.yaml has drifted from envoy.yaml");
    Ok(())
}
