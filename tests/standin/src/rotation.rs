//! How a session ends a request: saved, under a new id (login, logout), or half-renewed (19).

use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::cli::Profile;
use crate::database::Database;
use crate::session::{Session, new_sid, next_sid, now};
use crate::store::Store;

/// Saves sessions and changes their ids.
#[derive(Debug)]
pub(crate) struct Keeper {
    pub(crate) profile: Profile,
    pub(crate) store: Store,
    pub(crate) database: Database,
    /// Age at which 19 rotates softly.
    pub(crate) rotation: Duration,
    /// How long a softly rotated id is still accepted.
    pub(crate) grace: Duration,
    /// Parallel requests with one old id must end up with one next id, as those on one Odoo node do.
    pub(crate) rotating: Mutex<()>,
}

impl Keeper {
    /// The end of a request.
    pub(crate) fn save(&self, session: &mut Session) -> io::Result<()> {
        if session.should_rotate {
            self.rotate(session)
        } else if self.is_due(session) {
            self.rotate_softly(session)
        } else if session.dirty {
            self.store.save(&session.sid, &session.data)
        } else {
            Ok(())
        }
    }

    /// Whether the session is its user's still. Also removes what a soft rotation left behind, because
    /// Odoo 19 does that in the same place.
    pub(crate) fn check(&self, session: &mut Session) -> io::Result<bool> {
        self.delete_old_sessions(session)?;
        if session.data.deletion_time.is_some_and(|at| at <= now()) {
            return Ok(false);
        }
        let token = self.token(session);
        Ok(token.is_some() && token == session.data.session_token)
    }

    /// The token that the session needs under its present id.
    pub(crate) fn token(&self, session: &Session) -> Option<String> {
        let user = self.database.user(session.login()?);
        (session.data.uid == Some(user.uid)).then(|| user.session_token(&session.sid))
    }

    fn is_due(&self, session: &Session) -> bool {
        let due = |created: f64| now() >= created + self.rotation.as_secs_f64();
        self.profile.rotates_softly()
            && session.data.uid.is_some()
            && session.data.create_time.is_some_and(due)
    }

    fn rotate(&self, session: &mut Session) -> io::Result<()> {
        self.store.delete(&session.sid);
        session.sid = new_sid(self.profile);
        self.renew(session)
    }

    fn rotate_softly(&self, session: &mut Session) -> io::Result<()> {
        let _one_at_a_time = self.rotating.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(next) = self.store.load(&session.sid).and_then(|recent| recent.next_sid) {
            session.sid = next;
            return Ok(());
        }
        let next = next_sid(self.profile, &session.sid);
        session.data.next_sid = Some(next.clone());
        session.data.deletion_time = Some(now() + self.grace.as_secs_f64());
        self.store.save(&session.sid, &session.data)?;

        session.data.next_sid = None;
        session.data.deletion_time = None;
        session.data.gc_previous_sessions = Some(true);
        session.dirty = true;
        session.sid = next;
        self.renew(session)
    }

    /// Saves the session under the id it just got.
    fn renew(&self, session: &mut Session) -> io::Result<()> {
        if session.data.uid.is_some() {
            session.data.session_token = self.token(session);
        }
        session.should_rotate = false;
        session.data.create_time = self.profile.rotates_softly().then(now);
        self.store.save(&session.sid, &session.data)
    }

    /// Once the grace time is over, deletes every file of the rotated session, its own included, and saves
    /// its own again.
    fn delete_old_sessions(&self, session: &mut Session) -> io::Result<()> {
        let created = session.data.create_time.unwrap_or_else(now);
        if session.data.gc_previous_sessions.is_none() || created + self.grace.as_secs_f64() >= now() {
            return Ok(());
        }
        self.store.delete_rotated(&session.sid);
        session.data.gc_previous_sessions = None;
        session.dirty = true;
        self.store.save(&session.sid, &session.data)
    }
}
