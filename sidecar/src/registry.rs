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

use self::{
    heard::{HEARTBEAT_PATIENCE, Heard},
    own::Entry,
};
use crate::{
    lists::{Differences, Told},
    node_spec::NodeSpec,
    store::{Condition, Drain, Registration, Roster},
};

mod heard;
mod own;

/// A node with fewer sessions is not full, whatever the others have: there is little to share out.
const NEVER_FULL: u64 = 16;
/// A sidecar that filters asked this lately is asked by filters: they do so every few seconds.
const ASKED_LATELY: Duration = Duration::from_secs(60);

/// What a probe found, or what is wrong.
pub(crate) type Probed = Result<Found, String>;

/// A node that answered.
pub(crate) struct Found {
    pub(crate) node: Node,
    /// How long it took.
    pub(crate) latency: Duration,
    /// Why its addresses may be old ones.
    pub(crate) doubt: Option<String>,
}

/// How many probes in a row change a node's state.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Thresholds {
    pub(crate) down_after: u32,
    pub(crate) up_after: u32,
}

#[derive(Default)]
struct Nodes {
    /// Those that this sidecar was told of and probes itself.
    own: Vec<Entry>,
    /// The nodes whose sessions this sidecar carries.
    carrying: BTreeSet<NodeId>,
    /// Those that are registered in the store.
    heard: BTreeMap<NodeId, Heard>,
    /// When that was read: nobody hears of a store that is gone.
    heard_at: Option<Instant>,
    /// What operators last said, as far as it was heard of: a store may lose it.
    drains: BTreeMap<NodeId, Drain>,
    /// Who has the lease of scheduled jobs.
    cron: Option<LeaseHolder>,
    /// Sessions in use on each node, as all sidecars see them.
    loads: HashMap<NodeId, u64>,
    /// Sessions that began through this sidecar since.
    begun: HashMap<NodeId, u64>,
    /// How this sidecar calls itself to others.
    identity: Told,
    /// The node that it registers for others.
    beside: Option<NodeId>,
    /// When a filter last asked for nodes.
    asked_at: Option<Instant>,
    /// Nodes that are in no membership, and why.
    left_out: BTreeMap<NodeId, String>,
    differences: Differences,
}

