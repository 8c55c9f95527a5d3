//! What a claim waits for: that the session's files are where they will be needed.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use affinity::{
    Membership, NodeId, NodeState, SessionKey,
    wire::{Claim, Left, Origin},
};
use tokio::time::sleep;

use super::{Carriers, holders::holders};
use crate::store::{Copy, EndedBy, Store, StoreError};

/// How long the answer to a login or logout may be held back. Odoo's own takes as long.
const ENTRY: Duration = Duration::from_millis(300);
/// How long a copy may take to reach the standby by itself.
const BY_ITSELF: Duration = Duration::from_millis(40);
/// How long a request may wait for its file.
const FAILOVER: Duration = Duration::from_millis(600);
/// How long between two looks at the store, at first and at last.
const FIRST_LOOK: Duration = Duration::from_millis(1);
const LATER_LOOK: Duration = Duration::from_millis(20);

/// After a login's or logout's claim: ends the session that was left, and waits until the new one's copy
/// is at its standby, if there is anything to copy. Returns whether that came about in time.
pub(crate) async fn settled(
    store: &dyn Store,
    membership: &Arc<Membership>,
    carriers: &Carriers,
    claim: &Claim,
) -> bool {
    let Origin::Entry { left, posted } = claim.origin else { return true };
    if !carries(membership, &claim.node) {
        return true;
    }
    let leave = async || match left.filter(|left| left.key != claim.key) {
        // The browser was given another session: whatever files this one has are of no use to anybody
        // but a thief. Its node may have none of them just now, and bring them back.
        Some(Left { key, proof }) => {
            end(store, membership, key, EndedBy::Holder(proof), Some(&claim.node)).await
        }
        None => Ok(false),
    };
    let mut ended = leave().await;
    let at_standby = |copy: &Copy| {
        copy.ended
            || (copy.version > 0
                && holders(membership, claim.key, &copy.owner.node).all(|node| copy.is_at(&node)))
    };
    let deadline = Instant::now() + ENTRY;
    let came = async {
        if holds(store, claim.key, Instant::now() + BY_ITSELF, false, at_standby).await {
            return true;
        }
        if let Ok(Some(copy)) = store.copy(claim.key).await {
            // Odoo has saved what it saves by now. Whose id was unknown gets another one and no file.
            let may_come = || match carriers.is_busy(&claim.node) {
                Some(is_busy) => is_busy,
                None => posted || matches!(ended, Ok(true)),
            };
            if copy.version == 0 && !may_come() {
                return true;
            }
            // The sidecar beside the standby may not know yet that it is: it hears of a dead node late.
            for node in holders(membership, claim.key, &copy.owner.node).filter(|node| !copy.is_at(node)) {
                if store.want_copy(claim.key, &node).await.is_err() {
                    return false;
                }
            }
        }
        holds(store, claim.key, deadline, false, at_standby).await
    };
    let came = came.await;
    if matches!(ended, Ok(false)) {
        // What Odoo rotated a moment before may not have been in the store yet, and with it the proof.
        ended = leave().await;
    }
    came && ended.is_ok()
}

/// Ends a session everywhere, at the word of somebody who was served by a node, if by any. Returns whether
/// it was ended now: not if they may not.
///
/// # Errors
/// If the store cannot be asked.
pub(crate) async fn end(
    store: &dyn Store,
    membership: &Membership,
    key: SessionKey,
    by: EndedBy,
    served_by: Option<&NodeId>,
) -> Result<bool, StoreError> {
    if !store.end(key, by).await? {
        return Ok(false);
    }
    // An owner that cannot be reached has the files still, and is the owner when it is back: until it has
    // heard of the end, whoever has the cookie must be led elsewhere.
    if let Some(Copy { owner, .. }) = store.copy(key).await? {
        let node = match served_by {
            Some(node) => Some(node).filter(|node| **node != owner.node),
            None if is_up(membership, &owner.node) => None,
            None => membership.nodes().iter().map(|node| &node.id).find(|id| is_up(membership, id)),
        };
        if let Some(node) = node.cloned() {
            store.claim(Claim { key, node, expect: owner.epoch, origin: Origin::Visit }).await?;
        }
    }
    Ok(true)
}

/// What came of bringing a session's files to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Brought {
    /// They are there.
    There,
    /// There are none to bring, or nobody who could.
    Nothing,
    /// They are not there in time.
    Late,
}

/// Brings a session's files to a node, and waits for them.
///
/// # Errors
/// If the store cannot be asked.
pub(crate) async fn bring(
    store: &dyn Store,
    membership: &Membership,
    key: SessionKey,
    node: &NodeId,
) -> Result<Brought, StoreError> {
    let Some(copy) = store.copy(key).await?.filter(|copy| copy.version > 0) else {
        return Ok(Brought::Nothing);
    };
    if copy.is_at(node) {
        return Ok(Brought::There);
    }
    if !carries(membership, node) {
        return Ok(Brought::Nothing);
    }
    store.want_copy(key, node).await?;
    let there = holds(store, key, Instant::now() + FAILOVER, true, |copy| copy.is_at(node)).await;
    Ok(if there { Brought::There } else { Brought::Late })
}

