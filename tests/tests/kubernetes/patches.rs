//! Whether what EnvoyPatchPolicy patches is there, with TLS and without: a patch that finds nothing is lost,
//! and nothing but the policy's status says so.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::{
    envoy_gateway::bootstrap,
    manifests::{Manifests, list, text},
};

/// What users make of the Gateway's listener.
fn listeners() -> [(&'static str, Value); 4] {
    let tls = |host: Value| {
        let certificate = json!({"certificateRefs": [{"name": "odoo-tls"}]});
        json!({"name": "http", "port": 443, "protocol": "HTTPS", "hostname": host, "tls": certificate})
    };
    [
        ("as it is", json!([{"name": "http", "port": 80, "protocol": "HTTP"}])),
        ("with TLS", json!([tls(Value::Null)])),
        ("with TLS for a host", json!([tls("odoo.example.com".into())])),
        ("with TLS for two hosts", json!([tls("a.example.com".into()), tls("b.example.com".into())])),
    ]
}

fn patched(listeners: &Value) -> Result<Manifests> {
    let mut manifests = Manifests::build("gateway/patched")?;
    manifests.one_mut("Gateway")?["spec"]["listeners"] = listeners.clone();
    Ok(manifests)
}

#[test]
fn every_patch_is_applied_with_tls_and_without() -> Result<()> {
    for (what, listeners) in listeners() {
        let mut bootstrap = bootstrap(&patched(&listeners)?, Path::new("/")).context(what)?;
        let listener = bootstrap["static_resources"]["listeners"][0].take();
        let chains = list(&listener["filter_chains"]);
        ensure!(chains.len() == list(&listeners).len(), "{what}: {} chains", chains.len());
        for chain in chains {
            let [filter] = list(&chain["filters"]) else { anyhow::bail!("{what}: {}", chain["filters"]) };
            let manager = &filter["typed_config"];
            ensure!(manager["@type"].is_string(), "{what}: {filter}");
            ensure!(manager["max_request_headers_kb"] == 96, "{what}: headers of another size");
            ensure!(manager["common_http_protocol_options"]["max_headers_count"] == 1_000, "{what}: headers");
            let mut filters = list(&manager["http_filters"]).iter();
            let wasm = filters.find(|filter| text(&filter["name"]).contains("wasm")).context("no filter")?;
            let config = &wasm["typed_config"]["config"];
            ensure!(config["failure_policy"] == "FAIL_RELOAD", "{what}: {config}");
        }
    }
    Ok(())
}

#[test]
fn a_patch_that_finds_nothing_is_found() -> Result<()> {
    let manager = "..filters[?(@.name=='envoy.filters.network.http_connection_manager')]";
    let slips = [
        (
            json!({"path": "/default_filter_chain/filters/0/typed_config/max_request_headers_kb"}),
            "nothing at",
        ),
        (json!({"path": "/filter_chains/1/name"}), "nothing at"),
        (json!({"jsonPath": "..filters[?(@.name=='http')].typed_config", "path": "/a"}), "nothing at"),
        (json!({"jsonPath": format!("{manager}.typed_conf"), "path": "/a"}), "nothing at"),
        (json!({"jsonPath": format!("{manager}.typed_config"), "path": "/common_options/a"}), "nothing at"),
        (json!({"jsonPath": format!("{manager}.typed_config"), "path": "/http_filters/a"}), "can be added"),
    ];
    let [_, (_, tls), ..] = listeners();
    for (slip, expected) in slips {
        let mut manifests = patched(&tls)?;
        let patch = &mut manifests.one_mut("EnvoyPatchPolicy")?["spec"]["jsonPatches"][1];
        let mut operation = json!({"op": "add", "value": 96});
        for (name, value) in slip.as_object().into_iter().flatten() {
            operation[name] = value.clone();
        }
        patch["operation"] = operation;
        let error = bootstrap(&manifests, Path::new("/")).err().map(|error| format!("{error:#}"));
        ensure!(error.as_ref().is_some_and(|error| error.contains(expected)), "{slip}: {error:?}");
    }
    let mut manifests = patched(&tls)?;
    manifests.one_mut("EnvoyPatchPolicy")?["spec"]["jsonPatches"][1]["name"] = json!("odoo/odoo/https");
    ensure!(bootstrap(&manifests, Path::new("/")).is_err(), "a listener that is not there is taken");
    Ok(())
}
