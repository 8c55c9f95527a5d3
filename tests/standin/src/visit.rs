//! One request as Odoo understands it: cookie, form, address, device.

use std::net::IpAddr;

use hyper::Method;
use hyper::header::{AsHeaderName, COOKIE, HeaderMap, HeaderValue, USER_AGENT};
use hyper::http::request;
use serde_json::{Value, json};

use crate::cli::Profile;
use crate::codec::{Fields, fields};
use crate::session::Session;

/// A request and its session.
#[derive(Debug)]
pub(crate) struct Visit {
    pub(crate) method: Method,
    pub(crate) path: String,
    /// Path and query as they came, for the way back after a login.
    pub(crate) full_path: String,
    pub(crate) query: Fields,
    pub(crate) headers: HeaderMap,
    pub(crate) cookie_sid: Option<String>,
    /// The session id came in the query or a header: no cookie is set in the answer.
    pub(crate) explicit: bool,
    /// False for stateless requests, which neither save the session nor set a cookie.
    pub(crate) can_save: bool,
    pub(crate) remote: String,
    pub(crate) session: Session,
}

impl Visit {
    /// Reads the head of a request; `session` finds the session of an id.
    pub(crate) fn new(
        profile: Profile,
        peer: IpAddr,
        head: request::Parts,
        session: impl FnOnce(Option<&str>) -> Session,
    ) -> Self {
        let query = fields(head.uri.query().unwrap_or_default());
        let cookie_sid = session_cookie(&head.headers);
        let explicit = profile
            .takes_explicit_sid()
            .then(|| query.get("session_id").or_else(|| text(&head.headers, "x-openerp-session-id")))
            .flatten()
            .filter(|sid| !sid.is_empty());
        let session = session(explicit.or(cookie_sid.as_deref()));
        let explicit = explicit.is_some();
        Visit {
            path: head.uri.path().to_owned(),
            // Werkzeug's full_path has the question mark even before an empty query.
            full_path: format!("{}?{}", head.uri.path(), head.uri.query().unwrap_or_default()),
            explicit,
            can_save: true,
            remote: remote(peer, &head.headers),
            method: head.method,
            headers: head.headers,
            query,
            cookie_sid,
            session,
        }
    }

    /// Operating system and browser, roughly as Werkzeug names them.
    pub(crate) fn device(&self) -> (Option<&'static str>, Option<&'static str>) {
        let agent = text(&self.headers, USER_AGENT).unwrap_or_default().to_ascii_lowercase();
        let first = |names: &[&'static str]| names.iter().find(|name| agent.contains(**name)).copied();
        // Edge and Opera call themselves Chrome as well, Android calls itself Linux.
        let platform = first(&["android", "iphone", "windows", "macintosh", "linux"]);
        (platform, first(&["edg", "opr", "firefox", "chrome", "safari", "curl"]))
    }

    /// The names of Mooring's own headers which reached Odoo, though none should.
    pub(crate) fn seen(&self) -> String {
        let names = self.headers.keys().map(|name| name.as_str());
        let mut seen: Vec<_> = names.filter(|name| name.starts_with("x-mooring-")).collect();
        seen.sort_unstable();
        seen.join(",")
    }

    /// Path and headers as received, in their order but for headers of one name.
    pub(crate) fn head(&self) -> Value {
        let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let headers = self.headers.iter().map(|(name, value)| [name.to_string(), text(value)]);
        json!({"path": self.full_path, "headers": headers.collect::<Vec<_>>()})
    }

    /// X-Forwarded-For, -Host and -Proto as received.
    pub(crate) fn forwarded(&self) -> Vec<u8> {
        let received = |name| joined(&self.headers, name).unwrap_or_default();
        [received("x-forwarded-for"), received("x-forwarded-host"), received("x-forwarded-proto")].join(&b';')
    }
}

/// The address of the visitor: Odoo (with proxy_mode) believes X-Forwarded-For only together with
/// X-Forwarded-Host, and takes its last entry.
fn remote(peer: IpAddr, headers: &HeaderMap) -> String {
    let forwarded = text(headers, "x-forwarded-for").filter(|_| headers.contains_key("x-forwarded-host"));
    match forwarded.and_then(|list| list.rsplit(',').next()) {
        Some(address) => address.trim().to_owned(),
        None => peer.to_string(),
    }
}

/// The first `session_id` pair. WSGI joins several Cookie headers with a comma, which makes the session id
/// in them invalid.
fn session_cookie(headers: &HeaderMap) -> Option<String> {
    let cookies = String::from_utf8(joined(headers, COOKIE)?).ok()?;
    let mut pairs = cookies.split(';').filter_map(|pair| pair.trim().split_once('='));
    let (_, value) = pairs.find(|(name, _)| name.trim() == "session_id")?;
    let value = value.trim();
    let unquoted = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
    Some(unquoted.unwrap_or(value).to_owned())
}

fn joined(headers: &HeaderMap, name: impl AsHeaderName) -> Option<Vec<u8>> {
    let values: Vec<_> = headers.get_all(name).iter().map(HeaderValue::as_bytes).collect();
    (!values.is_empty()).then(|| values.join(&b','))
}

fn text(headers: &HeaderMap, name: impl AsHeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn session_cookie_of_odd_headers() {
        let table: [(&[&'static str], Option<&str>); 7] = [
            (&[], None),
            (&["a=b"], None),
            (&["a=b; session_id=one; session_id=two"], Some("one")),
            (&["session_id=\"one\""], Some("one")),
            (&["session_id=one", "a=b"], Some("one,a=b")),
            (&["a=b", "session_id=one"], None),
            (&["xsession_id=one; session_id="], Some("")),
        ];
        for (cookies, expected) in table {
            let pairs: Vec<_> = cookies.iter().map(|cookie| ("cookie", *cookie)).collect();
            assert_eq!(session_cookie(&headers(&pairs)).as_deref(), expected, "{cookies:?}");
        }
    }

    #[test]
    fn forwarded_address_needs_the_forwarded_host() {
        let peer = IpAddr::from([127, 0, 0, 1]);
        let alone = [("x-forwarded-for", "192.0.2.1")];
        let both = [("x-forwarded-for", "192.0.2.1, 192.0.2.2"), ("x-forwarded-host", "odoo.example")];
        assert_eq!(remote(peer, &headers(&alone)), "127.0.0.1");
        assert_eq!(remote(peer, &headers(&both)), "192.0.2.2");
    }
}
