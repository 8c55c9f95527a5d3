//! Bytes that no browser sends: served, and the filter's VM lives on.

use anyhow::{Result, ensure};
use harness::{
    browser::{self, Method},
    stack::{Options, Stack},
};

/// Sends raw bytes of a request and returns the status and all of the answer.
async fn raw(stack: &Stack, head: &[u8]) -> Result<(u16, String)> {
    let answer = browser::raw(stack.address, head).await?;
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default();
    Ok((status, answer))
}

fn request(headers: &[u8]) -> Vec<u8> {
    [b"GET /web/static/x.css HTTP/1.1\r\nhost: odoo\r\nconnection: close\r\n", headers, b"\r\n\r\n"].concat()
}

#[tokio::test]
async fn hostile_requests_are_served_and_no_vm_restarts() -> Result<()> {
    let stack = Stack::start(Options::default()).await?;
    let created = stack.envoy.stat("wasm.envoy.wasm.runtime.v8.created").await?;
    let cookie = |value: &[u8]| [b"cookie: ".as_slice(), value].concat();
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("no UTF-8", cookie(b"session_id=\xff")),
        ("no UTF-8 anywhere", cookie(b"\xff\xfe=\x80; session_id=\xc0\xaf\xff")),
        ("60 KB of session id", cookie(&[b"session_id=".as_slice(), &[b'x'; 60_000]].concat())),
        (
            "60 KB of cookies before the session",
            cookie(&[&b"a=b; ".repeat(12_000)[..], b"session_id=abc"].concat()),
        ),
        ("a thousand cookies", cookie(&[&b"name=value; ".repeat(1_000)[..], b"session_id=abc"].concat())),
        ("ninety cookie headers", b"cookie: a=b\r\n".repeat(90)[..90 * 13 - 2].to_vec()),
        ("empty cookie", cookie(b"")),
        ("only separators", cookie(b";;;;=;=;;\"\";")),
        ("unbalanced quotes", cookie(b"session_id=\"\"\"; session_id=\"")),
        (
            "absurd X-Forwarded-For",
            [b"x-forwarded-for: ".as_slice(), &b"999.1.1.1, ,,\xff,".repeat(2_000)].concat(),
        ),
        (
            "forged headers",
            b"x-mooring-upstream: MTI3LjAuMC4xOjE=\r\nx-mooring-next: 127.0.0.1:1\r\nx-mooring-anything: x"
                .to_vec(),
        ),
        (
            "forged headers that are no text",
            b"x-mooring-upstream: \xff\xff\r\nx-mooring-next: \xff,,,,".to_vec(),
        ),
    ];
    for (name, headers) in &cases {
        for _ in 0..20 {
            let (status, answer) = raw(&stack, &request(headers)).await?;
            ensure!(status == 200, "{name}: {}", answer.lines().next().unwrap_or("no answer"));
            ensure!(!answer.contains("\nx-mooring-"), "{name}: a header comes back: {answer}");
            let seen =
                answer.lines().find_map(|line| line.strip_prefix("x-standin-seen: ")).unwrap_or_default();
            ensure!(["", "x-mooring-next"].contains(&seen.trim()), "{name}: Odoo was sent {seen}");
        }
    }
    // Paths too.
    for path in ["/websocket%00", "//websocket", "/\u{7f}", "/?session_id=x", "/web/static/%ff"] {
        let head = format!("GET {path} HTTP/1.1\r\nhost: odoo\r\nconnection: close\r\n\r\n");
        let (status, _) = raw(&stack, head.as_bytes()).await?;
        ensure!(status != 0 && status != 503, "{path}: {status}");
    }
    let now = stack.envoy.stat("wasm.envoy.wasm.runtime.v8.created").await?;
    ensure!(now == created, "{} VMs were created anew", now - created);
    println!("{} kinds of hostile requests, 20 times each: all served, no VM restarted", cases.len());
    Ok(())
}

#[tokio::test]
async fn forged_headers_choose_nothing() -> Result<()> {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let stack = Stack::start(Options::default()).await?;
    for connections in [browser::http1(), browser::http2()] {
        let mut victim = stack.browser(&connections);
        victim.sid = Some(browser::random_sid());
        victim.log_in("alice").await?;
        let own = victim.get("/odoo").await?.node().to_owned();
        for node in &stack.nodes {
            let encoded = STANDARD.encode(node.endpoint.http.to_string());
            let plain = node.endpoint.http.to_string();
            let forged = [
                ("x-mooring-upstream", encoded.as_str()),
                ("X-Mooring-Next", plain.as_str()),
                ("x-mooring-owner", node.id.as_str()),
            ];
            let answer = victim.request(Method::GET, "/odoo", &forged, "").await?;
            ensure!(answer.node() == own, "a header moved a session from {own} to {}", answer.node());
            ensure!(answer.login() == "alice");
            // And a client without a cookie stays at the home of its address.
            let mut nobody = stack.browser(&connections);
            let home = nobody.get("/web/static/x.css").await?.node().to_owned();
            let answer = nobody.request(Method::GET, "/web/static/x.css", &forged, "").await?;
            ensure!(answer.node() == home, "a header moved a client from {home} to {}", answer.node());
        }
    }
    Ok(())
}

#[tokio::test]
async fn the_session_id_is_nowhere_but_in_the_cookie() -> Result<()> {
    let mut stack = Stack::start(Options::default()).await?;
    let mut browser = stack.browser(&browser::http1());
    browser.log_in("alice").await?;
    let sid = browser.sid.clone().expect("a session");
    for _ in 0..3 {
        browser.get("/odoo").await?;
    }
    stack.kill_node("odoo-1");
    browser.get("/odoo").await?;
    let metrics = browser::get(stack.sidecar_address, "/metrics").await?.text();
    let nodes = browser::get(stack.sidecar_address, "/v1/nodes").await?.text();
    let envoy = stack.envoy.stats("mooring").await?;
    let mut texts = vec![metrics, nodes, envoy];
    for entry in std::fs::read_dir(stack.folder())?.flatten() {
        if entry.path().is_file() {
            texts.push(std::fs::read_to_string(entry.path())?);
        }
    }
    let stable = sid.get(..42).unwrap_or(&sid);
    ensure!(texts.iter().all(|text| !text.contains(stable)), "the session id is in a log or a metric");
    let store = std::fs::read(stack.folder().join("state/directory.redb"))?;
    ensure!(!store.windows(stable.len()).any(|bytes| bytes == stable.as_bytes()), "it is in the store");
    Ok(())
}
