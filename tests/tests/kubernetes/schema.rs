//! Whether Kubernetes would take a manifest as it is meant: an object that is valid, and in which it knows
//! every field. (It drops those that it does not know, and says nothing.)

use std::{collections::BTreeSet, fs, path::PathBuf};

use anyhow::{Context, Result, bail, ensure};
use harness::{say, schema, tools};
use k8s_openapi::api::{
    apps::v1::StatefulSet,
    core::v1::{ConfigMap, Service},
    networking::v1::NetworkPolicy,
    policy::v1::PodDisruptionBudget,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::manifests::{Manifests, folders, list, text, title};

/// The schemas of custom resources.
struct Schemas(Vec<Value>);

impl Schemas {
    /// Reads every definition in a folder of YAML files.
    fn read(folder: &PathBuf) -> Result<Self> {
        let mut definitions = Vec::new();
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "yaml") {
                let file = fs::read_to_string(&path)?;
                for document in serde_yaml_ng::Deserializer::from_str(&file) {
                    let definition =
                        Value::deserialize(document).with_context(|| path.display().to_string())?;
                    definitions
                        .extend(Some(definition).filter(|it| it["kind"] == "CustomResourceDefinition"));
                }
            }
        }
        ensure!(!definitions.is_empty(), "no CustomResourceDefinition in {}", folder.display());
        Ok(Self(definitions))
    }

    /// The schema of an object's kind and version.
    fn of(&self, object: &Value) -> Option<&Value> {
        let (group, version) = text(&object["apiVersion"]).split_once('/')?;
        let spec = self.0.iter().map(|definition| &definition["spec"]);
        let mut spec = spec.filter(|spec| spec["group"] == group && spec["names"]["kind"] == object["kind"]);
        let versions = list(&spec.next()?["versions"]);
        let version = versions.iter().find(|found| found["name"] == version)?;
        Some(&version["schema"]["openAPIV3Schema"])
    }

    /// Puts in what the API server does for fields that are left out.
    fn set_defaults(&self, object: &mut Value) {
        if let Some(schema) = self.of(&object.clone()) {
            set_defaults(object, schema);
        }
    }
}

/// The objects of a kustomization with the defaults of their schemas, if there are any.
pub(crate) fn with_defaults(name: &str) -> Result<Manifests> {
    let mut manifests = Manifests::build(name)?;
    match tools::schemas() {
        Some(folder) => {
            let schemas = Schemas::read(&folder)?;
            manifests.0.iter_mut().for_each(|object| schemas.set_defaults(object));
        }
        None => say("SKIPPED: the defaults of custom resources; MOORING_SCHEMAS names no folder"),
    }
    Ok(manifests)
}

fn set_defaults(value: &mut Value, schema: &Value) {
    match value {
        Value::Object(fields) => {
            for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
                if let Some(default) = schema.get("default").filter(|_| !fields.contains_key(name)) {
                    fields.insert(name.clone(), default.clone());
                }
                if let Some(field) = fields.get_mut(name) {
                    set_defaults(field, schema);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| set_defaults(item, &schema["items"])),
        _ => {}
    }
}

/// What is wrong with an object, by its schema.
fn problems(object: &Value, schema: &Value) -> Result<Vec<String>> {
    let mut found = schema::problems(object, schema)?;
    for field in ["apiVersion", "kind", "metadata", "spec"] {
        ensure!(object.get(field).is_some(), "{} has no {field}", title(object));
    }
    unknown(&object["spec"], &schema["properties"]["spec"], "spec", &mut found);
    Ok(found)
}

/// Lists the fields that a schema does not know.
fn unknown(value: &Value, schema: &Value, path: &str, found: &mut Vec<String>) {
    if schema["x-kubernetes-preserve-unknown-fields"] == true {
        return;
    }
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let path = format!("{path}.{name}");
                match schema["properties"].get(name).or_else(|| schema.get("additionalProperties")) {
                    Some(schema) => unknown(value, schema, &path, found),
                    None => found.push(format!("{path}: no such field")),
                }
            }
        }
        Value::Array(items) => {
            for (place, item) in items.iter().enumerate() {
                unknown(item, &schema["items"], &format!("{path}[{place}]"), found);
            }
        }
        _ => {}
    }
}

/// Reads an object as Kubernetes does and writes it again: what is lost, it does not know.
fn comes_back<T: DeserializeOwned + Serialize>(object: &Value) -> Result<()> {
    let read: T = serde_json::from_value(object.clone()).with_context(|| title(object))?;
    let lost = lost(object, &serde_json::to_value(read)?, String::new());
    ensure!(lost.is_empty(), "{}: no such field: {}", title(object), lost.join(", "));
    Ok(())
}

