//! The directory in one file of this process: nothing to install, nothing lost at a restart.

use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use affinity::{
    NodeId, SessionKey,
    wire::{Claim, ClaimReply, LeaseReply, LeaseRequest, Owner},
};
use async_trait::async_trait;
use redb::{Database, ReadableDatabase, backends::FileBackend};
use tokio::sync::{broadcast, mpsc, oneshot};

use self::writer::{Answer, Write, Writer, now};
use super::{
    Copy, CopyEvent, Drain, EndedBy, Event, FORGOTTEN_AFTER, FileRecord, FilesPage, FilesPlace, Lifetimes,
    News, Page, Publication, Published, Registered, Registration, Roster, Store, StoreError,
    lease::Lease,
    records::{self, find},
};
use crate::{lists::Told, private};

mod files;
mod writer;

/// Its file in the state folder.
const FILE: &str = "directory.redb";
/// Writes that wait to be committed.
const WAITING_WRITES: usize = 4_096;
/// Changes kept for followers that are slow.
const WAITING_CHANGES: usize = 4_096;
/// How often expired records are removed.
const SWEEP_EVERY: Duration = Duration::from_secs(30);
/// Sessions on one page.
const PAGE: usize = 10_000;

/// The embedded store.
#[derive(Debug)]
pub(crate) struct Embedded {
    database: Arc<Database>,
    writes: mpsc::Sender<Write>,
    events: broadcast::Sender<Event>,
    copy_events: broadcast::Sender<CopyEvent>,
    /// The nodes that register, and when they did. They do so again at once after a restart.
    nodes: Mutex<HashMap<NodeId, (Registration, Instant)>>,
    lease: Mutex<Lease>,
    lifetimes: Lifetimes,
    opened: Instant,
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
        private::make_folder(state_dir, FILE)?;
        let backend = FileBackend::new(private::open_file(&state_dir.join(FILE))?);
        match backend.and_then(|backend| Database::builder().create_with_backend(backend)) {
            Ok(database) => Self::start(database, lifetimes),
            Err(redb::DatabaseError::DatabaseAlreadyOpen) => Err(OpenError::Busy),
            Err(error) => Err(redb::Error::from(error).into()),
        }
    }

    fn start(database: Database, lifetimes: Lifetimes) -> Result<Self, OpenError> {
        records::make(&database)?;
        files::make(&database)?;
        let (writes, queue) = mpsc::channel(WAITING_WRITES);
        let store = Self {
            database: Arc::new(database),
            writes: writes.clone(),
            events: broadcast::channel(WAITING_CHANGES).0,
            copy_events: broadcast::channel(WAITING_CHANGES).0,
            nodes: Mutex::default(),
            lease: Mutex::new(Lease::new(Instant::now())),
            lifetimes,
            opened: Instant::now(),
        };
        let writer = Writer {
            database: Arc::clone(&store.database),
            events: store.events.clone(),
            copy_events: store.copy_events.clone(),
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
        self.write(|answer| Write::Claim(claim, answer)).await
    }

    async fn list(&self, from: Option<&str>) -> Result<Page, StoreError> {
        let from = from.map_or(Ok(SessionKey::from([0; 16])), str::parse);
        let from = from.map_err(|error| StoreError::Foreign(error.to_string()))?;
        let database = Arc::clone(&self.database);
        let page = tokio::task::spawn_blocking(move || records::list(&database, from, PAGE));
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

    async fn set_draining(&self, node: &NodeId, word: Drain) -> Result<Drain, StoreError> {
        let (database, node) = (Arc::clone(&self.database), node.clone());
        let set = tokio::task::spawn_blocking(move || records::set_draining(&database, &node, word));
        let (word, is_news) = set.await.map_err(unreachable)?.map_err(unreachable)?;
        if is_news {
            self.tell(Event::Nodes);
        }
        Ok(word)
    }

    async fn restore_drain(&self, _node: &NodeId, _word: Drain) -> Result<bool, StoreError> {
        // It is on disk before anybody hears of it.
        Ok(false)
    }

    async fn roster(&self, _own: &Told) -> Result<Roster, StoreError> {
        let drains = records::drains(&self.database).map_err(unreachable)?;
        let mut nodes = self.nodes();
        nodes.retain(|_, (_, beat)| beat.elapsed() < FORGOTTEN_AFTER);
        let registered = |(registration, beat): &(Registration, Instant)| Registered {
            node: registration.node.clone(),
            condition: registration.condition.clone(),
            beat: u64::try_from(beat.duration_since(self.opened).as_millis()).unwrap_or(u64::MAX),
            age: beat.elapsed(),
        };
        Ok(Roster {
            nodes: nodes.values().map(registered).collect(),
            drains,
            others: Vec::new(),
            cron: self.lease().holder(Instant::now()),
        })
    }

    async fn lease(&self, request: &LeaseRequest) -> Result<LeaseReply, StoreError> {
        Ok(self.lease().ask(request, Instant::now()))
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.database.begin_read().map(drop).map_err(unreachable)
    }

    async fn follow(&self, events: mpsc::Sender<Event>) {
        pass_on(self.events.subscribe(), events, Event::Lost).await;
    }

    async fn copy(&self, key: SessionKey) -> Result<Option<Copy>, StoreError> {
        let found = find(&self.database, key).map_err(unreachable)?;
        let Some(record) = found.filter(|record| record.expires > now()) else { return Ok(None) };
        records::find_copy(&self.database, key, record.owner).map(Some).map_err(unreachable)
    }

    async fn publish(&self, key: SessionKey, new: Publication) -> Result<Published, StoreError> {
        self.write(|answer| Write::Publish(key, new, answer)).await
    }

    async fn has_copy(&self, key: SessionKey, node: &NodeId, version: u64) -> Result<(), StoreError> {
        self.writes.send(Write::HasCopy(key, node.clone(), version)).await.map_err(unreachable)
    }

    async fn end(&self, key: SessionKey, by: EndedBy) -> Result<bool, StoreError> {
        self.write(|answer| Write::End(key, by, answer)).await
    }

    async fn want_copy(&self, key: SessionKey, node: &NodeId) -> Result<(), StoreError> {
        // Nobody may be following.
        let _ = self.copy_events.send(CopyEvent::Of(key, News::Wanted(node.clone())));
        Ok(())
    }

    async fn follow_copies(&self, events: mpsc::Sender<CopyEvent>) {
        pass_on(self.copy_events.subscribe(), events, CopyEvent::Lost).await;
    }

    async fn files(&self, set: &str, after: &FilesPlace) -> Result<FilesPage, StoreError> {
        let (database, set, after) = (Arc::clone(&self.database), set.to_owned(), after.clone());
        let read = tokio::task::spawn_blocking(move || files::read(&database, &set, &after));
        read.await.map_err(unreachable)?.map_err(unreachable)
    }

    async fn put_file(&self, set: &str, file: &FileRecord) -> Result<Option<FileRecord>, StoreError> {
        let (database, set, file) = (Arc::clone(&self.database), set.to_owned(), file.clone());
        let lifetime = self.lifetimes.durable.as_secs();
        let put = tokio::task::spawn_blocking(move || files::put(&database, &set, &file, lifetime));
        put.await.map_err(unreachable)?.map_err(unreachable)
    }
}

/// Passes events on until somebody is gone; tells `lost` where some were missed.
async fn pass_on<T: Clone>(mut all: broadcast::Receiver<T>, events: mpsc::Sender<T>, lost: T) {
    loop {
        let event = match all.recv().await {
            Ok(event) => event,
            Err(broadcast::error::RecvError::Lagged(_)) => lost.clone(),
            Err(broadcast::error::RecvError::Closed) => return,
        };
        if events.send(event).await.is_err() {
            return;
        }
    }
}

impl Embedded {
    /// Has something written, and waits until it is on disk.
    async fn write<T>(&self, write: impl FnOnce(Answer<T>) -> Write) -> Result<T, StoreError> {
        let (answer, answered) = oneshot::channel();
        self.writes.send(write(answer)).await.map_err(unreachable)?;
        answered.await.map_err(|_| unreachable("its file cannot be written"))
    }

    fn lease(&self) -> MutexGuard<'_, Lease> {
        self.lease.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn nodes(&self) -> MutexGuard<'_, HashMap<NodeId, (Registration, Instant)>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, event: Event) {
        // Nobody may be following.
        let _ = self.events.send(event);
    }
}

fn unreachable(error: impl std::fmt::Display) -> StoreError {
    StoreError::Unreachable(error.to_string())
}
