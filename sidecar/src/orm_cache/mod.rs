//! The ORM cache: what one worker of one Odoo server computed, all of them find.
//!
//! The Odoo module (`addon/`) asks over a Unix socket ([`socket`]). Values are bytes to the sidecar, found by a
//! digest of all that they depend on: what was true under a key is true forever, so that an invalidation is a
//! new key. Local memory is bounded; through Redis sidecars share, within bounds of time.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};

mod leases;
mod memory;
mod shared;
mod socket;
mod stats;
mod wire;

pub(crate) use self::{
    shared::Shared,
    socket::serve,
    stats::{CacheMetrics, Report, Row},
};

use self::{
    leases::{Lease, Leases, Taken},
    memory::Memory,
    shared::Found,
    stats::{Outcome, Stats},
    wire::{Entry, Family, Generation, Get, Key, Label, Put},
};

/// The longest that one waits for another who computes, whatever it asks for.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// How often is looked whether another sidecar has computed a value.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// What became of a look-up.
enum Answer {
    Value(Entry),
    /// To be computed under this lease.
    Lease(Lease),
    /// To be computed.
    Miss,
}

/// The values that this sidecar knows or can get.
pub(crate) struct OrmCache {
    memory: Memory,
    most_bytes: u64,
    leases: Leases,
    shared: Option<Arc<Shared>>,
    stats: Stats,
}

impl OrmCache {
    /// A cache that keeps so many bytes at hand; none if they are too few.
    pub(crate) fn new(bytes: u64, shared: Option<Arc<Shared>>, metrics: CacheMetrics) -> Option<Arc<Self>> {
        let memory = Memory::new(bytes)?;
        let (leases, stats) = (Leases::default(), Stats::new(metrics));
        Some(Arc::new(Self { memory, most_bytes: bytes, leases, shared, stats }))
    }

    /// Frees what others say is of no use, for as long as the process lives.
    pub(crate) async fn follow(self: Arc<Self>) {
        if let Some(shared) = self.shared.clone() {
            let forget = |family, generation| {
                self.memory.invalidate(family, generation);
            };
            shared.follow(forget).await;
        }
    }

    fn found(&self, label: &Label, outcome: Outcome, entry: Entry) -> Answer {
        self.stats.looked_up(label, outcome, entry.cost_us);
        Answer::Value(entry)
    }

    fn missed(&self, label: &Label, answer: Answer) -> Answer {
        self.stats.looked_up(label, Outcome::Miss, 0);
        answer
    }

    /// Looks a value up. Whoever finds none has its lease, or has waited in vain for who has it.
    async fn get(&self, ask: &Get) -> Answer {
        if let Some(entry) = self.memory.get(&ask.key) {
            return self.found(&ask.label, Outcome::Hit, entry);
        }
        let deadline = Instant::now() + ask.wait.min(LONGEST_WAIT);
        loop {
            match self.leases.take(ask.key) {
                Taken::Yes(lease) => return self.fetch(ask, lease, deadline).await,
                Taken::No(elsewhere) => elsewhere.wait(deadline).await,
            }
            if let Some(entry) = self.memory.get(&ask.key) {
                return self.found(&ask.label, Outcome::Waited, entry);
            }
            if Instant::now() >= deadline {
                return self.missed(&ask.label, Answer::Miss);
            }
        }
    }

    /// Asks the other sidecars, as the only one here who does.
    async fn fetch(&self, ask: &Get, lease: Lease, deadline: Instant) -> Answer {
        // Between the look into the memory and the lease another may have ended.
        if let Some(entry) = self.memory.get(&ask.key) {
            return self.found(&ask.label, Outcome::Waited, entry);
        }
        let mut outcome = Outcome::Shared;
        if let Some(shared) = &self.shared {
            loop {
                match shared.find(&ask.key, lease.id).await {
                    Some(Found::Value(entry)) => {
                        self.memory.insert(ask.key, entry.clone());
                        drop(lease);
                        return self.found(&ask.label, outcome, entry);
                    }
                    Some(Found::Elsewhere) if Instant::now() < deadline => sleep(LOOK_AGAIN).await,
                    Some(Found::Leased | Found::Elsewhere) | None => break,
                }
                outcome = Outcome::Waited;
            }
        }
        self.missed(&ask.label, Answer::Lease(lease))
    }

    /// Takes a value in, for everybody.
    fn put(&self, put: Put) {
        let Put { key, lease, label, entry } = put;
        self.stats.published(&label, entry.value.len() as u64);
        self.memory.insert(key, entry.clone());
        self.leases.end(&key, lease);
        if let Some(shared) = &self.shared {
            shared.put(key, lease, entry);
        }
    }

    /// Lets another compute a value.
    fn release(&self, key: Key, lease: u64) {
        if self.leases.end(&key, lease)
            && let Some(shared) = &self.shared
        {
            shared.release(key, lease);
        }
    }

    /// Frees what is of no use any more, here and at the others.
    fn invalidate(&self, family: Family, generation: Generation) {
        if let Some(dropped) = self.memory.invalidate(family, generation)
            && let Some(shared) = &self.shared
        {
            shared.invalidate(family, generation, dropped);
        }
    }

    /// Sets the metrics of what is at hand.
    pub(crate) fn measure(&self) {
        self.stats.holds(self.memory.len(), self.memory.bytes());
    }

    /// How it stands.
    pub(crate) fn report(&self) -> Report {
        Report {
            values: self.memory.len() as u64,
            bytes: self.memory.bytes(),
            most_bytes: self.most_bytes,
            leases: self.leases.len() as u64,
            sharing: self.shared.as_ref().map(|shared| shared.works()),
            methods: self.stats.rows(),
        }
    }
}
