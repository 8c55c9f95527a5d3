//! What istiod's admission webhook refuses though it fits the schema, and what `istioctl analyze` warns of: the
//! rules of its validation (1.27 to 1.31) that these manifests can meet. Not all of its rules.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::manifests::{list, text};

mod envoy_filter;
mod tests;
mod virtual_service;

/// What is wrong with one object, each with the field's path.
pub(crate) fn problems(object: &Value) -> Vec<String> {
    let mut found = Found::default();
    let spec = &object["spec"];
    match text(&object["kind"]) {
        "DestinationRule" => destination_rule(spec, &mut found),
        "EnvoyFilter" => envoy_filter::check(spec, &mut found),
        "Gateway" if text(&object["apiVersion"]).starts_with("networking.istio.io/") => {
            let name = text(&object["metadata"]["name"]);
            found.unless(is_label(name), "metadata.name", "a gateway's name has no dots");
            gateway(spec, &mut found);
        }
        "VirtualService" => virtual_service::check(spec, &mut found),
        "WasmPlugin" => wasm_plugin(spec, &mut found),
        _ => {}
    }
    found.0
}

#[derive(Default)]
struct Found(Vec<String>);

impl Found {
    fn unless(&mut self, is_good: bool, path: &str, problem: &str) {
        if !is_good {
            self.0.push(format!("{path}: {problem}"));
        }
    }

    /// A duration, if there is one, of a millisecond or more and whole ones.
    fn duration(&mut self, value: &Value, path: &str) {
        let seconds = text(value).strip_suffix('s').and_then(|number| number.parse::<f64>().ok());
        let is_good =
            seconds.map(|seconds| seconds * 1_000.0).is_some_and(|ms| ms >= 1.0 && ms.fract() == 0.0);
        self.unless(value.is_null() || is_good, path, "expected seconds, whole milliseconds and not 0");
    }

    fn percent(&mut self, value: &Value, path: &str) {
        self.unless(value.is_null() || value.as_u64() <= Some(100), path, "expected 0 to 100");
    }

    fn port(&mut self, value: &Value, path: &str) {
        let is_good = value.as_u64().is_some_and(|port| (1..=65_535).contains(&port));
        self.unless(is_good, path, "expected a port of 1 to 65535");
    }

    /// A name of DNS, its first label a wildcard perhaps.
    fn host(&mut self, value: &Value, path: &str) {
        let (first, rest) = text(value).split_once('.').unwrap_or((text(value), "example"));
        let is_first = first == "*" || is_label(first.strip_prefix("*-").unwrap_or(first));
        let is_good = text(value).len() <= 255 && is_first && rest.split('.').all(is_label);
        self.unless(is_good, path, "expected a host name");
    }

    fn selector(&mut self, labels: &Value, path: &str) {
        let labels = labels.as_object().into_iter().flatten();
        let is_plain = |(name, value): (&String, &Value)| {
            !(name.is_empty() || name.contains('*') || text(value).contains('*'))
        };
        let labels: Vec<bool> = labels.map(is_plain).collect();
        self.unless(!labels.is_empty(), path, "without labels it selects every workload");
        self.unless(labels.iter().all(|is_good| *is_good), path, "expected labels without wildcards");
    }
}

fn is_label(text: &str) -> bool {
    let is_end = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
    let (first, last) = (text.bytes().next(), text.bytes().last());
    let is_inner = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    text.len() <= 63 && is_end(first) && is_end(last) && is_inner
}

fn destination_rule(spec: &Value, found: &mut Found) {
    found.host(&spec["host"], "spec.host");
    traffic_policy(&spec["trafficPolicy"], "spec.trafficPolicy", found);
    let mut names = BTreeSet::new();
    for (place, subset) in list(&spec["subsets"]).iter().enumerate() {
        let path = format!("spec.subsets[{place}]");
        found.unless(is_label(text(&subset["name"])), &path, "expected a name");
        found.unless(names.insert(text(&subset["name"])), &path, "a name that is taken");
        traffic_policy(&subset["trafficPolicy"], &format!("{path}.trafficPolicy"), found);
    }
    for (place, port) in list(&spec["trafficPolicy"]["portLevelSettings"]).iter().enumerate() {
        let path = format!("spec.trafficPolicy.portLevelSettings[{place}]");
        found.port(&port["port"]["number"], &path);
        traffic_policy(port, &path, found);
    }
}

fn traffic_policy(policy: &Value, path: &str, found: &mut Found) {
    if policy.is_null() {
        return;
    }
    found.unless(policy.as_object().is_some_and(|it| !it.is_empty()), path, "expected at least one field");
    load_balancer(&policy["loadBalancer"], &format!("{path}.loadBalancer"), found);
    let pool = &policy["connectionPool"];
    if !pool.is_null() {
        let path = format!("{path}.connectionPool");
        found.unless(!(pool["tcp"].is_null() && pool["http"].is_null()), &path, "expected tcp or http");
        found.duration(&pool["tcp"]["connectTimeout"], &format!("{path}.tcp.connectTimeout"));
        found.duration(&pool["http"]["idleTimeout"], &format!("{path}.http.idleTimeout"));
    }
    let (ejection, path) = (&policy["outlierDetection"], format!("{path}.outlierDetection"));
    for name in ["interval", "baseEjectionTime"] {
        found.duration(&ejection[name], &format!("{path}.{name}"));
    }
    for name in ["maxEjectionPercent", "minHealthPercent"] {
        found.percent(&ejection[name], &format!("{path}.{name}"));
    }
    let counts_local = ejection["consecutiveLocalOriginFailures"].as_u64() > Some(0);
    let is_split = ejection["splitExternalLocalOriginErrors"] == true;
    found.unless(
        !counts_local || is_split,
        &path,
        "consecutiveLocalOriginFailures wants splitExternalLocalOriginErrors",
    );
}

