//! The owners as this sidecar tells them to filters: looked up and claimed in the store, and followed
//! by a log of changes that each filter reads from its own position.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use affinity::{
    NodeId, SessionKey,
    wire::{Change, Claim, ClaimReply, Cursor, Origin, Owner},
};
use tokio::sync::{mpsc, watch};

use crate::{
    cache::{IN_USE, Known, OwnerCache},
    metrics::{ClaimResult, LookupResult, Metrics},
    store::{Event, Lifetimes, Store, StoreError},
};

/// How long an owner is believed that only the cache knows, because the store cannot be reached.
const STALE: Duration = Duration::from_secs(5);
/// Changes kept for filters that ask late. Whoever is further behind starts afresh.
const KEPT_CHANGES: usize = 10_000;

/// The changes since this process began, or since some may have been missed.
struct Log {
    generation: u64,
    position: u64,
    changes: VecDeque<Change>,
}

impl Log {
    fn new() -> Self {
        // Never 0: that is the generation of who has seen nothing.
        Self { generation: rand::random_range(1..=u64::MAX), position: 0, changes: VecDeque::new() }
    }

    /// Where it ends.
    fn cursor(&self) -> Cursor {
        Cursor { generation: self.generation, position: self.position }
    }

    fn add(&mut self, change: Change) {
        self.position += 1;
        self.changes.push_back(change);
        if self.changes.len() > KEPT_CHANGES {
            self.changes.pop_front();
        }
    }

    /// The changes after a position; none if some of them are gone.
    fn since(&self, cursor: Cursor) -> Option<Vec<Change>> {
        if cursor.generation != self.generation {
            return None;
        }
        let wanted = usize::try_from(self.position.checked_sub(cursor.position)?).ok()?;
        let skipped = self.changes.len().checked_sub(wanted)?;
        Some(self.changes.iter().skip(skipped).cloned().collect())
    }
}

/// The owners and their changes.
pub(crate) struct Directory {
    store: Arc<dyn Store>,
    lifetimes: Lifetimes,
    cache: OwnerCache,
    metrics: Arc<Metrics>,
    log: Mutex<Log>,
    news: watch::Sender<()>,
    nodes: watch::Sender<()>,
}

