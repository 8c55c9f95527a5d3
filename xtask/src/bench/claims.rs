//! Sessions that have owners, as in real life: claimed in the sidecar before they are used.

use std::net::SocketAddr;

use affinity::{
    NodeId, SessionKey,
    wire::{self, CONTENT_TYPE, Claim, ClaimReply},
};
use anyhow::{Context, Result, ensure};
use harness::browser::{Browser, Method, http1};

/// Claims each session for the node of its place in turn, whatever its home is.
pub async fn claim_all(sidecar: SocketAddr, sids: &[String], nodes: &[String]) -> Result<()> {
    let mut client = Browser::new(http1(), sidecar);
    for (sid, node) in sids.iter().zip(nodes.iter().cycle()) {
        let key = SessionKey::of_session_id(sid.as_bytes());
        let claim = Claim { key, node: NodeId::new(node.as_str())?, expect: 0, origin: wire::Origin::Visit };
        let kind = [("content-type", CONTENT_TYPE)];
        let answer = client.request(Method::POST, "/v1/claims", &kind, wire::encode(&claim)).await?;
        let reply: ClaimReply = wire::decode(&answer.body)
            .with_context(|| format!("a claim was answered with {}: {}", answer.status, answer.text()))?;
        ensure!(reply.granted, "a claim was not granted");
    }
    Ok(())
}
