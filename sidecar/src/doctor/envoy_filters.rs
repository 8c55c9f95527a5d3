//! The HTTP filters and routes in Envoy's configuration dump: whether what Mooring's filter says is obeyed, and
//! how long a request may take.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use serde_json::Value;

use super::{
    envoy::{Clusters, at, list, text},
    report::{Id, Report, Severity},
};

/// What the filter writes and `stateful_session` has to read.
const HEADER: &str = "x-mooring-upstream";
/// Envoy's own, where its configuration is silent.
const ROUTE_TIMEOUT: Duration = Duration::from_secs(15);
const STREAM_IDLE_TIMEOUT: Duration = Duration::from_secs(300);

/// What concerns Mooring of a configuration dump.
struct Dump<'a> {
    listeners: Vec<&'a Value>,
    /// Filters that are told apart from their listener, by name: how Istio brings wasm.
    extensions: BTreeMap<&'a str, &'a Value>,
    /// Routes that are told apart from their listener, by name.
    routes: BTreeMap<&'a str, &'a Value>,
}

impl<'a> Dump<'a> {
    fn read(config: &'a Value) -> Self {
        let mut dump = Self { listeners: vec![], extensions: BTreeMap::new(), routes: BTreeMap::new() };
        for section in list(at(config, "/configs")) {
            let all = |name: &str| list(section.get(name).unwrap_or(&Value::Null)).iter();
            dump.listeners.extend(all("static_listeners").map(|it| at(it, "/listener")));
            dump.listeners.extend(all("dynamic_listeners").map(|it| at(it, "/active_state/listener")));
            for filter in all("ecds_filters").map(|it| at(it, "/ecds_filter")) {
                dump.extensions.insert(text(at(filter, "/name")), at(filter, "/typed_config"));
            }
            let routes = all("static_route_configs").chain(all("dynamic_route_configs"));
            for routes in routes.map(|it| at(it, "/route_config")) {
                dump.routes.insert(text(at(routes, "/name")), routes);
            }
        }
        dump
    }

    /// The connection managers of all listeners.
    fn managers(&self) -> Vec<Manager<'a>> {
        let mut managers = Vec::new();
        for listener in &self.listeners {
            let chains = list(at(listener, "/filter_chains")).iter();
            let filters = chains.chain([at(listener, "/default_filter_chain")]);
            let filters = filters.flat_map(|chain| list(at(chain, "/filters")));
            for config in filters.map(|filter| at(filter, "/typed_config")) {
                if is_a(config, "HttpConnectionManager") {
                    managers.push(self.manager(text(at(listener, "/name")), config));
                }
            }
        }
        managers
    }

    fn manager(&self, listener: &'a str, config: &'a Value) -> Manager<'a> {
        let inline = at(config, "/route_config");
        let named = text(at(config, "/rds/route_config_name"));
        let routes = self.routes.get(named).copied().unwrap_or(inline);
        let filters = list(at(config, "/http_filters")).iter();
        // What is disabled is switched on by routes, or is not there.
        let filters = filters.filter(|filter| {
            *at(filter, "/disabled") != true || !for_routes(routes, text(at(filter, "/name"))).is_empty()
        });
        let filters = filters.map(|filter| {
            let name = text(at(filter, "/name"));
            let typed = Some(at(filter, "/typed_config")).filter(|typed| typed.is_object());
            Filter { name, config: typed.or_else(|| self.extensions.get(name).copied()) }
        });
        let idle = at(config, "/stream_idle_timeout");
        let idle = duration(idle).unwrap_or(STREAM_IDLE_TIMEOUT);
        Manager { listener, filters: filters.collect(), routes, idle }
    }
}

/// What Envoy does with the requests of a listener.
struct Manager<'a> {
    listener: &'a str,
    /// In their order.
    filters: Vec<Filter<'a>>,
    routes: &'a Value,
    idle: Duration,
}

struct Filter<'a> {
    name: &'a str,
    /// None: it is told elsewhere, and not in the dump.
    config: Option<&'a Value>,
}

impl Manager<'_> {
    fn place(&self, is_it: impl Fn(&Filter<'_>, &Value) -> bool) -> Option<usize> {
        self.filters.iter().position(|filter| filter.config.is_some_and(|config| is_it(filter, config)))
    }

    fn mooring(&self) -> Option<usize> {
        self.place(|_, config| is_a(config, "Wasm") && *at(config, "/config/root_id") == "mooring")
    }

    /// The filter that obeys Mooring's header, as it is configured for all or for some routes.
    fn stateful_session(&self) -> Option<usize> {
        self.place(|filter, config| {
            is_a(config, "StatefulSession")
                && (mentions(config, HEADER)
                    || for_routes(self.routes, filter.name).iter().any(|config| mentions(config, HEADER)))
        })
    }

    /// A filter that takes Mooring's headers from the request.
    fn header_to_metadata(&self) -> Option<usize> {
        self.place(|_, config| is_a(config, "Config") && mentions(config, "x-mooring-next"))
    }

    /// How long it waits for an answer from these clusters, at the least.
    fn patience(&self, clusters: &BTreeSet<&str>) -> Option<Duration> {
        let hosts = list(at(self.routes, "/virtual_hosts")).iter();
        let routes = hosts.flat_map(|host| list(at(host, "/routes"))).map(|route| at(route, "/route"));
        let to_odoo = routes.filter(|route| {
            let mut named = BTreeSet::new();
            named_clusters(route, &mut named);
            !named.is_disjoint(clusters)
        });
        let patience = to_odoo.map(|route| {
            let timeout = duration(at(route, "/timeout")).unwrap_or(ROUTE_TIMEOUT);
            let idle = duration(at(route, "/idle_timeout")).unwrap_or(self.idle);
            [timeout, idle].into_iter().filter(|time| !time.is_zero()).min().unwrap_or(Duration::MAX)
        });
        patience.min()
    }
}

