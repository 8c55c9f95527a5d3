//! Does what [`decide`](super::decide) says: publishes, writes, removes, ends.

use std::time::{Duration, Instant};

use affinity::{
    SessionKey,
    wire::{Claim, Origin},
};

use super::{
    carrier::{Carrier, Job},
    decide::Action,
    disk::place_of,
    goner::Verdict,
    holders::holders,
    memory::Known,
    snapshot::Snapshot,
    step::{Here, Problem},
};
use crate::{
    files::now_ns,
    metrics::CopyOutcome,
    store::{Copy, EndedBy, Publication, Published},
};

/// How long a node that is not the owner keeps what its Odoo wrote: the claim may be on its way.
const DISPUTED: Duration = Duration::from_secs(1);
/// How long whoever has but a copy waits for the owner to fill a store that lost its memory.
const AFTER_OWNER: Duration = Duration::from_secs(5);
/// How a step goes on.
pub(super) enum Next {
    /// It is done; or is to be done again after a while.
    Done(Option<Duration>),
    /// Disk and store are to be compared anew, with what the store has now.
    Compare(Option<Copy>),
}

impl Carrier {
    pub(super) async fn act(
        &self,
        key: SessionKey,
        job: &mut Job,
        known: Option<&Known>,
        here: Here,
        action: Action,
        copy: Option<Option<Copy>>,
    ) -> Result<Next, Problem> {
        let Here { seen, snapshot, local } = here;
        if let Some(Some(present)) = &copy
            && present.ended
        {
            // A store that forgets this must be told, also if it was another node that saw it.
            self.state().ended.remember(key);
        }
        let is_new = local.is_some_and(|local| known.is_none_or(|known| known.digest != local.digest));
        let done = Ok(Next::Done(None));
        match (action, copy) {
            (Action::Publish(_), Some(None))
                if !self.may_refill(key, known)
                    && let Some(wait) = job.left_to_others(AFTER_OWNER) =>
            {
                Ok(Next::Done(Some(wait)))
            }
            (Action::Publish(base), _) => {
                let Some(snapshot) = &snapshot else { return done };
                match self.publish(key, base, known, snapshot).await? {
                    Published::Stored { owner, version } => {
                        // Who owned it last may have more to tell: a rotation writes two files.
                        self.learn(key, snapshot, version, owner.epoch, owner.node == self.node);
                        done
                    }
                    Published::Refused(present) => Ok(Next::Compare(Some(present))),
                }
            }
            (Action::TakeOver, Some(Some(present))) => {
                let (node, expect) = (self.node.clone(), present.owner.epoch);
                self.store.claim(Claim { key, node, expect, origin: Origin::Visit }).await?;
                Ok(Next::Compare(self.store.copy(key).await?))
            }
            (Action::Write | Action::Remove, Some(Some(present)))
                if is_new
                    && !present.ended
                    && present.owner.node != self.node
                    && let Some(wait) = job.left_to_others(DISPUTED) =>
            {
                job.ask = true;
                Ok(Next::Done(Some(wait)))
            }
            (Action::Write, Some(Some(present))) => {
                if self.write(key, &present, seen).await? {
                    done
                } else {
                    Ok(Next::Compare(Some(present)))
                }
            }
            (Action::Agree, Some(Some(present))) => {
                if let Some(snapshot) = &snapshot {
                    self.agree(key, snapshot, &present, job.offer).await?;
                }
                done
            }
            (Action::Remove, _) => {
                // Before its files go: what is not known any more nobody else has removed.
                self.state().known.remove(&key);
                if let Some(place) = job.place.clone() {
                    self.on_disk(move |disk| disk.remove(&place)).await?;
                    self.metrics.copies(&self.node, CopyOutcome::Removed);
                }
                done
            }
            (Action::Vanished, Some(present)) => {
                match self.vanished(key, job, known, present.as_ref()).await? {
                    Verdict::Wait(wait) => {
                        job.ask = true;
                        Ok(Next::Done(Some(wait)))
                    }
                    Verdict::Ended => done,
                    Verdict::Lost => {
                        let Some(present) = present else { return done };
                        if self.write(key, &present, seen).await? {
                            self.state().goners.forget(key);
                            return done;
                        }
                        Ok(Next::Compare(Some(present)))
                    }
                }
            }
            _ => {
                if local.is_none() {
                    let mut state = self.state();
                    state.known.remove(&key);
                    state.goners.forget(key);
                }
                done
            }
        }
    }

