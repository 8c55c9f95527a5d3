//! Orders to the sidecar from whom they must not be taken, and more of them than it needs.

use affinity::{
    IdProof, NodeId, SessionKey,
    wire::{self, Claim, ClaimReply, Left, Origin, Owner, OwnerReply, WatchReply},
};
use anyhow::{Context, Result, bail, ensure};
use rand::seq::IndexedRandom;
use tokio::io::AsyncWriteExt;

use crate::{
    attackers::Attacker,
    door::{Answer, hear},
};

fn request(method: &str, path: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "{method} {path} HTTP/1.1\r\nconnection: close\r\n{headers}content-length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// The line that a good client sends.
fn own_host(attacker: &Attacker) -> String {
    format!("host: {}\r\n", attacker.door.host())
}

/// The key of somebody at work.
fn victim(attacker: &Attacker) -> Result<SessionKey> {
    let ids = attacker.target.somebody();
    Ok(SessionKey::of_session_id(ids.last().context("nobody is at work")?.as_bytes()))
}

fn any_node(attacker: &Attacker) -> String {
    attacker.target.nodes.choose(&mut rand::rng()).map(|(id, _)| id.clone()).unwrap_or_default()
}

/// What a page of a foreign site has a browser on this host send.
pub async fn web_page(attacker: Attacker) -> Result<()> {
    let headers = [
        // A form or a script of another site.
        "host: 127.0.0.1:7070\r\norigin: http://evil.example\r\ncontent-type: text/plain\r\n",
        "host: localhost:7070\r\norigin: null\r\ncontent-type: application/json\r\n",
        // A name that was bound anew to this host.
        "host: evil.example:7070\r\ncontent-type: application/json\r\n",
        "host: evil.example:7070\r\norigin: http://evil.example:7070\r\ncontent-type: application/json\r\n",
    ];
    let headers = headers.choose(&mut rand::rng()).context("some")?;
    let (key, node) = (victim(&attacker)?, any_node(&attacker));
    let claim = Claim { key, node: NodeId::new(&node).context("a name")?, expect: 1, origin: Origin::Visit };
    let lease = br#"{"name":"evil","token":1,"for_ms":1000,"held":false}"#;
    let (what, path, body) = match rand::random_range(0..5) {
        0 => ("drains a server", format!("/v1/nodes/{node}/drain"), b"x=1".to_vec()),
        1 => ("ends sessions", "/v1/sessions/revoke".to_owned(), format!("[\"{key}\"]").into_bytes()),
        2 => ("moves a session", "/v1/claims".to_owned(), wire::encode(&claim)),
        3 => ("takes the scheduled jobs", "/v1/cron".to_owned(), lease.to_vec()),
        _ => ("moves sessions", format!("/v1/nodes/{node}/move"), format!("[[\"{key}\",1]]").into_bytes()),
    };
    let answer = attacker.door.ask(&request("POST", &path, headers, &body)).await?;
    if answer.status < 300 {
        attacker.harm(format!("{what}, as {:?}", headers.lines().take(2).collect::<Vec<_>>()));
    }
    Ok(())
}

/// Claims of sessions that the claimer has no right to, or for nobody.
pub async fn claims(attacker: Attacker) -> Result<()> {
    let ids = attacker.target.somebody();
    let made_up = SessionKey::of_session_id(&rand::random::<[u8; 16]>());
    let victim = SessionKey::of_session_id(ids.last().context("nobody is at work")?.as_bytes());
    let here = NodeId::new(any_node(&attacker)).context("a name")?;
    let nowhere = NodeId::new("odoo-99").context("a name")?;
    let (what, claim) = match rand::random_range(0..3) {
        0 => (
            "a claim with an epoch that never was is granted",
            Claim { key: victim, node: here, expect: 1 << 40, origin: Origin::Visit },
        ),
        1 => (
            "a claim for an unknown server is granted",
            Claim { key: made_up, node: nowhere, expect: 0, origin: Origin::Visit },
        ),
        _ => (
            "a claim with an epoch that is over is granted",
            Claim { key: victim, node: here, expect: 0, origin: Origin::Failover },
        ),
    };
    let before = owner_of(&attacker, claim.key).await?;
    let answer = claim_of(&attacker, &claim).await?;
    let reply =
        wire::decode::<ClaimReply>(&answer.body).filter(|reply| answer.status == 200 && reply.granted);
    // That a node owns what it owns already is granted to anybody.
    let has_taken = reply.is_some_and(|reply| before != Some(reply.owner));
    // Who logged out meanwhile has no session that could be taken.
    if has_taken && (claim.key == made_up || attacker.target.is_at_work(&ids)) {
        attacker.harm(what);
    }
    Ok(())
}

async fn owner_of(attacker: &Attacker, key: SessionKey) -> Result<Option<Owner>> {
    let path = format!("/v1/owners/{key}");
    let answer = attacker.door.ask(&request("GET", &path, &own_host(attacker), b"")).await?;
    Ok(wire::decode::<OwnerReply>(&answer.body).context("no reply")?.owner)
}

/// A claim which says that somebody's session was left, with the proof of half its id or of one from before a
/// rotation.
pub async fn left_sessions(attacker: Attacker) -> Result<()> {
    let ids = attacker.target.somebody();
    let [older @ .., newest] = &ids[..] else { bail!("nobody is at work") };
    let known = older.choose(&mut rand::rng()).unwrap_or(newest);
    let held = if older.is_empty() || rand::random() { &known[..42] } else { known };
    let left = Left {
        key: SessionKey::of_session_id(newest.as_bytes()),
        proof: IdProof::of_session_id(held.as_bytes()),
    };
    let key = SessionKey::of_session_id(&rand::random::<[u8; 16]>());
    let origin = Origin::Entry { left: Some(left), posted: rand::random() };
    let node = NodeId::new(any_node(&attacker)).context("a name")?;
    claim_of(&attacker, &Claim { key, node, expect: 0, origin }).await?;
    Ok(())
}

async fn claim_of(attacker: &Attacker, claim: &Claim) -> Result<Answer> {
    attacker.door.ask(&request("POST", "/v1/claims", &own_host(attacker), &wire::encode(claim))).await
}

/// Questions that are too long, too deep or of nobody's interest.
pub async fn absurd(attacker: Attacker) -> Result<()> {
    let host = own_host(&attacker);
    let deep = [vec![b'['; 4_000], vec![b']'; 90]].concat();
    let request = match rand::random_range(0..7) {
        0 => request("GET", &format!("/v1/watch?generation={}", "9".repeat(50_000)), &host, b""),
        1 => request("GET", &format!("/v1/owners/{}", "0".repeat(300_000)), &host, b""),
        2 => request("POST", "/v1/claims", &host, &vec![0xff; 1 << 20]),
        3 => request(
            "POST",
            "/v1/nodes/odoo-1/move",
            &format!("{host}content-type: application/json\r\n"),
            &deep,
        ),
        4 => request("GET", "/metrics", &format!("{host}{}", "a: b\r\n".repeat(3_000)), b""),
        5 => request("BREW", "/v1/nodes/%00%ff/drain", &host, b""),
        _ => request("GET", "/v1/nodes/odoo-1/sessions?from=\u{7f}%ff%00", &host, b""),
    };
    let answer = attacker.door.ask(&request).await?;
    if answer.status >= 500 {
        attacker.harm(format!("an absurd question is answered with {}", answer.status));
    }
    Ok(())
}

/// Waits for changes like a filter, again and again.
pub async fn long_poll(attacker: Attacker) -> Result<()> {
    let host = own_host(&attacker);
    let at_once = "/v1/watch?generation=0&position=0&membership=0&wait_ms=0";
    let answer = attacker.door.ask(&request("GET", at_once, &host, b"")).await?;
    ensure!(answer.status == 200, "refused");
    let Some(reply) = wire::decode::<WatchReply>(&answer.body) else { bail!("no reply") };
    let path = format!(
        "/v1/watch?generation={}&position={}&membership={}&wait_ms=30000",
        reply.cursor.generation,
        reply.cursor.position,
        reply.membership.map(|nodes| nodes.digest()).unwrap_or_default()
    );
    let mut stream = attacker.door.open().await?;
    stream.write_all(&request("GET", &path, &host, b"")).await?;
    hear(&mut stream).await
}
