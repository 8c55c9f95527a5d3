//! A node serves in the owner's place.

use affinity::{
    IdProof, Membership, Node, NodeState,
    wire::{self, Claim, ClaimReply, Left, Origin, OwnerReply, WatchReply},
};
use wasm_host::{Action, Host, Stream, Vm};

use crate::support::{
    Routing, answer_poll, cookie, encoded, key, no_news, nodes, not_home, only_call, owner, owner_reply,
    pass, seed, set_cookie, sid, visit, with_sidecar,
};

/// A VM whose nodes carry sessions, but for odoo-3; some of them may be down.
fn carrying(host: &Host, down: &[&str]) -> (Vm, Membership) {
    let change = |node: &Node| {
        let state = if down.contains(&node.id.as_str()) { NodeState::Down } else { NodeState::Active };
        Node { carries: node.id.as_str() != "odoo-3", state, ..node.clone() }
    };
    let membership = Membership::new(nodes().nodes().iter().map(change).collect()).unwrap();
    let vm = host.vm(with_sidecar()).unwrap();
    vm.tick();
    answer_poll(&vm, &WatchReply { membership: Some(membership.clone()), ..no_news(7, 0) });
    pass(host, &[&vm], 100);
    (vm, membership)
}

fn claim_of(vm: &Vm) -> (u32, Claim) {
    let call = only_call(vm, "/v1/claims");
    (call.token, wire::decode(&call.body).unwrap())
}

fn of_owner(membership: &Membership, sid: &str, node: &str) -> Routing {
    Routing::planned(membership, key(sid), Some(seed(node)), affinity::Port::Http)
}

/// A session whose home under `membership` carries sessions, and its owner, which is not that.
fn session(membership: &Membership, owner: &str) -> (String, String) {
    let home = |sid: &str| {
        let place = affinity::plan::plan(membership, key(sid), Some(seed(owner))).places[0];
        membership.nodes()[place].id.to_string()
    };
    let sid = (0..).map(sid).find(|sid| home(sid) != "odoo-3").unwrap();
    let standby = home(&sid);
    (sid, standby)
}

#[test]
fn a_session_whose_owner_is_down_is_claimed_before_its_request_goes_on() {
    let host = Host::new().unwrap();
    let (vm, membership) = carrying(&host, &["odoo-1"]);
    let (sid, standby) = session(&membership, "odoo-1");
    let stream = visit(&vm, &sid);
    vm.answer(only_call(&vm, "/v1/owners/").token, 200, owner_reply(Some("odoo-1")));
    assert!(stream.is_request_paused(), "its file may not be there yet");
    let (token, claim) = claim_of(&vm);
    assert_eq!((claim.node.as_str(), claim.expect, claim.origin), (&*standby, 1, Origin::Failover));
    vm.answer(token, 200, wire::encode(&ClaimReply { granted: true, owner: owner(&standby, 2) }));
    assert!(!stream.is_request_paused());
    assert_eq!(Routing::of(&stream), of_owner(&membership, &sid, &standby));
    // The next one knows.
    assert_eq!(Routing::of(&visit(&vm, &sid)), of_owner(&membership, &sid, &standby));
    assert!(vm.calls_to("/v1/claims").is_empty());
}

#[test]
fn without_an_answer_the_request_goes_to_the_standby_all_the_same() {
    let host = Host::new().unwrap();
    let (vm, membership) = carrying(&host, &["odoo-1"]);
    let (sid, standby) = session(&membership, "odoo-1");
    let stream = visit(&vm, &sid);
    vm.answer(only_call(&vm, "/v1/owners/").token, 200, owner_reply(Some("odoo-1")));
    vm.answer(claim_of(&vm).0, 503, Vec::new());
    assert!(!stream.is_request_paused());
    let first = Routing::of(&stream).upstream;
    assert_eq!(first, of_owner(&membership, &sid, &standby).upstream);
}

#[test]
fn where_all_are_down_the_owner_comes_first_and_nothing_is_claimed() {
    let host = Host::new().unwrap();
    let (vm, membership) = carrying(&host, &["odoo-1", "odoo-2", "odoo-3", "odoo-4"]);
    for node in ["odoo-1", "odoo-2", "odoo-4"] {
        let sid = (0..).map(sid).find(|sid| not_home(sid) == node || node == "odoo-4").unwrap();
        let stream = visit(&vm, &sid);
        let reply = wire::encode(&OwnerReply { owner: Some(owner(node, 1)), believe_s: 0 });
        vm.answer(only_call(&vm, "/v1/owners/").token, 200, reply);
        assert!(!stream.is_request_paused() && vm.calls_to("/v1/claims").is_empty());
        let of_node = membership.nodes().iter().find(|it| it.id.as_str() == node).unwrap();
        assert_eq!(Routing::of(&stream).upstream, Some(encoded(&of_node.http.to_string())), "{node}");
    }
}

