//! Web pages are kept out: what a browser sends in the name of a page is refused, and so is, where nobody need
//! show a token, what asks for another host. A name that leads to this one, or is made to (DNS rebinding), would
//! let any page speak to the sidecar.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Router,
    extract::{Request, State},
    http::{HeaderMap, StatusCode, Uri, header, uri::Authority},
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use prometheus_client::metrics::counter::Counter;

/// The host that the filter asks for.
const FILTERS: &str = "mooring";
/// What browsers say about who makes them ask; `none` is a person who typed the address.
const FETCH_SITE: &str = "sec-fetch-site";

struct Guard {
    /// Where it listens, if the host must be this one; else it may be any.
    own: Option<SocketAddr>,
    refused: Counter,
}

/// Lets pass what no web page sent; and only what asks for this host at `own`, if that is given.
pub(crate) fn kept_out(router: Router, own: Option<SocketAddr>, refused: &Counter) -> Router {
    let guard = Arc::new(Guard { own, refused: refused.clone() });
    router.layer(middleware::from_fn_with_state(guard, check))
}

async fn check(State(guard): State<Arc<Guard>>, request: Request, next: Next) -> Response {
    match refusal(guard.own, request.uri(), request.headers()) {
        None => next.run(request).await,
        Some(problem) => {
            guard.refused.inc();
            (StatusCode::FORBIDDEN, format!("{problem}\n")).into_response()
        }
    }
}

/// Why a request is refused, if it is.
fn refusal(own: Option<SocketAddr>, uri: &Uri, headers: &HeaderMap) -> Option<String> {
    if headers.contains_key(header::ORIGIN) {
        return Some("web pages are not answered (the request has an Origin)".to_owned());
    }
    if headers.get(FETCH_SITE).is_some_and(|site| site != "none") {
        return Some(format!("web pages are not answered (the request has a {FETCH_SITE})"));
    }
    let own = own?;
    // There may be none, as in HTTP/1.0: a browser always says one.
    let named = headers.get_all(header::HOST).iter().map(|value| value.to_str().unwrap_or_default());
    let foreign = named.chain(uri.authority().map(Authority::as_str)).find(|host| !is_own(own, host))?;
    let foreign: String = foreign.escape_debug().take(100).collect();
    Some(format!(
        "the Host {foreign:?} is none of this sidecar's: without a token it answers to {own}, localhost and \
         {FILTERS} (or --token-file)"
    ))
}

/// Whether a `Host` is this one's, whatever the port: it may be forwarded.
fn is_own(own: SocketAddr, host: &str) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    let name = authority.host();
    if authority.as_str().contains('@') {
        return false;
    }
    let ip = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name).parse();
    match ip {
        Ok(ip) => own.ip() == ip || std::net::IpAddr::to_canonical(&ip).is_loopback(),
        Err(_) => ["localhost", FILTERS].iter().any(|known| name.eq_ignore_ascii_case(known)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(own: &str, uri: &str, headers: &[(&'static str, &str)]) -> bool {
        let pairs = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
        let own = Some(own).filter(|own| !own.is_empty()).map(|own| own.parse().unwrap());
        refusal(own, &uri.parse().unwrap(), &pairs.collect()).is_some()
    }

    #[test]
    fn what_a_web_page_sends_is_refused() {
        for own in ["", "127.0.0.1:7070"] {
            for header in [
                ("origin", "http://evil"),
                ("origin", "null"),
                ("origin", "http://127.0.0.1:7070"),
                ("origin", ""),
                ("sec-fetch-site", "cross-site"),
                ("sec-fetch-site", "same-origin"),
            ] {
                assert!(refused(own, "/v1/nodes", &[("host", "127.0.0.1:7070"), header]), "{header:?}");
            }
            assert!(!refused(own, "/v1/nodes", &[("host", "127.0.0.1:7070"), ("sec-fetch-site", "none")]));
        }
    }

    #[test]
    fn only_this_host_is_asked_for_where_there_is_no_token() {
        let loopback = "127.0.0.1:7070";
        let good = [
            "127.0.0.1:7070",
            "127.0.0.1",
            "localhost:9",
            "LOCALHOST",
            "[::1]:7070",
            "mooring",
            "mooring:80",
        ];
        for host in good {
            assert!(!refused(loopback, "/", &[("host", host)]), "{host}");
        }
        let bad = [
            "evil",
            "evil:7070",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "mooring.evil",
            "10.0.0.1:7070",
            "0.0.0.0:7070",
            "127.0.0.1@evil",
            "127.0.0.1:7070@evil",
            "evil@localhost",
            "",
            "a b",
            "[::ffff:10.0.0.1]",
        ];
        for host in bad {
            assert!(refused(loopback, "/", &[("host", host)]), "{host:?}");
            assert!(!refused("", "/", &[("host", host)]), "with a token {host:?} may be");
        }
        assert!(refused(loopback, "/", &[("host", "localhost"), ("host", "evil")]));
        assert!(
            refused(loopback, "http://evil/v1/nodes", &[("host", "localhost")]),
            "HTTP/2, or a proxy's form"
        );
        assert!(!refused(loopback, "/healthz", &[]), "HTTP/1.0");
        assert!(!refused("127.0.0.9:7070", "/", &[("host", "127.0.0.9:7070")]));
    }
}
