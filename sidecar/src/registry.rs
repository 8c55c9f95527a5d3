//! The nodes: where they are, and what their probes say of them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use affinity::{
    Membership, Node, NodeId, NodeState,
    bounded::has_room,
    membership::InvalidMembership,
    wire::{CarriedReport, LeaseHolder, NodeReport},
};
use tokio::sync::watch;

use crate::{
    node_spec::NodeSpec,
    store::{Condition, Registered, Registration, Roster},
};

/// A node whose sidecar has not registered it for this long is down.
const HEARTBEAT_PATIENCE: Duration = Duration::from_secs(5);

/// A node with fewer sessions is not full, whatever the others have: there is little to share out.
const NEVER_FULL: u64 = 16;

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

/// A node that its own sidecar registers, as the store told of it last.
struct Remote {
    registered: Registered,
    since: Instant,
}

impl Remote {
    fn state(&self) -> NodeState {
        if self.registered.age > HEARTBEAT_PATIENCE { NodeState::Down } else { self.registered.node.state }
    }
}

#[derive(Default)]
struct Nodes {
    /// Those that this sidecar was told of and probes itself.
    own: Vec<Entry>,
    /// Those that others register.
    remote: Vec<Remote>,
    draining: BTreeSet<NodeId>,
    /// Who has the lease of scheduled jobs.
    cron: Option<LeaseHolder>,
    /// Those that the sidecar beside them carries sessions of, as it registers them.
    carried: BTreeMap<NodeId, Registered>,
    /// When that was read: nobody hears of a store that is gone.
    heard: Option<Instant>,
    /// Sessions in use on each node, as all sidecars see them.
    loads: HashMap<NodeId, u64>,
    /// Sessions that began through this sidecar since.
    begun: HashMap<NodeId, u64>,
}

/// The nodes: those that this sidecar was told of, and those that others register.
pub(crate) struct Registry {
    thresholds: Thresholds,
    /// How far beyond its fair share of sessions a node may go: 1 or more.
    bounded_load: f64,
    /// The nodes whose sessions this sidecar carries.
    carrying: BTreeSet<NodeId>,
    nodes: Mutex<Nodes>,
    membership: watch::Sender<Arc<Membership>>,
}

impl Registry {
    /// A registry of `specs`. Until the first probe a node counts as active.
    ///
    /// # Errors
    /// If two of them have one name or one address, or there are too many.
    pub(crate) fn new(
        specs: Vec<NodeSpec>,
        carrying: BTreeSet<NodeId>,
        thresholds: Thresholds,
        bounded_load: f64,
    ) -> Result<Self, InvalidMembership> {
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
        let nodes = Nodes { own: entries, ..Nodes::default() };
        let (nodes, membership) = (Mutex::new(nodes), watch::Sender::default());
        Ok(Self { thresholds, bounded_load, carrying, nodes, membership })
    }

    pub(crate) fn specs(&self) -> Vec<NodeSpec> {
        self.nodes().own.iter().map(|entry| entry.spec.clone()).collect()
    }

    /// The nodes as filters are told, and whenever that changes.
    pub(crate) fn membership(&self) -> watch::Receiver<Arc<Membership>> {
        self.membership.subscribe()
    }

    /// Whether every node's probes have agreed on its state.
    pub(crate) fn is_settled(&self) -> bool {
        self.nodes().own.iter().all(|entry| entry.settled)
    }

    /// Takes in what a probe found.
    pub(crate) fn report(&self, id: &NodeId, probed: Probed) {
        let mut nodes = self.nodes();
        if let Some(entry) = nodes.own.iter_mut().find(|entry| entry.spec.id == *id) {
            entry.take_in(probed, self.thresholds);
        }
        self.publish(&nodes);
    }

