//! The nodes: where they are, and what their probes say of them.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use affinity::{Membership, Node, NodeId, NodeState, membership::InvalidMembership, wire::NodeReport};
use tokio::sync::watch;

use crate::node_spec::NodeSpec;

/// What a probe found: the node's addresses and how long it took to answer, or what is wrong.
pub(crate) type Probed = Result<(Node, Duration), String>;

/// How many probes in a row change a node's state.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Thresholds {
    pub(crate) down_after: u32,
    pub(crate) up_after: u32,
}

struct Entry {
    spec: NodeSpec,
    /// Its addresses when they were last known.
    node: Option<Node>,
    state: NodeState,
    /// Probes in a row that speak against the state.
    against: u32,
    /// Whether its probes have ever agreed on its state.
    settled: bool,
    latency: Option<Duration>,
    problem: Option<String>,
    since: Instant,
}

/// The nodes that this sidecar was told of.
pub(crate) struct Registry {
    thresholds: Thresholds,
    entries: Mutex<Vec<Entry>>,
    membership: watch::Sender<Arc<Membership>>,
}

impl Registry {
    /// A registry of `specs`. Until the first probe a node counts as active.
    ///
    /// # Errors
    /// If two of them have one name or one address, or there are too many.
    pub(crate) fn new(specs: Vec<NodeSpec>, thresholds: Thresholds) -> Result<Self, InvalidMembership> {
        // Where host names lead is seen later, and may change.
        Membership::new(specs.iter().filter_map(NodeSpec::literal).collect())?;
        let mut entries: Vec<Entry> = Vec::with_capacity(specs.len());
        for spec in specs {
            if entries.iter().any(|entry| entry.spec.id == spec.id) {
                return Err(InvalidMembership::DuplicateId(spec.id));
            }
            entries.push(Entry {
                // Known from the start: while its first probes fail, its browsers' home stays known.
                node: spec.literal(),
                spec,
                state: NodeState::Active,
                against: 0,
                settled: false,
                latency: None,
                problem: None,
                since: Instant::now(),
            });
        }
        entries.sort_by(|a, b| a.spec.id.cmp(&b.spec.id));
        Ok(Self { thresholds, entries: Mutex::new(entries), membership: watch::Sender::default() })
    }

    pub(crate) fn specs(&self) -> Vec<NodeSpec> {
        self.entries().iter().map(|entry| entry.spec.clone()).collect()
    }

    /// The nodes as filters are told, and whenever that changes.
    pub(crate) fn membership(&self) -> watch::Receiver<Arc<Membership>> {
        self.membership.subscribe()
    }

    /// Whether every node's probes have agreed on its state.
    pub(crate) fn is_settled(&self) -> bool {
        self.entries().iter().all(|entry| entry.settled)
    }

    /// Takes in what a probe found.
    pub(crate) fn report(&self, id: &NodeId, probed: Probed) {
        let mut entries = self.entries();
        if let Some(entry) = entries.iter_mut().find(|entry| entry.spec.id == *id) {
            entry.take_in(probed, self.thresholds);
        }
        let nodes = entries
            .iter()
            .filter_map(|entry| entry.node.as_ref().map(|node| Node { state: entry.state, ..node.clone() }));
        match Membership::new(nodes.collect()) {
            Ok(next) => {
                self.membership.send_if_modified(|present| {
                    let differs = **present != next;
                    if differs {
                        *present = Arc::new(next);
                    }
                    differs
                });
            }
            Err(error) => tracing::error!("the nodes stay as they were: {error}"),
        }
    }

    /// The nodes as an operator sees them.
    pub(crate) fn reports(&self, sessions: Option<&HashMap<NodeId, u64>>) -> Vec<NodeReport> {
        let report = |entry: &Entry| NodeReport {
            id: entry.spec.id.clone(),
            http: entry.spec.http.clone(),
            gevent: entry.spec.gevent.clone(),
            weight: entry.spec.weight,
            state: entry.state,
            sessions: sessions.map(|counts| counts.get(&entry.spec.id).copied().unwrap_or_default()),
            probe_ms: entry.latency.map(|latency| latency.as_secs_f64() * 1_000.0),
            since_seconds: entry.since.elapsed().as_secs(),
            problem: entry.problem.clone(),
        };
        self.entries().iter().map(report).collect()
    }

