//! Whoever breaks into Odoo finds the secrets of Odoo: neither what seals sessions nor Redis' password.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::manifests::{Manifests, folders, list, text};

/// The Secrets that a container sees, in its environment or as files.
fn secrets(pod: &Value, container: &Value) -> BTreeSet<String> {
    let variables = list(&container["env"]).iter().map(|it| &it["valueFrom"]["secretKeyRef"]["name"]);
    let whole = list(&container["envFrom"]).iter().map(|it| &it["secretRef"]["name"]);
    let mounted = list(&container["volumeMounts"]).iter().flat_map(|mount| {
        let volume = list(&pod["volumes"]).iter().find(|volume| volume["name"] == mount["name"]);
        let parts = volume.into_iter().flat_map(|volume| list(&volume["projected"]["sources"]));
        let parts = parts.map(|part| &part["secret"]["name"]);
        volume.into_iter().map(|volume| &volume["secret"]["secretName"]).chain(parts)
    });
    variables
        .chain(whole)
        .chain(mounted)
        .map(text)
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

/// What each container of a pod sees and is not to see.
fn problems(pod: &Value) -> Vec<String> {
    let all = [list(&pod["initContainers"]), list(&pod["containers"])].concat();
    let seen = all.iter().map(|container| {
        let own = if container["name"] == "odoo" { "odoo-database" } else { "mooring" };
        let others: Vec<String> = secrets(pod, container).into_iter().filter(|name| name != own).collect();
        (text(&container["name"]).to_owned(), others)
    });
    seen.filter(|(_, others)| !others.is_empty())
        .map(|(name, others)| format!("{name} sees {others:?}"))
        .collect()
}

#[test]
fn each_container_sees_its_own_secrets() -> Result<()> {
    let mut pods = 0;
    for folder in folders()? {
        for set in Manifests::build(&folder)?.all("StatefulSet") {
            let found = problems(&set["spec"]["template"]["spec"]);
            ensure!(found.is_empty(), "{folder}: {}", found.join("; "));
            pods += 1;
        }
    }
    ensure!(pods > 4, "only {pods} StatefulSets");

    let set = Manifests::build("kubernetes")?.named("StatefulSet", "odoo")?.clone();
    let pod = &set["spec"]["template"]["spec"];
    let slips = [
        ("volumeMounts", json!({"name": "mooring", "mountPath": "/etc/mooring"})),
        ("volumeMounts", json!({"name": "all", "mountPath": "/all"})),
        ("envFrom", json!({"secretRef": {"name": "mooring"}})),
        ("env", json!({"name": "A", "valueFrom": {"secretKeyRef": {"name": "mooring", "key": "secret"}}})),
    ];
    for (field, slip) in slips {
        let mut pod = pod.clone();
        let all = json!({"name": "all", "projected": {"sources": [{"secret": {"name": "mooring"}}]}});
        pod["volumes"].as_array_mut().expect("volumes").push(all);
        let mut entries = list(&pod["containers"][0][field]).to_vec();
        entries.push(slip.clone());
        pod["containers"][0][field] = entries.into();
        ensure!(problems(&pod) == ["odoo sees [\"mooring\"]"], "{slip}: {:?}", problems(&pod));
    }
    Ok(())
}