    /// Takes in what the store knows of nodes, and how many sessions all sidecars see in use.
    pub(crate) fn take_in(&self, roster: Roster, mut loads: HashMap<NodeId, u64>) {
        let mut nodes = self.nodes();
        for (node, count) in roster.loads {
            *loads.entry(node).or_default() += count;
        }
        let carried = roster.nodes.iter().filter(|it| it.node.carries);
        let carried = carried.filter(|it| !self.carrying.contains(&it.node.id));
        nodes.heard = Some(Instant::now());
        nodes.carried = carried.map(|it| (it.node.id.clone(), it.clone())).collect();
        let is_own = |id: &NodeId| nodes.own.iter().any(|entry| entry.spec.id == *id);
        let mut remote = Vec::new();
        for registered in roster.nodes.into_iter().filter(|it| !is_own(&it.node.id)) {
            let before = nodes.remote.iter().find(|it| it.registered.node.id == registered.node.id);
            let mut now = Remote { registered, since: Instant::now() };
            if let Some(before) = before.filter(|before| before.state() == now.state()) {
                now.since = before.since;
            } else {
                tracing::info!(node = %now.registered.node.id, "is {}, as its sidecar says", now.state());
            }
            remote.push(now);
        }
        // Where two claim one address, the one that was heard of last has it: pods inherit addresses.
        remote.sort_by_key(|it| it.registered.age);
        (nodes.remote, nodes.draining, nodes.loads) = (remote, roster.draining, loads);
        nodes.cron = roster.cron;
        nodes.begun.clear();
        self.publish(&nodes);
    }

    /// What the store is to know of a node that this sidecar probes, once a probe has succeeded.
    pub(crate) fn registration(&self, id: &NodeId, carried: Option<CarriedReport>) -> Option<Registration> {
        let nodes = self.nodes();
        let entry = nodes.own.iter().find(|entry| entry.spec.id == *id)?;
        let (node, latency) = (entry.node.as_ref()?, entry.latency?);
        let node = Node { state: entry.state, carries: self.carrying.contains(id), ..node.clone() };
        let problem = entry.problem.clone().filter(|_| entry.state == NodeState::Down);
        let condition = Condition { probe_ms: latency.as_secs_f64() * 1_000.0, carried, problem };
        Some(Registration { node, condition })
    }

    /// Counts a session that began on a node: who is full shows before the next count.
    pub(crate) fn begun(&self, id: &NodeId) {
        let mut nodes = self.nodes();
        match nodes.begun.get_mut(id) {
            Some(count) => *count += 1,
            None => drop(nodes.begun.insert(id.clone(), 1)),
        }
        // Few sessions change anything, and making a membership takes longer than a claim.
        let present = self.membership.borrow().clone();
        let full = present.nodes().iter().map(|node| node.full);
        if !full.eq(nodes.full(&present, self.bounded_load)) {
            self.publish(&nodes);
        }
    }

    /// The nodes as an operator sees them.
    pub(crate) fn reports(&self) -> Vec<NodeReport> {
        let nodes = self.nodes();
        let sessions = |id: &NodeId| nodes.loads.get(id).copied().unwrap_or_default();
        let own = nodes.own.iter().map(|entry| NodeReport {
            id: entry.spec.id.clone(),
            http: entry.spec.http.clone(),
            gevent: entry.spec.gevent.clone(),
            weight: entry.spec.weight,
            state: nodes.state(&entry.spec.id, entry.state),
            sessions: sessions(&entry.spec.id),
            probe_ms: entry.latency.map(|latency| latency.as_secs_f64() * 1_000.0),
            since_seconds: entry.since.elapsed().as_secs(),
            problem: entry
                .problem
                .clone()
                .or_else(|| nodes.given_up(&entry.spec.id)?.condition.problem.clone()),
            carries: self.carrying.contains(&entry.spec.id) || nodes.carried.contains_key(&entry.spec.id),
            carried: nodes.carried.get(&entry.spec.id).and_then(|it| it.condition.carried),
        });
        let remote = nodes.remote.iter().map(|it| {
            let (node, age) = (&it.registered.node, it.registered.age);
            let silent = age > HEARTBEAT_PATIENCE;
            NodeReport {
                id: node.id.clone(),
                http: node.http.to_string(),
                gevent: node.gevent.map(|address| address.to_string()),
                weight: node.weight,
                state: nodes.state(&node.id, it.state()),
                sessions: sessions(&node.id),
                probe_ms: Some(it.registered.condition.probe_ms),
                since_seconds: it.since.elapsed().as_secs(),
                carries: node.carries,
                carried: it.registered.condition.carried,
                problem: if silent {
                    Some(format!("its sidecar was last heard of {} s ago", age.as_secs()))
                } else {
                    it.registered.condition.problem.clone()
                },
            }
        });
        let mut reports: Vec<NodeReport> = own.chain(remote).collect();
        reports.sort_by(|a, b| a.id.cmp(&b.id));
        reports
    }

