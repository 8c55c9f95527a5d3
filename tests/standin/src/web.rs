//! From a request to an answer: route, session, handler, session again, headers.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{HeaderName, SET_COOKIE};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::json;

use crate::cli::Profile;
use crate::codec::{fields, http_date};
use crate::jsonrpc::{self, Call};
use crate::node::{Node, Port};
use crate::pages;
use crate::reply::Reply;
use crate::session::now;
use crate::visit::Visit;
use crate::websocket;

/// What a path stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route {
    Root,
    Login,
    WebClient,
    Logout,
    Authenticate,
    SessionInfo,
    CallKw,
    Upload,
    Slow,
    Static,
    WebHealth,
    WebsocketHealth,
    Websocket,
    Poll,
    JsonRpc,
    ChangePassword,
    State,
    Gc,
    Head,
    Unknown,
}

impl Route {
    /// The route of a path, with the name under which it is counted.
    fn find(profile: Profile, path: &str) -> (Self, &'static str) {
        match path {
            "/" => (Route::Root, "/"),
            "/web/login" => (Route::Login, "/web/login"),
            "/odoo" | "/web" => (Route::WebClient, "/odoo"),
            "/web/session/logout" => (Route::Logout, "/web/session/logout"),
            "/web/session/authenticate" => (Route::Authenticate, "/web/session/authenticate"),
            "/web/session/get_session_info" => (Route::SessionInfo, "/web/session/get_session_info"),
            "/web/upload" => (Route::Upload, "/web/upload"),
            "/report/slow" => (Route::Slow, "/report/slow"),
            "/web/health" => (Route::WebHealth, "/web/health"),
            "/websocket" => (Route::Websocket, "/websocket"),
            "/websocket/health" => (Route::WebsocketHealth, "/websocket/health"),
            "/longpolling/poll" if profile == Profile::V16 => (Route::Poll, "/longpolling/poll"),
            "/jsonrpc" => (Route::JsonRpc, "/jsonrpc"),
            "/standin/change_password" => (Route::ChangePassword, "/standin"),
            "/standin/state" => (Route::State, "/standin"),
            "/standin/gc" => (Route::Gc, "/standin"),
            _ if path.starts_with("/standin/head/") => (Route::Head, "/standin"),
            _ if path.starts_with("/odoo/") => (Route::WebClient, "/odoo"),
            _ if path.starts_with("/web/static/") => (Route::Static, "/web/static"),
            _ if path == "/web/dataset/call_kw" || path.starts_with("/web/dataset/call_kw/") => {
                (Route::CallKw, "/web/dataset/call_kw")
            }
            _ => (Route::Unknown, "unknown"),
        }
    }

    fn takes(self, method: &Method) -> bool {
        match self {
            Route::Authenticate
            | Route::SessionInfo
            | Route::CallKw
            | Route::Upload
            | Route::Poll
            | Route::JsonRpc
            | Route::ChangePassword
            | Route::Gc => method == Method::POST,
            Route::Login | Route::Slow | Route::Logout | Route::Head | Route::Unknown => true,
            _ => method == Method::GET || method == Method::HEAD,
        }
    }

    /// Routes of type "json", whose errors come with status 200.
    fn is_json(self) -> bool {
        matches!(self, Route::Authenticate | Route::SessionInfo | Route::CallKw | Route::Poll)
    }

    /// Routes that are answered before anybody asks for a session.
    fn has_session(self) -> bool {
        !matches!(self, Route::Static | Route::State | Route::Gc | Route::Head)
    }

    /// False for routes that Odoo marks `save_session=False`, and for those without a session.
    fn saves_session(self) -> bool {
        use Route::{JsonRpc, Unknown, WebHealth, WebsocketHealth};
        self.has_session() && !matches!(self, WebHealth | WebsocketHealth | JsonRpc | Unknown)
    }
}

/// Answers one request.
pub(crate) async fn serve(
    node: Arc<Node>,
    port: Port,
    peer: IpAddr,
    mut request: Request<Incoming>,
) -> Response<Full<Bytes>> {
    let upgrade = hyper::upgrade::on(&mut request);
    let (head, body) = request.into_parts();
    let (route, name) = Route::find(node.profile, head.uri.path());
    if name != "/standin" {
        node.stats.count(port, name);
    }
    let store = &node.keeper.store;
    let mut visit =
        Visit::new(node.profile, peer, head, |sid| store.session(sid.filter(|_| route.has_session())));
    visit.can_save = route.saves_session() && !stateless(node.profile, &visit);

    let reply = match answer(&node, port, route, &mut visit, body).await {
        Ok(reply) => reply,
        Err(error) => {
            eprintln!("odoo-standin {}: {} failed: {error}", node.id, visit.path);
            if route.is_json() {
                jsonrpc::server_error(&node)
            } else {
                Reply::error(StatusCode::INTERNAL_SERVER_ERROR, "Internal Server Error")
            }
        }
    };
    if reply.status == StatusCode::SWITCHING_PROTOCOLS {
        tokio::spawn(websocket::run(node.clone(), upgrade, visit.session.sid.clone()));
    }
    reply
        .with(HeaderName::from_static("x-standin-node"), &node.id)
        .with(HeaderName::from_static("x-standin-login"), visit.session.login().unwrap_or_default())
        .with(HeaderName::from_static("x-standin-port"), port.name())
        .with(HeaderName::from_static("x-standin-seen"), visit.seen())
        .with(HeaderName::from_static("x-standin-forwarded"), visit.forwarded())
        .into_response()
}

