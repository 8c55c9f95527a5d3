//! Every browser stays on one server.

use std::time::Duration;

use anyhow::{Result, ensure};
use futures::{StreamExt, stream};
use harness::{
    browser::{self, Browser, Connections, Method, tally},
    envoy::Bootstrap,
    stack::{Options, Stack},
};

const BROWSERS: usize = 1_000;
const REQUESTS: usize = 20;

/// The nodes that answered `REQUESTS` requests of a browser with a session id of its own, each over
/// another of several pools of connections.
async fn nodes_of(stack: &Stack, sid: String, pools: &[Connections]) -> Result<Vec<String>> {
    let mut nodes = Vec::with_capacity(REQUESTS);
    for number in 0..REQUESTS {
        let mut browser = stack.browser(&pools[number % pools.len()]);
        browser.sid = Some(sid.clone());
        let answer = browser.get("/web/static/x.css").await?;
        ensure!(answer.status == 200, "status {}", answer.status);
        nodes.push(answer.node().to_owned());
    }
    Ok(nodes)
}

/// A thousand browsers, twenty requests each; returns how many browsers each node has.
async fn a_thousand_browsers(stack: &Stack, pools: &[Connections]) -> Result<Vec<(String, usize)>> {
    let browsers = stream::iter(0..BROWSERS).map(|_| nodes_of(stack, browser::random_sid(), pools));
    let results: Vec<Result<Vec<String>>> = browsers.buffer_unordered(32).collect().await;
    let mut homes = Vec::new();
    for nodes in results {
        let counts = tally(nodes?);
        ensure!(counts.len() == 1, "a browser was on {counts:?}");
        homes.extend(counts.into_keys());
    }
    let mut shares: Vec<_> = tally(homes).into_iter().collect();
    shares.sort();
    Ok(shares)
}

#[tokio::test]
async fn a_thousand_browsers_over_http1_and_http2() -> Result<()> {
    let stack = Stack::start(Options::default()).await?;
    let one: Vec<_> = (0..4).map(|_| browser::http1()).collect();
    let two: Vec<_> = (0..4).map(|_| browser::http2()).collect();
    for (pools, name) in [(&one, "HTTP/1.1"), (&two, "HTTP/2")] {
        let shares = a_thousand_browsers(&stack, pools).await?;
        println!("{name}: {BROWSERS} browsers, {REQUESTS} requests each, on {shares:?}");
        ensure!(shares.len() == 3, "not every node has browsers: {shares:?}");
        ensure!(shares.iter().all(|(_, count)| (250..420).contains(count)), "uneven: {shares:?}");
    }
    Ok(())
}

