//! What is measured: Envoy in several configurations, and other proxies. All Envoys have the listener,
//! routes, timeouts, retries and health checks of `envoy/envoy.yaml`; they differ only in how a
//! request finds its node.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use anyhow::{Context, Result, bail};
use harness::envoy::{Bootstrap, Endpoint};
use serde_json::{Value, json};

/// The cookie with which Envoy's own `stateful_session` finds a node again.
pub const NODE_COOKIE: &str = "node";

const EXTENSIONS: &str = "type.googleapis.com/envoy.extensions";

/// One thing to measure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Variant {
    /// Envoy, round robin.
    Bare,
    /// Envoy, maglev hashing of the session cookie.
    Maglev,
    /// Envoy, `stateful_session` with a cookie of its own.
    Cookie,
    /// Envoy, round robin, with a wasm filter that does nothing.
    Noop,
    /// The filter that does nothing in Mooring's place: what Envoy's own part of the scheme costs.
    NoopInPlace,
    /// Envoy with Mooring, as users copy it.
    Mooring,
    /// The same with a Lua script in the filter's place.
    Lua,
    /// nginx, `ip_hash`.
    Nginx,
    /// HAProxy, a stick table keyed by the session cookie.
    Haproxy,
    /// Another bootstrap.
    Other(Other),
}

/// A bootstrap that is measured beside those known here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Other {
    name: String,
    bootstrap: PathBuf,
    module: Option<PathBuf>,
}

impl Variant {
    /// All but the others.
    pub const ALL: [Self; 9] = [
        Self::Bare,
        Self::Maglev,
        Self::Cookie,
        Self::Noop,
        Self::NoopInPlace,
        Self::Mooring,
        Self::Lua,
        Self::Nginx,
        Self::Haproxy,
    ];

    fn name(&self) -> &str {
        match self {
            Self::Bare => "envoy",
            Self::Maglev => "envoy-maglev",
            Self::Cookie => "envoy-stateful-session",
            Self::Noop => "noop-wasm",
            Self::NoopInPlace => "noop-wasm-in-place",
            Self::Mooring => "mooring",
            Self::Lua => "lua",
            Self::Nginx => "nginx-ip-hash",
            Self::Haproxy => "haproxy-stick-table",
            Self::Other(other) => &other.name,
        }
    }

    /// Whether a session must stay where it is.
    pub fn is_sticky(&self) -> bool {
        !matches!(self, Self::Bare | Self::Noop)
    }

    /// Whether it has Mooring's filter, which hears from the sidecar.
    pub fn is_mooring(&self) -> bool {
        matches!(self, Self::Mooring | Self::Other(_))
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Variant {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let names = Self::ALL.each_ref().map(Self::name).join(", ");
        let found = Self::ALL.into_iter().find(|variant| variant.name() == text);
        found.with_context(|| format!("expected one of {names}"))
    }
}

impl FromStr for Other {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (name, files) = text.split_once('=').context("expected NAME=FILE or NAME=FILE,MODULE")?;
        let mut files = files.splitn(2, ',');
        // The harness takes a file's name from `envoy/`: a full path leads elsewhere.
        let mut file = || files.next().map(|name| std::path::absolute(name).context(name.to_owned()));
        let bootstrap = file().context("no file")??;
        Ok(Self { name: name.to_owned(), bootstrap, module: file().transpose()? })
    }
}

/// What surrounds an Envoy.
pub struct Place<'a> {
    /// Where it listens.
    pub listen: u16,
    /// Where its admin interface listens.
    pub admin: u16,
    /// The nodes.
    pub nodes: &'a [Endpoint],
    /// Where the sidecar answers.
    pub sidecar: std::net::SocketAddr,
}