/// On 19 a request that names its database and has no session yet gets none.
fn stateless(profile: Profile, visit: &Visit) -> bool {
    profile == Profile::V19
        && visit.headers.contains_key("x-odoo-database")
        && visit.session.data.uid.is_none()
}

async fn answer(
    node: &Node,
    port: Port,
    route: Route,
    visit: &mut Visit,
    body: Incoming,
) -> io::Result<Reply> {
    if visit.session.data.uid.is_some() {
        if node.keeper.check(&mut visit.session)? {
            let (platform, browser) = visit.device();
            visit.session.trace_device(platform, browser, &visit.remote);
        } else {
            visit.session.logout(node.profile);
        }
    }
    if visit.can_save
        && let Some(debug) = visit.query.get("debug")
    {
        // This is how an unknown session id comes to a file on this node (Odoo 19, seen on /web/login).
        let debug = debug_mode(debug);
        visit.session.dirty |= visit.session.data.debug != debug;
        visit.session.data.debug = debug.to_owned();
    }
    let mut reply = if route == Route::Upload && visit.method == Method::POST {
        pages::upload(node, visit, body).await?
    } else {
        // Always read, so that the connection can be closed without a reset.
        let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
        if !route.takes(&visit.method) {
            Reply::error(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed")
        } else {
            dispatch(node, port, route, visit, &body).await?
        }
    };
    if visit.can_save && !reply.exception {
        // Before the answer leaves.
        node.keeper.save(&mut visit.session)?;
        let changed = visit.cookie_sid.as_deref() != Some(&visit.session.sid);
        if (visit.session.dirty || changed) && !visit.explicit {
            let cookie = set_cookie(&visit.session.sid);
            for _ in 0..reply.cookie_copies {
                reply = reply.with(SET_COOKIE, &cookie);
            }
        }
    }
    Ok(reply)
}

async fn dispatch(
    node: &Node,
    port: Port,
    route: Route,
    visit: &mut Visit,
    body: &[u8],
) -> io::Result<Reply> {
    Ok(match route {
        Route::Root => Reply::see_other("/odoo"),
        Route::Login => pages::login(node, visit, &fields(&String::from_utf8_lossy(body))),
        Route::WebClient => pages::web_client(node, visit),
        Route::Logout => pages::logout(node, visit),
        Route::Slow => pages::slow(node, visit).await,
        Route::Static => Reply::css(),
        Route::WebHealth | Route::WebsocketHealth => pages::health(visit),
        Route::Websocket => websocket::handshake(port, visit),
        Route::ChangePassword => change_password(node, visit, body)?,
        Route::State => Reply::json(&node.state()),
        Route::Gc => {
            let age = visit.query.number("older_than_secs").unwrap_or(7 * 24 * 3600);
            let deleted = node.keeper.store.vacuum(Duration::from_secs(age));
            Reply::json(&json!({"node": node.id, "deleted": deleted}))
        }
        Route::Head => Reply::json(&visit.head()),
        Route::Upload | Route::Unknown => Reply::error(StatusCode::NOT_FOUND, "Not Found"),
        Route::Authenticate | Route::SessionInfo | Route::CallKw | Route::JsonRpc | Route::Poll => {
            let call = match Call::read(body) {
                Ok(call) => call,
                Err(reply) => return Ok(reply),
            };
            match route {
                Route::Authenticate => jsonrpc::authenticate(node, visit, &call),
                Route::SessionInfo => jsonrpc::get_session_info(node, visit, &call),
                Route::CallKw => jsonrpc::call_kw(node, visit, &call),
                Route::JsonRpc => jsonrpc::jsonrpc(node, &call)?,
                _ if port == Port::Http => jsonrpc::poll_unavailable(node, &call),
                _ => {
                    pages::wait(visit).await;
                    jsonrpc::poll(node, visit, &call)
                }
            }
        }
    })
}

/// `/standin/change_password`: the form's login, else the session's, gets the form's password.
fn change_password(node: &Node, visit: &mut Visit, body: &[u8]) -> io::Result<Reply> {
    let form = fields(&String::from_utf8_lossy(body));
    let own = visit.session.login().map(str::to_owned);
    let login = form.get("login").or(own.as_deref());
    let (Some(login), Some(password)) = (login, form.get("password")) else {
        return Ok(Reply::error(StatusCode::BAD_REQUEST, "login and password are needed"));
    };
    node.keeper.database.change_password(login, password)?;
    if own.as_deref() == Some(login) {
        // Odoo renews the token of the session in which users change their own password.
        visit.session.data.session_token = node.keeper.token(&visit.session);
        visit.session.dirty = true;
    }
    Ok(Reply::json(&json!({"node": node.id, "login": login})))
}

fn debug_mode(query: &str) -> &str {
    match query {
        "assets" | "tests" => query,
        "" | "0" | "false" | "False" => "",
        _ => "1",
    }
}

fn set_cookie(sid: &str) -> String {
    const YEAR: u64 = 365 * 24 * 3600;
    let expires = http_date(now() as u64 + YEAR);
    format!("session_id={sid}; Expires={expires}; Max-Age=604800; HttpOnly; Path=/")
}