/// Examines the filters of all listeners. `all` are the clusters that have nodes, `http` those that have their
/// HTTP addresses. Says how long Envoy waits for Odoo.
pub(super) fn examine(
    about: &str,
    config: &Value,
    all: &BTreeSet<&str>,
    http: &BTreeSet<&str>,
    report: &mut Report,
) -> Option<Duration> {
    let managers = Dump::read(config).managers();
    let with_filter: Vec<_> = managers.iter().filter(|manager| manager.mooring().is_some()).collect();
    if with_filter.is_empty() {
        report.left_out(
            format!("{about}: the order of its filters"),
            "none of its listeners tells of the filter",
        );
        return None;
    }
    let listeners: BTreeSet<_> = with_filter.iter().map(|manager| manager.listener).collect();
    let listeners = listeners.into_iter().collect::<Vec<_>>().join(", ");
    report.looked_at(format!("{about}: the order of HTTP filters in {listeners}, and time limits"));
    for manager in &with_filter {
        examine_order(about, manager, report);
    }
    for manager in managers.iter().filter(|manager| manager.mooring().is_none()) {
        let mut named = BTreeSet::new();
        named_clusters(manager.routes, &mut named);
        // One whose configuration is not in the dump may be it.
        let is_known = manager.filters.iter().all(|filter| filter.config.is_some());
        if is_known && !named.is_disjoint(all) {
            let problem = format!(
                "the listener {} leads to Odoo without Mooring's filter: who comes by it goes to any server",
                manager.listener
            );
            let remedy = "the same HTTP filters in every listener that leads to Odoo";
            report.add(Severity::Error, Id::ListenerWithoutFilter, about, problem, remedy);
        }
    }
    with_filter.iter().filter_map(|manager| manager.patience(http)).min()
}

fn examine_order(about: &str, manager: &Manager<'_>, report: &mut Report) {
    let (Some(mooring), listener) = (manager.mooring(), manager.listener) else { return };
    let remedy = "the HTTP filters in this order: mooring, header_to_metadata if there is one, stateful_session, \
                  router";
    match manager.stateful_session() {
        None => {
            let problem = format!(
                "in {listener} no stateful_session obeys {HEADER}: people go where Envoy's hash sends them"
            );
            report.add(Severity::Error, Id::NoStatefulSession, about, problem, remedy);
        }
        Some(place) if place < mooring => {
            let problem = format!(
                "in {listener} stateful_session comes before mooring and does not see what it says: people go \
                 where Envoy's hash sends them"
            );
            report.add(Severity::Error, Id::FilterOrder, about, problem, remedy);
            return;
        }
        Some(_) => {}
    }
    if manager.header_to_metadata().is_some_and(|place| place < mooring) {
        let problem = format!(
            "in {listener} header_to_metadata comes before mooring and does not see what it says: nobody goes on \
             at the standby"
        );
        report.add(Severity::Error, Id::FilterOrder, about, problem, remedy);
    }
}

/// The clusters that have one of these hosts.
pub(super) fn clusters_of<'a>(clusters: &'a Clusters, hosts: &BTreeSet<SocketAddr>) -> BTreeSet<&'a str> {
    let ours = clusters.iter().filter(|(_, its)| its.keys().any(|host| hosts.contains(host)));
    ours.map(|(name, _)| name.as_str()).collect()
}

/// Whether a message is of this type, whatever its package.
fn is_a(message: &Value, name: &str) -> bool {
    text(at(message, "/@type")).rsplit('.').next() == Some(name)
}

/// Whether a text stands anywhere within.
fn mentions(value: &Value, wanted: &str) -> bool {
    match value {
        Value::String(text) => text == wanted,
        Value::Array(items) => items.iter().any(|item| mentions(item, wanted)),
        Value::Object(fields) => fields.values().any(|field| mentions(field, wanted)),
        _ => false,
    }
}

/// What routes say of a filter.
fn for_routes<'a>(routes: &'a Value, filter: &str) -> Vec<&'a Value> {
    let mut found = Vec::new();
    let mut left = vec![routes];
    while let Some(value) = left.pop() {
        match value {
            Value::Array(items) => left.extend(items),
            Value::Object(fields) => {
                found.extend(fields.get("typed_per_filter_config").and_then(|it| it.get(filter)));
                left.extend(fields.values());
            }
            _ => {}
        }
    }
    found
}

/// The clusters that a route leads to.
fn named_clusters<'a>(value: &'a Value, found: &mut BTreeSet<&'a str>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| named_clusters(item, found)),
        Value::Object(fields) => {
            found.extend(fields.get("cluster").and_then(Value::as_str));
            let weighted = list(at(value, "/weighted_clusters/clusters")).iter();
            found.extend(weighted.filter_map(|cluster| at(cluster, "/name").as_str()));
            fields.values().for_each(|field| named_clusters(field, found));
        }
        _ => {}
    }
}

/// Such as `720s` or `0.250s`.
fn duration(value: &Value) -> Option<Duration> {
    let seconds: f64 = value.as_str()?.strip_suffix('s')?.parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

#[cfg(test)]
mod tests;
