//! Carries the sessions of one node: publishes what its Odoo writes, and writes what others published.
//!
//! Whatever happens (a file written, news from the store, a look at everything) leads to the same step
//! for one session at a time: compare disk and store, and do what is to be done (`step.rs`).

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use affinity::{Membership, NodeId, SessionKey, wire::CarriedReport};
use tokio::sync::{Semaphore, watch};

use super::{
    disk::{Disk, Place},
    goner::Goners,
    memory::{Ended, Known},
    seal::Sealer,
    step::Problem,
};
use crate::{
    metrics::{CopyOutcome, Metrics},
    store::Store,
};

/// Sessions that are looked at at once.
const AT_ONCE: usize = 32;
/// How long after a file went it is looked for: Odoo 19 deletes and saves again within one request.
const GONE: Duration = Duration::from_millis(50);
/// How long after a failure a session is looked at again.
const AGAIN: Duration = Duration::from_secs(2);

/// Why a session is looked at.
#[derive(Clone, Debug)]
pub(super) struct Job {
    pub(super) place: Option<Place>,
    /// The store knows something that this node may not.
    pub(super) ask: bool,
    /// The node was asked to have the copy.
    pub(super) wanted: bool,
    /// The standby is to be asked to have it, if it has not.
    pub(super) offer: bool,
    pub(super) since: Instant,
    /// Something else was tried first, and this is the time after.
    pub(super) waited: bool,
}

impl Job {
    fn new(place: Option<Place>, ask: bool) -> Self {
        Self { place, ask, wanted: false, offer: false, since: Instant::now(), waited: false }
    }

    /// Both reasons in one.
    fn and(self, other: Self) -> Self {
        Self {
            place: other.place.or(self.place),
            ask: self.ask || other.ask,
            wanted: self.wanted || other.wanted,
            offer: self.offer || other.offer,
            ..self
        }
    }
}

#[derive(Default)]
pub(super) struct State {
    pub(super) known: HashMap<SessionKey, Known>,
    /// The sessions that are looked at, and why they are to be looked at once more.
    busy: HashMap<SessionKey, Option<Job>>,
    pub(super) goners: Goners,
    pub(super) ended: Ended,
}

/// The carrier of one node's sessions.
pub(crate) struct Carrier {
    pub(super) node: NodeId,
    pub(super) disk: Disk,
    pub(super) sealer: Arc<Sealer>,
    pub(super) store: Arc<dyn Store>,
    pub(super) membership: watch::Receiver<Arc<Membership>>,
    /// How long Odoo keeps a session that nobody saves.
    pub(super) lifetime: Duration,
    pub(super) metrics: Arc<Metrics>,
    slots: Semaphore,
    state: Mutex<State>,
    /// How many sessions of how many a look at everything has seen; none before the first.
    pub(super) progress: watch::Sender<Option<(u64, u64)>>,
}

