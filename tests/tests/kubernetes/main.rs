//! What a platform's operators apply: each manifest as its schema wants it; what Istio and Envoy Gateway
//! make of them, run in a real Envoy before pods as Kubernetes would start them; and that nothing in them
//! has drifted from `envoy.yaml`.

use anyhow::Result;
use harness::tools::{ENVOY_VERSION, OLDEST_ENVOY};

mod eds;
mod envoy_gateway;
mod istiod;
mod json_patch;
mod manifests;
mod mesh;
mod one_source;
mod patches;
mod pods;
mod schema;
mod secrets;
mod story;

use manifests::Manifests;
use story::Gateway;

/// Istio's gateway, with the manifests of a folder.
async fn istio(folder: &str, version: &str) -> Result<()> {
    let manifests = Manifests::build(folder)?;
    let gateway = Gateway {
        bootstrap: mesh::bootstrap,
        clusters: [8069, 8072].map(|port| (mesh::cluster_name(port), port)).into(),
        variables: mesh::host_keys(manifests.one("WasmPlugin")?),
        has_standby: folder != "istio/simple",
    };
    story::tell(&manifests, &gateway, version).await
}

/// Envoy Gateway, likewise.
async fn envoy_gateway(folder: &str, version: &str) -> Result<()> {
    let manifests = schema::with_defaults(folder)?;
    let ports = manifests.all("HTTPRoute").map(|route| {
        let port = route["spec"]["rules"][0]["backendRefs"][0]["port"].as_u64().unwrap_or_default();
        (envoy_gateway::cluster_name(route), port as u16)
    });
    let gateway = Gateway {
        bootstrap: envoy_gateway::bootstrap,
        clusters: ports.collect(),
        variables: envoy_gateway::variables_with_the_token(&manifests)?,
        has_standby: true,
    };
    story::tell(&manifests, &gateway, version).await
}

// Most of their time is waiting, so two at a time.

#[tokio::test]
async fn istio_with_the_oldest_envoy_and_the_newest() -> Result<()> {
    let (oldest, newest) = (istio("istio/full", OLDEST_ENVOY), istio("istio/full", ENVOY_VERSION));
    tokio::try_join!(oldest, newest).map(drop)
}

#[tokio::test]
async fn istio_without_override_host() -> Result<()> {
    istio("istio/simple", ENVOY_VERSION).await
}

#[tokio::test]
async fn envoy_gateway_with_and_without_patches() -> Result<()> {
    let (full, patched) =
        (envoy_gateway("gateway/full", OLDEST_ENVOY), envoy_gateway("gateway/patched", ENVOY_VERSION));
    tokio::try_join!(full, patched).map(drop)
}
