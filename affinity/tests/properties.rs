//! What rendezvous hashing and bounded load promise, over many keys, natively and in wasm.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use affinity::{
    Membership, Node, NodeId, NodeState, SessionKey,
    bounded::{capacity, has_room},
    membership::MAX_NODES,
    rendezvous::ranking,
};
#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

fn key(number: u64) -> SessionKey {
    SessionKey::of_session_id(&number.to_be_bytes())
}

fn nodes(weights: &[u16]) -> Vec<Node> {
    let node = |(place, weight): (usize, &u16)| Node {
        id: NodeId::new(format!("odoo-{place}")).unwrap(),
        http: ([127, 0, 0, 1], 8000 + place as u16).into(),
        gevent: None,
        weight: *weight,
        state: NodeState::Active,
        full: false,
        carries: false,
    };
    weights.iter().enumerate().map(node).collect()
}

fn home(key: SessionKey, membership: &Membership) -> &NodeId {
    &membership.nodes()[ranking::<MAX_NODES>(key, membership, |_| true)[0]].id
}

/// For two memberships: how many of `keys` have another home, and from where to where they moved.
fn moves(keys: u64, before: &[Node], after: &[Node]) -> Vec<(NodeId, NodeId)> {
    let [before, after] = [before, after].map(|nodes| Membership::new(nodes.to_vec()).unwrap());
    (0..keys)
        .map(|number| (home(key(number), &before).clone(), home(key(number), &after).clone()))
        .filter(|(from, to)| from != to)
        .collect()
}

#[test]
fn removing_a_node_moves_only_its_own_keys() {
    for count in [2, 3, 5, 12] {
        let all = nodes(&vec![1; count]);
        for gone in 0..count.min(3) {
            let mut rest = all.clone();
            let removed = rest.remove(gone);
            let moved = moves(20_000, &all, &rest);
            assert!(moved.iter().all(|(from, _)| *from == removed.id));
            let share = moved.len() as f64 / 20_000.0 * count as f64;
            assert!((0.9..1.1).contains(&share), "{count} nodes: {share} of a fair share moved");
        }
    }
}

#[test]
fn adding_a_node_moves_its_share_and_only_to_it() {
    for count in [1, 3, 5, 12] {
        let all = nodes(&vec![1; count + 1]);
        let moved = moves(20_000, &all[..count], &all);
        assert!(moved.iter().all(|(_, to)| *to == all[count].id));
        let share = moved.len() as f64 / 20_000.0 * (count + 1) as f64;
        assert!((0.9..1.1).contains(&share), "{count} nodes: {share} of a fair share moved");
    }
}

#[test]
fn changing_a_weight_moves_keys_to_or_from_that_node_only() {
    let light = nodes(&[1, 1, 1, 1]);
    let heavy = nodes(&[1, 3, 1, 1]);
    assert!(moves(20_000, &light, &heavy).iter().all(|(_, to)| *to == light[1].id));
    assert!(moves(20_000, &heavy, &light).iter().all(|(from, _)| *from == light[1].id));
}

#[test]
fn weights_are_met_within_one_percent_at_a_million_keys() {
    let weights = [1, 2, 3, 4];
    let membership = Membership::new(nodes(&weights)).unwrap();
    let mut counts = [0_u32; 4];
    for number in 0..1_000_000 {
        counts[ranking::<MAX_NODES>(key(number), &membership, |_| true)[0]] += 1;
    }
    for (count, weight) in counts.iter().zip(weights) {
        let ratio = f64::from(*count) / (1_000_000.0 * f64::from(weight) / 10.0);
        assert!((ratio - 1.0).abs() < 0.01, "weight {weight} has {ratio} of its share");
    }
}

#[test]
fn the_order_of_the_list_is_irrelevant() {
    let forward = nodes(&[1, 2, 3, 4, 5, 6, 7]);
    let mut other = forward.clone();
    for rotation in 0..7 {
        other.rotate_left(rotation);
        other.swap(0, 3);
        assert_eq!(moves(2_000, &forward, &other), []);
    }
}

#[test]
fn standbys_are_spread_over_the_other_nodes() {
    let membership = Membership::new(nodes(&[1, 1, 1, 1])).unwrap();
    let mut standbys = [0_u32; 4];
    let mut homes = 0;
    for number in 0..40_000 {
        let order = ranking::<MAX_NODES>(key(number), &membership, |_| true);
        if order[0] == 0 {
            homes += 1;
            standbys[order[1]] += 1;
        }
    }
    for standby in &standbys[1..] {
        let ratio = f64::from(*standby) / f64::from(homes) * 3.0;
        assert!((0.93..1.07).contains(&ratio), "{ratio} of a fair share");
    }
}

#[test]
fn bounded_load_keeps_every_node_under_its_capacity() {
    for (weights, factor) in [(vec![1; 5], 1.25), (vec![1, 2, 4], 1.25), (vec![1; 3], 1.0), (vec![3, 1], 2.0)]
    {
        let membership = Membership::new(nodes(&weights)).unwrap();
        let mut loads: Vec<(u64, u16)> = weights.iter().map(|weight| (0, *weight)).collect();
        let total_weight = weights.iter().map(|weight| u32::from(*weight)).sum();
        for number in 0..5_000_u64 {
            let order = ranking::<MAX_NODES>(key(number), &membership, |_| true);
            let has_room = |place: &&usize| {
                let (sessions, weight) = loads[**place];
                has_room(sessions, number, weight, total_weight, factor)
            };
            let place = *order.iter().find(has_room).expect("no factor of 1 or more leaves all full");
            loads[place].0 += 1;
            let cap = capacity(number + 1, loads[place].1, total_weight, factor);
            assert!(loads[place].0 <= cap, "{loads:?} over {cap} at {factor}");
        }
    }
}

#[test]
fn a_node_is_full_only_beyond_its_share() {
    assert!(has_room(10, 30, 1, 3, 1.25));
    assert!(!has_room(50, 70, 1, 3, 1.25));
    assert!(has_room(50, 70, 4, 6, 1.25), "it weighs more");
}
