//! A VM's memory never shrinks, so it must not grow.

use wasm_host::{Host, Vm};

use crate::support::{
    NODES_ONLY, Sidecar, answer_poll, key, no_news, owner, pass, set_cookie, sid, visit, with_sidecar,
};

const SESSIONS: u64 = 1_000_000;
/// By then the tables are full.
const FULL: u64 = 300_000;

/// Runs `visit` for a million sessions, and a tick now and then.
fn memory_stays(host: &Host, vm: &Vm, mut visit: impl FnMut(u64)) {
    let (mut memory, mut shared) = (0, 0);
    for number in 0..SESSIONS {
        visit(number);
        if number % 1_000 == 0 {
            pass(host, &[vm], 100);
        }
        if number == FULL {
            (memory, shared) = (vm.memory_bytes(), host.shared_bytes());
        }
    }
    println!("{memory} bytes in the VM, {shared} in shared data");
    assert_eq!(vm.memory_bytes(), memory);
    assert!(host.shared_bytes() < 4_000_000, "{} bytes shared", host.shared_bytes());
    assert!(host.shared_keys().len() <= 4_096 + 3);
}

#[test]
fn a_million_sessions_that_are_begun_without_a_sidecar() {
    let host = Host::new().unwrap();
    let vm = host.vm(NODES_ONLY).unwrap();
    memory_stays(&host, &vm, |number| {
        let mut stream = vm.stream();
        stream.request(&[(":path", "/web/login")]);
        stream.response(&[("set-cookie", set_cookie(&sid(number)))]);
    });
    assert_eq!(host.metric("mooring_table_entries"), Some(65_536));
}

#[test]
fn a_million_sessions_that_are_looked_up() {
    let host = Host::new().unwrap();
    let vm = host.vm(with_sidecar()).unwrap();
    let mut sidecar = Sidecar::default();
    memory_stays(&host, &vm, |number| {
        let sid = sid(number);
        sidecar.owners = [(key(&sid), owner("odoo-2", number))].into();
        let stream = visit(&vm, &sid);
        sidecar.answer_all(&vm);
        drop(stream);
        if number % 5_000 == 4_999 && !vm.calls_to("/v1/watch").is_empty() {
            answer_poll(&vm, &no_news(7, 0));
        }
    });
    assert_eq!(host.metric("mooring_table_entries"), Some(65_536));
}

#[test]
fn calls_that_nobody_answers_cost_nothing_once_they_time_out() {
    let host = Host::new().unwrap();
    let vm = host.vm(with_sidecar()).unwrap();
    vm.tick();
    let mut memory = 0;
    for number in 0..200_000 {
        let stream = visit(&vm, &sid(number % 10_000));
        let calls = vm.calls_to("/v1/owners/");
        drop(stream);
        // The streams are gone by the time that the answers come.
        calls.iter().for_each(|call| vm.answer(call.token, 504, b""));
        if number == 100_000 {
            memory = vm.memory_bytes();
        }
    }
    assert_eq!(vm.memory_bytes(), memory);
}
