//! The registry by itself.

use super::*;
use crate::store::Registered;

fn registry() -> Registry {
    let specs = ["a=127.0.0.1:1", "b=127.0.0.1:2"].map(|spec| spec.parse().unwrap());
    Registry::new(specs.into(), BTreeSet::new(), Thresholds { down_after: 2, up_after: 3 }, 1.25).unwrap()
}

async fn good(registry: &Registry, id: &str) -> (NodeId, Probed) {
    let spec = registry.specs().into_iter().find(|spec| spec.id.as_str() == id).unwrap();
    let node = spec.resolve(NodeState::Active).await.unwrap();
    (spec.id, Ok(Found { node, latency: Duration::from_millis(3), doubt: None }))
}

fn states(registry: &Registry) -> Vec<NodeState> {
    registry.membership().borrow().nodes().iter().map(|node| node.state).collect()
}

#[tokio::test]
async fn a_state_changes_after_enough_probes() {
    let registry = registry();
    let bad = || Err("refused".to_owned());
    for id in ["a", "b"] {
        assert!(!registry.is_settled());
        let (id, probed) = good(&registry, id).await;
        registry.report(&id, probed);
    }
    assert!(registry.is_settled());
    let a = NodeId::new("a").unwrap();
    registry.report(&a, bad());
    assert_eq!(states(&registry), [NodeState::Active, NodeState::Active], "once is an accident");
    registry.report(&a, bad());
    assert_eq!(states(&registry), [NodeState::Down, NodeState::Active]);
    assert_eq!(registry.reports()[0].problem.as_deref(), Some("refused"));
    for expected in [NodeState::Down, NodeState::Down, NodeState::Active] {
        let (id, probed) = good(&registry, "a").await;
        registry.report(&id, probed);
        assert_eq!(states(&registry), [expected, NodeState::Active]);
    }
}

#[tokio::test]
async fn a_first_probe_that_fails_moves_nobody() {
    let registry = registry();
    let a = NodeId::new("a").unwrap();
    let (b, probed) = good(&registry, "b").await;
    registry.report(&b, probed);
    registry.report(&a, Err("refused".into()));
    assert_eq!(states(&registry), [NodeState::Active, NodeState::Active]);
    assert!(!registry.is_settled());
    registry.report(&a, Err("refused".into()));
    assert_eq!(states(&registry), [NodeState::Down, NodeState::Active]);
    assert!(registry.is_settled());
}

fn registered(id: &str, address: &str, age: Duration) -> Registered {
    let node = Node {
        id: NodeId::new(id).unwrap(),
        http: address.parse().unwrap(),
        gevent: None,
        weight: 1,
        state: NodeState::Active,
        full: false,
        carries: false,
    };
    let condition = Condition { probe_ms: 1.0, ..Condition::default() };
    Registered { node, condition, beat: rand::random(), age }
}

