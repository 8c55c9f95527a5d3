//! Where requests are sent.

use affinity::{Port, SessionKey};
use wasm_host::{Action, Host, Stream, Vm};

use crate::support::{
    NODES_ONLY, Routing, Sidecar, cookie, key, nodes, not_home, owner, sid, visit, with_sidecar,
};

fn vm(configuration: &str) -> Vm {
    Host::new().unwrap().vm(configuration).unwrap()
}

fn routing(vm: &Vm, headers: &[(&str, &str)]) -> Routing {
    let mut stream = vm.stream();
    assert_eq!(stream.request(headers), Action::Continue);
    Routing::of(&stream)
}

#[test]
fn homes_are_the_same_in_wasm_and_natively() {
    let vm = vm(NODES_ONLY);
    for number in 0..2_000 {
        let sid = sid(number);
        assert_eq!(Routing::of(&visit(&vm, &sid)), Routing::of_owner(&sid, None), "{sid}");
    }
}

#[test]
fn owners_are_the_same_in_wasm_and_natively() {
    let vm = vm(&with_sidecar());
    let mut sidecar = Sidecar::default();
    let names = ["odoo-1", "odoo-2", "odoo-3", "odoo-4", "a-node-that-is-gone"];
    for (number, name) in (0..2_000).zip(names.into_iter().cycle()) {
        let sid = sid(number);
        sidecar.owners.insert(key(&sid), owner(name, 3));
        let asked = visit(&vm, &sid);
        sidecar.answer_all(&vm);
        assert_eq!(Routing::of(&asked), Routing::of_owner(&sid, Some(name)), "{sid}");
        assert_eq!(Routing::of(&visit(&vm, &sid)), Routing::of_owner(&sid, Some(name)), "{sid}, known");
    }
}

#[test]
fn the_bus_goes_to_the_gevent_port() {
    let vm = vm(NODES_ONLY);
    for (path, port) in [
        ("/websocket?version=18.0-7", Port::Gevent),
        ("/longpolling/poll", Port::Gevent),
        ("/web/websocket", Port::Http),
        ("", Port::Http),
    ] {
        for number in 0..20 {
            let sid = sid(number);
            let routing = routing(&vm, &[(":path", path), ("cookie", &cookie(&sid))]);
            assert_eq!(routing, Routing::planned(&nodes(), key(&sid), None, port), "{path}");
        }
    }
}

fn of_address(vm: &Vm, source: Option<&str>, headers: &[(&str, &str)]) -> Routing {
    let mut stream = vm.stream().from_address(source);
    stream.request(headers);
    Routing::of(&stream)
}

#[test]
fn who_has_no_session_is_placed_by_address() {
    let planned = |address: &str| {
        let key = SessionKey::of_address(address.parse().unwrap(), 64);
        Routing::planned(&nodes(), key, None, Port::Http)
    };
    let forwarded = [(":path", "/"), ("x-forwarded-for", "203.0.113.9, 198.51.100.2, 10.0.0.1")];
    let direct = vm(NODES_ONLY);
    assert_eq!(of_address(&direct, Some("198.51.100.7:1234"), &forwarded), planned("198.51.100.7"));
    assert_eq!(of_address(&direct, Some("[2001:db8::7]:1234"), &forwarded), planned("2001:db8::1"));
    assert_eq!(of_address(&direct, Some("/run/envoy.sock"), &forwarded), planned("0.0.0.0"));
    assert_eq!(of_address(&direct, None, &forwarded), planned("0.0.0.0"));

    let behind = vm(&NODES_ONLY.replacen('{', r#"{"trusted_proxies": 1,"#, 1));
    assert_eq!(of_address(&behind, Some("10.0.0.1:1"), &forwarded), planned("198.51.100.2"));
    assert_eq!(of_address(&behind, Some("10.0.0.1:1"), &[(":path", "/")]), planned("10.0.0.1"));
}

const FORGED: [(&str, &str); 5] = [
    (":path", "/web"),
    ("x-mooring-upstream", "MTAuOS45LjkuOTo4MA=="),
    ("x-mooring-next", "10.9.9.9:80"),
    ("X-Mooring-Upstream", "again"),
    ("x-mooring-next", "again"),
];

/// Every value of the routing headers, were there several of one name.
fn all_routing(stream: &Stream) -> Vec<Vec<u8>> {
    let headers = stream.request_headers();
    let routing = headers.iter().filter(|(name, _)| name.starts_with(b"x-mooring-"));
    routing.map(|(_, value)| value.to_vec()).collect()
}

#[test]
fn forged_headers_are_overwritten() {
    let sid = sid(5);
    let session = cookie(&sid);
    let with = |more: &[(&'static str, &str)]| -> Vec<(&'static str, String)> {
        FORGED.iter().chain(more).map(|(name, value)| (*name, (*value).to_owned())).collect()
    };
    let owned = not_home(&sid);
    let vm = vm(&with_sidecar());
    let mut sidecar = Sidecar::default();
    sidecar.owners.insert(key(&sid), owner(owned, 1));
    for round in 0..2 {
        let mut stream = vm.stream();
        stream.request(&with(&[("cookie", &session)]));
        sidecar.answer_all(&vm);
        assert_eq!(Routing::of(&stream), Routing::of_owner(&sid, Some(owned)), "round {round}");
        assert_eq!(all_routing(&stream).len(), 2);
    }
    let mut stream = vm.stream();
    stream.request(&with(&[]));
    assert!(!all_routing(&stream).iter().any(|value| FORGED.iter().any(|f| f.1.as_bytes() == value)));
}

#[test]
fn forged_headers_are_removed_where_nothing_takes_their_place() {
    let single = vm(r#"{"nodes": [{"id": "only", "http": "127.0.0.1:8069"}]}"#);
    let mut stream = single.stream();
    stream.request(&FORGED);
    assert_eq!(Routing::of(&stream).next, None, "one node has no standby");
    assert_eq!(all_routing(&stream).len(), 1);

    // Before the sidecar named any node, with and without a session, asked and unasked.
    let unknown = vm(r#"{"sidecar_cluster": "mooring"}"#);
    let session = cookie(&sid(1));
    for cookies in [None, Some(session.as_str())] {
        let mut headers = FORGED.to_vec();
        headers.extend(cookies.map(|cookie| ("cookie", cookie)));
        let mut stream = unknown.stream();
        stream.request(&headers);
        Sidecar::default().answer_all(&unknown);
        let Routing { upstream, next } = Routing::of(&stream);
        assert_eq!((upstream, next), (None, None));
        assert!(all_routing(&stream).is_empty());
    }
}
