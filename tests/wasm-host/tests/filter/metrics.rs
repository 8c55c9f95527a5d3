//! What an operator sees in Envoy's statistics.

use wasm_host::Host;

use crate::support::{
    answer_poll, no_news, only_call, owner_reply, pass, set_cookie, sid, two_vms, visit, with_sidecar,
};

#[test]
fn all_metrics_are_there_from_the_start() {
    let host = Host::new().unwrap();
    let _vm = host.vm(with_sidecar()).unwrap();
    let names = host.metrics();
    assert!(names.len() >= 17, "{names:?}");
    for name in names {
        assert!(name.starts_with("mooring_"), "{name}");
        assert_eq!(host.metric(&name), Some(0), "{name}");
    }
}

#[test]
fn requests_are_counted_on_ticks_and_not_before() {
    let host = Host::new().unwrap();
    let (first, second) = two_vms(&host);
    for vm in [&first, &second] {
        vm.forget_hostcalls();
        for number in 0..10 {
            let stream = visit(vm, &sid(number));
            for call in vm.calls_to("/v1/owners/") {
                vm.answer(call.token, 200, owner_reply(Some("odoo-1")));
            }
            drop(stream);
            vm.stream().request(&[(":path", "/")]);
        }
        assert_eq!(vm.hostcalls().get("proxy_increment_metric"), None, "a request costs none");
    }
    assert_eq!(host.metric("mooring_requests_to_owner"), Some(0));
    pass(&host, &[&first, &second], 100);
    assert_eq!(host.metric("mooring_requests_to_owner"), Some(20));
    assert_eq!(host.metric("mooring_requests_by_address"), Some(20));
    assert_eq!(host.metric("mooring_sidecar_lookups"), Some(10), "the second VM asked for none");
    assert_eq!(host.metric("mooring_table_entries"), Some(20));
}

#[test]
fn failures_are_counted() {
    let host = Host::new().unwrap();
    let vm = host.vm(with_sidecar()).unwrap();
    vm.tick();
    vm.answer(only_call(&vm, "/v1/watch").token, 503, b"");
    pass(&host, &[&vm], 5_000);
    let stream = visit(&vm, &sid(1));
    vm.answer(only_call(&vm, "/v1/owners/").token, 503, b"");
    drop(stream);
    pass(&host, &[&vm], 5_000);
    let mut stream = vm.stream();
    stream.request(&[(":path", "/")]);
    stream.response(&[("set-cookie", set_cookie(&sid(2)))]);
    vm.answer(only_call(&vm, "/v1/claims").token, 503, b"");
    pass(&host, &[&vm], 100);
    for name in ["poll_failures", "lookups", "lookup_failures", "claims", "claim_failures"] {
        assert_eq!(host.metric(&format!("mooring_sidecar_{name}")), Some(1), "{name}");
    }
}

#[test]
fn the_age_of_the_last_poll_is_shown() {
    let host = Host::new().unwrap();
    let vm = host.vm(with_sidecar()).unwrap();
    vm.tick();
    answer_poll(&vm, &no_news(7, 0));
    pass(&host, &[&vm], 42_000);
    assert_eq!(host.metric("mooring_sidecar_poll_age_seconds"), Some(42));
}