impl Directory {
    /// A directory that keeps `sessions` owners at hand.
    pub(crate) fn new(
        store: Arc<dyn Store>,
        lifetimes: Lifetimes,
        sessions: usize,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            store,
            lifetimes,
            cache: OwnerCache::new(sessions),
            metrics,
            log: Mutex::new(Log::new()),
            news: watch::Sender::default(),
            nodes: watch::Sender::default(),
        }
    }

    /// Follows the store for as long as the process lives.
    pub(crate) async fn follow(&self) {
        let (sender, mut events) = mpsc::channel(1_024);
        let store = Arc::clone(&self.store);
        tokio::spawn(async move { store.follow(sender).await });
        while let Some(event) = events.recv().await {
            match event {
                Event::Changed(change) => {
                    self.metrics.changes.inc();
                    // With the log locked: nobody learns an older answer in between.
                    let mut log = self.log();
                    match &change.owner {
                        Some(owner) => self.cache.change(change.key, owner),
                        None => self.cache.forget(change.key),
                    }
                    log.add(change);
                }
                Event::Nodes => {
                    self.nodes.send_replace(());
                    continue;
                }
                Event::Lost => {
                    self.metrics.resets.inc();
                    let mut log = self.log();
                    self.cache.begin_era();
                    *log = Log::new();
                    drop(log);
                    self.nodes.send_replace(());
                }
            }
            self.news.send_replace(());
        }
    }

    /// Who owns a session, and for how long that may be believed.
    ///
    /// # Errors
    /// If the store cannot say and nothing is known here.
    pub(crate) async fn owner(&self, key: SessionKey) -> Result<Option<(Owner, Duration)>, StoreError> {
        let (known, asked_at) = (self.cache.get(key), self.log().cursor());
        if let Some((owner, fresh_for)) =
            known.clone().and_then(|it| it.fresh_for.map(|time| (it.owner, time)))
        {
            self.metrics.lookup(LookupResult::Cached);
            return Ok(Some((owner, fresh_for)));
        }
        let found = self.store.owner(key).await;
        self.metrics.lookup(match (&found, &known) {
            (Ok(Some(_)), _) => LookupResult::Owned,
            (Ok(None), Some(known)) if known.is_in_doubt => LookupResult::Restored,
            (Ok(None), _) => LookupResult::Unowned,
            (Err(_), Some(_)) => LookupResult::Stale,
            (Err(_), None) => LookupResult::Failed,
        });
        match (found, known) {
            (Ok(Some(owner)), known) => Ok(Some(self.learn(key, owner, known.as_ref(), asked_at))),
            // A store that came back without it has lost it: it is put back, unless somebody else was
            // faster. Where a session was is a better guess than its home.
            (Ok(None), Some(known)) if known.is_in_doubt => {
                let reply = self
                    .claim(Claim { key, node: known.owner.node, expect: 0, origin: Origin::Visit })
                    .await?;
                Ok(Some((reply.owner, Duration::ZERO)))
            }
            (Ok(None), _) => {
                self.cache.forget(key);
                Ok(None)
            }
            (Err(_), Some(known)) => Ok(Some((known.owner, STALE))),
            (Err(error), None) => Err(error),
        }
    }

    /// Takes in what the store answered to a question asked at `asked_at`, when `before` was known: a change
    /// that was told since may be newer, and if some may have been missed nothing is believed.
    fn learn(
        &self,
        key: SessionKey,
        owner: Owner,
        before: Option<&Known>,
        asked_at: Cursor,
    ) -> (Owner, Duration) {
        let log = self.log();
        let Some(changes) = log.since(asked_at) else { return (owner, Duration::ZERO) };
        let told = changes.into_iter().rev().find(|change| change.key == key).and_then(|change| change.owner);
        let (owner, fresh_for) = match told.filter(|told| told.epoch > owner.epoch) {
            // It does not say how long the record lives.
            Some(newer) => (newer, Duration::ZERO),
            None => (owner, self.lifetimes.prolong_after()),
        };
        self.cache.learn(key, &owner, before, fresh_for, IN_USE);
        (owner, fresh_for)
    }

    /// Claims a session.
    ///
    /// # Errors
    /// If the store cannot say what became of the claim.
    pub(crate) async fn claim(&self, claim: Claim) -> Result<ClaimReply, StoreError> {
        let (key, before) = (claim.key, self.cache.get(claim.key));
        let used_for = match (claim.origin, claim.expect) {
            (Origin::Failover, _) => IN_USE,
            // It began. Until somebody comes back with it, it is nobody's: a crawler's sessions all begin.
            (_, 0) => self.lifetimes.provisional.min(IN_USE),
            // It is moved, which is no use of it.
            _ => Duration::ZERO,
        };
        let reply = self.store.claim(claim).await;
        if let Ok(reply) = &reply {
            // It counts from now on, and whoever comes back with it is asked after in the store: that
            // makes a provisional record durable.
            self.cache.learn(key, &reply.owner, before.as_ref(), Duration::ZERO, used_for);
        }
        self.metrics.claim(match &reply {
            Ok(reply) if reply.granted => ClaimResult::Granted,
            Ok(_) => ClaimResult::Refused,
            Err(_) => ClaimResult::Failed,
        });
        reply
    }

    /// The changes after `cursor` and where they end. No changes: some are gone, or the cursor is of
    /// another log.
    pub(crate) fn changes_since(&self, cursor: Cursor) -> (Cursor, Option<Vec<Change>>) {
        let log = self.log();
        (log.cursor(), log.since(cursor))
    }

    /// Tells when there may be changes.
    pub(crate) fn news(&self) -> watch::Receiver<()> {
        self.news.subscribe()
    }

    /// Tells when something about the nodes may have changed in the store.
    pub(crate) fn node_news(&self) -> watch::Receiver<()> {
        self.nodes.subscribe()
    }

    /// The sessions in use on each node, as this sidecar sees them.
    pub(crate) fn loads(&self) -> HashMap<NodeId, u64> {
        self.cache.loads()
    }

    /// How many owners are at hand.
    pub(crate) fn cached(&self) -> usize {
        self.cache.len()
    }

    /// The store, for what is no owner.
    pub(crate) fn store(&self) -> &dyn Store {
        self.store.as_ref()
    }

    /// The store, for parts that live as long as the directory.
    pub(crate) fn shared_store(&self) -> Arc<dyn Store> {
        Arc::clone(&self.store)
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(number: u64) -> Change {
        Change { key: SessionKey::of_session_id(&number.to_be_bytes()), owner: None }
    }

    fn owner(node: &str, epoch: u64) -> Owner {
        Owner { node: NodeId::new(node).unwrap(), epoch }
    }

    /// A directory over an empty store, within a runtime.
    fn with_directory(test: impl AsyncFnOnce(Directory)) {
        let folder = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let long = Duration::from_secs(36_000);
        let lifetimes = Lifetimes { provisional: long, durable: long };
        runtime.block_on(async {
            let store = Arc::new(crate::store::Embedded::open(folder.path(), lifetimes).unwrap());
            test(Directory::new(store, lifetimes, 100, Arc::new(Metrics::new()))).await;
        });
    }

    #[test]
    fn what_a_store_lost_is_put_back_and_what_it_forgot_is_not() {
        with_directory(async |directory| {
            let key = change(1).key;
            directory.cache.learn(key, &owner("a", 3), None, Duration::ZERO, IN_USE);
            assert_eq!(directory.owner(key).await.unwrap(), None, "its record expired");
            directory.cache.learn(key, &owner("a", 3), None, Duration::ZERO, IN_USE);
            directory.cache.begin_era();
            let restored = Some((owner("a", 1), Duration::ZERO));
            assert_eq!(directory.owner(key).await.unwrap(), restored);
            let (found, fresh_for) = directory.owner(key).await.unwrap().unwrap();
            assert_eq!((found, fresh_for.is_zero()), (owner("a", 1), false), "it is in the store");
        });
    }

    #[test]
    fn a_session_that_began_counts_for_minutes_and_one_that_is_used_for_an_hour() {
        with_directory(async |mut directory| {
            directory.lifetimes.provisional = Duration::from_secs(1);
            let node = owner("a", 0).node;
            let claim = |number, expect, origin| Claim {
                key: change(number).key,
                node: node.clone(),
                expect,
                origin,
            };
            let entry = Origin::Entry { left: None, posted: true };
            for (number, expect, origin) in [(1, 0, Origin::Visit), (2, 0, entry), (3, 0, Origin::Visit)] {
                directory.claim(claim(number, expect, origin)).await.unwrap();
            }
            // Moved, which is no use of it; and served in the owner's place, which is.
            directory.claim(claim(4, 1, Origin::Visit)).await.unwrap();
            directory.claim(claim(5, 1, Origin::Failover)).await.unwrap();
            let count = || directory.loads().get(&node).copied().unwrap_or_default();
            assert_eq!(count(), 4);
            // Somebody comes back with one of them.
            directory.owner(change(3).key).await.unwrap();
            tokio::time::sleep(Duration::from_millis(2_100)).await;
            assert_eq!(count(), 2, "those that nobody came back with count no more");
        });
    }

    #[test]
    fn an_answer_that_a_change_overtook_is_not_believed() {
        with_directory(async |directory| {
            let key = change(1).key;
            // Asked, then changed, then answered.
            let asked_at = directory.log().cursor();
            directory.log().add(Change { key, owner: Some(owner("b", 2)) });
            let learnt = directory.learn(key, owner("a", 1), None, asked_at);
            assert_eq!(learnt, (owner("b", 2), Duration::ZERO));
            assert_eq!(directory.cache.get(key).map(|known| known.fresh_for), Some(None));
            // Asked after the change.
            let asked_at = directory.log().cursor();
            let hour = Duration::from_secs(3_600);
            assert_eq!(directory.learn(key, owner("b", 2), None, asked_at), (owner("b", 2), hour));
            // Asked before changes may have been missed.
            *directory.log() = Log::new();
            let other = change(2).key;
            let learnt = directory.learn(other, owner("a", 1), None, asked_at);
            assert_eq!(learnt, (owner("a", 1), Duration::ZERO));
            assert_eq!(directory.cache.get(other), None);
        });
    }

    #[test]
    fn a_reader_gets_what_it_lacks_or_is_told_that_it_is_gone() {
        let mut log = Log::new();
        let at = |log: &Log, position| Cursor { generation: log.generation, position };
        assert_eq!(log.since(at(&log, 0)), Some(vec![]));
        (1..=3).for_each(|number| log.add(change(number)));
        assert_eq!(log.since(at(&log, 1)), Some(vec![change(2), change(3)]));
        assert_eq!(log.since(at(&log, 3)), Some(vec![]));
        assert_eq!(log.since(at(&log, 4)), None, "a position of the future is another log's");
        assert_eq!(log.since(Cursor::default()), None);
        (0..KEPT_CHANGES as u64).for_each(|number| log.add(change(number)));
        assert_eq!(log.since(at(&log, 2)), None, "trimmed");
        assert_eq!(log.since(at(&log, 3)).map(|changes| changes.len()), Some(KEPT_CHANGES));
    }
}
