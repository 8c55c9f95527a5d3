//! Whoever breaks into one container finds the secrets of that one.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::schema::stack;

/// Whose secrets each service may mount, by the image that it runs.
const ALLOWED: [(&str, &str); 4] = [
    ("odoo:", "odoo-secrets"),
    ("mooring:", "mooring-secrets"),
    ("redis:", "redis-secrets"),
    ("postgres:", "postgres-secrets"),
];

/// The volumes and folders that a service mounts.
fn sources(service: &Value) -> Vec<String> {
    let mounts = service["volumes"].as_array().into_iter().flatten();
    let source = |mount: &Value| match mount["source"].as_str() {
        Some(source) => source.to_owned(),
        None => mount.as_str().unwrap_or_default().split(':').next().unwrap_or_default().to_owned(),
    };
    mounts.map(source).collect()
}

/// Secrets that a service sees and is not to see.
fn problems(stack: &Value) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for (name, service) in stack["services"].as_object().context("no services")? {
        // Makes them, without a network, and ends.
        if name == "prepare" {
            ensure!(service["network_mode"] == "none", "whoever makes the secrets is on a network");
            continue;
        }
        let image = service["image"].as_str().unwrap_or_default();
        let own = ALLOWED.iter().find(|(of, _)| image.starts_with(of)).map(|(_, volume)| *volume);
        for source in sources(service).iter().filter(|source| source.contains("secret")) {
            if Some(source.as_str()) != own {
                found.push(format!("{name} mounts {source}"));
            }
        }
        if let Some(secrets) = service.get("secrets") {
            found.push(format!("{name} has {secrets}"));
        }
        let variables = service["environment"].as_object().into_iter().flatten();
        for (variable, value) in variables.filter(|(name, _)| is_secret(name)) {
            found.push(format!("{name} has {variable} in its environment: {value}"));
        }
    }
    Ok(found)
}

/// Whether a variable holds a secret, not the name of a file with one.
fn is_secret(variable: &str) -> bool {
    ["PASSWORD", "SECRET", "TOKEN"].iter().any(|word| variable.contains(word)) && !variable.ends_with("FILE")
}

#[test]
fn each_service_sees_its_own_secrets() -> Result<()> {
    let mut stack = stack()?;
    let found = problems(&stack)?;
    ensure!(found.is_empty(), "{}", found.join("; "));
    let users = |wanted: &str| {
        let services = stack["services"].as_object().into_iter().flatten();
        services.filter(|(_, service)| sources(service).iter().any(|it| it == wanted)).count()
    };
    let users: BTreeMap<&str, usize> = ALLOWED.iter().map(|(_, volume)| (*volume, users(volume))).collect();
    ensure!(users.values().all(|users| *users > 1), "only prepare has it: {users:?}");

    for (service, volume) in [
        ("odoo-1", json!("mooring-secrets:/run/secrets/mooring:ro")),
        ("odoo-init", json!("redis-secrets:/tmp")),
        ("envoy", json!({"type": "volume", "source": "mooring-secrets", "target": "/tmp"})),
        ("standin-2", json!("odoo-secrets:/tmp")),
    ] {
        let volumes = &mut stack["services"][service]["volumes"];
        volumes.as_array_mut().context("no volumes")?.push(volume);
        let found = problems(&stack)?;
        ensure!(found.len() == 1 && found[0].starts_with(service), "{service}: {found:?}");
        stack["services"][service]["volumes"].as_array_mut().context("no volumes")?.pop();
    }
    stack["services"]["odoo-2"]["environment"]["PGPASSWORD"] = json!("odoo");
    ensure!(problems(&stack)?.len() == 1, "a password in the environment is not seen");
    Ok(())
}
