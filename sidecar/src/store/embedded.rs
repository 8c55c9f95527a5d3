//! The directory in one file of this process: nothing to install, nothing lost at a restart.
//!
//! Claims that come together are committed together, and each is answered when it is on disk.

use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use affinity::{
    NodeId, SessionKey,
    wire::{Change, Claim, ClaimReply, Owner},
};
use async_trait::async_trait;
use redb::{Database, ReadableDatabase};
use tokio::sync::{broadcast, mpsc, oneshot};

use super::{
    Event, Outcome, Store, StoreError, decide, prolong_after,
    records::{Record, Records, count_sessions, find},
};

/// Writes that wait to be committed, and how many are committed at once.
const WAITING_WRITES: usize = 4_096;
const BATCH: usize = 512;
/// Changes kept for followers that are slow.
const WAITING_CHANGES: usize = 4_096;
/// How often expired records are removed, and how many at once, so that claims get their turn.
const SWEEP_EVERY: Duration = Duration::from_secs(30);
const SWEEP: usize = 10_000;

enum Write {
    Claim(Claim, oneshot::Sender<Result<ClaimReply, StoreError>>),
    Prolong(SessionKey),
    Sweep,
}

/// The embedded store.
#[derive(Debug)]
pub(crate) struct Embedded {
    database: Arc<Database>,
    writes: mpsc::Sender<Write>,
    changes: broadcast::Sender<Change>,
    counts: Arc<Mutex<HashMap<NodeId, u64>>>,
}

/// Why the store's file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("another process uses it: one sidecar serves all Odoo servers of a host")]
    Busy,
    #[error("{0}")]
    Database(#[from] redb::Error),
}

impl Embedded {
    /// Opens the store in the folder `state_dir`; makes both if they are not there.
    ///
    /// # Errors
    /// If the folder cannot be made or written, or another process has the store open.
    pub(crate) fn open(state_dir: &Path, lifetime: Duration) -> Result<Self, OpenError> {
        std::fs::create_dir_all(state_dir)?;
        match Database::create(state_dir.join("directory.redb")) {
            Ok(database) => Self::start(database, lifetime),
            Err(redb::DatabaseError::DatabaseAlreadyOpen) => Err(OpenError::Busy),
            Err(error) => Err(redb::Error::from(error).into()),
        }
    }

    fn start(database: Database, lifetime: Duration) -> Result<Self, OpenError> {
        let counts = count_sessions(&database)?;
        let (writes, queue) = mpsc::channel(WAITING_WRITES);
        let store = Self {
            database: Arc::new(database),
            writes: writes.clone(),
            changes: broadcast::channel(WAITING_CHANGES).0,
            counts: Arc::new(Mutex::new(counts)),
        };
        let writer = Writer {
            database: Arc::clone(&store.database),
            changes: store.changes.clone(),
            counts: Arc::clone(&store.counts),
            lifetime: lifetime.as_secs(),
            prolong_after: prolong_after(lifetime).as_secs(),
        };
        std::thread::Builder::new().name("directory".into()).spawn(move || writer.run(queue))?;
        // Weak: sweeping must not keep open what nobody else uses.
        let writes = writes.downgrade();
        tokio::spawn(async move {
            let mut ticks = tokio::time::interval(SWEEP_EVERY);
            loop {
                ticks.tick().await;
                let Some(writes) = writes.upgrade() else { return };
                if writes.send(Write::Sweep).await.is_err() {
                    return;
                }
            }
        });
        Ok(store)
    }
}

#[async_trait]
impl Store for Embedded {
    async fn owner(&self, key: SessionKey) -> Result<Option<Owner>, StoreError> {
        let found = find(&self.database, key).map_err(unreachable)?;
        let Some(record) = found.filter(|record| record.expires > now()) else { return Ok(None) };
        // Whether it is time is the writer's to say; a full queue will see it at the next look-up.
        let _ = self.writes.try_send(Write::Prolong(key));
        Ok(Some(record.owner))
    }

    async fn claim(&self, claim: Claim) -> Result<ClaimReply, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.writes.send(Write::Claim(claim, reply)).await.map_err(unreachable)?;
        answer.await.map_err(unreachable)?
    }

    async fn sessions(&self) -> Result<Option<HashMap<NodeId, u64>>, StoreError> {
        Ok(Some(self.counts.lock().unwrap_or_else(PoisonError::into_inner).clone()))
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.database.begin_read().map(drop).map_err(unreachable)
    }

    async fn follow(&self, events: mpsc::Sender<Event>) {
        let mut changes = self.changes.subscribe();
        loop {
            let event = match changes.recv().await {
                Ok(change) => Event::Changed(change),
                Err(broadcast::error::RecvError::Lagged(_)) => Event::Lost,
                Err(broadcast::error::RecvError::Closed) => return,
            };
            if events.send(event).await.is_err() {
                return;
            }
        }
    }
}

