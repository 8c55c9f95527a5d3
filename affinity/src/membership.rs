//! The nodes: who they are, where they listen, and whether they may be chosen.

use core::{fmt, net::SocketAddr};

use serde::{Deserialize, Deserializer, Serialize, de::Error as _};

use crate::Port;

/// The most nodes a membership holds. Ranking is linear in their number.
pub const MAX_NODES: usize = 256;
/// The greatest weight of a node.
pub const MAX_WEIGHT: u16 = 1000;

/// A node's name: 1 to 64 of `A-Z a-z 0-9 . _ -`. It keeps its identity through restarts and new
/// addresses.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct NodeId(String);

/// A name that cannot be a node's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a node id has 1 to 64 of the characters A-Z a-z 0-9 . _ -, not {0:?}")]
pub struct InvalidNodeId(String);

impl NodeId {
    /// Checks a name.
    ///
    /// # Errors
    /// If it is empty, too long, or has other characters than those above.
    pub fn new(name: impl Into<String>) -> Result<Self, InvalidNodeId> {
        let name = name.into();
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if (1..=64).contains(&name.len()) && name.bytes().all(allowed) {
            Ok(Self(name))
        } else {
            Err(InvalidNodeId(name.chars().take(80).collect()))
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// 64 bits of BLAKE3 of the name: the node's part in rendezvous hashing, and its short name in
    /// tables. Two nodes of one membership never share it.
    pub fn seed(&self) -> u64 {
        first_eight(&blake3::hash(self.0.as_bytes()))
    }
}

impl core::str::FromStr for NodeId {
    type Err = InvalidNodeId;

    fn from_str(text: &str) -> Result<Self, InvalidNodeId> {
        Self::new(text)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for NodeId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// Whether a node may be chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// Takes new sessions and keeps its own.
    #[default]
    Active,
    /// Keeps its sessions, takes no new ones.
    Draining,
    /// Gets nothing while any other node can serve.
    Down,
}

impl fmt::Display for NodeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Active => "active",
            Self::Draining => "draining",
            Self::Down => "down",
        })
    }
}

/// One Odoo server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// Its name.
    pub id: NodeId,
    /// Where its HTTP workers listen: an address and never a host name, because Envoy matches hosts
    /// by address only.
    pub http: SocketAddr,
    /// Where its gevent process listens; none means the HTTP port answers the bus as well (threaded
    /// mode, `workers = 0`).
    #[serde(default)]
    pub gevent: Option<SocketAddr>,
    /// Its share of the sessions relative to the others, 1 to [`MAX_WEIGHT`].
    #[serde(default = "one")]
    pub weight: u16,
    /// Whether it may be chosen.
    #[serde(default)]
    pub state: NodeState,
    /// Whether it has so much more than its fair share of sessions that new ones go elsewhere.
    #[serde(default)]
    pub full: bool,
    /// Whether its sidecar carries sessions: then it can serve a session whose owner is gone.
    #[serde(default)]
    pub carries: bool,
}

fn one() -> u16 {
    1
}

impl Node {
    /// The address of one of its ports.
    pub fn address(&self, port: Port) -> SocketAddr {
        match port {
            Port::Http => self.http,
            Port::Gevent => self.gevent.unwrap_or(self.http),
        }
    }
}

/// The nodes that somebody knows at one moment, in the order of their names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Membership {
    nodes: Vec<Node>,
    #[serde(skip)]
    seeds: Vec<u64>,
}

/// Why a list of nodes is no membership.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidMembership {
    /// Two nodes of one name.
    #[error("node {0} is named twice")]
    DuplicateId(NodeId),
    /// Two nodes at one address: sessions of the one would reach the other.
    #[error("nodes {0} and {1} have the same address {2}")]
    SharedAddress(NodeId, NodeId, SocketAddr),
    /// A weight out of range.
    #[error(
        "node {0} has weight {1}; a weight is 1 to {MAX_WEIGHT} (drain a node to keep new sessions away)"
    )]
    Weight(NodeId, u16),
    /// Too many nodes.
    #[error("{0} nodes; a membership holds {MAX_NODES} at most")]
    TooMany(usize),
}

impl Membership {
    /// Checks and orders a list of nodes.
    ///
    /// # Errors
    /// If the list is too long or has a name twice, an address twice, or a weight out of range.
    pub fn new(list: Vec<Node>) -> Result<Self, InvalidMembership> {
        if list.len() > MAX_NODES {
            return Err(InvalidMembership::TooMany(list.len()));
        }
        let mut members = Self::default();
        for node in list {
            members.add(node)?;
        }
        Ok(members)
    }

    /// Adds a node; on error nothing changed.
    ///
    /// # Errors
    /// As above.
    pub fn add(&mut self, mut node: Node) -> Result<(), InvalidMembership> {
        if self.nodes.len() >= MAX_NODES {
            return Err(InvalidMembership::TooMany(self.nodes.len() + 1));
        }
        // Envoy knows an IPv4 address by that form only.
        node.http = canonical(node.http);
        node.gevent = node.gevent.map(canonical);
        let seed = node.id.seed();
        if self.seeds.contains(&seed) {
            return Err(InvalidMembership::DuplicateId(node.id));
        }
        if !(1..=MAX_WEIGHT).contains(&node.weight) {
            return Err(InvalidMembership::Weight(node.id, node.weight));
        }
        for other in &self.nodes {
            let taken = [Some(other.http), other.gevent];
            let shared = [Some(node.http), node.gevent].into_iter().flatten();
            if let Some(address) = shared.into_iter().find(|address| taken.contains(&Some(*address))) {
                return Err(InvalidMembership::SharedAddress(other.id.clone(), node.id, address));
            }
        }
        let place = self.nodes.partition_point(|other| other.id < node.id);
        self.nodes.insert(place, node);
        self.seeds.insert(place, seed);
        Ok(())
    }

