//! What the filter and the sidecar say to each other, over HTTP. Bodies are in postcard's encoding:
//! reading JSON would double the size of the filter. What operators ask for is JSON.
//!
//! | request | answer |
//! |---|---|
//! | `GET /v1/owners/{key}` | [`OwnerReply`] |
//! | `POST /v1/claims` with [`Claim`] | [`ClaimReply`] |
//! | `GET /v1/watch?`[`WatchQuery`] | [`WatchReply`], when there is something new or `wait_ms` is over |
//! | `GET /v1/nodes` | [`NodesReply`], in JSON; so are all below |
//! | `POST /v1/nodes/{id}/drain`, `…/undrain` | nothing, once the store has it |
//! | `GET /v1/nodes/{id}/sessions?from=…` | [`SessionsReply`] |
//! | `POST /v1/nodes/{id}/move` with [`Sessions`] | [`MoveReply`] |
//! | `POST /v1/sessions/revoke` with [`SessionKey`]s | [`RevokeReply`] |
//! | `GET /v1/explanations/{key}` | [`Explanation`] |

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{IdProof, Membership, NodeId, NodeState, SessionKey};

/// The content type of an encoded body.
pub const CONTENT_TYPE: &str = "application/vnd.mooring.postcard";

/// Encodes a body. The types of this module always can be.
pub fn encode<T: Serialize>(body: &T) -> Vec<u8> {
    postcard::to_allocvec(body).unwrap_or_default()
}

/// Decodes a body; none if it is not one of this type, or has bytes to spare.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Option<T> {
    postcard::take_from_bytes(body).ok().filter(|(_, rest)| rest.is_empty()).map(|(body, _)| body)
}

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
    /// For how many seconds an owner may be believed without asking again. Asking is what keeps a
    /// session's record alive.
    pub believe_s: u32,
}

/// Asks that `node` own `key`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The session.
    pub key: SessionKey,
    /// Who shall own it.
    pub node: NodeId,
    /// The epoch that the claimer believes to be the present one; 0 for "nobody owns it".
    pub expect: u64,
    /// What came with it.
    pub origin: Origin,
}

/// How a claim came about: what is waited for, briefly, before it is answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Origin {
    /// Nothing that there are files of: a visitor's first answer, or an operator.
    #[default]
    Visit,
    /// Perhaps a login or logout: the session's file, if there is one, must have reached its standby, and
    /// the session that was left, if any, must have ended.
    Entry {
        /// The session that the request had before.
        left: Option<Left>,
        /// Whether the request had a body: then it surely did something.
        posted: bool,
    },
    /// The owner is down or did not answer, and this node serves in its place: it must have the file.
    Failover,
}

/// A session that was left for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Left {
    /// The session.
    pub key: SessionKey,
    /// That whoever left it held its id: without it nothing ends.
    pub proof: IdProof,
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
    /// The last change seen: each change adds one.
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
    pub membership: Option<Membership>,
}

/// The nodes as an operator sees them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodesReply {
    /// One entry a node, in the order of their names.
    pub nodes: Vec<NodeReport>,
    /// Who runs scheduled jobs, if anybody asked to.
    #[serde(default)]
    pub cron: Option<LeaseHolder>,
    /// What is wrong with the store, if anything.
    #[serde(default)]
    pub store: Option<StoreReport>,
    /// In what the lists of nodes differ that sidecars were told, a line each for people to read.
    #[serde(default)]
    pub differences: Vec<String>,
}

/// What is wrong with the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreReport {
    /// That it cannot be reached, or what it refuses.
    pub problem: String,
    /// What to do, if that is known.
    pub remedy: Option<String>,
}

/// Asks for the lease of scheduled jobs, which one process at a time has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRequest {
    /// Who asks, for operators.
    pub name: String,
    /// A random number of that process.
    pub token: u64,
    /// How long it is to last, in milliseconds; 0 gives it back.
    pub for_ms: u64,
    /// Whether the asker has it: then a store that forgot who has it may believe so.
    pub held: bool,
}

