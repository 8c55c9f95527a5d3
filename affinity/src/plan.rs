//! The nodes to try for one request, in order.

use arrayvec::ArrayVec;

use crate::{Membership, NodeState, SessionKey, rendezvous::ranking};

/// How many nodes a plan names: the first choice, its standby, and one more for a bad day.
const LENGTH: usize = 3;

/// Why the first node of a plan is first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It owns the session.
    Owner,
    /// Nobody owns the session: it is its home.
    Home,
    /// The owner is down or gone: it is the best of the others.
    OwnerDown,
    /// Every node is down, as far as is known, which says more about who looked than about the nodes: it
    /// owns the session, or is the best if the owner is gone.
    AllDown,
}

impl core::fmt::Display for Reason {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Owner => "it owns the session",
            Self::Home => "nobody owns the session, and this is its home",
            Self::OwnerDown => "the owner is down or gone, and this is the best of the others",
            Self::AllDown => "every node seems to be down, and nobody goes elsewhere for a guess",
        })
    }
}

/// Which nodes to try, as places in [`Membership::nodes`]; the first is the choice, the second its
/// standby.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Why the first is first.
    pub reason: Reason,
    /// The places, at most three.
    pub places: ArrayVec<usize, LENGTH>,
}

/// Plans a request of the session `key`, whose owner, if any, is the node with the seed `owner`.
///
/// Without an owner, or with one that is down, the best-ranked active node is first. Only where no
/// node is active are draining ones considered, and only where all are down those, the owner before
/// the others: a wrong guess about health must neither refuse a request nor part it from its session.
/// No nodes, no places.
pub fn plan(membership: &Membership, key: SessionKey, owner: Option<u64>) -> Plan {
    let nodes = membership.nodes();
    let state = |place: usize| nodes.get(place).map(|node| node.state);
    let owner_place = owner.and_then(|seed| membership.position_of_seed(seed));

    let best = [NodeState::Active, NodeState::Draining, NodeState::Down]
        .into_iter()
        .find(|wanted| nodes.iter().any(|node| node.state == *wanted))
        .unwrap_or_default();
    let others = ranking::<LENGTH>(key, membership, |node| node.state == best);
    let all_down = best == NodeState::Down;
    let first = owner_place.filter(|place| all_down || state(*place) != Some(NodeState::Down));

    let reason = match (owner, first) {
        (None, _) => Reason::Home,
        (Some(_), _) if all_down => Reason::AllDown,
        (Some(_), Some(_)) => Reason::Owner,
        (Some(_), None) => Reason::OwnerDown,
    };
    let places = first
        .into_iter()
        .chain(others.into_iter().filter(|place| Some(*place) != first))
        .take(LENGTH)
        .collect();
    Plan { reason, places }
}

