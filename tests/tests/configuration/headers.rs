//! What clients say that they may not, and what of it reaches Odoo; what Odoo's answers tell them.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use base64::{Engine, engine::general_purpose::STANDARD};
use harness::{
    browser::{self, Browser, Method, tally},
    envoy::{Bootstrap, Envoy},
    stack::{Options, Stack},
};
use serde_json::Value;

/// Both tiers.
const FILES: [&str; 2] = ["envoy.yaml", "envoy-simple.yaml"];

/// What only a proxy may tell Odoo, as a client says it.
const SAID_BY_PROXIES: [&str; 10] = [
    "X-Forwarded-Host",
    "X-Forwarded-Port",
    "X-Forwarded-Prefix",
    "X-Forwarded-User",
    "Forwarded",
    "X-Real-IP",
    "Remote-User",
    "X-Remote-User",
    "X-Odoo-dbfilter",
    "X-OpenERP-dbfilter",
];

/// The same to WSGI, where - and _ are one.
const WITH_UNDERSCORES: [&str; 6] = [
    "X_Forwarded_Proto",
    "X-Forwarded_Host",
    "x_forwarded_for",
    "X_Real_IP",
    "X_Odoo_dbfilter",
    "x-mooring_upstream",
];

/// What clients of Odoo do say.
const SAID_BY_CLIENTS: [&str; 5] =
    ["X-Odoo-Database", "Authorization", "X-Openerp-Session-Id", "X-CSRFToken", "Origin"];

/// The path and the headers with which a request for `/standin/head/…` came to a server.
fn head(answer: &str) -> Result<(String, Vec<(String, String)>)> {
    let body = answer.find("{\"").and_then(|start| answer.get(start..)).context("no head in the answer")?;
    let head: Value = serde_json::Deserializer::from_str(body).into_iter().next().context("no head")??;
    let headers = serde_json::from_value(head["headers"].clone())?;
    Ok((head["path"].as_str().unwrap_or_default().to_owned(), headers))
}

/// The headers that Odoo gets for a request with these, over HTTP/1.1 as they are written and over HTTP/2.
async fn arriving(envoy: SocketAddr, headers: &[&str]) -> Result<Vec<Vec<(String, String)>>> {
    let lines: String = headers.iter().map(|name| format!("{name}: forged\r\n")).collect();
    let one = format!("GET /standin/head/x HTTP/1.1\r\nhost: odoo\r\nconnection: close\r\n{lines}\r\n");
    let one = browser::raw(envoy, one.as_bytes()).await?;
    let pairs: Vec<(&str, &str)> = headers.iter().map(|name| (*name, "forged")).collect();
    let mut two = Browser::new(browser::http2(), envoy);
    let two = two.request(Method::GET, "/standin/head/x", &pairs, "").await?.text();
    Ok(vec![head(&one)?.1, head(&two)?.1])
}

