//! The owners as this sidecar tells them to filters: looked up and claimed in the store, and followed
//! by a log of changes that each filter reads from its own position.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use affinity::{
    NodeId, SessionKey,
    wire::{Change, Claim, ClaimReply, Cursor, Owner},
};
use tokio::sync::{mpsc, watch};

use crate::{
    metrics::{ClaimResult, LookupResult, Metrics},
    store::{Event, Store, StoreError},
};

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
    metrics: Arc<Metrics>,
    log: Mutex<Log>,
    news: watch::Sender<()>,
}

impl Directory {
    pub(crate) fn new(store: Arc<dyn Store>, metrics: Arc<Metrics>) -> Self {
        Self { store, metrics, log: Mutex::new(Log::new()), news: watch::Sender::default() }
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
                    self.log().add(change);
                }
                Event::Lost => {
                    self.metrics.resets.inc();
                    *self.log() = Log::new();
                }
            }
            self.news.send_replace(());
        }
    }

    /// Who owns a session.
    ///
    /// # Errors
    /// If the store cannot say.
    pub(crate) async fn owner(&self, key: SessionKey) -> Result<Option<Owner>, StoreError> {
        let owner = self.store.owner(key).await;
        self.metrics.lookup(match &owner {
            Ok(Some(_)) => LookupResult::Owned,
            Ok(None) => LookupResult::Unowned,
            Err(_) => LookupResult::Failed,
        });
        owner
    }

    /// Claims a session.
    ///
    /// # Errors
    /// If the store cannot say what became of the claim.
    pub(crate) async fn claim(&self, claim: Claim) -> Result<ClaimReply, StoreError> {
        let reply = self.store.claim(claim).await;
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
        (Cursor { generation: log.generation, position: log.position }, log.since(cursor))
    }

    /// Tells when there may be changes.
    pub(crate) fn news(&self) -> watch::Receiver<()> {
        self.news.subscribe()
    }

    /// How many sessions each node owns, where the store can tell.
    pub(crate) async fn sessions(&self) -> Option<HashMap<NodeId, u64>> {
        self.store.sessions().await.ok().flatten()
    }

    /// Whether the store can be reached.
    ///
    /// # Errors
    /// If it cannot.
    pub(crate) async fn ping(&self) -> Result<(), StoreError> {
        self.store.ping().await
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
