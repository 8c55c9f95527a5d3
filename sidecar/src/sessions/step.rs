//! One look at one session: compare disk and store, and do what [`decide`] says.

use std::{
    io,
    time::{Duration, Instant},
};

use affinity::{
    Membership, Node, NodeId, NodeState, SessionKey,
    plan::plan,
    wire::{Claim, Origin},
};

use super::{
    carrier::{Carrier, Job},
    decide::{Action, Local, decide},
    disk::{Disk, now_ns, place_of},
    goner::Verdict,
    memory::Known,
    snapshot::Snapshot,
};
use crate::{
    metrics::CopyOutcome,
    store::{Copy, EndedBy, Publication, Published, StoreError},
};

/// How many times disk and store may differ anew while a session is looked at.
const ROUNDS: u32 = 4;
/// How long a file may name one that is not there: Odoo writes both within milliseconds.
const TORN: Duration = Duration::from_secs(2);
const TORN_AGAIN: Duration = Duration::from_millis(10);
/// How long a node that is not the owner keeps what its Odoo wrote: the claim may be on its way.
const DISPUTED: Duration = Duration::from_secs(1);
/// How long whoever has but a copy waits for the owner to fill a store that lost its memory.
const AFTER_OWNER: Duration = Duration::from_secs(5);
/// How many nodes hold a session: its owner and its standby.
const HOLDERS: usize = 2;

