//! Who owns which session, as far as this VM knows.

use affinity::SessionKey;

/// How long an owner is believed of whom the directory's changes tell. They do not say how long the
/// record has to live.
pub(crate) const CHANGE_TTL_MS: u64 = 60_000;
/// How long the answer to a claim is believed. A first claim is provisional: the store drops it within
/// minutes unless somebody comes back with the session and its owner is asked for.
pub(crate) const CLAIM_TTL_MS: u64 = 1_000;
/// How long "nobody owns it" is believed: first claims are not announced.
pub(crate) const NOBODY_TTL_MS: u64 = 5_000;

/// What is known of one session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Holding {
    /// The owner's seed; none: the session is at its home.
    pub(crate) owner: Option<u64>,
    /// The epoch of that owner; 0 while the sidecar has not confirmed it.
    pub(crate) epoch: u64,
    /// When this must be asked again, in milliseconds since 1970.
    pub(crate) expires_ms: u64,
}

impl Holding {
    /// An owner that may be believed for a while.
    pub(crate) fn owned(owner: u64, epoch: u64, now_ms: u64, believe_ms: u64) -> Self {
        Self { owner: Some(owner), epoch, expires_ms: now_ms.saturating_add(believe_ms) }
    }

    /// An owner of whom the sidecar has yet to hear, to be asked about soon: until then somebody else
    /// may have claimed the session. `u64::MAX` for `now_ms` means that there is nobody to ask.
    pub(crate) fn unconfirmed(owner: u64, now_ms: u64) -> Self {
        Self { owner: Some(owner), epoch: 0, expires_ms: now_ms.saturating_add(NOBODY_TTL_MS) }
    }

    pub(crate) fn nobody(now_ms: u64) -> Self {
        Self { owner: None, epoch: 0, expires_ms: now_ms + NOBODY_TTL_MS }
    }

    /// Whether this is to take the place of `old`: answers may arrive in another order than they were
    /// given in. A later epoch wins over an earlier one; that nobody owns a session counts only once
    /// what was known has run out, and never against an owner that nobody else can know of yet.
    pub(crate) fn supersedes(&self, old: &Self, now_ms: u64) -> bool {
        match (self.owner, old.owner) {
            (_, None) => true,
            (None, Some(_)) => old.expires_ms <= now_ms && !old.is_unconfirmed(),
            // A store that lost its memory counts epochs anew.
            (Some(_), Some(_)) => self.epoch >= old.epoch || old.expires_ms <= now_ms,
        }
    }

    /// The same, to be asked again before it is believed; unless there is nobody else who could know.
    pub(crate) fn outdated(self) -> Self {
        if self.is_unconfirmed() { self } else { Self { expires_ms: 0, ..self } }
    }

    /// Whether the sidecar has yet to hear of this owner. Such a holding is no copy of anything and
    /// survives a reset.
    pub(crate) fn is_unconfirmed(&self) -> bool {
        self.owner.is_some() && self.epoch == 0
    }
}

/// Sessions that share a bucket. The key's bits choose the bucket; they are BLAKE3's and need no
/// further hashing.
const WAYS: usize = 8;

/// A table of buckets, like a processor's cache: its memory is bounded and taken once, it never
/// rehashes, and a full bucket gives up the entry that went unused the longest.
pub(crate) struct OwnerTable {
    /// Each bucket has the latest used entry first.
    buckets: Vec<Vec<(SessionKey, Holding)>>,
    len: usize,
}

impl OwnerTable {
    pub(crate) fn new(entries: usize) -> Self {
        Self { buckets: vec![Vec::new(); entries.div_ceil(WAYS).max(1)], len: 0 }
    }

    /// What is known, even if it must be asked again.
    pub(crate) fn get(&mut self, key: &SessionKey) -> Option<Holding> {
        let bucket = self.bucket(key)?;
        let place = bucket.iter().position(|(other, _)| other == key)?;
        bucket.get_mut(..=place)?.rotate_right(1);
        bucket.first().map(|(_, holding)| *holding)
    }

