//! An answer before it becomes HTTP.

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue, LOCATION};
use hyper::{Response, StatusCode};
use serde_json::Value;

use crate::codec::html;
use crate::node::Node;

/// An answer.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    headers: Vec<(HeaderName, HeaderValue)>,
    body: Bytes,
    /// Odoo answers an exception without saving the session or setting a cookie.
    pub(crate) exception: bool,
    /// How often a cookie that is to be set is sent.
    pub(crate) cookie_copies: usize,
}

impl Reply {
    fn new(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Self {
        let headers = vec![(CONTENT_TYPE, HeaderValue::from_static(content_type))];
        Reply { status, headers, body: body.into(), exception: false, cookie_copies: 1 }
    }

    /// A page that names the node and the user; `content` is HTML.
    pub(crate) fn page(node: &Node, login: Option<&str>, content: &str) -> Self {
        let (id, login) = (html(&node.id), html(login.unwrap_or_default()));
        let body = format!(
            "<!DOCTYPE html>\n<html data-node=\"{id}\" data-login=\"{login}\">\n<body>\n{content}\n</body>\n</html>\n"
        );
        Reply::new(StatusCode::OK, "text/html; charset=utf-8", body)
    }

    /// A JSON answer.
    pub(crate) fn json(value: &Value) -> Self {
        Reply::new(StatusCode::OK, "application/json; charset=utf-8", value.to_string())
    }

    /// A style sheet, the same on every node.
    pub(crate) fn css() -> Self {
        Reply::new(StatusCode::OK, "text/css; charset=utf-8", "body { color: #714b67; }\n")
            .with(HeaderName::from_static("cache-control"), "public, max-age=604800")
    }

    /// The status with which Odoo sends a browser on: 303.
    pub(crate) fn see_other(location: &str) -> Self {
        Reply::new(StatusCode::SEE_OTHER, "text/html; charset=utf-8", "").with(LOCATION, location)
    }

    /// An error page.
    pub(crate) fn error(status: StatusCode, message: &str) -> Self {
        let body = format!("<!doctype html>\n<title>{status}</title>\n<p>{}</p>\n", html(message));
        Reply { exception: true, ..Reply::new(status, "text/html; charset=utf-8", body) }
    }

    /// The switch to websocket.
    pub(crate) fn switching(accept_key: &str) -> Self {
        let mut reply = Reply::new(StatusCode::SWITCHING_PROTOCOLS, "", "");
        reply.headers.clear();
        reply
            .with(hyper::header::UPGRADE, "websocket")
            .with(hyper::header::CONNECTION, "Upgrade")
            .with(hyper::header::SEC_WEBSOCKET_ACCEPT, accept_key)
    }

    /// The same answer with one more header. A value that no header can have becomes empty.
    pub(crate) fn with(mut self, name: HeaderName, value: impl AsRef<[u8]>) -> Self {
        let value = HeaderValue::from_bytes(value.as_ref()).unwrap_or(HeaderValue::from_static(""));
        self.headers.push((name, value));
        self
    }

    /// The HTTP answer.
    pub(crate) fn into_response(self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(self.body));
        *response.status_mut() = self.status;
        for (name, value) in self.headers {
            response.headers_mut().append(name, value);
        }
        response
    }
}
