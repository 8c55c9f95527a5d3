//! Who computes what: of many who miss one value, one has the lease, and the others wait for its end.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

use super::wire::Key;

/// How long a lease is believed: what takes longer is computed twice.
pub(super) const LONGEST: Duration = Duration::from_secs(10);

struct Held {
    id: u64,
    until: Instant,
    /// Dropped with the lease, which those who wait see.
    end: watch::Sender<()>,
}

#[derive(Default)]
struct Table {
    last: u64,
    held: HashMap<Key, Held>,
}

/// The leases of one sidecar.
#[derive(Clone, Default)]
pub(super) struct Leases(Arc<Mutex<Table>>);

/// What came of taking a lease.
pub(super) enum Taken {
    Yes(Lease),
    /// Somebody else has it.
    No(Elsewhere),
}

/// Somebody else's lease.
pub(super) struct Elsewhere {
    until: Instant,
    end: watch::Receiver<()>,
}

impl Elsewhere {
    /// Waits for its end, or until `deadline`.
    pub(super) async fn wait(mut self, deadline: Instant) {
        // It is an error because the sender is gone, or a time-out: in either case the wait is over.
        let _ = tokio::time::timeout_at(deadline.min(self.until), self.end.changed()).await;
    }
}

/// A lease, which ends when it is dropped.
pub(super) struct Lease {
    leases: Leases,
    pub(super) key: Key,
    pub(super) id: u64,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.leases.end(&self.key, self.id);
    }
}

impl Leases {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn take(&self, key: Key) -> Taken {
        self.take_at(key, Instant::now())
    }

    fn take_at(&self, key: Key, now: Instant) -> Taken {
        let mut table = self.table();
        if let Some(held) = table.held.get(&key).filter(|held| held.until > now) {
            return Taken::No(Elsewhere { until: held.until, end: held.end.subscribe() });
        }
        // 0 is no lease.
        table.last += 1;
        let id = table.last;
        table.held.insert(key, Held { id, until: now + LONGEST, end: watch::Sender::default() });
        Taken::Yes(Lease { leases: self.clone(), key, id })
    }

    /// Ends a lease; not one that somebody else took after it. Whether there was something to end.
    pub(super) fn end(&self, key: &Key, id: u64) -> bool {
        let mut table = self.table();
        let is_held = table.held.get(key).is_some_and(|held| held.id == id);
        if is_held {
            table.held.remove(key);
        }
        is_held
    }

    pub(super) fn len(&self) -> usize {
        self.table().held.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_at_a_time_and_who_is_gone_holds_nobody_up() {
        let leases = Leases::default();
        let Taken::Yes(lease) = leases.take([1; 32]) else { panic!("it is free") };
        assert!(matches!(leases.take([2; 32]), Taken::Yes(_)), "another one is free as well");
        let Taken::No(other) = leases.take([1; 32]) else { panic!("it is taken") };
        let began = Instant::now();
        let waiting = tokio::spawn(other.wait(began + Duration::from_secs(3_600)));
        tokio::time::sleep(Duration::from_millis(20)).await;
        drop(lease);
        waiting.await.unwrap();
        assert!(began.elapsed() >= Duration::from_millis(20), "nobody waited");

        // Somebody who neither ends it nor goes away, and took it nearly as long ago as it is believed.
        let long_ago = Instant::now() - LONGEST + Duration::from_millis(20);
        let Taken::Yes(frozen) = leases.take_at([1; 32], long_ago) else { panic!("it is free") };
        let Taken::No(other) = leases.take([1; 32]) else { panic!("it is taken") };
        other.wait(Instant::now() + Duration::from_secs(3_600)).await;
        let Taken::Yes(next) = leases.take([1; 32]) else { panic!("it is free") };
        drop(frozen);
        assert!(matches!(leases.take([1; 32]), Taken::No(_)), "the late one ended another's lease");
        drop(next);
        assert_eq!(leases.len(), 0);
    }
}
