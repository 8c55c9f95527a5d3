//! Asking the sidecar for an owner, and doing without.

use core::time::Duration;

use wasm_host::{Action, Host, Status};

use crate::support::{
    Routing, answer_poll, key, no_news, not_home, only_call, owner_reply, pass, sid, visit, with_sidecar,
};

#[test]
fn a_request_waits_for_its_owner() {
    let vm = Host::new().unwrap().vm(with_sidecar()).unwrap();
    let sid = sid(1);
    let stream = visit(&vm, &sid);
    assert!(stream.is_request_paused());
    assert_eq!(Routing::of(&stream).upstream, None, "nothing is decided yet");

    let call = only_call(&vm, "/v1/owners/");
    assert_eq!(call.path(), format!("/v1/owners/{}", key(&sid)));
    assert_eq!(call.headers.get(":method"), Some(&b"GET"[..]));
    assert_eq!((call.cluster.as_str(), call.timeout), ("mooring", Duration::from_millis(200)));
    assert_eq!(call.context, stream.id());

    vm.answer(call.token, 200, owner_reply(Some(not_home(&sid))));
    assert!(!stream.is_request_paused());
    assert_eq!(stream.resumed(), (1, 0));
    assert_eq!(Routing::of(&stream), Routing::of_owner(&sid, Some(not_home(&sid))));
}

#[test]
fn an_owner_is_asked_for_once_an_hour() {
    let host = Host::new().unwrap();
    let vm = host.vm(with_sidecar()).unwrap();
    let sid = sid(1);
    let stream = visit(&vm, &sid);
    vm.answer(only_call(&vm, "/v1/owners/").token, 200, owner_reply(Some("odoo-4")));
    drop(stream);
    pass(&host, &[&vm], 3_599_000);
    assert!(!visit(&vm, &sid).is_request_paused());
    pass(&host, &[&vm], 2_000);
    assert!(visit(&vm, &sid).is_request_paused());
}

#[test]
fn nobody_is_an_answer_for_a_few_seconds() {
    let host = Host::new().unwrap();
    let vm = host.vm(with_sidecar()).unwrap();
    let sid = sid(1);
    let stream = visit(&vm, &sid);
    vm.answer(only_call(&vm, "/v1/owners/").token, 200, owner_reply(None));
    assert_eq!(Routing::of(&stream), Routing::of_owner(&sid, None));
    pass(&host, &[&vm], 4_000);
    assert!(!visit(&vm, &sid).is_request_paused());
    pass(&host, &[&vm], 2_000);
    assert!(visit(&vm, &sid).is_request_paused());
}

#[test]
fn a_failed_look_up_goes_home() {
    for (status, body) in
        [(503, vec![]), (504, vec![]), (404, owner_reply(Some("odoo-4"))), (200, vec![]), (200, vec![9; 40])]
    {
        let vm = Host::new().unwrap().vm(with_sidecar()).unwrap();
        let sid = sid(1);
        let stream = visit(&vm, &sid);
        vm.answer(only_call(&vm, "/v1/owners/").token, status, &body);
        assert!(!stream.is_request_paused());
        assert_eq!(Routing::of(&stream), Routing::of_owner(&sid, None), "{status} {body:?}");
    }
}

#[test]
fn a_sidecar_that_fails_is_not_asked_again_at_once() {
    let host = Host::new().unwrap();
    let vm = host.vm(with_sidecar()).unwrap();
    vm.tick();
    let stream = visit(&vm, &sid(0));
    vm.answer(only_call(&vm, "/v1/owners/").token, 504, b"upstream request timeout");
    drop(stream);
    let made = vm.calls_made();
    for number in 1..100 {
        let sid = sid(number);
        let stream = visit(&vm, &sid);
        assert!(!stream.is_request_paused());
        assert_eq!(Routing::of(&stream), Routing::of_owner(&sid, None));
    }
    assert_eq!(vm.calls_made(), made);
    // It is asked again when the pause is over.
    pass(&host, &[&vm], 300);
    assert!(visit(&vm, &sid(100)).is_request_paused());
}

#[test]
fn the_pauses_grow_and_an_answer_ends_them() {
    let host = Host::new().unwrap();
    let vm = host.vm(with_sidecar()).unwrap();
    vm.tick();
    let mut made = vec![];
    // For 20 seconds one request in 100 ms, and each look-up fails.
    for number in 0..200 {
        let stream = visit(&vm, &sid(number));
        if stream.is_request_paused() {
            made.push(number);
            vm.answer(only_call(&vm, "/v1/owners/").token, 503, b"");
        }
        drop(stream);
        pass(&host, &[&vm], 100);
    }
    assert!((5..=12).contains(&made.len()), "look-ups at {made:?}");
    answer_poll(&vm, &no_news(1, 0));
    pass(&host, &[&vm], 100);
    assert!(visit(&vm, &sid(1_000)).is_request_paused(), "the poll's answer says that it is back");
}

#[test]
fn a_call_that_envoy_refuses_has_no_callback() {
    for refusal in [Status::BadArgument, Status::InternalFailure] {
        let host = Host::new().unwrap();
        let vm = host.vm(with_sidecar()).unwrap();
        vm.refuse_calls(Some(refusal));
        vm.tick();
        let sid = sid(1);
        let mut stream = vm.stream();
        let action = stream.request(&[(":path", "/"), ("cookie", &crate::support::cookie(&sid))]);
        assert_eq!(action, Action::Continue);
        assert_eq!(Routing::of(&stream), Routing::of_owner(&sid, None));
        vm.refuse_calls(None);
        assert!(!visit(&vm, &sid).is_request_paused(), "backed off");
        pass(&host, &[&vm], 1_000);
        assert!(visit(&vm, &sid).is_request_paused());
    }
}

#[test]
fn an_answer_for_a_stream_that_ended_does_nothing() {
    let vm = Host::new().unwrap().vm(with_sidecar()).unwrap();
    let (gone, there) = (visit(&vm, &sid(1)), visit(&vm, &sid(2)));
    let calls = vm.calls_to("/v1/owners/");
    gone.end();
    for call in &calls {
        vm.answer(call.token, 200, owner_reply(Some("odoo-1")));
    }
    assert_eq!(Routing::of(&there), Routing::of_owner(&sid(2), Some("odoo-1")));
    assert!(visit(&vm, &sid(3)).is_request_paused(), "and the VM lives");
}

#[test]
fn answers_find_their_streams_in_any_order() {
    let vm = Host::new().unwrap().vm(with_sidecar()).unwrap();
    let streams: Vec<_> = (0..20).map(|number| visit(&vm, &sid(number))).collect();
    let names = ["odoo-1", "odoo-2", "odoo-3", "odoo-4"];
    for (number, call) in vm.calls_to("/v1/owners/").iter().enumerate().rev() {
        vm.answer(call.token, 200, owner_reply(Some(names[number % 4])));
    }
    for (number, stream) in streams.iter().enumerate() {
        assert_eq!(Routing::of(stream), Routing::of_owner(&sid(number as u64), Some(names[number % 4])));
    }
}
