//! Where the directory is kept.

use std::{collections::BTreeMap, time::Duration};

use affinity::{
    Node, NodeId, SessionKey,
    wire::{
        CarriedReport, Change, Claim, ClaimReply, LeaseHolder, LeaseReply, LeaseRequest, Owner, StoreReport,
    },
};
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::lists::Told;

mod copies;
mod embedded;
mod files;
mod lease;
mod records;
mod redis;

#[cfg(test)]
mod tests;

pub(crate) use copies::{Copy, CopyEvent, EndedBy, News, Publication, Published};
pub(crate) use embedded::{Embedded, OpenError};
pub(crate) use files::{FileRecord, FilesPage, FilesPlace};
pub(crate) use redis::{Access, Found, InvalidUrl, Redis, ValueEvent, Values};

/// How long a node that no longer registers is remembered, as `down`.
pub(crate) const FORGOTTEN_AFTER: Duration = Duration::from_secs(3_600);
/// How old may be what another sidecar told.
const TOLD_AGE: Duration = Duration::from_secs(10);

/// How long a session's owner is remembered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lifetimes {
    /// After a first claim: whoever collects sessions and never returns must not fill the store.
    pub(crate) provisional: Duration,
    /// Since somebody last asked for it.
    pub(crate) durable: Duration,
}

impl Lifetimes {
    /// How long after its last prolongation a record is prolonged again: it must be well before it
    /// expires. For as long the answer to a look-up may be believed.
    pub(crate) fn prolong_after(self) -> Duration {
        (self.durable / 10).min(Duration::from_secs(3_600))
    }
}

/// Why the store did not answer. None of these says anything about the session asked for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// It may work again later.
    #[error("the store cannot be reached: {0}")]
    Unreachable(String),
    /// It answers, and does not do what is needed.
    #[error("the store refuses what is needed: {problem}")]
    Refused {
        /// What it refuses, and why.
        problem: String,
        /// What to do, if that is known.
        remedy: String,
    },
    /// What came back is none of Mooring's.
    #[error("the store holds something else under Mooring's keys: {0}")]
    Foreign(String),
}

impl StoreError {
    /// It as an operator is told.
    pub(crate) fn report(&self) -> StoreReport {
        let remedy = match self {
            Self::Refused { remedy, .. } => Some(remedy.clone()).filter(|remedy| !remedy.is_empty()),
            Self::Unreachable(_) | Self::Foreign(_) => None,
        };
        StoreReport { problem: self.to_string(), remedy }
    }
}

/// What a store tells of its own accord.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// An owner changed. First claims are not told.
    Changed(Change),
    /// A node registered, moved, changed its state, or was drained.
    Nodes,
    /// Changes may have been missed.
    Lost,
}

/// A node as the sidecar beside it knows it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Registration {
    /// Its addresses, weight, and whether it answers: active or down.
    pub(crate) node: Node,
    pub(crate) condition: Condition,
}

/// How a node does. It changes with each heartbeat, and nobody is told.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Condition {
    /// How long its last good probe took, in milliseconds.
    pub(crate) probe_ms: f64,
    /// How it stands with its sessions, if its sidecar carries them.
    pub(crate) carried: Option<CarriedReport>,
    /// What is wrong with it, if anything.
    pub(crate) problem: Option<String>,
}

/// A registration as others find it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Registered {
    pub(crate) node: Node,
    pub(crate) condition: Condition,
    /// When that was: another number each time.
    pub(crate) beat: u64,
    /// Since then, by the store's clock.
    pub(crate) age: Duration,
}

/// What an operator last said of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Drain {
    /// Whether new sessions are to be kept away from it.
    pub(crate) draining: bool,
    /// When that was, in milliseconds since 1970; later than all that was said of the node before.
    pub(crate) said: u64,
}

/// What the store knows of nodes.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Roster {
    pub(crate) nodes: Vec<Registered>,
    pub(crate) drains: BTreeMap<NodeId, Drain>,
    /// What the other sidecars tell.
    pub(crate) others: Vec<Told>,
    /// Who has the lease of scheduled jobs.
    pub(crate) cron: Option<LeaseHolder>,
}

