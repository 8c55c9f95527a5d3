//! `/websocket`: the handshake, and the session looked up again for every message.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures::{SinkExt, StreamExt};
use hyper::header::{CONNECTION, HeaderMap, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE};
use hyper::upgrade::OnUpgrade;
use hyper::{StatusCode, header::HeaderName};
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::protocol::frame::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use crate::node::{Node, Port};
use crate::reply::Reply;
use crate::session::{Session, is_valid_sid};
use crate::visit::Visit;

/// The code with which Odoo closes a websocket whose session is gone.
const SESSION_EXPIRED: u16 = 4001;

/// The answer to a handshake. It always saves the session, because the websocket looks it up on disk; for
/// an id unknown to this node that is an anonymous file under the id of somebody logged in elsewhere.
pub(crate) fn handshake(port: Port, visit: &mut Visit) -> Reply {
    if port == Port::Http {
        let message = "Couldn't bind the websocket. Is the connection opened on the evented port?";
        return Reply::error(StatusCode::INTERNAL_SERVER_ERROR, message);
    }
    let names = |name: HeaderName, token: &str| contains_token(&visit.headers, name, token);
    let key = visit.headers.get(SEC_WEBSOCKET_KEY);
    let Some(key) = key.filter(|_| names(UPGRADE, "websocket") && names(CONNECTION, "upgrade")) else {
        return Reply::error(StatusCode::BAD_REQUEST, "Not a websocket handshake");
    };
    if !names(SEC_WEBSOCKET_VERSION, "13") {
        return Reply::error(StatusCode::UPGRADE_REQUIRED, "Websocket version 13 is needed")
            .with(SEC_WEBSOCKET_VERSION, "13");
    }
    let reply = Reply::switching(&derive_accept_key(key.as_bytes()));
    visit.session.dirty = true;
    reply
}

fn contains_token(headers: &HeaderMap, name: HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|value| value.trim().eq_ignore_ascii_case(token))
}

/// Echoes messages as `node:login:message` until either side closes.
pub(crate) async fn run(node: Arc<Node>, upgrade: OnUpgrade, sid: String) {
    let Ok(upgraded) = upgrade.await else { return };
    let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
    node.stats.websockets.fetch_add(1, Ordering::Relaxed);
    echo(&node, socket, sid).await;
    node.stats.websockets.fetch_sub(1, Ordering::Relaxed);
}

async fn echo(node: &Node, mut socket: WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>, mut sid: String) {
    while let Some(Ok(message)) = socket.next().await {
        if !(message.is_text() || message.is_binary()) {
            continue;
        }
        let answer = match current(node, &mut sid) {
            Ok(Some(login)) => {
                let prefix = format!("{}:{login}:", node.id);
                match message {
                    Message::Text(text) => Message::text(prefix + &text),
                    other => Message::binary([prefix.as_bytes(), &other.into_data()].concat()),
                }
            }
            Ok(None) => close(SESSION_EXPIRED, "SESSION_EXPIRED"),
            Err(error) => {
                eprintln!("odoo-standin {}: websocket: {error}", node.id);
                close(CloseCode::Error.into(), "SERVER_ERROR")
            }
        };
        let closing = answer.is_close();
        if socket.send(answer).await.is_err() || closing {
            // Wait for the other side's close, as RFC 6455 asks, but for nothing else.
            while closing && matches!(socket.next().await, Some(Ok(_))) {}
            return;
        }
    }
}

fn close(code: u16, reason: &'static str) -> Message {
    Message::Close(Some(CloseFrame { code: code.into(), reason: reason.into() }))
}

/// The login of the session on disk (empty for an anonymous one), `None` when it is gone or stale. Follows
/// a session that was rotated meanwhile.
fn current(node: &Node, sid: &mut String) -> io::Result<Option<String>> {
    let Some(mut data) = node.keeper.store.load(sid) else { return Ok(None) };
    while let Some(next) = data.next_sid.take().filter(|next| is_valid_sid(node.profile, next)) {
        match node.keeper.store.load(&next) {
            Some(found) => data = found,
            None => return Ok(None),
        }
        *sid = next;
    }
    let mut session = Session { sid: sid.clone(), data, dirty: false, should_rotate: false };
    if session.data.uid.is_some() && !node.keeper.check(&mut session)? {
        return Ok(None);
    }
    Ok(Some(session.login().unwrap_or_default().to_owned()))
}
