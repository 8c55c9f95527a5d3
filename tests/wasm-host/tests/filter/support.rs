//! What the topics have in common: nodes, sessions, what the filter ought to write, and a sidecar.

use std::collections::BTreeMap;

use affinity::{
    Membership, Node, NodeId, NodeState, Port, SessionKey,
    plan::plan,
    wire::{self, Change, Claim, ClaimReply, Cursor, Owner, OwnerReply, WatchReply},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use wasm_host::{Call, Host, Stream, Vm};

pub(crate) const NODES_ONLY: &str = r#"{
    "nodes": [
        {"id": "odoo-1", "http": "127.0.0.1:8069", "gevent": "127.0.0.1:8072"},
        {"id": "odoo-2", "http": "127.0.0.2:8069", "gevent": "127.0.0.2:8072", "weight": 2},
        {"id": "odoo-3", "http": "[::1]:8069"},
        {"id": "odoo-4", "http": "127.0.0.4:8069", "gevent": "127.0.0.4:8072"}
    ]
}"#;

/// The same nodes, and a sidecar in the cluster `mooring`.
pub(crate) fn with_sidecar() -> String {
    NODES_ONLY.replacen('{', r#"{"sidecar_cluster": "mooring", "sidecar_timeout_ms": 200,"#, 1)
}

pub(crate) fn node(id: &str, http: &str, gevent: Option<&str>, weight: u16) -> Node {
    Node {
        id: NodeId::new(id).unwrap(),
        http: http.parse().unwrap(),
        gevent: gevent.map(|address| address.parse().unwrap()),
        weight,
        state: NodeState::Active,
        full: false,
        carries: false,
    }
}

/// The nodes of [`NODES_ONLY`].
pub(crate) fn nodes() -> Membership {
    Membership::new(vec![
        node("odoo-1", "127.0.0.1:8069", Some("127.0.0.1:8072"), 1),
        node("odoo-2", "127.0.0.2:8069", Some("127.0.0.2:8072"), 2),
        node("odoo-3", "[::1]:8069", None, 1),
        node("odoo-4", "127.0.0.4:8069", Some("127.0.0.4:8072"), 1),
    ])
    .unwrap()
}

/// A session id as Odoo 18 makes them.
pub(crate) fn sid(number: u64) -> String {
    format!("{number:042}{}", "x".repeat(42))
}

pub(crate) fn cookie(sid: &str) -> String {
    format!("frontend_lang=en_US; session_id={sid}; tz=Europe/Brussels")
}

pub(crate) fn set_cookie(sid: &str) -> String {
    format!("session_id={sid}; Expires=Thu, 01 Jan 2026 00:00:00 GMT; HttpOnly; Path=/")
}

pub(crate) fn key(sid: &str) -> SessionKey {
    SessionKey::of_session_id(sid.as_bytes())
}

pub(crate) fn seed(node: &str) -> u64 {
    NodeId::new(node).unwrap().seed()
}

/// As `stateful_session` reads and writes an address.
pub(crate) fn encoded(address: &str) -> String {
    STANDARD.encode(address)
}

/// The two routing headers.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Routing {
    pub(crate) upstream: Option<String>,
    pub(crate) next: Option<String>,
}

impl Routing {
    /// What the filter wrote.
    pub(crate) fn of(stream: &Stream) -> Self {
        Self {
            upstream: stream.request_header("x-mooring-upstream"),
            next: stream.request_header("x-mooring-next"),
        }
    }

    /// What `affinity`, compiled for this machine, plans.
    pub(crate) fn planned(nodes: &Membership, key: SessionKey, owner: Option<u64>, port: Port) -> Self {
        let places = plan(nodes, key, owner).places;
        let addresses: Vec<_> =
            places.iter().map(|place| nodes.nodes()[*place].address(port).to_string()).collect();
        let next = addresses.get(1..).unwrap_or_default().join(",");
        Self {
            upstream: addresses.first().map(|address| encoded(address)),
            next: Some(next).filter(|next| !next.is_empty()),
        }
    }