/// The nodes: those that this sidecar was told of, and those that others register.
pub(crate) struct Registry {
    thresholds: Thresholds,
    /// How far beyond its fair share of sessions a node may go: 1 or more.
    bounded_load: f64,
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
            entries.push(Entry::new(spec));
        }
        entries.sort_by(|a, b| a.spec.id.cmp(&b.spec.id));
        let nodes = Nodes { own: entries, carrying, ..Nodes::default() };
        let (nodes, membership) = (Mutex::new(nodes), watch::Sender::default());
        Ok(Self { thresholds, bounded_load, nodes, membership })
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
        self.publish(&mut nodes);
    }

    /// Takes in what the store knows of nodes when it is told what this sidecar has to tell. Returns what
    /// operators said that the store has lost.
    pub(crate) fn take_in(&self, roster: Roster, own: &Told) -> Vec<(NodeId, Drain)> {
        let mut guard = self.nodes();
        let nodes = &mut *guard;
        let passed = nodes.heard_at.replace(Instant::now()).map_or(Duration::ZERO, |before| before.elapsed());
        let registered: BTreeSet<&NodeId> = roster.nodes.iter().map(|it| &it.node.id).collect();
        nodes.differences.take_in(own, &roster.others, &registered);
        nodes.loads.clone_from(&own.loads);
        for (node, count) in roster.others.into_iter().flat_map(|other| other.loads) {
            *nodes.loads.entry(node).or_default() += count;
        }
        nodes.begun.clear();
        nodes.cron = roster.cron;

        let states = |nodes: &Nodes| -> BTreeMap<NodeId, NodeState> {
            nodes.remote().map(|it| (it.registered.node.id.clone(), it.state())).collect()
        };
        let before = states(nodes);
        heard::take_in(&mut nodes.heard, roster.nodes, passed);
        for (id, state) in states(nodes).into_iter().filter(|(id, state)| before.get(id) != Some(state)) {
            tracing::info!(node = %id, "is {state}, as its sidecar says");
        }

        for (id, word) in &roster.drains {
            nodes.hear_drain(id, *word);
        }
        let lost = |(id, word): &(&NodeId, &Drain)| {
            roster.drains.get(*id).is_none_or(|known| known.said < word.said) && word.draining
        };
        let lost = nodes.drains.iter().filter(lost).map(|(id, word)| (id.clone(), *word)).collect();
        self.publish(nodes);
        lost
    }

    /// Takes in what an operator just said, before the store is read again.
    pub(crate) fn hear_drain(&self, id: &NodeId, word: Drain) {
        let mut nodes = self.nodes();
        nodes.hear_drain(id, word);
        self.publish(&mut nodes);
    }

    /// When an operator who speaks now speaks: after all that was heard of.
    pub(crate) fn next_word(&self, id: &NodeId, draining: bool, now: u64) -> Drain {
        let before = self.nodes().drains.get(id).map_or(0, |word| word.said);
        Drain { draining, said: now.max(before.saturating_add(1)) }
    }

    /// Takes in how this sidecar calls itself, and which node it registers.
    pub(crate) fn introduce(&self, identity: Told, beside: Option<NodeId>) {
        let mut nodes = self.nodes();
        (nodes.identity, nodes.beside) = (identity, beside);
    }

    /// What this sidecar tells the others, given the sessions in use that it sees.
    pub(crate) fn told(&self, loads: HashMap<NodeId, u64>) -> Told {
        let nodes = self.nodes();
        let registers = |id: &NodeId| nodes.beside.as_ref() == Some(id);
        let listed = nodes.own.iter().map(|it| (it.spec.id.clone(), it.listed(registers(&it.spec.id))));
        Told {
            asked: nodes.asked_at.is_some_and(|when| when.elapsed() < ASKED_LATELY),
            nodes: listed.collect(),
            loads,
            ..nodes.identity.clone()
        }
    }

    /// Notes that a filter asks for the nodes.
    pub(crate) fn is_asked(&self) {
        self.nodes().asked_at = Some(Instant::now());
    }

    /// In what the sidecars' lists of nodes differ.
    pub(crate) fn differences(&self) -> Vec<String> {
        self.nodes().differences.lines()
    }

    /// Whether there is a node of this name; none if the store was not heard yet, and may know it.
    pub(crate) fn knows(&self, name: &str) -> Option<bool> {
        let nodes = self.nodes();
        let is_known = nodes.own.iter().any(|entry| entry.spec.id.as_str() == name)
            || nodes.heard.keys().any(|id| id.as_str() == name);
        if is_known { Some(true) } else { nodes.heard_at.map(|_| false) }
    }

    /// What the store is to know of a node that this sidecar probes, once a probe has succeeded.
    pub(crate) fn registration(&self, id: &NodeId, carried: Option<CarriedReport>) -> Option<Registration> {
        let nodes = self.nodes();
        let entry = nodes.own.iter().find(|entry| entry.spec.id == *id)?;
        let (node, latency) = (entry.node.as_ref()?, entry.latency?);
        let node = Node { state: entry.state, carries: nodes.carrying.contains(id), ..node.clone() };
        let problem = entry.problem();
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
            self.publish(&mut nodes);
        }
    }

    /// The nodes as an operator sees them.
    pub(crate) fn reports(&self) -> Vec<NodeReport> {
        let nodes = self.nodes();
        let sessions = |id: &NodeId| nodes.loads.get(id).copied().unwrap_or_default();
        let left_out = |id: &NodeId| nodes.left_out.get(id).cloned();
        let own = nodes.own.iter().map(|entry| {
            let id = &entry.spec.id;
            let given_up = || nodes.given_up(id)?.registered.condition.problem.clone();
            NodeReport {
                id: id.clone(),
                http: entry.spec.http.clone(),
                gevent: entry.spec.gevent.clone(),
                weight: entry.spec.weight,
                state: nodes.state(id, entry.state),
                sessions: sessions(id),
                probe_ms: entry.latency.map(|latency| latency.as_secs_f64() * 1_000.0),
                since_seconds: entry.since.elapsed().as_secs(),
                problem: left_out(id).or_else(|| entry.problem()).or_else(given_up),
                carries: nodes.carrying.contains(id) || nodes.carried(id).is_some(),
                carried: nodes.carried(id).and_then(|it| it.registered.condition.carried),
            }
        });
        let remote = nodes.remote().map(|it| {
            let node = &it.registered.node;
            let silent = || format!("its sidecar was last heard of {} s ago", it.silent.as_secs());
            let said = || it.registered.condition.problem.clone();
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
                problem: if it.is_silent() { Some(silent()) } else { left_out(&node.id).or_else(said) },
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

    fn publish(&self, nodes: &mut Nodes) {
        let (members, left_out) = nodes.membership();
        for (id, error) in left_out.iter().filter(|(id, _)| !nodes.left_out.contains_key(*id)) {
            tracing::warn!(node = %id, "is left out: {error}");
        }
        nodes.left_out = left_out;
        match nodes.with_full(&members, self.bounded_load) {
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
    /// Those that others register and this sidecar was not told of.
    fn remote(&self) -> impl Iterator<Item = &Heard> {
        let is_own = |id: &NodeId| self.own.iter().any(|entry| entry.spec.id == *id);
        self.heard.iter().filter(move |(id, _)| !is_own(id)).map(|(_, it)| it)
    }

    /// What is registered of a node that the sidecar beside it carries sessions of.
    fn carried(&self, id: &NodeId) -> Option<&Heard> {
        self.heard.get(id).filter(|it| it.registered.node.carries && !self.carrying.contains(id))
    }

    /// What is registered of a node that the sidecar beside it takes for down. It sees more than a probe
    /// from elsewhere: a disk that is full, for one.
    fn given_up(&self, id: &NodeId) -> Option<&Heard> {
        let unheard = self.heard_at.map_or(Duration::ZERO, |heard| heard.elapsed());
        self.carried(id).filter(|it| {
            it.registered.node.state == NodeState::Down && it.silent + unheard <= HEARTBEAT_PATIENCE
        })
    }

    /// A node's state, if it is neither drained nor given up.
    fn state(&self, id: &NodeId, state: NodeState) -> NodeState {
        match state {
            _ if self.given_up(id).is_some() => NodeState::Down,
            NodeState::Active if self.drains.get(id).is_some_and(|word| word.draining) => NodeState::Draining,
            state => state,
        }
    }

    /// Takes in what an operator said, unless something later is known.
    fn hear_drain(&mut self, id: &NodeId, word: Drain) {
        if self.drains.get(id).is_none_or(|known| known.said < word.said) {
            self.drains.insert(id.clone(), word);
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

    /// The membership, and who is not in it: where two have one address, it belongs to the one that was seen
    /// there last, for containers inherit addresses.
    fn membership(&self) -> (Membership, BTreeMap<NodeId, String>) {
        let mut own: Vec<&Entry> = self.own.iter().collect();
        own.sort_by_key(|entry| entry.is_doubted);
        let own = own.into_iter().filter_map(|entry| {
            let node = entry.node.as_ref()?;
            let carries = self.carrying.contains(&node.id) || self.carried(&node.id).is_some();
            Some(Node { state: self.state(&node.id, entry.state), carries, ..node.clone() })
        });
        let mut remote: Vec<&Heard> = self.remote().collect();
        remote.sort_by_key(|it| it.silent > heard::MOST_AT_ONCE);
        let remote = remote.into_iter().map(|it| {
            let node = &it.registered.node;
            Node { state: self.state(&node.id, it.state()), ..node.clone() }
        });
        let (mut membership, mut left_out) = (Membership::default(), BTreeMap::new());
        for node in own.chain(remote) {
            let id = node.id.clone();
            if let Err(error) = membership.add(node) {
                left_out.insert(id, error.to_string());
            }
        }
        (membership, left_out)
    }
}

#[cfg(test)]
mod tests;