/// What became of a request for the lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseReply {
    /// Whether the asker has it now.
    pub granted: bool,
    /// Who has it.
    pub holder: Option<LeaseHolder>,
}

/// Who has the lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseHolder {
    /// [`LeaseRequest::name`].
    pub name: String,
    /// How long it lasts unless it is prolonged, in milliseconds.
    pub left_ms: u64,
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
    /// Sessions that it owns and that were in use within the last hour, or began within minutes, as all
    /// sidecars see them.
    pub sessions: u64,
    /// How long its last good probe took, in milliseconds.
    pub probe_ms: Option<f64>,
    /// Seconds since its state last changed.
    pub since_seconds: u64,
    /// Why it is down, or what else is wrong with it.
    pub problem: Option<String>,
    /// Whether its sessions are carried to other nodes.
    #[serde(default)]
    pub carries: bool,
    /// How it stands with its sessions, as far as the sidecar that was asked knows.
    #[serde(default)]
    pub carried: Option<CarriedReport>,
}

/// How it stands with the sessions of a node that are carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CarriedReport {
    /// Sessions on its disk that are also in the store.
    pub sessions: u64,
    /// Sessions that wait for the store or the disk.
    pub waiting: u64,
    /// How far the present or last look at all of its files has come…
    pub looked_at: u64,
    /// …of how many.
    pub of: u64,
    /// Whether a look at all of its files was ever finished.
    pub complete: bool,
    /// Sessions on its disk whose files are not carried, such as those that are too large.
    #[serde(default)]
    pub left_alone: u64,
}

/// Some sessions with their epochs.
pub type Sessions = Vec<(SessionKey, u64)>;

/// A page of a node's sessions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionsReply {
    /// The sessions; there may be none on a page.
    pub sessions: Sessions,
    /// What to ask `from` for the next page; none: this was the last.
    pub next: Option<String>,
}

/// What became of sessions that were to move.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveReply {
    /// Sessions that another node owns now.
    pub moved: u64,
    /// Sessions that stay: their owner had changed, or no other node is active.
    pub left: u64,
}

/// What became of sessions that were to end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevokeReply {
    /// Sessions that ended with this.
    pub revoked: u64,
}

/// Where a session's requests go, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// The session.
    pub key: SessionKey,
    /// Who owns it by a record in the store.
    pub owner: Option<Owner>,
    /// The nodes that its requests try, in order.
    pub nodes: Vec<NodeId>,
    /// Why the first of them is first.
    pub reason: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_survive_their_encoding() {
        let nodes = r#"[{"id":"a","http":"127.0.0.1:1"},{"id":"b","http":"[::1]:2","gevent":"[::1]:3","weight":4,"state":"down"}]"#;
        let owner = Owner { node: NodeId::new("odoo-1").unwrap(), epoch: u64::MAX };
        let key = SessionKey::of_session_id(b"x");
        let reply = WatchReply {
            cursor: Cursor { generation: u64::MAX, position: 7 },
            reset: true,
            changes: vec![Change { key, owner: Some(owner) }, Change { key, owner: None }],
            membership: Some(serde_json::from_str(nodes).unwrap()),
        };
        let body = encode(&reply);
        assert_eq!(decode(&body), Some(reply));
        for cut in 0..body.len() {
            assert_eq!(decode::<WatchReply>(&body[..cut]), None, "{cut} bytes");
        }
        assert_eq!(decode::<WatchReply>(&[&body[..], b"x"].concat()), None);
    }

    #[test]
    fn rubbish_is_no_body() {
        // A length of 2^63 must not be believed.
        assert_eq!(decode::<WatchReply>(&[0xff; 40]), None);
        assert_eq!(decode::<ClaimReply>(b"{\"granted\":true}"), None);
        assert_eq!(decode::<Membership>(&[]), None);
    }
}
