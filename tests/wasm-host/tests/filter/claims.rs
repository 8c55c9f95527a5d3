//! Whose session a response begins.

use core::time::Duration;

use affinity::wire::{self, Claim, ClaimReply};
use wasm_host::{Action, Host, Status, Stream, Vm};

use crate::support::{
    NODES_ONLY, Routing, Sidecar, encoded, home, key, not_home, only_call, owner, owner_reply, pass,
    set_cookie, sid, visit, with_sidecar,
};

/// A visitor without a session whose request went to the node of their address.
fn newcomer(vm: &Vm) -> Stream {
    let mut stream = vm.stream();
    assert_eq!(stream.request(&[(":path", "/web/login")]), Action::Continue);
    stream
}

/// The node that a stream was sent to.
fn chosen(stream: &Stream) -> &'static str {
    let upstream = Routing::of(stream).upstream.unwrap();
    let addresses = [
        ("odoo-1", "127.0.0.1:8069"),
        ("odoo-2", "127.0.0.2:8069"),
        ("odoo-3", "[::1]:8069"),
        ("odoo-4", "127.0.0.4:8069"),
    ];
    addresses.iter().find(|(_, address)| encoded(address) == upstream).unwrap().0
}

fn claim_of(vm: &Vm) -> (u32, Claim) {
    let call = only_call(vm, "/v1/claims");
    assert_eq!(call.headers.get(":method"), Some(&b"POST"[..]));
    assert_eq!(call.headers.get("content-type"), Some(wire::CONTENT_TYPE.as_bytes()));
    assert_eq!(call.timeout, Duration::from_millis(200));
    (call.token, wire::decode(&call.body).unwrap())
}

fn granted(node: &str) -> Vec<u8> {
    wire::encode(&ClaimReply { granted: true, owner: owner(node, 1) })
}

#[test]
fn a_new_session_is_claimed_for_the_node_that_served() {
    let vm = Host::new().unwrap().vm(with_sidecar()).unwrap();
    let mut stream = newcomer(&vm);
    let node = chosen(&stream);
    let sid = sid(1);
    let action = stream.response(&[(":status", "200"), ("set-cookie", &set_cookie(&sid))]);
    assert_eq!(action, Action::Pause);
    let (token, claim) = claim_of(&vm);
    assert_eq!((claim.key, claim.node.as_str(), claim.expect), (key(&sid), node, 0));
    assert!(stream.is_response_paused(), "the browser must not come back before the claim is made");
    vm.answer(token, 200, granted(node));
    assert!(!stream.is_response_paused());
    assert_eq!(stream.resumed(), (0, 1));
    drop(stream);
    assert_eq!(Routing::of(&visit(&vm, &sid)), Routing::of_owner(&sid, Some(node)));
}

#[test]
fn the_last_of_two_cookies_counts() {
    let vm = Host::new().unwrap().vm(with_sidecar()).unwrap();
    let mut stream = newcomer(&vm);
    stream.response(&[
        (":status", "200"),
        ("set-cookie", &set_cookie(&sid(1))),
        ("set-cookie", "tz=UTC"),
        ("set-cookie", &set_cookie(&sid(2))),
        ("set-cookie", "frontend_lang=en_US; Path=/"),
    ]);
    assert_eq!(claim_of(&vm).1.key, key(&sid(2)));
}

#[test]
fn what_begins_no_session_is_not_claimed() {
    let vm = Host::new().unwrap().vm(with_sidecar()).unwrap();
    for cookie in ["tz=UTC", "session_id=; Max-Age=0; Path=/", "xsession_id=a", "", ";"] {
        let mut stream = newcomer(&vm);
        assert_eq!(stream.response(&[("set-cookie", cookie)]), Action::Continue, "{cookie}");
    }
    let mut stream = newcomer(&vm);
    assert_eq!(stream.response(&[(":status", "200")]), Action::Continue);
    assert!(vm.calls().is_empty());
}

#[test]
fn a_session_with_an_owner_is_not_claimed_again() {
    let vm = Host::new().unwrap().vm(with_sidecar()).unwrap();
    let sid = sid(1);
    let mut stream = visit(&vm, &sid);
    vm.answer(only_call(&vm, "/v1/owners/").token, 200, owner_reply(Some("odoo-2")));
    assert_eq!(stream.response(&[("set-cookie", &set_cookie(&sid))]), Action::Continue);
    assert!(vm.calls().is_empty());
}

#[test]
fn a_claim_that_somebody_else_won_names_the_owner() {
    let vm = Host::new().unwrap().vm(with_sidecar()).unwrap();
    let sid = sid(1);
    let mut stream = newcomer(&vm);
    let other = if chosen(&stream) == "odoo-4" { "odoo-1" } else { "odoo-4" };
    stream.response(&[("set-cookie", &set_cookie(&sid))]);
    let reply = ClaimReply { granted: false, owner: owner(other, 5) };
    vm.answer(claim_of(&vm).0, 200, wire::encode(&reply));
    assert!(!stream.is_response_paused());
    assert_eq!(Routing::of(&visit(&vm, &sid)), Routing::of_owner(&sid, Some(other)));
}

