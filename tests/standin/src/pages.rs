//! Routes that a browser opens.

use std::io;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::{CACHE_CONTROL, HeaderName};
use hyper::{Method, StatusCode};
use serde_json::json;

use crate::codec::{Fields, html, percent_encode};
use crate::database::{csrf_token, csrf_valid};
use crate::jsonrpc::log_in;
use crate::node::Node;
use crate::reply::Reply;
use crate::visit::Visit;

/// GET and POST `/web/login`
pub(crate) fn login(node: &Node, visit: &mut Visit, form: &Fields) -> Reply {
    if visit.method != Method::POST {
        // A login form for somebody who has a session is shown all the same, unless they were sent here.
        return match visit.query.get("redirect").filter(|_| visit.session.data.uid.is_some()) {
            Some(redirect) => Reply::see_other(local(redirect)),
            None => login_page(node, visit, ""),
        };
    }
    if !form.get("csrf_token").is_some_and(|token| csrf_valid(node.profile, &visit.session.sid, token)) {
        return Reply::error(StatusCode::BAD_REQUEST, "Session expired (invalid CSRF token)");
    }
    let field = |name| form.get(name).unwrap_or_default();
    match node.keeper.database.authenticate(field("login"), field("password")) {
        Some(user) => {
            log_in(visit, &user);
            Reply::see_other(form.get("redirect").filter(|to| !to.is_empty()).map_or("/odoo", local))
        }
        None => login_page(node, visit, "Wrong login/password"),
    }
}

fn login_page(node: &Node, visit: &Visit, error: &str) -> Reply {
    let token = csrf_token(node.profile, &visit.session.sid);
    let redirect = html(visit.query.get("redirect").unwrap_or_default());
    let content = format!(
        "<p class=\"alert\">{error}</p>\n\
         <form action=\"/web/login\" method=\"post\">\n\
         <input type=\"hidden\" name=\"csrf_token\" value=\"{token}\"/>\n\
         <input type=\"hidden\" name=\"redirect\" value=\"{redirect}\"/>\n\
         <input name=\"login\"/>\n<input name=\"password\" type=\"password\"/>\n\
         <button>Log in</button>\n</form>"
    );
    Reply::page(node, visit.session.login(), &content).with(CACHE_CONTROL, "no-cache")
}

/// A redirect may lead to this server only.
fn local(path: &str) -> &str {
    if path.starts_with('/') && !path.starts_with("//") { path } else { "/odoo" }
}

/// GET `/odoo` and `/web`: the web client.
pub(crate) fn web_client(node: &Node, visit: &mut Visit) -> Reply {
    let Some(login) = visit.session.login() else {
        return Reply::see_other(&format!("/web/login?redirect={}", percent_encode(&visit.full_path)));
    };
    let content = format!("<h1>{}</h1>\n<p>{}</p>", html(&node.id), html(login));
    let reply = Reply::page(node, Some(login), &content);
    // Odoo touches the session here, so that its file's age starts anew.
    visit.session.dirty = true;
    reply
}

/// `/web/session/logout`
pub(crate) fn logout(node: &Node, visit: &mut Visit) -> Reply {
    visit.session.logout(node.profile);
    let redirect = visit.query.get("redirect").map_or("/odoo", local);
    // Odoo clears the cookie that remembers the chosen companies.
    Reply::see_other(redirect).with(
        HeaderName::from_static("set-cookie"),
        "cids=; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Max-Age=0; Path=/",
    )
}

/// `/report/slow?ms=N`: something that takes its time.
pub(crate) async fn slow(node: &Node, visit: &Visit) -> Reply {
    let ms = wait(visit).await;
    Reply::page(node, visit.session.login(), &format!("<p>{ms} ms</p>"))
}

/// Waits for the milliseconds that the query asks for.
pub(crate) async fn wait(visit: &Visit) -> u64 {
    let ms = visit.query.number("ms").unwrap_or_default();
    if ms > 0 {
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }
    ms
}

/// `/web/upload`: takes a body of any size and says what arrived.
pub(crate) async fn upload(node: &Node, visit: &Visit, mut body: Incoming) -> io::Result<Reply> {
    let (mut bytes, mut hasher) = (0, blake3::Hasher::new());
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.map_err(io::Error::other)?.into_data() {
            bytes += data.len();
            hasher.update(&data);
        }
    }
    let hash = hasher.finalize().to_string();
    let login = visit.session.login().unwrap_or_default();
    Ok(Reply::json(&json!({"node": node.id, "login": login, "bytes": bytes, "blake3": hash})))
}

/// `/web/health` and `/websocket/health`
pub(crate) fn health(visit: &Visit) -> Reply {
    let mut health = json!({"status": "pass"});
    if visit.query.get("db_server_status").is_some()
        && let Some(fields) = health.as_object_mut()
    {
        fields.insert("db_server_status".to_owned(), true.into());
    }
    Reply::json(&health).with(CACHE_CONTROL, "no-store")
}
