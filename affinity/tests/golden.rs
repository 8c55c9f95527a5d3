//! Native code and wasm must give the keys and owners that an independent implementation gives.
//! `testdata/golden.py` writes the vectors.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::net::IpAddr;

use affinity::{Membership, Node, NodeId, NodeState, SessionKey, membership::MAX_NODES, rendezvous::ranking};
use serde::Deserialize;
#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

#[derive(Deserialize)]
struct Golden {
    session_keys: Vec<SidVector>,
    address_keys: Vec<AddressVector>,
    rankings: Vec<RankingVector>,
}

#[derive(Deserialize)]
struct SidVector {
    sid_hex: String,
    key: SessionKey,
}

#[derive(Deserialize)]
struct AddressVector {
    address: IpAddr,
    ipv6_prefix: u8,
    key: SessionKey,
}

#[derive(Deserialize)]
struct RankingVector {
    key: SessionKey,
    nodes: Vec<WeightedNode>,
    ranking: Vec<String>,
}

#[derive(Deserialize)]
struct WeightedNode {
    id: NodeId,
    weight: u16,
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("../testdata/golden.json")).unwrap()
}

fn hex_bytes(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

#[test]
fn session_keys() {
    let vectors = golden().session_keys;
    assert!(vectors.len() > 20);
    for vector in vectors {
        let sid = hex_bytes(&vector.sid_hex);
        assert_eq!(SessionKey::of_session_id(&sid), vector.key, "{}", vector.sid_hex);
    }
}

#[test]
fn address_keys() {
    let vectors = golden().address_keys;
    assert!(vectors.len() > 5);
    for vector in vectors {
        let key = SessionKey::of_address(vector.address, vector.ipv6_prefix);
        assert_eq!(key, vector.key, "{}/{}", vector.address, vector.ipv6_prefix);
    }
}

#[test]
fn rankings() {
    let vectors = golden().rankings;
    assert!(vectors.len() > 40);
    for vector in vectors {
        let nodes = vector.nodes.into_iter().enumerate().map(|(port, node)| Node {
            id: node.id,
            http: ([127, 0, 0, 1], 8000 + port as u16).into(),
            gevent: None,
            weight: node.weight,
            state: NodeState::Active,
            full: false,
            carries: false,
        });
        let membership = Membership::new(nodes.collect()).unwrap();
        let ids: Vec<_> = ranking::<MAX_NODES>(vector.key, &membership, |_| true)
            .into_iter()
            .map(|place| membership.nodes()[place].id.to_string())
            .collect();
        assert_eq!(ids, vector.ranking, "{}", vector.key);
    }
}