fn lost(before: &Value, after: &Value, path: String) -> Vec<String> {
    match (before, after) {
        (Value::Object(before), Value::Object(after)) => before
            .iter()
            .flat_map(|(name, value)| match after.get(name) {
                Some(other) => lost(value, other, format!("{path}.{name}")),
                None => vec![format!("{path}.{name}")],
            })
            .collect(),
        (Value::Array(before), Value::Array(after)) if before.len() == after.len() => before
            .iter()
            .zip(after)
            .enumerate()
            .flat_map(|(place, (before, after))| lost(before, after, format!("{path}[{place}]")))
            .collect(),
        _ if before == after => vec![],
        _ => vec![path],
    }
}

fn check_own_kind(object: &Value) -> Result<bool> {
    match text(&object["kind"]) {
        "ConfigMap" => comes_back::<ConfigMap>(object)?,
        "NetworkPolicy" => comes_back::<NetworkPolicy>(object)?,
        "PodDisruptionBudget" => comes_back::<PodDisruptionBudget>(object)?,
        "Service" => comes_back::<Service>(object)?,
        "StatefulSet" => comes_back::<StatefulSet>(object)?,
        _ => return Ok(false),
    }
    Ok(true)
}

/// Of the Gateway API's experimental channel, which Envoy Gateway installs: not in the standard schema.
fn is_experimental(object: &Value, problem: &str) -> bool {
    object["kind"] == "HTTPRoute"
        && problem.starts_with("spec.rules[")
        && problem.ends_with(".sessionPersistence: no such field")
}

#[test]
fn every_manifest_is_as_its_schema_wants_it() -> Result<()> {
    let schemas = tools::schemas().map(|folder| Schemas::read(&folder)).transpose()?;
    if schemas.is_none() {
        say("SKIPPED: no CustomResourceDefinitions to validate against; MOORING_SCHEMAS names none");
    }
    let (mut checked, mut unchecked) = (0, BTreeSet::new());
    for name in folders()? {
        for object in &Manifests::build(&name)?.0 {
            if check_own_kind(object)? {
                checked += 1;
            } else if let Some(schema) = schemas.as_ref().and_then(|schemas| schemas.of(object)) {
                let mut problems = problems(object, schema)?;
                problems.retain(|problem| !is_experimental(object, problem));
                ensure!(problems.is_empty(), "{name}: {}: {}", title(object), problems.join("; "));
                checked += 1;
            } else if schemas.is_some() {
                unchecked.insert(text(&object["kind"]).to_owned());
            }
        }
    }
    println!("{checked} objects are as their schemas want them");
    for kind in unchecked {
        say(&format!(
            "SKIPPED: {kind}: no schema of it in {}",
            tools::schemas().unwrap_or_default().display()
        ));
    }
    Ok(())
}

#[test]
fn a_slip_is_found() -> Result<()> {
    let set = Manifests::build("kubernetes")?.named("StatefulSet", "odoo")?.clone();
    let mut slip = set.clone();
    slip["spec"]["template"]["spec"]["terminationGracePeriodsSeconds"] = json!(1);
    let error = comes_back::<StatefulSet>(&slip).err().map(|error| error.to_string()).unwrap_or_default();
    ensure!(error.contains(".spec.template.spec.terminationGracePeriodsSeconds"), "{error}");

    let Some(folder) = tools::schemas() else {
        say("SKIPPED: no CustomResourceDefinitions; MOORING_SCHEMAS names none");
        return Ok(());
    };
    let (schemas, istio) = (Schemas::read(&folder)?, Manifests::build("istio/full")?);
    type Slip = (&'static str, fn(&mut Value), &'static str);
    let slips: [Slip; 4] = [
        (
            "VirtualService",
            |it| it["http"][0]["retries"]["attempt"] = json!(2),
            "spec.http[0].retries.attempt",
        ),
        ("WasmPlugin", |it| it["failStrategy"] = json!("RELOAD"), "RELOAD"),
        (
            "DestinationRule",
            |it| it["trafficPolicy"]["loadBalancer"]["simple"] = json!("RANDOM"),
            "loadBalancer",
        ),
        ("Gateway", |it| it["servers"][0]["port"]["number"] = json!("80"), "number"),
    ];
    for (kind, slip, expected) in slips {
        let mut object = istio.one(kind)?.clone();
        let Some(schema) = schemas.of(&object) else { bail!("no schema of {kind}") };
        slip(&mut object["spec"]);
        let found = problems(&object, schema)?.join("; ");
        ensure!(found.contains(expected), "{kind}: {expected} is not in {found:?}");
    }
    Ok(())
}