/// A request of a session that odoo-2 owns, answered by another node.
fn answered_by(vm: &Vm, sid: &str, address: &str, set: Option<&str>) -> (Stream, Action) {
    let mut stream = visit(vm, sid);
    vm.answer(only_call(vm, "/v1/owners/").token, 200, owner_reply(Some("odoo-2")));
    let upstream = encoded(address);
    let mut headers = vec![(":status", "200"), ("x-mooring-upstream", upstream.as_str())];
    headers.extend(set.map(|cookie| ("set-cookie", cookie)));
    let action = stream.response(&headers);
    (stream, action)
}

#[test]
fn who_served_in_the_owner_s_place_claims_the_session_if_it_carries() {
    let host = Host::new().unwrap();
    let (vm, _) = carrying(&host, &[]);
    let (stream, action) = answered_by(&vm, &sid(1), "127.0.0.4:8069", None);
    assert_eq!(action, Action::Pause);
    let (token, claim) = claim_of(&vm);
    assert_eq!((claim.node.as_str(), claim.expect, claim.origin), ("odoo-4", 1, Origin::Failover));
    vm.answer(token, 200, wire::encode(&ClaimReply { granted: true, owner: owner("odoo-4", 2) }));
    assert!(!stream.is_response_paused());
    let (_stream, action) = answered_by(&vm, &sid(2), "[::1]:8069", None);
    assert_eq!(action, Action::Continue, "where sessions are not carried it would be lost there");
    assert!(vm.calls_to("/v1/claims").is_empty());
}

#[test]
fn a_login_says_which_session_was_left() {
    let host = Host::new().unwrap();
    let (vm, _) = carrying(&host, &[]);
    let (before, after) = (sid(1), sid(2));
    let mut stream = visit(&vm, &before);
    vm.answer(only_call(&vm, "/v1/owners/").token, 200, owner_reply(Some(not_home(&before))));
    assert_eq!(stream.response(&[(":status", "303"), ("set-cookie", &set_cookie(&after))]), Action::Pause);
    let (_, claim) = claim_of(&vm);
    let left = Some(Left { key: key(&before), proof: IdProof::of_session_id(before.as_bytes()) });
    assert_eq!((claim.key, claim.origin), (key(&after), Origin::Entry { left, posted: false }));
}

/// What Odoo takes for no id, or for another one, shows that nobody holds the session.
#[test]
fn a_session_is_left_by_its_whole_id_only() {
    let host = Host::new().unwrap();
    let (vm, _) = carrying(&host, &[]);
    let before = sid(1);
    let whole = IdProof::of_session_id(before.as_bytes());
    let mut others = (10..).map(sid);
    let mut left_by = |cookies: &[&str]| {
        let after = others.next().unwrap();
        let mut stream = vm.stream();
        let cookies = cookies.iter().map(|cookie| ("cookie", *cookie));
        let headers: Vec<_> = [(":method", "GET"), (":path", "/web")].into_iter().chain(cookies).collect();
        if stream.request(&headers) == Action::Pause {
            vm.answer(only_call(&vm, "/v1/owners/").token, 200, owner_reply(None));
        }
        stream.response(&[(":status", "303"), ("set-cookie", &set_cookie(&after))]);
        let (token, claim) = claim_of(&vm);
        let left = match claim.origin {
            Origin::Entry { left, .. } => left,
            _ => None,
        };
        let owner = owner(claim.node.as_str(), 1);
        vm.answer(token, 200, wire::encode(&ClaimReply { granted: true, owner }));
        left.filter(|left| left.proof == whole)
    };
    let line = |sid: &str| format!("session_id={sid}");
    assert!(left_by(&[&cookie(&before)]).is_some_and(|left| left.key == key(&before)));
    assert_eq!(left_by(&[&line(&before[..42])]), None, "half of it");
    assert_eq!(left_by(&[&line(&format!("{}{}", &before[..42], "!".repeat(42)))]), None, "a made-up end");
    assert_eq!(left_by(&[&line(&before), &line(&sid(3))]), None, "two headers, which Odoo joins");
    assert_eq!(left_by(&[&line(&before), "tz=UTC"]), None, "two headers of which one has it");
    assert_eq!(left_by(&[&line(&"x".repeat(5_000))]), None, "too long for an id");
}
