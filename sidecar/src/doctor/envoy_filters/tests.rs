use serde_json::json;

use super::*;
use crate::doctor::odoo_conf::tests::names;

const EXTENSIONS: &str = "type.googleapis.com/envoy.extensions.filters.http";

fn mooring() -> Value {
    let config = json!({"@type": format!("{EXTENSIONS}.wasm.v3.Wasm"), "config": {"root_id": "mooring"}});
    json!({"name": "mooring", "typed_config": config})
}

fn session(header: &str) -> Value {
    let state = json!({"name": "x", "typed_config": {"name": header}});
    let kind = format!("{EXTENSIONS}.stateful_session.v3.StatefulSession");
    json!({"name": "session", "typed_config": {"@type": kind, "session_state": state}})
}

fn metadata() -> Value {
    let kind = format!("{EXTENSIONS}.header_to_metadata.v3.Config");
    let rules = json!([{"header": "x-mooring-next", "remove": true}]);
    json!({"name": "h2m", "typed_config": {"@type": kind, "request_rules": rules}})
}

fn router() -> Value {
    json!({"name": "router", "typed_config": {"@type": format!("{EXTENSIONS}.router.v3.Router")}})
}

fn routes() -> Value {
    json!({"name": "odoo", "virtual_hosts": [{"routes": [
        {"route": {"cluster": "odoo_gevent", "timeout": "0s", "idle_timeout": "3600s"}},
        {"route": {"cluster": "odoo", "timeout": "0s"}},
    ]}]})
}

fn listener(name: &str, filters: Vec<Value>, routes: Value) -> Value {
    let mut manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stream_idle_timeout": "720s",
        "http_filters": filters,
    });
    manager.as_object_mut().unwrap().extend(routes.as_object().unwrap().clone());
    json!({"name": name, "filter_chains": [{"filters": [{"name": "hcm", "typed_config": manager}]}]})
}

fn inline(name: &str, filters: Vec<Value>) -> Value {
    listener(name, filters, json!({"route_config": routes()}))
}

fn dump(listeners: &[Value], more: Value) -> Value {
    let listeners: Vec<_> = listeners.iter().map(|it| json!({"listener": it})).collect();
    json!({"configs": [{"static_listeners": listeners}, more]})
}

fn found(config: &Value) -> (Vec<String>, Option<u64>) {
    let (all, http) = (BTreeSet::from(["odoo", "odoo_gevent"]), BTreeSet::from(["odoo"]));
    let mut report = Report::default();
    let patience = examine("Envoy", config, &all, &http, &mut report);
    (names(&report), patience.map(|patience| patience.as_secs()))
}

#[test]
fn what_the_filter_says_must_be_obeyed() {
    let ours = || session(HEADER);
    for (filters, expected) in [
        (vec![mooring(), ours(), router()], vec![]),
        (vec![mooring(), metadata(), ours(), router()], vec![]),
        (vec![ours(), mooring(), router()], vec!["filter-order"]),
        (vec![metadata(), ours(), mooring(), router()], vec!["filter-order"]),
        (vec![metadata(), mooring(), ours(), router()], vec!["filter-order"]),
        (vec![mooring(), router()], vec!["no-stateful-session"]),
        (vec![mooring(), session("x-other"), router()], vec!["no-stateful-session"]),
    ] {
        let (names, patience) = found(&dump(&[inline("main", filters.clone())], json!({})));
        assert_eq!(
            (names, patience),
            (expected.iter().map(ToString::to_string).collect(), Some(720)),
            "{filters:?}"
        );
    }
}

#[test]
fn every_listener_that_leads_to_odoo_is_looked_at() {
    let good = || inline("main", vec![mooring(), session(HEADER), router()]);
    let elsewhere =
        json!({"route_config": {"virtual_hosts": [{"routes": [{"route": {"cluster": "other"}}]}]}});
    let weighted =
        json!({"weighted_clusters": {"clusters": [{"name": "other"}, {"name": "odoo", "weight": 1}]}});
    let weighted = json!({"route_config": {"virtual_hosts": [{"routes": [{"route": weighted}]}]}});
    for (second, expected) in [
        (good(), vec![]),
        (listener("second", vec![router()], elsewhere), vec![]),
        (inline("second", vec![router()]), vec!["listener-without-filter"]),
        (listener("second", vec![router()], weighted), vec!["listener-without-filter"]),
        (inline("second", vec![session(HEADER), mooring(), router()]), vec!["filter-order"]),
        (
            json!({"name": "tcp", "filter_chains": [{"filters": [{"typed_config": {"cluster": "odoo"}}]}]}),
            vec![],
        ),
    ] {
        let names = found(&dump(&[good(), second.clone()], json!({}))).0;
        assert_eq!(names, expected, "{second}");
    }
    // In a second filter chain, or the default one, of a dynamic listener.
    let mut listener = good();
    listener["default_filter_chain"] = inline("x", vec![router()])["filter_chains"][0].clone();
    let dynamic = json!({"dynamic_listeners": [{"name": "main", "active_state": {"listener": listener}}]});
    assert_eq!(found(&json!({"configs": [dynamic]})).0, ["listener-without-filter"]);
    assert_eq!(found(&json!({})), (vec![], None));
    assert_eq!(found(&json!([1, "x", {"configs": {"a": null}}])), (vec![], None));
}

