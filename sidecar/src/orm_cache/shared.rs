//! What the sidecars of a cluster compute for each other: values in Redis, signed, within bounds of time.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::body::Bytes;
use tokio::{
    sync::{Semaphore, mpsc},
    time::timeout,
};

use super::{
    leases,
    wire::{Entry, Family, Generation, Key},
};
use crate::{
    sessions::{SIGNATURE, Sealer},
    store::{Found as Stored, ValueEvent, Values},
};

/// How long a worker that misses a value may wait for Redis.
const PATIENCE: Duration = Duration::from_millis(20);
/// How long a value may take to get there: nobody waits for it.
const PUT_PATIENCE: Duration = Duration::from_secs(2);
/// Values on their way at once; what does not find a place stays here.
const MOST_PUTS: usize = 8;
/// How often in a row Redis must fail before it is left alone, and for how long: at first, and at most.
const FAILURES: u32 = 3;
const SHORTEST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(8);
/// How a value is kept: a version, a signature, its cost, family and generation, then the value itself.
const VERSION: u8 = 1;

/// What was found of a value.
pub(super) enum Found {
    Value(Entry),
    /// Nothing, and this sidecar is to compute it.
    Leased,
    /// Nothing, and another sidecar computes it.
    Elsewhere,
}

/// Leaves a Redis alone that failed several times in a row.
#[derive(Default)]
struct Breaker {
    failures: u32,
    until: Option<Instant>,
}

pub(crate) struct Shared {
    values: Values,
    sealer: Arc<Sealer>,
    lifetime: Duration,
    /// Tells this sidecar's leases from those of others.
    holder: u64,
    breaker: Mutex<Breaker>,
    places: Arc<Semaphore>,
}

impl Shared {
    pub(crate) fn new(values: Values, sealer: Arc<Sealer>, lifetime: Duration) -> Arc<Self> {
        let places = Arc::new(Semaphore::new(MOST_PUTS));
        Arc::new(Self { values, sealer, lifetime, holder: rand::random(), breaker: Mutex::default(), places })
    }

    /// Whether Redis is used at present.
    pub(super) fn works(&self) -> bool {
        let breaker = self.breaker.lock().unwrap_or_else(PoisonError::into_inner);
        breaker.until.is_none_or(|until| until <= Instant::now())
    }

    fn note(&self, worked: bool) {
        let mut breaker = self.breaker.lock().unwrap_or_else(PoisonError::into_inner);
        if worked {
            *breaker = Breaker::default();
            return;
        }
        breaker.failures = breaker.failures.saturating_add(1);
        if let Some(more) = breaker.failures.checked_sub(FAILURES) {
            let pause = SHORTEST_PAUSE.saturating_mul(1 << more.min(8)).min(LONGEST_PAUSE);
            breaker.until = Some(Instant::now() + pause);
            tracing::debug!("the ORM cache leaves Redis alone for {pause:?}");
        }
    }

    /// The result of something that Redis does in time; none if it does not, or is left alone.
    async fn within<T>(
        &self,
        patience: Duration,
        work: impl Future<Output = redis::RedisResult<T>>,
    ) -> Option<T> {
        if !self.works() {
            return None;
        }
        let result = timeout(patience, work).await.ok().and_then(Result::ok);
        self.note(result.is_some());
        result
    }

    /// A lease of this sidecar, as Redis knows it.
    fn token(&self, lease: u64) -> String {
        format!("{:016x}-{lease}", self.holder)
    }

    /// A value, or who computes it: the caller's lease here becomes one everywhere. None if that cannot be
    /// known in time.
    pub(super) async fn find(&self, key: &Key, lease: u64) -> Option<Found> {
        let (name, token) = (name(key), self.token(lease));
        match self.within(PATIENCE, self.values.find(&name, &token, leases::LONGEST)).await? {
            Stored::Leased => Some(Found::Leased),
            Stored::Elsewhere => Some(Found::Elsewhere),
            Stored::Value(sealed) => match open(&self.sealer, key, sealed.into()) {
                Some(entry) => Some(Found::Value(entry)),
                None => {
                    tracing::warn!("a value in Redis is not of this cluster's secret and is not used");
                    None
                }
            },
        }
    }

    /// Gives a value to the others, without being waited for.
    pub(super) fn put(self: &Arc<Self>, key: Key, lease: u64, entry: Entry) {
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else { return };
        let shared = Arc::clone(self);
        tokio::spawn(async move {
            let sealed = seal(&shared.sealer, &key, &entry);
            let (name, token) = (name(&key), shared.token(lease));
            shared.within(PUT_PATIENCE, shared.values.put(&name, &token, &sealed, shared.lifetime)).await;
            drop(place);
        });
    }