/// A session in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) key: SessionKey,
    pub(crate) owner: Owner,
    /// Of its copy; 0: there is none, or it has ended.
    pub(crate) version: u64,
}

/// Some of all sessions.
#[derive(Debug, Default)]
pub(crate) struct Page {
    pub(crate) sessions: Vec<Listed>,
    /// Where to go on; none: that was all.
    pub(crate) next: Option<String>,
}

/// The owners of sessions and what is known of nodes, and their changes.
#[async_trait]
pub(crate) trait Store: Send + Sync + std::fmt::Debug {
    /// Who owns a session. Asking is a use: it makes a provisional record durable and prolongs a
    /// durable one, but not each time ([`Lifetimes::prolong_after`]).
    async fn owner(&self, key: SessionKey) -> Result<Option<Owner>, StoreError>;

    /// Makes the claim's node the owner, if the session's epoch is the one that the claim expects.
    /// A claim of who is the owner already is granted and changes nothing. A new record is provisional.
    async fn claim(&self, claim: Claim) -> Result<ClaimReply, StoreError>;

    /// Some of all sessions, from where an earlier page ended. Each that is there all the while is in some
    /// page, and a page may be empty.
    async fn list(&self, from: Option<&str>) -> Result<Page, StoreError>;

    /// Registers a node, for a while.
    async fn register(&self, registration: &Registration) -> Result<(), StoreError>;

    /// Notes what an operator says of a node, later than anything that was said before; returns that.
    async fn set_draining(&self, node: &NodeId, word: Drain) -> Result<Drain, StoreError>;

    /// Puts back what an operator said of a node, unless the store knows of something as late. Returns whether
    /// it was put back.
    async fn restore_drain(&self, node: &NodeId, word: Drain) -> Result<bool, StoreError>;

    /// What is known of nodes; tells the other sidecars what this one has to tell.
    async fn roster(&self, own: &Told) -> Result<Roster, StoreError>;

    /// Gives the lease of scheduled jobs to who asks, if nobody else has it, or takes it back. A store that
    /// has not remembered anything for as long as a lease lasts gives it only to who has it: it may have
    /// forgotten another holder.
    async fn lease(&self, request: &LeaseRequest) -> Result<LeaseReply, StoreError>;

    /// Whether it can be reached, and does what is needed of it.
    async fn ping(&self) -> Result<(), StoreError>;

    /// Tells changes from now on, until the receiver is gone.
    async fn follow(&self, events: mpsc::Sender<Event>);

    /// A session's copy; none if nothing is known of the session.
    async fn copy(&self, key: SessionKey) -> Result<Option<Copy>, StoreError>;

    /// Publishes a node's copy, and tells it.
    async fn publish(&self, key: SessionKey, new: Publication) -> Result<Published, StoreError>;

    /// Notes that a node has a version on its disk, if the session is still known.
    async fn has_copy(&self, key: SessionKey, node: &NodeId, version: u64) -> Result<(), StoreError>;

    /// Ends a session for good, and tells it. Returns whether that was done now.
    async fn end(&self, key: SessionKey, by: EndedBy) -> Result<bool, StoreError>;

    /// Tells that a node is to have a session's copy.
    async fn want_copy(&self, key: SessionKey, node: &NodeId) -> Result<(), StoreError>;

    /// Tells what happens to copies from now on, until the receiver is gone.
    async fn follow_copies(&self, events: mpsc::Sender<CopyEvent>);

    /// What changed of a replicated directory's files since a place; from the beginning if the store has
    /// another memory by now.
    async fn files(&self, set: &str, after: &FilesPlace) -> Result<FilesPage, StoreError>;

    /// Puts a file's record in the place of an older one. Returns what is there if that is not older.
    async fn put_file(&self, set: &str, file: &FileRecord) -> Result<Option<FileRecord>, StoreError>;
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

/// The greatest epoch: Lua, in which Redis counts, has no greater whole numbers.
pub(crate) const LARGEST_EPOCH: u64 = 1 << 53;
