//! The thread that writes the embedded store. Writes that come together are committed together, and
//! each is answered when it is on disk.

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use affinity::{
    NodeId, SessionKey,
    wire::{Change, Claim, ClaimReply},
};
use redb::Database;
use tokio::sync::{broadcast, mpsc, oneshot};

use super::super::{
    Copy, CopyEvent, EndedBy, Event, News, Outcome, Publication, Published, copies, decide,
    records::{Record, Records},
};

/// How many writes are committed at once.
const BATCH: usize = 512;
/// How many expired records are removed at once, so that claims get their turn.
const SWEEP: usize = 10_000;

/// Where the answer to a write goes, once it is on disk.
pub(super) type Answer<T> = oneshot::Sender<T>;

pub(super) enum Write {
    Claim(Claim, Answer<ClaimReply>),
    Prolong(SessionKey),
    Sweep,
    Publish(SessionKey, Publication, Answer<Published>),
    HasCopy(SessionKey, NodeId, u64),
    End(SessionKey, EndedBy, Answer<bool>),
}

/// The thread that writes.
pub(super) struct Writer {
    pub(super) database: Arc<Database>,
    pub(super) events: broadcast::Sender<Event>,
    pub(super) copy_events: broadcast::Sender<CopyEvent>,
    /// In seconds, as are the next two.
    pub(super) provisional: u64,
    pub(super) durable: u64,
    pub(super) prolong_after: u64,
}

/// What a batch did, to be told once it is committed.
#[derive(Default)]
struct Effects {
    answers: Vec<Box<dyn FnOnce()>>,
    changes: Vec<Change>,
    copies: Vec<(SessionKey, News)>,
}

impl Effects {
    fn answer<T: 'static>(&mut self, to: Answer<T>, with: T) {
        self.answers.push(Box::new(move || {
            // Who asked may have gone.
            let _ = to.send(with);
        }));
    }
}

impl Writer {
    pub(super) fn run(self, mut queue: mpsc::Receiver<Write>) {
        let mut batch = Vec::with_capacity(BATCH);
        while queue.blocking_recv_many(&mut batch, BATCH) > 0 {
            match self.write(batch.drain(..)) {
                Ok(effects) => self.tell(effects),
                // Whoever waits learns that there is no answer.
                Err(error) => tracing::error!("the directory's file cannot be written: {error}"),
            }
        }
    }

    /// Does all of a batch in one transaction, or nothing of it.
    fn write(&self, batch: impl Iterator<Item = Write>) -> Result<Effects, redb::Error> {
        let mut effects = Effects::default();
        let mut dirty = false;
        let transaction = self.database.begin_write()?;
        {
            let mut records = Records::open(&transaction)?;
            let now = now();
            for write in batch {
                dirty |= match write {
                    Write::Claim(claim, answer) => {
                        let (reply, wrote) = self.claim(&mut records, &claim, now, &mut effects)?;
                        effects.answer(answer, reply);
                        wrote
                    }
                    Write::Prolong(key) => {
                        self.prolong(&mut records, key, now + self.durable, self.prolong_after)?
                    }
                    Write::Sweep => records.remove_expired(now, SWEEP)? > 0,
                    Write::Publish(key, new, answer) => {
                        let by = new.node.clone();
                        let published = self.publish(&mut records, key, new, now)?;
                        let wrote = matches!(published, Published::Stored { .. });
                        effects.copies.extend(wrote.then_some((key, News::Published(by))));
                        effects.answer(answer, published);
                        wrote
                    }
                    Write::HasCopy(key, node, version) => {
                        let Some(mut copy) = present_copy(&records, key, now)? else { continue };
                        copy.holders.insert(node, version);
                        records.set_copy(key, &copy)?;
                        true
                    }
                    Write::End(key, by, answer) => {
                        let ended = copies::end(present_copy(&records, key, now)?, &by);
                        if let Some(copy) = &ended {
                            let stored = records.get(key)?;
                            let expires = now + self.durable;
                            let owner = copy.owner.clone();
                            records.set(key, stored.as_ref(), &Record { owner, expires })?;
                            records.set_copy(key, copy)?;
                            effects.copies.push((key, News::Ended));
                        }
                        let wrote = ended.is_some();
                        effects.answer(answer, wrote);
                        wrote
                    }
                };
            }
        }
        if dirty {
            transaction.commit()?
        } else {
            transaction.abort()?
        }
        Ok(effects)
    }

    fn claim(
        &self,
        records: &mut Records<'_>,
        claim: &Claim,
        now: u64,
        effects: &mut Effects,
    ) -> Result<(ClaimReply, bool), redb::Error> {
        let stored = records.get(claim.key)?;
        let present = stored.as_ref().filter(|record| record.expires > now).map(|record| &record.owner);
        let (reply, outcome) = decide(claim, present);
        let provisional = now + self.provisional;
        match outcome {
            Outcome::Refused => return Ok((reply, false)),
            Outcome::Kept => {
                let wrote = self.prolong(records, claim.key, provisional, 1)?;
                return Ok((reply, wrote));
            }
            Outcome::First => {}
            Outcome::Moved => {
                effects.changes.push(Change { key: claim.key, owner: Some(reply.owner.clone()) });
            }
        }
        // A session that moves lives on for as long as it would have.
        let expires = stored.as_ref().map_or(provisional, |record| record.expires.max(provisional));
        records.set(claim.key, stored.as_ref(), &Record { owner: reply.owner.clone(), expires })?;
        Ok((reply, true))
    }

    fn publish(
        &self,
        records: &mut Records<'_>,
        key: SessionKey,
        new: Publication,
        now: u64,
    ) -> Result<Published, redb::Error> {
        let copy = match copies::publish(present_copy(records, key, now)?, new) {
            Ok(copy) => copy,
            Err(present) => return Ok(Published::Refused(*present)),
        };
        let stored = records.get(key)?;
        // Somebody's session lives as Odoo's do; nobody's for as long as if it were only claimed.
        let lifetime = if copy.anonymous { self.provisional } else { self.durable };
        let expires = stored.as_ref().map_or(0, |record| record.expires).max(now + lifetime);
        let wanted = Record { owner: copy.owner.clone(), expires };
        records.set(key, stored.as_ref(), &wanted)?;
        records.set_copy(key, &copy)?;
        Ok(Published::Stored { owner: copy.owner, version: copy.version })
    }

    /// Lets a record live until `expires`, if that is `least` seconds longer than it would.
    fn prolong(
        &self,
        records: &mut Records<'_>,
        key: SessionKey,
        expires: u64,
        least: u64,
    ) -> Result<bool, redb::Error> {
        match records.get(key)? {
            Some(record) if record.expires + least <= expires => {
                let prolonged = Record { owner: record.owner.clone(), expires };
                records.set(key, Some(&record), &prolonged)?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    fn tell(&self, effects: Effects) {
        // Nobody may be following.
        for change in effects.changes {
            let _ = self.events.send(Event::Changed(change));
        }
        for (key, news) in effects.copies {
            let _ = self.copy_events.send(CopyEvent::Of(key, news));
        }
        effects.answers.into_iter().for_each(|answer| answer());
    }
}

/// The copy of a session that has an owner.
fn present_copy(records: &Records<'_>, key: SessionKey, now: u64) -> Result<Option<Copy>, redb::Error> {
    let record = records.get(key)?.filter(|record| record.expires > now);
    record.map(|record| records.copy(key, record.owner)).transpose()
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
