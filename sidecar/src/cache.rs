//! The owners that this sidecar has heard of: it answers for the store, and knows who is busy.
//!
//! It is bounded, and what went unused goes first. An entry is 40 bytes.

use std::{
    collections::HashMap,
    sync::{
        PoisonError, RwLock,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use affinity::{NodeId, SessionKey, wire::Owner};
use quick_cache::sync::Cache;

/// How long after its last use a session counts as in use.
pub(crate) const IN_USE: Duration = Duration::from_secs(3_600);

/// What is known of one session. Times are in seconds since the cache was made.
#[derive(Clone, Copy, Debug)]
struct Entry {
    epoch: u64,
    /// The owner's place in `nodes`.
    node: u32,
    /// Until when the store need not be asked.
    fresh_until: u32,
    /// Until when it counts as in use.
    used_until: u32,
    /// The era in which it was learnt.
    era: u32,
}

/// What the cache says of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) owner: Owner,
    /// For how long it may be believed; none: the store must be asked first.
    pub(crate) fresh_for: Option<Duration>,
    /// Whether changes may have been missed since it was learnt.
    pub(crate) is_in_doubt: bool,
}

pub(crate) struct OwnerCache {
    entries: Cache<SessionKey, Entry>,
    nodes: RwLock<Vec<NodeId>>,
    era: AtomicU32,
    began: Instant,
}

impl OwnerCache {
    /// A cache of `sessions` at most.
    pub(crate) fn new(sessions: usize) -> Self {
        Self {
            entries: Cache::new(sessions),
            nodes: RwLock::default(),
            era: AtomicU32::new(0),
            began: Instant::now(),
        }
    }

    fn era(&self) -> u32 {
        self.era.load(Ordering::Acquire)
    }

    /// Changes may have been missed: everything must be asked for again.
    pub(crate) fn begin_era(&self) {
        self.era.fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) fn get(&self, key: SessionKey) -> Option<Known> {
        let entry = self.entries.get(&key)?;
        let node =
            self.nodes.read().unwrap_or_else(PoisonError::into_inner).get(entry.node as usize)?.clone();
        let left = entry.fresh_until.saturating_sub(self.now());
        let is_in_doubt = entry.era != self.era();
        Some(Known {
            owner: Owner { node, epoch: entry.epoch },
            fresh_for: (left > 0 && !is_in_doubt).then(|| Duration::from_secs(left.into())),
            is_in_doubt,
        })
    }

    /// Takes in what the store said in this era, unless a later epoch was heard of in it since it was
    /// asked, when `before` was known. What was known already may be of a record that expired: a new one
    /// begins with epoch 1 again. For `used_for` it counts as in use, and no shorter than was known.
    pub(crate) fn learn(
        &self,
        key: SessionKey,
        owner: &Owner,
        before: Option<&Known>,
        fresh_for: Duration,
        used_for: Duration,
    ) {
        let era = self.era();
        let is_newer = |known: &Entry| {
            known.era == era
                && known.epoch > owner.epoch
                && before.is_none_or(|before| before.owner.epoch != known.epoch)
        };
        let known = self.entries.peek(&key);
        if known.is_some_and(|known| is_newer(&known)) {
            return;
        }
        let (now, seconds) = (self.now(), |time: Duration| u32::try_from(time.as_secs()).unwrap_or(u32::MAX));
        let entry = Entry {
            epoch: owner.epoch,
            node: self.place(&owner.node),
            fresh_until: now.saturating_add(seconds(fresh_for)),
            used_until: now.saturating_add(seconds(used_for)).max(known.map_or(0, |known| known.used_until)),
            era,
        };
        self.entries.insert(key, entry);
    }

    /// Takes in a change that others made, if the session is known here.
    pub(crate) fn change(&self, key: SessionKey, owner: &Owner) {
        if self.entries.peek(&key).is_some() {
            // The next look-up asks: the change does not say how long the record lives.
            self.learn(key, owner, None, Duration::ZERO, Duration::ZERO);
        }
    }

    pub(crate) fn forget(&self, key: SessionKey) {
        self.entries.remove(&key);
    }

    /// The sessions in use on each node; drops what is used no more.
    pub(crate) fn loads(&self) -> HashMap<NodeId, u64> {
        let now = self.now();
        self.entries.retain(|_, entry| entry.used_until > now);
        let mut counts: Vec<u64> = Vec::new();
        for (_, entry) in self.entries.iter() {
            let place = entry.node as usize;
            if counts.len() <= place {
                counts.resize(place + 1, 0);
            }
            if let Some(count) = counts.get_mut(place) {
                *count += 1;
            }
        }
        let nodes = self.nodes.read().unwrap_or_else(PoisonError::into_inner);
        nodes.iter().cloned().zip(counts).collect()
    }

    /// How many sessions it holds.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    fn place(&self, node: &NodeId) -> u32 {
        let find = |nodes: &[NodeId]| nodes.iter().position(|other| other == node);
        if let Some(place) = find(&self.nodes.read().unwrap_or_else(PoisonError::into_inner)) {
            return place as u32;
        }
        let mut nodes = self.nodes.write().unwrap_or_else(PoisonError::into_inner);
        let place = find(&nodes).unwrap_or_else(|| {
            nodes.push(node.clone());
            nodes.len() - 1
        });
        place as u32
    }

    fn now(&self) -> u32 {
        // A process that runs for 136 years may ask its store more often.
        u32::try_from(self.began.elapsed().as_secs()).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(600);

    fn key(number: u64) -> SessionKey {
        SessionKey::of_session_id(&number.to_be_bytes())
    }

    fn owner(node: &str, epoch: u64) -> Owner {
        Owner { node: NodeId::new(node).unwrap(), epoch }
    }

    #[test]
    fn a_new_era_has_everything_asked_for_again_but_forgets_nothing() {
        let cache = OwnerCache::new(100);
        cache.learn(key(1), &owner("a", 3), None, LONG, IN_USE);
        assert_eq!(cache.get(key(1)).unwrap().fresh_for, Some(LONG));
        cache.begin_era();
        assert_eq!(
            cache.get(key(1)),
            Some(Known { owner: owner("a", 3), fresh_for: None, is_in_doubt: true })
        );
        cache.learn(key(1), &owner("b", 1), None, LONG, IN_USE);
        assert_eq!(cache.get(key(1)).unwrap().owner, owner("b", 1), "epochs may have begun anew");
    }

    #[test]
    fn late_answers_undo_no_change() {
        let cache = OwnerCache::new(100);
        cache.change(key(1), &owner("b", 2));
        assert_eq!(cache.get(key(1)), None, "nobody here has asked for it");
        cache.learn(key(1), &owner("a", 1), None, LONG, IN_USE);
        cache.change(key(1), &owner("b", 2));
        cache.learn(key(1), &owner("a", 1), None, LONG, IN_USE);
        assert_eq!(
            cache.get(key(1)),
            Some(Known { owner: owner("b", 2), fresh_for: None, is_in_doubt: false })
        );
    }

    #[test]
    fn a_record_that_expired_and_began_anew_is_believed() {
        let cache = OwnerCache::new(100);
        cache.learn(key(1), &owner("a", 3), None, Duration::ZERO, IN_USE);
        let before = cache.get(key(1));
        cache.learn(key(1), &owner("b", 1), before.as_ref(), LONG, IN_USE);
        assert_eq!(cache.get(key(1)).unwrap().owner, owner("b", 1));
        // Unless a change came between the question and its answer.
        let before = cache.get(key(1));
        cache.change(key(1), &owner("c", 2));
        cache.learn(key(1), &owner("b", 1), before.as_ref(), LONG, IN_USE);
        assert_eq!(cache.get(key(1)).unwrap().owner, owner("c", 2));
    }

    #[test]
    fn what_was_not_used_does_not_count_and_what_was_used_does() {
        let cache = OwnerCache::new(100);
        let a = owner("a", 1);
        let count = || cache.loads().get(&a.node).copied().unwrap_or_default();
        // It began, so long ago that it counts no more.
        cache.learn(key(1), &a, None, Duration::ZERO, Duration::ZERO);
        assert_eq!(count(), 0);
        cache.learn(key(1), &a, None, Duration::ZERO, IN_USE);
        cache.learn(key(1), &a, None, Duration::ZERO, Duration::ZERO);
        cache.change(key(1), &owner("a", 2));
        assert_eq!(count(), 1, "it was used");
    }

    #[test]
    fn it_is_bounded_and_counts_who_is_busy() {
        let cache = OwnerCache::new(1_000);
        for number in 0..50 {
            cache.learn(key(number), &owner(["a", "b"][usize::from(number < 10)], 1), None, LONG, IN_USE);
        }
        let loads = cache.loads();
        assert_eq!((loads[&owner("a", 1).node], loads[&owner("b", 1).node]), (40, 10));
        (0..5_000).for_each(|number| cache.learn(key(number), &owner("a", 1), None, LONG, IN_USE));
        assert!(cache.len() <= 1_000, "{}", cache.len());
    }
}