/// Envoy's own limit of a ring.
const LARGEST_RING: u64 = 8_388_608;

fn load_balancer(balancer: &Value, path: &str, found: &mut Found) {
    let hash = &balancer["consistentHash"];
    let cookie = &hash["httpCookie"];
    let is_named = cookie.is_null() || !text(&cookie["name"]).is_empty();
    found.unless(is_named, &format!("{path}.consistentHash.httpCookie"), "name required");
    if let Some(maglev) = hash.get("maglev") {
        let (size, path) = (maglev["tableSize"].as_u64(), format!("{path}.consistentHash.maglev"));
        found.unless(size > Some(0), &path, "tableSize must be set for maglev");
        found.unless(size < Some(5_000_011), &path, "tableSize must be less than 5000011 for maglev");
        found.unless(size.is_some_and(is_prime), &path, "tableSize must be a prime number for maglev");
    }
    let ring = hash["ringHash"]["minimumRingSize"].as_u64();
    found.unless(ring <= Some(LARGEST_RING), &format!("{path}.consistentHash.ringHash"), "too large a ring");
    let has_old = !hash["minimumRingSize"].is_null();
    let has_new = hash.get("maglev").or_else(|| hash.get("ringHash")).is_some();
    found.unless(!(has_old && has_new), path, "only one of minimumRingSize and maglev or ringHash");
    let (locality, zones) = (&balancer["localityLbSetting"], &balancer["zoneAwareLbSetting"]);
    found.unless(
        locality.is_null() || zones.is_null(),
        path,
        "only one of localityLbSetting and zoneAwareLbSetting",
    );
    let has_both = !list(&locality["distribute"]).is_empty() && !list(&locality["failover"]).is_empty();
    found.unless(!has_both, &format!("{path}.localityLbSetting"), "only one of distribute and failover");
}

fn is_prime(number: u64) -> bool {
    number > 1
        && (2..).take_while(|factor| factor * factor <= number).all(|factor| !number.is_multiple_of(factor))
}

fn gateway(spec: &Value, found: &mut Found) {
    let servers = list(&spec["servers"]);
    found.unless(!servers.is_empty(), "spec.servers", "expected at least one server");
    let mut names = BTreeSet::new();
    for (place, server) in servers.iter().enumerate() {
        let (path, port, tls) = (format!("spec.servers[{place}]"), &server["port"], &server["tls"]);
        found.unless(!list(&server["hosts"]).is_empty(), &path, "expected at least one host");
        for host in list(&server["hosts"]) {
            let name = text(host).rsplit('/').next().unwrap_or_default();
            found.host(&Value::from(name), &format!("{path}.hosts"));
        }
        found.port(&port["number"], &format!("{path}.port"));
        let name = text(&port["name"]);
        found.unless(
            !name.is_empty() && names.insert(name),
            &format!("{path}.port"),
            "expected a name of its own",
        );
        let (protocol, path) = (text(&port["protocol"]), format!("{path}.tls"));
        match protocol.to_uppercase().as_str() {
            "HTTPS" | "TLS" => {
                found.unless(!tls.is_null(), &path, "server must have TLS settings for HTTPS/TLS protocols");
            }
            "HTTP" | "HTTP2" | "GRPC" | "GRPC-WEB" | "TCP" => {
                let redirects = tls["httpsRedirect"] == true && tls.get("mode").is_none();
                found.unless(tls.is_null() || redirects, &path, "no TLS settings for plain text ports");
            }
            _ => found.unless(false, &path, "invalid protocol"),
        }
        let mode = tls["mode"].as_str();
        let has_own = tls.get("credentialName").or(tls.get("credentialNames")).is_some()
            || tls.get("serverCertificate").is_some() && tls.get("privateKey").is_some();
        let needs = mode.is_some_and(|mode| ["SIMPLE", "MUTUAL", "OPTIONAL_MUTUAL"].contains(&mode));
        found.unless(!needs || has_own, &path, "requires a certificate");
        let is_istios = mode == Some("ISTIO_MUTUAL");
        found.unless(!is_istios || !has_own, &path, "ISTIO_MUTUAL has no certificate of its own");
    }
}

fn wasm_plugin(spec: &Value, found: &mut Found) {
    let targets =
        ["selector", "targetRef", "targetRefs"].iter().filter(|name| spec.get(name).is_some()).count();
    found.unless(targets <= 1, "spec", "only one of selector and targetRefs");
    if let Some(selector) = spec.get("selector") {
        found.selector(&selector["matchLabels"], "spec.selector");
    }
    let url = text(&spec["url"]);
    let scheme = url.split_once("://").map_or("", |(scheme, _)| scheme);
    let is_known = ["", "file", "http", "https", "oci"].contains(&scheme);
    found.unless(!url.is_empty() && is_known, "spec.url", "expected an address of a known scheme");
    let digest = text(&spec["sha256"]);
    let is_hex = digest.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    found.unless(digest.is_empty() || digest.len() == 64 && is_hex, "spec.sha256", "expected [a-f0-9]{64}");
    found.unless(text(&spec["pluginName"]).len() <= 256, "spec.pluginName", "too long");
    let mut names = BTreeSet::new();
    for variable in list(&spec["vmConfig"]["env"]) {
        let (name, path) = (text(&variable["name"]), "spec.vmConfig.env");
        found.unless((1..=256).contains(&name.len()), path, "expected a name");
        found.unless(names.insert(name), path, "duplicate env");
        let is_inline = variable["valueFrom"].is_null() || variable["valueFrom"] == "INLINE";
        let has_value = !text(&variable["value"]).is_empty();
        found.unless(is_inline || !has_value, path, "value may only be set when valueFrom is INLINE");
    }
}