    /// Lets another sidecar compute a value.
    pub(super) fn release(self: &Arc<Self>, key: Key, lease: u64) {
        let shared = Arc::clone(self);
        tokio::spawn(async move {
            let (name, token) = (name(&key), shared.token(lease));
            shared.within(PUT_PATIENCE, shared.values.release(&name, &token)).await;
        });
    }

    /// Tells the others what is of no use any more, and removes it.
    pub(super) fn invalidate(self: &Arc<Self>, family: Family, generation: Generation, keys: Vec<Key>) {
        let shared = Arc::clone(self);
        tokio::spawn(async move {
            let (family, generation) = (hex(family), hex(generation));
            shared.within(PUT_PATIENCE, shared.values.tell_stale(&family, &generation)).await;
            for key in keys {
                shared.within(PUT_PATIENCE, shared.values.remove(&name(&key))).await;
            }
        });
    }

    /// Tells what is of no use any more according to others, for as long as the process lives.
    pub(super) async fn follow(self: Arc<Self>, stale: impl Fn(Family, Generation)) {
        let (sender, mut events) = mpsc::channel(1_024);
        tokio::spawn(async move { self.values.follow(sender).await });
        while let Some(event) = events.recv().await {
            if let ValueEvent::Stale { family, generation } = event
                && let (Some(family), Some(generation)) = (unhex(&family), unhex(&generation))
            {
                stale(family, generation);
            }
        }
    }
}

fn name(key: &Key) -> String {
    blake3::Hash::from_bytes(*key).to_hex().to_string()
}

fn hex(bytes: [u8; 16]) -> String {
    format!("{:032x}", u128::from_be_bytes(bytes))
}

fn unhex(text: &str) -> Option<[u8; 16]> {
    u128::from_str_radix(text, 16).ok().map(u128::to_be_bytes)
}

fn seal(sealer: &Sealer, key: &Key, entry: &Entry) -> Vec<u8> {
    let cost = entry.cost_us.to_be_bytes();
    let signature = sealer.sign(&[&[VERSION], key, &cost, &entry.family, &entry.generation, &entry.value]);
    [&[VERSION], &signature[..], &cost, &entry.family, &entry.generation, &entry.value].concat()
}

/// The entry of a key, if one of the cluster's secrets signed it.
fn open(sealer: &Sealer, key: &Key, mut sealed: Bytes) -> Option<Entry> {
    fn take<const N: usize>(from: &mut Bytes) -> Option<[u8; N]> {
        let part = (from.len() >= N).then(|| from.split_to(N))?;
        part.as_ref().try_into().ok()
    }
    let [VERSION] = take(&mut sealed)? else { return None };
    let signature: [u8; SIGNATURE] = take(&mut sealed)?;
    let cost: [u8; 8] = take(&mut sealed)?;
    let (family, generation) = (take(&mut sealed)?, take(&mut sealed)?);
    let is_signed = sealer.is_signed(&[&[VERSION], key, &cost, &family, &generation, &sealed], &signature);
    let cost_us = u64::from_be_bytes(cost);
    is_signed.then_some(Entry { family, generation, cost_us, value: sealed })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sealer(letter: &str) -> Sealer {
        Sealer::new(&letter.repeat(32)).unwrap()
    }

    #[test]
    fn a_value_is_of_its_key_and_its_secret_only() {
        let value = Bytes::from_static(b"some value");
        let entry = Entry { family: [1; 16], generation: [2; 16], cost_us: 3, value };
        let sealed = seal(&sealer("a"), &[7; 32], &entry);
        assert_eq!(open(&sealer("a"), &[7; 32], sealed.clone().into()), Some(entry));
        assert_eq!(open(&sealer("a"), &[8; 32], sealed.clone().into()), None);
        assert_eq!(open(&sealer("b"), &[7; 32], sealed.clone().into()), None);
        for place in 0..sealed.len() {
            let mut bent = sealed.clone();
            bent[place] ^= 1;
            assert_eq!(open(&sealer("a"), &[7; 32], bent.into()), None, "byte {place}");
            assert_eq!(open(&sealer("a"), &[7; 32], sealed[..place].to_vec().into()), None, "cut at {place}");
        }
    }

    #[test]
    fn names_of_families_are_read_back() {
        assert_eq!(unhex(&hex([0x0a; 16])), Some([0x0a; 16]));
        assert_eq!(unhex("x"), None);
    }

    proptest! {
        #[test]
        fn rubbish_is_no_value(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(open(&sealer("a"), &[0; 32], bytes.into()), None);
        }
    }
}