    async fn publish(
        &self,
        key: SessionKey,
        base: u64,
        known: Option<&Known>,
        snapshot: &Snapshot,
    ) -> Result<Published, Problem> {
        let began = Instant::now();
        let seal = self.sealer.seal(key, snapshot).ok_or(Problem::Seal)?;
        let new = Publication {
            node: self.node.clone(),
            epoch: known.map_or(0, |known| known.epoch),
            base,
            digest: snapshot.digest(self.sealer.digest_secret()),
            anonymous: snapshot.is_anonymous(),
            proofs: snapshot.proofs(),
            seal,
        };
        let published = self.store.publish(key, new).await?;
        let outcome = match published {
            Published::Stored { .. } => CopyOutcome::Published,
            Published::Refused(_) => CopyOutcome::Refused,
        };
        self.metrics.copies(&self.node, outcome);
        self.metrics.published_in(began.elapsed());
        Ok(published)
    }

    /// Puts the store's copy on the disk, where `seen` is. Returns whether it was done.
    async fn write(&self, key: SessionKey, copy: &Copy, seen: Option<Snapshot>) -> Result<bool, Problem> {
        let Some(snapshot) = self.opened(key, copy)? else { return Ok(true) };
        let new = snapshot.clone();
        if !self.on_disk(move |disk| disk.write(&new, seen.as_ref())).await? {
            return Ok(false);
        }
        self.metrics.copies(&self.node, CopyOutcome::Written);
        self.learn(key, &snapshot, copy.version, copy.owner.epoch, copy.owner.node == self.node);
        self.store.has_copy(key, &self.node, copy.version).await?;
        Ok(true)
    }

    /// Notes that disk and store are alike, and sees to it that the standby's is too.
    async fn agree(&self, key: SessionKey, here: &Snapshot, copy: &Copy, offer: bool) -> Result<(), Problem> {
        let owned = copy.owner.node == self.node;
        self.learn(key, here, copy.version, copy.owner.epoch, owned);
        if !copy.is_at(&self.node) {
            self.store.has_copy(key, &self.node, copy.version).await?;
        }
        if owned && offer {
            let membership = self.membership.borrow().clone();
            for standby in holders(&membership, key, &copy.owner.node).filter(|id| *id != self.node) {
                if !copy.is_at(&standby) {
                    self.store.want_copy(key, &standby).await?;
                }
            }
        }
        Ok(())
    }

    /// The files were there, and are gone: the session ended, or somebody took them away.
    async fn vanished(
        &self,
        key: SessionKey,
        job: &Job,
        known: Option<&Known>,
        copy: Option<&Copy>,
    ) -> Result<Verdict, Problem> {
        let age = known.map(|known| now_ns().saturating_sub(known.modified_ns));
        if age.is_some_and(|age| age >= i64::try_from(self.lifetime.as_nanos()).unwrap_or(i64::MAX)) {
            // Odoo's clean-up of this node; the store forgets it by itself.
            let mut state = self.state();
            state.known.remove(&key);
            state.goners.forget(key);
            return Ok(Verdict::Ended);
        }
        let folder_gone = match &job.place {
            Some(place) => {
                let place = place.clone();
                !self.on_disk(move |disk| disk.has_folder(&place)).await?
            }
            None => false,
        };
        let verdict = self.state().goners.verdict(key, folder_gone);
        match verdict {
            Verdict::Wait(_) => {}
            Verdict::Lost => self.metrics.copies(&self.node, CopyOutcome::Restored),
            Verdict::Ended => {
                let me = self.node.clone();
                let by = match (known, copy) {
                    // The store may have forgotten that it was this node's, and been filled by a copy.
                    (Some(known), _) if known.owned => EndedBy::Witness(me),
                    // Nor may it have anything but a claim.
                    (_, None) => EndedBy::Witness(me),
                    (_, Some(copy)) if copy.version == 0 => EndedBy::Witness(me),
                    (Some(known), Some(copy)) if known.digest != copy.digest => {
                        EndedBy::Node(me, known.version)
                    }
                    (_, Some(copy)) => EndedBy::Node(me, copy.version),
                };
                if self.store.end(key, by).await? {
                    tracing::debug!(node = %self.node, session = %key, "has ended: its files are gone");
                    self.metrics.copies(&self.node, CopyOutcome::Ended);
                }
                let mut state = self.state();
                state.known.remove(&key);
                state.goners.forget(key);
                state.ended.remember(key);
            }
        }
        Ok(verdict)
    }

    fn learn(&self, key: SessionKey, snapshot: &Snapshot, version: u64, epoch: u64, owned: bool) {
        let Some(place) = place_of(snapshot) else { return };
        let digest = snapshot.digest(self.sealer.digest_secret());
        let mut state = self.state();
        let before = state.known.get(&key).map_or(0, |known| known.epoch);
        let epoch = if owned { epoch } else { before };
        let known = Known { place, version, epoch, digest, owned, modified_ns: snapshot.modified_ns() };
        state.known.insert(key, known);
    }
}