/// Logs a browser in and lets it work; it must stay on one node, and logged in.
async fn works_on_one_node(browser: &mut Browser, login: &str, seconds: u64) -> Result<usize> {
    let node = browser.log_in(login).await?.node().to_owned();
    let first = browser.sid.clone();
    let mut sids = vec![first];
    let end = tokio::time::Instant::now() + Duration::from_secs(seconds);
    while tokio::time::Instant::now() < end {
        let answer = browser.get("/odoo").await?;
        ensure!(answer.node() == node, "{login} moved from {node} to {}", answer.node());
        ensure!(answer.login() == login, "{login} is logged in as {:?} on {node}", answer.login());
        if sids.last() != Some(&browser.sid) {
            sids.push(browser.sid.clone());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let echo = browser.websocket("hi").await?;
    ensure!(echo == format!("{node}:{login}:hi"), "the websocket says {echo:?}, the node is {node}");
    Ok(sids.len() - 1)
}

#[tokio::test]
async fn soft_rotation_moves_nobody() -> Result<()> {
    let standin_args = ["--rotation-secs", "1", "--rotation-grace-secs", "1"].map(str::to_owned).to_vec();
    let stack = Stack::start(Options { standin_args, ..Options::default() }).await?;
    let http = browser::http1();
    let browsers = (0..20).map(|number| {
        let mut browser = stack.browser(&http);
        browser.sid = Some(browser::random_sid());
        async move { works_on_one_node(&mut browser, &format!("user{number}"), 5).await }
    });
    let rotations: Vec<_> = futures::future::try_join_all(browsers).await?;
    println!("rotations of each session: {rotations:?}");
    ensure!(rotations.iter().all(|count| *count >= 2), "some session did not rotate: {rotations:?}");
    Ok(())
}

#[tokio::test]
async fn every_version_of_odoo_sticks() -> Result<()> {
    for profile in [16, 18, 19] {
        let stack = Stack::start(Options { profile, ..Options::default() }).await?;
        let http = browser::http1();
        for number in 0..12 {
            let login = format!("user{number}");
            let mut browser = stack.browser(&http);
            browser.sid = Some(browser::random_sid());
            works_on_one_node(&mut browser, &login, 0).await?;
            // A JSON login in the same browser changes the sid, on 19 with two cookies.
            let body = format!(r#"{{"params":{{"login":"{login}","password":"pw-{login}"}}}}"#);
            let json = [("content-type", "application/json")];
            let answer = browser.request(Method::POST, "/web/session/authenticate", &json, body).await?;
            let node = answer.node().to_owned();
            for _ in 0..4 {
                let answer = browser.get("/odoo").await?;
                ensure!(answer.node() == node && answer.login() == login, "{profile}: {login} left {node}");
            }
            // Logout begins an anonymous session, wherever that is the next login works.
            browser.get("/web/session/logout").await?;
            let login = format!("other{number}");
            works_on_one_node(&mut browser, &login, 0).await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn an_upload_that_waits_for_its_owner_arrives_whole() -> Result<()> {
    let stack = Stack::start(Options::default()).await?;
    let mut browser = stack.browser(&browser::http1());
    browser.log_in("alice").await?;
    let body: Vec<u8> = (0..8_000_000_u32).map(|number| (number % 251) as u8).collect();
    let answer = browser.request(Method::POST, "/web/upload", &[], body.clone()).await?;
    let text = answer.text();
    ensure!(text.contains("\"bytes\":8000000") || text.contains("\"bytes\": 8000000"), "{text}");
    // A session that nobody has asked for yet: the body waits while the sidecar is asked.
    browser.sid = Some(browser::random_sid());
    let answer = browser.request(Method::POST, "/web/upload", &[], body).await?;
    ensure!(answer.text().contains("8000000"), "{}", answer.text());
    Ok(())
}

#[tokio::test]
async fn clients_without_a_cookie_stick_by_address_and_odoo_is_told_of_them() -> Result<()> {
    let stack = Stack::start(Options::default()).await?;
    let http = browser::http1();
    let mut nodes = Vec::new();
    for _ in 0..20 {
        let answer = stack.browser(&http).get("/web/static/x.css").await?;
        let forwarded = answer.header("x-standin-forwarded").to_owned();
        ensure!(forwarded == format!("127.0.0.1;{};http", stack.address), "{forwarded}");
        nodes.push(answer.node().to_owned());
    }
    ensure!(tally(nodes).len() == 1);

    Ok(())
}

#[tokio::test]
async fn behind_a_trusted_proxy_every_address_has_a_home_of_its_own() -> Result<()> {
    let http = browser::http1();
    let by_envoy: fn(&mut Bootstrap) = |bootstrap| {
        bootstrap.connection_manager()["xff_num_trusted_hops"] = 1.into();
    };
    let by_filter: fn(&mut Bootstrap) = |bootstrap| {
        let value = r#"{"sidecar_cluster": "mooring", "trusted_proxies": 1}"#;
        bootstrap.wasm()["configuration"]["value"] = value.into();
    };
    for (name, change) in [("xff_num_trusted_hops", by_envoy), ("trusted_proxies", by_filter)] {
        let stack = Stack::start_with(Options::default(), change).await?;
        let mut homes = Vec::new();
        for client in 0..60 {
            let address = format!("203.0.113.{client}");
            let mut answers = Vec::new();
            for forged in ["", "198.51.100.1, ", "198.51.100.2, rubbish, "] {
                let forwarded = format!("{forged}{address}");
                let headers = [("x-forwarded-for", forwarded.as_str())];
                let mut browser = stack.browser(&http);
                let answer = browser.request(Method::GET, "/web/static/x.css", &headers, "").await?;
                if name == "xff_num_trusted_hops" {
                    let told = answer.header("x-standin-forwarded");
                    ensure!(told.starts_with(&format!("{address};")), "Odoo takes {told} for {address}");
                }
                answers.push(answer.node().to_owned());
            }
            let nodes = tally(answers);
            ensure!(nodes.len() == 1, "{name}: {address} was on {nodes:?}: a client can choose its node");
            homes.extend(nodes.into_keys());
        }
        ensure!(tally(homes).len() == 3, "{name}: sixty addresses are not spread");
    }
    Ok(())
}