    fn entries(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn take_in(&mut self, probed: Probed, thresholds: Thresholds) {
        let (wanted, needed) = match probed {
            Ok((node, latency)) => {
                (self.node, self.latency, self.problem) = (Some(node), Some(latency), None);
                (NodeState::Active, thresholds.up_after)
            }
            Err(problem) => {
                self.problem = Some(problem);
                (NodeState::Down, thresholds.down_after)
            }
        };
        if wanted == self.state {
            (self.against, self.settled) = (0, true);
        } else {
            self.against += 1;
            // From the start: a busy machine may miss the first probe, and its browsers must not move.
            if self.against >= needed {
                (self.state, self.against, self.since) = (wanted, 0, Instant::now());
                self.settled = true;
                match &self.problem {
                    Some(problem) => tracing::warn!(node = %self.spec.id, "is down: {problem}"),
                    None => tracing::info!(node = %self.spec.id, "is active"),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry() -> Registry {
        let specs = ["a=127.0.0.1:1", "b=127.0.0.1:2"].map(|spec| spec.parse().unwrap());
        Registry::new(specs.into(), Thresholds { down_after: 2, up_after: 3 }).unwrap()
    }

    async fn good(registry: &Registry, id: &str) -> (NodeId, Probed) {
        let spec = registry.specs().into_iter().find(|spec| spec.id.as_str() == id).unwrap();
        let node = spec.resolve(NodeState::Active).await.unwrap();
        (spec.id, Ok((node, Duration::from_millis(3))))
    }

    fn states(registry: &Registry) -> Vec<NodeState> {
        registry.membership().borrow().nodes().iter().map(|node| node.state).collect()
    }

    #[tokio::test]
    async fn a_state_changes_after_enough_probes() {
        let registry = registry();
        let bad = || Err("refused".to_owned());
        for id in ["a", "b"] {
            assert!(!registry.is_settled());
            let (id, probed) = good(&registry, id).await;
            registry.report(&id, probed);
        }
        assert!(registry.is_settled());
        let a = NodeId::new("a").unwrap();
        registry.report(&a, bad());
        assert_eq!(states(&registry), [NodeState::Active, NodeState::Active], "once is an accident");
        registry.report(&a, bad());
        assert_eq!(states(&registry), [NodeState::Down, NodeState::Active]);
        assert_eq!(registry.reports(None)[0].problem.as_deref(), Some("refused"));
        for expected in [NodeState::Down, NodeState::Down, NodeState::Active] {
            let (id, probed) = good(&registry, "a").await;
            registry.report(&id, probed);
            assert_eq!(states(&registry), [expected, NodeState::Active]);
        }
    }

    #[tokio::test]
    async fn a_first_probe_that_fails_moves_nobody() {
        let registry = registry();
        let a = NodeId::new("a").unwrap();
        let (b, probed) = good(&registry, "b").await;
        registry.report(&b, probed);
        registry.report(&a, Err("refused".into()));
        assert_eq!(states(&registry), [NodeState::Active, NodeState::Active]);
        assert!(!registry.is_settled());
        registry.report(&a, Err("refused".into()));
        assert_eq!(states(&registry), [NodeState::Down, NodeState::Active]);
        assert!(registry.is_settled());
    }

    #[test]
    fn a_name_twice_is_refused() {
        let specs = ["a=127.0.0.1:1", "a=127.0.0.1:2"].map(|spec| spec.parse().unwrap());
        let refused = Registry::new(specs.into(), Thresholds { down_after: 1, up_after: 1 });
        assert_eq!(refused.err().map(|error| error.to_string()).as_deref(), Some("node a is named twice"));
    }

    #[test]
    fn an_address_twice_is_refused() {
        let new = |specs: [&str; 2]| {
            let specs = specs.map(|spec| spec.parse().unwrap());
            Registry::new(specs.into(), Thresholds { down_after: 1, up_after: 1 })
        };
        let refused = new(["a=127.0.0.1:1", "b=127.0.0.1:2,gevent=127.0.0.1:1"]);
        let problem = refused.err().map(|error| error.to_string());
        assert_eq!(problem.as_deref(), Some("nodes a and b have the same address 127.0.0.1:1"));
        assert!(new(["a=odoo:1", "b=odoo:1"]).is_ok(), "where names lead may change");
    }
}
