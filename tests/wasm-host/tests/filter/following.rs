//! Who polls the sidecar for changes, and when.

use core::time::Duration;

use affinity::wire::WatchReply;
use wasm_host::{Host, Status, Vm};

use crate::support::{NODES_ONLY, answer_poll, no_news, nodes, only_call, pass, two_vms, with_sidecar};

fn polls(vm: &Vm) -> usize {
    vm.calls_to("/v1/watch").len()
}

#[test]
fn the_first_tick_polls() {
    let host = Host::new().unwrap();
    let vm = host.vm(with_sidecar()).unwrap();
    assert_eq!(polls(&vm), 0);
    vm.tick();
    let call = only_call(&vm, "/v1/watch");
    assert_eq!(call.path(), "/v1/watch?generation=0&position=0&membership=0&wait_ms=20000");
    assert_eq!(call.context, 1, "the root context");
    assert!(call.timeout > Duration::from_secs(20), "the sidecar answers before Envoy gives up");
}

#[test]
fn the_next_poll_goes_on_from_the_answer() {
    let host = Host::new().unwrap();
    let vm = host.vm(with_sidecar()).unwrap();
    vm.tick();
    answer_poll(&vm, &WatchReply { membership: Some(nodes()), ..no_news(7, 42) });
    assert_eq!(polls(&vm), 0);
    vm.tick();
    let digest = nodes().digest();
    let expected = format!("/v1/watch?generation=7&position=42&membership={digest}&wait_ms=20000");
    assert_eq!(only_call(&vm, "/v1/watch").path(), expected);
}

#[test]
fn one_poll_at_a_time_and_one_vm_polls() {
    let host = Host::new().unwrap();
    let vms: Vec<_> = (0..4).map(|_| host.vm(with_sidecar()).unwrap()).collect();
    let all: Vec<_> = vms.iter().collect();
    let mut total = 0;
    for _ in 0..600 {
        pass(&host, &all, 100);
        let open: usize = vms.iter().map(polls).sum();
        assert_eq!(open, 1);
        total = vms.iter().map(Vm::calls_made).sum();
    }
    assert_eq!(total, 1, "in a minute without an answer");
}

#[test]
fn another_vm_takes_over_from_one_that_went_silent() {
    let host = Host::new().unwrap();
    let (first, second) = two_vms(&host);
    assert_eq!((polls(&first), polls(&second)), (1, 0));
    let mut waited = 0;
    while polls(&second) == 0 {
        pass(&host, &[&second], 100);
        waited += 100;
        assert!(waited <= 3_000, "nobody took over");
    }
    assert!(waited >= 1_000, "a VM that is only late keeps its turn: {waited} ms");
    // The first wakes up again: its answer does not count, and it does not poll.
    answer_poll(&first, &WatchReply { reset: true, ..no_news(9, 99) });
    for _ in 0..50 {
        pass(&host, &[&first, &second], 100);
    }
    assert_eq!((polls(&first), polls(&second)), (0, 1));
    assert!(only_call(&second, "/v1/watch").path().contains("generation=7&position=0&"));
}

#[test]
fn a_failing_poll_backs_off() {
    for answer in [Some((503, vec![])), Some((504, vec![])), Some((200, vec![0xff; 64])), None] {
        let host = Host::new().unwrap();
        let vm = host.vm(with_sidecar()).unwrap();
        if answer.is_none() {
            vm.refuse_calls(Some(Status::InternalFailure));
        }
        let mut made = 0;
        for _ in 0..600 {
            pass(&host, &[&vm], 100);
            for call in vm.calls() {
                let (status, body) = answer.clone().unwrap();
                vm.answer(call.token, status, body);
                made += 1;
            }
        }
        let tried = vm.hostcalls().get("proxy_http_call").copied().unwrap_or_default();
        assert!((15..=30).contains(&tried), "{tried} tries in a minute after {answer:?}");
        assert!(made == 0 || made == tried);
        assert!(host.metric("mooring_sidecar_poll_failures").unwrap() >= 15);
    }
}

/// A configuration that was replaced lives on for minutes, until its last stream has ended.
#[test]
fn who_is_refused_leaves_the_polling_to_others() {
    let host = Host::new().unwrap();
    let (old, new) = (host.vm(with_sidecar()).unwrap(), host.vm(with_sidecar()).unwrap());
    pass(&host, &[&old], 100);
    vm_refused(&old);
    pass(&host, &[&old, &new], 100);
    answer_poll(&new, &WatchReply { membership: Some(nodes()), ..no_news(7, 0) });
    for _ in 0..600 {
        pass(&host, &[&old, &new], 100);
        assert_eq!((polls(&old), polls(&new)), (0, 1), "the token of the old one is wrong");
    }
    // The other way round: the one that could poll is refused from now on.
    vm_refused(&new);
    pass(&host, &[&new, &old], 100);
    assert_eq!(polls(&old), 1);
}

fn vm_refused(vm: &Vm) {
    vm.answer(only_call(vm, "/v1/watch").token, 401, b"");
}

#[test]
fn a_configuration_that_ends_leaves_the_polling_to_others() {
    let host = Host::new().unwrap();
    let (first, second) = two_vms(&host);
    assert_eq!((polls(&first), polls(&second)), (1, 0));
    first.end();
    pass(&host, &[&second], 100);
    assert_eq!(polls(&second), 1, "at once");
}

#[test]
fn that_nobody_ever_polled_shows() {
    let host = Host::new().unwrap();
    let vm = host.vm(with_sidecar()).unwrap();
    for _ in 0..10 {
        pass(&host, &[&vm], 3_000);
        vm.calls().iter().for_each(|call| vm.answer(call.token, 401, b""));
    }
    assert!(host.metric("mooring_sidecar_poll_age_seconds").unwrap() >= 27);
}

#[test]
fn nobody_polls_without_a_sidecar() {
    let host = Host::new().unwrap();
    let vm = host.vm(NODES_ONLY).unwrap();
    pass(&host, &[&vm], 100);
    assert!(vm.calls().is_empty());
    assert!(host.shared_keys().is_empty(), "and nothing is shared");
}