/// The bootstrap of a variant that is an Envoy.
pub fn bootstrap(variant: &Variant, place: &Place<'_>) -> Result<Bootstrap> {
    let file = match variant {
        Variant::Other(other) => other.bootstrap.to_str().context("a path that is no text")?,
        _ => "envoy.yaml",
    };
    let mut envoy = Bootstrap::read(file)?;
    envoy.place(place.listen, place.admin, place.nodes, place.sidecar);
    match variant {
        Variant::Bare => without_mooring(&mut envoy),
        Variant::Maglev => {
            without_mooring(&mut envoy);
            let by_cookie = json!([{"cookie": {"name": "session_id"}}]);
            for_each_route(&mut envoy, |route| route["hash_policy"] = by_cookie.clone());
            balance(&mut envoy, "maglev.v3.Maglev");
        }
        Variant::Cookie => {
            without_mooring(&mut envoy);
            put_first(&mut envoy, cookie_session());
        }
        Variant::Noop => {
            load(&mut envoy, &noop());
            let wasm = envoy.filter("mooring").clone();
            without_mooring(&mut envoy);
            put_first(&mut envoy, wasm);
        }
        Variant::NoopInPlace => load(&mut envoy, &noop()),
        Variant::Mooring => {}
        Variant::Lua => *envoy.filter("mooring") = super::proxies::lua(place.nodes),
        Variant::Other(Other { module, .. }) => {
            if let Some(module) = module {
                load(&mut envoy, module);
            }
        }
        Variant::Nginx | Variant::Haproxy => bail!("{variant} is no Envoy"),
    }
    Ok(envoy)
}

/// Where the module is built that does nothing, without the callbacks that Mooring's has not either.
pub fn noop() -> PathBuf {
    harness::target().join("mooring/noop.wasm")
}

/// Has Envoy load another module in place of Mooring's.
fn load(envoy: &mut Bootstrap, module: &Path) {
    envoy.wasm()["vm_config"]["code"]["local"]["filename"] = json!(module);
}

/// Takes away everything that is there for Mooring; what is left is an Envoy that takes the nodes in
/// turn.
fn without_mooring(envoy: &mut Bootstrap) {
    let manager = envoy.connection_manager();
    remove(manager, "early_header_mutation_extensions");
    if let Some(filters) = manager["http_filters"].as_array_mut() {
        filters.retain(|filter| filter["name"] == "envoy.filters.http.router");
    }
    for host in manager["route_config"]["virtual_hosts"].as_array_mut().into_iter().flatten() {
        remove(host, "request_headers_to_remove");
    }
    for_each_route(envoy, |route| remove(route, "hash_policy"));
    balance(envoy, "round_robin.v3.RoundRobin");
    if let Some(clusters) = envoy.0["static_resources"]["clusters"].as_array_mut() {
        clusters.retain(|cluster| cluster["name"] != "mooring");
    }
}

fn remove(object: &mut Value, name: &str) {
    if let Some(object) = object.as_object_mut() {
        object.remove(name);
    }
}

fn put_first(envoy: &mut Bootstrap, filter: Value) {
    if let Some(filters) = envoy.connection_manager()["http_filters"].as_array_mut() {
        filters.insert(0, filter);
    }
}

fn for_each_route(envoy: &mut Bootstrap, mut change: impl FnMut(&mut Value)) {
    let hosts = envoy.connection_manager()["route_config"]["virtual_hosts"].as_array_mut();
    for host in hosts.into_iter().flatten() {
        for route in host["routes"].as_array_mut().into_iter().flatten() {
            change(&mut route["route"]);
        }
    }
}

/// Has Envoy choose nodes by one of its policies, such as `maglev.v3.Maglev`.
fn balance(envoy: &mut Bootstrap, policy: &str) {
    let name = policy.split('.').next().unwrap_or_default();
    let config = json!({
        "name": format!("envoy.load_balancing_policies.{name}"),
        "typed_config": {"@type": format!("{EXTENSIONS}.load_balancing_policies.{policy}")},
    });
    for cluster in ["odoo", "odoo_gevent"] {
        envoy.cluster(cluster)["load_balancing_policy"] =
            json!({"policies": [{"typed_extension_config": config}]});
    }
}

fn cookie_session() -> Value {
    json!({
        "name": "envoy.filters.http.stateful_session",
        "typed_config": {
            "@type": format!("{EXTENSIONS}.filters.http.stateful_session.v3.StatefulSession"),
            "session_state": {
                "name": "envoy.http.stateful_session.cookie",
                "typed_config": {
                    "@type":
                        format!("{EXTENSIONS}.http.stateful_session.cookie.v3.CookieBasedSessionState"),
                    "cookie": {"name": NODE_COOKIE, "path": "/"},
                },
            },
        },
    })
}
