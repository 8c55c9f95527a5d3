//! The registry by itself.

use super::*;

fn registry() -> Registry {
    let specs = ["a=127.0.0.1:1", "b=127.0.0.1:2"].map(|spec| spec.parse().unwrap());
    Registry::new(specs.into(), BTreeSet::new(), Thresholds { down_after: 2, up_after: 3 }, 1.25).unwrap()
}

async fn good(registry: &Registry, id: &str) -> (NodeId, Probed) {
    let spec = registry.specs().into_iter().find(|spec| spec.id.as_str() == id).unwrap();
    let node = spec.resolve(NodeState::Active).await.unwrap();
    (spec.id, Ok((node, Duration::from_millis(3))))
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
    Registered { node, condition: Condition { probe_ms: 1.0, ..Condition::default() }, age }
}

#[tokio::test]
async fn nodes_that_others_register_join_move_and_go_silent() {
    let registry = registry();
    let own = good(&registry, "a").await;
    registry.report(&own.0, own.1);
    let take_in = |nodes: Vec<Registered>, draining: &[&str]| {
        let draining = draining.iter().map(|id| NodeId::new(*id).unwrap()).collect();
        registry.take_in(Roster { nodes, draining, ..Roster::default() }, HashMap::new());
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
    assert_eq!(
        take_in(vec![registered("c", "10.0.0.4:8069", second)], &[]),
        [a, b, "c 10.0.0.4:8069 active"]
    );
    let silent = registered("c", "10.0.0.4:8069", second * 6);
    assert_eq!(
        take_in(vec![silent.clone()], &["b", "c"]),
        [a, "b 127.0.0.1:2 draining", "c 10.0.0.4:8069 down"]
    );
    // Another inherits its address, and one claims ours.
    let heir = registered("d", "10.0.0.4:8069", second);
    let thief = registered("e", "127.0.0.1:1", second);
    assert_eq!(take_in(vec![silent, heir, thief], &[]), [a, b, "d 10.0.0.4:8069 active"]);
    // A node that this sidecar probes is not believed to be elsewhere.
    assert_eq!(take_in(vec![registered("a", "10.0.0.1:1", second)], &[]), [a, b]);
    // But down, if the sidecar that carries its sessions says so: its disk may be full.
    for (age, state) in [(second, "down"), (second * 6, "active")] {
        let mut full = registered("a", "127.0.0.1:1", age);
        (full.node.state, full.node.carries) = (NodeState::Down, true);
        assert_eq!(take_in(vec![full], &[]), [format!("a 127.0.0.1:1 {state}"), b.to_owned()]);
    }
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
        let roster = Roster { loads: HashMap::from([(a.clone(), there)]), ..Roster::default() };
        registry.take_in(roster, HashMap::from([(a.clone(), here), (b.clone(), 60)]));
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
    registry.take_in(Roster::default(), HashMap::from([(a.clone(), 15)]));
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
