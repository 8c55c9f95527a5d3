//! Where the directory is kept.

use std::{collections::HashMap, time::Duration};

use affinity::{
    NodeId, SessionKey,
    wire::{Change, Claim, ClaimReply, Owner},
};
use async_trait::async_trait;
use tokio::sync::mpsc;

mod embedded;
mod records;
mod redis;

#[cfg(test)]
mod tests;

pub(crate) use embedded::{Embedded, OpenError};
pub(crate) use redis::{InvalidUrl, Redis};

/// Why the store did not answer. None of these says anything about the session asked for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// It may work again later.
    #[error("the store cannot be reached: {0}")]
    Unreachable(String),
    /// What came back is none of Mooring's.
    #[error("the store holds something else under Mooring's keys: {0}")]
    Foreign(String),
}

/// What a store tells of its own accord.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// An owner changed. First claims are not told.
    Changed(Change),
    /// Changes may have been missed.
    Lost,
}

/// The owners of sessions, and their changes.
#[async_trait]
pub(crate) trait Store: Send + Sync + std::fmt::Debug {
    /// Who owns a session. Asking prolongs the record, but not each time ([`prolong_after`]).
    async fn owner(&self, key: SessionKey) -> Result<Option<Owner>, StoreError>;

    /// Makes the claim's node the owner, if the session's epoch is the one that the claim expects.
    /// A claim of who is the owner already is granted and changes nothing.
    async fn claim(&self, claim: Claim) -> Result<ClaimReply, StoreError>;

    /// How many sessions each node owns, where the store can tell.
    async fn sessions(&self) -> Result<Option<HashMap<NodeId, u64>>, StoreError>;

    /// Whether it can be reached.
    async fn ping(&self) -> Result<(), StoreError>;

    /// Tells changes from now on, until the receiver is gone.
    async fn follow(&self, events: mpsc::Sender<Event>);
}

/// How a claim ends, given the record that is there. Redis decides alike, in Lua.
fn decide(claim: &Claim, present: Option<&Owner>) -> (ClaimReply, Outcome) {
    match present {
        Some(owner) if owner.node == claim.node => {
            (ClaimReply { granted: true, owner: owner.clone() }, Outcome::Kept)
        }
        Some(owner) if owner.epoch != claim.expect => {
            (ClaimReply { granted: false, owner: owner.clone() }, Outcome::Refused)
        }
        _ => {
            // A record may have expired since the claimer saw it: its epoch grows all the same.
            let epoch = present.map_or(claim.expect, |owner| owner.epoch).saturating_add(1);
            let outcome = if epoch == 1 { Outcome::First } else { Outcome::Moved };
            (ClaimReply { granted: true, owner: Owner { node: claim.node.clone(), epoch } }, outcome)
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// The first claim of this session.
    First,
    /// Another node owned it before.
    Moved,
    /// The claimer owned it already.
    Kept,
    /// Somebody else owns it, and the claimer did not know.
    Refused,
}

/// How long after its last prolongation a record is prolonged again: it must be well before it expires.
fn prolong_after(lifetime: Duration) -> Duration {
    (lifetime / 10).min(Duration::from_secs(3_600))
}

/// The greatest epoch: Lua, in which Redis counts, has no greater whole numbers.
pub(crate) const LARGEST_EPOCH: u64 = 1 << 53;
