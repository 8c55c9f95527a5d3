//! VirtualServices.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Found, is_label};
use crate::manifests::{list, text};

/// What `retryOn` may name beside an HTTP status.
const RETRY_ON: [&str; 16] = [
    "5xx",
    "gateway-error",
    "reset",
    "reset-before-request",
    "connect-failure",
    "retriable-4xx",
    "refused-stream",
    "retriable-status-codes",
    "retriable-headers",
    "envoy-ratelimited",
    "http3-post-connect-failure",
    "cancelled",
    "deadline-exceeded",
    "internal",
    "resource-exhausted",
    "unavailable",
];

pub(super) fn check(spec: &Value, found: &mut Found) {
    let mut hosts = BTreeSet::new();
    for host in list(&spec["hosts"]) {
        found.host(host, "spec.hosts");
        found.unless(hosts.insert(text(host)), "spec.hosts", "duplicate hosts");
    }
    for gateway in list(&spec["gateways"]) {
        let is_good = text(gateway).split('/').all(is_label) && text(gateway).split('/').count() <= 2;
        found.unless(is_good, "spec.gateways", "expected NAME or NAMESPACE/NAME");
    }
    let routes = list(&spec["http"]);
    let kinds = ["http", "tls", "tcp"];
    found.unless(kinds.iter().any(|kind| !list(&spec[kind]).is_empty()), "spec", "expected http, tcp or tls");
    for (place, route) in routes.iter().enumerate() {
        let path = format!("spec.http[{place}]");
        let ends = ["route", "redirect", "directResponse", "delegate"];
        let ends = ends.iter().filter(|name| !route[name].is_null()).count();
        found.unless(ends == 1, &path, "expected one of route, redirect and directResponse");
        let takes_all = list(&route["match"]).is_empty();
        found.unless(!takes_all || place + 1 == routes.len(), &path, "what comes behind it is never reached");
        for matched in list(&route["match"]) {
            for name in ["scheme", "method", "authority"] {
                let empty = matched[name].as_object().is_some_and(|it| it.values().any(|value| value == ""));
                found.unless(!empty, &format!("{path}.match.{name}"), "expected no empty text");
            }
        }
        headers(&route["headers"], &format!("{path}.headers"), found);
        retries(&route["retries"], &format!("{path}.retries"), found);
        found.duration(&route["timeout"], &format!("{path}.timeout"));
        destinations(list(&route["route"]), &format!("{path}.route"), found);
    }
}

fn destinations(destinations: &[Value], path: &str, found: &mut Found) {
    for entry in destinations {
        let destination = &entry["destination"];
        found.unless(destination["host"] != "*", path, "invalid destination host *");
        found.host(&destination["host"], path);
        if let Some(port) = destination.get("port") {
            found.port(&port["number"], path);
        }
        headers(&entry["headers"], &format!("{path}.headers"), found);
    }
    let weight: u64 = destinations.iter().filter_map(|it| it["weight"].as_u64()).sum();
    found.unless(destinations.len() <= 1 || weight > 0, path, "total destination weight = 0");
}

fn retries(retries: &Value, path: &str, found: &mut Found) {
    let attempts = retries["attempts"].as_i64().unwrap_or_default();
    let configured = ["perTryTimeout", "retryOn", "retryRemoteLocalities"];
    let is_configured = configured.iter().any(|name| retries.get(name).is_some());
    found.unless(attempts > 0 || attempts == 0 && !is_configured, path, "configured without attempts");
    for policy in text(&retries["retryOn"]).split(',').filter(|_| retries.get("retryOn").is_some()) {
        let is_status = policy.parse::<u16>().is_ok_and(|status| (100..600).contains(&status));
        let problem = format!("{policy:?} is not a valid retryOn policy");
        found.unless(is_status || RETRY_ON.contains(&policy), path, &problem);
    }
    found.duration(&retries["perTryTimeout"], path);
    found.duration(&retries["backoff"], path);
}

fn headers(headers: &Value, path: &str, found: &mut Found) {
    for side in ["request", "response"] {
        for operation in ["set", "add"] {
            for (name, value) in headers[side][operation].as_object().into_iter().flatten() {
                let is_authority = side == "request" && name.eq_ignore_ascii_case(":authority");
                let path = format!("{path}.{side}.{operation}.{name}");
                found.unless(is_authority || may_change(name), &path, "a header that cannot be changed");
                found.unless(is_value(text(value)), &path, "an unfinished %variable%");
            }
        }
        for name in list(&headers[side]["remove"]) {
            let path = format!("{path}.{side}.remove");
            found.unless(may_change(text(name)), &path, "a header that cannot be changed");
        }
    }
}

fn may_change(name: &str) -> bool {
    !(name.is_empty() || name.starts_with(':') || name.eq_ignore_ascii_case("host"))
}

/// Whether each `%` is doubled or begins a variable that ends, such as `%REQ(:authority)%`.
fn is_value(value: &str) -> bool {
    let mut rest = value;
    while let Some((_, behind)) = rest.split_once('%') {
        rest = match behind.strip_prefix('%') {
            Some(behind) => behind,
            None => {
                let (name, behind) = behind.split_at(behind.find(['%', '(']).unwrap_or(behind.len()));
                let end =
                    if behind.starts_with('(') { behind.split_once(")%") } else { behind.split_once('%') };
                match end {
                    Some((_, behind)) if !name.is_empty() => behind,
                    _ => return false,
                }
            }
        };
    }
    !value.bytes().any(|byte| byte.is_ascii_control() && byte != b'\t')
}
