//! The operations of JSON patches as Envoy Gateway applies them: a JSONPath may say where their paths begin.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::manifests::text;

/// Applies one operation. Of those there are, only `add` is used.
///
/// Envoy Gateway makes up every object that is missing on the way to a path, and what comes of it is seldom
/// what Envoy takes. So here the way must be there.
pub(crate) fn apply(target: &mut Value, operation: &Value) -> Result<()> {
    ensure!(operation["op"] == "add", "only add is known here");
    let path = text(&operation["path"]);
    let begins = match operation["jsonPath"].as_str() {
        Some(json_path) => pointers(target, json_path)?,
        None => vec![String::new()],
    };
    for begin in begins {
        add(target, &format!("{begin}{path}"), &operation["value"])?;
    }
    Ok(())
}

fn add(target: &mut Value, path: &str, value: &Value) -> Result<()> {
    let (parent, field) = path.rsplit_once('/').context("a path")?;
    match target.pointer_mut(parent).with_context(|| format!("nothing at {parent}"))? {
        Value::Array(items) if field == "-" => items.push(value.clone()),
        Value::Object(fields) => drop(fields.insert(field.to_owned(), value.clone())),
        _ => bail!("nothing can be added at {path}"),
    }
    Ok(())
}

/// All places that a JSONPath finds, of the form `..list[?(@.name=='NAME')].field.field`; it has to find one.
fn pointers(target: &Value, json_path: &str) -> Result<Vec<String>> {
    let (list, rest) =
        json_path.strip_prefix("..").and_then(|it| it.split_once("[?(@.name=='")).context("another path")?;
    let (name, fields) = rest.split_once("')].").context("no name")?;
    let mut items = Vec::new();
    find_items(target, list, name, String::new(), &mut items);
    let fields = format!("/{}", fields.replace('.', "/"));
    let found = items.into_iter().map(|item| item + &fields).filter(|found| target.pointer(found).is_some());
    let found: Vec<String> = found.collect();
    ensure!(!found.is_empty(), "nothing at {json_path}");
    Ok(found)
}

/// The items of a name in lists of a name, wherever those are.
fn find_items(value: &Value, list: &str, name: &str, at: String, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (field, value) in fields {
                let at = format!("{at}/{field}");
                if field == list {
                    let items = value.as_array().into_iter().flatten().enumerate();
                    let named = items.filter(|(_, item)| item["name"] == name);
                    found.extend(named.map(|(place, _)| format!("{at}/{place}")));
                }
                find_items(value, list, name, at, found);
            }
        }
        Value::Array(items) => {
            for (place, item) in items.iter().enumerate() {
                find_items(item, list, name, format!("{at}/{place}"), found);
            }
        }
        _ => {}
    }
}
