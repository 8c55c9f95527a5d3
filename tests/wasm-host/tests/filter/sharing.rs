//! What one VM of an Envoy learns, the others know.

use affinity::{Membership, NodeState, Port, wire::WatchReply};
use wasm_host::{Action, Host};

use crate::support::{
    NODES_ONLY, Routing, answer_poll, change, key, no_news, node, nodes, only_call, owner_reply, pass, sid,
    two_vms, visit, with_sidecar,
};

#[test]
fn a_second_vm_asks_nobody_for_what_the_first_learnt() {
    let host = Host::new().unwrap();
    let (first, second) = two_vms(&host);
    let sid = sid(1);
    let stream = visit(&first, &sid);
    first.answer(only_call(&first, "/v1/owners/").token, 200, owner_reply(Some("odoo-3")));
    drop(stream);
    let stream = visit(&second, &sid);
    assert!(!stream.is_request_paused());
    assert_eq!(Routing::of(&stream), Routing::of_owner(&sid, Some("odoo-3")));
    // From now on it is in the second VM's own table.
    second.forget_hostcalls();
    drop(visit(&second, &sid));
    assert_eq!(second.hostcalls().get("proxy_get_shared_data"), None);
}

#[test]
fn changes_reach_every_vm_on_its_next_tick() {
    let host = Host::new().unwrap();
    let (first, second) = two_vms(&host);
    let sids: Vec<_> = (0..50).map(sid).collect();
    for vm in [&first, &second] {
        for sid in &sids {
            let stream = visit(vm, sid);
            for call in vm.calls_to("/v1/owners/") {
                vm.answer(call.token, 200, owner_reply(Some("odoo-1")));
            }
            drop(stream);
        }
    }
    let mut changes: Vec<_> = sids[..40].iter().map(|sid| change(sid, Some("odoo-4"), 2)).collect();
    changes.push(change(&sids[40], None, 3));
    answer_poll(&first, &WatchReply { changes, ..no_news(7, 41) });

    let routing = |vm, sid: &str| Routing::of(&visit(vm, sid));
    assert_eq!(routing(&first, &sids[0]), Routing::of_owner(&sids[0], Some("odoo-4")), "at once here");
    second.tick();
    for vm in [&first, &second] {
        for sid in &sids[..40] {
            assert_eq!(routing(vm, sid), Routing::of_owner(sid, Some("odoo-4")));
        }
        assert_eq!(routing(vm, &sids[40]), Routing::of_owner(&sids[40], None));
        for sid in &sids[41..] {
            assert_eq!(routing(vm, sid), Routing::of_owner(sid, Some("odoo-1")));
        }
        assert!(vm.calls_to("/v1/owners/").is_empty());
    }
}

#[test]
fn several_answers_between_two_ticks_are_all_applied() {
    let host = Host::new().unwrap();
    let (first, second) = two_vms(&host);
    for position in 1..=5_u64 {
        let changes =
            vec![change(&sid(position), Some("odoo-2"), 2), change(&sid(9), Some("odoo-1"), position)];
        answer_poll(&first, &WatchReply { changes, ..no_news(7, 2 * position) });
        pass(&host, &[&first], 100);
    }
    second.tick();
    for number in 1..=5 {
        assert_eq!(
            Routing::of(&visit(&second, &sid(number))),
            Routing::of_owner(&sid(number), Some("odoo-2"))
        );
    }
    assert_eq!(host.metric("mooring_table_resets").unwrap_or(0), 0);
}

/// The nodes after `odoo-2` went away, `odoo-4` went down and `odoo-5` came.
fn other_nodes() -> Membership {
    let mut list: Vec<_> = nodes().nodes().iter().filter(|n| n.id.as_str() != "odoo-2").cloned().collect();
    list[2].state = NodeState::Down;
    list.push(node("odoo-5", "127.0.0.5:8069", None, 3));
    Membership::new(list).unwrap()
}

#[test]
fn new_nodes_reach_every_vm_on_its_next_tick() {
    let host = Host::new().unwrap();
    let (first, second) = two_vms(&host);
    answer_poll(&first, &WatchReply { membership: Some(other_nodes()), ..no_news(7, 0) });
    second.tick();
    for vm in [&first, &second] {
        for number in 0..200 {
            let sid = sid(number);
            let stream = visit(vm, &sid);
            for call in vm.calls_to("/v1/owners/") {
                vm.answer(call.token, 200, owner_reply(Some("odoo-4")));
            }
            let planned =
                Routing::planned(&other_nodes(), key(&sid), Some(crate::support::seed("odoo-4")), Port::Http);
            assert_eq!(Routing::of(&stream), planned);
        }
    }
}

#[test]
fn a_vm_that_is_replaced_knows_the_nodes_and_owners() {
    let host = Host::new().unwrap();
    let (first, second) = two_vms(&host);
    answer_poll(&first, &WatchReply { membership: Some(other_nodes()), ..no_news(7, 0) });
    let sid = sid(1);
    let stream = visit(&first, &sid);
    first.answer(only_call(&first, "/v1/owners/").token, 200, owner_reply(Some("odoo-5")));
    drop((stream, first, second));

    let reborn = host.vm(with_sidecar()).unwrap();
    let stream = visit(&reborn, &sid);
    assert!(!stream.is_request_paused());
    let planned =
        Routing::planned(&other_nodes(), key(&sid), Some(crate::support::seed("odoo-5")), Port::Http);
    assert_eq!(Routing::of(&stream), planned);
    pass(&host, &[&reborn], 2_000);
    assert!(only_call(&reborn, "/v1/watch").path().contains("generation=7&position=0&"));
}

#[test]
fn filters_of_different_sidecars_share_nothing() {
    let host = Host::new().unwrap();
    let one = host.vm(with_sidecar()).unwrap();
    let other = host.vm(with_sidecar().replace("\"mooring\"", "\"other\"")).unwrap();
    let alone = host.vm(NODES_ONLY).unwrap();
    let stream = visit(&one, &sid(1));
    one.answer(only_call(&one, "/v1/owners/").token, 200, owner_reply(Some("odoo-1")));
    drop(stream);
    assert!(visit(&other, &sid(1)).is_request_paused());
    assert_eq!(Routing::of(&visit(&alone, &sid(1))), Routing::of_owner(&sid(1), None));
}

#[test]
fn rubbish_in_shared_data_is_ignored() {
    let host = Host::new().unwrap();
    let (first, second) = two_vms(&host);
    drop((first, second));
    for rubbish in [&b""[..], b"\xff", &[0xff; 47], &[0xff; 56], &[0xff; 4_800]] {
        for key in host.shared_keys() {
            host.set_shared(&key, rubbish);
        }
        let vm = host.vm(with_sidecar()).unwrap();
        vm.tick();
        let mut stream = vm.stream();
        assert_eq!(stream.request(&[(":path", "/")]), Action::Continue);
        assert!(Routing::of(&stream).upstream.is_some());
        pass(&host, &[&vm], 100);
    }
}