    /// The plan for a session on the HTTP port.
    pub(crate) fn of_owner(sid: &str, owner: Option<&str>) -> Self {
        Self::planned(&nodes(), key(sid), owner.map(seed), Port::Http)
    }
}

/// The node at home in [`nodes`] for a session.
pub(crate) fn home(sid: &str) -> String {
    let nodes = nodes();
    let place = plan(&nodes, key(sid), None).places[0];
    nodes.nodes()[place].id.to_string()
}

/// A node of [`nodes`] where the session is not at home.
pub(crate) fn not_home(sid: &str) -> &'static str {
    ["odoo-1", "odoo-2"].into_iter().find(|node| *node != home(sid)).unwrap()
}

/// Sends a request of a session; it may wait.
pub(crate) fn visit(vm: &Vm, sid: &str) -> Stream {
    let mut stream = vm.stream();
    stream.request(&[(":method", "GET"), (":path", "/web"), ("cookie", &cookie(sid))]);
    stream
}

pub(crate) fn owner(node: &str, epoch: u64) -> Owner {
    Owner { node: NodeId::new(node).unwrap(), epoch }
}

pub(crate) fn owner_reply(node: Option<&str>) -> Vec<u8> {
    wire::encode(&OwnerReply { owner: node.map(|node| owner(node, 1)), believe_s: 3_600 })
}

pub(crate) fn change(sid: &str, node: Option<&str>, epoch: u64) -> Change {
    Change { key: key(sid), owner: node.map(|node| owner(node, epoch)) }
}

/// An answer to the long poll without anything new.
pub(crate) fn no_news(generation: u64, position: u64) -> WatchReply {
    WatchReply { cursor: Cursor { generation, position }, reset: false, changes: vec![], membership: None }
}

/// The only call to a path, which must be there.
pub(crate) fn only_call(vm: &Vm, path: &str) -> Call {
    let mut calls = vm.calls_to(path);
    assert_eq!(calls.len(), 1, "calls to {path}: {calls:?}");
    calls.remove(0)
}

/// Answers the long poll that is under way.
pub(crate) fn answer_poll(vm: &Vm, reply: &WatchReply) {
    vm.answer(only_call(vm, "/v1/watch").token, 200, wire::encode(reply));
}

/// Two VMs of one Envoy that have begun to follow the sidecar; the first polls.
pub(crate) fn two_vms(host: &Host) -> (Vm, Vm) {
    let (first, second) = (host.vm(with_sidecar()).unwrap(), host.vm(with_sidecar()).unwrap());
    first.tick();
    second.tick();
    answer_poll(&first, &WatchReply { membership: Some(nodes()), ..no_news(7, 0) });
    pass(host, &[&first, &second], 100);
    (first, second)
}

/// Lets time pass and all VMs tick.
pub(crate) fn pass(host: &Host, vms: &[&Vm], milliseconds: u64) {
    host.advance_ms(milliseconds);
    vms.iter().for_each(|vm| vm.tick());
}

/// A sidecar that knows owners and answers at once.
#[derive(Default)]
pub(crate) struct Sidecar {
    pub(crate) owners: BTreeMap<SessionKey, Owner>,
}

impl Sidecar {
    /// Answers look-ups and claims; the long poll stays open.
    pub(crate) fn answer_all(&mut self, vm: &Vm) {
        for call in vm.calls() {
            let body = match call.path().strip_prefix("/v1/owners/") {
                Some(key) => {
                    let owner = self.owners.get(&key.parse().unwrap()).cloned();
                    wire::encode(&OwnerReply { owner, believe_s: 3_600 })
                }
                None if call.path() == "/v1/claims" => wire::encode(&self.claim(&call.body)),
                None => continue,
            };
            vm.answer(call.token, 200, body);
        }
    }

    fn claim(&mut self, body: &[u8]) -> ClaimReply {
        let claim: Claim = wire::decode(body).expect("the filter sends claims");
        let granted = !self.owners.contains_key(&claim.key);
        let owner = self.owners.entry(claim.key).or_insert(Owner { node: claim.node, epoch: 1 });
        ClaimReply { granted, owner: owner.clone() }
    }
}
