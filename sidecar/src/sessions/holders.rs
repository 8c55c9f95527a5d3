//! Which nodes have a session's copy.

use affinity::{Membership, Node, NodeId, NodeState, SessionKey, plan::plan};

use super::{carrier::Carrier, memory::Known};

/// How many nodes hold a session: its owner and its standby.
const HOLDERS: usize = 2;

/// The nodes that have a session's copy: its owner and its standby, as far as they carry sessions.
pub(crate) fn holders(
    membership: &Membership,
    key: SessionKey,
    owner: &NodeId,
) -> impl Iterator<Item = NodeId> {
    let places = plan(membership, key, Some(owner.seed())).places;
    let nodes = places.into_iter().take(HOLDERS).filter_map(|place| membership.nodes().get(place));
    nodes.filter(|node| node.carries).map(|node| node.id.clone())
}

impl Carrier {
    /// Whether the node is to publish what a store without a memory should have: the owner comes first.
    pub(super) fn may_refill(&self, key: SessionKey, known: Option<&Known>) -> bool {
        match known {
            Some(known) => known.owned,
            // Found on the disk by a process that just began: others may have it too, and its home's turn is
            // first.
            None => {
                let membership = self.membership.borrow();
                let home = plan(&membership, key, None).places.first().copied();
                home.and_then(|place| membership.nodes().get(place)).is_none_or(|node| node.id == self.node)
            }
        }
    }

    /// Whether the node is one that has the copy of a session with this owner. While it is down it keeps
    /// what it has and takes what is new, as if it were up: others stand by for it, but a node that only
    /// restarts must have everything when it is back.
    pub(super) fn holds(&self, key: SessionKey, owner: &NodeId) -> bool {
        let membership = self.membership.borrow().clone();
        let is_down = |node: &Node| node.id == self.node && node.state == NodeState::Down;
        if !membership.nodes().iter().any(is_down) {
            return holders(&membership, key, owner).any(|id| id == self.node);
        }
        let nodes = membership.nodes().iter().map(|node| {
            let state = if is_down(node) { NodeState::Active } else { node.state };
            Node { state, ..node.clone() }
        });
        Membership::new(nodes.collect()).is_ok_and(|up| holders(&up, key, owner).any(|id| id == self.node))
    }
}
