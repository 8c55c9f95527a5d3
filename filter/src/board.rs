//! What the VMs of one Envoy share, in Envoy's shared data: how far the changes have been followed
//! and by whom, the nodes, the last changes, and the owners that any of them learnt.
//!
//! It survives a VM and a new configuration. It is bounded: the owners live in a fixed number of
//! buckets with a fixed number of places.

use affinity::{
    Membership, SessionKey,
    wire::{self, Change, Cursor},
};

use crate::{host, owners::Holding};

/// 4,096 buckets of 16 owners of 48 bytes: 3 MB in all at most, for 65,536 sessions.
const BUCKETS: usize = 4096;
const PLACES: usize = 16;
/// Changes kept for VMs that tick late. Whoever is further behind starts afresh.
const RECENT_CHANGES: usize = 256;
/// How often a write is tried again because another VM was faster.
const CAS_TRIES: usize = 4;

/// How far the sidecar has been followed, and who follows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// The changes applied.
    pub(crate) cursor: Cursor,
    /// Grows whenever changes may have been missed: what was learnt before may be stale.
    pub(crate) era: u64,
    /// The digest of the membership.
    pub(crate) membership: u64,
    /// When the sidecar last answered, in milliseconds since 1970.
    pub(crate) polled_ms: u64,
    /// The VM that polls for all.
    pub(crate) poller: u64,
    /// Until when it does, unless it says so again.
    pub(crate) poller_until_ms: u64,
}

/// The progress as it was read, to be replaced only if it is still so.
pub(crate) struct Seen {
    pub(crate) progress: Progress,
    cas: Option<u32>,
}

pub(crate) struct Board {
    progress: String,
    nodes: String,
    changes: String,
    owners: String,
}

impl Board {
    /// The board of all filters that follow the same sidecar.
    pub(crate) fn new(sidecar: &str) -> Self {
        let name = |part: &str| format!("mooring/{sidecar}/{part}");
        Self {
            progress: name("progress"),
            nodes: name("nodes"),
            changes: name("changes"),
            owners: name("owners/"),
        }
    }

    pub(crate) fn progress(&self) -> Seen {
        let (bytes, cas) = host::shared(&self.progress);
        Seen { progress: bytes.and_then(|bytes| decode(&bytes)).unwrap_or_default(), cas }
    }

    /// Whether `next` could take the place of what was `seen`.
    pub(crate) fn advance(&self, seen: &Seen, next: &Progress) -> bool {
        host::set_shared(&self.progress, &encode(next), seen.cas)
    }

    pub(crate) fn nodes(&self) -> Option<Membership> {
        wire::decode(&host::shared(&self.nodes).0?)
    }

    pub(crate) fn set_nodes(&self, membership: &Membership) {
        host::set_shared(&self.nodes, &wire::encode(membership), None);
    }

    /// The changes after `position`, if all of them up to `upto` are still there.
    pub(crate) fn changes_between(&self, position: u64, upto: u64) -> Option<Vec<Change>> {
        let mut recent = self.recent_changes();
        let wanted = usize::try_from(upto.checked_sub(position)?).ok()?;
        let first = recent.len().checked_sub(wanted)?;
        Some(recent.split_off(first))
    }

    pub(crate) fn add_changes(&self, changes: &[Change]) {
        let mut recent = self.recent_changes();
        recent.extend_from_slice(changes);
        recent.drain(..recent.len().saturating_sub(RECENT_CHANGES));
        self.set_changes(&recent);
    }

    pub(crate) fn clear_changes(&self) {
        self.set_changes(&[]);
    }

    fn recent_changes(&self) -> Vec<Change> {
        host::shared(&self.changes).0.and_then(|bytes| wire::decode(&bytes)).unwrap_or_default()
    }

    fn set_changes(&self, changes: &[Change]) {
        host::set_shared(&self.changes, &wire::encode(&changes), None);
    }

    /// The owner that some VM learnt.
    pub(crate) fn recall(&self, key: &SessionKey, era: u64) -> Option<Holding> {
        find(&host::shared(&self.bucket(key)).0?, key, era)
    }

    /// Tells the other VMs, if they do not know better; the oldest entry of a full bucket goes.
    pub(crate) fn record(&self, key: &SessionKey, holding: &Holding, era: u64, now_ms: u64) {
        let name = self.bucket(key);
        for _ in 0..CAS_TRIES {
            let (bytes, cas) = host::shared(&name);
            let bytes = bytes.unwrap_or_default();
            if find(&bytes, key, era).is_some_and(|known| !holding.supersedes(&known, now_ms)) {
                return;
            }
            let others = bytes.chunks_exact(ENTRY).filter(|entry| !entry.starts_with(key.as_bytes()));
            let mut bucket = Vec::with_capacity(ENTRY * PLACES);
            if let Some(owner) = holding.owner {
                bucket.extend_from_slice(key.as_bytes());
                for number in [owner, holding.epoch, holding.expires_ms, era] {
                    bucket.extend_from_slice(&number.to_be_bytes());
                }
            }
            others.take(PLACES - 1).for_each(|entry| bucket.extend_from_slice(entry));
            if host::set_shared(&name, &bucket, cas) {
                return;
            }
        }
    }

    fn bucket(&self, key: &SessionKey) -> String {
        // The last bytes: the first ones choose the place in each VM's own table.
        let number = key.as_bytes().iter().rev().take(2).fold(0_usize, |n, byte| n << 8 | usize::from(*byte));
        format!("{}{}", self.owners, number % BUCKETS)
    }
}

/// A key and four numbers.
const ENTRY: usize = 16 + 4 * 8;

/// The entry of a key in a bucket; one that was learnt in another era is to be asked for again.
fn find(bucket: &[u8], key: &SessionKey, era: u64) -> Option<Holding> {
    let entry = bucket.chunks_exact(ENTRY).find(|entry| entry.starts_with(key.as_bytes()))?;
    let [owner, epoch, expires_ms, learnt_in] = numbers(entry.get(16..)?)?;
    let holding = Holding { owner: Some(owner), epoch, expires_ms };
    Some(if learnt_in == era { holding } else { holding.outdated() })
}

fn encode(progress: &Progress) -> Vec<u8> {
    let Progress { cursor, era, membership, polled_ms, poller, poller_until_ms } = *progress;
    let numbers = [cursor.generation, cursor.position, era, membership, polled_ms, poller, poller_until_ms];
    numbers.into_iter().flat_map(u64::to_be_bytes).collect()
}

fn decode(bytes: &[u8]) -> Option<Progress> {
    let [generation, position, era, membership, polled_ms, poller, poller_until_ms] = numbers(bytes)?;
    let cursor = Cursor { generation, position };
    Some(Progress { cursor, era, membership, polled_ms, poller, poller_until_ms })
}

/// `N` numbers of 64 bits, big-endian, and nothing else.
fn numbers<const N: usize>(bytes: &[u8]) -> Option<[u64; N]> {
    let (chunks, []) = bytes.as_chunks::<8>() else { return None };
    chunks.iter().map(|chunk| u64::from_be_bytes(*chunk)).collect::<Vec<_>>().try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_survives_its_encoding_and_rubbish_does_not_decode() {
        let progress = Progress {
            cursor: Cursor { generation: u64::MAX, position: 7 },
            era: 9,
            membership: 1 << 63,
            polled_ms: 3,
            poller: 4,
            poller_until_ms: 5,
        };
        assert_eq!(decode(&encode(&progress)), Some(progress));
        for rubbish in [&b""[..], b"x", &[0; 48], &[0; 55], &[0; 57]] {
            assert_eq!(decode(rubbish), None);
        }
    }
}
