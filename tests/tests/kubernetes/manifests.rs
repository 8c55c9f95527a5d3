//! What `kubectl apply -k` sends for a folder of `envoy/`.

use std::{fs, process::Command};

use anyhow::{Context, Result, bail, ensure};
use harness::{root, tools};
use serde::Deserialize;
use serde_json::Value;

/// Every folder of `envoy/` that users can apply.
pub(crate) fn folders() -> Result<Vec<String>> {
    let mut found = Vec::new();
    let mut unseen = vec![root().join("envoy")];
    while let Some(folder) = unseen.pop() {
        let entries: Vec<_> = fs::read_dir(&folder)?.collect::<Result<_, _>>()?;
        unseen.extend(entries.iter().map(|entry| entry.path()).filter(|path| path.is_dir()));
        if folder.join("kustomization.yaml").is_file() {
            found.push(folder.strip_prefix(root().join("envoy"))?.display().to_string());
        }
    }
    ensure!(found.len() > 5, "only {found:?}");
    found.sort();
    Ok(found)
}

/// The objects of a kustomization.
pub(crate) struct Manifests(pub(crate) Vec<Value>);

impl Manifests {
    /// Builds `envoy/<folder>`.
    pub(crate) fn build(folder: &str) -> Result<Self> {
        let path = root().join("envoy").join(folder);
        let output = Command::new(tools::kubectl()?).arg("kustomize").arg(&path).output()?;
        ensure!(output.status.success(), "{folder}: {}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout)?;
        let objects: Result<Vec<Value>, _> =
            serde_yaml_ng::Deserializer::from_str(&text).map(Value::deserialize).collect();
        Ok(Self(objects?))
    }

    /// All objects of a kind.
    pub(crate) fn all<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Value> {
        self.0.iter().filter(move |object| object["kind"] == kind)
    }

    /// The only object of a kind.
    pub(crate) fn one<'a>(&'a self, kind: &'a str) -> Result<&'a Value> {
        let found: Vec<&Value> = self.all(kind).collect();
        let [one] = found[..] else { bail!("{} of kind {kind}, expected one", found.len()) };
        Ok(one)
    }

    /// The only object of a kind, to be changed.
    pub(crate) fn one_mut(&mut self, kind: &str) -> Result<&mut Value> {
        self.one(kind)?;
        self.0.iter_mut().find(|object| object["kind"] == kind).context("just seen")
    }

    /// The object of a kind and a name.
    pub(crate) fn named<'a>(&'a self, kind: &'a str, name: &str) -> Result<&'a Value> {
        let found = self.all(kind).find(|object| object["metadata"]["name"] == name);
        found.with_context(|| format!("no {kind} {name}"))
    }
}

/// What an object is called in messages.
pub(crate) fn title(object: &Value) -> String {
    format!("{} {}", text(&object["kind"]), text(&object["metadata"]["name"]))
}

/// A text of a manifest, empty if there is none.
pub(crate) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// The items of a list of a manifest, none if there is no list.
pub(crate) fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// `target` with what `patch` says: objects field by field; lists as `lists` says, everything else replaced.
pub(crate) fn merge(target: &mut Value, patch: &Value, lists: Lists) {
    match (target, patch) {
        (Value::Object(target), Value::Object(patch)) => {
            for (name, value) in patch {
                merge(target.entry(name.clone()).or_insert(Value::Null), value, lists);
            }
        }
        (Value::Array(target), Value::Array(patch)) if lists == Lists::Appended => {
            target.extend_from_slice(patch);
        }
        (target, patch) => *target = patch.clone(),
    }
}

/// What a merge does to lists.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lists {
    /// As protobuf does.
    Appended,
    /// As Kubernetes does to lists without keys.
    Replaced,
}