#[test]
fn istio_s_filter_and_routes_are_told_apart_from_their_listener() {
    let discovered = json!({"name": "ns.mooring", "config_discovery": {"config_source": {"ads": {}}}});
    let by_name = || json!({"rds": {"route_config_name": "odoo"}});
    let extension = json!({"name": "ns.mooring", "typed_config": mooring()["typed_config"]});
    let more = json!({
        "ecds_filters": [{"ecds_filter": extension}],
        "dynamic_route_configs": [{"route_config": routes()}],
    });
    let chain = |filters| listener("main", filters, by_name());
    let good = chain(vec![discovered.clone(), session(HEADER), router()]);
    assert_eq!(found(&dump(&[good], more.clone())), (vec![], Some(720)));
    let bad = chain(vec![session(HEADER), discovered.clone(), router()]);
    assert_eq!(found(&dump(&[bad], more)).0, ["filter-order"]);
    // What is not in the dump is nobody's fault.
    let unknown = chain(vec![discovered, session(HEADER), router()]);
    assert_eq!(found(&dump(&[unknown], json!({}))), (vec![], None));
}

#[test]
fn envoy_gateway_s_filters_are_switched_on_by_routes() {
    let off = |mut filter: Value| {
        filter["disabled"] = json!(true);
        filter
    };
    let per_route = session(HEADER)["typed_config"].clone();
    let empty = json!({"@type": format!("{EXTENSIONS}.stateful_session.v3.StatefulSession")});
    let filters = vec![off(mooring()), off(json!({"name": "session", "typed_config": empty})), router()];
    let mut on = routes();
    on["virtual_hosts"][0]["routes"][1]["typed_per_filter_config"] =
        json!({"mooring": {"config": {}}, "session": {"stateful_session": per_route}});
    on["virtual_hosts"][0]["routes"][1]["route"]["timeout"] = json!("60s");
    let with = |routes: Value| {
        dump(&[listener("main", filters.clone(), json!({"route_config": routes}))], json!({}))
    };
    assert_eq!(found(&with(on.clone())), (vec![], Some(60)));
    // The filter's route, without the other's.
    on["virtual_hosts"][0]["routes"][1]["typed_per_filter_config"] = json!({"mooring": {"config": {}}});
    assert_eq!(found(&with(on)).0, ["no-stateful-session"]);
}

#[test]
fn envoy_s_own_limits_count_where_its_configuration_is_silent() {
    let filters = || vec![mooring(), session(HEADER), router()];
    for (idle, timeout, route_idle, expected) in [
        (Some("720s"), Some("0s"), None, 720),
        (None, Some("0s"), None, 300),
        (Some("720s"), None, None, 15),
        (Some("0s"), Some("0s"), None, Duration::MAX.as_secs()),
        (Some("720s"), Some("0s"), Some("1800s"), 1_800),
        (Some("720s"), Some("90.5s"), Some("1800s"), 90),
    ] {
        let mut route = json!({"cluster": "odoo"});
        for (name, value) in [("timeout", timeout), ("idle_timeout", route_idle)] {
            if let Some(value) = value {
                route[name] = json!(value);
            }
        }
        let routes = json!({"route_config": {"virtual_hosts": [{"routes": [{"route": route}]}]}});
        let mut listener = listener("main", filters(), routes);
        let manager = &mut listener["filter_chains"][0]["filters"][0]["typed_config"];
        match idle {
            Some(idle) => manager["stream_idle_timeout"] = json!(idle),
            None => drop(manager.as_object_mut().unwrap().remove("stream_idle_timeout")),
        }
        assert_eq!(found(&dump(&[listener], json!({}))).1, Some(expected), "{idle:?} {timeout:?}");
    }
}