/// Whether a node may serve a session in its owner's place: its files are there, or its owner cannot
/// serve it either.
///
/// # Errors
/// If the store cannot be asked.
pub(crate) async fn may_take_over(
    store: &dyn Store,
    membership: &Membership,
    claim: &Claim,
) -> Result<bool, StoreError> {
    if bring(store, membership, claim.key, &claim.node).await? == Brought::There {
        return Ok(true);
    }
    let owner = store.owner(claim.key).await?;
    Ok(owner.is_none_or(|owner| owner.node == claim.node || is_lost(membership, &owner.node)))
}

/// Waits until something holds for a session's copy. `absent`: what is to be thought of a session that
/// the store does not know.
async fn holds(
    store: &dyn Store,
    key: SessionKey,
    deadline: Instant,
    absent: bool,
    wanted: impl Fn(&Copy) -> bool,
) -> bool {
    let mut pause = FIRST_LOOK;
    loop {
        match store.copy(key).await {
            Ok(Some(copy)) if wanted(&copy) => return true,
            Ok(None) if absent => return true,
            Ok(_) => {}
            // A store that is gone is not waited for.
            Err(_) => return false,
        }
        if Instant::now() + pause > deadline {
            return false;
        }
        sleep(pause).await;
        pause = (pause * 2).min(LATER_LOOK);
    }
}

fn is_up(membership: &Membership, id: &NodeId) -> bool {
    membership.nodes().iter().any(|node| node.id == *id && node.state != NodeState::Down)
}

/// Whether a node is down or gone. Where no node is up, nobody knows.
fn is_lost(membership: &Membership, id: &NodeId) -> bool {
    !is_up(membership, id) && membership.nodes().iter().any(|node| node.state != NodeState::Down)
}

fn carries(membership: &Membership, id: &NodeId) -> bool {
    membership.nodes().iter().any(|node| node.id == *id && node.carries)
}

#[cfg(test)]
mod tests {
    use affinity::{IdProof, Node};

    use super::*;
    use crate::store::{Embedded, Lifetimes, Publication};

    fn node(id: &str, port: u16) -> Node {
        Node {
            id: NodeId::new(id).unwrap(),
            http: ([127, 0, 0, 1], port).into(),
            gevent: None,
            weight: 1,
            state: NodeState::Active,
            full: false,
            carries: true,
        }
    }

    fn published(base: u64, sid: &str) -> Publication {
        let proofs = vec![IdProof::of_session_id(sid.as_bytes())];
        let node = NodeId::new("a").unwrap();
        Publication { node, epoch: 0, base, digest: [7; 16], anonymous: false, proofs, seal: vec![1] }
    }

    /// A session with one publication, and what a browser that left it by `sid` has claimed for it.
    async fn left_by(sid: &str) -> (tempfile::TempDir, Arc<dyn Store>, Arc<Membership>, Claim) {
        let folder = tempfile::tempdir().unwrap();
        let lasts = Duration::from_secs(600);
        let lifetimes = Lifetimes { provisional: lasts, durable: lasts };
        let store: Arc<dyn Store> = Arc::new(Embedded::open(folder.path(), lifetimes).unwrap());
        let membership = Arc::new(Membership::new(vec![node("a", 1), node("b", 2)]).unwrap());
        let [key, next] = ["left", "new"].map(|name| SessionKey::of_session_id(name.as_bytes()));
        store.publish(key, published(0, "before")).await.unwrap();
        let left = Some(Left { key, proof: IdProof::of_session_id(sid.as_bytes()) });
        let origin = Origin::Entry { left, posted: true };
        (folder, store, membership, Claim { key: next, node: NodeId::new("a").unwrap(), expect: 0, origin })
    }

    async fn has_ended(store: &dyn Store) -> bool {
        store.copy(SessionKey::of_session_id(b"left")).await.unwrap().unwrap().ended
    }

    #[tokio::test]
    async fn an_id_that_was_rotated_a_moment_before_ends_the_session() {
        let (_folder, store, membership, claim) = left_by("after").await;
        let late = async {
            sleep(Duration::from_millis(30)).await;
            let key = SessionKey::of_session_id(b"left");
            store.publish(key, published(1, "after")).await.unwrap();
        };
        let carriers = Carriers::default();
        tokio::join!(settled(&*store, &membership, &carriers, &claim), late);
        assert!(has_ended(&*store).await);
    }

    #[tokio::test]
    async fn another_id_does_not() {
        for (sid, ends) in [("before", true), ("befor", false), ("after", false), ("", false)] {
            let (_folder, store, membership, claim) = left_by(sid).await;
            settled(&*store, &membership, &Carriers::default(), &claim).await;
            assert_eq!(has_ended(&*store).await, ends, "{sid:?}");
        }
    }
}