/// The thread that writes.
struct Writer {
    database: Arc<Database>,
    changes: broadcast::Sender<Change>,
    counts: Arc<Mutex<HashMap<NodeId, u64>>>,
    /// In seconds, as is the next.
    lifetime: u64,
    prolong_after: u64,
}

/// What a batch did, to be told once it is committed.
#[derive(Default)]
struct Effects {
    /// One for each claim, in their order.
    replies: Vec<ClaimReply>,
    changes: Vec<Change>,
    /// Sessions that each node gained or lost.
    moved: HashMap<NodeId, i64>,
}

impl Writer {
    fn run(self, mut queue: mpsc::Receiver<Write>) {
        let mut batch = Vec::with_capacity(BATCH);
        while queue.blocking_recv_many(&mut batch, BATCH) > 0 {
            let mut result = self.write(&batch);
            if let Ok(effects) = &mut result {
                self.tell(effects);
            }
            let mut replies = result.as_ref().map(|effects| effects.replies.iter());
            for write in batch.drain(..) {
                if let Write::Claim(_, answer) = write {
                    let reply = match &mut replies {
                        Ok(replies) => replies.next().cloned().ok_or_else(|| unreachable("no reply")),
                        Err(error) => Err(unreachable(error)),
                    };
                    // Who asked may have gone.
                    let _ = answer.send(reply);
                }
            }
        }
    }

    /// Does all of a batch in one transaction, or nothing of it.
    fn write(&self, batch: &[Write]) -> Result<Effects, redb::Error> {
        let mut effects = Effects::default();
        let mut dirty = false;
        let transaction = self.database.begin_write()?;
        {
            let mut records = Records::open(&transaction)?;
            let now = now();
            for write in batch {
                dirty |= match write {
                    Write::Claim(claim, _) => self.claim(&mut records, claim, now, &mut effects)?,
                    Write::Prolong(key) => self.prolong(&mut records, *key, now)?,
                    Write::Sweep => {
                        let gone = records.remove_expired(now, SWEEP)?;
                        for node in &gone {
                            *effects.moved.entry(node.clone()).or_default() -= 1;
                        }
                        !gone.is_empty()
                    }
                };
            }
        }
        if dirty {
            transaction.commit()?
        } else {
            transaction.abort()?
        }
        Ok(effects)
    }

    fn claim(
        &self,
        records: &mut Records<'_>,
        claim: &Claim,
        now: u64,
        effects: &mut Effects,
    ) -> Result<bool, redb::Error> {
        let stored = records.get(claim.key)?;
        let present = stored.as_ref().filter(|record| record.expires > now).map(|record| &record.owner);
        let (reply, outcome) = decide(claim, present);
        effects.replies.push(reply.clone());
        match outcome {
            Outcome::Refused => return Ok(false),
            Outcome::Kept => return self.prolong(records, claim.key, now),
            Outcome::First => {}
            Outcome::Moved => {
                effects.changes.push(Change { key: claim.key, owner: Some(reply.owner.clone()) });
            }
        }
        // An expired record still counts until it is replaced or swept.
        if let Some(before) = &stored {
            *effects.moved.entry(before.owner.node.clone()).or_default() -= 1;
        }
        *effects.moved.entry(claim.node.clone()).or_default() += 1;
        records.set(
            claim.key,
            stored.as_ref(),
            &Record { owner: reply.owner, expires: now + self.lifetime },
        )?;
        Ok(true)
    }

    /// Lets a record live its whole time from now on, if it has not been prolonged for a while.
    fn prolong(&self, records: &mut Records<'_>, key: SessionKey, now: u64) -> Result<bool, redb::Error> {
        let expires = now + self.lifetime;
        match records.get(key)? {
            Some(record) if record.expires + self.prolong_after <= expires => {
                let prolonged = Record { owner: record.owner.clone(), expires };
                records.set(key, Some(&record), &prolonged)?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    fn tell(&self, effects: &mut Effects) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        for (node, difference) in effects.moved.drain() {
            let count = counts.entry(node).or_default();
            *count = count.saturating_add_signed(difference);
        }
        drop(counts);
        for change in effects.changes.drain(..) {
            // Nobody may be following.
            let _ = self.changes.send(change);
        }
    }
}

fn unreachable(error: impl std::fmt::Display) -> StoreError {
    StoreError::Unreachable(error.to_string())
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
