//! Endpoints as a control plane tells them, from files that Envoy watches.

use std::{fs, net::SocketAddr, path::Path};

use anyhow::Result;
use harness::envoy::socket;
use serde_json::{Value, json};

/// How a cluster finds its endpoints.
pub(crate) fn config(folder: &Path, cluster: &str) -> Value {
    json!({
        "service_name": cluster,
        "eds_config": {
            "resource_api_version": "V3",
            "path_config_source": {"path": folder.join(file(cluster))},
        },
    })
}

/// Tells the endpoints of a cluster.
pub(crate) fn tell(folder: &Path, cluster: &str, endpoints: &[SocketAddr]) -> Result<()> {
    let endpoints: Value =
        endpoints.iter().map(|address| json!({"endpoint": {"address": socket(*address)}})).collect();
    let assignment = json!({
        "@type": "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
        "cluster_name": cluster,
        "endpoints": [{"lb_endpoints": endpoints}],
    });
    // Envoy looks again when a file is moved to that name.
    let (new, known) = (folder.join("new"), folder.join(file(cluster)));
    fs::write(&new, json!({"resources": [assignment]}).to_string())?;
    Ok(fs::rename(new, known)?)
}

fn file(cluster: &str) -> String {
    format!("{}.json", cluster.replace(['|', '/'], "_"))
}