    pub(crate) fn set(&mut self, key: SessionKey, holding: Holding) {
        let Some(bucket) = self.bucket(&key) else { return };
        let before = bucket.len();
        bucket.retain(|(other, _)| *other != key);
        bucket.truncate(WAYS - 1);
        bucket.insert(0, (key, holding));
        let after = bucket.len();
        self.len = self.len + after - before;
    }

    /// Has everything that could be stale asked for again. It is kept all the same: should the sidecar
    /// not answer, where a session was is a better guess than its home.
    pub(crate) fn reset(&mut self) {
        for bucket in &mut self.buckets {
            bucket.retain(|(_, holding)| holding.owner.is_some());
            for (_, holding) in bucket {
                *holding = holding.outdated();
            }
        }
        self.len = self.buckets.iter().map(Vec::len).sum();
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    fn bucket(&mut self, key: &SessionKey) -> Option<&mut Vec<(SessionKey, Holding)>> {
        let number =
            key.as_bytes().iter().take(4).fold(0_usize, |number, byte| number << 8 | usize::from(*byte));
        let place = number % self.buckets.len();
        self.buckets.get_mut(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000;

    fn key(number: u32) -> SessionKey {
        SessionKey::of_session_id(&number.to_be_bytes())
    }

    #[test]
    fn after_a_reset_all_is_asked_again_but_what_nobody_else_knows() {
        let mut table = OwnerTable::new(16);
        table.set(key(1), Holding::owned(7, 3, 1_000, HOUR));
        table.set(key(2), Holding::nobody(1_000));
        table.set(key(3), Holding::unconfirmed(7, 1_000));
        table.reset();
        assert_eq!(table.get(&key(1)), Some(Holding { owner: Some(7), epoch: 3, expires_ms: 0 }));
        assert_eq!(table.get(&key(2)), None);
        assert_eq!(table.get(&key(3)), Some(Holding::unconfirmed(7, 1_000)));
        assert_eq!(table.len(), 2);
    }

    #[test]
    fn late_answers_undo_nothing() {
        let now = 1_000;
        let (first, second) = (Holding::owned(7, 1, now, HOUR), Holding::owned(8, 2, now, HOUR));
        let (nobody, unconfirmed) = (Holding::nobody(now), Holding::unconfirmed(9, now));
        for (new, old, expected) in [
            (second, first, true),
            (first, second, false),
            (first, first, true),
            (first, nobody, true),
            (nobody, first, false),
            (first, unconfirmed, true),
            (unconfirmed, first, false),
            (unconfirmed, nobody, true),
            (nobody, unconfirmed, false),
        ] {
            assert_eq!(new.supersedes(&old, now), expected, "{new:?} after {old:?}");
        }
        let later = now + HOUR;
        assert!(nobody.supersedes(&first, later), "a record that ran out may be gone");
        assert!(first.supersedes(&second.outdated(), now), "epochs may have begun anew");
        assert!(!nobody.supersedes(&unconfirmed, later));
    }

    #[test]
    fn a_newer_holding_replaces_the_older() {
        let mut table = OwnerTable::new(16);
        table.set(key(1), Holding::nobody(0));
        table.set(key(1), Holding::owned(7, 2, 0, HOUR));
        assert_eq!(table.get(&key(1)), Some(Holding::owned(7, 2, 0, HOUR)));
        assert_eq!(table.len(), 1);
    }

    #[test]
    fn is_bounded_and_keeps_what_is_used() {
        let mut table = OwnerTable::new(160);
        for number in 0..10_000 {
            table.set(key(number), Holding::owned(7, 1, 0, HOUR));
            assert!(table.get(&key(0)).is_some(), "after {number}");
        }
        assert_eq!(table.len(), 160);
    }
}