impl Carrier {
    /// Compares and acts once; how long to wait before it must be done again.
    pub(super) async fn step(&self, key: SessionKey, job: &mut Job) -> Result<Option<Duration>, Problem> {
        let known = self.state().known.get(&key).cloned();
        let mut copy = if job.ask { Some(self.store.copy(key).await?) } else { None };
        if job.place.is_none() {
            job.place = known.as_ref().map(|known| known.place.clone());
        }
        if job.place.is_none()
            && let Some(Some(copy)) = &copy
            && copy.version > 0
        {
            // The disk may have what was never seen there.
            job.place = self.opened(key, copy)?.as_ref().and_then(place_of);
        }
        for _ in 0..ROUNDS {
            let snapshot = match job.place.clone() {
                Some(place) => self.on_disk(move |disk| disk.read(&place)).await?,
                None => None,
            };
            let torn = snapshot.as_ref().is_some_and(Snapshot::is_torn);
            let newest = known.as_ref().map(|known| &known.place.sid);
            // A logout deletes the newest file alone: what is left of a rotated session leads nowhere.
            let cut_off = torn
                && newest.is_some_and(|newest| {
                    snapshot.iter().flat_map(Snapshot::files).all(|file| file.sid != *newest)
                });
            let seen = snapshot.clone();
            let snapshot = snapshot.filter(|_| !cut_off);
            if torn && !cut_off {
                // A node that stopped between the two files leaves the copy before them in use.
                return Ok(Some(TORN_AGAIN).filter(|_| job.since.elapsed() < TORN));
            }
            let local = snapshot.as_ref().map(|snapshot| Local {
                digest: snapshot.digest(self.sealer.digest_secret()),
                anonymous: snapshot.is_anonymous(),
            });
            if local.is_some() {
                self.state().goners.forget(key);
            }
            let had = known.as_ref().map_or(0, |known| known.version);
            let action = match &copy {
                Some(copy) => {
                    // Before a restart of this process the node may have had a version too.
                    let noted = copy.as_ref().and_then(|copy| copy.holders.get(&self.node).copied());
                    let had = if known.is_some() { had } else { noted.unwrap_or_default() };
                    let is_present = noted.is_some() && noted == copy.as_ref().map(|copy| copy.version);
                    let deleted = local.is_none() && (known.is_some() || is_present);
                    let holds =
                        job.wanted || copy.as_ref().is_some_and(|copy| self.holds(key, &copy.owner.node));
                    decide(&self.node, local, had, deleted, copy.as_ref(), holds)
                }
                // The usual case asks nothing first: the node's Odoo saved a session that the node owns.
                None => match (local, &known) {
                    (Some(local), Some(known)) if local.digest == known.digest => Action::Nothing,
                    (Some(_), _) => Action::Publish(had),
                    (None, None) => Action::Nothing,
                    (None, Some(_)) => {
                        copy = Some(self.store.copy(key).await?);
                        continue;
                    }
                },
            };
            tracing::debug!(node = %self.node, session = %key, ?action, had, asked = job.ask, "looked at");
            let is_new =
                local.is_some_and(|local| known.as_ref().is_none_or(|known| known.digest != local.digest));
            match (action, copy) {
                (Action::Publish(_), Some(None))
                    if !self.may_refill(key, known.as_ref())
                        && let Some(wait) = job.left_to_others(AFTER_OWNER) =>
                {
                    return Ok(Some(wait));
                }
                (Action::Publish(base), _) => {
                    let Some(snapshot) = &snapshot else { return Ok(None) };
                    match self.publish(key, base, known.as_ref(), snapshot).await? {
                        Published::Stored { epoch, version } => {
                            self.learn(key, snapshot, version, epoch, true);
                            return Ok(None);
                        }
                        Published::Refused(present) => copy = Some(Some(present)),
                    }
                }
                (Action::TakeOver, Some(Some(present))) => {
                    let (node, expect) = (self.node.clone(), present.owner.epoch);
                    self.store.claim(Claim { key, node, expect, origin: Origin::Visit }).await?;
                    copy = Some(self.store.copy(key).await?);
                }
                (Action::Write | Action::Remove, Some(Some(present)))
                    if is_new
                        && !present.ended
                        && present.owner.node != self.node
                        && let Some(wait) = job.left_to_others(DISPUTED) =>
                {
                    job.ask = true;
                    return Ok(Some(wait));
                }
                (Action::Write, Some(Some(present))) => {
                    if self.write(key, &present, seen).await? {
                        return Ok(None);
                    }
                    copy = Some(Some(present));
                }
                (Action::Agree, Some(Some(present))) => {
                    if let Some(snapshot) = &snapshot {
                        self.agree(key, snapshot, &present, job.offer).await?;
                    }
                    return Ok(None);
                }
                (Action::Remove, _) => {
                    if let Some(place) = job.place.clone() {
                        self.on_disk(move |disk| disk.remove(&place)).await?;
                        self.metrics.copies(&self.node, CopyOutcome::Removed);
                    }
                    self.state().known.remove(&key);
                    return Ok(None);
                }
                (Action::Vanished, Some(present)) => {
                    match self.vanished(key, job, known.as_ref(), present.as_ref()).await? {
                        Verdict::Wait(wait) => {
                            job.ask = true;
                            return Ok(Some(wait));
                        }
                        Verdict::Ended => return Ok(None),
                        Verdict::Lost => {
                            let Some(present) = present else { return Ok(None) };
                            if self.write(key, &present, seen).await? {
                                self.state().goners.forget(key);
                                return Ok(None);
                            }
                            copy = Some(Some(present));
                        }
                    }
                }
                _ => {
                    if local.is_none() {
                        let mut state = self.state();
                        state.known.remove(&key);
                        state.goners.forget(key);
                    }
                    return Ok(None);
                }
            }
        }
        // Others are quicker; the next round is as good as this one.
        job.ask = true;
        Ok(Some(TORN_AGAIN))
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
                self.on_disk(move |disk| Ok(!disk.has_folder(&place))).await?
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

    /// Whether the node is to publish what a store without a memory should have: the owner comes first.
    fn may_refill(&self, key: SessionKey, known: Option<&Known>) -> bool {
        match known {
            Some(known) => known.owned,
            // Found on the disk by a process that just began: others may have it too, and its home's turn is
            // first.
            None => {
                let membership = self.membership.borrow();
                let home = plan(&membership, key, None).places.first().copied();
                home.and_then(|place| membership.nodes().get(place)).is_none_or(|node| node.id == self.node)
            }
        }
    }

    /// Whether the node is one that has the copy of a session with this owner. While it is down it keeps
    /// what it has and takes what is new, as if it were up: others stand by for it, but a node that only
    /// restarts must have everything when it is back.
    pub(super) fn holds(&self, key: SessionKey, owner: &NodeId) -> bool {
        let membership = self.membership.borrow().clone();
        let is_down = |node: &Node| node.id == self.node && node.state == NodeState::Down;
        if !membership.nodes().iter().any(is_down) {
            return holders(&membership, key, owner).any(|id| id == self.node);
        }
        let nodes = membership.nodes().iter().map(|node| {
            let state = if is_down(node) { NodeState::Active } else { node.state };
            Node { state, ..node.clone() }
        });
        Membership::new(nodes.collect()).is_ok_and(|up| holders(&up, key, owner).any(|id| id == self.node))
    }

    fn opened(&self, key: SessionKey, copy: &Copy) -> Result<Option<Snapshot>, Problem> {
        if copy.seal.is_empty() {
            return Ok(None);
        }
        self.sealer.open(key, &copy.seal).map(Some).ok_or(Problem::Sealed)
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

    async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Disk) -> io::Result<T> + Send + 'static,
    ) -> Result<T, Problem> {
        let disk = self.disk.clone();
        let done = tokio::task::spawn_blocking(move || work(&disk)).await;
        done.map_err(|error| Problem::Disk(io::Error::other(error)))?.map_err(Problem::Disk)
    }
}

/// The nodes that have a session's copy: its owner and its standby, as far as they carry sessions.
pub(crate) fn holders(
    membership: &Membership,
    key: SessionKey,
    owner: &NodeId,
) -> impl Iterator<Item = NodeId> {
    let places = plan(membership, key, Some(owner.seed())).places;
    let nodes = places.into_iter().take(HOLDERS).filter_map(|place| membership.nodes().get(place));
    nodes.filter(|node| node.carries).map(|node| node.id.clone())
}

/// Why a session could not be carried now.
#[derive(Debug, thiserror::Error)]
pub(super) enum Problem {
    #[error("{0}")]
    Store(#[from] StoreError),
    #[error("its files: {0}")]
    Disk(io::Error),
    #[error("it cannot be sealed")]
    Seal,
    #[error("its copy in the store is sealed with another secret: give all sidecars the same --secret-file")]
    Sealed,
}
