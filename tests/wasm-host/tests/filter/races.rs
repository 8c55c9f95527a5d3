//! Answers that come in another order than the questions.

use affinity::wire::{self, ClaimReply, OwnerReply, WatchReply};
use wasm_host::Host;

use crate::support::{
    Routing, answer_poll, change, encoded, no_news, not_home, only_call, owner, owner_reply, pass,
    set_cookie, sid, two_vms, visit, with_sidecar,
};

#[test]
fn a_late_answer_does_not_undo_a_change() {
    let host = Host::new().unwrap();
    let (first, _second) = two_vms(&host);
    let sid = sid(1);
    let waiting = visit(&first, &sid);
    // The sidecar had read epoch 1 when the owner changed; the news travels faster.
    let changes = vec![change(&sid, Some("odoo-4"), 2)];
    answer_poll(&first, &WatchReply { changes, ..no_news(7, 1) });
    let late = OwnerReply { owner: Some(owner("odoo-1", 1)), believe_s: 3_600 };
    first.answer(only_call(&first, "/v1/owners/").token, 200, wire::encode(&late));
    drop(waiting);
    assert_eq!(Routing::of(&visit(&first, &sid)), Routing::of_owner(&sid, Some("odoo-4")));
}

#[test]
fn a_late_nobody_does_not_undo_a_claim() {
    let host = Host::new().unwrap();
    let vm = host.vm(with_sidecar()).unwrap();
    let sid = sid(1);
    let (page, image) = (visit(&vm, &sid), visit(&vm, &sid));
    let calls = vm.calls_to("/v1/owners/");
    vm.answer(calls[0].token, 200, owner_reply(None));
    // Meanwhile the session begins, on a node that is not its home.
    let mut login = vm.stream();
    login.request(&[(":path", "/web/login")]);
    let standby = not_home(&sid);
    let served = encoded(if standby == "odoo-1" { "127.0.0.1:8069" } else { "127.0.0.2:8069" });
    login.response(&[("x-mooring-upstream", served), ("set-cookie", set_cookie(&sid))]);
    let claim = ClaimReply { granted: true, owner: owner(standby, 1) };
    for call in vm.calls_to("/v1/claims") {
        vm.answer(call.token, 200, wire::encode(&claim));
    }
    vm.answer(calls[1].token, 200, owner_reply(None));
    drop((page, image, login));
    assert_eq!(Routing::of(&visit(&vm, &sid)), Routing::of_owner(&sid, Some(standby)));
}

#[test]
fn what_was_never_confirmed_is_asked_for_soon() {
    let host = Host::new().unwrap();
    let (first, second) = two_vms(&host);
    let sid = sid(1);
    let mut login = first.stream();
    login.request(&[(":path", "/web/login")]);
    login.response(&[("x-mooring-upstream", encoded("127.0.0.1:8069")), ("set-cookie", set_cookie(&sid))]);
    first.answer(only_call(&first, "/v1/claims").token, 503, b"");
    drop(login);
    assert_eq!(Routing::of(&visit(&second, &sid)), Routing::of_owner(&sid, Some("odoo-1")));
    // The sidecar comes back. Another Envoy had claimed the session for another node.
    pass(&host, &[&first, &second], 1_000);
    let reply = ClaimReply { granted: false, owner: owner("odoo-4", 5) };
    first.answer(only_call(&first, "/v1/claims").token, 200, wire::encode(&reply));
    assert_eq!(Routing::of(&visit(&first, &sid)), Routing::of_owner(&sid, Some("odoo-4")));
    // That is believed for a moment only: whoever comes back with a session makes its record durable.
    pass(&host, &[&first, &second], 60_000);
    let back = visit(&second, &sid);
    let reply = OwnerReply { owner: Some(owner("odoo-4", 5)), believe_s: 3_600 };
    second.answer(only_call(&second, "/v1/owners/").token, 200, wire::encode(&reply));
    assert_eq!(Routing::of(&back), Routing::of_owner(&sid, Some("odoo-4")));
    assert_eq!(Routing::of(&visit(&second, &sid)), Routing::of_owner(&sid, Some("odoo-4")));
}

#[test]
fn an_answer_belongs_to_its_own_call() {
    let host = Host::new().unwrap();
    let vm = host.vm(with_sidecar()).unwrap();
    let (asked, begun) = (sid(1), sid(2));
    // A reply that does not come from the node, while the request still waits for its owner.
    let mut stream = visit(&vm, &asked);
    stream.response(&[("x-mooring-upstream", encoded("127.0.0.1:8069")), ("set-cookie", set_cookie(&begun))]);
    vm.answer(only_call(&vm, "/v1/owners/").token, 200, owner_reply(Some("odoo-4")));
    let claim = ClaimReply { granted: true, owner: owner("odoo-1", 1) };
    vm.answer(only_call(&vm, "/v1/claims").token, 200, wire::encode(&claim));
    drop(stream);
    assert_eq!(Routing::of(&visit(&vm, &begun)), Routing::of_owner(&begun, Some("odoo-1")));
}
