//! A session's copy in the store, beside its owner.

use std::collections::BTreeMap;

use affinity::{IdProof, NodeId, SessionKey, wire::Owner};
use serde::{Deserialize, Serialize};

/// What the store knows of a session that is carried from node to node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Copy {
    pub(crate) owner: Owner,
    /// How often a copy was published; 0: never yet.
    pub(crate) version: u64,
    /// Tells copies apart.
    pub(crate) digest: [u8; 16],
    /// Whether nobody is logged in.
    pub(crate) anonymous: bool,
    /// The session was ended: no node may bring it back.
    pub(crate) ended: bool,
    /// What whoever leaves the session must show, one of these, for it to end.
    pub(crate) proofs: Vec<IdProof>,
    /// Which version each node has on its disk.
    pub(crate) holders: BTreeMap<NodeId, u64>,
    /// The sealed files.
    pub(crate) seal: Vec<u8>,
}

impl Copy {
    /// What there is of a session before anything was published.
    pub(crate) fn none_yet(owner: Owner) -> Self {
        Self {
            owner,
            version: 0,
            digest: [0; 16],
            anonymous: true,
            ended: false,
            proofs: Vec::new(),
            holders: BTreeMap::new(),
            seal: Vec::new(),
        }
    }

    /// Whether a node has the present version on its disk.
    pub(crate) fn is_at(&self, node: &NodeId) -> bool {
        self.version > 0 && self.holders.get(node) == Some(&self.version)
    }

    /// Whether a node may publish: it must own the session, or have owned it last (what its Odoo was
    /// writing when the session moved), and have started from the present version; nobody may have ended
    /// the session; and an anonymous session never replaces one of somebody. Redis decides alike, in Lua.
    fn takes(&self, new: &Publication) -> bool {
        let owned_last = new.base > 0 && new.epoch > 0 && new.epoch + 1 == self.owner.epoch;
        !self.ended
            && (self.owner.node == new.node || owned_last)
            && self.version == new.base
            && (self.anonymous || !new.anonymous)
    }
}

/// What a node publishes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Publication {
    /// The node, which claims the session with this if nobody owns it.
    pub(crate) node: NodeId,
    /// The session's epoch as the node knew it last, 0 if it did not; the record begins with it if the
    /// store has none.
    pub(crate) epoch: u64,
    /// The version that it started from.
    pub(crate) base: u64,
    pub(crate) digest: [u8; 16],
    pub(crate) anonymous: bool,
    /// See [`Copy::proofs`].
    pub(crate) proofs: Vec<IdProof>,
    pub(crate) seal: Vec<u8>,
}

/// What became of a publication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Published {
    /// It is in the store, with this version.
    Stored {
        owner: Owner,
        version: u64,
    },
    Refused(Copy),
}

/// Applies a publication to what is there.
pub(super) fn publish(present: Option<Copy>, new: Publication) -> Result<Copy, Box<Copy>> {
    let owner = Owner { node: new.node.clone(), epoch: new.epoch.max(1) };
    // The store may have lost what the node's version was counted from.
    let mut copy = present.unwrap_or_else(|| Copy { version: new.base, ..Copy::none_yet(owner) });
    if !copy.takes(&new) {
        return Err(Box::new(copy));
    }
    copy.version += 1;
    (copy.digest, copy.anonymous, copy.seal) = (new.digest, new.anonymous, new.seal);
    copy.proofs = new.proofs;
    copy.holders.insert(new.node, copy.version);
    Ok(copy)
}

/// Who ends a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum EndedBy {
    /// A node that had this version and has no more.
    Node(NodeId, u64),
    /// Somebody who left the session, and shows by this that they held it.
    Holder(IdProof),
    /// Whoever may end it without its id.
    Operator,
    /// A node that saw it end. The store may have forgotten.
    Witness(NodeId),
}

/// Applies an end to what is there; nothing if it may not.
pub(super) fn end(present: Option<Copy>, by: &EndedBy) -> Option<Copy> {
    let copy = match (present, by) {
        (Some(copy), _) => copy,
        (None, EndedBy::Witness(node)) => Copy::none_yet(Owner { node: node.clone(), epoch: 1 }),
        (None, _) => return None,
    };
    // Of what was never published nobody has a copy: it needs no memory of its end.
    if copy.version == 0 && !copy.ended && !matches!(by, EndedBy::Witness(_)) {
        return None;
    }
    let may = match by {
        // The owner knows best. Another node's Odoo may end what it has (a revoked device), unless that
        // was not the session as it is.
        EndedBy::Node(node, version) => copy.owner.node == *node || copy.version == *version,
        // Half an id is no secret, and whoever kept one from before a rotation is not who works with it now.
        EndedBy::Holder(proof) => copy.proofs.contains(proof),
        EndedBy::Operator | EndedBy::Witness(_) => true,
    };
    (may && !copy.ended).then(|| Copy { ended: true, ..Copy::none_yet(copy.owner) })
}

/// What is told of a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum News {
    /// The owner published another version.
    Published(NodeId),
    /// A node is to have it.
    Wanted(NodeId),
    /// The session ended.
    Ended,
}

/// What is told of copies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum CopyEvent {
    Of(SessionKey, News),
    /// Some of that may have been missed.
    Lost,
}
