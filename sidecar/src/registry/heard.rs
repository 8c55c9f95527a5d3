//! The nodes that others register, and when silence says that one is gone.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use affinity::{NodeId, NodeState};

use crate::store::{FORGOTTEN_AFTER, Registered};

/// A node whose sidecar has not registered it for this long is down.
pub(super) const HEARTBEAT_PATIENCE: Duration = Duration::from_secs(5);

/// The longest silence that one look at the store can prove: who could not look for longer, because the store
/// was away or this process stood still, has not listened.
pub(super) const MOST_AT_ONCE: Duration = Duration::from_secs(2);

/// A node that its own sidecar registers.
pub(super) struct Heard {
    pub(super) registered: Registered,
    /// For how long it was not registered anew, while somebody listened: by this host's clock, for the
    /// store's may be set.
    pub(super) silent: Duration,
    pub(super) since: Instant,
}

impl Heard {
    pub(super) fn is_silent(&self) -> bool {
        self.silent > HEARTBEAT_PATIENCE
    }

    pub(super) fn state(&self) -> NodeState {
        if self.is_silent() { NodeState::Down } else { self.registered.node.state }
    }
}

/// Takes in who is registered, when that was last read `passed` ago. A node that the store does not know any
/// more is one that has gone silent: the store may have lost it.
pub(super) fn take_in(before: &mut BTreeMap<NodeId, Heard>, registered: Vec<Registered>, passed: Duration) {
    let step = passed.min(MOST_AT_ONCE);
    let mut told: BTreeMap<NodeId, Registered> =
        registered.into_iter().map(|it| (it.node.id.clone(), it)).collect();
    for (id, known) in before.iter_mut() {
        let was = known.state();
        match told.remove(id) {
            Some(now) => {
                let is_new = now.beat != known.registered.beat || now.node != known.registered.node;
                known.silent = if is_new { Duration::ZERO } else { known.silent + step };
                known.registered = now;
            }
            None => known.silent += step,
        }
        if known.state() != was {
            known.since = Instant::now();
        }
    }
    before.retain(|_, known| known.silent <= FORGOTTEN_AFTER);
    before.extend(told.into_iter().map(|(id, registered)| {
        let silent = registered.age;
        (id, Heard { registered, silent, since: Instant::now() })
    }));
}

#[cfg(test)]
mod tests {
    use affinity::Node;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn registered(id: &str, beat: u64, age: Duration) -> Registered {
        let node = Node {
            id: NodeId::new(id).unwrap(),
            http: "10.0.0.1:8069".parse().unwrap(),
            gevent: None,
            weight: 1,
            state: NodeState::Active,
            full: false,
            carries: false,
        };
        Registered { node, condition: Default::default(), beat, age }
    }

    fn states(heard: &BTreeMap<NodeId, Heard>) -> Vec<String> {
        heard.iter().map(|(id, it)| format!("{id} {}", it.state())).collect()
    }

    #[test]
    fn who_is_silent_while_somebody_listens_is_down() {
        let mut heard = BTreeMap::new();
        take_in(&mut heard, vec![registered("a", 1, SECOND), registered("b", 1, SECOND * 600)], SECOND);
        assert_eq!(
            states(&heard),
            ["a active", "b down"],
            "what it finds at first is as old as the store says"
        );
        for beat in 2..8 {
            take_in(
                &mut heard,
                vec![registered("a", beat, SECOND), registered("b", 1, SECOND * 600)],
                SECOND,
            );
        }
        assert_eq!(states(&heard), ["a active", "b down"]);
        for expected in ["a active", "a active", "a active", "a active", "a active", "a down"] {
            take_in(&mut heard, vec![registered("a", 7, SECOND)], SECOND);
            assert_eq!(states(&heard)[0], expected);
        }
        take_in(&mut heard, vec![registered("a", 8, SECOND), registered("b", 2, SECOND)], SECOND);
        assert_eq!(states(&heard), ["a active", "b active"]);
    }

    #[test]
    fn nobody_is_silent_who_could_not_be_heard() {
        let mut heard = BTreeMap::new();
        take_in(&mut heard, vec![registered("a", 1, SECOND), registered("b", 1, SECOND)], SECOND);
        // The store was away for a minute and knows what it knew; one registers sooner than the other.
        take_in(
            &mut heard,
            vec![registered("a", 1, SECOND * 60), registered("b", 1, SECOND * 60)],
            SECOND * 60,
        );
        take_in(&mut heard, vec![registered("a", 2, SECOND), registered("b", 1, SECOND * 61)], SECOND);
        assert_eq!(states(&heard), ["a active", "b active"]);
        // The store's clock was set.
        take_in(&mut heard, vec![registered("a", 9_999, SECOND), registered("b", 1, SECOND * 9_999)], SECOND);
        assert_eq!(states(&heard), ["a active", "b active"]);
    }

    #[test]
    fn whom_a_store_lost_is_silent_like_others() {
        let mut heard = BTreeMap::new();
        take_in(&mut heard, vec![registered("a", 1, SECOND), registered("b", 1, SECOND)], SECOND);
        take_in(&mut heard, vec![registered("b", 2, SECOND)], SECOND);
        assert_eq!(states(&heard), ["a active", "b active"], "an empty store says nothing about nodes");
        (3..8).for_each(|beat| take_in(&mut heard, vec![registered("b", beat, SECOND)], SECOND));
        assert_eq!(states(&heard), ["a down", "b active"]);
        (0..1_800).for_each(|beat| take_in(&mut heard, vec![registered("b", beat, SECOND)], SECOND * 9));
        assert_eq!(states(&heard), ["b active"], "and is forgotten in the end");
    }
}