    /// Who has the lease of scheduled jobs, as the store last said.
    pub(crate) fn cron(&self) -> Option<LeaseHolder> {
        self.nodes().cron.clone()
    }

    fn publish(&self, nodes: &Nodes) {
        match nodes
            .membership(&self.carrying)
            .and_then(|members| nodes.with_full(&members, self.bounded_load))
        {
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

    fn nodes(&self) -> MutexGuard<'_, Nodes> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Nodes {
    /// What is registered of a node that the sidecar beside it takes for down. It sees more than a probe
    /// from elsewhere: a disk that is full, for one.
    fn given_up(&self, id: &NodeId) -> Option<&Registered> {
        let silent = self.heard.map_or(Duration::ZERO, |heard| heard.elapsed());
        let down =
            |it: &&Registered| it.node.state == NodeState::Down && it.age + silent <= HEARTBEAT_PATIENCE;
        self.carried.get(id).filter(down)
    }

    /// A node's state, if it is neither drained nor given up.
    fn state(&self, id: &NodeId, state: NodeState) -> NodeState {
        match state {
            _ if self.given_up(id).is_some() => NodeState::Down,
            NodeState::Active if self.draining.contains(id) => NodeState::Draining,
            state => state,
        }
    }

    /// The membership with those marked that have no room.
    fn with_full(&self, members: &Membership, factor: f64) -> Result<Membership, InvalidMembership> {
        let full = self.full(members, factor);
        Membership::new(
            members.nodes().iter().zip(full).map(|(node, full)| Node { full, ..node.clone() }).collect(),
        )
    }

    /// Whether each node has no room for another session.
    fn full<'a>(&'a self, members: &'a Membership, factor: f64) -> impl Iterator<Item = bool> + 'a {
        let load = |node: &Node| {
            let count = |of: &HashMap<NodeId, u64>| of.get(&node.id).copied().unwrap_or_default();
            count(&self.loads) + count(&self.begun)
        };
        let active = || members.nodes().iter().filter(|node| node.state == NodeState::Active);
        let total = active().map(load).sum();
        let weights = active().map(|node| u32::from(node.weight)).sum();
        members.nodes().iter().map(move |node| {
            let sessions = load(node);
            let has_room = sessions < NEVER_FULL || has_room(sessions, total, node.weight, weights, factor);
            node.state == NodeState::Active && !has_room
        })
    }

    fn membership(&self, carrying: &BTreeSet<NodeId>) -> Result<Membership, InvalidMembership> {
        let own = self.own.iter().filter_map(|entry| {
            let node = entry.node.as_ref()?;
            let carries = carrying.contains(&node.id) || self.carried.contains_key(&node.id);
            Some(Node { state: self.state(&node.id, entry.state), carries, ..node.clone() })
        });
        let mut list: Vec<Node> = own.collect();
        let mut membership = Membership::new(list.clone())?;
        for it in &self.remote {
            let node = &it.registered.node;
            list.push(Node { state: self.state(&node.id, it.state()), ..node.clone() });
            match Membership::new(list.clone()) {
                Ok(larger) => membership = larger,
                Err(error) => {
                    tracing::warn!("a node is left out: {error}");
                    list.pop();
                }
            }
        }
        Ok(membership)
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
mod tests;