    /// The nodes, in the order of their names.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The nodes with their seeds ([`NodeId::seed`]).
    pub(crate) fn seeded(&self) -> impl Iterator<Item = (u64, &Node)> {
        self.seeds.iter().copied().zip(&self.nodes)
    }

    /// The place in [`Self::nodes`] of the node with this seed.
    pub fn position_of_seed(&self, seed: u64) -> Option<usize> {
        self.seeds.iter().position(|other| *other == seed)
    }

    /// A digest of everything in it: equal memberships have equal digests, on every machine.
    pub fn digest(&self) -> u64 {
        first_eight(&blake3::hash(&crate::wire::encode(self)))
    }
}

/// An IPv4 address that was written as an IPv6 one, `[::ffff:192.0.2.1]:8069`, in its own form.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        ip if ip == address.ip() => address,
        ip => SocketAddr::new(ip, address.port()),
    }
}

fn first_eight(hash: &blake3::Hash) -> u64 {
    hash.as_bytes().iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
}

impl<'de> Deserialize<'de> for Membership {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(Vec::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: &str, http: &str) -> Node {
        let (id, http) = (NodeId::new(id).unwrap(), http.parse().unwrap());
        Node { id, http, gevent: None, weight: 1, state: NodeState::Active, full: false, carries: false }
    }

    #[test]
    fn names_are_checked() {
        assert!(NodeId::new("odoo-1.example_A").is_ok());
        for bad in ["", "a b", "a/b", "ö", "a\n", &"x".repeat(65)] {
            assert!(NodeId::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn contradictions_are_refused_and_named() {
        let refused = |nodes| Membership::new(nodes).unwrap_err().to_string();
        let twice = vec![node("a", "127.0.0.1:1"), node("a", "127.0.0.1:2")];
        assert_eq!(refused(twice), "node a is named twice");
        let shared = vec![node("a", "127.0.0.1:1"), node("b", "127.0.0.1:1")];
        assert_eq!(refused(shared), "nodes a and b have the same address 127.0.0.1:1");
        let gevent = Node { gevent: "127.0.0.1:1".parse().ok(), ..node("b", "127.0.0.1:2") };
        assert!(refused(vec![node("a", "127.0.0.1:1"), gevent]).contains("same address"));
        let light = Node { weight: 0, ..node("a", "127.0.0.1:1") };
        assert!(refused(vec![light]).contains("weight 0"));
        let heavy = Node { weight: 1001, ..node("a", "127.0.0.1:1") };
        assert!(refused(vec![heavy]).contains("weight 1001"));
        let many = (0..257).map(|n| node(&format!("n{n}"), &format!("127.0.0.1:{}", n + 1))).collect();
        assert!(refused(many).contains("257 nodes"));
    }

    #[test]
    fn an_ipv4_address_has_one_form() {
        let gevent = "[::ffff:127.0.0.1]:2".parse().ok();
        let mapped = Node { gevent, ..node("a", "[::ffff:127.0.0.1]:1") };
        let plain = Node { gevent: "127.0.0.1:2".parse().ok(), ..node("a", "127.0.0.1:1") };
        let nodes = |node: &Node| Membership::new(vec![node.clone()]).unwrap();
        assert_eq!(nodes(&mapped), nodes(&plain));
        assert!(Membership::new(vec![mapped, node("b", "127.0.0.1:1")]).is_err());
        for other in ["[::1]:1", "[fe80::1%3]:1", "[64:ff9b::7f00:1]:1"] {
            assert_eq!(nodes(&node("a", other)).nodes()[0].http, other.parse().unwrap());
        }
    }

    #[test]
    fn one_port_may_serve_both() {
        let both = Node { gevent: "127.0.0.1:1".parse().ok(), ..node("a", "127.0.0.1:1") };
        assert!(Membership::new(vec![both]).is_ok());
    }

    #[test]
    fn digest_sees_every_change_and_no_order() {
        let (a, b) = (node("a", "127.0.0.1:1"), node("b", "127.0.0.1:2"));
        let digest = |nodes: &[&Node]| {
            Membership::new(nodes.iter().map(|node| (*node).clone()).collect()).unwrap().digest()
        };
        let whole = digest(&[&a, &b]);
        assert_eq!(whole, digest(&[&b, &a]));
        assert_ne!(whole, digest(&[&a]));
        for changed in [
            Node { state: NodeState::Down, ..b.clone() },
            Node { weight: 2, ..b.clone() },
            Node { gevent: "127.0.0.1:9".parse().ok(), ..b.clone() },
            Node { http: "127.0.0.1:3".parse().unwrap(), ..b.clone() },
        ] {
            assert_ne!(whole, digest(&[&a, &changed]));
        }
    }

    #[test]
    fn travels_as_a_list() {
        let text = r#"[{"id":"a","http":"127.0.0.1:1"},{"id":"b","http":"[::1]:2","gevent":"[::1]:3","weight":4,"state":"draining"}]"#;
        let membership: Membership = serde_json::from_str(text).unwrap();
        let back: Membership = serde_json::from_str(&serde_json::to_string(&membership).unwrap()).unwrap();
        assert_eq!(membership, back);
        assert_eq!(membership.nodes()[1].state, NodeState::Draining);
        assert!(serde_json::from_str::<Membership>(r#"[{"id":"a","http":"odoo:8069"}]"#).is_err());
    }
}
