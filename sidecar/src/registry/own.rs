//! A node that this sidecar was told of, and what its probes say.

use std::time::{Duration, Instant};

use affinity::{Node, NodeState};

use super::{Found, Probed, Thresholds};
use crate::{
    lists::{Listed, Place},
    node_spec::NodeSpec,
};

pub(super) struct Entry {
    pub(super) spec: NodeSpec,
    /// Its addresses when they were last known.
    pub(super) node: Option<Node>,
    pub(super) state: NodeState,
    /// Probes in a row that speak against the state.
    against: u32,
    /// Whether its probes have ever agreed on its state.
    pub(super) settled: bool,
    pub(super) latency: Option<Duration>,
    /// Why its last probe failed.
    problem: Option<String>,
    /// Why its addresses may be old ones, and for how many probes in a row.
    doubt: Option<(String, u32)>,
    /// Whether that has lasted long enough to be said.
    pub(super) is_doubted: bool,
    pub(super) since: Instant,
}

impl Entry {
    pub(super) fn new(spec: NodeSpec) -> Self {
        Self {
            // Known from the start: while its first probes fail, its browsers' home stays known.
            node: spec.literal(),
            spec,
            state: NodeState::Active,
            against: 0,
            settled: false,
            latency: None,
            problem: None,
            doubt: None,
            is_doubted: false,
            since: Instant::now(),
        }
    }

    /// What is wrong with it, or with what is known of it.
    pub(super) fn problem(&self) -> Option<String> {
        let doubt = self.doubt.as_ref().filter(|_| self.is_doubted);
        self.problem.clone().or_else(|| doubt.map(|(doubt, _)| doubt.clone()))
    }

    /// What other sidecars are told of it.
    pub(super) fn listed(&self, registers: bool) -> Listed {
        let place = |text: &String, address: fn(&Node) -> Option<std::net::SocketAddr>| Place {
            text: text.clone(),
            address: self.node.as_ref().and_then(address),
        };
        Listed {
            http: place(&self.spec.http, |node| Some(node.http)),
            gevent: self.spec.gevent.as_ref().map(|text| place(text, |node| node.gevent)),
            weight: self.spec.weight,
            registers,
        }
    }

    pub(super) fn take_in(&mut self, probed: Probed, thresholds: Thresholds) {
        let (wanted, needed) = match probed {
            Ok(Found { node, latency, doubt }) => {
                (self.node, self.latency, self.problem) = (Some(node), Some(latency), None);
                self.doubt(doubt, thresholds.down_after);
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

    /// Takes in whether its names lead anywhere: one that fails once is an accident.
    fn doubt(&mut self, doubt: Option<String>, needed: u32) {
        let before = self.doubt.take().map_or(0, |(_, times)| times);
        self.doubt = doubt.map(|doubt| (doubt, before.saturating_add(1)));
        match &self.doubt {
            Some((doubt, times)) if *times >= needed && !self.is_doubted => {
                self.is_doubted = true;
                tracing::warn!(node = %self.spec.id, "{doubt}");
            }
            None if self.is_doubted => {
                self.is_doubted = false;
                tracing::info!(node = %self.spec.id, "its address is found again");
            }
            _ => {}
        }
    }
}
