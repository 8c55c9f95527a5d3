//! Carries the sessions of one node: publishes what its Odoo writes, and writes what others published.
//!
//! Whatever happens (a file written, news from the store, a look at everything) leads to the same step
//! for one session at a time: compare disk and store, and do what is to be done (`step.rs`).

use std::{
    collections::{HashMap, hash_map::Entry},
    mem::Discriminant,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use affinity::{Membership, NodeId, SessionKey, wire::CarriedReport};
use tokio::sync::{Notify, Semaphore, watch};

use super::{
    disk::{Disk, Place},
    goner::Goners,
    memory::{Ended, Known, LeftAlone},
    seal::Sealer,
    step::Problem,
};
use crate::{
    files::Reason,
    metrics::{CopyOutcome, Metrics},
    store::Store,
};

/// Sessions that are looked at at once.
const AT_ONCE: usize = 32;
/// How long after a file went it is looked for: Odoo 19 deletes and saves again within one request.
const GONE: Duration = Duration::from_millis(50);
/// How long after a failure a session is looked at again, unless there is a new reason to.
const AGAIN: Duration = Duration::from_secs(2);
/// How often a kind of failure is logged.
const TELL: Duration = Duration::from_secs(10);

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
    /// Since when somebody else has time to do it, who should.
    left_to_others: Option<Instant>,
}

impl Job {
    fn new(place: Option<Place>, ask: bool) -> Self {
        Self { place, ask, wanted: false, offer: false, since: Instant::now(), left_to_others: None }
    }

    /// How long others still have to do what they should do first, of so much time in all.
    pub(super) fn left_to_others(&mut self, time: Duration) -> Option<Duration> {
        let since = *self.left_to_others.get_or_insert_with(Instant::now);
        // Whatever else happens to the session meanwhile does not shorten it.
        time.checked_sub(since.elapsed()).filter(|left| !left.is_zero())
    }

    /// Both reasons in one.
    fn and(self, other: Self) -> Self {
        Self {
            place: other.place.or(self.place),
            ask: self.ask || other.ask,
            wanted: self.wanted || other.wanted,
            offer: self.offer || other.offer,
            left_to_others: self.left_to_others.or(other.left_to_others),
            since: self.since,
        }
    }
}

#[derive(Default)]
pub(super) struct State {
    pub(super) known: HashMap<SessionKey, Known>,
    /// The sessions that are looked at.
    busy: HashMap<SessionKey, Busy>,
    pub(super) goners: Goners,
    pub(super) ended: Ended,
    pub(super) left_alone: LeftAlone,
    /// When each kind of failure was told of last.
    told: HashMap<Discriminant<Problem>, Instant>,
}

/// A session that is looked at.
#[derive(Default)]
struct Busy {
    /// Why it is to be looked at once more.
    again: Option<Job>,
    /// Wakes who waits.
    reason: Arc<Notify>,
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
            left_alone: state.left_alone.len() as u64,
        }
    }

    /// Whether any session is being looked at, or is to be.
    pub(super) fn is_busy(&self) -> bool {
        !self.state().busy.is_empty()
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
        let after = if self.disk.has_folder(&place).unwrap_or(true) { GONE } else { Duration::ZERO };
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

    /// The node became the session's owner, or is it no more. A new owner may have another standby, which
    /// nobody else tells.
    pub(super) fn owner_changed(self: &Arc<Self>, key: SessionKey) {
        if self.state().known.contains_key(&key) {
            self.look(key, Job { offer: true, ..Job::new(None, true) }, Duration::ZERO);
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
            Entry::Occupied(mut busy) => {
                let busy = busy.get_mut();
                busy.again = Some(match busy.again.take() {
                    Some(before) => before.and(job),
                    None => job,
                });
                busy.reason.notify_one();
                return;
            }
            Entry::Vacant(place) => place.insert(Busy::default()),
        };
        let carrier = Arc::clone(self);
        tokio::spawn(async move { carrier.work(key, job, after).await });
    }

    /// Looks at one session until nothing is left to do.
    async fn work(&self, key: SessionKey, mut job: Job, mut after: Duration) {
        loop {
            if !after.is_zero() {
                self.reason(key, after).await;
            }
            let next = {
                // The semaphore is never closed.
                let _slot = self.slots.acquire().await;
                if let Some(reason) = self.state().busy.get_mut(&key).and_then(|busy| busy.again.take()) {
                    job = job.and(reason);
                }
                self.step(key, &mut job).await
            };
            let again = match next {
                Ok(again) => again,
                Err(problem) => {
                    self.tell(key, &problem);
                    // Nothing here will make a copy readable that is sealed with another secret.
                    Some(AGAIN).filter(|_| !matches!(problem, Problem::Sealed))
                }
            };
            let mut state = self.state();
            let reason = state.busy.get_mut(&key).and_then(|busy| busy.again.take());
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

    /// Waits until there is another reason to look at a session, or time is up.
    async fn reason(&self, key: SessionKey, wait: Duration) {
        let reason = self.state().busy.get(&key).map(|busy| Arc::clone(&busy.reason));
        if let Some(reason) = reason {
            let _ = tokio::time::timeout(wait, reason.notified()).await;
        }
    }

    /// Notes that a session is there and is not carried. The first that is for a reason is told of.
    pub(super) fn leave_alone(&self, key: SessionKey, reason: Reason) {
        let mut state = self.state();
        state.goners.forget(key);
        let (is_new, is_first) = state.left_alone.note(key, reason);
        drop(state);
        if is_new {
            self.metrics.copies(&self.node, CopyOutcome::LeftAlone);
        }
        if is_first {
            tracing::warn!(
                node = %self.node,
                session = %key,
                "is left alone while its file is {reason}: other servers keep the copy that they have"
            );
        }
    }

    /// Counts a failure, and logs it unless one of its kind just was: a full disk or a store that is away
    /// befalls all sessions alike.
    fn tell(&self, key: SessionKey, problem: &Problem) {
        self.metrics.copies(&self.node, CopyOutcome::Failed);
        let (is_new, waiting) = {
            let mut state = self.state();
            let kind = std::mem::discriminant(problem);
            let is_new = state.told.get(&kind).is_none_or(|then| then.elapsed() > TELL);
            if is_new {
                state.told.insert(kind, Instant::now());
            }
            (is_new, state.busy.len())
        };
        match problem {
            _ if !is_new => tracing::debug!(node = %self.node, session = %key, "is not carried: {problem}"),
            Problem::Sealed => {
                tracing::error!(node = %self.node, session = %key, "is not carried: {problem}")
            }
            _ => tracing::warn!(node = %self.node, session = %key, waiting, "is not carried yet: {problem}"),
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_else_happens_does_not_shorten_what_is_left_to_others() {
        let mut job = Job::new(None, true);
        let time = Duration::from_secs(3_600);
        let left = job.left_to_others(time).unwrap();
        // As when Odoo writes the second file of two.
        let mut both = job.clone().and(Job::new(None, false));
        assert!(both.left_to_others(time).is_some_and(|now| now <= left && !now.is_zero()));
        // Nor is it given anew to who had it.
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(both.left_to_others(Duration::from_millis(1)), None);
        assert_eq!(job.and(both).left_to_others(Duration::from_millis(1)), None);
    }
}
