//! Whoever may have missed a change forgets what it knows.

use affinity::wire::{Cursor, WatchReply};
use wasm_host::{Host, Vm};

use crate::support::{
    Routing, answer_poll, change, no_news, only_call, owner_reply, pass, set_cookie, sid, two_vms, visit,
};

fn learn(vm: &Vm, numbers: core::ops::Range<u64>) {
    for number in numbers {
        let stream = visit(vm, &sid(number));
        for call in vm.calls_to("/v1/owners/") {
            vm.answer(call.token, 200, owner_reply(Some("odoo-1")));
        }
        drop(stream);
    }
}

fn forgot(vm: &Vm, number: u64) -> bool {
    visit(vm, &sid(number)).is_request_paused()
}

#[test]
fn after_a_reset_all_is_asked_for_again() {
    let host = Host::new().unwrap();
    let (first, second) = two_vms(&host);
    learn(&first, 0..50);
    learn(&second, 0..50);
    answer_poll(&first, &WatchReply { reset: true, ..no_news(8, 3) });
    second.tick();
    for number in 0..50 {
        assert!(forgot(&first, number) && forgot(&second, number), "{number}");
    }
    pass(&host, &[&first, &second], 100);
    assert!(only_call(&first, "/v1/watch").path().contains("generation=8&position=3&"));
    assert_eq!(host.metric("mooring_table_resets"), Some(2));
}

#[test]
fn what_is_learnt_after_a_reset_is_believed() {
    let host = Host::new().unwrap();
    let (first, second) = two_vms(&host);
    answer_poll(&first, &WatchReply { reset: true, ..no_news(8, 3) });
    learn(&first, 0..1);
    second.tick();
    assert!(!forgot(&first, 0) && !forgot(&second, 0));
}

#[test]
fn a_vm_that_is_too_far_behind_starts_afresh() {
    let host = Host::new().unwrap();
    let (first, second) = two_vms(&host);
    learn(&second, 0..10);
    for round in 1..=10 {
        let changes = (0..40).map(|n| change(&sid(1_000 + n), Some("odoo-2"), round)).collect();
        answer_poll(&first, &WatchReply { changes, ..no_news(7, 40 * round) });
        pass(&host, &[&first], 100);
    }
    second.tick();
    assert_eq!(host.metric("mooring_table_resets"), Some(1), "400 changes are more than are kept");
}

#[test]
fn a_cursor_that_jumps_without_its_changes_resets() {
    let host = Host::new().unwrap();
    let (first, second) = two_vms(&host);
    learn(&second, 0..10);
    // The sidecar says that it is at 500 and names no change.
    answer_poll(&first, &no_news(7, 500));
    pass(&host, &[&first, &second], 100);
    pass(&host, &[&first, &second], 100);
    assert_eq!(host.metric("mooring_table_resets"), Some(2));
    // And one that goes back is no better.
    answer_poll(&first, &WatchReply { cursor: Cursor { generation: 7, position: 1 }, ..no_news(0, 0) });
    pass(&host, &[&first, &second], 100);
    pass(&host, &[&first, &second], 100);
    assert_eq!(host.metric("mooring_table_resets"), Some(4));
}

#[test]
fn what_only_this_envoy_knows_survives_a_reset() {
    let host = Host::new().unwrap();
    let (first, second) = two_vms(&host);
    let mut stream = first.stream();
    stream.request(&[(":path", "/web/login")]);
    stream.response(&[("set-cookie", set_cookie(&sid(1)))]);
    first.answer(only_call(&first, "/v1/claims").token, 503, b"");
    let upstream = Routing::of(&stream).upstream;
    drop(stream);
    answer_poll(&first, &WatchReply { reset: true, ..no_news(8, 0) });
    second.tick();
    for vm in [&first, &second] {
        let stream = visit(vm, &sid(1));
        assert!(!stream.is_request_paused());
        assert_eq!(Routing::of(&stream).upstream, upstream);
    }
}
