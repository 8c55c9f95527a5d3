//! What the sidecar counts, for Prometheus. No session and no key is ever a label.

use std::sync::{Mutex, PoisonError};

use affinity::{NodeId, NodeState, wire::NodeReport};
use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

use crate::{door::DoorMetrics, lasting::FAULTS, orm_cache::CacheMetrics, registry::Probed};

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelValue)]
pub(crate) enum LookupResult {
    /// From this sidecar's cache.
    Cached,
    Owned,
    Unowned,
    /// From the cache, because the store could not be reached.
    Stale,
    /// From the cache, because the store had lost it.
    Restored,
    Failed,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelValue)]
pub(crate) enum ClaimResult {
    Granted,
    Refused,
    Failed,
}

/// What became of a session's copy.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelValue)]
pub(crate) enum CopyOutcome {
    Published,
    /// The node is not the owner, or did not start from the present version.
    Refused,
    Written,
    Removed,
    /// Somebody had taken it from the disk.
    Restored,
    Ended,
    /// Its file is none that is carried, such as one that is too large.
    LeftAlone,
    Failed,
}

/// What became of a file of a replicated directory.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, EncodeLabelValue)]
pub(crate) enum FileOutcome {
    Published,
    Written,
    Removed,
    /// It is none that is carried, or beyond a limit.
    Refused,
    Failed,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Replicated {
    set: String,
    outcome: FileOutcome,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Copied {
    node: String,
    outcome: CopyOutcome,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Lookup {
    result: LookupResult,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Claimed {
    result: ClaimResult,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ByNode {
    node: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ByNodeAndState {
    node: String,
    state: String,
}

/// A filter that waits. Its request may be dropped while it does, and this with it.
#[must_use]
pub(crate) struct Watching(Gauge);

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// The metrics and their registry.
pub(crate) struct Metrics {
    registry: Registry,
    telling: Mutex<()>,
    lookups: Family<Lookup, Counter>,
    claims: Family<Claimed, Counter>,
    pub(crate) changes: Counter,
    pub(crate) resets: Counter,
    pub(crate) requests_refused: Counter,
    pub(crate) requests_foreign: Counter,
    pub(crate) doors: DoorMetrics,
    watchers: Gauge,
    store_up: Gauge,
    cached_owners: Gauge,
    node_states: Family<ByNodeAndState, Gauge>,
    node_sessions: Family<ByNode, Gauge>,
    probe_seconds: Family<ByNode, Gauge<f64, std::sync::atomic::AtomicU64>>,
    probe_failures: Family<ByNode, Counter>,
    copies: Family<Copied, Counter>,
    replicated: Family<Replicated, Counter>,
    publish_seconds: Histogram,
    unsettled: Counter,
    carried: Family<ByNode, Gauge>,
    carrying: Family<ByNode, Gauge>,
    left_alone: Family<ByNode, Gauge>,
    pub(crate) orm_cache: CacheMetrics,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("mooring");
        let lookups = Family::default();
        registry.register("owner_lookups", "Look-ups of a session's owner", lookups.clone());
        let claims = Family::default();
        registry.register("claims", "Claims of a session", claims.clone());
        let changes = Counter::default();
        registry.register("owner_changes", "Changes of owners told to filters", changes.clone());
        let resets = Counter::default();
        registry.register("resets", "Times that changes may have been missed", resets.clone());
        let requests_refused = Counter::default();
        registry.register(
            "requests_refused",
            "Requests refused because too many were worked on",
            requests_refused.clone(),
        );
        let requests_foreign = Counter::default();
        registry.register(
            "requests_foreign",
            "Requests refused because a web page sent them, or they asked for another host",
            requests_foreign.clone(),
        );
        let doors = DoorMetrics::register(&mut registry);
        registry.register("faults", "What failed, by what it was about", FAULTS.clone());
        let watchers = Gauge::default();
        registry.register("watchers", "Filters that wait for changes", watchers.clone());
        let store_up = Gauge::default();
        registry.register("store_up", "Whether the store can be reached", store_up.clone());
        let cached_owners = Gauge::default();
        registry.register("cached_owners", "Owners that need not be asked for", cached_owners.clone());
        let node_states = Family::default();
        registry.register("node_state", "1 for the state that a node is in", node_states.clone());
        let node_sessions = Family::default();
        registry.register(
            "node_sessions",
            "Sessions in use that a node owns, as all sidecars see them",
            node_sessions.clone(),
        );
        let probe_seconds = Family::default();
        registry.register_with_unit(
            "node_probe",
            "How long a node's last good probe took",
            Unit::Seconds,
            probe_seconds.clone(),
        );
        let probe_failures = Family::default();
        registry.register("node_probe_failures", "Probes that failed", probe_failures.clone());
        let copies = Family::default();
        registry.register("session_copies", "Copies of sessions, and what became of them", copies.clone());
        let replicated = Family::default();
        registry.register(
            "replicated_files",
            "Files of replicated directories, and what became of them",
            replicated.clone(),
        );
        let publish_seconds = Histogram::new(exponential_buckets(0.000_25, 2.0, 14));
        registry.register_with_unit(
            "session_publish",
            "How long the store takes to take a session's copy",
            Unit::Seconds,
            publish_seconds.clone(),
        );
        let unsettled = Counter::default();
        registry.register(
            "entries_unsettled",
            "Logins and logouts that were answered before their copies were where they should be",
            unsettled.clone(),
        );
        let carried = Family::default();
        registry.register("carried_sessions", "Sessions of a node that are carried", carried.clone());
        let carrying = Family::default();
        registry.register("waiting_sessions", "Sessions of a node that wait to be carried", carrying.clone());
        let left_alone = Family::default();
        registry.register(
            "left_alone_sessions",
            "Sessions of a node whose files are not carried, such as those that are too large",
            left_alone.clone(),
        );
        let orm_cache = CacheMetrics::register(&mut registry);
        Self {
            registry,
            telling: Mutex::default(),
            lookups,
            claims,
            changes,
            resets,
            requests_refused,
            requests_foreign,
            doors,
            watchers,
            store_up,
            cached_owners,
            node_states,
            node_sessions,
            probe_seconds,
            probe_failures,
            copies,
            replicated,
            publish_seconds,
            unsettled,
            carried,
            carrying,
            left_alone,
            orm_cache,
        }
    }

    pub(crate) fn lookup(&self, result: LookupResult) {
        self.lookups.get_or_create(&Lookup { result }).inc();
    }

    pub(crate) fn claim(&self, result: ClaimResult) {
        self.claims.get_or_create(&Claimed { result }).inc();
    }

    pub(crate) fn copies(&self, node: &NodeId, outcome: CopyOutcome) {
        self.copies.get_or_create(&Copied { node: node.to_string(), outcome }).inc();
    }

    pub(crate) fn replicated(&self, set: &str, outcome: FileOutcome, files: usize) {
        let label = Replicated { set: set.to_owned(), outcome };
        self.replicated.get_or_create(&label).inc_by(files as u64);
    }

    pub(crate) fn published_in(&self, time: std::time::Duration) {
        self.publish_seconds.observe(time.as_secs_f64());
    }

    pub(crate) fn unsettled(&self) {
        self.unsettled.inc();
    }

    pub(crate) fn probed(&self, id: &NodeId, probed: &Probed) {
        let node = ByNode { node: id.to_string() };
        match probed {
            Ok(found) => {
                self.probe_seconds.get_or_create(&node).set(found.latency.as_secs_f64());
            }
            Err(_) => {
                self.probe_failures.get_or_create(&node).inc();
            }
        }
    }

    /// Counts a filter that waits.
    pub(crate) fn watching(&self) -> Watching {
        self.watchers.inc();
        Watching(self.watchers.clone())
    }

    /// The metrics as text, with what is true of the nodes and the store right now.
    pub(crate) fn text(&self, nodes: &[NodeReport], store_up: bool, cached: usize) -> String {
        // One at a time: another would find what was cleared and not yet set again.
        let _turn = self.telling.lock().unwrap_or_else(PoisonError::into_inner);
        // Nodes come and go; those that are gone are in no state.
        self.node_states.clear();
        for family in [&self.node_sessions, &self.carried, &self.carrying, &self.left_alone] {
            family.clear();
        }
        self.store_up.set(store_up.into());
        self.cached_owners.set(i64::try_from(cached).unwrap_or(i64::MAX));
        for report in nodes {
            let node = report.id.to_string();
            for state in [NodeState::Active, NodeState::Draining, NodeState::Down] {
                let label = ByNodeAndState { node: node.clone(), state: state.to_string() };
                self.node_states.get_or_create(&label).set((report.state == state).into());
            }
            let sessions = i64::try_from(report.sessions).unwrap_or(i64::MAX);
            let by_node = ByNode { node };
            self.node_sessions.get_or_create(&by_node).set(sessions);
            if let Some(carried) = &report.carried {
                let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
                self.carried.get_or_create(&by_node).set(number(carried.sessions));
                self.left_alone.get_or_create(&by_node).set(number(carried.left_alone));
                self.carrying
                    .get_or_create(&by_node)
                    .set(number(carried.waiting + carried.of.saturating_sub(carried.looked_at)));
            }
        }
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_is_gone_is_in_no_state() {
        let report = |id: &str| {
            let carried = Some(affinity::wire::CarriedReport { sessions: 1, ..Default::default() });
            let (id, http) = (NodeId::new(id).unwrap(), "127.0.0.1:1".to_owned());
            NodeReport {
                id,
                http,
                gevent: None,
                weight: 1,
                state: NodeState::Active,
                sessions: 7,
                probe_ms: None,
                since_seconds: 0,
                problem: None,
                carries: true,
                carried,
            }
        };
        let metrics = Metrics::new();
        let both = metrics.text(&[report("a"), report("b")], true, 0);
        let one = metrics.text(&[report("a")], true, 0);
        let of = |text: &str, node: &str| text.matches(&format!("node=\"{node}\"")).count();
        assert_eq!((of(&both, "a"), of(&both, "b")), (7, 7), "{both}");
        assert_eq!((of(&one, "a"), of(&one, "b")), (7, 0), "{one}");
    }
}
