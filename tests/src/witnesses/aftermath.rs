//! What became of sessions once everybody has ended.

use std::net::SocketAddr;

use anyhow::Result;

use super::Notices;
use crate::browser::{Browser, Connections, http1};

/// People who are not logged in any more, although they should be.
///
/// # Errors
/// If a request is not answered; likewise below.
pub async fn lost(notices: &Notices, connections: &Connections, server: SocketAddr) -> Result<usize> {
    let mut lost = 0;
    for (login, ids) in &notices.alive {
        let mut browser = Browser::new(connections.clone(), server);
        browser.sid = ids.last().cloned();
        lost += usize::from(browser.get("/odoo").await?.login() != login);
    }
    Ok(lost)
}

/// Sessions that were logged out and that some node takes for somebody's.
pub async fn risen(notices: &Notices, nodes: impl IntoIterator<Item = SocketAddr>) -> Result<usize> {
    let mut risen = 0;
    for node in nodes {
        for (sid, _) in &notices.dead {
            let mut browser = Browser::new(http1(), node);
            browser.sid = Some(sid.clone());
            risen += usize::from(!browser.get("/odoo").await?.login().is_empty());
        }
    }
    Ok(risen)
}
