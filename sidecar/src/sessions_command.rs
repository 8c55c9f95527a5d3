//! `mooring sessions revoke`: ends sessions everywhere.

use affinity::wire::{RevokeReply, SessionsReply};

use crate::{
    api::MOST_MOVED,
    asking::{AskError, Sidecar},
    cli::Revoke,
    cookie_file::{self, CookieFileError},
};

/// Why sessions are not revoked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RevokeError {
    #[error("{0}")]
    Ask(#[from] AskError),
    #[error("{0}")]
    File(#[from] CookieFileError),
    #[error("no sidecar carries this session: nothing was revoked (is --sessions on?)")]
    Unknown,
}

/// Ends one session, or all of a node.
///
/// # Errors
/// If a file holds no session, no sidecar answers, or there is nothing to revoke.
#[allow(clippy::print_stdout)]
pub(crate) async fn revoke(options: Revoke) -> Result<(), RevokeError> {
    let sidecar = Sidecar::new(&options.asked)?;
    let mut revoked = 0;
    if let Some(file) = &options.file {
        let key = cookie_file::session(file)?;
        let reply: RevokeReply = sidecar.post("/v1/sessions/revoke", &[key]).await?;
        if reply.revoked == 0 {
            return Err(RevokeError::Unknown);
        }
        revoked += reply.revoked;
    }
    if let Some(node) = &options.node {
        let mut from = None::<String>;
        loop {
            let query = from.map(|from| format!("?from={from}")).unwrap_or_default();
            let page: SessionsReply = sidecar.get(&format!("/v1/nodes/{node}/sessions{query}")).await?;
            let keys: Vec<_> = page.sessions.iter().map(|(key, _)| *key).collect();
            for step in keys.chunks(MOST_MOVED) {
                let reply: RevokeReply = sidecar.post("/v1/sessions/revoke", &step).await?;
                revoked += reply.revoked;
            }
            from = page.next;
            if from.is_none() {
                break;
            }
        }
    }
    println!("{revoked} {} ended on every node", if revoked == 1 { "session has" } else { "sessions have" });
    Ok(())
}
