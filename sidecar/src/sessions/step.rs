//! One look at one session: compare disk and store, and do what [`decide`] says.

use std::{io, time::Duration};

use affinity::SessionKey;

use super::{
    act::Next,
    carrier::{Carrier, Job},
    decide::{Action, Local, decide},
    disk::{Disk, place_of},
    memory::Known,
    snapshot::Snapshot,
};
use crate::{
    files::{Found, Reason},
    store::{Copy, StoreError},
};

/// How many times disk and store may differ anew while a session is looked at.
const ROUNDS: u32 = 4;
/// How long a file may name one that is not there: Odoo writes both within milliseconds.
const TORN: Duration = Duration::from_secs(2);
const TORN_AGAIN: Duration = Duration::from_millis(10);
/// What is seen on the disk of one session.
enum Sight {
    Whole(Here),
    /// Odoo is between two files.
    Torn,
    LeftAlone(Reason),
}

/// What is on the disk of one session.
pub(super) struct Here {
    /// All of it.
    pub(super) seen: Option<Snapshot>,
    /// What of it is of use.
    pub(super) snapshot: Option<Snapshot>,
    pub(super) local: Option<Local>,
}

impl Carrier {
    /// Compares and acts once; how long to wait before it must be done again.
    pub(super) async fn step(&self, key: SessionKey, job: &mut Job) -> Result<Option<Duration>, Problem> {
        let known = self.state().known.get(&key).cloned();
        let known = known.as_ref();
        // None: the store was not asked.
        let mut copy = if job.ask { Some(self.store.copy(key).await?) } else { None };
        if job.place.is_none() {
            job.place = known.map(|known| known.place.clone());
        }
        if job.place.is_none()
            && let Some(Some(copy)) = &copy
            && copy.version > 0
        {
            // The disk may have what was never seen there.
            job.place = self.opened(key, copy)?.as_ref().and_then(place_of);
        }
        for _ in 0..ROUNDS {
            let here = match self.here(job, known).await? {
                Sight::Whole(here) => here,
                // A node that stopped between the two files leaves the copy before them in use.
                Sight::Torn => return Ok(Some(TORN_AGAIN).filter(|_| job.since.elapsed() < TORN)),
                // And so does one whose file is left alone.
                Sight::LeftAlone(reason) => {
                    self.leave_alone(key, reason);
                    return Ok(None);
                }
            };
            self.state().left_alone.forget(key);
            if here.local.is_some() {
                self.state().goners.forget(key);
            }
            let Some(action) = self.choose(key, job, known, here.local, copy.as_ref()) else {
                copy = Some(self.store.copy(key).await?);
                continue;
            };
            tracing::debug!(node = %self.node, session = %key, ?action, asked = job.ask, "looked at");
            match self.act(key, job, known, here, action, copy).await? {
                Next::Done(wait) => return Ok(wait),
                Next::Compare(present) => copy = Some(present),
            }
        }
        // Others are quicker; the next round is as good as this one.
        job.ask = true;
        Ok(Some(TORN_AGAIN))
    }

    /// Looks at the disk.
    async fn here(&self, job: &Job, known: Option<&Known>) -> Result<Sight, Problem> {
        let found = match job.place.clone() {
            Some(place) => self.on_disk(move |disk| disk.read(&place)).await?,
            None => Found::Absent,
        };
        let seen = match found {
            Found::There(seen) => Some(seen),
            Found::Absent => None,
            Found::LeftAlone(reason) => return Ok(Sight::LeftAlone(reason)),
        };
        let torn = seen.as_ref().is_some_and(Snapshot::is_torn);
        // A logout deletes the newest file alone: what is left of a rotated session leads nowhere.
        let cut_off = torn
            && known.is_some_and(|known| {
                seen.iter().flat_map(Snapshot::files).all(|file| file.sid != known.place.sid)
            });
        if torn && !cut_off {
            return Ok(Sight::Torn);
        }
        let snapshot = seen.clone().filter(|_| !cut_off);
        let local = snapshot.as_ref().map(|snapshot| Local {
            digest: snapshot.digest(self.sealer.digest_secret()),
            anonymous: snapshot.is_anonymous(),
        });
        Ok(Sight::Whole(Here { seen, snapshot, local }))
    }

    /// What is to be done; none if the store must be asked first.
    fn choose(
        &self,
        key: SessionKey,
        job: &Job,
        known: Option<&Known>,
        local: Option<Local>,
        copy: Option<&Option<Copy>>,
    ) -> Option<Action> {
        let had = known.map_or(0, |known| known.version);
        let Some(copy) = copy else {
            // The usual case asks nothing first: the node's Odoo saved a session that the node owns.
            return match (local, known) {
                (Some(local), Some(known)) if local.digest == known.digest => Some(Action::Nothing),
                (Some(_), _) => Some(Action::Publish(had)),
                (None, None) => Some(Action::Nothing),
                (None, Some(_)) => None,
            };
        };
        let copy = copy.as_ref();
        // Before a restart of this process the node may have had a version too.
        let noted = copy.and_then(|copy| copy.holders.get(&self.node).copied());
        let had = if known.is_some() { had } else { noted.unwrap_or_default() };
        let is_present = noted.is_some() && noted == copy.map(|copy| copy.version);
        // Of a copy that went while nobody watched nothing can be said.
        let was_here = is_present && copy.is_some_and(|copy| copy.owner.node == self.node);
        let deleted = local.is_none() && (known.is_some() || was_here);
        let holds = job.wanted || copy.is_some_and(|copy| self.holds(key, &copy.owner.node));
        let owned = known.map_or(0, |known| known.epoch);
        Some(decide(&self.node, local, had, owned, deleted, copy, holds))
    }

    pub(super) fn opened(&self, key: SessionKey, copy: &Copy) -> Result<Option<Snapshot>, Problem> {
        if copy.seal.is_empty() {
            return Ok(None);
        }
        self.sealer.open(key, &copy.seal).map(Some).ok_or(Problem::Sealed)
    }

    pub(super) async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Disk) -> io::Result<T> + Send + 'static,
    ) -> Result<T, Problem> {
        let disk = self.disk.clone();
        let done = tokio::task::spawn_blocking(move || work(&disk)).await;
        done.map_err(|error| Problem::Disk(io::Error::other(error)))?.map_err(Problem::Disk)
    }
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
