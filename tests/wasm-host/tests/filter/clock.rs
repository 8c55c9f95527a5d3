//! The clock is put back, or runs ahead: nothing is believed, waited for or left alone for longer than it says.

use affinity::wire::WatchReply;
use wasm_host::{Host, Vm};

use crate::support::{
    answer_poll, no_news, nodes, not_home, only_call, owner_reply, pass, sid, two_vms, visit, with_sidecar,
};

const HOUR_MS: u64 = 3_600_000;

fn put_back(host: &Host, by_ms: u64) {
    host.set_now_ms(host.now_ms() - by_ms);
}

/// How long it takes until a VM polls, and no longer than ten seconds.
fn polls_within(host: &Host, vms: &[&Vm]) -> Option<u64> {
    (0..100).map(|tick| tick * 100).find(|_| {
        pass(host, vms, 100);
        vms.iter().any(|vm| !vm.calls_to("/v1/watch").is_empty())
    })
}

#[test]
fn a_sidecar_that_failed_is_asked_again_all_the_same() {
    for by_ms in [2_000, 60_000, HOUR_MS, 24 * HOUR_MS] {
        let host = Host::new().unwrap();
        let vm = host.vm(with_sidecar()).unwrap();
        for _ in 0..8 {
            pass(&host, &[&vm], 5_000);
            vm.answer(only_call(&vm, "/v1/watch").token, 503, b"");
        }
        put_back(&host, by_ms);
        assert!(polls_within(&host, &[&vm]).is_some_and(|waited| waited <= 4_000), "{by_ms} ms");
        assert!(visit(&vm, &sid(1)).is_request_paused(), "it looks owners up, too");
    }
}

#[test]
fn a_poller_that_is_gone_is_followed_by_another() {
    let host = Host::new().unwrap();
    let (_first, second) = two_vms(&host);
    put_back(&host, HOUR_MS);
    // The first never ticks again.
    assert!(polls_within(&host, &[&second]).is_some_and(|waited| waited <= 2_000));
}

#[test]
fn owners_are_asked_for_again() {
    let host = Host::new().unwrap();
    let (first, second) = two_vms(&host);
    let sid = sid(1);
    let stream = visit(&first, &sid);
    first.answer(only_call(&first, "/v1/owners/").token, 200, owner_reply(Some(not_home(&sid))));
    drop((stream, visit(&second, &sid)));
    put_back(&host, HOUR_MS);
    pass(&host, &[&first, &second], 100);
    pass(&host, &[&first, &second], 100);
    for vm in [&first, &second] {
        assert!(visit(vm, &sid).is_request_paused(), "it would have been believed for two hours");
    }
    assert_eq!(host.metric("mooring_table_resets"), Some(2), "once a VM");
}

#[test]
fn what_is_adjusted_all_the_time_costs_nothing() {
    let host = Host::new().unwrap();
    let (first, second) = two_vms(&host);
    for _ in 0..100 {
        pass(&host, &[&first, &second], 100);
        put_back(&host, 90);
    }
    assert_eq!(host.metric("mooring_table_resets").unwrap_or_default(), 0);
}

#[test]
fn a_clock_that_ran_ahead_and_is_right_again_does_no_harm() {
    let host = Host::new().unwrap();
    let (first, second) = two_vms(&host);
    pass(&host, &[&first, &second], 24 * HOUR_MS);
    for vm in [&first, &second] {
        if !vm.calls_to("/v1/watch").is_empty() {
            answer_poll(vm, &WatchReply { membership: Some(nodes()), ..no_news(7, 0) });
        }
    }
    put_back(&host, 24 * HOUR_MS);
    assert!(polls_within(&host, &[&first, &second]).is_some_and(|waited| waited <= 2_000));
    assert!(host.metric("mooring_sidecar_poll_age_seconds").unwrap() <= 10);
}
