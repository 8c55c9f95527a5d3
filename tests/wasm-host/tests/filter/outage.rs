//! The sidecar is gone, or says something wrong: requests go on.

use affinity::{Membership, wire::WatchReply};
use wasm_host::{Host, Status};

use crate::support::{
    Routing, Sidecar, answer_poll, cookie, home, key, no_news, nodes, not_home, only_call, owner,
    owner_reply, pass, set_cookie, sid, two_vms, visit, with_sidecar,
};

#[test]
fn cached_owners_are_used_while_the_sidecar_is_gone() {
    let host = Host::new().unwrap();
    let (first, second) = two_vms(&host);
    let mut sidecar = Sidecar::default();
    for number in 0..20 {
        let sid = sid(number);
        sidecar.owners.insert(key(&sid), owner(not_home(&sid), 1));
        let stream = visit(&first, &sid);
        sidecar.answer_all(&first);
        drop(stream);
    }
    first.answer(only_call(&first, "/v1/watch").token, 503, b"");
    for vm in [&first, &second] {
        vm.refuse_calls(Some(Status::InternalFailure));
    }
    // Beyond the hour for which an owner is believed: better than nothing.
    for passed in [0, 60_000, 3_600_000, 7_200_000] {
        pass(&host, &[&first, &second], passed);
        for vm in [&first, &second] {
            for number in 0..20 {
                let sid = sid(number);
                let stream = visit(vm, &sid);
                assert!(!stream.is_request_paused());
                assert_eq!(Routing::of(&stream), Routing::of_owner(&sid, Some(not_home(&sid))), "{passed}");
            }
        }
    }
    // Everybody else goes home, and is told apart in the metrics.
    assert_eq!(Routing::of(&visit(&first, &sid(99))), Routing::of_owner(&sid(99), None));
    pass(&host, &[&first], 100);
    assert!(host.metric("mooring_requests_unasked").unwrap() > 0);
}

#[test]
fn an_empty_membership_is_not_believed() {
    let host = Host::new().unwrap();
    let (first, second) = two_vms(&host);
    answer_poll(&first, &WatchReply { membership: Some(Membership::default()), ..no_news(7, 0) });
    second.tick();
    for vm in [&first, &second] {
        let mut stream = vm.stream();
        stream.request(&[(":path", "/")]);
        assert!(Routing::of(&stream).upstream.is_some());
    }
}

#[test]
fn logins_during_an_outage_are_claimed_afterwards() {
    let host = Host::new().unwrap();
    let (first, second) = two_vms(&host);
    for vm in [&first, &second] {
        vm.refuse_calls(Some(Status::BadArgument));
        for number in 0..30 {
            let mut stream = vm.stream();
            stream.request(&[(":path", "/web/login")]);
            stream.response(&[("set-cookie", set_cookie(&sid(number)))]);
        }
        vm.refuse_calls(None);
    }
    let mut sidecar = Sidecar::default();
    for _ in 0..5 {
        pass(&host, &[&first, &second], 1_000);
        [&first, &second].iter().for_each(|vm| sidecar.answer_all(vm));
    }
    assert_eq!(sidecar.owners.len(), 30);
}

#[test]
fn a_claim_for_a_node_that_left_the_list_meanwhile_is_dropped() {
    let host = Host::new().unwrap();
    let (first, second) = two_vms(&host);
    let home = home(&sid(1));
    first.refuse_calls(Some(Status::BadArgument));
    let mut stream = first.stream();
    stream.request(&[(":path", "/web/login"), ("cookie", &cookie(&sid(1)))]);
    stream.response(&[("set-cookie", set_cookie(&sid(2)))]);
    first.refuse_calls(None);
    let left = nodes().nodes().iter().filter(|node| node.id.as_str() != home).cloned().collect();
    let membership = Some(Membership::new(left).unwrap());
    answer_poll(&first, &WatchReply { membership, ..no_news(7, 0) });
    for _ in 0..5 {
        pass(&host, &[&first, &second], 1_000);
        assert!(first.calls_to("/v1/claims").is_empty(), "the sidecar does not know it any more");
    }
    pass(&host, &[&first], 100);
    assert_eq!(host.metric("mooring_sidecar_claims_dropped"), Some(1));
}

#[test]
fn a_call_that_is_reset_is_a_failure() {
    let host = Host::new().unwrap();
    let vm = host.vm(with_sidecar()).unwrap();
    vm.tick();
    let stream = visit(&vm, &sid(1));
    for call in vm.calls() {
        vm.reset_call(call.token);
    }
    assert!(!stream.is_request_paused());
    assert_eq!(Routing::of(&stream), Routing::of_owner(&sid(1), None));
}

#[test]
fn a_claim_that_fails_after_its_stream_ended_is_kept() {
    let host = Host::new().unwrap();
    let vm = host.vm(with_sidecar()).unwrap();
    vm.tick();
    let mut stream = vm.stream();
    stream.request(&[(":path", "/web/login")]);
    stream.response(&[("set-cookie", set_cookie(&sid(1)))]);
    let call = only_call(&vm, "/v1/claims");
    stream.end();
    vm.answer(call.token, 503, b"");
    pass(&host, &[&vm], 5_000);
    assert_eq!(vm.calls_to("/v1/claims").len(), 1, "made again");
}

#[test]
fn a_local_reply_while_the_owner_is_asked_for() {
    let host = Host::new().unwrap();
    let vm = host.vm(with_sidecar()).unwrap();
    // Envoy answers itself, say after a time-out, while the filter still waits.
    let mut stream = vm.stream();
    stream.request(&[(":path", "/web"), ("cookie", &cookie(&sid(1)))]);
    assert!(stream.is_request_paused());
    stream.response(&[(":status", "504")]);
    assert!(!stream.is_response_paused());
    vm.answer(only_call(&vm, "/v1/owners/").token, 200, owner_reply(Some("odoo-1")));
    stream.end();
    assert!(!visit(&vm, &sid(1)).is_request_paused(), "it was learnt all the same");
}
