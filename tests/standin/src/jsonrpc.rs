//! Routes that speak JSON-RPC: the web client's, and `/jsonrpc` for programs.

use std::io;

use hyper::StatusCode;
use serde_json::{Value, json};

use crate::cli::Profile;
use crate::database::User;
use crate::node::Node;
use crate::reply::Reply;
use crate::session::DATABASE;
use crate::visit::Visit;

/// A JSON-RPC request.
#[derive(Debug)]
pub(crate) struct Call {
    id: Value,
    params: Value,
}

impl Call {
    /// Reads the body; what is no JSON object gets Odoo's 400.
    pub(crate) fn read(body: &[u8]) -> Result<Self, Reply> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(mut request)) => Ok(Call {
                id: request.remove("id").unwrap_or_default(),
                params: request.remove("params").unwrap_or_default(),
            }),
            _ => Err(Reply::error(StatusCode::BAD_REQUEST, "Invalid JSON data")),
        }
    }

    fn text(&self, name: &str) -> &str {
        self.params.get(name).and_then(Value::as_str).unwrap_or_default()
    }

    fn result(&self, result: Value) -> Reply {
        Reply::json(&json!({"jsonrpc": "2.0", "id": self.id, "result": result}))
    }

    fn error(&self, node: &Node, code: i32, message: &str, name: &str) -> Reply {
        error(node, &self.id, code, message, name)
    }

    fn access_denied(&self, node: &Node) -> Reply {
        self.error(node, 200, "Odoo Server Error", "odoo.exceptions.AccessDenied")
    }

    /// What a JSON route answers without a valid session; the cookie stays as it is.
    fn session_expired(&self, node: &Node) -> Reply {
        self.error(node, 100, "Odoo Session Expired", "odoo.http.SessionExpiredException")
    }
}

fn error(node: &Node, id: &Value, code: i32, message: &str, name: &str) -> Reply {
    let data = json!({"name": name, "message": message, "node": node.id});
    let error = json!({"code": code, "message": message, "data": data});
    let mut reply = Reply::json(&json!({"jsonrpc": "2.0", "id": id, "error": error}));
    reply.exception = true;
    reply
}

/// What a JSON route answers when something fails that nobody expected, such as saving the session.
pub(crate) fn server_error(node: &Node) -> Reply {
    error(node, &Value::Null, 200, "Odoo Server Error", "builtins.OSError")
}

/// `/web/session/authenticate`
pub(crate) fn authenticate(node: &Node, visit: &mut Visit, call: &Call) -> Reply {
    let Some(user) = node.keeper.database.authenticate(call.text("login"), call.text("password")) else {
        return call.access_denied(node);
    };
    log_in(visit, &user);
    let mut reply = call.result(session_info(node, visit));
    if node.profile == Profile::V19 {
        // Odoo 19 saves the session in this route and once more at the end of the request.
        reply.cookie_copies = 2;
    }
    reply
}

/// Makes the session the user's; it gets its new id and its token at the end of the request.
pub(crate) fn log_in(visit: &mut Visit, user: &User) {
    let session = &mut visit.session;
    session.data.db = Some(DATABASE.to_owned());
    session.data.login = Some(user.login.clone());
    session.data.uid = Some(user.uid);
    session.data.context = json!({"lang": "en_US", "tz": "Europe/Brussels", "uid": user.uid});
    session.dirty = true;
    session.should_rotate = true;
}

/// `/web/session/get_session_info`
pub(crate) fn get_session_info(node: &Node, visit: &Visit, call: &Call) -> Reply {
    match visit.session.login() {
        Some(_) => call.result(session_info(node, visit)),
        None => call.session_expired(node),
    }
}

fn session_info(node: &Node, visit: &Visit) -> Value {
    let data = &visit.session.data;
    json!({"node": node.id, "login": data.login, "uid": data.uid, "db": data.db, "user_context": data.context})
}

/// `/web/dataset/call_kw`
pub(crate) fn call_kw(node: &Node, visit: &Visit, call: &Call) -> Reply {
    let Some(login) = visit.session.login() else { return call.session_expired(node) };
    call.result(json!({
        "node": node.id,
        "login": login,
        "uid": visit.session.data.uid,
        "model": call.params.get("model"),
        "method": call.params.get("method"),
    }))
}

/// `/longpolling/poll`: never anything new on the bus.
pub(crate) fn poll(node: &Node, visit: &Visit, call: &Call) -> Reply {
    call.result(
        json!({"node": node.id, "login": visit.session.login().unwrap_or_default(), "notifications": []}),
    )
}

/// `/longpolling/poll` in a prefork worker.
pub(crate) fn poll_unavailable(node: &Node, call: &Call) -> Reply {
    call.error(node, 200, "bus.Bus unavailable", "builtins.Exception")
}

/// `/jsonrpc`: each call carries its own login, no session takes part.
pub(crate) fn jsonrpc(node: &Node, call: &Call) -> io::Result<Reply> {
    let database = &node.keeper.database;
    let args = call.params.get("args").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let text = |at: usize| args.get(at).and_then(Value::as_str).unwrap_or_default();
    Ok(match (call.text("service"), call.text("method")) {
        ("common", "version") => {
            call.result(json!({"server_version": format!("{}.0", node.profile.number())}))
        }
        ("common", "login" | "authenticate") => match database.authenticate(text(1), text(2)) {
            Some(user) => {
                database.remember(&user)?;
                call.result(json!(user.uid))
            }
            None => call.result(json!(false)),
        },
        ("object", "execute" | "execute_kw") => {
            let named = args.get(1).and_then(Value::as_i64).and_then(|uid| database.user_by_uid(uid));
            match named.and_then(|user| database.authenticate(&user.login, text(2))) {
                Some(user) => call.result(json!({
                    "node": node.id, "login": user.login, "uid": user.uid, "model": text(3), "method": text(4),
                })),
                None => call.access_denied(node),
            }
        }
        _ => call.error(node, 200, "Odoo Server Error", "builtins.KeyError"),
    })
}
