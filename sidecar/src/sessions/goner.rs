//! Files that are gone: sessions that ended, or a directory that somebody emptied.
//!
//! Odoo deletes a session's file when it ends, and rotating its id (login and logout do) saves another
//! at once. Whoever empties a directory deletes many and saves none.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use affinity::SessionKey;

/// How long files that are gone are counted together.
const WINDOW: Duration = Duration::from_millis(500);
/// How far apart Odoo may delete one file and save the next.
const BIRTH: Duration = Duration::from_secs(2);
/// The fewest sessions that can be taken for all of a node's.
const FEWEST: usize = 4;
/// How often a verdict that waits is asked for.
const AGAIN: Duration = Duration::from_millis(100);

/// What is to be thought of a file that is gone.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Wait(Duration),
    Ended,
    Lost,
}

#[derive(Default)]
pub(super) struct Goners {
    /// When sessions began that no deletion belongs to yet.
    births: VecDeque<Instant>,
    /// Since when sessions are gone that no verdict was spoken of.
    gone: HashMap<SessionKey, Instant>,
    /// Until when everything that is gone is taken for lost.
    losing_until: Option<Instant>,
}

impl Goners {
    /// A session began on the node.
    pub(super) fn born(&mut self) {
        let now = Instant::now();
        self.births.push_back(now);
        while self.births.front().is_some_and(|birth| now.duration_since(*birth) > BIRTH) {
            self.births.pop_front();
        }
    }

    /// A file of a session is gone.
    pub(super) fn gone(&mut self, key: SessionKey) {
        self.gone.entry(key).or_insert_with(Instant::now);
    }

    /// Judges a session whose files are gone; `sessions` are known on the node, this one included.
    pub(super) fn verdict(&mut self, key: SessionKey, folder_gone: bool, sessions: usize) -> Verdict {
        self.verdict_at(key, folder_gone, sessions, Instant::now())
    }

    fn verdict_at(&mut self, key: SessionKey, folder_gone: bool, sessions: usize, now: Instant) -> Verdict {
        let since = *self.gone.entry(key).or_insert(now);
        // Odoo never deletes a folder.
        if folder_gone || self.losing_until.is_some_and(|until| now < until) {
            return Verdict::Lost;
        }
        let are_most = self.gone.len() >= FEWEST && self.gone.len() * 2 > sessions;
        while let Some(birth) = self.births.pop_front().filter(|_| !are_most) {
            if now.duration_since(birth) <= BIRTH {
                return Verdict::Ended;
            }
        }
        if now.duration_since(since) < WINDOW {
            return Verdict::Wait(AGAIN);
        }
        if are_most {
            self.losing_until = Some(now + WINDOW * 4);
            return Verdict::Lost;
        }
        Verdict::Ended
    }

    /// A session was dealt with, or its files are back.
    pub(super) fn forget(&mut self, key: SessionKey) {
        self.gone.remove(&key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u8) -> SessionKey {
        SessionKey::from([number; 16])
    }

    #[test]
    fn a_logout_is_believed_at_once_and_a_revoked_device_after_a_while() {
        let (mut goners, now) = (Goners::default(), Instant::now());
        goners.born();
        assert_eq!(goners.verdict_at(key(1), false, 3, now), Verdict::Ended);
        goners.forget(key(1));
        assert_eq!(goners.verdict_at(key(2), false, 2, now), Verdict::Wait(AGAIN));
        assert_eq!(goners.verdict_at(key(2), false, 2, now + WINDOW), Verdict::Ended);
    }

    #[test]
    fn an_emptied_directory_is_no_logout() {
        let (mut goners, now) = (Goners::default(), Instant::now());
        (0..10).for_each(|number| goners.gone(key(number)));
        // Somebody logs in meanwhile.
        goners.born();
        for number in 0..10 {
            assert_eq!(goners.verdict_at(key(number), false, 12, now), Verdict::Wait(AGAIN));
        }
        let later = now + WINDOW * 2;
        for number in 0..10 {
            assert_eq!(goners.verdict_at(key(number), false, 12, later), Verdict::Lost);
            goners.forget(key(number));
        }
        assert_eq!(goners.verdict_at(key(11), true, 100, now), Verdict::Lost);
    }

    #[test]
    fn many_that_end_among_many_more_have_ended() {
        let (mut goners, now) = (Goners::default(), Instant::now());
        for number in 0..10 {
            goners.verdict_at(key(number), false, 100, now);
        }
        for number in 0..10 {
            assert_eq!(goners.verdict_at(key(number), false, 100, now + WINDOW), Verdict::Ended);
            goners.forget(key(number));
        }
    }
}
