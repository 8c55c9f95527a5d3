//! What the cache did, by cache and by method: for people, and for Prometheus by cache.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};
use serde::{Deserialize, Serialize};

use super::wire::Label;

/// Methods and caches that are counted by name. The rest is counted together.
const MOST_METHODS: usize = 500;
const MOST_CACHES: usize = 50;
const OTHERS: &str = "others";

/// How a look-up ended.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, EncodeLabelValue)]
pub(super) enum Outcome {
    /// The value was at hand.
    Hit,
    /// Another sidecar had computed it.
    Shared,
    /// Somebody else computed it meanwhile.
    Waited,
    /// It was to be computed.
    Miss,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct LookedUp {
    cache: String,
    outcome: Outcome,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ByCache {
    cache: String,
}

type Float = Counter<f64, std::sync::atomic::AtomicU64>;

/// The cache's part of the metrics.
#[derive(Clone, Default)]
pub(crate) struct CacheMetrics {
    lookups: Family<LookedUp, Counter>,
    saved: Family<ByCache, Float>,
    published: Family<ByCache, Counter>,
    pub(super) refused: Counter,
    pub(super) invalid: Counter,
    values: Gauge,
    bytes: Gauge,
}

impl CacheMetrics {
    /// Makes them known.
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let new = Self::default();
        let registry = registry.sub_registry_with_prefix("orm_cache");
        registry.register("lookups", "Look-ups of a value of Odoo's ORM caches", new.lookups.clone());
        registry.register_with_unit(
            "saved",
            "Time that values had taken to compute that were found",
            Unit::Seconds,
            new.saved.clone(),
        );
        registry.register_with_unit("published", "Values published", Unit::Bytes, new.published.clone());
        registry.register("connections_refused", "Connections beyond the most", new.refused.clone());
        registry.register("invalid_frames", "Connections ended for what came over them", new.invalid.clone());
        registry.register("values", "Values at hand", new.values.clone());
        registry.register("memory_bytes", "Their size", new.bytes.clone());
        new
    }

    fn look(&self, cache: &str, outcome: Outcome) {
        self.lookups.get_or_create(&LookedUp { cache: cache.to_owned(), outcome }).inc();
    }
}

/// What was counted of one method.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) cache: String,
    pub(crate) method: String,
    /// Found at hand.
    pub(crate) hits: u64,
    /// Found because another sidecar had computed it.
    pub(crate) shared: u64,
    /// Found after waiting for who computed it.
    pub(crate) waits: u64,
    /// To be computed.
    pub(crate) misses: u64,
    /// Values published, and their bytes.
    pub(crate) puts: u64,
    pub(crate) bytes: u64,
    /// What those that were found had taken to compute, in milliseconds.
    pub(crate) saved_ms: f64,
}

/// How it stands with the cache.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) values: u64,
    pub(crate) bytes: u64,
    pub(crate) most_bytes: u64,
    /// Values that are being computed.
    pub(crate) leases: u64,
    /// Whether values are shared through Redis at present; none: they are not to be.
    pub(crate) sharing: Option<bool>,
    pub(crate) methods: Vec<Row>,
}

#[derive(Default)]
struct Counted {
    rows: HashMap<Label, Row>,
    caches: HashSet<String>,
}

pub(super) struct Stats {
    counted: Mutex<Counted>,
    pub(super) metrics: CacheMetrics,
}

impl Stats {
    pub(super) fn new(metrics: CacheMetrics) -> Self {
        Self { counted: Mutex::default(), metrics }
    }

    fn counted(&self) -> MutexGuard<'_, Counted> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes a method's row; its cache as it is counted.
    fn count(&self, label: &Label, change: impl FnOnce(&mut Row)) -> String {
        let mut counted = self.counted();
        let is_new = !counted.caches.contains(&label.cache);
        if is_new && counted.caches.len() < MOST_CACHES {
            counted.caches.insert(label.cache.clone());
        }
        let others = || OTHERS.to_owned();
        let cache = counted.caches.get(&label.cache).cloned().unwrap_or_else(others);
        let known = counted.rows.len() < MOST_METHODS || counted.rows.contains_key(label);
        let named = if known { label.clone() } else { Label { cache: others(), method: others() } };
        let row = counted.rows.entry(named).or_insert_with_key(|label| Row {
            cache: label.cache.clone(),
            method: label.method.clone(),
            ..Row::default()
        });
        change(row);
        cache
    }

    /// Counts a look-up, and what was saved by it.
    pub(super) fn looked_up(&self, label: &Label, outcome: Outcome, cost_us: u64) {
        let cache = self.count(label, |row| {
            match outcome {
                Outcome::Hit => row.hits += 1,
                Outcome::Shared => row.shared += 1,
                Outcome::Waited => row.waits += 1,
                Outcome::Miss => row.misses += 1,
            }
            row.saved_ms += cost_us as f64 / 1e3;
        });
        self.metrics.look(&cache, outcome);
        self.metrics.saved.get_or_create(&ByCache { cache }).inc_by(cost_us as f64 / 1e6);
    }

    /// Counts a value.
    pub(super) fn published(&self, label: &Label, bytes: u64) {
        let cache = self.count(label, |row| {
            row.puts += 1;
            row.bytes += bytes;
        });
        self.metrics.published.get_or_create(&ByCache { cache }).inc_by(bytes);
    }

    /// What there is at hand.
    pub(super) fn holds(&self, values: usize, bytes: u64) {
        self.metrics.values.set(i64::try_from(values).unwrap_or(i64::MAX));
        self.metrics.bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// All rows, those that saved most first.
    pub(super) fn rows(&self) -> Vec<Row> {
        let mut rows: Vec<Row> = self.counted().rows.values().cloned().collect();
        rows.sort_by(|a, b| b.saved_ms.total_cmp(&a.saved_ms).then_with(|| a.method.cmp(&b.method)));
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_bounded_and_nothing_goes_uncounted() {
        let stats = Stats::new(CacheMetrics::default());
        for number in 0..(MOST_METHODS as u64 * 2) {
            let label = Label { cache: format!("c{number}"), method: format!("m{number}") };
            stats.looked_up(&label, Outcome::Hit, 1_000);
            stats.published(&label, 10);
        }
        let rows = stats.rows();
        assert!(rows.len() <= MOST_METHODS + 1, "{}", rows.len());
        assert!(stats.counted().caches.len() <= MOST_CACHES);
        assert_eq!(rows.iter().map(|row| row.hits).sum::<u64>(), MOST_METHODS as u64 * 2);
        assert_eq!((rows[0].method.as_str(), rows[0].bytes), (OTHERS, MOST_METHODS as u64 * 10));
    }
}