impl Carrier {
    pub(super) fn new(
        node: NodeId,
        disk: Disk,
        sealer: Arc<Sealer>,
        store: Arc<dyn Store>,
        membership: watch::Receiver<Arc<Membership>>,
        lifetime: Duration,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            node,
            disk,
            sealer,
            store,
            membership,
            lifetime,
            metrics,
            slots: Semaphore::new(AT_ONCE),
            state: Mutex::default(),
            progress: watch::Sender::default(),
        }
    }

    /// How it stands.
    pub(crate) fn report(&self) -> CarriedReport {
        let state = self.state();
        let progress = *self.progress.borrow();
        let (looked_at, of) = progress.unwrap_or_default();
        CarriedReport {
            sessions: state.known.len() as u64,
            waiting: state.busy.len() as u64,
            looked_at,
            of,
            complete: progress.is_some() && looked_at == of,
        }
    }

    /// A file of the session was written.
    pub(super) fn changed(self: &Arc<Self>, place: Place) {
        self.look(place.key(), Job::new(Some(place), false), Duration::ZERO);
    }

    /// A file of the session is gone.
    pub(super) fn removed(self: &Arc<Self>, place: Place) {
        {
            let mut state = self.state();
            let sessions = state.known.len();
            // A session that nobody knows any more was removed by this process.
            if state.known.contains_key(&place.key()) {
                state.goners.gone(place.key(), sessions);
            }
        }
        // Nobody but who empties the directory takes the folder too: then every moment counts.
        let after = if self.disk.has_folder(&place) { GONE } else { Duration::ZERO };
        self.look(place.key(), Job::new(Some(place), false), after);
    }

    /// A look at everything came to this session.
    pub(super) fn visited(self: &Arc<Self>, key: SessionKey, place: Option<Place>) {
        self.look(key, Job { offer: true, ..Job::new(place, true) }, Duration::ZERO);
    }

    /// Another node published the session, or ended it.
    pub(super) fn published(self: &Arc<Self>, key: SessionKey, by: Option<&NodeId>) {
        if by.is_none() {
            self.state().ended.remember(key);
        }
        let is_its_own = by == Some(&self.node);
        let concerns = match by {
            Some(by) => self.holds(key, by) || self.state().known.contains_key(&key),
            None => true,
        };
        if concerns && !is_its_own {
            self.look(key, Job::new(None, true), Duration::ZERO);
        }
    }

    /// Somebody wants this node to have the session.
    pub(super) fn wanted(self: &Arc<Self>, key: SessionKey) {
        self.look(key, Job { wanted: true, ..Job::new(None, true) }, Duration::ZERO);
    }

    /// The node became the session's owner, or is it no more.
    pub(super) fn owner_changed(self: &Arc<Self>, key: SessionKey) {
        if self.state().known.contains_key(&key) {
            self.look(key, Job::new(None, true), Duration::ZERO);
        }
    }

    /// Whether this sidecar has seen the session on the node's disk.
    pub(super) fn knows(&self, key: SessionKey) -> bool {
        self.state().known.contains_key(&key)
    }

    /// The sessions that this node saw end.
    pub(super) fn ended(&self) -> Vec<SessionKey> {
        self.state().ended.keys()
    }

    /// Looks at a session after a while; once, however many reasons there are.
    fn look(self: &Arc<Self>, key: SessionKey, job: Job, after: Duration) {
        match self.state().busy.entry(key) {
            Entry::Occupied(mut again) => {
                let job = match again.get_mut().take() {
                    Some(before) => before.and(job),
                    None => job,
                };
                again.insert(Some(job));
                return;
            }
            Entry::Vacant(place) => place.insert(None),
        };
        let carrier = Arc::clone(self);
        tokio::spawn(async move { carrier.work(key, job, after).await });
    }

    /// Looks at one session until nothing is left to do.
    async fn work(&self, key: SessionKey, mut job: Job, mut after: Duration) {
        loop {
            if !after.is_zero() {
                tokio::time::sleep(after).await;
            }
            let next = {
                // The semaphore is never closed.
                let _slot = self.slots.acquire().await;
                self.step(key, &mut job).await
            };
            let again = match next {
                Ok(again) => again,
                // Nothing here will make it readable.
                Err(problem @ Problem::Sealed) => {
                    self.metrics.copies(&self.node, CopyOutcome::Failed);
                    tracing::error!(node = %self.node, session = %key, "is not carried: {problem}");
                    None
                }
                Err(problem) => {
                    self.metrics.copies(&self.node, CopyOutcome::Failed);
                    tracing::warn!(node = %self.node, session = %key, "is not carried yet: {problem}");
                    Some(AGAIN)
                }
            };
            let mut state = self.state();
            let reason = state.busy.get_mut(&key).and_then(Option::take);
            match (again, reason) {
                (None, None) => {
                    state.busy.remove(&key);
                    return;
                }
                (None, Some(reason)) => (job, after) = (reason, Duration::ZERO),
                (Some(wait), None) => after = wait,
                // What happened meanwhile may change everything.
                (Some(_), Some(reason)) => (job, after) = (job.and(reason), Duration::ZERO),
            }
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
