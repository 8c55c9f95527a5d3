//! The stack's Envoy is configured as everybody's.

use anyhow::{Result, ensure};
use harness::envoy::Bootstrap;
use serde_json::{Value, json};

#[test]
fn nothing_but_names_differs_from_envoy_yaml() -> Result<()> {
    let (mut plain, stack) = (Bootstrap::read("envoy.yaml")?, Bootstrap::read("compose/envoy.yaml")?);
    plain.wasm()["vm_config"]["code"]["local"]["filename"] = json!("/etc/mooring/mooring.wasm");
    let endpoints = |addresses: Vec<Value>| {
        addresses.into_iter().map(|address| json!({"endpoint": {"address": address}})).collect::<Value>()
    };
    for (name, port) in [("odoo", 8069), ("odoo_gevent", 8072)] {
        let nodes = (1..=3)
            .map(|node| json!({"socket_address": {"address": format!("odoo-{node}"), "port_value": port}}));
        let cluster = plain.cluster(name);
        cluster["type"] = json!("STRICT_DNS");
        cluster["dns_lookup_family"] = json!("V4_ONLY");
        cluster["dns_refresh_rate"] = json!("1s");
        cluster["load_assignment"]["endpoints"][0]["lb_endpoints"] = endpoints(nodes.collect());
    }
    let socket = json!({"pipe": {"path": "/run/mooring/mooring.sock"}});
    plain.cluster("mooring")["load_assignment"]["endpoints"][0]["lb_endpoints"] = endpoints(vec![socket]);
    for part in ["admin", "static_resources", "overload_manager"] {
        let (plain, stack) = (&plain.0[part], &stack.0[part]);
        ensure!(plain == stack, "{part} differs:\n{plain:#}\n{stack:#}");
    }
    ensure!(plain.0 == stack.0, "one has what the other has not");
    Ok(())
}