#[test]
fn who_served_is_read_and_hidden() {
    let vm = Host::new().unwrap().vm(with_sidecar()).unwrap();
    let sid = sid(1);
    let mut stream = newcomer(&vm);
    let other = ["odoo-1", "odoo-2"].into_iter().find(|node| *node != chosen(&stream)).unwrap();
    let address = if other == "odoo-1" { "127.0.0.1:8069" } else { "127.0.0.2:8069" };
    let cookie = set_cookie(&sid);
    stream.response(&[("x-mooring-upstream", encoded(address)), ("set-cookie", cookie)]);
    assert_eq!(stream.response_header("x-mooring-upstream"), None);
    assert_eq!(claim_of(&vm).1.node.as_str(), other);
}

#[test]
fn who_served_on_the_gevent_port_is_the_same_node() {
    let vm = Host::new().unwrap().vm(with_sidecar()).unwrap();
    let mut stream = newcomer(&vm);
    let served = encoded("127.0.0.4:8072");
    stream.response(&[("x-mooring-upstream", served), ("set-cookie", set_cookie(&sid(1)))]);
    assert_eq!(claim_of(&vm).1.node.as_str(), "odoo-4");
}

#[test]
fn a_host_that_is_no_node_claims_nothing() {
    let vm = Host::new().unwrap().vm(with_sidecar()).unwrap();
    for served in [&encoded("10.9.9.9:80"), "", "rubbish", "%%%"] {
        let mut stream = newcomer(&vm);
        let cookie = set_cookie(&sid(1));
        let action = stream.response(&[("x-mooring-upstream", served), ("set-cookie", &cookie)]);
        assert_eq!(action, Action::Continue);
        assert_eq!(stream.response_header("x-mooring-upstream"), None, "hidden in any case");
    }
    assert!(vm.calls().is_empty());
}

#[test]
fn a_claim_that_fails_is_kept_and_made_again() {
    for body in [&b""[..], b"rubbish"] {
        let host = Host::new().unwrap();
        let vm = host.vm(with_sidecar()).unwrap();
        vm.tick();
        let sid = sid(1);
        let mut stream = newcomer(&vm);
        let node = chosen(&stream);
        stream.response(&[("set-cookie", &set_cookie(&sid))]);
        vm.answer(claim_of(&vm).0, if body.is_empty() { 503 } else { 200 }, body);
        assert!(!stream.is_response_paused(), "the response goes out all the same");
        drop(stream);
        assert_eq!(Routing::of(&visit(&vm, &sid)), Routing::of_owner(&sid, Some(node)), "known here");
        vm.tick();
        assert!(vm.calls_to("/v1/claims").is_empty(), "not at once");

        pass(&host, &[&vm], 300);
        let (token, claim) = claim_of(&vm);
        assert_eq!((claim.key, claim.node.as_str()), (key(&sid), node));
        assert_eq!(only_call(&vm, "/v1/claims").context, 1, "the root context's call");
        vm.answer(token, 503, b"");
        pass(&host, &[&vm], 5_000);
        vm.answer(claim_of(&vm).0, 200, granted(node));
        pass(&host, &[&vm], 5_000);
        assert!(vm.calls_to("/v1/claims").is_empty(), "made once");
    }
}

#[test]
fn claims_that_envoy_refuses_are_kept_too() {
    let host = Host::new().unwrap();
    let vm = host.vm(with_sidecar()).unwrap();
    vm.refuse_calls(Some(Status::InternalFailure));
    for number in 0..200 {
        let mut stream = newcomer(&vm);
        assert_eq!(stream.response(&[("set-cookie", &set_cookie(&sid(number)))]), Action::Continue);
    }
    vm.refuse_calls(None);
    let mut sidecar = Sidecar::default();
    for _ in 0..10 {
        pass(&host, &[&vm], 1_000);
        assert!(vm.calls_to("/v1/claims").len() <= 64, "not all at once");
        sidecar.answer_all(&vm);
    }
    assert_eq!(sidecar.owners.len(), 200);
}

#[test]
fn a_claim_outlives_its_stream() {
    let host = Host::new().unwrap();
    let vm = host.vm(with_sidecar()).unwrap();
    let sid = sid(1);
    let mut stream = newcomer(&vm);
    stream.response(&[("set-cookie", &set_cookie(&sid))]);
    let (token, claim) = claim_of(&vm);
    stream.end();
    vm.answer(token, 200, granted(claim.node.as_str()));
    let owner = Some(claim.node.as_str());
    assert_eq!(Routing::of(&visit(&vm, &sid)), Routing::of_owner(&sid, owner), "learnt, but not confirmed");
    // Nobody waits for that answer, so the claim is made again.
    pass(&host, &[&vm], 200);
    assert_eq!(claim_of(&vm).1, claim);
}

#[test]
fn without_a_sidecar_the_vms_know() {
    let host = Host::new().unwrap();
    let (first, second) = (host.vm(NODES_ONLY).unwrap(), host.vm(NODES_ONLY).unwrap());
    let sid = sid(3);
    let node = not_home(&sid);
    assert_ne!(home(&sid), node);
    let mut stream = newcomer(&first);
    let served = encoded(if node == "odoo-1" { "127.0.0.1:8069" } else { "127.0.0.2:8069" });
    let action = stream.response(&[("x-mooring-upstream", served), ("set-cookie", set_cookie(&sid))]);
    assert_eq!(action, Action::Continue, "there is nobody to wait for");
    for vm in [&first, &second] {
        assert_eq!(Routing::of(&visit(vm, &sid)), Routing::of_owner(&sid, Some(node)));
        assert!(vm.calls().is_empty());
    }
}
