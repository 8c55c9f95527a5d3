//! The directory in one file of this process: nothing to install, nothing lost at a restart.
//!
//! Claims that come together are committed together, and each is answered when it is on disk.

use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use affinity::{
    NodeId, SessionKey,
    wire::{Change, Claim, ClaimReply, Owner},
};
use async_trait::async_trait;
use redb::{Database, ReadableDatabase};
use tokio::sync::{broadcast, mpsc, oneshot};

use super::{
    Event, FORGOTTEN_AFTER, Lifetimes, Outcome, Page, Registered, Registration, Roster, Store, StoreError,
    decide,
    records::{self, Record, Records, find},
};

/// Writes that wait to be committed, and how many are committed at once.
const WAITING_WRITES: usize = 4_096;
const BATCH: usize = 512;
/// Changes kept for followers that are slow.
const WAITING_CHANGES: usize = 4_096;
/// How often expired records are removed, and how many at once, so that claims get their turn.
const SWEEP_EVERY: Duration = Duration::from_secs(30);
const SWEEP: usize = 10_000;
/// Records looked at for one page of a node's sessions.
const PAGE: usize = 10_000;

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
    events: broadcast::Sender<Event>,
    /// The nodes that register, and when they did. They do so again at once after a restart.
    nodes: Mutex<HashMap<NodeId, (Registration, Instant)>>,
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
    pub(crate) fn open(state_dir: &Path, lifetimes: Lifetimes) -> Result<Self, OpenError> {
        std::fs::create_dir_all(state_dir)?;
        match Database::create(state_dir.join("directory.redb")) {
            Ok(database) => Self::start(database, lifetimes),
            Err(redb::DatabaseError::DatabaseAlreadyOpen) => Err(OpenError::Busy),
            Err(error) => Err(redb::Error::from(error).into()),
        }
    }

    fn start(database: Database, lifetimes: Lifetimes) -> Result<Self, OpenError> {
        records::make(&database)?;
        let (writes, queue) = mpsc::channel(WAITING_WRITES);
        let store = Self {
            database: Arc::new(database),
            writes: writes.clone(),
            events: broadcast::channel(WAITING_CHANGES).0,
            nodes: Mutex::default(),
        };
        let writer = Writer {
            database: Arc::clone(&store.database),
            events: store.events.clone(),
            provisional: lifetimes.provisional.as_secs(),
            durable: lifetimes.durable.as_secs(),
            prolong_after: lifetimes.prolong_after().as_secs(),
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

    async fn owned(&self, node: &NodeId, from: Option<&str>) -> Result<Page, StoreError> {
        let from = from.map_or(Ok(SessionKey::from([0; 16])), str::parse);
        let from = from.map_err(|error| StoreError::Foreign(error.to_string()))?;
        let (database, node) = (Arc::clone(&self.database), node.clone());
        let page = tokio::task::spawn_blocking(move || records::of_node(&database, &node, from, PAGE));
        let (sessions, next) = page.await.map_err(unreachable)?.map_err(unreachable)?;
        Ok(Page { sessions, next: next.map(|key| key.to_string()) })
    }

    async fn register(&self, registration: &Registration) -> Result<(), StoreError> {
        let id = registration.node.id.clone();
        let before = self.nodes().insert(id, (registration.clone(), Instant::now()));
        if before.is_none_or(|(before, _)| before.node != registration.node) {
            self.tell(Event::Nodes);
        }
        Ok(())
    }

    async fn set_draining(&self, node: &NodeId, draining: bool) -> Result<(), StoreError> {
        let (database, node) = (Arc::clone(&self.database), node.clone());
        let set = tokio::task::spawn_blocking(move || records::set_draining(&database, &node, draining));
        if set.await.map_err(unreachable)?.map_err(unreachable)? {
            self.tell(Event::Nodes);
        }
        Ok(())
    }

    async fn roster(&self, _own: &HashMap<NodeId, u64>) -> Result<Roster, StoreError> {
        let draining = records::draining(&self.database).map_err(unreachable)?;
        let mut nodes = self.nodes();
        nodes.retain(|_, (_, beat)| beat.elapsed() < FORGOTTEN_AFTER);
        let registered = |(registration, beat): &(Registration, Instant)| Registered {
            node: registration.node.clone(),
            probe_ms: Some(registration.probe_ms),
            age: beat.elapsed(),
        };
        Ok(Roster { nodes: nodes.values().map(registered).collect(), draining, loads: HashMap::new() })
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.database.begin_read().map(drop).map_err(unreachable)
    }

    async fn follow(&self, events: mpsc::Sender<Event>) {
        let mut all = self.events.subscribe();
        loop {
            let event = match all.recv().await {
                Ok(event) => event,
                Err(broadcast::error::RecvError::Lagged(_)) => Event::Lost,
                Err(broadcast::error::RecvError::Closed) => return,
            };
            if events.send(event).await.is_err() {
                return;
            }
        }
    }
}

impl Embedded {
    fn nodes(&self) -> MutexGuard<'_, HashMap<NodeId, (Registration, Instant)>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, event: Event) {
        // Nobody may be following.
        let _ = self.events.send(event);
    }
}

/// The thread that writes.
struct Writer {
    database: Arc<Database>,
    events: broadcast::Sender<Event>,
    /// In seconds, as are the next two.
    provisional: u64,
    durable: u64,
    prolong_after: u64,
}

/// What a batch did, to be told once it is committed.
#[derive(Default)]
struct Effects {
    /// One for each claim, in their order.
    replies: Vec<ClaimReply>,
    changes: Vec<Change>,
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
                    Write::Prolong(key) => {
                        self.prolong(&mut records, *key, now + self.durable, self.prolong_after)?
                    }
                    Write::Sweep => records.remove_expired(now, SWEEP)? > 0,
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
        let provisional = now + self.provisional;
        match outcome {
            Outcome::Refused => return Ok(false),
            Outcome::Kept => return self.prolong(records, claim.key, provisional, 1),
            Outcome::First => {}
            Outcome::Moved => {
                effects.changes.push(Change { key: claim.key, owner: Some(reply.owner.clone()) });
            }
        }
        // A session that moves lives on for as long as it would have.
        let expires = stored.as_ref().map_or(provisional, |record| record.expires.max(provisional));
        records.set(claim.key, stored.as_ref(), &Record { owner: reply.owner, expires })?;
        Ok(true)
    }

    /// Lets a record live until `expires`, if that is `least` seconds longer than it would.
    fn prolong(
        &self,
        records: &mut Records<'_>,
        key: SessionKey,
        expires: u64,
        least: u64,
    ) -> Result<bool, redb::Error> {
        match records.get(key)? {
            Some(record) if record.expires + least <= expires => {
                let prolonged = Record { owner: record.owner.clone(), expires };
                records.set(key, Some(&record), &prolonged)?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    fn tell(&self, effects: &mut Effects) {
        for change in effects.changes.drain(..) {
            // Nobody may be following.
            let _ = self.events.send(Event::Changed(change));
        }
    }
}

fn unreachable(error: impl std::fmt::Display) -> StoreError {
    StoreError::Unreachable(error.to_string())
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
