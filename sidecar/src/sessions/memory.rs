//! What a carrier remembers of its node's sessions.

use std::collections::{HashMap, HashSet, VecDeque};

use affinity::SessionKey;

use super::{disk::Place, snapshot::Digest};
use crate::files::Reason;

/// How many ended sessions are remembered.
const REMEMBERED: usize = 100_000;

/// What the node's disk agreed with last.
#[derive(Clone)]
pub(super) struct Known {
    pub(super) place: Place,
    pub(super) version: u64,
    /// The last epoch in which the node owned the session; 0: never.
    pub(super) epoch: u64,
    pub(super) digest: Digest,
    pub(super) owned: bool,
    pub(super) modified_ns: i64,
}

/// Sessions that are on the node's disk and are not carried.
#[derive(Default)]
pub(super) struct LeftAlone(HashMap<SessionKey, Reason>);

impl LeftAlone {
    /// Notes one. Whether it was not left alone before, and whether it is the first for this reason.
    pub(super) fn note(&mut self, key: SessionKey, reason: Reason) -> (bool, bool) {
        let is_first = self.0.values().all(|known| *known != reason);
        (self.0.insert(key, reason).is_none(), is_first)
    }

    pub(super) fn forget(&mut self, key: SessionKey) {
        self.0.remove(&key);
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

/// Sessions that ended, for a store that forgets them.
#[derive(Default)]
pub(super) struct Ended {
    keys: HashSet<SessionKey>,
    order: VecDeque<SessionKey>,
}

impl Ended {
    pub(super) fn remember(&mut self, key: SessionKey) {
        if self.keys.insert(key) {
            self.order.push_back(key);
        }
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.keys.remove(&oldest);
        }
    }

    /// All of them, the oldest first.
    pub(super) fn keys(&self) -> Vec<SessionKey> {
        self.order.iter().copied().collect()
    }
}