fn id(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

#[tokio::test]
async fn nodes_that_others_register_join_move_and_go_silent() {
    let registry = registry();
    let own = good(&registry, "a").await;
    registry.report(&own.0, own.1);
    let take_in = |nodes: Vec<Registered>, draining: &[&str]| {
        let drains = draining.iter().map(|name| (id(name), Drain { draining: true, said: 1 })).collect();
        registry.take_in(Roster { nodes, drains, ..Roster::default() }, &Told::default());
        let membership = registry.membership().borrow().clone();
        let nodes = membership.nodes().iter();
        nodes.map(|node| format!("{} {} {}", node.id, node.http, node.state)).collect::<Vec<_>>()
    };
    let second = Duration::from_secs(1);
    let (a, b) = ("a 127.0.0.1:1 active", "b 127.0.0.1:2 active");
    assert_eq!(
        take_in(vec![registered("c", "10.0.0.3:8069", second)], &[]),
        [a, b, "c 10.0.0.3:8069 active"]
    );
    let c = "c 10.0.0.4:8069 active";
    assert_eq!(take_in(vec![registered("c", "10.0.0.4:8069", second)], &[]), [a, b, c]);
    let silent = registered("d", "10.0.0.5:8069", second * 6);
    let b = "b 127.0.0.1:2 draining";
    assert_eq!(take_in(vec![silent], &["b", "d"]), [a, b, c, "d 10.0.0.5:8069 down"]);
    // Another inherits its address, and one claims ours.
    let heir = registered("e", "10.0.0.5:8069", second);
    let thief = registered("f", "127.0.0.1:1", second);
    assert_eq!(take_in(vec![heir, thief], &[]), [a, b, c, "e 10.0.0.5:8069 active"]);
    let problem = |name: &str| {
        let reports = registry.reports();
        reports.into_iter().find(|report| report.id.as_str() == name).and_then(|report| report.problem)
    };
    assert_eq!(problem("d").as_deref(), Some("its sidecar was last heard of 6 s ago"));
    assert_eq!(problem("f").as_deref(), Some("nodes a and f have the same address 127.0.0.1:1"));
    // A node that this sidecar probes is not believed to be elsewhere.
    let elsewhere = registered("a", "10.0.0.1:1", second);
    assert_eq!(take_in(vec![elsewhere], &[])[..2], [a, b]);
    // But down, if the sidecar that carries its sessions says so: its disk may be full.
    let mut full = registered("a", "127.0.0.1:1", second);
    (full.node.state, full.node.carries) = (NodeState::Down, true);
    assert_eq!(take_in(vec![full], &[])[..2], ["a 127.0.0.1:1 down", b]);
    assert_eq!(registry.knows("c"), Some(true));
    assert_eq!((registry.knows("z"), registry.knows("\u{1b}")), (Some(false), Some(false)));
}

#[test]
fn what_an_operator_said_last_holds_whatever_the_store_has() {
    let registry = registry();
    assert_eq!(registry.knows("z"), None, "nobody has heard of the store yet");
    let word = |draining, said| Drain { draining, said };
    let take_in = |of_b: Option<Drain>| {
        let drains = of_b.map(|word| (id("b"), word)).into_iter().collect();
        let lost = registry.take_in(Roster { drains, ..Roster::default() }, &Told::default());
        let state = registry.reports()[1].state;
        (lost, state)
    };
    assert_eq!(take_in(None), (vec![], NodeState::Active));
    // Said here, and lost before it was ever read.
    registry.hear_drain(&id("b"), word(true, 10));
    assert_eq!(take_in(None), (vec![(id("b"), word(true, 10))], NodeState::Draining));
    assert_eq!(take_in(Some(word(false, 5))).0, [(id("b"), word(true, 10))], "a store of before");
    assert_eq!(take_in(Some(word(true, 10))), (vec![], NodeState::Draining));
    // Undrained elsewhere, later.
    assert_eq!(take_in(Some(word(false, 11))), (vec![], NodeState::Active));
    assert_eq!(take_in(Some(word(true, 10))), (vec![], NodeState::Active), "a store of before");
    assert_eq!(take_in(None), (vec![], NodeState::Active), "nothing is to be put back");
    // The next word is later than all that was heard, however clocks go.
    assert_eq!(registry.next_word(&id("b"), true, 7), word(true, 12));
    assert_eq!(registry.next_word(&id("b"), true, 700), word(true, 700));
}

#[tokio::test]
async fn a_name_that_fails_for_long_is_told_and_gives_its_address_to_who_is_found_there() {
    let registry = registry();
    let probe = async |name: &str, address: &str, doubted: bool| {
        let (id, probed) = good(&registry, name).await;
        let doubt = doubted.then(|| "nobody knows its name".to_owned());
        let http = address.parse().unwrap();
        registry.report(&id, probed.map(|found| Found { node: Node { http, ..found.node }, doubt, ..found }));
    };
    probe("b", "127.0.0.1:2", false).await;
    probe("a", "127.0.0.1:1", true).await;
    assert_eq!(registry.reports()[0].problem, None, "once is an accident");
    probe("a", "127.0.0.1:1", true).await;
    let report = registry.reports().remove(0);
    assert_eq!((report.state, report.problem.as_deref()), (NodeState::Active, Some("nobody knows its name")));
    probe("b", "127.0.0.1:1", false).await;
    let members = registry.membership().borrow().clone();
    assert_eq!(members.nodes().iter().map(|node| node.id.as_str()).collect::<Vec<_>>(), ["b"]);
    assert!(registry.reports()[0].problem.as_ref().is_some_and(|problem| problem.contains("same address")));
    probe("a", "127.0.0.1:3", false).await;
    assert_eq!(registry.reports()[0].problem, None);
    assert_eq!(states(&registry), [NodeState::Active, NodeState::Active]);
}

#[tokio::test]
async fn a_node_with_too_many_sessions_is_full() {
    let registry = registry();
    for id in ["a", "b"] {
        let (id, probed) = good(&registry, id).await;
        registry.report(&id, probed);
    }
    let full = || {
        let membership = registry.membership().borrow().clone();
        membership.nodes().iter().map(|node| node.full).collect::<Vec<_>>()
    };
    let [a, b] = ["a", "b"].map(|id| NodeId::new(id).unwrap());
    let counted = |here: u64, there: u64| {
        let told = |loads: HashMap<NodeId, u64>| Told { loads, ..Told::default() };
        let others = vec![told(HashMap::from([(a.clone(), there)]))];
        let own = told(HashMap::from([(a.clone(), here), (b.clone(), 60)]));
        registry.take_in(Roster { others, ..Roster::default() }, &own);
    };
    counted(50, 10);
    assert_eq!(full(), [false, false]);
    counted(60, 60);
    assert_eq!(full(), [true, false], "120 of 180 are more than 1.25 times 90");
    counted(50, 10);
    // It fills between two counts: 102 of 162 are 1.25 times what is fair, with one more in mind.
    (0..41).for_each(|_| registry.begun(&a));
    assert_eq!(full(), [false, false]);
    registry.begun(&a);
    assert_eq!(full(), [true, false]);
    let own = Told { loads: HashMap::from([(a.clone(), 15)]), ..Told::default() };
    registry.take_in(Roster::default(), &own);
    assert_eq!(full(), [false, false], "there is little to share out");
}

#[test]
fn a_name_twice_is_refused() {
    let specs = ["a=127.0.0.1:1", "a=127.0.0.1:2"].map(|spec| spec.parse().unwrap());
    let refused =
        Registry::new(specs.into(), BTreeSet::new(), Thresholds { down_after: 1, up_after: 1 }, 1.25);
    assert_eq!(refused.err().map(|error| error.to_string()).as_deref(), Some("node a is named twice"));
}

#[test]
fn an_address_twice_is_refused() {
    let new = |specs: [&str; 2]| {
        let specs = specs.map(|spec| spec.parse().unwrap());
        Registry::new(specs.into(), BTreeSet::new(), Thresholds { down_after: 1, up_after: 1 }, 1.25)
    };
    let refused = new(["a=127.0.0.1:1", "b=127.0.0.1:2,gevent=127.0.0.1:1"]);
    let problem = refused.err().map(|error| error.to_string());
    assert_eq!(problem.as_deref(), Some("nodes a and b have the same address 127.0.0.1:1"));
    assert!(new(["a=odoo:1", "b=odoo:1"]).is_ok(), "where names lead may change");
}