/// Plans a request that may begin a session: nodes that are full come after the others. Who has a
/// session already is not sent elsewhere by how busy nodes are.
pub fn plan_newcomer(membership: &Membership, key: SessionKey) -> Plan {
    let mut places = ranking::<LENGTH>(key, membership, |node| node.state == NodeState::Active && !node.full);
    for place in plan(membership, key, None).places {
        if !places.contains(&place) {
            // A plan that is long enough needs no more.
            let _ = places.try_push(place);
        }
    }
    Plan { reason: Reason::Home, places }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Node, NodeId};

    fn membership(states: &[(&str, NodeState)]) -> Membership {
        let node = |(port, (id, state)): (usize, &(&str, NodeState))| Node {
            id: NodeId::new(*id).unwrap(),
            http: ([127, 0, 0, 1], 8000 + port as u16).into(),
            gevent: None,
            weight: 1,
            state: *state,
            full: false,
            carries: false,
        };
        Membership::new(states.iter().enumerate().map(node).collect()).unwrap()
    }

    fn planned(states: &[(&str, NodeState)], owner: Option<&str>) -> (Reason, Vec<String>) {
        let membership = membership(states);
        let seed = owner.map(|id| NodeId::new(id).unwrap().seed());
        let plan = plan(&membership, SessionKey::of_session_id(b"some session"), seed);
        let names = plan.places.iter().map(|place| membership.nodes()[*place].id.to_string());
        (plan.reason, names.collect())
    }

    const ACTIVE: NodeState = NodeState::Active;

    #[test]
    fn the_owner_is_first_and_the_home_its_standby() {
        let states = [("a", ACTIVE), ("b", ACTIVE), ("c", ACTIVE)];
        let (reason, home_order) = planned(&states, None);
        assert_eq!((reason, home_order.len()), (Reason::Home, 3));
        let last = home_order[2].as_str();
        let (reason, names) = planned(&states, Some(last));
        assert_eq!(reason, Reason::Owner);
        assert_eq!(names, [last, &home_order[0], &home_order[1]]);
    }

    #[test]
    fn a_draining_owner_keeps_its_session_and_gets_no_other() {
        let states = [("a", ACTIVE), ("b", NodeState::Draining), ("c", ACTIVE)];
        let (reason, names) = planned(&states, Some("b"));
        assert_eq!((reason, names[0].as_str(), names.len()), (Reason::Owner, "b", 3));
        assert!(!planned(&states, None).1.contains(&"b".to_owned()));
    }

    #[test]
    fn a_down_or_forgotten_owner_gives_way() {
        let states = [("a", ACTIVE), ("b", NodeState::Down), ("c", ACTIVE)];
        for owner in ["b", "gone"] {
            let (reason, names) = planned(&states, Some(owner));
            assert_eq!(reason, Reason::OwnerDown);
            assert_eq!(names, planned(&states, None).1);
        }
    }

    #[test]
    fn the_worse_is_taken_only_where_nothing_better_is() {
        let (draining, down) = (NodeState::Draining, NodeState::Down);
        assert_eq!(planned(&[("a", down), ("b", draining)], None).1, ["b"]);
        assert_eq!(
            planned(&[("a", draining), ("b", down)], Some("b")),
            (Reason::OwnerDown, vec!["a".into()])
        );
        assert_eq!(planned(&[("a", down), ("b", down)], None).1.len(), 2);
        assert!(planned(&[], Some("a")).1.is_empty());
    }

    #[test]
    fn where_all_are_down_nobody_leaves_the_owner() {
        let all_down = [("a", NodeState::Down), ("b", NodeState::Down), ("c", NodeState::Down)];
        let (_, home_order) = planned(&all_down, None);
        for owner in ["a", "b", "c"] {
            let (reason, names) = planned(&all_down, Some(owner));
            assert_eq!((reason, names[0].as_str(), names.len()), (Reason::AllDown, owner, 3));
            let others: Vec<_> = home_order.iter().filter(|name| *name != owner).collect();
            assert_eq!(names[1..].iter().collect::<Vec<_>>(), others);
        }
        // Nobody can be sent to who is not known; that is no reason to move the session.
        assert_eq!(planned(&all_down, Some("gone")), (Reason::AllDown, home_order));
    }

    #[test]
    fn newcomers_avoid_full_nodes() {
        let key = SessionKey::of_session_id(b"some session");
        let with_full = |full: &[&str]| {
            let nodes = membership(&[("a", ACTIVE), ("b", ACTIVE), ("c", NodeState::Down)]);
            let nodes = nodes.nodes().iter().cloned();
            let nodes = nodes.map(|node| Node { full: full.contains(&node.id.as_str()), ..node });
            let membership = Membership::new(nodes.collect()).unwrap();
            let name = |place: &usize| membership.nodes()[*place].id.to_string();
            let plans = [plan_newcomer(&membership, key), plan(&membership, key, None)];
            plans.map(|plan| plan.places.iter().map(name).collect::<Vec<_>>())
        };
        let [_, home] = with_full(&[]);
        let (first, second) = (home[0].as_str(), home[1].as_str());
        assert_eq!(with_full(&[]), [home.clone(), home.clone()]);
        assert_eq!(with_full(&[second]), [home.clone(), home.clone()]);
        assert_eq!(with_full(&[first]), [vec![second.to_owned(), first.to_owned()], home.clone()]);
        assert_eq!(with_full(&[first, second]), [home.clone(), home.clone()]);
    }

    #[test]
    fn names_three_at_most() {
        let states: Vec<_> = ["a", "b", "c", "d", "e"].into_iter().map(|id| (id, ACTIVE)).collect();
        assert_eq!(planned(&states, Some("e")).1.len(), 3);
    }
}
