//! Headers that only a proxy may set, written by a client who is logged in.

use anyhow::Result;
use base64::{Engine, engine::general_purpose::STANDARD};
use rand::seq::IndexedRandom;

use crate::{attackers::Attacker, own::Own};

/// Logs in and tries to get elsewhere, a hundred times.
pub async fn forge(attacker: Attacker) -> Result<()> {
    let mut own = Own::log_in(&attacker).await?;
    for _ in 0..100 {
        let forged = forged(&attacker);
        let names: Vec<&str> = forged.lines().filter_map(|line| line.split(':').next()).take(3).collect();
        let host = ["odoo", "evil.example", "127.0.0.1:7070", "odoo:99999", "[::1]", "a_b"]
            .choose(&mut rand::rng())
            .expect("some");
        let request = format!(
            "GET /odoo HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\ncookie: session_id={}\r\n{forged}\r\n",
            own.sid
        );
        let answer = attacker.door.ask(request.as_bytes()).await?;
        if answer.status == 400 {
            // Refused for what it says: that is one's right.
            continue;
        }
        own.follow(&answer);
        let (node, login) = (answer.header("x-standin-node"), answer.header("x-standin-login"));
        if answer.status != 200 || login != own.login {
            attacker.harm(format!("{names:?}: {} as {login:?}", answer.status));
        }
        if node != own.node {
            attacker.harm(format!("{names:?} lead to another server"));
        }
        if !["", "x-mooring-next"].contains(&answer.header("x-standin-seen")) {
            attacker.harm(format!("Odoo is sent {}", answer.header("x-standin-seen")));
        }
        if answer.head.to_ascii_lowercase().contains("\nx-mooring-") {
            attacker.harm("an answer tells what only Envoy should know");
        }
        let told: Vec<&str> = answer.header("x-standin-forwarded").split(';').collect();
        if told.len() != 3 || !told[0].starts_with("127.") || told[0].contains(',') {
            attacker.harm(format!("{names:?}: Odoo is told {told:?}"));
        }
    }
    Ok(())
}

/// A few headers, each with its line's end.
fn forged(attacker: &Attacker) -> String {
    let random = &mut rand::rng();
    let (id, address) = attacker.target.nodes.choose(random).cloned().unwrap_or_default();
    let encoded = STANDARD.encode(&address);
    let all = [
        format!("x-mooring-upstream: {encoded}"),
        format!("X-Mooring-Next: {address}"),
        format!("x-mooring-owner: {id}"),
        format!("x_mooring_upstream: {encoded}"),
        format!("x_mooring-next: {address}"),
        format!("X_MOORING_NEXT: {address}"),
        "X-Forwarded-For: 10.9.8.7".to_owned(),
        "X_Forwarded_For: 10.9.8.7".to_owned(),
        "X-Forwarded-Host: evil.example".to_owned(),
        "X_Forwarded_Proto: https".to_owned(),
        "X-Forwarded-Proto: gopher".to_owned(),
        "Forwarded: for=10.9.8.7;proto=https".to_owned(),
        "X-Real-IP: 10.9.8.7".to_owned(),
        "x-envoy-original-dst-host: 127.0.0.1:1".to_owned(),
        "x-envoy-upstream-rq-timeout-ms: 1".to_owned(),
        "x-envoy-max-retries: 100".to_owned(),
        "x-envoy-retry-on: 5xx".to_owned(),
        "x-envoy-force-trace: 1".to_owned(),
        "X-Odoo-dbfilter: .*".to_owned(),
        format!("x-huge: {}", "h".repeat(50_000)),
        "x-small: s\r\n".repeat(50).trim_end().to_owned(),
    ];
    all.choose_multiple(random, 3).map(|line| format!("{line}\r\n")).collect()
}

/// Heads that are too large, or contradict themselves.
pub async fn absurd(attacker: Attacker) -> Result<()> {
    let request = match rand::random_range(0..8) {
        0 => format!("GET / HTTP/1.1\r\nhost: odoo\r\nx-huge: {}\r\n\r\n", "h".repeat(300_000)),
        1 => format!("GET / HTTP/1.1\r\nhost: odoo\r\n{}\r\n", "a: b\r\n".repeat(5_000)),
        2 => format!("GET /{} HTTP/1.1\r\nhost: odoo\r\n\r\n", "p".repeat(300_000)),
        3 => "GET / HTTP/1.1\r\nhost: odoo\r\nhost: evil.example\r\nconnection: close\r\n\r\n".to_owned(),
        4 => "GET http://evil.example/odoo HTTP/1.1\r\nhost: odoo\r\nconnection: close\r\n\r\n".to_owned(),
        5 => "POST / HTTP/1.1\r\nhost: odoo\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n0\r\n\r\nGET /odoo HTTP/1.1\r\n\r\n".to_owned(),
        6 => "CONNECT 127.0.0.1:7070 HTTP/1.1\r\nhost: odoo\r\nconnection: close\r\n\r\n".to_owned(),
        _ => "GET / HTTP/1.0\r\n\r\n".to_owned(),
    };
    attacker.door.ask(request.as_bytes()).await?;
    Ok(())
}
