//! What everybody was told, and whether it fits together.
//!
//! A record that nobody uses expires, and the next claim may begin again with epoch 1 and another owner.
//! So what was told of a session falls into lives: within one there is one owner an epoch, and epochs
//! only grow. A life lasts surely for as long as a granted claim promised.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, MutexGuard},
};

use super::*;

/// What was told of one session in one life of its record.
struct Life {
    /// When something was first told of it.
    began: Instant,
    /// Until when its record is surely there.
    lasts: Instant,
    owners: BTreeMap<u64, NodeId>,
}

/// How a session stood when a claim was made.
pub(super) struct Standing {
    asked: Instant,
    /// Until when its record is surely there.
    lasts: Instant,
    /// The last owner that anybody was told of.
    pub(super) owner: Option<Owner>,
}

impl Standing {
    /// The epoch that a claimer expects.
    pub(super) fn epoch(&self) -> u64 {
        self.owner.as_ref().map_or(0, |owner| owner.epoch)
    }
}

#[derive(Default)]
pub(super) struct History(Mutex<HashMap<SessionKey, Life>>);

impl History {
    /// How a session stands, before it is asked for.
    pub(super) fn standing(&self, key: SessionKey) -> Standing {
        let (all, asked) = (self.lives(), Instant::now());
        let life = all.get(&key);
        let last = life.and_then(|life| life.owners.last_key_value());
        Standing {
            asked,
            lasts: life.map_or(asked, |life| life.lasts),
            owner: last.map(|(epoch, node)| Owner { node: node.clone(), epoch: *epoch }),
        }
    }

    /// Takes in the answer to a claim, which Redis gave after `before`. Its record lasts for `lasting` more
    /// if it was granted.
    pub(super) fn claimed(
        &self,
        key: SessionKey,
        before: &Standing,
        reply: &ClaimReply,
        lasting: Duration,
    ) -> Result<()> {
        if let Some(known) = before.owner.as_ref().filter(|_| Instant::now() < before.lasts) {
            let is_later = reply.owner.epoch > known.epoch || reply.owner == *known;
            ensure!(is_later, "{key} had {known:?} and then {:?}", reply.owner);
        }
        let lasting = if reply.granted { lasting } else { Duration::ZERO };
        self.told(key, before.asked, &reply.owner, lasting)
    }

    /// Takes in who owns a session, in answer to what was asked at `asked`.
    pub(super) fn told(
        &self,
        key: SessionKey,
        asked: Instant,
        owner: &Owner,
        lasting: Duration,
    ) -> Result<()> {
        let (mut all, now) = (self.lives(), Instant::now());
        let fresh = || Life { began: now, lasts: now, owners: BTreeMap::new() };
        let life = all.entry(key).or_insert_with(fresh);
        if life.lasts <= now {
            // It may have expired in the meantime.
            *life = fresh();
        } else if asked < life.began {
            // This may be of the life before.
            return Ok(());
        }
        life.lasts = life.lasts.max(asked + lasting);
        let known = life.owners.entry(owner.epoch).or_insert_with(|| owner.node.clone());
        ensure!(
            *known == owner.node,
            "epoch {} of {key} is both {known}'s and {}'s",
            owner.epoch,
            owner.node
        );
        Ok(())
    }

    fn lives(&self) -> MutexGuard<'_, HashMap<SessionKey, Life>> {
        self.0.lock().expect("no panic")
    }
}
