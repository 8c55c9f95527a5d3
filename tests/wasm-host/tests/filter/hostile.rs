//! What somebody who means harm sends. One byte must not end the VM for everybody.

use affinity::{Port, SessionKey};
use wasm_host::{Action, Headers, Host, Vm};

use crate::support::{NODES_ONLY, Routing, nodes, owner_reply, sid, visit, with_sidecar};

/// A VM without a sidecar that believes two proxies.
fn vm() -> Vm {
    let configuration = NODES_ONLY.replacen('{', r#"{"trusted_proxies": 2,"#, 1);
    Host::new().unwrap().vm(configuration).unwrap()
}

/// Sends a request and its response, and sees that the VM still routes.
fn survives(vm: &Vm, request: &[(&str, &[u8])], response: &[(&str, &[u8])]) {
    let mut stream = vm.stream();
    assert_eq!(stream.request(request), Action::Continue);
    assert!(Routing::of(&stream).upstream.is_some());
    stream.response(response);
    drop(stream);
    assert_eq!(Routing::of(&visit(vm, &sid(0))), Routing::of_owner(&sid(0), None));
}

#[test]
fn a_session_id_may_be_any_bytes() {
    let vm = vm();
    for sid in [&b"\xff"[..], b"\xff\xfe\x00", b"\xed\xa0\x80", b"\0", &[0x80; 84], b"\"\xff\""] {
        let cookie = [b"session_id=", sid].concat();
        let mut stream = vm.stream();
        stream.request(&[(":path", &b"/web"[..]), ("cookie", &cookie)]);
        let bare = if sid == b"\"\xff\"" { &b"\xff"[..] } else { sid };
        let planned = Routing::planned(&nodes(), SessionKey::of_session_id(bare), None, Port::Http);
        assert_eq!(Routing::of(&stream), planned);
        survives(&vm, &[("cookie", &cookie)], &[("set-cookie", &cookie)]);
    }
}

#[test]
fn cookies_may_be_long_and_many() {
    let vm = vm();
    let long = [&b"session_id="[..], &[b'x'; 60_000]].concat();
    let many = [&b"a=b; ".repeat(12_000)[..], b"session_id=abc"].concat();
    let sessions = b"session_id=; ".repeat(5_000);
    let separators = b";=;".repeat(20_000);
    for cookie in [long, many, sessions, separators] {
        survives(&vm, &[(":path", b"/"), ("cookie", &cookie)], &[("set-cookie", &cookie)]);
    }
    let headers: Vec<_> = (0..4_000).map(|_| ("cookie", &b"session_id=\xff"[..])).collect();
    let cookies: Vec<_> = (0..4_000).map(|_| ("set-cookie", &b"session_id=\xff"[..])).collect();
    survives(&vm, &headers, &cookies);
}

#[test]
fn forwarded_for_may_be_absurd() {
    let vm = vm();
    let long = b"1.2.3.4, ".repeat(8_000);
    for value in [&b"\xff, \xfe"[..], b"", b",,,,", b"999.999.999.999", b"[::1", &long, &[b'9'; 60_000]] {
        survives(&vm, &[(":path", b"/"), ("x-forwarded-for", value)], &[]);
    }
    for source in ["", "\u{0}", "@", "1.2.3.4:99999999", "[::1]:-1"] {
        let mut stream = vm.stream().from_address(Some(source));
        stream.request(&[(":path", "/")]);
        assert!(Routing::of(&stream).upstream.is_some(), "{source}");
    }
}

#[test]
fn everything_may_be_empty() {
    let vm = vm();
    survives(&vm, &[], &[]);
    let empty =
        [":method", ":path", ":authority", "cookie", "x-forwarded-for", "set-cookie", "x-mooring-key"];
    let headers = empty.map(|name| (name, &b""[..]));
    survives(&vm, &headers, &headers);
    survives(&vm, &[("", b"")], &[("x-mooring-upstream", b"")]);
}

#[test]
fn a_path_may_be_any_bytes() {
    let vm = vm();
    for path in [&b"\xff"[..], b"/websocket\xff", b"/longpolling/\0", &[b'/'; 60_000]] {
        survives(&vm, &[(":path", path)], &[]);
    }
}

#[test]
fn a_response_may_say_anything() {
    let vm = vm();
    for value in [&b"\xff"[..], b"", b"MTI3LjAuMC4xOjgwNjk", &[b'A'; 60_000]] {
        survives(&vm, &[], &[("x-mooring-upstream", value), ("set-cookie", value), ("x-odd", value)]);
    }
}

#[test]
fn a_response_may_have_any_header_names() {
    let vm = vm();
    let mut stream = vm.stream();
    stream.request(&[(":path", "/")]);
    stream.response(&[(&b"set-cookie"[..], &b"session_id=abc"[..]), (b"x-\xff", b"1")]);
}

#[test]
fn the_sidecar_may_answer_anything() {
    let good = owner_reply(Some("odoo-1"));
    let long = vec![0xff; 1_000_000];
    let bodies: Vec<&[u8]> = vec![b"", b"\xff", b"{}", &good[..3], &long, &[1, 0xff, 0xff, 0xff, 0xff, 0x7f]];
    let statuses: [&[(&str, &[u8])]; 5] = [
        &[],
        &[(":status", b"")],
        &[(":status", b"\xff")],
        &[(":status", b"200"), ("x", b"\xff")],
        &[(":status", b"200200")],
    ];
    for body in bodies {
        for status in statuses {
            let host = Host::new().unwrap();
            let vm = host.vm(with_sidecar()).unwrap();
            vm.tick();
            let stream = visit(&vm, &sid(1));
            let mut newcomer = vm.stream();
            newcomer.request(&[(":path", "/")]);
            newcomer.response(&[("set-cookie", "session_id=abc")]);
            assert_eq!(vm.calls().len(), 3);
            for call in vm.calls() {
                vm.answer_with(call.token, Headers::new(status), body);
            }
            assert!(!stream.is_request_paused() && !newcomer.is_response_paused());
            assert_eq!(Routing::of(&stream), Routing::of_owner(&sid(1), None));
        }
    }
}
