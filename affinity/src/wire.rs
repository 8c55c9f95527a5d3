//! What the filter and the sidecar say to each other: JSON over HTTP.
//!
//! | request | answer |
//! |---|---|
//! | `GET /v1/owners/{key}` | [`OwnerReply`] |
//! | `POST /v1/claims` with [`Claim`] | [`ClaimReply`] |
//! | `GET /v1/watch?`[`WatchQuery`] | [`WatchReply`], when there is something new or `wait_ms` is over |
//! | `GET /v1/nodes` | [`NodesReply`] |

use serde::{Deserialize, Serialize};

use crate::{Membership, NodeId, NodeState, SessionKey};

/// Who holds a session. The epoch begins at 1 and grows with every change of owner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The node that holds it.
    pub node: NodeId,
    /// How many owners it has had.
    pub epoch: u64,
}

/// The answer to a look-up. No owner means that the home is the owner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnerReply {
    /// Who holds the session.
    pub owner: Option<Owner>,
}

/// Asks that `node` own `key`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    /// The session.
    pub key: SessionKey,
    /// Who shall own it.
    pub node: NodeId,
    /// The epoch that the claimer believes to be the present one; 0 for "nobody owns it".
    pub expect: u64,
}

/// What became of a claim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimReply {
    /// Whether the claimer's node owns the session now.
    pub granted: bool,
    /// Who owns it now, granted or not.
    pub owner: Owner,
}

/// How far somebody has followed the changes of owners. Positions of different generations cannot be
/// compared: a store that lost its memory begins a new generation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// The stream's generation; 0 is no generation, for who has seen nothing yet.
    pub generation: u64,
    /// The last change seen.
    pub position: u64,
}

/// Asks for everything that changed since `cursor` and since the membership `membership`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WatchQuery {
    /// [`Cursor::generation`].
    pub generation: u64,
    /// [`Cursor::position`].
    pub position: u64,
    /// [`Membership::digest`] of the membership that the asker has, 0 if none.
    pub membership: u64,
    /// How long to wait for a change before an empty answer, in milliseconds; 30,000 at most.
    pub wait_ms: u32,
}

/// One change of an owner. A key without an owner is at its home again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The session.
    pub key: SessionKey,
    /// Who holds it now.
    pub owner: Option<Owner>,
}

/// What changed since a cursor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchReply {
    /// Where to go on from.
    pub cursor: Cursor,
    /// The asker may have missed changes: everything it cached may be stale.
    pub reset: bool,
    /// The changes since the asker's cursor, in order.
    pub changes: Vec<Change>,
    /// The nodes, if they are not those that the asker has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub membership: Option<Membership>,
}

/// The nodes as an operator sees them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodesReply {
    /// One entry a node, in the order of their names.
    pub nodes: Vec<NodeReport>,
}

/// One node as an operator sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeReport {
    /// Its name.
    pub id: NodeId,
    /// Its HTTP address as configured: it may be a host name.
    pub http: String,
    /// Its gevent address as configured.
    pub gevent: Option<String>,
    /// Its weight.
    pub weight: u16,
    /// Whether it may be chosen.
    pub state: NodeState,
    /// Sessions it owns by a record in the directory.
    pub sessions: u64,
    /// How long its last good probe took, in milliseconds.
    pub probe_ms: Option<f64>,
    /// Seconds since its state last changed.
    pub since_seconds: u64,
    /// Why it is down, if it is.
    pub problem: Option<String>,
}
