//! EnvoyFilters.

use serde_json::Value;

use super::Found;
use crate::manifests::{list, text};

const MANAGER: &str = "envoy.filters.network.http_connection_manager";

pub(super) fn check(spec: &Value, found: &mut Found) {
    if let Some(selector) = spec.get("workloadSelector") {
        found.selector(&selector["labels"], "spec.workloadSelector");
    }
    let has_priority = spec["priority"].as_i64().is_some_and(|priority| priority != 0);
    for (place, patch) in list(&spec["configPatches"]).iter().enumerate() {
        let path = format!("spec.configPatches[{place}]");
        let (to, operation) = (text(&patch["applyTo"]), text(&patch["patch"]["operation"]));
        found.unless(!to.is_empty(), &path, "missing applyTo");
        found.unless(!operation.is_empty(), &path, "missing patch operation");
        let value = &patch["patch"]["value"];
        found.unless(operation == "REMOVE" || value.is_object(), &path, "missing patch value");
        matched(to, &patch["match"], &path, found);
        typed(value, &path, found);
        match operation {
            "INSERT_BEFORE" | "INSERT_AFTER" | "REMOVE" | "REPLACE" => {
                found.unless(has_priority, &path, "IST0151: a relative operation wants spec.priority");
            }
            _ => {}
        }
        let of_routes = ["ROUTE_CONFIGURATION", "HTTP_ROUTE"].contains(&to);
        found.unless(!of_routes || !["ADD", "REMOVE"].contains(&operation), &path, "ignored for routes");
        let replaces = ["NETWORK_FILTER", "HTTP_FILTER", "VIRTUAL_HOST"].contains(&to);
        found.unless(operation != "REPLACE" || replaces, &path, "REPLACE is for filters and virtual hosts");
    }
}

/// What a patch is for and what it looks for belong together.
fn matched(to: &str, matched: &Value, path: &str, found: &mut Found) {
    let wanted = match to {
        "LISTENER" | "FILTER_CHAIN" | "NETWORK_FILTER" | "HTTP_FILTER" => "listener",
        "ROUTE_CONFIGURATION" | "VIRTUAL_HOST" | "HTTP_ROUTE" => "routeConfiguration",
        "CLUSTER" => "cluster",
        _ => return,
    };
    let kinds = ["listener", "routeConfiguration", "cluster"];
    let is_other = kinds.iter().any(|kind| *kind != wanted && matched.get(kind).is_some());
    found.unless(!is_other, path, &format!("applyTo {to} wants a match of {wanted}"));
    let Some(filter) = matched["listener"]["filterChain"].get("filter") else { return };
    let name = text(&filter["name"]);
    found.unless(!name.is_empty(), path, "filter match has no name to match on");
    let of_chains = ["LISTENER", "FILTER_CHAIN"].contains(&to);
    found.unless(!of_chains, path, &format!("filter match has no effect with {to}"));
    if let Some(inner) = filter.get("subFilter") {
        found.unless(to == "HTTP_FILTER", path, "subfilter match can be used with HTTP_FILTER only");
        found.unless(name == MANAGER, path, &format!("subfilter match requires {MANAGER}"));
        found.unless(!text(&inner["name"]).is_empty(), path, "subfilter match has no name to match on");
    }
}

/// Whatever has a type says which, and none that is long gone.
fn typed(value: &Value, path: &str, found: &mut Found) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let path = format!("{path}.{name}");
                if name == "typed_config" {
                    let kind = text(&value["@type"]);
                    let is_good = kind.starts_with("type.googleapis.com/") && !kind.contains(".v2.");
                    found.unless(is_good, &path, "referenced type unknown");
                }
                typed(value, &path, found);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| typed(item, path, found)),
        _ => {}
    }
}