#[tokio::test]
async fn what_only_a_proxy_may_say_is_not_taken_from_a_client() -> Result<()> {
    let stack = Stack::start(Options { nodes: 1, running: 1, ..Options::default() }).await?;
    let (simple, simple_address) = stack.another_envoy("envoy-simple.yaml", |_| {}).await?;
    for (envoy, address, file) in
        [(&stack.envoy, stack.address, FILES[0]), (&simple, simple_address, FILES[1])]
    {
        for headers in arriving(address, &SAID_BY_PROXIES).await? {
            let forged = headers.iter().find(|(_, value)| value.contains("forged"));
            ensure!(forged.is_none(), "{file}: Odoo is told {forged:?}");
        }
        for headers in arriving(address, &WITH_UNDERSCORES).await? {
            let odd = headers.iter().find(|(name, _)| name.contains('_'));
            ensure!(odd.is_none(), "{file}: Odoo is told {odd:?}");
        }
        for headers in arriving(address, &SAID_BY_CLIENTS).await? {
            for name in SAID_BY_CLIENTS {
                let arrived = headers.iter().any(|(found, _)| found.eq_ignore_ascii_case(name));
                ensure!(arrived, "{file}: {name} does not arrive");
            }
        }
        // Whoever connects tells Envoy neither who they are nor how they came, and nothing to Envoy itself.
        for headers in
            arriving(address, &["X-Forwarded-For", "X-Forwarded-Proto", "X-Envoy-Retry-On"]).await?
        {
            for (name, expected) in [
                ("x-forwarded-for", &["127.0.0.1"][..]),
                ("x-forwarded-proto", &["http"]),
                ("x-envoy-retry-on", &[]),
            ] {
                let told: Vec<_> = headers.iter().filter(|(found, _)| found == name).collect();
                ensure!(told.iter().map(|(_, value)| value).eq(expected), "{file}: Odoo is told {told:?}");
            }
        }
        // Odoo makes images of what stands in a path, such as the address of a page.
        for path in ["/standin/head/QR/https%3A%2F%2Fa.example%2Fb", "/standin/head/QR/https://a.example//b"]
        {
            let request = format!("GET {path}?x=%2F HTTP/1.1\r\nhost: odoo\r\nconnection: close\r\n\r\n");
            let (arrived, _) = head(&browser::raw(address, request.as_bytes()).await?)?;
            ensure!(arrived == format!("{path}?x=%2F"), "{file}: {path} became {arrived}");
        }
        ensure!(envoy.stat("http.odoo.downstream_rq_5xx").await? == 0, "{file}: an error");
    }
    Ok(())
}

/// How a configuration comes about in which the filter does not do its part, and whether it still names servers.
type Change = (&'static str, bool, fn(&mut Bootstrap));

/// The filter left out.
fn without_filter(bootstrap: &mut Bootstrap) {
    bootstrap.http_filters().retain(|filter| filter["name"] != "mooring");
}

/// The filter behind what it is to speak to.
fn filter_too_late(bootstrap: &mut Bootstrap) {
    let filters = bootstrap.http_filters();
    let place = filters.iter().position(|filter| filter["name"] == "mooring").expect("the filter");
    let filter = filters.remove(place);
    filters.insert(filters.len() - 1, filter);
}

/// No header chooses a server, none is told to Odoo or to the client.
async fn nothing_leaks(stack: &Stack, envoy: &Envoy, address: SocketAddr, chosen: bool) -> Result<()> {
    let http = browser::http1();
    let mut nodes = Vec::new();
    for node in &stack.nodes {
        let (encoded, plain) =
            (STANDARD.encode(node.endpoint.http.to_string()), node.endpoint.http.to_string());
        let forged = [("x-mooring-upstream", encoded.as_str()), ("x-mooring-next", plain.as_str())];
        let mut nobody = Browser::new(http.clone(), address);
        let answer = nobody.request(Method::GET, "/web/static/x.css", &forged, "").await?;
        nodes.push(answer.node().to_owned());
        let seen = answer.header("x-standin-seen");
        ensure!(seen.is_empty() || chosen && seen == "x-mooring-next", "Odoo was sent {seen}");
        let told = answer.headers.keys().find(|name| name.as_str().starts_with("x-mooring-"));
        ensure!(told.is_none(), "the client is told {told:?}");
    }
    let counts = tally(nodes);
    ensure!(counts.len() == 1, "a client without a session chose its server: {counts:?}");
    ensure!(envoy.stat("cluster.odoo.upstream_rq_completed").await? >= 3, "another cluster served");
    Ok(())
}

#[tokio::test]
async fn without_the_filter_or_with_it_in_the_wrong_place_nothing_leaks() -> Result<()> {
    let stack = Stack::start(Options::default()).await?;
    let changes: [Change; 2] =
        [("no filter", false, without_filter), ("filter too late", true, filter_too_late)];
    for file in FILES {
        for (name, chosen, change) in changes {
            let (envoy, address) = stack.another_envoy(file, change).await?;
            let found = nothing_leaks(&stack, &envoy, address, chosen && file == FILES[0]).await;
            found.with_context(|| format!("{file}, {name}"))?;
        }
    }
    Ok(())
}
