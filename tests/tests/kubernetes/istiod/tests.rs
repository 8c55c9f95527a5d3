//! The manifests fit the rules, and slips do not.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::problems;
use crate::manifests::{Manifests, folders, title};

#[test]
fn istiod_takes_every_manifest() -> Result<()> {
    let mut found = Vec::new();
    for folder in folders()? {
        for object in &Manifests::build(&folder)?.0 {
            found.extend(problems(object).into_iter().map(|it| format!("{folder}: {}: {it}", title(object))));
        }
    }
    ensure!(found.is_empty(), "{}", found.join("\n"));
    Ok(())
}

#[test]
fn what_users_are_told_to_make_of_them_is_taken_too() -> Result<()> {
    let mut istio = Manifests::build("istio/full")?;
    let tls = json!({"mode": "SIMPLE", "credentialName": "odoo-tls"});
    let server = json!({"port": {"number": 443, "name": "https", "protocol": "HTTPS"}, "tls": tls});
    let spec = &mut istio.one_mut("Gateway")?["spec"];
    let hosts = spec["servers"][0]["hosts"].clone();
    spec["servers"][0] = server;
    spec["servers"][0]["hosts"] = hosts;
    let found = problems(istio.one("Gateway")?);
    ensure!(found.is_empty(), "{found:?}");
    Ok(())
}

/// Sets a field, by its path from the spec.
fn set(object: &mut Value, path: &str, value: Value) {
    let mut place = &mut object["spec"];
    for part in path.split('/') {
        place = match part.parse::<usize>() {
            Ok(number) => &mut place[number],
            Err(_) => &mut place[part],
        };
    }
    *place = value;
}

#[test]
fn slips_are_found() -> Result<()> {
    let istio = Manifests::build("istio/full")?;
    let hash = "trafficPolicy/loadBalancer/consistentHash";
    let slips = [
        ("DestinationRule", format!("{hash}/maglev"), json!({}), "tableSize must be set"),
        ("DestinationRule", format!("{hash}/maglev"), json!({"tableSize": 0}), "must be set"),
        ("DestinationRule", format!("{hash}/maglev"), json!({"tableSize": 65_536}), "prime"),
        ("DestinationRule", format!("{hash}/maglev"), json!({"tableSize": 65_537 * 3}), "prime"),
        ("DestinationRule", format!("{hash}/maglev"), json!({"tableSize": 5_000_011}), "less than"),
        ("DestinationRule", format!("{hash}/ringHash"), json!({"minimumRingSize": 8_388_609}), "ring"),
        ("DestinationRule", format!("{hash}/minimumRingSize"), json!(1_024), "only one of"),
        ("DestinationRule", format!("{hash}/httpCookie"), json!({"path": "/"}), "name required"),
        ("DestinationRule", "host".into(), json!("odoo_1"), "host name"),
        ("DestinationRule", "trafficPolicy".into(), json!({}), "at least one field"),
        ("DestinationRule", "trafficPolicy/loadBalancer/zoneAwareLbSetting".into(), json!({}), "only one of"),
        ("DestinationRule", "trafficPolicy/connectionPool".into(), json!({}), "tcp or http"),
        ("DestinationRule", "trafficPolicy/connectionPool/tcp/connectTimeout".into(), json!("0s"), "not 0"),
        ("DestinationRule", "trafficPolicy/outlierDetection/interval".into(), json!("0.0005s"), "whole"),
        ("DestinationRule", "trafficPolicy/outlierDetection/maxEjectionPercent".into(), json!(101), "100"),
        (
            "DestinationRule",
            "trafficPolicy/outlierDetection/splitExternalLocalOriginErrors".into(),
            json!(false),
            "wants split",
        ),
        ("DestinationRule", "subsets".into(), json!([{"name": "a"}, {"name": "a"}]), "taken"),
        ("VirtualService", "hosts/0".into(), json!("*.*.example.com"), "host name"),
        ("VirtualService", "gateways/0".into(), json!("a/b/c"), "NAMESPACE/NAME"),
        ("VirtualService", "http/1/match".into(), json!([]), "never reached"),
        ("VirtualService", "http/1/match/0/method/exact".into(), json!(""), "empty"),
        ("VirtualService", "http/0/timeout".into(), json!("0s"), "not 0"),
        ("VirtualService", "http/0/retries/attempts".into(), json!(0), "without attempts"),
        ("VirtualService", "http/0/retries/retryOn".into(), json!("connect-failure, reset"), "\" reset\""),
        ("VirtualService", "http/0/route/0/destination/port/number".into(), json!(0), "port"),
        ("VirtualService", "http/0/route".into(), Value::Null, "expected one of"),
        ("VirtualService", "http/0/headers/request/set/host".into(), json!("x"), "cannot be changed"),
        ("VirtualService", "http/0/headers/request/set/x-a".into(), json!("%REQ(:authority)"), "unfinished"),
        ("VirtualService", "http/0/headers/request/set/x-a".into(), json!("100%"), "unfinished"),
        ("VirtualService", "http/0/headers/request/remove/0".into(), json!(":path"), "cannot be changed"),
        ("Gateway", "servers/0/port/protocol".into(), json!("HTTPS"), "must have TLS"),
        ("Gateway", "servers/0/tls".into(), json!({"mode": "SIMPLE", "credentialName": "a"}), "plain text"),
        ("Gateway", "servers/0/port/name".into(), json!(""), "a name"),
        ("WasmPlugin", "sha256".into(), json!("0".repeat(63) + "A"), "[a-f0-9]"),
        ("WasmPlugin", "sha256".into(), json!("sha256:00"), "[a-f0-9]"),
        ("WasmPlugin", "url".into(), json!("docker://registry/mooring"), "scheme"),
        ("WasmPlugin", "selector/matchLabels".into(), json!({"istio": "*"}), "wildcards"),
        ("WasmPlugin", "targetRefs".into(), json!([{"kind": "Gateway"}]), "only one of"),
        ("WasmPlugin", "vmConfig/env/0/value".into(), json!("a"), "INLINE"),
        (
            "WasmPlugin",
            "vmConfig/env".into(),
            json!([{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]),
            "duplicate",
        ),
        ("EnvoyFilter", "priority".into(), json!(0), "IST0151"),
        ("EnvoyFilter", "workloadSelector/labels".into(), json!({}), "every workload"),
        ("EnvoyFilter", "configPatches/0/applyTo".into(), json!("NETWORK_FILTER"), "HTTP_FILTER only"),
        ("EnvoyFilter", "configPatches/0/applyTo".into(), json!("CLUSTER"), "wants a match of cluster"),
        ("EnvoyFilter", "configPatches/0/patch/value".into(), Value::Null, "missing patch value"),
        ("EnvoyFilter", "configPatches/0/patch/value/typed_config/@type".into(), json!("a"), "type unknown"),
        (
            "EnvoyFilter",
            "configPatches/0/match/listener/filterChain/filter/name".into(),
            json!(""),
            "no name",
        ),
    ];
    for (kind, path, value, expected) in slips {
        let mut object = match kind {
            "EnvoyFilter" => istio.named(kind, "mooring-owner")?.clone(),
            _ => istio.one(kind)?.clone(),
        };
        ensure!(problems(&object).is_empty(), "{kind} is wrong from the start");
        set(&mut object, &path, value.clone());
        let found = problems(&object).join("; ");
        ensure!(found.contains(expected), "{kind} {path} = {value}: {expected:?} is not in {found:?}");
    }
    Ok(())
}
